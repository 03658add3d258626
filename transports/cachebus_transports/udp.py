"""UDP, IPv4 and IPv6: every datagram goes to every configured peer, and every datagram that comes is handed on.

Decides which sockets to open, and counts what the kernel would not take or could not keep. Knows no DNS and resolves
no names: peers are address literals, because this runs beside the resolver that would be asked, and because a name
whose address changed would silently redirect the stream.

Sockets: `0.0.0.0` listens on IPv4, `[::]` on both families (two sockets, so that an IPv4 sender never shows as a
mapped address), any other address on itself. Datagrams leave from the listening socket of the peer's family, where the
peer's firewall expects them; a family that is not listened on gets a socket that only sends.

They go to the kernel by a non-blocking `sendto`, not through the event loop's own queue, which has no bound and costs
more. So nothing waits in this process: what a full socket buffer refuses is dropped and counted. The sockets are not
connected, hence the ICMP errors of a dead peer disturb nobody.

MTU: path MTU discovery is off (IP_PMTUDISC_OMIT, as DNS servers do), so no forged "too big" can make us fragment or
refuse. Messages of up to 1232 bytes fit every path with IPv6's minimum MTU; bigger ones are cut at our own interface.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
import struct
from types import TracebackType
from typing import Self, cast

from cachebus.errors import ConfigError, TransportError
from cachebus.ports import Receive, TransportSettings

Address = tuple[str, int] | tuple[str, int, int, int]
"""As the socket module takes it: host and port, and for IPv6 flow label and zone."""

SOCKET_BUFFER = 8 * 1024 * 1024
"""Default of `socket_buffer`: bytes asked for in each direction; some 20,000 small answers."""
MIN_SOCKET_BUFFER = 64 * 1024
"""Less could not hold one datagram of the largest size."""
MAX_SOCKET_BUFFER = 512 * 1024 * 1024
"""The kernel doubles the number and keeps it in a signed 32-bit integer."""

_SO_SNDBUFFORCE, _SO_RCVBUFFORCE, _SO_MEMINFO = 32, 33, 55  # asm-generic/socket.h; the socket module lacks them
_IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER, _PMTUDISC_OMIT = 10, 23, 5  # linux/in.h and in6.h; likewise
_MEMINFO = struct.Struct("=9I")  # linux/sock_diag.h, SK_MEMINFO_*: the last is the count of dropped datagrams
_ANY_IPV4, _ANY_IPV6 = "0.0.0.0", "::"  # noqa: S104 - bound only where the operator wrote [::]

_log = logging.getLogger(__name__)


class UdpTransport:
    """The transport `udp`. Settings: `listen` and `peers` as `ADDRESS:PORT`, IPv6 in brackets, a zone with `%`.

    Options: `peers_only` (default false: the codec's authentication decides) drops what comes from an address that is
    no peer's, whatever its port; `socket_buffer` is the size to ask for, in bytes. Making it from settings that make no
    sense raises `ConfigError`; entering it raises `TransportError` when a socket cannot be opened.
    """

    def __init__(self, settings: TransportSettings, receive: Receive) -> None:
        self._name = settings.name
        self._listen = None if settings.listen is None else parse_endpoint(settings.listen, any_port=True)
        self._peers = tuple(dict.fromkeys(parse_endpoint(peer) for peer in settings.peers))
        if self._listen is None and not self._peers:
            raise ConfigError("udp needs `listen`, `peers` or both")
        allowed = frozenset(peer[0] for peer in self._peers) if _peers_only(settings) else None
        self._inbox = _Inbox(receive, allowed)
        self._buffer = _socket_buffer(settings)
        self._listening: list[socket.socket] = []
        self._sending: list[socket.socket] = []
        self._endpoints: list[asyncio.DatagramTransport] = []
        self._routes: tuple[tuple[socket.socket, Address], ...] = ()
        self._sent = self._sent_bytes = self._dropped = self._send_errors = 0
        self._earlier_drops = 0
        self._running = False

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Address of each listening socket while it runs; tells which port `:0` became."""
        return tuple(listening.getsockname() for listening in self._listening)

    async def __aenter__(self) -> Self:
        try:
            await self._open()
        except OSError as error:
            await self._close()
            where = "sending" if self._listen is None else f"{self._listen[0]} port {self._listen[1]}"
            raise TransportError(f"transport {self._name}: no socket for {where}: {error.strerror}") from error
        except BaseException:
            await self._close()
            raise
        self._running = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    def send(self, data: bytes) -> None:
        """Hand one datagram to the kernel for every peer; what it does not take is counted."""
        if not self._running:
            self._dropped += len(self._peers)
        for route, address in self._routes:
            try:
                route.sendto(data, address)
            except BlockingIOError:
                self._dropped += 1
            except OSError:
                self._send_errors += 1
            else:
                self._sent += 1
                self._sent_bytes += len(data)

    async def flush(self) -> None:
        """Return at once: `send` holds nothing back."""

    def statistics(self) -> dict[str, int]:
        """Counters since it was made, in datagrams (one per peer) and bytes of payload, and gauges.

        `dropped`: not sent, because the socket buffer was full or the transport not running; `send_errors`: refused by
        the kernel (no route, too large, filtered); `unknown_peer`: dropped by `peers_only`; `kernel_drops`: came, but
        the receive buffer was full. `*_buffer_bytes`: what the kernel granted, which is twice what was asked for, as it
        counts its own overhead; `receive_queue_bytes`: waiting in the kernel to be read.
        """
        receiving = [_memory(listening) for listening in self._listening]
        every = receiving + [_memory(sending) for sending in self._sending]
        return {
            "sent": self._sent,
            "sent_bytes": self._sent_bytes,
            "dropped": self._dropped,
            "send_errors": self._send_errors,
            "received": self._inbox.received,
            "received_bytes": self._inbox.received_bytes,
            "receive_errors": self._inbox.errors,
            "unknown_peer": self._inbox.unknown,
            "kernel_drops": self._earlier_drops + sum(memory[8] for memory in receiving),
            "receive_queue_bytes": sum(memory[0] for memory in receiving),
            "receive_buffer_bytes": min((memory[1] for memory in receiving), default=0),
            "send_buffer_bytes": min((memory[3] for memory in every), default=0),
        }

    async def _open(self) -> None:
        for address in _addresses_to_bind(self._listen):
            port = self._listening[0].getsockname()[1] if self._listening else address[1]
            listening = self._socket(_family(address))
            self._listening.append(listening)
            listening.bind((address[0], port, *address[2:]))
        for family in sorted({_family(peer) for peer in self._peers} - {one.family for one in self._listening}):
            self._sending.append(self._socket(family))
        self._warn_of_small_buffers()
        by_family = {one.family: one for one in (*self._listening, *self._sending)}
        own = {one.getsockname()[:2] for one in self._listening}
        # A list of peers that names this node too may be the same on every node.
        self._routes = tuple((by_family[_family(peer)], peer) for peer in self._peers if peer[:2] not in own)
        loop = asyncio.get_running_loop()
        for listening in self._listening:
            endpoint, _ = await loop.create_datagram_endpoint(lambda: self._inbox, sock=listening)
            self._endpoints.append(endpoint)

    def _socket(self, family: socket.AddressFamily) -> socket.socket:
        opened = socket.socket(family, socket.SOCK_DGRAM)
        opened.setblocking(False)  # noqa: FBT003 - the argument has no name
        if family is socket.AF_INET6:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            opened.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_OMIT)
        else:
            opened.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_OMIT)
        for plain, forced in ((socket.SO_RCVBUF, _SO_RCVBUFFORCE), (socket.SO_SNDBUF, _SO_SNDBUFFORCE)):
            opened.setsockopt(socket.SOL_SOCKET, plain, self._buffer)
            with contextlib.suppress(PermissionError):  # beyond net.core.[rw]mem_max only with CAP_NET_ADMIN
                opened.setsockopt(socket.SOL_SOCKET, forced, self._buffer)
        return opened

    def _warn_of_small_buffers(self) -> None:
        granted = min((_memory(listening)[1] for listening in self._listening), default=2 * self._buffer)
        if granted < 2 * self._buffer:
            _log.warning(
                "transport %s: receive buffer of %d bytes granted, %d asked for; raise net.core.rmem_max",
                self._name,
                granted // 2,
                self._buffer,
            )

    async def _close(self) -> None:
        self._running = False
        self._routes = ()
        self._earlier_drops += sum(_memory(listening)[8] for listening in self._listening)
        for endpoint in self._endpoints:
            endpoint.close()
        await self._inbox.wait_closed()
        self._endpoints.clear()
        for opened in (*self._listening, *self._sending):
            opened.close()
        self._listening.clear()
        self._sending.clear()


class _Inbox(asyncio.DatagramProtocol):
    """Counts what the endpoints receive and hands it on; one for all of them."""

    def __init__(self, receive: Receive, allowed: frozenset[str] | None) -> None:
        self._receive = receive
        self._allowed = allowed
        self._open = 0
        self._closed = asyncio.Event()
        self._closed.set()
        self.received = self.received_bytes = self.errors = self.unknown = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._open += 1
        self._closed.clear()

    def connection_lost(self, exc: Exception | None) -> None:
        self._open -= 1
        if not self._open:
            self._closed.set()

    def datagram_received(self, data: bytes, addr: Address) -> None:
        if self._allowed is not None and addr[0].partition("%")[0] not in self._allowed:
            self.unknown += 1
            return
        self.received += 1
        self.received_bytes += len(data)
        self._receive(data, addr)

    def error_received(self, exc: Exception) -> None:
        self.errors += 1

    async def wait_closed(self) -> None:
        """Until every endpoint has let go of its socket, so that its port can be bound again."""
        await self._closed.wait()


def parse_endpoint(text: str, *, any_port: bool = False) -> Address:
    """`ADDRESS:PORT` as the socket module takes it; the address is a literal, in brackets when it is IPv6.

    Port 0 (`any_port`) stands for one that the kernel picks. Raises `ConfigError` for anything else.
    """
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    try:
        address = ipaddress.ip_address(host[1:-1] if bracketed else host)
    except ValueError:
        raise ConfigError(f"{text!r} is not ADDRESS:PORT with an address literal (names are not resolved)") from None
    if (address.version == 6) != bracketed:
        raise ConfigError(f"{text!r}: brackets are for an IPv6 address, as in [2001:db8::1]:5390")
    if not (colon and port.isascii() and port.isdigit() and int(port) < 65536 and (any_port or int(port))):
        raise ConfigError(f"{text!r} has no port from 1 to 65535")
    try:
        found = socket.getaddrinfo(str(address), int(port), type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST)
    except OSError:
        raise ConfigError(f"{text!r}: no such zone on this host") from None
    return cast("Address", found[0][4])


def _family(address: Address) -> socket.AddressFamily:
    return socket.AF_INET if len(address) == 2 else socket.AF_INET6


def _addresses_to_bind(listen: Address | None) -> tuple[Address, ...]:
    if listen is None:
        return ()
    return (listen, (_ANY_IPV4, listen[1])) if listen[0] == _ANY_IPV6 else (listen,)


def _memory(opened: socket.socket) -> tuple[int, ...]:
    """What the kernel counts for a socket: one call, where /proc/net/udp is a text with a line per socket of the host.

    All zero where the option is not known (other kernels).
    """
    try:
        return _MEMINFO.unpack(opened.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size))
    except (OSError, struct.error):
        return (0,) * 9


def _peers_only(settings: TransportSettings) -> bool:
    value = settings.options.get("peers_only", False)
    if not isinstance(value, bool):
        raise ConfigError("peers_only: is true or false")
    return value


def _socket_buffer(settings: TransportSettings) -> int:
    value = settings.options.get("socket_buffer", SOCKET_BUFFER)
    if type(value) is not int or not MIN_SOCKET_BUFFER <= value <= MAX_SOCKET_BUFFER:
        raise ConfigError(f"socket_buffer: is a number of bytes from {MIN_SOCKET_BUFFER} to {MAX_SOCKET_BUFFER}")
    return value
