"""DNS over TCP as RFC 7766 wants it: pipelined questions, replies in whatever order they are found.

Moves bytes between one connection and the service; reads no DNS message. The same over TLS is RFC 7858.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, cast

from cachebus.shim.connections import Connections
from cachebus.shim.query import Channel
from cachebus.shim.service import Service
from cachebus.shim.tasks import Tasks

MAX_UNDER_WAY = 100
"""Questions of one connection that wait for an upstream; reading pauses until one of them is answered."""
MAX_UNREAD = 1 << 19
"""Bytes of replies that a client has not taken, beyond which its connection is ended: eight of the largest replies."""


class TcpConnection(asyncio.Protocol):
    """One client's connection: messages with a 16-bit length, answered in the order in which answers are found."""

    def __init__(
        self, service: Service, tasks: Tasks, connections: Connections, channel: Channel = Channel.TCP
    ) -> None:
        self._service = service
        self._channel = channel
        self._tasks = tasks
        self._connections = connections
        self._transport: asyncio.Transport | None = None
        self._client = ""
        self._buffer = bytearray()
        self._ended = False
        self._choked = False
        self._has_asked = False
        self.under_way = 0
        self.active_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        peer = transport.get_extra_info("peername")
        if not peer or not self._connections.admit(self, peer[0]):
            self._transport.abort()
            return
        self._client = peer[0]

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._buffer.clear()
        self._connections.forget(self)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._take_messages()

    def eof_received(self) -> bool:
        # A client may close its half after the last question and still wait for the answers (RFC 7766 section 6.2.4).
        self._ended = True
        return self.under_way > 0

    def pause_writing(self) -> None:
        self._choked = True
        self._read_or_not()

    def resume_writing(self) -> None:
        self._choked = False
        self._connections.active(self)
        self._read_or_not()
        self._take_messages()

    @property
    def is_idle(self) -> bool:
        """Nothing is under way, or the client reads no replies."""
        return self._choked or not self.under_way

    @property
    def is_dear(self) -> bool:
        """It is encrypted and has asked something."""
        return self._has_asked and self._channel.is_encrypted

    def shut(self) -> None:
        """Close when what was written has left."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def _take_messages(self) -> None:
        buffer = self._buffer
        position = 0
        while not self._is_full and len(buffer) - position >= 2:
            end = position + 2 + (buffer[position] << 8 | buffer[position + 1])
            if end > len(buffer):
                break
            message = bytes(buffer[position + 2 : end])
            position = end
            self._has_asked = True
            self._connections.active(self)
            self._take(message)
        if position:
            del buffer[:position]
        self._read_or_not()

    def _take(self, message: bytes) -> None:
        answered = self._service.handle(message, self._client, self._channel)
        if isinstance(answered, bytes):
            self._send(answered)
        elif answered is not None:
            self.under_way += 1
            self._tasks.start(self._send_later(answered))

    async def _send_later(self, reply: Coroutine[Any, Any, bytes]) -> None:
        try:
            self._send(await reply)
        finally:
            self.under_way -= 1
            if self._transport is not None:
                self._connections.active(self)
                self._take_messages()
                if self._ended and not self.under_way:
                    self._transport.close()

    def _send(self, reply: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(len(reply).to_bytes(2, "big") + reply)
            if self._choked and self._transport.get_write_buffer_size() > MAX_UNREAD:
                self._transport.abort()

    @property
    def _is_full(self) -> bool:
        return self._choked or self.under_way >= MAX_UNDER_WAY or self._transport is None

    def _read_or_not(self) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        if self._is_full:
            self._transport.pause_reading()
        elif not self._ended:
            self._transport.resume_reading()
