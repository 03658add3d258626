"""Composes the text that `unbound-control load_cache` reads, from answers: which lines, TTLs, trust and security.

Decides what Unbound is told and how far it may trust it (trust rules, section 7). Pure: no I/O, no clock, and no idea
of how the text gets there. Nothing of a peer's bytes reaches the text but as hexadecimal digits or `\\DDD`, and RDATA
that its type cannot have is refused here: Unbound takes generic RDATA unchecked and would hand malformed answers out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum
from typing import NamedTuple

from cachebus.answer import Answer, Evidence, RRset
from cachebus.errors import MessageError
from cachebus.presentation import check_name
from cachebus.wire import rrtypes
from cachebus.wire.message import IN, OWNER_IS_QUESTION, cname_target, expand_rdata
from cachebus.wire.name import is_at_or_below

TRUST = 5
"""Unbound's rank of an answer without AA. Measured: live data that Unbound fetched itself (7 or 8, 11 once validated)
is then never replaced by other data, and a later fill replaces an earlier one."""
MAX_LINE = 65_000
"""Bytes of a line. Unbound reads lines into its message buffer, 65,552 bytes by default, and drops the load at a longer
one."""
MAX_REMAINING = 0x7FFFFFFF
"""Seconds; the largest TTL there is (RFC 2181 section 8)."""

_FLAGS = 0x8080
"""QR and RA, as Unbound's own entries have; AA stays clear, since a cache is not the authority."""
_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
_ESCAPED = tuple(chr(byte) if byte in _PLAIN else f"\\{byte:03d}" for byte in range(256))
_FIXED_LENGTH = 12
"""Bytes of a packed record before its RDATA: owner pointer, type, class, TTL, RDLENGTH."""

Held = Callable[[bytes, int], bool]
"""Whether the resolver is known to hold (name, type) live: then no entry of that name and type is made."""


class Security(IntEnum):
    """Unbound's `sec_status`, of which these three are ever given."""

    UNCHECKED = 0
    """A validating Unbound decides itself, at the first query."""
    INSECURE = 3
    """Proven to be unsigned: answered without AD."""
    SECURE = 5
    """Answered with AD=1."""


class Entry(NamedTuple):
    """One answer as text, in the two places where a dump has it."""

    rrsets: str
    messages: str

    @property
    def size(self) -> int:
        """Bytes of the text (it is all ASCII)."""
        return len(self.rrsets) + len(self.messages)


def dump(entries: Iterable[Entry]) -> bytes:
    """The whole text for one `load_cache`, with its end mark."""
    rrsets, messages = [], []
    for entry in entries:
        rrsets.append(entry.rrsets)
        messages.append(entry.messages)
    return "".join(
        ("START_RRSET_CACHE\n", *rrsets, "END_RRSET_CACHE\nSTART_MSG_CACHE\n", *messages, "END_MSG_CACHE\nEOF\n")
    ).encode("ascii")


def compose(answer: Answer, now: float, held: Held | None = None) -> Entry | None:
    """The lines for one answer, its TTLs being what is left at `now`; None when nothing is left of some RRset.

    Beside the message of the question there is one for each later owner on the chain, asked for the same type: a
    resolver that has it need not be asked twice. Raises `MessageError` for an answer that no resolver should have:
    RRsets that are not a chain, RDATA that its type cannot have, a record beyond `MAX_LINE`.
    """
    starts = _chain(answer)
    remaining = [_remaining(answer, rrset, now) for rrset in answer.rrsets]
    if min(remaining) <= 0:
        return None
    security = security_of(answer)
    owners = [name_text(rrset.owner) for rrset in answer.rrsets]
    rrsets = "".join(
        _rrset_text(rrset, owner, ttl, security)
        for rrset, owner, ttl in zip(answer.rrsets, owners, remaining, strict=True)
    )
    references = [f"{owner} IN TYPE{rrset.type} 0\n" for rrset, owner in zip(answer.rrsets, owners, strict=True)]
    messages = []
    for qname, first in starts:
        if held is not None and first and held(qname, answer.qtype):
            continue
        # name, class, type, flags, QDCOUNT, TTL, security, RRsets in answer, authority, additional, EDE (none)
        messages.append(
            f"msg {name_text(qname)} IN TYPE{answer.qtype} {_FLAGS} 1 {min(remaining[first:])} {security:d}"
            f" {len(references) - first} 0 0 -1\n"
        )
        messages += references[first:]
    return Entry(rrsets, "".join(messages))


def security_of(answer: Answer) -> Security:
    """What Unbound is told of an answer's DNSSEC status (trust rules, section 7)."""
    match answer.evidence:
        case Evidence.VALIDATED if _is_signed(answer.rrsets):
            return Security.SECURE
        case Evidence.CONFIRMED if answer.validating and not any(rrset.sigs for rrset in answer.rrsets):
            return Security.INSECURE
        case _:
            return Security.UNCHECKED


def _is_signed(rrsets: Sequence[RRset]) -> bool:
    """Whether every RRset has its RRSIGs, a CNAME that its DNAME yields apart (RFC 6672 section 5.3.1).

    Measured: Unbound serves what was filled as secure without RRSIGs to DO=1 clients with AD=1.
    """
    before = 0
    for rrset in rrsets:
        if not rrset.sigs and before != rrtypes.DNAME:
            return False
        before = rrset.type
    return True


def name_text(name: bytes) -> str:
    """An uncompressed wire-form name with every byte but letters, digits, `_` and `-` as `\\DDD`.

    Raises `MessageError` unless it is exactly one well-formed name.
    """
    check_name(name)
    if name == b"\0":
        return "."
    labels = []
    position = 0
    while length := name[position]:
        position += 1
        labels.append("".join([_ESCAPED[byte] for byte in name[position : position + length]]) + ".")
        position += length
    return "".join(labels)


def _chain(answer: Answer) -> list[tuple[bytes, int]]:
    """(name, index of its first RRset) of each owner on the chain; the walk is the check that it is one."""
    starts: list[tuple[bytes, int]] = []
    name, seen = answer.qname, set()
    index, last = 0, len(answer.rrsets) - 1
    while index <= last:
        if name in seen:
            raise MessageError("the chain comes back to itself")
        seen.add(name)
        starts.append((name, index))
        rrset = answer.rrsets[index]
        if rrset.type == rrtypes.DNAME and answer.qtype != rrtypes.DNAME:
            if rrset.owner == name or not is_at_or_below(name, rrset.owner) or index == last:
                raise MessageError("a DNAME that leads nowhere")
            index += 1
            rrset = answer.rrsets[index]
            if rrset.type != rrtypes.CNAME:
                raise MessageError("a DNAME without its CNAME")
        if rrset.owner != name:
            raise MessageError("an RRset that is not on the chain")
        if rrset.type == answer.qtype:
            if index != last:
                raise MessageError("an RRset after the end of the chain")
            return starts
        if rrset.type != rrtypes.CNAME:
            raise MessageError("an RRset of a type that was not asked for")
        name = _target(rrset)
        index += 1
    raise MessageError("no RRset of the asked type")


def _target(rrset: RRset) -> bytes:
    if len(rrset.rrs) < _FIXED_LENGTH:
        raise MessageError("a CNAME without a record")
    return cname_target(rrset)


def _remaining(answer: Answer, rrset: RRset, now: float) -> int:
    """Whole seconds left; an answer learned by a clock ahead of ours gains nothing by it."""
    return min(int(rrset.ttl - max(now - answer.learned, 0.0)), MAX_REMAINING)


def _rrset_text(rrset: RRset, owner: str, ttl: int, security: Security) -> str:
    records = _rdatas(rrset.rrs, rrset.type)
    signatures = _rdatas(rrset.sigs, rrtypes.RRSIG)
    if not records:
        raise MessageError("an RRset without records")
    lines = [f";rrset {ttl} {len(records)} {len(signatures)} {TRUST} {security:d}\n"]
    for rrtype, rdatas in ((rrset.type, records), (rrtypes.RRSIG, signatures)):
        for rdata in rdatas:
            line = f"{owner} {ttl} IN TYPE{rrtype} \\# {len(rdata)} {rdata.hex()}\n"
            if len(line) > MAX_LINE:
                raise MessageError("a record longer than Unbound reads")
            lines.append(line)
    return "".join(lines)


def _rdatas(packed: bytes, rrtype: int) -> Sequence[bytes]:
    """The distinct RDATAs of packed records, each checked against its type."""
    found: dict[bytes, None] = {}
    position, end = 0, len(packed)
    while position < end:
        start = position + _FIXED_LENGTH
        if start > end or packed[position : position + 2] != OWNER_IS_QUESTION:
            raise MessageError("not a packed record")
        if int.from_bytes(packed[position + 2 : position + 4], "big") != rrtype:
            raise MessageError("a record of another type")
        if int.from_bytes(packed[position + 4 : position + 6], "big") != IN:
            raise MessageError("a record of another class")
        position = start + int.from_bytes(packed[position + 10 : start], "big")
        if position > end:
            raise MessageError("RDATA runs past the end")
        rdata = packed[start:position]
        if expand_rdata(rdata, rrtype, 0, len(rdata)) != rdata:
            raise MessageError("a compressed name in RDATA")
        found[rdata] = None
    return tuple(found)
