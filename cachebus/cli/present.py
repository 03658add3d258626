"""RRsets as the records people read. The edge where dnspython is used; decides nothing."""

from __future__ import annotations

from collections.abc import Iterable

import dns.exception
import dns.rdata
import dns.rdataclass
import dns.rdatatype

from cachebus.answer import RRset
from cachebus.presentation import name_to_text, type_to_text
from cachebus.wire.message import records


def records_to_text(rrset: RRset, ttl: int) -> list[str]:
    """Each record of an RRset, then its RRSIGs, in presentation form with `ttl` seconds: `www.example. 300 IN A ...`.

    RDATA that its type does not allow is written as RFC 3597 section 5 does unknown types.
    """
    owner = name_to_text(rrset.owner)
    return [
        f"{owner} {ttl} IN {type_to_text(rrtype)} {_rdata_to_text(rrtype, rdata)}"
        for rrtype, _, rdata in (*records(rrset.rrs), *(records(rrset.sigs) if rrset.sigs else ()))
    ]


def answer_records(rrsets: Iterable[RRset]) -> list[str]:
    """The records of an answer's RRsets in order, each with its own TTL."""
    return [line for rrset in rrsets for line in records_to_text(rrset, rrset.ttl)]


def _rdata_to_text(rrtype: int, rdata: bytes) -> str:
    try:
        parsed = dns.rdata.from_wire(dns.rdataclass.IN, dns.rdatatype.RdataType.make(rrtype), rdata, 0, len(rdata))
        text = parsed.to_text()
    except (dns.exception.DNSException, ValueError):
        text = f"\\# {len(rdata)} {rdata.hex()}"
    return str(text).rstrip()
