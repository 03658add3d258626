"""A second opinion: what dnspython makes of the same bytes, in our form.

None where it has none: it refuses more than we do inside RDATA, and less around it. Where both have one they are the
same. It is slow, so a target asks for a share of its examples only.
"""

from __future__ import annotations

import dns.exception
import dns.message
import dns.name
import dns.rdata
import dns.rdataclass
import dns.rdatatype
from dns.rdtypes.ANY.RRSIG import RRSIG
from dns.rdtypes.svcbbase import ParamKey, SVCBBase

from cachebus.answer import RRset
from cachebus.wire.message import records

SHARE = 0.1
"""Of the examples."""
COMPARED = frozenset({1, 2, 5, 6, 12, 15, 16, 28, 33, 39})
"""Types whose RDATA has one form only once it is decompressed."""
LONGEST = 4096
"""Bytes of a message that it is asked about: its time grows with them."""
_ERRORS = (dns.exception.DNSException, ValueError)

Data = set[tuple[bytes, int, bytes]]
"""Owner, type and RDATA, all in lower case: dnspython takes names that differ in case for one."""


def our_records(rrsets: tuple[RRset, ...]) -> Data:
    """What we read, of the types that are compared."""
    return {
        (rrset.owner, rrset.type, rdata.lower())
        for rrset in rrsets
        if rrset.type in COMPARED
        for _, _, rdata in records(rrset.rrs)
    }


def answer_records(wire: bytes) -> Data | None:
    """The same by dnspython: the answer section of a message of opcode QUERY, class IN."""
    if len(wire) > LONGEST:
        return None
    try:
        message = dns.message.from_wire(wire, one_rr_per_rrset=True)
    except _ERRORS:
        return None
    if message.opcode() != 0:
        return None
    return {
        (_wire(rrset.name).lower(), int(rrset.rdtype), (rdata.to_wire() or b"").lower())
        for rrset in message.answer
        if rrset.rdclass == dns.rdataclass.IN and int(rrset.rdtype) in COMPARED
        for rdata in rrset
    }


def name_at(wire: bytes, position: int) -> tuple[bytes, int] | None:
    """The name that stands there and the position after it."""
    try:
        name, used = dns.name.from_wire(wire, position)
    except (*_ERRORS, IndexError):
        return None
    return _wire(name), position + used


def name_of(text: str) -> bytes | None:
    """The wire form of a presentation name, in lower case."""
    try:
        return _wire(dns.name.from_text(text)).lower()
    except (*_ERRORS, IndexError):
        return None


def type_of(text: str) -> int | None:
    """The code of a type's text."""
    try:
        return int(dns.rdatatype.from_text(text))
    except _ERRORS:
        return None


def rrsig_of(rdata: bytes) -> tuple[int, int, int, bytes] | None:
    """Labels, original TTL, key tag and signer of an RRSIG, the last in lower case."""
    try:
        found = dns.rdata.from_wire(dns.rdataclass.IN, dns.rdatatype.RRSIG, rdata, 0, len(rdata))
    except _ERRORS:
        return None
    assert isinstance(found, RRSIG)
    return found.labels, found.original_ttl, found.key_tag, _wire(found.signer).lower()


def hints_of(rdata: bytes) -> list[str] | None:
    """The addresses that an SVCB or HTTPS record gives away."""
    try:
        found = dns.rdata.from_wire(dns.rdataclass.IN, dns.rdatatype.SVCB, rdata, 0, len(rdata))
    except _ERRORS:
        return None
    assert isinstance(found, SVCBBase)
    hints = [found.params.get(key) for key in (ParamKey.IPV4HINT, ParamKey.IPV6HINT)]
    return [str(address) for hint in hints if hint is not None for address in hint.addresses]


def _wire(name: dns.name.Name) -> bytes:
    return name.to_wire() or b""
