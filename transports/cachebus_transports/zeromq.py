"""ZeroMQ: every message goes to whoever subscribes here, and every message of those we subscribe to is handed on.

Decides which sockets to open, and counts what ZeroMQ shows of its links. Knows no DNS and resolves no names.

A mesh: each node binds a publishing socket at `bind`, and connects a subscribing one to each of `connect`, the other
nodes' addresses. Through a hub (`cachebus forward`) both sockets connect to it: `hub: {publishers, subscribers}`.
There is one subscribing socket per address, so that the sender is known and one peer's flood fills only its own queue.

The publishing socket is an XPUB, which tells when somebody subscribes; on the wire it is a PUB. What is sent in the
first moments waits for the first subscriber, as a link takes a moment to stand; later there is nobody to wait for.
Beyond its high-water mark ZeroMQ drops silently, for each subscriber by itself, and a subscriber that was away has
missed what was sent: the codec's sequence numbers show both as gaps.

Authentication is the codec's MAC, as over udp; CURVE adds privacy, refuses strangers a connection, and gives the sender
a name. Without CURVE whoever reaches `bind` can read along.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self
from urllib.parse import parse_qsl, urlsplit

import zmq

from cachebus.errors import ConfigError, TransportError
from cachebus.ports import Receive, Sender, TransportSettings
from cachebus_transports._zmq_curve import Curve, about, read_curve
from cachebus_transports._zmq_link import (
    MAX_MESSAGE,
    MESSAGE_COST,
    SLICE,
    Endpoint,
    Links,
    Reader,
    Socket,
    bind,
    bound_to,
    no_peer_is_unknown,
    parse_zmq,
    read_hwm,
)

MAX_ENDPOINTS = 256
"""Addresses in `bind` or in `connect`. Each of the latter takes two of the 1023 sockets of a libzmq context."""
HOLD = 2.0
"""Seconds after the start in which messages wait for the first subscriber: one more than a peer that is looking for
this node lets pass between two attempts."""

_log = logging.getLogger(__name__)


class ZeromqTransport:
    """The transport `zeromq`. Endpoints are `tcp://ADDRESS:PORT`, IPv6 in brackets, and `ipc://PATH`.

    Options: `bind`, `connect`: lists of endpoints; `hub`: {publishers, subscribers}, the hub's two endpoints; `curve`:
    {secret, server, allow}; `hwm`: messages held for each peer. Instead of the first three `settings.url`:
    `zmq+tcp://ADDRESS:PORT` or `zmq+ipc://PATH`, `?bind=1` after either; `direction`, `publish` or `subscribe`, says
    which socket it is for (default: to publish where it binds, to subscribe where it connects).

    Making it from settings that make no sense raises `ConfigError`; entering it raises `TransportError` when a socket
    cannot be opened.
    """

    def __init__(self, settings: TransportSettings, receive: Receive) -> None:
        self._name = settings.name
        self._receive = receive
        self._plan = _Plan.of(settings)
        self._links = Links(
            f"transport {self._name}",
            hwm=read_hwm(settings.options.get("hwm")),
            curve=read_curve(settings.options.get("curve")),
        )
        self._plan.check(self._links.curve)
        self._held_limit = read_hwm(settings.options.get("hwm"))
        self._publisher: Socket | None = None
        self._subscriptions: Reader | None = None
        self._held: deque[bytes] | None = None
        self._released = asyncio.Event()
        self._deadline: asyncio.TimerHandle | None = None
        self._topics = 0
        self._bound: list[str] = []
        self._sent = self._sent_bytes = self._dropped = self._oversize = self._unsubscribed = 0
        self._received = self._received_bytes = self._multipart = 0

    @property
    def endpoints(self) -> tuple[str, ...]:
        """Where it is bound while it runs; tells which port `:0` became."""
        return tuple(self._bound)

    async def __aenter__(self) -> Self:
        try:
            self._open()
        except zmq.ZMQError as error:
            await self._close()
            raise TransportError(f"transport {self._name}: {self._plan.text}: {error.strerror}") from error
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    def send(self, data: bytes) -> None:
        """Hand one message to ZeroMQ for every subscriber; what is too large, or comes too early, is counted."""
        if len(data) > MAX_MESSAGE:
            self._oversize += 1
        elif self._publisher is None:
            self._dropped += 1
        elif self._held is not None:
            if len(self._held) >= self._held_limit:
                self._held.popleft()
                self._dropped += 1
            self._held.append(data)
        elif self._topics:
            self._publish(self._publisher, data)
        else:
            self._unsubscribed += 1

    async def flush(self) -> None:
        """Wait until ZeroMQ has everything, which it is given `LINGER` to write when the transport is left."""
        if self._held is not None:
            await self._released.wait()

    def statistics(self) -> dict[str, int]:
        """Counters since it was made, in messages and bytes, and gauges.

        `sent`: given to ZeroMQ, which writes them to each subscriber or drops them beyond its high-water mark;
        `unsubscribed`: not sent, as nobody subscribes; `dropped`: sent before it ran or after, or while too many waited
        for the first subscriber; `oversize`: longer than `MAX_MESSAGE`; `multipart`: came in several parts and was
        dropped; `queued`: waiting for the first subscriber now. Links: see `Links.statistics`.
        """
        return {
            "sent": self._sent,
            "sent_bytes": self._sent_bytes,
            "dropped": self._dropped,
            "oversize": self._oversize,
            "unsubscribed": self._unsubscribed,
            "received": self._received,
            "received_bytes": self._received_bytes,
            "multipart": self._multipart,
            "queued": len(self._held or ()),
            **self._links.statistics(),
        }

    # Opening and closing

    def _open(self) -> None:
        self._links.start()
        plan = self._plan
        for endpoint in plan.subscribe_at:
            self._subscribe(endpoint)
        for endpoint in plan.receive_on:
            self._accept_publishers(endpoint)
        if plan.publish_on or plan.publish_to:
            self._open_publisher()

    def _open_publisher(self) -> None:
        plan = self._plan
        server = bool(plan.publish_on)
        hub = plan.publish_to
        opened = self._links.open(zmq.XPUB, server=server, peer=None if hub is None else hub.text)
        for endpoint in plan.publish_on:
            bind(opened, endpoint)
            self._bound.append(bound_to(opened))
        if hub is not None:
            self._links.connect(opened, hub)
        self._held = deque()
        self._released.clear()
        self._deadline = asyncio.get_running_loop().call_later(HOLD, self._release)
        self._publisher = opened
        self._subscriptions = self._links.read(opened, lambda: self._read_subscriptions(opened))

    def _subscribe(self, endpoint: Endpoint) -> None:
        curve = self._links.curve
        sender: Sender = endpoint.address
        if curve is not None:
            sender = curve.name_of(curve.server_key(endpoint.text)) or sender
        opened = self._links.open(zmq.SUB, peer=endpoint.text)
        opened.set(zmq.SUBSCRIBE, b"")
        self._links.connect(opened, endpoint)
        self._links.read(opened, self._reading(opened, sender))

    def _accept_publishers(self, endpoint: Endpoint) -> None:
        opened = self._links.open(zmq.SUB, server=True)
        opened.set(zmq.SUBSCRIBE, b"")
        bind(opened, endpoint)
        self._bound.append(bound_to(opened))
        self._links.read(opened, lambda: self._read_of_many(opened, endpoint))

    async def _close(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._dropped += len(self._held or ())
        self._publisher = self._subscriptions = self._held = None
        self._topics = 0
        self._released.set()
        self._bound.clear()
        await self._links.close()

    # Sending

    def _publish(self, opened: Socket, data: bytes) -> None:
        opened.send(data, zmq.NOBLOCK)
        self._sent += 1
        self._sent_bytes += len(data)
        if self._subscriptions is not None:
            self._subscriptions.poke()  # sending may have taken the sign that a subscription came

    def _read_subscriptions(self, opened: Socket) -> bool:
        """XPUB gives each topic's first subscription and the end of its last: b"\\1" and b"\\0" before the topic."""
        try:
            for _ in range(SLICE // MESSAGE_COST):
                match opened.recv(zmq.NOBLOCK)[:1]:
                    case b"\1":
                        self._topics += 1
                        self._release()
                    case b"\0":
                        self._topics -= 1
        except zmq.Again:
            return False
        return True

    def _release(self) -> None:
        """Send what waited for the first subscriber, who has come, or will not."""
        held, self._held = self._held, None
        for data in held or ():
            self.send(data)
        self._released.set()

    # Receiving

    def _reading(self, opened: Socket, sender: Sender) -> Callable[[], bool]:
        """What reads a slice from a socket with one peer."""
        receive = self._receive

        def read() -> bool:
            budget = SLICE
            try:
                while budget > 0:
                    data = opened.recv(zmq.NOBLOCK)
                    budget -= len(data) + MESSAGE_COST
                    if opened.get(zmq.RCVMORE):
                        self._skip_parts(opened)
                        continue
                    self._received += 1
                    self._received_bytes += len(data)
                    receive(data, sender)
            except zmq.Again:
                return False
            return True

        return read

    def _read_of_many(self, opened: Socket, endpoint: Endpoint) -> bool:
        """Read a slice from a socket that others connect to: each message says whose it is, which costs more."""
        budget = SLICE
        try:
            while budget > 0:
                frame = opened.recv(zmq.NOBLOCK, copy=False)
                data = frame.bytes
                budget -= len(data) + MESSAGE_COST
                if frame.more:
                    self._skip_parts(opened)
                    continue
                self._received += 1
                self._received_bytes += len(data)
                self._receive(data, _sender_of(frame, endpoint))
        except zmq.Again:
            return False
        return True

    def _skip_parts(self, opened: Socket) -> None:
        # All parts of a message arrive together, so none has to be waited for.
        self._multipart += 1
        while opened.get(zmq.RCVMORE):
            opened.recv(zmq.NOBLOCK)


class _Plan:
    """Which sockets the settings ask for."""

    def __init__(self) -> None:
        self.publish_on: tuple[Endpoint, ...] = ()
        self.publish_to: Endpoint | None = None
        self.subscribe_at: tuple[Endpoint, ...] = ()
        self.receive_on: tuple[Endpoint, ...] = ()

    @classmethod
    def of(cls, settings: TransportSettings) -> _Plan:
        """Read the settings. Raises `ConfigError`."""
        options = settings.options
        if settings.listen is not None or settings.peers:
            raise ConfigError("zeromq takes `bind` and `connect`, not `listen` and `peers`")
        plan = cls()
        plan.publish_on = _endpoints("bind", options.get("bind"), any_port=True)
        own = {endpoint.text for endpoint in plan.publish_on}
        # A list of addresses that names this node too may be the same on every node.
        plan.subscribe_at = tuple(one for one in _endpoints("connect", options.get("connect")) if one.text not in own)
        if options.get("hub") is not None:
            plan._add_hub(options["hub"])
        if settings.url is not None:
            plan._add_url(settings.url, options.get("direction"))
        if not (plan.publish_on or plan.publish_to or plan.subscribe_at or plan.receive_on):
            raise ConfigError("zeromq needs `bind`, `connect`, `hub` or a URL")
        return plan

    def check(self, curve: Curve | None) -> None:
        """Raise `ConfigError` where CURVE lacks a key."""
        no_peer_is_unknown(curve, bound=bool(self.publish_on or self.receive_on))
        if curve is not None:
            for endpoint in (*self.subscribe_at, *((self.publish_to,) if self.publish_to else ())):
                curve.server_key(endpoint.text)

    @property
    def text(self) -> str:
        """The endpoints, for errors."""
        used = (*self.publish_on, *self.receive_on, *self.subscribe_at)
        return ", ".join(endpoint.text for endpoint in used) or "hub"

    def _add_hub(self, hub: object) -> None:
        if not isinstance(hub, Mapping) or hub.keys() != {"publishers", "subscribers"}:
            raise ConfigError("hub: is a mapping of `publishers` and `subscribers`, the hub's two addresses")
        if self.publish_on:
            raise ConfigError("`bind` is for a mesh; with `hub` this node binds nothing")
        with about("hub.publishers"):
            self.publish_to = parse_zmq(hub["publishers"])
        with about("hub.subscribers"):
            self.subscribe_at = (*self.subscribe_at, parse_zmq(hub["subscribers"]))

    def _add_url(self, url: str, direction: object) -> None:
        parts = urlsplit(url)
        query = dict(parse_qsl(parts.query))
        binds = query.pop("bind", "0")
        if query or binds not in ("0", "1"):
            raise ConfigError(f"{url!r}: takes nothing but ?bind=1")
        endpoint = parse_zmq(url.partition("?")[0], any_port=binds == "1")
        match binds, direction:
            case "1", "publish" | None:
                self.publish_on = (*self.publish_on, endpoint)
            case "1", "subscribe":
                self.receive_on = (endpoint,)
            case _, "publish":
                self.publish_to = endpoint
            case _, "subscribe" | None:
                self.subscribe_at = (*self.subscribe_at, endpoint)
            case _:
                raise ConfigError("direction: is publish or subscribe")


def _endpoints(key: str, value: object, *, any_port: bool = False) -> tuple[Endpoint, ...]:
    if value is None:
        return ()
    if not isinstance(value, list | tuple) or len(value) > MAX_ENDPOINTS:
        raise ConfigError(f"{key}: is a list of at most {MAX_ENDPOINTS} addresses")
    with about(key):
        return tuple(dict.fromkeys(parse_zmq(text, any_port=any_port) for text in value))


def _sender_of(frame: zmq.Frame, endpoint: Endpoint) -> Sender:
    """The name that CURVE proved, or else the address; a process on this host has none but the socket's path."""
    for key in ("User-Id", "Peer-Address"):
        try:
            found = frame.get(key)
        except zmq.ZMQError:
            continue
        if found:
            return str(found) if key == "User-Id" else (str(found), 0)
    return endpoint.address
