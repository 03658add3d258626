"""Stale answers (RFC 8767), remembered failures (RFC 9520), TTL bounds, and flushes while a look-up is under way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import pytest

from cachebus.answer import Answer, Evidence
from cachebus.cache import Cache
from cachebus.errors import ConfigError
from cachebus.flushes import Flush
from cachebus.presentation import name_from_text
from cachebus.shim import Shim, UpstreamSettings
from cachebus.shim.caching import CachingSettings, FailureSettings, StaleSettings, TtlSettings
from cachebus.shim.failures import MAX_FAILURES, Failures, Question
from cachebus.shim.query import Response
from cachebus.shim.stale import find_stale
from cachebus.testing import ManualClock
from cachebus.wire import rrtypes
from cachebus.wire.message import NOERROR, NXDOMAIN, SERVFAIL
from tests.unit.shim_bed import (
    Reply,
    ScriptedUpstream,
    ask,
    bus_answer,
    records,
    reply_to,
    rrset,
    settings,
    signature,
    texts,
    until,
)

WWW = name_from_text("www.example.")
LINE = "www.example. 300 IN A 192.0.2.1"
SOA = records("example. 3600 IN SOA ns.example. host.example. 1 7200 3600 604800 60")
ADDRESS = bytes((192, 0, 2, 1))
STALE = StaleSettings(client_timer=0.2)


class Bed:
    """A shim before one upstream that does what `says` says; both clocks in the test's hand."""

    def __init__(self, **caching: Any) -> None:
        self.clock = ManualClock()
        self.cache = Cache("node-a")
        self.learned: list[Answer] = []
        self.says: Callable[[dns.message.Message], Reply] = lambda query: reply_to(query, records(LINE))
        self.caching = CachingSettings(**caching)
        self.upstream = ScriptedUpstream(lambda query, stream: self.says(query))

    @asynccontextmanager
    async def running(self, **changes: Any) -> AsyncIterator[Bed]:
        async with self.upstream as upstream:
            server = UpstreamSettings(address=upstream.address, **changes.pop("trust", {}))
            chosen = settings(server, caching=self.caching, timeout=changes.pop("timeout", 0.5), **changes)
            self.shim = Shim(chosen, self.cache, self._learned, self.clock)
            async with self.shim:
                yield self

    def _learned(self, answer: Answer) -> None:
        self.learned.append(answer)

    async def ask(self, name: str = "www.example.", rrtype: str = "A", **options: Any) -> dns.message.Message:
        return await ask(self.shim.endpoints[0], name, rrtype, use_edns=0, **options)

    @property
    def asked(self) -> int:
        return len(self.upstream.queries)

    def count(self, name: str) -> int:
        return self.shim.statistics()[name]


def codes(message: dns.message.Message) -> list[int]:
    return [int(option.code) for option in message.options if isinstance(option, dns.edns.EDEOption)]


def silent(query: dns.message.Message) -> Reply:
    return None


def failing(query: dns.message.Message) -> Reply:
    return reply_to(query, rcode=dns.rcode.SERVFAIL)


# Stale answers


@pytest.mark.parametrize("broken", [silent, failing])
async def test_what_has_expired_is_served_while_the_upstream_fails(broken: Any) -> None:
    async with Bed(stale=STALE).running() as bed:
        assert texts((await bed.ask()).answer) == [LINE]
        bed.says = broken
        bed.clock.advance(301)
        stale = await bed.ask()
        assert texts(stale.answer) == ["www.example. 30 IN A 192.0.2.1"]
        assert (stale.rcode(), codes(stale)[0]) == (NOERROR, 3)
        bed.clock.advance(86400)
        assert (await bed.ask()).rcode() == SERVFAIL


async def test_a_late_fresh_answer_is_learned_though_the_client_got_a_stale_one() -> None:
    async with Bed(stale=STALE).running() as bed:
        await bed.ask()
        bed.says = silent
        bed.clock.advance(301)
        assert codes(await bed.ask()) == [3]
        assert bed.count("stale_answered_early") == 1
        late = reply_to(bed.upstream.queries[-1], records("www.example. 300 IN A 192.0.2.2"))
        bed.upstream._transport.sendto(late, ("127.0.0.1", bed.upstream.ports[-1]))
        await until(lambda: bed.cache.get(WWW, rrtypes.A, bed.clock()) is not None)
        fresh = await bed.ask()
        assert (texts(fresh.answer), codes(fresh)) == (["www.example. 300 IN A 192.0.2.2"], [])


async def test_a_fresh_answer_in_time_is_given() -> None:
    async with Bed(stale=STALE).running() as bed:
        await bed.ask()
        bed.says = lambda query: reply_to(query, records("www.example. 300 IN A 192.0.2.2"))
        bed.clock.advance(301)
        fresh = await bed.ask()
        assert (texts(fresh.answer), codes(fresh)) == (["www.example. 300 IN A 192.0.2.2"], [])


async def test_for_half_a_minute_after_a_failure_stale_data_is_given_without_asking() -> None:
    async with Bed(stale=STALE).running() as bed:
        await bed.ask()
        bed.says = failing
        bed.clock.advance(301)
        await bed.ask()
        before = bed.asked
        bed.clock.advance(29)
        assert codes(await bed.ask())[0] == 3
        assert bed.asked == before
        bed.clock.advance(2)
        await bed.ask()
        assert bed.asked == before + 1


async def test_what_is_bogus_is_not_papered_over() -> None:
    def bogus(query: dns.message.Message) -> Reply:
        response = dns.message.make_response(query)
        response.set_rcode(dns.rcode.SERVFAIL)
        response.use_edns(0, options=[dns.edns.EDEOption(6)])
        return response.to_wire()

    async with Bed(stale=STALE).running() as bed:
        await bed.ask()
        bed.says = bogus
        bed.clock.advance(301)
        assert [(reply.rcode(), codes(reply)[0]) for reply in [await bed.ask()]] == [(SERVFAIL, 6)]


async def test_without_serve_stale_dead_data_is_dead() -> None:
    async with Bed().running() as bed:
        await bed.ask()
        bed.says = failing
        bed.clock.advance(301)
        assert (await bed.ask()).rcode() == SERVFAIL


async def test_denials_are_served_stale_with_their_own_code() -> None:
    async with Bed(stale=STALE).running() as bed:
        bed.says = lambda query: reply_to(
            query, authority=SOA, rcode=NXDOMAIN if query.question[0].name.to_text() == "gone.example." else NOERROR
        )
        await bed.ask("gone.example.")
        await bed.ask("www.example.", "AAAA")
        bed.says = failing
        bed.clock.advance(61)
        gone, nodata = await bed.ask("gone.example."), await bed.ask("www.example.", "AAAA")
        assert (gone.rcode(), codes(gone)[0], gone.authority[0].ttl) == (NXDOMAIN, 19, 30)
        assert (nodata.rcode(), codes(nodata)[0], nodata.authority[0].ttl) == (NOERROR, 3, 30)
        assert (await bed.ask("below.gone.example.")).rcode() == SERVFAIL, "a stale denial denies nothing below"


async def test_stale_data_is_shared_with_nobody_and_says_nothing_of_validation() -> None:
    async with Bed(stale=STALE).running(trust={"validating": True}) as bed:
        signed = rrset("www.example.", "A", 300, ADDRESS, sigs=signature("www.example.", "A"))
        now = bed.clock()
        bed.cache.put(bus_answer(signed, evidence=Evidence.VALIDATED, learned=now, transport=""), now)
        assert (await bed.ask(flags=dns.flags.RD | dns.flags.AD)).flags & dns.flags.AD
        bed.says = failing
        bed.clock.advance(301)
        stale = await bed.ask(flags=dns.flags.RD | dns.flags.AD, want_dnssec=True)
        assert codes(stale)[0] == 3
        assert not stale.flags & dns.flags.AD
        assert len(stale.answer) == 2, "the RRSIG, for a client that validates"
        assert not bed.learned
        assert not any(part for part in bed.cache.slices(bed.clock(), as_learned=True))
        assert not any(part for part in bed.cache.slices(bed.clock()))


async def test_what_an_upstream_calls_stale_begins_no_new_life_here() -> None:
    def stale(query: dns.message.Message) -> Reply:
        response = dns.message.from_wire(reply_to(query, records("www.example. 30 IN A 192.0.2.1")))
        response.use_edns(0, options=[dns.edns.EDEOption(3)])
        return response.to_wire()

    async with Bed(stale=STALE).running(trust={"authoritative": False}) as bed:
        bed.says = stale
        for _ in range(2):
            reply = await bed.ask()
            assert (texts(reply.answer), codes(reply)) == (["www.example. 30 IN A 192.0.2.1"], [3])
        assert (bed.asked, bed.count("kept"), bed.count("not_shared_stale")) == (2, 0, 2)


async def test_a_client_who_does_not_want_recursion_gets_nothing_stale() -> None:
    async with Bed(stale=STALE).running() as bed:
        await bed.ask()
        bed.clock.advance(301)
        assert (await bed.ask(flags=0)).rcode() == dns.rcode.REFUSED


def stale_cache() -> Cache:
    cache = Cache("node-a")
    cache.keep_expired = 86400
    return cache


NOW = 1_800_000_000.0


def test_the_newest_word_counts_among_what_has_expired() -> None:
    cache = stale_cache()
    cache.put(bus_answer(rrset("www.example.", "A", 30, ADDRESS), learned=NOW, transport=""), NOW)
    cache.put_negative(WWW, 0, NXDOMAIN, None, 30, NOW + 40, "node-a")
    found = find_stale(cache, WWW, rrtypes.A, NOW + 100)
    assert found is not None
    assert found.rcode == NXDOMAIN
    alias = rrset("www.example.", "CNAME", 30, b"\4edge\7example\0")
    cache.put(bus_answer(alias, learned=NOW + 110, transport=""), NOW + 110)
    cache.put(bus_answer(rrset("edge.example.", "A", 30, ADDRESS), learned=NOW + 111, transport=""), NOW + 111)
    found = find_stale(cache, WWW, rrtypes.A, NOW + 200)
    assert found is not None
    assert [one.rrset.type for one in found.chain] == [rrtypes.CNAME, rrtypes.A]


def test_a_chain_is_stale_when_one_link_is_and_fresh_links_win() -> None:
    cache = stale_cache()
    dname = rrset("in.example.", "DNAME", 30, b"\3out\7example\0")
    cache.put(bus_answer(dname, learned=NOW, transport=""), NOW)
    cache.put(bus_answer(rrset("a.out.example.", "A", 3000, ADDRESS), learned=NOW, transport=""), NOW)
    found = find_stale(cache, name_from_text("a.in.example."), rrtypes.A, NOW + 100)
    assert found is not None
    assert [one.rrset.type for one in found.chain] == [rrtypes.DNAME, rrtypes.CNAME, rrtypes.A]
    assert find_stale(cache, name_from_text("a.out.example."), rrtypes.A, NOW + 100) is None, "all of it lives"


def test_no_top_level_domain_is_denied_from_what_has_expired() -> None:
    cache = stale_cache()
    cache.put_negative(name_from_text("com."), 0, NXDOMAIN, None, 30, NOW, "node-a")
    assert find_stale(cache, name_from_text("com."), rrtypes.A, NOW + 40) is None
    loop = [("a.example.", b"\1b\7example\0"), ("b.example.", b"\1a\7example\0")]
    for owner, target in loop:
        cache.put(bus_answer(rrset(owner, "CNAME", 30, target), learned=NOW, transport=""), NOW)
    assert find_stale(cache, name_from_text("a.example."), rrtypes.A, NOW + 40) is None


# Failures


async def test_a_failure_is_remembered_for_longer_each_time_and_forgotten_with_success() -> None:
    async with Bed().running() as bed:
        bed.says = failing
        reply = await bed.ask()
        assert (reply.rcode(), codes(reply)) == (SERVFAIL, [23])
        for wait in (1, 2, 4, 8, 16, 30, 30):
            before = bed.asked
            bed.clock.advance(wait - 0.1)
            cached = await bed.ask()
            assert (cached.rcode(), codes(cached), bed.asked) == (SERVFAIL, [23, 13], before)
            bed.clock.advance(0.2)
            assert codes(await bed.ask()) == [23]
            assert bed.asked == before + 1
        bed.clock.advance(31)
        bed.says = lambda query: reply_to(query, records("www.example. 1 IN A 192.0.2.1"))
        assert (await bed.ask()).rcode() == NOERROR
        assert bed.count("failures_known") == 0


async def test_other_types_and_cd_are_other_questions() -> None:
    async with Bed().running() as bed:
        bed.says = failing
        await bed.ask()
        assert codes(await bed.ask(rrtype="TXT")) == [23]
        assert codes(await bed.ask(flags=dns.flags.RD | dns.flags.CD)) == [23]
        assert codes(await bed.ask()) == [23, 13]
        assert (await bed.ask(flags=0)).rcode() == dns.rcode.REFUSED


async def test_remembering_can_be_switched_off() -> None:
    async with Bed(failures=FailureSettings(most=0)).running() as bed:
        bed.says = failing
        for number in range(3):
            assert codes(await bed.ask()) == [23]
            assert bed.asked == number + 1


async def test_unsigned_bus_data_is_still_better_than_a_remembered_failure() -> None:
    async with Bed().running(timeout=0.2) as bed:
        bed.says = silent
        assert codes(await bed.ask(want_dnssec=True)) == [22]
        told = bus_answer(rrset("www.example.", "A", 300, ADDRESS), learned=bed.clock())
        bed.cache.put(told, bed.clock())
        assert len((await bed.ask(want_dnssec=True)).answer) == 1


async def test_a_refresh_that_failed_is_not_tried_again_by_the_next_client() -> None:
    async with Bed().running(refresh=True) as bed:
        await bed.ask()
        bed.says = failing
        bed.clock.advance(299.5)
        for _ in range(5):
            assert texts((await bed.ask()).answer) == ["www.example. 0 IN A 192.0.2.1"]
            await until(lambda: not bed.shim._forwarder.in_flight)
        assert bed.asked == 2


def test_failures_are_bounded_and_one_look_up_counts_once() -> None:
    failures = Failures(FailureSettings())
    key = Question(WWW, 1, checking_disabled=False)
    for _ in range(5):
        failures.finished(key, None, NOW)
    assert failures.errors(key, NOW + 0.9) is not None
    assert failures.errors(key, NOW + 1.1) is None
    for number in range(MAX_FAILURES + 5):
        failures.finished(Question(number.to_bytes(8, "big"), 1, checking_disabled=False), None, NOW)
    assert len(failures) == MAX_FAILURES
    assert failures.errors(key, NOW) is None
    failures.finished(key, Response(SERVFAIL), NOW)
    assert failures.forget(Flush(WWW)) == 1
    assert failures.errors(key, NOW) is None


async def test_a_failure_of_what_was_asked_before_a_flush_is_not_remembered_after_it() -> None:
    async with Bed().running(timeout=5) as bed:
        bed.says = silent
        asking = asyncio.create_task(bed.ask())
        await until(lambda: bed.asked == 1)
        bed.cache.flush(WWW, bed.clock())
        bed.shim.flush(Flush(WWW))
        bed.upstream._transport.sendto(failing(bed.upstream.queries[0]), ("127.0.0.1", bed.upstream.ports[0]))
        assert (await asking).rcode() == SERVFAIL
        assert bed.count("failures_known") == 0
        bed.says = lambda query: reply_to(query, records(LINE))
        assert texts((await bed.ask()).answer) == [LINE]


# Bounds of TTLs


async def test_a_low_ttl_is_raised_for_clients_and_shared_as_it_is() -> None:
    async with Bed(ttl=TtlSettings(minimum=60)).running(trust={"authoritative": True}) as bed:
        bed.says = lambda query: reply_to(query, records("www.example. 5 IN A 192.0.2.1"), flags=dns.flags.AA)
        await bed.ask()
        bed.clock.advance(30)
        assert texts((await bed.ask()).answer) == ["www.example. 30 IN A 192.0.2.1"]
        assert [answer.ttl for answer in bed.learned] == [5]
        assert not any(part for part in bed.cache.slices(bed.clock(), as_learned=True))
        assert bed.count("ttl_raised") == 1


async def test_no_ttl_is_raised_above_the_one_that_was_signed() -> None:
    async with Bed(ttl=TtlSettings(minimum=600)).running() as bed:
        signed = "www.example. 5 IN RRSIG A 13 2 20 20271227000000 20231114000000 513 example. " + "A" * 88
        bed.says = lambda query: reply_to(query, records("www.example. 5 IN A 192.0.2.1", signed))
        await bed.ask()
        assert texts((await bed.ask()).answer) == ["www.example. 20 IN A 192.0.2.1"]


async def test_zero_stays_zero_and_high_ttls_are_cut() -> None:
    async with Bed(ttl=TtlSettings(minimum=60, maximum=100, negative=10)).running() as bed:
        bed.says = lambda query: reply_to(query, records("www.example. 0 IN A 192.0.2.1"))
        for _ in range(2):
            await bed.ask()
        assert bed.asked == 2
        bed.says = lambda query: reply_to(query, records("long.example. 5000 IN A 192.0.2.1"))
        await bed.ask("long.example.")
        assert (await bed.ask("long.example.")).answer[0].ttl == 100
        bed.says = lambda query: reply_to(query, authority=SOA, rcode=NXDOMAIN)
        await bed.ask("gone.example.")
        assert (await bed.ask("gone.example.")).authority[0].ttl == 10


async def test_what_is_not_in_the_answer_section_is_kept_by_nobody() -> None:
    """RFC 2181 section 5.4.1: authority and additional data would rank below every answer; here it is not taken."""

    def respond(query: dns.message.Message) -> Reply:
        response = dns.message.from_wire(
            reply_to(query, records(LINE), authority=records("example. 300 IN NS ns.example."))
        )
        response.additional = records("ns.example. 300 IN A 192.0.2.66")
        return response.to_wire()

    async with Bed().running() as bed:
        bed.says = respond
        await bed.ask()
        assert bed.cache.statistics()["entries"] == 1


# Flushes


@pytest.mark.parametrize("flush", [Flush(WWW), Flush(b"\7example\0", subtree=True), Flush(b"\0", subtree=True)])
async def test_a_look_up_begun_before_a_flush_is_neither_kept_nor_shared(flush: Flush) -> None:
    async with Bed().running(trust={"authoritative": True}, timeout=4) as bed:
        bed.says = silent
        asking = asyncio.create_task(bed.ask())
        await until(lambda: bed.asked)
        bed.clock.advance(1)
        assert sum(bed.cache.flushing(flush, bed.clock())) + bed.shim.flush(flush) == 0
        bed.clock.advance(1)
        bed.says = lambda query: reply_to(query, records("www.example. 300 IN A 192.0.2.2"), flags=dns.flags.AA)
        fresh = await bed.ask()
        assert texts(fresh.answer) == ["www.example. 300 IN A 192.0.2.2"], (
            "who asks after the flush joins nothing older"
        )
        late = reply_to(bed.upstream.queries[0], records(LINE), flags=dns.flags.AA)
        bed.upstream._transport.sendto(late, ("127.0.0.1", bed.upstream.ports[0]))
        assert texts((await asking).answer) == [LINE], "who asked before it gets what there was"
        assert [answer.rrsets[0].rrs[-1] for answer in bed.learned] == [2]
        assert texts((await bed.ask()).answer) == ["www.example. 300 IN A 192.0.2.2"]
        assert bed.count("not_shared_flushed") == 1


async def test_a_flush_takes_failures_too() -> None:
    async with Bed().running() as bed:
        bed.says = failing
        await bed.ask()
        assert bed.shim.flush(Flush(WWW)) == 1
        bed.says = lambda query: reply_to(query, records(LINE))
        assert (await bed.ask()).rcode() == NOERROR


# Settings


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: TtlSettings(minimum=3601),
        lambda: TtlSettings(minimum=60, maximum=30),
        lambda: TtlSettings(negative=3601),
        lambda: FailureSettings(first=0.5),
        lambda: FailureSettings(first=20, most=10),
        lambda: StaleSettings(answer_ttl=31),
        lambda: StaleSettings(max_age=8 * 86400),
        lambda: StaleSettings(client_timer=5),
    ],
)
def test_what_is_out_of_range_raises(wrong: Callable[[], object]) -> None:
    with pytest.raises(ConfigError):
        wrong()
