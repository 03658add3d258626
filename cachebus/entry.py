"""What the cache keeps of one RRset: its layout as bytes, and what it reads as.

Knows how an entry is packed and compared, not which one stays or where it is kept: that is `cache`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Final, NamedTuple

from cachebus.answer import Answer, Evidence, Refusal, RRset
from cachebus.wire import rrtypes
from cachebus.wire.message import canonical_set, records, rrsig_fields

if TYPE_CHECKING:
    from mypy_extensions import i64

HEADER: Final = struct.Struct("!QQQBBHH")
EXPIRES: Final = struct.Struct("!Q")
MIDDLE: Final = struct.Struct("!QQBBH")
"""What the entries of one answer have in common: the header but for when they expire and the length of the RRSIGs."""
HEADER_SIZE: Final = HEADER.size
NEGATIVE: Final = 0x01
VALIDATING: Final = 0x02
LOCAL: Final = 0x04
USED: Final = 0x08
"""Asked for, or learned again, while it was held: more than half of all names are never asked for a second time."""

OWN_USE: Final = 0x40
"""Local data for this node's own clients, without evidence that would let it be shared: never in a copy."""
LEVELS: Final = 8
"""Levels of evidence, each from an origin that validates or not."""
RAISED: Final = 0x80
"""It lives longer than its zone says, for this node's own clients alone: never in a copy, nor in a refill."""
LEVEL_AT: Final = 4
LEVEL: Final = 0x03
"""Where the level of evidence stands, and how wide."""

_LEVELS = (Evidence.AUTHORITATIVE, *sorted(Evidence))
"""By the bits of a header, which are never 0. Calling the enumeration costs ten times as much."""
_new = tuple.__new__


Observer = Callable[[Iterable[Answer], Sequence[Refusal | None], float], None]
"""Told of what was put, what became of each, and when, after the fact; must not raise or put anything itself."""


class Rank(IntEnum):
    """What replaces what (trust rules 6.7), lowest first."""

    BUS_AUTHORITATIVE = 1
    BUS_CONFIRMED = 2
    LOCAL = 3
    BUS_VALIDATED = 4
    LOCAL_VALIDATED = 5


BUS_RANK: Final = {Evidence.AUTHORITATIVE: (1, 0x10), Evidence.CONFIRMED: (2, 0x20), Evidence.VALIDATED: (4, 0x30)}
"""Evidence -> its rank, and its flags in a header: the level from bit `LEVEL_AT` on."""
LOCAL_RANK: Final = {Evidence.AUTHORITATIVE: (3, 0x14), Evidence.CONFIRMED: (3, 0x24), Evidence.VALIDATED: (5, 0x34)}


class Came:
    """What the RRsets of some answers have in common: of one level and one source, put at once, learned together."""

    __slots__ = (
        "_flags", "_source", "by_bus", "learned", "learned_ms", "middle", "now_ms", "rank", "spread",
    )  # fmt: skip

    def __init__(self, rank: int, flags: int, source: int, now_ms: int, spread: int, *, by_bus: bool) -> None:
        """Nothing is known to be learned before `learn` is called."""
        self._flags = flags
        self._source = source
        self.by_bus = by_bus
        self.rank: i64 = rank
        self.now_ms: i64 = now_ms
        self.spread: i64 = spread
        """One more than the thousandths of a TTL by which it is shortened at most."""
        self.learned = float("nan")
        self.learned_ms: i64 = 0
        self.middle = b""
        """Packed `MIDDLE`."""

    def learn(self, learned: float) -> None:
        """Go on with what was learned then, in seconds since the epoch."""
        self.learned = learned
        self.learned_ms = int(learned * 1000)
        self.middle = MIDDLE.pack(self.learned_ms, self.now_ms, self.rank, self._flags, self._source)


class Cached(NamedTuple):
    """One RRset as the cache holds it, with its provenance."""

    rrset: RRset
    """Its `ttl` is what is left, in seconds."""
    evidence: Evidence
    rank: Rank
    local: bool
    negative: bool
    """NODATA or NXDOMAIN, learned locally; `rrset` is then the SOA, or empty."""
    validating: bool
    origin: str
    transport: str
    signer: str
    learned: float
    received: float
    expires: float


class Lookup(NamedTuple):
    """What the cache knows about a question."""

    rcode: int
    chain: tuple[Cached, ...]
    """The RRsets in order, CNAMEs first; the answer last where `complete`."""
    complete: bool
    """The chain ends in an answer, or in a negative one."""
    target: bytes
    """The name where an incomplete chain goes on; else the owner of the last RRset."""
    soa: RRset | None = None
    """For a negative end, where it is known."""


def negative_end(rcode: int, chain: list[Cached], name: bytes, found: Cached) -> Lookup:
    """A negative end of a chain."""
    soa = found.rrset if found.rrset.rrs else None
    return Lookup(rcode, tuple(chain), complete=True, target=name, soa=soa)


def left(expires_ms: int, learned_ms: int, now: float) -> int:
    """Seconds that are left of a life at `now`; a clock that was set back must not lengthen it."""
    return max(0, int(min(expires_ms / 1000 - now, (expires_ms - learned_ms) / 1000)))


def to_answer(key: bytes, value: bytes, source: tuple[str, str, str], now: float, as_learned: bool) -> Answer:
    """An entry that is not negative as an answer of its own. `source`: origin, transport and signer.

    Its TTL counts from `now`, or from when it was learned.
    """
    owner, rrtype = key[:-2], key[-2] << 8 | key[-1]
    expires_ms, learned_ms, _, _, flags, _, sigs_length = HEADER.unpack_from(value)
    learned = learned_ms / 1000
    if as_learned and learned < now:
        ttl = (expires_ms - learned_ms) // 1000
    else:
        learned, ttl = now, left(expires_ms, learned_ms, now)
    split = len(value) - sigs_length
    rrset = _new(RRset, (owner, rrtype, ttl, value[HEADER_SIZE:split], value[split:]))
    origin, transport, signer = source
    level = _LEVELS[flags >> LEVEL_AT & LEVEL]
    whole = (owner, rrtype, (rrset,), level, origin, learned, bool(flags & VALIDATING), transport, signer)
    return _new(Answer, whole)


def entry(expires_ms: int, middle: bytes, rrs: bytes, sigs: bytes) -> bytes:
    """The value that is kept of one RRset."""
    expires = expires_ms.to_bytes(8, "big")
    if not sigs:
        return b"%b%b\0\0%b" % (expires, middle, rrs)
    return b"%b%b%b%b%b" % (expires, middle, len(sigs).to_bytes(2, "big"), rrs, sigs)


def expand(owner: bytes, rrtype: int, value: bytes, now: float, sources: Sequence[tuple[str, str, str]]) -> Cached:
    """An entry as it reads at `now`. `sources`: by number, (origin, transport, signer)."""
    expires_ms, learned_ms, received_ms, rank, flags, source, sigs_length = HEADER.unpack_from(value)
    ttl = left(expires_ms, learned_ms, now)
    split = len(value) - sigs_length
    negative = bool(flags & NEGATIVE)
    if negative:
        size = value[HEADER_SIZE] if len(value) > HEADER_SIZE else 0
        soa_at = HEADER_SIZE + 1 + size
        rrset = RRset(value[HEADER_SIZE + 1 : soa_at], rrtypes.SOA, ttl, value[soa_at:split], value[split:])
    else:
        rrset = RRset(owner, rrtype, ttl, value[HEADER_SIZE:split], value[split:])
    origin, transport, signer = sources[source]
    return Cached(
        rrset, Evidence(flags >> LEVEL_AT & LEVEL), Rank(rank), bool(flags & LOCAL), negative,
        bool(flags & VALIDATING), origin, transport, signer,
        learned_ms / 1000, received_ms / 1000, expires_ms / 1000,
    )  # fmt: skip


def same_records(value: bytes, sigs_length: int, rrset: RRset) -> bool:
    rrs = value[HEADER_SIZE : len(value) - sigs_length]
    if len(rrs) != len(rrset.rrs):
        return False
    # One record is the common case: all but its TTL must agree.
    if rrs[8:] == rrset.rrs[8:] and len(rrs) == 12 + (rrs[10] << 8 | rrs[11]):
        return True
    return canonical_set(rrset._replace(rrs=rrs)) == canonical_set(rrset)


def value_signatures(value: bytes) -> bytes:
    """The packed RRSIGs of an entry."""
    sigs_length = value[HEADER_SIZE - 2] << 8 | value[HEADER_SIZE - 1]
    return value[len(value) - sigs_length :] if sigs_length else b""


def key_tags_of(sigs: bytes, signer: bytes) -> set[int]:
    """Key tags of the packed RRSIGs made by `signer`."""
    fields = [rrsig_fields(rdata) for _, _, rdata in records(sigs)]
    return {field.key_tag for field in fields if field.signer == signer}


def cap_by_signatures(value: bytes, sigs_length: int, expires_ms: int) -> int:
    """No renewal outlives the signatures kept with the data (RFC 4035 section 5.3.3)."""
    if not sigs_length:
        return expires_ms
    ends = (rrsig_fields(rdata).expiration for _, _, rdata in records(value[len(value) - sigs_length :]))
    # Expirations are 32-bit serial numbers (RFC 4034 section 3.1.5); these were valid when stored, so they are near.
    epoch = expires_ms // 1000 & ~0xFFFFFFFF
    return min(expires_ms, *((epoch + end) * 1000 for end in ends))


def standing(answer: Answer, *, own_use: bool) -> tuple[int, int]:
    """Rank and flags of an answer's RRsets."""
    rank, flags = (BUS_RANK if answer.transport else LOCAL_RANK)[answer.evidence]
    if answer.validating:
        flags |= VALIDATING
    if own_use:
        flags |= OWN_USE
    return rank, flags


def same_source(answer: Answer, other: Answer) -> bool:
    """Whether two answers are seen at once to have origin, transport and signer in common."""
    return answer[4] is other[4] and answer[7] is other[7] and answer[8] is other[8]


def prolonged(value: bytes, until_ms: int) -> bytes:
    """The entry with a longer life, as far as its signatures let it, and marked so; empty when it gains nothing."""
    expires_ms = cap_by_signatures(value, len(value_signatures(value)), until_ms)
    if expires_ms <= int.from_bytes(value[:8], "big"):
        return b""
    return EXPIRES.pack(expires_ms) + value[8:25] + bytes((value[25] | RAISED,)) + value[26:]


def has_outlived_signatures(value: bytes, now_ms: int) -> bool:
    """Whether the time of an RRSIG kept with the data is over."""
    return cap_by_signatures(value, len(value_signatures(value)), now_ms) < now_ms


def outlived(old: bytes, came: Came, expires_ms: i64) -> bool:
    """Whether an entry lives as long as a peer's RRset at least, and is of a higher rank or was learned no earlier.

    Then nothing is renewed or replaced, which is the usual end of a repeat.
    """
    if expires_ms <= came.now_ms or u64(old, 0) < expires_ms:
        return False
    kept: i64 = old[24]
    return kept > came.rank or (kept == came.rank and u64(old, 8) >= came.learned_ms)


def u64(value: bytes, at: i64) -> i64:
    """Eight bytes as a number; all that stand in an entry are below 2^63."""
    number: i64 = 0
    end = at + 8
    while at < end:
        number = number << 8 | value[at]
        at += 1
    return number
