"""The course of one measurement: which row has its turn when, and how often.

Decides nothing about what a figure holds (`bench_peers`) or how it is shown (`bench_table`). The trace is cut into
rounds. In each, the same messages go to every row, turn by turn, so that whatever else the machine does meets all rows
alike; the figure of a row is the median of its rounds.
"""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from cachebus.cli.bench_lanes import HOST, BenchError, Lane, surroundings
from cachebus.cli.bench_peers import PATIENCE, PROBE_PATIENCE, Job, Order, Received, Row, Sent, Take
from cachebus.cli.bench_receiver import receive
from cachebus.cli.bench_sender import send
from cachebus.cli.demo_cluster import free_ports
from cachebus.errors import CachebusError

ROUNDS = 5
"""Enough for a median that one disturbed round does not move."""
BURST_OCTETS = 6 * 1024 * 1024
"""Socket buffer that a burst of datagrams may fill: three quarters of what the transport asks for by default, as the
kernel doubles what it grants and charges its own structures to it."""
DATAGRAM_COST = 2304
"""Bytes of receive buffer that Linux charges for a datagram of up to 1232 bytes, its own structures included."""
BURST = 2000
"""Datagrams of one turn: some milliseconds of work."""
BURST_BATCHED = 20_000
"""Answers of one turn where many go in a message: so small a cost of each takes more of them to be seen."""
DNSPYTHON_SHARE = 20
"""dnspython gets one answer in so many: it needs that much longer for each."""
MAX_DISTINCT = 10_000
"""Answers of the all-distinct trace, of which only the bytes are of interest."""
MAX_LATENCY_ANSWERS = 10_000
"""Two seconds at the usual rate."""
ANSWER_TIME = 120.0
"""Seconds to wait for an answer of a process before the run is given up."""
JOIN = 15.0
"""Seconds in which the processes have to find each other over the transport."""


@dataclass(slots=True)
class Cost:
    """CPU of one row on one side, over one round."""

    answers: int = 0
    cpu: float = 0.0

    def add(self, answers: int, cpu: float) -> None:
        """One burst more; `cpu` in seconds."""
        self.answers += answers
        self.cpu += cpu


@dataclass(slots=True)
class Figures:
    """CPU microseconds per answer of one row, a figure for each round."""

    send: list[float] = field(default_factory=list)
    receive: list[float] = field(default_factory=list)

    def close_round(self, sending: Cost, receiving: Cost) -> None:
        """Add a round's figures."""
        self.send.append(1e6 * sending.cpu / max(1, sending.answers))
        self.receive.append(1e6 * receiving.cpu / max(1, receiving.answers))

    @property
    def medians(self) -> tuple[float, float]:
        """Of sending and of receiving."""
        return statistics.median(self.send), statistics.median(self.receive)


class Flood(NamedTuple):
    """What became of messages sent back to back."""

    sent: int
    """Answers, to each subscriber."""
    lost: int
    """Answers that did not arrive, of all subscribers."""
    per_second: float
    """Answers that the median subscriber took."""


class Measured(NamedTuple):
    """All that a run found."""

    rows: dict[Row, Figures]
    bytes_per_answer: float
    bytes_distinct: float
    """Per answer of a trace without any repeated."""
    latencies: list[float]
    """Seconds, in ascending order, of all subscribers."""
    unarrived: int
    """Answers of the latency run that did not arrive."""
    flood: Flood
    memory: tuple[int, int]
    """Bytes by which the sending process and a receiving one grew over the rounds."""


class Peer(NamedTuple):
    """One of the processes."""

    name: str
    pipe: Connection

    def tell(self, message: object) -> None:
        try:
            self.pipe.send(message)
        except OSError as error:
            raise BenchError(f"the {self.name} process is gone") from error

    def answer(self, patience: float = ANSWER_TIME) -> Any:
        """What it says next, within `patience` seconds. Raises `BenchError`, or the error that it says it met."""
        try:
            if not self.pipe.poll(patience):
                raise BenchError(f"the {self.name} process does not answer")
            said = self.pipe.recv()
        except (EOFError, OSError) as error:
            raise BenchError(f"the {self.name} process is gone") from error
        if isinstance(said, CachebusError):
            raise said
        return said


def measure(lane: Lane, template: Template, progress: Callable[[str], None]) -> Measured:
    """Measure one transport. `progress` hears what comes next. Raises `BenchError`, or what a process met."""
    with tempfile.TemporaryDirectory(prefix="cachebus-bench-") as name:
        directory = Path(name)
        progress("starting")
        job = template.job(lane, directory)
        with surroundings(lane, job.plan, directory), _peers(job) as (receivers, sender):
            run = _Run(job, receivers, sender)
            run.join()
            for number in range(ROUNDS):
                progress(f"round {number + 1} of {ROUNDS}")
                run.round(job.answers * number // ROUNDS, job.answers * (number + 1) // ROUNDS)
            progress("bytes of distinct answers")
            distinct = run.distinct(min(job.answers, MAX_DISTINCT))
            progress(f"latency at {job.rate:.0f} answers per second")
            latencies, unarrived = run.latency(min(job.answers, MAX_LATENCY_ANSWERS))
            progress("overload")
            flood = run.overload(job.answers)
            return Measured(
                run.rows,
                run.octets / max(1, run.answers),
                distinct,
                latencies,
                unarrived,
                flood,
                (run.memory[0], run.memory[1]),
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """What all measurements of a run have in common."""

    answers: int
    rate: float
    secret: bytes
    subscribers: int = 1

    def job(self, lane: Lane, directory: Path) -> Job:
        """What the processes of one measurement have to know."""
        (port,) = free_ports(1)
        return Job(
            codec=lane.codec,
            plan=lane.plan(lane, self.subscribers, directory),
            bare=lane.bare,
            datagrams=lane.datagrams,
            dnspython=f"{HOST}:{port}",
            answers=self.answers,
            rate=self.rate,
            secret=self.secret,
        )


Start = Callable[..., Peer]
"""`start(name, body, job, ...)`: a process that runs `body(pipe, job, ...)`."""


@contextmanager
def processes() -> Iterator[Start]:
    """Starts processes; those that still run when it is left are ended."""
    # Spawned, not forked: each process has its own memory from the start, and nothing of the command line's.
    context = multiprocessing.get_context("spawn")
    running = []
    peers: list[Peer] = []

    def start(name: str, body: Callable[..., None], *arguments: object) -> Peer:
        ours, theirs = context.Pipe()
        process = context.Process(target=body, args=(theirs, *arguments), name=name, daemon=True)
        process.start()
        theirs.close()
        running.append(process)
        peers.append(Peer(name, ours))
        return peers[-1]

    try:
        yield start
    finally:
        for peer in peers:
            peer.pipe.close()
        for process in running:
            process.join(timeout=2)
            if process.is_alive():
                process.kill()
                process.join()


@contextmanager
def _peers(job: Job) -> Iterator[tuple[list[Peer], Peer]]:
    with processes() as start:
        receivers = [start("receiving", receive, job, number) for number in range(len(job.plan.receivers))]
        for peer in receivers:
            peer.answer()
        sender = start("sending", send, job)
        sender.answer()
        yield receivers, sender
        for peer in (*receivers, sender):
            peer.tell(None)


class _Run:
    """Tells the processes what to do."""

    def __init__(self, job: Job, receivers: Sequence[Peer], sender: Peer) -> None:
        self._job = job
        self._receivers = receivers
        self._sender = sender
        self._burst = min(BURST, BURST_OCTETS // DATAGRAM_COST) if job.datagrams else BURST_BATCHED
        rows = [Row.CACHEBUS, Row.FLOOR, Row.DNSPYTHON] if job.bare else [Row.CACHEBUS, Row.DNSPYTHON]
        self.rows = {row: Figures() for row in rows}
        self.octets = self.answers = 0
        self.memory = [0, 0]

    def join(self) -> None:
        """Wait until everybody is reached, over the transport and over the bare library. Raises `BenchError`."""
        for row in (Row.SINK, Row.FLOOR) if self._job.bare else (Row.SINK,):
            end = time.monotonic() + JOIN
            while not all(received.messages for received in self._take(row, 1, Order.PROBE)[1]):
                if time.monotonic() > end:
                    raise BenchError(f"no message of row {row.value} arrives")
        for row in self.rows:
            if row is not Row.DNSPYTHON:
                self._settle(Row.SINK if row is Row.CACHEBUS else row)

    def _settle(self, row: Row) -> None:
        for peer in self._receivers:
            peer.tell(Take(row, None, waiting=True))
        for peer in self._receivers:
            peer.answer()

    def round(self, first: int, last: int) -> None:
        """One round over a part of the trace."""
        sending = {row: Cost() for row in self.rows}
        receiving = {row: Cost() for row in self.rows}
        turns = [(Order.REPEAT, Row.CACHEBUS)]
        if self._job.bare:
            turns.append((Order.FLOOR, Row.FLOOR))
        for begin in range(first, last, self._burst):
            end = min(begin + self._burst, last)
            composed = self._order(Order.COMPOSE, begin, end)
            for order, row in turns:
                sent, received = self._take(row, composed.messages, order)
                self._check(row, sent, received)
                receiving[row].add(sent.answers * len(received), sum(one.cpu for one in received))
                if row is Row.CACHEBUS:
                    self.octets += sent.octets
                    self.answers += sent.answers
                    self.memory[1] += max(one.memory for one in received)
                else:
                    sending[row].add(sent.answers, sent.cpu)
            turns.reverse()
            sent, _ = self._take(Row.SINK, None, Order.PUBLISH, begin, end)
            sending[Row.CACHEBUS].add(sent.answers, sent.cpu)
            self.memory[0] += sent.memory
        self._dnspython(first, last, sending[Row.DNSPYTHON], receiving[Row.DNSPYTHON])
        for row, figures in self.rows.items():
            figures.close_round(sending[row], receiving[row])

    def _dnspython(self, first: int, last: int, sending: Cost, receiving: Cost) -> None:
        few = first + max(1, min(BURST, (last - first) // DNSPYTHON_SHARE))
        one = self._receivers[:1]
        sent, received = self._take(Row.DNSPYTHON, few - first, Order.AGAIN, first, few, peers=one)
        self._check(Row.DNSPYTHON, sent, received)
        receiving.add(sent.answers, received[0].cpu)
        sent, _ = self._take(Row.DNSPYTHON, few - first, Order.DNSPYTHON, first, few, peers=one)
        sending.add(sent.answers, sent.cpu)

    def distinct(self, count: int) -> float:
        """Bytes per answer where none is like another."""
        sent, _ = self._take(Row.SINK, None, Order.DISTINCT, 0, count)
        return sent.octets / max(1, sent.answers)

    def latency(self, count: int) -> tuple[list[float], int]:
        """Seconds for each answer that arrived, ascending, and how many did not."""
        sent, received = self._take(Row.TIMED, None, Order.PACED, 0, count)
        given = sent.departures
        found = [one.arrivals[key] - at for one in received for key, at in given.items() if key in one.arrivals]
        if not found:
            raise BenchError("no answer of the latency run arrived")
        return sorted(found), len(given) * len(received) - len(found)

    def overload(self, count: int) -> Flood:
        """What becomes of the whole trace when it is sent back to back."""
        composed = self._order(Order.COMPOSE, 0, count)
        sent, received = self._take(Row.CACHEBUS, composed.messages, Order.REPEAT, early=True)
        arrived = [min(one.arrived, sent.answers) for one in received]
        rates = [one / took.seconds for one, took in zip(arrived, received, strict=True) if took.seconds]
        lost = sent.answers * len(received) - sum(arrived)
        return Flood(sent.answers, lost, statistics.median(rates) if rates else 0.0)

    def _take(
        self,
        row: Row,
        wanted: int | None,
        order: Order,
        first: int = 0,
        last: int = 0,
        *,
        early: bool = False,
        peers: Sequence[Peer] = (),
    ) -> tuple[Sent, list[Received]]:
        """Let the sender follow an order, and the receivers (`peers`: only these) take on a row what comes of it.

        Where the messages are datagrams and their number is known, they wait in the socket when the clock starts,
        unless they are to be taken as they come (`early`).
        """
        peers = peers or self._receivers
        patience = PROBE_PATIENCE if order is Order.PROBE else PATIENCE
        if self._job.datagrams and wanted is not None and not early and order is not Order.PROBE:
            sent = self._order(order, first, last)
            for peer in peers:
                peer.tell(Take(row, sent.messages, waiting=True))
        else:
            for peer in peers:
                peer.tell(Take(row, wanted, patience=patience))
            for peer in peers:
                peer.answer()
            sent = self._order(order, first, last)
        return sent, [peer.answer() for peer in peers]

    def _check(self, row: Row, sent: Sent, received: Sequence[Received]) -> None:
        for one in received:
            if one.messages < sent.messages:
                raise BenchError(f"row {row.value} received {one.messages} of {sent.messages} messages")
            if row is Row.CACHEBUS and not one.accepted:
                raise BenchError("the subscriber accepted none of the answers")

    def _order(self, order: Order, first: int = 0, last: int = 0) -> Sent:
        self._sender.tell((order, first, last))
        sent: Sent = self._sender.answer()
        return sent
