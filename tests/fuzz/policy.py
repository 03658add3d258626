"""Target: the share policy (`filters.policy`), which reads names and the addresses inside RDATA."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from random import Random
from typing import Any

from cachebus.answer import Answer, Evidence, Refusal, RRset
from cachebus.filters.policy import SPECIAL_USE, Policy, PolicySettings
from cachebus.presentation import name_from_text
from cachebus.wire.message import pack, records
from cachebus.wire.name import ancestors
from tests.fuzz import opinion
from tests.fuzz.bus import NOW
from tests.fuzz.grammar import AAAA, HTTPS, NAMES, A, pick_name, pick_type, rdata, wire_name
from tests.fuzz.harness import Part, Target
from tests.fuzz.mutate import below, mutate

SVCB = 64
EDGES = tuple(
    ip_address(text).packed
    for text in (
        "0.255.255.255", "1.0.0.0", "9.255.255.255", "10.0.0.0", "11.0.0.0", "126.255.255.255", "127.0.0.1",
        "128.0.0.0", "169.253.255.255", "169.254.0.0", "169.255.0.0", "172.15.255.255", "172.16.0.0", "172.31.255.255",
        "172.32.0.0", "192.0.2.1", "192.167.255.255", "192.168.0.0", "192.169.0.0", "255.255.255.255",
        "::", "::1", "::2", "fbff::", "fc00::", "fdff::", "fe00::", "fe7f::", "fe80::", "febf::", "fec0::", "2000::",
        "3fff::", "4000::", "2001:db8::1", "::ffff:0.0.0.1", "::ffff:1.0.0.0", "::ffff:10.1.2.3", "::ffff:127.0.0.1",
        "::ffff:169.254.1.1", "::ffff:172.16.0.1", "::ffff:172.32.0.1", "::ffff:192.168.1.1", "::ffff:192.0.2.1",
    )
)  # fmt: skip
PRIVATE_V4 = tuple(
    IPv4Network(text)
    for text in ("0.0.0.0/8", "10.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16")
)
PRIVATE_V6 = tuple(IPv6Network(text) for text in ("::/127", "fc00::/7", "fe80::/10"))
SPECIAL = frozenset(map(name_from_text, SPECIAL_USE))
RULED = (*NAMES, *(wire_name(text) for text in ("printer.local.", "1.168.192.in-addr.arpa.", "notlocal.", "a.onion.")))


def is_private(address: IPv4Address | IPv6Address) -> bool:
    """By the networks of trust rules section 4, written apart from the code under test."""
    if isinstance(address, IPv6Address):
        mapped = address.ipv4_mapped
        return is_private(mapped) if mapped is not None else any(address in network for network in PRIVATE_V6)
    return any(address in network for network in PRIVATE_V4)


def _address(rng: Random, size: int) -> bytes:
    edges = [edge for edge in EDGES if len(edge) == size]
    return edges[below(rng, len(edges))] if rng.random() < 0.5 else rng.randbytes(size)


def _service(rng: Random) -> bytes:
    """An SVCB or HTTPS record, with hints or without."""
    params = b""
    for key in range(1, 8):
        if rng.random() < 0.35:
            size = {4: 4, 6: 16}.get(key, 0)
            value = b"".join(_address(rng, size) for _ in range(1 + below(rng, 3))) if size else b"\2h2"
            value = {2: b"", 3: b"\1\xbb"}.get(key, value)
            params += key.to_bytes(2, "big") + len(value).to_bytes(2, "big") + value
    return rng.randbytes(2) + (b"\0" if rng.random() < 0.5 else pick_name(rng)) + params


class PolicyTarget(Target[Answer]):
    """`Policy`: refuses exactly the names and addresses that the rules name; hints are read as dnspython reads them."""

    name = "policy"
    parts = (Part("cachebus/filters/policy.py"),)

    def __init__(self) -> None:
        def some(*names: str) -> frozenset[bytes]:
            return frozenset(map(wire_name, names))

        self._settings = (
            PolicySettings(),
            PolicySettings(private_names=True, deny=some("www.example.test.", "onion.")),
            PolicySettings(allow=some("test.", "local."), deny=some("a.example.test."), infrastructure=True),
            PolicySettings(deny=some("."), min_ttl=300),
        )
        self._policies = tuple(Policy(settings) for settings in self._settings)

    def valid(self, rng: Random) -> Answer:
        rrsets = []
        for _ in range(1 + below(rng, 3)):
            owner = RULED[below(rng, len(RULED))] if rng.random() < 0.6 else wire_name("www.example.com.")
            rrtype = (A, AAAA, HTTPS, SVCB, pick_type(rng))[below(rng, 5)]
            rdatas = [self._rdata(rng, rrtype) for _ in range(1 + below(rng, 2))]
            rrsets.append(RRset(owner, rrtype, 30 + below(rng, 600), pack(rrtype, 300, rdatas)))
        last = rrsets[-1]
        return Answer(
            rrsets[0].owner, last.type, tuple(rrsets), Evidence.CONFIRMED, "n2", NOW, rng.random() < 0.5, "lan", "k"
        )

    def _rdata(self, rng: Random, rrtype: int) -> bytes:
        if rrtype in (A, AAAA):
            return _address(rng, 4 if rrtype == A else 16)
        return _service(rng) if rrtype in (HTTPS, SVCB) else b"".join(rdata(rng, rrtype))

    def mutated(self, rng: Random) -> Answer:
        answer = self.valid(rng)
        at = below(rng, len(answer.rrsets))
        rrset = answer.rrsets[at]
        if rrset.type in (HTTPS, SVCB):
            changed = [mutate(rng, each) for _, _, each in records(rrset.rrs)]
        elif rrset.type in (A, AAAA):  # of the right length: the parser has seen to that
            changed = [bytes(each ^ 1 << below(rng, 8) for each in found) for _, _, found in records(rrset.rrs)]
        else:
            changed = [mutate(rng, each)[:65535] for _, _, each in records(rrset.rrs)]
        rrset = rrset._replace(rrs=pack(rrset.type, 300, changed))
        return answer._replace(rrsets=(*answer.rrsets[:at], rrset, *answer.rrsets[at + 1 :]))

    def noise(self, rng: Random) -> Answer:
        rrset = RRset(pick_name(rng).lower(), HTTPS, 300, pack(HTTPS, 300, [rng.randbytes(below(rng, 60))]))
        return self.valid(rng)._replace(rrsets=(rrset,))

    def check(self, example: Answer, rng: Random) -> bool:
        which = below(rng, len(self._policies))
        settings, policy = self._settings[which], self._policies[which]
        refusal = policy.refuse_to_accept(example)
        shared = policy.refuse_to_share(example)
        if shared not in (Refusal.TTL_BELOW_MINIMUM, Refusal.QTYPE):
            assert shared is refusal
        for expected in (_expected(rrset, settings) for rrset in example.rrsets):
            if expected is _UNKNOWN:  # refused or not: the next has a say only where it is not
                if refusal is Refusal.PRIVATE_ADDRESS:
                    break
            elif expected is not None:
                assert refusal is expected
                break
        else:
            assert refusal is None
        return refusal is None


_UNKNOWN = object()
"""Nobody says what stands in the record."""


def _expected(rrset: RRset, settings: PolicySettings) -> Any:
    """Why the rules refuse this RRset, None, or `_UNKNOWN`."""
    above = set(ancestors(rrset.owner))
    if above & settings.deny:
        return Refusal.DENIED
    if settings.private_names or above & settings.allow:
        return None
    if above & SPECIAL:
        return Refusal.SPECIAL_USE_NAME
    private = False
    for _, _, found in records(rrset.rrs):
        if rrset.type in (A, AAAA):
            private |= is_private(ip_address(found))
        elif rrset.type in (HTTPS, SVCB):
            hints = opinion.hints_of(found)
            if hints is None:
                return _UNKNOWN
            private |= any(is_private(ip_address(hint)) for hint in hints)
    return Refusal.PRIVATE_ADDRESS if private else None


TARGETS: tuple[type[Target[Any]], ...] = (PolicyTarget,)
