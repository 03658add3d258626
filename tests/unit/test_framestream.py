"""Frame Streams and length-prefixed messages, byte by byte."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from cachebus.errors import FrameError
from cachebus.wire.framestream import (
    DNSTAP_CONTENT_TYPE,
    MAX_CONTROL_FRAME,
    MAX_DATA_FRAME,
    ControlType,
    FrameStreamReceiver,
    LengthPrefixedReceiver,
    Receiver,
    State,
    control_frame,
    data_frame,
    write_frames,
    write_messages,
)

DATA = Path(__file__).parents[1] / "data"
READY = control_frame(ControlType.READY, DNSTAP_CONTENT_TYPE)
START = control_frame(ControlType.START, DNSTAP_CONTENT_TYPE)
STOP = control_frame(ControlType.STOP)


def u32(value: int) -> bytes:
    return value.to_bytes(4, "big")


def feed(receiver: Receiver, portions: Iterable[bytes]) -> tuple[list[bytes], str | None]:
    """The frames, and the text of the error that ended them."""
    frames = []
    try:
        for portion in portions:
            for frame in receiver.receive_data(portion):
                frames.append(frame)  # noqa: PERF402 -- what came before the error counts
    except FrameError as error:
        return frames, str(error)
    return frames, None


def bytewise(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


def test_control_frames_have_their_documented_bytes() -> None:
    assert START.hex() == "0000000000000022000000020000000100000016" + b"protobuf:dnstap.Dnstap".hex()
    assert STOP.hex() == "000000000000000400000003"
    assert control_frame(ControlType.FINISH).hex() == "000000000000000400000005"
    assert data_frame(b"abc") == b"\0\0\0\3abc"


def test_a_bidirectional_conversation() -> None:
    receiver = FrameStreamReceiver()
    assert list(receiver.receive_data(READY)) == []
    assert (receiver.state, receiver.bidirectional, receiver.started) == (State.ACCEPTED, True, False)
    assert receiver.data_to_send() == control_frame(ControlType.ACCEPT, DNSTAP_CONTENT_TYPE)
    assert receiver.data_to_send() == b""
    assert list(receiver.receive_data(START)) == []
    assert receiver.started
    assert receiver.data_to_send() == b""
    assert list(receiver.receive_data(data_frame(b"one") + data_frame(b"two"))) == [b"one", b"two"]
    assert list(receiver.receive_data(STOP)) == []
    assert receiver.finished
    assert receiver.data_to_send() == control_frame(ControlType.FINISH)
    receiver.receive_end()


def test_a_unidirectional_stream_is_not_answered() -> None:
    receiver = FrameStreamReceiver()
    assert list(receiver.receive_data(b"".join(write_frames([b"one", b"two"])))) == [b"one", b"two"]
    assert (receiver.bidirectional, receiver.finished, receiver.data_to_send()) == (False, True, b"")
    receiver.receive_end()


def test_a_plain_end_between_frames_is_fine() -> None:
    receiver = FrameStreamReceiver()
    assert list(receiver.receive_data(START + data_frame(b"one"))) == [b"one"]
    receiver.receive_end()
    assert not receiver.finished


@pytest.mark.parametrize("cut", [1, 4, 6, 7])
def test_an_end_inside_a_frame_is_not(cut: int) -> None:
    receiver = FrameStreamReceiver()
    assert list(receiver.receive_data(START + data_frame(b"some")[:cut])) == []
    assert receiver.buffered == cut
    with pytest.raises(FrameError, match=f"at byte {len(START)}: the stream ends inside a frame, after {cut} bytes"):
        receiver.receive_end()


def test_an_end_before_start_is_not() -> None:
    receiver = FrameStreamReceiver()
    with pytest.raises(FrameError, match="before its START"):
        receiver.receive_end()


def test_a_control_frame_without_content_type_matches_any() -> None:
    receiver = FrameStreamReceiver()
    portions = [control_frame(ControlType.READY), control_frame(ControlType.START), data_frame(b"x")]
    assert feed(receiver, portions) == ([b"x"], None)


def test_one_of_several_offered_content_types_is_enough() -> None:
    receiver = FrameStreamReceiver()
    assert feed(receiver, [control_frame(ControlType.READY, b"other", DNSTAP_CONTENT_TYPE), START]) == ([], None)
    assert receiver.started


VIOLATIONS = {
    "a data frame in state OPENING": data_frame(b"x"),
    "a data frame in state ACCEPTED": READY + data_frame(b"x"),
    "control frame STOP in state OPENING": STOP,
    "control frame STOP in state ACCEPTED": READY + STOP,
    "control frame READY in state ACCEPTED": READY + READY,
    "control frame START in state STREAMING": START + START,
    "control frame READY in state STREAMING": START + READY,
    "control frame ACCEPT in state OPENING": control_frame(ControlType.ACCEPT),
    "control frame FINISH in state STREAMING": START + control_frame(ControlType.FINISH),
    "control frame 9 in state OPENING": u32(0) + u32(4) + u32(9),
    "control frame STOP in state STOPPED": START + STOP + STOP,
    "a data frame in state STOPPED": START + STOP + data_frame(b"x"),
    f"a data frame of {MAX_DATA_FRAME + 1} bytes": START + u32(MAX_DATA_FRAME + 1),
    "a data frame of 4294967295 bytes": START + u32(2**32 - 1),
    "a control frame of 3 bytes": u32(0) + u32(3),
    f"a control frame of {MAX_CONTROL_FRAME + 1} bytes": u32(0) + u32(MAX_CONTROL_FRAME + 1),
    "content type b'protobuf:other' is not": control_frame(ControlType.START, b"protobuf:other"),
    "content type b'a' is not": control_frame(ControlType.READY, b"a", b"b"),
    "more than one content type": control_frame(ControlType.START, DNSTAP_CONTENT_TYPE, DNSTAP_CONTENT_TYPE),
    "ends inside a field": u32(0) + u32(8) + u32(2) + u32(1),
    "unknown control field 7": u32(0) + u32(12) + u32(2) + u32(7) + u32(0),
    "a content type of 5 bytes": u32(0) + u32(16) + u32(2) + u32(1) + u32(5) + b"abcd",
    "a content type of 300 bytes": u32(0) + u32(312) + u32(2) + u32(1) + u32(300) + bytes(300),
}


@pytest.mark.parametrize("portions", [lambda data: [data], bytewise], ids=["whole", "bytewise"])
@pytest.mark.parametrize("text", VIOLATIONS)
def test_violations(text: str, portions: Callable[[bytes], list[bytes]]) -> None:
    receiver = FrameStreamReceiver()
    frames, error = feed(receiver, portions(VIOLATIONS[text]))
    assert frames == []
    assert error is not None
    assert text in error
    assert re.match(r"at byte \d+: ", error)
    # It stays broken, whatever comes.
    for data in (START, b""):
        with pytest.raises(FrameError):
            list(receiver.receive_data(data))
    with pytest.raises(FrameError):
        receiver.receive_end()


def test_frames_before_a_violation_are_given_and_the_place_is_named() -> None:
    stream = START + data_frame(b"one") + data_frame(b"two")
    frames, error = feed(FrameStreamReceiver(), [stream + READY])
    assert frames == [b"one", b"two"]
    assert error == f"at byte {len(stream)}: control frame READY in state STREAMING"


def test_the_longest_frame_passes_and_takes_no_memory_before_it_comes() -> None:
    payload = bytes(MAX_DATA_FRAME)
    receiver = FrameStreamReceiver()
    assert list(receiver.receive_data(START + data_frame(payload)[:4])) == []
    assert receiver.buffered == 4
    assert list(receiver.receive_data(payload)) == [payload]
    assert receiver.buffered == 0


@pytest.mark.parametrize(
    "name", ["unbound", "unbound-uni", "bind", "pdns-recursor", "dnsdist", "kresd", "unbound-evil"]
)
def test_captures_read_the_same_in_any_portions(name: str) -> None:
    data = (DATA / f"{name}.dnstap").read_bytes()
    whole = feed(FrameStreamReceiver(), [data])
    assert whole[1] is None
    assert len(whole[0]) > 5
    assert feed(FrameStreamReceiver(), bytewise(data)) == whole
    shuffle = random.Random(1)
    portions, at = [], 0
    while at < len(data):
        size = shuffle.randrange(1, 300)
        portions.append(data[at : at + size])
        at += size
    assert feed(FrameStreamReceiver(), portions) == whole
    assert b"".join(write_frames(whole[0])).startswith(data[: len(START)])


def test_work_is_linear_in_small_portions() -> None:
    """A frame that trickles in is not looked at until it is complete: no look costs more than its portion."""
    receiver = FrameStreamReceiver()
    list(receiver.receive_data(START + u32(MAX_DATA_FRAME)))
    looks = 0
    parse = receiver._parse

    def counting(data: bytes, frames: list[bytes]) -> int:
        nonlocal looks
        looks += 1
        return parse(data, frames)

    receiver._parse = counting  # type: ignore[method-assign]
    frames: list[bytes] = []
    for _ in range(MAX_DATA_FRAME // 64):
        frames += receiver.receive_data(bytes(64))
    assert len(frames) == 1
    assert looks == 1


def test_length_prefixed_messages_in_any_portions() -> None:
    messages = [bytes([n]) * size for n, size in enumerate((1, 12, 65535, 300))]
    data = b"".join(write_messages(messages))
    assert feed(LengthPrefixedReceiver(), [data]) == (messages, None)
    receiver = LengthPrefixedReceiver()
    assert feed(receiver, bytewise(data)) == (messages, None)
    receiver.receive_end()
    assert (receiver.started, receiver.finished, receiver.data_to_send()) == (True, False, b"")


@pytest.mark.parametrize("length", [0, 65536, 2**32 - 1])
def test_length_prefixed_messages_have_a_bound(length: int) -> None:
    frames, error = feed(LengthPrefixedReceiver(), [data_frame(b"first") + u32(length)])
    assert frames == [b"first"]
    assert error == f"at byte 9: a message of {length} bytes; 1 to 65535 are allowed"


def test_a_cut_message_is_an_error_at_the_end_only() -> None:
    receiver = LengthPrefixedReceiver()
    assert list(receiver.receive_data(data_frame(b"first") + u32(9) + b"abc")) == [b"first"]
    with pytest.raises(FrameError, match="at byte 9: the stream ends inside a frame, after 7 bytes of it"):
        receiver.receive_end()


@pytest.mark.parametrize("payload", [b"", bytes(MAX_DATA_FRAME + 1)], ids=["empty", "too long"])
def test_what_could_not_be_read_is_not_written(payload: bytes) -> None:
    with pytest.raises(FrameError):
        data_frame(payload)
    with pytest.raises(FrameError):
        list(write_messages([bytes(65536)]))
    with pytest.raises(FrameError):
        control_frame(ControlType.READY, bytes(256), bytes(256))
