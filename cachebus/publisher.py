"""source -> filters -> codec -> transport: what this node learned goes to its peers.

Decides the order of the steps and nothing else: what may leave is the policy's, what is worth it the noise control's.
`publish` never blocks: answers wait in one bounded queue, from which a task composes and sends them in slices.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

from cachebus.answer import Answer, Evidence, Refusal
from cachebus.cache import Cache
from cachebus.filters.noise import Noise
from cachebus.filters.policy import Policy
from cachebus.flushes import Flush
from cachebus.history import History
from cachebus.outlet import Outlet, is_flushed
from cachebus.ports import Clock, LeftOut
from cachebus.wire.message import same_data

MAX_QUEUED = 20_000
"""Answers waiting to be sent; about four seconds of what one core composes. The oldest are dropped."""
SLICE = 64
"""Answers composed before the event loop gets its turn: about 2 ms."""
FLUSH_TIMEOUT = 15.0
"""Seconds in which transports have to flush when the node ends, all at a time: more than those of this project take."""


_log = logging.getLogger(__name__)


class Publisher:
    """Sends answers on every outlet. A running thing: leaving it sends what is queued first."""

    def __init__(
        self, *, policy: Policy, noise: Noise, cache: Cache, outlets: Sequence[Outlet], history: History, clock: Clock
    ) -> None:
        self._policy = policy
        self._noise = noise
        self._cache = cache
        self._outlets = outlets
        self._history = history
        self._clock = clock
        self._queue: deque[Answer] = deque()
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._task: asyncio.Task[None] | None = None
        self.published = 0
        """Answers that went to one transport at least."""
        self.dropped = 0
        self.errors = 0
        """Batches that a defect in a codec or transport cost."""
        self.refused: dict[Refusal, int] = {}
        self.left_out: dict[str, dict[Refusal, int]] = {outlet.name: {} for outlet in outlets}

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._send_queued(), name="publisher")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._until_idle()
        for outlet in self._outlets:
            self._guarded(self._flush, outlet)
            self._guarded(outlet.take_leave)
        await asyncio.gather(*(self._flush_transport(outlet) for outlet in self._outlets))
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    def publish(self, answer: Answer) -> Refusal | None:
        """Keep what this node learned in its cache, and queue it for the peers if it may and should go there.

        Gives the reason when it is not queued; every reason is counted.
        """
        now = self._clock()
        known = self._known_from_peer(answer, now)
        stored = self._cache.put(answer, now)
        refusal = self._policy.refuse_to_share(answer) or known
        if refusal is None and stored in (Refusal.FLUSHED, Refusal.EXPIRED):
            refusal = stored
        if refusal is None and self._outlets:
            refusal = self._noise.refuse(answer, now)
        if refusal is not None:
            self._refuse(answer, refusal, now)
            return refusal
        if not self._outlets:
            return None
        if len(self._queue) >= MAX_QUEUED:
            self._noise.unsent(self._queue.popleft())
            self.dropped += 1
        self._queue.append(answer)
        self._idle.clear()
        self._wake.set()
        return None

    def forget(self, flush: Flush) -> int:
        """Send nothing of what was flushed and still waits; gives the number of answers."""
        gone = {answer for outlet in self._outlets for answer in outlet.forget(flush)}
        gone |= {answer for answer in self._queue if is_flushed(answer, flush)}
        self._queue = deque(answer for answer in self._queue if answer not in gone)
        self._unsend(gone)
        return len(gone)

    def _known_from_peer(self, answer: Answer, now: float) -> Refusal | None:
        for rrset in answer.rrsets:
            cached = self._cache.get(rrset.owner, rrset.type, now)
            if (
                cached is None
                or cached.local
                or cached.evidence < answer.evidence
                or cached.expires - now <= (cached.expires - cached.learned) / 2
                or not same_data(cached.rrset, rrset)
            ):
                return None
        return Refusal.KNOWN_FROM_PEER

    def _refuse(self, answer: Answer, refusal: Refusal, now: float) -> None:
        self.refused[refusal] = self.refused.get(refusal, 0) + 1
        self._history.record(now, answer.qname, "not-shared", f"{answer.type}: {refusal.value}")

    async def _send_queued(self) -> None:
        monotonic = asyncio.get_running_loop().time
        while True:
            await self._until_needed()
            while self._queue:
                batch = [self._queue.popleft() for _ in range(min(SLICE, len(self._queue)))]
                self._send(batch, self._clock(), monotonic())
                self._flush_due(monotonic())
                await asyncio.sleep(0)
            self._flush_due(monotonic())
            self._idle.set()

    async def _until_idle(self) -> None:
        """Wait until the queue is empty, or the task that empties it has died."""
        if self._task is None:
            return
        idle = asyncio.create_task(self._idle.wait(), name="publisher is idle")
        await asyncio.wait({idle, self._task}, return_when=asyncio.FIRST_COMPLETED)
        idle.cancel()
        self.dropped += len(self._queue)
        self._queue.clear()

    async def _flush_transport(self, outlet: Outlet) -> None:
        try:
            async with asyncio.timeout(FLUSH_TIMEOUT):
                await outlet.transport.flush()
        except TimeoutError:
            _log.warning("transport %s: not all that waited could be sent", outlet.name)
        except Exception:  # noqa: BLE001 - as in `_guarded`
            self.errors += 1
            _log.exception("transport %s: cannot be flushed", outlet.name)

    async def _until_needed(self) -> None:
        """Wait until answers are queued, or until what waits for company in an outlet is due."""
        due = min((outlet.due for outlet in self._outlets if outlet.due is not None), default=None)
        with suppress(TimeoutError):
            async with asyncio.timeout_at(due):
                await self._wake.wait()
        self._wake.clear()

    def _flush_due(self, monotonic: float) -> None:
        for outlet in self._outlets:
            if outlet.due is not None and outlet.due <= monotonic:
                self._guarded(self._flush, outlet)

    def _guarded(self, step: Callable[..., None], *arguments: object) -> bool:
        """Do a step that calls codecs and transports, which may be anybody's: the next goes on whatever one raises."""
        try:
            step(*arguments)
        except Exception:  # noqa: BLE001 - see above
            self.errors += 1
            if not self.errors & (self.errors - 1):  # the 1st, 2nd, 4th ...: a flood must not fill the log
                _log.exception("%d batches could not be sent so far", self.errors)
            return False
        return True

    def _send(self, batch: Sequence[Answer], now: float, monotonic: float) -> None:
        lost: set[Answer] | None = None
        for outlet in self._outlets:
            left: set[Answer] = set()
            if not self._guarded(self._send_on, outlet, batch, now, monotonic, left):
                left = set(batch)  # a defect in one codec or transport costs the others nothing
            lost = left if lost is None else lost & left
        for answer in batch:
            if lost and answer in lost:
                continue
            self.published += 1
            self._history.record(now, answer.qname, "shared", f"{answer.type}: {Evidence(answer.evidence).text}")
        self._unsend(lost or ())

    def _send_on(
        self, outlet: Outlet, batch: Sequence[Answer], now: float, monotonic: float, left: set[Answer]
    ) -> None:
        left |= self._count_left_out(outlet, outlet.send(batch, now, monotonic))

    def _flush(self, outlet: Outlet) -> None:
        left = self._count_left_out(outlet, outlet.flush(self._clock()))
        if len(self._outlets) == 1:
            self._unsend(left)

    def _unsend(self, answers: Iterable[Answer]) -> None:
        for answer in answers:
            self._noise.unsent(answer)

    def _count_left_out(self, outlet: Outlet, left: Sequence[LeftOut]) -> set[Answer]:
        if not left:
            return set()
        now = self._clock()
        counts = self.left_out[outlet.name]
        for answer, refusal in left:
            counts[refusal] = counts.get(refusal, 0) + 1
            detail = f"{answer.type} on {outlet.name}: {refusal.value}"
            self._history.record(now, answer.qname, "not-shared", detail)
        return {answer for answer, _ in left}

    def greet(self) -> None:
        """Tell the peers on every outlet that this node is here; to be called at the start and now and then."""
        now = self._clock()
        for outlet in self._outlets:
            self._guarded(outlet.greet, now)

    def statistics(self) -> Mapping[str, int]:
        """Counters; refusals by reason are in `refused` and `left_out`."""
        return {
            "published": self.published,
            "queued": len(self._queue) + sum(outlet.waiting for outlet in self._outlets),
            "dropped": self.dropped,
            "errors": self.errors,
        }
