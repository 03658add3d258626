"""What `udp` and `multicast` share: datagram sockets, the counting of what the kernel does, and their life.

Decides nothing about addresses: which sockets there are and where a datagram goes is for those two to say.

Datagrams go to the kernel by a non-blocking `sendto`, not through the event loop's own queue, which has no bound and
costs more. So nothing waits in this process: what a full socket buffer refuses is dropped and counted. The sockets are
not connected, hence the ICMP errors of a dead peer disturb nobody.

MTU: path MTU discovery is off (IP_PMTUDISC_OMIT, as DNS servers do), so no forged "too big" can make us fragment or
refuse. Messages of up to 1232 bytes fit every path with IPv6's minimum MTU; bigger ones are cut at our own interface.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import struct
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self

from cachebus.errors import ConfigError, TransportError
from cachebus.ports import Receive, TransportSettings
from cachebus_transports._address import Address

SOCKET_BUFFER = 8 * 1024 * 1024
"""Default of `socket_buffer`: bytes asked for in each direction; some 20,000 small answers."""
MIN_SOCKET_BUFFER = 64 * 1024
"""Less could not hold one datagram of the largest size."""
MAX_SOCKET_BUFFER = 512 * 1024 * 1024
"""The kernel doubles the number and keeps it in a signed 32-bit integer."""

SO_SNDBUFFORCE, SO_RCVBUFFORCE, SO_MEMINFO = 32, 33, 55  # asm-generic/socket.h; the socket module lacks them
IP_MTU_DISCOVER, IPV6_MTU_DISCOVER, PMTUDISC_OMIT = 10, 23, 5  # linux/in.h and in6.h; likewise
_MEMINFO = struct.Struct("=9I")  # linux/sock_diag.h, SK_MEMINFO_*: the last is the count of dropped datagrams

_log = logging.getLogger(__name__)


class DatagramTransport(ABC):
    """A transport whose messages are datagrams: everything but which sockets it opens and where it sends.

    Entering it raises `TransportError` when a socket cannot be opened.
    """

    def __init__(self, settings: TransportSettings, inbox: Inbox, *, fan_out: int) -> None:
        """`fan_out`: datagrams that one message becomes. Raises `ConfigError` for a wrong `socket_buffer`."""
        self._name = settings.name
        self._inbox = inbox
        self._fan_out = fan_out
        self._buffer = read_socket_buffer(settings)
        self._listening: list[socket.socket] = []
        self._sending: list[socket.socket] = []
        self._endpoints: list[asyncio.DatagramTransport] = []
        self._routes: tuple[tuple[socket.socket, Address], ...] = ()
        self._sent = self._sent_bytes = self._dropped = self._oversize = self._send_errors = 0
        self._earlier_drops = 0
        self._running = False

    @abstractmethod
    def _open(self) -> None:
        """Fill `_listening`, `_sending` and `_routes`. May raise `OSError`."""

    @property
    @abstractmethod
    def _where(self) -> str:
        """What the sockets are for, in words, for errors."""

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Address of each listening socket while it runs; tells which port `:0` became."""
        return tuple(listening.getsockname() for listening in self._listening)

    async def __aenter__(self) -> Self:
        try:
            self._open()
            self._warn_of_small_buffers()
            loop = asyncio.get_running_loop()
            for listening in self._listening:
                endpoint, _ = await loop.create_datagram_endpoint(lambda: self._inbox, sock=listening)
                self._endpoints.append(endpoint)
        except OSError as error:
            await self._close()
            raise TransportError(f"transport {self._name}: no socket for {self._where}: {error.strerror}") from error
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
        """Hand one datagram to the kernel for each destination; what it does not take is counted."""
        if not self._running:
            self._dropped += self._fan_out
        for route, address in self._routes:
            try:
                route.sendto(data, address)
            except BlockingIOError:
                self._dropped += 1
            except OSError as error:
                if error.errno == errno.EMSGSIZE:
                    self._oversize += 1
                else:
                    self._send_errors += 1
            else:
                self._sent += 1
                self._sent_bytes += len(data)

    async def flush(self) -> None:  # noqa: B027 - nothing to do, and no gap to fill
        """Return at once: `send` holds nothing back."""

    def statistics(self) -> dict[str, int]:
        """Counters since it was made, in datagrams (one per destination) and bytes of payload, and gauges.

        `dropped`: not sent, because the socket buffer was full or the transport not running; `oversize`: more than a
        datagram holds; `send_errors`: refused by the kernel (no route, filtered); `unknown_peer`: came from an address
        that is not wanted; `kernel_drops`: came, but the receive buffer was full. `*_buffer_bytes`: what the kernel
        granted, which is twice what was asked for, as it counts its own overhead; `receive_queue_bytes`: waiting in the
        kernel to be read.
        """
        receiving = [memory(listening) for listening in self._listening]
        every = receiving + [memory(sending) for sending in self._sending]
        return {
            "sent": self._sent,
            "sent_bytes": self._sent_bytes,
            "dropped": self._dropped,
            "oversize": self._oversize,
            "send_errors": self._send_errors,
            "received": self._inbox.received,
            "received_bytes": self._inbox.received_bytes,
            "receive_errors": self._inbox.errors,
            "unknown_peer": self._inbox.unknown,
            "kernel_drops": self._earlier_drops + sum(held[8] for held in receiving),
            "receive_queue_bytes": sum(held[0] for held in receiving),
            "receive_buffer_bytes": min((held[1] for held in receiving), default=0),
            "send_buffer_bytes": min((held[3] for held in every), default=0),
        }

    def _socket(self, family: socket.AddressFamily) -> socket.socket:
        """A socket of one family only, with large buffers, which has no say in the path's MTU."""
        opened = socket.socket(family, socket.SOCK_DGRAM)
        opened.setblocking(False)  # noqa: FBT003 - the argument has no name
        if family is socket.AF_INET6:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            opened.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, PMTUDISC_OMIT)
        else:
            opened.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, PMTUDISC_OMIT)
        for plain, forced in ((socket.SO_RCVBUF, SO_RCVBUFFORCE), (socket.SO_SNDBUF, SO_SNDBUFFORCE)):
            opened.setsockopt(socket.SOL_SOCKET, plain, self._buffer)
            with contextlib.suppress(PermissionError):  # beyond net.core.[rw]mem_max only with CAP_NET_ADMIN
                opened.setsockopt(socket.SOL_SOCKET, forced, self._buffer)
        return opened

    def _warn_of_small_buffers(self) -> None:
        granted = min((memory(listening)[1] for listening in self._listening), default=2 * self._buffer)
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
        self._earlier_drops += sum(memory(listening)[8] for listening in self._listening)
        for endpoint in self._endpoints:
            endpoint.close()
        await self._inbox.wait_closed()
        self._endpoints.clear()
        for opened in (*self._listening, *self._sending):
            opened.close()
        self._listening.clear()
        self._sending.clear()


class Inbox(asyncio.DatagramProtocol):
    """Counts what the endpoints receive and hands it on; one for all of them."""

    def __init__(self, receive: Receive, allowed: frozenset[str] | None) -> None:
        """`allowed`: addresses whose datagrams are handed on, whatever their port; None for all."""
        self._receive = receive
        self._allowed = allowed
        self._open = 0
        self._closed = asyncio.Event()
        self._closed.set()
        self.received = self.received_bytes = self.errors = self.unknown = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Note one more endpoint."""
        self._open += 1
        self._closed.clear()

    def connection_lost(self, exc: Exception | None) -> None:
        """Note one endpoint less."""
        self._open -= 1
        if not self._open:
            self._closed.set()

    def datagram_received(self, data: bytes, addr: Address) -> None:
        """Hand one datagram on, if its sender is wanted."""
        if self._allowed is not None and addr[0].partition("%")[0] not in self._allowed:
            self.unknown += 1
            return
        self.received += 1
        self.received_bytes += len(data)
        self._receive(data, addr)

    def error_received(self, exc: Exception) -> None:
        """Count an error that the kernel reports."""
        self.errors += 1

    async def wait_closed(self) -> None:
        """Until every endpoint has let go of its socket, so that its port can be bound again."""
        await self._closed.wait()


def memory(opened: socket.socket) -> tuple[int, ...]:
    """What the kernel counts for a socket: one call, where /proc/net/udp is a text with a line per socket of the host.

    All zero where the option is not known (other kernels).
    """
    try:
        return _MEMINFO.unpack(opened.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, _MEMINFO.size))
    except (OSError, struct.error):
        return (0,) * 9


def read_socket_buffer(settings: TransportSettings) -> int:
    """The option `socket_buffer`. Raises `ConfigError`."""
    value = settings.options.get("socket_buffer")
    if value is None:
        return SOCKET_BUFFER
    if type(value) is not int or not MIN_SOCKET_BUFFER <= value <= MAX_SOCKET_BUFFER:
        raise ConfigError(f"socket_buffer: is a number of bytes from {MIN_SOCKET_BUFFER} to {MAX_SOCKET_BUFFER}")
    return value
