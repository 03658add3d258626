"""MQTT: every message goes to one topic of this node, and what the other nodes of the cluster publish is handed on.

Decides when to connect and come back, what waits meanwhile, and what of the received is not even handed on: retained
messages, our own, and those on topics that are no node's. Knows no DNS and trusts no broker: who sent a message is
the broker's word, and only the codec's MAC proves anything.

MQTT 5 is tried first at each connection. A broker that does not know it, by its word or by closing the connection
without one, is asked again with 3.1.1.

The broker's host may be a name. It is resolved by the system at each connection, beside the event loop (`mqtt_lookup`).
That may be the very resolver that this node feeds: an address does not depend on it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
import ssl
from collections import deque
from types import TracebackType
from typing import Self

from paho.mqtt.enums import MQTTProtocolVersion

from cachebus.errors import CachebusError
from cachebus.ports import Receive, TransportSettings
from cachebus_transports._outbox import Outbox, Waiting
from cachebus_transports._words import why
from cachebus_transports.mqtt_link import Link
from cachebus_transports.mqtt_lookup import Lookup
from cachebus_transports.mqtt_options import node_of, parse_options
from cachebus_transports.mqtt_session import EXPIRY, End, Events, Session

MAX_MESSAGE = 256 * 1024
"""Largest message in bytes, sent or received: what brokers commonly take without being told."""
MAX_QUEUE_MESSAGES = 16_384
"""Messages that wait for the broker: a minute of 270 a second."""
MAX_QUEUE_BYTES = 8 * 1024 * 1024
"""Their bytes: at 5,000 answers a second, in batches, those of 13 s; and 32 of the largest messages."""
MAX_QUEUE_AGE = 60.0
"""Seconds that a message may wait: receivers refuse an envelope older than that (`expired`)."""
CONNECT_TIMEOUT = 5.0
"""Seconds for name, connection, TLS and the broker's welcome together."""
MIN_DELAY = 0.1
"""Seconds before the first attempt to come back; doubled from one attempt to the next."""
MAX_DELAY = 3.0
"""Seconds between two attempts to reach a broker that is away: a stream resumes within 5 s of its return."""
MAX_DELAY_REFUSED = 30.0
"""The same where the broker answers that it will not have us, which somebody has to mend first."""
STABLE = 10.0
"""Seconds that a connection has to last before the next loss begins again with the shortest delay."""
FLUSH_WAIT = 5.0
"""Seconds that `flush` waits for the broker at most."""
BURST = 256 * 1024
"""Bytes published in one turn of the event loop."""
MAX_NODES = 1024
"""Senders whose topics are remembered as right; those of more are read anew each time."""
_SAID = 8
"""Last warnings, none of which is repeated until a connection has lasted."""
_POLL = 0.005
"""Seconds between two looks of `flush`, which is called when a node ends."""

_COUNTERS = (
    "sent",
    "sent_bytes",
    "received",
    "received_bytes",
    "acknowledged",
    "not_taken",
    "resent",
    "dropped",
    "oversize",
    "retained",
    "own",
    "unexpected",
    "connects",
    "reconnects",
    "failed_connects",
)

_log = logging.getLogger(__name__)


class MqttTransport:
    """The transport `mqtt` (and `mqtts`). Settings: `url`, `tls` and `will`; the topic follows from cluster and node.

    Options: `qos` 0 (default) or 1; `username`, `password`; `keepalive` in seconds (default 15). Making it from
    settings that make no sense raises `ConfigError`. Entering it does not wait for the broker, and raises
    `TransportError` only when the certificates cannot be read.
    """

    def __init__(self, settings: TransportSettings, receive: Receive) -> None:
        self._options = parse_options(settings)
        self._receive = receive
        self._outbox = Outbox(messages=MAX_QUEUE_MESSAGES, size=MAX_QUEUE_BYTES, age=MAX_QUEUE_AGE)
        self._nodes: dict[bytes, str] = {}
        self._under_way: dict[int, Waiting] = {}
        self._session: Session | None = None
        self._task: asyncio.Task[None] | None = None
        self._pumping = False
        self._counters = dict.fromkeys(_COUNTERS, 0)
        self._said: deque[str] = deque(maxlen=_SAID)
        self._lookup = Lookup(self._options.host, self._options.port)

    async def __aenter__(self) -> Self:
        self._context()
        self._task = asyncio.create_task(self._stay_connected(), name=f"mqtt {self._options.name}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        task, self._task = self._task, None
        session, self._session = self._session, None
        if session is not None:
            await session.leave()
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._outbox.put_back(tuple(self._under_way.values()))
        self._under_way.clear()
        self._outbox.clear()

    def send(self, data: bytes) -> None:
        """Publish `data` on this node's topic, or let it wait for the broker; never blocks, never raises."""
        if self._task is None:
            self._counters["dropped"] += 1
        elif len(data) > MAX_MESSAGE:
            self._counters["oversize"] += 1
        else:
            self._outbox.put(Waiting(self._now(), data))
            self._pump_soon()

    async def flush(self) -> None:
        """Wait until all is with the kernel, and acknowledged by the broker (QoS 1); for `FLUSH_WAIT` at most."""
        end = self._now() + FLUSH_WAIT
        while self._task is not None and self._is_busy() and self._now() < end:  # noqa: ASYNC110 -- the kernel tells nobody
            await asyncio.sleep(_POLL)

    def statistics(self) -> dict[str, int]:
        """Counters since it was made, in messages and bytes of payload, and gauges.

        `acknowledged`: taken by the broker (QoS 1); `not_taken`: refused by it, by an access list for example;
        `resent`: published again because the link broke before the acknowledgement; `dropped`: not sent for want of
        room, or because the transport was not running; `expired`: waited too long for the broker; `oversize`: more
        than the largest message, ours or the broker's, in either direction; `retained`, `own`, `unexpected`: received
        and not handed on, as they were retained, came from ourselves, or on a topic that is no node's.
        `connects`: the first connection, `reconnects`: those after it, `failed_connects`: attempts without one.
        `connections` is 1 or 0, `protocol` 5 or 4 (3.1.1), 0 while not connected; `queued` and `queue_bytes` wait.
        """
        session = self._session
        return self._counters | {
            "dropped": self._counters["dropped"] + self._outbox.dropped,
            "expired": self._outbox.expired,
            "oversize": self._counters["oversize"] + (0 if session is None else session.link.oversize),
            "queued": len(self._outbox),
            "queue_bytes": self._outbox.bytes,
            "in_flight": len(self._under_way),
            "connections": int(session is not None),
            "protocol": 0 if session is None else int(session.version),
        }

    # Publishing

    def _pump_soon(self) -> None:
        """Publish at the end of this turn of the event loop: what is sent in one turn leaves in one piece."""
        if not self._pumping and self._session is not None:
            self._pumping = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        self._pumping = False
        session, now, published = self._session, self._now(), 0
        if session is None:
            return
        while published < BURST and self._may_publish(session) and (waiting := self._outbox.take(now)) is not None:
            published += self._publish(session, waiting, now)
        session.write()
        if len(self._outbox) and self._may_publish(session):
            self._pump_soon()

    def _may_publish(self, session: Session) -> bool:
        return session.can_publish and (not session.welcome.qos or len(self._under_way) < session.welcome.in_flight)

    def _publish(self, session: Session, waiting: Waiting, now: float) -> int:
        if not session.fits(waiting.data):
            self._counters["oversize"] += 1
            return 0
        number = session.publish(waiting.data, max(1, math.ceil(EXPIRY - (now - waiting.since))))
        if number is not None:
            self._under_way[number] = waiting
        self._counters["sent"] += 1
        self._counters["sent_bytes"] += len(waiting.data)
        return len(waiting.data)

    def _on_acknowledged(self, number: int, taken: bool) -> None:
        if self._under_way.pop(number, None) is not None:
            self._counters["acknowledged" if taken else "not_taken"] += 1
            if len(self._outbox):
                self._pump_soon()

    def _is_busy(self) -> bool:
        session = self._session
        return bool(len(self._outbox) or self._under_way or (session is not None and session.link.waiting()))

    # Receiving

    def _on_message(self, topic: bytes, payload: bytes, retained: bool) -> None:
        counters = self._counters
        node = self._nodes.get(topic) or self._learn_node(topic)
        if retained:
            counters["retained"] += 1
        elif node is None:
            counters["unexpected"] += 1
        elif node == self._options.node:
            counters["own"] += 1
        elif len(payload) > MAX_MESSAGE:
            counters["oversize"] += 1
        else:
            counters["received"] += 1
            counters["received_bytes"] += len(payload)
            self._receive(payload, node)

    def _learn_node(self, topic: bytes) -> str | None:
        node = node_of(topic.decode("ascii", "replace"), self._options.prefix)
        if node is not None and len(self._nodes) < MAX_NODES:
            self._nodes[topic] = node
        return node

    # Staying connected

    async def _stay_connected(self) -> None:
        attempt = 0
        delay = MIN_DELAY
        while True:
            started = self._now()
            end = await self._stay(attempt, MQTTProtocolVersion.MQTTv5)
            if end is End.UNSUPPORTED:
                end = await self._stay(attempt, MQTTProtocolVersion.MQTTv311)
            if self._now() - started >= STABLE:
                delay = MIN_DELAY
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))
            delay = min(2 * delay, MAX_DELAY_REFUSED if end is End.REFUSED else MAX_DELAY)
            attempt += 1

    async def _stay(self, attempt: int, version: MQTTProtocolVersion) -> End:
        """Connect, and remain until the connection ends; `attempt` picks among the addresses of the broker's name."""
        session = Session(
            self._options,
            version,
            Events(message=self._on_message, acknowledged=self._on_acknowledged, room=self._pump_soon),
        )
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await self._connect(session.link, attempt)
                end = await session.greet()
            if end is None:
                await self._serve(session)
                end = End.LOST
            elif end is not End.UNSUPPORTED or version is not MQTTProtocolVersion.MQTTv5:
                self._fail(session.reason or "the connection was closed without a word")
        except TimeoutError:
            self._fail(f"no answer within {CONNECT_TIMEOUT:g} s")
            end = End.LOST
        except (OSError, CachebusError) as error:  # those of TLS are of OSError
            self._fail(why(error))
            end = End.LOST
        finally:
            self._counters["oversize"] += session.link.oversize
            session.link.abort()
        return end

    async def _connect(self, link: Link, attempt: int) -> None:
        options = self._options
        loop = asyncio.get_running_loop()
        host = options.host
        if not options.literal:
            found = await self._lookup.addresses()
            host = found[attempt % len(found)]
        name = options.host if options.secure else None
        await loop.create_connection(lambda: link, host, options.port, ssl=self._context(), server_hostname=name)

    def _context(self) -> ssl.SSLContext | None:
        options = self._options
        if not options.secure:
            return None
        return ssl.create_default_context() if options.tls is None else options.tls.broker_context()

    async def _serve(self, session: Session) -> None:
        options, started = self._options, self._now()
        self._session = session
        self._counters["reconnects" if self._counters["connects"] else "connects"] += 1
        version = "5" if session.version is MQTTProtocolVersion.MQTTv5 else "3.1.1"
        _log.info("transport %s: connected to %s with MQTT %s", options.name, options.shown, version)
        if not session.subscribed:
            self._warn(f"{options.shown} does not let us subscribe: {session.reason}")
        self._pump_soon()
        try:
            await session.keep()
        finally:
            if self._session is session:
                self._session = None
                self._counters["resent"] += len(self._under_way)
                self._outbox.put_back(tuple(self._under_way.values()))
                self._under_way.clear()
        if self._now() - started >= STABLE:
            self._said.clear()
        if self._task is not None:
            self._warn(f"lost {options.shown}: {session.reason or 'the connection ended'}")

    def _fail(self, reason: str) -> None:
        self._counters["failed_connects"] += 1
        self._warn(f"cannot connect to {self._options.shown}: {reason}")

    def _warn(self, text: str) -> None:
        """Log what is new: a broker that stays away, or goes each time for the same reason, is reported once."""
        if text not in self._said:
            self._said.append(text)
            _log.warning("transport %s: %s", self._options.name, text)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()
