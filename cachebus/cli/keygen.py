"""`cachebus keygen`: makes keys, and writes them where nobody else can read them."""

from __future__ import annotations

from pathlib import Path

import click

from cachebus.cli.common import json_option, print_json
from cachebus.cli.keygen_tls import tls

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


@keygen.command()
@click.argument("name")
@click.option("-o", "--output", metavar="FILE", help="File of the secret key, mode 0600. [default: NAME.curve]")
@click.option("--force", is_flag=True, help="Replace the files when they exist.")
@json_option
def curve(name: str, output: str | None, force: bool, as_json: bool) -> None:
    """Make a CURVE key pair for ZeroMQ, called NAME as its node, and write two files.

    FILE holds the secret key, FILE.pub the public one, which others allow: one line `NAME:curve-public:KEY`.
    """
    import re

    import zmq

    from cachebus.config.keyfile import write_line
    from cachebus.errors import ConfigError

    if not re.fullmatch("[a-z0-9-]{1,63}", name):
        raise ConfigError("the name of a CURVE key has 1 to 63 characters of a-z, 0-9 and -, as a node's")
    public, secret = (key.decode() for key in zmq.curve_keypair())
    path = Path(output or f"{name}.curve")
    beside = path.with_name(f"{path.name}.pub")
    if beside.exists() and not force:
        raise ConfigError(f"{beside} exists; nothing was written")
    write_line(path, f"{name}:curve:{secret}", overwrite=force)
    write_line(beside, f"{name}:curve-public:{public}", overwrite=force, mode=0o644)
    if as_json:
        print_json({"name": name, "file": str(path), "public_file": str(beside), "public": public})
    else:
        click.echo(f"wrote {path} and {beside}")


keygen.add_command(tls)
