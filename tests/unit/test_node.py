"""What only the whole node knows: its parts joined by its own configuration."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from pathlib import Path

import pytest

from cachebus import config as configuration
from cachebus import node as node_module
from cachebus.answer import Evidence, Refusal
from cachebus.cache import Cache
from cachebus.codecs.dns import DnsCodec, DnsCodecSettings
from cachebus.node import Kept, Node, Parts
from cachebus.testing import ManualClock
from tests.core_bed import SECRET, address, key
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
    keep.cache.flush(b"\0", NOW, subtree=True)
    keep.cache.put(address(WWW, evidence=Evidence.VALIDATED, learned=NOW + 1), NOW + 1)
    assert [verdict.reason for verdict in judge.feed(told, NOW + 1)] == [None]


async def test_a_defect_in_one_round_of_housekeeping_does_not_end_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rounds = 0
    done = asyncio.Event()

    def sweep(self: Cache, now: float, *, shards: int) -> None:
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


def waiting(parts: Parts) -> int:
    return int(parts.intakes["tap"].judge.statistics()["pending"])


async def test_a_reload_keeps_the_evidence_that_waits_and_what_was_sent(tmp_path: Path) -> None:
    clock = ManualClock(NOW)
    config = settings(tmp_path, "trust: [confirmed]")
    keep = Kept(config, clock)
    lab = Lab()
    frames = lab.exchange(WWW, "A", [f"{WWW} 300 A 192.0.2.1"])
    async with Parts(config, keep, clock) as before:
        judge = before.intakes["tap"].judge
        for frame in frames:
            judge.feed(frame, NOW)
        assert waiting(before) == 1
    stricter = settings(tmp_path, "trust: [validated]")
    assert waiting(Parts(stricter, keep, clock)) == 0
    async with Parts(config, keep, clock) as after:
        assert after.intakes["tap"].judge is judge
        told = lab.client(WWW, "A", [f"{WWW} 300 A 192.0.2.1"])
        assert [verdict.answer is not None for verdict in judge.feed(told, NOW + 1)] == [True]
        assert keep.noise is after.noise


async def test_what_refills_a_resolver_counts_as_filled(tmp_path: Path) -> None:
    """This node's own data too: from then on the resolver may have it from us."""
    clock = ManualClock(NOW)
    keep = Kept(settings(tmp_path, "trust: [confirmed]"), clock)
    mine, later = address(WWW, learned=NOW), address("later.example.test", learned=NOW + 2)
    keep.cache.put(mine, NOW)
    assert not keep.filled(mine.qname, 1, NOW)
    assert [each.qname for part in keep.refill(NOW + 1) for each in part] == [mine.qname]
    keep.cache.put(later, NOW + 2)
    assert keep.filled(mine.qname, 1, NOW + 2)
    assert not keep.filled(later.qname, 1, NOW + 2)


async def test_a_peers_clock_far_from_ours_is_logged_once_until_it_is_right_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = (
        "node: b\ncluster: home\nkeys: {cluster-2026: {algorithm: hmac-sha256, secret: "
        f"{b64encode(SECRET).decode()}}}}}\n"
        "transports: {lan: {type: udp, listen: '127.0.0.1:0', key: cluster-2026}}\n"
    )
    config = configuration.loads(text, directory=tmp_path)
    clock = ManualClock(NOW - 100)
    parts = Parts(config, Kept(config, clock), clock)
    peer = DnsCodec(DnsCodecSettings(transport="lan", key=key()), start=None)
    far: frozenset[tuple[str, str]] = frozenset()
    for at, behind, count in ((1, 7, 1), (2, 7, 1), (300, 0, 1), (600, 9, 2)):
        (message,), _ = peer.encode([address(learned=NOW + at - behind)], NOW + at - behind)
        parts.codecs["lan"].decode_all([(message, ("192.0.2.11", 5390))], NOW + at)
        far = parts.look_at_clocks(NOW + at, float(at), far)
        assert caplog.text.count("the clock of 192.0.2.11 differs") == count
