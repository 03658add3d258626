"""wire/stream.py: messages after their length; how a stream is taken apart is tested with framestream.py."""

from __future__ import annotations

import pytest

from cachebus.errors import FrameError
from cachebus.wire.stream import MAX_FRAME, LengthFraming


def test_a_frame_is_the_length_and_the_message() -> None:
    framing = LengthFraming()
    assert (framing.opening(), framing.closing()) == (b"", b"")
    assert framing.frame(b"abc") == b"\0\0\0\x03abc"


def test_the_longest_message_is_taken_and_no_longer_one() -> None:
    framing = LengthFraming()
    stream = framing.frame(bytes(MAX_FRAME)) + (MAX_FRAME + 1).to_bytes(4, "big")
    frames = framing.splitter().receive_data(stream)
    assert next(frames) == bytes(MAX_FRAME)
    with pytest.raises(FrameError):
        next(frames)
    with pytest.raises(FrameError):
        framing.frame(bytes(MAX_FRAME + 1))
