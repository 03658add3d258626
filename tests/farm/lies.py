"""The hostile list of the trust rules (section 9) as the answers of a misbehaving authoritative server.

Each lie is told for the names of a zone of its own, so that one lie does not make a resolver shun the server for the
next. What is forged points to `FORGED`, or is text with that word in it; what is true points to `TRUE`.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address

import dns.rdatatype
import dns.rrset

from tests.farm.client import Question
from tests.farm.python_server import AA, CH, QR, TC, FromElsewhere, Query, nodata, record, reply, wire_name
from tests.farm.zones import Signer

EVIL = "evil.test."
"""Parent of the unsigned liars' zones."""
SIGNED_EVIL = "signedevil.test."
"""The signed zone whose server lies."""
VICTIM = "bank.test."
"""Somebody else's zone, honestly served elsewhere."""
VICTIM_NAME = "www." + VICTIM
TRUE = IPv4Address("192.0.2.53").packed
FORGED = IPv4Address("203.0.113.66").packed
FORGED_TEXT = "203.0.113.66"
TTL = 600
SIGNED_TTL = 300
"""Original TTL of the RRSIG whose record claims a day."""
_DAY = 86400
_OPT_SCOPED = b"\0" + struct.pack("!HHIH", 41, 1232, 0, 12) + struct.pack("!HHHBB4s", 8, 8, 1, 32, 24, TRUE)
"""An OPT record with a client subnet option (RFC 7871) of scope 24."""

Tell = Callable[[Query, str], bytes | FromElsewhere | None]
"""Makes the reply for a query, and the zone the lie is told in."""


@dataclass(frozen=True)
class Lie:
    """One item of the list."""

    name: str
    tell: Tell
    label: str = "www"
    type: str = "A"
    may_hold: tuple[str, ...] = ()
    """Types that a cluster may rightly hold for the asked name afterwards."""
    beside: tuple[str, ...] = ()
    """`LABEL TYPE` of what else it may rightly hold in the zone."""
    also_told_for: str = ""
    """A second label the lie is told for."""

    @property
    def zone(self) -> str:
        return f"{self.name}.{EVIL}"

    @property
    def question(self) -> Question:
        return Question(f"{self.label}.{self.zone}", self.type)

    @property
    def rightly_held(self) -> set[tuple[str, str]]:
        """(owner, type) of everything at or below the zone that may be believed."""
        beside = (entry.split() for entry in self.beside)
        return {(self.question.name, rrtype) for rrtype in self.may_hold} | {
            (f"{label}.{self.zone}", rrtype) for label, rrtype in beside
        }


def a(owner: str | bytes, address: bytes = TRUE, ttl: int = TTL) -> bytes:
    return record(owner, "A", ttl, address)


def cname(owner: str | bytes, target: str) -> bytes:
    return record(owner, "CNAME", TTL, wire_name(target))


def _question(name: str, rrtype: str = "A", rrclass: int = 1) -> bytes:
    return wire_name(name) + struct.pack("!HH", dns.rdatatype.from_text(rrtype), rrclass)


def _other_question(query: Query, zone: str) -> bytes:
    return reply(query, a(VICTIM_NAME, FORGED), questions=(_question(VICTIM_NAME),))


def _other_case(query: Query, zone: str) -> bytes:
    return reply(query, a(query.owner.swapcase()), questions=(query.owner.swapcase() + query.question[-4:],))


def _out_of_zone(query: Query, zone: str) -> bytes:
    extra = a(VICTIM_NAME, FORGED)
    return reply(query, a(query.owner), extra, authority=(extra,), additional=(extra,))


def _sibling_zone(query: Query, zone: str) -> bytes:
    sibling = f"www.honest.{EVIL}"
    return reply(query, a(query.owner), a(sibling, FORGED), additional=(a(sibling, FORGED),))


def _cname_out(query: Query, zone: str) -> bytes:
    return reply(query, cname(query.owner, VICTIM_NAME), a(VICTIM_NAME, FORGED))


def _two_cnames(query: Query, zone: str) -> bytes:
    one, two = f"one.{zone}", f"two.{zone}"
    return reply(query, cname(query.owner, one), cname(query.owner, two), a(one, FORGED), a(two, FORGED))


def _cname_loop(query: Query, zone: str) -> bytes:
    first, second = f"www.{zone}", f"next.{zone}"
    if query.name == first:
        return reply(query, cname(query.owner, second), cname(second, first))
    return reply(query, cname(query.owner, first), cname(first, second))


def _forged_cname(query: Query, zone: str) -> bytes:
    dname = record(f"tree.{zone}", "DNAME", TTL, wire_name(f"target.{zone}"))
    return reply(query, dname, cname(query.owner, f"forged.{zone}"), a(f"forged.{zone}", FORGED))


def _cname_and(rcode: int) -> Tell:
    def tell(query: Query, zone: str) -> bytes:
        soa = record(zone, "SOA", 60, wire_name(f"ns.{zone}") * 2 + struct.pack("!IIIII", 1, 2, 3, 4, 60))
        return reply(query, cname(query.owner, f"gone.{zone}"), authority=(soa,), rcode=rcode)

    return tell


def _wrong_id(query: Query, zone: str) -> bytes:
    return reply(query, a(query.owner, FORGED), ident=query.id ^ 0x5A5A)


def _wrong_port(query: Query, zone: str) -> FromElsewhere:
    return FromElsewhere(reply(query, a(query.owner, FORGED)))


def _flags(flags: int) -> Tell:
    return lambda query, zone: reply(query, a(query.owner, FORGED), flags=flags)


def _truncated(query: Query, zone: str) -> bytes | None:
    return reply(query, a(query.owner, FORGED), flags=QR | AA | TC) if query.udp else None


def _rcode(rcode: int) -> Tell:
    return lambda query, zone: reply(query, a(query.owner, FORGED), rcode=rcode)


def _class_ch(query: Query, zone: str) -> bytes:
    return reply(query, record(query.owner, "A", TTL, FORGED, rrclass=CH))


def _question_ch(query: Query, zone: str) -> bytes:
    asked = query.owner + query.question[-4:-2] + b"\0\3"
    return reply(query, record(query.owner, "A", TTL, FORGED, rrclass=CH), questions=(asked,))


def _any(query: Query, zone: str) -> bytes:
    return reply(query, a(query.owner), record(query.owner, "TXT", TTL, b"\4true"))


def _extra_question(query: Query, zone: str) -> bytes:
    return reply(query, a(query.owner, FORGED), questions=(query.question, _question(VICTIM_NAME)))


def _client_subnet(query: Query, zone: str) -> bytes:
    return reply(query, a(query.owner), additional=(_OPT_SCOPED,))


def _ttl(ttl: int) -> Tell:
    return lambda query, zone: reply(query, a(query.owner, TRUE, ttl))


def _compression_loop(query: Query, zone: str) -> bytes:
    here = 12 + len(query.question)
    return reply(query, record(struct.pack("!H", 0xC000 | here), "A", TTL, FORGED))


def _forward_pointer(query: Query, zone: str) -> bytes:
    there = 12 + len(query.question) + 2 + 10 + 4
    return reply(query, a(struct.pack("!H", 0xC000 | there), FORGED), a(query.owner, FORGED))


def _oversize_rdlength(query: Query, zone: str) -> bytes:
    return reply(query, record(query.owner, "A", TTL, FORGED, length=400))


def _short_rdlength(query: Query, zone: str) -> bytes:
    return reply(query, record(query.owner, "A", TTL, FORGED[:3]))


def _long_name(query: Query, zone: str) -> bytes:
    owner = (b"\x3f" + b"f" * 63) * 4 + query.owner
    return reply(query, a(query.owner, FORGED), a(owner, FORGED))


def _bytes_after_the_end(query: Query, zone: str) -> bytes:
    return reply(query, a(query.owner, FORGED)) + b"trailing"


def _honest(query: Query, zone: str) -> bytes:
    return reply(query, a(query.owner))


LIES = {
    lie.name: lie
    for lie in (
        Lie("honest", _honest, may_hold=("A",)),
        Lie("other-question", _other_question),
        Lie("other-case", _other_case),
        Lie("out-of-zone", _out_of_zone, may_hold=("A",)),
        Lie("sibling-zone", _sibling_zone, may_hold=("A",)),
        Lie("cname-out", _cname_out, may_hold=("CNAME",)),
        Lie("two-cnames", _two_cnames),
        Lie("cname-loop", _cname_loop, also_told_for="next"),
        Lie("forged-cname", _forged_cname, label="www.tree", beside=("tree DNAME",)),
        Lie("nodata-with-cname", _cname_and(0), may_hold=("CNAME",)),
        Lie("nxdomain-with-cname", _cname_and(3)),
        Lie("wrong-id", _wrong_id),
        Lie("wrong-port", _wrong_port),
        Lie("aa-clear", _flags(QR)),
        Lie("qr-clear", _flags(AA)),
        Lie("truncated", _truncated),
        Lie("servfail", _rcode(2)),
        Lie("class-ch", _class_ch),
        Lie("question-ch", _question_ch),
        Lie("any", _any, type="ANY"),
        Lie("extra-question", _extra_question),
        Lie("client-subnet", _client_subnet),
        Lie("ttl-zero", _ttl(0)),
        Lie("ttl-top-bit", _ttl(1 << 31 | TTL)),
        Lie("compression-loop", _compression_loop),
        Lie("forward-pointer", _forward_pointer),
        Lie("oversize-rdlength", _oversize_rdlength),
        Lie("short-rdlength", _short_rdlength),
        Lie("long-name", _long_name),
        Lie("bytes-after-the-end", _bytes_after_the_end),
    )
}
"""The lies told about unsigned names, by name."""


SIGNED_LIES = (
    "honest",
    "rrsig-missing",
    "rrsig-bogus",
    "rrsig-expired",
    "rrsig-not-yet-valid",
    "rrsig-of-another-owner",
    "ttl-above-signed",
    "wildcard",
)
"""The lies told about names of the signed zone; each is the first label of the name asked for."""


def signed_question(lie: str) -> Question:
    return Question(f"{lie}.{SIGNED_EVIL}", "A", dnssec=True, secure=lie in {"honest", "ttl-above-signed"})


class SignedLiar:
    """Answers for `SIGNED_EVIL`: the keys are right, the signatures often are not."""

    def __init__(self) -> None:
        self.signer = Signer(SIGNED_EVIL)
        keys = dns.rrset.from_rdata(SIGNED_EVIL, TTL, self.signer.dnskey)
        self._keys = [_wire(keys), _wire(self.signer.sign(keys))]

    def __call__(self, query: Query) -> bytes:
        if query.name == SIGNED_EVIL and query.type == "DNSKEY":
            return reply(query, *self._keys)
        lie = query.name.removesuffix("." + SIGNED_EVIL)
        if query.type != "A" or lie not in SIGNED_LIES:
            return nodata(query, SIGNED_EVIL)
        return reply(query, *self._records(lie, query.name))

    def _records(self, lie: str, name: str) -> list[bytes]:
        now = int(time.time())
        forged = dns.rrset.from_text(name, SIGNED_TTL, "IN", "A", FORGED_TEXT)
        true = dns.rrset.from_text(name, SIGNED_TTL, "IN", "A", str(IPv4Address(TRUE)))
        match lie:
            case "honest":
                return [_wire(true), _wire(self.signer.sign(true))]
            case "rrsig-missing":
                return [_wire(forged)]
            case "rrsig-bogus":
                return [_wire(forged), _wire(self.signer.sign(true))]
            case "rrsig-expired":
                old = self.signer.sign(forged, inception=now - 9 * _DAY, expiration=now - 2 * _DAY)
                return [_wire(forged), _wire(old)]
            case "rrsig-not-yet-valid":
                early = self.signer.sign(forged, inception=now + 2 * _DAY, expiration=now + 9 * _DAY)
                return [_wire(forged), _wire(early)]
            case "rrsig-of-another-owner":
                other = dns.rrset.from_text(f"other.{SIGNED_EVIL}", SIGNED_TTL, "IN", "A", FORGED_TEXT)
                signature = self.signer.sign(other)
                return [_wire(forged), _wire(dns.rrset.from_rdata(name, SIGNED_TTL, signature[0]))]
            case "ttl-above-signed":
                signature = self.signer.sign(true)
                true.ttl = _DAY
                return [_wire(true), _wire(signature)]
            case _:
                star = dns.rrset.from_text(f"*.{SIGNED_EVIL}", SIGNED_TTL, "IN", "A", str(IPv4Address(TRUE)))
                signature = self.signer.sign(star)
                return [_wire(true), _wire(dns.rrset.from_rdata(name, SIGNED_TTL, signature[0]))]


def _wire(rrset: dns.rrset.RRset) -> bytes:
    return b"".join(
        record(rrset.name.to_text(), dns.rdatatype.to_text(rrset.rdtype), rrset.ttl, rdata.to_wire()) for rdata in rrset
    )


class Liar:
    """The handler of the hostile server: tells every lie, each in its own zone."""

    def __init__(self) -> None:
        self.signed = SignedLiar()

    def __call__(self, query: Query) -> bytes | FromElsewhere | None:
        if query.name.endswith(SIGNED_EVIL):
            return self.signed(query)
        lie = next((lie for lie in LIES.values() if f".{query.name}".endswith(f".{lie.zone}")), None)
        if lie is None:
            return nodata(query, EVIL)
        names = {lie.question.name, f"{lie.also_told_for}.{lie.zone}"}
        if lie.name == "honest" or (query.name in names and query.type == lie.type):
            return lie.tell(query, lie.zone)
        return nodata(query, lie.zone)
