"""Streams: replays, gaps, reordering, duplicates and restarts are told apart, and counted exactly."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachebus.answer import Refusal
from cachebus.wire import sequence
from cachebus.wire.sequence import MAX_AGE, MAX_AHEAD, MAX_SEQUENCE, WINDOW, Streams, new_stream, stream_start
from tests.core_bed import NOW

FIRST = int((NOW - 10) * 1000) << 22 | 1
SECOND = int((NOW - 5) * 1000) << 22 | 2


def heard(*numbers: int, stream: int = FIRST) -> Streams:
    streams = Streams(start=NOW - 60)
    for number in numbers:
        assert streams.take("a", stream, number, NOW) is None
    return streams


def counts(streams: Streams) -> tuple[int, int, int, int]:
    counted = streams.counters()
    return counted["gaps"], counted["duplicates"], counted["reordered"], counted["restarts"]


def test_a_stream_id_is_its_start_and_noise() -> None:
    made = {new_stream(NOW) for _ in range(50)}
    assert len(made) > 45
    assert {stream_start(stream) for stream in made} == {NOW}
    assert {stream >> 63 for stream in made} == {0}
    assert new_stream(NOW) < new_stream(NOW + 0.001)


def test_a_stream_id_is_above_the_one_before_it_whatever_the_clock_says() -> None:
    assert new_stream(NOW - 3600, after=SECOND) > SECOND


def test_in_order() -> None:
    assert counts(heard(1, 2, 3)) == (0, 0, 0, 0)


def test_who_joins_late_missed_nothing() -> None:
    streams = heard(1000, 1001)
    assert counts(streams) == (0, 0, 0, 0)
    assert streams.take("a", FIRST, 999, NOW) is None
    assert counts(streams) == (0, 0, 1, 0)


def test_a_gap_is_filled_by_what_comes_late() -> None:
    streams = heard(1, 5)
    assert counts(streams) == (3, 0, 0, 0)
    assert streams.take("a", FIRST, 3, NOW) is None
    assert counts(streams) == (2, 0, 1, 0)
    assert streams.take("a", FIRST, 3, NOW) is Refusal.DUPLICATE
    assert counts(streams) == (2, 1, 1, 0)


def test_below_the_window_nothing_is_told_from_a_replay() -> None:
    streams = heard(1, WINDOW + 1)
    assert streams.take("a", FIRST, 2, NOW) is None
    assert streams.take("a", FIRST, 1, NOW) is Refusal.REPLAY_WINDOW
    assert streams.take("a", FIRST, MAX_SEQUENCE, NOW) is None  # a leap costs no memory
    assert streams.take("a", FIRST, WINDOW + 1, NOW) is Refusal.REPLAY_WINDOW
    assert streams.presence()["a"].sequence == MAX_SEQUENCE


def test_a_restart() -> None:
    streams = heard(7, 8)
    assert streams.take("a", SECOND, 3, NOW) is None
    assert counts(streams) == (2, 0, 0, 1)  # 1 and 2 of the new stream
    assert streams.take("a", FIRST, 9, NOW) is Refusal.OLD_STREAM
    assert streams.take("a", SECOND, 1, NOW) is None
    assert counts(streams) == (1, 0, 1, 1)


def test_origins_are_apart() -> None:
    streams = heard(1)
    assert streams.take("b", SECOND, 1, NOW) is None
    assert streams.take("a", FIRST, 1, NOW) is Refusal.DUPLICATE
    assert streams.presence()["b"].duplicates == 0
    assert streams.presence()["a"].duplicates == 1


@pytest.mark.parametrize(
    ("stream", "number", "refusal"),
    [
        (FIRST, 0, Refusal.MALFORMED),
        (FIRST, MAX_SEQUENCE + 1, Refusal.MALFORMED),
        (1 << 63, 1, Refusal.MALFORMED),
        (-1, 1, Refusal.MALFORMED),
        (int((NOW + MAX_AHEAD + 1) * 1000) << 22, 1, Refusal.BAD_TIME),
    ],
)
def test_what_no_stream_has(stream: int, number: int, refusal: Refusal) -> None:
    streams = Streams(start=NOW)
    assert streams.take("a", stream, number, NOW) is refusal
    assert streams.state() == {}


@pytest.mark.parametrize(
    ("sent", "refusal"),
    [
        (NOW, None),
        (NOW - MAX_AGE, None),
        (NOW - MAX_AGE - 0.001, Refusal.EXPIRED),
        (NOW + MAX_AHEAD, None),
        (NOW + MAX_AHEAD + 0.001, Refusal.BAD_TIME),
    ],
)
def test_time(sent: float, refusal: Refusal | None) -> None:
    assert Streams(start=0.0).refuse_time(sent, NOW) is refusal
    assert Streams(start=None).refuse_time(sent, NOW) is None


def test_before_start_ends_by_a_clock_that_nobody_sets() -> None:
    streams = Streams(start=NOW)
    assert streams.refuse_time(NOW - 0.001, NOW) is Refusal.BEFORE_START
    streams.tick(1000.0)
    streams.tick(1000.0 + MAX_AGE + MAX_AHEAD)
    assert streams.refuse_time(NOW - 0.001, NOW) is Refusal.BEFORE_START
    streams.tick(1001.0 + MAX_AGE + MAX_AHEAD)
    assert streams.refuse_time(NOW - 0.001, NOW) is None
    assert streams.refuse_time(NOW - 61, NOW) is Refusal.EXPIRED


def test_a_will_marks_its_own_stream_only() -> None:
    streams = heard(1)
    assert not streams.gone("a", SECOND)
    assert not streams.gone("b", FIRST)
    assert not streams.presence()["a"].gone
    assert streams.gone("a", FIRST)
    assert streams.presence()["a"].gone
    assert streams.take("a", FIRST, 2, NOW) is None
    assert not streams.presence()["a"].gone


SILENT = MAX_AGE + MAX_AHEAD + 1


@pytest.mark.parametrize(("stream", "number"), [(SECOND, 1), (FIRST, MAX_SEQUENCE)])
def test_a_false_stream_or_number_silences_nobody_for_ever(stream: int, number: int) -> None:
    streams = heard(7)
    assert streams.take("a", stream, number, NOW + 1) is None
    refusal = Refusal.OLD_STREAM if stream == SECOND else Refusal.REPLAY_WINDOW
    assert streams.take("a", FIRST, 8, NOW + SILENT) is refusal  # what it had said might be in time still
    assert streams.take("a", FIRST, 8, NOW + 1 + SILENT) is None
    assert streams.take("a", FIRST, 8, NOW + 1 + SILENT) is Refusal.DUPLICATE
    assert streams.take("a", FIRST, 9, NOW + 1 + SILENT) is None
    assert streams.presence()["a"].sequence == 9


def test_what_a_previous_run_heard_counts_as_heard_until_it_is_out_of_time() -> None:
    streams = Streams(start=NOW)
    streams.restore({"a": SECOND})
    assert streams.take("a", FIRST, 8, NOW + SILENT - 2) is Refusal.OLD_STREAM
    assert streams.take("a", FIRST, 8, NOW + SILENT) is None
    assert counts(streams)[0] == 0
    file = Streams(start=None)
    assert file.take("a", SECOND, 1, NOW) is None
    assert file.take("a", FIRST, 1, NOW + 10 * SILENT) is Refusal.OLD_STREAM


def test_what_a_previous_run_heard_is_out_of_time_when_before_start_ends() -> None:
    streams = Streams(start=NOW + 10 * SILENT)  # a clock that was ahead when we began, and was set right
    streams.restore({"a": SECOND})
    streams.tick(0.0)
    assert streams.take("a", FIRST, 8, NOW) is Refusal.OLD_STREAM
    streams.tick(SILENT)
    assert streams.take("a", FIRST, 8, NOW + SILENT) is None


def test_the_newest_stream_outlives_the_process() -> None:
    kept = heard(5, stream=SECOND).state()
    streams = Streams(start=NOW)
    streams.restore(kept)
    assert streams.take("a", FIRST, 1, NOW) is Refusal.OLD_STREAM
    assert streams.take("a", SECOND, 9, NOW) is None  # what came while we were away is no gap
    assert counts(streams) == (0, 0, 0, 0)


def test_a_restart_while_we_were_away_is_no_gap() -> None:
    streams = Streams(start=NOW)
    streams.restore({"a": FIRST})
    assert streams.take("a", SECOND, 9, NOW) is None
    assert counts(streams) == (0, 0, 0, 1)


def test_what_is_kept_may_be_wrong_and_never_makes_older() -> None:
    streams = heard(1, stream=SECOND)
    streams.restore({"a": FIRST, "b": -1, "c": 1 << 70, "d": SECOND})
    assert streams.state() == {"a": SECOND, "d": SECOND}
    streams.restore({"a": SECOND + 1})
    assert streams.take("a", SECOND, 2, NOW) is Refusal.OLD_STREAM


def test_origins_are_bounded_and_no_replay_gets_in_by_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequence, "MAX_ORIGINS", 3)
    streams = Streams(start=NOW)
    for name, at in (("a", NOW), ("b", NOW + 200), ("c", NOW + 300)):
        assert streams.take(name, FIRST, 1, at) is None
    assert streams.take("d", FIRST, 1, NOW + 300) is Refusal.REPLAY_WINDOW
    later = NOW + MAX_AGE + MAX_AHEAD + 1
    assert streams.take("d", FIRST, 1, later) is None  # all that `a` had sent is expired by now
    assert sorted(streams.state()) == ["b", "c", "d"]
    full = Streams(start=NOW)
    full.restore({str(number): FIRST for number in range(9)})
    assert len(full.state()) == 3


class Naive:
    """The same, by remembering everything."""

    def __init__(self) -> None:
        self.streams: list[int] = []
        self.taken: dict[int, list[int]] = {}
        self.refused = {Refusal.DUPLICATE: 0}
        self.reordered = 0

    def take(self, stream: int, number: int) -> Refusal | None:
        if self.streams and stream < self.streams[-1]:
            return Refusal.OLD_STREAM
        if not self.streams or stream > self.streams[-1]:
            self.streams.append(stream)
            self.taken[stream] = []
        taken = self.taken[stream]
        if taken and number <= max(taken) - WINDOW:
            return Refusal.REPLAY_WINDOW
        if number in taken:
            self.refused[Refusal.DUPLICATE] += 1
            return Refusal.DUPLICATE
        if taken and number < max(taken):
            self.reordered += 1
        taken.append(number)
        return None

    def counts(self) -> tuple[int, int, int, int]:
        gaps = 0
        for index, stream in enumerate(self.streams):
            taken = self.taken[stream]
            begin = 1 if index else taken[0]
            gaps += sum(number not in taken for number in range(begin, max(taken) + 1))
        return gaps, self.refused[Refusal.DUPLICATE], self.reordered, max(0, len(self.streams) - 1)


NUMBERS = st.one_of(st.integers(1, 12), st.integers(WINDOW - 3, WINDOW + 12))


@pytest.mark.property
@given(st.lists(st.tuples(st.sampled_from([FIRST, SECOND, SECOND + 1]), NUMBERS), max_size=40))
def test_counted_as_a_naive_model_counts(messages: list[tuple[int, int]]) -> None:
    streams, naive = Streams(start=NOW - 60), Naive()
    for stream, number in messages:
        assert streams.take("a", stream, number, NOW) is naive.take(stream, number)
    assert counts(streams) == naive.counts()
    presence = streams.presence().get("a")
    assert (presence[4:] if presence else (0, 0, 0, 0)) == naive.counts()
