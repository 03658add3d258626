"""The judge of a direct source: finished answers of the resolver, one DNS message each (trust rules, sections 2 and 3).

A direct source says what its messages are worth (`claims`); this file holds it to that. Refuses to know how they came
and what may leave the node.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from cachebus.answer import Answer, Evidence, Refusal, RRset
from cachebus.errors import MessageError
from cachebus.filters.chain import Link, chain_from, flatten, limit, limit_chain, signed
from cachebus.filters.form import finished_refusal, header_refusal
from cachebus.filters.settings import JudgeSettings
from cachebus.filters.tally import Tally
from cachebus.filters.verdict import Verdict
from cachebus.wire.message import AD, Message, parse
from cachebus.wire.name import is_at_or_below


class DirectJudge:
    """Judges the messages of one direct source; the `Judge` of the ports."""

    def __init__(self, settings: JudgeSettings) -> None:
        """`settings.claims` is the strongest level its messages may have."""
        self._settings = settings
        self._tally = Tally()
        self._number = 0

    def judges_as(self, other: object) -> bool:
        """Whether `other` is a judge by the same rules, which can go on in this one's place with what it remembers."""
        return isinstance(other, DirectJudge) and other._settings == self._settings

    def feed(self, frame: bytes, now: float) -> list[Verdict]:
        """Take one DNS message, written at `now` (seconds since the epoch). Never raises for bad bytes."""
        self._number += 1
        found = finished_answers(frame, now, self._settings, claims=self._settings.claims)
        if isinstance(found, Refusal):
            verdicts = [Verdict(self._number, None, found)]
        else:
            verdicts = [Verdict(self._number, answer, None) for answer in found]
        self._tally.count(verdicts)
        return verdicts

    def expire(self, now: float) -> Sequence[Verdict]:
        """Nothing waits here."""
        return ()

    def statistics(self) -> Mapping[str, int]:
        """Counters by snake_case name: frames, answers, refused, refused_REASON."""
        return {"frames": self._number, **self._tally.statistics()}

    @property
    def refusals(self) -> Mapping[Refusal, int]:
        """Messages refused, by reason."""
        return self._tally.refusals


def finished_answers(
    wire: bytes, learned: float, settings: JudgeSettings, *, claims: Evidence
) -> list[Answer] | Refusal:
    """What a resolver's finished answer says, at most at the level `claims`, or why nothing of it may be shared.

    One whole answer, or the RRsets of a chain that stops early under their own names; SWILD RRsets above the question
    as answers of their own. `learned` in seconds since the epoch.
    """
    refusal = header_refusal(wire)
    if refusal is not None:
        return refusal
    try:
        message = parse(wire)
    except MessageError:
        return Refusal.MALFORMED
    refusal = finished_refusal(message, infrastructure=settings.infrastructure)
    if refusal is not None:
        return refusal
    asides = [(link.rrset.owner, link.rrset.type, (link,)) for link in swild_links(message, b"\0", learned, settings)]
    chain = chain_from(message.answer, message.qname, message.qtype)
    links = chain if isinstance(chain, Refusal) else limit_chain(chain.links, learned, max_ttl=settings.max_ttl)
    if isinstance(links, Refusal):
        found: list[tuple[bytes, int, tuple[Link, ...]]] = []
        refusal = links
    elif not isinstance(chain, Refusal) and chain.complete:
        found = [(message.qname, message.qtype, links)]
    else:
        found = list(alone(links))
    answers = []
    for qname, qtype, kept in found + asides:
        level = _level(message, kept, claims)
        if level >= settings.lowest:
            rrsets: tuple[RRset, ...] = tuple(flatten(kept))
            answers.append(Answer(qname, qtype, rrsets, level, settings.node, learned, settings.validating))
        else:
            refusal = refusal or _too_weak(message, settings, claims)
    return answers or refusal or Refusal.NO_ANSWER


def alone(links: Iterable[Link]) -> Iterable[tuple[bytes, int, tuple[Link, ...]]]:
    """Each RRset of a chain as an answer under its own name and type; a recomputed CNAME keeps its DNAME."""
    for link in links:
        yield link.rrset.owner, link.rrset.type, (Link(link.rrset),)
        if link.synthesised is not None:
            yield link.synthesised.owner, link.synthesised.type, (link,)


def swild_links(message: Message, zone: bytes, learned: float, settings: JudgeSettings) -> Iterable[Link]:
    """SWILD RRsets above the question, at or below `zone`, with their TTL limited; those it refuses are left out."""
    for rrset in message.answer:
        if (
            rrset.type == settings.swild
            and rrset.owner != message.qname
            and is_at_or_below(message.qname, rrset.owner)
            and is_at_or_below(rrset.owner, zone)
        ):
            kept = limit(rrset, learned, max_ttl=settings.max_ttl)
            if not isinstance(kept, Refusal):
                yield Link(kept)


def _level(message: Message, links: Iterable[Link], claims: Evidence) -> Evidence:
    if claims < Evidence.VALIDATED:
        return claims
    return Evidence.VALIDATED if message.flags & AD and signed(links) else Evidence.CONFIRMED


def _too_weak(message: Message, settings: JudgeSettings, claims: Evidence) -> Refusal:
    if claims < settings.lowest:
        return Refusal.EVIDENCE_TOO_WEAK
    return Refusal.RRSIG_MISSING if message.flags & AD else Refusal.NOT_VALIDATED
