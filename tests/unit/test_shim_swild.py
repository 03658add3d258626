"""The fifteen cases of SWILD, over real sockets: a client, the shim, and the authoritative server of the zone."""

from __future__ import annotations

from collections.abc import AsyncIterator

import dns.flags
import dns.message
import dns.rcode
import pytest

from cachebus.answer import Evidence
from cachebus.cache import Cache
from cachebus.filters.swild import SwildRefusal
from cachebus.presentation import name_from_text
from cachebus.shim.lookup import CacheStage, Found, LookupOrder
from cachebus.shim.query import Edns, Query, Response
from cachebus.shim.swild import SwildStage
from cachebus.shim.swild_owners import Swilds, SwildSettings
from cachebus.testing import ManualClock
from cachebus.wire.message import NOERROR, RD, question_section
from tests.trust_frames import Lab, run
from tests.trust_frames import settings as judge_settings
from tests.unit.shim_bed import bus_answer, rrset, texts
from tests.unit.swild_bed import BAR, CAP_OFF, FOO, NOW, SWILD, Authority, Bed, chain, swild, swild_bed

EVERYWHERE = frozenset({b"\0"})


@pytest.fixture
async def bed() -> AsyncIterator[Bed]:
    async with swild_bed() as made:
        await made.learn()
        yield made


async def test_case_01_a_subdomain_is_answered_without_asking(bed: Bed) -> None:
    bed.at(1)
    reply, asked = await bed.ask("yyy.foo.com.", use_edns=0, flags=dns.flags.RD | dns.flags.AD)
    assert (reply.rcode(), asked) == (dns.rcode.NOERROR, [])
    assert texts(reply.answer) == chain("yyy.foo.com.", 600, 3599, 599)
    assert not reply.flags & (dns.flags.AA | dns.flags.AD)
    assert [int(option.code) for option in reply.options] == [29]
    assert bed.count("swild_synthesised") == bed.count("swild_entries_saved") == 1


async def test_case_02_names_of_several_labels(bed: Bed) -> None:
    bed.at(1)
    reply, asked = await bed.ask("a.b.foo.com.")
    assert (texts(reply.answer), asked) == (chain("a.b.foo.com.", 600, 3599, 599), [])


async def test_case_03_the_owner_itself(bed: Bed) -> None:
    bed.at(1)
    reply, asked = await bed.ask("foo.com.")
    assert (texts(reply.answer), asked) == ([], ["foo.com. A"])
    assert bed.count("swild_synthesised") == 0


async def test_case_04_the_target_and_what_is_below_it(bed: Bed) -> None:
    bed.at(1)
    reply, asked = await bed.ask("_.foo.com.")
    assert (texts(reply.answer), asked) == (chain("", 0, 3599, 599)[1:], [])
    reply, asked = await bed.ask("x._.foo.com.")
    assert (reply.rcode(), asked) == (dns.rcode.NXDOMAIN, ["x._.foo.com. A"])
    assert bed.count("swild_synthesised") == 0
    assert bed.count("swild_passed_branch") == 1


async def test_case_05_only_the_cname_is_asked_for(bed: Bed) -> None:
    bed.at(1)
    reply, asked = await bed.ask("yyy.foo.com.", "CNAME")
    assert (reply.rcode(), texts(reply.answer), asked) == (0, chain("yyy.foo.com.")[:1], [])


async def test_case_06_the_swild_is_asked_for(bed: Bed) -> None:
    bed.at(100)
    reply, asked = await bed.ask("foo.com.", SWILD)
    assert (texts(reply.answer), asked) == (swild(ttl=86300), [])
    reply, asked = await bed.ask("yyy.foo.com.", SWILD)
    assert (reply.rcode(), texts(reply.answer)) == (0, chain("yyy.foo.com.", 600, 3500)[:2])
    assert " IN SOA ns.bar.net. " in texts(reply.authority)[0]
    assert asked == [f"map.bar.net. {SWILD}"]


async def test_case_07_only_the_expired_end_of_the_chain_is_asked_for(bed: Bed) -> None:
    bed.at(700)
    reply, asked = await bed.ask("yyy.foo.com.")
    assert texts(reply.answer) == chain("yyy.foo.com.", 600, 2900, 600)
    assert asked == ["map.bar.net. A"]
    assert bed.count("swild_tails") == 1


async def test_case_08_only_the_expired_target_is_asked_for(bed: Bed) -> None:
    bed.at(3700)
    reply, asked = await bed.ask("zzz.foo.com.")
    assert texts(reply.answer) == chain("zzz.foo.com.", 600, 3600, 600)
    assert asked == ["_.foo.com. A"]


async def test_case_09_the_swild_ends(bed: Bed) -> None:
    bed.at(86300)
    reply, asked = await bed.ask("zzz.foo.com.")
    assert texts(reply.answer) == chain("zzz.foo.com.", 100, 3600, 600)
    assert asked == ["_.foo.com. A"]
    bed.at(86401)
    reply, asked = await bed.ask("yyy.foo.com.")
    assert asked == ["yyy.foo.com. A"]
    assert texts(reply.answer) == chain("yyy.foo.com.")
    assert bed.count("swild_synthesised") == 1


async def test_case_10_exact_data_wins(bed: Bed) -> None:
    bed.at(1)
    www = rrset("www.foo.com.", "A", 300, bytes((192, 0, 2, 9)))
    bed.cache.put(bus_answer(www, learned=NOW + 1, transport=""), NOW + 1)
    by_bus = rrset("bus.foo.com.", "A", 1000, bytes((192, 0, 2, 10)))
    bed.cache.put(bus_answer(by_bus, learned=NOW + 1), NOW + 1)
    reply, asked = await bed.ask("www.foo.com.")
    assert (texts(reply.answer), asked) == (["www.foo.com. 300 IN A 192.0.2.9"], [])
    reply, asked = await bed.ask("bus.foo.com.")
    assert asked == []
    assert texts(reply.answer)[0].endswith("A 192.0.2.10")
    for name, rrtype in (("www.foo.com.", "AAAA"), ("below.www.foo.com.", "A"), ("bus.foo.com.", "TXT")):
        assert (await bed.ask(name, rrtype))[1] == [f"{name} {rrtype}"], name

    cut = rrset("sub.foo.com.", "NS", 300, b"\2ns\3sub\3foo\3com\0")
    bed.cache.put(bus_answer(cut, learned=NOW + 1), NOW + 1)
    assert (await bed.ask("host.sub.foo.com."))[1] == ["host.sub.foo.com. A"]

    soa = rrset("foo.com.", "SOA", 60, b"\0\0" + bytes(16) + (60).to_bytes(4, "big"))
    bed.cache.put_negative(name_from_text("gone.foo.com."), 0, 3, soa, 60, NOW + 1, "node-a")
    reply, asked = await bed.ask("gone.foo.com.")
    assert (reply.rcode(), asked) == (dns.rcode.NXDOMAIN, [])
    bed.at(62)
    reply, asked = await bed.ask("gone.foo.com.")
    assert (texts(reply.answer), asked) == (chain("gone.foo.com.", 600, 3539, 539), [])


@pytest.mark.parametrize("options", [{"want_dnssec": True}, {"flags": dns.flags.RD | dns.flags.CD}])
async def test_case_11_clients_that_validate_get_the_upstreams_answer(options: dict[str, object]) -> None:
    sigs = [
        f"{owner} {ttl} IN RRSIG {covered} 13 {labels} {ttl} 20271231000000 20200101000000 258 {signer} AAAA"
        for owner, covered, labels, ttl, signer in (
            ("yyy.foo.com.", "CNAME", 2, 600, "foo.com."),
            ("_.foo.com.", "CNAME", 3, 3600, "foo.com."),
            ("map.bar.net.", "A", 3, 600, "bar.net."),
        )
    ]
    async with swild_bed() as bed:
        await bed.learn()
        bed.authority.asides = sigs
        bed.at(1)
        reply, asked = await bed.ask("yyy.foo.com.", **options)
        assert asked == ["yyy.foo.com. A"]
        wanted = sigs if "want_dnssec" in options else []
        assert sorted(texts(reply.answer)) == sorted(chain("yyy.foo.com.") + wanted)
        assert bed.count("swild_passed_dnssec") == 1


@pytest.mark.parametrize(
    ("what", "asides", "reason"),
    [
        ("target is the owner", swild("foo.com.", "foo.com."), SwildRefusal.TARGET),
        ("target elsewhere", swild("foo.com.", "_.other.net."), SwildRefusal.TARGET),
        ("target above", swild("foo.com.", "com."), SwildRefusal.TARGET),
        ("two records", swild("foo.com.", "_.foo.com.", "w.foo.com."), SwildRefusal.SEVERAL),
        ("a top-level domain", swild("com."), SwildRefusal.SHORT_OWNER),
        ("the root", swild(".", "_.com."), SwildRefusal.SHORT_OWNER),
        ("not above the question", swild("bar.com."), SwildRefusal.NOT_ABOVE_QUESTION),
        ("another class", ['foo.com. 86400 CH TXT "x"'], SwildRefusal.CLASS),
        ("no name", [f"foo.com. 86400 IN {SWILD} \\# 3 015f03"], SwildRefusal.MALFORMED),
    ],
)
async def test_case_12_what_is_no_swild_is_ignored(what: str, asides: list[str], reason: SwildRefusal) -> None:
    async with swild_bed(Authority(*FOO, *BAR, asides=asides)) as bed:
        await bed.ask("xxx.foo.com.")
        bed.authority.asides = []
        reply, asked = await bed.ask("yyy.foo.com.")
        assert asked == ["yyy.foo.com. A"], what
        assert texts(reply.answer) == chain("yyy.foo.com.")
        assert bed.count(f"swild_refused_{reason.name.lower()}") == 1


async def test_case_12_out_of_bailiwick() -> None:
    authority = Authority(*FOO, *BAR, "x.sub.foo.com. 60 IN A 192.0.2.1", asides=swild())
    authority.authority = ["sub.foo.com. 3600 IN NS ns.bar.net."]
    async with swild_bed(authority) as bed:
        await bed.ask("x.sub.foo.com.")
        assert bed.count("swild_refused_out_of_zone") == 1
        assert bed.count("swild_owners") == 0
        bed.authority.asides, bed.authority.authority = [], []
        assert (await bed.ask("yyy.foo.com."))[1] == ["yyy.foo.com. A"]
        assert (await bed.ask("zzz.foo.com."))[1] == ["zzz.foo.com. A"]
    lab = Lab()
    aside = swild()[0].replace(" IN ", " ")
    frames = lab.exchange("x.sub.foo.com.", "A", ["x.sub.foo.com. 300 A 192.0.2.1", aside], zone="sub.foo.com.")
    assert run(frames, judge_settings(Evidence.AUTHORITATIVE)).questions() == {("x.sub.foo.com.", "A")}


async def test_case_12_signatures_that_cannot_be() -> None:
    expired = "foo.com. 86400 IN RRSIG TYPE65392 13 2 86400 20200101000000 20190101000000 1 foo.com. AAAA"
    async with swild_bed(Authority(*FOO, *BAR, asides=[*swild(), expired])) as bed:
        await bed.ask("xxx.foo.com.")
        assert (await bed.ask("yyy.foo.com."))[1] == ["yyy.foo.com. A"]
        assert bed.count("swild_refused_signature") == 2
        assert bed.count("swild_owners") == 0


async def test_case_13_the_closest_owner_of_nested_ones() -> None:
    inner = ("_.a.foo.com. 3600 IN A 192.0.2.3", "*.a.foo.com. 300 IN CNAME _.a.foo.com.", *swild("a.foo.com."))
    async with swild_bed(Authority(*FOO, *BAR, *inner, asides=swild())) as bed:
        await bed.ask("a.foo.com.", SWILD)
        await bed.learn()
        assert (await bed.ask("x.a.foo.com."))[1] == ["x.a.foo.com. A"], "the outer one does not stand in for it"
        reply, asked = await bed.ask("k.a.foo.com.")
        assert texts(reply.answer) == ["k.a.foo.com. 300 IN CNAME _.a.foo.com.", "_.a.foo.com. 3600 IN A 192.0.2.3"]
        assert asked == []
        reply, asked = await bed.ask("k.foo.com.")
        assert (texts(reply.answer), asked) == (chain("k.foo.com."), [])


async def test_case_13_a_loop_ends_in_servfail() -> None:
    looping = [FOO[0], "_.foo.com. 3600 IN CNAME q.foo.com.", FOO[2]]
    async with swild_bed(Authority(*looping, asides=swild())) as bed:
        for name in ("xxx.foo.com.", "yyy.foo.com.", "q.foo.com.", "_.foo.com.", "zzz.foo.com."):
            reply, asked = await bed.ask(name)
            assert (reply.rcode(), texts(reply.answer)) == (dns.rcode.SERVFAIL, [])
            assert len(asked) <= 11
    cache = Cache("node-a")
    with_loop(cache)
    stage, rest = stage_before(cache)
    for name in ("yyy.foo.com.", "q.foo.com."):
        response = stage.answer(query(name), NOW)
        assert isinstance(response, Response)
        assert (response.rcode, response.answer) == (2, ())
    assert rest.asked == [], "what is known to loop is not asked for"


async def test_case_14_denials_at_the_end_of_the_chain(bed: Bed) -> None:
    bed.at(1)
    for _ in range(2):
        reply, _ = await bed.ask("yyy.foo.com.", "AAAA")
        assert (reply.rcode(), texts(reply.answer)) == (0, chain("yyy.foo.com.", 600, 3599)[:2])
        assert " IN SOA ns.bar.net. " in texts(reply.authority)[0]
    reply, asked = await bed.ask("_dmarc.foo.com.", "TXT")
    assert (reply.rcode(), texts(reply.answer)) == (0, chain("_dmarc.foo.com.", 600, 3599)[:2])
    assert asked == ["map.bar.net. TXT"]
    bed.authority.load(*FOO, BAR[0])
    bed.at(700)
    for name, wanted in (("one.foo.com.", ["map.bar.net. A"]), ("two.foo.com.", [])):
        reply, asked = await bed.ask(name)
        assert (reply.rcode(), asked) == (dns.rcode.NXDOMAIN, wanted)
        assert texts(reply.answer) == chain(name, 600, 2900)[:2]
        assert " IN SOA ns.bar.net. " in texts(reply.authority)[0]
    bed.authority.load(*FOO, *BAR)
    bed.at(800)
    reply, _ = await bed.ask("two.foo.com.")
    assert reply.rcode() == 0, "the denial was map.bar.net's, never two.foo.com's"


# Client subnets: the stage hands on the client's option and the answer's scope; who keeps answers by scope is a stub.


class Scoped:
    """A stage that knows the address for one subnet, and counts what else it was asked."""

    def __init__(self, subnet: bytes = b"\0\1\x18\0\xc6\x33\x64") -> None:
        self.subnet = subnet
        self.asked: list[tuple[bytes, bytes]] = []

    def answer(self, query: Query, now: float) -> Found:
        assert query.edns is not None
        if query.edns.options[4:] != self.subnet:
            self.asked.append((query.qname, query.edns.options))
        found = rrset("map.bar.net.", "A", 60, bytes((192, 0, 2, 1)))
        return Response(NOERROR, (found,), errors=((0, "scope /24"),))


def query(name: str, rrtype: int = 1, *, options: bytes = b"") -> Query:
    qname = name_from_text(name)
    return Query(b"\0\1", RD, question_section(qname, rrtype), qname, rrtype, Edns(1232, do=False, options=options))


class Rest:
    """The upstreams: knows nothing, and counts."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []

    def answer(self, query: Query, now: float) -> Found:
        self.asked.append(query.qname)
        return None


def with_target(cache: Cache, learned: float = NOW) -> None:
    """What a node hears over the bus: the alias, its target's chain as far as it goes, and the SWILD."""
    cache.put(bus_answer(rrset("xxx.foo.com.", "CNAME", 600, name_from_text("_.foo.com.")), learned=learned), learned)
    cache.put(bus_answer(rrset("_.foo.com.", "CNAME", 3600, name_from_text("map.bar.net.")), learned=learned), learned)
    cache.put(bus_answer(rrset("foo.com.", SWILD, 86400, name_from_text("_.foo.com.")), learned=learned), learned)


def with_loop(cache: Cache) -> None:
    cache.put(bus_answer(rrset("_.foo.com.", "CNAME", 3600, name_from_text("q.foo.com.")), learned=NOW), NOW)
    cache.put(bus_answer(rrset("q.foo.com.", "CNAME", 3600, name_from_text("_.foo.com.")), learned=NOW), NOW)
    cache.put(bus_answer(rrset("foo.com.", SWILD, 86400, name_from_text("_.foo.com.")), learned=NOW), NOW)


def stage_before(cache: Cache, rest: Scoped | Rest | None = None) -> tuple[SwildStage, Rest]:
    """The stage over what the cache holds already, each RRset told to it again as if it came now."""
    swilds = Swilds(cache, SwildSettings(zones=EVERYWHERE, ttl_cap=CAP_OFF))
    held = list(cache.answers(NOW))
    swilds.observe(held, [None] * len(held), NOW)
    cache.observer = swilds.observe
    nobody = Rest()
    stage = SwildStage(
        swilds, cache, held=[CacheStage(cache)], rest=rest or nobody, clock=ManualClock(NOW), validating=False
    )
    return stage, nobody


def test_case_15_client_subnets_reach_the_stage_that_knows_scopes() -> None:
    cache, scoped = Cache("node-b"), Scoped()
    with_target(cache)
    stage, _ = stage_before(cache, scoped)
    order = LookupOrder([CacheStage(cache), stage], ManualClock(NOW))
    near, far = b"\0\x08\0\x07" + scoped.subnet, b"\0\x08\0\x07\0\1\x18\0\xcb\0\x71"
    for options, asked in ((near, []), (far, [(name_from_text("map.bar.net."), far)])):
        response = order.answer(query("yyy.foo.com.", options=options), NOW)
        assert isinstance(response, Response)
        assert [one.type for one in response.answer[:3]] == [5, 5, 1]
        assert response.errors == ((0, "scope /24"), (29, "SWILD")), "what the scoped stage says is kept"
        assert scoped.asked == asked


async def test_case_15_a_node_whose_feature_is_off_stores_it_opaque() -> None:
    cache = Cache("node-b")
    async with swild_bed(cache=cache, zones=frozenset()) as bed:
        with_target(cache)
        reply, asked = await bed.ask("foo.com.", SWILD)
        assert (len(reply.answer), asked) == (1, [])
        assert (await bed.ask("yyy.foo.com."))[1] == ["yyy.foo.com. A"]
        assert not any(name.startswith("swild") for name in bed.shim.statistics())


async def test_case_15_case_is_kept(bed: Bed) -> None:
    bed.at(1)
    reply, asked = await bed.ask("YYY.Foo.CoM.")
    assert (texts(reply.answer), asked) == (chain("YYY.Foo.CoM.", 600, 3599, 599), [])
