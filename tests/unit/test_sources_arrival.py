"""The arrival time of what is read: now, but after a stall the last time that lies before the sending."""

from __future__ import annotations

import pytest

from cachebus.sources.arrival import KERNEL_BUFFERS, STALL, TICK, Arrival

START = 1_800_000_000.0


def ticking(arrival: Arrival, now: float, ticks: int) -> float:
    for _ in range(ticks):
        now += TICK
        arrival.tick(now)
    return now


def test_a_loop_that_runs_gives_now() -> None:
    arrival = Arrival(START)
    now = ticking(arrival, START, 1000)
    assert arrival.time(now) == now
    assert arrival.time(now + TICK) == now + TICK


@pytest.mark.parametrize("ticks_between_stall_and_read", [0, 1])
def test_after_a_stall_bytes_are_as_old_as_it(ticks_between_stall_and_read: int) -> None:
    arrival = Arrival(START)
    stopped = ticking(arrival, START, 10)
    now = stopped + 60.0
    # The first tick after the stall may come before the loop has looked at the socket.
    for _ in range(ticks_between_stall_and_read):
        arrival.tick(now)
        now += 0.001
    assert stopped - 2 * TICK <= arrival.time(now) <= stopped


def test_two_ticks_after_a_stall_all_is_well_again() -> None:
    arrival = Arrival(START)
    now = ticking(arrival, START, 10) + 60.0
    now = ticking(arrival, now, 2)
    assert arrival.time(now) == now


def test_while_more_may_wait_in_the_kernel_time_stands_still() -> None:
    arrival = Arrival(START)
    stopped = ticking(arrival, START, 10)
    now = stopped + 60.0
    arrival.read(100, 100)
    now = ticking(arrival, now, 20)
    assert arrival.time(now) <= stopped
    arrival.read(99, 100)  # fewer than asked for: it is empty
    now = ticking(arrival, now, 2)
    assert arrival.time(now) == now


def test_a_flood_does_not_stop_time_for_ever() -> None:
    arrival = Arrival(START)
    now = ticking(arrival, START, 10) + 60.0
    arrival.read(KERNEL_BUFFERS, KERNEL_BUFFERS)
    now = ticking(arrival, now, 2)
    assert arrival.time(now) == now


def test_a_clock_set_back_gives_its_own_time() -> None:
    arrival = Arrival(START)
    now = ticking(arrival, START, 10)
    assert arrival.time(now - 3600) == now - 3600
    assert arrival.time(now + STALL / 2) == now + STALL / 2
