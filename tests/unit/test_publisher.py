"""publisher.py: how it ends; the way of an answer is in test_paths."""

from __future__ import annotations

import asyncio
import time

import pytest

from cachebus import publisher
from cachebus.cache import Cache
from cachebus.filters.noise import Noise, NoiseSettings
from cachebus.filters.policy import Policy, PolicySettings
from cachebus.history import History
from cachebus.outlet import Outlet
from cachebus.publisher import Publisher
from tests.core_bed import NOW
from tests.unit.test_outlet import Counting, Link


class Slow(Link):
    """A transport that takes some time to flush; or never ends it; or breaks."""

    def __init__(self, seconds: float, error: Exception | None = None) -> None:
        super().__init__()
        self._seconds, self._error = seconds, error
        self.flushed = False

    async def flush(self) -> None:
        await asyncio.sleep(self._seconds)
        if self._error is not None:
            raise self._error
        self.flushed = True


def publisher_of(*links: Link) -> Publisher:
    return Publisher(
        policy=Policy(PolicySettings()),
        noise=Noise(NoiseSettings(), started=NOW),
        cache=Cache("a"),
        outlets=[Outlet(str(number), Counting(), link) for number, link in enumerate(links)],  # type: ignore[arg-type]
        history=History("a"),
        clock=lambda: NOW,
    )


async def test_transports_are_flushed_together_and_none_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "FLUSH_TIMEOUT", 0.3)
    links = [Slow(0.2), Slow(3600), Slow(0.2)]
    started = time.monotonic()
    async with publisher_of(*links):
        pass
    assert time.monotonic() - started < 0.39
    assert [link.flushed for link in links] == [True, False, True]


async def test_a_transport_that_cannot_be_flushed_costs_the_others_nothing(caplog: pytest.LogCaptureFixture) -> None:
    links = [Slow(0, OSError("broken")), Slow(0.01)]
    publishing = publisher_of(*links)
    async with publishing:
        pass
    assert links[1].flushed
    assert publishing.statistics()["errors"] == 1
