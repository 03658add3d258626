"""The source that reads a warm Unbound, against a control socket that says what the test wants."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cachebus.sources import unbound_cache
from cachebus.sources.unbound_cache import CacheSettings, UnboundCacheSource
from tests.unit.test_unbound_reader import MESSAGE, WWW, text_of

NOW = 1_800_000_000.0
STATUS = b"version: 1.17.1\nmodules: 2 [ validator iterator ]\nuptime: 77 seconds\n"
IN_TIME = 10.0


class Control:
    """A control socket: one reply per command. `None` closes without a word."""

    def __init__(self, path: Path, **replies: bytes) -> None:
        self.path = path
        self.replies = {"status": STATUS, "dump_cache": text_of(WWW, MESSAGE), **replies}
        self.asked: list[str] = []

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        command = (await reader.readline()).decode().removeprefix("UBCT1 ").strip()
        self.asked.append(command)
        writer.write(self.replies[command])
        with contextlib.suppress(ConnectionError):
            await writer.drain()
        writer.close()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        server = await asyncio.start_unix_server(self._serve, self.path)
        async with server:
            yield


class Bed:
    def __init__(self, path: Path, *, rate: int = 10_000, max_bytes: int = 1 << 20) -> None:
        self.frames: list[tuple[bytes, float]] = []
        self.times: list[float] = []
        self.finished = 0
        self.source = UnboundCacheSource(
            CacheSettings(name="warm", control=f"unix:{path}", rate=rate, max_bytes=max_bytes),
            self._deliver, lambda: NOW, finished=self._finish,
        )  # fmt: skip

    def _deliver(self, frame: bytes, now: float) -> None:
        self.frames.append((frame, now))
        self.times.append(asyncio.get_running_loop().time())

    def _finish(self) -> None:
        self.finished += 1

    async def run(self) -> dict[str, int]:
        async with asyncio.timeout(IN_TIME), self.source:
            await self.source.wait()
        return dict(self.source.statistics())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ctl"


async def test_each_answer_is_delivered_once_with_status_and_uptime(path: Path) -> None:
    control, bed = Control(path), Bed(path)
    async with control.running():
        counters = await bed.run()
    assert control.asked == ["status", "dump_cache"]
    ((frame, now),) = bed.frames
    assert (frame[0], int.from_bytes(frame[1:5]), now) == (2, 77, NOW)
    assert counters["bytes"] == len(control.replies["dump_cache"])
    assert (counters["frames"], counters["finished"], counters["failures"], bed.finished) == (1, 1, 0, 1)


@pytest.mark.parametrize(
    ("replies", "reason"),
    [
        ({"status": STATUS.replace(b"validator", b"dns64")}, "dns64"),
        ({"status": b"ok\n"}, "neither uptime nor modules"),
        ({"dump_cache": b"error unknown command\n"}, "not a dump"),
        ({"dump_cache": text_of(WWW, MESSAGE)[:-4]}, "cut short"),
        ({"dump_cache": b""}, "cut short"),
    ],
)
async def test_given_up_with_a_reason_and_nothing_shared(
    replies: dict[str, bytes], reason: str, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bed = Bed(path)
    async with Control(path, **replies).running():
        counters = await bed.run()
    assert (counters["frames"], counters["finished"], counters["failures"], bed.finished) == (0, 1, 1, 0)
    assert reason in caplog.text


async def test_waits_for_a_resolver_that_starts_later(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unbound_cache, "RETRY", 0.01)
    control, bed = Control(path), Bed(path)
    async with asyncio.timeout(IN_TIME), bed.source:
        await asyncio.sleep(0.05)
        assert not bed.source.statistics()["finished"]
        async with control.running():
            await bed.source.wait()
    assert len(bed.frames) == 1


async def test_gives_up_when_nobody_comes(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(unbound_cache, "RETRY", 0.0)
    counters = await Bed(path).run()
    assert (counters["failures"], counters["finished"]) == (1, 1)
    assert "No such file" in caplog.text


async def test_keeps_to_its_rate(path: Path) -> None:
    bed = Bed(path, rate=200)
    async with Control(path, dump_cache=text_of(WWW, "\n".join([MESSAGE] * 40))).running():
        await bed.run()
    assert len(bed.frames) == 40
    assert bed.times[-1] - bed.times[0] >= 36 / 200  # four at once, then four each 20 ms


async def test_a_record_that_cannot_be_read_is_counted(path: Path) -> None:
    bed = Bed(path)
    async with Control(path, dump_cache=text_of(WWW.replace("192.0.2.2", "192.0.2"), MESSAGE)).running():
        counters = await bed.run()
    assert (counters["unreadable"], counters["frames"], counters["failures"]) == (1, 0, 0)


async def test_ends_in_the_middle(path: Path) -> None:
    bed = Bed(path, rate=1)
    async with Control(path, dump_cache=text_of(WWW, "\n".join([MESSAGE] * 40))).running():
        async with bed.source:
            async with asyncio.timeout(IN_TIME):
                while not bed.frames:  # noqa: ASYNC110 - the source tells nobody
                    await asyncio.sleep(0.01)
        assert len(bed.frames) < 40
    assert bed.finished == 0


async def test_a_dump_beyond_what_is_held_is_read_as_it_comes(path: Path) -> None:
    size = 1000
    bed = Bed(path, max_bytes=size)
    dump = text_of(WWW, "\n".join([MESSAGE] * 40))
    async with Control(path, dump_cache=dump).running():
        counters = await bed.run()
    assert len(dump) > size // 2
    assert counters["failures"] == 0
    assert (counters["bytes"], counters["messages"]) == (len(dump), 40)
    assert counters["too_much"] > 0
