"""A node's copies: serves them, takes one when it starts, and gives and takes one for its operator.

Puts the parts together; what may be copied is decided in `copy`, who may have it in `server`, whom to ask in `joining`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from cachebus.cache import Cache
from cachebus.codecs.cdns import CdnsCodec
from cachebus.errors import FrameError
from cachebus.filters.policy import Policy
from cachebus.ports import Clock, Sender, Tls
from cachebus.snapshot.copy import MAX_ENTRIES, MAX_RATE, Merged, Taker, give
from cachebus.snapshot.joining import join, until_live
from cachebus.snapshot.server import SnapshotServer

OPERATOR: Sender = ("127.0.0.1", 0)
"""Whom a copy comes from that is read from a file: who may use the admin socket may fill the cache."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotSettings:
    """How copies are given and taken."""

    listen: tuple[str, int] | None = None
    peers: Sequence[tuple[str, int]] = ()
    """Whom to ask at the start."""
    tls: Tls | None = field(default=None, repr=False)
    max_entries: int = MAX_ENTRIES
    rate: int = MAX_RATE
    zstd: bool = False


class Snapshots:
    """A running thing. `for_peers` and `for_operator` make the codec of one copy: the one believes the peers of `tls`,
    the other whoever may use the admin socket. `is_connected`: whether the links of the live stream stand."""

    def __init__(
        self,
        settings: SnapshotSettings,
        *,
        cache: Cache,
        policy: Policy,
        for_peers: Callable[[], CdnsCodec],
        for_operator: Callable[[], CdnsCodec],
        clock: Clock,
        on_merged: Callable[[], None],
        is_connected: Callable[[], bool],
    ) -> None:
        self._settings = settings
        self._cache = cache
        self._policy = policy
        self._for_peers = for_peers
        self._for_operator = for_operator
        self._clock = clock
        self._on_merged = on_merged
        self._is_connected = is_connected
        tls = settings.tls
        self.server = None if settings.listen is None else SnapshotServer(settings.listen, tls, self.give)
        self._joining: asyncio.Task[None] | None = None
        self._last: Merged | None = None
        self._taken = 0

    async def __aenter__(self) -> Self:
        if self.server is not None:
            await self.server.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._joining is not None:
            self._joining.cancel()
            await asyncio.gather(self._joining, return_exceptions=True)
        if self.server is not None:
            await self.server.__aexit__(kind, error, trace)

    def join(self) -> None:
        """Ask the peers for a copy, in the background, as soon as the live stream is taken."""
        if self._settings.peers and self._joining is None:
            self._joining = asyncio.create_task(self._join(), name="warm start")

    async def _join(self) -> None:
        await until_live(self._is_connected, self._clock)
        merged = await join(
            self._settings.peers, self._settings.tls, lambda sender: self._taker(sender, self._for_peers())
        )
        if merged is not None:
            self._note(merged)

    def give(self, *, rate: int | None = None) -> AsyncIterator[bytes]:
        """The pieces of a copy of the cache."""
        settings = self._settings
        return give(
            self._cache,
            self._policy,
            self._for_peers(),
            self._clock,
            max_entries=settings.max_entries,
            rate=rate or settings.rate,
            compress=settings.zstd,
        )

    async def take(self, pieces: AsyncIterator[bytes]) -> Merged:
        """Merge a copy that the operator has as a file. Raises `FrameError` when it is none; what came stays."""
        taker = self._taker(OPERATOR, self._for_operator())
        async for piece in pieces:
            await taker.feed(piece)
        self._note(taker.merged)
        if not (taker.whole or taker.full):
            raise FrameError("the copy ends before its end")
        return taker.merged

    def _taker(self, sender: Sender, codec: CdnsCodec) -> Taker:
        return Taker(
            self._cache,
            self._policy,
            codec,
            self._clock,
            sender=sender,
            max_entries=self._settings.max_entries,
        )

    def _note(self, merged: Merged) -> None:
        self._taken += 1
        self._last = merged
        if merged.merged:
            self._on_merged()
        _log.info("snapshot: %d answers came, %d of them were news", merged.received, merged.merged)

    def statistics(self) -> Mapping[str, int]:
        """What was given, and of the copies `taken` the answers `received` and `merged` of the last one."""
        last = self._last or Merged()
        given = {} if self.server is None else self.server.statistics()
        return {**given, "taken": self._taken, "received": last.received, "merged": last.merged}

    @property
    def refused(self) -> Mapping[str, int]:
        """Blocks and answers of the last copy that were not taken, by reason."""
        return {} if self._last is None else {reason.value: count for reason, count in self._last.refused.items()}
