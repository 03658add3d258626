"""`bench --warm-start`: a cold node takes a warm one's cache as a copy while live traffic reaches it.

Decides what lies in the figures: answers a second by the clock on the wall, from asking for the copy to its last answer
in the cold node's cache; the CPU of either process in that time, live traffic included; and the latency of live
answers, before and during it, from when they were due to be sent to being in the cold node's cache. Two processes: the
warm one also sends the live answers, over UDP, so what serving delays is in it too. The copy comes at the default pace
of a node (`MAX_RATE`).
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from cachebus.answer import Answer
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
from cachebus.ports import Codec, Sender, Transport
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
PUMP = 0.001
"""Seconds between two looks at what is due to be sent live: the finest that the event loop's timers know."""
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


class Span(NamedTuple):
    """One process while the copy is given or taken. Times are seconds, of CLOCK_MONOTONIC and of the process's CPU."""

    begun: float
    ended: float
    cpu: float
    """In between, for all that it did, live traffic included."""


class Copied(NamedTuple):
    """What the cold process saw."""

    span: Span
    received: int
    merged: int
    arrivals: dict[Named, float]
    """When each live answer was in the cache."""


class Served(NamedTuple):
    """What the warm process saw."""

    span: Span
    due: dict[Named, float]
    """When each live answer that was sent was due."""


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
        served: Served = warm.answer()
    return warm_shape(entries, copied, served)


def warm_shape(entries: int, copied: Copied, served: Served) -> dict[str, Any]:
    """Both processes' figures as one object."""
    span, count = copied.span, copied.received
    seconds = span.ended - span.begun
    sent = {key: at for key, at in served.due.items() if at < span.ended}
    before = [copied.arrivals[key] - at for key, at in sent.items() if key in copied.arrivals and at < span.begun]
    during = [copied.arrivals[key] - at for key, at in sent.items() if key in copied.arrivals and at >= span.begun]
    return {
        "warm_start": {
            "entries": entries,
            "received": count,
            "merged": copied.merged,
            "seconds": round(seconds, 3),
            "answers_per_second": round(count / seconds),
            "send_cpu_us": round(1e6 * served.span.cpu / max(1, count), 2),
            "receive_cpu_us": round(1e6 * span.cpu / max(1, count), 2),
            "answers_per_cpu_second": {"send": round(count / served.span.cpu), "receive": round(count / span.cpu)},
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
    core = found["answers_per_cpu_second"]
    copied = (
        f"warm start: {found['merged']} of {found['received']} RRsets ({found['entries']} answers) "
        f"in {found['seconds']:.2f} s by the clock on the wall, {found['answers_per_second']} a second\n"
        f"CPU each, live traffic included: {found['send_cpu_us']:.2f} us at the warm node, "
        f"{found['receive_cpu_us']:.2f} us at the cold one; an idle core has time for {core['send']} and "
        f"{core['receive']} a second"
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
    cache = Cache("bench-warm")
    for start in range(0, len(held), _SLICE):
        cache.put_all(held[start : start + _SLICE], time.time())
    del answers, held
    gc.collect()
    gc.freeze()  # a node holds no answers beside its cache: those that are ready to be sent are not to cost it time
    spans: list[Span] = []

    async def give_one() -> AsyncIterator[bytes]:
        begun, cpu = time.monotonic(), time.process_time()
        async for piece in give(cache, Policy(PolicySettings()), _copy_codec(SENDER), time.time):
            yield piece
        spans.append(Span(begun, time.monotonic(), time.process_time() - cpu))

    async with AsyncExitStack() as stack:
        await stack.enter_async_context(SnapshotServer((HOST, job.copy_port), None, give_one))
        told = {"type": "udp", "codec": "dns", "key": "bench", "peers": [job.live]}
        codec = make_codec("bench", section(told), job.owner(SENDER), start=None)
        link = make_transport("bench", section(told), job.owner(SENDER), codec, lambda data, sender: None)
        await stack.enter_async_context(link)
        pipe.send(None)
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, pipe.recv)
        over = loop.run_in_executor(None, pipe.recv)
        due = await _send_live(live, codec, link, over)
        await over
        pipe.send(Served(spans[-1], due))


async def _send_live(
    live: list[Answer], codec: Codec, link: Transport, over: asyncio.Future[Any]
) -> dict[Named, float]:
    """Send until `over`; when each answer was due."""
    due: dict[Named, float] = {}
    begun = time.monotonic()
    for number, answer in enumerate(live):
        at = begun + number / LIVE_RATE
        while not over.done() and (wait := at - time.monotonic()) > 0:  # noqa: ASYNC110 - the pace, and a future
            await asyncio.sleep(max(PUMP, wait))
        if over.done():
            break
        due[answer.qname, answer.qtype] = at
        (message,), _ = codec.encode([answer], time.time())
        link.send(message)
    return due


def cold_node(pipe: Connection, job: WarmJob) -> None:
    """Body of the cold process: says when it listens, then takes the copy after a while, and says what it saw."""
    run_peer(pipe, _cold(pipe, job))


async def _cold(pipe: Connection, job: WarmJob) -> None:
    gc.collect()
    gc.freeze()  # as `node.run` does
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
        span = Span(begun, time.monotonic(), time.process_time() - cpu)
        await asyncio.sleep(AFTER)
        merged = taken.merged
        pipe.send(Copied(span, merged.received, merged.merged, timed.arrivals))
