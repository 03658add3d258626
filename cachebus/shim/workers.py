"""Several processes that answer on the same addresses, seen from the node's process, which feeds them.

Decides when a worker is started, fed and started again. To the rest of the node all of them together are one shim and
one sink: what peers told and what sources found goes to each, what one learns goes to the node, to be shared once, and
to the others. Each has a cache of its own, which begins as a copy of the node's.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, Self

from cachebus.answer import Answer
from cachebus.errors import TransportError
from cachebus.flushes import Flush
from cachebus.ports import Flushed
from cachebus.shim.pipe import Kind, Link
from cachebus.shim.query import Channel
from cachebus.shim.settings import Endpoint
from cachebus.shim.sockets import bind_both, bind_datagram, bind_stream
from cachebus.shim.worker import Plan, run_worker

START_TIMEOUT = 60.0
"""Seconds for a worker to listen: it imports Python anew, perhaps on a machine that starts all at once."""
STOP_TIMEOUT = 5.0
"""Seconds between a worker's pipe being closed and its being killed."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds before a worker that ended is started again; doubled each time, until one has lived for `LONGEST_PAUSE`."""
ALIKE = frozenset({"block_lines_skipped", "block_rules", "certificate_expires", "local_names"})
"""Of a worker's counters, those that say what it has read from files: all workers read the same."""
GAUGES = ALIKE | {"failures_known", "in_flight", "subnet_known", "swild_owners", "tcp_open"}
"""Of a worker's counters, those of which a worker that is gone has none."""
ALIKE = frozenset({"block_lines_skipped", "block_rules", "certificate_expires", "local_names"})
"""Those that tell of what all workers have read: they are no sums. The least is shown, as the one that lags behind."""

_log = logging.getLogger(__name__)

Copy = Callable[[], Iterator[list[Answer]]]
"""What the node's cache holds, in slices, as each was learned."""


class Workers:
    """All workers. Entered, all of them listen; left, all are gone."""

    def __init__(self, plan: Plan, count: int, *, learned: Callable[[Answer], object], copy: Copy) -> None:
        """The plan's addresses may have port 0. `learned` is called with each answer of a worker that may be shared."""
        self._plan = plan
        self._learned = learned
        self._copy = copy
        self._seats = [Seat(number, self._heard) for number in range(count)]
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """Where they listen, once entered."""
        return self._plan.listen

    @property
    def encrypted(self) -> Mapping[Channel, tuple[Endpoint, ...]]:
        """Where they listen on encrypted channels, once entered."""
        return self._plan.encrypted

    async def __aenter__(self) -> Self:
        self._plan = self._plan._replace(
            listen=tuple(map(_reserve, self._plan.listen)),
            encrypted={
                channel: tuple([_reserve_encrypted(channel, endpoint) for endpoint in endpoints])
                for channel, endpoints in self._plan.encrypted.items()
            },
        )
        self._tasks = [
            asyncio.create_task(seat.keep(self._plan, self._copy), name=f"worker {seat.number}") for seat in self._seats
        ]
        try:
            async with asyncio.timeout(START_TIMEOUT):
                for seat in self._seats:
                    await seat.started.wait()
        except TimeoutError:
            await self.__aexit__(None, None, None)
            raise TransportError(f"shim: not all workers listen after {START_TIMEOUT:.0f} s") from None
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        failures = [seat.failure for seat in self._seats if seat.failure]
        if failures:
            await self.__aexit__(None, None, None)
            raise TransportError(failures[0])
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()

    def _heard(self, seat: Seat, answers: list[Answer]) -> None:
        for answer in answers:
            self._learned(answer)
            for other in self._seats:
                if other is not seat:
                    other.offer(answer)

    def offer(self, answer: Answer, now: float) -> None:
        """Give an answer that the node's cache took to every worker."""
        for seat in self._seats:
            seat.offer(answer)

    def refill(self) -> None:
        """The node's cache got many answers at once: give every worker all of it again."""
        for seat in self._seats:
            seat.wants_copy.set()

    async def flush(self, flush: Flush, now: float) -> Flushed:
        """Have every worker forget something; `now`: seconds since the epoch, when it was ordered."""
        for seat in self._seats:
            seat.order(Kind.FLUSH, (flush, now))
        return Flushed.DONE

    def statistics(self) -> Mapping[str, int]:
        """All workers' counters in one, and what became of the workers and of what they are fed."""
        return {
            **total(counters for seat in self._seats for counters in (seat.counters, seat.before)),
            "workers": sum(seat.is_up for seat in self._seats),
            "worker_restarts": sum(seat.restarts for seat in self._seats),
            "queued": sum(seat.queued for seat in self._seats),
            "dropped": sum(seat.dropped for seat in self._seats),
        }


def total(workers: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """The sum of each counter; of what all should have alike the smallest, so that one that lags behind shows."""
    found: dict[str, int] = {}
    for counters in workers:
        for name, value in counters.items():
            before = found.get(name)
            found[name] = value if before is None else min(before, value) if name in ALIKE else before + value
    return found


def log_levels() -> dict[str, int]:
    """What this process logs, by the names of its loggers, so that a worker logs as much; the root's name is empty."""
    loggers = {"": logging.root, **logging.root.manager.loggerDict}
    return {name: one.level for name, one in loggers.items() if isinstance(one, logging.Logger) and one.level}


def _reserve(endpoint: Endpoint) -> Endpoint:
    """The address with a port that is free. Raises `TransportError` where nobody could listen."""
    udp, tcp = bind_both(endpoint)
    udp.close()
    with tcp:
        return endpoint[0], tcp.getsockname()[1]


def _reserve_encrypted(channel: Channel, endpoint: Endpoint) -> Endpoint:
    with (bind_datagram if channel is Channel.QUIC else bind_stream)(endpoint) as sock:
        return endpoint[0], sock.getsockname()[1]


class Seat:
    """The place of one worker: whoever has it at the time."""

    def __init__(self, number: int, heard: Callable[[Seat, list[Answer]], None]) -> None:
        self.number = number
        self._heard = heard
        self._link: Link | None = None
        self._process: BaseProcess | None = None
        self.started = asyncio.Event()
        """The first worker listens, or cannot."""
        self.failure = ""
        """Why the last one could not."""
        self.is_up = False
        self.restarts = 0
        self.wants_copy = asyncio.Event()
        self.counters: dict[str, int] = {}
        self.before: dict[str, int] = {}
        """Counters of those that are gone."""
        self._dropped_before = 0

    @property
    def queued(self) -> int:
        """Answers that wait for the worker."""
        return 0 if self._link is None else self._link.queued

    @property
    def dropped(self) -> int:
        """Answers that no worker of this seat got."""
        return self._dropped_before + (0 if self._link is None else self._link.dropped)

    @property
    def pid(self) -> int | None:
        """The worker's process."""
        return None if self._process is None else self._process.pid

    def offer(self, answer: Answer) -> None:
        """Give the worker an answer; one that is not up gets a copy of all when it is."""
        if self._link is not None:
            self._link.offer(answer)

    def order(self, kind: Kind, body: Any) -> None:
        """Tell the worker something else."""
        if self._link is not None:
            self._link.order(kind, body)

    async def keep(self, plan: Plan, copy: Copy) -> None:
        """Have a worker sit here, one after the other, until cancelled."""
        pause = FIRST_PAUSE
        monotonic = asyncio.get_running_loop().time
        while True:
            begun = monotonic()
            await self._sit(plan, copy)
            if not self.started.is_set():
                self.failure = self.failure or f"shim: worker {self.number} ended at once"
                self.started.set()
            self.restarts += 1
            if monotonic() - begun > LONGEST_PAUSE:
                pause = FIRST_PAUSE
            _log.error("worker %d ended%s; the next starts in %.1f s", self.number, _because(self.failure), pause)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _sit(self, plan: Plan, copy: Copy) -> None:
        """The life of one worker."""
        ours, theirs = socket.socketpair()
        process = multiprocessing.get_context("spawn").Process(
            target=run_worker, args=(plan, theirs, log_levels()), name=f"cachebus worker {self.number}", daemon=True
        )
        self.failure = ""
        with theirs:
            process.start()
        self._process = process
        try:
            async with Link(ours, self._take) as link:
                self._link = link
                feeding = asyncio.create_task(self._feed(link, copy), name=f"copy for worker {self.number}")
                try:
                    await link.closed.wait()
                finally:
                    feeding.cancel()
                    await asyncio.gather(feeding, return_exceptions=True)
        finally:
            self._leave()
            await _end(process)
            self._process = None

    def _leave(self) -> None:
        self.is_up = False
        if self._link is not None:
            self._dropped_before += self._link.dropped + self._link.queued
            self._link = None
        for name, value in self.counters.items():
            if name not in GAUGES | ALIKE:
                self.before[name] = self.before.get(name, 0) + value
        self.counters = {}

    async def _feed(self, link: Link, copy: Copy) -> None:
        self.wants_copy.set()
        while True:
            await self.wants_copy.wait()
            self.wants_copy.clear()
            for answers in copy():
                await link.take(answers)
                await asyncio.sleep(0)

    def _take(self, kind: Kind, body: Any) -> None:
        match kind:
            case Kind.ANSWERS:
                self._heard(self, body)
            case Kind.STATISTICS:
                self.counters = body
            case Kind.READY:
                self.is_up = True
                self.started.set()
            case Kind.FAILED:
                self.failure = body
            case Kind.FLUSH:
                raise ValueError("no worker tells the node to flush")


def _because(failure: str) -> str:
    return f": {failure}" if failure else ""


async def _end(process: BaseProcess) -> None:
    """Wait for a process whose pipe is closed, and kill it when that takes too long."""
    try:
        await asyncio.to_thread(process.join, STOP_TIMEOUT)
    finally:
        if process.is_alive():
            process.kill()
            process.join()
