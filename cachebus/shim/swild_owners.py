"""What this node knows of SWILD: the owners whose subdomains are all one alias, and the names below that are not.

Watches the cache, so that it hears of an RRset whichever way it came: from an upstream, the bus, a copy, a resolver's
dnstap. Decides what is believed and when it counts (docs/shim/swild.md); whether a SWILD still lives, the cache says.
Answers nobody, knows no socket; `now` is an argument. Everything it remembers is bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar

from cachebus.answer import Answer, Refusal, RRset
from cachebus.cache import Cache
from cachebus.entry import Cached
from cachebus.errors import ConfigError
from cachebus.filters.chain import DEFAULT_SWILD, limit
from cachebus.filters.swild import SwildRefusal, branch, common_owner, swild_target
from cachebus.filters.upstream import zone_of
from cachebus.wire import rrtypes
from cachebus.wire.message import AD, Message, cname_target, records, rrsig_fields
from cachebus.wire.name import ancestors, is_at_or_below, parent

PRIVATE_TYPES = range(65280, 65535)
"""Type codes for private use (RFC 6895 section 3.1): SWILD has none of its own."""
DEFAULT_TTL_CAP = 3600
"""Seconds that a SWILD counts. Its zone may get other names, which the draft forbids, and nobody would see them."""
MAX_TTL_CAP = 7 * 86400
MAX_OWNERS = 10_000
"""SWILD owners known at a time, some 5 MB; the one heard of longest ago goes first."""
MAX_REMEMBERED = 10_000
"""CNAMEs, and existing names, remembered: between half of it and all of it, 2 to 4 MB each."""
SIGHTING_LIFE = 86400.0
"""Seconds for which a CNAME that was seen speaks for the wildcard behind it: a day, the longest TTL kept."""
DEAD_KEPT = 3600.0
"""Seconds for which an owner whose SWILD has ended is remembered: it is asked for at the next CNAME, not the second."""
ASK_AGAIN = 60.0
"""Seconds before a discovery that brought neither a SWILD nor a denial is tried again."""

_NOT_BELOW_A_CUT = (rrtypes.NS, rrtypes.SOA, rrtypes.DNAME)
K = TypeVar("K")
V = TypeVar("V")


class Include(Enum):
    """Where a synthesised response carries the SWILD, so that the next forwarder learns it."""

    ANSWER = "answer"
    ADDITIONAL = "additional"
    OFF = "off"


@dataclass(frozen=True, slots=True, kw_only=True)
class SwildSettings:
    """The shim's `swild` section. Names in lower-case wire form. Raises `ConfigError` for what cannot be."""

    type: int = DEFAULT_SWILD
    """One of `PRIVATE_TYPES`, the same on every node of a cluster."""
    zones: frozenset[bytes] = frozenset()
    """SWILD counts at and below these; the root stands for all names, none switches it off."""
    hints: frozenset[bytes] = frozenset()
    """In-tree hints: a SWILD above one is refused."""
    ttl_cap: int = DEFAULT_TTL_CAP
    """Seconds, 1 to `MAX_TTL_CAP`, that a SWILD counts, and the longest TTL of a synthesised CNAME."""
    include: Include = Include.ANSWER
    discover: bool = True
    """Ask for the SWILD of names that look like a wildcard's."""

    def __post_init__(self) -> None:
        if self.type not in PRIVATE_TYPES:
            raise ConfigError("swild.type is not between 65280 and 65534")
        if not 1 <= self.ttl_cap <= MAX_TTL_CAP:
            raise ConfigError(f"swild.ttl_cap is not between 1 and {MAX_TTL_CAP}")


class Recent(Generic[K, V]):
    """A bounded memory in two generations: when the young one is full, the old one is given up whole."""

    __slots__ = ("_half", "_old", "_young")

    def __init__(self, bound: int) -> None:
        self._half = bound // 2
        self._young: dict[K, V] = {}
        self._old: dict[K, V] = {}

    def get(self, key: K) -> V | None:
        """What is remembered of `key`."""
        found = self._young.get(key)
        return self._old.get(key) if found is None else found

    def put(self, key: K, value: V) -> None:
        """Remember; what was remembered of `key` before is replaced."""
        if len(self._young) >= self._half and key not in self._young:
            self._old, self._young = self._young, {}
        self._young[key] = value

    def clear(self) -> None:
        """Forget everything."""
        self._young, self._old = {}, {}


@dataclass(slots=True)
class Sighting:
    """CNAMEs to one target that were seen below one name."""

    first: bytes
    signer: bytes
    ttl: int
    """The largest seen within its own life: a resolver counts its cached copy down."""
    seen: float
    several: bool = False
    """Two different names at least."""

    def see(self, ttl: int, signer: bytes, now: float) -> None:
        """Take one more CNAME."""
        self.ttl = max(ttl, self.ttl) if now - self.seen < self.ttl else ttl
        self.signer = signer
        self.seen = now


@dataclass(slots=True)
class Owner:
    """One SWILD, as it was learned last."""

    name: bytes
    target: bytes
    """Lower case."""
    rdata: bytes
    """The target as its zone writes it."""
    branch: bytes
    """What is at or below this name is never synthesised: the target, all below it, and all between it and the owner.
    They exist, so the wildcard does not match there (RFC 4592 section 3.3.1)."""
    signer: bytes
    """Of its RRSIG; empty where there is none."""
    learned: float
    expires: float
    sighting: Sighting | None = None
    """Of `x.owner CNAME target`; without one the SWILD does not count yet."""


class Swilds:
    """See the module. `observe` is what the cache calls."""

    def __init__(self, cache: Cache, settings: SwildSettings, ask: Callable[[bytes], None] | None = None) -> None:
        """`ask`: look for the SWILD of this name, in the background; None where nobody could be asked."""
        self._cache = cache
        self.settings = settings
        self._type = settings.type
        self._ask = ask
        self.owners: dict[bytes, Owner] = {}
        """By name. Empty: no SWILD is known, and nothing else need be looked at."""
        self._sightings: Recent[tuple[bytes, bytes], Sighting] = Recent(MAX_REMEMBERED)
        self._existing: Recent[bytes, float] = Recent(MAX_REMEMBERED)
        self._asked: Recent[bytes, float] = Recent(MAX_REMEMBERED)
        self._generation = cache.generation
        self._refused_last: tuple[bytes, float] = (b"", 0.0)
        self.refused: dict[SwildRefusal, int] = {}
        self.discoveries = 0
        self.forgotten = 0

    def inherit(self, previous: object) -> None:
        """Take over what a predecessor with the same rules knows: a reload keeps the cache, and this with it."""
        if not isinstance(previous, Swilds) or previous is self:
            return
        theirs, ours = previous.settings, self.settings
        if (theirs.type, theirs.zones, theirs.hints) == (ours.type, ours.zones, ours.hints):
            self.owners = previous.owners
            self._sightings, self._existing = previous._sightings, previous._existing
            self._generation = previous._generation

    def retire(self) -> None:
        """Ask nobody any more."""
        self._ask = None

    # What the cache was told

    def observe(self, answers: Iterable[Answer], outcomes: Sequence[Refusal | None], now: float) -> None:
        """Look at what has just been put into the cache."""
        if self._generation != self._cache.generation:
            self._after_flush(now)
        for answer, outcome in zip(answers, outcomes, strict=True):
            if outcome is not None:
                continue
            for rrset in answer.rrsets:
                if rrset.type == rrtypes.CNAME:
                    self._alias(rrset, answer, now)
                elif rrset.type == self._type:
                    self._swild(rrset.owner, answer, now)
                elif self.owners:
                    self._exists(rrset.owner, answer.learned + rrset.ttl)

    def _after_flush(self, now: float) -> None:
        """What was flushed is to be learned anew, all of it: a SWILD that came since needs a new CNAME as well."""
        self._generation = self._cache.generation
        self._sightings.clear()
        self._existing.clear()
        for owner in self.owners.values():
            held = self._cache.get(owner.name, self._type, now)
            if held is None or held.learned > owner.learned:
                owner.sighting = None
                owner.expires = now

    def _swild(self, name: bytes, answer: Answer, now: float) -> None:
        held = self._cache.get(name, self._type, now)
        if held is None or held.negative:
            return
        target = self._judge(held.rrset)
        if isinstance(target, SwildRefusal):
            self.owners.pop(name, None)
            if self._refused_last != (name, answer.learned):  # the shim puts twice what it shares
                self._refused_last = (name, answer.learned)
                self._refuse(target)
            return
        previous = self.owners.pop(name, None)
        owner = Owner(
            name, target, held.rrset.rrs[12:], branch(name, target), _signer(held.rrset), answer.learned, held.expires
        )
        if previous is not None and previous.target == target and previous.expires > now:
            owner.learned = max(owner.learned, previous.learned)
            owner.sighting = previous.sighting
        if owner.sighting is None:
            owner.sighting = self._find_sighting(owner, now)
        if len(self.owners) >= MAX_OWNERS:
            del self.owners[next(iter(self.owners))]
            self.forgotten += 1
        self.owners[name] = owner

    def _judge(self, rrset: RRset) -> bytes | SwildRefusal:
        target = swild_target(rrset)
        if isinstance(target, SwildRefusal):
            return target
        if not self._is_enabled(rrset.owner):
            return SwildRefusal.NOT_ENABLED
        if any(hint != rrset.owner and is_at_or_below(hint, rrset.owner) for hint in self.settings.hints):
            return SwildRefusal.ABOVE_HINT
        return target

    def _is_enabled(self, name: bytes) -> bool:
        return not self.settings.zones.isdisjoint(ancestors(name))

    def _find_sighting(self, owner: Owner, now: float) -> Sighting | None:
        """A CNAME seen before the SWILD was known."""
        for name in ancestors(parent(owner.target)):
            found = self._sightings.get((name, owner.target))
            if (
                found is not None
                and now - found.seen < SIGHTING_LIFE
                and found.signer == owner.signer
                and not is_at_or_below(found.first, owner.branch)
                and not self._is_cut_off(found.first, owner.name, now)
            ):
                return found
            if name == owner.name:
                break
        return None

    def _alias(self, rrset: RRset, answer: Answer, now: float) -> None:
        alias, target = rrset.owner, cname_target(rrset)
        owner = self.closest(alias) if self.owners else None
        if owner is not None and owner.target != target:
            self._exists(alias, answer.learned + rrset.ttl)
        common = common_owner(alias, target)
        if common is None or not self._is_enabled(common):
            return
        held = self._cache.get(alias, rrtypes.CNAME, now)
        if held is None or held.negative or cname_target(held.rrset) != target:
            return  # somebody better says otherwise
        signer = _signer(held.rrset)
        sighting = self._sightings.get((common, target))
        if sighting is None:
            sighting = Sighting(alias, signer, rrset.ttl, now)
        else:
            sighting.several = sighting.several or sighting.first != alias
            sighting.see(rrset.ttl, signer, now)
        self._sightings.put((common, target), sighting)
        if owner is not None and owner.target == target:
            self._confirm(owner, sighting, alias, now)
        if not answer.transport:
            # One node of a cluster asks: the one that saw the second CNAME itself, or the end of the SWILD.
            if owner is not None and owner.target == target and not self._counts(owner, now):
                self.discover(owner.name, now)
            elif sighting.several:
                self.discover(common, now)

    def _confirm(self, owner: Owner, sighting: Sighting, alias: bytes, now: float) -> None:
        if (
            owner.sighting is not sighting
            and sighting.signer == owner.signer
            and not is_at_or_below(alias, owner.branch)
            and not self._is_cut_off(alias, owner.name, now)
        ):
            owner.sighting = sighting

    def _is_cut_off(self, name: bytes, owner: bytes, now: float) -> bool:
        """Whether something cached says that `name` is in a zone below `owner`."""
        for between in ancestors(name):
            if between == owner:
                return False
            if any(self._holds(between, rrtype, now) for rrtype in _NOT_BELOW_A_CUT):
                return True
        return True

    def _holds(self, name: bytes, rrtype: int, now: float) -> bool:
        held = self._cache.get(name, rrtype, now)
        return held is not None and not held.negative

    def _exists(self, name: bytes, until: float) -> None:
        """Remember a name that the zone has beside its wildcard, and the empty names above it."""
        owner = self.closest(name)
        if owner is None or is_at_or_below(name, owner.branch):
            return
        for between in ancestors(name):
            if between == owner.name:
                break
            self._existing.put(between, max(until, self._existing.get(between) or 0.0))

    # What was beside an upstream's answer

    def capped(self, rrset: RRset) -> RRset:
        """A SWILD learned here, with the TTL that the cap leaves it: so it ends for all nodes at once, and when one of
        them has learned it again, that is news to the others."""
        cap = self.settings.ttl_cap
        return rrset._replace(ttl=cap) if rrset.type == self._type and rrset.ttl > cap else rrset

    def look_at(self, message: Message, now: float, *, authoritative: bool, validating: bool) -> None:
        """Count the SWILDs of an upstream's reply that are not taken, and ask for those that are only hearsay.

        What an authoritative server says above the question, in the zone that answered, is in the cache already, and
        so is what a validating upstream gave with RRSIGs and AD=1.
        """
        authentic = validating and bool(message.flags & AD)
        if message.other_class:
            self._refuse(SwildRefusal.CLASS)
        for section in (message.answer, message.additional):
            for rrset in section:
                if rrset.type == self._type:
                    trusted = authoritative or (authentic and bool(rrset.sigs))
                    self._look_at(rrset, message, now, trusted=trusted and section is message.answer)

    def _look_at(self, rrset: RRset, message: Message, now: float, *, trusted: bool) -> None:
        if isinstance(limit(rrset, now), Refusal):
            self._refuse(SwildRefusal.SIGNATURE)
        elif rrset.owner == message.qname:
            return
        elif not is_at_or_below(message.qname, rrset.owner):
            self._refuse(SwildRefusal.NOT_ABOVE_QUESTION)
        elif not is_at_or_below(rrset.owner, zone_of(message)):
            self._refuse(SwildRefusal.OUT_OF_ZONE)
        elif not trusted:
            self._refuse(SwildRefusal.HEARSAY)
            if not isinstance(self._judge(rrset), SwildRefusal):
                self.discover(rrset.owner, now)

    def _refuse(self, refusal: SwildRefusal) -> None:
        self.refused[refusal] = self.refused.get(refusal, 0) + 1

    def discover(self, name: bytes, now: float) -> None:
        """Ask for the SWILD of `name`, unless the answer is known: once per negative TTL (RFC 2308)."""
        if self._ask is None or not self.settings.discover or (self._asked.get(name) or 0.0) > now:
            return
        held = self._cache.get(name, self._type, now) or self._cache.get(name, 0, now)
        if held is not None:
            owner = self.owners.get(name)
            if held.negative or owner is None or self._counts(owner, now):
                return
        self._asked.put(name, now + ASK_AGAIN)
        self.discoveries += 1
        self._ask(name)

    # What is asked of it

    def closest(self, name: bytes) -> Owner | None:
        """The owner of the SWILD closest above `name`: of nested ones the inner one decides."""
        owners = self.owners
        position = name[0] + 1 if name[0] else 0
        while length := name[position]:
            found = owners.get(name[position:])
            if found is not None:
                return found
            position += length + 1
        return None

    def held(self, owner: Owner, now: float) -> Cached | None:
        """The SWILD where it lives, with the TTL that its own and the cap leave it; None where it has ended."""
        held = self._cache.get(owner.name, self._type, now)
        if held is None or held.negative or held.rrset.rrs[12:] != owner.rdata:
            if now >= owner.expires + DEAD_KEPT:
                self.owners.pop(owner.name, None)
            return None
        ttl = min(held.rrset.ttl, int(owner.learned + self.settings.ttl_cap - now))
        return held._replace(rrset=held.rrset._replace(ttl=ttl)) if ttl > 0 else None

    def _counts(self, owner: Owner, now: float) -> bool:
        return self.held(owner, now) is not None

    def is_existing(self, name: bytes, now: float) -> bool:
        """Whether something that was learned while a SWILD was known says that the zone has this very name."""
        until = self._existing.get(name)
        return until is not None and until > now

    def statistics(self) -> dict[str, int]:
        """Counters and gauges, by snake_case name."""
        return {
            "swild_owners": len(self.owners),
            "swild_discoveries": self.discoveries,
            "swild_forgotten": self.forgotten,
            **{f"swild_refused_{reason.name.lower()}": count for reason, count in self.refused.items()},
        }


def _signer(rrset: RRset) -> bytes:
    return rrsig_fields(records(rrset.sigs)[0][2]).signer if rrset.sigs else b""
