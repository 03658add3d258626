"""DNS over QUIC as bytes (RFC 9250): what one stream brings, and what breaks the protocol. Knows no connection."""

from __future__ import annotations

from cachebus.errors import FrameError
from cachebus.shim.query import Error, Query, parse_query

NO_ERROR = 0
PROTOCOL_ERROR = 2
REQUEST_CANCELLED = 3
EXCESSIVE_LOAD = 4
"""Error codes (RFC 9250 section 4.3); 1, an internal error, would be a bug of ours."""
INTERNAL_ERROR = 1

_KEEPALIVE = 11
"""The EDNS option edns-tcp-keepalive (RFC 7828)."""


class Question:
    """One client stream: a message with a 16-bit length, then its end (RFC 9250 section 4.2)."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def __len__(self) -> int:
        """Bytes that it holds."""
        return len(self._buffer)

    def feed(self, data: bytes) -> None:
        """Take what came. Raises `FrameError` for more than one message."""
        self._buffer += data
        if len(self._buffer) >= 2 and len(self._buffer) > self._size:
            raise FrameError("bytes after the message")

    def end(self) -> bytes:
        """The message, now that no more comes. Raises `FrameError` when it is cut short or must not be on QUIC."""
        if len(self._buffer) < 2 or len(self._buffer) < self._size:
            raise FrameError("the message is cut short")
        message = bytes(self._buffer[2:])
        if message[:2] != b"\0\0":
            raise FrameError("a message ID other than 0")  # section 4.2.1
        if _has_keepalive(message):
            raise FrameError("edns-tcp-keepalive is TCP's")  # section 5.5.2
        return message

    @property
    def _size(self) -> int:
        return 2 + (self._buffer[0] << 8 | self._buffer[1])


def _has_keepalive(message: bytes) -> bool:
    query = parse_query(message)
    if not isinstance(query, Query | Error) or query.edns is None:
        return False
    options, position = query.edns.options, 0
    while position < len(options):
        if options[position] << 8 | options[position + 1] == _KEEPALIVE:
            return True
        position += 4 + (options[position + 2] << 8 | options[position + 3])
    return False
