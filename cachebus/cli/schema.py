"""`cachebus schema`: the configuration's JSON schema, for editors."""

from __future__ import annotations

import json

import click

from cachebus.cli.common import json_option

DIALECT = "https://json-schema.org/draft/2020-12/schema"
"""What pydantic v2 writes."""


@click.command()
@json_option
def schema(as_json: bool) -> None:
    """Print the JSON schema of the configuration; with --json on one line.

    For an editor with a YAML language server: put it into a file, and
    `# yaml-language-server: $schema=FILE` into the first line of the configuration.
    """
    from cachebus.config import Config

    value = {"$schema": DIALECT, **Config.model_json_schema(by_alias=True)}
    click.echo(json.dumps(value) if as_json else json.dumps(value, indent=2))
