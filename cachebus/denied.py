"""Whether an NXDOMAIN above a name denies it too (RFC 8020), for who can look entries up. Knows no clock."""

from __future__ import annotations

from collections.abc import Callable

from cachebus.entry import NEGATIVE
from cachebus.wire.name import ancestors

_USUAL = tuple(rrtype.to_bytes(2, "big") for rrtype in (1, 28, 5, 15, 16, 2, 12, 33, 64, 65))
"""Types of nearly all data there is: what is looked for where an NXDOMAIN above says that there is none."""

Live = Callable[[bytes, int], bytes | None]
"""The live entry of a key at a time in milliseconds, packed."""


def denied_above(live: Live, name: bytes, now_ms: int) -> tuple[bytes, bytes] | None:
    """The name above whose live NXDOMAIN denies `name` too, and its entry; None when live data says otherwise."""
    for above in ancestors(name):
        if above != name and (value := live(above + b"\0\0", now_ms)) is not None:
            return None if _seen_between(live, name, above, now_ms) else (above, value)
    return None


def _seen_between(live: Live, name: bytes, above: bytes, now_ms: int) -> bool:
    for at in ancestors(name):
        for rrtype in _USUAL:
            value = live(at + rrtype, now_ms)
            if value is not None and not value[25] & NEGATIVE:
                return True
        if at == above:
            break
    return False
