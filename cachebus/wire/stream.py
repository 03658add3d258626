"""How codecs' messages follow each other in a byte stream: each after its length as u32, in network order.

The form that the draft's tools write. Knows nothing of what is in a message.
"""

from __future__ import annotations

from cachebus.wire.framestream import LengthPrefixedReceiver, data_frame

MAX_FRAME = 1 << 20
"""Bytes of one message: four times the largest that a codec composes, and what one connection may make us hold."""


class LengthFraming:
    """A `ports.Framing`. Nothing opens or closes such a stream."""

    def opening(self) -> bytes:
        """Nothing."""
        return b""

    def frame(self, message: bytes) -> bytes:
        """The message after its length. Raises `FrameError` when it is empty or longer than `MAX_FRAME`."""
        return data_frame(message, limit=MAX_FRAME)

    def closing(self) -> bytes:
        """Nothing."""
        return b""

    def splitter(self) -> LengthPrefixedReceiver:
        """For one received stream."""
        return LengthPrefixedReceiver(max_message=MAX_FRAME)
