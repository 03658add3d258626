"""The listening sources: dnstap over Frame Streams, and a resolver's own output as length-prefixed DNS messages.

Decides who is served, how much is read at a time, and how long an unfinished opening or frame is waited for. Refuses
to know what a frame says: complete frames go to `deliver` with the time at which they arrived, in order per connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Protocol, Self

from cachebus.config.values import SocketAddress, UnixAddress
from cachebus.errors import FrameError
from cachebus.ports import Clock
from cachebus.sources.access import ListenSettings, SocketFile, open_listener, peer_uid
from cachebus.sources.arrival import TICK, Arrival
from cachebus.wire.framestream import FrameStreamReceiver, LengthPrefixedReceiver, Receiver

READ_SIZE = 32 * 1024
"""Bytes read from one connection before the loop may do something else: some 300 frames, a few milliseconds of work."""
DRAIN_SIZE = 1024 * 1024
"""Bytes read from a connection at the end, so that what the resolver has already said is not lost."""
DRAIN_TIMEOUT = 0.1
"""Seconds for that, and for a last FINISH."""
ACCEPT_PAUSE = 1.0
"""Seconds of rest when accepting fails, which means that descriptors or memory have run out."""
LOG_INTERVAL = 10.0
"""Seconds between two log lines about refused connections or malformed streams of one source; all are counted."""

Deliver = Callable[[bytes, float], None]
"""Takes one frame and its arrival time. Returns at once and never raises."""

logger = logging.getLogger(__name__)


class _Link(Protocol):
    """One connection's bytes."""

    async def read(self) -> bytes:
        """At most `READ_SIZE` bytes; empty at the end of the stream."""
        ...

    async def write(self, data: bytes) -> None: ...

    async def drain(self) -> bytes:
        """What has arrived and was not read, at most about `DRAIN_SIZE` bytes."""
        ...

    async def close(self) -> None: ...


class _PlainLink:
    """Reads straight from the socket, so that nothing piles up in this process and the sender feels the pressure.

    Not with `sock_recv`: cancelled in the turn of the loop in which it has read, it would lose what it read.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._loop = asyncio.get_running_loop()

    async def read(self) -> bytes:
        while True:
            try:
                return self._socket.recv(READ_SIZE)
            except BlockingIOError:
                await self._readable()

    async def _readable(self) -> None:
        ready = asyncio.Event()
        self._loop.add_reader(self._socket, ready.set)
        try:
            await ready.wait()
        finally:
            self._loop.remove_reader(self._socket)

    async def write(self, data: bytes) -> None:
        await self._loop.sock_sendall(self._socket, data)

    async def drain(self) -> bytes:
        found = bytearray()
        with contextlib.suppress(OSError):
            while len(found) < DRAIN_SIZE and (data := self._socket.recv(READ_SIZE)):
                found += data
        return bytes(found)

    async def close(self) -> None:
        self._socket.close()


class _TlsLink:
    """Reads through asyncio's TLS, whose buffer is bounded by a small multiple of `READ_SIZE`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def accept(cls, connection: socket.socket, context: ssl.SSLContext, *, within: float) -> Self:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=READ_SIZE, loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        # uvloop gives its own TLS protocol back instead of ours.
        transport, _ = await loop.connect_accepted_socket(
            lambda: protocol,
            connection,
            ssl=context,
            ssl_handshake_timeout=within,
        )
        return cls(reader, asyncio.StreamWriter(transport, protocol, reader, loop))

    async def read(self) -> bytes:
        return await self._reader.read(READ_SIZE)

    async def write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def drain(self) -> bytes:
        found = bytearray()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(DRAIN_TIMEOUT):
                while len(found) < DRAIN_SIZE and (data := await self.read()):
                    found += data
        return bytes(found)

    async def close(self) -> None:
        # Aborted: a peer that does not answer TLS's close_notify must not hold up the end.
        self._writer.transport.abort()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


@dataclass(slots=True)
class _Counters:
    accepted_connections: int = 0
    refused_connections: int = 0
    frames: int = 0
    bytes: int = 0
    malformed: int = 0
    timeouts: int = 0


class _Connection:
    """One connection: its link, its framing, and when its bytes arrived."""

    def __init__(self, link: _Link, receiver: Receiver, arrival: Arrival) -> None:
        self.link = link
        self.receiver = receiver
        self.arrival = arrival
        self._begun = 0.0

    def feed(self, data: bytes, now: float, deliver: Deliver) -> None:
        """Deliver the frames that `data` completes. Raises `FrameError` after the last good one."""
        time = self.arrival.time(now)
        # A frame's time is that of its first byte: the rest of it may have been held back.
        first = self._begun if self.receiver.buffered else time
        frames = self.receiver.receive_data(data)
        if self.receiver.buffered <= len(data):
            self._begun = time
        for frame in frames:
            deliver(frame, first)
            first = time


class ListeningSource:
    """What both kinds share: a listener, its connections, their reading, and the counters. A `Source`."""

    def __init__(self, settings: ListenSettings, deliver: Deliver, clock: Clock) -> None:
        """Raises nothing that `ListenSettings` has not raised already; the socket is opened on entering."""
        self._settings = settings
        self._deliver = deliver
        self._clock = clock
        self._counters = _Counters()
        self._connections: set[_Connection] = set()
        self._serving: set[asyncio.Task[None]] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self._listener: socket.socket | None = None
        self._file: SocketFile | None = None
        self._arrival = Arrival(clock())
        self._logged = -LOG_INTERVAL

    def _receiver(self) -> Receiver:
        raise NotImplementedError

    @property
    def address(self) -> UnixAddress | SocketAddress:
        """Where it listens; with the port the system chose where the settings say 0."""
        configured = self._settings.listen
        if self._listener is None or isinstance(configured, UnixAddress):
            return configured
        return SocketAddress(configured.host, self._listener.getsockname()[1])

    def statistics(self) -> Mapping[str, int]:
        """Counters since the start, and `connections`, which is how many there are now."""
        return {"connections": len(self._serving), **asdict(self._counters)}

    async def __aenter__(self) -> Self:
        """Listen. Raises `TransportError` when the address is taken or cannot be bound."""
        self._listener = open_listener(self._settings.listen)
        if isinstance(self._settings.listen, UnixAddress):
            self._file = SocketFile(self._settings.listen.path)
        self._arrival = Arrival(self._clock())
        self._tasks = [
            asyncio.create_task(self._accept(self._listener), name=f"{self._settings.name}: accept"),
            asyncio.create_task(self._tick(), name=f"{self._settings.name}: tick"),
        ]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop listening; deliver what has arrived, and close every connection."""
        for task in (*self._tasks, *self._serving):
            task.cancel()
        await asyncio.gather(*self._tasks, *self._serving, return_exceptions=True)
        if self._file is not None:
            self._file.remove()
        if self._listener is not None:
            self._listener.close()
        self._listener = self._file = None

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK)
            now = self._clock()
            for arrival in (self._arrival, *(connection.arrival for connection in self._connections)):
                arrival.tick(now)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError as error:
                self._log("cannot accept a connection: %s", error)
                await asyncio.sleep(ACCEPT_PAUSE)
                continue
            if not self._admits(connection):
                self._counters.refused_connections += 1
                connection.close()
                continue
            self._counters.accepted_connections += 1
            task = asyncio.create_task(self._serve(connection), name=f"{self._settings.name}: connection")
            self._serving.add(task)
            task.add_done_callback(self._served)

    def _admits(self, connection: socket.socket) -> bool:
        if len(self._serving) >= self._settings.max_connections:
            self._log("connection refused: there are %d already", len(self._serving))
            return False
        if isinstance(self._settings.listen, UnixAddress):
            uid = peer_uid(connection)
            if not self._settings.allows(uid):
                self._log("connection of user id %d refused: it is not in allow_uids", uid)
                return False
        return True

    def _served(self, task: asyncio.Task[None]) -> None:
        self._serving.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("source %s: a connection failed", self._settings.name, exc_info=error)

    async def _serve(self, accepted: socket.socket) -> None:
        # What arrived with a connection that waited in the backlog is as old as the listener's last look.
        arrival = Arrival(self._arrival.time(self._clock()))
        link = await self._open(accepted)
        if link is None:
            return
        connection = _Connection(link, self._receiver(), arrival)
        self._connections.add(connection)
        try:
            await self._read(connection)
        except FrameError as error:
            self._counters.malformed += 1
            self._log("malformed stream: %s", error)
        except TimeoutError:
            self._counters.timeouts += 1
            self._log("connection given up: an opening or a frame stayed unfinished")
        except OSError as error:
            logger.debug("source %s: connection lost: %s", self._settings.name, error)
        except asyncio.CancelledError:
            await self._finish(connection)
            raise
        finally:
            self._connections.discard(connection)
            await link.close()

    async def _open(self, accepted: socket.socket) -> _Link | None:
        if self._settings.tls is None:
            return _PlainLink(accepted)
        try:
            return await _TlsLink.accept(accepted, self._settings.tls, within=self._settings.handshake_timeout)
        except (OSError, TimeoutError) as error:
            self._counters.refused_connections += 1
            self._log("TLS handshake failed: %s", error)
            accepted.close()
            return None

    async def _read(self, connection: _Connection) -> None:
        """Read to the end of the stream. The deadline stands while an opening or a frame is unfinished."""
        loop = asyncio.get_running_loop()
        link, receiver = connection.link, connection.receiver
        deadline: float | None = loop.time() + self._settings.handshake_timeout
        started = False
        while not receiver.finished:
            async with asyncio.timeout_at(deadline if receiver.buffered or not started else None):
                data = await link.read()
            if not data:
                receiver.receive_end()
                return
            connection.arrival.read(len(data), READ_SIZE)
            self._feed(connection, data)
            if receiver.started and (not started or receiver.buffered <= len(data)):
                deadline = loop.time() + self._settings.stall_timeout
            started = receiver.started
            if outgoing := receiver.data_to_send():
                async with asyncio.timeout(self._settings.handshake_timeout):
                    await link.write(outgoing)
            await asyncio.sleep(0)

    def _feed(self, connection: _Connection, data: bytes) -> None:
        self._counters.bytes += len(data)
        connection.feed(data, self._clock(), self._take)

    def _take(self, frame: bytes, time: float) -> None:
        self._counters.frames += 1
        self._deliver(frame, time)

    async def _finish(self, connection: _Connection) -> None:
        """At our own end: take what has arrived, and say FINISH to a sender that has said STOP."""
        if not (data := await connection.link.drain()):
            return
        try:
            self._feed(connection, data)
        except FrameError:
            self._counters.malformed += 1
            return
        if outgoing := connection.receiver.data_to_send():
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(DRAIN_TIMEOUT):
                    await connection.link.write(outgoing)

    def _log(self, message: str, *arguments: object) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._logged >= LOG_INTERVAL:
            self._logged = now
            logger.warning("source %s: %s", self._settings.name, message % arguments)


class DnstapSource(ListeningSource):
    """A resolver's dnstap over Frame Streams; `deliver` gets dnstap payloads."""

    def _receiver(self) -> Receiver:
        return FrameStreamReceiver()


class StreamSource(ListeningSource):
    """A resolver's own output, each DNS message after its length as u32; `deliver` gets DNS messages."""

    def _receiver(self) -> Receiver:
        return LengthPrefixedReceiver()
