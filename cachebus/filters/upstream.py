"""What a response of the shim's own upstream is worth (trust rules, sections 2 and 3).

Judges one response beside the query that the shim sent for it. Refuses to know how they travelled; that the response
came from the upstream asked, by address, port and ID, is the shim's work, and that the upstream may be trusted to
validate (loopback, or a verified TLS name) is the configuration's.
"""

from __future__ import annotations

from enum import Enum

from cachebus.answer import Answer, Evidence, Refusal
from cachebus.errors import MessageError
from cachebus.filters.chain import Link, chain_from, flatten, limit_chain, signed
from cachebus.filters.direct import alone, swild_links
from cachebus.filters.form import header_refusal, question_bytes, question_refusal
from cachebus.filters.settings import JudgeSettings
from cachebus.wire import rrtypes
from cachebus.wire.message import AA, AD, CD, HEADER_LENGTH, Message, parse
from cachebus.wire.name import is_at_or_below


class UpstreamTrust(Enum):
    """What an upstream is declared to be."""

    VALIDATING = "validating"
    """A validating resolver: AD=1 means something."""
    AUTHORITATIVE = "authoritative"
    """An authoritative server: AA=1 means something."""
    NONE = "none"
    """Nothing of it is shared."""


def judge_upstream(
    query: bytes, response: bytes, *, trust: UpstreamTrust, now: float, settings: JudgeSettings
) -> Answer | Refusal:
    """The answer that `response`, received at `now`, gives to `query`, or why it may not be shared.

    An authoritative upstream gives `authoritative` with AA=1. A validating one gives `validated` with AD=1 and an RRSIG
    over every RRset; an AD=0 answer is `NOT_VALIDATED`, and a TTL at or below `settings.stale_ttl` is `STALE`, because
    that is how stale answers come. Whole answers only.
    """
    message = _message(query, response, trust=trust, settings=settings)
    if isinstance(message, Refusal):
        return message
    chain = chain_from(message.answer, message.qname, message.qtype)
    if isinstance(chain, Refusal):
        return chain
    if not chain.complete:
        return Refusal.NO_ANSWER
    links = limit_chain(chain.links, now, max_ttl=settings.max_ttl)
    if isinstance(links, Refusal):
        return links
    return _answer(message, message.qname, message.qtype, links, trust=trust, now=now, settings=settings)


def upstream_answers(
    query: bytes, response: bytes, *, trust: UpstreamTrust, now: float, settings: JudgeSettings
) -> list[Answer] | Refusal:
    """Everything that `response` says and that may be shared, by the rules of `judge_upstream`, or why nothing may.

    The whole answer, or the RRsets of a chain that stops early under their own names, for the shim asks on for its end;
    SWILD RRsets above the question, in the zone whose servers answered, as answers of their own.
    """
    message = _message(query, response, trust=trust, settings=settings)
    if isinstance(message, Refusal):
        return message
    chain = chain_from(message.answer, message.qname, message.qtype)
    links = chain if isinstance(chain, Refusal) else limit_chain(chain.links, now, max_ttl=settings.max_ttl)
    found: list[tuple[bytes, int, tuple[Link, ...]]] = []
    refusal: Refusal | None = None
    if isinstance(links, Refusal):
        refusal = links
    elif not isinstance(chain, Refusal) and chain.complete:
        found = [(message.qname, message.qtype, links)]
    else:
        refusal = Refusal.NO_ANSWER
        found = list(alone(links))
    for link in swild_links(message, zone_of(message), now, settings):
        found.append((link.rrset.owner, link.rrset.type, (link,)))
    answers: list[Answer] = []
    for qname, qtype, kept in found:
        answer = _answer(message, qname, qtype, kept, trust=trust, now=now, settings=settings)
        if isinstance(answer, Answer):
            answers.append(answer)
        else:
            refusal = answer
    return answers or refusal or Refusal.NO_ANSWER


def zone_of(message: Message) -> bytes:
    """The lowest zone whose apex the authority section names at or above the question; the root where it names none."""
    apexes = [
        rrset.owner
        for rrset in message.authority
        if rrset.type in (rrtypes.NS, rrtypes.SOA) and is_at_or_below(message.qname, rrset.owner)
    ]
    return max(apexes, key=len, default=b"\0")


def _message(query: bytes, response: bytes, *, trust: UpstreamTrust, settings: JudgeSettings) -> Message | Refusal:
    """The response, where its form lets it count for anything."""
    if trust is UpstreamTrust.NONE:
        return Refusal.EVIDENCE_TOO_WEAK
    refusal = header_refusal(response, authoritative=trust is UpstreamTrust.AUTHORITATIVE)
    if refusal is not None:
        return refusal
    try:
        if len(query) < HEADER_LENGTH or query[:2] != response[:2]:
            return Refusal.UNPAIRED
        if question_bytes(query) != question_bytes(response):
            return Refusal.QUESTION_MISMATCH
        message = parse(response)
    except MessageError:
        return Refusal.MALFORMED
    if query[3] & CD:
        return Refusal.CLIENT_CHECKING_DISABLED
    return question_refusal(message, b"\0", infrastructure=settings.infrastructure) or message


def _answer(
    message: Message,
    qname: bytes,
    qtype: int,
    links: tuple[Link, ...],
    *,
    trust: UpstreamTrust,
    now: float,
    settings: JudgeSettings,
) -> Answer | Refusal:
    authoritative = trust is UpstreamTrust.AUTHORITATIVE
    level = Evidence.AUTHORITATIVE if authoritative else _validated(message, links, settings)
    if isinstance(level, Refusal):
        return level
    return Answer(qname, qtype, tuple(flatten(links)), level, settings.node, now, validating=not authoritative)


def _validated(message: Message, links: tuple[Link, ...], settings: JudgeSettings) -> Evidence | Refusal:
    if not message.flags & AD or message.flags & AA:
        return Refusal.NOT_VALIDATED  # AA=1: a server of the zone, which validates nothing (RFC 4035 section 3.1.6)
    if not signed(links):
        return Refusal.RRSIG_MISSING
    if min(link.rrset.ttl for link in links) <= settings.stale_ttl:
        return Refusal.STALE
    return Evidence.VALIDATED
