"""A memory of what was seen lately, bounded by time, count and bytes; the oldest goes first.

Knows nothing of what it keeps. Everything costs the same however full it is: a used entry leaves the index at once and
the queue when it reaches its front.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

ENTRY_OVERHEAD = 400
"""Bytes that an entry costs beside what it holds: its object, its key, its places in index and queue."""
MAX_SAME_KEY = 8
"""Entries of one key, so that walking them stays cheap; nobody honest has more than two or three."""


class Entry(Generic[K, V]):
    """One thing remembered; entries of the same key are linked, oldest first."""

    __slots__ = ("arrived", "key", "live", "next", "size", "value")

    def __init__(self, key: K, value: V, size: int, arrived: float) -> None:
        """`size` in bytes; `arrived` on the clock that is passed to `Memory.expire`."""
        self.key = key
        self.value = value
        self.size = size
        self.arrived = arrived
        self.live = True
        self.next: Entry[K, V] | None = None


class Memory(Generic[K, V]):
    """Entries by key, several of one key allowed, each for `window` seconds at most."""

    def __init__(self, *, window: float, max_entries: int, max_bytes: int) -> None:
        """Bounds: seconds, entries, and bytes with `ENTRY_OVERHEAD` for each."""
        self._window = window
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._first: dict[K, Entry[K, V]] = {}
        self._queue: deque[Entry[K, V]] = deque()
        self._bytes = 0
        self._live = 0
        self.forgotten = 0
        """Entries that gave way to newer ones before their time."""

    def __len__(self) -> int:
        """Entries held."""
        return self._live

    def __contains__(self, key: object) -> bool:
        """Whether there is an entry of `key`, in time or not yet expired."""
        return key in self._first

    @property
    def held_bytes(self) -> int:
        """Bytes held, as counted against the bound."""
        return self._bytes

    def put(self, key: K, value: V, size: int, *, now: float) -> list[V]:
        """Remember `value` under `key`; gives what had to go for it."""
        entry = Entry(key, value, size + ENTRY_OVERHEAD, now)
        dropped: list[V] = []
        first = last = self._first.get(key)
        if first is None or last is None:
            self._first[key] = entry
        else:
            same = 1
            while last.next is not None:
                last = last.next
                same += 1
            last.next = entry
            if same >= MAX_SAME_KEY:
                self._forget(first, dropped)
        self._queue.append(entry)
        self._live += 1
        self._bytes += entry.size
        if self._live > self._max_entries or self._bytes > self._max_bytes or len(self._queue) > 2 * self._max_entries:
            self._shrink(dropped)
        return dropped

    def _forget(self, entry: Entry[K, V], dropped: list[V]) -> None:
        self._unlink(entry)
        self.forgotten += 1
        dropped.append(entry.value)

    def _shrink(self, dropped: list[V]) -> None:
        queue = self._queue
        while queue and (
            self._live > self._max_entries or self._bytes > self._max_bytes or len(queue) > 2 * self._max_entries
        ):
            entry = queue.popleft()
            if entry.live:
                self._forget(entry, dropped)

    def first(self, key: K) -> Entry[K, V] | None:
        """The oldest entry of `key`; the next one is its `next`."""
        return self._first.get(key)

    def remove(self, entry: Entry[K, V]) -> None:
        """Forget a live entry: it was used up."""
        self._unlink(entry)

    def discard(self, key: K) -> None:
        """Forget every entry of `key`."""
        while (entry := self._first.get(key)) is not None:
            self._unlink(entry)

    def _unlink(self, entry: Entry[K, V]) -> None:
        entry.live = False
        self._live -= 1
        self._bytes -= entry.size
        previous = self._first[entry.key]
        if previous is entry:
            if entry.next is None:
                del self._first[entry.key]
            else:
                self._first[entry.key] = entry.next
            return
        while previous.next is not entry:
            assert previous.next is not None, "an entry that is not in its list"
            previous = previous.next
        previous.next = entry.next

    def expire(self, now: float) -> list[V]:
        """Forget what is older than the window, or from a future that a clock set back has left; gives it."""
        expired = []
        queue = self._queue
        while queue and (not queue[0].live or abs(now - queue[0].arrived) > self._window):
            entry = queue.popleft()
            if entry.live:
                self._unlink(entry)
                expired.append(entry.value)
        return expired
