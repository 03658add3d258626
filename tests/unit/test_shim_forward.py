"""Forwarding over real sockets to scripted upstreams: retries, fallbacks, forgeries, health, what is passed on."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import pytest
import trustme

from cachebus.answer import Answer, Evidence
from cachebus.cache import Cache
from cachebus.errors import ConfigError, TransportError
from cachebus.presentation import name_from_text
from cachebus.shim import Shim, ShimSettings, UpstreamSettings
from cachebus.shim.exchange import (
    CaseNotKeptError,
    Outgoing,
    belongs,
    compose_query,
    mixed_case,
)
from cachebus.shim.forward import TRY_INTERVAL
from cachebus.shim.query import Channel
from cachebus.shim.upstream import Health, Upstream, question_in_lower_case
from cachebus.testing import ManualClock
from tests.servers import free_port
from tests.unit.shim_bed import Reply, ScriptedUpstream, ask, records, reply_to, settings, texts, until

ADDRESS = records("www.example. 300 IN A 192.0.2.1")
SOA = records("example. 3600 IN SOA ns.example. host.example. 1 7200 3600 604800 60")


@asynccontextmanager
async def shim_before(
    *upstreams: ScriptedUpstream | UpstreamSettings,
    learned: Callable[[Answer], object] = lambda answer: None,
    **changes: Any,
) -> AsyncIterator[Shim]:
    chosen: ShimSettings = settings(*upstreams, **changes)
    async with Shim(chosen, Cache("node-a"), learned, ManualClock()) as shim:
        yield shim


def says(*answer: str, **options: Any) -> Callable[[dns.message.Message, bool], Reply]:
    return lambda query, stream: reply_to(query, records(*answer) if answer else (), **options)


async def test_a_miss_goes_upstream_once_and_then_comes_from_the_cache() -> None:
    async with ScriptedUpstream(says("www.example. 300 IN A 192.0.2.1")) as upstream, shim_before(upstream) as shim:
        for name in ("www.example.", "WWW.Example."):
            reply = await ask(shim.endpoints[0], name)
            assert texts(reply.answer) == [f"{name} 300 IN A 192.0.2.1"]
            assert reply.flags == dns.flags.QR | dns.flags.RD | dns.flags.RA
        (query,) = upstream.queries
        assert query.flags == dns.flags.RD
        assert (query.edns, query.payload, query.ednsflags) == (0, 1232, dns.flags.DO)
        assert shim.statistics()["hits"] == 1


async def test_equal_questions_under_way_share_one_look_up() -> None:
    gate = asyncio.Event()
    async with ScriptedUpstream(lambda query, stream: None) as upstream:
        upstream._respond = says("www.example. 300 IN A 192.0.2.1")
        original = upstream.datagram_received

        def held(data: bytes, addr: Any) -> None:
            async def later() -> None:
                await gate.wait()
                original(data, addr)

            tasks.append(asyncio.create_task(later()))

        tasks: list[asyncio.Task[None]] = []
        upstream.datagram_received = held  # type: ignore[method-assign]
        async with shim_before(upstream) as shim:
            asking = [asyncio.create_task(ask(shim.endpoints[0], "www.example.")) for _ in range(10)]
            await until(lambda: shim.statistics()["joined"] == 9)
            gate.set()
            replies = await asyncio.gather(*asking)
            await asyncio.gather(*tasks)
    assert len(upstream.queries) == 1
    assert len({reply.id for reply in replies}) > 1
    assert all(texts(reply.answer) == ["www.example. 300 IN A 192.0.2.1"] for reply in replies)


async def test_tc_over_udp_is_asked_again_over_tcp() -> None:
    def respond(query: dns.message.Message, stream: bool) -> Reply:
        return reply_to(query, ADDRESS) if stream else reply_to(query, flags=dns.flags.TC)

    async with ScriptedUpstream(respond) as upstream, shim_before(upstream) as shim:
        assert texts((await ask(shim.endpoints[0], "www.example.")).answer) == ["www.example. 300 IN A 192.0.2.1"]
        assert (len(upstream.queries), upstream.connections) == (2, 1)
        await ask(shim.endpoints[0], "two.example.")
        assert upstream.connections == 1, "the connection is kept"
        upstream.drop_connections()
        await ask(shim.endpoints[0], "three.example.")
        assert upstream.connections == 2, "and opened again"
        assert shim.statistics()["servfail"] == 0


async def test_a_lost_datagram_is_sent_again() -> None:
    def respond(query: dns.message.Message, stream: bool) -> Reply:
        return None if len(upstream.queries) == 1 else reply_to(query, ADDRESS)

    async with ScriptedUpstream(respond) as upstream, shim_before(upstream) as shim:
        assert (await ask(shim.endpoints[0], "www.example.")).rcode() == 0
        assert len(upstream.queries) == 2
        assert upstream.queries[0].id != upstream.queries[1].id or upstream.wires[0] != upstream.wires[1]
        assert len(set(upstream.ports)) == 2


async def test_a_silent_upstream_gives_way_to_the_next_and_is_asked_last_from_then_on() -> None:
    async with (
        ScriptedUpstream(lambda query, stream: None) as silent,
        ScriptedUpstream(says("www.example. 300 IN A 192.0.2.1")) as good,
        shim_before(silent, good) as shim,
    ):
        loop = asyncio.get_running_loop()
        start = loop.time()
        assert (await ask(shim.endpoints[0], "www.example.")).rcode() == 0
        assert loop.time() - start >= 2 * TRY_INTERVAL
        assert len(silent.queries) == 2
        await ask(shim.endpoints[0], "two.example.")
        assert len(silent.queries) == 2


async def test_a_late_answer_of_the_first_try_still_counts() -> None:
    async with ScriptedUpstream(lambda query, stream: None) as upstream, shim_before(upstream) as shim:
        asking = asyncio.create_task(ask(shim.endpoints[0], "www.example."))
        await until(lambda: len(upstream.queries) == 2)
        upstream._transport.sendto(reply_to(upstream.queries[0], ADDRESS), ("127.0.0.1", upstream.ports[0]))
        assert (await asking).rcode() == 0


async def test_closed_ports_fail_at_once() -> None:
    dead = UpstreamSettings(address=("127.0.0.1", free_port()))
    async with shim_before(dead) as shim:
        loop = asyncio.get_running_loop()
        start = loop.time()
        reply = await ask(shim.endpoints[0], "www.example.", use_edns=0)
        assert loop.time() - start < TRY_INTERVAL
    assert reply.rcode() == dns.rcode.SERVFAIL
    assert [int(option.code) for option in reply.options] == [22]


async def test_nobody_answers_within_the_timeout() -> None:
    async with ScriptedUpstream(lambda query, stream: None) as silent, shim_before(silent, timeout=0.3) as shim:
        reply = await ask(shim.endpoints[0], "www.example.", use_edns=0)
        assert reply.rcode() == dns.rcode.SERVFAIL
        assert shim.statistics()["forward_failures"] == 1
        assert shim.statistics()["in_flight"] == 0


@pytest.mark.parametrize("rcode", [dns.rcode.SERVFAIL, dns.rcode.REFUSED, dns.rcode.NOTIMP, dns.rcode.FORMERR])
async def test_a_failing_upstream_gives_way_to_the_next(rcode: dns.rcode.Rcode) -> None:
    async with (
        ScriptedUpstream(says(rcode=rcode)) as failing,
        ScriptedUpstream(says("www.example. 300 IN A 192.0.2.1")) as good,
        shim_before(failing, good) as shim,
    ):
        assert (await ask(shim.endpoints[0], "www.example.")).rcode() == 0
        assert len(good.queries) == 1


async def test_what_a_validating_upstream_calls_bogus_is_asked_of_nobody_who_does_not_validate() -> None:
    def bogus(query: dns.message.Message, stream: bool) -> Reply:
        response = dns.message.make_response(query)
        response.set_rcode(dns.rcode.SERVFAIL)
        response.use_edns(0, options=[dns.edns.EDEOption(6, "secret text")])
        return response.to_wire()

    async with (
        ScriptedUpstream(bogus) as validating,
        ScriptedUpstream(says("www.example. 300 IN A 192.0.2.66")) as gullible,
    ):
        first = UpstreamSettings(address=validating.address, validating=True)
        async with shim_before(first, gullible) as shim:
            reply = await ask(shim.endpoints[0], "www.example.", use_edns=0)
    assert reply.rcode() == dns.rcode.SERVFAIL
    assert [(int(option.code), option.text) for option in reply.options] == [(6, None)]
    assert not gullible.queries


async def test_forged_datagrams_are_ignored() -> None:
    def respond(query: dns.message.Message, stream: bool) -> Reply:
        good = reply_to(query, ADDRESS)
        wrong_id = bytes((good[0] ^ 1,)) + good[1:]
        other = dns.message.make_query("evil.example.", "A")
        other.id = query.id
        wrong_question = reply_to(other, records("evil.example. 300 IN A 192.0.2.66"))
        not_a_response = good[:2] + bytes((good[2] & 0x7F,)) + good[3:]
        return [b"", b"\0" * 5, wrong_id, wrong_question, not_a_response, good]

    async with ScriptedUpstream(respond) as upstream, shim_before(upstream) as shim:
        assert texts((await ask(shim.endpoints[0], "www.example.")).answer) == ["www.example. 300 IN A 192.0.2.1"]


async def test_a_flood_of_forgeries_moves_the_question_to_tcp() -> None:
    def respond(query: dns.message.Message, stream: bool) -> Reply:
        good = reply_to(query, ADDRESS)
        return good if stream else [bytes((good[0] ^ 1,)) + good[1:]] * 20

    async with ScriptedUpstream(respond) as upstream, shim_before(upstream) as shim:
        assert (await ask(shim.endpoints[0], "www.example.")).rcode() == 0
        assert shim.statistics()["upstream_stray_replies"] == 1
        assert upstream.connections == 1


async def test_garbage_from_an_upstream_is_a_failure_without_a_traceback() -> None:
    def respond(query: dns.message.Message, stream: bool) -> Reply:
        return reply_to(query, ADDRESS)[:-3]

    async with ScriptedUpstream(respond) as upstream, shim_before(upstream) as shim:
        assert (await ask(shim.endpoints[0], "www.example.")).rcode() == dns.rcode.SERVFAIL
        assert shim.statistics()["upstream_malformed"] >= 1


async def test_a_server_without_edns_is_asked_without() -> None:
    def respond(query: dns.message.Message, stream: bool) -> Reply:
        if query.edns >= 0:
            return query.id.to_bytes(2, "big") + b"\x80\1" + bytes(8)
        return reply_to(query, ADDRESS)

    async with ScriptedUpstream(respond) as upstream, shim_before(upstream) as shim:
        assert (await ask(shim.endpoints[0], "www.example.", use_edns=0)).rcode() == 0
        assert [query.edns for query in upstream.queries] == [0, -1]


async def test_an_authoritative_upstream_is_asked_without_rd_and_its_chain_followed() -> None:
    def respond(query: dns.message.Message, stream: bool) -> Reply:
        name = query.question[0].name.to_text()
        line = {
            "www.example.": "www.example. 300 IN CNAME edge.other.",
            "edge.other.": "edge.other. 60 IN A 192.0.2.7",
        }[name]
        return reply_to(query, records(line), flags=dns.flags.AA)

    learned: list[Answer] = []
    async with ScriptedUpstream(respond) as server:
        upstream = UpstreamSettings(address=server.address, authoritative=True)
        async with shim_before(upstream, learned=learned.append) as shim:
            reply = await ask(shim.endpoints[0], "www.example.")
            again = await ask(shim.endpoints[0], "www.example.")
    assert texts(reply.answer) == ["www.example. 300 IN CNAME edge.other.", "edge.other. 60 IN A 192.0.2.7"]
    assert texts(again.answer) == texts(reply.answer)
    assert not reply.flags & dns.flags.AA
    assert [query.flags for query in server.queries] == [0, 0]
    assert [(answer.name, answer.type, answer.evidence) for answer in learned] == [
        ("www.example.", "CNAME", Evidence.AUTHORITATIVE),
        ("edge.other.", "A", Evidence.AUTHORITATIVE),
    ]


async def test_a_cname_loop_over_several_answers_ends_in_servfail() -> None:
    def respond(query: dns.message.Message, stream: bool) -> Reply:
        name = query.question[0].name.to_text()
        other = "b.example." if name == "a.example." else "a.example."
        return reply_to(query, records(f"{name} 300 IN CNAME {other}"))

    async with ScriptedUpstream(respond) as upstream, shim_before(upstream) as shim:
        assert (await ask(shim.endpoints[0], "a.example.")).rcode() == dns.rcode.SERVFAIL
        assert len(upstream.queries) == 2


async def test_an_endless_chain_ends_in_servfail() -> None:
    def respond(query: dns.message.Message, stream: bool) -> Reply:
        name = query.question[0].name.to_text()
        return reply_to(query, records(f"{name} 300 IN CNAME x{name}"))

    async with ScriptedUpstream(respond) as upstream, shim_before(upstream) as shim:
        assert (await ask(shim.endpoints[0], "a.example.")).rcode() == dns.rcode.SERVFAIL
        assert len(upstream.queries) == 11


@pytest.mark.parametrize("flags", [0, dns.flags.AA])
async def test_a_referral_is_no_answer(flags: int) -> None:
    referral = records("example. 300 IN NS ns.example.")
    async with ScriptedUpstream(lambda query, stream: reply_to(query, authority=referral, flags=flags)) as server:
        upstream = UpstreamSettings(address=server.address, authoritative=True)
        async with shim_before(upstream) as shim:
            reply = await ask(shim.endpoints[0], "www.example.", use_edns=0)
    assert reply.rcode() == dns.rcode.SERVFAIL
    assert [int(option.code) for option in reply.options] == [22]


async def test_without_authority_an_authoritative_upstream_is_lame() -> None:
    async with ScriptedUpstream(says("www.example. 300 IN A 192.0.2.1")) as server:
        upstream = UpstreamSettings(address=server.address, authoritative=True)
        async with shim_before(upstream) as shim:
            assert (await ask(shim.endpoints[0], "www.example.")).rcode() == dns.rcode.SERVFAIL


@pytest.mark.parametrize("rcode", [dns.rcode.NOERROR, dns.rcode.NXDOMAIN])
async def test_denials_are_kept_for_as_long_as_the_soa_says(rcode: dns.rcode.Rcode) -> None:
    clock = ManualClock()
    async with (
        ScriptedUpstream(lambda query, stream: reply_to(query, authority=SOA, rcode=rcode)) as upstream,
        Shim(settings(upstream), Cache("node-a"), lambda answer: None, clock) as shim,
    ):
        for later in (0, 59):
            clock.advance(later)
            reply = await ask(shim.endpoints[0], "no.example.")
            assert reply.rcode() == rcode
            assert reply.authority[0].rdtype == 6
        assert reply.authority[0].ttl == 1
        assert len(upstream.queries) == 1
        clock.advance(1)
        await ask(shim.endpoints[0], "no.example.")
        assert len(upstream.queries) == 2


async def test_a_denial_behind_a_cname_is_kept_under_the_target() -> None:
    chain = records("www.example. 300 IN CNAME gone.example.")
    respond = lambda query, stream: reply_to(query, chain, authority=SOA, rcode=dns.rcode.NXDOMAIN)  # noqa: E731
    async with ScriptedUpstream(respond) as upstream, shim_before(upstream) as shim:
        for _ in range(2):
            reply = await ask(shim.endpoints[0], "www.example.")
            assert reply.rcode() == dns.rcode.NXDOMAIN
            assert texts(reply.answer) == ["www.example. 300 IN CNAME gone.example."]
        assert len(upstream.queries) == 1


@pytest.mark.parametrize(
    "authority", [[], records("other. 3600 IN SOA ns.other. host.other. 1 7200 3600 604800 60")], ids=["none", "other"]
)
async def test_denials_without_the_zones_soa_are_passed_on_and_not_kept(authority: Any) -> None:
    respond = lambda query, stream: reply_to(query, authority=authority, rcode=dns.rcode.NXDOMAIN)  # noqa: E731
    async with ScriptedUpstream(respond) as upstream, shim_before(upstream) as shim:
        for _ in range(2):
            assert (await ask(shim.endpoints[0], "no.example.")).rcode() == dns.rcode.NXDOMAIN
        assert len(upstream.queries) == 2


async def test_checking_disabled_goes_upstream_as_such_and_is_not_kept() -> None:
    learned: list[Answer] = []
    async with ScriptedUpstream(says("www.example. 300 IN A 192.0.2.1", flags=dns.flags.AA)) as server:
        upstream = UpstreamSettings(address=server.address, authoritative=True)
        async with shim_before(upstream, learned=learned.append) as shim:
            for _ in range(2):
                reply = await ask(shim.endpoints[0], "www.example.", flags=dns.flags.RD | dns.flags.CD)
                assert reply.flags & dns.flags.CD
            assert all(query.flags & dns.flags.CD for query in server.queries)
            assert len(server.queries) == 2
            assert not learned
            assert shim.statistics()["kept"] == 0


async def test_records_off_the_chain_are_left_behind() -> None:
    answer = ("www.example. 300 IN A 192.0.2.1", "bank.example. 300 IN A 192.0.2.66")
    async with ScriptedUpstream(says(*answer)) as upstream, shim_before(upstream) as shim:
        assert texts((await ask(shim.endpoints[0], "www.example.")).answer) == ["www.example. 300 IN A 192.0.2.1"]
        assert (await ask(shim.endpoints[0], "bank.example.", flags=0)).rcode() == dns.rcode.REFUSED


async def test_ad_counts_from_validating_upstreams_only() -> None:
    async with ScriptedUpstream(says("www.example. 300 IN A 192.0.2.1", flags=dns.flags.AD)) as server:
        for validating in (True, False):
            upstream = UpstreamSettings(address=server.address, validating=validating)
            async with shim_before(upstream) as shim:
                reply = await ask(shim.endpoints[0], "www.example.", flags=dns.flags.RD | dns.flags.AD)
                assert bool(reply.flags & dns.flags.AD) == validating


async def test_without_rd_only_what_is_known_is_answered() -> None:
    async with ScriptedUpstream(says("www.example. 300 IN A 192.0.2.1")) as upstream, shim_before(upstream) as shim:
        reply = await ask(shim.endpoints[0], "www.example.", flags=0, use_edns=0)
        assert reply.rcode() == dns.rcode.REFUSED
        assert [int(option.code) for option in reply.options] == [20]
        assert not upstream.queries
        await ask(shim.endpoints[0], "www.example.")
        assert (await ask(shim.endpoints[0], "www.example.", flags=0)).rcode() == 0


async def test_any_is_passed_through_and_not_kept() -> None:
    answer = ("www.example. 300 IN A 192.0.2.1", 'www.example. 300 IN TXT "x"')
    async with ScriptedUpstream(says(*answer)) as upstream, shim_before(upstream) as shim:
        for _ in range(2):
            assert len(texts((await ask(shim.endpoints[0], "www.example.", "ANY")).answer)) == 2
        assert len(upstream.queries) == 2


async def test_any_and_rrsig_bring_the_aliases_on_the_way_and_nothing_else() -> None:
    rrsig = "300 IN RRSIG A 13 2 300 20300101000000 20200101000000 7 example. AAAA"
    way = (
        "old.example. 300 IN DNAME new.example.",
        "www.old.example. 300 IN CNAME www.new.example.",
        "www.new.example. 300 IN A 192.0.2.1",
        f"www.new.example. {rrsig}",
    )
    other = "www.bank.example. 300 IN A 192.0.2.66"
    async with ScriptedUpstream(says(*way, other)) as upstream, shim_before(upstream) as shim:
        assert texts((await ask(shim.endpoints[0], "www.old.example.", "ANY")).answer) == list(way)
    alone = (*way[:2], f"www.new.example. {rrsig}")
    async with ScriptedUpstream(says(*alone, other)) as upstream, shim_before(upstream) as shim:
        assert texts((await ask(shim.endpoints[0], "www.old.example.", "RRSIG")).answer) == list(alone), "its TTL too"
    async with ScriptedUpstream(says(*way[:2], authority=SOA)) as upstream, shim_before(upstream) as shim:
        reply = await ask(shim.endpoints[0], "www.old.example.", "RRSIG")
        assert texts(reply.answer) == list(way[:2])
        assert texts(reply.authority) == texts(SOA)


# DNS over TLS


def tls_pair(name: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    ca = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert(name).configure_cert(server)
    client = ssl.create_default_context()
    ca.configure_trust(client)
    return server, client


async def test_dns_over_tls_with_the_right_name_and_padding() -> None:
    server_context, context = tls_pair("dns.example")
    learned: list[Answer] = []
    async with ScriptedUpstream(says("www.example. 300 IN A 192.0.2.1"), tls=server_context) as server:
        upstream = UpstreamSettings(address=server.address, validating=True, tls_name="dns.example", tls=context)
        async with shim_before(upstream, learned=learned.append) as shim:
            assert (await ask(shim.endpoints[0], "www.example.")).rcode() == 0
            assert (await ask(shim.endpoints[0], "two.example.")).rcode() == 0
    assert server.connections == 1
    assert {len(wire) for wire in server.wires} == {128}


async def test_dns_over_tls_with_another_name_is_refused_and_never_falls_back() -> None:
    server_context, context = tls_pair("other.example")
    async with ScriptedUpstream(says("www.example. 300 IN A 192.0.2.1"), tls=server_context) as server:
        upstream = UpstreamSettings(address=server.address, tls_name="dns.example", tls=context)
        async with shim_before(upstream) as shim:
            reply = await ask(shim.endpoints[0], "www.example.")
            assert reply.rcode() == dns.rcode.SERVFAIL
    assert not server.queries


def test_a_context_that_verifies_nothing_is_refused() -> None:
    careless = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    careless.check_hostname = False
    careless.verify_mode = ssl.CERT_NONE
    with pytest.raises(ConfigError):
        Upstream(UpstreamSettings(address=("192.0.2.1", 853), tls_name="dns.example", tls=careless))


# Parts


def test_validating_over_the_network_needs_tls() -> None:
    with pytest.raises(ConfigError, match="tls_name"):
        UpstreamSettings(address=("192.0.2.1", 53), validating=True)
    UpstreamSettings(address=("::1", 53), validating=True)
    UpstreamSettings(address=("192.0.2.1", 853), validating=True, tls_name="dns.example")
    with pytest.raises(ConfigError, match="not both"):
        UpstreamSettings(address=("127.0.0.1", 53), validating=True, authoritative=True)


def test_0x20_changes_letters_only_and_is_random() -> None:
    name = name_from_text("a-rather-long-name.with-0123456789.example.")
    drawn = {mixed_case(name) for _ in range(50)}
    assert len(drawn) > 40
    assert {one.lower() for one in drawn} == {name}
    assert all(one[0] == name[0] for one in drawn)


def test_replies_that_belong() -> None:
    outgoing = compose_query(name_from_text("www.example."), 1, recurse=True, mix_case=True)
    reply = reply_to(dns.message.from_wire(outgoing.wire), ADDRESS)
    assert belongs(reply, outgoing)
    other_case = reply.replace(outgoing.question, outgoing.question.swapcase())
    with pytest.raises(CaseNotKeptError):
        belongs(other_case, outgoing)
    assert b"\3www\7example\0" in question_in_lower_case(reply)
    header_only = outgoing.wire[:2] + b"\x80\1" + bytes(8)
    assert belongs(header_only, outgoing)
    assert question_in_lower_case(header_only) == header_only
    assert not belongs(outgoing.wire[:2] + b"\x80\0" + bytes(8), outgoing), "NOERROR must repeat the question"


def test_a_question_cut_short_in_a_reply_does_not_belong() -> None:
    outgoing = Outgoing(b"\0\1" + bytes(10) + b"\1a\0\0\1\0\1", b"\1a\0\0\1\0\1")
    assert not belongs(b"\0\1\x80\0\0\1\0\0\0\0\0\0\1a", outgoing)


def test_penalties_double_up_to_a_minute_and_end_with_success() -> None:
    health = Health()
    waits = []
    for _ in range(9):
        health.failed(100.0)
        waits.append(health.penalised_until - 100)
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    health.succeeded()
    health.failed(100.0)
    assert health.penalised_until == 101


async def test_leaving_the_shim_ends_look_ups_under_way() -> None:
    before = len(asyncio.all_tasks())
    async with ScriptedUpstream(lambda query, stream: None) as silent:
        async with shim_before(silent) as shim:
            asking: Coroutine[Any, Any, Any] = ask(shim.endpoints[0], "www.example.")
            task = asyncio.create_task(asking)
            await until(lambda: silent.queries)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert shim.statistics()["in_flight"] == 0
    assert len(asyncio.all_tasks()) == before


async def test_an_address_in_use_is_named() -> None:
    async with shim_before() as shim:
        with pytest.raises(TransportError, match=f"port {shim.endpoints[0][1]}"):
            async with shim_before(listen=shim.endpoints):
                pass


async def test_a_refresh_asks_upstream_behind_the_clients_back() -> None:
    clock = ManualClock()
    cache = Cache("node-a")
    async with (
        ScriptedUpstream(says("www.example. 300 IN A 192.0.2.1")) as upstream,
        Shim(settings(upstream), cache, lambda answer: None, clock) as shim,
    ):
        await ask(shim.endpoints[0], "www.example.")
        clock.advance(cache.shortened(name_from_text("www.example."), 300_000) / 1000 + 0.001)
        reply = await ask(shim.endpoints[0], "www.example.")
        assert reply.answer[0].ttl <= 30
        await until(lambda: shim.statistics()["kept"] == 2)
        assert (await ask(shim.endpoints[0], "www.example.")).answer[0].ttl >= 299
        assert len(upstream.queries) == 2
        assert shim.statistics()["refreshed"] == 1


async def test_without_file_descriptors_the_question_fails_and_the_upstream_is_not_blamed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import cachebus.shim.exchange as exchange

    class Exhausted(socket.socket):
        def __init__(self, *arguments: object) -> None:
            raise OSError(errno.EMFILE, "Too many open files")

    async with ScriptedUpstream(says("www.example. 300 IN A 192.0.2.1")) as upstream, shim_before(upstream) as shim:
        with monkeypatch.context() as patched:
            patched.setattr(exchange.socket, "socket", Exhausted)
            query = dns.message.make_query("www.example.", "A").to_wire()
            reply = shim._service.handle(query, "127.0.0.1", Channel.UDP)
            assert not isinstance(reply, bytes | None)
            assert dns.message.from_wire(await reply).rcode() == dns.rcode.SERVFAIL
        (used,) = shim._upstreams
        assert used.health.failures == 0
        assert (await ask(shim.endpoints[0], "www.example.")).rcode() == 0
