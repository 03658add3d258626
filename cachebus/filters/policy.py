"""What may leave this node, and what is taken from a peer (trust rules, section 4).

Judges names, types, addresses and TTLs of an answer whose evidence was judged before. Knows no source, no peer, and
nothing about how often an answer was seen: that is `noise`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from cachebus.answer import Answer, Refusal
from cachebus.filters.chain import DEFAULT_MAX_TTL, refused_type
from cachebus.presentation import name_from_text
from cachebus.wire import rrtypes
from cachebus.wire.message import records
from cachebus.wire.name import ancestors, parent

MIN_TTL = 30
"""Seconds: an answer that lives shorter is seldom asked for on another node before it is gone."""
MAX_NAMES = 100_000
"""Parents of owner names whose verdict is remembered; about 12 MB. Beyond it all are judged again."""

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
_PRIVATE_V4 = frozenset(
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


_PUBLIC, _EXEMPT = _Name.PUBLIC, _Name.EXEMPT


class Policy:
    """Applies one `share` section; the same on the sending and the receiving side but for the lowest TTL."""

    def __init__(self, settings: PolicySettings) -> None:
        self._settings = settings
        self._special = frozenset() if settings.private_names else frozenset(map(name_from_text, SPECIAL_USE))
        self._ruled = self._special | settings.allow | settings.deny
        self._verdicts: dict[bytes, Refusal | _Name] = {}

    def refuse_to_share(self, answer: Answer) -> Refusal | None:
        """Why this answer must not leave the node; None when it may."""
        if answer.ttl < self._settings.min_ttl:
            return Refusal.TTL_BELOW_MINIMUM
        if refused_type(answer.qtype, infrastructure=self._settings.infrastructure):
            return Refusal.QTYPE
        return self.refuse_to_accept(answer)

    def refuse_to_accept(self, answer: Answer) -> Refusal | None:
        """Why a peer's answer must not be taken; None when it may.

        `min_ttl` is not asked again: it saves work for the sender, and what is left of a TTL shrinks on the way.
        """
        for rrset in answer.rrsets:
            owner = rrset.owner
            # Far fewer parents than names come by, so the verdict on the parent is what is remembered.
            verdict = None if owner in self._ruled else self._verdicts.get(owner[owner[0] + 1 :])
            if verdict is None:
                verdict = self._judge(owner)
            if verdict is _PUBLIC:
                rrtype = rrset.type
                if (rrtype == rrtypes.A or rrtype == rrtypes.AAAA) and _private(rrtype, rrset.rrs):
                    return Refusal.PRIVATE_ADDRESS
            elif verdict is not _EXEMPT:
                return verdict  # type: ignore[return-value]  # the two that are no refusals were asked for
        return None

    def _judge(self, owner: bytes) -> Refusal | _Name:
        """What the rules say about a name, remembered for its parent where they say it for all of that one's names."""
        if owner in self._ruled or owner == b"\0":
            return self._walk(owner)
        above = parent(owner)
        verdict = self._walk(above)
        if len(self._verdicts) >= MAX_NAMES:
            self._verdicts.clear()
        self._verdicts[above] = verdict
        return verdict

    def _walk(self, owner: bytes) -> Refusal | _Name:
        settings = self._settings
        exempt = settings.private_names
        special = False
        for name in ancestors(owner):
            if name in settings.deny:
                return Refusal.DENIED
            exempt = exempt or name in settings.allow
            special = special or name in self._special
        return _EXEMPT if exempt else Refusal.SPECIAL_USE_NAME if special else _PUBLIC


def names(texts: Iterable[str]) -> frozenset[bytes]:
    """Names from configuration text. Raises `ValueError` for what is none."""
    return frozenset(name_from_text(text) for text in texts)


def _private(rrtype: int, rrs: bytes) -> bool:
    if rrtype == rrtypes.A:
        # Packed A records are 16 bytes each, the address at 12; mostly there is one.
        if len(rrs) == 16:
            return rrs[12:14] in _PRIVATE_V4
        return any(rrs[position : position + 2] in _PRIVATE_V4 for position in range(12, len(rrs), 16))
    return any(_is_private_v6(rdata) for _, _, rdata in records(rrs))


def _is_private_v6(address: bytes) -> bool:
    if address[0] & 0xE0 == 0x20:
        return False  # 2000::/3: global unicast
    parsed = ipaddress.IPv6Address(address)
    return any(parsed in network for network in PRIVATE_NETWORKS)
