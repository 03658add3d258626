"""The transport `udp`: addresses, sockets, and the counting of what the kernel does. Real sockets on loopback."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Iterator

import pytest
from cachebus_transports import _datagram, udp
from cachebus_transports.udp import UdpTransport, parse_endpoint

from cachebus.errors import ConfigError, TransportError
from cachebus.ports import Sender, TransportSettings
from tests.servers import free_port

DEADLINE = 5.0


def ignore(data: bytes, sender: Sender) -> None:
    """A receiver that keeps nothing."""


def settings(listen: str | None = None, *peers: str, **options: object) -> TransportSettings:
    return TransportSettings(name="lan", node="ams-1", cluster="test", listen=listen, peers=peers, options=options)


async def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, "did not happen"
        await asyncio.sleep(0.002)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A plain socket that plays the peer."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
        opened.bind(("127.0.0.1", 0))
        opened.settimeout(DEADLINE)
        yield opened


def at(opened: socket.socket) -> str:
    host, port = opened.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class TestEndpoint:
    @pytest.mark.parametrize(
        ("text", "address"),
        [
            ("192.0.2.1:5390", ("192.0.2.1", 5390)),
            ("[2001:db8::1]:65535", ("2001:db8::1", 65535, 0, 0)),
            ("[2001:DB8:0:0::1]:1", ("2001:db8::1", 1, 0, 0)),
        ],
    )
    def test_takes_literals(self, text: str, address: tuple[object, ...]) -> None:
        assert parse_endpoint(text) == address

    def test_takes_a_zone(self) -> None:
        assert parse_endpoint("[fe80::1%lo]:5390") == ("fe80::1", 5390, 0, socket.if_nametoindex("lo"))

    @pytest.mark.parametrize(
        ("text", "complaint"),
        [
            ("ns1.example.net:5390", "names are not resolved"),
            ("localhost:5390", "names are not resolved"),
            ("127.1:5390", "names are not resolved"),
            ("192.0.2.1", "names are not resolved"),
            ("", "names are not resolved"),
            ("2001:db8::1:5390", "brackets"),
            ("[192.0.2.1]:5390", "brackets"),
            ("[2001:db8::1]", "names are not resolved"),
            ("192.0.2.1:", "port"),
            ("192.0.2.1:0", "port"),
            ("192.0.2.1:65536", "port"),
            ("192.0.2.1:-1", "port"),
            ("192.0.2.1:٣", "port"),
            ("192.0.2.1: 53", "port"),
            ("[fe80::1%nowhere]:5390", "zone"),
        ],
    )
    def test_refuses_the_rest(self, text: str, complaint: str) -> None:
        with pytest.raises(ConfigError, match=complaint):
            parse_endpoint(text)

    def test_port_zero_only_to_listen(self) -> None:
        assert parse_endpoint("127.0.0.1:0", any_port=True) == ("127.0.0.1", 0)
        with pytest.raises(ConfigError, match="port"):
            UdpTransport(settings(None, "127.0.0.1:0"), ignore)


class TestSettings:
    def test_needs_something_to_do(self) -> None:
        with pytest.raises(ConfigError, match="`listen`, `peers` or both"):
            UdpTransport(settings(), ignore)

    @pytest.mark.parametrize("value", ["yes", 1, None])
    def test_peers_only_is_a_boolean(self, value: object) -> None:
        with pytest.raises(ConfigError, match="peers_only"):
            UdpTransport(settings("127.0.0.1:0", peers_only=value), ignore)

    @pytest.mark.parametrize("value", [0, -1, udp.MIN_SOCKET_BUFFER - 1, udp.MAX_SOCKET_BUFFER + 1, True, "8MiB", 1e6])
    def test_socket_buffer_has_a_range(self, value: object) -> None:
        with pytest.raises(ConfigError, match="socket_buffer"):
            UdpTransport(settings("127.0.0.1:0", socket_buffer=value), ignore)

    async def test_address_in_use_is_a_transport_error(self, listener: socket.socket) -> None:
        with pytest.raises(TransportError, match=r"transport lan: no socket for 127\.0\.0\.1 port \d+"):
            async with UdpTransport(settings(at(listener)), ignore):
                pass

    async def test_foreign_address_is_a_transport_error(self) -> None:
        with pytest.raises(TransportError, match=r"192\.0\.2\.1 port 5390"):
            async with UdpTransport(settings("192.0.2.1:5390"), ignore):
                pass

    async def test_cancelled_while_it_opens_it_lets_go(
        self, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def cancelled(*_: object, **__: object) -> None:
            raise asyncio.CancelledError

        own = at(listener)
        listener.close()
        with monkeypatch.context() as patched:
            patched.setattr(asyncio.get_running_loop(), "create_datagram_endpoint", cancelled)
            with pytest.raises(asyncio.CancelledError):
                await UdpTransport(settings(own), ignore).__aenter__()
        async with UdpTransport(settings(own), ignore):
            pass


class TestSockets:
    async def test_sends_from_the_listening_socket(self, listener: socket.socket) -> None:
        async with UdpTransport(settings("127.0.0.1:0", at(listener)), ignore) as transport:
            transport.send(b"hello")
            data, sender = await asyncio.to_thread(listener.recvfrom, 100)
            assert data == b"hello"
            assert sender == transport.addresses[0]

    async def test_only_sends_without_listen(self, listener: socket.socket) -> None:
        async with UdpTransport(settings(None, at(listener)), ignore) as transport:
            assert transport.addresses == ()
            transport.send(b"hello")
            assert (await asyncio.to_thread(listener.recvfrom, 100))[0] == b"hello"

    async def test_reaches_peers_of_the_other_family(self, listener: socket.socket) -> None:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as other:
            other.bind(("::1", 0))
            other.settimeout(DEADLINE)
            async with UdpTransport(settings("127.0.0.1:0", at(listener), at(other)), ignore) as transport:
                transport.send(b"both")
                assert (await asyncio.to_thread(listener.recvfrom, 100))[0] == b"both"
                assert (await asyncio.to_thread(other.recvfrom, 100))[0] == b"both"
                assert transport.statistics()["sent"] == 2

    async def test_ipv6_wildcard_takes_both_families_on_one_port(self) -> None:
        received: list[tuple[bytes, Sender]] = []
        async with UdpTransport(settings("[::]:0"), lambda *item: received.append(item)) as transport:
            ports = {address[1] for address in transport.addresses}
            assert len(ports) == 1
            port = ports.pop()
            peers = settings(None, f"127.0.0.1:{port}", f"[::1]:{port}")
            async with UdpTransport(peers, ignore) as sender:
                sender.send(b"x")
                await until(lambda: len(received) == 2)
        assert sorted(sender[0] for _, sender in received) == ["127.0.0.1", "::1"]

    async def test_leaves_itself_out(self, listener: socket.socket) -> None:
        port = listener.getsockname()[1]
        listener.close()
        own = f"127.0.0.1:{port}"
        async with UdpTransport(settings(own, own), ignore) as transport:
            transport.send(b"x")
            assert transport.statistics()["sent"] == 0
            assert transport.statistics()["dropped"] == 0

    async def test_a_peer_named_twice_is_one(self, listener: socket.socket) -> None:
        async with UdpTransport(settings(None, at(listener), at(listener)), ignore) as transport:
            transport.send(b"x")
            assert transport.statistics()["sent"] == 1

    async def test_port_is_free_again_when_left(self, listener: socket.socket) -> None:
        own = at(listener)
        listener.close()
        for _ in range(3):
            async with UdpTransport(settings(own), ignore):
                pass

    async def test_fragmentation_is_left_to_our_own_interface(self) -> None:
        transport = UdpTransport(settings("127.0.0.1:0", "[::1]:5390"), ignore)
        async with transport:
            v4, v6 = transport._listening[0], transport._sending[0]
            assert v4.getsockopt(socket.IPPROTO_IP, _datagram.IP_MTU_DISCOVER) == _datagram.PMTUDISC_OMIT
            assert v6.getsockopt(socket.IPPROTO_IPV6, _datagram.IPV6_MTU_DISCOVER) == _datagram.PMTUDISC_OMIT


class TestPeersOnly:
    async def test_drops_strangers(self, listener: socket.socket) -> None:
        received: list[bytes] = []
        configured = settings("127.0.0.1:0", "127.0.0.2:5390", peers_only=True)
        async with UdpTransport(configured, lambda data, sender: received.append(data)) as transport:
            listener.sendto(b"stranger", transport.addresses[0])
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
                peer.bind(("127.0.0.2", 0))
                peer.sendto(b"peer", transport.addresses[0])
            await until(lambda: received == [b"peer"])
            assert transport.statistics()["unknown_peer"] == 1
            assert transport.statistics()["received"] == 1

    async def test_strangers_reach_the_codec_by_default(self, listener: socket.socket) -> None:
        received: list[bytes] = []
        configured = settings("127.0.0.1:0", "127.0.0.2:5390")
        async with UdpTransport(configured, lambda data, sender: received.append(data)) as transport:
            listener.sendto(b"stranger", transport.addresses[0])
            await until(lambda: received == [b"stranger"])
            assert transport.statistics()["unknown_peer"] == 0


class TestCounting:
    async def test_every_datagram_of_a_flood_is_received_or_a_kernel_drop(self) -> None:
        received = 0

        def count(data: bytes, sender: Sender) -> None:
            nonlocal received
            received += 1

        small = settings("127.0.0.1:0", socket_buffer=udp.MIN_SOCKET_BUFFER)
        async with UdpTransport(small, count) as transport:
            port = transport.addresses[0][1]
            async with UdpTransport(settings(None, f"127.0.0.1:{port}"), ignore) as sender:
                for _ in range(5000):
                    sender.send(bytes(200))
                sent = sender.statistics()["sent"]
                await until(lambda: received + transport.statistics()["kernel_drops"] == sent)
            statistics = transport.statistics()
            assert statistics["kernel_drops"] > 0
            assert statistics["received"] == received > 0
            assert statistics["received_bytes"] == 200 * received
        assert transport.statistics()["kernel_drops"] == statistics["kernel_drops"], "lost when it stopped"

    async def test_waiting_datagrams_show(self) -> None:
        async with UdpTransport(settings("127.0.0.1:0"), ignore) as transport:
            port = transport.addresses[0][1]
            async with UdpTransport(settings(None, f"127.0.0.1:{port}"), ignore) as sender:
                sender.send(bytes(200))
                assert transport.statistics()["receive_queue_bytes"] >= 200
                await until(lambda: transport.statistics()["receive_queue_bytes"] == 0)

    async def test_buffers_are_set_and_reported(self) -> None:
        wanted = udp.MIN_SOCKET_BUFFER
        async with UdpTransport(settings("127.0.0.1:0", socket_buffer=wanted), ignore) as transport:
            assert transport.statistics()["receive_buffer_bytes"] == 2 * wanted
            assert transport.statistics()["send_buffer_bytes"] == 2 * wanted
        assert transport.statistics()["receive_buffer_bytes"] == 0

    async def test_small_buffers_are_warned_about(
        self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(_datagram, "SO_RCVBUFFORCE", socket.SO_REUSEADDR)  # as without the privilege: no effect
        with caplog.at_level(logging.WARNING):
            async with UdpTransport(settings("127.0.0.1:0", socket_buffer=udp.MAX_SOCKET_BUFFER), ignore):
                pass
        assert "raise net.core.rmem_max" in caplog.text

    async def test_dead_peers_are_no_errors(self, listener: socket.socket) -> None:
        dead = at(listener)
        listener.close()
        async with UdpTransport(settings("127.0.0.1:0", dead), ignore) as transport:
            for _ in range(20):
                transport.send(b"x")
                await asyncio.sleep(0)
            assert transport.statistics()["sent"] == 20
            assert transport.statistics()["send_errors"] == 0
            assert transport.statistics()["receive_errors"] == 0

    async def test_what_the_kernel_refuses_is_a_send_error(self) -> None:
        # Without SO_BROADCAST the kernel refuses this address on every host, with or without a route.
        async with UdpTransport(settings(None, "255.255.255.255:5390"), ignore) as transport:
            transport.send(b"x")
            assert transport.statistics()["send_errors"] == 1
            assert transport.statistics()["sent"] == 0

    async def test_what_no_datagram_holds_is_oversize(self) -> None:
        async with UdpTransport(settings(None, "127.0.0.1:5390"), ignore) as transport:
            transport.send(bytes(65508))
            counted = transport.statistics()
            assert (counted["oversize"], counted["send_errors"], counted["sent"]) == (1, 0, 0)

    @pytest.mark.parametrize(("listen", "host"), [("0.0.0.0", "127.0.0.1"), ("[::]", "127.0.0.1"), ("[::]", "[::1]")])
    async def test_it_sends_nothing_to_itself_where_it_listens_on_all(self, listen: str, host: str) -> None:
        port = free_port()
        peers = (f"{host}:{port}", f"{host}:{port - 1}")
        async with UdpTransport(settings(f"{listen}:{port}", *peers), ignore) as transport:
            transport.send(b"x")
            assert transport.statistics()["sent"] == 1

    async def test_a_full_socket_buffer_drops(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Full:
            def sendto(self, data: bytes, address: object) -> int:
                raise BlockingIOError

        async with UdpTransport(settings(None, "127.0.0.1:5390"), ignore) as transport:
            monkeypatch.setattr(transport, "_routes", ((Full(), ("127.0.0.1", 5390)),))
            transport.send(b"x")
            assert transport.statistics()["dropped"] == 1

    async def test_not_running_drops_once_per_peer(self) -> None:
        transport = UdpTransport(settings(None, "127.0.0.1:5390", "127.0.0.1:5391"), ignore)
        transport.send(b"x")
        assert transport.statistics()["dropped"] == 2

    def test_unknown_socket_option_counts_nothing(self, listener: socket.socket) -> None:
        listener.close()
        assert _datagram.memory(listener) == (0,) * 9
