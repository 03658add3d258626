"""`shim.workers`: processes that share an address, seen from outside: fed by the bus and by each other, kept, ended."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import dns.edns
import dns.message
import dns.query
import pytest

from tests.farm.authoritative import Nsd
from tests.farm.client import Endpoint, Question, ask
from tests.farm.encrypted import over_tls
from tests.farm.node import CachebusNode, Cluster
from tests.farm.process import eventually
from tests.farm.zones import PLAIN
from tests.servers import free_port, require
from tests.unit.listen_bed import Authority

pytestmark = [
    pytest.mark.interop,
    pytest.mark.xdist_group("shim-workers"),
]  # one scene, of three node processes, for all

WORKERS = 2
WAIT = 30.0
ASKED = 24
"""Questions from as many ports: that the kernel deals all of them to one of two workers is as likely as 1 in 2^23."""
FROM_PEER = Question(f"peer.wild.{PLAIN}", "A")
OWN = Question(f"own.wild.{PLAIN}", "A")
LOCAL = Question("local.test.", "A")
FLUSHED = Question(f"flushed.wild.{PLAIN}", "A")
LATER = Question(f"later.wild.{PLAIN}", "A")


class Scene(NamedTuple):
    node: CachebusNode
    peer: CachebusNode
    shim: Endpoint
    peer_shim: Endpoint
    tls: Endpoint
    ca: Path


def shim(upstream: Endpoint, **more: Any) -> tuple[Endpoint, dict[str, Any]]:
    endpoint = Endpoint("127.0.0.1", free_port())
    upstreams = [{"address": f"{upstream.host}:{upstream.port}", "authoritative": True}]
    return endpoint, {"listen": [f"127.0.0.1:{endpoint.port}"], "upstreams": upstreams, **more}


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, nsd: Nsd) -> Iterator[Scene]:
    """A node with workers and a node without, both in front of an authoritative server."""
    require("nsd")
    folder = tmp_path_factory.mktemp("f")
    cluster = Cluster()
    cluster.add("a", "b")
    authority = Authority(folder)
    tls = Endpoint("127.0.0.1", free_port())
    section = {
        "workers": WORKERS,
        "listen_tls": [f"127.0.0.1:{tls.port}"],
        "tls": {"cert": str(authority.cert), "key": str(authority.key)},
        "local_data": {"records": [f"{LOCAL.name} A 192.0.2.53"]},
    }
    here, section = shim(nsd.endpoint, **section)
    there, other = shim(nsd.endpoint)
    with ExitStack() as running:
        peer = running.enter_context(CachebusNode(folder, cluster.config("b", shim=other)))
        node = running.enter_context(CachebusNode(folder, cluster.config("a", shim=section)))
        yield Scene(node, peer, here, there, tls, authority.ca)


def answers(endpoint: Endpoint, question: Question) -> list[bool]:
    """Whether there was an answer, asked from many ports with RD=0: nothing is forwarded."""
    found = []
    for _ in range(ASKED):
        reply = ask(endpoint, question, recurse=False, timeout=2.0)
        found.append(reply is not None and bool(reply.answer))
    return found


def workers_of(pid: int) -> set[int]:
    """Child processes that are workers."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            command = (path.parent / "cmdline").read_bytes()
        except (OSError, IndexError):
            continue
        if parent == pid and b"spawn_main" in command:
            found.add(int(path.parent.name))
    return found


def counters(scene: Scene) -> dict[str, int]:
    found: dict[str, int] = scene.node.status()["shim"]
    return found


def test_all_workers_are_up_and_answer(scene: Scene) -> None:
    assert counters(scene)["workers"] == WORKERS
    assert len(workers_of(scene.node.pid)) == WORKERS
    assert answers(scene.shim, Question("nothing.test.", "A")) == [False] * ASKED
    with socket.socket(type=socket.SOCK_DGRAM) as client:
        client.settimeout(WAIT)
        client.connect(scene.shim)
        client.send(dns.message.make_query("x.test.", "AXFR").to_wire())
        assert client.recv(512)[3] & 0xF == 5


def test_what_is_no_cached_data_is_the_same_at_every_worker(scene: Scene) -> None:
    """Local data, encrypted listeners, and the cookies that clients are given."""
    assert all(answers(scene.shim, LOCAL))
    for _ in range(ASKED // 4):
        reply = over_tls(scene.tls, dns.message.make_query(LOCAL.name, "A"), scene.ca)
        assert [str(rrset[0]) for rrset in reply.answer] == ["192.0.2.53"]
    cookie = b"01234567"
    for _ in range(ASKED):
        message = dns.message.make_query(LOCAL.name, "A", options=[dns.edns.GenericOption(10, cookie)])
        reply = dns.query.udp(message, scene.shim.host, port=scene.shim.port, timeout=WAIT)
        (option,) = [option for option in reply.options if option.otype == 10]
        cookie = option.to_wire()
    eventually(lambda: counters(scene)["cookie_valid"] == ASKED - 1, WAIT, "the workers have reported")
    assert counters(scene)["cookie_invalid"] == 0
    assert counters(scene)["local_names"] == 1
    assert counters(scene)["certificate_expires"] == 32_503_680_000, "the year 3000, of one certificate"


def test_what_a_peer_learned_is_in_every_worker(scene: Scene) -> None:
    assert ask(scene.peer_shim, FROM_PEER)
    eventually(lambda: all(answers(scene.shim, FROM_PEER)), WAIT, "all workers have what the peer learned")
    (told,) = scene.node.lookup(FROM_PEER)
    assert told["transport"] == "lan"


def test_what_one_worker_learned_goes_to_the_others_and_to_the_peer_once(scene: Scene) -> None:
    reply = ask(scene.shim, OWN)
    assert reply is not None
    assert reply.answer
    eventually(lambda: all(answers(scene.shim, OWN)), WAIT, "all workers have what one learned")
    eventually(lambda: scene.peer.lookup(OWN), WAIT, "the peer has it too")
    eventually(lambda: counters(scene)["learned"] == 1, WAIT, "the workers have reported")
    assert counters(scene)["upstream_queries"] == 1
    assert scene.node.status()["share"]["published"] == 1


def test_what_is_flushed_is_gone_from_every_worker(scene: Scene) -> None:
    assert ask(scene.shim, FLUSHED)
    eventually(lambda: all(answers(scene.shim, FLUSHED)), WAIT, "all workers have what one learned")
    scene.node.cli("flush", FLUSHED.name, "--type", "A")
    eventually(lambda: not any(answers(scene.shim, FLUSHED)), WAIT, "no worker has it")


def test_a_worker_that_dies_is_started_again_with_all_that_is_known(scene: Scene) -> None:
    assert ask(scene.peer_shim, FROM_PEER)
    assert ask(scene.shim, OWN)
    for question in (FROM_PEER, OWN):
        eventually(lambda question=question: scene.node.lookup(question), WAIT, f"the node knows {question}")
    before = counters(scene)
    killed = min(workers_of(scene.node.pid))
    os.kill(killed, signal.SIGKILL)
    assert ask(scene.peer_shim, LATER)
    eventually(lambda: counters(scene)["worker_restarts"] == 1, WAIT, "the death is noticed")
    eventually(lambda: counters(scene)["workers"] == WORKERS, WAIT, "the next one is up")
    assert killed not in workers_of(scene.node.pid)
    for question in (FROM_PEER, OWN, LATER):
        eventually(lambda question=question: all(answers(scene.shim, question)), WAIT, f"all workers know {question}")
    after = counters(scene)
    assert after["learned"] >= before["learned"]
    assert after["queries"] >= before["queries"]
    assert "Traceback" not in scene.node.log.read_text()


def test_a_reload_brings_new_workers_with_the_same_data(scene: Scene) -> None:
    assert ask(scene.peer_shim, FROM_PEER)
    eventually(lambda: scene.node.lookup(FROM_PEER), WAIT, "the node knows it")
    before = workers_of(scene.node.pid)
    scene.node.signal(signal.SIGHUP)
    eventually(lambda: len(workers_of(scene.node.pid) - before) == WORKERS, WAIT, "new workers")
    eventually(lambda: all(answers(scene.shim, FROM_PEER)), WAIT, "they have what was known")
    assert not before & workers_of(scene.node.pid)


def test_workers_end_with_their_node_however_it_ends(scene: Scene) -> None:
    for end in (scene.node.stop, scene.node.kill):
        workers = workers_of(scene.node.pid)
        assert len(workers) == WORKERS
        end()
        eventually(lambda workers=workers: not any(Path(f"/proc/{pid}").exists() for pid in workers), WAIT, "the end")
        if end == scene.node.stop:
            assert scene.node.returncode == 0, scene.node.log_tail()
            scene.node.start()
    assert "Traceback" not in scene.node.log.read_text()


def test_an_address_in_use_is_named_at_the_start(tmp_path_factory: pytest.TempPathFactory, nsd: Nsd) -> None:
    endpoint, section = shim(nsd.endpoint, workers=WORKERS)
    cluster = Cluster()
    cluster.add("c")
    with socket.socket(type=socket.SOCK_DGRAM) as taken:
        taken.bind(endpoint)
        node = CachebusNode(tmp_path_factory.mktemp("f"), cluster.config("c", shim=section))
        with pytest.raises(AssertionError, match=f"cannot listen on 127.0.0.1 port {endpoint.port} .UDP."):
            node.__enter__()
    assert "Traceback" not in node.log.read_text()
