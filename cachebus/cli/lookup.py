"""`cachebus lookup`: what a running node's cache holds for a name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from cachebus.cli import OK, PROBLEM
from cachebus.cli.common import json_option, print_json, socket_options, socket_path


@click.command()
@click.argument("name")
@click.argument("type", required=False, metavar="[TYPE]")
@socket_options
@json_option
def lookup(name: str, type: str | None, socket: str | None, config: Path | None, as_json: bool) -> int:  # noqa: A002
    """Show what the node's cache holds for NAME: the chain to TYPE, or every type. Exit status 1 for nothing."""
    lines = ask_about("lookup", name, type, socket_path(socket, config))
    for line in lines:
        if as_json:
            print_json(line)
        else:
            for text in describe(line):
                click.echo(text)
    if not lines:
        click.echo("nothing held", err=True)
    return OK if lines else PROBLEM


def ask_about(what: str, name: str, rrtype: str | None, socket: str) -> list[dict[str, Any]]:
    """Ask the node behind `socket` about a name. Raises `CachebusError` as `client.ask` does."""
    from cachebus.admin.client import ask

    reply = ask(socket, what, {"name": name, **({"type": rrtype} if rrtype else {})})
    return [line for line in reply if isinstance(line, dict)] if isinstance(reply, list) else []


def describe(line: Mapping[str, Any]) -> Iterator[str]:
    """Write one RRset and its provenance for people."""
    for record in line.get("records") or ():
        yield str(record)
    if line.get("negative"):
        yield f"{line['name']} {line['ttl']} IN {line['type']}: does not exist"
    if line.get("learned") is None:
        return
    signer = f", signed by {line['signer']}" if line.get("signer") else ""
    way = f"by {line['transport']}{signer}" if line.get("transport") else "locally"
    yield f"  {line['evidence']}, from {line['origin']}, learned {moment(line['learned'])}, {way}"


def moment(seconds: float) -> str:
    """Write a time of the epoch in UTC, to the second."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
