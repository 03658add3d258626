"""What stays, what replaces what, and how long it lives (trust rules 6.7, 6.8)."""

from __future__ import annotations

import gc
import tracemalloc

import pytest
from hypothesis import given as examples
from hypothesis import settings
from hypothesis import strategies as st

from cachebus.answer import Answer, Evidence, Refusal, RRset
from cachebus.cache import SLICE, Cache
from cachebus.entry import Rank
from cachebus.flushes import Flush
from cachebus.holdings import Holdings
from cachebus.presentation import name_from_text
from cachebus.wire import rrtypes
from cachebus.wire.message import NOERROR, NXDOMAIN, cname_target
from tests.core_bed import NOW, address, answer, rrset, rrsig

WWW = name_from_text("www.example.com")
LEVELS = list(Evidence)


def bus(given: Answer, evidence: Evidence = Evidence.AUTHORITATIVE, learned: float = NOW) -> Answer:
    return given._replace(transport="lan", signer="cluster-2026", evidence=evidence, learned=learned, origin="peer")


def local(given: Answer, evidence: Evidence = Evidence.AUTHORITATIVE, learned: float = NOW) -> Answer:
    return given._replace(evidence=evidence, learned=learned)


def last_byte(cache: Cache, now: float = NOW) -> int:
    cached = cache.get(WWW, rrtypes.A, now)
    assert cached is not None
    return cached.rrset.rrs[-1]


def test_provenance_is_kept() -> None:
    cache = Cache("b")
    assert cache.put(bus(address(), Evidence.VALIDATED, NOW - 5)._replace(validating=True), NOW) is None
    cached = cache.get(WWW, rrtypes.A, NOW + 1)
    assert cached is not None
    assert (cached.origin, cached.transport, cached.signer) == ("peer", "lan", "cluster-2026")
    assert (cached.evidence, cached.rank) == (Evidence.VALIDATED, Rank.BUS_VALIDATED)
    assert (cached.learned, cached.received) == (NOW - 5, NOW)
    assert (cached.local, cached.negative, cached.validating) == (False, False, True)
    assert cached.rrset.owner == WWW
    assert cached.rrset.rrs == address().rrsets[0].rrs


def test_ttl_counts_down_and_ends() -> None:
    cache = Cache("b")
    cache.put(address(ttl=300), NOW)
    assert cache.get(WWW, rrtypes.A, NOW + 100).rrset.ttl == 200  # type: ignore[union-attr]
    assert cache.get(WWW, rrtypes.A, NOW + 299.9) is not None
    assert cache.get(WWW, rrtypes.A, NOW + 300) is None
    assert cache.put(address(ttl=300), NOW + 300) is Refusal.EXPIRED


def test_bus_ttls_are_shortened_by_up_to_a_tenth_differently_on_each_node() -> None:
    lives = set()
    for node in range(50):
        cache = Cache(f"node-{node}")
        cache.put(bus(address(ttl=1000)), NOW)
        cached = cache.get(WWW, rrtypes.A, NOW)
        assert cached is not None
        life = cached.expires - NOW
        assert 900 <= life <= 1000
        assert cache.shortened(WWW, 1000) == pytest.approx(life, abs=1)
        lives.add(life)
    assert len(lives) > 20


RANKS = [
    ("bus authoritative", bus(address(last=1), Evidence.AUTHORITATIVE), 1),
    ("bus confirmed", bus(address(last=2), Evidence.CONFIRMED), 2),
    ("local authoritative", local(address(last=3), Evidence.AUTHORITATIVE), 3),
    ("local confirmed", local(address(last=4), Evidence.CONFIRMED), 3),
    ("bus validated", bus(address(last=5), Evidence.VALIDATED), 4),
    ("local validated", local(address(last=6), Evidence.VALIDATED), 5),
]


@pytest.mark.parametrize("first", RANKS, ids=lambda row: row[0])
@pytest.mark.parametrize("second", RANKS, ids=lambda row: row[0])
def test_every_pair_of_ranks(first: tuple[str, Answer, int], second: tuple[str, Answer, int]) -> None:
    cache = Cache("b")
    assert cache.put(first[1], NOW) is None
    later = second[1]._replace(learned=NOW + 1)
    refusal = cache.put(later, NOW + 1)
    if second[2] >= first[2]:
        assert refusal is None
        assert last_byte(cache, NOW + 1) == second[1].rrsets[0].rrs[-1]
    else:
        assert refusal is (Refusal.LOCAL_DATA_LIVE if "local" in first[0] else Refusal.BETTER_KNOWN)
        assert last_byte(cache, NOW + 1) == first[1].rrsets[0].rrs[-1]


def test_equal_bus_rank_the_later_learned_wins_not_the_later_arrived() -> None:
    cache = Cache("b")
    cache.put(bus(address(last=2), learned=NOW + 10), NOW + 10)
    assert cache.put(bus(address(last=1), learned=NOW), NOW + 11) is Refusal.BETTER_KNOWN
    assert last_byte(cache, NOW + 11) == 2


def test_the_same_data_with_a_later_expiry_renews_local_data_and_keeps_its_rank() -> None:
    cache = Cache("b")
    cache.put(local(address(ttl=300), Evidence.VALIDATED), NOW)
    before = cache.get(WWW, rrtypes.A, NOW)
    assert cache.put(bus(address(ttl=300), learned=NOW + 200), NOW + 200) is None
    after = cache.get(WWW, rrtypes.A, NOW + 301)
    assert before is not None
    assert after is not None
    assert after.expires > before.expires
    assert (after.rank, after.local) == (Rank.LOCAL_VALIDATED, True)
    assert cache.statistics()["renewed"] == 1


def test_a_weaker_peer_does_not_renew_a_stronger_ones_data() -> None:
    cache = Cache("b")
    cache.put(bus(address(ttl=300), Evidence.VALIDATED), NOW)
    assert cache.put(bus(address(ttl=86400), learned=NOW + 1), NOW + 1) is Refusal.BETTER_KNOWN
    assert cache.get(WWW, rrtypes.A, NOW + 301) is None


def test_a_renewal_never_outlives_the_signatures_that_are_kept() -> None:
    cache = Cache("b")
    signed = rrset("www.example.com", "A", "192.0.2.1", ttl=100, sigs=rrsig("www.example.com", "A", expiration=150))
    cache.put(local(answer(signed), Evidence.VALIDATED), NOW)
    cache.put(bus(address(ttl=3600), learned=NOW + 50), NOW + 50)
    cached = cache.get(WWW, rrtypes.A, NOW + 50)
    assert cached is not None
    assert cached.expires <= NOW + 150


def test_records_in_another_order_are_the_same_data() -> None:
    cache = Cache("b")
    cache.put(local(answer(rrset("www.example.com", "A", "192.0.2.1", "192.0.2.2"))), NOW)
    turned = answer(rrset("www.example.com", "A", "192.0.2.2", "192.0.2.1"))
    assert cache.put(bus(turned, learned=NOW + 100), NOW + 100) is None


@pytest.mark.parametrize("evidence", LEVELS)
@pytest.mark.parametrize(("qtype", "rcode"), [(rrtypes.A, NOERROR), (0, NXDOMAIN)])
def test_a_live_local_negative_answer_survives_every_fill(evidence: Evidence, qtype: int, rcode: int) -> None:
    cache = Cache("b")
    assert cache.put_negative(WWW, qtype, rcode, None, 60, NOW, "b") is None
    assert cache.put(bus(address(), evidence), NOW) is Refusal.LOCAL_DATA_LIVE
    found = cache.resolve(WWW, rrtypes.A, NOW + 59)
    assert found is not None
    assert (found.rcode, found.complete, found.chain) == (rcode, True, ())
    assert cache.put(bus(address(), evidence), NOW + 61) is None


def test_local_data_replaces_a_local_negative_answer() -> None:
    cache = Cache("b")
    cache.put_negative(WWW, rrtypes.A, NOERROR, None, 60, NOW, "b")
    assert cache.put(local(address(), learned=NOW + 1), NOW + 1) is None
    assert last_byte(cache, NOW + 1) == 1


def test_a_negative_answer_keeps_its_soa() -> None:
    cache = Cache("b")
    soa = rrset("example.com", "SOA", "ns.example.com. root.example.com. 1 2 3 4 5", ttl=60)
    cache.put_negative(WWW, 0, NXDOMAIN, soa, 60, NOW, "b")
    found = cache.resolve(WWW, rrtypes.TXT, NOW + 10)
    assert found is not None
    assert found.rcode == NXDOMAIN
    assert found.soa is not None
    assert (found.soa.owner, found.soa.ttl, found.soa.rrs) == (soa.owner, 50, soa.rrs)


def test_a_better_bus_answer_is_not_displaced_by_a_local_negative() -> None:
    cache = Cache("b")
    cache.put(bus(address(), Evidence.VALIDATED), NOW)
    assert cache.put_negative(WWW, rrtypes.A, NOERROR, None, 60, NOW, "b") is Refusal.BETTER_KNOWN
    assert last_byte(cache) == 1


def test_a_cname_chain_across_origins() -> None:
    cache = Cache("b")
    cache.put(bus(answer(rrset("alias.example.com", "CNAME", "www.example.com."))), NOW)
    found = cache.resolve(name_from_text("alias.example.com"), rrtypes.A, NOW)
    assert found is not None
    assert (found.complete, found.target) == (False, WWW)
    cache.put(local(address()), NOW)
    found = cache.resolve(name_from_text("alias.example.com"), rrtypes.A, NOW)
    assert found is not None
    assert found.complete
    assert [each.rrset.type for each in found.chain] == [rrtypes.CNAME, rrtypes.A]


def test_a_dname_serves_every_name_below_it() -> None:
    cache = Cache("b")
    cache.put(bus(answer(rrset("old.example.com", "DNAME", "example.com."))), NOW)
    cache.put(local(address()), NOW)
    found = cache.resolve(name_from_text("www.old.example.com"), rrtypes.A, NOW)
    assert found is not None
    assert found.complete
    assert [each.rrset.type for each in found.chain] == [rrtypes.DNAME, rrtypes.CNAME, rrtypes.A]
    assert cname_target(found.chain[1].rrset) == WWW
    assert cache.resolve(name_from_text("old.example.com"), rrtypes.A, NOW) is None


def test_a_loop_in_the_cache_ends() -> None:
    cache = Cache("b")
    for one, other in (("a.example.com", "b.example.com."), ("b.example.com", "a.example.com.")):
        cache.put(bus(answer(rrset(one, "CNAME", other))), NOW)
    found = cache.resolve(name_from_text("a.example.com"), rrtypes.A, NOW)
    assert found is not None
    assert not found.complete
    assert len(found.chain) <= 12


def test_flush_keeps_late_fills_out() -> None:
    cache = Cache("b")
    cache.put(bus(address()), NOW)
    generation = cache.generation
    assert cache.flush(WWW, NOW + 1) == 1
    assert cache.generation > generation
    assert cache.put(bus(address(), learned=NOW + 0.5), NOW + 2) is Refusal.FLUSHED
    assert cache.put(bus(address(), learned=NOW + 1.5), NOW + 2) is None


def test_flush_of_a_subtree() -> None:
    cache = Cache("b")
    for owner in ("example.com", "www.example.com", "badexample.com", "example.net"):
        cache.put(bus(address(owner)), NOW)
    assert cache.flush(name_from_text("example.com"), NOW + 1, subtree=True) == 2
    assert cache.put(bus(address("new.example.com")), NOW + 2) is Refusal.FLUSHED
    assert cache.put(bus(address("badexample.com")), NOW + 2) is not Refusal.FLUSHED
    assert cache.flush(b"\0", NOW + 3, subtree=True) == 2
    assert cache.put(bus(address("example.net"), learned=NOW + 2), NOW + 4) is Refusal.FLUSHED
    assert cache.statistics()["entries"] == 0


def test_flush_by_key_tag() -> None:
    cache = Cache("b")
    for tag, owner in ((1, "a.example.com"), (2, "b.example.com")):
        signed = rrset(owner, "A", "192.0.2.1", sigs=rrsig(owner, "A", key_tag=tag))
        cache.put(bus(answer(signed), Evidence.VALIDATED), NOW)
    cache.put(bus(address("c.example.com")), NOW)
    assert sum(cache.flushing(Flush(name_from_text("example.com"), subtree=True, key_tag=1), NOW + 1)) == 1
    assert cache.get(name_from_text("a.example.com"), rrtypes.A, NOW + 1) is None
    assert cache.get(name_from_text("b.example.com"), rrtypes.A, NOW + 1) is not None


def test_a_flush_that_is_forgotten_lets_nothing_older_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cachebus.flushes.MAX_FLUSHES", 2)
    cache = Cache("b")
    cache.flush(name_from_text("a.example.com"), NOW)
    for number in range(2):  # the first is out of the memory by now, but not what a copy may bring
        cache.flush(name_from_text(f"n{number}.example.com"), NOW + 700 + number)
    old = address("a.example.com", learned=NOW - 1, ttl=3600, transport="snapshot")
    assert cache.put(old, NOW + 702) is Refusal.FLUSHED
    assert cache.put(old._replace(learned=NOW + 300), NOW + 702) is None


def test_many_flushes_stay_bounded_and_safe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cachebus.flushes.MAX_FLUSHES", 10)
    cache = Cache("b")
    for number in range(25):
        cache.flush(name_from_text(f"n{number}.example.com"), NOW + number / 10)
    assert cache.put(bus(address("n3.example.com")), NOW + 5) is Refusal.FLUSHED


@pytest.mark.parametrize("entries", [100, 8192])
def test_entries_are_bounded_and_what_is_used_stays(entries: int) -> None:
    cache = Cache("b", max_entries=entries)
    cache.put(bus(address("hot.example.com")), NOW)
    hot = name_from_text("hot.example.com")
    given = bus(address())
    for number in range(entries * 3):
        owner = name_from_text(f"n{number}.example.com")
        cache.put(given._replace(rrsets=(given.rrsets[0]._replace(owner=owner),)), NOW)
        if number % 20 == 0:
            assert cache.get(hot, rrtypes.A, NOW) is not None
    statistics = cache.statistics()
    assert statistics["entries"] <= entries
    assert statistics["evicted"] > 0


def test_bytes_are_bounded() -> None:
    cache = Cache("b", max_entries=1_000_000, max_bytes=1 << 20)
    for number in range(5000):
        cache.put(bus(answer(rrset(f"n{number}.example.com", "TXT", f'"{"x" * 200}"'))), NOW)
        assert number % 500 or cache.statistics()["bytes"] <= 1 << 20
    assert cache.statistics()["bytes"] <= 1 << 20


def test_the_account_of_bytes_is_true_after_everything() -> None:
    cache = Cache("b", max_entries=500)
    for round_ in range(4):
        for number in range(400):
            cache.put(
                bus(address(f"n{number}.example.com", ttl=30 + number), learned=NOW + round_ * 40), NOW + round_ * 40
            )
        cache.flush(name_from_text("n7.example.com"), NOW + round_ * 40 + 1)
        cache.sweep(NOW + round_ * 40 + 20, shards=256)
    cache.flush(b"\0", NOW + 1000, subtree=True)
    assert cache.statistics()["bytes"] == 0


def test_sweeping_lets_go_of_what_expired() -> None:
    cache = Cache("b")
    for number in range(1000):
        cache.put(bus(address(f"n{number}.example.com", ttl=60 if number % 2 else 600)), NOW)
    for second in range(64):
        cache.sweep(NOW + 61 + second)
    assert cache.statistics()["entries"] == 500
    assert cache.statistics()["expired"] == 500


def test_a_million_entries_would_fit_into_300_bytes_each() -> None:
    count = 20_000
    given = bus(address())
    owners = [name_from_text(f"host{number}.example-{number % 97}.com") for number in range(count)]
    answers = [given._replace(rrsets=(given.rrsets[0]._replace(owner=owner),)) for owner in owners]
    gc.collect()
    tracemalloc.start()
    cache = Cache("b")
    for given in answers:
        cache.put(given, NOW)
    used = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert cache.statistics()["entries"] == count
    assert used / count < 300


def test_answers_for_a_refill_are_what_lives_local_data_among_it() -> None:
    cache = Cache("b")
    cache.put(bus(address("a.example.com", ttl=300)), NOW)
    cache.put(local(address("b.example.com")), NOW)
    cache.put_negative(name_from_text("c.example.com"), 0, NXDOMAIN, None, 60, NOW, "b")
    cache.put(bus(address("d.example.com", ttl=10)), NOW)
    given = {each.name: each for each in cache.answers(NOW + 50)}
    assert given.keys() == {"a.example.com.", "b.example.com."}
    assert {each.learned for each in given.values()} == {NOW + 50}
    assert given["a.example.com."].ttl <= 250
    assert [given[name].transport for name in given] == ["lan" if name[0] == "a" else "" for name in given]


def test_a_name_that_exists_no_more_is_not_given() -> None:
    cache = Cache("b")
    cache.put(local(address("gone.example.com")), NOW)
    cache.put_negative(name_from_text("gone.example.com"), 0, NXDOMAIN, None, 60, NOW + 1, "b")
    assert list(cache.answers(NOW + 2)) == []
    assert [each.name for each in cache.answers(NOW + 62)] == ["gone.example.com."]


@pytest.mark.parametrize("max_entries", [100, 10_000])
def test_what_was_asked_for_or_learned_again_is_given_first(max_entries: int) -> None:
    cache = Cache("b", max_entries=max_entries)
    for number in range(40):
        cache.put(bus(address(f"n{number}.example.com", ttl=1000)), NOW)
    cache.resolve(name_from_text("n37.example.com"), 1, NOW + 1)
    cache.get(name_from_text("n3.example.com"), 1, NOW + 1)  # looked at, asked for by nobody
    cache.put(bus(address("n33.example.com", ttl=1000), learned=NOW + 2), NOW + 2)
    cache.put(bus(address("n35.example.com", last=2, ttl=1000), learned=NOW + 2), NOW + 2)
    given = [each.name for each in cache.answers(NOW + 3)]
    assert sorted(given[:3]) == [f"n{number}.example.com." for number in (33, 35, 37)]
    assert sorted(given) == sorted(f"n{number}.example.com." for number in range(40))


def test_each_step_through_the_content_is_a_small_one() -> None:
    cache = Cache("b", max_entries=SLICE * 8)
    for number in range(SLICE * 3):
        cache.put(local(address(f"n{number}.example.com")), NOW)
    parts = list(cache.slices(NOW + 1))
    assert max(map(len, parts)) <= SLICE
    assert sum(map(len, parts)) == SLICE * 3
    assert len(parts) == 6  # three without anything used, which are steps of their own


@settings(max_examples=50)
@examples(st.data())
def test_nothing_that_stays_is_left_out_while_the_cache_changes(data: st.DataObject) -> None:
    """Whatever is asked for, learned again, looked at or learned newly between two steps."""
    cache = Cache("b", max_entries=8 * 12)
    names = [f"n{number}.example.com" for number in range(40)]
    for name in names:
        cache.put(bus(address(name, ttl=1000)), NOW)
    seen = set()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cachebus.cache.SLICE", 4)
        for step, part in enumerate(cache.slices(NOW + 1)):
            seen |= {each.name for each in part}
            what, name = data.draw(st.tuples(st.sampled_from("agpn"), st.sampled_from(names)))
            owner = name_from_text(name)
            if what == "a":
                cache.resolve(owner, 1, NOW + 1)
            elif what == "g":
                cache.get(owner, 1, NOW + 1)
            elif what == "p":
                changed = bus(address(name, last=step % 9 + 1, ttl=1000), learned=NOW + 2 + step)
                cache.put(changed, changed.learned)
            else:
                cache.put(bus(address(f"new{step}.example.com")), NOW + 1)
    assert not cache.evicted
    assert {f"{name}." for name in names} <= seen
    assert all(reader() is None for reader in cache._readers)


def test_a_reader_that_goes_away_is_forgotten() -> None:
    cache = Cache("b")
    cache.put(local(address()), NOW)
    reading = cache.answers(NOW)
    next(reading)
    (reader,) = cache._readers
    assert reader() is not None
    del reading
    assert reader() is None
    next(cache.answers(NOW))
    assert len(cache._readers) == 1


def test_too_many_sources_are_shown_as_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cachebus.cache.MAX_SOURCES", 3)
    cache = Cache("b")
    for number in range(5):
        cache.put(bus(address(f"n{number}.example.com"))._replace(origin=f"peer-{number}"), NOW)
    origins = [cache.get(name_from_text(f"n{number}.example.com"), 1, NOW).origin for number in range(5)]  # type: ignore[union-attr]
    assert origins == ["peer-0", "peer-1", "unknown", "unknown", "unknown"]


def test_an_answer_is_merged_rrset_by_rrset() -> None:
    cache = Cache("b")
    cache.put(local(address(last=9), Evidence.VALIDATED), NOW)
    chain = answer(rrset("alias.example.com", "CNAME", "www.example.com."), rrset("www.example.com", "A", "192.0.2.66"))
    assert cache.put(bus(chain), NOW) is None
    assert last_byte(cache) == 9
    assert cache.get(name_from_text("alias.example.com"), rrtypes.CNAME, NOW) is not None


def test_holdings() -> None:
    holdings = Holdings()
    holdings.hold(WWW, rrtypes.A, NOW + 10)
    assert holdings.holds(WWW, rrtypes.A, NOW + 9)
    assert not holdings.holds(WWW, rrtypes.AAAA, NOW + 9)
    assert not holdings.holds(WWW, rrtypes.A, NOW + 10)
    holdings.hold(WWW, 0, NOW + 10)
    assert holdings.holds(WWW, rrtypes.TXT, NOW)
    holdings.clear()
    assert not holdings.holds(WWW, rrtypes.A, NOW)


def test_holdings_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Holdings, "LIMIT", 10)
    holdings = Holdings()
    for number in range(100):
        holdings.hold(bytes([number]), 1, NOW + 10)
    assert sum(holdings.holds(bytes([number]), 1, NOW) for number in range(100)) <= 20


def test_an_empty_answer_changes_nothing() -> None:
    cache = Cache("b")
    assert cache.put(Answer(WWW, 1, (RRset(WWW, 1, 0, b""),), Evidence.CONFIRMED, "a", NOW), NOW) is Refusal.EXPIRED
    assert cache.statistics()["entries"] == 0


@pytest.mark.parametrize("above", [False, True])
def test_a_live_local_alias_is_not_evaded_by_another_type_or_a_dname(above: bool) -> None:
    cache = Cache("b")
    alias = answer(rrset("www.example.com", "CNAME", "good.example.com."), evidence=Evidence.VALIDATED)
    cache.put(alias, NOW)
    forged = rrset("example.com", "DNAME", "evil.net.") if above else rrset("www.example.com", "A", "203.0.113.66")
    refusal = cache.put(answer(forged, transport="lan"), NOW)
    assert refusal is (None if above else Refusal.LOCAL_DATA_LIVE)
    found = cache.resolve(name_from_text("www.example.com"), 1, NOW)
    assert found is not None
    assert (found.chain[0].rrset.owner, found.chain[0].rank) == (
        name_from_text("www.example.com"),
        Rank.LOCAL_VALIDATED,
    )


def test_local_data_ends_a_local_nxdomain() -> None:
    cache = Cache("b")
    name = name_from_text("www.example.com")
    cache.put_negative(name, 0, NXDOMAIN, None, 600, NOW, "b")
    cache.put(address(learned=NOW + 1), NOW + 1)
    assert cache.resolve(name, 28, NOW + 1) is None
    assert cache.statistics()["entries"] == 1


def test_a_negative_answer_keeps_its_soas_signatures() -> None:
    cache = Cache("b")
    soa = rrset("example.com", "SOA", "ns.example.com. host.example.com. 1 2 3 4 60", sigs=rrsig("example.com", "SOA"))
    cache.put_negative(name_from_text("no.example.com"), 0, NXDOMAIN, soa, 60, NOW, "b")
    found = cache.resolve(name_from_text("no.example.com"), 1, NOW)
    assert found is not None
    assert found.soa is not None
    assert (found.soa.rrs, found.soa.sigs) == (soa.rrs, soa.sigs)


def test_a_clock_set_back_lengthens_no_life() -> None:
    cache = Cache("b")
    cache.put(address(ttl=300), NOW)
    cached = cache.get(name_from_text("www.example.com"), 1, NOW - 3600)
    assert cached is not None
    assert cached.rrset.ttl == 300
