"""What goes over one stream link: the bytes that are sent, and what is made of received ones.

Decides how messages become a stream (framing, compression), and what the first bytes of a received stream mean. Knows
no socket and no event loop, hence serves tcp and quic alike.

A connection carries the stream of whoever opened it. It begins with SUBSCRIBE where that side also wants the other's
stream on the same connection. A stream is what the codec's framing makes, bare or as one zstd frame (RFC 8878). Which
of these it is, its first bytes say: SUBSCRIBE and zstd's magic number are neither a C-DNS file's beginning (0x83) nor a
length that the length-prefixed form allows.
"""

from __future__ import annotations

import sys
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

ZSTD_LEVEL = 3
"""Of what is compressed: higher levels cost the sender ten times the work for a few per cent."""
WINDOW_LOG = 21
"""Window of the streams, 2 MiB, sent and accepted (`zstd -3` writes no larger one): what a stream makes us hold."""
PIECE = 64 * 1024
"""Bytes decompressed at a time: what they yield is handed on before the next are made."""
SLICE = 16 * 1024
"""Compressed bytes whose yield is bounded by `MAX_SLICE_YIELD`."""
MAX_SLICE_YIELD = 16 * 1024 * 1024
"""1024 times their size: repeated answers compress to a hundredth, a bomb to a thirty-thousandth."""

Deliver = Callable[[bytes], None]
"""Takes one received message. Never raises."""


class Outgoing:
    """The bytes of one stream that we send: opening, frames, closing; one zstd frame around them if `compressed`."""

    def __init__(self, framing: Framing, *, compressed: bool) -> None:
        self._framing = framing
        self._compressor = _compressor() if compressed else None

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


def _compressor() -> zstd.ZstdCompressor:
    return zstd.ZstdCompressor(
        options={
            zstd.CompressionParameter.compression_level: ZSTD_LEVEL,
            zstd.CompressionParameter.window_log: WINDOW_LOG,
        }
    )
