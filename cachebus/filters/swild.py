"""The form of SWILD RRsets and of the CNAMEs that go with them (draft-pan-dnsop-swild-rr-type-00).

Decides what an RRset alone tells: whether a SWILD may mean anything, and which name a CNAME could be the wildcard of.
Refuses to know who said so, and whether it is used.
"""

from __future__ import annotations

from enum import Enum

from cachebus.answer import RRset
from cachebus.presentation import MAX_LABEL, MAX_NAME
from cachebus.wire.message import records
from cachebus.wire.name import ancestors, is_at_or_below, label_count, parent

MIN_OWNER_LABELS = 2
"""Labels of an owner: a SWILD of the root or of a top-level domain would answer for everybody's names."""
_SHORTEST_OWNER = 5
"""Bytes of the shortest name of two labels."""


class SwildRefusal(Enum):
    """Why a SWILD RRset is ignored. The value is the kebab-case word of counters and logs."""

    MALFORMED = "malformed"
    """Its RDATA is not one uncompressed name."""
    SEVERAL = "several"
    """More than one record: it would have two targets."""
    TARGET = "target"
    """The target is not strictly below the owner."""
    SHORT_OWNER = "short-owner"
    """The root's, or a name of one label."""
    NOT_ENABLED = "not-enabled"
    """Its owner is not at or below a zone that SWILD is switched on for."""
    ABOVE_HINT = "above-hint"
    """Its owner stands above an in-tree hint: nothing learned there decides anything below the hint."""
    NOT_ABOVE_QUESTION = "not-above-question"
    """It came beside an answer to a name that is not below its owner."""
    OUT_OF_ZONE = "out-of-zone"
    """It came from the servers of a zone below its owner."""
    CLASS = "class"
    """Records of a class other than IN came with the answer; they may be anything."""
    SIGNATURE = "signature"
    """Its RRSIGs are expired, not yet valid, or made by no zone at or above its owner."""
    HEARSAY = "hearsay"
    """It came beside an answer, from an upstream that is neither authoritative nor said AD=1."""


def swild_target(rrset: RRset) -> bytes | SwildRefusal:
    """The target in lower case, or why the RRset's form forbids it. The RRset's own bytes stay as they are."""
    found = records(rrset.rrs)
    if label_count(rrset.owner) < MIN_OWNER_LABELS:
        return SwildRefusal.SHORT_OWNER
    if len(found) != 1:
        return SwildRefusal.SEVERAL
    rdata = found[0][2]
    if not _is_name(rdata):
        return SwildRefusal.MALFORMED
    target = rdata.lower()
    if target == rrset.owner or not is_at_or_below(target, rrset.owner):
        return SwildRefusal.TARGET
    return target


def _is_name(rdata: bytes) -> bool:
    """Whether these bytes are one uncompressed name and nothing else."""
    position, size = 0, len(rdata)
    while position < size <= MAX_NAME:
        length = rdata[position]
        position += length + 1
        if not length:
            return position == size
        if length > MAX_LABEL:
            return False
    return False


def common_owner(alias: bytes, target: bytes) -> bytes | None:
    """The closest name strictly above both ends of a CNAME, the lowest that could own the SWILD for it, or None.

    None as well where the alias is at or below the target, and where the closest name is too short for an owner.
    """
    if alias[-_SHORTEST_OWNER:] != target[-_SHORTEST_OWNER:] or is_at_or_below(alias, target):
        return None
    for name in ancestors(parent(target)):
        if name != alias and is_at_or_below(alias, name):
            return name if label_count(name) >= MIN_OWNER_LABELS else None
    return None


def branch(owner: bytes, target: bytes) -> bytes:
    """The name one label below `owner` on the way to `target`: what is at or below it exists, or is no wildcard's."""
    last = target
    for name in ancestors(target):
        if name == owner:
            break
        last = name
    return last
