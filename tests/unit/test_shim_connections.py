"""How many connections there may be, in all and for each client, and which one goes when there are too many."""

from __future__ import annotations

import asyncio

import pytest

from cachebus.shim.connections import ENCRYPTED_IDLE_TIMEOUT, IDLE_TIMEOUT, Connections, client_of


class Fake:
    """A connection that does as it is told."""

    def __init__(self, *, idle: bool = True, dear: bool = False, lingers: bool = False) -> None:
        self.active_at = 0.0
        self.is_idle = idle
        self.is_dear = dear
        self.lingers = lingers
        self.shuts = self.aborts = 0
        self.of: Connections | None = None

    def shut(self) -> None:
        self.shuts += 1
        if not self.lingers:
            assert self.of is not None
            self.of.forget(self)

    def abort(self) -> None:
        self.aborts += 1


class Bed:
    def __init__(self, limit: int = 10, per_client: int = 3) -> None:
        self.now = 100.0
        self.all = Connections(limit, per_client=per_client, clock=lambda: self.now)

    def add(self, address: str, **how: bool) -> Fake:
        fake = Fake(**how)
        fake.of = self.all
        fake.admitted = self.all.admit(fake, address)
        self.now += 0.001
        return fake


def test_a_client_has_its_own_limit_and_makes_room_itself() -> None:
    bed = Bed()
    others = [bed.add(f"192.0.2.{number}") for number in range(4)]
    mine = [bed.add("198.51.100.1") for _ in range(3)]
    bed.all.active(mine[0])
    bed.add("198.51.100.1")
    assert [one.aborts for one in mine] == [0, 1, 0], "the one idle for longest"
    assert not any(one.aborts for one in others)
    assert (bed.all.open, bed.all.evicted, bed.all.crowded) == (7, 1, 1)


def test_a_client_whose_connections_are_all_busy_gets_no_more() -> None:
    bed = Bed()
    for _ in range(3):
        bed.add("198.51.100.1", idle=False)
    assert not bed.add("198.51.100.1").admitted
    assert bed.add("198.51.100.2").admitted
    assert (bed.all.refused, bed.all.open) == (1, 4)


def test_the_longest_idle_of_all_makes_room() -> None:
    bed = Bed(limit=5)
    first = bed.add("192.0.2.1", idle=False)
    second = bed.add("192.0.2.2")
    for number in range(3, 7):
        bed.add(f"192.0.2.{number}")
    assert (first.aborts, second.aborts, bed.all.open) == (0, 1, 5)


def test_thousands_of_slow_clients_are_bounded_and_remembered_no_longer_than_they_stay() -> None:
    bed = Bed(limit=512, per_client=128)
    connections = [bed.add(f"10.0.{number >> 8}.{number & 255}") for number in range(5000)]
    assert bed.all.open == 512
    assert sum(one.aborts for one in connections) == 5000 - 512
    for one in connections:
        bed.all.forget(one)
    assert not vars(bed.all)["_by_client"]
    assert not vars(bed.all)["_by_activity"]


def test_what_was_forgotten_does_not_come_back() -> None:
    bed = Bed()
    one = bed.add("192.0.2.1")
    bed.all.forget(one)
    bed.all.active(one)
    bed.all.forget(one)
    assert bed.all.open == 0


def test_an_idle_connection_is_shut_and_one_that_lingers_is_cut() -> None:
    bed = Bed()
    goes, lingers, busy = bed.add("192.0.2.1"), bed.add("192.0.2.2", lingers=True), bed.add("192.0.2.3", idle=False)
    bed.now += IDLE_TIMEOUT
    bed.all.sweep()
    assert (goes.shuts, goes.aborts, lingers.shuts, lingers.aborts, busy.shuts) == (1, 0, 1, 0, 0)
    bed.all.sweep()
    assert (lingers.shuts, lingers.aborts, bed.all.open, bed.all.timed_out) == (1, 1, 1, 2)


def test_a_dear_connection_may_be_idle_for_longer() -> None:
    bed = Bed()
    dear, cheap = bed.add("192.0.2.1", dear=True), bed.add("192.0.2.2")
    bed.now += IDLE_TIMEOUT
    bed.all.sweep()
    assert (dear.shuts, cheap.shuts) == (0, 1)
    bed.now += ENCRYPTED_IDLE_TIMEOUT - IDLE_TIMEOUT
    bed.all.sweep()
    assert dear.shuts == 1


async def test_the_end_waits_for_no_one_for_long() -> None:
    bed = Bed()
    lingers = bed.add("192.0.2.1", lingers=True)
    async with asyncio.timeout(5):
        await bed.all.close_all()
    assert (lingers.shuts, lingers.aborts, bed.all.open) == (1, 1, 0)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8::1", "2001:db8::2:3", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%eth0", "fe80::1", True),
    ],
)
def test_what_one_client_is(one: str, other: str, same: bool) -> None:
    assert (client_of(one) == client_of(other)) is same
