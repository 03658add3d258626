"""Streams: whose message is new, whose came before, and what is missing in between (trust rules, section 8).

Every node numbers what it sends, from 1 on, in a stream that begins when it starts. Decides by these numbers alone what
is a replay, and counts gaps, duplicates, reordering and restarts. Knows neither bytes nor answers: codecs that carry
numbers share it, and ask it only about what is authentic.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from cachebus.answer import Refusal

WINDOW = 4096
"""Numbers below the newest that are told apart (trust rules, section 8): what a link may reorder."""
MAX_AGE = 60.0
"""Seconds after which a live message counts as expired: no link delays longer, and what a broker kept is not news."""
MAX_AHEAD = 300.0
"""Seconds that a sender's clock may be ahead, as TSIG grants (`tsig.MAX_FUDGE`)."""
MAX_ORIGINS = 10_000
"""Origins remembered, about 10 MB when full; far beyond any cluster."""
MAX_STREAM = (1 << 63) - 1
"""Stream ids fit a signed 64-bit integer, the widest that every language and database has."""
MAX_SEQUENCE = (1 << 64) - 1
_RANDOM_BITS = 22
"""Low bits of a stream id, so that processes which start in one millisecond differ. 41 bits of time last to 2039."""
_SILENCE = MAX_AGE + MAX_AHEAD
"""Seconds after which all that an origin had said is out of time, so that forgetting it lets no replay in."""
_SET_BACK = 3600.0
"""Seconds that our clock may have been set back since the last run. Where it was further ahead it was wrong then, and a
stream above that run's would be refused as one that begins in the future, for as long."""
_LOOK_EVERY = 1.0
"""Seconds between two searches for origins to forget, each of which looks at all of them."""
_MASK = (1 << WINDOW) - 1


def new_stream(now: float, *, after: int = 0) -> int:
    """A stream id: `now` in milliseconds, then 22 random bits; always above `after`, the newest known of this node."""
    milliseconds = max(int(now * 1000), (after >> _RANDOM_BITS) + 1)
    return milliseconds << _RANDOM_BITS | int.from_bytes(os.urandom(3), "big") & (1 << _RANDOM_BITS) - 1


def stream_start(stream: int) -> float:
    """Seconds since the epoch at which a stream began, as its id says."""
    return (stream >> _RANDOM_BITS) / 1000


class OwnStream:
    """What this process sends: the id of its stream and the number of its last message.

    One object for as long as the process lives: the codec that a reload makes has to count on from what the one that it
    replaces sends to the very end.
    """

    __slots__ = ("sequence", "stream")

    def __init__(self, start: float | None) -> None:
        """`start`: when the process did; None begins the stream with its first message."""
        self.stream = 0 if start is None else new_stream(start)
        self.sequence = 0

    def next(self, now: float) -> int:
        """The number of the next message."""
        if not self.stream:
            self.stream = new_stream(now)
        self.sequence += 1
        return self.sequence

    def restore(self, previous: int) -> None:
        """Begin above the stream of a previous run, where the clock was set back since: peers refuse others."""
        if previous >= self.stream > 0 and stream_start(previous) - stream_start(self.stream) < _SET_BACK:
            self.stream = new_stream(0.0, after=previous)


class Presence(NamedTuple):
    """What is known of one origin."""

    stream: int
    """Its newest stream id."""
    sequence: int
    """The highest number of that stream."""
    heard: float
    """When its last message came: seconds since the epoch; 0.0 when it is only remembered from a previous run."""
    gone: bool
    """Its will was heard, and nothing since."""
    gaps: int
    """Messages missing now."""
    duplicates: int
    reordered: int
    """Messages that came after one with a higher number."""
    restarts: int


class _Origin:
    """The newest stream of one origin."""

    __slots__ = (
        "base", "duplicates", "gaps", "gone", "heard", "joined", "reordered", "restarts", "seen", "stream", "top",
    )  # fmt: skip

    def __init__(self, stream: int) -> None:
        self.stream = stream
        self.top = 0
        """The highest number seen; 0: none."""
        self.joined = True
        """The next message is the first that we hear of this stream: what it sent before never was a gap."""
        self.base = 0
        """The number before the first one heard of a stream that we joined."""
        self.seen = 0
        """Bit n: number `top - n` was seen."""
        self.heard = 0.0
        self.gone = False
        self.gaps = 0
        self.duplicates = 0
        self.reordered = 0
        self.restarts = 0


class Streams:
    """The newest stream of each origin, and which of its numbers were seen."""

    def __init__(self, *, start: float | None) -> None:
        """`start`: when this process began to listen; None takes messages of any time (reading a file)."""
        self._start = start
        self._first_tick = float("inf")
        self._looked = float("-inf")
        self._origins: dict[str, _Origin] = {}
        self._gaps = 0
        self._duplicates = 0
        self._reordered = 0
        self._restarts = 0

    def tick(self, monotonic: float) -> None:
        """Say what a clock shows that nobody sets, in seconds; to be called now and then.

        By it the rule `before-start` ends: what was sent before the start is out of time by then. A clock that was
        ahead when the process began, and was set right, would refuse everything until it is there again.
        """
        self._first_tick = min(self._first_tick, monotonic)
        if self._start is not None and monotonic - self._first_tick > _SILENCE:
            self._start = float("-inf")

    def refuse_time(self, sent: float, now: float) -> Refusal | None:
        """Why a message sent at `sent`, by its sender's clock, is not taken at `now`; both seconds since the epoch.

        `EXPIRED` beyond `MAX_AGE`, `BAD_TIME` more than `MAX_AHEAD` ahead, `BEFORE_START` when it was sent before this
        process listened: what had been taken by then is not remembered, only the newest stream of each origin may be.
        """
        if self._start is None:
            return None
        if now - sent > MAX_AGE:
            return Refusal.EXPIRED
        if sent - now > MAX_AHEAD:
            return Refusal.BAD_TIME
        return Refusal.BEFORE_START if sent < self._start else None

    def take(self, origin: str, stream: int, sequence: int, now: float) -> Refusal | None:
        """Note one authentic, timely message of `origin`; a reason when it is not new.

        `OLD_STREAM`: of a stream before the newest known; `DUPLICATE`: this number came already; `REPLAY_WINDOW`: too
        far below the newest to be told from a replay, or the memory is full of origins heard just now; `BAD_TIME`: a
        stream that begins in the future; `MALFORMED`: a number out of its range.

        What was noted of an origin that has been silent for so long that all it had said is out of time keeps nothing
        out: or one false stream or number, by whoever has a key that may speak for it, would silence it for ever.
        """
        if not 1 <= sequence <= MAX_SEQUENCE or not 0 <= stream <= MAX_STREAM:
            return Refusal.MALFORMED
        known = self._origins.get(origin)
        if known is None or known.stream != stream:
            older = known is not None and stream < known.stream
            if known is not None and older and not self._is_over(known, now):
                return Refusal.OLD_STREAM
            if self._start is not None and stream_start(stream) > now + MAX_AHEAD:
                return Refusal.BAD_TIME  # or one false id would shut out every true one that follows
            if known is None and len(self._origins) >= MAX_ORIGINS and not self._forget_silent(now):
                return Refusal.REPLAY_WINDOW
            known = self._begin(origin, known, stream)
            known.joined = known.joined or older
        refusal = self._number(known, sequence)
        if refusal is Refusal.REPLAY_WINDOW and self._is_over(known, now):
            known.joined, known.seen = True, 0
            refusal = self._number(known, sequence)
        if refusal is None:
            known.heard = now
            known.gone = False
        return refusal

    def _is_over(self, known: _Origin, now: float) -> bool:
        """Whether all that was heard of an origin is out of time by now, in this process and in the one before."""
        return self._start is not None and now - max(known.heard, self._start) > _SILENCE

    def _begin(self, origin: str, known: _Origin | None, stream: int) -> _Origin:
        if known is None:
            known = self._origins[origin] = _Origin(stream)
        else:
            known.restarts += 1
            self._restarts += 1
            known.stream = stream
            known.joined = not known.top  # who heard the stream before should have heard this one from its start
            known.top = known.base = known.seen = 0
        return known

    def _number(self, known: _Origin, sequence: int) -> Refusal | None:
        if known.joined:
            known.joined = False
            known.top = known.base = sequence - 1
        ahead = sequence - known.top
        if ahead > 0:
            known.seen = (known.seen << ahead | 1) & _MASK if ahead < WINDOW else 1
            known.top = sequence
            known.gaps += ahead - 1
            self._gaps += ahead - 1
            return None
        if ahead <= -WINDOW:
            return Refusal.REPLAY_WINDOW
        bit = 1 << -ahead
        if known.seen & bit:
            known.duplicates += 1
            self._duplicates += 1
            return Refusal.DUPLICATE
        known.seen |= bit
        known.reordered += 1
        self._reordered += 1
        if sequence > known.base:
            known.gaps -= 1
            self._gaps -= 1
        return None

    def _forget_silent(self, now: float) -> bool:
        if abs(now - self._looked) < _LOOK_EVERY:
            return False
        self._looked = now
        silent = [name for name, origin in self._origins.items() if abs(now - origin.heard) > _SILENCE]
        for name in silent:
            del self._origins[name]
        return bool(silent)

    def gone(self, origin: str, stream: int) -> bool:
        """Note an authentic will: mark the stream as ended. False when it is not the origin's newest, or unknown."""
        known = self._origins.get(origin)
        if known is None or known.stream != stream:
            return False
        known.gone = True
        return True

    def counters(self) -> dict[str, int]:
        """`gaps` (missing now), `duplicates`, `reordered`, `restarts` of all origins together, and their number.

        Like every counter of a process they begin at 0 with it; `gaps` falls when a late message comes.
        """
        return {
            "gaps": self._gaps,
            "duplicates": self._duplicates,
            "reordered": self._reordered,
            "restarts": self._restarts,
            "origins": len(self._origins),
        }

    def presence(self) -> dict[str, Presence]:
        """What is known of each origin, by name."""
        return {
            name: Presence(
                origin.stream, origin.top, origin.heard, origin.gone,
                origin.gaps, origin.duplicates, origin.reordered, origin.restarts,
            )
            for name, origin in self._origins.items()
        }  # fmt: skip

    def state(self) -> dict[str, int]:
        """What is to be kept over a restart: the newest stream id of each origin."""
        return {name: origin.stream for name, origin in self._origins.items()}

    def restore(self, state: Mapping[str, int]) -> None:
        """Take what `state` gave in a previous run; what is newer here stays. Ids out of range are left out."""
        for name, stream in state.items():
            if not 0 <= stream <= MAX_STREAM:
                continue
            known = self._origins.get(name)
            if known is not None:
                if known.stream < stream:
                    self._begin(name, known, stream)
            elif len(self._origins) < MAX_ORIGINS:
                self._origins[name] = _Origin(stream)
