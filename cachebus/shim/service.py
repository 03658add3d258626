"""One client message in, one reply out: access, look-up, composing, and how much may be under way at once.

The listeners (`server.py`) bring the bytes and take the reply away; where answers come from is `lookup.py`'s business.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from ipaddress import ip_address
from typing import Any

from cachebus.ports import Clock
from cachebus.shim.fast import FastPath
from cachebus.shim.lookup import LookupOrder
from cachebus.shim.query import Channel, Drop, Ede, Error, Query, Response, parse_query
from cachebus.shim.reply import MAX_STREAM_PAYLOAD, compose_error, compose_reply, udp_limit
from cachebus.shim.settings import Network
from cachebus.shim.tasks import Tasks
from cachebus.wire.message import NXDOMAIN, REFUSED, SERVFAIL

Answered = bytes | Coroutine[Any, Any, bytes] | None
"""A reply, a coroutine that gives it, or None: silence."""

_OVERLOADED = Response(SERVFAIL, errors=((Ede.NOT_READY, "too many questions under way"),))
_PROHIBITED = Response(REFUSED, errors=((Ede.PROHIBITED, "not served"),))


class Service:
    """Answers client messages. Any bytes give a reply or silence, and never an exception."""

    def __init__(
        self,
        order: LookupOrder,
        tasks: Tasks,
        clock: Clock,
        *,
        allow: Sequence[Network],
        max_in_flight: int,
        fast: FastPath | None = None,
    ) -> None:
        """`tasks`: where listeners run the coroutines that `handle` gives, and by which it sees how many there are.

        `fast`: what UDP listeners may ask first, as it answers plain questions just as `handle` would.
        """
        self._order = order
        self._tasks = tasks
        self._allow = tuple(allow)
        self._max_in_flight = max_in_flight
        self.clock = clock
        self.fast = fast
        self.counters = dict.fromkeys(
            ("queries", "prohibited", "overloaded", "errors", "servfail", "nxdomain", *(drop.value for drop in Drop)), 0
        )

    def handle(self, data: bytes, client: str, channel: Channel) -> Answered:
        """Take one message from the address `client`; but over UDP a reply may be as big as a length prefix allows."""
        self.counters["queries"] += 1
        query = parse_query(data)
        if isinstance(query, Drop):
            self.counters[query.value] += 1
            return None
        if isinstance(query, Error):
            self.counters["errors"] += 1
            return compose_error(query)
        limit = udp_limit(query.edns) if channel is Channel.UDP else MAX_STREAM_PAYLOAD
        if not self._is_allowed(client):  # looked up each time: no client's address outlives its question
            self.counters["prohibited"] += 1
            return compose_reply(query, _PROHIBITED, limit)
        response = self._order.answer(query, self.clock())
        if isinstance(response, Response):
            return self._compose(query, response, limit)
        if len(self._tasks) >= self._max_in_flight:
            self.counters["overloaded"] += 1
            return compose_reply(query, _OVERLOADED, limit)
        return self._wait(query, response, limit)

    async def _wait(self, query: Query, later: Callable[[], Coroutine[Any, Any, Response]], limit: int) -> bytes:
        return self._compose(query, await later(), limit)

    def _compose(self, query: Query, response: Response, limit: int) -> bytes:
        if response.rcode == SERVFAIL:
            self.counters["servfail"] += 1
        elif response.rcode == NXDOMAIN:
            self.counters["nxdomain"] += 1
        return compose_reply(query, response, limit)

    def _is_allowed(self, client: str) -> bool:
        address = ip_address(client.partition("%")[0])
        return any(address.version == network.version and address in network for network in self._allow)
