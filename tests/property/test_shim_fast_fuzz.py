"""The short way's answer is the long way's, byte by byte, whatever is in the cache and whatever is asked."""

from __future__ import annotations

import random
from typing import Any

import dns.message
from hypothesis import given
from hypothesis import strategies as st

from cachebus.answer import Answer, Evidence
from cachebus.cache import Cache
from cachebus.presentation import name_from_text, type_from_text
from cachebus.shim import LOOPBACK
from cachebus.shim.access import AccessList
from cachebus.shim.fast import FastPath
from cachebus.shim.lookup import CacheStage, LookupOrder
from cachebus.shim.query import Channel
from cachebus.shim.service import Service
from cachebus.shim.tasks import Tasks
from cachebus.testing import ManualClock
from cachebus.wire.message import parse
from tests.unit.shim_bed import rrset, signature

NOW = 1_800_000_000.0
NAMES = ("a.test.", "b.test.", "x.b.test.", "c.d.example.", "example.", ".", "long-label-here.c.d.example.")
TYPES = ("A", "AAAA", "TXT", "MX", "CNAME", "DNAME", "SOA", "TYPE65400", "DS")
HOST = bytes((127, 0, 0, 1))


def rdata(chance: random.Random, rrtype: str) -> bytes:
    """Something of the right form."""
    target = name_from_text(chance.choice(NAMES))
    if chance.random() < 0.3:
        target = target.replace(b"test", b"tEsT").replace(b"example", b"eXample")
    match rrtype:
        case "A":
            return chance.randbytes(4)
        case "AAAA":
            return chance.randbytes(16)
        case "MX":
            return b"\0\1" + target
        case "CNAME" | "DNAME":
            return target
        case "SOA":
            return target + target + bytes(20)
        case _:
            return chance.randbytes(chance.randrange(1, 90))


def fill(cache: Cache, chance: random.Random) -> None:
    """Some RRsets, negative answers and chains, of all kinds and ages."""
    for _ in range(chance.randrange(1, 25)):
        owner, learned = chance.choice(NAMES), NOW - chance.choice((0, 0.25, 1, 29.75, 100))
        if chance.random() < 0.15:
            nothing = chance.choice((0, 1, 28, 5))
            rcode = 0 if nothing else 3
            cache.put_negative(name_from_text(owner), nothing, rcode, None, chance.randrange(200), learned, "node-a")
            continue
        rrtype = chance.choice(TYPES)
        count = 1 if rrtype in ("CNAME", "DNAME", "SOA") else chance.choice((1, 1, 2, 5, 40))
        sigs = signature(owner, rrtype) if chance.random() < 0.3 else b""
        ttl = chance.choice((1, 30, 300, 86400))
        one = rrset(owner, rrtype, ttl, *{rdata(chance, rrtype) for _ in range(count)}, sigs=sigs)
        evidence = chance.choice(list(Evidence))
        transport = chance.choice(("", "lan"))
        cache.put(Answer(one.owner, one.type, (one,), evidence, "node-b", learned, transport=transport), NOW)


def ask(chance: random.Random) -> bytes:
    """A question, mostly plain, its case random, perhaps with a byte changed."""
    name = "".join(chance.choice((letter.upper(), letter)) for letter in chance.choice(NAMES))
    options: dict[str, Any] = {}
    if chance.random() < 0.5:
        options = {"use_edns": 0, "payload": chance.choice((0, 512, 600, 1232, 4096)), "want_dnssec": False}
        if chance.random() < 0.1:
            options["want_dnssec"] = True
    wire = bytearray(dns.message.make_query(name, type_from_text(chance.choice(TYPES)), **options).to_wire())
    wire[2], wire[3] = chance.choice((0, 1)), chance.choice((0, 0x20))
    if chance.random() < 0.2:
        place = chance.randrange(len(wire))
        wire[place] = chance.choice((0, 1, 0x10, 0x20, 0x40, 0x80, 0xC0, chance.randrange(256)))
    if chance.random() < 0.05:
        wire += chance.randbytes(chance.randrange(1, 12))
    return bytes(wire)


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
