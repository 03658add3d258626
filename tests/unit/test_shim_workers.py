"""What is shown of several workers as of one."""

from __future__ import annotations

import logging

import pytest

from cachebus import metrics
from cachebus.shim.workers import ALIKE, GAUGES, Seat, log_levels, total


def test_counters_are_summed() -> None:
    assert total([{"queries": 3, "tcp_open": 1}, {}, {"queries": 4, "errors": 1}]) == {
        "queries": 7,
        "tcp_open": 1,
        "errors": 1,
    }


@pytest.mark.parametrize("name", sorted(ALIKE))
def test_of_what_all_have_alike_the_one_that_lags_behind_shows(name: str) -> None:
    assert total([{name: 2_000}, {name: 1_000}]) == {name: 1_000}
    assert total([{name: 2_000}, {name: 0}]) == {name: 0}


def test_what_goes_up_and_down_is_not_kept_of_a_worker_that_is_gone() -> None:
    seat = Seat(0, lambda _seat, _answers: None)
    seat.counters = {"queries": 5, **dict.fromkeys(GAUGES, 7)}
    seat._leave()
    assert (seat.counters, seat.before) == ({}, {"queries": 5})


def test_a_worker_logs_what_the_node_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.root, "level", logging.ERROR)
    monkeypatch.setattr(logging.getLogger("quic"), "level", logging.WARNING)
    levels = log_levels()
    assert (levels[""], levels["quic"]) == (logging.ERROR, logging.WARNING)
    assert "cachebus.shim.workers" not in levels  # it has no level of its own


def test_gauges_are_gauges_in_the_metrics() -> None:
    assert GAUGES <= metrics.GAUGES
