"""One of several worker processes: a shim with a cache of its own, fed over a pipe by the node's process.

Decides nothing about answers: what comes over the pipe was accepted there, and what this shim learns goes back there to
be shared. It ends when the pipe does, so that none outlives its node, however that ends.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from cachebus.cache import Cache
from cachebus.errors import CachebusError
from cachebus.flushes import Flush
from cachebus.shim.pipe import Kind, Link
from cachebus.shim.query import Channel
from cachebus.shim.settings import Endpoint, ShimSettings
from cachebus.shim.shim import Shim

REPORT_INTERVAL = 1.0
"""Seconds between two reports of a worker's counters."""
SWEEPS = 4
"""Looks at a shard of the cache between two of them, as in the node's process."""


class Plan(NamedTuple):
    """What a worker is told when it starts."""

    node: str
    settings: Callable[[], ShimSettings]
    """Made in the worker: what is open (certificates, files) cannot be handed over."""
    listen: tuple[Endpoint, ...]
    """Where all workers listen, free ports chosen."""
    encrypted: Mapping[Channel, tuple[Endpoint, ...]]
    """The same for encrypted channels."""
    max_entries: int
    max_bytes: int


def run_worker(plan: Plan, pipe: socket.socket, levels: Mapping[str, int]) -> None:
    """Body of the process. `levels`: of the loggers, by name; the log goes to standard error as the node's does."""
    logging.basicConfig(format=f"worker {os.getpid()}: %(levelname)s: %(message)s")
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    for ignored in (signal.SIGINT, signal.SIGHUP):  # a terminal sends them to all; they are the node's to act on
        signal.signal(ignored, signal.SIG_IGN)
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_work(plan, pipe))


async def _work(plan: Plan, pipe: socket.socket) -> None:
    worker = Worker(plan)
    async with Link(pipe, worker.take) as link:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, link.closed.set)
        try:
            settings = _listening(plan)
            shim = Shim(settings, worker.cache, link.offer, time.time)
            await shim.prepare()
            async with shim:
                worker.shim = shim
                gc.collect()
                gc.freeze()  # as in the node's process
                link.order(Kind.READY, os.getpid())
                await _until_closed(worker, link, shim)
        except CachebusError as error:
            link.order(Kind.FAILED, str(error))
            await link.sent()


def _listening(plan: Plan) -> ShimSettings:
    settings, told = plan.settings(), plan.encrypted
    encrypted = replace(settings.encrypted, tls=told[Channel.TLS], https=told[Channel.HTTPS], quic=told[Channel.QUIC])
    return replace(settings, listen=plan.listen, encrypted=encrypted)


async def _until_closed(worker: Worker, link: Link, shim: Shim) -> None:
    closed = asyncio.create_task(link.closed.wait(), name="pipe is closed")
    while not closed.done():
        link.order(Kind.STATISTICS, dict(shim.statistics()))
        for _ in range(SWEEPS):
            await asyncio.wait((closed,), timeout=REPORT_INTERVAL / SWEEPS)
            worker.cache.sweep(time.time(), shards=1)


class Worker:
    """What one worker does with what it is told."""

    def __init__(self, plan: Plan) -> None:
        self.cache = Cache(plan.node, max_entries=plan.max_entries, max_bytes=plan.max_bytes)
        self.cache.spread = 1
        self.shim: Shim | None = None

    def take(self, kind: Kind, body: Any) -> None:
        """Take one frame from the node's process."""
        match kind:
            case Kind.ANSWERS:
                self.cache.put_all(body, time.time())
            case Kind.FLUSH:
                fields, now = body
                self._flush(Flush(*fields), now)
            case _:
                raise ValueError(f"nobody tells a worker {kind}")

    def _flush(self, flush: Flush, now: float) -> None:
        for _ in self.cache.flushing(flush, now):
            pass
        if self.shim is not None:
            self.shim.flush(flush)
