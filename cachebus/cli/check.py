"""`cachebus check`: is a configuration right? Reads it and its key files, and asks the installed transports; opens no
socket.
"""

from __future__ import annotations

from pathlib import Path

import click

from cachebus.cli import OK, PROBLEM
from cachebus.cli.common import config_option, json_option, print_json


@click.command()
@config_option(required=True, help="The configuration to check.")
@json_option
def check(config: Path, as_json: bool) -> int:
    """Check a configuration.

    Silent, with exit status 0, when it is right. Else exit status 1 and a line per problem,
    `FILE:LINE:COL: path.to.key: what is wrong`. What is allowed but doubtful goes to stderr and does not change the
    status.
    """
    from cachebus.assembly import load
    from cachebus.config import ConfigErrors

    try:
        checked = load(config)
    except ConfigErrors as error:
        for problem in error.problems:
            if as_json:
                print_json(problem._asdict())
            else:
                click.echo(str(problem))
        return PROBLEM
    for warning in checked.warnings:
        click.echo(str(warning._replace(message=f"warning: {warning.message}")), err=True)
    return OK
