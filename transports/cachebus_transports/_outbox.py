"""What waits for a peer or a broker: bounded in messages, bytes and age. The oldest go first; each loss is counted.

Knows no socket and no clock: `now` is an argument, in seconds of any clock that nobody sets back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple


class Waiting(NamedTuple):
    """A message and when it was handed to us. Queues of several peers share one."""

    since: float
    data: bytes


class Outbox:
    """A queue that never says no: it drops the oldest instead."""

    def __init__(self, *, messages: int, size: int, age: float) -> None:
        """Bounds: messages, their bytes, seconds. The message that comes last is kept even if it is longer."""
        self._waiting: deque[Waiting] = deque()
        self._messages, self._size, self._age = messages, size, age
        self.bytes = 0
        """That wait now."""
        self.dropped = 0
        """Messages there was no room for."""
        self.expired = 0
        """Messages that waited too long."""
        self.wake: Callable[[], None] | None = None
        """Called when there is something to send."""

    def __len__(self) -> int:
        """Messages that wait."""
        return len(self._waiting)

    def put(self, waiting: Waiting) -> None:
        """Take one message to the end; the oldest make room for it."""
        self._waiting.append(waiting)
        self.bytes += len(waiting[1])
        if self.bytes > self._size or len(self._waiting) > self._messages:
            self._shrink()
        if self.wake is not None:
            self.wake()

    def put_back(self, waiting: Sequence[Waiting]) -> None:
        """Take what was under way when the link broke to the front again, in the order given."""
        self._waiting.extendleft(reversed(waiting))
        self.bytes += sum(len(one.data) for one in waiting)
        self._shrink()

    def take(self, now: float) -> Waiting | None:
        """The oldest message that is not too old, or None."""
        self.expire(now)
        if not self._waiting:
            return None
        first = self._waiting.popleft()
        self.bytes -= len(first.data)
        return first

    def take_many(self, limit: int, now: float) -> list[bytes]:
        """The oldest that are not too old: one at least if any waits, more while they are at most `limit` bytes."""
        self.expire(now)
        taken: list[bytes] = []
        size = 0
        while self._waiting and (not taken or size + len(self._waiting[0][1]) <= limit):
            data = self._waiting.popleft()[1]
            size += len(data)
            taken.append(data)
        self.bytes -= size
        return taken

    def expire(self, now: float) -> None:
        """Drop what has waited too long."""
        oldest = now - self._age
        while self._waiting and self._waiting[0][0] <= oldest:
            self.bytes -= len(self._waiting.popleft().data)
            self.expired += 1

    def clear(self) -> None:
        """Give up what waits: it is dropped."""
        self.dropped += len(self._waiting)
        self._waiting.clear()
        self.bytes = 0

    def _shrink(self) -> None:
        while (self.bytes > self._size and len(self._waiting) > 1) or len(self._waiting) > self._messages:
            self.bytes -= len(self._waiting.popleft().data)
            self.dropped += 1
