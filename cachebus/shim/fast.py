"""The short way of a plain question to a cached answer: from a datagram's bytes to the reply's, nothing in between.

Decides which questions are plain, and gives for those exactly the bytes that parsing, look-up and composing give
(`query`, `lookup`, `reply`); for every other one None, and it goes the long way. Plain is: over UDP, QR=0, opcode 0,
CD=0 and DO=0, one question of class IN, at most an OPT record of version 0 without options; and a positive cached
answer that fits, and is not about to be fetched again. Whoever adds a stage before the cache, or a feature that alters
such an answer, has the shim make no fast path while it is on (`Shim`), or teaches it here.

A name need not be walked: what equals, in lower case, the key of an entry is as well formed as that entry's owner.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from cachebus.answer import Evidence
from cachebus.cache import MAX_CHAIN, Cache
from cachebus.entry import HEADER_SIZE, LEVEL, LEVEL_AT, NEGATIVE, u64
from cachebus.wire import rrtypes

PLAIN_TYPES: Final = frozenset(
    {
        rrtype.to_bytes(2, "big")
        for rrtype in (
            rrtypes.A, rrtypes.NS, rrtypes.CNAME, rrtypes.SOA, rrtypes.PTR, rrtypes.MX, rrtypes.TXT, rrtypes.AAAA,
            rrtypes.SRV, rrtypes.NAPTR, rrtypes.SVCB, rrtypes.HTTPS,
        )
    }
)  # fmt: skip
"""Types that nobody gives a meaning of its own to; all but a few questions are of these."""
MAX_PAYLOAD: Final = 1232
"""As `reply.MAX_UDP_PAYLOAD`."""
MIN_PAYLOAD: Final = 512
EARLY: Final = 0.1
"""As `lookup.MAX_EARLY`: the last part of a life, in which an entry may be due to be fetched again."""
EARLY_MARGIN: Final = 1.0
"""Seconds more, so that no rounding makes a difference."""

_HEADER_LENGTH: Final = 12
_RECORD_FIXED: Final = 12
"""Owner pointer, type, class, TTL and length of a packed record."""
_OPT_LENGTH: Final = 11
_SHORTEST: Final = _HEADER_LENGTH + 5
_QUESTION_ONLY: Final = b"\0\1\0\0\0\0\0\0"
_QUESTION_AND_OPT: Final = b"\0\1\0\0\0\0\0\1"
_OPT_START: Final = b"\0\0\x29"
_OPT_PLAIN: Final = bytes(6)
"""Extended RCODE, version, flags and the length of the options."""
_OPT: Final = _OPT_START + MAX_PAYLOAD.to_bytes(2, "big") + _OPT_PLAIN
_CLASS_IN: Final = b"\0\1"
_CNAME: Final = rrtypes.CNAME.to_bytes(2, "big")
_OWNER_IS_QUESTION: Final = b"\xc0\x0c"
_VALIDATED: Final = int(Evidence.VALIDATED)
_RD: Final = 0x01
_RA: Final = 0x80
_AD: Final = 0x20


def _fixed(which: int, count: int) -> bytes:
    """The header behind the ID: RD as asked, RA, AD, and the counts. `which`: bit 0 RD, bit 1 an OPT, bit 2 AD."""
    low = _RA | _AD if which & 4 else _RA
    return bytes((0x80 | which & _RD, low, 0, 1, count >> 8, count & 0xFF, 0, 0, 0, which >> 1 & 1))


_ONE_ANSWER: Final = [_fixed(which, 1) for which in range(8)]
"""By far most answers are one record."""


class FastPath:
    """See the module. Belongs to the event loop, as the cache does."""

    def __init__(
        self,
        cache: Cache,
        serves: Callable[[bytes], bool],
        *,
        refreshes: bool,
        reserved: tuple[bytes, ...] = (),
        claims: Callable[[bytes], bool] | None = None,
    ) -> None:
        """`serves`: whether the client with this address, in network byte order, is served.

        `refreshes`: entries near their end are fetched again when they are asked for, which is not done here.

        `reserved`: zones (lower-case wire form) for which a stage before the cache answers; `claims`: whether one does
        for a name. Every question costs what looking costs.
        """
        self._cache = cache
        self._serves = serves
        self._refreshes = refreshes
        self._reserved = reserved
        self.claims = claims
        """May be set later, by who has something to claim."""
        self.answered = 0
        """Questions answered here."""

    def answer(self, data: bytes, client: bytes, now: float) -> bytes | None:
        """The reply to the datagram `data` of the address `client` (network byte order), or None: the long way."""
        size = len(data)
        if size < _SHORTEST or data[2] & 0xFE or data[3] & 0xDF:
            return None
        counts = data[4:12]
        if counts == _QUESTION_ONLY:
            end, limit, opt = size, MIN_PAYLOAD, b""
        elif (
            counts == _QUESTION_AND_OPT
            and data[size - 6 :] == _OPT_PLAIN
            and data[size - _OPT_LENGTH : size - 8] == _OPT_START
        ):
            end, opt = size - _OPT_LENGTH, _OPT
            limit = min(max(data[size - 8] << 8 | data[size - 7], MIN_PAYLOAD), MAX_PAYLOAD)
        else:
            return None
        name = data[_HEADER_LENGTH : end - 4].lower()
        qtype = data[end - 4 : end - 2]
        if qtype not in PLAIN_TYPES or data[end - 2 : end] != _CLASS_IN or not self._serves(client):
            return None
        found = self._find(name, qtype, now, end)
        if found is None:
            return None
        records, count, authentic = found
        if end + len(records) + len(opt) > limit:
            return None
        if name.endswith(self._reserved) or (self.claims is not None and self.claims(name)):
            return None
        self.answered += 1
        self._cache.hits += 1
        which = (data[2] & _RD) | (2 if opt else 0) | (4 if authentic and data[3] & _AD else 0)
        fixed = _ONE_ANSWER[which] if count == 1 else _fixed(which, count)
        return b"".join((data[:2], fixed, data[_HEADER_LENGTH:end], records, opt))

    def _find(self, name: bytes, qtype: bytes, now: float, end: int) -> tuple[bytes, int, bool] | None:
        """The answer section behind a message of `end` bytes, how many records it has, and whether it is validated."""
        cache = self._cache
        now_ms = int(now * 1000)
        value = cache.asked_for(name + qtype, now_ms)
        if value is not None:
            if value[25] & NEGATIVE:
                return None
            return self._aged(value, _OWNER_IS_QUESTION, now)
        if qtype == _CNAME:
            return None
        owner = _OWNER_IS_QUESTION
        sections: list[bytes] = []
        authentic = True
        for _ in range(MAX_CHAIN):
            alias = cache.only_alias(name, qtype, now_ms)
            if alias is None:
                return None
            aged = self._aged(alias, owner, now)
            if aged is None or aged[1] != 1:
                return None
            section = aged[0]
            sections.append(section)
            authentic = authentic and aged[2]
            name = section[_RECORD_FIXED:].lower()
            owner = (0xC000 | end + _RECORD_FIXED).to_bytes(2, "big")
            end += len(section)
            if end > MAX_PAYLOAD:
                return None
            value = cache.asked_for(name + qtype, now_ms)
            if value is not None:
                if value[25] & NEGATIVE:
                    return None
                aged = self._aged(value, owner, now)
                if aged is None:
                    return None
                count = len(sections) + aged[1]
                sections.append(aged[0])
                return b"".join(sections), count, authentic and aged[2]
        return None

    def _aged(self, value: bytes, owner: bytes, now: float) -> tuple[bytes, int, bool] | None:
        """The records of an entry with their owner and what is left of their TTL; None when it may be due."""
        expires, learned = u64(value, 0), u64(value, 8)
        left = expires / 1000 - now
        life = (expires - learned) / 1000
        if self._refreshes and left <= life * EARLY + EARLY_MARGIN:
            return None
        ttl = max(0, int(min(left, life))).to_bytes(4, "big")
        end = len(value) - (value[HEADER_SIZE - 2] << 8 | value[HEADER_SIZE - 1])
        authentic = value[25] >> LEVEL_AT & LEVEL == _VALIDATED
        position = HEADER_SIZE
        after = position + _RECORD_FIXED + (value[position + 10] << 8 | value[position + 11])
        if after == end:
            return b"".join((owner, value[position + 2 : position + 6], ttl, value[position + 10 : end])), 1, authentic
        pieces: list[bytes] = []
        count = 0
        while position < end:
            after = position + _RECORD_FIXED + (value[position + 10] << 8 | value[position + 11])
            pieces += (owner, value[position + 2 : position + 6], ttl, value[position + 10 : after])
            position = after
            count += 1
        return b"".join(pieces), count, authentic
