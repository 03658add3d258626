"""What the OPT record of a response says that bears on evidence: client subnet scope, extended errors.

Decides nothing else; unknown options are passed over.
"""

from __future__ import annotations

from cachebus.answer import Refusal

CLIENT_SUBNET = 8
"""RFC 7871."""
EXTENDED_ERROR = 15
"""RFC 8914."""
STALE_CODES = frozenset({3, 19})
"""Stale Answer, Stale NXDOMAIN Answer (RFC 8914 sections 4.4 and 4.20)."""
MADE_UP_CODES = frozenset({4, 15, 16, 17, 18})
"""Forged Answer, Blocked, Censored, Filtered, Prohibited (RFC 8914 sections 4.5 and 4.16 to 4.19)."""


def refusal_in(options: bytes) -> Refusal | None:
    """Why a response with these EDNS options must not be shared, or None.

    `CLIENT_SUBNET` for a scope above 0, or an option too short to have one; `STALE` and `LOCAL_DATA` for extended
    errors that say so; `MALFORMED` when the options do not add up.
    """
    position = 0
    end = len(options)
    while position < end:
        if position + 4 > end:
            return Refusal.MALFORMED
        code = options[position] << 8 | options[position + 1]
        start = position + 4
        position = start + (options[position + 2] << 8 | options[position + 3])
        if position > end:
            return Refusal.MALFORMED
        if code == CLIENT_SUBNET and (position - start < 4 or options[start + 3]):
            return Refusal.CLIENT_SUBNET
        if code == EXTENDED_ERROR and position - start >= 2:
            error = options[start] << 8 | options[start + 1]
            if error in STALE_CODES:
                return Refusal.STALE
            if error in MADE_UP_CODES:
                return Refusal.LOCAL_DATA
    return None
