"""What somebody who subscribes is given: which answers, from a bounded queue, one by one or together.

Decides what is given up when it is not taken in time: the oldest, and that is counted. Knows nothing of links.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence

from cachebus.answer import Answer
from cachebus.errors import ConfigError
from cachebus.presentation import name_from_text, type_from_text
from cachebus.wire.name import is_at_or_below

ROUND = 64
"""Answers that `subscribe` gives before the event loop gets its turn: reading must not keep sockets from being read."""


class Wanted:
    """Which answers somebody asked for."""

    def __init__(self, types: frozenset[int] | None, names: tuple[bytes, ...] | None, origins: frozenset[str] | None):
        self._types = types
        self._names = names
        self._origins = origins

    @classmethod
    def of(
        cls, types: Iterable[str | int] | None, names: Iterable[str] | None, origins: Collection[str] | None
    ) -> Wanted:
        for key, value in (("types", types), ("names", names), ("origins", origins)):
            if isinstance(value, str | bytes):
                raise ConfigError(f"{key}: is a set of several, not one text")
        try:
            codes = None if types is None else frozenset(_type_code(one) for one in types)
            zones = None if names is None else tuple(map(name_from_text, names))
        except ValueError as error:
            raise ConfigError(str(error)) from None
        return cls(codes, zones, None if origins is None else frozenset(origins))

    @property
    def everything(self) -> bool:
        return self._types is None and self._names is None and self._origins is None

    def __call__(self, answer: Answer) -> bool:
        if self._types is not None and answer.qtype not in self._types:
            return False
        if self._origins is not None and answer.origin not in self._origins:
            return False
        return self._names is None or any(is_at_or_below(answer.qname, zone) for zone in self._names)


class Reader:
    """The queue of one subscriber."""

    def __init__(self, wanted: Wanted, limit: int, forget: Callable[[Reader], None]) -> None:
        self._wanted = wanted
        self._limit = limit
        self._forget = forget
        self._waiting: deque[Answer] = deque()
        self._arrived = asyncio.Event()
        self._ended = False
        self.missed = 0
        """Answers given up, the oldest first, because they were not taken in time."""

    def put(self, answers: Sequence[Answer]) -> int:
        """Take answers that arrived; give how many were given up for them."""
        wanted = self._wanted
        self._waiting.extend(answers if wanted.everything else filter(wanted, answers))
        missed = max(0, len(self._waiting) - self._limit)
        for _ in range(missed):
            self._waiting.popleft()
        self.missed += missed
        if self._waiting:
            self._arrived.set()
        return missed

    def end(self) -> None:
        """Let the iteration end once everything that waits was given."""
        self._ended = True
        self._arrived.set()
        self._forget(self)

    async def wait(self) -> bool:
        """Wait until something is there; whether it is."""
        while not self._waiting and not self._ended:
            self._arrived.clear()
            await self._arrived.wait()
        return bool(self._waiting)

    def take(self) -> Answer:
        """The oldest."""
        return self._waiting.popleft()

    def take_all(self) -> list[Answer]:
        """All that wait, the oldest first."""
        answers = list(self._waiting)
        self._waiting.clear()
        return answers


class Answers(AsyncIterator[Answer]):
    """What `Bus.subscribe` gives: an asynchronous iterator. Dropping it, or `end`, ends the subscription."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._given = 0

    @property
    def missed(self) -> int:
        """Answers that this subscriber was too slow for."""
        return self._reader.missed

    def end(self) -> None:
        """Subscribe no more; what waits is still given."""
        self._reader.end()

    async def __anext__(self) -> Answer:
        self._given += 1
        if not self._given % ROUND:
            await asyncio.sleep(0)
        if not await self._reader.wait():
            raise StopAsyncIteration
        return self._reader.take()


class Batches(AsyncIterator[Sequence[Answer]]):
    """What `Bus.batches` gives; see `Answers`."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    @property
    def missed(self) -> int:
        """Answers that this subscriber was too slow for."""
        return self._reader.missed

    def end(self) -> None:
        """Subscribe no more; what waits is still given."""
        self._reader.end()

    async def __anext__(self) -> Sequence[Answer]:
        await asyncio.sleep(0)
        if not await self._reader.wait():
            raise StopAsyncIteration
        return self._reader.take_all()


def _type_code(given: str | int) -> int:
    if isinstance(given, str):
        return type_from_text(given)
    if not 0 <= given <= 0xFFFF:
        raise ValueError(f"no such record type: {given}")
    return int(given)
