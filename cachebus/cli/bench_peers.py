"""The two processes of `bench`: one receives, one sends; each does as it is told over a pipe, and times only itself.

Decides what lies inside each figure. CPU is `time.process_time` of the process that does the work: user and system, so
the kernel's part of a receive or send is in it. Times taken in one process and compared in the other are those of
CLOCK_MONOTONIC, which Linux keeps for all processes alike.

- *receive CPU*: from a burst waiting in the socket buffer to its last datagram, event loop included. It waits there
  before the clock starts, so that the loop neither idles nor loses any, and the rows differ by their work alone. For
  cachebus that is the node's own path: transport, subscriber, codec (TSIG, replay, form), accept policy, cache.
- *send CPU*: from an answer given to the publisher to its datagram's `sendto`: cache, share policy, noise control,
  codec, transport; per datagram sent, so the answers that noise control held back are paid for by the others.
- *latency*: from an answer given to the publisher to its being in the subscriber's cache, at a fixed rate.
- *overload*: composed datagrams sent back to back as fast as one process can; what the other took of them, how fast.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
import time
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, NamedTuple, Self

import uvloop

from cachebus.answer import Answer
from cachebus.cache import Cache
from cachebus.cli.bench_rows import Dnspython, Floor, Receiver, Sink
from cachebus.cli.bench_trace import trace
from cachebus.codecs.dns import DnsCodec, DnsCodecSettings
from cachebus.errors import CachebusError
from cachebus.filters.noise import Noise, NoiseSettings
from cachebus.filters.policy import Policy, PolicySettings
from cachebus.history import History
from cachebus.outlet import Outlet
from cachebus.ports import Datagram, Receive, Sender, Transport, TransportSettings
from cachebus.publisher import Publisher
from cachebus.registry import load_transport
from cachebus.subscriber import Subscriber, in_batches
from cachebus.wire.tsig import Key

ALGORITHM = "hmac-sha256"
KEY_NAME = "bench."
HOST = "127.0.0.1"
QUIET = 0.3
"""Seconds without a datagram after which no more are waited for: far beyond any delay on loopback."""
PATIENCE = 10.0
"""Seconds to wait for the first datagram of a run that is watched."""
_LOOK = 0.001
"""Seconds between two looks at a counter: some thousandths of what is measured, and the same for each row."""
_BUFFER = 8 * 1024 * 1024
"""Bytes asked for each plain socket: as the transport `udp` does, so that all rows have the same room."""
_RCVBUFFORCE = 33
_DATAGRAM_COST = 2304
"""Bytes of receive buffer that Linux charges for a datagram of up to 1232 bytes, its own structures included."""


class Row(Enum):
    """Who receives."""

    CACHEBUS = "cachebus"
    TIMED = "timed"
    """cachebus, and the time at which each answer was in the cache."""
    FLOOR = "floor"
    DNSPYTHON = "dnspython"
    SINK = "sink"


class Order(Enum):
    """What the sending process does with a range of the trace."""

    COMPOSE = "compose"
    """Only compose and remember."""
    REPEAT = "repeat"
    """Send what is remembered to row CACHEBUS, through the transport."""
    FLOOR = "floor"
    """Send what is remembered, each with an HMAC, to row FLOOR."""
    AGAIN = "again"
    """Send what is remembered to row DNSPYTHON."""
    PUBLISH = "publish"
    """Publish the answers to row SINK."""
    DNSPYTHON = "dnspython"
    """Send the answers with dnspython to row SINK."""
    PACED = "paced"
    """Publish the answers one by one, at `Job.rate`, to row TIMED."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What both processes have to know."""

    transport: str
    answers: int
    rate: float
    """Answers per second when latency is measured."""
    secret: bytes


class Ready(NamedTuple):
    """The receiver listens."""

    ports: dict[Row, int]
    burst: int
    """Datagrams that may wait in its socket buffer at once."""


class Received(NamedTuple):
    """What a receiver took."""

    datagrams: int
    accepted: int
    """Answers that reached the cache, where the row has one."""
    cpu: float
    """Seconds."""
    seconds: float
    """From the first datagram to the last, where it was watched."""
    arrivals: dict[bytes, float]
    """Row TIMED: when each datagram was in the cache."""


class Sent(NamedTuple):
    """What sending cost."""

    datagrams: int
    octets: int
    cpu: float
    """Seconds."""
    departures: dict[bytes, float]
    """Order PACED: when the answer of each datagram was given to the publisher."""


def receive(pipe: Connection, job: Job) -> None:
    """Body of the receiving process. It takes `(row, count)`: drain a burst; `(row, None)`: watch; None: end."""
    with _running(pipe) as runner:
        peer = _ReceivingPeer(job)
        pipe.send(runner.run(peer.start()))
        while (told := _told(pipe)) is not None:
            row, count = told
            pipe.send(runner.run(peer.watch(row) if count is None else peer.drain(row, count)))
        runner.run(peer.stop())


def send(pipe: Connection, job: Job, ports: dict[Row, int]) -> None:
    """Body of the sending process. It takes `(order, first, last)`: a range of the trace; None: end."""
    with _running(pipe) as runner:
        peer = _SendingPeer(job, ports)
        runner.run(peer.start())
        pipe.send(None)
        while (told := _told(pipe)) is not None:
            order, first, last = told
            pipe.send(runner.run(peer.follow(order, first, last)))
        runner.run(peer.stop())


@contextmanager
def _running(pipe: Connection) -> Iterator[asyncio.Runner]:
    """An event loop; what goes wrong in it in an expected way is told to the parent instead of a traceback."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to all three; the parent ends the others
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            yield runner
    except CachebusError as error:
        pipe.send(error)


def _told(pipe: Connection) -> Any:
    with suppress(EOFError):  # the parent is gone
        return pipe.recv()
    return None


class _ReceivingPeer:
    def __init__(self, job: Job) -> None:
        self._job = job
        key = Key.make(KEY_NAME, ALGORITHM, job.secret)
        # Time signed has no fraction: started at the full second, nothing that is sent from now on is `before-start`.
        codec = DnsCodec(DnsCodecSettings(transport=job.transport, key=key), start=float(int(time.time())))
        self._subscriber = Subscriber(
            codec=codec,
            policy=Policy(PolicySettings()),
            cache=Cache("bench-receiver"),
            sinks=(),
            history=History("bench"),
            clock=time.time,
        )
        self._timed = _Timed(self._subscriber)
        self._rows: dict[Row, Receiver] = {
            Row.CACHEBUS: self._subscriber,
            Row.TIMED: self._timed,
            Row.FLOOR: Floor(job.secret),
            Row.DNSPYTHON: Dnspython(KEY_NAME, ALGORITHM, b64encode(job.secret).decode()),
            Row.SINK: Sink(),
        }
        self._stack = AsyncExitStack()

    async def start(self) -> Ready:
        ports: dict[Row, int] = {}
        granted: list[int] = []
        for row, receiver in self._rows.items():
            open_row = self._through_transport if row in (Row.CACHEBUS, Row.TIMED) else self._through_endpoint
            receive = in_batches(receiver) if isinstance(receiver, Subscriber | _Timed) else receiver.receive
            ports[row], buffer = await open_row(receive)
            granted.append(buffer)
        return Ready(ports, max(1, min(granted) // _DATAGRAM_COST))

    async def _through_transport(self, receive: Receive) -> tuple[int, int]:
        port = _free_port()
        settings = TransportSettings(name="bench", node="receiver", cluster="bench", listen=f"{HOST}:{port}")
        transport = load_transport(self._job.transport)(settings, receive)
        await self._stack.enter_async_context(transport)
        return port, transport.statistics().get("receive_buffer_bytes", _BUFFER)

    async def _through_endpoint(self, receive: Receive) -> tuple[int, int]:
        opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        with suppress(PermissionError):
            opened.setsockopt(socket.SOL_SOCKET, _RCVBUFFORCE, _BUFFER)
        opened.bind((HOST, 0))
        port, granted = opened.getsockname()[1], opened.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        await _open_endpoint(self._stack, receive, opened)
        return port, granted

    async def drain(self, row: Row, count: int) -> Received:
        """Take `count` datagrams that wait already; fewer when no more come."""
        receiver = self._rows[row]
        before, accepted = receiver.received, self._subscriber.accepted
        seen, seen_at = before, time.monotonic()
        begin = time.process_time()
        while receiver.received < before + count and time.monotonic() - seen_at < QUIET:
            await asyncio.sleep(_LOOK)
            if receiver.received != seen:
                seen, seen_at = receiver.received, time.monotonic()
        cpu = time.process_time() - begin
        return Received(receiver.received - before, self._subscriber.accepted - accepted, cpu, 0.0, {})

    async def watch(self, row: Row) -> Received:
        """Take what comes until nothing more does."""
        receiver = self._rows[row]
        before, accepted = receiver.received, self._subscriber.accepted
        seen, started = before, time.monotonic()
        first = last = 0.0
        begin = time.process_time()
        while time.monotonic() - (last or started + PATIENCE) < QUIET:
            await asyncio.sleep(_LOOK)
            if receiver.received != seen:
                seen, last = receiver.received, time.monotonic()
                first = first or last
        arrivals, self._timed.arrivals = self._timed.arrivals, {}
        cpu = time.process_time() - begin
        return Received(seen - before, self._subscriber.accepted - accepted, cpu, last - first, arrivals)

    async def stop(self) -> None:
        await self._stack.aclose()


class _Timed:
    """The same subscriber, and when it was done with each datagram."""

    def __init__(self, subscriber: Subscriber) -> None:
        self._subscriber = subscriber
        self.received = 0
        self.arrivals: dict[bytes, float] = {}

    def receive(self, data: bytes, sender: Sender) -> None:
        self.receive_all(((data, sender),))

    def receive_all(self, batch: Sequence[Datagram]) -> None:
        self._subscriber.receive_all(batch)
        done = time.monotonic()
        for data, _ in batch:
            self.arrivals[data] = done
        self.received += len(batch)


class _SendingPeer:
    def __init__(self, job: Job, ports: dict[Row, int]) -> None:
        self._job = job
        self._ports = ports
        self._trace = trace(job.answers, time.time())
        self._key = Key.make(KEY_NAME, ALGORITHM, job.secret)
        self._codec = self._new_codec()
        self._floor = Floor(job.secret)
        self._dnspython = Dnspython(KEY_NAME, ALGORITHM, b64encode(job.secret).decode())
        self._remembered: list[bytes] = []
        self._links: dict[Row, Transport] = {}
        self._stack = AsyncExitStack()
        self._plain: asyncio.DatagramTransport
        gc.freeze()  # the trace is the bench's own, a node does not carry it through each collection

    async def start(self) -> None:
        for row in (Row.CACHEBUS, Row.TIMED, Row.SINK):
            peer = f"{HOST}:{self._ports[row]}"
            settings = TransportSettings(name="bench", node="sender", cluster="bench", peers=(peer,))
            transport = load_transport(self._job.transport)(settings, _ignore)
            self._links[row] = await self._stack.enter_async_context(transport)
        opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        opened.bind((HOST, 0))
        self._plain = await _open_endpoint(self._stack, _ignore, opened)

    async def follow(self, order: Order, first: int, last: int) -> Sent:
        answers = self._trace[first:last]
        match order:
            case Order.COMPOSE:
                self._remembered = self._codec.encode(answers, time.time())[0]
                return _sent(self._remembered, 0.0)
            case Order.REPEAT:
                return self._send_each(self._links[Row.CACHEBUS].send)
            case Order.FLOOR:
                address = (HOST, self._ports[Row.FLOOR])
                return self._send_each(lambda data: self._floor.send(data, self._plain, address))
            case Order.AGAIN:
                address = (HOST, self._ports[Row.DNSPYTHON])
                return self._send_each(lambda data: self._plain.sendto(data, address))
            case Order.DNSPYTHON:
                return self._send_with_dnspython(answers)
            case Order.PUBLISH:
                return await self._publish(answers)
            case Order.PACED:
                return await self._publish_paced(answers)

    def _send_each(self, send_one: Callable[[bytes], None]) -> Sent:
        begin = time.process_time()
        for data in self._remembered:
            send_one(data)
        return _sent(self._remembered, time.process_time() - begin)

    def _send_with_dnspython(self, answers: Iterable[Answer]) -> Sent:
        prepared = [self._dnspython.prepare(answer) for answer in answers]
        address = (HOST, self._ports[Row.SINK])
        begin = time.process_time()
        for one in prepared:
            self._dnspython.send(one, self._plain, address)
        return Sent(len(prepared), 0, time.process_time() - begin, {})

    async def _publish(self, answers: list[Answer]) -> Sent:
        link = _Recorder(self._links[Row.SINK])
        begin = time.process_time()
        async with self._publisher(link) as publisher:
            for answer in answers:
                publisher.publish(answer)
        return _sent(link.datagrams, time.process_time() - begin)

    async def _publish_paced(self, answers: list[Answer]) -> Sent:
        link = _Recorder(self._links[Row.TIMED])
        given: list[float] = []
        async with self._publisher(link) as publisher:
            start = time.monotonic()
            for number, answer in enumerate(answers):
                while (wait := start + number / self._job.rate - time.monotonic()) > 0:
                    time.sleep(wait)  # noqa: ASYNC251 - uvloop's timers count milliseconds, and nothing else runs
                moment = time.monotonic()
                if publisher.publish(answer) is None:
                    given.append(moment)
                await asyncio.sleep(0)
        departures = dict(zip(link.datagrams, given, strict=True))
        return Sent(len(departures), 0, 0.0, departures)

    def _publisher(self, link: Transport) -> Publisher:
        """One more node: it has shared nothing yet, as each run of the trace's answers is new to it."""
        return Publisher(
            policy=Policy(PolicySettings()),
            noise=Noise(NoiseSettings()),
            cache=Cache("bench-sender"),
            outlets=(Outlet("bench", self._new_codec(), link),),
            history=History("bench"),
            clock=time.time,
        )

    def _new_codec(self) -> DnsCodec:
        return DnsCodec(DnsCodecSettings(transport=self._job.transport, key=self._key), start=None)

    async def stop(self) -> None:
        await self._stack.aclose()


class _Recorder:
    """A transport that remembers what it sends, to match it with what arrives."""

    def __init__(self, link: Transport) -> None:
        self._link = link
        self.datagrams: list[bytes] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The link is not its own."""

    def send(self, data: bytes) -> None:
        self.datagrams.append(data)
        self._link.send(data)

    async def flush(self) -> None:
        await self._link.flush()

    def statistics(self) -> Mapping[str, int]:
        return self._link.statistics()


class _Endpoint(asyncio.DatagramProtocol):
    """A plain endpoint: what the floor and dnspython rows stand on."""

    def __init__(self, receive: Receive, closed: asyncio.Future[None]) -> None:
        self._receive = receive
        self._closed = closed

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._receive(data, addr)

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed.set_result(None)


async def _open_endpoint(stack: AsyncExitStack, receive: Receive, opened: socket.socket) -> asyncio.DatagramTransport:
    loop = asyncio.get_running_loop()
    closed: asyncio.Future[None] = loop.create_future()
    opened.setblocking(False)  # noqa: FBT003 - the argument has no name
    endpoint, _ = await loop.create_datagram_endpoint(lambda: _Endpoint(receive, closed), sock=opened)

    async def close() -> None:
        endpoint.close()
        await closed

    stack.push_async_callback(close)
    return endpoint


def _sent(datagrams: list[bytes], cpu: float) -> Sent:
    return Sent(len(datagrams), sum(map(len, datagrams)), cpu, {})


def _ignore(data: bytes, sender: Sender) -> None:
    """What the sending side does with what it receives: nothing comes."""


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
        opened.bind((HOST, 0))
        return int(opened.getsockname()[1])
