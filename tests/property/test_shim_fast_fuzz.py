"""The short way's answer is the long way's, byte by byte, whatever is in the cache and whatever is asked."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from cachebus.cache import Cache
from cachebus.shim import LOOPBACK
from cachebus.shim.access import AccessList
from cachebus.shim.fast import FastPath
from cachebus.shim.lookup import CacheStage, LookupOrder
from cachebus.shim.query import Channel
from cachebus.shim.service import Service
from cachebus.shim.tasks import Tasks
from cachebus.testing import ManualClock
from cachebus.wire.message import parse
from tests.fuzz.fast import HOST, NOW, ask, fill


@given(st.integers(0, 2**48))
def test_both_ways_give_the_same(seed: int) -> None:
    chance = random.Random(seed)
    cache = Cache("node-a", max_entries=chance.choice((20, 1000)))
    clock = ManualClock(NOW)
    refreshed: list[bytes] = []
    stage = CacheStage(cache, refresh=lambda query: refreshed.append(query.qname))
    long = Service(LookupOrder([stage], clock), Tasks(), clock, allow=LOOPBACK, max_in_flight=16)
    short = FastPath(cache, AccessList(LOOPBACK).serves, refreshes=True)
    fill(cache, chance)
    for _ in range(12):
        data = ask(chance)
        for later in (0, chance.choice((0.001, 0.5, 20, 28, 290))):
            clock.now = NOW + later
            refreshed.clear()
            expected = long.handle(data, "127.0.0.1", Channel.UDP)
            hits, misses = cache.hits, cache.misses
            found = short.answer(data, HOST, clock())
            if found is None:
                assert (cache.hits, cache.misses) == (hits, misses)
                continue
            assert found == expected
            assert not refreshed
            assert (cache.hits, cache.misses) == (hits + 1, misses)
            parse(found)


def test_most_plain_questions_to_cached_names_are_taken() -> None:
    """Without this, a short way that takes nothing would pass the other test."""
    taken = asked = 0
    for seed in range(100):
        chance = random.Random(seed)
        cache = Cache("node-a")
        fill(cache, chance)
        clock = ManualClock(NOW)
        long = Service(LookupOrder([CacheStage(cache)], clock), Tasks(), clock, allow=LOOPBACK, max_in_flight=16)
        short = FastPath(cache, AccessList(LOOPBACK).serves, refreshes=False)
        for _ in range(10):
            data = ask(chance)
            before = cache.hits
            long.handle(data, "127.0.0.1", Channel.UDP)
            asked += cache.hits > before
            taken += short.answer(data, HOST, NOW) is not None
    assert taken > asked / 3
