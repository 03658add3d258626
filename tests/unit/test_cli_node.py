"""status, lookup, why against an admin server, and run up to the node."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from cachebus.admin.server import AdminServer
from cachebus.cli import main
from cachebus.testing import ManualClock

LINE = {
    "name": "www.test.", "type": "A", "ttl": 60, "records": ["www.test. 60 IN A 192.0.2.1"], "origin": "b",
    "evidence": "validated", "transport": "lan", "learned": 1_800_000_000.5, "received": 1_800_000_001.0, "signer": "k",
}  # fmt: skip
GONE = {
    "name": "gone.test.", "type": "A", "ttl": 30, "records": [], "negative": True, "origin": "a",
    "evidence": "authoritative", "transport": "", "learned": 1_800_000_000, "received": 1_800_000_000, "signer": "",
}  # fmt: skip
EVENT = {"time": 1_800_000_000.0, "node": "a", "event": "accepted", "detail": "by lan"}
STATUS = {
    "node": "a",
    "cluster": "home",
    "uptime": 3661.2,
    "cache": {"entries": 1, "bytes": 200},
    "sources": {"unbound": {"frames": 7, "refused": {"unpaired": 1, "rcode": 3}}},
    "transports": {"lan": {"sent": 1, "refused": {}}},
    "sinks": {},
    "share": {"published": 4, "refused": {"denied": 2}},
    "shim": {"queries": 0, "errors": 0, "certificate_expires": 1_800_000_000, "workers": 0},
}


class View:
    def status(self) -> dict[str, Any]:
        return STATUS

    def lookup(self, qname: bytes, qtype: int | None, now: float) -> list[dict[str, Any]]:
        return {b"\3www\4test\0": [LINE], b"\4gone\4test\0": [GONE]}.get(qname, [])

    def why(self, qname: bytes, qtype: int | None, now: float) -> list[dict[str, Any]]:
        return [{**line, "history": [EVENT]} for line in self.lookup(qname, qtype, now)]

    def metrics(self) -> bytes:
        return b""


async def command(tmp_path: Path, *arguments: str) -> int:
    """Run a verb while a node answers on a socket."""
    path = str(tmp_path / "api.sock")
    async with AdminServer(View(), ManualClock(), path=path):
        return await asyncio.to_thread(main, [*arguments, "--socket", path])


Captured = pytest.CaptureFixture[str]


async def test_status(tmp_path: Path, capsys: Captured) -> None:
    assert await command(tmp_path, "status") == 0
    assert capsys.readouterr().out.splitlines() == [
        "node a of cluster home, up 1:01:01",
        "cache: entries 1, bytes 200",
        "source unbound: frames 7",
        "  refused: rcode 3, unpaired 1",
        "transport lan: sent 1",
        "share: published 4",
        "  refused: denied 2",
        "shim: queries 0, certificate expires 2027-01-15T08:00:00Z, workers 0",
    ]
    assert await command(tmp_path, "status", "--json") == 0
    assert json.loads(capsys.readouterr().out) == STATUS


async def test_lookup(tmp_path: Path, capsys: Captured) -> None:
    assert await command(tmp_path, "lookup", "www.test", "a") == 0
    assert capsys.readouterr().out.splitlines() == [
        "www.test. 60 IN A 192.0.2.1",
        "  validated, from b, learned 2027-01-15T08:00:00Z, by lan, signed by k",
    ]
    assert await command(tmp_path, "lookup", "www.test", "--json") == 0
    assert json.loads(capsys.readouterr().out) == LINE
    assert await command(tmp_path, "lookup", "gone.test") == 0
    assert capsys.readouterr().out.splitlines() == [
        "gone.test. 30 IN A: does not exist",
        "  authoritative, from a, learned 2027-01-15T08:00:00Z, locally",
    ]


async def test_why(tmp_path: Path, capsys: Captured) -> None:
    assert await command(tmp_path, "why", "www.test", "A") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "  2027-01-15T08:00:00Z a accepted: by lan"
    assert await command(tmp_path, "why", "www.test", "A", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {**LINE, "history": [EVENT]}


@pytest.mark.parametrize(("verb", "said"), [("lookup", "nothing held\n"), ("why", "nothing known\n")])
async def test_nothing_is_status_1(tmp_path: Path, capsys: Captured, verb: str, said: str) -> None:
    assert await command(tmp_path, verb, "other.test", "--json") == 1
    assert capsys.readouterr() == ("", said)


async def test_a_wrong_name_is_a_line_on_stderr(tmp_path: Path, capsys: Captured) -> None:
    assert await command(tmp_path, "lookup", "a..b") == 1
    assert capsys.readouterr() == ("", "cachebus: 'a..b' has an empty label\n")
    assert await command(tmp_path, "why", "a", "NOPE") == 1
    assert capsys.readouterr() == ("", "cachebus: no such record type: NOPE\n")


async def test_the_socket_is_found_through_the_configuration(tmp_path: Path, capsys: Captured) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(f"admin: {{socket: {tmp_path}/api.sock}}\n")
    async with AdminServer(View(), ManualClock(), path=f"{tmp_path}/api.sock"):
        assert await asyncio.to_thread(main, ["status", "-c", str(config), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == STATUS


@pytest.mark.parametrize("verb", [["status"], ["lookup", "a"], ["why", "a"]])
def test_no_node(tmp_path: Path, capsys: Captured, verb: list[str]) -> None:
    assert main([*verb, "--socket", str(tmp_path / "none")]) == 1
    assert capsys.readouterr().err == f"cachebus: no node answers on {tmp_path}/none: No such file or directory\n"


def test_run_hands_over_to_the_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    def node_run(path: Path) -> int:
        started.append(path)
        return 0

    monkeypatch.setattr("cachebus.daemon.run", node_run)
    assert main(["run", "-c", str(tmp_path / "c.yaml")]) == 0
    assert started == [tmp_path / "c.yaml"]
    assert main(["run"]) == 2


def test_run_of_a_wrong_configuration_is_status_1_without_a_traceback(tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "c.yaml").write_text("node: A\n")
    assert main(["run", "-c", str(tmp_path / "c.yaml")]) == 1
    assert capsys.readouterr().err == f"cachebus: {tmp_path}/c.yaml:1:7: node: 'A' must be 1 to 63 of a-z, 0-9 and -\n"
