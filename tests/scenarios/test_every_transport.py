"""Two nodes over every transport, as processes: what one learns the other has, and no kill needs an operator."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dns.flags
import dns.message
import pytest

from tests.certificates import Authority
from tests.farm.client import Question
from tests.farm.mosquitto import Mosquitto
from tests.farm.node import KEY, CachebusNode, Cluster, Config, stream_source
from tests.farm.process import eventually
from tests.servers import free_port, require

pytestmark = pytest.mark.interop

RESUMES = 5.0
"""Seconds within which a stream goes on after a process that was killed is back."""
ANSWERS = 300
NUMBERED = {"batch", "cdns"}
"""Codecs whose messages carry numbers, so that what is missing is counted."""


@dataclass
class Link:
    """The transport sections of two nodes, a and b."""

    codec: str
    a: Config
    b: Config


def _udp(farm: Path, running: ExitStack) -> Link:
    ports = free_port(), free_port()
    a = {"type": "udp", "listen": f"127.0.0.1:{ports[0]}", "peers": [f"127.0.0.1:{ports[1]}"], "key": KEY}
    b = {"type": "udp", "listen": f"127.0.0.1:{ports[1]}", "peers": [f"127.0.0.1:{ports[0]}"], "key": KEY}
    return Link("dns", a, b)


def _multicast(farm: Path, running: ExitStack) -> Link:
    section = {"type": "multicast", "group": f"239.255.53.90:{free_port()}", "interface": "127.0.0.1", "loop": True}
    return Link("dns", {**section, "key": KEY}, {**section, "key": KEY})


def _multicast_batch(farm: Path, running: ExitStack) -> Link:
    link = _multicast(farm, running)
    return Link("batch", {**link.a, "codec": "batch"}, {**link.b, "codec": "batch"})


def _zeromq(farm: Path, running: ExitStack) -> Link:
    ends = [f"tcp://127.0.0.1:{free_port()}" for _ in range(2)]
    a = {"type": "zeromq", "bind": [ends[0]], "connect": [ends[1]], "key": KEY}
    return Link("batch", a, {**a, "bind": [ends[1]], "connect": [ends[0]]})


def _mqtt(farm: Path, running: ExitStack) -> Link:
    require("mosquitto")
    broker = running.enter_context(Mosquitto(farm))
    section = {"type": "mqtt", "url": broker.url(), "key": KEY, "zstd": True}
    return Link("batch", section, section)


def _tcp(farm: Path, running: ExitStack, *, more: Config | None = None) -> Link:
    ports = free_port(), free_port()
    section = {"type": "tcp", **(more or {"insecure": True})}
    a = {**section, "listen": f"127.0.0.1:{ports[0]}", "peers": [f"127.0.0.1:{ports[1]}"]}
    b = {**section, "listen": f"127.0.0.1:{ports[1]}", "peers": [f"127.0.0.1:{ports[0]}"]}
    return Link("cdns", a, b)


def _tcp_zstd(farm: Path, running: ExitStack) -> Link:
    return _tcp(farm, running, more={"insecure": True, "zstd": True})


def _tls(farm: Path, running: ExitStack, *, kind: str = "tcp") -> Link:
    authority = Authority(farm)
    link = _tcp(farm, running, more={"type": kind, "zstd": True})
    for name, section, peer in (("a", link.a, "b"), ("b", link.b, "a")):
        cert, key = authority.write(f"{name}.example.net")
        files = {"cert": str(cert), "key": str(key), "ca": str(authority.path)}
        section["tls"] = {**files, "peers": [f"{peer}.example.net"]}
    return link


def _quic(farm: Path, running: ExitStack) -> Link:
    return _tls(farm, running, kind="quic")


LINKS: dict[str, Callable[[Path, ExitStack], Link]] = {
    "udp": _udp,
    "multicast": _multicast,
    "multicast-batch": _multicast_batch,
    "zeromq": _zeromq,
    "mqtt": _mqtt,
    "tcp": _tcp,
    "tcp-zstd": _tcp_zstd,
    "tls": _tls,
    "quic": _quic,
}


class Bed:
    """Two nodes and a way to let the first one learn."""

    def __init__(self, farm: Path, running: ExitStack, link: Link, a: Config | None = None) -> None:
        """`a`: more of the configuration of node a."""
        cluster = Cluster()
        cluster.add("a")
        self.codec = link.codec
        self._tap = farm / "tap"
        common = {**cluster.config("a"), "transports": {"link": link.a}}
        sources = {"sources": {"resolver": stream_source(self._tap)}}
        self.a = running.enter_context(CachebusNode(farm, {**common, **sources, **(a or {})}))
        self.b = running.enter_context(CachebusNode(farm, {**common, "node": "b", "transports": {"link": link.b}}))
        self._numbers = iter(range(1_000_000))

    def learn(self, count: int) -> list[str]:
        """Let node a learn so many names; give them."""
        names = [f"n{next(self._numbers)}.every.test." for _ in range(count)]
        data = b"".join(map(_message, names))
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self._tap))
            connection.sendall(data)
        return names

    def b_has(self, names: Sequence[str]) -> bool:
        return all(self.b.lookup(Question(name, "A")) for name in names)

    def wait_until_joined(self, within: float) -> None:
        """Let a learn new names until b has one: from then on the link carries all."""

        def joined() -> bool:
            names = self.learn(1)
            end = time.monotonic() + 0.3
            while time.monotonic() < end:
                if self.b_has(names):
                    return True
            return False

        eventually(joined, within, "b has what a learns")

    def link(self, node: CachebusNode) -> dict[str, Any]:
        counters: dict[str, Any] = node.status()["transports"]["link"]
        return counters


def _message(name: str) -> bytes:
    query = dns.message.make_query(name, "A")
    reply = dns.message.make_response(query)
    reply.flags |= dns.flags.RA
    reply.answer.append(dns.rrset.from_text(name, 600, "IN", "A", "192.0.2.7"))
    wire = reply.to_wire()
    return len(wire).to_bytes(4, "big") + wire


@pytest.fixture(params=LINKS)
def bed(request: pytest.FixtureRequest, farm: Path, running: ExitStack) -> Bed:
    return Bed(farm, running, LINKS[request.param](farm, running))


def test_what_a_learns_b_has_once_and_a_kill_needs_no_operator(bed: Bed) -> None:
    bed.wait_until_joined(RESUMES)
    before = bed.link(bed.b)
    names = bed.learn(ANSWERS)
    eventually(lambda: bed.b_has(names), RESUMES, "b has all")
    after = bed.link(bed.b)
    assert after["accepted"] - before["accepted"] == ANSWERS
    assert after["refused"] == before["refused"], "nothing came twice, nothing was wrong"
    if bed.codec in NUMBERED:
        assert (after["gaps"], after["duplicates"], after["policy_differs"]) == (0, 0, 0)
        known = bed.b.status()["peers"]["link"]["a"]
        assert known["gone"] is False

    bed.b.kill()
    bed.learn(1)
    bed.b.start()
    bed.wait_until_joined(RESUMES)

    bed.a.kill()
    bed.a.start()
    bed.wait_until_joined(RESUMES)
    if bed.codec in NUMBERED:
        assert bed.link(bed.b)["restarts"] == 1
    for node in (bed.a, bed.b):
        assert node.stop() == 0
        assert "Traceback" not in node.log.read_text()
