"""The `cachebus` command: which verbs there are, and how an error leaves the process.

A verb's module is imported only when it is called, so that `cachebus version` does not pay for pydantic. Knows nothing
of what a verb does.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import NoReturn

import click

from cachebus.errors import CachebusError

OK = 0
PROBLEM = 1
USAGE = 2
INTERRUPTED = 130
"""128 + SIGINT, as shells report it."""

VERBS: Mapping[str, str] = {
    "demo": "A whole cluster on this machine: sharing off, then on; one table.",
    "run": "The node: share what the local resolver learns, fill it with what peers learned.",
    "init": "Write a starter configuration and a key file.",
    "check": "Check a configuration; silent when it is right.",
    "schema": "Print the JSON schema of the configuration.",
    "keygen": "Make a key.",
    "explain": "Run the trust rules over a capture: a verdict and its reason for each message.",
    "publish": "Send the answers of a capture to a transport.",
    "convert": "A capture in another format: dnstap, C-DNS, DNS messages.",
    "tail": "Print each answer that arrives on a transport.",
    "forward": "A ZeroMQ hub, for clusters in which not every node reaches every other.",
    "status": "What a running node has sent, received, refused and dropped.",
    "why": "Where a name's data came from, and what happened to it.",
    "lookup": "What a running node's cache holds for a name.",
    "flush": "Make a running node, and the resolver that it fills, forget a name or more.",
    "snapshot": "Save a running node's cache to a file, or load one.",
    "bench": "Measure the transports against their floor.",
    "version": "Print the version.",
}
"""Verb to its line in `--help`. The verb's module in this package has a click command of the same name."""


class Verbs(click.Group):
    """A click group that knows its commands by name and imports one when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Give every verb, in the order of `--help`."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the verb's module; None for a verb that does not exist."""
        if cmd_name not in VERBS:
            return None
        command = getattr(importlib.import_module(f"cachebus.cli.{cmd_name}"), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of verbs without importing any of them."""
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def cachebus() -> None:
    """Share what DNS resolvers learn, over an authenticated bus."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; gives the exit status: 0 fine, 1 a problem, 2 usage, 130 interrupted.

    A traceback is left for bugs only: wrong input, missing files and a closed pipe end with a line or quietly.
    """
    try:
        result = cachebus.main(
            args=None if arguments is None else list(arguments), prog_name="cachebus", standalone_mode=False
        )
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except BrokenPipeError:
        _discard_output()
        return PROBLEM
    except (CachebusError, OSError) as error:
        click.echo(f"cachebus: {error}", err=True)
        return PROBLEM
    return result if isinstance(result, int) else OK


def _discard_output() -> None:
    # The interpreter flushes stdout once more at its end and would print "Exception ignored" for the closed pipe.
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def entry() -> NoReturn:
    """Run this process's command line and exit; for `python -m cachebus`."""
    raise SystemExit(main())
