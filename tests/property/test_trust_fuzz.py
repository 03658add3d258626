"""Whatever bytes come, a judge answers: no exception, bounded memory, one final word for each frame.

Half of the examples are mutations of real captures and made frames, so that they get past the first checks.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachebus.answer import Answer, Evidence, Refusal
from cachebus.errors import MessageError
from cachebus.filters.chain import assemble, chain_from, refused_type
from cachebus.filters.direct import DirectJudge
from cachebus.filters.edns import refusal_in
from cachebus.filters.settings import Pairing, ResolverFrames
from cachebus.filters.trust import DnstapJudge
from cachebus.filters.upstream import UpstreamTrust, judge_upstream
from cachebus.presentation import check_name
from cachebus.wire.dnstap import decode
from cachebus.wire.framestream import FrameStreamReceiver
from cachebus.wire.message import parse, records, same_data
from tests.trust_frames import NOW, Lab, frame, message, rrsig, settings

pytestmark = pytest.mark.property

DATA = Path(__file__).parent.parent / "data"
CAPTURED = [
    payload
    for name in ("unbound", "unbound-evil", "bind", "pdns-recursor", "kresd", "https65")
    for payload in FrameStreamReceiver().receive_data((DATA / f"{name}.dnstap").read_bytes())
]
WWW = "www.example.test."
SIGNED = [f"{WWW} 300 A 192.0.2.1", rrsig(WWW, "A")]
RENAMED = ["example.test. 300 DNAME other.test.", f"{WWW} 300 CNAME www.other.test.", "www.other.test. 300 A 192.0.2.1"]
MADE = [
    *Lab().learned(WWW, "A", SIGNED, flags="QR RD RA AD"),
    *Lab(serial=9).learned(WWW, "A", RENAMED, zone="."),
    *Lab(serial=99).learned("a.test.", "A", ["a.test. 300 CNAME b.test."], zone="test."),
    *Lab(serial=100).learned("b.test.", "A", ["b.test. 300 CNAME a.test."], zone="test."),
]
MESSAGES = [decode(payload).message for payload in CAPTURED + MADE]


@st.composite
def mutated(draw: st.DrawFn, originals: list[bytes]) -> bytes:
    """One of the originals with some bytes overwritten, cut out, put in or repeated."""
    data = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(0, 4))):
        position = draw(st.integers(0, max(len(data) - 1, 0)))
        match draw(st.sampled_from(["set", "flip", "cut", "insert", "repeat"])):
            case "set" if data:
                data[position] = draw(st.sampled_from((0, 1, 0x3F, 0x40, 0xC0, 0xFF)) | st.integers(0, 255))
            case "flip" if data:
                data[position] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del data[position : position + draw(st.integers(1, 8))]
            case "insert":
                data[position:position] = draw(st.binary(min_size=1, max_size=8))
            case _:
                data[position:position] = data[position : position + draw(st.integers(1, 40))]
    return bytes(data)


@st.composite
def framed(draw: st.DrawFn) -> bytes:
    """A frame of any kind around a mutated message, so that the mutation reaches the judge and not the decoder."""
    kind = draw(st.sampled_from(("RESOLVER", "CLIENT", "FORWARDER"))) + draw(st.sampled_from(("_QUERY", "_RESPONSE")))
    wire = draw(mutated(MESSAGES)) or b"\0"
    zone = draw(st.sampled_from((None, ".", "test.", "example.test.")))
    return frame(kind, wire, zone=zone, port=draw(st.integers(1, 3)), time=NOW + draw(st.integers(-20, 20)))


payloads = st.one_of(framed(), mutated(CAPTURED + MADE), st.sampled_from(CAPTURED + MADE), st.binary(max_size=200))
judges = st.builds(
    lambda trust, pairing, frames: DnstapJudge(settings(trust, pairing=pairing, resolver_frames=frames)),
    st.sampled_from(Evidence),
    st.sampled_from(Pairing),
    st.sampled_from(ResolverFrames),
)


def check(answer: Answer) -> None:
    """What holds for every answer, whatever it was made of."""
    check_name(answer.qname)
    assert answer.qname == answer.qname.lower()
    assert answer.rrsets
    assert answer.rrsets[-1].type == answer.qtype
    assert not refused_type(answer.qtype, infrastructure=False)
    for rrset in answer.rrsets:
        assert 0 < rrset.ttl <= 86400
        assert records(rrset.rrs)
        if answer.evidence is Evidence.VALIDATED and rrset.type != 5:
            assert rrset.sigs
    again = assemble(answer.qname, answer.qtype, answer.rrsets, answer.learned)
    assert not isinstance(again, Refusal), again


@given(judges, st.lists(st.tuples(payloads, st.floats(-5, 15)), max_size=30))
def test_a_judge_survives_anything_and_says_one_final_word(
    judge: DnstapJudge, frames: list[tuple[bytes, float]]
) -> None:
    refused: set[int] = set()
    accepted: set[int] = set()
    verdicts = []
    now = NOW
    for number, (payload, step) in enumerate(frames, 1):
        now += step
        given_now = judge.feed(payload, now)
        assert all(verdict.frame <= number for verdict in given_now)
        verdicts += given_now
    verdicts += judge.expire(now + 7200)
    for verdict in verdicts:
        assert (verdict.answer is None) != (verdict.reason is None)
        assert verdict.frame not in refused
        if verdict.answer is None:
            assert verdict.frame not in accepted
            refused.add(verdict.frame)
        else:
            accepted.add(verdict.frame)
            check(verdict.answer)
    statistics = judge.statistics()
    assert statistics["frames"] == len(frames) == statistics["context"] + len(refused) + len(accepted)
    assert statistics["pending"] == statistics["pending_bytes"] == 0
    assert judge.expire(now + 7200) == []


@given(st.one_of(mutated(MESSAGES), st.binary(max_size=100)), st.sampled_from(Evidence), st.sampled_from(Evidence))
def test_a_direct_judge_survives_anything(wire: bytes, claims: Evidence, trust: Evidence) -> None:
    verdicts = DirectJudge(settings(trust, claims=claims)).feed(wire, NOW)
    assert verdicts
    for verdict in verdicts:
        if verdict.answer is not None:
            assert trust <= verdict.answer.evidence <= claims
            check(verdict.answer)


@given(mutated(MESSAGES), mutated(MESSAGES), st.booleans(), st.sampled_from(UpstreamTrust))
def test_an_upstream_may_send_anything(query: bytes, response: bytes, same: bool, trust: UpstreamTrust) -> None:
    found = judge_upstream(response if same else query, response, trust=trust, now=NOW, settings=settings())
    if isinstance(found, Answer):
        check(found)


@given(st.binary(max_size=60))
def test_options_may_be_anything(options: bytes) -> None:
    refusal_in(options)


NAMES = [f"{label}.test." for label in "abcd"]


EDGES = st.tuples(
    st.sampled_from([*NAMES, "x.a.test.", "test."]), st.sampled_from(("A", "CNAME", "DNAME")), st.sampled_from(NAMES)
)


@given(st.lists(EDGES, max_size=8), st.sampled_from([*NAMES, "x.a.test.", "y.x.a.test."]))
def test_any_graph_of_aliases_ends(edges: list[tuple[str, str, str]], qname: str) -> None:
    lines = [f"{owner} 300 {kind} {'192.0.2.1' if kind == 'A' else target}" for owner, kind, target in edges]
    parsed = parse(message(qname, "A", lines))
    chain = chain_from(parsed.answer, parsed.qname, 1)
    if not isinstance(chain, Refusal):
        owners = [(link.synthesised or link.rrset).owner for link in chain.links]
        assert owners[0] == parsed.qname
        assert len(owners) == len(set(owners))
        assert chain.complete == (chain.links[-1].rrset.type == 1 and chain.links[-1].synthesised is None)


@given(st.one_of(mutated(MESSAGES), st.binary(max_size=100)))
def test_every_message_that_parses_can_be_walked(wire: bytes) -> None:
    try:
        parsed = parse(wire)
    except MessageError:
        return
    if parsed.questions:
        found = assemble(parsed.qname, parsed.qtype, parsed.answer, NOW)
        if not isinstance(found, Refusal):
            again = assemble(parsed.qname, parsed.qtype, found, NOW)
            assert not isinstance(again, Refusal)
            assert [rrset._replace(rrs=b"", sigs=b"") for rrset in again] == [
                rrset._replace(rrs=b"", sigs=b"") for rrset in found
            ]
            assert all(map(same_data, again, found))
