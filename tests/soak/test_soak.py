"""A node that receives for long: its memory is bounded, nothing outlives its TTL, and every message is accounted for.

Simulated time runs as fast as the machine can: a run of seconds covers many times the replay window.
"""

from __future__ import annotations

import gc
import random
import sys
import time
from collections import deque
from dataclasses import dataclass, field

import pytest

from cachebus.answer import Answer, Evidence, Refusal, RRset
from cachebus.cache import Cache
from cachebus.codecs.dns import DnsCodec, DnsCodecSettings
from cachebus.filters.policy import Policy, PolicySettings
from cachebus.history import History
from cachebus.presentation import name_from_text
from cachebus.subscriber import Subscriber
from cachebus.testing import ManualClock
from cachebus.wire import rrtypes
from cachebus.wire.message import pack
from cachebus.wire.tsig import FUDGE, Key

SEED = 5390
RATE = 20
"""Messages per simulated second: 12,000 within the replay window, so that a short run sees it full and forgotten."""
SETTLED = 3 * 2 * FUDGE * RATE
"""Messages after which every memory has turned over: names, replay window, cache."""
NAMES = 30_000
MAX_ENTRIES = 2_000
"""Below what the traffic keeps alive, so that eviction never rests."""
SAMPLE = 2_000
"""Messages between two looks."""
GROWTH = 0.2
"""Objects more per message once settled: a leak of one object in five messages is seen."""

pytestmark = pytest.mark.soak


@dataclass
class Traffic:
    """Good answers, most of them for few names, and between them what a hostile or broken sender would add."""

    random: random.Random
    codec: DnsCodec
    stranger: DnsCodec
    earlier: deque[bytes] = field(default_factory=lambda: deque(maxlen=500))

    def next(self, now: float) -> bytes:
        kind = self.random.random()
        if kind < 0.85 or not self.earlier:
            (message,), _ = self.codec.encode([self.answer(now)], now)
            self.earlier.append(message)
            return message
        if kind < 0.90:
            return self.random.choice(self.earlier)
        if kind < 0.95:
            altered = bytearray(self.random.choice(self.earlier))
            altered[self.random.randrange(len(altered))] ^= 1 << self.random.randrange(8)
            return bytes(altered)
        if kind < 0.98:
            (message,), _ = self.stranger.encode([self.answer(now)], now)
            return message
        return self.random.randbytes(self.random.randrange(600))

    def answer(self, now: float) -> Answer:
        number = int(NAMES * self.random.random() ** 3)
        owner = name_from_text(f"n{number}.zone{number % 97}.example")
        ttl = self.random.randrange(30, 600)
        rrset = RRset(owner, rrtypes.A, ttl, pack(rrtypes.A, ttl, [self.random.randbytes(3) + b"\x08"]))
        # A first byte above 223 is no private address, whatever follows.
        rrset = rrset._replace(rrs=rrset.rrs[:-4] + b"\xf0" + rrset.rrs[-3:])
        return Answer(owner, rrtypes.A, (rrset,), Evidence.AUTHORITATIVE, "a", now)


def codec(name: str, secret: bytes, start: float) -> DnsCodec:
    return DnsCodec(DnsCodecSettings(transport="lan", key=Key.make(name, "hmac-sha256", secret)), start=start)


def test_a_receiving_node_stays_bounded(soak_seconds: float) -> None:
    clock = ManualClock()
    cache = Cache("b", max_entries=MAX_ENTRIES)
    traffic = Traffic(
        random.Random(SEED), codec("home", bytes(32), clock() - 1), codec("other", bytes(range(32)), clock() - 1)
    )
    subscriber = Subscriber(
        codec=codec("home", bytes(32), clock()), policy=Policy(PolicySettings()), cache=cache, sinks=(),
        history=History("b"), clock=clock,
    )  # fmt: skip
    end = time.monotonic() + soak_seconds
    sent = settled = settled_blocks = 0
    while sent < SETTLED + 4 * SAMPLE or time.monotonic() < end:
        for _ in range(SAMPLE):
            clock.advance(1 / RATE)
            subscriber.receive(traffic.next(clock()), ("192.0.2.1", 5390))
        cache.sweep(clock())
        sent += SAMPLE
        statistics = cache.statistics()
        assert statistics["entries"] <= MAX_ENTRIES
        assert subscriber.received == sent == subscriber.accepted + sum(subscriber.refused.values())
        assert_nothing_outlives_its_ttl(cache, traffic.random, clock())
        if sent >= SETTLED and not settled_blocks:
            settled, settled_blocks = sent, blocks()
    assert statistics["evicted"] > 0
    assert statistics["entries"] > MAX_ENTRIES // 2
    expected = {Refusal.DUPLICATE, Refusal.BAD_MAC, Refusal.UNKNOWN_KEY, Refusal.UNSIGNED}
    assert expected <= subscriber.refused.keys()
    assert subscriber.accepted > sent // 2
    assert blocks() - settled_blocks <= (sent - settled) * GROWTH


def assert_nothing_outlives_its_ttl(cache: Cache, chance: random.Random, now: float) -> None:
    for _ in range(50):
        number = int(NAMES * chance.random() ** 3)
        found = cache.get(name_from_text(f"n{number}.zone{number % 97}.example"), rrtypes.A, now)
        assert found is None or 0 < found.rrset.ttl <= found.learned + 600 - now


def blocks() -> int:
    """Objects that Python holds."""
    gc.collect()
    return sys.getallocatedblocks()
