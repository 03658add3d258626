"""The composition root: one node, put together from its configuration, running, reloaded, ended.

Reads like the data path: sources give frames to judges, what they accept is published through codecs on transports;
what transports bring goes through the subscribers to the cache and the sinks; the shim answers from the cache and
publishes what it learns. Decides nothing about DNS.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cachebus import __version__, assembly, links
from cachebus.admin.reports import lookup_report, peers_report, status_report, why_report
from cachebus.admin.server import AdminServer
from cachebus.admin.view import Report
from cachebus.answer import Answer
from cachebus.cache import Cache
from cachebus.config import Config
from cachebus.errors import CachebusError
from cachebus.filters.noise import Noise
from cachebus.flushes import Flush
from cachebus.history import History
from cachebus.holdings import Holdings
from cachebus.metrics import render
from cachebus.outlet import Outlet
from cachebus.ports import Clock, Codec, Sink, Transport, Verdict
from cachebus.publisher import Publisher
from cachebus.shim.cookies import CookieSettings
from cachebus.shim.local import read as read_local_data
from cachebus.shim.local_settings import LocalSettings
from cachebus.shim.shim import Shim
from cachebus.shim.workers import Workers
from cachebus.snapshot.service import Snapshots
from cachebus.state import State, StateFile
from cachebus.subscriber import Subscriber, in_batches
from cachebus.wire.message import NOERROR, NXDOMAIN

TICK = 1.0
"""Seconds between two rounds of housekeeping: the finest that TTLs and evidence windows need."""
SWEEPS = 4
"""Looks at a shard of the cache between two of them, each of a millisecond, during which no client is answered."""
GREET_EVERY = 30
"""Rounds between two hellos, and two writings of the state: half of the age at which a message is too old."""
CLOCK_WARNING = 5.0
"""Seconds of clock difference to a peer worth a warning: a tenth of what TTLs of a minute can bear."""

_log = logging.getLogger(__name__)


class Parts:
    """Everything of a node that a reload replaces. Entered from right to left of the data path, left in reverse."""

    def __init__(self, config: Config, keep: Kept, clock: Clock) -> None:
        self._config = config
        self._keep = keep
        self._clock = clock
        self._stack = AsyncExitStack()
        self._running = False
        self.sinks: dict[str, Sink] = {}
        self.transports: dict[str, Transport] = {}
        self.codecs: dict[str, Codec] = {}
        self.subscribers: dict[str, Subscriber] = {}
        self.intakes: dict[str, assembly.Intake] = {}
        self.shim: Shim | Workers | None = None
        self.workers: Workers | None = None
        self._workers_data = LocalSettings()
        self.policy = assembly.make_policy(config.share)
        owner = assembly.make_owner(config)
        self._make_sinks()
        self._make_shim()
        self._make_transports(owner)
        self.noise = assembly.make_noise(config.share, keep.started)
        if keep.noise is not None:
            self.noise.inherit(keep.noise)
        self.publisher = Publisher(
            policy=self.policy,
            noise=self.noise,
            cache=keep.cache,
            outlets=[
                Outlet(name, self.codecs[name], transport, links.make_collect(config.transports[name]))
                for name, transport in self.transports.items()
                if links.sends(config.transports[name])
            ],
            history=keep.history,
            clock=clock,
        )
        self.snapshots = Snapshots(
            assembly.make_snapshot_settings(config),
            cache=keep.cache,
            policy=self.policy,
            for_peers=lambda: links.make_copy_codec(
                owner, config.snapshot.tls, assembly.levels_taken(config), insecure=config.snapshot.insecure
            ),
            for_operator=lambda: links.make_copy_codec(owner, None, insecure=True),
            clock=clock,
            on_merged=self._refill_sinks,
            is_connected=self._is_connected,
        )
        # Without a way for peers' answers into a resolver, none can come back from it.
        is_filled = keep.filled if self.sinks or self.shim is not None else None
        for name in config.sources:
            self.intakes[name] = assembly.make_intake(
                config, name, self._deliver_to, clock,
                on_held=keep.held, is_filled=is_filled, previous=keep.judges.get(name),
            )  # fmt: skip

    def _make_shim(self) -> None:
        """In this process, or in several that are fed as sinks are."""
        keep, clock = self._keep, self._clock
        cache, settings = keep.cache, assembly.make_shim_settings(self._config, keep.cookies)
        if settings is None:
            return
        if settings.workers == 1:
            self.shim = Shim(settings, cache, self.publish, clock)
            return
        self._workers_data = settings.local
        self.shim = self.workers = Workers(
            assembly.make_worker_plan(self._config, settings),
            settings.workers,
            learned=self.publish,
            copy=lambda: cache.slices(clock(), as_learned=True),
        )

    def _make_sinks(self) -> None:
        for name, sink in self._config.sinks.items():
            made = assembly.make_sink(
                name, sink, refill=self._keep.refill, holdings=self._keep.holdings, clock=self._clock
            )
            if made is not None:
                self.sinks[name] = made

    def _refill_sinks(self) -> None:
        for sink in self._all_sinks():
            sink.refill()

    def _is_connected(self) -> bool:
        """Whether every transport that counts its `connections` has one; datagrams need none."""
        return all(transport.statistics().get("connections", 1) for transport in self.transports.values())

    def _all_sinks(self) -> tuple[Sink, ...]:
        return (*self.sinks.values(), *(() if self.workers is None else (self.workers,)))

    def _make_transports(self, owner: links.Owner) -> None:
        for name, section in self._config.transports.items():
            codec = links.make_codec(name, section, owner, start=self._clock())
            previous = self._keep.codecs.get(name)
            if type(previous) is type(codec):
                codec.inherit(previous)
            else:
                codec.restore(self._keep.streams.get(name, {}))
            subscriber = Subscriber(
                codec=codec,
                policy=self.policy,
                cache=self._keep.cache,
                sinks=self._all_sinks(),
                history=self._keep.history,
                clock=self._clock,
            )
            self.codecs[name] = codec
            self.subscribers[name] = subscriber
            self.transports[name] = links.make_transport(name, section, owner, codec, in_batches(subscriber))

    def _deliver_to(self, judge: assembly.Judge) -> assembly.Deliver:
        def deliver(frame: bytes, now: float) -> None:
            verdicts = judge.feed(frame, now)
            if verdicts:
                self._publish(verdicts)

        return deliver

    def _publish(self, verdicts: Sequence[Verdict]) -> None:
        for verdict in verdicts:
            if verdict.answer is not None:
                self.publish(verdict.answer)
                if self.workers is not None:
                    self.workers.offer(verdict.answer, self._clock())

    def publish(self, answer: Answer) -> None:
        """Keep and share what a source or the shim learned."""
        self.publisher.publish(answer)

    async def prepare(self) -> None:
        """Read what takes a while, before what runs has to make room. Raises `CachebusError`."""
        if isinstance(self.shim, Shim):
            await self.shim.prepare()
        elif self.workers is not None:
            await asyncio.to_thread(read_local_data, self._workers_data)  # each worker reads it for itself

    def forget(self, flush: Flush) -> int:
        """Let go of what was flushed and is on its way out, or kept beside the cache; gives the number of things."""
        return self.publisher.forget(flush) + (self.shim.flush(flush) if isinstance(self.shim, Shim) else 0)

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            for sink in self.sinks.values():
                await stack.enter_async_context(sink)
            for transport in self.transports.values():
                await stack.enter_async_context(transport)
            await stack.enter_async_context(self.publisher)
            await stack.enter_async_context(self.snapshots)
            if self.shim is not None:
                await stack.enter_async_context(self.shim)
            for intake in self.intakes.values():
                await stack.enter_async_context(intake.source)
            self._stack = stack.pop_all()
        if not isinstance(self.shim, Shim):  # what an earlier one has set has nobody to serve any more
            self._keep.cache.observer, self._keep.cache.keep_expired = None, 0.0
        self._keep.codecs = self.codecs
        self._keep.noise = self.noise
        self._keep.judges = {name: intake.judge for name, intake in self.intakes.items()}
        self._running = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running = False
        await self._stack.aclose()

    def tick(self, now: float) -> None:
        """Housekeeping: evidence that came too late. Between two configurations nothing could be sent."""
        for intake in self.intakes.values() if self._running else ():
            self._publish(intake.judge.expire(now))

    def look_at_clocks(
        self, now: float, monotonic: float, known: frozenset[tuple[str, str]]
    ) -> frozenset[tuple[str, str]]:
        """Tell the codecs how much time has really passed; log whose clock has gone far from ours.

        `known`: (transport, sender) of those logged already. Gives those that are far now.
        """
        far = set()
        for name, codec in self.codecs.items():
            codec.tick(monotonic)
            for sender, offset in codec.clock_offsets(now).items():
                if abs(offset) > CLOCK_WARNING:
                    far.add((name, sender))
                    if (name, sender) not in known:
                        _log.warning("transport %s: the clock of %s differs from ours by %.0f s", name, sender, offset)
        return frozenset(far)


class Kept:
    """What outlives a reload: the cache and everything that is remembered of the past."""

    def __init__(self, config: Config, clock: Clock) -> None:
        self._node = config.node
        self._clock = clock
        self.started = clock()
        self.cache = Cache(config.node, max_entries=config.cache.max_entries, max_bytes=config.cache.max_bytes)
        self.history = History(config.node)
        self.holdings = Holdings()
        self.codecs: Mapping[str, Codec] = {}
        directory = config.state or os.environ.get("STATE_DIRECTORY")
        self._state = None if directory is None else StateFile(Path(directory))
        self.streams: State = {} if self._state is None else self._state.load()
        """What the previous run had seen."""
        self.judges: Mapping[str, assembly.Judge] = {}
        self.noise: Noise | None = None
        self.cookies = CookieSettings()
        """With the seed of the server cookies that the shim's clients have."""
        self._refilled = float("-inf")

    def refill(self, now: float) -> Iterator[list[Answer]]:
        """What a resolver that lost its cache is given, in slices; this node's own data among it."""
        self._refilled = now
        return self.cache.slices(now)

    def save(self) -> None:
        """Write what has to outlive the process."""
        if self._state is not None:
            seen = {name: dict(codec.state()) for name, codec in self.codecs.items()}
            self._state.save({**self.streams, **seen})

    def filled(self, owner: bytes, rrtype: int, now: float) -> bool:
        """Whether this RRset lives and a sink was given it: then a resolver that has it may have it from us."""
        cached = self.cache.get(owner, rrtype, now)
        return cached is not None and (not cached.local or cached.received <= self._refilled)

    def held(self, qname: bytes, qtype: int, expires: float, negative: bool) -> None:
        """Note what the local resolver told a client; a negative answer is local data of the cache too."""
        self.holdings.hold(qname, qtype, expires)
        if negative:
            now = self._clock()
            rcode = NOERROR if qtype else NXDOMAIN
            self.cache.put_negative(qname, qtype, rcode, None, int(expires - now), now, self._node)


class Node:
    """One running node. Implements the admin API's `NodeView`."""

    def __init__(self, config: Config, *, path: Path | None = None, clock: Clock = time.time) -> None:
        """`path`: where a reload reads the configuration again. Raises `ConfigError` for what cannot be."""
        self._path = path
        self._config = config
        self._clock = clock
        self._keep = Kept(config, clock)
        self._parts = Parts(config, self._keep, clock)
        self._admin: AdminServer | None = None
        self._housekeeping: asyncio.Task[None] | None = None
        self._far_clocks: frozenset[tuple[str, str]] = frozenset()
        self._rounds = 0

    async def __aenter__(self) -> Self:
        await self._parts.prepare()
        await self._parts.__aenter__()
        self._keep.save()  # our own streams, before anybody can have heard a message of them twice
        self._parts.snapshots.join()
        try:
            self._admin = await self._open_admin(self._config)
        except BaseException:
            await self._parts.__aexit__(None, None, None)
            raise
        self._housekeeping = asyncio.create_task(self._keep_house(), name="housekeeping")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._housekeeping is not None:
            self._housekeeping.cancel()
            await asyncio.gather(self._housekeeping, return_exceptions=True)
        await self._close_admin()
        await self._parts.__aexit__(kind, error, trace)
        self._keep.save()

    @property
    def cache(self) -> Cache:
        """The node's one cache; it outlives a reload."""
        return self._keep.cache

    async def _open_admin(self, config: Config) -> AdminServer | None:
        admin = config.admin
        if admin.socket is None and admin.http is None:
            return None
        http = None if admin.http is None else (admin.http.host, admin.http.port)
        return await AdminServer(self, self._clock, path=admin.socket, http=http).__aenter__()

    async def _close_admin(self) -> None:
        if self._admin is not None:
            await self._admin.__aexit__(None, None, None)
            self._admin = None

    async def reload(self) -> bool:
        """Read the configuration again and exchange every part but the cache. A wrong one changes nothing.

        Gives whether the new configuration runs.
        """
        assert self._path is not None
        try:
            config = assembly.load(self._path)
            if (config.node, config.cluster, config.cache) != (
                self._config.node, self._config.cluster, self._config.cache,
            ):  # fmt: skip
                _log.error("reload: node, cluster and cache bounds need a restart; going on as before")
                return False
            parts = Parts(config, self._keep, self._clock)
            await parts.prepare()
        except CachebusError as error:
            _log.error("reload: %s; going on as before", error)
            return False
        await self._parts.__aexit__(None, None, None)
        try:
            await parts.__aenter__()
        except CachebusError as error:
            _log.error("reload: %s; going back", error)
            config, parts = self._config, Parts(self._config, self._keep, self._clock)
            await parts.prepare()
            await parts.__aenter__()
        good, moved = config is not self._config, config.admin != self._config.admin
        self._config, self._parts = config, parts
        if moved:
            await self._close_admin()
            self._admin = await self._open_admin(config)
        return good

    async def _keep_house(self) -> None:
        defects = 0
        while True:
            try:
                for _ in range(SWEEPS):
                    await asyncio.sleep(TICK / SWEEPS)
                    self._keep.cache.sweep(self._clock(), shards=1)
                self._tidy(self._clock())
            except Exception:  # noqa: BLE001 - a defect in one round must not end all further ones unseen
                defects += 1
                if not defects & (defects - 1):  # the 1st, 2nd, 4th ...: once a second would fill the log
                    _log.exception("housekeeping: defect, %d times so far", defects)

    def _tidy(self, now: float) -> None:
        self._parts.tick(now)
        self._rounds += 1
        if self._rounds % GREET_EVERY == 0:
            self._parts.publisher.greet()
            self._keep.save()
        monotonic = asyncio.get_running_loop().time()
        self._far_clocks = self._parts.look_at_clocks(now, monotonic, self._far_clocks)

    # What can be seen of it

    def status(self) -> Report:
        """Counters of every part."""
        parts = self._parts
        publisher = parts.publisher
        report = status_report(
            node=self._config.node,
            cluster=self._config.cluster,
            uptime=self._clock() - self._keep.started,
            cache=self._keep.cache.statistics(),
            sources={name: _intake_counters(intake) for name, intake in parts.intakes.items()},
            transports={name: self._transport_counters(name) for name in parts.transports},
            sinks={name: sink.statistics() for name, sink in parts.sinks.items()},
            shim=None if parts.shim is None else parts.shim.statistics(),
            version=__version__,
        )
        shared = {reason.value: count for reason, count in publisher.refused.items()}
        if peers := peers_report(parts.codecs):
            report["peers"] = peers
        copies = parts.snapshots.statistics()
        if any(copies.values()):
            report["snapshot"] = {**copies, "refused": dict(parts.snapshots.refused)}
        report["share"] = {**publisher.statistics(), "refused": shared}
        return report

    def _transport_counters(self, name: str) -> dict[str, Any]:
        parts = self._parts
        subscriber = parts.subscribers[name]
        offsets = parts.codecs[name].clock_offsets(self._clock()).values()
        refused = dict(subscriber.refused)
        for reason, count in parts.publisher.left_out.get(name, {}).items():
            refused[reason] = refused.get(reason, 0) + count
        counters: dict[str, Any] = {
            **parts.transports[name].statistics(),
            **parts.codecs[name].counters(),
            **subscriber.statistics(),
        }
        if name in parts.publisher.left_out:
            counters["dropped"] = counters.get("dropped", 0) + parts.publisher.dropped
        return {
            **counters,
            "refused": refused,
            "clock_offset": round(max(map(abs, offsets), default=0.0)),
        }

    def lookup(self, qname: bytes, qtype: int | None, now: float) -> Sequence[Report]:
        """What the cache holds."""
        return lookup_report(self._keep.cache, qname, qtype, now)

    def why(self, qname: bytes, qtype: int | None, now: float) -> Sequence[Report]:
        """The same, with the name's history."""
        return why_report(self._keep.cache, self._keep.history.about(qname), qname, qtype, now)

    def give_copy(self) -> AsyncIterator[bytes]:
        """The pieces of a C-DNS file of what the cache holds."""
        return self._parts.snapshots.give()

    async def take_copy(self, pieces: AsyncIterator[bytes]) -> Report:
        """Merge such a file into the cache; what became of it. Raises `FrameError` when it is none."""
        merged = await self._parts.snapshots.take(pieces)
        refused = {reason.value: count for reason, count in merged.refused.items()}
        return {"received": merged.received, "merged": merged.merged, "refused": refused}

    async def flush(self, flush: Flush) -> Report:
        """Forget something, here and in the sinks, and what of it is still on its way; what became of it."""
        now, parts, cache = self._clock(), self._parts, self._keep.cache
        steps = cache.flushing(flush, now)
        removed = next(steps)
        dropped = parts.forget(flush)
        self._keep.holdings.forget(flush)
        self._keep.history.record(now, flush.name, "flushed", "with everything below" if flush.subtree else "")
        for step in steps:
            removed += step
            await asyncio.sleep(0)
        if parts.workers is not None:
            await parts.workers.flush(flush, now)
        outcomes = await asyncio.gather(*(sink.flush(flush, now) for sink in parts.sinks.values()))
        sinks = {name: outcome.value for name, outcome in zip(parts.sinks, outcomes, strict=True)}
        return {"removed": removed, "dropped": dropped, "generation": cache.generation, "sinks": sinks}

    def metrics(self) -> bytes:
        """The counters for Prometheus."""
        return render(self.status())


def _intake_counters(intake: assembly.Intake) -> dict[str, Any]:
    judged = {name: value for name, value in intake.judge.statistics().items() if not name.startswith("refused_")}
    return {**intake.source.statistics(), **judged, "refused": dict(intake.judge.refusals)}
