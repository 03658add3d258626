"""How many connections clients may have, and which one makes room. Knows nothing of what is said on them."""

from __future__ import annotations

import asyncio
from typing import Protocol

IDLE_TIMEOUT = 10.0
"""Seconds without a whole query, or with a reply that the client does not read, after which a connection is closed
(RFC 7766 section 6.2.3: a few seconds)."""


class Connection(Protocol):
    """One client's connection, of whatever kind."""

    active_at: float
    """When something whole came or went last, by the event loop's clock."""

    @property
    def is_idle(self) -> bool:
        """Nothing is under way, or the client reads no replies."""
        ...

    def abort(self) -> None:
        """Close at once."""
        ...


class Connections:
    """All connections, the one active last at the end. When there are too many, the longest idle makes room."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._by_activity: dict[Connection, None] = {}
        self._loop = asyncio.get_running_loop()
        self.accepted = 0
        self.refused = 0
        self.evicted = 0
        self.timed_out = 0

    @property
    def open(self) -> int:
        """Connections now."""
        return len(self._by_activity)

    def admit(self, connection: Connection) -> bool:
        """Take a new connection, or refuse it because all others are busy."""
        if len(self._by_activity) >= self._limit:
            longest_idle = next((other for other in self._by_activity if other.is_idle), None)
            if longest_idle is None:
                self.refused += 1
                return False
            self.evicted += 1
            self.forget(longest_idle)
            longest_idle.abort()
        self.accepted += 1
        self.active(connection)
        return True

    def active(self, connection: Connection) -> None:
        """Something whole came or went on it."""
        self._by_activity.pop(connection, None)
        self._by_activity[connection] = None
        connection.active_at = self._loop.time()

    def forget(self, connection: Connection) -> None:
        """It is closed."""
        self._by_activity.pop(connection, None)

    def sweep(self) -> None:
        """Close those idle for too long."""
        limit = self._loop.time() - IDLE_TIMEOUT
        for connection in list(self._by_activity):
            if connection.active_at > limit:
                return
            if connection.is_idle:
                self.timed_out += 1
                self.forget(connection)
                connection.abort()

    def close_all(self) -> None:
        """Close every connection."""
        for connection in list(self._by_activity):
            connection.abort()
