"""Target: numbers of streams (`wire.sequence`), against a model that keeps every number it has seen."""

from __future__ import annotations

from random import Random
from typing import Any, NamedTuple
from unittest.mock import patch

from cachebus.answer import Refusal
from cachebus.wire import sequence
from cachebus.wire.sequence import (
    MAX_AGE,
    MAX_AHEAD,
    MAX_SEQUENCE,
    MAX_STREAM,
    WINDOW,
    OwnStream,
    Presence,
    Streams,
    new_stream,
    stream_start,
)
from tests.fuzz.bus import NOW
from tests.fuzz.harness import Part, Target
from tests.fuzz.mutate import LONGS, below

FEW = 4
"""Origins in place of `MAX_ORIGINS`: a bound that a block reaches."""
ORIGINS = ("a", "b", "c", "d", "e", "")
SILENCE = MAX_AGE + MAX_AHEAD
SET_BACK = 3600.0
"""Seconds that a clock may have been set back between two runs."""


class Numbered(NamedTuple):
    """What an authentic message says of itself, and when it comes."""

    origin: str
    stream: int
    number: int
    later: float
    """Seconds since the one before."""
    age: float = 0.0
    """Seconds since it was sent."""


def _stream(start: float) -> int:
    return int(start * 1000) << 22


class SequenceTarget(Target[Numbered]):
    """`Streams`: nothing is taken twice, nothing new within the window refused, gaps are what is missing."""

    name = "sequence"
    parts = (Part("cachebus/wire/sequence.py"),)
    block = 60

    def begin(self, rng: Random) -> None:
        self._start = (None, NOW - 1000.0, NOW - 5.0)[below(rng, 3)]
        self._streams = Streams(start=self._start)
        self._now = float(NOW)
        self._monotonic = 0.0
        self._listen()
        self._next = dict.fromkeys(ORIGINS, 1 + below(rng, 3))
        self._seen: dict[tuple[str, int], set[int]] = {}

    def valid(self, rng: Random) -> Numbered:
        origin = ORIGINS[below(rng, 3)]
        self._next[origin] += 1
        return Numbered(origin, _stream(NOW - 600.0), self._next[origin], rng.random())

    def mutated(self, rng: Random) -> Numbered:
        given = self.valid(rng)
        match below(rng, 6):
            case 0:
                return given._replace(number=given.number - below(rng, 6))
            case 1:
                return given._replace(number=given.number + (1, -1)[below(rng, 2)] * (WINDOW + below(rng, 5) - 2))
            case 2:
                return given._replace(stream=_stream(NOW - 600 + 100 * below(rng, 12)))
            case 3:
                return given._replace(origin=ORIGINS[below(rng, len(ORIGINS))])
            case 4:
                return given._replace(later=rng.random() * 2 * SILENCE if rng.random() < 0.3 else -rng.random() * 20)
            case _:
                return given._replace(age=(rng.random() * 2 - 1) * SILENCE)

    def noise(self, rng: Random) -> Numbered:
        odd = (-1, 0, MAX_STREAM, MAX_STREAM + 1, MAX_SEQUENCE, MAX_SEQUENCE + 1, *LONGS)
        return Numbered(ORIGINS[below(rng, 6)], odd[below(rng, len(odd))], odd[below(rng, len(odd))], 0.0)

    def check(self, example: Numbered, rng: Random) -> bool:
        origin, stream, number, later, age = example
        self._now = now = self._now + later
        self._monotonic += max(later, 0.0)
        with patch.object(sequence, "MAX_ORIGINS", FEW):
            if rng.random() < 0.03:
                self._again(rng)
                self._own(rng)
            if rng.random() < 0.05:
                self._tick(2 * SILENCE if rng.random() < 0.2 else 0.0)
            self._time(now - age, now)
            before = self._streams.presence().get(origin)
            refusal = self._streams.take(origin, stream, number, now)
        if before is not None and self._is_over(before.heard) and refusal is None and self._goes_back(example, before):
            self._forget(origin)
            before = None
        self._judge(refusal, example, None if before is None else before.stream)
        self._totals()
        if rng.random() < 0.05:
            known = self._streams.presence().get(origin)
            assert self._streams.gone(origin, stream) == (known is not None and known.stream == stream)
        return refusal is None

    def _listen(self) -> None:
        """A process begins to listen: what was sent before `self._since` is refused as long as it is in time."""
        self._since = self._start
        self._first_tick: float | None = None

    def _tick(self, leap: float) -> None:
        """The clock that nobody sets goes on, at times without the other one, which was set back by as much then."""
        self._monotonic += leap
        self._streams.tick(self._monotonic)
        if self._first_tick is None:
            self._first_tick = self._monotonic
        if self._since is not None and self._monotonic - self._first_tick > SILENCE:
            self._since = float("-inf")  # what was sent before the start, whenever that was, is out of time

    def _time(self, sent: float, now: float) -> None:
        refusal = self._streams.refuse_time(sent, now)
        if self._since is None:
            assert refusal is None
        elif now - sent > MAX_AGE:
            assert refusal is Refusal.EXPIRED
        elif sent - now > MAX_AHEAD:
            assert refusal is Refusal.BAD_TIME
        else:
            assert refusal is (Refusal.BEFORE_START if sent < self._since else None)

    def _judge(self, refusal: Refusal | None, given: Numbered, newest: int | None) -> None:
        origin, stream, number, *_ = given
        seen = self._seen.setdefault((origin, stream), set())
        match refusal:
            case None:
                assert number not in seen, "taken twice"
                assert newest is None or stream >= newest
                seen.add(number)
                known = self._streams.presence()[origin]
                assert (known.stream, known.sequence, known.gone) == (stream, max(number, known.sequence), False)
            case Refusal.MALFORMED:
                assert not (1 <= number <= MAX_SEQUENCE and 0 <= stream <= MAX_STREAM)
            case Refusal.OLD_STREAM:
                assert newest is not None
                assert stream < newest
            case Refusal.BAD_TIME:
                assert stream_start(stream) > self._now + MAX_AHEAD
            case Refusal.DUPLICATE:
                assert number in seen
            case Refusal.REPLAY_WINDOW:
                assert newest is None or number <= max(seen) - WINDOW
            case _:
                raise AssertionError(refusal)

    def _is_over(self, heard: float) -> bool:
        """Whether all that an origin had said is out of time, so that it may begin anew."""
        return self._since is not None and self._now - max(heard, self._since) > SILENCE

    def _goes_back(self, given: Numbered, before: Presence) -> bool:
        return given.stream < before.stream or (
            given.stream == before.stream and given.number <= before.sequence - WINDOW
        )

    def _forget(self, origin: str) -> None:
        for key in [key for key in self._seen if key[0] == origin]:
            del self._seen[key]

    def _totals(self) -> None:
        presence, counters = self._streams.presence(), self._streams.counters()
        for origin in {origin for origin, _ in self._seen} - presence.keys():  # what it had said is out of time
            self._forget(origin)
        assert counters["origins"] == len(presence) <= FEW
        assert all(known.gaps >= 0 for known in presence.values())
        assert min(counters.values()) >= 0

    def _again(self, rng: Random) -> None:
        """A new process goes on with what the old one kept: the newest streams, whose numbers begin anew for it."""
        state = self._streams.state()
        if rng.random() < 0.5:
            state |= {"a": state.get("a", 0) + (1 << 22), "z": MAX_STREAM + 1}
        fresh = self._streams if rng.random() < 0.5 else Streams(start=self._start)
        if fresh is not self._streams:
            self._seen.clear()
            self._listen()
        fresh.restore(state)
        assert len(fresh.state()) <= FEW
        assert all(fresh.state().get(name, stream) >= stream for name, stream in state.items() if stream <= MAX_STREAM)
        self._streams = fresh

    def _own(self, rng: Random) -> None:
        """What the new process sends goes on above what the one before sent, unless the clock was far ahead then."""
        own = OwnStream(self._now if rng.random() < 0.8 else None)
        began, previous = own.stream, new_stream(self._now + (rng.random() * 4 - 2) * SET_BACK)
        own.restore(previous)
        ahead = stream_start(previous) - stream_start(began)
        assert own.stream == began or (0 <= ahead < SET_BACK and own.stream > previous)
        assert not began or own.stream > previous or ahead >= SET_BACK
        assert [own.next(self._now) for _ in range(3)] == [1, 2, 3]
        assert 0 < own.stream <= MAX_STREAM


TARGETS: tuple[type[Target[Any]], ...] = (SequenceTarget,)
