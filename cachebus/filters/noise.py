"""Noise control: which answers are worth a message, by how often and how fast they come. Judges no content.

More than half of all distinct records are asked for only once; sending those is work for every peer and use to none.
"""

from __future__ import annotations

from dataclasses import dataclass

from cachebus.answer import Answer, Evidence, Refusal
from cachebus.wire.message import canonical_set
from cachebus.wire.name import ancestors

MAX_REMEMBERED = 200_000
"""Answers remembered in each of two generations; about 30 MB together when full."""
MAX_ZONES = 20_000
"""Zones whose rate is counted at once."""
BURST = 2.0
"""Seconds' worth of its rate that a cap lets through at once."""
ZONE_LABELS = 2
"""A zone, for its rate cap, is what the last two labels say: where cuts are is not known here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseSettings:
    """What the `share` section says about quantity. None switches a rule off."""

    second_sighting: float | None = None
    """Seconds within which a name must be seen twice."""
    damping: float | None = None
    """Seconds after the node's start for which a name must be seen twice: a cold node resolves everything anew."""
    node_rate: float | None = None
    """Answers per second that this node sends."""
    zone_rate: float | None = None
    """Answers per second that this node sends of one zone."""


class _Bucket:
    """A token bucket."""

    __slots__ = ("_rate", "_time", "_tokens")

    def __init__(self, rate: float, now: float) -> None:
        self._rate = rate
        self._tokens = max(1.0, rate * BURST)
        self._time = now

    def take(self, now: float) -> bool:
        gained = max(0.0, now - self._time) * self._rate
        self._tokens = min(max(1.0, self._rate * BURST), self._tokens + gained)
        self._time = now
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True


class _Memory:
    """A bounded dict of two generations: when the young one is full, the old one is forgotten."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._young: dict[bytes, tuple[float, int, int]] = {}
        self._old: dict[bytes, tuple[float, int, int]] = {}

    def get(self, key: bytes) -> tuple[float, int, int] | None:
        return self._young.get(key) or self._old.get(key)

    def set(self, key: bytes, value: tuple[float, int, int]) -> None:
        if len(self._young) >= self._limit and key not in self._young:
            self._old, self._young = self._young, {}
        self._young[key] = value

    def discard(self, key: bytes) -> None:
        self._young.pop(key, None)
        self._old.pop(key, None)


class Noise:
    """One node's memory of what it saw and sent."""

    def __init__(
        self, settings: NoiseSettings, *, started: float = float("-inf"), remember: int = MAX_REMEMBERED
    ) -> None:
        """`started`: when the node did, for `damping`."""
        self._settings = settings
        self._warm = started + (settings.damping or 0.0)
        self._seen = _Memory(remember)
        self._sent = _Memory(remember)
        self._node: _Bucket | None = None
        self._zones: dict[bytes, _Bucket] = {}

    def inherit(self, previous: Noise) -> None:
        """Go on with what another remembers: what it saw and sent, and what its rates have left where they are ours."""
        self._seen, self._sent = previous._seen, previous._sent
        if self._settings.node_rate == previous._settings.node_rate:
            self._node = previous._node
        if self._settings.zone_rate == previous._settings.zone_rate:
            self._zones = previous._zones

    def unsent(self, answer: Answer) -> None:
        """An answer that `refuse` let through did not leave the node: the next time it is new again."""
        key = answer.qname + answer.qtype.to_bytes(2, "big")
        sent = self._sent.get(key)
        if sent is not None and (sent[0], sent[2]) == (answer.learned + answer.ttl / 2, answer.evidence):
            self._sent.discard(key)

    def refuse(self, answer: Answer, now: float) -> Refusal | None:
        """Why this answer is not worth a message now; None counts it as sent, until `unsent` is told otherwise."""
        key = answer.qname + answer.qtype.to_bytes(2, "big")
        # Neither the order of records nor what was left of their TTLs makes an answer another one.
        content = hash(tuple((rrset.owner, rrset.type, canonical_set(rrset)) for rrset in answer.rrsets))
        if self._is_known(key, content, answer.evidence, now):
            return Refusal.ALREADY_SHARED
        window = self._settings.second_sighting or 0.0
        if now < self._warm:
            window = max(window, self._settings.damping or 0.0)
        if window and not self._seen_before(key, answer.learned, now, window):
            return Refusal.FIRST_SIGHTING
        if not self._within_rates(answer.qname, now):
            return Refusal.RATE_LIMITED
        self._sent.set(key, (answer.learned + answer.ttl / 2, content, answer.evidence))
        return None

    def _is_known(self, key: bytes, content: int, evidence: Evidence, now: float) -> bool:
        sent = self._sent.get(key)
        return sent is not None and sent[0] > now and sent[1] == content and sent[2] >= evidence

    def _seen_before(self, key: bytes, learned: float, now: float, window: float) -> bool:
        sent = self._sent.get(key)
        if sent is not None and sent[0] > now:
            return True  # shared already; now it has better evidence, or other data
        sighting = int(learned * 1000)
        last = self._seen.get(key)
        if last is not None and last[1] == sighting:
            return False  # the same look-up, whose evidence rose
        self._seen.set(key, (now, sighting, 0))
        return last is not None and now - last[0] <= window

    def _within_rates(self, qname: bytes, now: float) -> bool:
        settings = self._settings
        if settings.zone_rate is not None:
            zone = _zone(qname)
            bucket = self._zones.get(zone)
            if bucket is None:
                if len(self._zones) >= MAX_ZONES:
                    self._zones.clear()
                bucket = self._zones[zone] = _Bucket(settings.zone_rate, now)
            if not bucket.take(now):
                return False
        if settings.node_rate is not None:
            if self._node is None:
                self._node = _Bucket(settings.node_rate, now)
            return self._node.take(now)
        return True


def _zone(name: bytes) -> bytes:
    names = list(ancestors(name))
    return names[max(0, len(names) - 1 - ZONE_LABELS)]
