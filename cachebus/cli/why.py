"""`cachebus why`: where a name's data came from, and what happened to it on this node."""

from __future__ import annotations

from pathlib import Path

import click

from cachebus.cli import OK, PROBLEM
from cachebus.cli.common import json_option, print_json, socket_options, socket_path
from cachebus.cli.lookup import ask_about, describe, moment


@click.command()
@click.argument("name")
@click.argument("type", required=False, metavar="[TYPE]")
@socket_options
@json_option
def why(name: str, type: str | None, socket: str | None, config: Path | None, as_json: bool) -> int:  # noqa: A002
    """Show what the cache holds for NAME, where it came from, and what lately happened to NAME, refusals included.

    Exit status 1 when nothing is known of it.
    """
    lines = ask_about("why", name, type, socket_path(socket, config))
    if as_json:
        for line in lines:
            print_json(line)
    elif lines:
        for line in lines:
            for text in describe(line):
                click.echo(text)
        for event in lines[0].get("history", ()):
            detail = f": {event['detail']}" if event.get("detail") else ""
            click.echo(f"  {moment(event['time'])} {event['node']} {event['event']}{detail}")
    if not lines:
        click.echo("nothing known", err=True)
    return OK if lines else PROBLEM
