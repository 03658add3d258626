"""Targets: the streams of the shim, 16-bit lengths before messages: a client's to us, an upstream's reply to ours."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Coroutine
from random import Random
from typing import Any, cast
from unittest.mock import patch

from cachebus.errors import TransportError
from cachebus.shim import tcp
from cachebus.shim.connections import Connections
from cachebus.shim.exchange import CaseNotKeptError, Outgoing, belongs, compose_query
from cachebus.shim.query import Channel
from cachebus.shim.service import Service
from cachebus.shim.session import LengthPrefixed
from cachebus.shim.stream import Stream
from cachebus.shim.tasks import Tasks
from cachebus.shim.tcp import TcpConnection
from tests.fuzz.frames import portions
from tests.fuzz.grammar import QR, Shape, make_message, pick_name, pick_type
from tests.fuzz.harness import Part, Target
from tests.fuzz.messages import BytesTarget
from tests.fuzz.mutate import below, mutate

FEW = 3
"""Questions under way in place of `MAX_UNDER_WAY`: a bound that a few messages reach."""
LONGEST = 2 + 65535
"""Bytes of a message and its length."""


def framed(messages: list[bytes]) -> bytes:
    """Each behind its length."""
    return b"".join(len(message).to_bytes(2, "big") + message for message in messages)


def split(stream: bytes) -> list[bytes]:
    """The whole messages of a stream, found in the plainest way."""
    found = []
    start = 0
    while len(stream) >= start + 2 and len(stream) >= (end := start + 2 + int.from_bytes(stream[start : start + 2])):
        found.append(stream[start + 2 : end])
        start = end
    return found


class ClientStreamTarget(BytesTarget):
    """`TcpConnection`: the same messages however the bytes are cut, each once, within its bounds; replies framed."""

    name = "client-stream"
    parts = (Part("cachebus/shim/tcp.py", only=("TcpConnection",)),)

    def valid(self, rng: Random) -> bytes:
        messages = [rng.randbytes(below(rng, 40)) for _ in range(below(rng, 8))]
        if rng.random() < 0.002:
            messages.append(bytes(65535))
        return framed(messages)

    def check(self, example: bytes, rng: Random) -> bool:
        client = _Client(rng)
        with patch.object(tcp, "MAX_UNDER_WAY", FEW):
            return client.run(portions(rng, example), example)


class _Client:
    """Service, task list, connection list and transport in one; sends while it may, as an event loop does."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._later: list[Coroutine[Any, Any, None]] = []
        self._written = bytearray()
        self._replies: list[bytes] = []
        self._paused = self._closed = False
        self._refused = rng.random() < 0.03
        self.taken: list[bytes] = []
        mocks = (cast("Service", self), cast("Tasks", self), cast("Connections", self))
        self._connection = TcpConnection(*mocks)

    def run(self, parts: list[bytes], stream: bytes) -> bool:
        connection = self._connection
        connection.connection_made(cast("asyncio.Transport", self))
        if self._refused:
            assert self._closed  # and nothing comes of a transport that was aborted
            connection.connection_lost(None)
            return False
        for part in parts:
            while self._paused:
                self._go_on()
            connection.data_received(part)
            assert connection.under_way <= FEW
            assert self._paused or len(connection._buffer) < LONGEST
            if self._rng.random() < 0.1:
                connection.pause_writing()
            elif self._rng.random() < 0.2:
                connection.resume_writing()
            if self._rng.random() < 0.03:
                return self._make_room(stream)
        if self._rng.random() < 0.1:
            return self._lose(stream)
        connection.resume_writing()
        if not connection.eof_received():
            self._closed = True
        self._finish_all()
        assert self._closed
        assert self.taken == split(stream)
        assert sorted(split(bytes(self._written))) == sorted(self._replies)
        assert len(self._written) == sum(2 + len(reply) for reply in self._replies)
        connection.connection_lost(None)
        assert not connection._buffer
        return bool(self.taken)

    def _make_room(self, stream: bytes) -> bool:
        """Other clients come: ours is closed with questions under way, and told of it a little later."""
        self._connection.abort()
        assert self._closed
        written = len(self._written)
        while self._later and self._rng.random() < 0.7:
            self._go_on()
        found = self._lose(stream)
        assert len(self._written) == written
        self._connection.abort()  # nothing comes of it any more
        return found

    def _lose(self, stream: bytes) -> bool:
        self._connection.connection_lost(None)
        taken = len(self.taken)
        self._finish_all()
        assert len(self.taken) == taken
        assert split(stream)[:taken] == self.taken
        assert not self._connection.under_way
        return bool(taken)

    def _go_on(self) -> None:
        if self._later and self._rng.random() < 0.7:
            self._finish(self._later.pop(below(self._rng, len(self._later))))
        else:
            self._connection.resume_writing()

    def _finish_all(self) -> None:
        while self._later:
            self._finish(self._later.pop())

    def _finish(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            work.send(None)
        except StopIteration:
            return
        raise AssertionError("it waits for nothing")

    # As a service

    def handle(self, message: bytes, client: str, channel: Channel) -> Any:
        assert client == "192.0.2.1"
        assert channel is Channel.TCP
        self.taken.append(message)
        die = self._rng.random()
        if die < 0.2:
            return None
        reply = message[::-1]
        self._replies.append(reply)
        return reply if die < 0.6 else _soon(reply)

    # As a task list

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        self._later.append(work)

    # As a connection list

    def admit(self, connection: TcpConnection, address: str) -> bool:
        assert address == "192.0.2.1"
        return not self._refused

    def active(self, connection: TcpConnection) -> None:
        assert connection is self._connection

    forget = active

    # As a transport

    def get_extra_info(self, _: str) -> tuple[str, int]:
        return "192.0.2.1", 5000

    def is_closing(self) -> bool:
        return self._closed

    def write(self, data: bytes) -> None:
        self._written += data

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        self._paused = True

    def resume_reading(self) -> None:
        self._paused = False

    def close(self) -> None:
        self._closed = True

    abort = close


async def _soon(reply: bytes) -> bytes:
    return reply


class UpstreamStreamTarget(Target[bytes]):
    """`Stream`: each question gets the first reply with its ID, or `TransportError` once one does not belong."""

    name = "upstream-stream"
    parts = (
        Part("cachebus/shim/exchange.py", only=("belongs",)),
        Part("cachebus/shim/session.py", only=("LengthPrefixed.receive",)),
    )
    block = 10

    def __init__(self) -> None:
        loop = self._loop = asyncio.new_event_loop()
        weakref.finalize(self, loop.close)
        self._asked: list[Outgoing] = []

    def begin(self, rng: Random) -> None:
        self._asked = []
        for number in range(1 + below(rng, 4)):
            made = compose_query(pick_name(rng).lower(), pick_type(rng), recurse=True, mix_case=rng.random() < 0.5)
            self._asked.append(made._replace(wire=bytes((0, number)) + made.wire[2:]))

    def valid(self, rng: Random) -> bytes:
        replies = []
        for outgoing in self._asked:
            if rng.random() < 0.1:
                replies.append(outgoing.wire[:2] + b"\x80\2" + bytes(8))
                continue
            shape = Shape(flags=QR, ident=outgoing.wire[1], usual=True, qname=outgoing.question[:-4].lower())
            message = make_message(rng, shape._replace(qtype=int.from_bytes(outgoing.question[-4:-2], "big")))
            replies.append(message[:12] + outgoing.question + message[12 + len(outgoing.question) :])
        rng.shuffle(replies)
        return framed(replies)

    def mutated(self, rng: Random) -> bytes:
        stream = self.valid(rng)
        if rng.random() < 0.3:
            return mutate(rng, stream, (stream,))
        messages = split(stream)
        at = below(rng, len(messages))
        messages[at] = mutate(rng, messages[at], (stream,))[:65535]
        return framed(messages)

    def noise(self, rng: Random) -> bytes:
        return rng.randbytes(below(rng, 100))

    def check(self, example: bytes, rng: Random) -> bool:
        return self._loop.run_until_complete(self._read(example, portions(rng, example)))

    async def _read(self, example: bytes, parts: list[bytes]) -> bool:
        stream = Stream(("192.0.2.1", 53))
        waiting = {each.wire[:2]: (each, self._loop.create_future()) for each in self._asked}
        stream._waiting.update(waiting)
        reader, writer = asyncio.StreamReader(), _Writer()
        stream._writer = cast("asyncio.StreamWriter", writer)
        task = self._loop.create_task(stream._read(reader, stream._writer, LengthPrefixed()))
        for part in parts:
            reader.feed_data(part)
            await asyncio.sleep(0)
        reader.feed_eof()
        await task
        assert writer.closed
        expected = _expected(example, self._asked)
        for ident, (_, future) in waiting.items():
            error = future.exception()
            assert error is None or isinstance(error, TransportError)
            assert (None if error else future.result()) == expected.get(ident)
        return bool(expected)


def _expected(stream: bytes, asked: list[Outgoing]) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    by_id = {each.wire[:2]: each for each in asked}
    for message in split(stream):
        outgoing = by_id.get(message[:2])
        if outgoing is None:
            continue
        try:
            if not belongs(message, outgoing):
                break
        except CaseNotKeptError:
            break
        found.setdefault(message[:2], message)
    return found


class _Writer:
    closed = False

    def close(self) -> None:
        self.closed = True


TARGETS: tuple[type[Target[bytes]], ...] = (ClientStreamTarget, UpstreamStreamTarget)
