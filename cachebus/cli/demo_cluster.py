"""The demo's processes: the authoritative server and the nodes, each with a configuration made on the fly.

Decides only what a demo node is told; a process that does not come up is an error that says why. Whatever was started
is stopped, however the demo ends.
"""

from __future__ import annotations

import asyncio
import base64
import json
import random
import secrets
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from cachebus.cli.broker import broker
from cachebus.cli.demo_zone import ZONE
from cachebus.errors import CachebusError

START_TIMEOUT = 20.0
"""Seconds for a process to come up: four of them import Python at once, perhaps on one slow core."""
STOP_TIMEOUT = 5.0
"""Seconds between SIGTERM and SIGKILL."""
POLL_INTERVAL = 0.05
"""Seconds between two looks at a condition."""
SETTLE = 1.1
"""Seconds after the last node came up: messages carry whole seconds, and what is signed before a start is refused."""
PORTS = range(20000, 32768)
"""Below the ports that Linux hands out by itself, so that no client socket takes one in between."""
LOG_TAIL = 1500
"""Characters of a process's log shown when it fails."""
KEY_NAME = "demo"
HOST = "127.0.0.1"
GROUP = "239.255.53.92"
"""Administratively scoped (RFC 2365); it stays on the loopback interface."""

_PROBE = b"\0\1\0\0\0\1\0\0\0\0\0\0\0\0\2\0\1"
"""`. NS` with RD=0: a node answers it at once, from nothing."""


class DemoError(CachebusError):
    """Raised when a process of the demo does not start, or ends before its time."""


class Mode(NamedTuple):
    """One way of running the cluster: a line of the table."""

    name: str
    transports: Callable[[Sequence[int], int], Mapping[str, Any]]
    """Given every node's bus port and a node's number: the `transports` of its configuration."""
    numbered: bool = False
    """Messages carry numbers, so that nodes count what is missing; else it is what was sent, less what came."""
    spread: bool = False
    """A message is counted once by who sends it, however many receive it."""
    broker: bool = False
    """It needs a broker, on the first node's bus port."""


def no_transports(ports: Sequence[int], node: int) -> Mapping[str, Any]:
    """Sharing off."""
    return {}


def udp_transports(ports: Sequence[int], node: int) -> Mapping[str, Any]:
    """Each node sends to all others over TSIG-signed UDP."""
    return {"lan": {"type": "udp", **_endpoints(ports, node), "key": KEY_NAME}}


def multicast_transports(ports: Sequence[int], node: int) -> Mapping[str, Any]:
    """Each node sends to a group on the loopback interface, TSIG-signed."""
    place = {"group": f"{GROUP}:{ports[0]}", "interface": HOST}
    return {"lan": {"type": "multicast", **place, "key": KEY_NAME}}


def zeromq_transports(ports: Sequence[int], node: int) -> Mapping[str, Any]:
    """A mesh of sockets, batches under a MAC."""
    ends = [f"tcp://{HOST}:{port}" for port in ports]
    connect = [end for end in ends if end != ends[node]]
    return {"mesh": {"type": "zeromq", "bind": [ends[node]], "connect": connect, "key": KEY_NAME}}


def tcp_transports(ports: Sequence[int], node: int) -> Mapping[str, Any]:
    """C-DNS over TCP between all; in cleartext, as it stays on the loopback interface."""
    return {"mesh": {"type": "tcp", "insecure": True, **_endpoints(ports, node)}}


def mqtt_transports(ports: Sequence[int], node: int) -> Mapping[str, Any]:
    """One broker, batches under a MAC."""
    return {"hub": {"type": "mqtt", "url": f"mqtt://{HOST}:{ports[0]}", "key": KEY_NAME}}


def _endpoints(ports: Sequence[int], node: int) -> dict[str, Any]:
    peers = [f"{HOST}:{port}" for index, port in enumerate(ports) if index != node]
    return {"listen": f"{HOST}:{ports[node]}", "peers": peers}


MODES = (
    Mode("off", no_transports),
    Mode("udp", udp_transports),
    Mode("multicast", multicast_transports, spread=True),
    Mode("zeromq", zeromq_transports, numbered=True),
    Mode("tcp", tcp_transports, numbered=True),
    Mode("mqtt", mqtt_transports, numbered=True, broker=True),
)
"""In the order of the table; a further transport is a further line here."""


def free_ports(count: int) -> list[int]:
    """Loopback ports that are free for UDP and TCP right now. Raises `DemoError` when there are not enough."""
    found: list[int] = []
    for port in random.sample(PORTS, len(PORTS)):
        with socket.socket(type=socket.SOCK_DGRAM) as udp, socket.socket(type=socket.SOCK_STREAM) as tcp:
            try:
                udp.bind(("127.0.0.1", port))
                tcp.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise DemoError("not enough free ports on 127.0.0.1")


class Child:
    """A child process with its log file, in a session of its own: Ctrl-C reaches only the demo, which stops it."""

    def __init__(self, name: str, arguments: Sequence[str], folder: Path, *, piped: bool = False) -> None:
        self.name = name
        self._arguments = arguments
        self._piped = piped
        self._log = folder / f"{name}.log"
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        pipe = asyncio.subprocess.PIPE if self._piped else asyncio.subprocess.DEVNULL
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                *self._arguments,
                stdin=pipe,
                stdout=pipe if self._piped else log,
                stderr=log,
                start_new_session=True,
            )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_TIMEOUT):
                await process.wait()
        except (TimeoutError, asyncio.CancelledError):
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    def check(self) -> None:
        """Raise `DemoError` with the end of its log when it is not running."""
        assert self._process is not None
        if self._process.returncode is not None:
            tail = self._log.read_text(errors="replace")[-LOG_TAIL:].strip()
            raise DemoError(f"{self.name} ended with {self._process.returncode}:\n{tail or 'it said nothing'}")

    async def number(self, line: bytes = b"") -> int:
        """Write a line to a piped process and read the number it answers with."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(line)
        try:
            async with asyncio.timeout(START_TIMEOUT):
                answer = await process.stdout.readline()
        except TimeoutError:
            raise DemoError(f"{self.name} does not answer") from None
        if not answer:
            await process.wait()
            self.check()
        return int(answer)


class Authority:
    """The authoritative server, for all modes."""

    def __init__(self, folder: Path) -> None:
        self._child = Child("authoritative", ["-m", "cachebus.cli.demo_zone"], folder, piped=True)
        self.port = 0

    async def __aenter__(self) -> Self:
        await self._child.__aenter__()
        try:
            self.port = await self._child.number()
        except BaseException:
            await self._child.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._child.__aexit__(kind, error, trace)

    async def queries(self) -> int:
        """How many queries it has got so far."""
        return await self._child.number(b"count\n")


class Cluster:
    """The nodes of one mode: entered, all of them answer."""

    def __init__(self, mode: Mode, *, nodes: int, folder: Path, upstream: int) -> None:
        self._mode = mode
        self._folder = folder / mode.name
        self._upstream = upstream
        ports = free_ports(2 * nodes)
        self.shim_ports = ports[:nodes]
        """Where each node answers DNS questions on 127.0.0.1, UDP and TCP."""
        self._bus_ports = ports[nodes:]
        self._secret = base64.b64encode(secrets.token_bytes(32)).decode()
        self._stack = AsyncExitStack()
        self._children: list[Child] = []

    async def __aenter__(self) -> Self:
        self._folder.mkdir(parents=True)
        try:
            if self._mode.broker:
                self._stack.enter_context(broker(self._bus_ports[0], self._folder))
            for node in range(len(self.shim_ports)):
                child = Child(f"node-{node + 1}", ["-m", "cachebus", "run", "-c", str(self._write(node))], self._folder)
                self._children.append(await self._stack.enter_async_context(child))
            async with asyncio.timeout(START_TIMEOUT):
                for child, port in zip(self._children, self.shim_ports, strict=True):
                    await _until_it_answers(child, port)
            await asyncio.sleep(SETTLE)
        except TimeoutError:
            await self._stack.aclose()
            raise DemoError(f"the nodes do not answer after {START_TIMEOUT:.0f} s; logs: {self._folder}") from None
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    def check(self) -> None:
        """Raise `DemoError` when a node is not running any more."""
        for child in self._children:
            child.check()

    def socket_of(self, node: int) -> Path:
        """A node's admin socket."""
        return self._folder / f"node-{node + 1}.sock"

    def _write(self, node: int) -> Path:
        path = self._folder / f"node-{node + 1}.yaml"
        path.touch(mode=0o600)
        path.write_text(json.dumps(self.configuration(node), indent=2) + "\n")
        return path

    def configuration(self, node: int) -> dict[str, Any]:
        """What a node is told; JSON is YAML."""
        transports = self._mode.transports(self._bus_ports, node)
        key = {"algorithm": "hmac-sha256", "secret": self._secret}
        return {
            "node": f"node-{node + 1}",
            "cluster": "demo",
            **({"keys": {KEY_NAME: key}, "transports": transports} if transports else {}),
            "share": {"min_ttl": 1, "allow": [ZONE]},
            "shim": {
                "listen": [f"127.0.0.1:{self.shim_ports[node]}"],
                "upstreams": [{"address": f"127.0.0.1:{self._upstream}", "authoritative": True}],
            },
            "admin": {"socket": str(self.socket_of(node))},
        }


async def _until_it_answers(child: Child, port: int) -> None:
    loop = asyncio.get_running_loop()
    with socket.socket(type=socket.SOCK_DGRAM) as probe:
        probe.settimeout(0)
        probe.connect(("127.0.0.1", port))
        while True:
            child.check()
            try:
                probe.send(_PROBE)
                async with asyncio.timeout(POLL_INTERVAL * 4):
                    await loop.sock_recv(probe, 512)
            except (TimeoutError, OSError):
                await asyncio.sleep(POLL_INTERVAL)
            else:
                return
