"""A broker that cannot be trusted: a relay before a real one, which does to each message what it is told.

Knows of MQTT the fixed header and where the payload of a PUBLISH begins. What goes to the real broker goes as it is;
what comes from it passes `mangle`, PUBLISH by PUBLISH.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import NamedTuple, Self

_PUBLISH = 0x30
RETAIN = 0x01
"""Flag of a PUBLISH's first byte."""


class Message(NamedTuple):
    """One PUBLISH on its way to a subscriber."""

    first: int
    head: bytes
    """Topic, packet identifier and properties."""
    payload: bytes


Mangle = Callable[[Message], Sequence[Message]]
"""What becomes of one message: any number of messages."""


class EvilBroker:
    """Listens on `port` once entered. `mangle` may be set to something else at any time; at first nothing changes."""

    def __init__(self, upstream: int, *, v5: bool = True) -> None:
        self.mangle: Mangle = lambda message: [message]
        self._upstream = upstream
        self._v5 = v5
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def port(self) -> int:
        """Where it listens."""
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        with contextlib.suppress(OSError, asyncio.CancelledError):
            from_broker, to_broker = await asyncio.open_connection("127.0.0.1", self._upstream)
            up = asyncio.create_task(_copy(reader, to_broker))
            try:
                await self._relay(from_broker, writer)
            finally:
                up.cancel()
                await asyncio.gather(up, return_exceptions=True)
                to_broker.close()
        writer.close()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                first, body = await _packet(reader)
                if first & 0xF0 == _PUBLISH:
                    for message in self.mangle(self._message(first, body)):
                        writer.write(_encode(message.first, message.head + message.payload))
                else:
                    writer.write(_encode(first, body))

    def _message(self, first: int, body: bytes) -> Message:
        position = 2 + int.from_bytes(body[:2], "big") + (2 if first & 0x06 else 0)
        if self._v5:
            size, length = _length(body[position:])
            position += size + length
        return Message(first, body[:position], body[position:])


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
    writer.close()


async def _packet(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    first = (await reader.readexactly(1))[0]
    length = b""
    while not length or length[-1] & 128:
        length += await reader.readexactly(1)
    return first, await reader.readexactly(_length(length)[1])


def _length(data: bytes) -> tuple[int, int]:
    """A variable byte integer (MQTT 5 section 1.5.5): bytes that it takes, and its value."""
    value = 0
    for position, byte in enumerate(data[:4]):
        value |= (byte & 127) << 7 * position
        if byte < 128:
            return position + 1, value
    raise ValueError("no length")


def _encode(first: int, body: bytes) -> bytes:
    length, rest = bytearray(), len(body)
    while rest > 127:
        length.append(rest & 127 | 128)
        rest >>= 7
    return bytes([first, *length, rest]) + body
