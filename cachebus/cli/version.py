"""`cachebus version`: what is installed here."""

from __future__ import annotations

import platform

import click

from cachebus import __version__
from cachebus.cli.common import json_option, print_json


@click.command()
@json_option
def version(as_json: bool) -> None:
    """Print the version of cachebus, of Python, and the platform."""
    python, system = platform.python_version(), platform.platform()
    if as_json:
        print_json({"version": __version__, "python": python, "platform": system})
    else:
        click.echo(f"cachebus {__version__} (Python {python}, {system})")
