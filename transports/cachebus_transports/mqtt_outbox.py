"""What waits for the broker: bounded in messages, bytes and age. The oldest go first, and every loss is counted.

Knows no socket and no clock: `now` is an argument, in seconds of any clock that nobody sets back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

MAX_MESSAGES = 16_384
"""Messages that wait: a minute of 270 a second."""
MAX_BYTES = 8 * 1024 * 1024
"""Bytes that wait: at 5,000 answers a second, in batches, those of 13 s; and 32 of the largest messages."""
MAX_AGE = 60.0
"""Seconds that a message may wait: receivers refuse an envelope older than that (`expired`)."""


class Waiting(NamedTuple):
    """A message and when it was handed to us."""

    since: float
    data: bytes


class Outbox:
    """A queue that never says no: it drops the oldest instead."""

    def __init__(self, *, messages: int = MAX_MESSAGES, size: int = MAX_BYTES, age: float = MAX_AGE) -> None:
        self._waiting: deque[Waiting] = deque()
        self._messages, self._size, self._age = messages, size, age
        self.bytes = 0
        """That wait now."""
        self.dropped = 0
        """Messages there was no room for."""
        self.expired = 0
        """Messages that waited too long."""

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, data: bytes, now: float) -> None:
        """Take one message to the end; the oldest are dropped while there is no room."""
        self._waiting.append(Waiting(now, data))
        self.bytes += len(data)
        self._shrink()

    def put_back(self, waiting: Sequence[Waiting]) -> None:
        """Take what was under way when the link broke to the front again, in the order given."""
        self._waiting.extendleft(reversed(waiting))
        self.bytes += sum(len(one.data) for one in waiting)
        self._shrink()

    def take(self, now: float) -> Waiting | None:
        """The oldest message that is not too old, or None."""
        while self._waiting:
            first = self._waiting.popleft()
            self.bytes -= len(first.data)
            if now - first.since < self._age:
                return first
            self.expired += 1
        return None

    def clear(self) -> None:
        """Give up what waits: it is dropped."""
        self.dropped += len(self._waiting)
        self._waiting.clear()
        self.bytes = 0

    def _shrink(self) -> None:
        while len(self._waiting) > self._messages or self.bytes > self._size:
            self.bytes -= len(self._waiting.popleft().data)
            self.dropped += 1
