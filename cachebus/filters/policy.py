"""What may leave this node, and what is taken from a peer (trust rules, section 4).

Judges names, types, addresses and TTLs of an answer whose evidence was judged before. Knows no source, no peer, and
nothing about how often an answer was seen: that is `noise`.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

from cachebus.answer import Answer, Refusal
from cachebus.errors import MessageError
from cachebus.filters.chain import DEFAULT_MAX_TTL, refused_type
from cachebus.presentation import name_from_text
from cachebus.wire import rrtypes
from cachebus.wire.message import records
from cachebus.wire.name import skip_name

if TYPE_CHECKING:
    from mypy_extensions import i64

MIN_TTL = 30
"""Seconds: an answer that lives shorter is seldom asked for on another node before it is gone."""
MAX_RDATA = 0xFFFF
_RDATA_AT: Final = 12
"""Where RDATA begins in a packed record."""
_SHORTEST: Final = 3
"""Bytes of the shortest name below the root."""
LONGEST_TAIL = 5
"""Bytes at the end of a name that decide whether any rule can concern it: more would clear hardly more names."""

SPECIAL_USE = (
    # RFC 6761 and the registry it opened; example.* are left out, as it asks caching servers to (section 6.5).
    "test", "localhost", "local", "invalid", "onion", "alt", "internal", "home.arpa", "resolver.arpa", "service.arpa",
    "ipv4only.arpa", "eap-noob.arpa", "6tisch.arpa",
    # RFC 6303 and its registry: reverse zones of addresses that mean something else everywhere.
    "10.in-addr.arpa", *(f"{n}.172.in-addr.arpa" for n in range(16, 32)), "168.192.in-addr.arpa", "0.in-addr.arpa",
    "127.in-addr.arpa", "254.169.in-addr.arpa", "2.0.192.in-addr.arpa", "100.51.198.in-addr.arpa",
    "113.0.203.in-addr.arpa", "255.255.255.255.in-addr.arpa", *(f"{n}.100.in-addr.arpa" for n in range(64, 128)),
    "0." * 32 + "ip6.arpa", "1." + "0." * 31 + "ip6.arpa",
    "d.f.ip6.arpa", "8.e.f.ip6.arpa", "9.e.f.ip6.arpa", "a.e.f.ip6.arpa", "b.e.f.ip6.arpa",
    "8.b.d.0.1.0.0.2.ip6.arpa",
)  # fmt: skip
"""Names that mean something on one network only."""

PRIVATE_NETWORKS = tuple(
    ipaddress.IPv6Network(text)
    for text in (
        "::/127", "fc00::/7", "fe80::/10", "::ffff:0:0/104", "::ffff:10.0.0.0/104", "::ffff:127.0.0.0/104",
        "::ffff:169.254.0.0/112", "::ffff:172.16.0.0/108", "::ffff:192.168.0.0/112",
    )
)  # fmt: skip
"""RFC 4193, loopback, link-local, and the private IPv4 ranges in mapped form; not documentation ranges."""
_PRIVATE_V4: Final = frozenset(
    first.to_bytes(1, "big") + second.to_bytes(1, "big")
    for first in range(256)
    for second in range(256)
    if first in (0, 10, 127) or (first, second) in ((169, 254), (192, 168)) or (first == 172 and 16 <= second < 32)
)
"""First two bytes of every private IPv4 address: RFC 1918, loopback, link-local, "this network"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySettings:
    """The `share` section of the configuration. Names in lower-case wire form."""

    min_ttl: int = MIN_TTL
    max_ttl: int = DEFAULT_MAX_TTL
    private_names: bool = False
    """Special-use names and private addresses may be shared."""
    infrastructure: bool = False
    """NS, DS, DNSKEY and SOA may be shared."""
    allow: frozenset[bytes] = frozenset()
    """At or below these the rule on private names is lifted."""
    deny: frozenset[bytes] = frozenset()
    """At or below these everything is refused; wins over `allow`."""


class _Name(Enum):
    """What the rule on private names makes of a name that may be shared."""

    PUBLIC = 1
    """Its addresses must be public too."""
    EXEMPT = 2


_PUBLIC: Final = _Name.PUBLIC
_IPV4_HINT, _IPV6_HINT = 4, 6
_SERVICES: Final = frozenset({rrtypes.SVCB, rrtypes.HTTPS})
_VALUE: Final = b"|".join(re.escape(bytes([length])) + b".{%d}" % length for length in range(64))
_V4: Final = rb"[^\x00\x0a\x7f\xa9\xac\xc0]..."
_V6: Final = rb"[\x20-\x3f].{15}"
_PLAIN_SERVICE: Final = re.compile(
    rb"(?s).{14}\x00(?:"  # one record whose target is its owner, then parameters
    rb"\x00[\x01-\x03\x05]\x00(?:" + _VALUE + rb")"
    rb"|\x00\x04\x00(?:\x04|\x08" + _V4 + rb"|\x0c" + 2 * _V4 + rb")" + _V4 +
    rb"|\x00\x06\x00(?:\x10|\x20" + _V6 + rb")" + _V6 +
    rb")*+"
).fullmatch  # fmt: skip
"""Clears most SVCB and HTTPS RRsets: short parameters without addresses, a few hints that can be no private address."""
_A: Final = 1
_AAAA: Final = 28
_WITH_ADDRESSES: Final = frozenset({_A, _AAAA}) | _SERVICES
_DOUBTFUL_V4: Final = bytes(first in {prefix[0] for prefix in _PRIVATE_V4} for first in range(256))
"""By the first byte of an IPv4 address: 1 where it may be a private one."""


class Policy:
    """Applies one `share` section; the same on the sending and the receiving side but for the lowest TTL."""

    def __init__(self, settings: PolicySettings) -> None:
        self._settings = settings
        self._special = frozenset() if settings.private_names else frozenset(map(name_from_text, SPECIAL_USE))
        ruled = self._special | settings.allow | settings.deny
        # A name at or below another ends with the same bytes, so nearly every name is cleared by its last few.
        self._tail = -min((len(name) for name in ruled), default=1)
        self._tail = max(self._tail, -LONGEST_TAIL)
        self._tails = frozenset(name[self._tail :] for name in ruled)
        self._ends = _ends(ruled)
        self._public = _Name.EXEMPT if settings.private_names else _Name.PUBLIC

    def refuse_to_share(self, answer: Answer) -> Refusal | None:
        """Why this answer must not leave the node; None when it may."""
        if answer.ttl < self._settings.min_ttl:
            return Refusal.TTL_BELOW_MINIMUM
        return self.refuse_type(answer.qtype) or self.refuse_to_accept(answer)

    def refuse_type(self, qtype: int) -> Refusal | None:
        """Why answers to questions for this type must not leave the node, nor be taken; None when they may."""
        return Refusal.QTYPE if refused_type(qtype, infrastructure=self._settings.infrastructure) else None

    def refuse_to_accept(self, answer: Answer) -> Refusal | None:
        """Why a peer's answer must not be taken; None when it may.

        `min_ttl` is not asked again: it saves work for the sender, and what is left of a TTL shrinks on the way.
        """
        return self.refuse_any((answer,))[0]

    def refuse_any(self, answers: Iterable[Answer]) -> list[Refusal | None]:
        """`refuse_to_accept` for each of many answers."""
        refusals: list[Refusal | None] = []
        for answer in answers:
            refusal: Refusal | None = None
            for rrset in answer[2]:
                if self._is_doubtful(rrset[0], rrset[1], rrset[3]):
                    refusal = self._judge_rrset(rrset[0], rrset[1], rrset[3])
                    if refusal is not None:
                        break
            refusals.append(refusal)
        return refusals

    def _is_doubtful(self, owner: bytes, rrtype: i64, rrs: bytes) -> bool:
        """Nearly every RRset is cleared by the end of its name and the first byte of each of its addresses."""
        size: i64 = len(owner)
        if size < _SHORTEST or (self._ends[owner[size - 3] << 8 | owner[size - 2]] and self._is_ruled(owner)):
            return True
        at: i64 = _RDATA_AT
        end: i64 = len(rrs)
        if rrtype == _A:
            while at < end:
                if _DOUBTFUL_V4[rrs[at]]:
                    return True
                at += 16
        elif rrtype == _AAAA:
            while at < end:
                if rrs[at] & 0xE0 != 0x20:  # 2000::/3: global unicast
                    return True
                at += 28
        else:
            return rrtype in _SERVICES
        return False

    def _is_ruled(self, owner: bytes) -> bool:
        """Whether a rule may concern this name."""
        return owner[self._tail :] in self._tails

    def _judge_rrset(self, owner: bytes, rrtype: int, rrs: bytes) -> Refusal | None:
        verdict = self._judge(owner) if self._is_ruled(owner) else self._public
        if isinstance(verdict, Refusal):
            return verdict
        if verdict is _PUBLIC and rrtype in _WITH_ADDRESSES and _private(rrtype, rrs):
            return Refusal.PRIVATE_ADDRESS
        return None

    def _judge(self, owner: bytes) -> Refusal | _Name:
        settings = self._settings
        exempt = settings.private_names
        special = False
        position: i64 = 0
        length: i64 = -1
        while length:
            name = owner[position:]
            if name in settings.deny:
                return Refusal.DENIED
            exempt = exempt or name in settings.allow
            special = special or name in self._special
            length = owner[position]
            position += length + 1
        return _Name.EXEMPT if exempt else Refusal.SPECIAL_USE_NAME if special else _PUBLIC


def _ends(ruled: Iterable[bytes]) -> bytes:
    """By the last two letters of a name, as a number: 1 where it may be at or below one of `ruled`."""
    ends = bytearray(65536)
    for name in ruled:
        if len(name) < _SHORTEST:
            return b"\1" * len(ends)
        ends[name[-3] << 8 | name[-2]] = 1
    return bytes(ends)


def names(texts: Iterable[str]) -> frozenset[bytes]:
    """Names from configuration text. Raises `ValueError` for what is none."""
    return frozenset(name_from_text(text) for text in texts)


def _private(rrtype: int, rrs: bytes) -> bool:
    if rrtype == rrtypes.A:
        return any(rrs[position : position + 2] in _PRIVATE_V4 for position in range(12, len(rrs), 16))
    if rrtype in _SERVICES:
        return _PLAIN_SERVICE(rrs) is None and any(_has_private_hint(rdata) for _, _, rdata in records(rrs))
    return any(_is_private_v6(rdata) for _, _, rdata in records(rrs))


def _has_private_hint(rdata: bytes) -> bool:
    """Whether ipv4hint or ipv6hint (RFC 9460 section 7.3) has a private address: clients connect to it."""
    try:
        position = skip_name(rdata, 2, len(rdata))
    except MessageError:
        return False
    while position + 4 <= len(rdata):
        key = rdata[position] << 8 | rdata[position + 1]
        start = position + 4
        position = start + (rdata[position + 2] << 8 | rdata[position + 3])
        value = rdata[start:position]
        if key == _IPV4_HINT and any(value[at : at + 2] in _PRIVATE_V4 for at in range(0, len(value), 4)):
            return True
        if key == _IPV6_HINT and any(_is_private_v6(value[at : at + 16]) for at in range(0, len(value) & ~15, 16)):
            return True
    return False


def _is_private_v6(address: bytes) -> bool:
    if address[0] & 0xE0 == 0x20:
        return False  # 2000::/3: global unicast
    parsed = ipaddress.IPv6Address(address)
    return any(parsed in network for network in PRIVATE_NETWORKS)
