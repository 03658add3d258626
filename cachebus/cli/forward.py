"""`cachebus forward`: a hub for ZeroMQ in the foreground, for clusters in which not every node reaches every other.

Decides how the process lives: until SIGTERM or SIGINT, with a line of counters at its end. The hub itself is a
transport's part, found like one by entry point.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sys
from collections.abc import Mapping
from typing import Protocol

import click

from cachebus.cli.common import json_option, print_json
from cachebus.ports import Running
from cachebus.sdnotify import Notifier

LOG_FORMAT = "%(levelname)s %(name)s: %(message)s"
"""As of `run`: journal and terminal have their own time."""
MAX_STATS = 86_400.0
"""Seconds: a rarer report than daily is one that nobody reads."""

_log = logging.getLogger(__name__)


class Hub(Running, Protocol):
    """What an entry point of `cachebus.hubs` makes."""

    @property
    def endpoints(self) -> tuple[str, ...]:
        """Where publishers, and where subscribers, connect."""
        ...


@click.command()
@click.option("--bind-publishers", required=True, metavar="URL", help="Where nodes that publish connect.")
@click.option("--bind-subscribers", required=True, metavar="URL", help="Where nodes that subscribe connect.")
@click.option("--curve-key", metavar="FILE", help="This hub's secret key, of `keygen curve`; needs --curve-allow.")
@click.option(
    "--curve-allow", metavar="FILE", help="Public keys that may connect: lines of FILE.pub of `keygen curve`."
)
@click.option("--hwm", type=int, help="Messages held for each subscriber; more are lost.  [default: 4096]")
@click.option("--stats", type=click.FloatRange(0.1, MAX_STATS), metavar="SECONDS", help="Print counters this often.")
@json_option
def forward(
    bind_publishers: str,
    bind_subscribers: str,
    curve_key: str | None,
    curve_allow: str | None,
    hwm: int | None,
    stats: float | None,
    as_json: bool,
) -> None:
    """Run a ZeroMQ hub until SIGTERM or SIGINT; without --curve-key everyone who reaches it can read along.

    URL is zmq+tcp://ADDRESS:PORT or zmq+ipc://PATH.
    """
    import uvloop

    from cachebus.errors import ConfigError
    from cachebus.registry import load_hub

    if (curve_key is None) != (curve_allow is None):
        raise click.UsageError("--curve-key and --curve-allow belong together")
    if bind_publishers == bind_subscribers and not bind_publishers.endswith(":0"):
        raise ConfigError("publishers and subscribers need two addresses")
    logging.basicConfig(level="INFO", format=LOG_FORMAT)
    hub = load_hub("zeromq")(
        publishers=bind_publishers,
        subscribers=bind_subscribers,
        curve=None if curve_key is None else {"secret": curve_key, "allow": f"file:{curve_allow}"},
        hwm=hwm,
    )
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(hub, stats, as_json=as_json))


async def _serve(hub: Hub, stats: float | None, *, as_json: bool) -> None:
    loop = asyncio.get_running_loop()
    notifier = Notifier()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with hub:
        _log.info("hub is up: publishers at %s, subscribers at %s", *hub.endpoints)
        notifier.send("READY=1")
        tasks = [asyncio.create_task(_show_life(notifier), name="watchdog")]
        if stats is not None:
            tasks.append(asyncio.create_task(_report(hub, stats, as_json=as_json), name="stats"))
        await stop.wait()
        notifier.send("STOPPING=1")
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        _log.info("ending: %s", json.dumps(hub.statistics()))


async def _report(hub: Hub, interval: float, *, as_json: bool) -> None:
    while True:
        await asyncio.sleep(interval)
        _print(hub.statistics(), as_json=as_json)


def _print(counters: Mapping[str, int], *, as_json: bool) -> None:
    if as_json:
        print_json(counters)
    else:
        click.echo(" ".join(f"{name}={value}" for name, value in counters.items()))
    sys.stdout.flush()


async def _show_life(notifier: Notifier) -> None:
    while notifier.watchdog is not None:
        await asyncio.sleep(notifier.watchdog)
        notifier.send("WATCHDOG=1")
