"""Which response belongs to which query of the resolver's (trust rules, section 2), in whatever order they are logged.

A query is used up by the first response with its address, ports, ID and protocol; only then are the questions compared,
byte by byte. Knows nothing of what a response holds.

One exception, because Unbound (measured: 1.17.1; its `pif->addr` is shared by all sockets of an interface) logs with a
response the port of the socket it opened last: with several queries on their way that is another query's. So a response
may carry the port of a query logged after its own and shortly before itself. A port that no query had, that of an older
query or of one still to come is refused as ever; the network cannot choose what a resolver logs here.
"""

from __future__ import annotations

from collections import OrderedDict
from enum import Enum
from typing import Generic, NamedTuple, TypeVar

from cachebus.filters.memory import Entry, Memory

MAX_QUERIES = 65536
"""Queries that wait for their response: 6,500 a second that are never answered, over a window of 10 s."""
MAX_QUERY_BYTES = 48 << 20
"""Bytes of the same, overhead included."""
MAX_WAITING = 16384
"""Responses that wait for their query: loggers reorder by a second at most, so far fewer than queries."""
MAX_WAITING_BYTES = 32 << 20
"""Bytes of the same: enough for 512 responses of 64 KiB."""
RECENT_PORTS = 64
"""Ports that count as opened last: each of a resolver's threads has one of its own, and all log into one stream."""

R = TypeVar("R")


class Key(NamedTuple):
    """What a response has in common with its query, the query's port apart."""

    forwarder: bool
    response_address: bytes
    response_port: int
    stream: bool
    """TCP or anything on top of it, as against UDP."""
    ident: bytes
    """The DNS message's ID, 2 bytes."""


class Match(Enum):
    """What became of a response."""

    PAIRED = "paired"
    MISMATCH = "mismatch"
    """Its query asked something else, or in other letters."""
    WAITING = "waiting"
    """No query yet."""


class _Query(NamedTuple):
    port: int
    question: bytes
    serial: int


class _Waiting(NamedTuple, Generic[R]):
    port: int
    question: bytes
    response: R | None


class Pairs(Generic[R]):
    """Queries without a response and responses without a query, each for one window."""

    def __init__(self, window: float) -> None:
        """`window`: seconds."""
        self._queries: Memory[Key, _Query] = Memory(window=window, max_entries=MAX_QUERIES, max_bytes=MAX_QUERY_BYTES)
        self._waiting: Memory[Key, _Waiting[R]] = Memory(
            window=window, max_entries=MAX_WAITING, max_bytes=MAX_WAITING_BYTES
        )
        self._serial = 0
        self._opened: OrderedDict[int, int] = OrderedDict()

    @property
    def forgotten_queries(self) -> int:
        """Queries that gave way to newer ones; their responses will be unpaired."""
        return self._queries.forgotten

    def query(self, key: Key, port: int, question: bytes, now: float) -> tuple[Match, R | None]:
        """A query was sent from `port`. Gives the response that waited for it; None in its place: it was refused."""
        self._serial += 1
        self._opened[port] = self._serial
        self._opened.move_to_end(port)
        if len(self._opened) > RECENT_PORTS:
            self._opened.popitem(last=False)
        entry = self._waiting.first(key)
        while entry is not None and entry.value.port != port:
            entry = entry.next
        if entry is None:
            self._queries.put(key, _Query(port, question, self._serial), len(question), now=now)
            return Match.WAITING, None
        self._waiting.remove(entry)
        return (Match.PAIRED if entry.value.question == question else Match.MISMATCH), entry.value.response

    def response(self, key: Key, port: int, question: bytes) -> Match:
        """A response came to `port`. Uses up its query: of several, rather the one with its port and question."""
        best: tuple[bool, bool, Entry[Key, _Query]] | None = None
        opened = self._opened.get(port, 0)
        entry = self._queries.first(key)
        while entry is not None:
            asked = entry.value
            if asked.port == port or asked.serial < opened:
                rank = (asked.question == question, asked.port == port)
                if best is None or rank > best[:2]:
                    best = (*rank, entry)
            entry = entry.next
        if best is None:
            return Match.WAITING
        self._queries.remove(best[2])
        return Match.PAIRED if best[0] else Match.MISMATCH

    def wait(self, key: Key, port: int, question: bytes, response: R | None, *, size: int, now: float) -> list[R]:
        """Keep a response for its query, or (None) only the fact that one came; gives what had to go for it."""
        dropped = self._waiting.put(key, _Waiting(port, question, response), size, now=now)
        return [waiting.response for waiting in dropped if waiting.response is not None]

    def expire(self, now: float) -> list[R]:
        """Forget what is too old; gives the responses among it, unpaired for good."""
        self._queries.expire(now)
        return [waiting.response for waiting in self._waiting.expire(now) if waiting.response is not None]
