"""The lookup order, and which cached data suits which client."""

from __future__ import annotations

from typing import Any

import pytest

from cachebus.answer import Evidence
from cachebus.cache import Cache
from cachebus.presentation import name_from_text
from cachebus.shim.learn import limit_locally
from cachebus.shim.lookup import CacheStage, Found, LookupOrder, Outcome
from cachebus.shim.query import Edns, Query, Response
from cachebus.testing import ManualClock
from cachebus.wire.message import AD, CD, NOERROR, NXDOMAIN, RD, REFUSED, SERVFAIL
from tests.unit.shim_bed import bus_answer, rrset, signature

ADDRESS = bytes((192, 0, 2, 1))
NOW = 1_800_000_000.0
OURS = bus_answer(rrset("www.example.", "A", 300, ADDRESS), learned=NOW, transport="")


def ask(name: str = "www.example.", qtype: int = 1, *, do: bool = False, flags: int = RD) -> Query:
    qname = name_from_text(name)
    question = qname + qtype.to_bytes(2, "big") + b"\0\1"
    return Query(b"\0\1", flags, question, qname, qtype, Edns(1232, do=do) if do else None)


@pytest.fixture
def cache() -> Cache:
    return Cache("node-a")


def signed(name: str = "www.example.", **options: Any) -> Any:
    return rrset(name, "A", 300, ADDRESS, sigs=signature(name, "A", **options))


class Waits:
    """A stage that gives its answer later."""

    def __init__(self, response: Response | None) -> None:
        self.response = response
        self.asked = 0

    def answer(self, query: Query, now: float) -> Found:
        self.asked += 1

        async def later() -> Response | None:
            return self.response

        return later


async def settle(found: Outcome) -> Response:
    return found if isinstance(found, Response) else await found()


async def test_the_first_stage_that_knows_answers_without_waiting(cache: Cache) -> None:
    cache.put(bus_answer(signed(), learned=NOW), NOW)
    forward = Waits(Response(NXDOMAIN))
    order = LookupOrder([CacheStage(cache), forward], ManualClock(NOW))
    assert isinstance(order.answer(ask(), NOW), Response)
    assert forward.asked == 0
    assert (await settle(order.answer(ask("other."), NOW))).rcode == NXDOMAIN


async def test_a_stage_that_waited_in_vain_leaves_it_to_the_next() -> None:
    first, second = Waits(None), Waits(Response(NXDOMAIN))
    order = LookupOrder([first, second], ManualClock(NOW))
    assert (await settle(order.answer(ask(), NOW))).rcode == NXDOMAIN
    assert (first.asked, second.asked) == (1, 1)


async def test_servfail_is_an_answer_and_ends_the_search() -> None:
    second = Waits(Response(NOERROR))
    order = LookupOrder([Waits(Response(SERVFAIL)), second], ManualClock(NOW))
    assert (await settle(order.answer(ask(), NOW))).rcode == SERVFAIL
    assert second.asked == 0


async def test_nobody_knows() -> None:
    order = LookupOrder([Waits(None)], ManualClock(NOW))
    response = await settle(order.answer(ask(), NOW))
    assert (response.rcode, response.errors[0][0]) == (SERVFAIL, 22)
    refused = await settle(LookupOrder([], ManualClock(NOW)).answer(ask(flags=0), NOW))
    assert (refused.rcode, refused.errors[0][0]) == (REFUSED, 20)


def test_ttls_are_counted_down_and_end(cache: Cache) -> None:
    cache.put(bus_answer(rrset("www.example.", "A", 300, ADDRESS), learned=NOW, transport=""), NOW)
    stage = CacheStage(cache)
    response = stage.answer(ask(), NOW + 100)
    assert response is not None
    assert response.answer[0].ttl == 200
    assert stage.answer(ask(), NOW + 300) is None
    assert stage.hits == 1


@pytest.mark.parametrize(
    ("what", "answer", "plain", "do", "cd", "cd_do"),
    [
        ("unsigned from a peer", bus_answer(rrset("www.example.", "A", 300, ADDRESS), learned=NOW), 1, 0, 0, 0),
        ("signed from a peer, not validated", bus_answer(signed(), learned=NOW), 1, 1, 0, 0),
        ("validated by a peer", bus_answer(signed(), evidence=Evidence.VALIDATED, learned=NOW), 1, 1, 1, 1),
        ("unsigned, our own", OURS, 1, 1, 1, 1),
        ("signed, our own", bus_answer(signed(), learned=NOW, transport=""), 1, 1, 1, 1),
        ("a wildcard's, our own", bus_answer(signed(labels=1), learned=NOW, transport=""), 1, 0, 1, 0),
    ],
)
def test_which_data_suits_which_client(
    cache: Cache, what: str, answer: Any, plain: int, do: int, cd: int, cd_do: int
) -> None:
    assert cache.put(answer, NOW) is None
    stage = CacheStage(cache)
    clients = [ask(), ask(do=True), ask(flags=RD | CD), ask(do=True, flags=RD | CD)]
    got = [stage.answer(client, NOW) is not None for client in clients]
    assert got == [bool(plain), bool(do), bool(cd), bool(cd_do)], what
    assert stage.unsuitable == 4 - sum(got)


def test_after_every_upstream_failed_unsigned_bus_data_is_better_than_nothing(cache: Cache) -> None:
    cache.put(bus_answer(rrset("www.example.", "A", 300, ADDRESS), learned=NOW), NOW)
    stage = CacheStage(cache, last_resort=True)
    assert stage.answer(ask(do=True), NOW) is not None
    assert stage.answer(ask(do=True, flags=RD | CD), NOW) is None


def test_authentic_only_when_every_link_is_validated(cache: Cache) -> None:
    cname = rrset("www.example.", "CNAME", 300, b"\4edge\7example\0", sigs=signature("www.example.", "CNAME"))
    target = signed("edge.example.")
    cache.put(bus_answer(cname, evidence=Evidence.VALIDATED, learned=NOW), NOW)
    cache.put(bus_answer(target, learned=NOW), NOW)
    stage = CacheStage(cache)
    response = stage.answer(ask(flags=RD | AD), NOW)
    assert response is not None
    assert [one.type for one in response.answer] == [5, 1]
    assert not response.authentic
    cache.put(bus_answer(target, evidence=Evidence.VALIDATED, learned=NOW + 1), NOW + 1)
    response = stage.answer(ask(flags=RD | AD), NOW + 1)
    assert response is not None
    assert response.authentic


def test_a_chain_that_ends_in_the_open_is_not_an_answer(cache: Cache) -> None:
    cache.put(bus_answer(rrset("www.example.", "CNAME", 300, b"\4edge\7example\0"), learned=NOW), NOW)
    stage = CacheStage(cache)
    assert stage.answer(ask(), NOW) is None
    assert stage.answer(ask(qtype=5), NOW) is not None


def test_a_dname_signs_for_the_cname_that_it_yields(cache: Cache) -> None:
    dname = rrset("in.example.", "DNAME", 300, b"\3out\7example\0", sigs=signature("in.example.", "DNAME"))
    cache.put(bus_answer(dname, evidence=Evidence.VALIDATED, learned=NOW), NOW)
    cache.put(bus_answer(signed("a.out.example."), evidence=Evidence.VALIDATED, learned=NOW), NOW)
    response = CacheStage(cache).answer(ask("a.in.example.", do=True), NOW)
    assert response is not None
    assert [one.type for one in response.answer] == [39, 5, 1]
    assert response.authentic


@pytest.mark.parametrize("rcode", [NOERROR, NXDOMAIN])
def test_denials_go_to_clients_without_do(cache: Cache, rcode: int) -> None:
    soa = rrset("example.", "SOA", 60, b"\0\0" + bytes(16) + b"\0\0\0\x3c")
    name = name_from_text("no.example.")
    cache.put_negative(name, 1 if rcode == NOERROR else 0, rcode, soa, 60, NOW, "node-a")
    stage = CacheStage(cache)
    response = stage.answer(ask("no.example."), NOW + 20)
    assert response is not None
    assert (response.rcode, response.answer, response.authentic) == (rcode, (), False)
    assert [(one.type, one.ttl) for one in response.authority] == [(6, 40)]
    assert stage.answer(ask("no.example.", do=True), NOW) is None, "no proof is kept"
    assert stage.answer(ask("no.example."), NOW + 60) is None


@pytest.mark.parametrize("qtype", [255, 46, 24])
def test_questions_that_are_not_for_one_rrset_are_never_answered_from_it(cache: Cache, qtype: int) -> None:
    cache.put(bus_answer(signed(), learned=NOW, transport=""), NOW)
    assert CacheStage(cache).answer(ask(qtype=qtype), NOW) is None


def test_what_this_node_fetched_is_fetched_again_a_little_before_it_expires(cache: Cache) -> None:
    due: list[Query] = []
    stage = CacheStage(cache, refresh=due.append)
    own = rrset("www.example.", "A", 300, ADDRESS)
    cache.put(bus_answer(own, learned=NOW, transport=""), NOW)
    early = cache.shortened(own.owner, 300_000) / 1000
    assert 270 <= early <= 300
    for later in (0, 200, early - 0.01):
        assert stage.answer(ask(), NOW + later) is not None
    assert not due
    assert stage.answer(ask(), NOW + early) is not None, "answered all the same"
    assert len(due) == stage.refreshed == 1


def test_what_a_peer_sent_or_renewed_is_not_fetched_again_early(cache: Cache) -> None:
    due: list[Query] = []
    stage = CacheStage(cache, refresh=due.append)
    own = rrset("www.example.", "A", 300, ADDRESS)
    cache.put(bus_answer(own, learned=NOW, transport=""), NOW)
    cache.put(bus_answer(own, learned=NOW + 250), NOW + 250)
    cache.put(bus_answer(rrset("other.example.", "A", 300, ADDRESS), learned=NOW), NOW)
    for later in range(600):
        stage.answer(ask(), NOW + later)
        stage.answer(ask("other.example."), NOW + later)
    assert stage.hits > 700
    assert not due


@pytest.mark.parametrize(("original", "left"), [(60, 60), (0x7FFFFFFF, 300), (0x80000000, None)])
def test_a_wildcard_expansion_lives_as_long_as_its_signature_says(original: int, left: int | None) -> None:
    sigs = signature("a.b.example.", "A", labels=1, ttl=original)
    kept = limit_locally(rrset("a.b.example.", "A", 300, b"\1\2\3\4", sigs=sigs), NOW, 86400)
    assert (None if kept is None else kept.ttl) == left


def test_a_wildcard_expansion_outlives_its_signature_by_no_fraction_of_a_second() -> None:
    sigs = signature("a.b.example.", "A", labels=1)  # valid until 1,830,000,000
    kept = limit_locally(rrset("a.b.example.", "A", 300, b"\1\2\3\4", sigs=sigs), 1_829_999_990.5, 86400)
    assert kept is not None
    assert kept.ttl == 9
