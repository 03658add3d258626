"""`cachebus run`: the node's daemon in the foreground, logging to stderr."""

from __future__ import annotations

import logging
from pathlib import Path

import click

from cachebus.cli.common import config_option

LEVELS = ("debug", "info", "warning", "error")
FORMAT = "%(levelname)s %(name)s: %(message)s"
"""Without a time: systemd's journal, and a terminal's user, have their own."""
TALKATIVE = ("quic",)
"""Libraries' loggers that tell of each connection what only `debug` asks for."""


@click.command()
@config_option(required=True, help="The node's configuration.")
@click.option(
    "--log-level", type=click.Choice(LEVELS), default="info", show_default=True, help="Least level that is logged."
)
def run(config: Path, log_level: str) -> int:
    """Run a node until SIGTERM or SIGINT; SIGHUP reads the configuration again and keeps the cache."""
    from cachebus.daemon import run as run_node

    logging.basicConfig(level=log_level.upper(), format=FORMAT)
    if log_level != "debug":
        for library in TALKATIVE:
            logging.getLogger(library).setLevel(logging.WARNING)
    return run_node(config)
