"""What the tests of C-DNS share: answers, codecs, and the schema of RFC 8618."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any

import cbor2
import pycddl

from cachebus.answer import Answer, Evidence, RRset
from cachebus.codecs.cdns import CdnsCodec, CdnsCodecSettings, Peer
from cachebus.presentation import name_from_text
from cachebus.wire import rrtypes
from cachebus.wire.message import pack
from cachebus.wire.name import label_count

NOW = 1_800_000_000.0
DATA = Path(__file__).parent / "data"


def rrset(owner: str, rrtype: int, *rdatas: bytes, ttl: int = 300, signed: bool = False) -> RRset:
    """An RRset, with one RRSIG if wanted."""
    name = name_from_text(owner)
    sigs = b""
    if signed:
        fields = struct.pack("!HBBIIIH", rrtype, 13, label_count(name), ttl, int(NOW) + 9000, int(NOW) - 9000, 7)
        sigs = pack(rrtypes.RRSIG, ttl, [fields + name[name[0] + 1 :] + bytes(64)])
    return RRset(name, rrtype, ttl, pack(rrtype, ttl, rdatas), sigs)


def answer(
    *rrsets: RRset,
    qtype: int = rrtypes.A,
    evidence: Evidence = Evidence.CONFIRMED,
    origin: str = "alpha",
    age: float = 0.0,
    validating: bool = False,
) -> Answer:
    """An answer of `origin`, learned `age` seconds before `NOW`."""
    return Answer(rrsets[0].owner, qtype, rrsets, evidence, origin, NOW - age, validating)


def address(name: str = "www.example.com.", number: int = 1, **more: Any) -> Answer:
    """An A answer."""
    ttl = more.pop("ttl", 300)
    signed = more.pop("signed", False)
    return answer(rrset(name, rrtypes.A, bytes((192, 0, 2, number)), ttl=ttl, signed=signed), **more)


def some_answers() -> list[Answer]:
    """One of each kind: plain, signed, several records, behind a CNAME, shared data, another TTL, an odd type."""
    www, target = name_from_text("www.example.com."), name_from_text("target.example.com.")
    return [
        address(),
        address("signed.example.com.", 2, signed=True, evidence=Evidence.VALIDATED, validating=True),
        answer(rrset("many.example.com.", rrtypes.A, *(bytes((192, 0, 2, n)) for n in range(40)))),
        answer(
            rrset("alias.example.com.", rrtypes.CNAME, target, signed=True),
            rrset("target.example.com.", rrtypes.AAAA, bytes(15) + b"\1", bytes(15) + b"\2", signed=True),
            qtype=rrtypes.AAAA,
            evidence=Evidence.VALIDATED,
        ),
        address("other.example.com.", 1, age=12.25, evidence=Evidence.AUTHORITATIVE, ttl=86400),
        answer(rrset("mail.example.com.", rrtypes.MX, b"\0\x0a" + www), qtype=rrtypes.MX, validating=True),
        answer(rrset("odd.example.com.", 65280, bytes(300)), qtype=65280),
        answer(rrset(".", rrtypes.TXT, b"\x03abc"), qtype=rrtypes.TXT),
    ]


def codec(node: str = "alpha", *, start: float | None = NOW - 10, **more: Any) -> CdnsCodec:
    """A codec that takes everything from the peer `alpha.test`."""
    more.setdefault("peers", {"alpha.test": Peer(frozenset({"alpha"}))})
    return CdnsCodec(CdnsCodecSettings(node=node, cluster="test", transport="t", **more), start=start)


def schema(*, private: bool = False) -> pycddl.Schema:
    """The CDDL of RFC 8618. `private`: with our private keys added where they stand.

    What pycddl cannot read is said in other words: it takes no `.bits` of 0, and no group in a map.
    """
    text = (DATA / "c-dns.cddl").read_text()
    text = re.sub(r"uint\s+\.bits (\w+)", r"0 / uint .bits \1", text)
    text = text.replace("? RRTables,", "? rrlist => [+ RRList], ? rr => [+ RR],")
    text = text.replace("? QuestionTables,", "? qlist => [+ QuestionList], ? qrr => [+ Question],")
    if private:
        ours = {
            "BlockPreamble": "-100 => uint, -101 => uint, -102 => uint, -103 => uint, -104 => tstr, ? -105 => tstr,",
            "BlockStatistics": "? -100 => tstr,",
            "ResponseProcessingData": "-100 => 1..7,",
        }
        for name, keys in ours.items():
            text = text.replace(f"\n{name} = {{", f"\n{name} = {{ {keys}")
    return pycddl.Schema(text)


def without_private_keys(value: Any) -> Any:
    """What a reader that knows no private keys sees."""
    if isinstance(value, dict):
        return {key: without_private_keys(one) for key, one in value.items() if key >= 0}
    return [without_private_keys(one) for one in value] if isinstance(value, list) else value


def loads(data: bytes) -> Any:
    """Decoded by somebody else's library, which refuses duplicate keys."""
    return cbor2.loads(data)
