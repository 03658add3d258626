"""`bench --shim`: a node's shim beside a one-threaded Unbound, both with the same names in their caches.

Decides the order of a run and what its figures say. In each round both servers have their turn under the same load, so
that whatever else the machine does meets both alike; a figure is the median of the rounds.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from cachebus.cli.bench_lanes import BenchError
from cachebus.cli.bench_run import processes
from cachebus.cli.bench_shim_names import write_questions
from cachebus.cli.bench_shim_servers import (
    Ended,
    Filled,
    Run,
    ask,
    cores,
    cpu_of,
    node_process,
    on_core,
    ports,
    program,
    unbound,
)
from cachebus.cli.bench_table import percentile
from cachebus.cli.version import compiled

ENTRIES = 1_000_000
"""Default: names in each cache."""
ROUNDS = 5
FULL_LOAD = 3.0
"""Seconds in which a server gets as many questions as it answers, in each round."""
LATENCY_LOAD = 5.0
"""Seconds in which each reply is timed."""
LATENCY_RATE = 10_000
"""Questions a second meanwhile."""
SMALL = 100_000
"""Fewer names make a trial: its rounds are fewer and a third as long."""
FILLING = 900.0
"""Seconds for the node to make and hold a million entries: far beyond what a slow machine needs."""
PASS = 120.0
"""Seconds for the first time through all questions."""


class Turn(NamedTuple):
    """One server under load, once."""

    rate: float
    cpu: float
    """Microseconds per query."""
    lost: int


def measure_shim(entries: int = ENTRIES, progress: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """The object of `--json`. `progress` hears what comes next. Raises `BenchError`, `ToolMissingError`."""
    for name in ("dnsperf", "unbound"):
        program(name)
    small = entries < SMALL
    rounds, seconds, timed = (2, FULL_LOAD / 3, LATENCY_LOAD / 3) if small else (ROUNDS, FULL_LOAD, LATENCY_LOAD)
    with tempfile.TemporaryDirectory(prefix="cachebus-bench-") as name, processes() as start:
        directory = Path(name)
        port, bus, other = ports()
        progress(f"filling the shim with {entries} names")
        node = start("shim", node_process, directory, port, bus, entries)
        filled: Filled = node.answer(FILLING)
        if filled.entries != entries:
            raise BenchError(f"the cache holds {filled.entries} of {entries} entries")
        asked = write_questions(directory / "questions", entries)
        with unbound(directory, other, entries, progress) as pid, on_core(cores()[1]):
            load = _Load(directory / "questions", progress)
            servers = {"shim": (port, filled.pid), "unbound": (other, pid)}
            load.warm(servers)
            turns = load.rounds(servers, rounds, seconds)
            times = load.latencies(servers, timed)
        node.tell(None)
        ended: Ended = node.answer()
    return {
        **_figures(turns["shim"], times["shim"]),
        "unbound": _figures(turns["unbound"], times["unbound"]),
        "bytes_per_rrset": round(filled.memory / entries, 1),
        "gc_pause_ms": round(1000 * ended.pause, 3),
        "fast_share": round(ended.fast / max(1, ended.queries), 3),
        "entries": entries,
        "names_asked": asked,
        "latency_rate": LATENCY_RATE,
        "same_core": cores()[0] == cores()[1],
        "compiled": compiled(),
    }


class _Load:
    """Puts the same questions to each server in turn."""

    def __init__(self, questions: Path, progress: Callable[[str], None]) -> None:
        self._questions = questions
        self._progress = progress

    def warm(self, servers: dict[str, tuple[int, int]]) -> None:
        """Once through all questions: what is asked for the first time is another matter."""
        for name, (port, _) in servers.items():
            self._progress(f"first questions to {name}")
            ask(port, self._questions, PASS, passes=1)

    def rounds(self, servers: dict[str, tuple[int, int]], count: int, seconds: float) -> dict[str, list[Turn]]:
        """As many questions as each answers."""
        turns: dict[str, list[Turn]] = {name: [] for name in servers}
        order = list(servers)
        for number in range(count):
            for name in order:
                self._progress(f"round {number + 1} of {count}: {name}")
                port, pid = servers[name]
                before = cpu_of(pid)
                run = ask(port, self._questions, seconds)
                cpu = 1e6 * (cpu_of(pid) - before) / max(1, run.completed)
                turns[name].append(Turn(run.rate, cpu, run.lost))
            order.reverse()
        return turns

    def latencies(self, servers: dict[str, tuple[int, int]], seconds: float) -> dict[str, Run]:
        """The time of each reply at a fixed rate."""
        found = {}
        for name, (port, _) in servers.items():
            self._progress(f"{LATENCY_RATE} questions a second: {name}")
            found[name] = ask(port, self._questions, seconds, rate=LATENCY_RATE)
        return found


def _figures(turns: list[Turn], timed: Run) -> dict[str, Any]:
    if not timed.latencies:
        raise BenchError("no reply was timed")
    return {
        "queries_per_second": round(statistics.median(turn.rate for turn in turns)),
        "cpu_us_per_query": round(statistics.median(turn.cpu for turn in turns), 2),
        "latency_ms": {f"p{percent}": round(1000 * percentile(timed.latencies, percent), 3) for percent in (50, 99)},
        "lost": sum(turn.lost for turn in turns) + timed.lost,
    }


def shim_text(result: dict[str, Any]) -> str:
    """The same for people."""
    other = result["unbound"]
    build = "compiled" if result["compiled"] else "pure Python"
    lines = [
        f"{result['entries']} names in each cache, {result['names_asked']} of them asked for; {build}",
        f"{'':9}{'queries/s':>10}{'CPU us':>9}{'p50 ms':>9}{'p99 ms':>9}{'lost':>7}",
    ]
    for name, row in (("shim", result), ("unbound", other)):
        times = row["latency_ms"]
        lines.append(
            f"{name:9}{row['queries_per_second']:>10}{row['cpu_us_per_query']:>9.2f}"
            f"{times['p50']:>9.3f}{times['p99']:>9.3f}{row['lost']:>7}"
        )
    rate = result["queries_per_second"] / max(1, other["queries_per_second"])
    cpu = result["cpu_us_per_query"] / max(0.01, other["cpu_us_per_query"])
    lines.append(
        f"{rate:.2f} of Unbound's queries/s, {cpu:.2f} times its CPU per query; latency at {result['latency_rate']}/s"
    )
    lines.append(
        f"{result['bytes_per_rrset']} bytes of memory per RRset; longest garbage collection {result['gc_pause_ms']} ms"
    )
    if result["same_core"]:
        lines.append("the load ran on the same core: queries/s and latency are of no use")
    return "\n".join(lines)
