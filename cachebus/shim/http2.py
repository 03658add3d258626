"""The lengths of HTTP/2 frames, looked at before the bytes are kept (RFC 9113 section 4.1).

The h2 library collects a whole frame before it finds that it is longer than was agreed on: 16 MiB for each connection
of whoever announces so many. Knows nothing else of HTTP/2.
"""

from __future__ import annotations

from cachebus.errors import FrameError

MAX_FRAME = 16_384
"""Bytes of a frame's payload until something else is agreed on, and nothing else is (RFC 9113 section 4.2)."""
HEADER = 9
"""Bytes of a frame's header; the first three are the length."""


class FrameLengths:
    """Follows the frames of one direction of a connection."""

    def __init__(self, *, skip: int = 0) -> None:
        """`skip`: bytes before the first frame, as a client's preface has them."""
        self._left = skip
        self._head = b""

    def check(self, data: bytes) -> None:
        """Look at the next bytes. Raises `FrameError` for a frame that is too long."""
        position = self._left
        size = len(data)
        while position < size:
            taken = data[position : position + HEADER - len(self._head)]
            self._head += taken
            position += len(taken)
            if len(self._head) < HEADER:
                break
            length = int.from_bytes(self._head[:3], "big")
            if length > MAX_FRAME:
                raise FrameError("an HTTP/2 frame longer than was agreed on")
            self._head = b""
            position += length
        self._left = max(0, position - size)
