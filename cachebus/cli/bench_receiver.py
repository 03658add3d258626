"""A receiving process of `bench`: takes what comes on the row that it is told, and times only itself.

What lies inside each figure is written in `bench_peers`.
"""

from __future__ import annotations

import asyncio
import time
from base64 import b64encode
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from multiprocessing.connection import Connection
from typing import Protocol, cast

from cachebus.answer import Answer, Refusal
from cachebus.cache import Cache
from cachebus.cli import bench_bare
from cachebus.cli.bench_lanes import section
from cachebus.cli.bench_peers import (
    ALGORITHM,
    KEY_NAME,
    Job,
    Named,
    Received,
    Row,
    Take,
    receiver_name,
    resident,
    run_peer,
    told,
)
from cachebus.cli.bench_rows import BatchFloor, Blocks, Dnspython, Floor, Inflated, Lengths
from cachebus.cli.bench_trace import SENDER
from cachebus.config.transports import CodecName
from cachebus.filters.policy import Policy, PolicySettings
from cachebus.history import History
from cachebus.links import certificates, make_codec, make_transport
from cachebus.ports import Codec, Datagram
from cachebus.subscriber import Subscriber, in_batches

QUIET = 0.5
"""Seconds without a message after which no more are waited for: far beyond any delay on loopback."""
_LOOK_DATAGRAMS, _LOOK = 0.001, 0.005
"""Seconds between two looks at a counter: some thousandths of what is measured, and the same for each row."""


def receive(pipe: Connection, job: Job, number: int) -> None:
    """Body of a receiving process. It is told what to `Take`; None: end."""
    run_peer(pipe, _receive(pipe, job, number))


async def _receive(pipe: Connection, job: Job, number: int) -> None:
    async with AsyncExitStack() as stack:
        peer = ReceivingPeer(job, number, stack)
        await peer.start()
        pipe.send(None)
        while (take := await told(pipe, job)) is not None:
            pipe.send(await peer.take(take, lambda: pipe.send(None)))


class _Counts(Protocol):
    received: int


class ReceivingPeer:
    """One subscriber, and the rows that it is compared with."""

    def __init__(self, job: Job, number: int, stack: AsyncExitStack) -> None:
        self._job = job
        self._number = number
        section_ = section(job.plan.receivers[number])
        # Time signed has no fraction: started at the full second, nothing that is sent from now on is `before-start`.
        self._codec = make_codec("bench", section_, job.owner(receiver_name(number)), start=float(int(time.time())))
        self._section = section_
        cache = Cache("bench-receiver")
        self._subscriber = _subscriber(self._codec, cache)
        self._timed = Timed(self._codec, cache)
        self._switch = Switch()
        self._floor = self._make_floor()
        self._dnspython = Dnspython(KEY_NAME, ALGORITHM, b64encode(job.secret).decode())
        self._stack = stack

    async def start(self) -> None:
        """Open everything."""
        job = self._job
        owner = job.owner(receiver_name(self._number))
        transport = make_transport("bench", self._section, owner, self._codec, in_batches(self._switch))
        await self._stack.enter_async_context(transport)
        if job.bare:
            files = certificates(self._section.tls)
            context = None if files is None else files.server_context()
            taker = self._taker()
            await self._open(bench_bare.receiving(job.bare, job.plan.bare[self._number], taker, context))
        if not self._number:
            await self._open(bench_bare.receiving("udp", job.dnspython, self._dnspython.take))

    async def _open(self, bare: bench_bare.Bare) -> None:
        await bench_bare.opened(bare)
        self._stack.push_async_callback(bare.close)

    def _make_floor(self) -> Floor:
        match self._job.codec:
            case CodecName.BATCH:
                return BatchFloor(self._job.secret)
            case CodecName.CDNS:
                sending = make_codec("bench", self._section, self._job.owner(SENDER), start=None)
                return Blocks(self._job.secret, len(sending.framing.opening()))
            case CodecName.DNS:
                return Floor(self._job.secret)

    def _taker(self) -> Callable[[bytes], None]:
        """What the bare end of the floor hands its bytes to."""
        stream: Floor | Lengths | Inflated = self._floor
        if self._job.bare in ("tcp", "tls"):
            if not isinstance(self._floor, Blocks):
                stream = Lengths(self._floor)
            elif self._section.zstd:
                stream = Inflated(self._floor)
        return stream.take

    async def take(self, take: Take, ready: Callable[[], None]) -> Received:
        """Receive as told; `ready` is called when it can be sent."""
        counts = self._aim(take.row)
        subscriber, timed = self._subscriber, self._timed
        before, accepted, arrived = counts.received, subscriber.accepted, _arrived(subscriber)
        look = _LOOK_DATAGRAMS if self._job.datagrams or take.row is Row.DNSPYTHON else _LOOK
        seen, seen_at = before, time.monotonic()
        memory = resident()
        begin = time.process_time()
        if not take.waiting:
            ready()
        while take.wanted is None or seen < before + take.wanted:
            quiet = QUIET if take.waiting or seen > before else take.patience
            if time.monotonic() - seen_at > quiet:
                break
            await asyncio.sleep(look)
            if counts.received != seen:
                seen, seen_at = counts.received, time.monotonic()
        cpu = time.process_time() - begin
        arrivals, timed.arrivals = timed.arrivals, {}
        return Received(
            messages=seen - before,
            accepted=subscriber.accepted - accepted,
            arrived=_arrived(subscriber) - arrived,
            cpu=cpu,
            seconds=self._switch.last - self._switch.first,
            memory=resident() - memory,
            arrivals=arrivals,
        )

    def _aim(self, row: Row) -> _Counts:
        """Let what comes through the transport go to a row; gives what counts the row's messages."""
        match row:
            case Row.FLOOR:
                return self._floor
            case Row.DNSPYTHON:
                return self._dnspython
            case Row.CACHEBUS:
                self._switch.aim(self._subscriber)
            case Row.TIMED:
                self._switch.aim(self._timed)
            case Row.SINK:
                self._switch.aim(None)
        return self._switch


class _TakesAll(Protocol):
    def receive_all(self, batch: Sequence[Datagram]) -> None: ...


class Switch:
    """Hands batches to one row or another: one call more for many messages."""

    def __init__(self) -> None:
        self.received = 0
        self.first = self.last = 0.0
        """When the first batch since `aim` began to be taken, and when the last one had been."""
        self._row: _TakesAll | None = None

    def aim(self, row: _TakesAll | None) -> None:
        """Hand on to `row` from now on; None drops everything."""
        self._row = row
        self.first = self.last = 0.0

    def receive_all(self, batch: Sequence[Datagram]) -> None:
        """Take messages that arrived together."""
        self.first = self.first or time.monotonic()
        if self._row is not None:
            self._row.receive_all(batch)
        self.last = time.monotonic()
        self.received += len(batch)


class Timed:
    """A subscriber, and when it was done with each answer."""

    def __init__(self, codec: Codec, cache: Cache) -> None:
        self._codec = codec
        self._decoded: list[Answer] = []
        self._subscriber = _subscriber(cast("Codec", self), cache)
        self.arrivals: dict[Named, float] = {}

    def decode_all(self, batch: Sequence[Datagram], now: float) -> tuple[list[Answer], list[Refusal]]:
        answers, refusals = self._codec.decode_all(batch, now)
        self._decoded += answers
        return answers, refusals

    def receive_all(self, batch: Sequence[Datagram]) -> None:
        self._subscriber.receive_all(batch)
        done = time.monotonic()
        for answer in self._decoded:
            self.arrivals.setdefault((answer.qname, answer.qtype), done)
        self._decoded.clear()


def _subscriber(codec: Codec, cache: Cache) -> Subscriber:
    return Subscriber(
        codec=codec,
        policy=Policy(PolicySettings()),
        cache=cache,
        sinks=(),
        history=History("bench"),
        clock=time.time,
    )


def _arrived(subscriber: Subscriber) -> int:
    return subscriber.accepted + sum(subscriber.refused.values())
