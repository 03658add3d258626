"""The rules of SWILD one by one: what is believed, what counts, what is asked for, what is remembered."""

from __future__ import annotations

from typing import Any

import dns.message
import pytest

from cachebus.answer import Answer, Evidence
from cachebus.cache import Cache
from cachebus.errors import ConfigError
from cachebus.filters.swild import SwildRefusal, branch, common_owner, swild_target
from cachebus.presentation import name_from_text
from cachebus.shim import Shim, swild_owners
from cachebus.shim.lookup import CacheStage, Found, LookupOrder
from cachebus.shim.query import Channel, Ede, Edns, Query, Response
from cachebus.shim.reply import compose_reply
from cachebus.shim.swild import SwildStage
from cachebus.shim.swild_owners import Include, Recent, Swilds, SwildSettings
from cachebus.testing import ManualClock
from cachebus.wire.message import NOERROR, NXDOMAIN, RD, parse, question_section
from tests.unit.shim_bed import ScriptedUpstream, ask, bus_answer, rrset, settings, signature, texts, until
from tests.unit.swild_bed import BAR, CAP_OFF, FOO, NOW, SWILD, Authority, chain, swild, swild_bed

ADDRESS = bytes((192, 0, 2, 1))


def wire(text: str) -> bytes:
    return name_from_text(text)


class Rest:
    """Stands for the upstreams: counts, and answers with `response`, now or later."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        self.response: Response | None = None
        self.later = False
        self.clock: ManualClock | None = None

    def answer(self, query: Query, now: float) -> Found:
        self.asked.append(query.qname)
        if not self.later:
            return self.response

        async def later() -> Response | None:
            assert self.clock is not None
            self.clock.advance(3.5)
            return self.response

        return later


class Lab:
    """The stage over an empty cache, and what fills it by the bus."""

    def __init__(self, *, validating: bool = False, **changes: Any) -> None:
        options = {"zones": frozenset({b"\0"}), "ttl_cap": CAP_OFF, "include": Include.OFF, **changes}
        self.cache = Cache("node-b")
        self.clock = ManualClock(NOW)
        self.discovered: list[bytes] = []
        self.swilds = Swilds(self.cache, SwildSettings(**options), self.discovered.append)
        self.cache.observer = self.swilds.observe
        self.rest = Rest()
        self.rest.clock = self.clock
        self.stage = SwildStage(
            self.swilds,
            self.cache,
            held=[CacheStage(self.cache)],
            rest=self.rest,
            clock=self.clock,
            validating=validating,
        )

    def hear(
        self,
        owner: str,
        rrtype: str,
        rdata: str | bytes,
        ttl: int = 3600,
        *,
        evidence: Evidence = Evidence.AUTHORITATIVE,
        transport: str = "lan",
        sigs: bytes = b"",
    ) -> None:
        data = wire(rdata) if isinstance(rdata, str) else rdata
        made = bus_answer(
            rrset(owner, rrtype, ttl, data, sigs=sigs), learned=self.clock(), evidence=evidence, transport=transport
        )
        assert self.cache.put(made, self.clock()) is None

    def hear_alias(self, owner: str = "xxx.foo.com.", **more: Any) -> None:
        self.hear(owner, "CNAME", "_.foo.com.", 600, **more)

    def hear_swild(self, **more: Any) -> None:
        self.hear("foo.com.", SWILD, "_.foo.com.", 86400, **more)

    def hear_all(self, **more: Any) -> None:
        self.hear_alias(**more)
        self.hear("_.foo.com.", "A", ADDRESS, 1000)
        self.hear_swild(**more)

    def ask(self, name: str = "yyy.foo.com.", rrtype: int = 1, *, flags: int = RD, do: bool = False) -> Found:
        qname = wire(name)
        query = Query(
            b"\0\1", flags, question_section(qname, rrtype), qname, rrtype, Edns(1232, do=True) if do else None
        )
        return self.stage.answer(query, self.clock())

    def synthesises(self, name: str = "yyy.foo.com.", rrtype: int = 1) -> bool:
        return isinstance(self.ask(name, rrtype), Response)


@pytest.fixture
def lab() -> Lab:
    return Lab()


# a. Where it is on


async def test_it_is_off_unless_a_zone_is_named() -> None:
    assert SwildSettings().zones == frozenset()
    async with swild_bed(zones=frozenset()) as bed:
        assert bed.cache.observer is None
        await bed.ask("xxx.foo.com.")
        assert (await bed.ask("yyy.foo.com."))[1] == ["yyy.foo.com. A"]


@pytest.mark.parametrize(
    ("zones", "on"),
    [((".",), True), (("foo.com.",), True), (("com.",), True), (("oo.com.",), False), (("a.foo.com.",), False)],
)
def test_it_is_on_at_and_below_the_zones_named(zones: tuple[str, ...], on: bool) -> None:
    lab = Lab(zones=frozenset(map(wire, zones)))
    lab.hear_all()
    assert lab.synthesises() == on
    assert (SwildRefusal.NOT_ENABLED in lab.swilds.refused) == (not on)


@pytest.mark.parametrize(
    ("hint", "on"), [("in.foo.com.", False), ("foo.com.", True), ("other.com.", True), ("com.", True)]
)
def test_never_above_a_hint(hint: str, on: bool) -> None:
    lab = Lab(hints=frozenset({wire(hint)}))
    lab.hear_all()
    assert lab.synthesises() == on
    assert (lab.swilds.refused == {}) == on


@pytest.mark.parametrize("changes", [{"type": 65279}, {"type": 65535}, {"ttl_cap": 0}, {"ttl_cap": CAP_OFF + 1}])
def test_settings_that_cannot_be(changes: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        SwildSettings(**changes)  # type: ignore[arg-type]


def test_another_type_code() -> None:
    lab = Lab(type=65500)
    lab.hear_all()
    assert not lab.synthesises()
    lab.hear("foo.com.", "TYPE65500", "_.foo.com.")
    assert lab.synthesises()


# b. What is believed


@pytest.mark.parametrize("evidence", list(Evidence))
def test_every_level_of_the_bus_rests_on_the_zones_own_servers(lab: Lab, evidence: Evidence) -> None:
    lab.hear_all(evidence=evidence)
    response = lab.ask()
    assert isinstance(response, Response)
    assert not response.authentic
    assert [code for code, _ in response.errors] == [Ede.SYNTHESIZED]


async def test_hearsay_is_not_taken_but_asked_for() -> None:
    authority = Authority(*FOO, *BAR, *swild(), asides=swild(), aa=False)
    async with swild_bed(authority, authoritative=False, discover=True) as bed:
        await bed.ask("xxx.foo.com.")
        assert bed.count("swild_refused_hearsay") == 1
        authority.asides = []
        await until(lambda: bed.count("swild_owners"))
        assert authority.asked == ["xxx.foo.com. A", f"foo.com. {SWILD}"]
        bed.at(1)
        assert (await bed.ask("yyy.foo.com."))[1] == []


async def test_hearsay_is_only_counted_without_discovery() -> None:
    async with swild_bed(Authority(*FOO, *BAR, *swild(), asides=swild(), aa=False), authoritative=False) as bed:
        await bed.ask("xxx.foo.com.")
        assert (await bed.ask("yyy.foo.com."))[1] == ["yyy.foo.com. A"]
        assert bed.count("swild_refused_hearsay") == 2
        assert bed.count("swild_owners") == 0


def test_a_wrong_one_takes_the_place_of_a_right_one(lab: Lab) -> None:
    lab.hear_all()
    lab.clock.advance(1)
    lab.hear("foo.com.", SWILD, "_.foo.net.")
    assert not lab.synthesises()
    assert lab.swilds.refused == {SwildRefusal.TARGET: 1}


@pytest.mark.parametrize(
    "rdata",
    [
        b"",
        b"\0",
        b"\1_\xc0\x0c",
        b"\1_\3foo\3com",
        b"\1_\3foo\3com\0\0",
        b"\x40" + bytes(70),
        b"\1_" * 127 + b"\3foo\3com\0",
    ],
)
def test_rdata_that_is_no_name_below_the_owner(rdata: bytes) -> None:
    assert swild_target(rrset("foo.com.", SWILD, 60, rdata)) in (SwildRefusal.MALFORMED, SwildRefusal.TARGET)


def test_the_target_is_told_in_lower_case_and_kept_as_it_is(lab: Lab) -> None:
    lab.hear_alias()
    lab.hear("_.foo.com.", "A", ADDRESS)
    lab.hear("foo.com.", SWILD, b"\1_\3Foo\3COM\0")
    response = lab.ask()
    assert isinstance(response, Response)
    assert response.answer[0].rrs.endswith(b"\1_\3Foo\3COM\0")
    assert response.answer[1].owner == wire("_.foo.com.")


# c. What makes it count, and discovery


def test_a_swild_without_a_cname_seen_does_not_count(lab: Lab) -> None:
    lab.hear("_.foo.com.", "A", ADDRESS)
    lab.hear_swild()
    assert not lab.synthesises()
    assert lab.stage.statistics()["swild_passed_inactive"] == 1
    lab.hear("zzz.foo.com.", "CNAME", "other.foo.com.")
    lab.hear("zzz.bar.net.", "CNAME", "_.foo.com.")
    lab.hear("deep._.foo.com.", "CNAME", "_.foo.com.")
    assert not lab.synthesises()
    lab.hear_alias()
    assert lab.synthesises()


def test_a_cname_seen_before_the_swild_counts_and_lives_on(lab: Lab) -> None:
    lab.hear_all()
    lab.clock.advance(900)
    assert lab.synthesises(), "long after the CNAME itself has ended"


@pytest.mark.parametrize("rrtype", ["NS", "SOA"])
def test_a_cname_of_another_zone_does_not_count(lab: Lab, rrtype: str) -> None:
    lab.hear("sub.foo.com.", rrtype, b"\2ns\0" + bytes(21 if rrtype == "SOA" else 0))
    lab.hear_alias("x.sub.foo.com.")
    lab.hear_swild()
    lab.hear_alias("y.sub.foo.com.")
    assert not lab.synthesises()


def test_a_cname_under_another_signature_does_not_count() -> None:
    lab = Lab()
    lab.hear_alias("x.sub.foo.com.", sigs=signature("x.sub.foo.com.", "CNAME"))
    lab.hear_swild(sigs=signature("w.foo.com.", SWILD, labels=2))
    assert not lab.synthesises()
    lab.hear_alias("yy.foo.com.", sigs=signature("yy.foo.com.", "CNAME"))
    lab.hear("_.foo.com.", "A", ADDRESS)
    assert lab.synthesises()


def test_the_cname_that_the_cache_does_not_believe_does_not_count(lab: Lab) -> None:
    lab.hear("xxx.foo.com.", "CNAME", "other.foo.com.", transport="")
    made = bus_answer(
        rrset("xxx.foo.com.", "CNAME", 600, wire("_.foo.com.")), rrset("_.foo.com.", "A", 60, ADDRESS), learned=NOW
    )
    assert lab.cache.put(made, NOW) is None, "the address is news"
    lab.hear_swild()
    assert not lab.synthesises()


def test_the_largest_ttl_seen_is_the_zones(lab: Lab) -> None:
    lab.hear_all()
    lab.clock.advance(100)
    lab.hear("zzz.foo.com.", "CNAME", "_.foo.com.", 500)  # a resolver's copy, counted down
    assert _alias_ttl(lab) == 600
    lab.clock.advance(650)
    lab.hear("uuu.foo.com.", "CNAME", "_.foo.com.", 30)
    assert _alias_ttl(lab) == 30, "nobody has said more for as long as that lived"


def _alias_ttl(lab: Lab) -> int:
    response = lab.ask()
    assert isinstance(response, Response)
    return response.answer[0].ttl


async def test_two_cnames_of_one_target_are_worth_a_question() -> None:
    async with swild_bed(Authority(*FOO, *BAR, *swild()), discover=True) as bed:
        await bed.ask("one.foo.com.")
        assert (await bed.ask("one.foo.com.", "AAAA"))[1] == ["one.foo.com. AAAA"]
        assert bed.count("swild_discoveries") == 0, "the same name twice is no wildcard"
        await bed.ask("two.foo.com.")
        await until(lambda: bed.count("swild_owners"))
        assert bed.authority.asked.count(f"foo.com. {SWILD}") == bed.count("swild_discoveries") == 1
        assert (await bed.ask("three.foo.com."))[1] == []


async def test_discovery_asks_once_per_negative_ttl() -> None:
    async with swild_bed(Authority(*FOO, *BAR), discover=True) as bed:
        for number in range(6):
            await bed.ask(f"n{number}.foo.com.")
        await until(lambda: bed.cache.get(wire("foo.com."), 65392, NOW))
        await bed.ask("n7.foo.com.")
        assert bed.authority.asked.count(f"foo.com. {SWILD}") == 1
        bed.at(61)  # the SOA's minimum is 60
        await bed.ask("n8.foo.com.")
        await until(lambda: bed.authority.asked.count(f"foo.com. {SWILD}") == 2)


async def test_discovery_can_be_switched_off() -> None:
    async with swild_bed(Authority(*FOO, *BAR, *swild()), discover=False) as bed:
        for number in range(6):
            assert (await bed.ask(f"n{number}.foo.com."))[1] == [f"n{number}.foo.com. A"]
        assert bed.count("swild_discoveries") == 0


def test_only_the_node_that_saw_the_second_cname_itself_asks(lab: Lab) -> None:
    for number in range(4):
        lab.hear_alias(f"n{number}.foo.com.")
    assert lab.discovered == []
    lab.hear_alias("mine.foo.com.", transport="")
    assert lab.discovered == [wire("foo.com.")]
    lab.hear_alias("mine2.foo.com.", transport="")
    assert lab.discovered == [wire("foo.com.")], "the answer is on its way"
    lab.clock.advance(swild_owners.ASK_AGAIN + 1)
    lab.hear_alias("mine3.foo.com.", transport="")
    assert len(lab.discovered) == 2, "neither a SWILD nor a denial came"


def test_after_the_end_of_a_swild_one_cname_is_enough_to_ask_again(lab: Lab) -> None:
    lab.hear_all()
    lab.clock.advance(86401)
    lab.hear_alias("new.foo.com.", transport="")
    assert lab.discovered == [wire("foo.com.")]


def test_after_the_cap_one_cname_is_enough_to_ask_again() -> None:
    lab = Lab(ttl_cap=60)
    lab.hear_all()
    lab.clock.advance(61)
    assert not lab.synthesises()
    assert lab.stage.statistics()["swild_passed_ended"] == 1
    lab.hear_alias("new.foo.com.", transport="")
    assert lab.discovered == [wire("foo.com.")]
    lab.hear_swild(transport="")
    assert lab.synthesises()


def test_no_name_of_a_zone_that_is_off_is_asked_for() -> None:
    lab = Lab(zones=frozenset({wire("bar.net.")}))
    for number in range(4):
        lab.hear_alias(f"n{number}.foo.com.", transport="")
    assert lab.discovered == []


# d, e. What exists


def test_nothing_is_made_up_on_the_branch_of_a_deeper_target(lab: Lab) -> None:
    lab.hear("xxx.foo.com.", "CNAME", "_.w.foo.com.")
    lab.hear("_.w.foo.com.", "A", ADDRESS)
    lab.hear("foo.com.", SWILD, "_.w.foo.com.")
    assert lab.synthesises()
    for name in ("w.foo.com.", "x.w.foo.com.", "_.w.foo.com.", "a.b.w.foo.com.", "x._.w.foo.com."):
        assert lab.ask(name) is None, name
    assert lab.stage.statistics()["swild_passed_branch"] == 5


@pytest.mark.parametrize("first", ["data", "swild"])
@pytest.mark.parametrize(
    ("owner", "rrtype", "rdata", "passed", "made_up"),
    [
        ("www.foo.com.", "A", ADDRESS, ["www.foo.com.", "a.www.foo.com."], ["ww.foo.com.", "xwww.foo.com."]),
        ("sub.foo.com.", "NS", b"\2ns\0", ["sub.foo.com.", "a.b.sub.foo.com."], ["a.foo.com."]),
        ("old.foo.com.", "DNAME", b"\3new\0", ["a.old.foo.com.", "old.foo.com."], ["b.foo.com."]),
        ("x.foo.com.", "CNAME", b"\3new\0", ["x.foo.com.", "a.x.foo.com."], ["y.foo.com."]),
        ("x.foo.com.", "CNAME", b"\1_\3foo\3com\0", [], ["a.x.foo.com."]),
    ],
)
def test_cached_data_wins(
    lab: Lab, first: str, owner: str, rrtype: str, rdata: bytes, passed: list[str], made_up: list[str]
) -> None:
    if first == "data":
        lab.hear(owner, rrtype, rdata)
    lab.hear_all()
    if first == "swild":
        lab.hear(owner, rrtype, rdata)
    for name in passed:
        assert lab.ask(name, 28) is None, name
    lab.rest.response = Response(NOERROR)
    for name in made_up:
        assert lab.synthesises(name), name
    assert lab.stage.statistics()["swild_passed_exists"] == len(passed)


def test_an_empty_non_terminal_and_a_rare_type_are_known_once_the_swild_is(lab: Lab) -> None:
    lab.hear_all()
    lab.hear("a.b.c.foo.com.", "TYPE1234", b"\0", 300)
    for name in ("b.c.foo.com.", "c.foo.com.", "x.c.foo.com.", "a.b.c.foo.com."):
        assert lab.ask(name) is None, name
    lab.clock.advance(301)
    assert lab.synthesises("x.c.foo.com."), "what said so has ended"


@pytest.mark.parametrize(("qtype", "rcode"), [(28, NOERROR), (0, NXDOMAIN)])
def test_a_denial_of_the_name_wins(lab: Lab, qtype: int, rcode: int) -> None:
    lab.hear_all()
    lab.cache.put_negative(wire("gone.foo.com."), qtype, rcode, None, 60, NOW, "node-b")
    assert lab.ask("gone.foo.com.") is None
    assert lab.ask("a.gone.foo.com.") is None
    lab.clock.advance(61)
    assert lab.synthesises("gone.foo.com.")


# g. Times


def test_the_cap_bounds_the_alias_and_the_swild() -> None:
    assert SwildSettings().ttl_cap == 3600
    lab = Lab(ttl_cap=300, include=Include.ANSWER)
    lab.hear_all()
    lab.clock.advance(200)
    response = lab.ask()
    assert isinstance(response, Response)
    assert [one.ttl for one in response.answer[::2]] == [100, 100]
    assert 700 <= response.answer[1].ttl <= 800, "the chain keeps its own"
    lab.clock.advance(100)
    assert lab.ask() is None


async def test_what_is_learned_here_is_kept_and_shared_for_no_longer_than_the_cap() -> None:
    learned: list[Answer] = []
    async with swild_bed(ttl_cap=1000, learned=learned.append) as bed:
        await bed.learn()
        bed.at(900)
        reply, _ = await bed.ask("foo.com.", SWILD)
        assert texts(reply.answer) == swild(ttl=100)
        bed.at(1001)
        assert (await bed.ask("yyy.foo.com."))[1] == ["yyy.foo.com. A"]
        await bed.ask("foo.com.", SWILD)
    assert [answer.ttl for answer in learned if answer.type == SWILD] == [1000, 1000]


async def test_one_without_signatures_is_hearsay_even_beside_a_validated_answer() -> None:
    authority = Authority(*FOO, *BAR, *swild(), asides=swild(), aa=False)
    authority.ad = True
    async with swild_bed(authority, authoritative=False, validating=True) as bed:
        await bed.ask("xxx.foo.com.")
        assert bed.count("swild_refused_hearsay") == 1
        assert bed.count("swild_owners") == 0


def test_a_peers_renewal_prolongs_and_an_answer_does_not(lab: Lab) -> None:
    lab.hear_all()
    for _ in range(3):
        lab.clock.advance(20000)
        lab.hear("_.foo.com.", "A", ADDRESS)
        assert lab.synthesises()
    lab.hear_swild()
    lab.clock.advance(70000)
    lab.hear("_.foo.com.", "A", ADDRESS)
    assert lab.synthesises()


async def test_what_waited_for_the_end_of_the_chain_is_counted_down(lab: Lab) -> None:
    lab.hear("xxx.foo.com.", "CNAME", "_.foo.com.", 600)
    lab.hear("_.foo.com.", "CNAME", "map.bar.net.", 100, transport="")
    lab.hear_swild()
    lab.rest.later = True
    lab.rest.response = Response(NOERROR, (rrset("map.bar.net.", "A", 50, ADDRESS),))
    found = lab.ask()
    assert callable(found)
    response = await found()
    assert [one.ttl for one in response.answer] == [597, 97, 50]
    lab.rest.response = None
    found = lab.ask("zzz.foo.com.")
    assert callable(found)
    assert await found() is None


def test_a_failure_to_find_the_end_is_the_answer(lab: Lab) -> None:
    lab.hear_alias()
    lab.hear_swild()
    lab.rest.response = Response(2, errors=((Ede.NETWORK_ERROR, "x"),))
    response = lab.ask()
    assert isinstance(response, Response)
    assert (response.rcode, response.answer, response.errors) == (2, (), ((Ede.NETWORK_ERROR, "x"),))
    assert lab.stage.synthesised == 0
    lab.rest.response = None
    assert lab.ask() is None


def test_a_chain_of_too_many_links(lab: Lab) -> None:
    lab.hear_alias()
    lab.hear_swild()
    links = [rrset(f"n{n}.x.", "CNAME", 60, wire(f"n{n + 1}.x.")) for n in range(11)]
    lab.rest.response = Response(NOERROR, (*links, rrset("n11.x.", "A", 60, ADDRESS)))
    response = lab.ask()
    assert isinstance(response, Response)
    assert (response.rcode, response.answer) == (2, ())


# h. DNSSEC


def test_a_signed_zone_behind_validating_upstreams_is_left_alone() -> None:
    sigs = {
        "alias": signature("xxx.foo.com.", "CNAME", labels=2),
        "swild": signature("w.foo.com.", SWILD, labels=2),
    }
    for validating in (True, False):
        lab = Lab(validating=validating)
        lab.hear_alias(sigs=sigs["alias"], transport="")
        lab.hear("_.foo.com.", "A", ADDRESS)
        lab.hear_swild(sigs=sigs["swild"])
        assert lab.synthesises() == (not validating)
        assert lab.stage.statistics()["swild_passed_signed"] == validating


def test_clients_that_validate_are_passed_on(lab: Lab) -> None:
    lab.hear_all()
    assert lab.ask(do=True) is None
    assert lab.ask(flags=RD | 0x10) is None
    assert lab.stage.statistics()["swild_passed_dnssec"] == 2


# i. Types


def test_any_gets_one_rrset_and_a_zones_own_types_are_passed_on(lab: Lab) -> None:
    lab.hear_all()
    response = lab.ask(rrtype=255)
    assert isinstance(response, Response)
    assert [one.type for one in response.answer] == [5]
    types = (43, 2, 6, 46, 47, 48, 50, 51, 59, 60, 62, 249)
    for rrtype in types:
        assert lab.ask(rrtype=rrtype) is None, rrtype
    assert lab.stage.statistics()["swild_passed_type"] == len(types)


# l. Block-lists


def test_what_is_blocked_is_blocked_first(lab: Lab) -> None:
    class Blocked:
        def answer(self, query: Query, now: float) -> Found:
            return Response(NXDOMAIN, errors=((15, "blocked"),)) if query.qname == wire("bad.foo.com.") else None

    lab.hear_all()
    order = LookupOrder([Blocked(), CacheStage(lab.cache), lab.stage], lab.clock)
    for name, rcode in (("bad.foo.com.", NXDOMAIN), ("good.foo.com.", NOERROR)):
        response = order.answer(Query(b"\0\1", RD, question_section(wire(name), 1), wire(name), 1, None), NOW)
        assert isinstance(response, Response)
        assert response.rcode == rcode


# o. What a response carries


@pytest.mark.parametrize("include", list(Include))
async def test_the_response_carries_the_swild(include: Include) -> None:
    async with swild_bed(include=include) as bed:
        await bed.learn()
        bed.at(1)
        reply, asked = await bed.ask("yyy.foo.com.")
        assert asked == []
        wanted = swild(ttl=86399)
        assert texts(reply.answer)[3:] == (wanted if include is Include.ANSWER else [])
        assert texts(reply.additional) == (wanted if include is Include.ADDITIONAL else [])
        reply, _ = await bed.ask("_.foo.com.")
        assert len(reply.answer) == 2, "only what is synthesised carries it"


@pytest.mark.parametrize("include", [Include.ANSWER, Include.ADDITIONAL])
async def test_the_next_forwarder_learns_it_from_a_response(include: Include) -> None:
    async with swild_bed(include=include) as bed:
        await bed.learn()
        bed.at(1)

        def without_dnssec(query: dns.message.Message, stream: bool) -> bytes:
            query.use_edns(-1)  # whoever asks with DO=1 is given nothing that was made up
            reply = bed.shim._service.handle(query.to_wire(), "127.0.0.1", Channel.UDP)
            assert isinstance(reply, bytes)
            return reply

        options = SwildSettings(zones=frozenset({b"\0"}), include=include)
        async with (
            ScriptedUpstream(without_dnssec) as between,
            Shim(settings(between, swild=options), Cache("behind"), lambda answer: None, bed.clock) as shim,
        ):
            await ask(shim.endpoints[0], "one.foo.com.")
            await until(lambda: shim.statistics()["swild_owners"])
            queries = shim.statistics()["upstream_queries"]
            reply = await ask(shim.endpoints[0], "two.foo.com.")
            assert shim.statistics()["upstream_queries"] == queries == 2
            assert texts(reply.answer)[:3] == chain("two.foo.com.", 600, 3599, 599)
            assert SWILD in (texts(reply.answer) + texts(reply.additional))[-1]
        assert bed.authority.asked == ["xxx.foo.com. A"]


def test_an_additional_record_that_does_not_fit_is_left_out() -> None:
    qname = wire("yyy.foo.com.")
    query = Query(b"\0\1", RD, question_section(qname, 1), qname, 1, None)
    extra = rrset("foo.com.", SWILD, 60, wire("_.foo.com."))
    response = Response(NOERROR, (rrset("yyy.foo.com.", "A", 60, ADDRESS),), additional=(extra,))
    whole = compose_reply(query, response, 512)
    assert len(parse(whole).additional) == 1
    cut = compose_reply(query, response, len(whole) - 1)
    assert (len(parse(cut).additional), len(parse(cut).answer), cut[2] & 2) == (0, 1, 0)


# What is remembered


def test_a_flush_makes_everything_be_learned_anew(lab: Lab) -> None:
    lab.hear_all()
    lab.clock.advance(1)
    lab.cache.flush(wire("foo.com."), lab.clock(), subtree=True)
    assert not lab.synthesises()
    lab.clock.advance(1)
    lab.hear("_.foo.com.", "A", ADDRESS)
    lab.hear_swild()
    assert not lab.synthesises(), "no CNAME was seen since"
    lab.hear_alias("fresh.foo.com.")
    assert lab.synthesises()


def test_a_flush_of_something_else_changes_nothing(lab: Lab) -> None:
    lab.hear_all()
    lab.clock.advance(1)
    lab.cache.flush(wire("other.net."), lab.clock())
    lab.hear("new.net.", "A", ADDRESS)
    assert lab.synthesises()


def test_memory_is_bounded(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swild_owners, "MAX_OWNERS", 10)
    for number in range(25):
        lab.hear(f"z{number}.com.", SWILD, f"_.z{number}.com.")
    assert len(lab.swilds.owners) == 10
    assert lab.swilds.statistics()["swild_forgotten"] == 15
    recent: Recent[int, int] = Recent(10)
    for number in range(100):
        recent.put(number, number)
    assert sum(recent.get(number) is not None for number in range(100)) <= 10
    assert recent.get(99) == 99


def test_an_owner_whose_swild_has_ended_is_forgotten_in_the_end(lab: Lab) -> None:
    lab.hear_all()
    lab.clock.advance(86401)
    assert lab.ask() is None
    assert lab.swilds.owners
    lab.clock.advance(swild_owners.DEAD_KEPT)
    assert lab.ask() is None
    assert not lab.swilds.owners


def test_a_reload_keeps_what_is_known() -> None:
    lab = Lab()
    lab.hear_all()
    after = Swilds(lab.cache, SwildSettings(zones=frozenset({b"\0"})))
    after.inherit(lab.swilds)
    assert after.owners == lab.swilds.owners
    other = Swilds(lab.cache, SwildSettings(zones=frozenset({wire("com.")})))
    other.inherit(lab.swilds)
    other.inherit(None)
    assert not other.owners


def test_names_saved_are_counted_once(lab: Lab) -> None:
    lab.hear_all()
    before = lab.cache.statistics()
    for _ in range(2):
        for number in range(1000):
            assert lab.synthesises(f"n{number}.foo.com.")
    statistics = lab.stage.statistics()
    assert statistics["swild_synthesised"] == 2000
    assert 990 <= statistics["swild_entries_saved"] <= 1000
    after = lab.cache.statistics()
    assert (after["entries"], after["bytes"]) == (before["entries"], before["bytes"])


# The forms


@pytest.mark.parametrize(
    ("alias", "target", "owner"),
    [
        ("x.foo.com.", "_.foo.com.", "foo.com."),
        ("a.b.foo.com.", "_.foo.com.", "foo.com."),
        ("k.a.foo.com.", "_.a.foo.com.", "a.foo.com."),
        ("x.foo.com.", "_.w.foo.com.", "foo.com."),
        ("x.foo.com.", "foo.com.", None),
        ("x._.foo.com.", "_.foo.com.", None),
        ("_.foo.com.", "_.foo.com.", None),
        ("x.com.", "y.com.", None),
        ("x.bar.net.", "_.foo.net.", None),
        ("x.ofoo.com.", "_.foo.com.", None),
        ("a.b.", "c.b.", None),
        ("x.a.b.", "y.a.b.", "a.b."),
    ],
)
def test_whose_wildcard_a_cname_could_be(alias: str, target: str, owner: str | None) -> None:
    assert common_owner(wire(alias), wire(target)) == (None if owner is None else wire(owner))


def test_the_branch_of_a_target() -> None:
    assert branch(wire("foo.com."), wire("_.foo.com.")) == wire("_.foo.com.")
    assert branch(wire("foo.com."), wire("a.b.w.foo.com.")) == wire("w.foo.com.")
