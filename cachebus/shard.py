"""One shard of the cache: entries by key in two generations, with an account of their bytes.

Knows when something has to go for want of room, and how much there is. Knows nothing of what an entry says.
"""

from __future__ import annotations

from collections.abc import Callable

ENTRY_OVERHEAD = 160
"""Bytes counted per entry beside key and value bytes: two objects' headers and the dict's share."""


class Shard:
    """Two generations: what is used moves to the young one; when that is full, the old one is given up whole."""

    __slots__ = ("old", "old_bytes", "young", "young_bytes")

    def __init__(self) -> None:
        self.young: dict[bytes, bytes] = {}
        self.old: dict[bytes, bytes] = {}
        self.young_bytes = 0
        self.old_bytes = 0

    def is_below(self, entries: int, size: int) -> bool:
        """Whether it holds less than so many entries and bytes."""
        return len(self.young) + len(self.old) < entries and self.young_bytes + self.old_bytes < size

    def forget(self, key: bytes) -> bool:
        """Let go of one entry; whether there was one."""
        gone = self.young.pop(key, None)
        if gone is not None:
            self.young_bytes -= len(key) + len(gone) + ENTRY_OVERHEAD
            return True
        gone = self.old.pop(key, None)
        if gone is not None:
            self.old_bytes -= len(key) + len(gone) + ENTRY_OVERHEAD
            return True
        return False

    def remove(self, doomed: Callable[[bytes, bytes], bool]) -> int:
        """Let go of every entry for which `doomed(key, value)` is true; gives their number."""
        keys = [key for entries in (self.young, self.old) for key, value in entries.items() if doomed(key, value)]
        for key in keys:
            self.forget(key)
        return len(keys)

    def sweep(self, before: bytes) -> int:
        """Let go of what expired at or before that time, packed as an entry begins; gives the number of entries."""
        count = len(self.young) + len(self.old)
        self.young, self.young_bytes = _alive(self.young, before)
        self.old, self.old_bytes = _alive(self.old, before)
        return count - len(self.young) - len(self.old)


def _alive(entries: dict[bytes, bytes], before: bytes) -> tuple[dict[bytes, bytes], int]:
    alive = {key: value for key, value in entries.items() if value[:8] > before}
    return alive, sum(map(len, alive)) + sum(map(len, alive.values())) + ENTRY_OVERHEAD * len(alive)
