"""One client message in, one reply out: access, look-up, composing, and how much may be under way at once.

The listeners (`server.py`) bring the bytes and take the reply away; where answers come from is `lookup.py`'s business.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from cachebus.cache import Cache
from cachebus.ports import Clock
from cachebus.shim.access import Network
from cachebus.shim.chaos import Chaos
from cachebus.shim.fast import FastPath
from cachebus.shim.front import FrontSettings
from cachebus.shim.gate import Gate, Turned
from cachebus.shim.lookup import LookupOrder
from cachebus.shim.order import addresses, rotated
from cachebus.shim.query import Channel, Drop, Ede, Error, Query, Response, parse_query
from cachebus.shim.reply import MAX_STREAM_PAYLOAD, compose_error, compose_reply, udp_limit
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
        front: FrontSettings | None = None,
        cache: Cache | None = None,
        notes_client: bool = False,
        fast: FastPath | None = None,
    ) -> None:
        """`tasks`: where listeners run the coroutines that `handle` gives, and by which it sees how many there are.

        `cache`: where addresses for the additional section are found, if `front` wants them. `notes_client`: the query
        is given the client's address, for whose subnet answers may differ. `fast`: what UDP listeners may ask first, as
        it answers plain questions just as `handle` would.
        """
        front = front or FrontSettings()
        self._order = order
        self._tasks = tasks
        self._max_in_flight = max_in_flight
        self.clock = clock
        self.fast = fast
        self._notes_client = notes_client
        self.gate = Gate(tuple(allow), front)
        self._is_allowed = self.gate.allows
        self._limits = self.gate.limiter is not None
        self._chaos = None if front.chaos is None else Chaos(front.chaos)
        self._rotates = front.rotate
        self._turn = 0
        self._additional = None if front.minimal else cache
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
        options, padded = b"", False
        if self._limits or channel is not Channel.UDP or (query.edns and query.edns.options):
            taken = self.gate.take(query, client, channel, self.clock())
            if isinstance(taken, Turned):
                return taken.reply
            options, padded = taken, self.gate.pads(channel)
        allowed = self._is_allowed(client)
        if isinstance(query, Error):
            return self._refuse(query, options, padded=padded, allowed=allowed)
        limit = udp_limit(query.edns) if channel is Channel.UDP else MAX_STREAM_PAYLOAD
        if not allowed:
            self.counters["prohibited"] += 1
            return compose_reply(query, _PROHIBITED, limit, options, padded=padded)
        if self._notes_client:
            query = query._replace(client=client)
        response = self._order.answer(query, self.clock())
        if isinstance(response, Response):
            return self._compose(query, response, limit, options, padded=padded)
        if len(self._tasks) >= self._max_in_flight:
            self.counters["overloaded"] += 1
            return compose_reply(query, _OVERLOADED, limit, options, padded=padded)
        return self._wait(query, response, limit, options, padded=padded)

    def _refuse(self, error: Error, options: bytes, *, padded: bool, allowed: bool) -> bytes:
        if (
            self._chaos is not None
            and allowed
            and (told := self._chaos.answer(error, options, padded=padded)) is not None
        ):
            return told
        self.counters["errors"] += 1
        return compose_error(error, options, padded=padded)

    async def _wait(
        self,
        query: Query,
        later: Callable[[], Coroutine[Any, Any, Response]],
        limit: int,
        options: bytes,
        *,
        padded: bool,
    ) -> bytes:
        return self._compose(query, await later(), limit, options, padded=padded)

    def _compose(self, query: Query, response: Response, limit: int, options: bytes, *, padded: bool) -> bytes:
        if response.rcode == SERVFAIL:
            self.counters["servfail"] += 1
        elif response.rcode == NXDOMAIN:
            self.counters["nxdomain"] += 1
        if self._rotates:
            self._turn += 1
            response = rotated(response, self._turn)
        if self._additional is None or query.checking_disabled:  # the cache holds what nobody validated
            return compose_reply(query, response, limit, options, padded=padded)
        extra = addresses(response, self._additional, self.clock())
        return compose_reply(query, response, limit, options, padded=padded, additional=extra)

    def statistics(self) -> dict[str, int]:
        """Counters since the start."""
        return {**self.counters, **self.gate.statistics()}
