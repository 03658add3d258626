"""Target: the short way of plain questions (`shim.fast`): whatever it answers, the long way answers alike."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import dns.message

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
from tests.fuzz.harness import Part
from tests.fuzz.messages import BytesTarget
from tests.fuzz.mutate import below
from tests.unit.shim_bed import rrset, signature

NOW = 1_800_000_000.0
NAMES = ("a.test.", "b.test.", "x.b.test.", "c.d.example.", "example.", ".", "long-label-here.c.d.example.")
TYPES = ("A", "AAAA", "TXT", "MX", "CNAME", "DNAME", "SOA", "TYPE65400", "DS")
HOST = bytes((127, 0, 0, 1))


def rdata(chance: Random, rrtype: str) -> bytes:
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


def fill(cache: Cache, chance: Random, names: Sequence[str] = NAMES) -> None:
    """Some RRsets, negative answers and chains, of all kinds and ages."""
    for _ in range(chance.randrange(1, 25)):
        owner, learned = chance.choice(names), NOW - chance.choice((0, 0.25, 1, 29.75, 100))
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


def ask(chance: Random, names: Sequence[str] = NAMES) -> bytes:
    """A question, mostly plain, its case random, perhaps with a byte changed."""
    name = "".join(chance.choice((letter.upper(), letter)) for letter in chance.choice(names))
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


class FastTarget(BytesTarget):
    """`FastPath.answer`: bytes as `Service.handle` gives them, or None."""

    name = "fast"
    parts = (Part("cachebus/shim/fast.py"),)
    cost = 3
    block = 20

    def begin(self, rng: Random) -> None:
        self._cache = Cache("node-a", max_entries=(20, 1000)[below(rng, 2)])
        for _ in range(3):
            fill(self._cache, rng)
        self._clock = ManualClock(NOW)
        order = LookupOrder([CacheStage(self._cache, refresh=self._refreshed)], self._clock)
        self._long = Service(order, Tasks(), self._clock, allow=LOOPBACK, max_in_flight=16)
        claims = None if below(rng, 4) else name_from_text("a.test.").__eq__
        self._short = FastPath(self._cache, AccessList(LOOPBACK).serves, refreshes=True, claims=claims)

    def _refreshed(self, query: object) -> None:
        self._due = True

    def valid(self, rng: Random) -> bytes:
        return ask(rng)

    def check(self, example: bytes, rng: Random) -> bool:
        self._clock.now = NOW + (0, 0.5, 20, 28, 290)[below(rng, 5)]
        self._due = False
        expected = self._long.handle(example, "127.0.0.1", Channel.UDP)
        found = self._short.answer(example, HOST, self._clock())
        assert self._short.answer(example, bytes((192, 0, 2, 1)), self._clock()) is None, "a stranger is served"
        if found is None:
            return False
        assert found == expected
        assert not self._due, "it was due to be fetched again"
        parse(found)
        return True


TARGETS = (FastTarget,)
