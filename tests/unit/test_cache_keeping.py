"""What the cache keeps after its end, what it denies below an NXDOMAIN, and how it forgets (RFC 2308, 8020, 8767)."""

from __future__ import annotations

import pytest

from cachebus.answer import Answer, Evidence, Refusal
from cachebus.cache import Cache
from cachebus.flushes import Flush
from cachebus.presentation import name_from_text
from cachebus.wire import rrtypes
from cachebus.wire.message import NOERROR, NXDOMAIN
from tests.core_bed import NOW, address, answer, rrset, rrsig

WWW = name_from_text("www.example.com")
ZONE = name_from_text("example.com")
SOA = rrset("com", "SOA", "ns.com. root.com. 1 2 3 4 60", ttl=60)


def denied(cache: Cache, name: str, rrtype: int = rrtypes.A, now: float = NOW) -> bool:
    found = cache.resolve(name_from_text(name), rrtype, now)
    return found is not None and found.rcode == NXDOMAIN


# An NXDOMAIN denies what is below (RFC 8020)


def test_an_nxdomain_denies_everything_below_for_its_ttl() -> None:
    cache = Cache("b")
    cache.put_negative(ZONE, 0, NXDOMAIN, SOA, 60, NOW, "b")
    for name in ("example.com", "www.example.com", "a.b.c.d.example.com"):
        assert denied(cache, name, rrtypes.TXT, NOW + 59.9)
        assert not denied(cache, name, rrtypes.TXT, NOW + 60)
    assert not denied(cache, "notexample.com")
    found = cache.resolve(WWW, rrtypes.A, NOW + 20)
    assert found is not None
    assert found.soa is not None
    assert (found.soa.owner, found.soa.ttl) == (SOA.owner, 40)


def test_live_data_at_or_above_a_name_is_not_denied() -> None:
    cache = Cache("b")
    cache.put(address(ttl=300)._replace(transport="lan"), NOW)
    cache.put_negative(ZONE, 0, NXDOMAIN, SOA, 600, NOW, "b")
    found = cache.resolve(WWW, rrtypes.A, NOW)
    assert found is not None
    assert (found.rcode, len(found.chain)) == (NOERROR, 1)
    assert not denied(cache, "www.example.com", rrtypes.AAAA), "the name is there"
    assert not denied(cache, "below.www.example.com"), "and so may be what is below it"
    assert denied(cache, "other.example.com")
    assert denied(cache, "below.www.example.com", now=NOW + 301), "until it has expired"


@pytest.mark.parametrize("rcode", [NOERROR, None])
def test_what_the_resolver_then_finds_ends_the_denials_above(rcode: int | None) -> None:
    cache = Cache("b")
    cache.put_negative(ZONE, 0, NXDOMAIN, SOA, 600, NOW, "b")
    if rcode is None:
        cache.put(address("deep.www.example.com", learned=NOW + 1), NOW + 1)
    else:
        cache.put_negative(name_from_text("deep.www.example.com"), rrtypes.A, NOERROR, SOA, 60, NOW + 1, "b")
    assert not denied(cache, "example.com", now=NOW + 1)
    assert not denied(cache, "other.example.com", now=NOW + 1)


def test_a_peers_word_ends_no_denial() -> None:
    cache = Cache("b")
    cache.put_negative(ZONE, 0, NXDOMAIN, SOA, 600, NOW, "b")
    assert cache.put(address("example.com")._replace(transport="lan"), NOW) is Refusal.LOCAL_DATA_LIVE
    cache.put(address()._replace(transport="lan"), NOW)
    assert denied(cache, "example.com")


def test_the_root_is_never_denied_and_a_tld_only_for_its_ttl() -> None:
    cache = Cache("b")
    assert cache.put_negative(b"\0", 0, NXDOMAIN, None, 600, NOW, "b") is Refusal.RCODE
    assert not denied(cache, "example.com")
    cache.keep_expired = 86400
    cache.put_negative(name_from_text("com"), 0, NXDOMAIN, None, 60, NOW, "b")
    assert denied(cache, "www.example.com", now=NOW + 59)
    assert not denied(cache, "www.example.com", now=NOW + 60)


def test_the_target_of_a_chain_is_denied_from_above_too() -> None:
    cache = Cache("b")
    cache.put(answer(rrset("alias.example.net", "CNAME", "gone.example.com.")), NOW)
    cache.put_negative(ZONE, 0, NXDOMAIN, SOA, 60, NOW, "b")
    found = cache.resolve(name_from_text("alias.example.net"), rrtypes.A, NOW)
    assert found is not None
    assert (found.rcode, [one.rrset.type for one in found.chain]) == (NXDOMAIN, [rrtypes.CNAME])


# What has expired


def keeping(seconds: float = 3600, **bounds: int) -> Cache:
    cache = Cache("b", **bounds)
    cache.keep_expired = seconds
    return cache


def test_what_has_expired_is_there_for_peek_and_for_nothing_else() -> None:
    cache = keeping()
    cache.put(address(ttl=60), NOW)
    cache.sweep(NOW + 100, shards=256)
    assert cache.get(WWW, rrtypes.A, NOW + 60) is None
    assert cache.resolve(WWW, rrtypes.A, NOW + 60) is None
    assert list(cache.answers(NOW + 60)) == []
    assert not any(part for part in cache.slices(NOW + 60, as_learned=True))
    peeked = cache.peek(WWW, rrtypes.A, NOW + 3659)
    assert peeked is not None
    assert (peeked.rrset.ttl, peeked.expires) == (0, NOW + 60)
    assert cache.peek(WWW, rrtypes.A, NOW + 3660) is None
    assert cache.statistics()["entries"] == 1
    cache.sweep(NOW + 3661, shards=256)
    assert cache.statistics()["entries"] == 0


def test_expired_data_of_any_rank_stands_in_nobodys_way() -> None:
    cache = keeping()
    cache.put(address(ttl=60, last=1, evidence=Evidence.VALIDATED), NOW)
    weak = address(last=2, learned=NOW + 61)._replace(transport="lan", origin="peer")
    assert cache.put(weak, NOW + 61) is None
    found = cache.get(WWW, rrtypes.A, NOW + 61)
    assert found is not None
    assert found.rrset.rrs[-1] == 2
    assert not found.local


def test_without_keeping_the_sweep_takes_what_has_expired() -> None:
    cache = keeping(0)
    cache.put(address(ttl=60), NOW)
    assert cache.peek(WWW, rrtypes.A, NOW + 60) is None
    cache.sweep(NOW + 61, shards=256)
    assert cache.statistics()["entries"] == 0


def test_what_has_outlived_its_signatures_is_gone() -> None:
    cache = keeping()
    sigs = rrsig("www.example.com", "A", expiration=600)
    cache.put(answer(rrset("www.example.com", "A", "192.0.2.1", ttl=60, sigs=sigs)), NOW)
    assert cache.peek(WWW, rrtypes.A, NOW + 590) is not None
    assert cache.peek(WWW, rrtypes.A, NOW + 602) is None


def test_what_has_expired_goes_first_where_there_is_little_room() -> None:
    cache = keeping(max_entries=100)
    for number in range(60):
        cache.put(address(f"n{number}.example.com", ttl=30), NOW)
    cache.put(address(ttl=3600), NOW)
    cache.sweep(NOW + 31)
    assert cache.statistics()["entries"] == 1
    assert cache.get(WWW, rrtypes.A, NOW + 31) is not None
    assert cache.statistics()["bytes"] < 400


# A raised TTL


def test_a_raised_ttl_is_for_our_own_clients_alone() -> None:
    cache = Cache("b")
    cache.put(address(ttl=10), NOW)
    assert cache.prolong(WWW, rrtypes.A, 60, NOW)
    assert cache.get(WWW, rrtypes.A, NOW + 59) is not None
    assert cache.get(WWW, rrtypes.A, NOW + 60) is None
    for as_learned in (True, False):
        assert not any(part for part in cache.slices(NOW + 1, as_learned=as_learned)), "in no copy and no refill"
    assert not cache.prolong(WWW, rrtypes.A, 30, NOW), "nothing is shortened"
    cache.put(address(ttl=20, learned=NOW + 2), NOW + 2)
    assert [each.ttl for each in cache.answers(NOW + 2)] == [20], "learned anew, it is as its zone says"


def test_only_local_data_is_raised_and_never_beyond_its_signatures() -> None:
    cache = Cache("b")
    cache.put(address(ttl=10)._replace(transport="lan"), NOW)
    assert not cache.prolong(WWW, rrtypes.A, 60, NOW)
    cache.put_negative(ZONE, rrtypes.A, NOERROR, SOA, 10, NOW, "b")
    assert not cache.prolong(ZONE, rrtypes.A, 60, NOW)
    sigs = rrsig("s.example.com", "A", expiration=30)
    cache.put(answer(rrset("s.example.com", "A", "192.0.2.1", ttl=10, sigs=sigs)), NOW)
    assert cache.prolong(name_from_text("s.example.com"), rrtypes.A, 60, NOW)
    found = cache.get(name_from_text("s.example.com"), rrtypes.A, NOW)
    assert found is not None
    assert found.expires <= NOW + 30


# Forgetting


def fill(cache: Cache) -> None:
    cache.put(address(), NOW)
    cache.put(answer(rrset("www.example.com", "TXT", '"x"')), NOW)
    cache.put(address("below.www.example.com"), NOW)
    cache.put_negative(WWW, rrtypes.AAAA, NOERROR, SOA, 60, NOW, "b")
    cache.put_negative(name_from_text("gone.example.com"), 0, NXDOMAIN, SOA, 60, NOW, "b")


@pytest.mark.parametrize(
    ("flush", "removed"),
    [
        (Flush(WWW), 3),
        (Flush(WWW, subtree=True), 4),
        (Flush(WWW, rrtype=rrtypes.TXT), 1),
        (Flush(WWW, rrtype=rrtypes.MX), 0),
        (Flush(name_from_text("gone.example.com"), rrtype=rrtypes.MX), 1),
        (Flush(name_from_text("below.gone.example.com")), 1),
        (Flush(b"\0"), 0),
        (Flush(b"\0", subtree=True), 5),
    ],
)
def test_what_a_flush_takes(flush: Flush, removed: int) -> None:
    cache = Cache("b")
    fill(cache)
    generation = cache.generation
    assert sum(cache.flushing(flush, NOW + 1)) == removed
    assert cache.generation == generation + 1
    assert cache.statistics()["entries"] == 5 - removed
    assert cache.flushed_since(flush.name, NOW + 0.5)
    assert not cache.flushed_since(flush.name, NOW + 1.5)


def test_a_flush_takes_what_has_expired_too() -> None:
    cache = keeping()
    cache.put(address(ttl=60), NOW)
    assert cache.flush(WWW, NOW + 100) == 1
    assert cache.peek(WWW, rrtypes.A, NOW + 100) is None


def test_from_the_first_step_of_a_flush_on_nothing_old_comes_in() -> None:
    cache = Cache("b", max_entries=10_000)
    steps = cache.flushing(Flush(ZONE, subtree=True), NOW + 1)
    next(steps)
    late: Answer = address(learned=NOW + 0.5)._replace(transport="lan")
    assert cache.put(late, NOW + 2) is Refusal.FLUSHED
    assert cache.put(late._replace(learned=NOW + 1.5), NOW + 2) is None
    assert sum(steps) == 1, "what was learned while it went on may go too, but nothing old stays"


def test_a_flush_by_key_lets_nothing_of_the_zone_in_that_was_learned_before() -> None:
    cache = Cache("b")
    for tag, owner in ((1, "a.example.com"), (2, "b.example.com")):
        cache.put(answer(rrset(owner, "A", "192.0.2.1", sigs=rrsig(owner, "A", key_tag=tag))), NOW)
    assert sum(cache.flushing(Flush(ZONE, subtree=True, key_tag=1), NOW + 1)) == 1
    assert cache.get(name_from_text("b.example.com"), rrtypes.A, NOW + 1) is not None
    unseen = rrset("c.example.com", "A", "192.0.2.1", sigs=rrsig("c.example.com", "A", key_tag=1))
    assert cache.put(answer(unseen)._replace(transport="lan", learned=NOW + 0.5), NOW + 2) is Refusal.FLUSHED
