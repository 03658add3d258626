"""What was flushed lately, so that what was learned before does not come back from its way here. Bounded; no clock."""

from __future__ import annotations

from typing import NamedTuple

from cachebus.entry import key_tags_of, value_signatures
from cachebus.wire.name import ancestors, is_at_or_below

MAX_FLUSHES = 10_000
"""Names whose last flush is remembered, each for `FLUSH_MEMORY`."""
FLUSH_MEMORY = 600
"""Seconds: twice the largest fudge. When the memory is full, older flushes go, and nothing is taken that was learned in
their time: a batch or a copy of a cache may bring answers of hours ago."""


class Flush(NamedTuple):
    """What is to be forgotten."""

    name: bytes
    """Lower-case wire form; the root, with `subtree`, is everything."""
    subtree: bool = False
    """Everything below the name too."""
    rrtype: int | None = None
    """This type alone, and that the name does not exist."""
    key_tag: int | None = None
    """What RRSIGs by this key of the zone `name` cover; then `subtree` is set, as they may cover all of it."""

    @property
    def is_all(self) -> bool:
        """Everything there is."""
        return self.subtree and self.name == b"\0" and self.rrtype is None and self.key_tag is None

    def covers(self, owner: bytes) -> bool:
        """Whether something is forgotten of this name."""
        return owner == self.name or (self.subtree and is_at_or_below(owner, self.name))

    def condemns(self, key: bytes, value: bytes) -> bool:
        """Whether an entry of the cache goes."""
        if not self.covers(key[:-2]):
            return False
        if self.key_tag is not None:
            return self.key_tag in key_tags_of(value_signatures(value), self.name)
        return self.rrtype is None or key[-2:] in (b"\0\0", self.rrtype.to_bytes(2, "big"))


class Flushes:
    """When which name was flushed last. Times are milliseconds since the epoch."""

    __slots__ = ("all_before", "names", "newest")

    def __init__(self) -> None:
        self.all_before = 0
        """Everything learned at or before it was flushed."""
        self.newest = 0
        """When the last flush was: what was learned later has never been flushed, and needs no look at the names."""
        self.names: dict[bytes, tuple[int, bool]] = {}
        """Name to the time of its flush, and whether it was one of everything below the name as well."""

    def note(self, flush: Flush, now_ms: int) -> None:
        """Something was flushed. Of a name, that means all types here: what comes late is then learned anew."""
        self.newest = max(self.newest, now_ms)
        if flush.is_all:
            self._note_all(now_ms)
            return
        self._make_room(now_ms)
        before = self.names.get(flush.name)
        self.names[flush.name] = (now_ms, flush.subtree or (before is not None and before[1]))

    def _note_all(self, now_ms: int) -> None:
        self.all_before = now_ms
        self.names.clear()

    def cover(self, owner: bytes, learned_ms: int) -> bool:
        """Whether what was learned of `owner` at that time has been flushed since."""
        if learned_ms > self.newest:
            return False
        if learned_ms <= self.all_before:
            return True
        for name in ancestors(owner) if self.names else ():
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
            self._note_all(now_ms)
