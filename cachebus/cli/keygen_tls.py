"""`cachebus keygen tls`: an authority for the cluster, and certificates of its nodes for links under TLS.

Decides which files are written. What stands in them is `certificates`' matter.
"""

from __future__ import annotations

import datetime
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cachebus.cli.common import json_option, print_json
from cachebus.errors import ConfigError

if TYPE_CHECKING:
    from cachebus.cli.certificates import Issued

AUTHORITY = "ca"
"""The authority's files are called ca.pem and ca.key."""


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option(
    "-o",
    "--output",
    metavar="DIRECTORY",
    default=".",
    show_default=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Where the files are, and are written.",
)
@click.option("--days", type=click.IntRange(1, 3650), help="Validity of the nodes' certificates.  [default: 397]")
@click.option("--force", is_flag=True, help="Replace nodes' files that exist; never the authority's.")
@json_option
def tls(*, names: tuple[str, ...], output: Path, days: int | None, force: bool, as_json: bool) -> None:
    """Make certificates of the nodes called NAME, and the authority they come from unless DIRECTORY has it.

    NAME is a host name, as `tls.peers` of the other nodes lists it; its first label is the node's name. Each node needs
    NAME.pem, NAME.key and ca.pem. ca.key makes further certificates: keep it where no node is.
    """
    from cachebus.cli.certificates import NODE_DAYS, issue
    from cachebus.tls import host_name

    plain = [host_name(name) for name in names]
    if AUTHORITY in plain:
        raise ConfigError(f"a node cannot be called {AUTHORITY}: its files would replace the authority's")
    now = datetime.datetime.now(datetime.UTC)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{output}: {error.strerror}") from None
    if not force and (taken := [path for name in plain for path in _files(output, name) if path.exists()]):
        raise ConfigError(f"{taken[0]} exists; nothing was written")
    authority = _authority(output, now)
    for name in plain:
        certificate, key = _write(output, name, issue(authority, name, now, days=days or NODE_DAYS))
        if as_json:
            print_json({"name": name, "certificate": str(certificate), "key": str(key), "ca": str(output / "ca.pem")})
        else:
            click.echo(f"wrote {certificate} and {key}")


def _authority(directory: Path, now: datetime.datetime) -> Issued:
    from cachebus.cli.certificates import make_authority, read_authority

    certificate, key = _files(directory, AUTHORITY)
    if certificate.exists() or key.exists():
        return read_authority(certificate, key)
    made = make_authority(f"cachebus {now:%Y-%m-%d}", now)
    _write(directory, AUTHORITY, made)
    return made


def _files(directory: Path, name: str) -> tuple[Path, Path]:
    return directory / f"{name}.pem", directory / f"{name}.key"


def _write(directory: Path, name: str, issued: Issued) -> tuple[Path, Path]:
    certificate, key = _files(directory, name)
    _replace(key, issued.key_pem, 0o600)
    _replace(certificate, issued.certificate_pem, 0o644)
    return certificate, key


def _replace(path: Path, data: bytes, mode: int) -> None:
    """Write a file under another name and move it into place: a running node never reads half of it."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(descriptor)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
