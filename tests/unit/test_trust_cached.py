"""What an entry of a warm cache is worth, and since when it is taken to be known."""

from __future__ import annotations

import dns.message
import dns.rrset
import pytest

from cachebus.answer import Answer, Evidence, Refusal
from cachebus.filters.cached import CacheEntry, CacheJudge
from cachebus.filters.settings import JudgeSettings

NOW = 1_800_000_000.0
DAY = 86_400
EVERY = frozenset(Evidence)


def rrsig(original: int = 3600, inception: int = int(NOW) - 7200, expiration: int = int(NOW) + DAY) -> str:
    return f"A 13 3 {original} {expiration} {inception} 12345 signed.test. AAAA"


def wire(*rrsets: tuple[str, int, str, list[str]]) -> bytes:
    name, _, rrtype, _ = rrsets[0]
    message = dns.message.make_response(dns.message.make_query(name, rrtype if rrtype != "CNAME" else "A"))
    message.answer = [dns.rrset.from_text_list(owner, ttl, "IN", kind, rdatas) for owner, ttl, kind, rdatas in rrsets]
    return message.to_wire()


PLAIN = wire(("www.test.", 300, "A", ["192.0.2.1"]))


def signed(ttl: int = 3000, **times: int) -> bytes:
    return wire(("a.signed.test.", ttl, "A", ["192.0.2.1"]), ("a.signed.test.", ttl, "RRSIG", [rrsig(**times)]))


def judge(
    message: bytes, security: int, *, uptime: int = 1000, trust: frozenset[Evidence] = EVERY, validating: bool = True,
    min_ttl: int = 30, held: list[tuple[bytes, int, float, bool]] | None = None,
) -> Answer | Refusal:  # fmt: skip
    settings = JudgeSettings(node="a", trust=trust, validating=validating)
    cache = CacheJudge(settings, min_ttl=min_ttl, on_held=None if held is None else lambda *entry: held.append(entry))
    (verdict,) = cache.feed(CacheEntry(security, uptime, message).pack(), NOW)
    result = verdict.answer or verdict.reason
    assert result is not None
    return result


def answer(message: bytes, security: int, **more: int) -> Answer:
    found = judge(message, security, **more)  # type: ignore[arg-type]
    assert isinstance(found, Answer)
    return found


@pytest.mark.parametrize(
    ("security", "evidence", "validating"),
    [(0, Evidence.AUTHORITATIVE, False), (2, Evidence.CONFIRMED, False), (3, Evidence.CONFIRMED, True)],
)
def test_unsigned_by_what_the_validator_made_of_it(security: int, evidence: Evidence, validating: bool) -> None:
    found = answer(PLAIN, security)
    assert (found.evidence, found.validating) == (evidence, validating)


def test_insecure_needs_a_source_that_is_said_to_validate() -> None:
    found = judge(PLAIN, 3, validating=False)
    assert isinstance(found, Answer)
    assert not found.validating


def test_secure_and_signed_is_validated() -> None:
    found = answer(signed(), 5)
    assert found.evidence is Evidence.VALIDATED
    assert found.rrsets[0].sigs


@pytest.mark.parametrize(
    ("message", "security", "reason"),
    [
        (PLAIN, 5, Refusal.RRSIG_MISSING),
        (PLAIN, 1, Refusal.NOT_VALIDATED),
        (PLAIN, 4, Refusal.NOT_VALIDATED),
        (PLAIN, 200, Refusal.NOT_VALIDATED),
        (signed(expiration=int(NOW) - 1), 5, Refusal.RRSIG_EXPIRED),
        (wire(("www.test.", 29, "A", ["192.0.2.1"])), 2, Refusal.TTL_BELOW_MINIMUM),
        (PLAIN[:-1], 2, Refusal.MALFORMED),
        (b"", 2, Refusal.MALFORMED),
    ],
)
def test_refused_with_its_reason(message: bytes, security: int, reason: Refusal) -> None:
    assert judge(message, security) is reason


def test_unchecked_is_too_weak_by_default() -> None:
    assert judge(PLAIN, 0, trust=JudgeSettings().trust) is Refusal.EVIDENCE_TOO_WEAK


@pytest.mark.parametrize(
    ("message", "uptime", "age"),
    [
        (PLAIN, 1000, 1000),  # as old as the resolver
        (PLAIN, 10 * DAY, DAY - 300),  # no TTL lives longer than a day
        (signed(), 10 * DAY, 600),  # 3600 signed, 3000 left
        (signed(), 60, 60),
        (signed(inception=int(NOW) - 50), 10 * DAY, 50),  # not before it was signed
        (
            wire(("c.test.", 100, "CNAME", ["www.test."]), ("www.test.", DAY - 7, "A", ["192.0.2.1"])),
            10 * DAY,
            7,
        ),  # no older than its youngest part
    ],
)
def test_learned_as_early_as_possible_and_no_longer_alive(message: bytes, uptime: int, age: int) -> None:
    found = answer(message, 5 if b"signed" in message else 2, uptime=uptime)
    assert found.learned == NOW - age
    left = {rrset.owner: int(found.learned + rrset.ttl - NOW) for rrset in found.rrsets}
    original = dns.message.from_wire(message)
    assert left == {rrset.name.to_wire(): rrset.ttl for rrset in original.answer}


def test_the_resolver_is_known_to_hold_it() -> None:
    held: list[tuple[bytes, int, float, bool]] = []
    judge(PLAIN, 2, held=held)
    judge(PLAIN, 1, held=held)
    assert held == [(b"\3www\4test\0", 1, NOW + 300, False)]


def test_goes_on_under_the_same_rules_only() -> None:
    settings = JudgeSettings(node="a")
    cache = CacheJudge(settings, min_ttl=30)
    assert CacheJudge(settings, min_ttl=30).judges_as(cache)
    assert not CacheJudge(settings, min_ttl=31).judges_as(cache)
    assert not CacheJudge(JudgeSettings(node="b"), min_ttl=30).judges_as(cache)
    assert list(cache.expire(NOW)) == []
    assert cache.statistics() == {"frames": 0, "answers": 0, "refused": 0}
