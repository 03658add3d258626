# ruff: noqa: PT017  (either outcome is right; both are looked at)
"""Targets: streams, dnstap payloads and capture files (`wire.framestream`, `wire.dnstap`, `sources.file`)."""

from __future__ import annotations

import os
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

from cachebus.errors import FrameError
from cachebus.presentation import check_name
from cachebus.sources.file import Format, open_capture, recognise
from cachebus.wire.dnstap import Frame, MessageType, SocketProtocol, decode, encode
from cachebus.wire.framestream import (
    DNSTAP_CONTENT_TYPE,
    MAX_CONTROL_FRAME,
    MAX_DATA_FRAME,
    ControlType,
    FrameStreamReceiver,
    LengthPrefixedReceiver,
    Receiver,
    control_frame,
    data_frame,
    write_frames,
    write_messages,
)
from tests.fuzz.grammar import NAMES, make_message
from tests.fuzz.harness import Part, Target
from tests.fuzz.messages import BytesTarget
from tests.fuzz.mutate import LONGS, below

DATA = Path(__file__).parents[1] / "data"
CAPTURES = ("unbound", "unbound-evil", "bind", "pdns-recursor", "dnsdist", "kresd", "https65")
MOST_HELD = 4 + max(MAX_DATA_FRAME, 4 + MAX_CONTROL_FRAME)
"""Bytes of the longest frame, its length included."""


def captured() -> list[bytes]:
    """The payloads that real servers sent."""
    return [
        payload
        for name in CAPTURES
        for payload in FrameStreamReceiver().receive_data((DATA / f"{name}.dnstap").read_bytes())
    ]


Outcome = tuple[list[bytes], bytes, str]
"""Frames, bytes to send back, how it ended."""


def outcome(receiver: Receiver, parts: list[bytes]) -> Outcome:
    """What a receiver makes of a stream in these portions."""
    frames: list[bytes] = []
    outgoing = b""
    try:
        for part in parts:
            for frame in receiver.receive_data(part):
                frames.append(frame)  # noqa: PERF402 -- what came before the error counts
            outgoing += receiver.data_to_send()
            assert receiver.buffered <= MOST_HELD
        receiver.receive_end()
    except FrameError as error:
        return frames, outgoing + receiver.data_to_send(), str(error)
    return frames, outgoing, "end"


def portions(rng: Random, data: bytes) -> list[bytes]:
    """`data` cut anywhere."""
    places = sorted(below(rng, len(data) + 1) for _ in range(below(rng, 8)))
    return [data[start:stop] for start, stop in pairwise([0, *places, len(data)])]


def payloads(rng: Random) -> list[bytes]:
    """A few payloads; sometimes one of the largest, or one too large for a frame."""
    found = [rng.randbytes(1 + below(rng, 40)) for _ in range(below(rng, 5))]
    if rng.random() < 0.002:
        found.append(bytes(65535))
    return found


class FrameStreamTarget(BytesTarget):
    """Frame Streams: the same frames, answers and end however the bytes are cut."""

    name = "framestream"
    parts = (Part("cachebus/wire/framestream.py", without=("LengthPrefixedReceiver", "write_messages")),)

    def valid(self, rng: Random) -> bytes:
        frames = payloads(rng)
        stream = b"".join(write_frames(frames))
        if rng.random() < 0.5:
            types = [DNSTAP_CONTENT_TYPE, b"protobuf:other", bytes(256)][: 1 + below(rng, 3)]
            rng.shuffle(types)
            with suppress(FrameError):  # together they may be too long
                stream = control_frame(ControlType.READY, *types) + stream
        if rng.random() < 0.2:
            stream = stream[: -len(control_frame(ControlType.STOP))]
        return stream

    def check(self, example: bytes, rng: Random) -> bool:
        receiver = FrameStreamReceiver()
        whole = outcome(receiver, [example])
        assert outcome(FrameStreamReceiver(), portions(rng, example)) == whole
        if len(example) < 2000:
            assert outcome(FrameStreamReceiver(), [example[at : at + 1] for at in range(len(example))]) == whole
        frames, outgoing, end = whole
        assert sum(4 + len(frame) for frame in frames) <= len(example)
        assert receiver.bidirectional == bool(outgoing)
        assert receiver.started or not frames
        if end != "end":
            if "the stream ends" not in end:  # a violation, and it stays one
                assert outcome(receiver, [b"\0"])[::2] == outcome(receiver, [])[::2] == ([], end)
            return False
        assert receiver.started
        return True


class LengthPrefixedTarget(BytesTarget):
    """Length-prefixed messages: the same messages and end however the bytes are cut."""

    name = "length-prefixed"
    parts = (
        Part(
            "cachebus/wire/framestream.py",
            only=("LengthPrefixedReceiver", "_Deframer", "_deliver", "data_frame", "write_messages"),
        ),
    )

    def valid(self, rng: Random) -> bytes:
        return b"".join(write_messages(payloads(rng)))

    def check(self, example: bytes, rng: Random) -> bool:
        receiver = LengthPrefixedReceiver()
        whole = outcome(receiver, [example])
        assert outcome(LengthPrefixedReceiver(), portions(rng, example)) == whole
        if len(example) < 2000:
            assert outcome(LengthPrefixedReceiver(), [example[at : at + 1] for at in range(len(example))]) == whole
        frames, outgoing, end = whole
        assert receiver.started
        assert not receiver.finished
        assert not outgoing
        if end == "end":
            assert b"".join(write_messages(frames)) == example
            return True
        assert example.startswith(b"".join(write_messages(frames)))
        try:
            data_frame(rng.choice((b"", bytes(65536))), limit=65535)
        except FrameError:
            return False
        raise AssertionError("a frame of an impossible length was composed")


class DnstapTarget(BytesTarget):
    """`dnstap.decode`: a frame whose every field is in its bounds, which `encode` writes again; or `FrameError`."""

    name = "dnstap"
    parts = (Part("cachebus/wire/dnstap.py"),)

    def __init__(self) -> None:
        self._captured = captured()

    def valid(self, rng: Random) -> bytes:
        if rng.random() < 0.5:
            return self._captured[below(rng, len(self._captured))]
        return encode(
            MessageType(1 + below(rng, 14)),
            make_message(rng),
            protocol=SocketProtocol(1 + below(rng, 7)),
            query_address=rng.randbytes((0, 4, 16)[below(rng, 3)]),
            query_port=below(rng, 65536),
            response_address=rng.randbytes((0, 4, 16)[below(rng, 3)]),
            response_port=below(rng, 65536),
            query_zone=None if rng.random() < 0.3 else NAMES[below(rng, len(NAMES))],
            query_time=rng.random() * 2**33 if rng.random() < 0.7 else 0.0,
            response_time=LONGS[below(rng, len(LONGS))] + rng.random(),
            identity=rng.randbytes(below(rng, 8)),
        )

    def check(self, example: bytes, rng: Random) -> bool:
        try:
            frame = decode(example)
        except FrameError:
            self._impossible(rng)
            return False
        check_frame(frame)
        again = decode(_encode(frame))
        assert again._replace(query_time=0, response_time=0) == frame._replace(query_time=0, response_time=0)
        for one, other in ((again.query_time, frame.query_time), (again.response_time, frame.response_time)):
            assert abs(one - min(other, 2.0**63)) <= 1e-6 * max(1.0, other)
        return True

    def _impossible(self, rng: Random) -> None:
        wrong: list[dict[str, Any]] = [
            {"query_address": bytes(5)},
            {"response_port": 65536},
            {"query_zone": b"\3abc"},
            {"response_address": bytes(15)},
        ]
        try:
            encode(MessageType.CLIENT_QUERY, b"x", **wrong[below(rng, len(wrong))])
        except FrameError:
            return
        raise AssertionError("an impossible payload was composed")


def _encode(frame: Frame) -> bytes:
    return encode(
        frame.type,
        frame.message,
        protocol=SocketProtocol(frame.protocol),
        query_address=frame.query_address,
        query_port=frame.query_port,
        response_address=frame.response_address,
        response_port=frame.response_port,
        query_zone=frame.query_zone,
        query_time=min(frame.query_time, 2.0**63),
        response_time=min(frame.response_time, 2.0**63),
    )


def check_frame(frame: Frame) -> None:
    """What every reader of a frame may rely on."""
    assert isinstance(frame.type, MessageType)
    assert SocketProtocol(frame.protocol)
    assert frame.is_response == frame.type.is_response == frame.type.name.endswith("_RESPONSE")
    assert len(frame.query_address) in (0, 4, 16)
    assert len(frame.response_address) in (0, 4, 16)
    assert 0 <= frame.query_port <= 65535
    assert 0 <= frame.response_port <= 65535
    assert 0.0 <= frame.query_time < 2.0**65
    assert 0.0 <= frame.response_time < 2.0**65
    assert frame.message
    if frame.query_zone is not None:
        check_name(frame.query_zone)
        assert frame.query_zone == frame.query_zone.lower()


class FileTarget(BytesTarget):
    """`recognise` and `open_capture` of any file: its frames, or `FrameError` that names it."""

    name = "file"
    parts = (Part("cachebus/sources/file.py", only=("recognise", "open_capture", "_frames", "_receiver", "_slices")),)

    def valid(self, rng: Random) -> bytes:
        frames = [make_message(rng) for _ in range(1 + below(rng, 3))]
        if rng.random() < 0.05:
            frames = [rng.randbytes(60_000)] * 3  # more than one read
        if rng.random() < 0.05:
            return b"\x83\x65C-DNS" + rng.randbytes(20)
        return b"".join(write_frames(frames) if rng.random() < 0.5 else write_messages(frames))

    def check(self, example: bytes, rng: Random) -> bool:
        descriptor = os.memfd_create("capture")
        try:
            with open(descriptor, "wb", closefd=False) as file:
                file.write(example)
            return self._read(
                f"/proc/self/fd/{descriptor}", example, None if rng.random() < 0.7 else rng.choice(list(Format))
            )
        finally:
            os.close(descriptor)

    def _read(self, path: str, example: bytes, kind: Format | None) -> bool:
        try:
            found = recognise(path)
        except FrameError as error:
            assert path in str(error)
            found = None
        frames = []
        try:
            for frame in open_capture(path, kind):
                frames.append(frame)  # noqa: PERF402 -- what came before the error counts
        except FrameError as error:
            assert path in str(error)
            assert (kind or found) is Format.CDNS or sum(map(len, frames)) <= len(example)
            return False
        assert kind is not None or found is not None
        if (kind or found) is Format.CDNS:
            return True  # what is in it is another target's matter
        receiver = FrameStreamReceiver() if (kind or found) is Format.DNSTAP else LengthPrefixedReceiver()
        assert outcome(receiver, [example])[::2] == (frames, "end")
        return True


TARGETS: tuple[type[Target[bytes]], ...] = (FrameStreamTarget, LengthPrefixedTarget, DnstapTarget, FileTarget)
