"""The commands that make an Unbound forget what was flushed here. Knows its control language, and sends nothing."""

from __future__ import annotations

from cachebus.flushes import Flush
from cachebus.unbound.dump import name_text

OTHER_TYPES = (
    13, 16, 17, 18, 24, 25, 29, 37, 43, 44, 45, 48, 49, 52, 53, 55, 59, 60, 61, 62, 63, 64, 65, 99, 104, 105, 106, 107,
    108, 109, 255, 256, 257, 65392,
)  # fmt: skip
"""Types that `flush` of Unbound 1.17 leaves where they are. It takes A, AAAA, NS, SOA, CNAME, DNAME, MX, PTR, SRV and
NAPTR (unbound-control(8)); a type that nobody has named needs `flush_zone`."""


def flush_commands(flush: Flush) -> list[str]:
    """What to send, one command for each connection. By key, the whole zone: which data a key signed, only it knows.

    Raises `MessageError` for a name that is none.
    """
    name = name_text(flush.name)
    if flush.subtree:
        return [f"flush_zone {name}"]
    if flush.rrtype is not None:
        return [f"flush_type {name} TYPE{flush.rrtype}"]
    return [f"flush {name}", *(f"flush_type {name} TYPE{rrtype}" for rrtype in OTHER_TYPES)]
