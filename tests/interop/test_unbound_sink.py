"""UnboundSink against the real Unbound: what it makes Unbound answer, and what it must never change."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import dns.flags
import dns.message
import dns.rcode
import pytest

from cachebus.answer import Answer, Evidence, RRset
from cachebus.holdings import Holdings
from cachebus.presentation import name_from_text, type_from_text
from cachebus.sinks.unbound import UnboundSink
from cachebus.wire import message, rrtypes
from tests.farm.authoritative import Nsd
from tests.farm.client import Endpoint, Question, ask, ask_all, data, signatures
from tests.farm.unbound import Unbound
from tests.farm.zones import Zones
from tests.servers import require

pytestmark = pytest.mark.interop

DEAD = Endpoint("127.0.0.1", 1)
"""Nothing listens there: an upstream that is dead."""
GIVES_UP = ["outbound-msg-retry: 1", "unknown-server-time-limit: 20"]
"""Settings with which Unbound says SERVFAIL soon when its upstreams are dead."""
IN_TIME = 5.0
"""Seconds for anything that is done in well under one on an idle machine."""


def learned(
    question: Question, reply: dns.message.Message, *, evidence: Evidence | None = None, validating: bool = True
) -> Answer:
    """What a peer would share of a resolver's reply: AD=1 makes it validated."""
    rrsets = list(message.parse(reply.to_wire()).answer)
    for index, rrset in enumerate(rrsets):
        if rrset.type == rrtypes.DNAME:
            rrsets[index + 1] = rrsets[index + 1]._replace(ttl=rrset.ttl)
    if evidence is None:
        evidence = Evidence.VALIDATED if reply.flags & dns.flags.AD else Evidence.CONFIRMED
    return Answer(
        name_from_text(question.name), type_from_text(question.type), tuple(rrsets), evidence, "node-a", time.time(),
        validating, "lan", "key",
    )  # fmt: skip


def made(
    name: str | bytes,
    rrtype: int,
    *rdatas: bytes,
    evidence: Evidence = Evidence.AUTHORITATIVE,
    ttl: int = 300,
    validating: bool = False,
) -> Answer:
    """A one-RRset answer."""
    owner = name_from_text(name) if isinstance(name, str) else name
    rrset = RRset(owner, rrtype, ttl, message.pack(rrtype, 0, rdatas))
    return Answer(owner, rrtype, (rrset,), evidence, "node-a", time.time(), validating, "lan", "key")


def sink_for(
    server: Unbound,
    *,
    holdings: Holdings | None = None,
    refill: Callable[[float], Iterable[Sequence[Answer]]] | None = None,
) -> UnboundSink:
    return UnboundSink(
        name="b",
        control=f"unix:{server.control_path}",
        clock=time.time,
        holdings=holdings or Holdings(),
        refill=refill or (lambda now: ()),
    )


async def settled(sink: UnboundSink, handled: int) -> None:
    """Wait until the sink has dealt with that many answers, in whichever way."""
    await until(
        lambda: sum(sink.statistics()[key] for key in ("filled", "unloadable", "skipped_held", "expired")) >= handled
    )


async def until(condition: Callable[[], bool], within: float = IN_TIME) -> None:
    async with asyncio.timeout(within):
        while not condition():  # noqa: ASYNC110 - what is waited for happens in another process
            await asyncio.sleep(0.01)


async def fill(server: Unbound, *answers: Answer, holdings: Holdings | None = None) -> dict[str, int]:
    """Load answers and give the sink's statistics."""
    async with sink_for(server, holdings=holdings) as sink:
        for answer in answers:
            sink.offer(answer, time.time())
        await settled(sink, len(answers))
        return dict(sink.statistics())


async def reply_to(server: Unbound, question: Question) -> dns.message.Message | None:
    return await asyncio.to_thread(ask, server.endpoint, question, timeout=IN_TIME)


async def text_of(server: Unbound, name: str, rrtype: str) -> str:
    """RCODE and data of what a client is told."""
    reply = await reply_to(server, Question(name, rrtype))
    assert reply is not None
    return " ".join([dns.rcode.to_text(reply.rcode()), *sorted(data(reply))])


@pytest.fixture
def resolver(farm: Path, zones: Zones, nsd: Nsd) -> Iterator[Unbound]:
    """A validating Unbound whose upstreams live."""
    require("unbound")
    stubs = dict.fromkeys(zones.names, nsd.endpoint)
    with Unbound(farm, name="a", stubs=stubs, anchors=[zones.anchor]) as server:
        yield server


@pytest.fixture
def lonely(farm: Path, zones: Zones) -> Iterator[Unbound]:
    """A validating Unbound whose upstreams are dead and whose only trust anchor is the test zone's."""
    require("unbound")
    stubs = dict.fromkeys([*zones.names, "."], DEAD)
    with Unbound(farm, name="b", stubs=stubs, anchors=[zones.anchor], server=GIVES_UP) as server:
        yield server


@pytest.fixture
def trusting(farm: Path, zones: Zones) -> Iterator[Unbound]:
    """An Unbound that does not validate, and whose upstreams are dead."""
    require("unbound")
    with Unbound(farm, name="c", stubs={".": DEAD}, server=GIVES_UP) as server:
        yield server


def assert_same(got: dict[Question, dns.message.Message], wanted: dict[Question, dns.message.Message]) -> None:
    """Every question answered with the same data, RRSIGs and AD, and no TTL longer than the original's."""
    for question, original in wanted.items():
        reply = got.get(question)
        assert reply is not None, f"no reply: {question}"
        assert data(reply) == data(original), question
        assert signatures(reply) == signatures(original), question
        assert bool(reply.flags & dns.flags.AD) == bool(original.flags & dns.flags.AD) == question.secure, question
        assert reply.answer
        ends = {(rrset.name, rrset.rdtype, rrset.covers): rrset.ttl for rrset in original.answer}
        for rrset in reply.answer:
            assert (
                0 < rrset.ttl <= ends[rrset.name, rrset.rdtype, rrset.covers]
                or ends[rrset.name, rrset.rdtype, rrset.covers] == 0
            ), question


async def test_every_common_form_of_answer_is_answered_and_after_kill_and_reload_again(
    resolver: Unbound, lonely: Unbound, zones: Zones
) -> None:
    originals = await asyncio.to_thread(ask_all, resolver.endpoint, zones.questions)
    assert len(originals) == len(zones.questions) >= 200
    answers = [learned(question, reply) for question, reply in originals.items()]
    held = Holdings()
    held.hold(b"\4held\0", 1, time.time() + 3600)
    async with sink_for(lonely, refill=lambda now: [answers], holdings=held) as sink:
        await until(lambda: sink.statistics()["filled"] >= len(answers))
        assert_same(await asyncio.to_thread(ask_all, lonely.endpoint, zones.questions), originals)

        await asyncio.to_thread(lonely.restart)
        restarted = time.monotonic()
        await until(lambda: sink.statistics()["filled"] >= 2 * len(answers))
        assert time.monotonic() - restarted < IN_TIME
        assert_same(await asyncio.to_thread(ask_all, lonely.endpoint, zones.questions), originals)
        assert not held.holds(b"\4held\0", 1, time.time())

        # An idle resolver: neither its uptime nor any counter tells of a reload.
        await asyncio.to_thread(lonely.control, "reload")
        await until(lambda: sink.statistics()["filled"] >= 3 * len(answers))
        assert_same(await asyncio.to_thread(ask_all, lonely.endpoint, zones.questions), originals)
        assert sink.statistics()["reconnects"] == 2
        assert sink.statistics()["refills"] == 3
    assert "cachebus" not in await asyncio.to_thread(lonely.control, "list_forwards")


async def test_a_cache_of_single_rrsets_refills_whole_chains(resolver: Unbound, lonely: Unbound, zones: Zones) -> None:
    originals = await asyncio.to_thread(ask_all, resolver.endpoint, zones.questions)
    singles = {
        (rrset.owner, rrset.type): answer._replace(qname=rrset.owner, qtype=rrset.type, rrsets=(rrset,))
        for answer in (learned(question, reply) for question, reply in originals.items())
        for rrset in answer.rrsets
    }
    async with sink_for(lonely, refill=lambda now: [list(singles.values())]) as sink:
        await until(lambda: sink.statistics()["refills"] == 1 and not sink.statistics()["refilling"])
        assert_same(await asyncio.to_thread(ask_all, lonely.endpoint, zones.questions), originals)


async def test_an_offer_is_answered_within_200_ms(trusting: Unbound) -> None:
    async with sink_for(trusting) as sink:
        await until(lambda: sink.statistics()["refills"] == 1)
        await asyncio.sleep(0.05)
        begun = time.monotonic()
        sink.offer(made("fast.test", rrtypes.A, bytes([192, 0, 2, 1])), time.time())
        await settled(sink, 1)
        assert time.monotonic() - begun < 0.2
        assert await text_of(trusting, "fast.test.", "A") == "NOERROR fast.test. A 192.0.2.1"


NASTY = [
    b"\n", b'"', b";", b"\\", b"\0", b" ", b".", b"$", b"@", b"(", b"\r\n", b"\\010", b"\xff\x80", b"\t", b"#",
    b"\nEND_RRSET_CACHE\nSTART_MSG_CACHE\nEND_MSG_CACHE\nEOF\n", b"x 300 IN A 192.0.2.66\n", b"EOF",
]  # fmt: skip
"""Bytes that mean something to a reader of text."""


async def test_text_cannot_be_injected(trusting: Unbound) -> None:
    wanted = {}
    for index, nasty in enumerate(NASTY):
        owner = bytes([len(nasty)]) + nasty.lower() + bytes([2, 110, 48 + index % 10]) + b"\4evil\4test\0"
        wanted[owner] = [bytes([len(nasty)]) + nasty, b"\0"]
    answers = [made(owner, rrtypes.TXT, *rdatas, validating=True) for owner, rdatas in wanted.items()]
    before = trusting.held()
    counts = await fill(trusting, *answers)
    assert counts["filled"] == len(wanted)
    assert counts["unloadable"] == 0
    added = {key for key in trusting.held() if key not in before}
    assert {rrtype for _, rrtype in added} == {"TXT"}
    assert len(added) == len(wanted)
    for owner, rdatas in wanted.items():
        reply = await reply_to(trusting, Question(dns.name.from_wire(owner, 0)[0].to_text(), "TXT"))
        assert reply is not None
        (rrset,) = reply.answer
        assert rrset.name.to_digestable() == owner
        assert {rdata.to_digestable() for rdata in rrset} == set(rdatas)


async def test_the_longest_names_and_records_load(trusting: Unbound) -> None:
    longest = b"\x3f" + bytes(63) + (b"\x3f" + b"\n" * 63) * 2 + b"\x3d" + b"\xff" * 61 + b"\0"
    assert len(longest) == 255
    counts = await fill(
        trusting,
        made(longest, rrtypes.A, bytes([192, 0, 2, 1])),
        made("long.test", 65280, bytes(31_000)),
        made("root-only.test", rrtypes.A, bytes([192, 0, 2, 2])),
    )
    assert counts["filled"] == 3
    assert counts["unloadable"] == 0
    reply = await reply_to(trusting, Question(dns.name.from_wire(longest, 0)[0].to_text(), "A"))
    assert reply is not None
    assert [rdata.to_text() for rdata in reply.answer[0]] == ["192.0.2.1"]
    reply = await reply_to(trusting, Question("long.test.", "TYPE65280"))
    assert reply is not None
    assert len(reply.answer[0][0].to_wire()) == 31_000


async def test_the_culprit_of_a_batch_is_found_counted_and_never_tried_again(farm: Path, zones: Zones) -> None:
    # A smaller message buffer is a shorter line: what fits elsewhere, this Unbound cannot read.
    require("unbound")
    server = ["msg-buffer-size: 8192"]
    with Unbound(farm, name="d", stubs={".": DEAD}, server=server) as small:
        culprit = made("long.test", 65280, bytes(20_000))
        good = [made(f"n{i}.test", rrtypes.A, bytes([192, 0, 2, i])) for i in range(40)]
        async with sink_for(small) as sink:
            for answer in (*good[:20], culprit, *good[20:]):
                sink.offer(answer, time.time())
            await settled(sink, 41)
            assert sink.statistics()["unloadable"] == 1
            assert sink.statistics()["filled"] == 40
            batches, errors = sink.statistics()["batches"], small.log.read_text().count("line too long")
            sink.offer(culprit._replace(learned=time.time()), time.time())
            await settled(sink, 42)
            assert sink.statistics()["batches"] == batches
            assert small.log.read_text().count("line too long") == errors > 0
        for index in range(40):
            assert await text_of(small, f"n{index}.test.", "A") == f"NOERROR n{index}.test. A 192.0.2.{index}"


async def test_live_local_data_is_not_replaced(resolver: Unbound, zones: Zones) -> None:
    question = next(q for q in zones.questions if q.name == "a0.plain.test.")
    local = await reply_to(resolver, question)
    assert local is not None
    for evidence in (Evidence.AUTHORITATIVE, Evidence.CONFIRMED):
        counts = await fill(
            resolver, made("a0.plain.test", rrtypes.A, bytes([6, 6, 6, 6]), evidence=evidence, validating=True)
        )
        assert counts["filled"] == 1
        again = await reply_to(resolver, question)
        assert again is not None
        assert data(again) == data(local)


async def test_a_live_local_nxdomain_survives_because_it_is_known_to_be_held(resolver: Unbound) -> None:
    assert await text_of(resolver, "nothing.signed.test.", "A") == "NXDOMAIN"
    forged = made("nothing.signed.test", rrtypes.A, bytes([6, 6, 6, 6]), evidence=Evidence.CONFIRMED, validating=True)
    held = Holdings()
    held.hold(forged.qname, rrtypes.A, time.time() + 60)
    counts = await fill(resolver, forged, holdings=held)
    assert counts["skipped_held"] == 1
    assert counts["filled"] == 0
    assert await text_of(resolver, "nothing.signed.test.", "A") == "NXDOMAIN"
    # The other half of the proof: without that knowledge Unbound does forget it.
    await fill(resolver, forged)
    assert await text_of(resolver, "nothing.signed.test.", "A") != "NXDOMAIN"


@pytest.mark.parametrize("with_upstream", [True, False])
async def test_forged_data_for_a_signed_zone_is_never_answered(
    resolver: Unbound, lonely: Unbound, zones: Zones, *, with_upstream: bool
) -> None:
    victim = resolver if with_upstream else lonely
    stolen = await reply_to(resolver, Question("a0.signed.test.", "A", dnssec=True))
    assert stolen is not None
    await asyncio.to_thread(resolver.flush)
    genuine = learned(Question("a0.signed.test.", "A"), stolen, evidence=Evidence.AUTHORITATIVE)
    forged_rrs = message.pack(rrtypes.A, 0, [bytes([6, 6, 6, 6])])
    with_sigs = genuine._replace(rrsets=(genuine.rrsets[0]._replace(rrs=forged_rrs),))
    for forged in (
        made("a0.signed.test", rrtypes.A, bytes([6, 6, 6, 6])),
        made("new.signed.test", rrtypes.A, bytes([6, 6, 6, 6])),
        with_sigs,
        with_sigs._replace(evidence=Evidence.CONFIRMED),
        with_sigs._replace(evidence=Evidence.VALIDATED, rrsets=(with_sigs.rrsets[0]._replace(sigs=b""),)),
    ):
        counts = await fill(victim, forged)
        assert counts["filled"] == 1
        for dnssec in (False, True):
            reply = await reply_to(victim, Question(forged.name, "A", dnssec=dnssec))
            assert reply is None or not any("6.6.6.6" in line for line in data(reply))


async def test_unsigned_data_of_a_signed_zone_that_is_genuine_passes_its_validation(
    resolver: Unbound, zones: Zones
) -> None:
    question = Question("a1.signed.test.", "A", dnssec=True)
    original = await reply_to(resolver, question)
    assert original is not None
    await asyncio.to_thread(resolver.flush)
    await fill(resolver, learned(question, original, evidence=Evidence.AUTHORITATIVE))
    again = await reply_to(resolver, question)
    assert again is not None
    assert data(again) == data(original)
    assert again.flags & dns.flags.AD


async def test_what_was_filled_is_gone_when_its_life_is_over(trusting: Unbound) -> None:
    first = made("short.test", rrtypes.A, bytes([192, 0, 2, 1]), ttl=4)
    async with sink_for(trusting) as sink:
        sink.offer(first, time.time())
        await settled(sink, 1)
        seen = []
        while (text := await text_of(trusting, "short.test.", "A")) != "SERVFAIL":
            assert text == "NOERROR short.test. A 192.0.2.1"
            seen.append(time.time())
            assert time.time() < first.learned + 10
            await asyncio.sleep(0.05)
    assert seen
    assert seen[-1] <= first.learned + 4


async def test_a_load_that_came_too_late_is_withdrawn(trusting: Unbound) -> None:
    # The request lies in the socket of a stopped resolver, which loads it with TTLs of long ago when it goes on.
    async with sink_for(trusting) as sink:
        await until(lambda: sink.statistics()["refills"] == 1)
        trusting.signal(signal.SIGSTOP)
        try:
            answer = made("late.test", rrtypes.A, bytes([192, 0, 2, 1]), ttl=7)
            sink.offer(answer, time.time())
            await until(lambda: sink.statistics()["errors"] > 0, within=15)
            await until(lambda: time.time() > answer.learned + 7)
        finally:
            trusting.signal(signal.SIGCONT)
        await until(lambda: sink.statistics()["withdrawn"] == 1, within=15)
        await until(lambda: sink.statistics()["expired"] == 1)
        assert await text_of(trusting, "late.test.", "A") == "SERVFAIL"
        assert sink.statistics()["reconnects"] == 0


async def test_what_waited_too_long_is_dropped(trusting: Unbound) -> None:
    old = made("old.test", rrtypes.A, bytes([192, 0, 2, 1]), ttl=60)
    counts = await fill(trusting, old._replace(learned=time.time() - 61))
    assert counts["expired"] == 1
    assert counts["filled"] == 0


async def test_a_resolver_that_starts_later_is_filled_then(farm: Path, running: ExitStack) -> None:
    require("unbound")
    late = Unbound(farm, name="late", stubs={".": DEAD})
    async with sink_for(late) as sink:
        sink.offer(made("early.test", rrtypes.A, bytes([192, 0, 2, 1])), time.time())
        await until(lambda: sink.statistics()["errors"] > 1)
        assert sink.statistics()["queued"] == 1
        await asyncio.to_thread(running.enter_context, late)
        await settled(sink, 1)
        assert await text_of(late, "early.test.", "A") == "NOERROR early.test. A 192.0.2.1"
