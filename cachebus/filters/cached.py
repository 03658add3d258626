"""The judge of what a resolver's cache already held when this node was started beside it (trust rules, sections 2, 7).

Decides what an entry is worth by the DNSSEC status that the resolver gave it, and when it can have been learned: a
cache says what is left of a TTL, not since when it runs. Refuses to know how the cache was read and what may leave the
node.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from cachebus.answer import Answer, Evidence, Refusal, RRset
from cachebus.filters.clients import OnHeld
from cachebus.filters.direct import finished_answers
from cachebus.filters.settings import JudgeSettings
from cachebus.filters.tally import Tally
from cachebus.filters.verdict import Verdict
from cachebus.wire.message import AD, HEADER_LENGTH, records, rrsig_fields
from cachebus.wire.rrtypes import DNAME

_SECURE = 5
_CLAIMS = {
    0: Evidence.AUTHORITATIVE,  # with CD=1, or asked for by the resolver itself, or it does not validate at all
    2: Evidence.CONFIRMED,  # the validator is done with it: no trust anchor
    3: Evidence.CONFIRMED,  # the validator is done with it: proven unsigned
    _SECURE: Evidence.VALIDATED,
}
"""By `sec_status`. The others, bogus among them, are worth nothing."""
_CHECKED = 3
"""From here on an unsigned answer was found insecure."""
_HEAD = 5


class CacheEntry(NamedTuple):
    """A frame of this judge: one entry of a cache."""

    security: int
    """The resolver's `sec_status` of the weakest part."""
    uptime: int
    """Seconds since the resolver started with an empty cache."""
    message: bytes
    """DNS response in wire form, with the TTLs that are left."""

    def pack(self) -> bytes:
        """The bytes that `CacheJudge.feed` takes: status (u8), uptime (u32), message."""
        return bytes((self.security & 0xFF,)) + min(self.uptime, 0xFFFFFFFF).to_bytes(4) + self.message


class CacheJudge:
    """Judges the entries of one cache; the `Judge` of the ports."""

    def __init__(self, settings: JudgeSettings, *, min_ttl: int, on_held: OnHeld | None = None) -> None:
        """`min_ttl`: seconds that must be left of an entry; the share policy would look at its whole life."""
        self._settings = settings
        self._unchecked = replace(settings, validating=False)
        self._min_ttl = min_ttl
        self._on_held = on_held
        self._tally = Tally()
        self._number = 0
        self.finished = False
        """The cache was read to its end, and is not to be read again."""

    def finish(self) -> None:
        """Note that the cache was read to its end."""
        self.finished = True

    def judges_as(self, other: object) -> bool:
        """Whether `other` is a judge by the same rules, which can go on in this one's place with what it remembers."""
        return (
            isinstance(other, CacheJudge)
            and (other._settings, other._min_ttl) == (self._settings, self._min_ttl)
            and other._on_held == self._on_held
        )

    def feed(self, frame: bytes, now: float) -> list[Verdict]:
        """Take one packed `CacheEntry`, whose TTLs count from `now`. Never raises for bad bytes."""
        self._number += 1
        found = self._judge(frame, now)
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
        """Entries refused, by reason."""
        return self._tally.refusals

    def _judge(self, frame: bytes, now: float) -> list[Answer] | Refusal:
        if len(frame) < _HEAD + HEADER_LENGTH:
            return Refusal.MALFORMED
        security, uptime, wire = frame[0], int.from_bytes(frame[1:_HEAD]), frame[_HEAD:]
        claims = _CLAIMS.get(security)
        if claims is None:
            return Refusal.NOT_VALIDATED
        if security == _SECURE:
            wire = wire[:3] + bytes((wire[3] | AD,)) + wire[4:]
        settings = self._settings if security >= _CHECKED else self._unchecked
        found = finished_answers(wire, now, settings, claims=claims)
        if isinstance(found, Refusal):
            return found
        if security == _SECURE and any(answer.evidence < Evidence.VALIDATED for answer in found):
            return Refusal.RRSIG_MISSING  # as of what a module made from secure data (RFC 6147)
        kept = [self._dated(answer, uptime, now) for answer in found if answer.ttl >= self._min_ttl]
        negative = False
        if self._on_held is not None:
            for answer in kept:
                self._on_held(answer.qname, answer.qtype, answer.learned + answer.ttl, negative)
        return kept or Refusal.TTL_BELOW_MINIMUM

    def _dated(self, answer: Answer, uptime: int, now: float) -> Answer:
        """The answer as learned at the earliest time possible, expiring when it did.

        A later one would put what may have been in the cache for a day before what peers have learned since.
        """
        ages = [uptime, *(self._settings.max_ttl - rrset.ttl for rrset in answer.rrsets)]
        before = 0
        for rrset in answer.rrsets:
            if rrset.sigs and before != DNAME:
                ages.append(_age(rrset, now))
            before = rrset.type
        # A whole answer is no older than the youngest of its parts can be.
        age = max(min(ages), 0)
        rrsets = tuple(rrset._replace(ttl=rrset.ttl + age) for rrset in answer.rrsets)
        return answer._replace(learned=now - age, rrsets=rrsets)


def _age(rrset: RRset, now: float) -> int:
    """Seconds since a signed RRset can have been learned: by its original TTL, and not before it was signed."""
    ages = []
    for _, _, rdata in records(rrset.sigs):
        sig = rrsig_fields(rdata)
        ages += [sig.original_ttl - rrset.ttl, (int(now) - sig.inception) & 0xFFFFFFFF]
    return min(ages)
