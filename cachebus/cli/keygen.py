"""`cachebus keygen`: makes keys, and writes them where nobody else can read them."""

from __future__ import annotations

from pathlib import Path

import click

from cachebus.cli.common import json_option, print_json

ALGORITHMS = ("hmac-sha256", "hmac-sha384", "hmac-sha512")


@click.group()
def keygen() -> None:
    """Make a key."""


@keygen.command()
@click.argument("name")
@click.option("--algorithm", type=click.Choice(ALGORITHMS), default="hmac-sha256", show_default=True, help="Algorithm.")
@click.option("-o", "--output", metavar="FILE", help="File to write, mode 0600; `-` for stdout. [default: NAME.key]")
@click.option("--force", is_flag=True, help="Replace FILE when it exists.")
@json_option
def tsig(name: str, algorithm: str, output: str | None, force: bool, as_json: bool) -> None:
    """Make a TSIG key called NAME and write its key file: one line `NAME:ALG:BASE64`.

    NAME goes over the wire with every message and is the key's name in the configuration. Put a date into it: a later
    key needs another name.
    """
    from cachebus.config.keyfile import key_text, make_key, write_key_file

    key = make_key(name, algorithm)
    if output == "-":
        click.echo(key_text(key))
        return
    path = Path(output or f"{key_text(key).partition(':')[0].replace('/', '_')}.key")
    write_key_file(path, key, overwrite=force)
    if as_json:
        print_json({"name": name, "algorithm": algorithm, "file": str(path)})
    else:
        click.echo(f"wrote {path}")
