"""How many connections clients may have, in all and each, and which one makes room. Knows nothing of what they say.

An IPv6 client is its /64: whoever has one address of it has them all (RFC 7934). What is known of a client is known as
long as it is connected.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from ipaddress import ip_address
from typing import Protocol

IDLE_TIMEOUT = 10.0
"""Seconds without a whole query, or with a reply that the client does not read, after which a connection is closed
(RFC 7766 section 6.2.3: a few seconds)."""
ENCRYPTED_IDLE_TIMEOUT = 30.0
"""The same for an encrypted connection that has asked something: a new one costs both sides a handshake (RFC 7858
section 3.4)."""
GRACE = 0.5
"""Seconds at the end in which clients' last replies and farewells may still leave."""
_IPV6_PREFIX = 8


class Connection(Protocol):
    """One client's connection, of whatever kind."""

    active_at: float
    """When something whole came or went last, by the event loop's clock."""

    @property
    def is_dear(self) -> bool:
        """It is encrypted and has asked something: it may be idle for longer."""
        ...

    @property
    def is_idle(self) -> bool:
        """Nothing is under way, or the client reads no replies."""
        ...

    def shut(self) -> None:
        """Close with the farewell that its protocol has; it may linger while the client takes it."""
        ...

    def abort(self) -> None:
        """Close at once."""
        ...


class Connections:
    """All connections, the one active last at the end. When there are too many, the longest idle makes room."""

    def __init__(self, limit: int, *, per_client: int, clock: Callable[[], float]) -> None:
        """`per_client`: how many of them one client may have. `clock` is the event loop's."""
        self._limit = limit
        self._per_client = per_client
        self._clock = clock
        self._by_activity: dict[Connection, bytes] = {}
        self._by_client: dict[bytes, set[Connection]] = {}
        self._shut: set[Connection] = set()
        self._emptied: asyncio.Event | None = None
        self.accepted = 0
        self.refused = 0
        self.evicted = 0
        self.crowded = 0
        self.timed_out = 0

    @property
    def open(self) -> int:
        """Connections now."""
        return len(self._by_activity)

    def admit(self, connection: Connection, address: str) -> bool:
        """Take a new connection, or refuse it because all others, or all others of its client, are busy."""
        client = client_of(address)
        its_own = self._by_client.get(client, set())
        if len(its_own) >= self._per_client:
            self.crowded += 1
            if not self._make_room(sorted(its_own, key=lambda one: one.active_at)):
                return False
        elif len(self._by_activity) >= self._limit and not self._make_room(self._by_activity):
            return False
        self.accepted += 1
        self._by_client.setdefault(client, set()).add(connection)
        self._by_activity[connection] = client
        connection.active_at = self._clock()
        return True

    def _make_room(self, candidates: Iterable[Connection]) -> bool:
        longest_idle = next((one for one in candidates if one.is_idle), None)
        if longest_idle is None:
            self.refused += 1
            return False
        self.evicted += 1
        self.forget(longest_idle)
        longest_idle.abort()
        return True

    def active(self, connection: Connection) -> None:
        """Something whole came or went on it. One that has been forgotten stays so."""
        client = self._by_activity.pop(connection, None)
        if client is not None:
            self._by_activity[connection] = client
            connection.active_at = self._clock()

    def forget(self, connection: Connection) -> None:
        """It is closed."""
        client = self._by_activity.pop(connection, None)
        self._shut.discard(connection)
        if client is None:
            return
        its_own = self._by_client[client]
        its_own.remove(connection)
        if not its_own:
            del self._by_client[client]
        if self._emptied is not None and not self._by_activity:
            self._emptied.set()

    def sweep(self) -> None:
        """Close those idle for too long, and at once those that the last sweep has closed in vain."""
        for lingering in list(self._shut):
            self.forget(lingering)
            lingering.abort()
        now = self._clock()
        for connection in list(self._by_activity):
            idle = now - connection.active_at
            if idle < IDLE_TIMEOUT:
                return
            if connection.is_idle and (not connection.is_dear or idle >= ENCRYPTED_IDLE_TIMEOUT):
                self.timed_out += 1
                self._shut.add(connection)
                connection.shut()

    async def close_all(self) -> None:
        """Close every connection; those that linger, after a short grace."""
        for connection in list(self._by_activity):
            connection.shut()
        if self._by_activity:
            self._emptied = asyncio.Event()
            with suppress(TimeoutError):
                async with asyncio.timeout(GRACE):
                    await self._emptied.wait()
        for connection in list(self._by_activity):
            self.forget(connection)
            connection.abort()


def client_of(address: str) -> bytes:
    """What counts as one client: an IPv4 address, or the /64 of an IPv6 address, whose zone does not count."""
    packed = ip_address(address.partition("%")[0]).packed
    return packed if len(packed) == 4 else packed[:_IPV6_PREFIX]
