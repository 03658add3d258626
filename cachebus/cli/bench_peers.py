"""What the processes of `bench` say to each other: orders, what they cost, and the figures of both sides.

Decides what lies inside each figure; how they are taken is in `bench_receiver` and `bench_sender`. CPU is
`time.process_time` of the process that does the work: user and system, so the kernel's part of a receive or send, and
a library's own threads, are in it. Times taken in one process and compared in another are those of CLOCK_MONOTONIC,
which Linux keeps for all processes alike.

- *receive CPU*, datagrams: from a burst waiting in the socket buffer to its last datagram, event loop included. It
  waits there before the clock starts, so that the loop neither idles nor loses any.
- *receive CPU*, everything else, where what is sent does not wait as a whole: from before the first byte to after the
  last message, the loop's idle rounds included.
- In both, for cachebus that is the node's own path: transport, subscriber, codec (authenticity, replay, form), accept
  policy, cache.
- *send CPU*: from answers given to the publisher to their having left this process: cache, share policy, noise
  control, outlet, codec, transport; per answer sent, so those that noise control held back are paid for by the others.
- *latency*: from an answer given to the publisher to its being in the subscriber's cache, at a fixed rate.
- *overload*: composed messages sent back to back as fast as one process can; what the other took of them, how fast.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import uvloop

from cachebus.cli.bench_lanes import Plan
from cachebus.config.transports import CodecName
from cachebus.errors import CachebusError
from cachebus.links import Owner
from cachebus.wire.tsig import Key

ALGORITHM = "hmac-sha256"
KEY_NAME = "bench."
CLUSTER = "bench"
PATIENCE = 10.0
"""Seconds to wait for the first message of a run."""
PROBE_PATIENCE = 0.3
"""Likewise where nobody may be connected yet, and another one is sent soon."""
_PAGE = os.sysconf("SC_PAGE_SIZE")
_STATM = Path("/proc/self/statm")

Named = tuple[bytes, int]
"""Name and type of an answer."""


class Row(Enum):
    """Who receives."""

    CACHEBUS = "cachebus"
    TIMED = "timed"
    """cachebus, and the time at which each answer was in the cache."""
    SINK = "sink"
    """The transport alone: takes what only its sender is measured with."""
    FLOOR = "floor"
    DNSPYTHON = "dnspython"


class Order(Enum):
    """What the sending process does with a range of the trace."""

    COMPOSE = "compose"
    """Only compose and remember."""
    REPEAT = "repeat"
    """Send what is remembered through the transport."""
    FLOOR = "floor"
    """Send what is remembered over the bare library, each with a MAC where its codec has one, to row FLOOR."""
    AGAIN = "again"
    """Send the answers as TSIG-signed datagrams to row DNSPYTHON."""
    DNSPYTHON = "dnspython"
    """Compose the answers with dnspython, and send them to row DNSPYTHON's port, where nobody looks at them."""
    PUBLISH = "publish"
    """Publish the answers."""
    PACED = "paced"
    """Publish the answers one by one, at `Job.rate`."""
    DISTINCT = "distinct"
    """Compose and send a range of the trace in which every answer is another."""
    PROBE = "probe"
    """Send one message through the transport, and one over the bare library."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What all processes have to know."""

    codec: CodecName
    plan: Plan
    bare: str
    """Kind of the floor's ends, as `bench_bare` has them; empty: there is no floor."""
    datagrams: bool
    dnspython: str
    """`HOST:PORT` where dnspython listens, at the first subscriber."""
    answers: int
    rate: float
    """Answers per second when latency is measured."""
    secret: bytes

    def owner(self, node: str) -> Owner:
        """On whose behalf a link is made."""
        return Owner(node=node, cluster=CLUSTER, keys={"bench": Key.make(KEY_NAME, ALGORITHM, self.secret)})


class Take(NamedTuple):
    """Order to a receiving process: receive on a row."""

    row: Row
    wanted: int | None
    """Messages; None: until no more come."""
    waiting: bool = False
    """They wait in the socket already. Unless so, the process says that it is ready, and they are sent then."""
    patience: float = PATIENCE
    """Seconds to wait for the first of them."""


class Received(NamedTuple):
    """What a receiver took."""

    messages: int
    accepted: int = 0
    """Answers that reached the cache, where the row has one."""
    arrived: int = 0
    """Answers that were judged, whatever came of it."""
    cpu: float = 0.0
    """Seconds."""
    seconds: float = 0.0
    """From the first message to the last."""
    memory: int = 0
    """Bytes by which the process grew."""
    arrivals: dict[Named, float] = {}  # noqa: RUF012 - a default that nobody changes
    """Row TIMED: when each answer was in the cache."""


class Sent(NamedTuple):
    """What sending cost."""

    messages: int
    answers: int
    octets: int = 0
    """On the wire, to one subscriber, without what the kernel or a library puts around them."""
    cpu: float = 0.0
    """Seconds."""
    memory: int = 0
    """Bytes by which the process grew."""
    departures: dict[Named, float] = {}  # noqa: RUF012 - likewise
    """Order PACED: when each answer was given to the publisher."""


def resident() -> int:
    """Bytes of memory that this process holds now."""
    return int(_STATM.read_text().split()[1]) * _PAGE


def run_peer(pipe: Connection, body: Coroutine[Any, Any, None]) -> None:
    """Run a process; what goes wrong in an expected way is told to the parent instead of a traceback."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to all; the parent ends the others
    logging.disable(logging.WARNING)  # that a peer is not there yet; one that stays away ends the run
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(body)
    except CachebusError as error:
        pipe.send(error)


async def told(pipe: Connection, job: Job) -> Any:
    """The next order; None when there is none, or nobody to give any.

    Meanwhile links live, handshakes and keep-alives among them; but datagrams are left to wait in their socket.
    """
    if job.datagrams:
        return _told(pipe)
    return await asyncio.get_running_loop().run_in_executor(None, _told, pipe)


def _told(pipe: Connection) -> Any:
    with suppress(EOFError):
        return pipe.recv()
    return None


def receiver_name(number: int) -> str:
    """Node name of a receiving process."""
    return f"receiver-{number}"
