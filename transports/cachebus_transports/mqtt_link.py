"""One connection to a broker, shown to paho as the socket it asks for: paho works on the event loop, without a thread.

Decides what paho gets to see: whole packets of a bounded size. A longer one, and QoS 2, which we never ask for, never
reach it, for paho would keep them without bound. Knows of MQTT only the fixed header (MQTT 5 section 2.1).

paho reads a socket byte by byte, and connects and shakes hands while everybody waits. So the loop's own stream does
that: it connects and runs TLS beside everything else, and one system call carries many packets in each direction.
"""

from __future__ import annotations

import asyncio
from typing import Protocol, cast

from cachebus_transports._keepalive import keep_alive

MAX_PACKET = 320 * 1024
"""Largest packet taken, in bytes: the largest message of 256 KiB with the longest topic (64 KiB) and its properties."""
HIGH_WATER = 256 * 1024
"""Bytes that may wait for the kernel before we write no more."""
CLOSE_WAIT = 1.0
"""Seconds in which a closed connection may still deliver what was written; then it is cut."""

_TYPE = 0xF0
_PUBLISH = 0x30
_QOS = 0x06


class Reader(Protocol):
    """What a link tells."""

    def published(self, first: int, body: bytes) -> None:
        """A PUBLISH came: first byte of its fixed header, and what follows that header."""
        ...

    def packet(self, first: int) -> None:
        """Any other packet came, with this first byte, and waits to be read by `Link.recv`."""
        ...

    def turn_ends(self) -> None:
        """All that came together has been told."""
        ...

    def room(self) -> None:
        """Writing may go on."""
        ...


class Link(asyncio.Protocol):
    """An `asyncio.Protocol` on one side, paho's `SocketLike` on the other."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._body = 0  # where the packet's fixed header ends, within `_received`
        self._position = self._end = 0  # of what paho may read now, likewise
        self._skip = 0  # bytes to come of a packet that is too large
        self._unwritten: list[bytes | bytearray] = []
        self._cut: asyncio.TimerHandle | None = None
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the connection has ended, by whomever."""
        self.paused = False
        """The kernel takes no more for now."""
        self.oversize = 0
        """Packets that were too large to be taken."""

    # The event loop's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=HIGH_WATER)
        if (opened := transport.get_extra_info("socket")) is not None:
            keep_alive(opened)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._received.clear()
        self._position = self._end = 0
        if self._cut is not None:
            self._cut.cancel()
        if not self.lost.done():
            self.lost.set_result(None)

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        self._reader.room()

    def data_received(self, data: bytes) -> None:
        self._received += data
        start = 0
        while self.open and (end := self._next_packet(start)):
            first = self._received[start]
            if first & _TYPE == _PUBLISH:
                self._reader.published(first, bytes(self._received[self._body : end]))
            else:
                self._position, self._end = start, end
                self._reader.packet(first)
            start = end
        if self.open:
            del self._received[:start]
        else:
            self._received.clear()
        self._position = self._end = 0
        self._reader.turn_ends()

    def _next_packet(self, start: int) -> int:
        """Where the packet ends that begins at `start`; 0 when it is not there as a whole, or is not to be read."""
        received = self._received
        if self._skip:
            return self._skip_packet(start, 0)
        size, shift = 0, 0
        for position in range(start + 1, min(start + 5, len(received))):
            byte = received[position]
            size |= (byte & 127) << shift
            if byte < 128:
                break
            shift += 7
        else:
            if len(received) - start > 4:
                self.abort()  # a fifth byte of length: this is not MQTT
            return 0
        self._body = position + 1
        end = self._body + size
        if received[start] & _TYPE == _PUBLISH and received[start] & _QOS > 2:
            self.abort()  # QoS 2, or 3, which does not exist
            return 0
        if end - start > MAX_PACKET:
            self.oversize += 1
            if received[start] & _TYPE != _PUBLISH or received[start] & _QOS:
                self.abort()  # it would have to be acknowledged, else it stays in the way
                return 0
            return self._skip_packet(start, end - start)
        return end if end <= len(received) else 0

    def _skip_packet(self, start: int, size: int) -> int:
        """Forget what there is of a packet of `size` bytes, or of the rest of one."""
        self._skip = self._skip or size
        there = min(self._skip, len(self._received) - start)
        self._skip -= there
        del self._received[start : start + there]
        return 0 if self._skip else self._next_packet(start)

    # paho's side

    def recv(self, size: int) -> bytes:
        """Give up to `size` bytes of the present packet. Raises `BlockingIOError` at its end."""
        end = min(self._position + size, self._end)
        data = bytes(self._received[self._position : end])
        if not data:
            raise BlockingIOError
        self._position = end
        return data

    def send(self, data: bytes | bytearray) -> int:
        """Take all of `data`; `push` hands it to the kernel. Raises `BlockingIOError` while the kernel takes none."""
        if self._transport is None:
            raise ConnectionError("the connection has ended")
        if self.paused:
            raise BlockingIOError
        self._unwritten.append(data)
        return len(data)

    def close(self) -> None:
        """Write what was sent, then end the connection; what the kernel does not take in time is lost."""
        if self._transport is None or not self.open:
            return
        self.push()
        self._transport.close()
        self._cut = asyncio.get_running_loop().call_later(CLOSE_WAIT, self.abort)

    def fileno(self) -> int:
        """None that anybody may wait on: the event loop does."""
        return -1

    def setblocking(self, flag: bool) -> None:
        """It never blocks."""

    # The session's side

    @property
    def open(self) -> bool:
        """It may be written to, and what comes is read."""
        return self._transport is not None and not self._transport.is_closing()

    def push(self) -> None:
        """Hand what was sent to the kernel, in one piece."""
        if self._unwritten and self._transport is not None:
            self._transport.write(b"".join(self._unwritten))
        self._unwritten.clear()

    def abort(self) -> None:
        """Cut the connection now."""
        if self._transport is not None:
            self._transport.abort()

    def waiting(self) -> int:
        """Bytes that the kernel has not taken yet."""
        unwritten = sum(len(data) for data in self._unwritten)
        return unwritten + (0 if self._transport is None else self._transport.get_write_buffer_size())
