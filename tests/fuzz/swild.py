"""Target: a SWILD beside an upstream's answer (`filters.swild`, `shim.swild`), and what is made up from it."""

from __future__ import annotations

from random import Random
from typing import Any

import dns.exception
import dns.name

from cachebus.answer import RRset
from cachebus.cache import Cache
from cachebus.errors import MessageError
from cachebus.filters.swild import swild_target
from cachebus.shim import UpstreamSettings
from cachebus.shim.exchange import Exchange
from cachebus.shim.learn import Learner
from cachebus.shim.lookup import CacheStage, Found
from cachebus.shim.query import Query, Response
from cachebus.shim.reply import MAX_STREAM_PAYLOAD, compose_reply
from cachebus.shim.swild import SwildStage
from cachebus.shim.swild_owners import Swilds, SwildSettings
from cachebus.shim.upstream import Quality, Reply, Upstream
from cachebus.testing import ManualClock
from cachebus.wire.message import AD, Composer, pack, parse, question_section
from cachebus.wire.name import is_at_or_below, label_count
from tests.fuzz.grammar import AA, CNAME, NAMES, QR, RD, SWILD, A, pick_name, pick_type
from tests.fuzz.harness import Part, Target
from tests.fuzz.messages import BytesTarget
from tests.fuzz.mutate import below

NOW = 1_800_000_000.0


class Nobody:
    """No upstream that could be asked on."""

    def answer(self, query: Query, now: float) -> Found:
        return None


class SwildTarget(BytesTarget):
    """Any RDATA: a target below its owner or a reason; answers made from it are for names below the owner only."""

    name = "swild"
    parts = (Part("cachebus/filters/swild.py"), Part("cachebus/shim/swild.py", without=("SwildStage._wait",)))
    cost = 3
    block = 20

    def begin(self, rng: Random) -> None:
        self._cache = Cache("n1", max_entries=1000)
        self._swilds = Swilds(self._cache, SwildSettings(zones=frozenset({b"\0"})), lambda name: None)
        self._cache.observer = self._swilds.observe
        self._learner = Learner(
            "n1", self._cache, lambda answer: None, infrastructure=False, max_ttl=86400, swilds=self._swilds
        )
        self._stage = SwildStage(
            self._swilds,
            self._cache,
            held=[CacheStage(self._cache)],
            rest=Nobody(),
            clock=ManualClock(NOW),
            validating=False,
        )
        trust: dict[str, Any] = ({}, {"authoritative": True}, {"validating": True})[below(rng, 3)]
        self._upstream = Upstream(UpstreamSettings(address=("127.0.0.1", 53), **trust))

    def valid(self, rng: Random) -> bytes:
        owner = NAMES[below(rng, len(NAMES))]
        label = b"\1_" if rng.random() < 0.7 else b"\4mail\1x"
        return label + owner

    def check(self, example: bytes, rng: Random) -> bool:
        if len(example) > 1000:
            return False
        owner = pick_name(rng).lower()
        rrset = RRset(owner, SWILD, 300, pack(SWILD, 300, (example,)))
        target = swild_target(rrset)
        if isinstance(target, bytes):
            assert dns.name.from_wire(example, 0)[1] == len(example)
            assert label_count(owner) >= 2
            assert target != owner
            assert is_at_or_below(target, owner)
        else:
            _check_refused(example, owner)
        alias = b"\1x" + owner if len(owner) < 250 else owner
        self._learn(alias, example, rrset, rng)
        for name in (
            b"\3yyy" + owner[:251],
            b"\1y" + alias if len(alias) < 253 else alias,
            pick_name(rng).lower(),
            example,
        ):
            self._ask(name, owner, rng)
        return isinstance(target, bytes)

    def _learn(self, alias: bytes, rdata: bytes, swild: RRset, rng: Random) -> None:
        composer = Composer(question_section(alias, A), alias)
        count = composer.add(RRset(alias, CNAME, 300, pack(CNAME, 300, (rdata,))), 300, sigs=False)
        count += composer.add(RRset(rdata.lower(), A, 300, pack(A, 300, (bytes(4),))), 300, sigs=False)
        count += composer.add(swild, 300, sigs=False)
        wire = composer.finish(1, QR | AA, (1, count, 0, 0))
        try:
            message = parse(wire)
        except MessageError:
            return  # no CNAME has such RDATA
        reply = Reply(self._upstream, Exchange(wire, wire), message, Quality.GOOD)
        self._learner.learn(alias, A, reply, NOW)

    def _ask(self, name: bytes, owner: bytes, rng: Random) -> None:
        try:
            if dns.name.from_wire(name, 0)[1] != len(name):
                return
        except (dns.exception.DNSException, IndexError):
            return
        rrtype = A if rng.random() < 0.7 else pick_type(rng)
        name = name.lower()
        query = Query(b"\0\1", RD, question_section(name, rrtype), name, rrtype, None)
        response = self._stage.answer(query, NOW)
        if not isinstance(response, Response):
            return
        message = parse(compose_reply(query, response, MAX_STREAM_PAYLOAD))
        assert not message.flags & (AD | AA)
        if message.answer:
            closest = self._swilds.closest(name)
            assert closest is not None
            assert message.answer[0].owner == name
            assert not is_at_or_below(name, closest.branch)


def _check_refused(rdata: bytes, owner: bytes) -> None:
    """Whatever is refused is no name, or one that dnspython finds not to be below an owner of two labels."""
    try:
        name, length = dns.name.from_wire(rdata, 0)
    except (dns.exception.DNSException, IndexError):
        return
    above = dns.name.from_wire(owner, 0)[0]
    assert length != len(rdata) or len(above) < 3 or name == above or not name.is_subdomain(above)


TARGETS: tuple[type[Target[Any]], ...] = (SwildTarget,)
