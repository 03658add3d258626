"""Encrypted DNS with real clients (kdig, dig, curl, openssl, dnspython) in front of a real Unbound (D-29, D-30)."""

from __future__ import annotations

import errno
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import dns.flags
import dns.message
import dns.query
import pytest

from tests.farm.authoritative import Nsd
from tests.farm.client import Endpoint, Question, ask, data, query, signatures
from tests.farm.encrypted import HttpsClient, over_quic, over_tls
from tests.farm.process import eventually
from tests.farm.unbound import Unbound
from tests.farm.zones import PLAIN, SIGNED, Zones, make_zones
from tests.interop.test_shim import ShimNode, alone, run, upstream
from tests.servers import free_port, require
from tests.unit.listen_bed import NAME, Authority

pytestmark = pytest.mark.interop

DISCOVERY = "_dns.resolver.arpa"


@pytest.fixture(scope="module")
def zones(tmp_path_factory: pytest.TempPathFactory) -> Zones:
    return make_zones(tmp_path_factory.mktemp("zones"))


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


class EncryptedNode(ShimNode):
    """A node with a shim that listens on every channel."""

    def __init__(self, directory: Path, authority: Authority, *upstreams: Any, **shim: Any) -> None:
        self.tls, self.https, self.quic = (Endpoint("127.0.0.1", free_port()) for _ in range(3))
        listeners = {f"listen_{name}": [f"127.0.0.1:{getattr(self, name).port}"] for name in ("tls", "https", "quic")}
        files = {"tls": {"cert": str(authority.cert), "key": str(authority.key)}}
        super().__init__(directory, alone(), *upstreams, **{**listeners, **files, **shim})
        self.ca = str(authority.ca)

    def kdig(self, channel: str, *options: str) -> list[str]:
        """Arguments for kdig, which verifies the certificate; it wants `+quic` to be the last option."""
        port = {"+tls": self.tls, "+https": self.https, "+https-get": self.https, "+quic": self.quic}[channel].port
        trust = [f"+tls-ca={self.ca}", f"+tls-hostname={NAME}"]
        return ["kdig", "@127.0.0.1", "-p", str(port), "+retry=0", *trust, *options, channel]

    def descriptors(self) -> int:
        assert self.pid
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    def resident(self) -> int:
        assert self.pid
        pages = Path(f"/proc/{self.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture(scope="module")
def unbound(tmp_path_factory: pytest.TempPathFactory, zones: Zones) -> Iterator[Unbound]:
    require("nsd", "unbound")
    with ExitStack() as stack:
        nsd = stack.enter_context(Nsd(tmp_path_factory.mktemp("f"), zones.files))
        stubs = dict.fromkeys(zones.names, nsd.endpoint)
        yield stack.enter_context(Unbound(tmp_path_factory.mktemp("f"), stubs=stubs, anchors=[zones.anchor]))


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, authority: Authority, unbound: Unbound) -> Iterator[EncryptedNode]:
    place = tmp_path_factory.mktemp("s")
    with EncryptedNode(place, authority, upstream(unbound.endpoint, validating=True)) as node:
        yield node
        node.assert_quiet()


def test_every_channel_says_the_same(node: EncryptedNode, authority: Authority, zones: Zones) -> None:
    secure = [question for question in zones.questions if question.secure][:8]
    questions = [*secure, *zones.questions[:8], *zones.mixed, *zones.wildcards]
    questions += [question._replace(dnssec=not question.dnssec) for question in questions]
    questions += [Question(f"no.{SIGNED}", "A", dnssec=True), Question(f"no.{PLAIN}", "A"), Question(PLAIN, "MX")]
    with HttpsClient(node.https, authority.ca) as https:
        channels: dict[str, Callable[[dns.message.Message], dns.message.Message]] = {
            "udp": lambda message: dns.query.udp(message, *node.endpoint[:1], port=node.endpoint.port, timeout=5),
            "tcp": lambda message: dns.query.tcp(message, node.endpoint.host, port=node.endpoint.port, timeout=5),
            "tls": lambda message: over_tls(node.tls, message, authority.ca),
            "https get": lambda message: https.ask(message, get=True),
            "https post": lambda message: https.ask(message, get=False),
        }
        quic = over_quic(node.quic, [query(question) for question in questions], authority.ca)
        for question, over in zip(questions, quic, strict=True):
            channels["quic"] = lambda message, over=over: over
            expected = ask(node.endpoint, question)  # over TCP where UDP's is cut
            assert expected is not None
            for channel, exchange in channels.items():
                got = exchange(query(question))
                if channel == "udp" and got.flags & dns.flags.TC:
                    continue
                assert (got.rcode(), got.flags) == (expected.rcode(), expected.flags), (channel, question)
                assert data(got) == data(expected), (channel, question)
                assert signatures(got) == signatures(expected), (channel, question)
        assert any(answer.flags & dns.flags.AD for answer in quic), "and AD is among it"


@pytest.mark.parametrize("channel", ["+tls", "+https", "+https-get", "+quic"])
def test_kdig(node: EncryptedNode, channel: str) -> None:
    require("kdig")
    for name, flag in ((f"a1.{SIGNED}", "ad"), (f"a0.{PLAIN}", "ra")):
        said = run(*node.kdig(channel, "+adflag", "+dnssec"), name, "A")
        assert "status: NOERROR" in said
        assert "192.0.2." in said
        assert flag in said.split("Flags: ")[1].split(";")[0].split()
        assert "TLS1.3" in said


def test_kdig_refuses_another_name(node: EncryptedNode) -> None:
    require("kdig")
    for channel, endpoint in (("+tls", node.tls), ("+https", node.https)):
        wrong = [f"+tls-ca={node.ca}", "+tls-hostname=other.example.net", channel]
        command = ["kdig", "@127.0.0.1", "-p", str(endpoint.port), "+retry=0", *wrong, f"a0.{PLAIN}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
        assert "192.0.2." not in done.stdout
        assert done.returncode != 0 or "certificate" in done.stdout + done.stderr


def test_dig_and_curl(node: EncryptedNode) -> None:
    require("dig", "curl")
    for channel, endpoint in (("+tls", node.tls), ("+https", node.https), ("+https-get", node.https)):
        trust = [f"+tls-ca={node.ca}", f"+tls-hostname={NAME}"]
        said = run("dig", "@127.0.0.1", "-p", str(endpoint.port), channel, *trust, f"a1.{SIGNED}")
        assert "status: NOERROR" in said
        assert "192.0.2." in said
    where = f"https://127.0.0.1:{node.https.port}"
    # curl's own DoH client, which asks for A and AAAA of the host that it is to connect to.
    port = str(node.endpoint.port)
    done = subprocess.run(
        ["curl", "-sv", "--cacert", node.ca, "--doh-url", f"{where}/dns-query", "--connect-timeout", "2",
         f"http://a0.{PLAIN}:{port}/"],
        capture_output=True, text=True, check=False, timeout=20,
    )  # fmt: skip
    assert "Trying 192.0.2." in done.stderr, done.stderr
    head = run("curl", "-s", "-D", "-", "-o", "/dev/null", "--cacert", node.ca, f"{where}/dns-query")
    assert head.startswith("HTTP/2 400")
    assert run("curl", "-s", "-D", "-", "-o", "/dev/null", "--cacert", node.ca, where).startswith("HTTP/2 404")


def test_a_browser_asks_much_at_once_on_one_connection(node: EncryptedNode, authority: Authority, zones: Zones) -> None:
    messages = []
    for question in (*zones.questions, *zones.mixed)[:80]:
        message = query(question._replace(dnssec=False))
        message.id = 0  # so that HTTP caches can tell equal ones (RFC 8484 section 4.1)
        messages.append(message.to_wire())
    with HttpsClient(node.https, authority.ca) as client:
        for get in (True, False, True):
            for wire, reply in zip(messages, client.fetch(messages, get=get), strict=True):
                answer = dns.message.from_wire(reply.body)
                assert reply.status == 200
                assert dns.message.from_wire(wire).is_response(answer)
                if answer.answer:
                    assert reply.headers["cache-control"] == f"max-age={min(one.ttl for one in answer.answer)}"


def test_old_tls_is_refused_and_the_address_is_verified(node: EncryptedNode) -> None:
    require("openssl")

    def connect(endpoint: Endpoint, *options: str) -> subprocess.CompletedProcess[str]:
        place = ["-connect", f"127.0.0.1:{endpoint.port}", "-CAfile", node.ca]
        command = ["openssl", "s_client", *place, *options]
        return subprocess.run(
            command, input="", capture_output=True, text=True, errors="replace", check=False, timeout=20
        )

    for endpoint, alpn in ((node.tls, "dot"), (node.https, "h2")):
        for old in ("-tls1", "-tls1_1"):
            refused = connect(endpoint, old, "-cipher", "DEFAULT@SECLEVEL=0")
            assert refused.returncode != 0
            assert "alert protocol version" in refused.stderr, refused.stderr
        for new in ("-tls1_2", "-tls1_3"):
            taken = connect(
                endpoint, new, "-alpn", alpn, "-verify_ip", "127.0.0.1", "-verify_return_error", "-verify", "3"
            )
            assert taken.returncode == 0, taken.stderr
            assert f"ALPN protocol: {alpn}" in taken.stdout
            assert "Verify return code: 0 (ok)" in taken.stdout
        elsewhere = connect(endpoint, "-verify_ip", "127.0.0.2", "-verify_return_error", "-verify", "3")
        assert elsewhere.returncode != 0


# Discovery


def test_discovery_is_the_truth_and_stays_here(node: EncryptedNode, unbound: Unbound) -> None:
    require("dig")
    before = node.counters()["upstream_queries"]
    told = run("dig", "@127.0.0.1", "-p", str(node.endpoint.port), "+short", DISCOVERY, "TYPE64")
    port = str(node.endpoint.port)
    said = run("dig", "@127.0.0.1", "-p", port, "+noall", "+answer", DISCOVERY, "SVCB")
    for priority, alpn, endpoint in ((1, "dot", node.tls), (2, "h2", node.https), (3, "doq", node.quic)):
        line = f'{priority} {NAME}. alpn="{alpn}" port={endpoint.port} ipv4hint=127.0.0.1'
        assert line in said
    assert '"/dns-query{?dns}"' in said
    assert len(told.splitlines()) == 3
    for name in ("resolver.arpa", DISCOVERY, f"x.{DISCOVERY}"):
        for rrtype in ("A", "AAAA"):
            said = run("dig", "@127.0.0.1", "-p", port, name, rrtype)
            assert "status: NOERROR" in said
            assert "ANSWER: 0, AUTHORITY: 1" in said
    assert node.counters()["upstream_queries"] == before


def test_nothing_is_told_of_what_does_not_listen(tmp_path: Path, authority: Authority) -> None:
    require("dig")
    with EncryptedNode(tmp_path, authority, listen_https=[], listen_quic=[]) as node:
        said = run("dig", "@127.0.0.1", "-p", str(node.endpoint.port), "+noall", "+answer", DISCOVERY, "SVCB")
        assert [line.split()[5:7] for line in said.splitlines()] == [[f"{NAME}.", 'alpn="dot"']]


def test_another_implementations_discovery_finds_and_verifies_the_listeners(
    node: EncryptedNode, authority: Authority, tmp_path: Path
) -> None:
    """dnspython's `try_ddr`: it takes only what has the plain resolver's address in its certificate."""
    script = tmp_path / "discover.py"
    script.write_text(
        "import sys, dns.resolver\n"
        "resolver = dns.resolver.Resolver(configure=False)\n"
        "resolver.nameservers, resolver.port = ['127.0.0.1'], int(sys.argv[1])\n"
        "resolver.try_ddr(lifetime=10)\n"
        "print(sorted(type(one).__name__ for one in resolver.nameservers))\n"
        "print(resolver.resolve(sys.argv[2], 'A')[0])\n"
    )
    done = subprocess.run(
        [sys.executable, script, str(node.endpoint.port), f"a1.{SIGNED}"],
        env={**os.environ, "SSL_CERT_FILE": str(authority.ca)},
        capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found, address = done.stdout.splitlines()
    assert "DoTNameserver" in found, found
    assert address.startswith("192.0.2.")


# Certificates


def shake(endpoint: Endpoint, authority: Authority) -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=authority.ca)
    connection = socket.create_connection(endpoint, timeout=10)
    return context.wrap_socket(connection, server_hostname=NAME)


def ask_on(connection: ssl.SSLSocket, question: Question) -> dns.message.Message:
    message = query(question)
    dns.query.send_tcp(connection, message)
    reply, _ = dns.query.receive_tcp(connection)
    assert message.is_response(reply)
    return reply


def test_a_certificate_is_exchanged_under_a_client(tmp_path: Path, unbound: Unbound) -> None:
    certificates = tmp_path / "certificates"
    certificates.mkdir()
    own = Authority(certificates)
    question = Question(f"a0.{PLAIN}", "A")
    with EncryptedNode(tmp_path / "n", own, upstream(unbound.endpoint)) as node, closing(shake(node.tls, own)) as stays:
        assert ask_on(stays, question).answer
        old = stays.getpeercert(binary_form=True)
        new = own.issue()
        with closing(shake(node.tls, own)) as comes:
            assert comes.getpeercert(binary_form=True) == new != old
            assert ask_on(comes, question).answer
        assert ask_on(stays, question).answer
        assert over_quic(node.quic, [query(question)], own.ca)[0].answer
        own.cert.write_bytes(b"not a certificate")
        with closing(shake(node.tls, own)) as late:
            assert late.getpeercert(binary_form=True) == new, "what cannot be used leaves the old in use"
        node.signal(signal.SIGHUP)
        eventually(lambda: "going on as before" in node.log.read_text(), 10, "a wrong certificate changes nothing")
        assert ask_on(stays, question).answer
        node.assert_quiet()


# Bounds


def test_five_thousand_slow_clients_harm_nobody(node: EncryptedNode, authority: Authority) -> None:
    """Half of them in the middle of a message, the others of a handshake."""
    question = Question(f"a0.{PLAIN}", "A")
    assert ask(node.endpoint, question)
    files, memory, evicted = node.descriptors(), node.resident(), node.counters()["tcp_evicted"]
    slow: list[socket.socket] = []
    calm, waits = [_wait(node, question) for _ in range(50)], []
    with ExitStack() as stack:
        for number in range(5000):
            client = stack.enter_context(closing(socket.socket()))
            client.setblocking(False)
            client.bind((f"127.0.{1 + number % 100}.{1 + number // 100}", 0))
            client.connect_ex(node.tls if number % 2 else node.endpoint)
            slow.append(client)
            if number % 50 == 49:
                for one in slow[-50:]:
                    eventually(lambda one=one: _has_sent(one, b"\x16"), 10, "it is connected, or turned away already")
                waits.append(_wait(node, question))
        assert node.counters()["tcp_open"] <= 512
        assert node.counters()["tcp_evicted"] - evicted > 4000
        assert node.descriptors() - files <= 520
        assert node.resident() - memory < 100 << 20
        assert sorted(waits)[80] < 0.05 + sorted(calm)[40], "a cached name, while they come"
        assert over_tls(node.tls, query(question), authority.ca).answer
        assert dns.query.tcp(query(question), node.endpoint.host, port=node.endpoint.port, timeout=5).answer
    eventually(lambda: node.counters()["tcp_open"] == 0, 15, "all are gone")
    eventually(lambda: node.descriptors() <= files, 15, "and their descriptors")


def _wait(node: EncryptedNode, question: Question) -> float:
    begun = time.monotonic()
    assert ask(node.endpoint, question)
    return time.monotonic() - begun


def _has_sent(client: socket.socket, data: bytes) -> bool:
    try:
        client.send(data)
    except BlockingIOError:
        return False
    except OSError as error:
        return error.errno != errno.ENOTCONN
    return True


def test_clients_come_and_go_and_leave_nothing(node: EncryptedNode, authority: Authority) -> None:
    question = Question(f"a0.{PLAIN}", "A")

    def one_of_each(number: int) -> None:
        over_tls(node.tls, query(question), authority.ca)
        with HttpsClient(node.https, authority.ca) as client:
            client.ask(query(question), get=bool(number % 2))
        over_quic(node.quic, [query(question)] * 3, authority.ca)
        with socket.create_connection(node.https) as noise:
            noise.sendall(os.urandom(500))

    one_of_each(0)
    eventually(lambda: node.counters()["tcp_open"] == 0, 40, "nobody is connected")
    files = node.descriptors()
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(one_of_each, range(40)))
    eventually(lambda: node.counters()["tcp_open"] == 0, 40, "all are gone")
    eventually(lambda: node.descriptors() <= files, 15, "and their descriptors")
    assert node.counters()["in_flight"] == 0
    node.assert_quiet()
