"""The short way's answer is the long way's, byte by byte, whatever is in the cache and whatever is asked."""

from __future__ import annotations

import asyncio
import random
from ipaddress import ip_network
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given
from hypothesis import strategies as st

from cachebus.cache import Cache
from cachebus.presentation import name_from_text
from cachebus.shim import LOOPBACK, Shim, UpstreamSettings
from cachebus.shim.access import AccessList, packed_address
from cachebus.shim.caching import CachingSettings, StaleSettings
from cachebus.shim.fast import FastPath
from cachebus.shim.front import FrontSettings
from cachebus.shim.local_settings import BlockList, LocalSettings
from cachebus.shim.lookup import CacheStage, LookupOrder
from cachebus.shim.query import Channel
from cachebus.shim.service import Service
from cachebus.shim.swild_owners import SwildSettings
from cachebus.shim.tasks import Tasks
from cachebus.testing import ManualClock
from cachebus.wire.message import parse
from tests.fuzz.fast import HOST, NAMES, NOW, ask, fill
from tests.unit.shim_bed import bus_answer, rrset, settings


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


OF_THE_SHIM = (
    "a.local.test.",
    "x.wild.local.test.",
    "ads.example.",
    "y.localhost.",
    "_dns.resolver.arpa.",
    "n.foo.test.",
)
"""Names that stages before or behind the cache have a say in."""
DENIED = "127.9.9.9"


class WholeShim:
    """The short way and the long one as `Shim` puts them together, with all that is on beside the cache; no socket."""

    def __init__(self, chance: random.Random, folder: Path) -> None:
        (folder / "list").write_text("ads.example\nexample\n@@||c.d.example^\n")
        lines = ("a.local.test. A 192.0.2.1", "*.wild.local.test. A 192.0.2.2", "b.test. CNAME a.test.")
        told = settings(
            UpstreamSettings(address=("127.0.0.1", 1), validating=True),
            local=LocalSettings(
                records=lines[: chance.randrange(4)],
                lists=[BlockList(name="ads", path=folder / "list")][: chance.randrange(2)],
                special_names=chance.random() < 0.7,
            ),
            front=FrontSettings(deny=(ip_network(f"{DENIED}/32"),)),
            swild=SwildSettings(zones=frozenset({b"\0"})),
            caching=CachingSettings(stale=StaleSettings()),
        )
        self.cache = Cache("node-a", max_entries=chance.choice((20, 1000)))
        self.clock = ManualClock(NOW)
        self.shim = shim = Shim(told, self.cache, lambda answer: None, self.clock)
        self.refreshed: list[bytes] = []
        shim._forwarder.refresh = lambda query: self.refreshed.append(query.qname)  # type: ignore[method-assign]
        asyncio.run(shim.prepare())
        assert shim._swilds is not None
        self.cache.observer = shim._swilds.observe
        self.cache.keep_expired = 86400.0
        names = (*NAMES, *OF_THE_SHIM)
        for _ in range(10):
            fill(self.cache, chance, names)
        target = name_from_text("_.foo.test.")
        for owner, rrtype in (("foo.test.", "TYPE65392"), ("z.foo.test.", "CNAME")):
            self.cache.put(bus_answer(rrset(owner, rrtype, 300, target), learned=NOW - 1), NOW)
        for owner in chance.sample(names, 2):
            self.cache.prolong(name_from_text(owner), 1, 600, NOW)
        if chance.random() < 0.3:
            self.cache.flush(name_from_text(chance.choice(names)), NOW, subtree=chance.random() < 0.5)

    def long(self, data: bytes, client: str) -> bytes | None:
        answered = self.shim._service.handle(data, client, Channel.UDP)
        if answered is None or isinstance(answered, bytes):
            return answered
        answered.close()
        return None


@given(st.integers(0, 2**48))
def test_both_ways_give_the_same_with_all_that_a_shim_has(seed: int) -> None:
    chance = random.Random(seed)
    with TemporaryDirectory() as folder:
        whole = WholeShim(chance, Path(folder))
    short = whole.shim._fast
    assert short is not None
    for _ in range(20):
        data = ask(chance, (*NAMES, *OF_THE_SHIM))
        whole.clock.now = NOW + chance.choice((0, 0.5, 20, 28, 290))
        whole.refreshed.clear()
        expected = whole.long(data, "127.0.0.1")
        found = short.answer(data, HOST, whole.clock())
        if found is not None:
            assert found == expected
            assert not whole.refreshed
        assert short.answer(data, packed_address(DENIED), whole.clock()) is None


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


def test_a_shim_with_all_of_it_takes_them_too() -> None:
    taken = 0
    for seed in range(40):
        chance = random.Random(seed)
        with TemporaryDirectory() as folder:
            whole = WholeShim(chance, Path(folder))
        for _ in range(20):
            data = ask(chance, (*NAMES, *OF_THE_SHIM))
            whole.long(data, "127.0.0.1")
            assert whole.shim._fast is not None
            taken += whole.shim._fast.answer(data, HOST, NOW) is not None
    assert taken > 25
