"""The shim in front of a real Unbound that is asked over TLS and HTTPS, and local data in front of it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import dns.flags
import dns.rcode
import pytest

from tests.certificates import Authority
from tests.farm.authoritative import Nsd
from tests.farm.client import Question, ask
from tests.farm.process import eventually
from tests.farm.unbound import Unbound
from tests.farm.zones import Zones, make_zones
from tests.interop.test_shim import ShimNode, alone
from tests.servers import free_port, require

pytestmark = pytest.mark.interop

NAME = "dns.example.net"


@pytest.fixture(scope="module")
def zones(tmp_path_factory: pytest.TempPathFactory) -> Zones:
    return make_zones(tmp_path_factory.mktemp("zones"))


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


class Encrypted(Unbound):
    """An Unbound that answers over TLS and HTTPS, too."""

    def __init__(self, directory: Path, authority: Authority, zones: Zones, nsd: Nsd) -> None:
        self.tls_port, self.https_port = free_port(), free_port()
        cert, key = authority.write(NAME)
        lines = [
            f"interface: 127.0.0.1@{self.tls_port}\n  interface: 127.0.0.1@{self.https_port}",
            f"tls-port: {self.tls_port}\n  https-port: {self.https_port}",
            f'tls-service-pem: "{cert}"\n  tls-service-key: "{key}"',
        ]
        stubs = dict.fromkeys(zones.names, nsd.endpoint)
        super().__init__(directory, stubs=stubs, anchors=[zones.anchor], server=lines)


@pytest.fixture(scope="module")
def unbound(tmp_path_factory: pytest.TempPathFactory, zones: Zones, authority: Authority) -> Iterator[Encrypted]:
    require("unbound")
    require("nsd")
    with (
        Nsd(tmp_path_factory.mktemp("f"), zones.files) as nsd,
        Encrypted(tmp_path_factory.mktemp("f"), authority, zones, nsd) as server,
    ):
        yield server


def https(unbound: Encrypted, authority: Authority) -> dict[str, object]:
    url = f"https://{NAME}:{unbound.https_port}/dns-query"
    return {"url": url, "address": f"127.0.0.1:{unbound.https_port}", "ca": str(authority.path)}


def tls(unbound: Encrypted, authority: Authority) -> dict[str, object]:
    return {"address": f"127.0.0.1:{unbound.tls_port}", "tls_name": NAME, "ca": str(authority.path)}


@pytest.mark.parametrize("way", [https, tls])
def test_every_answer_comes_over_an_encrypted_stream(
    way: object, tmp_path: Path, zones: Zones, unbound: Encrypted, authority: Authority
) -> None:
    assert callable(way)
    with ShimNode(tmp_path, alone(), {**way(unbound, authority), "validating": True}) as shim:
        for question in zones.questions:
            reply = ask(shim.endpoint, question, timeout=5)
            assert reply is not None
            assert reply.rcode() == dns.rcode.NOERROR, question
            assert reply.answer, question
        counted = shim.counters()
        assert counted["upstream_queries_stream"] == counted["upstream_queries"] > 100
        assert counted["learned"], "its word is evidence: nobody could set AD on the way"
        shim.assert_quiet()


def test_a_certificate_for_another_name_is_no_answer(tmp_path: Path, unbound: Encrypted, authority: Authority) -> None:
    wrong = {**https(unbound, authority), "url": f"https://other.example.net:{unbound.https_port}/dns-query"}
    with ShimNode(tmp_path, alone(), wrong) as shim:
        reply = ask(shim.endpoint, Question("www.plain.test.", "A"), timeout=6)
        assert reply is not None
        assert reply.rcode() == dns.rcode.SERVFAIL


def test_streams_come_back_after_the_upstream_was_gone(
    tmp_path: Path, zones: Zones, unbound: Encrypted, authority: Authority
) -> None:
    names = [question for question in zones.questions if question.type == "A"]
    with ShimNode(tmp_path, alone(), https(unbound, authority)) as shim:
        assert ask(shim.endpoint, names[0], timeout=5) is not None
        unbound.kill()
        unbound.start()

        def is_answered() -> bool:
            reply = ask(shim.endpoint, names[1], timeout=5)
            return reply is not None and reply.rcode() == dns.rcode.NOERROR

        assert eventually(is_answered, 10, "it is asked again")


def test_what_is_local_is_never_asked_and_a_reload_reads_it_again(
    tmp_path: Path, zones: Zones, unbound: Encrypted
) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("ads.example\n")
    local = {"local_data": {"records": ["nas.home. A 192.0.2.5"]}, "block_lists": {"mine": {"file": str(blocked)}}}
    upstream = f"{unbound.endpoint.host}:{unbound.endpoint.port}"
    with ShimNode(tmp_path, alone(), upstream, **local) as shim:

        def rcode(name: str) -> int | None:
            reply = ask(shim.endpoint, Question(name, "A"), timeout=5)
            return None if reply is None else int(reply.rcode())

        assert rcode("nas.home.") == dns.rcode.NOERROR
        assert rcode("x.ads.example.") == dns.rcode.NXDOMAIN
        plain = next(question for question in zones.questions if question.type == "A")
        assert rcode(plain.name) == dns.rcode.NOERROR
        blocked.write_text(plain.name)
        shim.signal(signal.SIGHUP)
        eventually(lambda: rcode(plain.name) == dns.rcode.NXDOMAIN, 5, "the new list counts, whatever is cached")
        assert shim.counters()["block_rules"] == 1
        blocked.unlink()
        shim.signal(signal.SIGHUP)
        eventually(lambda: "going on as before" in shim.log.read_text(), 5, "a list that is gone is told of")
        assert rcode(plain.name) == dns.rcode.NXDOMAIN
