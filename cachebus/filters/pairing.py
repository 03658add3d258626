"""Which response belongs to which query of the resolver's (trust rules, section 2), in whatever order they are logged.

A query is used up by the first response with its address, ports, ID and protocol; only then are the questions compared,
byte by byte. Knows nothing of what a response holds.
"""

from __future__ import annotations

from enum import Enum
from typing import Generic, NamedTuple, TypeVar

from cachebus.filters.memory import Memory

MAX_QUERIES = 65536
"""Queries that wait for their response: 6,500 a second that are never answered, over a window of 10 s."""
MAX_QUERY_BYTES = 48 << 20
"""Bytes of the same, overhead included."""
MAX_WAITING = 16384
"""Responses that wait for their query: loggers reorder by a second at most, so far fewer than queries."""
MAX_WAITING_BYTES = 32 << 20
"""Bytes of the same: enough for 512 responses of 64 KiB."""

R = TypeVar("R")


class Key(NamedTuple):
    """What a response has in common with its query."""

    forwarder: bool
    response_address: bytes
    response_port: int
    query_port: int
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


class Pairs(Generic[R]):
    """Queries without a response and responses without a query, each for one window."""

    def __init__(self, window: float) -> None:
        """`window`: seconds."""
        self._queries: Memory[Key, bytes] = Memory(window=window, max_entries=MAX_QUERIES, max_bytes=MAX_QUERY_BYTES)
        self._waiting: Memory[Key, tuple[bytes, R | None]] = Memory(
            window=window, max_entries=MAX_WAITING, max_bytes=MAX_WAITING_BYTES
        )
        self._now = 0.0

    @property
    def forgotten_queries(self) -> int:
        """Queries that gave way to newer ones; their responses will be unpaired."""
        return self._queries.forgotten

    def query(self, key: Key, question: bytes, now: float) -> tuple[Match, R | None]:
        """A query was sent. Gives the response that waited for it, if one did; None in it had been refused before."""
        entry = self._waiting.first(key)
        if entry is None:
            self._queries.put(key, question, len(question), now=now)
            return Match.WAITING, None
        self._waiting.remove(entry)
        asked, response = entry.value
        return (Match.PAIRED if asked == question else Match.MISMATCH), response

    def response(self, key: Key, question: bytes) -> Match:
        """A response came. Uses up its query; of several with one key, the one with its question, else the oldest."""
        oldest = entry = self._queries.first(key)
        if oldest is None:
            return Match.WAITING
        while entry is not None and entry.value != question:
            entry = entry.next
        self._queries.remove(entry or oldest)
        return Match.MISMATCH if entry is None else Match.PAIRED

    def wait(self, key: Key, question: bytes, response: R | None, size: int, *, now: float) -> list[R]:
        """Keep a response for its query, or (None) only the fact that one came; gives what had to go for it."""
        dropped = self._waiting.put(key, (question, response), size, now=now)
        return [response for _, response in dropped if response is not None]

    def expire(self, now: float) -> list[R]:
        """Forget what is too old; gives the responses among it, unpaired for good."""
        self._queries.expire(now)
        return [response for _, response in self._waiting.expire(now) if response is not None]
