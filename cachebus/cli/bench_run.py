"""The course of one measurement: which row has its turn when, and how often.

Decides nothing about what a figure holds (`bench_peers`) or how it is shown (`bench`). The trace is cut into rounds. In
each, the same datagrams go to every row, turn by turn in bursts, so that whatever else the machine does meets all rows
alike; the figure of a row is the median of its rounds.
"""

from __future__ import annotations

import multiprocessing
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from cachebus.cli.bench_peers import Job, Order, Ready, Received, Row, Sent, receive, send
from cachebus.errors import CachebusError

ROUNDS = 5
"""Enough for a median that one disturbed round does not move."""
BURST = 2000
"""Datagrams of one turn: some milliseconds of work; fewer where the socket buffer is small."""
DNSPYTHON_SHARE = 20
"""dnspython gets one answer in so many: it needs that much longer for each."""
MAX_LATENCY_ANSWERS = 10_000
"""Two seconds at the usual rate."""
PATIENCE = 120.0
"""Seconds to wait for an answer of a process before the run is given up."""


class BenchError(CachebusError):
    """Raised when a process of the measurement dies, hangs or does not receive what it must."""


@dataclass(slots=True)
class Cost:
    """CPU of one row on one side, over one round."""

    datagrams: int = 0
    cpu: float = 0.0

    def add(self, datagrams: int, cpu: float) -> None:
        """One burst more; `cpu` in seconds."""
        self.datagrams += datagrams
        self.cpu += cpu


@dataclass(slots=True)
class Figures:
    """CPU microseconds per datagram of one row, a figure for each round."""

    send: list[float] = field(default_factory=list)
    receive: list[float] = field(default_factory=list)

    def close_round(self, sending: Cost, receiving: Cost) -> None:
        """Add a round's figures."""
        self.send.append(1e6 * sending.cpu / sending.datagrams)
        self.receive.append(1e6 * receiving.cpu / receiving.datagrams)

    @property
    def medians(self) -> tuple[float, float]:
        """Of sending and of receiving."""
        return statistics.median(self.send), statistics.median(self.receive)


class Measured(NamedTuple):
    """All that a run found."""

    rows: dict[Row, Figures]
    bytes_per_answer: float
    latencies: list[float]
    """Seconds, in ascending order."""
    unarrived: int
    """Answers of the latency run that did not arrive."""
    flood_sent: int
    flood: Received


class _Peer(NamedTuple):
    """One of the two processes."""

    name: str
    pipe: Connection

    def tell(self, message: object) -> None:
        try:
            self.pipe.send(message)
        except OSError as error:
            raise BenchError(f"the {self.name} process is gone") from error

    def answer(self) -> Any:
        """What it says next. Raises `BenchError`, or the error that it says it met."""
        try:
            if not self.pipe.poll(PATIENCE):
                raise BenchError(f"the {self.name} process does not answer")
            said = self.pipe.recv()
        except (EOFError, OSError) as error:
            raise BenchError(f"the {self.name} process is gone") from error
        if isinstance(said, CachebusError):
            raise said
        return said


def measure(job: Job, progress: Callable[[str], None]) -> Measured:
    """Measure one transport. `progress` hears what comes next. Raises `BenchError`."""
    with _peers(job) as (receiver, sender, ready):
        run = _Run(receiver, sender, min(BURST, ready.burst))
        for number in range(ROUNDS):
            progress(f"round {number + 1} of {ROUNDS}")
            run.round(job.answers * number // ROUNDS, job.answers * (number + 1) // ROUNDS)
        progress(f"latency at {job.rate:.0f} answers per second")
        latencies, unarrived = run.latency(min(job.answers, MAX_LATENCY_ANSWERS))
        progress("overload")
        flood_sent, flood = run.overload(job.answers)
        return Measured(run.rows, run.octets / run.datagrams, latencies, unarrived, flood_sent, flood)


@contextmanager
def _peers(job: Job) -> Iterator[tuple[_Peer, _Peer, Ready]]:
    # Spawned, not forked: each process has its own memory from the start, and nothing of the command line's.
    context = multiprocessing.get_context("spawn")
    processes = []

    def start(name: str, body: Callable[..., None], *arguments: object) -> _Peer:
        ours, theirs = context.Pipe()
        process = context.Process(target=body, args=(theirs, job, *arguments), name=name, daemon=True)
        process.start()
        theirs.close()
        processes.append(process)
        return _Peer(name, ours)

    peers = []
    try:
        peers.append(start("receiving", receive))
        ready = peers[0].answer()
        peers.append(start("sending", send, ready.ports))
        peers[1].answer()
        yield peers[0], peers[1], ready
        for peer in peers:
            peer.tell(None)
    finally:
        for peer in peers:
            peer.pipe.close()
        for process in processes:
            process.join(timeout=2)
            if process.is_alive():
                process.kill()
                process.join()


class _Run:
    """Tells the two processes what to do."""

    def __init__(self, receiver: _Peer, sender: _Peer, burst: int) -> None:
        self._receiver = receiver
        self._sender = sender
        self._burst = burst
        self.rows = {row: Figures() for row in (Row.CACHEBUS, Row.FLOOR, Row.DNSPYTHON)}
        self.octets = self.datagrams = 0

    def round(self, first: int, last: int) -> None:
        """One round over a part of the trace."""
        sending = {row: Cost() for row in self.rows}
        receiving = {row: Cost() for row in self.rows}
        turns = [(Order.REPEAT, Row.CACHEBUS), (Order.FLOOR, Row.FLOOR)]
        for begin in range(first, last, self._burst):
            end = min(begin + self._burst, last)
            composed = self._order(Order.COMPOSE, begin, end)
            self.octets += composed.octets
            self.datagrams += composed.datagrams
            for order, row in turns:
                sent = self._order(order, begin, end)
                if row is Row.FLOOR:
                    sending[row].add(sent.datagrams, sent.cpu)
                self._drain(row, sent.datagrams, receiving[row])
            turns.reverse()
            self._send_to_sink(Order.PUBLISH, begin, end, sending[Row.CACHEBUS])
        few = first + max(1, min(self._burst, (last - first) // DNSPYTHON_SHARE))
        self._order(Order.COMPOSE, first, few)
        sent = self._order(Order.AGAIN, first, few)
        self._drain(Row.DNSPYTHON, sent.datagrams, receiving[Row.DNSPYTHON])
        self._send_to_sink(Order.DNSPYTHON, first, few, sending[Row.DNSPYTHON])
        for row, figures in self.rows.items():
            figures.close_round(sending[row], receiving[row])

    def latency(self, count: int) -> tuple[list[float], int]:
        """Seconds for each answer that arrived, ascending, and how many did not."""
        self._receiver.tell((Row.TIMED, None))
        sent = self._order(Order.PACED, 0, count)
        received = self._receiver.answer()
        found = [
            received.arrivals[data] - given for data, given in sent.departures.items() if data in received.arrivals
        ]
        if not found:
            raise BenchError("no answer of the latency run arrived")
        return sorted(found), len(sent.departures) - len(found)

    def overload(self, count: int) -> tuple[int, Received]:
        """How many datagrams were sent back to back, and what the receiver took of them."""
        self._order(Order.COMPOSE, 0, count)
        self._receiver.tell((Row.CACHEBUS, None))
        sent = self._order(Order.REPEAT, 0, count)
        received: Received = self._receiver.answer()
        return sent.datagrams, received

    def _send_to_sink(self, order: Order, first: int, last: int, cost: Cost) -> None:
        sent = self._order(order, first, last)
        cost.add(sent.datagrams, sent.cpu)
        self._drain(Row.SINK, sent.datagrams, Cost())

    def _drain(self, row: Row, count: int, cost: Cost) -> None:
        self._receiver.tell((row, count))
        received: Received = self._receiver.answer()
        if received.datagrams < count:
            raise BenchError(f"row {row.value} received {received.datagrams} of {count} datagrams that waited for it")
        if row is Row.CACHEBUS and not received.accepted:
            raise BenchError("the subscriber accepted none of the answers")
        cost.add(received.datagrams, received.cpu)

    def _order(self, order: Order, first: int, last: int) -> Sent:
        self._sender.tell((order, first, last))
        sent: Sent = self._sender.answer()
        return sent
