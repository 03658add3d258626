"""Real clients at the shim's door: dig's, kdig's and delv's cookies and checks, systemd-resolved's probing byte by
byte, and validating resolvers, Unbound and BIND, whose forwarder it is while its cache is filled over the bus."""

from __future__ import annotations

import re
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import pytest

from tests.farm.authoritative import Nsd
from tests.farm.bind import Bind
from tests.farm.client import Endpoint, Question, ask, ask_all, data
from tests.farm.node import Cluster
from tests.farm.pipeline import over_tcp, over_udp
from tests.farm.process import eventually
from tests.farm.unbound import Unbound
from tests.farm.zones import PLAIN, SIGNED, Zones, make_zones
from tests.interop.test_shim import ShimNode, alone, run, upstream
from tests.servers import require

pytestmark = pytest.mark.interop

BIG = "big.test."


@pytest.fixture(scope="module")
def zones(tmp_path_factory: pytest.TempPathFactory) -> Zones:
    made = make_zones(tmp_path_factory.mktemp("zones"))
    lines = ["@ 300 IN SOA ns host 1 7200 3600 604800 60", "@ 300 IN NS ns", "ns 300 IN A 127.0.0.1"]
    lines += [f'@ 300 IN TXT "{letter * 200}"' for letter in "abcdefghijklmno"]
    path = tmp_path_factory.mktemp("big") / "big.zone"
    path.write_text("\n".join([f"$ORIGIN {BIG}", *lines, ""]))
    made.files[BIG] = path
    return made


@pytest.fixture(scope="module")
def unbound(tmp_path_factory: pytest.TempPathFactory, zones: Zones) -> Iterator[Unbound]:
    require("nsd", "unbound")
    directory = tmp_path_factory.mktemp("f")
    with (
        Nsd(directory, zones.files) as nsd,
        Unbound(directory, stubs=dict.fromkeys(zones.names, nsd.endpoint), anchors=[zones.anchor]) as server,
    ):
        yield server


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory, unbound: Unbound) -> Iterator[ShimNode]:
    directory = tmp_path_factory.mktemp("s")
    chaos = {"version": "of the test", "hostname": "me"}
    with ShimNode(directory, alone(), upstream(unbound.endpoint, validating=True), chaos=chaos) as node:
        yield node
        node.assert_quiet()


def dig(server: Endpoint, *words: str) -> str:
    return run("dig", f"@{server.host}", "-p", str(server.port), "+tries=1", *words)


def test_cookies_of_dig_and_kdig(shim: ShimNode) -> None:
    require("dig", "kdig")
    first = dig(shim.endpoint, "+qr", f"a0.{PLAIN}")
    cookie = re.search(r"COOKIE: ([0-9a-f]{48}) \(good\)", first)
    assert cookie is not None, first
    again = dig(shim.endpoint, f"+cookie={cookie[1]}", f"a0.{PLAIN}")
    assert f"COOKIE: {cookie[1]} (good)" in again, "young enough to be kept"
    wrong = dig(shim.endpoint, "+cookie=0102030405060708ffffffffffffffffffffffffffffffff", f"a0.{PLAIN}")
    assert "status: NOERROR" in wrong
    assert "COOKIE: 0102030405060708" in wrong
    port = str(shim.endpoint.port)
    assert "COOKIE" in run("kdig", "@127.0.0.1", "-p", port, "+cookie", f"a0.{PLAIN}", "A")
    counters = shim.counters()
    assert counters["cookie_valid"] >= 1
    assert counters["cookie_invalid"] >= 1


def test_a_rate_limit_lets_dig_in_by_its_cookie_or_by_tcp(tmp_path: Path, unbound: Unbound) -> None:
    require("dig")
    limit = {"rate": 0.1, "burst": 1, "slip": 1, "exempt": []}
    server = upstream(unbound.endpoint, validating=True)
    with ShimNode(tmp_path, alone(), server, rate_limit=limit) as node:  # its readiness took the only token
        retried = dig(node.endpoint, f"a0.{PLAIN}")
        assert "status: NOERROR" in retried
        assert "BADCOOKIE, retrying" in retried
        assert "status: BADCOOKIE" in dig(node.endpoint, "+nobadcookie", f"a0.{PLAIN}")
        over_tcp = dig(node.endpoint, "+nocookie", f"a0.{PLAIN}")
        assert "Truncated, retrying in TCP mode" in over_tcp
        assert "status: NOERROR" in over_tcp
        assert "flags: qr tc rd" in dig(node.endpoint, "+nocookie", "+ignore", f"a0.{PLAIN}")
        assert node.counters()["limited_slipped"] >= 4
        node.assert_quiet()


def test_servers_of_one_anycast_address_take_each_others_cookies(tmp_path: Path, unbound: Unbound) -> None:
    require("dig")
    secret = tmp_path / "cookie.secret"
    secret.touch(mode=0o600)
    secret.write_text("e5e973e5a6b2a43f48e7dc849e37bfcf\n")
    server = upstream(unbound.endpoint)
    with ExitStack() as running:
        one, other = (
            running.enter_context(ShimNode(tmp_path, alone(name), server, cookies={"secret": f"file:{secret}"}))
            for name in ("a", "b")
        )
        cookie = re.search(r"COOKIE: ([0-9a-f]{48})", dig(one.endpoint, f"a0.{PLAIN}"))
        assert cookie is not None
        assert f"{cookie[1]} (good)" in dig(other.endpoint, f"+cookie={cookie[1]}", f"a0.{PLAIN}")
        assert other.counters()["cookie_valid"] == 1


def test_what_dig_is_told_about_the_server(shim: ShimNode) -> None:
    require("dig")
    for name, text in (("version.bind", "of the test"), ("version.server", "of the test"), ("id.server", "me")):
        assert f'"{text}"' in dig(shim.endpoint, "CH", "TXT", name)
    assert "status: REFUSED" in dig(shim.endpoint, "CH", "TXT", "authors.bind")


def test_delv_validates_what_it_gets(tmp_path: Path, zones: Zones, shim: ShimNode) -> None:
    require("delv")
    _, _, _, tag, algorithm, digest_type, *digest = zones.anchor.split()
    anchors = tmp_path / "anchors"
    anchors.write_text(
        f'trust-anchors {{ "{SIGNED}" static-ds {tag} {algorithm} {digest_type} "{"".join(digest)}"; }};\n'
    )
    at = ["delv", "@127.0.0.1", "-p", str(shim.endpoint.port), "-a", str(anchors), f"+root={SIGNED}"]
    for _ in range(2):  # and again from the cache
        assert "; fully validated" in run(*at, f"a0.{SIGNED}", "A")
        assert "; fully validated" in run(*at, f"chain0.{SIGNED}", "A")
        assert "; fully validated" in run(*at, f"any.wild.{SIGNED}", "A")
        assert "negative response, fully validated" in run(*at, f"no.{SIGNED}", "A")


# systemd-resolved, which learns what a server can by the questions it has anyway, from the most down to the least.
# The messages are those of its dns_packet_new_query and dns_packet_append_opt.

UNDERSTOOD = (
    bytes.fromhex("0005 0007") + bytes((5, 7, 8, 10, 13, 14, 15)) + bytes.fromhex("0006 0003 010204 0007 0001 01")
)
"""DAU, DHU and N3U (RFC 6975), which go with DO."""


def resolved(ident: int, name: str, rrtype: int, *, dnssec: bool, size: int | None) -> bytes:
    flags = 0x0110 if dnssec else 0x0100  # it validates itself, so CD=1
    opt = b""
    if size is not None:
        options = UNDERSTOOD if dnssec else b""
        opt = b"\0" + struct.pack("!HHBBHH", 41, size, 0, 0, 0x8000 if dnssec else 0, len(options)) + options
    question = dns.name.from_text(name).to_wire() + struct.pack("!HH", rrtype, 1)
    return struct.pack("!6H", ident, flags, 1, 0, 0, bool(opt)) + question + opt


@pytest.mark.parametrize("turn", ["forwarded", "cached"])
def test_every_feature_level_of_systemd_resolved(shim: ShimNode, turn: str) -> None:
    name, a = f"a3.{SIGNED}", int(dns.rdatatype.A)
    levels = {
        "UDP+EDNS0+DO, large": resolved(1, name, a, dnssec=True, size=4096),
        "UDP+EDNS0+DO": resolved(2, name, a, dnssec=True, size=512),
        "UDP+EDNS0": resolved(3, name, a, dnssec=False, size=512),
        "UDP": resolved(4, name, a, dnssec=False, size=None),
    }
    for channel in (over_udp, over_tcp):
        replies = channel(shim.endpoint, list(levels.values()), within=10)
        for (level, asked), wire in zip(levels.items(), replies, strict=True):
            assert wire is not None, level
            reply = dns.message.from_wire(wire)
            assert reply.rcode() == dns.rcode.NOERROR, level
            assert reply.question[0].to_text() == f"{name} IN A"
            signed = [rrset for rrset in reply.answer if rrset.rdtype == dns.rdatatype.RRSIG]
            assert bool(signed) is ("DO" in level), "without RRSIGs it would take the server for one without DNSSEC"
            assert (reply.edns == 0) is ("EDNS0" in level), "an OPT for an OPT, and for nothing else"
            assert bool(reply.ednsflags & dns.flags.DO) is ("DO" in level), "without DO it would step down"
            assert bool(reply.flags & dns.flags.CD) is bool(asked[3] & 0x10)
            assert not reply.flags & dns.flags.TC


def test_systemd_resolved_goes_to_tcp_for_what_is_cut(shim: ShimNode) -> None:
    asked = resolved(7, BIG, int(dns.rdatatype.TXT), dnssec=True, size=4096)
    (cut,) = over_udp(shim.endpoint, [asked], within=10)
    assert cut is not None
    assert cut[2] & 2
    (whole,) = over_tcp(shim.endpoint, [asked], within=10)
    assert whole is not None
    assert len(dns.message.from_wire(whole).answer[0]) == 15


@pytest.mark.parametrize(
    "broken",
    [
        resolved(9, PLAIN, 1, dnssec=True, size=512)[:-1],
        resolved(9, PLAIN, 1, dnssec=True, size=512) + b"\0",
        resolved(9, PLAIN, 1, dnssec=False, size=512)[:-11]
        + b"\1x"
        + resolved(9, ".", 1, dnssec=False, size=512)[-11:],
        resolved(9, PLAIN, 1, dnssec=False, size=512)[:-2] + b"\0\4\0\x0a\0\4",
    ],
    ids=["cut", "longer", "an owner", "an option beyond the end"],
)
def test_a_broken_opt_is_formerr_without_opt_so_that_a_client_steps_down(shim: ShimNode, broken: bytes) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as udp:
        udp.settimeout(10)
        udp.connect(shim.endpoint)
        udp.send(broken)
        reply = dns.message.from_wire(udp.recv(4096))
    assert reply.rcode() == dns.rcode.FORMERR
    assert reply.edns < 0


# Validating resolvers that forward to the shim


def proofs(zones: Zones) -> list[Question]:
    """Signed answers that need a denial: a wildcard, no such name, no such type."""
    names = [("any.wild", "A"), ("other.wild", "A"), ("no", "A"), ("a0", "AAAA"), ("x.y.z", "TXT")]
    return [Question(f"{name}.{SIGNED}", rrtype, dnssec=True, secure=True) for name, rrtype in names]


@pytest.mark.parametrize("kind", ["unbound", "bind"])
def test_a_validating_resolver_finds_nothing_bogus_in_what_came_over_the_bus(
    tmp_path: Path, zones: Zones, unbound: Unbound, kind: str
) -> None:
    require(kind)
    cluster = Cluster()
    cluster.add("a", "b")
    secure = [question for question in zones.questions if question.secure]
    server = upstream(unbound.endpoint, validating=True)
    with ExitStack() as running:
        b = running.enter_context(ShimNode(tmp_path, cluster.config("b"), server))
        a = running.enter_context(ShimNode(tmp_path, cluster.config("a"), server))

        def filled() -> bool:
            ask_all(a.endpoint, secure)
            found = [b.lookup(question) for question in secure]
            missing = [str(question) for question, rows in zip(secure, found, strict=True) if not rows]
            assert not missing, missing
            return all(row["evidence"] == "validated" for rows in found for row in rows)

        eventually(filled, 20, "all signed names are in the cache of b, over the bus")
        before = b.counters()
        expected = ask_all(unbound.endpoint, secure)
        behind = running.enter_context(_validator(kind, tmp_path, zones, b.endpoint))
        answers = ask_all(behind.endpoint, secure)
        assert len(answers) == len(secure)
        for question, answer in answers.items():
            assert answer.rcode() == dns.rcode.NOERROR, question
            assert answer.flags & dns.flags.AD, question
            assert data(answer) == data(expected[question]), question
        after = b.counters()
        assert after["hits"] - before["hits"] >= len(secure) / 2, "they came from the cache"
        asked = after["upstream_queries"] - before["upstream_queries"]
        assert asked <= len(secure) / 2, "and the upstream was asked for keys and for aliases' ends"
        for question in proofs(zones):
            answer = ask(behind.endpoint, question)
            assert answer is not None
            assert answer.rcode() in {dns.rcode.NOERROR, dns.rcode.NXDOMAIN}, question
            assert answer.flags & dns.flags.AD, question
        others = ask_all(behind.endpoint, [question for question in zones.questions if not question.secure])
        assert {int(answer.rcode()) for answer in others.values()} == {0}
        assert not any(answer.flags & dns.flags.AD for answer in others.values())
        for node in (a, b):
            node.assert_quiet()


def _validator(kind: str, directory: Path, zones: Zones, shim: Endpoint) -> Unbound | Bind:
    if kind == "bind":
        return Bind(directory, name="behind", forward=shim, anchors=[zones.anchor])
    forward = [
        f'forward-zone:\n  name: "{name}"\n  forward-addr: {shim.host}@{shim.port}'
        for name in ("test.", "2.0.192.in-addr.arpa.")
    ]
    return Unbound(directory, name="behind", anchors=[zones.anchor], extra=forward)
