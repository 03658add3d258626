"""A node that joins has a peer's cache and then the live stream; a copy goes to a file and back."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.certificates import Authority
from tests.farm.client import Question
from tests.farm.node import KEY, CachebusNode, Config, cachebus
from tests.farm.process import eventually
from tests.scenarios.test_every_transport import RESUMES, Bed, Link
from tests.servers import free_port

pytestmark = pytest.mark.interop

NAMES = 300
LEARN_EVERY = 0.01
"""Seconds."""


def udp() -> list[Config]:
    everybody = [f"127.0.0.1:{free_port()}" for _ in range(3)]
    return [{"type": "udp", "key": KEY, "listen": own, "peers": everybody} for own in everybody]


def zeromq() -> list[Config]:
    everybody = [f"tcp://127.0.0.1:{free_port()}" for _ in range(3)]
    return [
        {"type": "zeromq", "key": KEY, "bind": [own], "connect": [one for one in everybody if one != own]}
        for own in everybody
    ]


def bed(farm: Path, running: ExitStack, links: list[Config]) -> tuple[Bed, Config]:
    """Node a serves copies over TLS; the second thing is what a third node, c, asks with."""
    authority = Authority(farm)

    def tls(name: str, peer: str) -> Config:
        cert, key = authority.write(f"{name}.example.net")
        return {"cert": str(cert), "key": str(key), "ca": str(authority.path), "peers": [f"{peer}.example.net"]}

    where = f"127.0.0.1:{free_port()}"
    serves = {"listen": where, "tls": tls("a", "c"), "zstd": True}
    made = Bed(farm, running, Link("", links[0], links[1]), a={"snapshot": serves})
    asks = {"peers": [where], "tls": tls("c", "a")}
    return made, {**made.b.config, "node": "c", "transports": {"link": links[2]}, "snapshot": asks}


@pytest.mark.parametrize("links", [udp, zeromq])
def test_a_node_that_joins_misses_nothing_that_is_learned_meanwhile(
    farm: Path, running: ExitStack, links: Callable[[], list[Config]]
) -> None:
    """Names are learned one by one before, while and after it starts: it has them all, by the copy or by the stream."""
    first, joining = bed(farm, running, links())
    first.wait_until_joined(RESUMES)
    names = first.learn(NAMES)
    eventually(lambda: first.b_has(names), RESUMES, "b has all")
    over = threading.Event()

    def learn() -> None:
        while not over.wait(LEARN_EVERY):
            names.extend(first.learn(1))

    with ThreadPoolExecutor() as pool:
        learning = pool.submit(learn)
        try:
            c = running.enter_context(CachebusNode(farm, joining))
            eventually(lambda: c.status().get("snapshot"), RESUMES, "c has its copy")
            count = len(names)
            eventually(lambda: len(names) > count + 20, RESUMES, "more is learned")
        finally:
            over.set()
        learning.result()
    eventually(lambda: all(c.lookup(Question(name, "A")) for name in names), RESUMES, "c has all")
    ways = Counter(c.lookup(Question(name, "A"))[0]["transport"] for name in names)
    assert ways["snapshot"] >= NAMES
    assert ways["link"] > 0
    assert sum(ways.values()) == len(names)
    assert c.lookup(Question(names[0], "A"))[0]["origin"] == "a"
    assert c.status()["transports"]["link"]["sent"] <= 1, "a copy is never published again"  # but for a hello
    for node in (first.a, first.b, c):
        assert "Traceback" not in node.log.read_text()


def test_a_copy_goes_to_a_file_and_into_another_node(farm: Path, running: ExitStack) -> None:
    first, joining = bed(farm, running, udp())
    names = first.learn(50)
    eventually(lambda: all(first.a.lookup(Question(name, "A")) for name in names), RESUMES, "a has learned")
    file = farm / "copy.cdns"
    saved = cachebus("snapshot", "save", str(file), "--socket", str(first.a.socket), "--json")
    assert (saved.returncode, json.loads(saved.stdout)) == (0, {"bytes": file.stat().st_size})
    assert file.stat().st_mode & 0o777 == 0o600
    c = running.enter_context(CachebusNode(farm, {**joining, "snapshot": {}}))
    loaded = cachebus("snapshot", "load", str(file), "--socket", str(c.socket), "--json")
    assert (loaded.returncode, json.loads(loaded.stdout)) == (0, {"received": 50, "merged": 50, "refused": {}})
    assert all(c.lookup(Question(name, "A")) for name in names)
    file.write_bytes(file.read_bytes()[:-1])
    cut = cachebus("snapshot", "load", str(file), "--socket", str(c.socket))
    assert (cut.returncode, cut.stderr) == (1, "cachebus: the copy ends before its end\n")
