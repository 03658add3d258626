"""`bench --warm-start`: a cold node takes a warm one's cache as a copy while live traffic reaches it.

Decides what lies in the figures: answers a second from asking for the copy to its last answer in the cold node's cache,
CPU of the cold process in that time, and the latency of live answers before and during it, from being sent to being in
that cache. Two processes; the warm one also sends the live answers, over UDP.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from cachebus.cache import Cache
from cachebus.cli.bench_lanes import HOST, section
from cachebus.cli.bench_peers import ALGORITHM, KEY_NAME, Named, run_peer
from cachebus.cli.bench_receiver import Timed
from cachebus.cli.bench_run import processes
from cachebus.cli.bench_table import percentile
from cachebus.cli.bench_trace import SENDER, trace
from cachebus.cli.demo_cluster import free_ports
from cachebus.codecs.cdns import CdnsCodec, CdnsCodecSettings
from cachebus.filters.policy import Policy, PolicySettings
from cachebus.links import Owner, make_codec, make_transport
from cachebus.ports import Sender
from cachebus.snapshot.copy import Taker, give
from cachebus.snapshot.joining import fetch
from cachebus.snapshot.server import SnapshotServer
from cachebus.subscriber import in_batches
from cachebus.wire.tsig import Key

ENTRIES = 100_000
"""Answers of the copy."""
LIVE_RATE = 1000
"""Live answers per second."""
BEFORE = 2.0
"""Seconds of live traffic before the copy."""
AFTER = 0.5
"""Seconds that a live answer may take."""
FILLING = 600.0
"""Seconds for the warm node to make and hold what is copied, and for the copy: far beyond what a slow machine needs."""
MOST_LIVE = 20_000
"""Live answers that are ready: twenty seconds."""
UNCAPPED = 10_000_000
"""Answers a second: what is measured is the code, not the cap that an operator sets."""
_SLICE = 1000
"""Answers put into the cache of the warm node at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmJob:
    """What both processes have to know."""

    entries: int
    secret: bytes
    copy_port: int
    live: str
    """`HOST:PORT` of the cold node's UDP."""

    def owner(self, node: str) -> Owner:
        """On whose behalf the live link is made."""
        return Owner(node=node, cluster="bench", keys={"bench": Key.make(KEY_NAME, ALGORITHM, self.secret)})


class Copied(NamedTuple):
    """What the cold process saw."""

    begun: float
    ended: float
    """CLOCK_MONOTONIC."""
    cpu: float
    """Seconds, of the time in between."""
    received: int
    merged: int
    arrivals: dict[Named, float]
    """When each live answer was in the cache."""


def measure_warm_start(
    secret: bytes, entries: int = ENTRIES, progress: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """The object of `--json`. `progress` hears what comes next. Raises `BenchError`, or what a process met."""
    copy_port, live_port = free_ports(2)
    job = WarmJob(entries=entries, secret=secret, copy_port=copy_port, live=f"{HOST}:{live_port}")
    with processes() as start:
        progress(f"filling a cache with {entries} answers")
        warm = start("warm", warm_node, job)
        warm.answer(FILLING)
        progress("taking a copy of it")
        cold = start("cold", cold_node, job)
        cold.answer()
        warm.tell(None)
        copied: Copied = cold.answer(FILLING)
        warm.tell(None)
        departures: dict[Named, float] = warm.answer()
    return warm_shape(entries, copied, departures)


def warm_shape(entries: int, copied: Copied, departures: dict[Named, float]) -> dict[str, Any]:
    """Both processes' figures as one object."""
    seconds = copied.ended - copied.begun
    sent = {key: at for key, at in departures.items() if at < copied.ended}
    before = [copied.arrivals[key] - at for key, at in sent.items() if key in copied.arrivals and at < copied.begun]
    during = [copied.arrivals[key] - at for key, at in sent.items() if key in copied.arrivals and at >= copied.begun]
    return {
        "warm_start": {
            "entries": entries,
            "received": copied.received,
            "merged": copied.merged,
            "seconds": round(seconds, 3),
            "answers_per_second": round(copied.received / seconds),
            "receive_cpu_us": round(1e6 * copied.cpu / max(1, copied.received), 2),
            "live_rate": LIVE_RATE,
            "live_lost": len(sent) - len(before) - len(during),
            "live_latency_ms": {"before": _latency(before), "during": _latency(during)},
        }
    }


def _latency(found: list[float]) -> dict[str, float | None]:
    ascending = sorted(found)
    return {
        f"p{percent}": round(1000 * percentile(ascending, percent), 3) if ascending else None for percent in (50, 99)
    }


def warm_text(result: dict[str, Any]) -> str:
    """The same for people."""
    found = result["warm_start"]
    before, during = found["live_latency_ms"]["before"], found["live_latency_ms"]["during"]
    copied = (
        f"warm start: {found['merged']} of {found['received']} RRsets ({found['entries']} answers) "
        f"in {found['seconds']:.2f} s, {found['answers_per_second']} a second, "
        f"{found['receive_cpu_us']:.2f} us CPU each at the cold node"
    )
    live = (
        f"live answers at {found['live_rate']}/s: p50 {before['p50']} ms, p99 {before['p99']} ms before the copy; "
        f"p50 {during['p50']} ms, p99 {during['p99']} ms during it; {found['live_lost']} lost"
    )
    return f"{copied}\n{live}"


def _copy_codec(node: str) -> CdnsCodec:
    settings = CdnsCodecSettings(node=node, cluster="bench", transport="snapshot", insecure_link=True, snapshot=True)
    return CdnsCodec(settings, start=None)


def warm_node(pipe: Connection, job: WarmJob) -> None:
    """Body of the warm process: says when its cache is full, sends live answers from one word to the next."""
    run_peer(pipe, _warm(pipe, job))


async def _warm(pipe: Connection, job: WarmJob) -> None:
    answers = trace(job.entries + MOST_LIVE, time.time(), distinct=True)
    held, live = answers[: job.entries], answers[job.entries :]
    cache, policy = Cache("bench-warm"), Policy(PolicySettings())
    for start in range(0, len(held), _SLICE):
        cache.put_all(held[start : start + _SLICE], time.time())

    async with AsyncExitStack() as stack:
        server = SnapshotServer(
            (HOST, job.copy_port), None, lambda: give(cache, policy, _copy_codec(SENDER), time.time, rate=UNCAPPED)
        )
        await stack.enter_async_context(server)
        told = {"type": "udp", "codec": "dns", "key": "bench", "peers": [job.live]}
        codec = make_codec("bench", section(told), job.owner(SENDER), start=None)
        link = make_transport("bench", section(told), job.owner(SENDER), codec, lambda data, sender: None)
        await stack.enter_async_context(link)
        pipe.send(None)
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, pipe.recv)
        over = loop.run_in_executor(None, pipe.recv)
        departures: dict[Named, float] = {}
        begun = time.monotonic()
        for number, answer in enumerate(live):
            await asyncio.sleep(max(0.0, begun + number / LIVE_RATE - time.monotonic()))
            if over.done():
                break
            departures[answer.qname, answer.qtype] = time.monotonic()
            (message,), _ = codec.encode([answer], time.time())
            link.send(message)
        await over
        pipe.send(departures)


def cold_node(pipe: Connection, job: WarmJob) -> None:
    """Body of the cold process: says when it listens, then takes the copy after a while, and says what it saw."""
    run_peer(pipe, _cold(pipe, job))


async def _cold(pipe: Connection, job: WarmJob) -> None:
    cache, policy = Cache("bench-cold"), Policy(PolicySettings())
    told = {"type": "udp", "codec": "dns", "key": "bench", "listen": job.live}
    owner = job.owner("receiver")
    codec = make_codec("bench", section(told), owner, start=float(int(time.time())))
    timed = Timed(codec, cache)

    def taker(sender: Sender) -> Taker:
        return Taker(cache, policy, _copy_codec("receiver"), time.time, sender=sender)

    async with make_transport("bench", section(told), owner, codec, in_batches(timed)):
        pipe.send(None)
        await asyncio.sleep(BEFORE)
        begun, cpu = time.monotonic(), time.process_time()
        taken = await fetch((HOST, job.copy_port), None, taker)
        ended, cpu = time.monotonic(), time.process_time() - cpu
        await asyncio.sleep(AFTER)
        merged = taken.merged
        pipe.send(Copied(begun, ended, cpu, merged.received, merged.merged, timed.arrivals))
