"""Hands received answers to a Python function of the operator's, and survives whatever that function does.

Decides only where it runs: a coroutine function on the event loop, any other in a thread of its own, so that it cannot
hold up the node. Refuses to know what it does with them.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import inspect
import logging
import queue
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import Self, cast

from cachebus.answer import Answer
from cachebus.errors import ConfigError
from cachebus.flushes import Flush
from cachebus.ports import Flushed

DEFAULT_QUEUED = 10_000
"""Answers waiting for the callback, 1 to `MAX_QUEUED`: some ten seconds of a busy cluster."""
MAX_QUEUED = 1_000_000
"""Answers; more would be some hundred MB of memory."""
BATCH = 64
"""Answers handed to the thread at once: a hand-over costs more than a short callback."""
DRAIN_TIME = 2.0
"""Seconds that leaving the sink gives the callback to take what is queued."""

_HandOver = tuple[list[Answer], "asyncio.Future[None]"]
Callback = Callable[[Answer], None] | Callable[[Answer], Awaitable[None]]

_log = logging.getLogger(__name__)


def load_callback(spec: str) -> Callback:
    """The function that `package.module:function` names. Raises `ConfigError` when there is none."""
    module_name, colon, path = spec.partition(":")
    if not (colon and module_name and path):
        raise ConfigError(f"{spec!r}: a callback is written package.module:function")
    try:
        found: object = importlib.import_module(module_name)
        for part in path.split("."):
            found = getattr(found, part)
    except Exception as error:  # importing runs the operator's code, which may raise anything
        raise ConfigError(f"{spec}: cannot be imported: {type(error).__name__}: {error}") from error
    if not callable(found):
        raise ConfigError(f"{spec}: is not a function")
    return cast("Callback", found)


class CallbackSink:
    """The `Sink` of ports.py for a Python function. Its exceptions are counted and logged, and change nothing else."""

    def __init__(self, *, name: str, callback: Callback | str, max_queued: int = DEFAULT_QUEUED) -> None:
        """`callback`: a function or coroutine function of one `Answer`, or `package.module:function`.

        Raises `ConfigError` when it cannot be imported, or when `max_queued` is out of range.
        """
        if not 1 <= max_queued <= MAX_QUEUED:
            raise ConfigError(f"max_queued: {max_queued} is not between 1 and {MAX_QUEUED}")
        self._name = name
        self._callback = load_callback(callback) if isinstance(callback, str) else callback
        self._is_async = _is_async(self._callback)
        self._max_queued = max_queued
        self._queue: deque[Answer] = deque()
        self._work = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._task: asyncio.Task[None] | None = None
        self._hand_over: queue.SimpleQueue[_HandOver | None] = queue.SimpleQueue()
        self._leaving = False
        self._taken = 0
        self._called = 0
        self._dropped = 0
        self._errors = 0

    async def __aenter__(self) -> Self:
        if not self._is_async:
            # A daemon thread: a callback that never returns must not keep the process from ending.
            loop = asyncio.get_running_loop()
            threading.Thread(target=self._serve, args=(loop,), name=f"sink {self._name}", daemon=True).start()
        self._task = asyncio.create_task(self._pump(), name=f"sink {self._name}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is None:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_TIME):
                await self._idle.wait()
        self._leaving = True
        self._task.cancel()
        await asyncio.wait([self._task])
        self._hand_over.put(None)
        self._dropped += len(self._queue) + self._taken - self._called
        self._queue.clear()

    def offer(self, answer: Answer, now: float) -> None:
        """Queue an answer; the oldest is dropped when there is no room. Never blocks."""
        if len(self._queue) >= self._max_queued:
            self._queue.popleft()
            self._dropped += 1
        self._queue.append(answer)
        self._idle.clear()
        self._work.set()

    def refill(self) -> None:
        """Nothing: a function is called with what arrives, not with what a copy of a cache held."""

    async def flush(self, flush: Flush, now: float) -> Flushed:
        """Nothing: what a function was called with it has."""
        return Flushed.UNABLE

    def statistics(self) -> Mapping[str, int]:
        """`queued` now; `called`, `dropped`, `errors` (calls that raised) since the start."""
        return {"queued": len(self._queue), "called": self._called, "dropped": self._dropped, "errors": self._errors}

    async def _pump(self) -> None:
        while True:
            await self._work.wait()
            batch = [self._queue.popleft() for _ in range(min(BATCH, len(self._queue)))]
            if not batch:
                self._work.clear()
                self._idle.set()
                continue
            self._taken += len(batch)
            if self._is_async:
                for answer in batch:
                    await self._await_callback(answer)
                await asyncio.sleep(0)  # a coroutine that never waits must not keep the loop to itself
            else:
                done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._hand_over.put((batch, done))
                await done

    async def _await_callback(self, answer: Answer) -> None:
        try:
            await cast("Awaitable[None]", self._callback(answer))
        except Exception as error:  # noqa: BLE001 - the operator's code may raise anything
            self._failed(error)
        self._called += 1

    def _serve(self, loop: asyncio.AbstractEventLoop) -> None:
        """The thread: while it has a batch, it alone counts `called` and `errors`."""
        while (work := self._hand_over.get()) is not None:
            batch, done = work
            for answer in batch:
                if self._leaving:
                    return
                try:
                    _refuse_awaitable(self._callback(answer))
                except Exception as error:  # noqa: BLE001 - the operator's code may raise anything
                    self._failed(error)
                self._called += 1
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(_finish, done)

    def _failed(self, error: Exception) -> None:
        self._errors += 1
        if not self._errors & (self._errors - 1):  # the 1st, 2nd, 4th ...: one broken callback must not fill the log
            _log.error("sink %s: the callback failed, %d times so far", self._name, self._errors, exc_info=error)


def _is_async(callback: Callback) -> bool:
    return inspect.iscoroutinefunction(callback) or inspect.iscoroutinefunction(getattr(callback, "__call__", None))  # noqa: B004 - of an object, the method says what it is


def _refuse_awaitable(result: object) -> None:
    if inspect.iscoroutine(result):
        result.close()
        raise TypeError("the callback gave a coroutine: make it a coroutine function (async def)")


def _finish(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)
