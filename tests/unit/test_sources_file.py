"""Capture files: recognised by content, read to the byte at which they break, delivered as old as they are."""

# ruff: noqa: ASYNC240 -- a test may touch its own small files

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from cachebus.errors import ConfigError, FrameError
from cachebus.sources.file import FileSettings, FileSource, Format, open_capture, recognise
from cachebus.testing import ManualClock
from cachebus.wire.dnstap import MessageType, decode, encode
from cachebus.wire.framestream import DNSTAP_CONTENT_TYPE, ControlType, control_frame, write_frames, write_messages

DATA = Path(__file__).parents[1] / "data"
START = control_frame(ControlType.START, DNSTAP_CONTENT_TYPE)
MESSAGES = [bytes([number]) * 40 for number in range(3)]
WIRE = b"".join(write_messages(MESSAGES))
NOW = 1_800_000_000.0


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "capture"


def frame(payload: bytes, time: float) -> bytes:
    return encode(MessageType.CLIENT_RESPONSE, payload, response_time=time)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (START, Format.DNSTAP),
        (control_frame(ControlType.READY, DNSTAP_CONTENT_TYPE), Format.DNSTAP),
        (WIRE, Format.WIRE),
        (b"\x83eC-DNS\xa3", Format.CDNS),
        ((12).to_bytes(4, "big") + b"x", Format.WIRE),
        ((65535).to_bytes(4, "big") + b"x", Format.WIRE),
    ],
)
def test_formats_are_recognised(file: Path, content: bytes, kind: Format) -> None:
    file.write_bytes(content)
    assert recognise(file) is recognise(str(file)) is kind


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "the file is empty"),
        (b"\xd4\xc3\xb2\xa1\2\0\4\0" + bytes(16), "neither"),
        (b"# text\n", "neither"),
        (bytes(12), "neither"),
        (control_frame(ControlType.STOP), "neither"),
        (bytes(4), "neither"),
        ((11).to_bytes(4, "big") + b"x", "neither"),
        ((65536).to_bytes(4, "big") + b"x", "neither"),
        ((12).to_bytes(4, "big"), "neither"),
    ],
)
def test_other_files_are_refused_by_name(file: Path, content: bytes, text: str) -> None:
    file.write_bytes(content)
    for use in (recognise, open_capture):
        with pytest.raises(FrameError, match=f"{re.escape(str(file))}: {text}"):
            use(file)


def test_files_that_cannot_be_read_are_the_operators_to_mend(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path, text in ((tmp_path / "missing", "No such file"), (tmp_path, "not a regular"), (pipe, "not a regular")):
        with pytest.raises(ConfigError, match=f"{path}: {text}"):
            recognise(path)
        with pytest.raises(ConfigError, match=f"{path}: {text}"):
            list(open_capture(path, Format.WIRE))


def test_frames_come_in_order(file: Path) -> None:
    assert len(list(open_capture(DATA / "unbound.dnstap"))) == 48
    assert len(list(open_capture(DATA / "unbound-evil.dnstap"))) == 101
    file.write_bytes(WIRE)
    assert list(open_capture(file)) == MESSAGES
    many = [bytes(60_000)] * 5
    file.write_bytes(b"".join(write_messages(many)))
    assert list(open_capture(file)) == many


@pytest.mark.parametrize(
    ("content", "good", "text"),
    [
        (WIRE[:-1], MESSAGES[:2], "at byte 88: the stream ends inside a frame, after 43 bytes of it"),
        (WIRE + bytes(4), MESSAGES, "at byte 132: a message of 0 bytes"),
        (b"".join(write_frames(MESSAGES)) + START, MESSAGES, "at byte 186: control frame START in state STOPPED"),
        (control_frame(ControlType.START, b"other"), [], "at byte 0: content type b'other'"),
    ],
)
def test_corrupt_files_give_what_is_good_and_name_the_byte(
    file: Path, content: bytes, good: list[bytes], text: str
) -> None:
    file.write_bytes(content)
    frames = open_capture(file)
    found = [next(frames) for _ in good]
    assert found == good
    with pytest.raises(FrameError, match=f"{re.escape(f'{file}: {text}')}"):
        next(frames)


def source(file: Path, kind: Format | None = None) -> tuple[FileSource, list[tuple[bytes, float]]]:
    frames: list[tuple[bytes, float]] = []
    settings = FileSettings(name="old", path=file, format=kind)
    return FileSource(settings, lambda payload, now: frames.append((payload, now)), ManualClock(NOW)), frames


async def test_messages_are_as_old_as_their_file(file: Path) -> None:
    file.write_bytes(WIRE)
    os.utime(file, (NOW - 500, NOW - 500))
    reader, frames = source(file)
    async with reader:
        await reader.wait()
    assert frames == [(message, NOW - 500) for message in MESSAGES]
    assert reader.statistics() == {"frames": 3, "bytes": len(WIRE), "malformed": 0, "finished": 1}


async def test_a_file_from_the_future_is_of_now(file: Path) -> None:
    file.write_bytes(WIRE)
    os.utime(file, (NOW + 500, NOW + 500))
    reader, frames = source(file)
    async with reader:
        await reader.wait()
    assert {time for _, time in frames} == {NOW}


async def test_dnstap_frames_are_as_old_as_they_say_and_time_never_runs_back(file: Path) -> None:
    payloads = [frame(b"a", NOW - 90), frame(b"b", NOW - 95), b"not protobuf", frame(b"c", NOW - 80)]
    payloads += [encode(MessageType.CLIENT_QUERY, b"d", query_time=NOW - 70), frame(b"e", NOW + 90)]
    file.write_bytes(b"".join(write_frames(payloads)))
    os.utime(file, (NOW - 85, NOW - 85))
    reader, frames = source(file)
    async with reader:
        await reader.wait()
    assert [payload for payload, _ in frames] == payloads
    assert [NOW - time for _, time in frames] == [90, 90, 85, 80, 70, 0]


async def test_a_real_capture_keeps_its_times() -> None:
    reader, frames = source(DATA / "bind.dnstap")
    async with reader:
        await reader.wait()
    assert len(frames) == 20
    latest = max(decode(payload).response_time for payload, _ in frames)
    assert frames[-1][1] <= latest
    assert [time for _, time in frames] == sorted(time for _, time in frames)


async def test_a_corrupt_file_is_counted_after_what_is_good(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    file.write_bytes(WIRE[:-1])
    reader, frames = source(file)
    async with reader:
        await reader.wait()
    assert [payload for payload, _ in frames] == MESSAGES[:2]
    assert reader.statistics()["malformed"] == 1
    assert "source old: at byte 88" in caplog.text


async def test_a_defect_behind_the_source_is_logged_and_ends_the_file(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file.write_bytes(WIRE)

    def deliver(frame: bytes, now: float) -> None:
        raise ZeroDivisionError

    async with FileSource(FileSettings(name="old", path=file), deliver, ManualClock(NOW)) as source:
        await source.wait()
        assert source.statistics()["malformed"] == 1
    assert "source old: defect" in caplog.text


async def test_a_wrong_file_is_a_configuration_error(file: Path) -> None:
    for content in (None, b"", b"# text"):
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(ConfigError, match=f"source old: {file}"):
            await source(file)[0].__aenter__()


async def test_it_can_be_stopped_half_way(file: Path) -> None:
    file.write_bytes(b"".join(write_messages([bytes(1000)] * 1000)))
    reader, frames = source(file, Format.WIRE)
    async with reader:
        pass
    assert len(frames) < 1000
    assert reader.statistics()["finished"] == int(bool(frames))
