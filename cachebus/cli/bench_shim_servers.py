"""The two servers that `bench --shim` compares, and the load on them: a node, a one-threaded Unbound, dnsperf.

Decides how each is set up: as it is after an installation, but for the size of its cache and where it listens. Knows
nothing of figures. Both servers run on one core, one at a time busy, the load on another where there is one.
"""

from __future__ import annotations

import asyncio
import base64
import gc
import os
import re
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import yaml

from cachebus import assembly
from cachebus.cli.bench_lanes import HOST, BenchError
from cachebus.cli.bench_peers import resident, run_peer
from cachebus.cli.bench_shim_names import answers
from cachebus.cli.demo_cluster import free_ports
from cachebus.daemon import settle
from cachebus.errors import CachebusError, ConfigError
from cachebus.node import Node
from cachebus.unbound.control import ControlChannel
from cachebus.unbound.dump import compose, dump

START = 30.0
"""Seconds for Unbound to come up."""
STOP = 5.0
"""Seconds between SIGTERM and SIGKILL."""
LOAD_TIMEOUT = 120.0
"""Seconds for Unbound to take one slice of the names; it needs one."""
ROOM = 2
"""Entries that the node's cache has room for, by those put in: a shard that is full by chance throws none away."""
_TICKS = os.sysconf("SC_CLK_TCK")
_TOOLS = {"dnsperf": "dnsperf", "unbound": "unbound"}
"""Program to the Debian package that has it."""
_ANSWERED = re.compile(r"^> (\S+) \S+ \S+ ([0-9.]+)$", re.MULTILINE)
_COMPLETED = re.compile(r"Queries completed:\s+(\d+)")
_LOST = re.compile(r"Queries lost:\s+(\d+)")
_RATE = re.compile(r"Queries per second:\s+([0-9.]+)")
_GOOD = re.compile(r"NOERROR (\d+)")


class ToolMissingError(CachebusError):
    """Raised where a program that is needed is not installed; the text says what to install."""


class Filled(NamedTuple):
    """What the node's process says when its cache is full."""

    pid: int
    entries: int
    memory: int
    """Bytes by which the process grew."""


class Ended(NamedTuple):
    """What it says at the end."""

    pause: float
    """Seconds of the longest garbage collection under load."""
    fast: int
    """Questions that were answered the short way (`shim.fast`)."""
    queries: int


class Run(NamedTuple):
    """What dnsperf says."""

    completed: int
    lost: int
    rate: float
    """Per second."""
    latencies: list[float]
    """Seconds, ascending; empty unless asked for."""


def program(name: str) -> str:
    """Where a program is. Raises `ToolMissingError`."""
    places = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"))
    found = shutil.which(name, path=places)
    if found is None:
        raise ToolMissingError(f"{name} is not installed (Debian: apt install {_TOOLS[name]})")
    return found


def cores() -> tuple[int, int]:
    """The core of the servers and that of the load; the same one where there is no other."""
    found = sorted(os.sched_getaffinity(0))
    return found[0], found[-1]


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """Run this process, and what it starts, on one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def cpu_of(pid: int) -> float:
    """Seconds of CPU that a process has used, the kernel's part and all threads included."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


# The node


def node_process(pipe: Connection, directory: Path, port: int, bus: int, entries: int) -> None:
    """Body of the node's process: says `Filled` when it is ready, and `Ended` at the end."""
    os.sched_setaffinity(0, {cores()[0]})
    run_peer(pipe, _node(pipe, directory, port, bus, entries))


async def _node(pipe: Connection, directory: Path, port: int, bus: int, entries: int) -> None:
    path = directory / "node.yaml"
    path.write_text(_node_configuration(port, bus, entries))
    node = Node(assembly.load(path), path=path)
    async with node:
        gc.collect()
        before = resident()
        for part in answers(entries, time.time()):
            node.cache.put_all(part, time.time())
            await asyncio.sleep(0)
        gc.collect()
        pipe.send(Filled(os.getpid(), node.cache.statistics()["entries"], resident() - before))
        settle()
        with _pauses() as pauses:
            await asyncio.get_running_loop().run_in_executor(None, _until_told, pipe)
        shim = node.status()["shim"]
        pipe.send(Ended(max(pauses, default=0.0), shim.get("fast", 0), shim["queries"]))


def _until_told(pipe: Connection) -> None:
    with suppress(EOFError):
        pipe.recv()


def _node_configuration(port: int, bus: int, entries: int) -> str:
    return yaml.safe_dump(
        {
            "node": "bench",
            "cluster": "bench",
            "keys": {
                "bench": {"algorithm": "hmac-sha256", "secret": base64.b64encode(secrets.token_bytes(32)).decode()}
            },
            "transports": {"lan": {"type": "udp", "listen": f"{HOST}:{bus}", "key": "bench"}},
            "cache": {"max_entries": max(10_000, ROOM * entries), "max_bytes": 512 * ROOM * max(10_000, entries)},
            "shim": {"listen": [f"{HOST}:{port}"]},
        }
    )


@contextmanager
def _pauses() -> Iterator[list[float]]:
    """Seconds of each garbage collection meanwhile."""
    found: list[float] = []
    begun = 0.0

    def note(phase: str, info: dict[str, int]) -> None:
        nonlocal begun
        if phase == "start":
            begun = time.perf_counter()
        else:
            found.append(time.perf_counter() - begun)

    gc.callbacks.append(note)
    try:
        yield found
    finally:
        gc.callbacks.remove(note)


# Unbound


@contextmanager
def unbound(directory: Path, port: int, entries: int, progress: Callable[[str], None]) -> Iterator[int]:
    """A one-threaded Unbound with all names in its cache; gives its process id. Raises `BenchError`."""
    configuration = directory / "unbound.conf"
    configuration.write_text(_unbound_configuration(directory, port, entries))
    log = directory / "unbound.log"
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - a program found by its name, with a file of ours
            [program("unbound"), "-d", "-p", "-c", configuration],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        os.sched_setaffinity(process.pid, {cores()[0]})
        control = directory / "unbound.ctl"
        _wait_for(process, control, log)
        asyncio.run(_fill(control, entries, progress))
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(timeout=STOP)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _unbound_configuration(directory: Path, port: int, entries: int) -> str:
    size = max(16, entries // 1000)  # MB: three times what it takes
    return "\n".join(
        (
            "server:",
            f'  interface: {HOST}@{port}\n  directory: "{directory}"\n  pidfile: "{directory}/unbound.pid"',
            '  chroot: ""\n  username: ""\n  use-syslog: no\n  logfile: ""\n  do-daemonize: no\n  num-threads: 1',
            f"  msg-cache-size: {size}m\n  rrset-cache-size: {size}m\n  so-rcvbuf: 1m",
            "remote-control:\n  control-enable: yes\n  control-use-cert: no",
            f'  control-interface: "{directory}/unbound.ctl"',
            f'forward-zone:\n  name: "."\n  forward-addr: {HOST}@9\n',  # where nobody listens: it knows, or it fails
        )
    )


def _wait_for(process: subprocess.Popen[bytes], control: Path, log: Path) -> None:
    end = time.monotonic() + START
    while time.monotonic() < end:
        if process.poll() is not None:
            said = log.read_text(errors="replace").strip().splitlines()
            raise BenchError(f"unbound ended at once: {said[-1] if said else 'it said nothing'}")
        with socket.socket(socket.AF_UNIX) as channel:
            try:
                channel.connect(str(control))
            except OSError:
                time.sleep(0.02)
            else:
                return
    raise BenchError("unbound does not answer")


async def _fill(control: Path, entries: int, progress: Callable[[str], None]) -> None:
    channel = ControlChannel(f"unix:{control}", timeout=LOAD_TIMEOUT)
    now, done = time.time(), 0
    for part in answers(entries, now):
        await channel.load(dump(entry for answer in part if (entry := compose(answer, now)) is not None))
        done += len(part)
        progress(f"filling unbound: {100 * done // entries} %")


# The load


def ask(port: int, questions: Path, seconds: float, *, rate: int | None = None, passes: int | None = None) -> Run:
    """Have dnsperf ask for so long, or so many times through the file; at `rate` a second with the time of each reply.

    Raises `BenchError` when it does not end well, or when anything is answered but NOERROR.
    """
    command = [program("dnsperf"), "-s", HOST, "-p", str(port), "-d", str(questions), "-l", str(seconds)]
    command += [] if rate is None else ["-Q", str(rate), "-v"]
    command += [] if passes is None else ["-n", str(passes)]
    # To a file: whoever reads a pipe meanwhile takes time from the core that asks.
    with tempfile.TemporaryFile("w+") as output:
        try:
            done = subprocess.run(  # noqa: S603 - a program found by its name
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, timeout=seconds + START, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise BenchError("dnsperf does not end") from error
        output.seek(0)
        said = output.read()
    completed, lost, speed = _COMPLETED.search(said), _LOST.search(said), _RATE.search(said)
    if done.returncode or not completed or not lost or not speed:
        raise BenchError(f"dnsperf failed: {said.strip().splitlines()[-1:]}")
    good = _GOOD.search(said.partition("Response codes:")[2])
    if good is None or int(good[1]) != int(completed[1]):
        raise BenchError("not every question was answered from the cache")
    latencies = sorted(float(seconds) for _, seconds in _ANSWERED.findall(said))
    return Run(int(completed[1]), int(lost[1]), float(speed[1]), latencies)


def ports() -> tuple[int, int, int]:
    """Free ones: for the node, its bus, and Unbound. Raises `ConfigError` where there are none."""
    found = free_ports(3)
    if len(found) != 3:
        raise ConfigError("no free ports")
    return found[0], found[1], found[2]
