"""D-21: every answer of the shim is its upstream's, but for the kinds that docs/shim/differences.md explains.

Thousands of mixed questions, drawn with a fixed seed, go to a real Unbound and to the shim in front of it, as the same
bytes. Features that alter answers are off.
"""

from __future__ import annotations

import random
import re
import struct
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import dns.flags
import dns.name
import dns.rcode
import dns.rdatatype
import pytest

from tests.farm import wire as wire_reader
from tests.farm.authoritative import Knot, Nsd
from tests.farm.client import Endpoint
from tests.farm.pipeline import over_tcp, over_udp
from tests.farm.unbound import Unbound
from tests.farm.wire import Reply, Said
from tests.farm.zones import OTHER, PLAIN, REVERSE, SIGNED, Zones, make_zones
from tests.interop.test_shim import ShimNode, alone, upstream
from tests.servers import require

pytestmark = pytest.mark.interop

SEED = 21
QUERIES = 5500
MAX_KINDS = 10
MAX_DIFFERENT = 0.1
"""Part of the questions whose answers may differ at all; most of them are the odd messages among them."""
MAX_POSITIVE_WITHOUT_AD = 30
WITHIN = 60.0
"""Seconds for all messages of one channel; they take less than one on a quiet machine."""
TTL_SLACK = 120
"""Seconds by which TTLs may differ, because the one cache was asked later than the other."""
OFF = {
    "cookies": False,
    "padding": False,
    "rotate": False,
    "minimal": True,
    "serve_stale": False,
    "prefetch": False,
    "failures": False,
    "local_data": {"special_names": False},
}
"""The shim's keys that alter answers."""
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "shim" / "differences.md"

APEXES = (PLAIN, SIGNED, OTHER, REVERSE)
PLACES = [
    *APEXES,
    *(f"{label}.{zone}" for zone in (PLAIN, SIGNED) for label in ("tree", "wild", "*.wild", "a.b.wild", "ns")),
    *(".", "unknown.", "test."),
]
LOCAL = ["host.invalid.", "localhost.", "1.0.0.127.in-addr.arpa.", "x.onion."]
"""Zones that Unbound answers for itself: but for DS, which it asks the parent for."""
TYPES = [
    *("A", "AAAA", "TXT", "MX", "CNAME", "NS", "SOA", "SRV", "HTTPS", "SVCB", "CAA", "DNAME", "DS", "DNSKEY", "NSEC"),
    *("RRSIG", "ANY", "TYPE65280", "PTR", "NAPTR"),
]
ODD_TYPES = (0, 41, 128, 200, 249, 250, 251, 252, 253, 254)
ODD_CLASSES = (3, 4, 254, 255)
OPCODES = (1, 2, 4, 5, 6, 15)
SIZES = (0, 512, 512, 1232, 1232, 1232, 4096, 4096, 65535)
OPTIONS = (b"\0\3\0\0", b"\xfd\xe9\0\3abc", b"\0\x0c\0\4\0\0\0\0", b"\0\x09\0\0")
"""NSID, one for experiments, Padding, EXPIRE."""


def draw(rng: random.Random, zones: Zones, ident: int) -> bytes:
    """One message: an existing name or not, any type, every bit, with and without EDNS."""
    asked = rng.choice(zones.questions)
    name, rrtype = asked.name, asked.type
    luck = rng.random()
    if luck < 0.2:
        rrtype = rng.choice(TYPES)
    elif luck < 0.4:
        others = [*zones.mixed, *zones.wildcards, *zones.synthesised]
        name, rrtype = rng.choice([*(other.name for other in others), *PLACES]), rng.choice(TYPES)
        if rng.random() < 0.1:
            name, rrtype = rng.choice(LOCAL), rng.choice(TYPES[:5])
    elif luck < 0.6:
        missing = (f"no{rng.randrange(200)}", f"x.no{rng.randrange(50)}", f"deep{rng.randrange(30)}.wild", "y.a0")
        name, rrtype = f"{rng.choice(missing)}.{rng.choice(APEXES)}", rng.choice(TYPES[:5])
    wire = dns.name.from_text(name).to_wire()
    if rng.random() < 0.3:
        wire = bytes(byte - 32 if 97 <= byte <= 122 and rng.random() < 0.5 else byte for byte in wire)
    code = rng.choice(ODD_TYPES) if rng.random() < 0.01 else int(dns.rdatatype.from_text(rrtype))
    rrclass = rng.choice(ODD_CLASSES) if rng.random() < 0.01 and code not in ODD_TYPES else 1
    flags = 0
    for bit, share in ((dns.flags.RD, 0.95), (dns.flags.AD, 0.3), (dns.flags.CD, 0.15)):
        flags |= bit if rng.random() < share else 0
    if rng.random() < 0.01:
        flags |= rng.choice(OPCODES) << 11
    opt = draw_opt(rng, odd_version=code not in ODD_TYPES) if rng.random() < 0.75 else b""
    return struct.pack("!6H", ident, flags, 1, 0, 0, bool(opt)) + wire + struct.pack("!HH", code, rrclass) + opt


def draw_opt(rng: random.Random, *, odd_version: bool) -> bytes:
    version = odd_version and rng.random() < 0.01
    bits = (0x8000 if rng.random() < 0.5 else 0) | (0x4000 if rng.random() < 0.02 else 0)
    options = rng.choice(OPTIONS) if rng.random() < 0.2 else b""
    return b"\0" + struct.pack("!HHBBHH", 41, rng.choice(SIZES), 0, version, bits, len(options)) + options


def read(wire: bytes) -> Reply:
    """What a reply says. Of one with another opcode nobody reads more than the header: the rest has another meaning."""
    if wire[2] & 0x78:
        flags = struct.unpack("!H", wire[2:4])[0] & 0x87F0
        return Reply(Said(wire[3] & 15, flags, None, b"", *[frozenset()] * 3), {}, len(wire))
    return wire_reader.read(wire)


class Asked(NamedTuple):
    """What a kind of difference may depend on."""

    flags: int
    qtype: int
    qclass: int
    limit: int
    """Bytes that the reply may have."""


def look_at(wire: bytes, *, tcp: bool) -> Asked:
    _, end = dns.name.from_wire(wire, 12)
    qtype, qclass = struct.unpack("!HH", wire[12 + end : 16 + end])
    size = struct.unpack("!H", wire[19 + end : 21 + end])[0] if wire[11] else 0
    limit = 65535 if tcp else min(max(size, 512), 1232)
    return Asked(struct.unpack("!H", wire[2:4])[0], qtype, qclass, limit)


ANSWERED = {dns.rcode.NOERROR, dns.rcode.NXDOMAIN}
REFUSALS = {dns.rcode.FORMERR, dns.rcode.NOTIMP, dns.rcode.REFUSED, dns.rcode.BADVERS}


def kind_of(asked: Asked, theirs: Reply, ours: Reply) -> str | None:
    """The name under which a difference is explained, None for one that is not to be."""
    if asked.flags & 0x7800:
        odd = theirs.said.rcode in {dns.rcode.NOTIMP, dns.rcode.REFUSED} and ours.said.rcode == dns.rcode.NOTIMP
        return "opcode" if odd else None
    if asked.qclass == 255 or asked.qtype == 0:
        refused = ours.said.rcode == (dns.rcode.REFUSED if asked.qtype else dns.rcode.FORMERR)
        return "not-a-question" if refused else None
    if not asked.flags & dns.flags.RD and ours.said.rcode in {*ANSWERED, dns.rcode.REFUSED}:
        return "no-recursion" if not ours.said.flags & dns.flags.AA else None
    if ours.said.flags & dns.flags.TC:
        # Theirs is cut too, or nearly was.
        close = theirs.said.flags & dns.flags.TC or theirs.size > asked.limit - 64
        return "truncated" if close and theirs.said.rcode == ours.said.rcode else None
    differ = {field for field in Said._fields if getattr(theirs.said, field) != getattr(ours.said, field)}
    if asked.qtype == dns.rdatatype.CNAME and theirs.said.rcode == dns.rcode.SERVFAIL:
        return "below-a-dname" if ours.said.rcode == dns.rcode.NOERROR and ours.said.answer else None
    if asked.qtype == dns.rdatatype.DNAME and differ == {"authority"}:
        return "below-a-dname" if not theirs.said.authority and ours.said.answer == theirs.said.answer else None
    if asked.qtype == dns.rdatatype.ANY and ours.said.answer & theirs.said.answer:
        return "any"
    if differ == {"additional"}:
        return "additional" if not ours.said.additional else None
    if differ == {"flags"}:
        return _of_flags(theirs, ours)
    return None


def _of_flags(theirs: Reply, ours: Reply) -> str | None:
    changed = theirs.said.flags ^ ours.said.flags
    if ours.said.rcode in REFUSALS:
        return "refusal-bits" if not changed & ~(dns.flags.RA | dns.flags.AD) else None
    if changed == dns.flags.AA:
        return "authority-of-local-zones" if theirs.said.flags & dns.flags.AA else None
    return "without-ad" if changed == dns.flags.AD and theirs.said.flags & changed else None


def wrong_ttls(theirs: Sequence[Reply], ours: Reply) -> list[str]:
    """TTLs that time does not explain. Some are longer than the upstream's before: it asked again in between."""
    wrong = []
    for key, ttl in ours.ttls.items():
        seen = [reply.ttls[key] for reply in theirs if reply.ttls.get(key)]  # 0: a CNAME that Unbound made itself
        if seen and ttl and not min(seen) - TTL_SLACK <= ttl <= max(seen) + TTL_SLACK:
            wrong.append(f"{key}: {ttl}, not {seen}")
    return wrong


@pytest.fixture(scope="module")
def zones(tmp_path_factory: pytest.TempPathFactory) -> Zones:
    return make_zones(tmp_path_factory.mktemp("zones"))


def root_zone(directory: Path, zones: Zones) -> Path:
    """A root that delegates to the zones, so that a DS question has somebody to answer it."""
    lines = [". 3600 IN SOA ns.test. host.test. 1 7200 3600 604800 60", ". 3600 IN NS ns.test."]
    lines += ["ns.test. 3600 IN A 127.0.0.1"]
    for zone in zones.names:
        if zone != REVERSE:
            lines += [f"{zone} 3600 IN NS ns.{zone}", f"ns.{zone} 3600 IN A 127.0.0.1"]
    path = directory / "root.zone"
    path.write_text("\n".join(lines) + "\n")
    return path


class Asker:
    """Puts all messages to a server, some over TCP, and reads the replies."""

    def __init__(self, zones: Zones) -> None:
        rng = random.Random(SEED)
        self.wires = [draw(rng, zones, ident) for ident in range(QUERIES)]
        self.tcp = [rng.random() < 0.15 for _ in self.wires]

    def ask(self, server: Endpoint) -> list[Reply]:
        found: dict[bytes, bytes | None] = {}
        for tcp, exchange in ((False, over_udp), (True, over_tcp)):
            chosen = [wire for wire, channel in zip(self.wires, self.tcp, strict=True) if channel is tcp]
            found |= zip(chosen, exchange(server, chosen, within=WITHIN), strict=True)
        missing = sum(found[wire] is None for wire in self.wires)
        assert not missing, f"{missing} messages without reply"
        return [read(found[wire] or b"") for wire in self.wires]


def explained() -> set[str]:
    """The kinds that the documentation has a heading for."""
    return set(re.findall(r"^## `([a-z-]+)`", DOCUMENT.read_text(), re.MULTILINE))


def test_answers_are_the_upstreams(
    tmp_path: Path, zones: Zones, record_property: Callable[[str, object], None]
) -> None:
    require("nsd", "knot", "unbound")
    unsigned = {zone: path for zone, path in zones.files.items() if zone != SIGNED}
    asker = Asker(zones)
    with (
        Nsd(tmp_path, {".": root_zone(tmp_path, zones), **unsigned}) as nsd,
        Knot(tmp_path, {SIGNED: zones.files[SIGNED]}) as knot,
    ):
        stubs = {zone: (knot if zone == SIGNED else nsd).endpoint for zone in (*zones.names, ".")}
        with (
            Unbound(tmp_path, stubs=stubs, anchors=[zones.anchor]) as unbound,
            ShimNode(tmp_path, alone(), upstream(unbound.endpoint, validating=True), **OFF) as shim,
        ):
            # Unbound itself answers some questions in another way from its cache.
            theirs = [asker.ask(unbound.endpoint), asker.ask(unbound.endpoint)]
            cold = asker.ask(shim.endpoint)
            warm = asker.ask(shim.endpoint)
            counters = shim.counters()
            shim.assert_quiet()
    kinds: Counter[str] = Counter()
    unexplained: list[str] = []
    positive = 0
    for turn, replies in (("cold", cold), ("warm", warm)):
        for index, ours in enumerate(replies):
            wire = asker.wires[index]
            same = [reply[index] for reply in theirs]
            if any(reply.said == ours.said for reply in same):
                unexplained += [f"{turn} {wire.hex()}: {text}" for text in wrong_ttls(same, ours)]
                continue
            asked = look_at(wire, tcp=asker.tcp[index])
            kind = kind_of(asked, same[1], ours)
            if kind is None:
                unexplained.append(f"{turn} {wire.hex()}:\n  upstream {same[1].said}\n  shim     {ours.said}")
            else:
                kinds[kind] += 1
                positive += kind == "without-ad" and bool(ours.said.answer)
    assert not unexplained, f"{len(unexplained)} differences, {kinds}:\n" + "\n".join(unexplained[:20])
    assert len(kinds) <= MAX_KINDS
    assert set(kinds) <= explained(), "each kind has its heading in docs/shim/differences.md"
    assert kinds.total() <= MAX_DIFFERENT * 2 * QUERIES, kinds
    assert positive < MAX_POSITIVE_WITHOUT_AD, "only what was learned in a chain that is not signed as a whole"
    assert counters["hits"] > QUERIES / 2, "the second time most answers came from the cache"
    record_property("different", {"answers": 2 * QUERIES, **kinds})
