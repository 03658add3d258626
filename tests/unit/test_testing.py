"""The tools for plug-in authors: the clock, the network in memory, and that the contract catches broken transports."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import nullcontext
from types import TracebackType
from typing import Self

import pytest

from cachebus import testing
from cachebus.errors import ConfigError, TransportError
from cachebus.ports import Receive, Sender, TransportFactory, TransportSettings
from cachebus.testing import Check, Datagram, ManualClock, MemoryNetwork, MemoryTransport, TransportBed


def settings(listen: str | None, *peers: str) -> TransportSettings:
    return TransportSettings(name="lan", node="ams-1", cluster="test", listen=listen, peers=peers)


def ignore(data: bytes, sender: Sender) -> None:
    """A receiver that keeps nothing."""


class TestManualClock:
    def test_moves_only_when_told(self) -> None:
        clock = ManualClock(1000.0)
        assert clock() == clock() == 1000.0
        assert clock.advance(0.5) == clock() == 1000.5
        assert clock.advance(-1) == 999.5


class TestMemoryNetwork:
    async def test_delivers_by_hand_in_order(self) -> None:
        network, received = MemoryNetwork(), list[tuple[bytes, Sender]]()
        async with (
            network.transport(settings("one", "two"), ignore) as one,
            network.transport(settings("two"), lambda *item: received.append(item)) as two,
        ):
            one.send(b"a")
            one.send(b"b")
            assert received == []
            assert network.deliver(1) == 1
            assert received == [(b"a", "one")]
            assert network.deliver() == 1
            assert received == [(b"a", "one"), (b"b", "one")]
            assert one.statistics()["sent"] == two.statistics()["received"] == 2

    async def test_drops_duplicates_and_reorders(self) -> None:
        network, received = MemoryNetwork(), list[bytes]()
        async with (
            network.transport(settings("one", "two"), ignore) as one,
            network.transport(settings("two"), lambda data, sender: received.append(data)),
        ):
            for data in (b"a", b"b", b"c"):
                one.send(data)
            assert network.drop(1) == Datagram("one", "two", b"b")
            network.duplicate()
            network.reorder([2, 1, 0])
            network.deliver()
            assert received == [b"a", b"c", b"a"]

    @pytest.mark.parametrize("order", [[], [0, 0], [0, 2], [0, 1, 2]])
    async def test_an_order_names_each_once(self, order: list[int]) -> None:
        network = MemoryNetwork()
        async with network.transport(settings("one", "two"), ignore) as one:
            one.send(b"a")
            one.send(b"b")
            with pytest.raises(ValueError, match="permutation"):
                network.reorder(order)

    async def test_is_bounded(self) -> None:
        network = MemoryNetwork(limit=2)
        async with network.transport(settings("one", "two"), ignore) as one:
            for _ in range(5):
                one.send(b"x")
            assert len(network.pending) == 2
            assert network.lost == 3
            assert one.statistics() == {"sent": 2, "received": 0, "dropped": 3}

    async def test_nobody_there_is_a_loss(self) -> None:
        network = MemoryNetwork()
        async with network.transport(settings(None, "two"), ignore) as one:
            one.send(b"x")
            assert network.deliver() == 0
            assert network.lost == 1

    async def test_an_answer_sent_on_receipt_waits_for_the_next_delivery(self) -> None:
        network = MemoryNetwork()
        one = network.transport(settings("one", "two"), ignore)
        two = network.transport(settings("two", "one"), lambda data, sender: two.send(b"echo"))
        async with one, two:
            one.send(b"x")
            assert network.deliver() == 1
            assert list(network.pending) == [Datagram("two", "one", b"echo")]

    async def test_an_address_has_one_listener(self) -> None:
        network = MemoryNetwork()
        async with network.transport(settings("one"), ignore):
            with pytest.raises(TransportError, match="in use"):
                await network.transport(settings("one"), ignore).__aenter__()
        async with network.transport(settings("one"), ignore):
            pass

    def test_refuses_settings_without_sense(self) -> None:
        with pytest.raises(ConfigError):
            MemoryNetwork().transport(settings(None), ignore)
        with pytest.raises(ValueError, match="limit"):
            MemoryNetwork(limit=0)


class Broken(MemoryTransport):
    """A memory transport that does one thing wrong, by `fault`."""

    def __init__(self, settings: TransportSettings, receive: Receive, *, network: MemoryNetwork, fault: str) -> None:
        super().__init__(settings, receive, network=network)
        self.fault = fault
        self.held: list[bytes] = []
        self.random = random.Random(1)

    async def __aenter__(self) -> Self:
        if self.fault == "leaks a task":
            asyncio.get_running_loop().create_task(asyncio.sleep(60), name="leak")
        return await super().__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.fault != "keeps its address":
            await super().__aexit__(kind, error, trace)
        self._running = self.fault == "sends when stopped"

    def send(self, data: bytes) -> None:
        match self.fault:
            case "loses":
                if self.random.random() < 0.001:
                    return
            case "complains of the dead" if not set(self._peers) <= set(self._network._members):
                raise ConnectionRefusedError("a peer is dead")
            case "repeats":
                if self.random.random() < 0.01:
                    super().send(data)
            case "changes bytes":
                data = data.rstrip(b"\r\n")
            case "cuts":
                data = data[:65507]
            case "raises" if len(data) > testing.MEMORY_MAX_SIZE:
                raise OSError("too large")
            case "forgets to count" if len(data) > testing.MEMORY_MAX_SIZE:
                return
            case "reorders":
                self.held.append(data)
                if len(self.held) > 1:
                    super().send(self.held.pop())
                else:
                    asyncio.get_running_loop().call_later(0.005, self._release)
                return
            case "first peer only":
                self._peers = self._peers[:1]
            case "flushes nothing":
                asyncio.get_running_loop().call_later(0.01, super().send, data)
                return
        super().send(data)

    def _release(self) -> None:
        for data in self.held:
            super().send(data)
        self.held.clear()

    def take(self, datagram: Datagram) -> None:
        if self.fault == "one name for all":
            datagram = datagram._replace(sender="someone")
        super().take(datagram)

    def statistics(self) -> dict[str, int]:
        counts = super().statistics()
        match self.fault:
            case "counts in floats":
                return {name: float(value) for name, value in counts.items()}  # type: ignore[misc]
            case "counts nothing":
                return dict.fromkeys(counts, 0)
            case "names badly":
                return counts | {"kernel-drops": 0}
        return counts


def bed(factory: Callable[[MemoryNetwork], TransportFactory]) -> TransportBed:
    names = ["one", "two", "three", "four"]

    def of_node(index: int, count: int) -> TransportSettings:
        return settings(names[index], *(name for name in names[:count] if name != names[index]))

    async def garbage(attacked: TransportSettings) -> None:
        network.carry(Datagram("stranger", attacked.listen or "", b"garbage"))

    network = MemoryNetwork(automatic=True)
    return TransportBed(
        factory=factory(network),
        settings=of_node,
        max_size=testing.MEMORY_MAX_SIZE,
        deadline=0.5,
        unauthenticated=lambda: of_node(0, 2),
        garbage=garbage,
        stalled=lambda settings: nullcontext(),
    )


RAISED_INSTEAD: dict[str, type[Exception]] = {
    "raises": OSError,
    "complains of the dead": OSError,
    "keeps its address": TransportError,
}
"""Faults that are exceptions themselves; every other one the contract puts into words."""


FAULTS: list[tuple[str, Check]] = [
    ("leaks a task", testing.starts_and_stops),
    ("first peer only", testing.delivers_the_same_bytes_to_every_peer),
    ("reorders", testing.keeps_one_senders_order),
    ("changes bytes", testing.carries_any_bytes),
    ("one name for all", testing.names_the_sender),
    ("cuts", testing.drops_what_is_too_large),
    ("raises", testing.drops_what_is_too_large),
    ("forgets to count", testing.drops_what_is_too_large),
    ("repeats", testing.survives_a_flood),
    ("flushes nothing", testing.flush_comes_before_stop),
    ("complains of the dead", testing.dead_peer_disturbs_nobody),
    ("keeps its address", testing.stream_resumes_after_a_restart),
    ("loses", testing.delivers_ten_thousand_once),
    ("repeats", testing.delivers_ten_thousand_once),
    ("counts in floats", testing.counts_in_plain_integers),
    ("counts nothing", testing.counts_in_plain_integers),
    ("names badly", testing.counts_in_plain_integers),
    ("sends when stopped", testing.is_silent_when_stopped),
    ("repeats", testing.stops_with_data_waiting),
    ("has no authentication", testing.is_authenticated_by_default),
    ("takes anything from anyone", testing.garbage_disturbs_nobody),
    ("does not notice who is slow", testing.stalled_peer_disturbs_nobody),
]
"""What is wrong, and the check that must notice."""


@pytest.mark.parametrize(("fault", "check"), FAULTS)
async def test_the_contract_catches(fault: str, check: Check) -> None:
    def factory(network: MemoryNetwork) -> TransportFactory:
        return lambda settings, receive: Broken(settings, receive, network=network, fault=fault)

    with pytest.raises(RAISED_INSTEAD.get(fault, AssertionError)):
        await check(bed(factory))
    for task in asyncio.all_tasks():
        if task.get_name() == "leak":
            task.cancel()


def test_every_check_is_shown_to_catch_something() -> None:
    assert {check for _, check in FAULTS} == set(testing.transport_contract())
