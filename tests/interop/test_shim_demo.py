"""`cachebus demo` as a newcomer runs it: what it shows, how long it takes, and that nothing is left behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.farm.client import Endpoint, Question, ask
from tests.farm.process import eventually
from tests.servers import require

pytestmark = [pytest.mark.interop, pytest.mark.alone]

WHOLE_RUN = 120.0
"""Seconds until the table of every transport is there: what the project promises."""
TRANSPORTS = ["udp", "multicast", "zeromq", "tcp", "mqtt"]


@contextmanager
def demo(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """The demo with its temporary files below `folder`; killed if the test fails."""
    with (folder / "stdout").open("w") as stdout, (folder / "stderr").open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "cachebus", "demo", *arguments],
            stdout=stdout,
            stderr=stderr,
            env={**os.environ, "TMPDIR": str(folder)},
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        for pid in children(folder):
            os.kill(pid, signal.SIGKILL)


def children(folder: Path) -> list[int]:
    """Node processes whose configuration lies below `folder`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if str(folder).encode() in command:
                found.append(int(entry.name))
    return found


def test_the_demo_shows_the_gain_of_every_transport_and_keeps_running_when_told(tmp_path: Path) -> None:
    require("mosquitto")
    start = time.monotonic()
    with demo(tmp_path, "--json", "--keep") as process:
        eventually(lambda: "Ctrl-C" in (tmp_path / "stderr").read_text(), WHOLE_RUN, "the table")
        assert time.monotonic() - start < WHOLE_RUN
        off, *rows = (json.loads(line) for line in (tmp_path / "stdout").read_text().splitlines())
        assert (off["transport"], [row["transport"] for row in rows]) == ("off", TRANSPORTS)
        assert off["hit_rate"] > 0.5
        assert off["lost"] == 0
        for row in rows:
            assert row["upstream_queries"] * 2 < off["upstream_queries"]
            assert row["hit_rate"] > off["hit_rate"]
        for row in (off, *rows):
            assert row["refused"] == row["unanswered"] == 0
            assert 0 < row["latency_ms"]["p50"] <= row["latency_ms"]["p99"]
        ports = re.findall(r"-p (\d+)", (tmp_path / "stderr").read_text())
        assert len(ports) == 4
        for port in ports:
            answer = ask(Endpoint("127.0.0.1", int(port)), Question("n0.demo.test.", "A"))
            assert answer is not None
            assert answer.rcode() == 0
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
        assert not children(tmp_path)
    assert not list(tmp_path.glob("cachebus-demo-*"))
    assert "Traceback" not in (tmp_path / "stderr").read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_the_middle_leaves_no_process_behind(tmp_path: Path, number: signal.Signals) -> None:
    with demo(tmp_path) as process:
        eventually(lambda: len(children(tmp_path)) == 4, 20, "four nodes are starting")
        process.send_signal(number)
        assert process.wait(20) == 130
        assert not children(tmp_path)
    assert not list(tmp_path.glob("cachebus-demo-*"))
    assert "Traceback" not in (tmp_path / "stderr").read_text()
