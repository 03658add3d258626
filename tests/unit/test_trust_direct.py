"""Direct sources and the shim's upstreams: what a finished answer is worth (trust rules, section 2)."""

from __future__ import annotations

import dns.edns
import pytest

from cachebus.answer import Answer, Evidence, Refusal
from cachebus.filters.direct import DirectJudge
from cachebus.filters.edns import refusal_in
from cachebus.filters.upstream import UpstreamTrust, judge_upstream
from tests.trust_frames import NOW, Outcome, message, rrsig, settings

AUTHORITATIVE, CONFIRMED, VALIDATED = Evidence
WWW = "www.example.test."
A1 = f"{WWW} 300 A 192.0.2.1"
SIGNED = [A1, rrsig(WWW, "A")]
FINISHED = "QR RD RA"


def judged(wire: bytes, *trust: Evidence, claims: Evidence = VALIDATED, **more: object) -> Outcome:
    judge = DirectJudge(settings(*trust, claims=claims, **more))
    outcome = Outcome(list(judge.feed(wire, NOW)))
    assert not judge.expire(NOW + 60)
    assert judge.statistics()["frames"] == 1
    assert judge.statistics()["refused"] == len(outcome.refusals) == sum(judge.refusals.values())
    return outcome


@pytest.mark.parametrize(
    ("claims", "flags", "answer", "level"),
    [
        (VALIDATED, f"{FINISHED} AD", SIGNED, "validated"),
        (VALIDATED, f"{FINISHED} AD", [A1], "confirmed"),
        (VALIDATED, FINISHED, SIGNED, "confirmed"),
        (CONFIRMED, f"{FINISHED} AD", SIGNED, "confirmed"),
        (AUTHORITATIVE, f"{FINISHED} AD", SIGNED, "authoritative"),
    ],
)
def test_a_source_claims_no_more_than_it_may(claims: Evidence, flags: str, answer: list[str], level: str) -> None:
    outcome = judged(message(WWW, "A", answer, flags=flags), AUTHORITATIVE, claims=claims)
    assert outcome.shown() == {(WWW, "A", 300, level)}
    assert outcome.answers[0].learned == NOW
    assert outcome.answers[0].origin == "n1"


@pytest.mark.parametrize(
    ("claims", "flags", "answer", "trust", "reason"),
    [
        (AUTHORITATIVE, FINISHED, [A1], CONFIRMED, Refusal.EVIDENCE_TOO_WEAK),
        (CONFIRMED, f"{FINISHED} AD", SIGNED, VALIDATED, Refusal.EVIDENCE_TOO_WEAK),
        (VALIDATED, FINISHED, SIGNED, VALIDATED, Refusal.NOT_VALIDATED),
        (VALIDATED, f"{FINISHED} AD", [A1], VALIDATED, Refusal.RRSIG_MISSING),
    ],
)
def test_too_weak(claims: Evidence, flags: str, answer: list[str], trust: Evidence, reason: Refusal) -> None:
    assert judged(message(WWW, "A", answer, flags=flags), trust, claims=claims).refusals == {1: reason}


@pytest.mark.parametrize(
    ("wire", "reason"),
    [
        (b"", Refusal.MALFORMED),
        (message(WWW, "A", [A1], flags="RD"), Refusal.NOT_A_RESPONSE),
        (message(WWW, "A", [A1], flags="QR TC"), Refusal.TRUNCATED),
        (message(WWW, "A", [A1], flags="QR CD"), Refusal.CLIENT_CHECKING_DISABLED),
        (message(WWW, "A", [A1], rcode=3), Refusal.RCODE),
        (message(WWW, "A", [A1], questions=0), Refusal.QUESTION_COUNT),
        (message(WWW, "A", [A1], qclass="CH"), Refusal.CLASS),
        (message(WWW, "ANY", [A1]), Refusal.QTYPE),
        (message(WWW, "A", []), Refusal.NO_ANSWER),
        (message(WWW, "A", [A1]) + b"x", Refusal.MALFORMED),
        (message(WWW, "A", [A1], options=[dns.edns.ECSOption("192.0.2.0", 24, 8)]), Refusal.CLIENT_SUBNET),
        (message(WWW, "A", [A1], options=[dns.edns.EDEOption(3)]), Refusal.STALE),
        (message(WWW, "A", [A1], options=[dns.edns.EDEOption(15, "list")]), Refusal.LOCAL_DATA),
        (message(WWW, "A", [f"{WWW} 0 A 192.0.2.1"]), Refusal.TTL_ZERO),
        (message(WWW, "A", [A1, rrsig(WWW, "A", labels=2)]), Refusal.WILDCARD_WITHOUT_PROOF),
        (message(WWW, "A", [A1, rrsig(WWW, "A", expiration=-5)]), Refusal.RRSIG_EXPIRED),
    ],
)
def test_refused_messages(wire: bytes, reason: Refusal) -> None:
    assert judged(wire, AUTHORITATIVE).refusals == {1: reason}


def test_ecs_without_scope_is_for_everybody() -> None:
    wire = message(WWW, "A", [A1], options=[dns.edns.ECSOption("192.0.2.0", 24, 0)])
    assert judged(wire).questions() == {(WWW, "A")}


def test_a_chain_that_stops_gives_its_rrsets() -> None:
    wire = message(WWW, "A", [f"{WWW} 300 CNAME a.test.", "a.test. 300 CNAME b.test."])
    assert judged(wire).questions() == {(WWW, "CNAME"), ("a.test.", "CNAME")}


def test_swild_is_an_answer_of_its_own() -> None:
    swild = "example.test. 900 TYPE65392 \\# 16 015f076578616d706c650474657374 00"
    assert judged(message(WWW, "A", [A1, swild])).questions() == {(WWW, "A"), ("example.test.", "TYPE65392")}


@pytest.mark.parametrize("options", [b"\0", b"\0\x08\0", b"\0\x08\0\x09\0\x01\x18\x18\0\0\0"])
def test_options_that_do_not_add_up(options: bytes) -> None:
    assert refusal_in(options) is Refusal.MALFORMED


def test_an_ecs_option_too_short_for_a_scope() -> None:
    assert refusal_in(b"\0\x08\0\x03\0\x01\x18") is Refusal.CLIENT_SUBNET


# Upstreams


def upstream(
    answer: list[str], *, flags: str, trust: UpstreamTrust, query: bytes | None = None, qname: str = WWW, **more: object
) -> Answer | Refusal:
    asked = query or message(WWW, "A", flags="RD", ident=7)
    told = message(qname, "A", answer, flags=flags, **{"ident": 7, **more})  # type: ignore[arg-type]
    return judge_upstream(asked, told, trust=trust, now=NOW, settings=settings(AUTHORITATIVE))


def test_an_authoritative_upstream_needs_aa() -> None:
    answer = upstream([A1], flags="QR AA", trust=UpstreamTrust.AUTHORITATIVE)
    assert isinstance(answer, Answer)
    assert (answer.name, answer.evidence, answer.learned, answer.validating) == (WWW, AUTHORITATIVE, NOW, False)
    assert upstream([A1], flags="QR RA AD", trust=UpstreamTrust.AUTHORITATIVE) is Refusal.NOT_AUTHORITATIVE


def test_a_validating_upstream_needs_ad_signatures_and_life() -> None:
    answer = upstream(SIGNED, flags="QR RA AD", trust=UpstreamTrust.VALIDATING)
    assert isinstance(answer, Answer)
    assert (answer.evidence, answer.validating) == (VALIDATED, True)
    assert upstream(SIGNED, flags="QR RA", trust=UpstreamTrust.VALIDATING) is Refusal.NOT_VALIDATED
    assert upstream(SIGNED, flags="QR AA AD", trust=UpstreamTrust.VALIDATING) is Refusal.NOT_VALIDATED
    assert upstream([A1], flags="QR RA AD", trust=UpstreamTrust.VALIDATING) is Refusal.RRSIG_MISSING
    short = [f"{WWW} 30 A 192.0.2.1", rrsig(WWW, "A", ttl=30)]
    assert upstream(short, flags="QR RA AD", trust=UpstreamTrust.VALIDATING) is Refusal.STALE
    stale = [dns.edns.EDEOption(3)]
    assert upstream(SIGNED, flags="QR RA AD", trust=UpstreamTrust.VALIDATING, options=stale) is Refusal.STALE


def test_an_upstream_that_nobody_vouches_for_is_not_shared() -> None:
    assert upstream(SIGNED, flags="QR AA AD", trust=UpstreamTrust.NONE) is Refusal.EVIDENCE_TOO_WEAK


def test_the_response_must_be_the_querys() -> None:
    trust = UpstreamTrust.AUTHORITATIVE
    assert upstream([A1], flags="QR AA", trust=trust, ident=8) is Refusal.UNPAIRED
    assert upstream([A1], flags="QR AA", trust=trust, qname="WWW.example.test.") is Refusal.QUESTION_MISMATCH
    assert upstream([A1], flags="QR AA", trust=trust, query=b"\0\7") is Refusal.UNPAIRED
    unchecked = message(WWW, "A", flags="RD CD", ident=7)
    assert upstream([A1], flags="QR AA", trust=trust, query=unchecked) is Refusal.CLIENT_CHECKING_DISABLED
    assert upstream([f"{WWW} 300 CNAME a.test."], flags="QR AA", trust=trust) is Refusal.NO_ANSWER
    asked = message(WWW, "A", flags="RD", ident=7)
    assert judge_upstream(asked, b"\0\7\x84\0\0\1", trust=trust, now=NOW, settings=settings()) is Refusal.MALFORMED
