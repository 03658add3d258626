"""What goes over one stream link: the queue before it, the bytes on it, and what is made of received bytes.

Decides how much may wait for a peer, how messages become a stream (framing, compression), and what the first bytes of a
received stream mean. Knows no socket and no event loop, hence serves tcp and quic alike.

A connection carries the stream of whoever opened it. It begins with SUBSCRIBE where that side also wants the other's
stream on the same connection. A stream is what the codec's framing makes, bare or as one zstd frame (RFC 8878). Which
of these it is, its first bytes say: SUBSCRIBE and zstd's magic number are neither a C-DNS file's beginning (0x83) nor a
length that the length-prefixed form allows.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable

from cachebus.errors import FrameError
from cachebus.ports import Framing, Splitter

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

SUBSCRIBE = b"CBSUB1\r\n"
"""What opens a connection whose opener wants our stream too. `printf 'CBSUB1\\r\\n'` makes a subscriber of netcat."""
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
"""First bytes of a zstd frame (RFC 8878 section 3.1.1)."""

MAX_QUEUE_BYTES = 16 * 1024 * 1024
"""Of frames that wait for one peer: some 100,000 answers, or a second of the highest rate. Peers share the bytes."""
MAX_QUEUE_FRAMES = 65536
"""Likewise: bounds what bookkeeping costs where frames are tiny."""
MAX_QUEUE_AGE = 30.0
"""Seconds that a frame may wait for a peer that is away. Receivers refuse envelopes after 60; the TTLs run on."""

ZSTD_LEVEL, MIN_ZSTD_LEVEL, MAX_ZSTD_LEVEL = 3, 1, 9
"""Of `zstd: true`, and the range: higher levels cost the sender ten times the work for a few per cent."""
WINDOW_LOG = 21
"""Window of the streams, 2 MiB, sent and accepted (`zstd -3` writes no larger one): what a stream makes us hold."""
PIECE = 64 * 1024
"""Bytes decompressed at a time: what they yield is handed on before the next are made."""
SLICE = 16 * 1024
"""Compressed bytes whose yield is bounded by `MAX_SLICE_YIELD`."""
MAX_SLICE_YIELD = 16 * 1024 * 1024
"""1024 times their size: repeated answers compress to a hundredth, a bomb to a thirty-thousandth."""

Frame = tuple[float, bytes]
"""When a message was handed to `send` (event loop time), and how it stands in the stream."""
Deliver = Callable[[bytes], None]
"""Takes one received message. Never raises."""


class Outbox:
    """What waits for one peer, bounded in frames, bytes and age; the oldest goes first, sent or dropped."""

    def __init__(self, limit: int = MAX_QUEUE_BYTES) -> None:
        """`limit`: bytes that may wait; the frame that comes last is kept even if it is longer."""
        self._limit = limit
        self._frames: deque[Frame] = deque()
        self.bytes = 0
        self.dropped = 0
        """Frames that found no room, or waited too long."""
        self.wake: Callable[[], None] | None = None
        """Called when there is something to send; the connection of the moment sets it."""

    def __len__(self) -> int:
        """Frames that wait."""
        return len(self._frames)

    def put(self, frame: Frame) -> None:
        """Take one frame; the oldest make room for it."""
        self._frames.append(frame)
        self.bytes += len(frame[1])
        while (self.bytes > self._limit and len(self._frames) > 1) or len(self._frames) > MAX_QUEUE_FRAMES:
            self._drop()
        if self.wake is not None:
            self.wake()

    def take(self, limit: int) -> list[bytes]:
        """The oldest frames, one at least if any waits, further ones as long as they are at most `limit` bytes."""
        taken: list[bytes] = []
        size = 0
        while self._frames and (not taken or size + len(self._frames[0][1]) <= limit):
            data = self._frames.popleft()[1]
            size += len(data)
            taken.append(data)
        self.bytes -= size
        return taken

    def expire(self, now: float) -> None:
        """Drop what has waited longer than `MAX_QUEUE_AGE`."""
        while self._frames and self._frames[0][0] < now - MAX_QUEUE_AGE:
            self._drop()

    def clear(self) -> None:
        """Drop everything."""
        while self._frames:
            self._drop()

    def _drop(self) -> None:
        self.bytes -= len(self._frames.popleft()[1])
        self.dropped += 1


class Outgoing:
    """The bytes of one stream that we send: opening, frames, closing; one zstd frame around them if `level` says so."""

    def __init__(self, framing: Framing, level: int | None) -> None:
        self._framing = framing
        self._compressor = None if level is None else _compressor(level)

    def open(self) -> bytes:
        """What the stream begins with."""
        return self.turn([self._framing.opening()])

    def turn(self, frames: list[bytes]) -> bytes:
        """The next frames, complete for the receiver: what is compressed is flushed at the end of each turn."""
        data = b"".join(frames)
        if self._compressor is None or not data:
            return data
        return self._compressor.compress(data, self._compressor.FLUSH_BLOCK)

    def close(self) -> bytes:
        """What the stream ends with."""
        closing = self._framing.closing()
        if self._compressor is None:
            return closing
        return self._compressor.compress(closing, self._compressor.FLUSH_FRAME)


class Incoming:
    """Takes one received stream apart: tells its form from its first bytes, then decompresses and splits it."""

    def __init__(self, framing: Framing, deliver: Deliver, subscribed: Callable[[], None] | None = None) -> None:
        """`subscribed` is called when the stream begins with SUBSCRIBE; None where that makes no sense."""
        self._splitter: Splitter = framing.splitter()
        self._deliver = deliver
        self._subscribed = subscribed
        self._decompressor: zstd.ZstdDecompressor | None = None
        self._begin: bytes | None = b""
        """The first bytes while they do not yet say what the stream is; None from then on."""

    def feed(self, data: bytes) -> None:
        """Deliver what the next bytes complete. Raises `FrameError` when the stream can never be right again."""
        if self._begin is not None:
            data = self._recognise(self._begin + data)
            if not data:
                return
        if self._decompressor is None:
            self._split(data)
        else:
            for start in range(0, len(data), SLICE):
                self._inflate(self._decompressor, data[start : start + SLICE])

    def end(self) -> None:
        """Take note that the stream has ended. Raises `FrameError` when that cuts a message in two."""
        if self._begin:
            rest, self._begin = self._begin, None
            self._split(rest)
        self._splitter.receive_end()

    def _recognise(self, data: bytes) -> bytes:
        """Read the first bytes, as often as they announce something; give those of the stream proper."""
        self._begin = data
        if self._subscribed is not None:
            if data.startswith(SUBSCRIBE):
                subscribed, self._subscribed = self._subscribed, None
                subscribed()
                data = self._begin = data[len(SUBSCRIBE) :]
            elif SUBSCRIBE.startswith(data):
                return b""
        if data.startswith(ZSTD_MAGIC):
            self._decompressor = zstd.ZstdDecompressor(
                options={zstd.DecompressionParameter.window_log_max: WINDOW_LOG},
            )
        elif ZSTD_MAGIC.startswith(data):
            return b""
        self._begin = None
        return data

    def _inflate(self, decompressor: zstd.ZstdDecompressor, data: bytes) -> None:
        budget = MAX_SLICE_YIELD
        while True:
            if decompressor.eof:
                raise FrameError("bytes after the end of the compressed stream")
            try:
                piece = decompressor.decompress(data, PIECE)
            except zstd.ZstdError:
                raise FrameError("the compressed stream is broken, or needs a larger window than 2 MiB") from None
            budget -= len(piece)
            if budget < 0:
                raise FrameError(f"{SLICE} compressed bytes hold more than {MAX_SLICE_YIELD}")
            if piece:
                self._split(piece)
            if decompressor.unused_data:
                raise FrameError("bytes after the end of the compressed stream")
            if decompressor.eof or decompressor.needs_input:
                return
            data = b""

    def _split(self, data: bytes) -> None:
        for message in self._splitter.receive_data(data):
            self._deliver(message)


def _compressor(level: int) -> zstd.ZstdCompressor:
    return zstd.ZstdCompressor(
        options={
            zstd.CompressionParameter.compression_level: level,
            zstd.CompressionParameter.window_log: WINDOW_LOG,
        }
    )
