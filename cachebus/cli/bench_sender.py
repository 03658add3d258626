"""The sending process of `bench`: does with a range of the trace as it is told, and times only itself.

What lies inside each figure is written in `bench_peers`.
"""

from __future__ import annotations

import asyncio
import gc
import time
from base64 import b64encode
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Self, cast

from cachebus.answer import Answer
from cachebus.cache import Cache
from cachebus.cli import bench_bare
from cachebus.cli.bench_lanes import section
from cachebus.cli.bench_peers import (
    ALGORITHM,
    KEY_NAME,
    Job,
    Named,
    Order,
    Sent,
    resident,
    run_peer,
    told,
)
from cachebus.cli.bench_rows import Dnspython, Floor
from cachebus.cli.bench_trace import SENDER, trace
from cachebus.codecs.dns import DnsCodec, DnsCodecSettings
from cachebus.config.transports import CodecName
from cachebus.filters.noise import Noise, NoiseSettings
from cachebus.filters.policy import Policy, PolicySettings
from cachebus.history import History
from cachebus.links import certificates, make_codec, make_collect, make_transport
from cachebus.outlet import Outlet
from cachebus.ports import Codec, Sender, Transport
from cachebus.publisher import Publisher
from cachebus.wire.tsig import Key

_TOGETHER = 8
"""Messages handed to a transport that queues before the event loop gets its turn."""


def send(pipe: Connection, job: Job) -> None:
    """Body of the sending process. It takes `(order, first, last)`: a range of the trace; None: end."""
    run_peer(pipe, _send(pipe, job))


async def _send(pipe: Connection, job: Job) -> None:
    async with AsyncExitStack() as stack:
        peer = SendingPeer(job, stack)
        await peer.start()
        pipe.send(None)
        while (order := await told(pipe, job)) is not None:
            pipe.send(await peer.follow(*order))


class SendingPeer:
    """One publisher, and the rows that it is compared with."""

    def __init__(self, job: Job, stack: AsyncExitStack) -> None:
        self._job = job
        self._trace = trace(job.answers, time.time())
        self._distinct: list[Answer] = []
        self._section = section(job.plan.sender)
        self._codec = make_codec("bench", self._section, job.owner(SENDER), start=time.time())
        self._collect = make_collect(self._section)
        key = Key.make(KEY_NAME, ALGORITHM, job.secret)
        self._signer = DnsCodec(DnsCodecSettings(transport="bench", key=key), start=None)
        self._floor = Floor(job.secret)
        self._dnspython = Dnspython(KEY_NAME, ALGORITHM, b64encode(job.secret).decode())
        self._remembered: list[bytes] = []
        self._answers = 0
        self._stack = stack
        self._link: Transport
        self._bare: bench_bare.Bare | None = None
        self._plain: bench_bare.Bare
        gc.freeze()  # the trace is the bench's own, a node does not carry it through each collection

    async def start(self) -> None:
        """Open everything."""
        job = self._job
        link = make_transport("bench", self._section, job.owner(SENDER), self._codec, _ignore)
        self._link = await self._stack.enter_async_context(link)
        self._plain = await self._open(bench_bare.sending("udp", [job.dnspython]))
        if job.bare:
            files = certificates(self._section.tls)
            self._bare = await self._open(
                bench_bare.sending(
                    job.bare,
                    job.plan.bare,
                    opening=self._codec.framing.opening(),
                    zstd_stream=self._section.zstd and job.codec is CodecName.CDNS,
                    tls=None if files is None else files.client_context(),
                )
            )

    async def _open(self, bare: bench_bare.Bare) -> bench_bare.Bare:
        await bench_bare.opened(bare)
        self._stack.push_async_callback(bare.close)
        return bare

    async def follow(self, order: Order, first: int, last: int) -> Sent:
        """Do as told with the answers from `first` up to `last`."""
        answers = self._trace[first:last]
        match order:
            case Order.COMPOSE:
                self._remembered, self._answers = self._compose(answers)
                return Sent(len(self._remembered), self._answers)
            case Order.REPEAT:
                return await self._repeat()
            case Order.FLOOR:
                return await self._send_bare()
            case Order.AGAIN:
                messages, _ = self._signer.encode(answers, time.time())
                for message in messages:
                    self._plain.send(message)
                return Sent(len(messages), len(messages))
            case Order.DNSPYTHON:
                return self._send_with_dnspython(answers)
            case Order.PUBLISH:
                return await self._publish(answers)
            case Order.PACED:
                return await self._publish_paced(answers)
            case Order.DISTINCT:
                self._distinct = self._distinct or trace(len(self._trace), time.time(), distinct=True)
                self._remembered, self._answers = self._compose(self._distinct[first:last])
                return await self._repeat()
            case Order.PROBE:
                return await self._probe()

    def _compose(self, answers: Sequence[Answer]) -> tuple[list[bytes], int]:
        """Messages, cut as the node's own outlet cuts them, and how many answers are in them."""
        kept = _Kept()
        now = time.time()
        outlet = Outlet("bench", self._codec, kept, self._collect)
        left = [*outlet.send(answers, now, 0.0), *outlet.flush(now)]
        return kept.kept, len(answers) - len(left)

    async def _repeat(self) -> Sent:
        before = self._octets_out()
        for number, data in enumerate(self._remembered):
            self._link.send(data)
            if not self._job.datagrams and not number % _TOGETHER:
                await asyncio.sleep(0)
        await self._link.flush()
        octets = self._octets_out() - before if self._is_stream else sum(map(len, self._remembered))
        return Sent(len(self._remembered), self._answers, octets)

    @property
    def _is_stream(self) -> bool:
        return self._job.codec is CodecName.CDNS or self._job.bare in ("tcp", "tls")

    def _octets_out(self) -> int:
        return self._link.statistics().get("sent_bytes", 0) // len(self._job.plan.receivers)

    async def _send_bare(self) -> Sent:
        bare = self._bare
        assert bare is not None
        frame, seal = self._codec.framing.frame, self._floor.seal
        messages = [frame(data) for data in self._remembered] if self._is_stream else self._remembered
        sealed = self._job.codec is not CodecName.CDNS
        begin = time.process_time()
        for data in messages:
            if sealed:
                seal(data)
            bare.send(data)
        await bare.flush()
        return Sent(len(messages), self._answers, cpu=time.process_time() - begin)

    def _send_with_dnspython(self, answers: Sequence[Answer]) -> Sent:
        prepared = [self._dnspython.prepare(answer) for answer in answers]
        begin = time.process_time()
        for one in prepared:
            self._plain.send(self._dnspython.compose(one))
        return Sent(len(prepared), len(prepared), cpu=time.process_time() - begin)

    async def _publish(self, answers: Sequence[Answer]) -> Sent:
        link = _Counted(self._link)
        memory = resident()
        begin = time.process_time()
        async with self._publisher(link) as publisher:
            for answer in answers:
                publisher.publish(answer)
        cpu = time.process_time() - begin
        return Sent(link.messages, publisher.published, cpu=cpu, memory=resident() - memory)

    async def _publish_paced(self, answers: Sequence[Answer]) -> Sent:
        link = _Counted(self._link)
        given: dict[Named, float] = {}
        async with self._publisher(link) as publisher:
            start = time.monotonic()
            for number, answer in enumerate(answers):
                while (wait := start + number / self._job.rate - time.monotonic()) > 0:
                    time.sleep(wait)  # noqa: ASYNC251 - uvloop's timers count milliseconds, and nothing else runs
                moment = time.monotonic()
                if publisher.publish(answer) is None:
                    given.setdefault((answer.qname, answer.qtype), moment)
                await asyncio.sleep(0)
        return Sent(link.messages, publisher.published, departures=given)

    def _publisher(self, link: Transport) -> Publisher:
        """One more node: it has shared nothing yet, as each run of the trace's answers is new to it."""
        outlet = Outlet("bench", cast("Codec", _Silent(self._codec)), link, self._collect)
        return Publisher(
            policy=Policy(PolicySettings()),
            noise=Noise(NoiseSettings()),
            cache=Cache("bench-sender"),
            outlets=(outlet,),
            history=History("bench"),
            clock=time.time,
        )

    async def _probe(self) -> Sent:
        now = time.time()
        hello = self._codec.hello(now) or self._codec.encode(self._trace[:1], now)[0][0]
        self._link.send(hello)
        await self._link.flush()
        if self._bare is not None:
            self._bare.send(self._codec.framing.frame(hello) if self._is_stream else hello)
            await self._bare.flush()
        return Sent(1, 0)


class _Silent:
    """The codec of many publishers one after the other, of which none may say that its stream has ended."""

    def __init__(self, codec: Codec) -> None:
        self.encode = codec.encode

    def hello(self, now: float) -> None:
        """None: the stream goes on."""

    def will(self) -> None:
        """Likewise."""


class _Plain:
    """What all transports of this file's own have in common."""

    def __init__(self) -> None:
        self.messages = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """There is nothing to end."""

    async def flush(self) -> None:
        """Nothing waits."""

    def statistics(self) -> Mapping[str, int]:
        return {}


class _Kept(_Plain):
    """Keeps what it is to send."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[bytes] = []

    def send(self, data: bytes) -> None:
        self.kept.append(data)


class _Counted(_Plain):
    """Counts what it sends on another transport."""

    def __init__(self, link: Transport) -> None:
        super().__init__()
        self._link = link

    def send(self, data: bytes) -> None:
        self.messages += 1
        self._link.send(data)

    async def flush(self) -> None:
        await self._link.flush()


def _ignore(data: bytes, sender: Sender) -> None:
    """What the sending side does with what it receives: nothing that matters comes."""
