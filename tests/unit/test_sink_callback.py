"""CallbackSink: what it calls, in which order, and that nothing a callback does can hurt the node."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from cachebus.answer import Answer, Evidence, RRset
from cachebus.errors import ConfigError
from cachebus.sinks import callback as module
from cachebus.sinks.callback import MAX_QUEUED, CallbackSink, load_callback
from cachebus.wire.message import pack

NOW = 1_800_000_000.0


def answer(number: int) -> Answer:
    rrset = RRset(b"\1a\0", 1, 300, pack(1, 0, [number.to_bytes(4, "big")]))
    return Answer(b"\1a\0", 1, (rrset,), Evidence.CONFIRMED, "node-a", NOW + number)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - it may happen in a thread
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("kind", ["function", "coroutine", "object"])
async def test_every_answer_in_order(kind: str) -> None:
    got: list[Answer] = []
    threads = set()

    def function(item: Answer) -> None:
        threads.add(threading.current_thread())
        got.append(item)

    async def coroutine(item: Answer) -> None:
        await asyncio.sleep(0)
        function(item)

    class Object:
        async def __call__(self, item: Answer) -> None:
            function(item)

    answers = [answer(number) for number in range(200)]
    chosen = {"function": function, "coroutine": coroutine, "object": Object()}[kind]
    async with CallbackSink(name="c", callback=chosen) as sink:
        for item in answers:
            sink.offer(item, NOW)
    assert got == answers  # leaving waits for what is queued
    assert sink.statistics() == {"queued": 0, "called": 200, "dropped": 0, "errors": 0}
    assert (threading.main_thread() in threads) == (kind != "function")


@pytest.mark.parametrize("is_async", [True, False])
async def test_exceptions_are_counted_and_logged_and_the_next_answer_comes(
    is_async: bool, caplog: pytest.LogCaptureFixture
) -> None:
    got = []

    def function(item: Answer) -> None:
        if item.learned % 2:
            raise ValueError("odd")
        got.append(item)

    async def coroutine(item: Answer) -> None:
        function(item)

    with caplog.at_level(logging.ERROR):
        async with CallbackSink(name="c", callback=coroutine if is_async else function) as sink:
            for number in range(100):
                sink.offer(answer(number), NOW)
    assert len(got) == 50
    assert sink.statistics()["errors"] == 50
    assert sink.statistics()["called"] == 100
    assert 1 <= len(caplog.records) <= 7
    assert "odd" in caplog.text


async def test_a_full_queue_drops_the_oldest() -> None:
    got = []
    gate = asyncio.Event()

    async def slow(item: Answer) -> None:
        await gate.wait()
        got.append(int(item.learned - NOW))

    async with CallbackSink(name="c", callback=slow, max_queued=3) as sink:
        for number in range(5):
            sink.offer(answer(number), NOW)
        assert sink.statistics()["dropped"] == 2
        gate.set()
    assert got == [2, 3, 4]


@pytest.mark.parametrize("is_async", [True, False])
async def test_a_callback_that_never_returns_holds_up_nothing(is_async: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DRAIN_TIME", 0.05)
    release, entered = threading.Event(), threading.Event()

    def function(item: Answer) -> None:
        entered.set()
        release.wait(10)

    async def coroutine(item: Answer) -> None:
        entered.set()
        await asyncio.Event().wait()

    begun = time.monotonic()
    async with CallbackSink(name="c", callback=coroutine if is_async else function) as sink:
        for number in range(3):
            sink.offer(answer(number), NOW)
        await until(entered.is_set)
    assert time.monotonic() - begun < 2
    assert sink.statistics() == {"queued": 0, "called": 0, "dropped": 3, "errors": 0}
    release.set()
    await asyncio.sleep(0.05)


async def test_a_function_that_gives_a_coroutine_is_an_error() -> None:
    async def coroutine(item: Answer) -> None:
        raise AssertionError

    def function(item: Answer) -> Awaitable[None]:
        return coroutine(item)

    async with CallbackSink(name="c", callback=function) as sink:
        sink.offer(answer(1), NOW)
    assert sink.statistics()["errors"] == 1


def test_a_callback_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tools_of_mine.py").write_text(
        "got = []\nvalue = 1\nclass Box:\n    @staticmethod\n    def put(answer): got.append(answer)\n"
    )
    (tmp_path / "broken_tools.py").write_text("raise RuntimeError('broken')\n")
    monkeypatch.syspath_prepend(tmp_path)
    load_callback("tools_of_mine:Box.put")(answer(1))
    assert len(sys.modules["tools_of_mine"].got) == 1
    for wrong in (
        "", "tools_of_mine", ":put", "tools_of_mine:", "tools_of_mine:none", "tools_of_mine:value", "no_such:put",
        "broken_tools:put", ".relative:put",
    ):  # fmt: skip
        with pytest.raises(ConfigError):
            CallbackSink(name="c", callback=wrong)


@pytest.mark.parametrize("wrong", [0, -1, MAX_QUEUED + 1])
def test_limits_are_checked(wrong: int) -> None:
    with pytest.raises(ConfigError, match="max_queued"):
        CallbackSink(name="c", callback=print, max_queued=wrong)
