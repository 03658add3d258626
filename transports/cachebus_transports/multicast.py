"""Multicast, IPv4 and IPv6: every datagram goes to a group, and every datagram to the group is handed on.

Decides which interface and sources belong to the group, and joins it again when the interface was gone. Knows no DNS
and resolves no names.

Two sockets. One is bound to the group's address and port, beside those of other nodes on this machine (SO_REUSEADDR),
and takes only what comes by a membership of its own (IP_MULTICAST_ALL=0: without it Linux hands over whatever any
program on the machine joined). The other sends, from a port of its own, by which nodes on one machine are told apart.

With `sources` the membership is source-specific (RFC 4607, RFC 3678), and what another source sends is dropped here
too: where another program joined the same group, the kernel's filter lets more through than we asked for.

Linux keeps a membership while a link is down, but not for an interface that goes away: once a second the interface is
looked up by its name again, and the group joined again if that is news to the kernel.

With `loop` (the default) other nodes on this machine receive what is sent, and so does this one, which drops what comes
from its own address and port; a node alone on its machine saves that with `loop: false`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, urlsplit

from cachebus.errors import ConfigError
from cachebus.ports import Receive, TransportSettings
from cachebus_transports._address import Address, family_of, parse_endpoint
from cachebus_transports._datagram import DatagramTransport, Inbox
from cachebus_transports._interface import find_interface

HOPS = 1
"""Default of `hops`: this link only, so that a group that routers know too stays at home unless told otherwise."""
MAX_HOPS = 255
MAX_SOURCES = 10
"""Sources of a group: Linux's net.ipv4.igmp_max_msf; beyond it a join fails."""
LOOK_AGAIN = 1.0
"""Seconds between two looks at the interface: heals well within the 5 s in which a stream has to resume."""
_IP_MULTICAST_ALL, _IPV6_MULTICAST_ALL = 49, 29  # linux/in.h, in6.h; the socket module lacks them
_JOIN_GROUP, _LEAVE_GROUP, _JOIN_SOURCE, _LEAVE_SOURCE = 42, 45, 46, 47  # MCAST_* of linux/in.h, both families
_GROUP_REQ = struct.Struct("@I0P")
"""The interface's index at the beginning of a request, padded as the address after it wants it."""
_STORAGE = 128
"""Bytes of a struct sockaddr_storage."""
_LINK_LOCAL = 2
"""Scope of an IPv6 group, the low half of its second byte (RFC 4291 section 2.7)."""
_JOINED_ALREADY = {errno.EADDRINUSE, errno.EADDRNOTAVAIL}
"""What Linux says to a membership that is there: the one without sources, the other with."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """What a transport is told of its group."""

    address: Address
    interface: str | None = None
    """Name or address; None leaves the choice to the routing table."""
    hops: int = HOPS
    loop: bool = True
    sources: tuple[str, ...] = ()
    listens: bool = True
    sends: bool = True

    @property
    def family(self) -> socket.AddressFamily:
        """IPv4 or IPv6."""
        return family_of(self.address)

    @property
    def level(self) -> int:
        """Of socket options."""
        return socket.IPPROTO_IP if self.family is socket.AF_INET else socket.IPPROTO_IPV6


class MulticastTransport(DatagramTransport):
    """The transport `multicast`. Options: `group` as `ADDRESS:PORT`, IPv6 in brackets; `interface`: name or address.

    `hops`: hop limit, 1 unless set; `loop`: whether other nodes on this machine receive too, true unless set;
    `sources`: addresses of those that are heard (source-specific multicast); `socket_buffer`: bytes. Instead of
    `group`: `settings.url`, `multicast://GROUP:PORT?interface=&source=&hops=&loop=`; or `settings.listen`, to listen
    only, or one of `settings.peers`, to send only.

    Making it from settings that make no sense raises `ConfigError`; entering it raises `TransportError` when a socket
    cannot be opened, or the interface is not there. Later it may go and come.
    """

    def __init__(self, settings: TransportSettings, receive: Receive) -> None:
        self._group = read_group(settings)
        sources = frozenset(self._group.sources) or None
        self._own = _Own(receive)
        super().__init__(settings, Inbox(self._own, sources), fan_out=int(self._group.sends))
        self._index: int | None = None
        self._joins = 0
        self._looking: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        self._schedule()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._looking is not None:
            self._looking.cancel()
        await super().__aexit__(kind, error, trace)

    def statistics(self) -> dict[str, int]:
        """What every datagram transport counts, and what only this one does.

        `own`: datagrams of this node that came back and were dropped; `joins`: how often the group was joined;
        `interface_up`: 0 while the interface is not there.
        """
        counted = super().statistics()
        return {
            **counted,
            "received": counted["received"] - self._own.dropped,
            "received_bytes": counted["received_bytes"] - self._own.dropped_bytes,
            "own": self._own.dropped,
            "joins": self._joins,
            "interface_up": int(self._index is not None),
        }

    @property
    def _where(self) -> str:
        via = f" on {self._group.interface}" if self._group.interface else ""
        return f"{self._group.address[0]} port {self._group.address[1]}{via}"

    def _open(self) -> None:
        group = self._group
        index = find_interface(group.interface)
        if group.listens:
            listening = self._socket(group.family)
            self._listening.append(listening)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            every = _IP_MULTICAST_ALL if group.family is socket.AF_INET else _IPV6_MULTICAST_ALL
            listening.setsockopt(group.level, every, 0)
            listening.bind(_on_interface(group.address, index))
        if group.sends:
            sending = self._socket(group.family)
            self._sending.append(sending)
            sending.bind(("", 0))  # now, not by the first datagram: by its port our own are known
        self._use(index)

    def _use(self, index: int) -> None:
        """Join on the interface, and send by it. Nothing happens when that is so already. May raise `OSError`."""
        if self._group.listens and _join(self._listening[0], self._group, index):
            self._joins += 1
        if self._group.sends and index != self._index:
            sending = self._sending[0]
            _send_by(sending, self._group, index)
            self._routes = ((sending, _on_interface(self._group.address, index)),)
        if self._group.sends:
            self._own.address = _source(self._group, index, self._sending[0].getsockname()[1])
        self._index = index

    def _schedule(self) -> None:
        self._looking = asyncio.get_running_loop().call_later(LOOK_AGAIN, self._look_again)

    def _look_again(self) -> None:
        self._schedule()
        try:
            index = find_interface(self._group.interface)
            if index != self._index and self._index is not None:
                self._forget(self._index)
            came_back = self._index is None
            self._use(index)
            if came_back:
                _log.info("transport %s: %s is there again", self._name, self._where)
        except OSError as error:
            if self._index is not None:
                _log.warning("transport %s: %s is gone: %s", self._name, self._where, error.strerror)
                self._forget(self._index)

    def _forget(self, index: int) -> None:
        """Drop a membership that the kernel would take for a live one if another interface got the same index."""
        self._index = None
        for listening in self._listening:
            _leave(listening, self._group, index)


class _Own:
    """Drops what this node sent itself; the codec would know it too, but only after computing its MAC."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.address: tuple[str, int] | None = None
        self.dropped = self.dropped_bytes = 0

    def __call__(self, data: bytes, sender: Address | str) -> None:
        if sender[:2] == self.address:
            self.dropped += 1
            self.dropped_bytes += len(data)
        else:
            self._receive(data, sender)


# Settings


def read_group(settings: TransportSettings) -> Group:
    """What the settings say of the group. Raises `ConfigError`."""
    options: Mapping[str, object] = settings.options
    listens = sends = True
    if settings.url is not None:
        text, options = _of_url(settings.url, options)
    elif options.get("group") is not None:
        text = str(options["group"])
    elif settings.listen is not None:
        text, sends = settings.listen, False
    elif len(settings.peers) == 1:
        text, listens = settings.peers[0], False
    else:
        raise ConfigError("multicast needs `group`: ADDRESS:PORT")
    address = parse_endpoint(text)
    if not ipaddress.ip_address(address[0].partition("%")[0]).is_multicast:
        raise ConfigError(f"{text!r} is no multicast group: 224.0.0.0/4 or ff00::/8")
    interface = options.get("interface")
    if interface is not None and (not isinstance(interface, str) or not interface):
        raise ConfigError("interface: is the name or an address of an interface")
    return Group(
        address=address,
        interface=interface or _zone(address),
        hops=_number(options.get("hops"), HOPS),
        loop=_truth(options.get("loop")),
        sources=_sources(options.get("sources"), family_of(address)),
        listens=listens,
        sends=sends,
    )


def _of_url(url: str, options: Mapping[str, object]) -> tuple[str, Mapping[str, object]]:
    parts = urlsplit(url)
    query = parse_qs(parts.query)
    if query.keys() - {"interface", "source", "hops", "loop"} or parts.path.strip("/") or parts.username:
        raise ConfigError(f"{url!r} is not multicast://GROUP:PORT?interface=&source=&hops=&loop=")
    given: dict[str, object] = dict(options)
    for key, (value, *_) in query.items():
        given[key] = int(value) if value.isascii() and value.isdigit() else value
    if "source" in query:
        given["sources"] = [source for text in query["source"] for source in text.split(",")]
    if "loop" in query:
        given["loop"] = {0: False, 1: True}.get(given["loop"], given["loop"])  # type: ignore[call-overload]
    return parts.netloc.replace("%25", "%"), given


def _number(value: object, default: int) -> int:
    if value is None:
        return default
    if type(value) is not int or not 0 <= value <= MAX_HOPS:
        raise ConfigError(f"hops: is a number from 0 to {MAX_HOPS}")
    return value


def _truth(value: object) -> bool:
    if value is not None and not isinstance(value, bool):
        raise ConfigError("loop: is true or false")
    return value is not False


def _sources(value: object, family: socket.AddressFamily) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list | tuple) or len(value) > MAX_SOURCES:
        raise ConfigError(f"sources: is a list of at most {MAX_SOURCES} addresses")
    found = []
    for text in value:
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            raise ConfigError(f"sources: {text!r} is no address") from None
        if address.is_multicast or (address.version == 4) != (family is socket.AF_INET):
            raise ConfigError(f"sources: {text!r} is no unicast address of the group's family")
        found.append(str(address))
    return tuple(dict.fromkeys(found))


def _zone(address: Address) -> str | None:
    """The interface that an IPv6 group's zone names."""
    return socket.if_indextoname(address[3]) if len(address) == 4 and address[3] else None


# Socket options


def _on_interface(address: Address, index: int) -> Address:
    """A link-local IPv6 group means nothing without its interface (RFC 4007)."""
    host = address[0].partition("%")[0]
    if len(address) == 2 or not index or socket.inet_pton(socket.AF_INET6, host)[1] & 0x0F != _LINK_LOCAL:
        return address
    return (host, address[1], 0, index)


def _storage(host: str, family: socket.AddressFamily) -> bytes:
    packed = socket.inet_pton(family, host.partition("%")[0])
    head = struct.pack("=HH", family, 0) if family is socket.AF_INET else struct.pack("=HHI", family, 0, 0)
    return (head + packed).ljust(_STORAGE, b"\0")


def _requests(group: Group, index: int) -> list[bytes]:
    """struct group_req, or one struct group_source_req for each source (RFC 3678 section 5.1)."""
    request = _GROUP_REQ.pack(index) + _storage(group.address[0], group.family)
    return [request + _storage(source, group.family) for source in group.sources] or [request]


def _join(listening: socket.socket, group: Group, index: int) -> bool:
    """Whether this was news to the kernel."""
    joined = False
    for request in _requests(group, index):
        try:
            listening.setsockopt(group.level, _JOIN_SOURCE if group.sources else _JOIN_GROUP, request)
            joined = True
        except OSError as error:
            if error.errno not in _JOINED_ALREADY:
                raise
    return joined


def _leave(listening: socket.socket, group: Group, index: int) -> None:
    for request in _requests(group, index):
        with contextlib.suppress(OSError):  # the interface, or the membership, may be gone
            listening.setsockopt(group.level, _LEAVE_SOURCE if group.sources else _LEAVE_GROUP, request)


def _send_by(sending: socket.socket, group: Group, index: int) -> None:
    if group.family is socket.AF_INET:
        sending.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, struct.pack("@4s4si", b"", b"", index))
        sending.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, group.hops)
        sending.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, group.loop)
    else:
        sending.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
        sending.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, group.hops)
        sending.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, group.loop)


def _source(group: Group, index: int, port: int) -> tuple[str, int] | None:
    """The address that our datagrams carry: the kernel's choice, asked for; None while it has none."""
    with socket.socket(group.family, socket.SOCK_DGRAM) as asked, contextlib.suppress(OSError):
        _send_by(asked, group, index)
        asked.connect(_on_interface(group.address, index))
        return (asked.getsockname()[0], port)
    return None
