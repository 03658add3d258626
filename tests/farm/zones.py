"""Makes the test zones: some 200 names of all common types under `test.` and one reverse zone, one zone signed.

Decides what the farm's authoritative servers say and what a client may ask; knows no server.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

import dns.dnssec
import dns.dnssectypes
import dns.name
import dns.rdataset
import dns.rdatatype
import dns.rdtypes.ANY.DNSKEY
import dns.rrset
import dns.zone
from cryptography.hazmat.primitives.asymmetric import ec

from tests.farm.client import Question

PLAIN = "plain.test."
OTHER = "other.test."
SIGNED = "signed.test."
REVERSE = "2.0.192.in-addr.arpa."
TTL = 3600
SIGNATURE_LIFE = 7 * 86400
"""Seconds that the RRSIGs are valid; they begin an hour ago, so that a clock may be off."""

_SOA = "@ {ttl} IN SOA ns hostmaster 1 7200 3600 604800 60\n@ {ttl} IN NS ns\nns {ttl} IN A 127.0.0.1\n"
_KEY_FLAGS = 257
"""A key that signs everything, marked as a secure entry point (RFC 4034 section 2.1.1)."""


@dataclass
class Signer:
    """One ECDSA P-256 key that signs zones, and RRsets for servers that lie."""

    zone: str
    private: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    @property
    def dnskey(self) -> dns.rdtypes.ANY.DNSKEY.DNSKEY:
        return dns.dnssec.make_dnskey(
            self.private.public_key(), dns.dnssectypes.Algorithm.ECDSAP256SHA256, flags=_KEY_FLAGS
        )

    @property
    def anchor(self) -> str:
        """The trust anchor as a DS record: `signed.test. IN DS ...`."""
        ds = dns.dnssec.make_ds(self.zone, self.dnskey, dns.dnssectypes.DSDigest.SHA256)
        return f"{self.zone} IN DS {ds.to_text()}"

    def sign_zone(self, zone: dns.zone.Zone) -> None:
        now = int(time.time())
        with zone.writer() as transaction:
            dns.dnssec.sign_zone(
                zone,
                transaction,
                keys=[(self.private, self.dnskey)],
                inception=now - 3600,
                expiration=now + SIGNATURE_LIFE,
            )

    def sign(
        self, rrset: dns.rrset.RRset, *, inception: int | None = None, expiration: int | None = None
    ) -> dns.rrset.RRset:
        """The RRset with the one RRSIG over `rrset`."""
        now = int(time.time())
        rrsig = dns.dnssec.sign(
            rrset,
            self.private,
            dns.name.from_text(self.zone),
            self.dnskey,
            inception=now - 3600 if inception is None else inception,
            expiration=now + SIGNATURE_LIFE if expiration is None else expiration,
        )
        return dns.rrset.from_rdata(rrset.name, rrset.ttl, rrsig)


@dataclass(repr=False)
class Zones:
    """The zone files, the trust anchor, and the questions to ask."""

    files: dict[str, Path]
    signer: Signer
    questions: list[Question]
    """About 200: each answered wholly by unsigned zones, or wholly by the signed one (`secure`)."""
    mixed: list[Question]
    """Chains that begin in one and end in the other: never secure as a whole."""
    wildcards: list[Question]
    synthesised: list[Question]
    """Names below a DNAME that another question has already brought into the resolver's cache."""

    @property
    def anchor(self) -> str:
        return self.signer.anchor

    @property
    def names(self) -> list[str]:
        return list(self.files)


class _Builder:
    """Collects one zone's records and the questions that go with them."""

    def __init__(self, origin: str, *, dnssec: bool = False, ttl: int = TTL) -> None:
        self.origin = origin
        self.dnssec = dnssec
        self.ttl = ttl
        self.lines: list[str] = []
        self.questions: list[Question] = []

    def add(self, owner: str, rrtype: str, *rdatas: str, ask: str | None = "same") -> None:
        """Add an RRset; asked for under its own type, under `ask`, or not at all (None)."""
        self.lines += [f"{owner} {self.ttl} IN {rrtype} {rdata}" for rdata in rdatas]
        if ask:
            self.ask(owner, rrtype if ask == "same" else ask)

    def ask(self, owner: str, rrtype: str) -> None:
        self.questions.append(self.question(owner, rrtype))

    def question(self, owner: str, rrtype: str) -> Question:
        return Question(f"{owner}.{self.origin}", rrtype, dnssec=self.dnssec, secure=self.dnssec)

    def zone(self) -> dns.zone.Zone:
        text = _SOA.format(ttl=self.ttl) + "\n".join(self.lines) + "\n"
        return dns.zone.from_text(text, origin=self.origin, relativize=False, zone_factory=dns.zone.Zone)


def _long_text(length: int, seed: int) -> str:
    """A TXT of several strings, `length` characters in all."""
    letters = "".join(chr(97 + (seed + i * 7) % 26) for i in range(length))
    return " ".join(f'"{letters[i : i + 255]}"' for i in range(0, length, 255))


def _common(zone: _Builder, count: int) -> None:
    """RRsets of the common types, `count` of most, all under names of their own."""
    for i in range(count):
        zone.add(f"a{i}", "A", *[f"192.0.2.{i * 4 + n + 1}" for n in range(1 + i % 4)])
        zone.add(f"aaaa{i}", "AAAA", f"2001:db8::{i + 1:x}", f"2001:db8:1::{i + 1:x}")
        zone.add(f"c{i}", "CNAME", f"a{i}", ask="A")
        zone.add(f"mx{i}", "MX", f"10 a{i}", f"20 a{i}.mail")
        zone.add(f"txt{i}", "TXT", f'"v=spf1 -all; {i}" "two \\"strings\\" \\\\ \\007"', '"Case Kept"')
        zone.add(f"_sip._tcp.srv{i}", "SRV", f"10 60 5060 a{i}", f"20 0 5061 a{i}.sip")
        zone.add(f"https{i}", "HTTPS", f'1 . alpn="h2,h3" ipv4hint=192.0.2.{i + 1} ipv6hint=2001:db8::{i + 1:x}')


def _rarer(zone: _Builder) -> None:
    zone.add("caa", "CAA", '0 issue "ca.test"', '0 iodef "mailto:x@ca.test"')
    zone.add("_443._tcp.tlsa", "TLSA", "3 1 1 " + "ab" * 32)
    zone.add("sshfp", "SSHFP", "4 2 " + "cd" * 32)
    zone.add("naptr", "NAPTR", '10 10 "u" "E2U+sip" "!^.*$!sip:x@plain.test!" .')
    zone.add("_8443._https.svcb", "SVCB", "1 a0 port=8443 mandatory=port")
    zone.add("uri", "URI", '10 1 "https://plain.test/"')
    zone.add("long1", "TXT", _long_text(400, 1))
    zone.add("long2", "TXT", _long_text(700, 2))


def _plain(ttl: int) -> _Builder:
    zone = _Builder(PLAIN, ttl=ttl)
    _common(zone, 16)
    _rarer(zone)
    for i in range(6):
        zone.add(f"across{i}", "CNAME", f"t{i}.{OTHER}", ask="A")
        zone.add(f"chain{i}", "CNAME", f"link{i}", ask="A")
        zone.add(f"link{i}", "CNAME", f"back{i}.{OTHER}", ask=None)
        zone.add(f"n{i}.tree", "A", f"198.51.100.{i + 1}", ask=None)
        zone.add(f"inside{i}", "DNAME", f"tree.{PLAIN}", ask=None)
        zone.add(f"outside{i}", "DNAME", f"tree.{OTHER}", ask=None)
        zone.ask(f"n{i}.inside{i}", "A")
        zone.ask(f"n{i}.outside{i}", "A")
    zone.add("mixed", "CNAME", f"a0.{SIGNED}", ask=None)
    zone.add("*.wild", "A", "192.0.2.250", ask=None)
    return zone


def _other(ttl: int) -> _Builder:
    zone = _Builder(OTHER, ttl=ttl)
    for i in range(6):
        zone.add(f"t{i}", "A", f"203.0.113.{i + 1}")
        zone.add(f"back{i}", "CNAME", f"a{i}.{PLAIN}", ask=None)
        zone.add(f"n{i}.tree", "A", f"203.0.113.{i + 101}", ask=None)
    return zone


def _signed(ttl: int) -> _Builder:
    zone = _Builder(SIGNED, dnssec=True, ttl=ttl)
    _common(zone, 5)
    zone.add("long1", "TXT", _long_text(500, 3))
    for i in range(3):
        zone.add(f"chain{i}", "CNAME", f"c{i}", ask="A")
        zone.add(f"n{i}.tree", "A", f"198.51.100.{i + 101}", ask=None)
        zone.add(f"inside{i}", "DNAME", f"tree.{SIGNED}", ask=None)
        zone.ask(f"n{i}.inside{i}", "A")
    zone.add("mixed", "CNAME", f"a0.{PLAIN}", ask=None)
    zone.add("*.wild", "A", "192.0.2.251", ask=None)
    return zone


def _reverse(ttl: int) -> _Builder:
    zone = _Builder(REVERSE, ttl=ttl)
    for i in range(1, 13):
        zone.add(str(i), "PTR", f"a{i}.{PLAIN}")
    return zone


def make_zones(directory: Path, *, ttl: int = TTL) -> Zones:
    """Write the zone files into `directory`, the signed zone with a fresh ECDSA P-256 key and NSEC."""
    directory.mkdir(parents=True, exist_ok=True)
    signer = Signer(SIGNED)
    builders = [_plain(ttl), _other(ttl), _signed(ttl), _reverse(ttl)]
    files = {}
    for builder in builders:
        zone = builder.zone()
        if builder.dnssec:
            signer.sign_zone(zone)
        files[builder.origin] = directory / f"{builder.origin}zone"
        zone.to_file(files[builder.origin], sorted=True, relativize=False)
    plain, _, signed, _ = builders
    return Zones(
        files=files,
        signer=signer,
        questions=[question for builder in builders for question in builder.questions],
        mixed=[
            plain.question("mixed", "A")._replace(dnssec=True),
            signed.question("mixed", "A")._replace(secure=False),
        ],
        synthesised=[plain.question(f"n{i}.{side}0", "A") for i in range(1, 4) for side in ("inside", "outside")],
        wildcards=[plain.question("any.wild", "A"), signed.question("any.wild", "A")],
    )
