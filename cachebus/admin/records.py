"""RRsets as text for people: one presentation-form record per line (RFC 1035 section 5.1). Builds dnspython objects, so
it is for printing only.
"""

from __future__ import annotations

from cachebus.answer import RRset
from cachebus.presentation import name_to_text, type_to_text
from cachebus.wire.message import records


def record_texts(rrset: RRset, ttl: int | None = None) -> list[str]:
    """Give every record of an RRset, and then its RRSIGs: `owner TTL IN TYPE RDATA`. `ttl` stands in for its own."""
    owner = name_to_text(rrset.owner)
    shown = rrset.ttl if ttl is None else ttl
    return [
        f"{owner} {shown} IN {type_to_text(rrtype)} {rdata_text(rrtype, rdata)}"
        for packed in (rrset.rrs, rrset.sigs)
        for rrtype, _, rdata in records(packed)
    ]


def rdata_text(rrtype: int, rdata: bytes) -> str:
    """Presentation form of uncompressed RDATA; the generic form of RFC 3597 where it is not what its type demands."""
    import dns.exception  # only who prints pays for it
    import dns.rdata
    import dns.rdataclass
    import dns.rdatatype

    try:
        kind = dns.rdatatype.RdataType.make(rrtype)
        return dns.rdata.from_wire(dns.rdataclass.IN, kind, rdata, 0, len(rdata)).to_text().rstrip()
    except (dns.exception.DNSException, ValueError):
        return f"\\# {len(rdata)} {rdata.hex()}".rstrip()
