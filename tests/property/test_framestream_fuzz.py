"""Any bytes, whole or in portions, give frames or `FrameError`; at least half of the bytes are mutated streams."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachebus.errors import FrameError
from cachebus.wire.framestream import (
    DNSTAP_CONTENT_TYPE,
    MAX_CONTROL_FRAME,
    MAX_DATA_FRAME,
    ControlType,
    FrameStreamReceiver,
    LengthPrefixedReceiver,
    Receiver,
    control_frame,
    write_frames,
    write_messages,
)

pytestmark = pytest.mark.property

PAYLOADS = st.lists(st.binary(min_size=1, max_size=40), max_size=6)


def bidirectional(payloads: list[bytes]) -> bytes:
    return control_frame(ControlType.READY, DNSTAP_CONTENT_TYPE) + b"".join(write_frames(payloads))


STREAMS = PAYLOADS.map(lambda payloads: b"".join(write_frames(payloads))) | PAYLOADS.map(bidirectional)
MESSAGES = PAYLOADS.map(lambda payloads: b"".join(write_messages(payloads)))


@st.composite
def mutated(draw: st.DrawFn, valid: st.SearchStrategy[bytes]) -> bytes:
    """A valid stream with some bytes changed, removed or put in."""
    data = bytearray(draw(valid))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(["change", "remove", "insert", "cut"])):
            case "change" if at < len(data):
                data[at] = draw(st.integers(0, 255))
            case "remove":
                del data[at : at + draw(st.integers(1, 8))]
            case "insert":
                data[at:at] = draw(st.binary(min_size=1, max_size=8))
            case _:
                del data[at:]
    return bytes(data)


def portions(data: bytes, cuts: list[int]) -> list[bytes]:
    """`data` cut at these places (taken modulo its length)."""
    places = sorted({cut % (len(data) + 1) for cut in cuts})
    return [data[start:stop] for start, stop in zip([0, *places], [*places, len(data)], strict=True)]


def outcome(receiver: Receiver, parts: list[bytes]) -> tuple[list[bytes], bytes, str]:
    """Frames, bytes to send, and how it ended. Whatever is not a frame or `FrameError` fails the test."""
    frames = []
    outgoing = b""
    try:
        for part in parts:
            for frame in receiver.receive_data(part):
                frames.append(frame)  # noqa: PERF402 -- what came before the error counts
            outgoing += receiver.data_to_send()
            assert receiver.buffered <= 4 + max(MAX_DATA_FRAME, 4 + MAX_CONTROL_FRAME)
        receiver.receive_end()
    except FrameError as error:
        return frames, outgoing + receiver.data_to_send(), str(error)
    return frames, outgoing, "end"


CUTS = st.lists(st.integers(0, 2000), max_size=20)


def mostly_mutated(valid: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """Three quarters mutated streams; valid ones and arbitrary bytes share the rest."""
    return st.integers(0, 3).flatmap(lambda die: mutated(valid) if die else st.binary(max_size=200) | valid)


ANY_STREAM = mostly_mutated(STREAMS)
ANY_MESSAGES = mostly_mutated(MESSAGES)


@given(ANY_STREAM, CUTS)
def test_frame_streams_in_portions_are_as_whole(data: bytes, cuts: list[int]) -> None:
    whole = outcome(FrameStreamReceiver(), [data])
    assert outcome(FrameStreamReceiver(), portions(data, cuts)) == whole
    assert outcome(FrameStreamReceiver(), [data[at : at + 1] for at in range(len(data))]) == whole


@given(ANY_MESSAGES, CUTS)
def test_messages_in_portions_are_as_whole(data: bytes, cuts: list[int]) -> None:
    whole = outcome(LengthPrefixedReceiver(), [data])
    assert outcome(LengthPrefixedReceiver(), portions(data, cuts)) == whole
    assert outcome(LengthPrefixedReceiver(), [data[at : at + 1] for at in range(len(data))]) == whole


@given(PAYLOADS, CUTS)
def test_what_was_written_is_read(payloads: list[bytes], cuts: list[int]) -> None:
    assert outcome(FrameStreamReceiver(), portions(b"".join(write_frames(payloads)), cuts)) == (payloads, b"", "end")
    assert outcome(LengthPrefixedReceiver(), portions(b"".join(write_messages(payloads)), cuts)) == (
        payloads,
        b"",
        "end",
    )
    accept = control_frame(ControlType.ACCEPT, DNSTAP_CONTENT_TYPE)
    finish = control_frame(ControlType.FINISH)
    assert outcome(FrameStreamReceiver(), portions(bidirectional(payloads), cuts)) == (payloads, accept + finish, "end")
