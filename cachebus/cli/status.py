"""`cachebus status`: what a running node has counted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import click

from cachebus.cli.common import json_option, print_json, socket_options, socket_path
from cachebus.cli.lookup import moment

ALWAYS = frozenset({"sent", "received", "accepted", "entries", "bytes", "frames", "filled", "up", "queries", "workers"})
"""Shown while 0 too: that nothing came or went is what one looks for. Other zeros would only hide the rest."""

MOMENTS = frozenset({"certificate_expires"})
"""Numbers that are a time, in seconds of the epoch."""


@click.command()
@socket_options
@json_option
def status(socket: str | None, config: Path | None, as_json: bool) -> None:
    """Show what a running node has sent, received, refused and dropped."""
    from cachebus.admin.client import ask

    report = ask(socket_path(socket, config), "status")
    if as_json:
        print_json(report)
        return
    for line in describe(report):
        click.echo(line)


def describe(report: Mapping[str, Any]) -> Iterator[str]:
    """Write a status for people: a line per part, a line per part's refusals."""
    uptime = timedelta(seconds=int(report.get("uptime", 0)))
    yield f"node {report.get('node')} of cluster {report.get('cluster')}, up {uptime}"
    yield f"cache: {_numbers(report.get('cache', {}))}"
    for section, word in (("sources", "source"), ("transports", "transport"), ("sinks", "sink")):
        for name, counters in report.get(section, {}).items():
            yield from _part(f"{word} {name}", counters)
    for name, peers in report.get("peers", {}).items():
        yield f"peers on {name}: " + ", ".join(f"{origin}{_peer(known)}" for origin, known in peers.items())
    for section in ("share", "shim", "snapshot"):
        if section in report:
            yield from _part(section, report[section])


def _peer(known: Mapping[str, Any]) -> str:
    words = ["gone"] if known.get("gone") else []
    if known.get("policy_agrees") is False:
        words.append("another policy than ours")
    return f" ({', '.join(words)})" if words else ""


def _part(title: str, counters: Mapping[str, Any]) -> Iterator[str]:
    yield f"{title}: {_numbers(counters)}"
    for name, reasons in counters.items():
        if isinstance(reasons, Mapping) and reasons:
            most_first = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
            yield f"  {name}: " + ", ".join(f"{reason} {count}" for reason, count in most_first)


def _numbers(counters: Mapping[str, Any]) -> str:
    shown = [
        f"{name.replace('_', ' ')} {moment(value) if name in MOMENTS else value}"
        for name, value in counters.items()
        if not isinstance(value, Mapping) and (value or name in ALWAYS)
    ]
    return ", ".join(shown) or "nothing counted"
