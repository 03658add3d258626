"""The transport `multicast`: what its settings mean and which are refused, and which sockets it opens."""

from __future__ import annotations

import socket

import pytest
from cachebus_transports._interface import find_interface
from cachebus_transports.multicast import MulticastTransport, read_group

from cachebus.errors import ConfigError, TransportError
from cachebus.ports import Sender, TransportSettings

GROUP = "239.255.67.66:5390"


def ignore(data: bytes, sender: Sender) -> None:
    """A receiver that keeps nothing."""


def settings(
    url: str | None = None, listen: str | None = None, peers: tuple[str, ...] = (), **options: object
) -> TransportSettings:
    return TransportSettings(
        name="lan", node="ams-1", cluster="test", url=url, listen=listen, peers=peers, options=options
    )


class TestSettings:
    @pytest.mark.parametrize(
        ("given", "complaint"),
        [
            (settings(), "needs `group`"),
            (settings(group="192.0.2.1:5390"), "no multicast group"),
            (settings(group="[2001:db8::1]:5390"), "no multicast group"),
            (settings(group="239.1.1.1"), "names are not resolved"),
            (settings(group=GROUP, hops=256), "hops"),
            (settings(group=GROUP, hops=True), "hops"),
            (settings(group=GROUP, loop=1), "loop"),
            (settings(group=GROUP, interface=5), "interface"),
            (settings(group=GROUP, interface=""), "interface"),
            (settings(group=GROUP, sources="192.0.2.1"), "sources: is a list"),
            (settings(group=GROUP, sources=["x"]), "is no address"),
            (settings(group=GROUP, sources=["2001:db8::1"]), "family"),
            (settings(group=GROUP, sources=["239.1.1.1"]), "unicast"),
            (settings(group=GROUP, sources=[f"192.0.2.{n}" for n in range(11)]), "at most 10"),
            (settings(group=GROUP, socket_buffer=1), "socket_buffer"),
            (settings(f"multicast://{GROUP}?ttl=3"), "is not multicast://"),
            (settings(f"multicast://{GROUP}?hops=x"), "hops"),
            (settings("multicast://239.1.1.1"), "names are not resolved"),
        ],
    )
    def test_wrong_ones_are_refused(self, given: TransportSettings, complaint: str) -> None:
        with pytest.raises(ConfigError, match=complaint):
            MulticastTransport(given, ignore)

    def test_defaults(self) -> None:
        group = read_group(settings(group=GROUP))
        assert (group.hops, group.loop, group.sources, group.interface) == (1, True, (), None)
        assert group.listens
        assert group.sends

    def test_url_says_all(self) -> None:
        url = f"multicast://{GROUP}?interface=lo&hops=3&loop=0&source=192.0.2.1,192.0.2.2&source=192.0.2.3"
        group = read_group(settings(url))
        assert (group.address, group.interface, group.hops, group.loop) == (("239.255.67.66", 5390), "lo", 3, False)
        assert group.sources == ("192.0.2.1", "192.0.2.2", "192.0.2.3")

    def test_zone_names_the_interface(self) -> None:
        assert read_group(settings(group="[ff12::6766%lo]:5390")).interface == "lo"
        assert read_group(settings("multicast://[ff12::6766%25lo]:5390")).interface == "lo"

    def test_a_command_may_only_listen_or_only_send(self) -> None:
        assert not read_group(settings(listen=GROUP)).sends
        assert not read_group(settings(peers=(GROUP,))).listens


class TestSockets:
    @pytest.mark.parametrize("interface", ["nowhere0", "203.0.113.77", "2001:db8::77"])
    async def test_interface_that_is_not_there_is_a_transport_error(self, interface: str) -> None:
        with pytest.raises(TransportError, match=rf"port 5390 on {interface}: \w+"):
            async with MulticastTransport(settings(group=GROUP, interface=interface), ignore):
                pass

    async def test_hops_and_loop_reach_the_socket(self) -> None:
        given = settings(group=GROUP, interface="lo", hops=7, loop=False)
        async with MulticastTransport(given, ignore) as transport:
            (sending,) = transport._sending
            assert sending.getsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL) == 7
            assert sending.getsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP) == 0

    @pytest.mark.parametrize("text", ["lo", "127.0.0.1"])
    def test_interface_by_name_or_address(self, text: str) -> None:
        assert find_interface(text) == socket.if_nametoindex("lo")

    def test_no_interface_is_left_to_the_kernel(self) -> None:
        assert find_interface(None) == 0
