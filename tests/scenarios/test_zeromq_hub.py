"""`cachebus forward` as a process: killed and started again, ended by SIGTERM, and what it refuses to start with."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cachebus_transports.zeromq import ZeromqTransport

from cachebus.cli import main
from cachebus.ports import Sender, TransportSettings
from tests.servers import free_port

RESUME = 5.0
"""Seconds within which streams go on."""
START = 30.0


@contextmanager
def hub(publishers: str, subscribers: str, *more: str) -> Iterator[subprocess.Popen[str]]:
    """A running hub; killed at the end unless it has ended."""
    command = [sys.executable, "-W", "error", "-m", "cachebus", "forward", "--bind-publishers", publishers]
    running = subprocess.Popen(
        [*command, "--bind-subscribers", subscribers, *more], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert running.stderr is not None
        assert "hub is up" in running.stderr.readline()
        yield running
    finally:
        running.kill()
        running.communicate()


async def within(seconds: float, condition: Callable[[], bool]) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s"
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("curve", [False, True], ids=["plain", "curve"])
async def test_killed_and_started_again_the_stream_resumes(curve: bool, tmp_path: Path) -> None:
    publishers, subscribers = (f"zmq+tcp://127.0.0.1:{free_port()}" for _ in range(2))
    options: dict[str, object] = {"hub": {"publishers": publishers, "subscribers": subscribers}}
    more: list[str] = []
    if curve:
        for name in ("hub", "ams-1"):
            assert main(["keygen", "curve", name, "-o", str(tmp_path / name)]) == 0
        more = ["--curve-key", str(tmp_path / "hub"), "--curve-allow", str(tmp_path / "ams-1.pub")]
        options["curve"] = {"secret": tmp_path / "ams-1", "server": f"file:{tmp_path}/hub.pub"}
    received: list[bytes] = []

    def take(data: bytes, sender: Sender) -> None:
        received.append(data)

    node = TransportSettings(name="bus", node="ams-1", cluster="test", options=options)
    async with ZeromqTransport(node, take) as transport:

        def arrives(data: bytes) -> bool:
            transport.send(data)
            return data in received

        for data in (b"first", b"second"):
            with hub(publishers, subscribers, *more):
                await within(RESUME, lambda data=data: arrives(data))  # type: ignore[misc]
            transport.send(b"nobody hears")
            await asyncio.sleep(0.3)
    assert transport.statistics()["disconnects"] >= 2


def test_sigterm_ends_it_cleanly_with_its_counters() -> None:
    with hub("zmq+tcp://127.0.0.1:0", "zmq+tcp://[::1]:0", "--stats", "0.1", "--json") as running:
        assert running.stdout is not None
        assert json.loads(running.stdout.readline())["received"] == 0
        running.send_signal(signal.SIGTERM)
        _, errors = running.communicate(timeout=START)
    assert running.returncode == 0
    assert '"received": 0' in errors


@pytest.mark.parametrize(
    ("arguments", "status", "complaint"),
    [
        (["--bind-publishers", "zmq+tcp://127.0.0.1:5391"], 2, "--bind-subscribers"),
        (["--bind-publishers", "x://", "--bind-subscribers", "zmq+tcp://127.0.0.1:0"], 1, "is not tcp://"),
        (["--bind-publishers", "zmq+ipc:///a", "--bind-subscribers", "zmq+ipc:///a"], 1, "two addresses"),
        (["--bind-publishers", "zmq+ipc:///a", "--bind-subscribers", "zmq+ipc:///b", "--hwm", "1"], 1, "hwm"),
        (
            ["--bind-publishers", "zmq+ipc:///a", "--bind-subscribers", "zmq+ipc:///b", "--curve-key", "k"],
            2,
            "together",
        ),
    ],
)
def test_mistakes(arguments: list[str], status: int, complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["forward", *arguments]) == status
    assert complaint in capsys.readouterr().err
