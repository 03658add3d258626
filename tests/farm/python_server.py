"""An authoritative server in this process, whose answers a function makes: for counting, and for lying.

Decides nothing about DNS: bytes of a query in, bytes of the replies out.
"""

from __future__ import annotations

import select
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import NamedTuple, Self

import dns.name
import dns.rdatatype

from tests.farm.client import Endpoint
from tests.servers import free_port

QR, AA, TC, RD = 0x8000, 0x0400, 0x0200, 0x0100
IN, CH = 1, 3
_POLL = 0.1
"""Seconds after which the serving thread looks whether it should end."""


class Query(NamedTuple):
    """One query as received."""

    wire: bytes
    question: bytes
    """The question section, case as the resolver sent it."""
    name: str
    """Lower case, with the final dot."""
    type: str
    udp: bool

    @property
    def id(self) -> int:
        return int.from_bytes(self.wire[:2], "big")

    @property
    def owner(self) -> bytes:
        """The name in wire form, case as the resolver sent it."""
        return self.question[:-4]


class FromElsewhere(NamedTuple):
    """A reply that leaves from another port than it was asked at."""

    message: bytes


Handler = Callable[[Query], bytes | FromElsewhere | None]
"""Gives the reply, or None for no reply at all."""


def parse(wire: bytes, *, udp: bool) -> Query:
    name, used = dns.name.from_wire(wire, 12)
    question = wire[12 : 12 + used + 4]
    rrtype = int.from_bytes(question[-4:-2], "big")
    return Query(wire, question, name.to_text().lower(), dns.rdatatype.to_text(rrtype), udp)


def wire_name(text: str) -> bytes:
    return dns.name.from_text(text).to_wire()


def record(
    owner: str | bytes, rrtype: str, ttl: int, rdata: bytes, *, rrclass: int = IN, length: int | None = None
) -> bytes:
    """One record, nothing compressed. `length` overrides RDLENGTH."""
    name = wire_name(owner) if isinstance(owner, str) else owner
    size = len(rdata) if length is None else length
    return name + struct.pack("!HHIH", dns.rdatatype.from_text(rrtype), rrclass, ttl, size) + rdata


def reply(
    query: Query,
    *answer: bytes,
    authority: tuple[bytes, ...] = (),
    additional: tuple[bytes, ...] = (),
    flags: int = QR | AA,
    rcode: int = 0,
    ident: int | None = None,
    questions: tuple[bytes, ...] | None = None,
) -> bytes:
    """A reply to `query`; every field can be made to lie."""
    asked = (query.question,) if questions is None else questions
    header = struct.pack(
        "!HHHHHH",
        query.id if ident is None else ident,
        flags | (query.wire[2] & 1) << 8 | rcode,
        len(asked),
        len(answer),
        len(authority),
        len(additional),
    )
    return header + b"".join([*asked, *answer, *authority, *additional])


def nodata(query: Query, zone: str, *, rcode: int = 0, ttl: int = 60) -> bytes:
    """A truthful negative reply with the zone's SOA."""
    rdata = wire_name("ns." + zone) + wire_name("hostmaster." + zone) + struct.pack("!IIIII", 1, 3600, 600, 86400, ttl)
    return reply(query, authority=(record(zone, "SOA", ttl, rdata),), rcode=rcode)


class PythonServer:
    """Serves UDP and TCP on one loopback address in a thread of its own; `asked` counts the queries."""

    def __init__(self, handler: Handler, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self.handler = handler
        self.endpoint = Endpoint(host, port or free_port(host))
        self.asked: Counter[tuple[str, str]] = Counter()
        self._stray = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._stop.clear()
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        tcp = socket.create_server(self.endpoint)
        udp.bind(self.endpoint)
        self._thread = threading.Thread(target=self._serve, args=(udp, tcp), daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._stray.close()

    def stop(self) -> None:
        """Stop serving: from now on the port is closed."""
        self._stop.set()
        if self._thread:
            self._thread.join()
            self._thread = None

    def _serve(self, udp: socket.socket, tcp: socket.socket) -> None:
        with udp, tcp:
            while not self._stop.is_set():
                readable, _, _ = select.select([udp, tcp], [], [], _POLL)
                if udp in readable:
                    self._serve_udp(udp)
                if tcp in readable:
                    self._serve_tcp(tcp)

    def _serve_udp(self, udp: socket.socket) -> None:
        wire, client = udp.recvfrom(65535)
        query = parse(wire, udp=True)
        self.asked[query.name, query.type] += 1
        answer = self.handler(query)
        if isinstance(answer, FromElsewhere):
            self._stray.sendto(answer.message, client)
        elif answer is not None:
            udp.sendto(answer, client)

    def _serve_tcp(self, tcp: socket.socket) -> None:
        connection, _ = tcp.accept()
        connection.settimeout(1.0)
        with connection:
            for wire in _messages(connection):
                query = parse(wire, udp=False)
                self.asked[query.name, query.type] += 1
                answer = self.handler(query)
                if not isinstance(answer, bytes):
                    return
                connection.sendall(len(answer).to_bytes(2, "big") + answer)


def _messages(connection: socket.socket) -> Iterator[bytes]:
    with connection.makefile("rb") as stream:
        try:
            while head := stream.read(2):
                yield stream.read(int.from_bytes(head, "big"))
        except OSError:
            return
