"""How the figures of `bench` are shown: an object of JSON for each transport, and one table of all for people.

Decides names, units and rounding; how the figures came about is written in `bench_peers`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cachebus.cli.bench_lanes import Lane
from cachebus.cli.bench_peers import Row
from cachebus.cli.bench_run import Measured, Template
from cachebus.cli.version import compiled

Result = dict[str, Any]


def shape(lane: Lane, template: Template, measured: Measured) -> Result:
    """The object of `--json`. CPU in microseconds per answer; figures that a transport does not have are None.

    `lost`: of the `overload_sent` answers sent back to back to each subscriber.
    """
    medians = {row: figures.medians for row, figures in measured.rows.items()}
    own, slow = medians[Row.CACHEBUS], medians[Row.DNSPYTHON]
    floor = medians.get(Row.FLOOR)
    flood = measured.flood
    return {
        "name": lane.name,
        "transport": lane.transport,
        "codec": lane.codec.value,
        "zstd": lane.zstd,
        "compiled": compiled(),
        "subscribers": template.subscribers,
        "answers": template.answers,
        "answers_per_second": round(flood.per_second),
        "send_cpu_us": round(own[0], 2),
        "receive_cpu_us": round(own[1], 2),
        "bytes_per_answer": round(measured.bytes_per_answer, 1),
        "bytes_per_distinct_answer": round(measured.bytes_distinct, 1),
        "latency_ms": {
            "p50": round(1000 * percentile(measured.latencies, 50), 3),
            "p99": round(1000 * percentile(measured.latencies, 99), 3),
        },
        "latency_rate": template.rate,
        "lost": flood.lost,
        "overload_sent": flood.sent,
        "latency_lost": measured.unarrived,
        "memory_bytes": {"send": measured.memory[0], "receive": measured.memory[1]},
        "floor": _both(floor),
        "dnspython": _both(slow),
        "receive_times_floor": _ratio(own[1], floor and floor[1], 2),
        "receive_times_less_than_dnspython": _ratio(slow[1], own[1], 1),
        "send_times_floor": _ratio(own[0], floor and floor[0], 2),
        "send_times_less_than_dnspython": _ratio(slow[0], own[0], 1),
    }


def _both(medians: tuple[float, float] | None) -> dict[str, float | None]:
    send, receive = medians or (None, None)
    return {
        "send_cpu_us": None if send is None else round(send, 2),
        "receive_cpu_us": None if receive is None else round(receive, 2),
    }


def _ratio(one: float, other: float | None, digits: int) -> float | None:
    return round(one / other, digits) if other else None


def percentile(ascending: Sequence[float], percent: int) -> float:
    """The value that `percent` of all do not exceed (nearest rank)."""
    return ascending[max(0, -(-len(ascending) * percent // 100) - 1)]


_HEADS = (
    (
        "",
        "",
        "answers/s",
        "send",
        "receive",
        "floor",
        "times",
        "dnspython",
        "bytes",
        "bytes",
        "p50",
        "p99",
        "lost",
        "memory",
    ),
    ("transport", "codec", "taken", "us", "us", "us", "floor", "takes", "", "distinct", "ms", "ms", "", "MiB"),
)


def table(results: Sequence[Result]) -> str:
    """All transports beside each other, for people."""
    first = results[0]
    build = "compiled" if first["compiled"] else "pure Python"
    to = f"to {first['subscribers']} subscribers" if first["subscribers"] > 1 else "to one subscriber"
    lines = [*_HEADS, *map(_cells, results)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    rows = (
        "  ".join(cell.ljust(width) if column < 2 else cell.rjust(width) for column, (cell, width) in enumerate(pairs))
        for pairs in (list(zip(line, widths, strict=True)) for line in lines)
    )
    said = (
        f"{first['answers']} answers {to} over loopback, {build}; CPU and bytes per answer, "
        f"latency at {first['latency_rate']:.0f}/s"
    )
    return "\n".join([said, *(row.rstrip() for row in rows)])


def _cells(result: Result) -> tuple[str, ...]:
    slower = result["receive_times_less_than_dnspython"]
    return (
        result["name"],
        result["codec"],
        str(result["answers_per_second"]),
        _number(result["send_cpu_us"], 2),
        _number(result["receive_cpu_us"], 2),
        _number(result["floor"]["receive_cpu_us"], 2),
        _number(result["receive_times_floor"], 2),
        f"{_number(slower, 0)} x",
        _number(result["bytes_per_answer"], 1),
        _number(result["bytes_per_distinct_answer"], 1),
        _number(result["latency_ms"]["p50"], 2),
        _number(result["latency_ms"]["p99"], 2),
        _number(100 * result["lost"] / max(1, result["overload_sent"] * result["subscribers"]), 1) + " %",
        _number(result["memory_bytes"]["receive"] / 2**20, 1),
    )


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
