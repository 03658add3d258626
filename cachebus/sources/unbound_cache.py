"""A warm Unbound's cache, read once over its control channel: a `Source` that comes to its end.

Decides when the cache is read, how much of it is held here, and at which pace it is handed on: reading it stops the
thread of Unbound that writes it, so it is taken in as fast as it comes and looked at afterwards. Refuses to know what
an entry is worth: that is the judge's.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from cachebus.errors import CachebusError, MessageError, ResolverError
from cachebus.filters.cached import CacheEntry
from cachebus.ports import Clock
from cachebus.sources.listen import Deliver
from cachebus.unbound.control import About, ControlChannel, ControlTls, ResolverGone
from cachebus.unbound.reader import DumpReader, to_message

DEFAULT_RATE = 500
"""Entries per second: a fifth of a core here, and half of what a peer's Unbound is filled with by default."""
DEFAULT_MAX_BYTES = 128 * 1024 * 1024
"""Bytes; some 70,000 answers of two records."""
PACE = 0.02
"""Seconds between two slices of entries."""
PATIENCE = 30
"""Times that a resolver which is not there yet is asked again: both may be starting."""
RETRY = 2.0
"""Seconds between two of them."""
MODULES = frozenset({"validator", "iterator", "respip", "subnetcache"})
"""Modules of an Unbound whose cache holds what servers have said. Others put answers of their own in it (dns64, python,
dynlib), or anybody's (cachedb)."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSettings:
    """Whose cache a source reads."""

    name: str
    """The source's name in the configuration."""
    control: str
    """`unix:/path` or `ADDRESS:PORT`, as `ControlChannel` takes it."""
    tls: ControlTls | None = None
    rate: int = DEFAULT_RATE
    """Most entries per second."""
    max_bytes: int = DEFAULT_MAX_BYTES
    """Most memory for what was read and not yet handed on."""


class ReadAlready:
    """The `Source` in place of a cache that was read before a reload: there is nothing more to say."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def statistics(self) -> Mapping[str, int]:
        """That it is finished."""
        return {"finished": 1}


class UnboundCacheSource:
    """Hands on what an Unbound holds, once, in the order in which it tells it. A `Source`."""

    def __init__(
        self, settings: CacheSettings, deliver: Deliver, clock: Clock, *, finished: Callable[[], None] = lambda: None
    ) -> None:
        """`finished` is called when everything was delivered, not when it was given up. Raises `ConfigError`."""
        self._settings = settings
        self._deliver = deliver
        self._clock = clock
        self._finished = finished
        self._channel = ControlChannel(settings.control, settings.tls)
        self._spool: deque[bytes] = deque()
        self._spool_room = settings.max_bytes // 2
        self._reader = DumpReader(max_bytes=settings.max_bytes // 2)
        self._delivered = 0
        self._bytes = 0
        self._unreadable = 0
        self._failures = 0
        self._done = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def statistics(self) -> Mapping[str, int]:
        """Counters of the reading; `finished` is 1 at its end, also when it could not be done (`failures`)."""
        return {
            "frames": self._delivered,
            "bytes": self._bytes,
            "unreadable": self._unreadable,
            "waiting": len(self._reader.entries),
            "failures": self._failures,
            "finished": int(self._done.is_set()),
            **self._reader.statistics(),
        }

    async def wait(self) -> None:
        """Wait until everything was delivered, or given up."""
        await self._done.wait()

    async def __aenter__(self) -> Self:
        """Start to read."""
        self._task = asyncio.create_task(self._run(), name=f"{self._settings.name}: read")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _run(self) -> None:
        try:
            about = await self._ask()
            read = asyncio.get_running_loop().time()
            await self._channel.dump(self._take)
            while self._spool:
                self._reader.receive_data(self._spool.popleft())
                await asyncio.sleep(0)
            self._reader.receive_end()
            _log.info("source %s: %d answers in the cache", self._settings.name, len(self._reader.entries))
            await self._hand_on(about.uptime, read)
            self._finished()
        except CachebusError as error:
            self._failures += 1
            self._spool.clear()
            self._reader.entries.clear()
            _log.warning("source %s: the cache is not read: %s", self._settings.name, error)
        except Exception:  # noqa: BLE001 - else it would be heard of at the end of the node, if ever
            self._failures += 1
            _log.exception("source %s: defect, the rest of the cache is left out", self._settings.name)
        finally:
            self._done.set()

    async def _ask(self) -> About:
        """What the resolver is, once it is there. Raises `ResolverError` also for one whose cache is not to be read."""
        for tries in range(PATIENCE + 1):
            try:
                about = await self._channel.about()
                break
            except ResolverGone:
                if tries == PATIENCE:
                    raise
                await asyncio.sleep(RETRY)
        strange = about.modules - MODULES
        if strange:
            raise ResolverError(f"modules put other data than servers' into it: {', '.join(sorted(strange))}")
        return about

    def _take(self, data: bytes) -> None:
        self._bytes += len(data)
        if len(data) <= self._spool_room:
            self._spool_room -= len(data)
            self._spool.append(data)
            return
        self._spool_room = 0  # a dump this large is looked at while Unbound waits
        while self._spool:
            self._reader.receive_data(self._spool.popleft())
        self._reader.receive_data(data)

    async def _hand_on(self, uptime: int, read: float) -> None:
        monotonic = asyncio.get_running_loop().time
        entries = self._reader.entries
        size = max(round(self._settings.rate * PACE), 1)
        pause = size / self._settings.rate
        while entries:
            for _ in range(min(size, len(entries))):
                elapsed = monotonic() - read
                entry = entries.popleft()
                try:
                    message = to_message(entry, elapsed)
                except MessageError:
                    self._unreadable += 1
                    continue
                self._delivered += 1
                frame = CacheEntry(entry.security.value, uptime + int(elapsed), message).pack()
                self._deliver(frame, self._clock())
            await asyncio.sleep(pause)
