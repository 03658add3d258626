"""UDP, IPv4 and IPv6: every datagram goes to every configured peer, and every datagram that comes is handed on.

Decides which sockets to open, and counts what the kernel would not take or could not keep. Knows no DNS and resolves
no names: peers are address literals, because this runs beside the resolver that would be asked, and because a name
whose address changed would silently redirect the stream.

Sockets: `0.0.0.0` listens on IPv4, `[::]` on both families (two sockets, so that an IPv4 sender never shows as a
mapped address), any other address on itself. Datagrams leave from the listening socket of the peer's family, where the
peer's firewall expects them; a family that is not listened on gets a socket that only sends.
"""

from __future__ import annotations

from cachebus.errors import ConfigError
from cachebus.ports import Receive, TransportSettings
from cachebus_transports._address import Address as Address
from cachebus_transports._address import addresses_to_bind, family_of, is_own
from cachebus_transports._address import parse_endpoint as parse_endpoint
from cachebus_transports._datagram import MAX_SOCKET_BUFFER as MAX_SOCKET_BUFFER
from cachebus_transports._datagram import MIN_SOCKET_BUFFER as MIN_SOCKET_BUFFER
from cachebus_transports._datagram import DatagramTransport, Inbox


class UdpTransport(DatagramTransport):
    """The transport `udp`. Settings: `listen` and `peers` as `ADDRESS:PORT`, IPv6 in brackets, a zone with `%`.

    Options: `peers_only` (default false: the codec's authentication decides) drops what comes from an address that is
    no peer's, whatever its port; `socket_buffer` is the size to ask for, in bytes. Making it from settings that make no
    sense raises `ConfigError`; entering it raises `TransportError` when a socket cannot be opened.
    """

    def __init__(self, settings: TransportSettings, receive: Receive) -> None:
        self._listen = None if settings.listen is None else parse_endpoint(settings.listen, any_port=True)
        self._peers = tuple(dict.fromkeys(parse_endpoint(peer) for peer in settings.peers))
        if self._listen is None and not self._peers:
            raise ConfigError("udp needs `listen`, `peers` or both")
        allowed = frozenset(peer[0] for peer in self._peers) if _peers_only(settings) else None
        super().__init__(settings, Inbox(receive, allowed), fan_out=len(self._peers))

    def _open(self) -> None:
        for address in addresses_to_bind(self._listen):
            port = self._listening[0].getsockname()[1] if self._listening else address[1]
            listening = self._socket(family_of(address))
            self._listening.append(listening)
            listening.bind((address[0], port, *address[2:]))
        for family in sorted({family_of(peer) for peer in self._peers} - {one.family for one in self._listening}):
            self._sending.append(self._socket(family))
        by_family = {one.family: one for one in (*self._listening, *self._sending)}
        # A list of peers that names this node too may be the same on every node.
        self._routes = tuple(
            (by_family[family_of(peer)], peer) for peer in self._peers if not is_own(peer, self.addresses)
        )
        self._fan_out = len(self._routes)

    @property
    def _where(self) -> str:
        return "sending" if self._listen is None else f"{self._listen[0]} port {self._listen[1]}"


def _peers_only(settings: TransportSettings) -> bool:
    value = settings.options.get("peers_only", False)
    if not isinstance(value, bool):
        raise ConfigError("peers_only: is true or false")
    return value
