"""Where HTTP/2 frames end, and how many of them are too many (RFC 9113 section 4). HTTP/2 itself is h2's business."""

from __future__ import annotations

from cachebus.errors import FrameError

PREFACE_LENGTH = 24
"""Bytes with which an HTTP/2 client begins (RFC 9113 section 3.4)."""
MAX_FRAME = 16384
"""Bytes of a frame's payload: the least that HTTP/2 allows to be the most (RFC 9113 section 4.2)."""
MAX_CONTINUATIONS = 4
"""CONTINUATION frames of one header block: with the frame that they continue more than `MAX_HEADERS`."""
MAX_OTHER_FRAMES = 200
"""Frames between two messages that are no part of one (PING, SETTINGS, WINDOW_UPDATE ...): a client has some dozen."""

_FRAME_HEADER = 9
_DATA, _HEADERS, _CONTINUATION = 0, 1, 9


class FrameSplitter:
    """Cuts what the other end of an HTTP/2 connection sends into its frames, and bounds what that can make us do.

    h2 takes any bytes; it is given whole frames so that its work can be stopped between any two, and so that what
    waits for the rest of a frame is here, where it is bounded: h2 itself would collect 16 MiB of one that is too long.
    """

    def __init__(self, *, preface: bool) -> None:
        """`preface`: the other end is a client, and begins with the preface."""
        self._buffer = bytearray()
        self._started = not preface
        self._continuations = 0
        self._others = 0

    def __len__(self) -> int:
        """Bytes that wait."""
        return len(self._buffer)

    def feed(self, data: bytes) -> None:
        """Take what came."""
        self._buffer += data

    def message_came(self) -> None:
        """A whole request, or response, came: the connection is of use."""
        self._others = 0

    def next_frame(self) -> bytes | None:
        """The next whole frame, first of all the client's preface, or None until more comes.

        Raises `FrameError` for a frame that is too long, for too many CONTINUATION frames, and for too many frames that
        are no part of one.
        """
        buffer = self._buffer
        if not self._started:
            if len(buffer) < PREFACE_LENGTH:
                return None
            self._started = True
            return self._take(PREFACE_LENGTH)
        if len(buffer) < _FRAME_HEADER:
            return None
        length = int.from_bytes(buffer[:3], "big")
        if length > MAX_FRAME:
            raise FrameError(f"a frame of {length} bytes")
        if len(buffer) < _FRAME_HEADER + length:
            return None
        self._count(buffer[3], buffer[4], length)
        return self._take(_FRAME_HEADER + length)

    def _count(self, kind: int, flags: int, length: int) -> None:
        if kind == _CONTINUATION:
            self._continuations += 1
            if self._continuations > MAX_CONTINUATIONS:
                raise FrameError("a header block without end")
            return
        self._continuations = 0
        if kind != _HEADERS and not (kind == _DATA and length):
            self._others += 1
            if self._others > MAX_OTHER_FRAMES:
                raise FrameError("frames without a message")

    def _take(self, size: int) -> bytes:
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken
