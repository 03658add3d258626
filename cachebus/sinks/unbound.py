"""Fills an unmodified Unbound with received answers, and fills it again after it has lost its cache.

Decides when which answer is loaded: newest offer per question, small batches, paced, nothing that the resolver is
known to hold, nothing that it once could not parse. The text is `unbound.dump`'s business, the connection
`unbound.control`'s. Refuses to know where answers come from; their TTLs were shortened for this node before they got
here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import Enum
from types import TracebackType
from typing import NamedTuple, Protocol, Self

from cachebus.answer import Answer
from cachebus.errors import ConfigError, MessageError, ResolverError
from cachebus.flushes import Flush, Flushes
from cachebus.ports import Clock, Flushed
from cachebus.sinks.chains import Chains
from cachebus.unbound.control import CommandRefused, ControlChannel, ControlTls, ResolverGone
from cachebus.unbound.dump import Entry, compose, dump, name_text
from cachebus.unbound.flush import flush_commands

DEFAULT_RATE = 1000
"""Answers a second. Loading one takes about 70 us of an Unbound thread: this is 7 % of one thread at most."""
MAX_RATE = 10_000
"""Answers a second; beyond it that thread would do little else."""
MAX_QUEUED = 10_000
"""Answers waiting: ten seconds at the default rate. What is older has most likely been asked for, and fetched."""
MAX_REFILL = 20_000
"""Answers given back to a resolver that lost its cache: 20 seconds' worth, the most popular ones. After that it has
fetched for itself what its clients want."""
BATCH_ANSWERS = 64
"""Answers in one load, for which Unbound's thread answers nobody: about 5 ms."""
BATCH_BYTES = 65_536
"""Bytes of text in one load; it fits into a socket's buffer, so that it is handed over at once. One larger answer goes
alone."""
LOAD_TIME = 1.0
"""Seconds. TTLs are written as they will be this much later, which also covers Unbound's rounding to whole seconds. A
load that took longer is withdrawn, for its data would outlive itself: so after a resolver was stopped and goes on."""
POLL_INTERVAL = 1.0
"""Seconds between two looks whether the resolver still has the cache that we filled: about 50 us of its time each."""
RETRY_INTERVAL = 0.2
"""Seconds between two attempts to reach a resolver that is down. A refused connection costs microseconds."""
LEAVE_TIME = 1.0
"""Seconds to take our mark out of the resolver when the node ends; a resolver that hangs must not hold it up."""
FLUSH_TIME = 5.0
"""Seconds that a flush is waited for: for `flush_zone` Unbound looks at everything that it holds."""
MAX_FLUSHES = 100
"""Flushes that wait for a resolver that does not answer; one more makes them a single one of everything."""
MAX_UNLOADABLE = 4096
"""Remembered answers that Unbound could not parse; the oldest is forgotten, and costs one more bisection."""
_LOOKS = 1024
"""Answers looked at before other tasks get their turn: some milliseconds, even when nearly all of them are skipped."""

_log = logging.getLogger(__name__)

Refill = Callable[[float], Iterable[Sequence[Answer]]]
"""Gives the node's cache content at a time, most popular first: whole answers, or RRsets under their own names and
types, in parts each of which costs the event loop a millisecond or so. The cache may change while this is read."""
_Question = tuple[bytes, int]


class HeldNames(Protocol):
    """What the local resolver is known to hold live; the core's `Holdings`."""

    def holds(self, qname: bytes, qtype: int, now: float) -> bool: ...

    def clear(self) -> None: ...


class LinkState(Enum):
    """How the resolver does, as its control channel shows."""

    DOWN = "down"
    UP = "up"
    STALLED = "stalled"
    """Connected, but it does not answer in time: its cache is there, and it gets no load."""


class _Item(NamedTuple):
    answer: Answer
    entry: Entry

    @property
    def question(self) -> _Question:
        return self.answer.qname, self.answer.qtype


class _Order(NamedTuple):
    flush: Flush
    done: asyncio.Future[Flushed]


class UnboundSink:
    """The `Sink` of ports.py for one Unbound with a single process (several threads are fine)."""

    def __init__(
        self,
        *,
        name: str,
        control: str,
        clock: Clock,
        holdings: HeldNames,
        refill: Refill,
        tls: ControlTls | None = None,
        rate: int = DEFAULT_RATE,
    ) -> None:
        """`control`: `unix:/path`, or `ADDRESS:PORT` with `tls`; `rate`: answers a second, 1 to `MAX_RATE`.

        Raises `ConfigError` when one of them is wrong.
        """
        if not 1 <= rate <= MAX_RATE:
            raise ConfigError(f"rate: {rate} is not between 1 and {MAX_RATE} answers a second")
        self._name = name
        self._clock = clock
        self._holdings = holdings
        self._refill_from = refill
        self._rate = rate
        self._channel = ControlChannel(control, tls)
        self._state = LinkState.DOWN
        self._losses = 0
        self._reported = ""
        self._queue: OrderedDict[_Question, Answer] = OrderedDict()
        self._refill: Iterator[Answer] | None = None
        self._refill_wanted = False
        self._doubtful: list[_Item] = []
        self._flushes = Flushes()
        self._orders: list[_Order] = []
        self._known_unloadable: OrderedDict[int, None] = OrderedDict()
        self._work = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._counts = dict.fromkeys(
            (
                "filled", "batches", "dropped", "replaced", "skipped_held", "unloadable", "expired", "withdrawn",
                "refills", "reconnects", "errors", "flushes", "flushes_failed", "kept_out",
            ),
            0,
        )  # fmt: skip

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name=f"sink {self._name}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            with contextlib.suppress(ResolverError, TimeoutError):
                async with asyncio.timeout(LEAVE_TIME):
                    await self._channel.remove_marker()
        self._state = LinkState.DOWN

    @property
    def state(self) -> LinkState:
        """How the resolver does, as far as is known now."""
        return self._state

    def offer(self, answer: Answer, now: float) -> None:
        """Queue an answer; a newer one for the same question takes its place. Never blocks."""
        question = (answer.qname, answer.qtype)
        if question in self._queue:
            self._counts["replaced"] += 1
        elif len(self._queue) >= MAX_QUEUED:
            self._queue.popitem(last=False)
            self._counts["dropped"] += 1
        self._queue[question] = answer
        self._work.set()

    async def flush(self, flush: Flush, now: float) -> Flushed:
        """Have the resolver forget something, after the load under way and before any other.

        What waits here, and was learned up to `now`, is not given either. What the resolver itself is asking for at
        the moment is its own business.
        """
        self._flushes.note(flush, int(now * 1000))
        if len(self._orders) >= MAX_FLUSHES:
            flush = Flush(b"\0", subtree=True)
            self._orders = [order._replace(flush=flush) for order in self._orders[:1]]
        order = _Order(flush, asyncio.get_running_loop().create_future())
        self._orders.append(order)
        self._work.set()
        done, _ = await asyncio.wait((order.done,), timeout=FLUSH_TIME)
        return order.done.result() if done else Flushed.PENDING

    async def _take_back(self) -> None:
        order = self._orders[0]
        outcome = Flushed.DONE
        try:
            for command in flush_commands(order.flush):
                await self._channel.command(command)
        except CommandRefused as error:
            # One that ends empties its cache by that; one that says no says it again.
            outcome = Flushed.UNABLE
            self._counts["flushes_failed"] += 1
            _log.warning("sink %s: not flushed: %s", self._name, error)
        except ResolverError as error:
            self._stall(error)
            return
        self._counts["flushes"] += outcome is Flushed.DONE
        self._orders = [other for other in self._orders if other is not order]
        if not order.done.done():
            order.done.set_result(outcome)

    def statistics(self) -> Mapping[str, int]:
        """Counters, and what is so now: `queued`; `refilling` and `up` (the resolver answers) as 0 or 1."""
        return {
            "queued": len(self._queue),
            "flushes_waiting": len(self._orders),
            "refilling": int(self._refill is not None),
            "up": int(self._state is LinkState.UP),
            **self._counts,
        }

    async def _run(self) -> None:
        while True:
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._follow())
                    tasks.create_task(self._fill())
            except* Exception:  # noqa: BLE001 - a defect here must not end the filling of this resolver for good
                self._counts["errors"] += 1
                _log.exception("sink %s: defect, starting again", self._name)
            self._lose("it starts again")
            await asyncio.sleep(POLL_INTERVAL)

    # Following the resolver: is it there, and is its cache still the one we filled?

    async def _follow(self) -> None:
        while True:
            try:
                await self._channel.set_marker()
                await self._find()
                await self._stay()
                reason = "it was restarted or reloaded"
            except ResolverError as error:
                self._counts["errors"] += 1
                reason = str(error)
            self._lose(reason)
            await asyncio.sleep(RETRY_INTERVAL)

    async def _stay(self) -> None:
        """Look after one life of the resolver's cache until it is over; `ResolverGone` when nothing listens."""
        while True:
            await asyncio.sleep(POLL_INTERVAL)
            try:
                if not await self._channel.has_marker():
                    return
            except ResolverGone:
                raise
            except ResolverError as error:
                self._stall(error)
            else:
                self._go_on()
                if self._refill_wanted:
                    await self._start_refill()

    def refill(self) -> None:
        """Give the resolver what is cached, soon and at the usual rate."""
        self._refill_wanted = True

    async def _find(self) -> None:
        self._state = LinkState.UP
        self._reported = ""
        self._counts["reconnects"] += bool(self._losses)
        self._work.set()
        await self._start_refill()

    async def _start_refill(self) -> None:
        self._refill_wanted = False
        chains = Chains()
        for part in self._refill_from(self._clock()):
            for answer in part[: MAX_REFILL - len(chains)]:
                chains.add(answer)
            if len(chains) >= MAX_REFILL:
                break
            await asyncio.sleep(0)
        self._refill = chains.answers()
        self._counts["refills"] += 1
        self._work.set()
        _log.info("sink %s: giving the resolver %d answers from the cache", self._name, len(chains))

    def _lose(self, reason: str) -> None:
        if reason != self._reported:
            self._reported = reason
            _log.warning("sink %s: the resolver is gone, and its cache with it: %s", self._name, reason)
        if self._state is LinkState.DOWN:
            return
        self._state = LinkState.DOWN
        self._losses += 1
        self._refill = None
        self._holdings.clear()

    def _stall(self, error: ResolverError) -> None:
        self._counts["errors"] += 1
        if self._state is LinkState.UP:
            self._state = LinkState.STALLED
            _log.warning("sink %s: no loads for now: %s", self._name, error)

    def _go_on(self) -> None:
        if self._state is LinkState.STALLED:
            self._state = LinkState.UP
            self._work.set()
            _log.info("sink %s: the resolver answers again", self._name)

    # Filling

    async def _fill(self) -> None:
        while True:
            await self._work.wait()
            if self._state is not LinkState.UP or not (
                self._queue or self._refill is not None or self._doubtful or self._orders
            ):
                self._work.clear()
                continue
            if self._orders:
                await self._take_back()
            elif self._doubtful:
                await self._withdraw()
            elif batch := self._take(self._clock()):
                await self._load(batch)
            else:
                await asyncio.sleep(0)

    def _take(self, now: float) -> list[_Item]:
        """The next batch: what was offered first, then what a refill still has to give."""
        batch: list[_Item] = []
        room = BATCH_BYTES
        for _ in range(_LOOKS):
            if len(batch) == BATCH_ANSWERS:
                break
            answer = self._next()
            if answer is None:
                break
            item = self._prepare(answer, now)
            if item is None:
                continue
            room -= item.entry.size
            if room < 0 and batch:
                self._give_back([item])
                break
            batch.append(item)
        return batch

    def _next(self) -> Answer | None:
        if self._queue:
            return self._queue.popitem(last=False)[1]
        if self._refill is not None:
            for answer in self._refill:
                return answer
            self._refill = None
        return None

    def _prepare(self, answer: Answer, now: float) -> _Item | None:
        if self._holdings.holds(answer.qname, answer.qtype, now):
            self._counts["skipped_held"] += 1
            return None
        learned_ms = int(answer.learned * 1000)
        if any(self._flushes.cover(rrset.owner, learned_ms) for rrset in answer.rrsets):
            self._counts["kept_out"] += 1
            return None
        if _identity(answer) in self._known_unloadable:
            self._counts["unloadable"] += 1
            return None
        try:
            entry = compose(answer, now + LOAD_TIME, lambda name, rrtype: self._holdings.holds(name, rrtype, now))
        except MessageError as error:
            self._refuse(answer, str(error))
            return None
        if entry is None:
            self._counts["expired"] += 1
            return None
        return _Item(answer, entry)

    def _give_back(self, items: Iterable[_Item]) -> None:
        """Queue again, in front, what was taken but not loaded; a newer offer of the same question wins."""
        for item in items:
            if item.question not in self._queue:
                self._queue[item.question] = item.answer
                self._queue.move_to_end(item.question, last=False)
        while len(self._queue) > MAX_QUEUED:
            self._queue.popitem(last=False)
            self._counts["dropped"] += 1

    async def _load(self, batch: list[_Item]) -> None:
        """Load a batch; when Unbound cannot parse it, halve it until the culprit stands alone."""
        losses = self._losses
        parts = [batch]
        while parts:
            part = parts.pop()
            begun = self._clock()
            try:
                await self._channel.load(dump(item.entry for item in part))
            except CommandRefused as error:
                if not await self._is_same_life(losses):
                    self._give_back([*part, *(item for rest in parts for item in rest)])
                    return
                if len(part) == 1:
                    self._refuse(part[0].answer, str(error))
                else:
                    half = len(part) // 2
                    parts += (part[half:], part[:half])
            except ResolverError as error:
                self._stall(error)
                self._doubtful += part
                self._give_back(item for rest in parts for item in rest)
                return
            else:
                self._counts["batches"] += 1
                self._counts["filled"] += len(part)
                if self._clock() - begun > LOAD_TIME:
                    self._stall(ResolverError(f"a load took longer than {LOAD_TIME:g} s"))
                    self._doubtful += part
                    self._give_back(item for rest in parts for item in rest)
                    return
            await asyncio.sleep(len(part) / self._rate)

    async def _is_same_life(self, losses: int) -> bool:
        """Whether the resolver that refused is alive: then it refused the text, and did not just end."""
        try:
            return await self._channel.has_marker() and losses == self._losses
        except ResolverError:
            return False

    async def _withdraw(self) -> None:
        """Take out of the resolver what it may have loaded too late, and queue it again with the TTLs of now."""
        items, losses = self._doubtful, self._losses
        try:
            for name, rrtype in _touched(items):
                await self._channel.command(f"flush_type {name_text(name)} TYPE{rrtype}")
        except ResolverError as error:
            self._stall(error)
            return
        if losses == self._losses:
            self._doubtful = []
            self._counts["withdrawn"] += len(items)
            self._give_back(items)

    def _refuse(self, answer: Answer, reason: str) -> None:
        self._known_unloadable[_identity(answer)] = None
        if len(self._known_unloadable) > MAX_UNLOADABLE:
            self._known_unloadable.popitem(last=False)
        self._counts["unloadable"] += 1
        count = self._counts["unloadable"]
        if not count & (count - 1):  # the 1st, 2nd, 4th ...: a peer must not be able to fill the log
            _log.warning(
                "sink %s: cannot load %s %s from %s: %s", self._name, answer.name, answer.type, answer.origin, reason
            )


def _identity(answer: Answer) -> int:
    """The same for the same question and records, whatever their TTLs and origin."""
    return hash((answer.qname, answer.qtype, *((rrset.owner, rrset.rrs, rrset.sigs) for rrset in answer.rrsets)))


def _touched(items: Sequence[_Item]) -> list[_Question]:
    """Every name and type of which these items made an RRset or a message."""
    found: dict[_Question, None] = {}
    for item in items:
        found[item.question] = None
        for rrset in item.answer.rrsets:
            found[rrset.owner, rrset.type] = None
            found[rrset.owner, item.answer.qtype] = None
    return list(found)
