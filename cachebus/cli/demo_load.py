"""The demo's clients: a fixed stream of questions, Zipf-distributed, spread over the nodes; how long each answer took.

The stream depends on the seed alone, so that every mode answers the very same questions. Knows no node's inside.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, NamedTuple, cast

from cachebus.presentation import name_from_text
from cachebus.wire.message import QR, RCODE, RD, question_section
from cachebus.wire.rrtypes import A

SEED = 20261121
EXPONENT = 1.0
"""Of the Zipf distribution; measured query streams lie around it."""
ANSWER_TIMEOUT = 3.0
"""Seconds after the last question; what is not answered by then never will be."""
TICK = 0.005
"""Seconds between two bursts of questions: finer than the latencies of interest."""


class Ask(NamedTuple):
    """One question of the stream."""

    at: float
    """Seconds from the start."""
    node: int
    name: int


class LoadResult(NamedTuple):
    """What the clients saw."""

    asked: int
    answered: int
    failed: int
    """Answered, but not with NOERROR."""
    latencies: list[float]
    """Seconds, sorted."""

    def percentile(self, share: float) -> float:
        """Latency in milliseconds that `share` of the answers stayed within; 0 when there are none."""
        if not self.latencies:
            return 0.0
        return self.latencies[min(len(self.latencies) - 1, int(len(self.latencies) * share))] * 1000


def questions(count: int, *, nodes: int, names: int, rate: float, seed: int = SEED) -> list[Ask]:
    """The stream: `count` questions, `rate` a second in all, each to a random node for a Zipf-distributed name."""
    chance = random.Random(seed)
    weights = list(accumulate(1 / rank**EXPONENT for rank in range(1, names + 1)))
    asked = chance.choices(range(names), cum_weights=weights, k=count)
    return [Ask(index / rate, chance.randrange(nodes), name) for index, name in enumerate(asked)]


class _Client(asyncio.DatagramProtocol):
    """One client of one node: sends, and takes the time."""

    def __init__(self) -> None:
        self.transport: asyncio.DatagramTransport | None = None
        self.waiting: dict[int, float] = {}
        self.latencies: list[float] = []
        self.failed = 0
        self._next_id = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.DatagramTransport", transport)

    def error_received(self, exc: Exception) -> None:
        """A node that is gone: its questions stay unanswered, and are counted so."""

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        sent = self.waiting.pop(int.from_bytes(data[:2], "big"), None)
        if sent is None or len(data) < 12 or not data[2] & (QR >> 8):
            return
        self.latencies.append(time.perf_counter() - sent)
        if data[3] & RCODE:
            self.failed += 1

    def ask(self, question: bytes) -> None:
        assert self.transport is not None
        self._next_id = (self._next_id + 1) & 0xFFFF
        self.waiting[self._next_id] = time.perf_counter()
        header = self._next_id.to_bytes(2, "big") + RD.to_bytes(2, "big") + b"\0\1\0\0\0\0\0\0"
        self.transport.sendto(header + question)


async def run_load(
    stream: Sequence[Ask],
    ports: Sequence[int],
    name_of: Callable[[int], str],
    *,
    progress: Callable[[float], None] = lambda share: None,
) -> LoadResult:
    """Put the stream's questions to the nodes on these loopback ports, at their times; `progress` is told how far."""
    loop = asyncio.get_running_loop()
    clients = []
    wire = {ask.name: question_section(name_from_text(name_of(ask.name)), A) for ask in stream}
    try:
        for port in ports:
            _, client = await loop.create_datagram_endpoint(_Client, remote_addr=("127.0.0.1", port))
            clients.append(client)
        start = loop.time()
        for done, ask in enumerate(stream):
            ahead = start + ask.at - loop.time()
            if ahead > 0:
                progress(done / len(stream))
                await asyncio.sleep(max(ahead, TICK))
            clients[ask.node].ask(wire[ask.name])
        deadline = loop.time() + ANSWER_TIMEOUT
        # Looked at from time to time: an event per answer would be part of what is measured.
        while any(client.waiting for client in clients) and loop.time() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(TICK)
    finally:
        for client in clients:
            if client.transport is not None:
                client.transport.close()
    latencies = sorted(latency for client in clients for latency in client.latencies)
    return LoadResult(len(stream), len(latencies), sum(client.failed for client in clients), latencies)
