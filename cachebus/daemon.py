"""The process around a node: its loop, its signals, systemd, and what it sets aside from garbage collection.

Decides when the node is reloaded and ended. Knows nothing of what a node does.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import resource
import signal
import time
from pathlib import Path

from cachebus import assembly
from cachebus.node import Node
from cachebus.sdnotify import Notifier

DESCRIPTORS = 16_384
"""File descriptors asked for: the shim's default bounds need 3,000, its largest more than this."""

_log = logging.getLogger(__name__)


def run(path: Path) -> int:
    """`cachebus run`: the daemon in the foreground until SIGTERM or SIGINT. Gives the exit status.

    Raises `ConfigError` for a wrong configuration and `TransportError` when a socket cannot be opened.
    """
    import uvloop  # the daemon's loop: five times asyncio's rate of datagrams

    config = assembly.load(path)
    for warning in config.warnings:
        _log.warning("%s", warning)
    _raise_descriptor_limit()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(Node(config, path=path)))
    return 0


def settle() -> None:
    """Set aside what lives as long as the node: a full garbage collection looks at it no more, which took it 20 ms.

    What an earlier call set aside is looked at once more first, for a reload leaves garbage.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def _raise_descriptor_limit() -> None:
    """Every upstream look-up and TCP client needs a descriptor; the usual soft limit of 1024 is a relic of select()."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def _serve(node: Node) -> None:
    loop = asyncio.get_running_loop()
    notifier = Notifier()
    stop, reload = asyncio.Event(), asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGINT, stop.set)
    loop.add_signal_handler(signal.SIGHUP, reload.set)
    async with node:
        settle()
        _log.info("node is up")
        notifier.send("READY=1")
        alive = asyncio.create_task(_show_life(notifier), name="watchdog")
        waiting = asyncio.create_task(stop.wait(), name="stop")
        while not waiting.done():
            reloading = asyncio.create_task(reload.wait(), name="reload")
            await asyncio.wait((waiting, reloading), return_when=asyncio.FIRST_COMPLETED)
            reloading.cancel()
            if reload.is_set() and not waiting.done():
                reload.clear()
                notifier.send(f"RELOADING=1\nMONOTONIC_USEC={int(time.monotonic() * 1e6)}")
                _log.info("reload: %s", "done" if await node.reload() else "failed")
                settle()
                notifier.send("READY=1")
        alive.cancel()
        notifier.send("STOPPING=1")
        _log.info("ending")


async def _show_life(notifier: Notifier) -> None:
    while notifier.watchdog is not None:
        await asyncio.sleep(notifier.watchdog)
        notifier.send("WATCHDOG=1")
