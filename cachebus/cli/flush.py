"""`cachebus flush`: make a running node forget, and the resolvers that it fills."""

from __future__ import annotations

from pathlib import Path

import click

from cachebus.cli import OK, PROBLEM
from cachebus.cli.common import json_option, print_json, socket_options, socket_path

_IN_WORDS = {"done": "flushed", "pending": "does not answer: flushed when it does", "unable": "keeps what it was given"}


@click.command()
@click.argument("name", required=False, metavar="[NAME]")
@click.option("--subtree", is_flag=True, help="Everything below NAME too.")
@click.option("--type", "rrtype", metavar="TYPE", help="This type of NAME alone.")
@click.option("--key-tag", type=click.IntRange(0, 65535), metavar="TAG", help="What this key of --signer has signed.")
@click.option("--signer", metavar="ZONE", help="The zone of the key.")
@click.option("--all", "everything", is_flag=True, help="Everything.")
@socket_options
@json_option
def flush(
    name: str | None,
    subtree: bool,
    rrtype: str | None,
    key_tag: int | None,
    signer: str | None,
    everything: bool,
    socket: str | None,
    config: Path | None,
    as_json: bool,
) -> int:
    """Make the node forget NAME, or more: in its cache and in the resolvers that it fills.

    What was learned before and is still on its way is not taken in. Other nodes keep theirs. By key, resolvers forget
    the whole zone. Exit status 1 when a resolver has not done it yet.
    """
    from cachebus.admin.client import tell  # a verb's wrong usage must not pay for it

    if everything + (name is not None) + (key_tag is not None) != 1:
        raise click.UsageError("one of NAME, --key-tag with --signer, or --all")
    asked = {"name": name, "type": rrtype, "signer": signer, "key_tag": None if key_tag is None else str(key_tag)}
    parameters = {key: value for key, value in asked.items() if value is not None}
    parameters |= {key: "1" for key, value in (("subtree", subtree), ("all", everything)) if value}
    report = tell(socket_path(socket, config), "flush", parameters)
    if as_json:
        print_json(report)
    else:
        click.echo(f"{report['removed']} entries removed")
        for sink, outcome in report["sinks"].items():
            click.echo(f"  {sink}: {_IN_WORDS.get(outcome, outcome)}")
    return PROBLEM if "pending" in report["sinks"].values() else OK
