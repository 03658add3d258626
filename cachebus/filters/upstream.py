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
from cachebus.filters.form import header_refusal, question_bytes, question_refusal
from cachebus.filters.settings import JudgeSettings
from cachebus.wire.message import AA, AD, CD, HEADER_LENGTH, Message, parse


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
    if trust is UpstreamTrust.NONE:
        return Refusal.EVIDENCE_TOO_WEAK
    authoritative = trust is UpstreamTrust.AUTHORITATIVE
    refusal = header_refusal(response, authoritative=authoritative)
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
    refusal = question_refusal(message, b"\0", infrastructure=settings.infrastructure)
    if refusal is not None:
        return refusal
    chain = chain_from(message.answer, message.qname, message.qtype)
    if isinstance(chain, Refusal):
        return chain
    if not chain.complete:
        return Refusal.NO_ANSWER
    links = limit_chain(chain.links, now, max_ttl=settings.max_ttl)
    if isinstance(links, Refusal):
        return links
    level = Evidence.AUTHORITATIVE if authoritative else _validated(message, links, settings)
    if isinstance(level, Refusal):
        return level
    return Answer(
        message.qname, message.qtype, tuple(flatten(links)), level, settings.node, now, validating=not authoritative
    )


def _validated(message: Message, links: tuple[Link, ...], settings: JudgeSettings) -> Evidence | Refusal:
    if not message.flags & AD or message.flags & AA:
        return Refusal.NOT_VALIDATED  # AA=1: a server of the zone, which validates nothing (RFC 4035 section 3.1.6)
    if not signed(links):
        return Refusal.RRSIG_MISSING
    if min(link.rrset.ttl for link in links) <= settings.stale_ttl:
        return Refusal.STALE
    return Evidence.VALIDATED
