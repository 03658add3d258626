"""The traffic that `bench` measures with: the same answers on every machine and in every release, from a fixed seed.

Decides what a day's shared answers look like: Zipf names of which at least 60 % are distinct, data fixed per name, the
usual types and TTLs, a fifth of them signed. Knows nothing of what is measured. No answer is made up of real data:
labels are random letters, addresses come from the documentation ranges (RFC 5737, RFC 3849).
"""

from __future__ import annotations

import random
import struct
from itertools import accumulate
from typing import TypeVar

from cachebus.answer import Answer, Evidence, RRset
from cachebus.presentation import name_from_text
from cachebus.wire import rrtypes
from cachebus.wire.message import pack
from cachebus.wire.name import label_count

SEED = 20261101
SENDER = "sender"
"""Node that learned the answers, unless told otherwise."""
SIGNED_SHARE = 0.2
"""Answers with RRSIGs, about what resolvers see of signed zones."""
ZIPF_EXPONENT = 0.8
"""Of name popularity: the lower end of what resolvers see, as every cache answers for the hottest names itself."""
UNIVERSE = 20
"""Names that exist per answer drawn: with the exponent, it makes some 75 % of the drawn names distinct."""
ZONES = 20_000
"""Zones that the names lie in, squared towards the first: with 20,000 answers, 1.5 distinct names to each seen."""

_TYPES = {"A": 42, "AAAA": 24, "CNAME": 12, "HTTPS": 8, "TXT": 5, "PTR": 4, "MX": 3, "SRV": 2}
"""Weights in percent; CNAME stands for an A answer behind one CNAME."""
_TTLS = {60: 20, 300: 40, 3600: 30, 86400: 10}
_SUFFIXES = ("com", "net", "org", "de", "nl", "co.uk", "io")
_DAY = 86400
_ECDSA_SIGNATURE = 64
"""Bytes of a P-256 signature (RFC 6605 section 4)."""
_ECDSA_P256 = 13
"""Algorithm number (RFC 6605)."""
_RRSIG = struct.Struct("!HBBIIIH")
_IPV4 = bytes([203, 0, 113])
_IPV6 = bytes([0x20, 0x01, 0x0D, 0xB8])
_LETTERS = "abcdefghijklmnopqrstuvwxyz"

_Key = TypeVar("_Key")


def trace(count: int, now: float, *, origin: str = SENDER, distinct: bool = False) -> list[Answer]:
    """`count` answers in the order of arrival, all learned at `now`. Equal but for the times, whenever it is made.

    `distinct`: each of another name, none more popular than others.
    """
    rng = random.Random(SEED)
    names = range(count * UNIVERSE)
    if distinct:
        return [_Maker(name, now, origin).answer() for name in rng.sample(names, count)]
    weights = list(accumulate((name + 1) ** -ZIPF_EXPONENT for name in names))
    made: dict[int, Answer] = {}
    answers = []
    for name in rng.choices(names, cum_weights=weights, k=count):
        answer = made.get(name)
        if answer is None:
            answer = made[name] = _Maker(name, now, origin).answer()
        answers.append(answer)
    return answers


def _zone(number: int) -> tuple[str, bool]:
    """Name of a zone, and whether it is signed."""
    rng = random.Random(-SEED - number)
    label = "".join(rng.choices(_LETTERS, k=rng.randint(4, 14)))
    return f"{label}.{rng.choice(_SUFFIXES)}", rng.random() < SIGNED_SHARE


class _Maker:
    """Makes the one answer of a name, from a seed that is the name's number."""

    def __init__(self, number: int, now: float, origin: str) -> None:
        self._random = random.Random(SEED + number)
        self._number = number
        self._now = now
        self._origin = origin
        self._zone, self._signed = _zone(int(ZONES * self._random.random() ** 2))
        self._ttl = self._pick(_TTLS)

    def answer(self) -> Answer:
        kind = self._pick(_TYPES)
        owner = f"{self._label(1, 5)}{self._number}.{self._zone}"  # the number: no two names are one
        chain: tuple[RRset, ...]
        if kind == "CNAME":
            target = name_from_text(f"{self._label(6, 16)}.{self._zone}")
            chain = (self._rrset(owner, rrtypes.CNAME, [target]), self._addresses(target))
            qtype = rrtypes.A
        else:
            rrset = self._of_kind(kind, owner)
            chain, qtype = (rrset,), rrset.type
        return Answer(
            qname=chain[0].owner,
            qtype=qtype,
            rrsets=chain,
            evidence=Evidence.VALIDATED if self._signed else self._random.choice(list(Evidence)[:2]),
            origin=self._origin,
            learned=self._now,
        )

    def _of_kind(self, kind: str, owner: str) -> RRset:
        match kind:
            case "A":
                return self._addresses(name_from_text(owner))
            case "AAAA":
                count = self._random.choice((1, 1, 2))
                return self._rrset(owner, rrtypes.AAAA, [_IPV6 + self._bytes(12) for _ in range(count)])
            case "HTTPS":
                hint = b"\0\x04\0\x04" + _IPV4 + self._bytes(1)
                return self._rrset(owner, rrtypes.HTTPS, [b"\0\x01\0" + b"\0\x01\0\x06\x02h3\x02h2" + hint])
            case "TXT":
                text = self._label(30, 120).encode()
                return self._rrset(owner, rrtypes.TXT, [bytes([len(text)]) + text])
            case "PTR":
                octets = [self._random.randint(0, 255) for _ in range(3)] + [self._random.randint(11, 99)]
                self._zone = ".".join(map(str, octets[1:])) + ".in-addr.arpa"
                return self._rrset(f"{octets[0]}.{self._zone}", rrtypes.PTR, [name_from_text(owner)])
            case "MX":
                hosts = [name_from_text(f"mx{number}.{self._zone}") for number in (1, 2)]
                exchanges = [b"\0" + bytes([10 * number]) + host for number, host in enumerate(hosts, 1)]
                return self._rrset(owner, rrtypes.MX, exchanges)
            case _:
                target = name_from_text(f"{self._label(3, 8)}.{self._zone}")
                service = f"_sip._tcp.{owner}"
                return self._rrset(service, rrtypes.SRV, [struct.pack("!HHH", 10, 5, 5060) + target])

    def _addresses(self, owner: bytes) -> RRset:
        count = self._random.choice((1, 1, 1, 2, 4))
        return self._packed(owner, rrtypes.A, [_IPV4 + bytes([number]) for number in self._some_octets(count)])

    def _rrset(self, owner: str, rrtype: int, rdatas: list[bytes]) -> RRset:
        return self._packed(name_from_text(owner), rrtype, rdatas)

    def _packed(self, owner: bytes, rrtype: int, rdatas: list[bytes]) -> RRset:
        sigs = pack(rrtypes.RRSIG, self._ttl, [self._rrsig(owner, rrtype)]) if self._signed else b""
        return RRset(owner, rrtype, self._ttl, pack(rrtype, self._ttl, rdatas), sigs)

    def _rrsig(self, owner: bytes, rrtype: int) -> bytes:
        labels = label_count(owner)
        expiration, inception = int(self._now) + 14 * _DAY, int(self._now) - _DAY
        fields = _RRSIG.pack(
            rrtype, _ECDSA_P256, labels, self._ttl, expiration, inception, self._random.getrandbits(16)
        )
        return fields + name_from_text(self._zone) + self._bytes(_ECDSA_SIGNATURE)

    def _pick(self, weighted: dict[_Key, int]) -> _Key:
        return self._random.choices(list(weighted), list(weighted.values()))[0]

    def _label(self, shortest: int, longest: int) -> str:
        return "".join(self._random.choices(_LETTERS, k=self._random.randint(shortest, longest)))

    def _bytes(self, count: int) -> bytes:
        return self._random.randbytes(count)

    def _some_octets(self, count: int) -> list[int]:
        return self._random.sample(range(1, 255), count)
