"""`bench --report`: one page of HTML with the table and plots, whole in one file.

Decides what is plotted. Needs matplotlib (extra `bench`), which is imported when a page is asked for and not before.
"""

from __future__ import annotations

import html
import importlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cachebus.cli.bench_table import Result, table
from cachebus.errors import CachebusError

_STYLE = (
    "body{font:16px sans-serif;max-width:75em;margin:2em auto;padding:0 1em}pre{overflow-x:auto}svg{max-width:100%}"
)
_PLOTS = (
    (
        "CPU of the receiving side, microseconds per answer",
        (("cachebus", "receive_cpu_us"), ("floor", "floor.receive_cpu_us")),
    ),
    ("CPU of the sending side, microseconds per answer", (("cachebus", "send_cpu_us"), ("floor", "floor.send_cpu_us"))),
    ("Bytes per answer", (("Zipf names", "bytes_per_answer"), ("all distinct", "bytes_per_distinct_answer"))),
    ("Latency, milliseconds", (("p50", "latency_ms.p50"), ("p99", "latency_ms.p99"))),
    ("Answers per second, sent back to back", (("taken", "answers_per_second"),)),
)


class ReportError(CachebusError):
    """Raised when no report can be made; the text says what to install, or what went wrong."""


def check_report() -> None:
    """Raise `ReportError` where matplotlib is not installed."""
    _library()


def write_report(path: Path, results: Sequence[Result]) -> None:
    """Write the page. Raises `ReportError`."""
    figures = "\n".join(_plot(title, series, results) for title, series in _PLOTS)
    page = (
        f'<!DOCTYPE html>\n<html lang="en"><meta charset="utf-8"><title>cachebus bench</title><style>{_STYLE}</style>\n'
        f"<h1>cachebus bench</h1>\n<pre>{html.escape(table(results))}</pre>\n{figures}\n</html>\n"
    )
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise ReportError(f"{path}: {error.strerror}") from None


def _library() -> Any:
    try:
        return importlib.import_module("matplotlib.figure").Figure
    except ImportError as error:
        raise ReportError("--report needs matplotlib: pip install 'cachebus[bench]'") from error


def _plot(title: str, series: Sequence[tuple[str, str]], results: Sequence[Result]) -> str:
    figure = _library()(figsize=(9, 3.2), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(series)
    for number, (label, key) in enumerate(series):
        places = [place + number * width for place in range(len(results))]
        axes.bar(places, [_value(result, key) for result in results], width, label=label)
    axes.set_xticks([place + width * (len(series) - 1) / 2 for place in range(len(results))])
    axes.set_xticklabels([result["name"] for result in results])
    axes.set_title(title)
    axes.legend()
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg")
    return drawn.getvalue().partition("<svg")[1] + drawn.getvalue().partition("<svg")[2]


def _value(result: Result, key: str) -> float:
    value: Any = result
    for part in key.split("."):
        value = value[part]
    return float(value or 0)
