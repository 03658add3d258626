"""What was flushed lately, so that what was learned before does not come back from its way here. Bounded; no clock."""

from __future__ import annotations

from cachebus.wire.name import ancestors

MAX_FLUSHES = 10_000
"""Names whose last flush is remembered, each for `FLUSH_MEMORY`."""
FLUSH_MEMORY = 600
"""Seconds: twice the largest fudge. When the memory is full, older flushes go, and nothing is taken that was learned in
their time: a batch or a copy of a cache may bring answers of hours ago."""


class Flushes:
    """When which name was flushed last. Times are milliseconds since the epoch."""

    __slots__ = ("all_before", "names")

    def __init__(self) -> None:
        self.all_before = 0
        """Everything learned at or before it was flushed."""
        self.names: dict[bytes, tuple[int, bool]] = {}
        """Name to the time of its flush, and whether it was one of everything below the name as well."""

    def note(self, name: bytes, now_ms: int, *, subtree: bool = False) -> None:
        """A name was flushed, with everything below it or alone."""
        self._make_room(now_ms)
        self.names[name] = (now_ms, subtree or (name in self.names and self.names[name][1]))

    def note_all(self, now_ms: int) -> None:
        """Everything was flushed."""
        self.all_before = now_ms
        self.names.clear()

    def cover(self, owner: bytes, learned_ms: int) -> bool:
        """Whether what was learned of `owner` at that time has been flushed since."""
        if learned_ms <= self.all_before:
            return True
        if self.names:
            for name in ancestors(owner):
                flush = self.names.get(name)
                if flush is not None and learned_ms <= flush[0] and (flush[1] or name == owner):
                    return True
        return False

    def _make_room(self, now_ms: int) -> None:
        if len(self.names) >= MAX_FLUSHES:
            horizon = now_ms - FLUSH_MEMORY * 1000
            self.names = {name: flush for name, flush in self.names.items() if flush[0] > horizon}
            self.all_before = max(self.all_before, horizon)
        if len(self.names) >= MAX_FLUSHES:
            # Too many to tell apart: take them all for one flush of everything still on its way.
            self.note_all(now_ms)
