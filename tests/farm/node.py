"""cachebus nodes as processes: their configuration, their command line. Knows no DNS server."""

from __future__ import annotations

import base64
import json
import math
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cachebus.admin import client
from tests.farm.client import Endpoint, Question
from tests.farm.process import Process, eventually
from tests.servers import free_port

CLI_TIMEOUT = 20.0
"""Seconds for one `cachebus` command."""
KEY = "cluster-2026"
MIN_TTL = 1
"""The scenarios live on short TTLs; the default `min_ttl` would keep them from being shared."""
ALLOW = ["test.", "2.0.192.in-addr.arpa."]
"""Special-use and locally served names (RFC 6761, RFC 6303) are shared only where a configuration says so."""

Config = dict[str, Any]


def cachebus(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end."""
    return subprocess.run(
        [sys.executable, "-m", "cachebus", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=CLI_TIMEOUT,
    )


@dataclass
class Cluster:
    """What the nodes of one cluster have in common: the key, and who listens where."""

    secret: str = field(default_factory=lambda: base64.b64encode(secrets.token_bytes(32)).decode(), repr=False)
    bus: dict[str, Endpoint] = field(default_factory=dict)

    def add(self, *nodes: str) -> None:
        for node in nodes:
            self.bus[node] = Endpoint("127.0.0.1", free_port())

    def config(self, node: str, *, peers: Sequence[str] | None = None, **parts: Any) -> Config:
        """A node's configuration: udp to every other node (or to `peers`), and `parts` (sources, sinks, shim, ...)."""
        others = [other for other in self.bus if other != node] if peers is None else peers
        return {
            "node": node,
            "cluster": "test",
            "keys": {KEY: {"algorithm": "hmac-sha256", "secret": self.secret}},
            "transports": {
                "lan": {
                    "type": "udp",
                    "listen": _text(self.bus[node]),
                    "peers": [_text(self.bus[other]) for other in others],
                    "key": KEY,
                }
            },
            "share": {"min_ttl": MIN_TTL, "allow": ALLOW},
            **parts,
        }


def _text(endpoint: Endpoint) -> str:
    return f"{endpoint.host}:{endpoint.port}"


def dnstap_source(path: Path, *, trust: Sequence[str] = ("confirmed", "validated"), **more: Any) -> Config:
    return {"type": "dnstap", "listen": f"unix:{path}", "trust": list(trust), **more}


def stream_source(path: Path, *, claims: str = "validated", **more: Any) -> Config:
    return {"type": "stream", "listen": f"unix:{path}", "claims": claims, **more}


def unbound_sink(control: Path) -> Config:
    return {"type": "unbound", "control": f"unix:{control}"}


class CachebusNode(Process):
    """`cachebus run` with a configuration; the admin socket is added to it."""

    def __init__(self, directory: Path, config: Config) -> None:
        super().__init__(directory, f"node-{config['node']}")
        self.socket = self.directory / "api.sock"
        self.file = self.directory / "cachebus.yaml"
        self.config: Config = {**config, "admin": {"socket": str(self.socket)}}

    def prepare(self) -> None:
        self.file.touch(mode=0o600)
        self.file.write_text(yaml.safe_dump(self.config, sort_keys=False))

    def command(self) -> Sequence[str]:
        return [sys.executable, "-m", "cachebus", "run", "-c", str(self.file)]

    def environment(self) -> Mapping[str, str]:
        return {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}

    def is_ready(self) -> bool:
        with socket.socket(socket.AF_UNIX) as connection:
            return connection.connect_ex(str(self.socket)) == 0

    def start(self) -> None:
        super().start()
        self._started = time.time()

    def wait_until_live(self) -> None:
        """Wait until it takes what peers send: what they sign in the second of its start is refused, `before-start`."""
        eventually(
            lambda: time.time() >= math.floor(self._started) + 1, 2.0, f"{self.name}: the second of its start is over"
        )

    def status(self) -> dict[str, Any]:
        """What `cachebus status --json` says, without a process for each look."""
        result: dict[str, Any] = client.ask(str(self.socket), "status")
        return result

    def lookup(self, question: Question) -> list[dict[str, Any]]:
        """What `cachebus lookup NAME TYPE --json` says: an object per RRset of the chain."""
        parameters = {"name": question.name, "type": question.type}
        result: list[dict[str, Any]] = client.ask(str(self.socket), "lookup", parameters)
        return result

    def cli(self, verb: str, *arguments: str) -> list[dict[str, Any]]:
        """The JSON lines of a verb that talks to the node; none when it ends with 1."""
        done = cachebus(verb, *arguments, "--json", "--socket", str(self.socket))
        assert done.returncode in {0, 1}, done.stderr
        assert "Traceback" not in done.stderr, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    def transport(self) -> dict[str, Any]:
        """Counters of the one transport: sent, received, accepted, refused ..."""
        counters: dict[str, Any] = self.status()["transports"]["lan"]
        return counters
