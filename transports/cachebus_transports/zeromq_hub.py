"""A hub for ZeroMQ: whoever publishes connects to one address of it, whoever subscribes to the other.

Decides who may connect (CURVE) and what passes: whole messages of one part to the subscribers, and to the publishers
the word that somebody subscribes. Knows nothing of the bytes that pass: what the nodes' keys did not sign is refused by
the nodes, so a hub can lose, repeat and hold back, and nothing else.
"""

from __future__ import annotations

from types import TracebackType
from typing import Self

import zmq

from cachebus.errors import TransportError
from cachebus_transports._zmq_curve import read_curve
from cachebus_transports._zmq_link import (
    MESSAGE_COST,
    SLICE,
    Links,
    Reader,
    Socket,
    bind,
    bound_to,
    no_peer_is_unknown,
    parse_zmq,
    read_hwm,
)


class ZeromqHub:
    """An XSUB and an XPUB socket, joined. `publishers` and `subscribers` are endpoints as of the transport.

    `curve` is {secret, allow} or None, `hwm` a number of messages or None. Making it raises `ConfigError`, entering it
    `TransportError` when an endpoint cannot be bound.
    """

    def __init__(
        self, *, publishers: str, subscribers: str, curve: object | None = None, hwm: int | None = None
    ) -> None:
        self._wanted = (parse_zmq(publishers, any_port=True), parse_zmq(subscribers, any_port=True))
        keys = read_curve(curve)
        no_peer_is_unknown(keys, bound=True)
        self._links = Links("hub", hwm=read_hwm(hwm), curve=keys)
        self._publishers: Reader | None = None
        self._subscribers: Reader | None = None
        self._bound: list[str] = []
        self._received = self._received_bytes = self._multipart = self._topics = 0

    @property
    def endpoints(self) -> tuple[str, ...]:
        """Where it is bound while it runs: for publishers, for subscribers; tells which port `:0` became."""
        return tuple(self._bound)

    async def __aenter__(self) -> Self:
        try:
            self._open()
        except zmq.ZMQError as error:
            await self._close()
            where = self._wanted[len(self._bound)].text
            raise TransportError(f"hub: {where}: {error.strerror}") from error
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    def statistics(self) -> dict[str, int]:
        """Counters since it was made, and gauges.

        `received`: messages given to ZeroMQ for every subscriber, which drops them beyond a subscriber's high-water
        mark; `multipart`: dropped, as nodes send one part; `topics`: what anybody subscribes to now, 1 for all nodes
        together. Links: see `Links.statistics`.
        """
        return {
            "received": self._received,
            "received_bytes": self._received_bytes,
            "multipart": self._multipart,
            "topics": self._topics,
            **self._links.statistics(),
        }

    def _open(self) -> None:
        self._links.start()
        come = self._links.open(zmq.XSUB, server=True)
        go = self._links.open(zmq.XPUB, server=True)
        for opened, endpoint in zip((come, go), self._wanted, strict=True):
            bind(opened, endpoint)
            self._bound.append(bound_to(opened))
        self._publishers = self._links.read(come, lambda: self._forward(come, go))
        self._subscribers = self._links.read(go, lambda: self._subscribe(go, come))

    async def _close(self) -> None:
        self._publishers = self._subscribers = None
        self._topics = 0
        await self._links.close()
        self._bound.clear()

    def _forward(self, come: Socket, go: Socket) -> bool:
        budget = SLICE
        try:
            while budget > 0:
                data = come.recv(zmq.NOBLOCK)
                budget -= len(data) + MESSAGE_COST
                if come.get(zmq.RCVMORE):
                    self._multipart += 1
                    while come.get(zmq.RCVMORE):
                        come.recv(zmq.NOBLOCK)
                    continue
                self._received += 1
                self._received_bytes += len(data)
                go.send(data, zmq.NOBLOCK)
        except zmq.Again:
            return False
        finally:
            if self._subscribers is not None:
                self._subscribers.poke()  # sending may have taken the sign that a subscription came
        return True

    def _subscribe(self, go: Socket, come: Socket) -> bool:
        """Pass on each topic's first subscription and the end of its last: b"\\1" and b"\\0" before the topic."""
        try:
            for _ in range(SLICE // MESSAGE_COST):
                data = go.recv(zmq.NOBLOCK)
                if data[:1] in (b"\0", b"\1"):  # a subscriber may say other things too
                    self._topics += 1 if data[:1] == b"\1" else -1
                    come.send(data, zmq.NOBLOCK)
                    if self._publishers is not None:
                        self._publishers.poke()
        except zmq.Again:
            return False
        return True
