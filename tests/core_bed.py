"""What the tests of the core share: one key, answers made of text, and the other end played by dnspython."""

from __future__ import annotations

import base64

import dns.message
import dns.name
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.tsigkeyring

from cachebus.answer import Answer, Evidence, RRset
from cachebus.presentation import name_from_text, type_from_text
from cachebus.wire import rrtypes
from cachebus.wire.message import pack
from cachebus.wire.tsig import Key

NOW = 1_800_000_000.25
SECRET = bytes(range(32))
KEY_NAME = "cluster-2026"


def key(name: str = KEY_NAME, algorithm: str = "hmac-sha256", secret: bytes = SECRET, **more: object) -> Key:
    """A TSIG key."""
    return Key.make(name, algorithm, secret, **more)  # type: ignore[arg-type]


def keyring(name: str = KEY_NAME, algorithm: str = "hmac-sha256", secret: bytes = SECRET) -> object:
    """The same key for dnspython."""
    return dns.tsigkeyring.from_text({name: (algorithm, base64.b64encode(secret).decode())})


def rdata(rrtype: str, text: str) -> bytes:
    """RDATA in wire form, uncompressed, of presentation form."""
    return (
        dns.rdata.from_text(
            dns.rdataclass.IN, type_from_text(rrtype), text, origin=dns.name.root, relativize=False
        ).to_wire()
        or b""
    )


def rrset(owner: str, rrtype: str, *texts: str, ttl: int = 300, sigs: bytes = b"") -> RRset:
    """An RRset of presentation form."""
    code = type_from_text(rrtype)
    return RRset(name_from_text(owner), code, ttl, pack(code, ttl, [rdata(rrtype, text) for text in texts]), sigs)


def rrsig(
    owner: str, rrtype: str, *, now: float = NOW, labels: int | None = None, ttl: int = 300, signer: str = "",
    inception: int = -3600, expiration: int = 86400, key_tag: int = 4711,
) -> bytes:  # fmt: skip
    """A packed RRSIG over (owner, rrtype); its signature is noise."""
    count = owner.strip(".").count(".") + 1 if labels is None else labels
    fields = (
        type_from_text(rrtype).to_bytes(2, "big")
        + bytes([13, count])
        + ttl.to_bytes(4, "big")
        + int(now + expiration).to_bytes(4, "big")
        + int(now + inception).to_bytes(4, "big")
        + key_tag.to_bytes(2, "big")
    )
    zone = name_from_text(signer or owner.split(".", 1)[1])
    return pack(rrtypes.RRSIG, ttl, [fields + zone + b"s" * 64])


def answer(
    *rrsets: RRset, qtype: str = "", evidence: Evidence = Evidence.AUTHORITATIVE, learned: float = NOW,
    origin: str = "a", transport: str = "", signer: str = "",
) -> Answer:  # fmt: skip
    """An answer; its question is the head of the chain, its type the last RRset's."""
    code = type_from_text(qtype) if qtype else rrsets[-1].type
    return Answer(rrsets[0].owner, code, rrsets, evidence, origin, learned, transport=transport, signer=signer)


def address(owner: str = "www.example.com", *, ttl: int = 300, last: int = 1, **more: object) -> Answer:
    """An A answer from the documentation range."""
    return answer(rrset(owner, "A", f"192.0.2.{last}", ttl=ttl), **more)  # type: ignore[arg-type]


def read(wire: bytes) -> dns.message.Message:
    """What dnspython reads in a message."""
    return dns.message.from_wire(wire)
