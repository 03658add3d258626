"""`cachebus bench`: what each transport costs and carries, beside its floor and beside dnspython, in the same run.

Decides what is asked for and in which order it is shown. What there is to measure is in `bench_lanes`, what the figures
hold in `bench_peers`, how they are taken in `bench_run`, how they are shown in `bench_table` and `bench_report`.
"""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from cachebus.cli.bench_lanes import Lane, lanes
from cachebus.cli.bench_report import check_report, write_report
from cachebus.cli.bench_run import Template, measure
from cachebus.cli.bench_shim import ENTRIES, measure_shim, shim_text
from cachebus.cli.bench_table import Result, shape, table
from cachebus.cli.bench_warm import measure_warm_start, warm_text
from cachebus.cli.broker import BrokerMissingError
from cachebus.cli.common import json_option, print_json
from cachebus.errors import CachebusError, TransportUnavailable
from cachebus.registry import load_transport

ANSWERS = 20_000
"""Default: some seconds for each transport."""
MIN_ANSWERS, MAX_ANSWERS = 1000, 1_000_000
"""Fewer would measure the clock; more need gigabytes for the trace."""
MAX_SUBSCRIBERS = 64
"""A process each."""
LATENCY_RATE = 5000.0
"""Answers per second while latency is measured."""

Progress = Callable[[str], None]


@click.command()
@click.option(
    "--transport",
    "names",
    multiple=True,
    metavar="NAME",
    help="Measure only this one: `tcp` is every line of it, `tcp+zstd` the one; may be repeated.",
)
@click.option(
    "--answers",
    type=click.IntRange(MIN_ANSWERS, MAX_ANSWERS),
    help=f"Length of the trace; {ANSWERS} by default. With --shim: names in the cache; {ENTRIES} by default.",
)
@click.option(
    "--subscribers",
    type=click.IntRange(1, MAX_SUBSCRIBERS),
    default=1,
    show_default=True,
    help="Processes that receive.",
)
@click.option(
    "--report",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    help="Write a page with plots there too; needs the extra `bench`.",
)
@click.option("--warm-start", is_flag=True, help="Measure instead how fast a cold node takes a warm one's cache.")
@click.option("--shim", is_flag=True, help="Measure instead the shim beside Unbound; needs dnsperf and unbound.")
@json_option
def bench(
    names: tuple[str, ...],
    answers: int | None,
    subscribers: int,
    report: Path | None,
    *,
    warm_start: bool,
    shim: bool,
    as_json: bool,
) -> None:
    """Measure transports on this machine, over loopback, beside their floor and beside dnspython.

    CPU is in microseconds per answer, the kernel's part included. The floor is the same bytes through the transport's
    bare library, with one HMAC per message; what else is in each figure is in docs/benchmarks.md.
    """
    if shim and warm_start:
        raise click.UsageError("--shim and --warm-start are two measurements")
    if shim:
        _one("shim", lambda progress: measure_shim(answers or ENTRIES, progress), shim_text, as_json=as_json)
        return
    if warm_start:
        secret = secrets.token_bytes(32)
        _one("warm start", lambda progress: measure_warm_start(secret, progress=progress), warm_text, as_json=as_json)
        return
    if report is not None:
        check_report()
    template = Template(
        answers=answers or ANSWERS, rate=LATENCY_RATE, secret=secrets.token_bytes(32), subscribers=subscribers
    )
    results: list[Result] = []
    complete = True
    for lane in _chosen(names):
        progress = _progress(lane.name)
        try:
            load_transport(lane.transport)
            measured = measure(lane, template, progress)
        except CachebusError as error:
            progress("")
            click.echo(f"{lane.name}: not measured: {error}", err=True)
            complete = complete and isinstance(error, BrokerMissingError | TransportUnavailable) and not names
            continue
        finally:
            progress("")
        results.append(shape(lane, template, measured))
        if as_json:
            print_json(results[-1])
    if results and not as_json:
        click.echo(table(results))
    if results and report is not None:
        write_report(report, results)
    if not results or not complete:
        raise SystemExit(1)


def _one(
    name: str,
    measured: Callable[[Progress], dict[str, Any]],
    text: Callable[[dict[str, Any]], str],
    *,
    as_json: bool,
) -> None:
    """A measurement that has one result."""
    progress = _progress(name)
    try:
        found = measured(progress)
    finally:
        progress("")
    if as_json:
        print_json(found)
    else:
        click.echo(text(found))


def _chosen(names: Sequence[str]) -> list[Lane]:
    found = lanes()
    if not names:
        return list(found)
    for name in names:
        if not any(name in (lane.name, lane.transport) for lane in found):
            load_transport(name)  # one that is not installed is told apart from one that cannot be measured
            known = ", ".join(lane.name for lane in found)
            raise click.UsageError(f"transport {name} cannot be measured; those that can: {known}")
    return [lane for lane in found if lane.name in names or lane.transport in names]


def _progress(name: str) -> Progress:
    """Writes one line that replaces itself; an empty text wipes it. Silent unless a terminal reads it."""
    if not sys.stderr.isatty():
        return lambda text: None
    return lambda text: click.echo(f"\r\x1b[K{name}: {text} ..." if text else "\r\x1b[K", nl=False, err=True)
