"""`cachebus bench`: what a transport costs and carries, beside its floor and beside dnspython, in the same run.

Decides what is asked for and how the figures are shown. What they hold is written in `bench_peers`, how they are taken
in `bench_run`, the rows beside cachebus in `bench_rows`, the traffic in `bench_trace`.
"""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable, Sequence
from typing import Any

import click

from cachebus.cli.bench_peers import Job, Row
from cachebus.cli.bench_run import Measured, measure
from cachebus.cli.common import json_option, print_json
from cachebus.cli.version import compiled
from cachebus.registry import load_transport

CODECS = {"udp": "dns"}
"""Transports that can be measured, with their codec."""
ANSWERS = 20_000
"""Default: some seconds for all rounds."""
MIN_ANSWERS, MAX_ANSWERS = 1000, 1_000_000
"""Fewer would measure the clock; more need gigabytes for the trace."""
LATENCY_RATE = 5000.0
"""Answers per second while latency is measured."""


@click.command()
@click.option(
    "--transport", "transports", multiple=True, metavar="NAME", help="Measure only this one; may be repeated."
)
@click.option(
    "--answers",
    type=click.IntRange(MIN_ANSWERS, MAX_ANSWERS),
    default=ANSWERS,
    show_default=True,
    help="Length of the trace.",
)
@json_option
def bench(transports: tuple[str, ...], answers: int, as_json: bool) -> None:
    """Measure transports on this machine, over loopback, beside their floor and beside dnspython.

    CPU is in microseconds per answer, the kernel's part included. The floor is a bare uvloop endpoint with one HMAC per
    datagram; the dnspython row verifies and composes as its documentation advises. All get the same bytes.
    """
    chosen = tuple(dict.fromkeys(transports)) or tuple(CODECS)
    for name in chosen:
        load_transport(name)
        if name not in CODECS:
            raise click.UsageError(f"transport {name} cannot be measured; those that can: {', '.join(CODECS)}")
    for name in chosen:
        job = Job(transport=name, answers=answers, rate=LATENCY_RATE, secret=secrets.token_bytes(32))
        progress = _progress(name)
        try:
            measured = measure(job, progress)
        finally:
            progress("")
        result = shape(name, measured)
        if as_json:
            print_json(result)
        else:
            click.echo(table(result))


def shape(transport: str, measured: Measured) -> dict[str, Any]:
    """The object of `--json`. `lost`: of the `overload_sent` answers sent back to back."""
    medians = {row: figures.medians for row, figures in measured.rows.items()}
    own_send, own_receive = medians[Row.CACHEBUS]
    floor_send, floor_receive = medians[Row.FLOOR]
    slow_send, slow_receive = medians[Row.DNSPYTHON]
    seconds = measured.flood.seconds
    return {
        "transport": transport,
        "codec": CODECS[transport],
        "compiled": compiled(),
        "answers_per_second": round(measured.flood.datagrams / seconds) if seconds else 0,
        "send_cpu_us": round(own_send, 2),
        "receive_cpu_us": round(own_receive, 2),
        "bytes_per_answer": round(measured.bytes_per_answer, 1),
        "latency_ms": {
            "p50": round(1000 * _percentile(measured.latencies, 50), 3),
            "p99": round(1000 * _percentile(measured.latencies, 99), 3),
        },
        "lost": measured.flood_sent - measured.flood.datagrams,
        "overload_sent": measured.flood_sent,
        "latency_lost": measured.unarrived,
        "floor": {"send_cpu_us": round(floor_send, 2), "receive_cpu_us": round(floor_receive, 2)},
        "dnspython": {"send_cpu_us": round(slow_send, 2), "receive_cpu_us": round(slow_receive, 2)},
        "receive_times_floor": round(own_receive / floor_receive, 2),
        "receive_times_less_than_dnspython": round(slow_receive / own_receive, 1),
        "send_times_floor": round(own_send / floor_send, 2),
        "send_times_less_than_dnspython": round(slow_send / own_send, 1),
    }


def table(result: dict[str, Any]) -> str:
    """The same for people."""
    floor, slow = result["floor"], result["dnspython"]
    latency = result["latency_ms"]
    lost = f"{result['lost']} of {result['overload_sent']}"
    rows = [
        ("", "send", "receive"),
        ("cachebus", f"{result['send_cpu_us']:.2f}", f"{result['receive_cpu_us']:.2f}"),
        ("floor", f"{floor['send_cpu_us']:.2f}", f"{floor['receive_cpu_us']:.2f}"),
        ("dnspython", f"{slow['send_cpu_us']:.2f}", f"{slow['receive_cpu_us']:.2f}"),
        ("times the floor", f"{result['send_times_floor']:.2f}", f"{result['receive_times_floor']:.2f}"),
        (
            "dnspython takes",
            f"{result['send_times_less_than_dnspython']:.1f} x",
            f"{result['receive_times_less_than_dnspython']:.1f} x",
        ),
    ]
    build = "compiled" if result["compiled"] else "pure Python"
    lines = [f"{result['transport']} with codec {result['codec']}, {build}, CPU microseconds per answer"]
    lines += [f"  {name:16}{send:>10}{receive:>10}" for name, send, receive in rows]
    lines += [
        f"  bytes per answer      {result['bytes_per_answer']:.1f}",
        f"  latency at {LATENCY_RATE:.0f}/s    p50 {latency['p50']:.3f} ms, p99 {latency['p99']:.3f} ms",
        f"  sent back to back     {result['answers_per_second']} answers/s taken, {lost} lost",
    ]
    return "\n".join(lines)


def _percentile(ascending: Sequence[float], percent: int) -> float:
    """The value that `percent` of all do not exceed (nearest rank)."""
    return ascending[max(0, -(-len(ascending) * percent // 100) - 1)]


def _progress(name: str) -> Callable[[str], None]:
    """Writes one line that replaces itself; an empty text wipes it. Silent unless a terminal reads it."""
    if not sys.stderr.isatty():
        return lambda text: None
    return lambda text: click.echo(f"\r\x1b[K{name}: {text} ..." if text else "\r\x1b[K", nl=False, err=True)
