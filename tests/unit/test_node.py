"""What only the whole node knows: its parts joined by its own configuration."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from cachebus import config as configuration
from cachebus import node as node_module
from cachebus.answer import Evidence, Refusal
from cachebus.cache import Cache
from cachebus.node import Kept, Node, Parts
from cachebus.testing import ManualClock
from tests.core_bed import address
from tests.trust_frames import NOW, Lab, rrsig

WWW = "www.example.test."
SINK = "sinks: {seen: {type: callback, function: 'builtins:id'}}\n"


def settings(tmp_path: Path, more: str, sinks: str = "") -> configuration.Config:
    source = f"{{type: dnstap, listen: 'unix:{tmp_path}/tap.sock', {more}}}"
    text = f"node: b\ncluster: home\nsources: {{tap: {source}}}\nshare: {{allow: [test]}}\n{sinks}"
    return configuration.loads(text, directory=tmp_path)


@pytest.mark.parametrize("sinks", [SINK, ""])
def test_what_a_peer_told_and_a_sink_filled_is_not_learned_from_the_resolver(tmp_path: Path, sinks: str) -> None:
    """Only where this node can fill: a resolver that it never gives anything has learned what it says."""
    config = settings(tmp_path, "resolver_frames: none", sinks)
    clock = ManualClock(NOW)
    keep = Kept(config, clock)
    judge = Parts(config, keep, clock).intakes["tap"].judge
    told = Lab().client(WWW, "A", [f"{WWW} 300 A 192.0.2.1", rrsig(WWW, "A")], flags="QR RD RA AD")
    keep.cache.put(address(WWW, evidence=Evidence.VALIDATED, learned=NOW, transport="lan", origin="a"), NOW)
    assert [verdict.reason for verdict in judge.feed(told, NOW)] == [Refusal.FILLED_BY_US if sinks else None]
    keep.cache.flush_all(NOW)
    keep.cache.put(address(WWW, evidence=Evidence.VALIDATED, learned=NOW + 1), NOW + 1)
    assert [verdict.reason for verdict in judge.feed(told, NOW + 1)] == [None]


async def test_a_defect_in_one_round_of_housekeeping_does_not_end_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rounds = 0
    done = asyncio.Event()

    def sweep(self: Cache, now: float) -> None:
        nonlocal rounds
        rounds += 1
        if rounds == 1:
            raise ZeroDivisionError
        done.set()

    monkeypatch.setattr(node_module, "TICK", 0.001)
    monkeypatch.setattr(Cache, "sweep", sweep)
    async with Node(settings(tmp_path, "trust: [confirmed]")):
        async with asyncio.timeout(5):
            await done.wait()
    assert "housekeeping: defect, 1 times so far" in caplog.text


def test_nothing_is_published_between_two_configurations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reload closes the old parts before the new ones are open; what is published meanwhile would be lost."""
    config = settings(tmp_path, "trust: [confirmed]")
    clock = ManualClock(NOW)
    parts = Parts(config, Kept(config, clock), clock)
    judge = parts.intakes["tap"].judge
    monkeypatch.setattr(judge, "expire", lambda now: pytest.fail("asked"))
    parts.tick(NOW)
