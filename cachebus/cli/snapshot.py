"""`cachebus snapshot`: the cache of a running node to a C-DNS file, and back into one."""

from __future__ import annotations

import os
from pathlib import Path

import click

from cachebus.cli.common import json_option, print_json, socket_options, socket_path


@click.group()
def snapshot() -> None:
    """Save the cache of a running node to a file, or load such a file into one."""


@snapshot.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@socket_options
@json_option
def save(file: Path, socket: str | None, config: Path | None, as_json: bool) -> None:
    """Write what a running node's cache holds to FILE, the most popular first: C-DNS (RFC 8618).

    FILE appears when it is whole.
    """
    from cachebus.admin.client import give_copy

    path = socket_path(socket, config)
    new = file.with_name(f"{file.name}.part")
    try:
        # It tells what the resolver's users asked for: nobody else's business.
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as out:  # noqa: PTH123
            size = give_copy(path, out)
        new.replace(file)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    if as_json:
        print_json({"bytes": size})
    else:
        click.echo(f"{size} bytes")


@snapshot.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@socket_options
@json_option
def load(file: Path, socket: str | None, config: Path | None, as_json: bool) -> None:
    """Merge the answers of FILE into a running node's cache, by their age and rank. Nothing of it is published."""
    from cachebus.admin.client import take_copy

    with file.open("rb") as copy:
        report = take_copy(socket_path(socket, config), copy)
    if as_json:
        print_json(report)
        return
    click.echo(f"{report['received']} answers, {report['merged']} of them news")
    for reason, count in sorted(report["refused"].items()):
        click.echo(f"  {reason} {count}")
