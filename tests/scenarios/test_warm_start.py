"""A node that joins has a peer's cache and then the live stream; a copy goes to a file and back."""

from __future__ import annotations

import json
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


def bed(farm: Path, running: ExitStack) -> tuple[Bed, Config]:
    """Node a serves copies over TLS; the second thing is what a third node, c, asks with."""
    ports = [free_port() for _ in range(3)]
    common = {"type": "udp", "key": KEY}
    authority = Authority(farm)

    def tls(name: str, peer: str) -> Config:
        cert, key = authority.write(f"{name}.example.net")
        return {"cert": str(cert), "key": str(key), "ca": str(authority.path), "peers": [f"{peer}.example.net"]}

    where = f"127.0.0.1:{free_port()}"
    serves = {"listen": where, "tls": tls("a", "c"), "zstd": True}
    everybody = [f"127.0.0.1:{port}" for port in ports]
    link = Link(
        "dns",
        {**common, "listen": everybody[0], "peers": everybody},
        {**common, "listen": everybody[1], "peers": everybody},
    )
    made = Bed(farm, running, link, a={"snapshot": serves})
    transports = {"link": {**common, "listen": everybody[2], "peers": everybody}}
    asks = {"peers": [where], "tls": tls("c", "a")}
    return made, {**made.b.config, "node": "c", "transports": transports, "snapshot": asks}


def test_a_node_that_joins_has_what_was_learned_before_it_and_what_comes_after(farm: Path, running: ExitStack) -> None:
    first, joining = bed(farm, running)
    first.wait_until_joined(RESUMES)
    before = first.learn(NAMES)
    eventually(lambda: first.b_has(before), RESUMES, "b has all")
    c = running.enter_context(CachebusNode(farm, joining))
    eventually(lambda: all(c.lookup(Question(name, "A")) for name in before), RESUMES, "c has what was learned before")
    entry = c.lookup(Question(before[0], "A"))[0]
    assert (entry["origin"], entry["transport"]) == ("a", "snapshot")
    after = first.learn(5)
    eventually(lambda: all(c.lookup(Question(name, "A")) for name in after), RESUMES, "c has what came after")
    assert c.status()["transports"]["link"]["sent"] == 0, "a copy is never published again"
    for node in (first.a, first.b, c):
        assert "Traceback" not in node.log.read_text()


def test_a_copy_goes_to_a_file_and_into_another_node(farm: Path, running: ExitStack) -> None:
    first, joining = bed(farm, running)
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
