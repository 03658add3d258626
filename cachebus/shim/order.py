"""What is optional about an answer: another order of its records, and the addresses that they point to.

Neither changes what an RRset holds. Knows nothing of who asks.
"""

from __future__ import annotations

from collections.abc import Iterator

from cachebus.answer import RRset
from cachebus.cache import Cache
from cachebus.shim.query import Response, end_of_name
from cachebus.wire import rrtypes
from cachebus.wire.message import records

MAX_TARGETS = 8
"""Names whose addresses are added to one reply."""

_TARGET_AT = {rrtypes.NS: 0, rrtypes.MX: 2, rrtypes.SRV: 6, rrtypes.SVCB: 2, rrtypes.HTTPS: 2}
"""Bytes before the name that an address is wanted for (RFC 1035 section 3.3, RFC 2782, RFC 9460 section 4.2)."""
_ADDRESSES = (rrtypes.A, rrtypes.AAAA)


def rotated(response: Response, turn: int) -> Response:
    """The response with the records of each RRset in the answer moved round by `turn` places."""
    return response._replace(answer=tuple([_rotate(rrset, turn) for rrset in response.answer]))


def _rotate(rrset: RRset, turn: int) -> RRset:
    packed = rrset.rrs
    starts = [0]
    while (end := starts[-1] + 12 + int.from_bytes(packed[starts[-1] + 10 : starts[-1] + 12], "big")) < len(packed):
        starts.append(end)
    cut = starts[turn % len(starts)]
    return rrset._replace(rrs=packed[cut:] + packed[:cut]) if cut else rrset


def addresses(response: Response, cache: Cache, now: float) -> list[RRset]:
    """A and AAAA RRsets, from the cache, of the names that MX, NS, SRV, SVCB and HTTPS records of the answer name."""
    found: list[RRset] = []
    for target in _targets(response):
        for rrtype in _ADDRESSES:
            known = cache.resolve(target, rrtype, now)
            if known is not None and known.complete and len(known.chain) == 1:
                rrset = known.chain[0].rrset
                if rrset.type == rrtype:
                    found.append(rrset)
    return found


def _targets(response: Response) -> list[bytes]:
    names: dict[bytes, None] = {}
    for rrset in response.answer:
        before = _TARGET_AT.get(rrset.type)
        if before is not None:
            names |= dict.fromkeys(_names(rrset, before))
    return list(names)[:MAX_TARGETS]


def _names(rrset: RRset, before: int) -> Iterator[bytes]:
    for _, _, rdata in records(rrset.rrs):
        name = rdata[before : end_of_name(rdata, before)].lower()  # nothing where it is no whole name
        if name and name != b"\0":
            yield name
        elif name and rrset.type in (rrtypes.SVCB, rrtypes.HTTPS):
            yield rrset.owner  # "." stands for the owner (RFC 9460 section 2.5)
