"""`cachebus version`: what is installed here, and whether its hot modules are compiled."""

from __future__ import annotations

import platform
from importlib.machinery import SOURCE_SUFFIXES
from importlib.util import find_spec

import click

from cachebus import __version__
from cachebus.cli.common import json_option, print_json

_HOT = "cachebus.cache"
"""One of the modules that the build compiles, all or none."""


@click.command()
@json_option
def version(as_json: bool) -> None:
    """Print the version of cachebus, of Python, and the platform."""
    python, system, is_compiled = platform.python_version(), platform.platform(), compiled()
    if as_json:
        print_json({"version": __version__, "python": python, "platform": system, "compiled": is_compiled})
    else:
        kind = "compiled" if is_compiled else "pure Python"
        click.echo(f"cachebus {__version__}, {kind} (Python {python}, {system})")


def compiled() -> bool:
    """Whether the hot modules are extension modules here (see docs/operations.md), asked of what would be imported."""
    spec = find_spec(_HOT)
    return spec is not None and spec.origin is not None and not spec.origin.endswith(tuple(SOURCE_SUFFIXES))
