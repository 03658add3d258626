"""Client subnets (RFC 7871): what is told, what is kept for whom, what the client gets, and what is off by default."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from ipaddress import ip_network
from typing import Any

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import pytest

from cachebus.answer import Answer
from cachebus.cache import Cache
from cachebus.errors import ConfigError
from cachebus.flushes import Flush
from cachebus.presentation import name_from_text
from cachebus.shim import Shim, UpstreamSettings
from cachebus.shim.caching import CachingSettings, SubnetSettings
from cachebus.shim.local_settings import LocalSettings
from cachebus.shim.query import Edns, Query, Response
from cachebus.shim.subnet import (
    MAX_NETWORKS,
    MalformedSubnetError,
    Subnet,
    Subnets,
    find_subnet,
    parse_subnet,
    scope_in,
    subnet_option,
)
from cachebus.shim.swild_owners import Include, SwildSettings
from cachebus.testing import ManualClock
from cachebus.wire import rrtypes
from tests.unit.shim_bed import Reply, ScriptedUpstream, ask, bus_answer, records, reply_to, rrset, settings, texts

WWW = name_from_text("www.example.")
NOW = 1_800_000_000.0


def ecs(text: str, bits: int, scope: int = 0) -> dns.edns.ECSOption:
    return dns.edns.ECSOption(text, bits, scope)


def subnets_of(message: dns.message.Message) -> list[str]:
    return [option.to_text() for option in message.options if isinstance(option, dns.edns.ECSOption)]


class Tailor:
    """An upstream whose answer tells which subnet it was told, with a scope of the test's choice."""

    def __init__(self, scope: int = 24) -> None:
        self.scope = scope
        self.told: list[str] = []
        self.server = ScriptedUpstream(self._respond)

    def _respond(self, query: dns.message.Message, stream: bool) -> Reply:
        told = [option for option in query.options if isinstance(option, dns.edns.ECSOption)]
        self.told.append(f"{told[0].address}/{told[0].srclen}" if told else "")
        last = told[0].address.split(".")[2] if told else "0"
        answer = records(f"{query.question[0].name} 300 IN A 192.0.2.{last}")
        response = dns.message.from_wire(reply_to(query, answer, flags=dns.flags.AA))
        if told:
            response.use_edns(0, options=[ecs(told[0].address, told[0].srclen, self.scope)])
        elif self.scope < 0:
            response.use_edns(0, options=[ecs("198.51.0.0", 24, 24)])
        return response.to_wire()

    @asynccontextmanager
    async def shim(self, local: Sequence[str] = (), swild: bool = False, **subnet: Any) -> AsyncIterator[Shim]:
        self.cache = Cache("node-a")
        self.learned: list[Answer] = []
        self.clock = ManualClock()
        async with self.server as server:
            upstream = UpstreamSettings(address=server.address, authoritative=True)
            caching = CachingSettings(subnet=SubnetSettings(**subnet))
            chosen = settings(
                upstream,
                caching=caching,
                local=LocalSettings(records=local),
                swild=SwildSettings(zones=frozenset({b"\0"} if swild else ()), include=Include.OFF),
            )
            shim = Shim(chosen, self.cache, self._learned, self.clock)
            await shim.prepare()
            async with shim:
                yield shim

    def _learned(self, answer: Answer) -> None:
        self.learned.append(answer)


async def asks(shim: Shim, *options: dns.edns.Option, name: str = "www.example.", **more: Any) -> dns.message.Message:
    return await ask(shim.endpoints[0], name, use_edns=0, options=list(options), **more)


async def test_off_no_subnet_is_told_and_the_clients_option_is_ignored() -> None:
    tailor = Tailor()
    async with tailor.shim() as shim:
        for subnet in ("198.51.1.0", "198.51.2.0"):
            reply = await asks(shim, ecs(subnet, 24))
            assert texts(reply.answer) == ["www.example. 300 IN A 192.0.2.0"]
            assert subnets_of(reply) == []
        assert tailor.told == [""]
        assert len(tailor.learned) == 1


async def test_off_what_comes_with_a_scope_all_the_same_is_kept_for_nobody_and_not_shared() -> None:
    tailor = Tailor(-1)
    async with tailor.shim() as shim:
        for _ in range(2):
            assert (await asks(shim)).rcode() == 0
        assert tailor.told == ["", ""]
        assert (tailor.learned, tailor.cache.statistics()["entries"]) == ([], 0)
        assert shim.statistics()["not_shared_client_subnet"] == 2


async def test_on_each_network_gets_its_own_answer_and_others_do_not() -> None:
    tailor = Tailor()
    async with tailor.shim(send=True) as shim:
        for _ in range(2):
            for third in (1, 2):
                reply = await asks(shim, ecs(f"198.51.{third}.7", 32))
                assert texts(reply.answer) == [f"www.example. 300 IN A 192.0.2.{third}"]
                assert subnets_of(reply) == [f"ECS 198.51.{third}.7/32 scope/24"]
        assert tailor.told == ["198.51.1.0/24", "198.51.2.0/24"]
        assert (tailor.learned, tailor.cache.statistics()["entries"]) == ([], 0), "in no cache and on no bus"
        tailor.clock.advance(100)
        assert (await asks(shim, ecs("198.51.1.0", 24))).answer[0].ttl == 200
        tailor.clock.advance(200)
        await asks(shim, ecs("198.51.1.0", 24))
        assert len(tailor.told) == 3


async def test_on_a_wide_scope_serves_the_wide_network_and_a_scope_of_0_everybody() -> None:
    tailor = Tailor(16)
    async with tailor.shim(send=True) as shim:
        await asks(shim, ecs("198.51.1.0", 24))
        assert texts((await asks(shim, ecs("198.51.9.0", 24))).answer) == ["www.example. 300 IN A 192.0.2.1"]
        tailor.scope = 0
        await asks(shim, ecs("198.51.1.0", 24), name="all.example.")
        reply = await asks(shim, ecs("203.0.113.0", 24), name="all.example.")
        assert subnets_of(reply) == ["ECS 203.0.113.0/24 scope/0"]
        assert len(tailor.told) == 2
        assert [answer.name for answer in tailor.learned] == ["all.example."]


async def test_on_a_name_that_differs_by_network_is_not_answered_from_the_cache() -> None:
    tailor = Tailor()
    async with tailor.shim(send=True) as shim:
        await asks(shim)
        assert tailor.told == [""], "loopback means nothing to anybody else"
        assert texts((await asks(shim, ecs("198.51.1.0", 24))).answer) == ["www.example. 300 IN A 192.0.2.0"]
        tailor.clock.advance(301)
        await asks(shim, ecs("198.51.1.0", 24))
        await asks(shim)
        assert texts((await asks(shim, ecs("198.51.2.0", 24))).answer) == ["www.example. 300 IN A 192.0.2.2"]


async def test_on_a_client_can_want_none_told_and_zones_and_networks_limit_it() -> None:
    tailor = Tailor()
    limits: dict[str, Any] = {"zones": (name_from_text("example."),), "networks": (ip_network("127.0.0.0/8"),)}
    async with tailor.shim(send=True, **limits) as shim:
        await asks(shim, ecs("0.0.0.0", 0), name="none.example.")
        await asks(shim, ecs("198.51.1.0", 24), name="www.other.")
        await asks(shim, ecs("198.51.1.0", 24), name="www.example.")
        await ask(shim.endpoints[0], "mx.example.", "MX", use_edns=0, options=[ecs("198.51.1.0", 24)])
        assert tailor.told == ["", "", "198.51.1.0/24", ""]
    tailor = Tailor()
    async with tailor.shim(send=True, networks=(ip_network("192.0.2.0/24"),)) as shim:
        await asks(shim, ecs("198.51.1.0", 24))
        assert tailor.told == [""]


async def test_on_a_name_outside_the_zones_is_told_no_subnet_though_a_chain_leads_there() -> None:
    tailor = Tailor()
    well = tailor.server._respond

    def aliased(query: dns.message.Message, stream: bool) -> Reply:
        reply = well(query, stream)
        if str(query.question[0].name) != "www.example.":
            return reply
        response = dns.message.from_wire(reply)
        response.answer = records("www.example. 300 IN CNAME www.other.")
        return response.to_wire()

    tailor.server._respond = aliased
    async with tailor.shim(send=True, zones=(name_from_text("example."),)) as shim:
        reply = await asks(shim, ecs("198.51.1.0", 24))
        assert texts(reply.answer)[1:] == ["www.other. 300 IN A 192.0.2.0"]
        assert subnets_of(reply) == ["ECS 198.51.1.0/24 scope/24"]
        assert tailor.told == ["198.51.1.0/24", ""]


async def test_on_a_malformed_option_is_a_malformed_query() -> None:
    tailor = Tailor()
    async with tailor.shim(send=True) as shim:
        for data in (b"", b"\0\1\x18\0\xc6\x33\1\1", b"\0\1\x21\0" + bytes(5), b"\0\3\x08\0\1", b"\0\1\x18\0\xc6\x33"):
            reply = await asks(shim, dns.edns.GenericOption(8, data))
            assert reply.rcode() == dns.rcode.FORMERR
        assert tailor.told == []
        assert shim.statistics()["subnet_malformed"] == 5


async def test_on_an_answer_for_another_network_than_was_told_is_not_used() -> None:
    tailor = Tailor()

    def other(query: dns.message.Message, stream: bool) -> Reply:
        response = dns.message.from_wire(reply_to(query, records("www.example. 300 IN A 192.0.2.66")))
        response.use_edns(0, options=[ecs("203.0.113.0", 24, 24)])
        return response.to_wire()

    tailor.server._respond = other
    async with tailor.shim(send=True) as shim:
        reply = await asks(shim, ecs("198.51.1.0", 24))
        assert reply.rcode() == dns.rcode.SERVFAIL
        assert tailor.cache.statistics()["entries"] == 0


async def test_a_local_alias_of_a_name_that_differs_by_network_leads_to_each_ones_own() -> None:
    tailor = Tailor()
    async with tailor.shim(local=["alias.home. CNAME www.example."], send=True) as shim:
        for _ in range(2):
            for third in (1, 2):
                reply = await asks(shim, ecs(f"198.51.{third}.0", 24), name="alias.home.")
                assert texts(reply.answer)[1:] == [f"www.example. 300 IN A 192.0.2.{third}"]
                assert subnets_of(reply) == [f"ECS 198.51.{third}.0/24 scope/24"]
        assert len(tailor.told) == 2
        told = bus_answer(rrset("www.example.", "A", 300, bytes((192, 0, 2, 99))), learned=tailor.clock())
        assert tailor.cache.put(told, tailor.clock()) is None
        reply = await asks(shim, ecs("198.51.1.0", 24), name="alias.home.")
        assert texts(reply.answer)[1:] == ["www.example. 300 IN A 192.0.2.1"]
        assert shim.statistics()["subnet_hits"] == 3


async def test_a_swild_of_a_target_that_differs_by_network_leads_to_each_ones_own() -> None:
    tailor = Tailor()
    async with tailor.shim(swild=True, send=True) as shim:
        target = name_from_text("_.foo.example.")
        for one in (rrset("foo.example.", "TYPE65392", 300, target), rrset("x.foo.example.", "CNAME", 300, target)):
            assert tailor.cache.put(bus_answer(one, learned=tailor.clock()), tailor.clock()) is None
        for number in range(2):
            for third in (1, 2):
                name = f"n{number}{third}.foo.example."
                reply = await asks(shim, ecs(f"198.51.{third}.0", 24), name=name)
                assert texts(reply.answer)[1:] == [f"_.foo.example. 300 IN A 192.0.2.{third}"]
                assert subnets_of(reply) == [f"ECS 198.51.{third}.0/24 scope/24"]
        assert tailor.told == ["198.51.1.0/24", "198.51.2.0/24"]


async def test_a_network_for_which_a_question_fails_makes_it_fail_for_nobody_else() -> None:
    tailor = Tailor()
    well = tailor.server._respond

    def picky(query: dns.message.Message, stream: bool) -> Reply:
        reply = well(query, stream)
        return reply_to(query, rcode=dns.rcode.SERVFAIL) if tailor.told[-1].startswith("203.") else reply

    tailor.server._respond = picky
    async with tailor.shim(send=True) as shim:
        for _ in range(2):
            assert (await asks(shim, ecs("203.0.113.0", 24))).rcode() == dns.rcode.SERVFAIL
        assert tailor.told == ["203.0.113.0/24"], "the failure is remembered"
        assert (await asks(shim, ecs("198.51.1.0", 24))).rcode() == dns.rcode.NOERROR


async def test_a_flush_takes_the_answers_of_all_networks() -> None:
    tailor = Tailor()
    async with tailor.shim(send=True) as shim:
        for third in (1, 2):
            await asks(shim, ecs(f"198.51.{third}.0", 24))
        assert shim.flush(Flush(WWW)) == 2
        await asks(shim, ecs("198.51.1.0", 24))
        assert len(tailor.told) == 3


# Parts


@pytest.mark.parametrize(
    ("text", "bits", "told"),
    [
        ("198.51.1.7", 32, "198.51.1.0/24"),
        ("198.51.0.0", 20, "198.51.0.0/20"),
        ("2001:db8:1:2::", 64, "2001:db8:1::/56"),
    ],
)
def test_no_more_is_told_than_is_configured(text: str, bits: int, told: str) -> None:
    option = subnet_option(ecs(text, bits).to_wire() or b"")
    query = Query(b"\0\1", 0x100, b"", WWW, rrtypes.A, Edns(1232, do=False, options=option), "198.51.9.9")
    network = ip_network(told)
    found = parse_subnet(Subnets(SubnetSettings(send=True)).of(query))
    assert (found.source, found.address) == (
        network.prefixlen,
        int(network[0]) >> (network.max_prefixlen - found.source),
    )


@pytest.mark.parametrize(
    ("client", "told"),
    [
        ("8.8.8.8", "8.8.8.0/24"), ("::ffff:8.8.8.8", "8.8.8.0/24"), ("2600:1:2:3ff::1", "2600:1:2:300::/56"),
        ("10.0.0.1", ""), ("127.0.0.1", ""), ("fe80::1%eth0", ""), ("fd00::1", ""),
    ],
)  # fmt: skip
def test_a_clients_own_address_is_told_only_where_it_means_something(client: str, told: str) -> None:
    query = Query(b"\0\1", 0x100, b"", WWW, rrtypes.A, None, client)
    option = Subnets(SubnetSettings(send=True)).of(query)
    if not told:
        assert option == b""
        return
    text, bits = told.split("/")
    assert option == ecs(text, int(bits)).to_wire()


@pytest.mark.parametrize(
    ("reply", "told", "scope"),
    [
        (ecs("198.51.1.0", 24, 20), "198.51.1.0/24", 20),
        (ecs("198.51.1.0", 24, 32), "198.51.1.0/24", 24),
        (ecs("198.51.1.0", 24, 0), "198.51.1.0/24", 0),
        (ecs("198.51.0.0", 16, 16), "198.51.1.0/24", None),
        (ecs("2001:db8::", 24, 24), "198.51.1.0/24", None),
        (None, "198.51.1.0/24", 0),
        (ecs("198.51.1.0", 24, 24), "", -1),
        (ecs("198.51.1.0", 24, 0), "", 0),
    ],
)
def test_for_whom_a_reply_is(reply: dns.edns.ECSOption | None, told: str, scope: int | None) -> None:
    options = b"" if reply is None else subnet_option(reply.to_wire() or b"")
    asked = b""
    if told:
        text, bits = told.split("/")
        asked = ecs(text, int(bits)).to_wire() or b""
    assert scope_in(options, asked) == scope


def test_two_options_are_one_too_many() -> None:
    option = subnet_option(b"\0\1\x08\0\1")
    assert find_subnet(b"\0\x0a\0\x01x" + option) == Subnet(1, 8, 1)
    assert find_subnet(b"\0\x0a\0\x01x") is None
    with pytest.raises(MalformedSubnetError):
        find_subnet(option * 2)


def test_answers_for_networks_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cachebus.shim.subnet.MAX_ANSWERS", 300)
    subnets = Subnets(SubnetSettings(send=True))
    for owner in ("a.example.", "b.example."):
        for number in range(MAX_NETWORKS + 20):
            told = Subnet(1, 24, number).option()
            response = Response(0, (rrset(owner, "A", 300 + number, bytes(4)),), scope=24)
            subnets.finished(name_from_text(owner), 1, told, response, NOW)
    statistics = subnets.statistics()
    assert statistics["subnet_known"] == 300
    assert statistics["subnet_evicted"] == 2 * (MAX_NETWORKS + 20) - 300
    assert subnets.find(name_from_text("b.example."), 1, Subnet(1, 24, MAX_NETWORKS + 19).option(), NOW) is not None
    assert subnets.forget(Flush(b"\0", subtree=True)) == 300
    assert not subnets.knows(name_from_text("b.example."), 1)


def test_bits_are_checked() -> None:
    with pytest.raises(ConfigError):
        SubnetSettings(ipv4=25)
