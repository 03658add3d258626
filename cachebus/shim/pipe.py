"""What the node's process and a worker say to each other over a socket pair: frames of msgpack, both ways.

Decides how much may wait: answers in a bounded queue, of which the oldest goes; orders and reports are few. Both ends
are the same program, so nothing here is checked that a codec checks; a frame that is wrong ends the link.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from enum import IntEnum
from types import TracebackType
from typing import Any, Self

import msgpack  # type: ignore[import-untyped]

from cachebus.answer import Answer, Evidence, RRset

MAX_QUEUED = 20_000
"""Answers that wait for the other end: some seconds of what a busy bus brings."""
MAX_ORDERS = 1000
"""Orders that wait; an end that does not take so many is as good as dead."""
MAX_FRAME = 64 * 1024 * 1024
BATCH = 256
"""Answers of one frame: about a millisecond at either end."""
MAX_WRITTEN = 1 << 20
"""Bytes handed to the socket before the other end has taken some."""
_LENGTH = 4


class Kind(IntEnum):
    """What a frame is about."""

    ANSWERS = 0
    """For the worker's cache, or learned by the worker and to be shared."""
    FLUSH = 1
    """To be forgotten."""
    STATISTICS = 2
    """A worker's counters."""
    READY = 3
    """A worker listens."""
    FAILED = 4
    """A worker cannot, and why."""


Handler = Callable[[Kind, Any], None]


class Link:
    """One end. Entered it moves what is sent; `closed` is set when the other end is gone."""

    def __init__(self, sock: socket.socket, handle: Handler) -> None:
        """`handle` is called with what the other end says; must not block."""
        self._socket = sock
        self._handle = handle
        self._answers: deque[Answer] = deque()
        self._orders: deque[tuple[Kind, Any]] = deque()
        self._work = asyncio.Event()
        self._idle = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self.closed = asyncio.Event()
        self.dropped = 0
        """Answers for which there was no room."""

    @property
    def queued(self) -> int:
        """Answers that wait."""
        return len(self._answers)

    async def __aenter__(self) -> Self:
        reader, writer = await asyncio.open_unix_connection(sock=self._socket, limit=MAX_FRAME)
        writer.transport.set_write_buffer_limits(high=MAX_WRITTEN)
        self._tasks = [
            asyncio.create_task(self._guarded(self._write, writer), name="pipe writer"),
            asyncio.create_task(self._guarded(self._read, reader), name="pipe reader"),
        ]
        self._writer = writer
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()
        self.closed.set()

    def offer(self, answer: Answer) -> None:
        """Queue an answer; the oldest is dropped when there is no room."""
        if len(self._answers) >= MAX_QUEUED:
            self._answers.popleft()
            self.dropped += 1
        self._answers.append(answer)
        self._work.set()

    def order(self, kind: Kind, body: Any = None) -> None:
        """Send something other than an answer, ahead of the answers that wait. Too many end the link."""
        if len(self._orders) >= MAX_ORDERS:
            self.closed.set()
            return
        self._orders.append((kind, body))
        self._work.set()

    async def take(self, answers: Iterable[Answer]) -> None:
        """Queue many answers, waiting wherever there is no room."""
        for answer in answers:
            if len(self._answers) >= MAX_QUEUED // 2:
                await self.sent()
            self.offer(answer)

    async def sent(self) -> None:
        """Wait until nothing waits any more, or the other end is gone."""
        self._idle.clear()
        self._work.set()
        if not self.closed.is_set():
            await self._idle.wait()

    async def _guarded(self, work: Callable[[Any], Coroutine[Any, Any, None]], stream: Any) -> None:
        try:
            await work(stream)
        except (OSError, asyncio.IncompleteReadError, ValueError, TypeError, msgpack.UnpackException):
            pass
        finally:
            self.closed.set()
            self._idle.set()

    async def _write(self, writer: asyncio.StreamWriter) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            while self._orders or self._answers:
                if self._orders:
                    kind, body = self._orders.popleft()
                else:
                    kind = Kind.ANSWERS
                    body = [self._answers.popleft() for _ in range(min(BATCH, len(self._answers)))]
                frame = msgpack.packb((kind, body))
                writer.write(len(frame).to_bytes(_LENGTH, "big") + frame)
                await writer.drain()
                await asyncio.sleep(0)
            self._idle.set()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        while True:
            length = int.from_bytes(await reader.readexactly(_LENGTH), "big")
            if length > MAX_FRAME:
                raise ValueError("a frame beyond all bounds")
            kind, body = msgpack.unpackb(await reader.readexactly(length))
            self._handle(Kind(kind), [_answer(fields) for fields in body] if kind == Kind.ANSWERS else body)


def _answer(fields: list[Any]) -> Answer:
    qname, qtype, rrsets, evidence, *rest = fields
    return Answer(qname, qtype, tuple([RRset(*rrset) for rrset in rrsets]), Evidence(evidence), *rest)
