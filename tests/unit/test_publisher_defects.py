"""publisher.py: a defect in one codec or transport, which may be anybody's, costs nothing but what it concerns."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from cachebus.answer import Answer
from cachebus.cache import Cache
from cachebus.filters.noise import Noise, NoiseSettings
from cachebus.filters.policy import Policy, PolicySettings
from cachebus.history import History
from cachebus.outlet import Collect, Outlet
from cachebus.ports import LeftOut
from cachebus.publisher import Publisher
from tests.core_bed import NOW, address
from tests.unit.shim_bed import until
from tests.unit.test_outlet import Counting, Link


class Broken(Link):
    """A transport that does what no transport may."""

    def send(self, data: bytes) -> None:
        raise OSError("broken")


class Leaving(Counting):
    """A codec with a will, that cannot encode when it is `broken`."""

    broken = False

    def encode(self, answers: Sequence[Answer], now: float) -> tuple[list[bytes], list[LeftOut]]:
        if self.broken:
            raise ValueError("broken")
        return super().encode(answers, now)

    def will(self) -> bytes:  # type: ignore[override]
        return b"will"


def publisher_of(*outlets: Outlet) -> Publisher:
    return Publisher(
        policy=Policy(PolicySettings()),
        noise=Noise(NoiseSettings(), started=NOW),
        cache=Cache("a"),
        outlets=outlets,
        history=History("a"),
        clock=lambda: NOW,
    )


def outlet(name: str, codec: Counting, link: Link, collect: Collect | None = None) -> Outlet:
    return Outlet(name, codec, link, collect)  # type: ignore[arg-type]


async def test_what_one_outlet_cannot_send_goes_to_the_others(caplog: pytest.LogCaptureFixture) -> None:
    first, last = Link(), Link()
    outlets = [outlet("x", Counting(), first), outlet("y", Counting(), Broken()), outlet("z", Counting(), last)]
    async with publisher_of(*outlets) as publishing:
        publishing.publish(address(learned=NOW))
    assert (first.sent, last.sent) == ([b"1"], [b"1"])
    assert (publishing.published, publishing.errors) == (1, 1)


async def test_what_no_outlet_could_send_is_not_counted_and_new_the_next_time(caplog: pytest.LogCaptureFixture) -> None:
    async with publisher_of(outlet("x", Counting(), Broken())) as publishing:
        assert publishing.publish(address(learned=NOW)) is None
        await until(lambda: publishing.errors == 1)
        assert publishing.published == 0
        assert publishing.publish(address(learned=NOW)) is None


async def test_leave_is_taken_though_the_rest_cannot_be_sent(caplog: pytest.LogCaptureFixture) -> None:
    link, codec = Link(), Leaving()
    async with publisher_of(outlet("x", codec, link, Collect(count=10, octets=1 << 20, interval=60.0))) as publishing:
        publishing.publish(address(learned=NOW))
        await until(lambda: publishing.published == 1)
        codec.broken = True
    assert link.sent == [b"will"]


async def test_the_end_comes_though_the_task_that_sends_has_died() -> None:
    publishing = publisher_of(outlet("x", Counting(), Link()))
    async with publishing:
        publishing.publish(address(learned=NOW))
        assert publishing._task is not None
        publishing._task.cancel()
        async with asyncio.timeout(5):
            await publishing.__aexit__(None, None, None)
    assert publishing.dropped == 1
