"""`cachebus demo`: a whole cluster on this machine, first with sharing off, then with each transport; one table.

No root, no internet; a broker only where one is installed. Decides the order of things and what is shown; the processes
are `demo_cluster`, the clients `demo_load`.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import click

from cachebus.admin.client import ask
from cachebus.answer import Refusal
from cachebus.cli.broker import BrokerMissingError, program
from cachebus.cli.common import json_option, print_json
from cachebus.cli.demo_cluster import MODES, POLL_INTERVAL, Authority, Cluster, Mode
from cachebus.cli.demo_load import questions, run_load
from cachebus.cli.demo_zone import NAMES, name_of

NODES = 4
QUESTIONS = 9_600
"""Per mode: enough that the rare names matter too; eight seconds, so that all modes are shown within two minutes."""
RATE = 1200.0
"""Questions a second in all: a small part of what two cores can do, so that latencies are the cluster's own."""
ARRIVAL_TIMEOUT = 2.0
"""Seconds after the last question within which a message that is not lost arrives."""

_HAD_ALREADY = {Refusal.LOCAL_DATA_LIVE.value, Refusal.BETTER_KNOWN.value}


class Row(NamedTuple):
    """One mode's result."""

    transport: str
    hit_rate: float
    """Share of the clients' questions that caused no query to the authoritative server."""
    upstream_queries: int
    p50: float
    p99: float
    lost: int
    """Bus messages sent to a peer that did not arrive there."""
    refused: int
    """Bus messages that a peer refused."""
    unanswered: int
    """Questions of clients without an answer, or with an error."""

    def as_json(self) -> dict[str, Any]:
        """The shape of `--json`."""
        return {
            "transport": self.transport,
            "hit_rate": round(self.hit_rate, 4),
            "upstream_queries": self.upstream_queries,
            "latency_ms": {"p50": round(self.p50, 3), "p99": round(self.p99, 3)},
            "lost": self.lost,
            "refused": self.refused,
            "unanswered": self.unanswered,
        }


class Progress:
    """One line on stderr that is written over, when a terminal is there to show it."""

    def __init__(self, *, shown: bool) -> None:
        self._shown = shown
        self._last = ""

    def say(self, text: str) -> None:
        """Replace the line."""
        if self._shown and text != self._last:
            click.echo(f"\r\x1b[K{text}", err=True, nl=False, color=True)
            self._last = text

    def clear(self) -> None:
        """Leave no line behind."""
        if self._shown and self._last:
            click.echo("\r\x1b[K", err=True, nl=False, color=True)
            self._last = ""


@click.command()
@click.option("--keep", is_flag=True, help="Leave the last cluster running afterwards, until Ctrl-C.")
@click.option(
    "--transport",
    "names",
    type=click.Choice([mode.name for mode in MODES if mode.name != "off"]),
    multiple=True,
    help="Show only this one, beside sharing off; may be repeated.",
)
@json_option
def demo(names: tuple[str, ...], *, keep: bool, as_json: bool) -> None:
    """Show what sharing gains: 4 nodes, one slow authoritative server, the same questions with sharing off and on."""
    progress = Progress(shown=sys.stderr.isatty())
    try:
        asyncio.run(_demo(chosen(names), progress, keep=keep, as_json=as_json))
    except asyncio.CancelledError:
        raise click.Abort from None


def chosen(names: Sequence[str]) -> list[Mode]:
    """The modes to show, `off` first. Without names, those whose broker is not installed are left out, and said so.

    Raises `BrokerMissingError` for one that was asked for by name.
    """
    modes = [mode for mode in MODES if not names or mode.name in ("off", *names)]
    try:
        if any(mode.broker for mode in modes):
            program()
    except BrokerMissingError as error:
        if names:
            raise
        click.echo(f"without mqtt: {error}", err=True)
        modes = [mode for mode in modes if not mode.broker]
    return modes


async def _demo(modes: Sequence[Mode], progress: Progress, *, keep: bool, as_json: bool) -> None:
    with _folder() as folder, _ended_by_signals():
        try:
            async with Authority(folder) as authority:
                rows = []
                for mode in modes:
                    last = mode is modes[-1]
                    progress.say(f"{mode.name}: starting {NODES} nodes")
                    async with Cluster(mode, nodes=NODES, folder=folder, upstream=authority.port) as cluster:
                        row = await _measure(mode, cluster, authority, progress)
                        rows.append(row)
                        progress.clear()
                        if as_json:
                            print_json(row.as_json())
                        if last and not as_json:
                            click.echo(table(rows))
                        if last and keep:
                            _say_where(cluster, folder)
                            await _forever(cluster)
        finally:
            progress.clear()


async def _measure(mode: Mode, cluster: Cluster, authority: Authority, progress: Progress) -> Row:
    stream = questions(QUESTIONS, nodes=NODES, names=NAMES, rate=RATE)

    def show(share: float) -> None:
        progress.say(f"{mode.name}: {share:.0%} of {QUESTIONS} questions to {NODES} nodes")

    before = await authority.queries()
    result = await run_load(stream, cluster.shim_ports, name_of, progress=show)
    cluster.check()
    asked_upstream = await authority.queries() - before
    lost, refused = await bus_losses(mode, cluster)
    return Row(
        transport=mode.name,
        hit_rate=1 - asked_upstream / max(1, result.asked),
        upstream_queries=asked_upstream,
        p50=result.percentile(0.50),
        p99=result.percentile(0.99),
        lost=lost,
        refused=refused,
        unanswered=result.asked - result.answered + result.failed,
    )


async def bus_losses(mode: Mode, cluster: Cluster) -> tuple[int, int]:
    """(messages that did not arrive, messages refused), over all nodes and transports, as the nodes count them.

    What a node had already, because two asked for it at once, is not counted as refused.
    """
    deadline = asyncio.get_running_loop().time() + ARRIVAL_TIMEOUT
    while True:
        reports = [await asyncio.to_thread(ask, str(cluster.socket_of(node)), "status") for node in range(NODES)]
        counted = [counters for report in reports for counters in report["transports"].values()]
        lost = _lost(mode, counted)
        if not lost or asyncio.get_running_loop().time() > deadline:
            break
        await asyncio.sleep(POLL_INTERVAL)
    refused = sum(
        count for counters in counted for reason, count in counters["refused"].items() if reason not in _HAD_ALREADY
    )
    return lost, refused


def _lost(mode: Mode, counted: Sequence[Mapping[str, Any]]) -> int:
    if mode.numbered:
        return sum(counters["gaps"] for counters in counted)
    copies = NODES - 1 if mode.spread else 1
    return sum(counters["sent"] * copies - counters["received"] for counters in counted)


def table(rows: list[Row]) -> str:
    """The one table at the end."""
    heads = ("transport", "hit rate", "upstream queries", "p50 ms", "p99 ms", "lost", "refused")
    lines = [heads]
    for row in rows:
        cells = (f"{row.hit_rate:.1%}", str(row.upstream_queries), f"{row.p50:.2f}", f"{row.p99:.2f}")
        lines.append((row.transport, *cells, str(row.lost), str(row.refused)))
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    return "\n".join(
        "  ".join(cell.ljust(width) if not column else cell.rjust(width) for column, (cell, width) in enumerate(pairs))
        for pairs in (list(zip(line, widths, strict=True)) for line in lines)
    )


def _say_where(cluster: Cluster, folder: Path) -> None:
    click.echo(f"\nThe cluster is running; Ctrl-C ends it. Configurations and logs: {folder}", err=True)
    for node, port in enumerate(cluster.shim_ports):
        click.echo(f"  node-{node + 1}: dig @127.0.0.1 -p {port} {name_of(0)}", err=True)


async def _forever(cluster: Cluster) -> None:
    while True:
        cluster.check()
        await asyncio.sleep(1)


@contextmanager
def _folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="cachebus-demo-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the demo as Ctrl-C does, so that no child is left behind."""
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None
    numbers = (signal.SIGTERM, signal.SIGHUP)
    for number in numbers:
        loop.add_signal_handler(number, task.cancel)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
