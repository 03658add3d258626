"""For authors of transports and their tests: a clock moved by hand, a network in memory, and the transport contract.

Decides what every transport has to do, whatever it runs over. Knows no particular transport and no test framework: a
check is a coroutine function that raises `AssertionError`. With pytest, a plug-in's whole contract test is

    @pytest.mark.parametrize("check", transport_contract(), ids=lambda check: check.__name__)
    async def test_contract(check):
        await check(TransportBed(factory=MyTransport, settings=my_settings))
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple, Self

from cachebus.errors import ConfigError, TransportError
from cachebus.ports import Receive, Sender, Transport, TransportFactory, TransportSettings

MAX_PENDING = 4096
"""Default bound of a memory network's queue: more than one burst of a test, far less than would hide a runaway."""
MEMORY_MAX_SIZE = 65507
"""Largest datagram of a memory network: that of UDP over IPv4."""


class ManualClock:
    """A wall clock that moves only when told; a `Clock` of `cachebus.ports`."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now
        """Seconds since the epoch. The default lies in January 2027."""

    def __call__(self) -> float:
        """The time it shows."""
        return self.now

    def advance(self, seconds: float) -> float:
        """Move on by `seconds` (backwards if negative, as a clock that is set) and give the new time."""
        self.now += seconds
        return self.now


class Datagram(NamedTuple):
    """One datagram on its way."""

    sender: str
    receiver: str
    data: bytes


class MemoryNetwork:
    """Joins `MemoryTransport`s: what one sends waits here until the test delivers, drops, repeats or reorders it.

    With `automatic=True` it delivers by itself on the next turn of the event loop. It holds at most `limit` datagrams;
    one more is dropped and counted, as a full socket buffer would.
    """

    def __init__(self, *, automatic: bool = False, limit: int = MAX_PENDING) -> None:
        if limit < 1:
            raise ValueError("limit: at least 1")
        self.automatic = automatic
        self.limit = limit
        self.pending: deque[Datagram] = deque()
        """On their way, oldest first."""
        self.lost = 0
        """Dropped because the queue was full, or because nobody listens at the address."""
        self._members: dict[str, MemoryTransport] = {}
        self._scheduled = False

    def transport(self, settings: TransportSettings, receive: Receive) -> MemoryTransport:
        """The `TransportFactory` of this network. Addresses are any text; a transport without `listen` only sends."""
        return MemoryTransport(settings, receive, network=self)

    def deliver(self, count: int | None = None) -> int:
        """Hand over the oldest `count` datagrams, or all that wait now; give how many were handed to a listener."""
        delivered = 0
        for _ in range(len(self.pending) if count is None else min(count, len(self.pending))):
            delivered += self._hand_over(self.pending.popleft())
        return delivered

    def drop(self, index: int = 0) -> Datagram:
        """Lose the datagram at `index` and give it. Raises `IndexError` when there is none."""
        dropped = self.pending[index]
        del self.pending[index]
        return dropped

    def duplicate(self, index: int = 0) -> None:
        """Put a copy of the datagram at `index` at the end of the queue."""
        self.pending.append(self.pending[index])

    def reorder(self, order: Sequence[int]) -> None:
        """Put the waiting datagrams in a new order: `order[0]` is the index of the one to come first, and so on.

        Raises `ValueError` unless `order` names every waiting datagram once.
        """
        if sorted(order) != list(range(len(self.pending))):
            raise ValueError("order: is not a permutation of the waiting datagrams")
        waiting = list(self.pending)
        self.pending = deque(waiting[index] for index in order)

    def join(self, address: str, member: MemoryTransport) -> None:
        """Let `member` listen at `address`. Raises `TransportError` when another does."""
        if address in self._members:
            raise TransportError(f"address {address} is in use")
        self._members[address] = member

    def leave(self, address: str) -> None:
        """Let nobody listen at `address`."""
        self._members.pop(address, None)

    def carry(self, datagram: Datagram) -> bool:
        """Take one datagram to deliver; False when the queue is full and it is lost."""
        if len(self.pending) >= self.limit:
            self.lost += 1
            return False
        self.pending.append(datagram)
        if self.automatic and not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._deliver_automatically)
        return True

    def _deliver_automatically(self) -> None:
        self._scheduled = False
        self.deliver()

    def _hand_over(self, datagram: Datagram) -> bool:
        member = self._members.get(datagram.receiver)
        if member is None:
            self.lost += 1
            return False
        member.take(datagram)
        return True


class MemoryTransport:
    """A transport without sockets: its peers are the members of one `MemoryNetwork`."""

    def __init__(self, settings: TransportSettings, receive: Receive, *, network: MemoryNetwork) -> None:
        if settings.listen is None and not settings.peers:
            raise ConfigError("a memory transport needs `listen`, `peers` or both")
        self._address = settings.listen
        self._sender = settings.listen or settings.node
        self._peers = tuple(dict.fromkeys(settings.peers))
        self._receive = receive
        self._network = network
        self._running = False
        self._sent = self._received = self._dropped = 0

    async def __aenter__(self) -> Self:
        if self._address is not None:
            self._network.join(self._address, self)
        self._running = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running = False
        if self._address is not None:
            self._network.leave(self._address)

    def send(self, data: bytes) -> None:
        """Put one datagram per peer on the network; too large, not running or no room: dropped and counted."""
        for peer in self._peers:
            fits = self._running and len(data) <= MEMORY_MAX_SIZE
            if fits and self._network.carry(Datagram(self._sender, peer, data)):
                self._sent += 1
            else:
                self._dropped += 1

    async def flush(self) -> None:
        """Return at once: what was sent is on the network."""

    def statistics(self) -> dict[str, int]:
        """`sent` and `received` datagrams, and those `dropped` on sending."""
        return {"sent": self._sent, "received": self._received, "dropped": self._dropped}

    def take(self, datagram: Datagram) -> None:
        """Receive one datagram; the network calls this."""
        self._received += 1
        self._receive(datagram.data, datagram.sender)


# The transport contract


@dataclass(frozen=True, slots=True, kw_only=True)
class TransportBed:
    """What the contract has to know of a transport. A check uses one bed, and runs at most four nodes on it."""

    factory: TransportFactory
    settings: Callable[[int, int], TransportSettings]
    """`settings(index, count)`: of node `index` when `count` nodes run, each with all the others as peers. Asked twice
    for one bed, it gives the same: a node that restarts comes back at its address."""
    ordered: bool = True
    """One sender's datagrams arrive in the order of sending when none is lost. False where the link may reorder."""
    max_size: int = 1232
    """Largest datagram that it carries."""
    tells_senders: bool = True
    """Each node shows as another sender. False where something in between, as a hub, speaks for all."""
    window: int = 64
    """Datagrams that may be on their way at once without loss."""
    deadline: float = 5.0
    """Seconds until something awaited must have happened; also the time in which a stream must resume."""
    unauthenticated: Callable[[], TransportSettings] | None = None
    """Settings that leave out whatever authenticates the link. None where the codec alone authenticates."""
    garbage: Callable[[TransportSettings], Awaitable[None]] | None = None
    """Sends bytes that mean nothing to where the node of these settings listens. None where any bytes are a message."""
    stalled: Callable[[TransportSettings], AbstractAsyncContextManager[object]] | None = None
    """Stands in for the node of these settings, accepts links and never reads from them. None where nobody can."""


Check = Callable[[TransportBed], Awaitable[None]]
"""One demand of the contract: passes, or raises `AssertionError`."""


class _Inbox:
    """What one node received."""

    def __init__(self) -> None:
        self.items: list[tuple[bytes, Sender]] = []
        self.reached = False
        """A probe came: the link stands. Probes are no items, as several may be on their way."""

    def __call__(self, data: bytes, sender: Sender) -> None:
        if data == _PROBE:
            self.reached = True
        else:
            self.items.append((data, sender))

    @property
    def data(self) -> list[bytes]:
        return [data for data, _ in self.items]


class _Node(NamedTuple):
    transport: Transport
    inbox: _Inbox


def transport_contract() -> tuple[Check, ...]:
    """Every check; run each with a fresh bed."""
    return (
        starts_and_stops,
        delivers_the_same_bytes_to_every_peer,
        keeps_one_senders_order,
        carries_any_bytes,
        names_the_sender,
        drops_what_is_too_large,
        survives_a_flood,
        flush_comes_before_stop,
        dead_peer_disturbs_nobody,
        stream_resumes_after_a_restart,
        delivers_ten_thousand_once,
        counts_in_plain_integers,
        is_silent_when_stopped,
        stops_with_data_waiting,
        is_authenticated_by_default,
        garbage_disturbs_nobody,
        stalled_peer_disturbs_nobody,
    )


async def starts_and_stops(bed: TransportBed) -> None:
    """Entered and left three times over the same settings, it leaves no task behind."""
    before = asyncio.all_tasks()
    for _ in range(3):
        async with _nodes(bed, 2):
            pass
    await _until(lambda: asyncio.all_tasks() <= before, bed, "tasks are left behind")


async def delivers_the_same_bytes_to_every_peer(bed: TransportBed) -> None:
    """With four nodes, the three others get each datagram, byte for byte."""
    sent = _numbered(20)
    async with _nodes(bed, 4) as (first, *others):
        await _send_paced(bed, first, sent, others)
        for other in others:
            assert Counter(other.inbox.data) == Counter(sent), "a peer got other bytes than were sent"


async def keeps_one_senders_order(bed: TransportBed) -> None:
    """A transport that declares order keeps it; one that does not may deliver in any."""
    sent = _numbered(500)
    async with _nodes(bed, 2) as (first, second):
        await _send_paced(bed, first, sent, [second])
        if bed.ordered:
            assert second.inbox.data == sent, "datagrams came in another order than they were sent"


async def carries_any_bytes(bed: TransportBed) -> None:
    """Whatever the bytes, they arrive as they are: a transport does not look into them."""
    every_byte = bytes(range(256))
    sent = [b"\0", b"\xff", b"\n", every_byte, b"{}", b"\r\n\r\n"]
    sent += [b"\0" * bed.max_size, (every_byte * 257)[: bed.max_size]]
    async with _nodes(bed, 2) as (first, second):
        await _send_paced(bed, first, sent, [second])
        assert Counter(second.inbox.data) == Counter(sent), "bytes were changed, cut or interpreted"


async def names_the_sender(bed: TransportBed) -> None:
    """All datagrams of one node show the same sender, those of different nodes different ones (`tells_senders`)."""
    async with _nodes(bed, 3) as (first, second, receiver):
        for data in _numbered(5):
            first.transport.send(b"first" + data)
            second.transport.send(b"second" + data)
        await _until(lambda: len(receiver.inbox.items) >= 10, bed, "datagrams did not arrive")
        senders = {(data[:5], sender) for data, sender in receiver.inbox.items}
        assert len(senders) == 2, "a sender has several names"
        if bed.tells_senders:
            assert len({sender for _, sender in senders}) == 2, "two senders have the same name"


async def drops_what_is_too_large(bed: TransportBed) -> None:
    """A datagram beyond what it carries is dropped and counted without an exception; the next one arrives."""
    async with _nodes(bed, 2) as (first, second):
        before = _failures(first.transport)
        first.transport.send(bytes(max(70_000, bed.max_size + 1)))
        first.transport.send(b"small")
        await _until(lambda: b"small" in second.inbox.data, bed, "nothing arrived after a datagram that was too large")
        assert second.inbox.data == [b"small"], "a datagram that was too large arrived, or a part of it"
        assert _failures(first.transport) > before, "a datagram that was too large was not counted"


async def survives_a_flood(bed: TransportBed) -> None:
    """More than fits, sent while nobody reads: no exception, no wait, nothing changed or repeated; then it works on."""
    sent = _flood(bed)
    async with _nodes(bed, 2) as (first, second):
        started = time.perf_counter()
        for data in sent:
            first.transport.send(data)
        assert time.perf_counter() - started < bed.deadline, "send waited"
        await _send_until_received(bed, first, second, b"after")
        arrived = Counter(data for data in second.inbox.data if data != b"after")
        assert arrived <= Counter(sent), "datagrams were changed or repeated"


async def flush_comes_before_stop(bed: TransportBed) -> None:
    """What was sent before `flush` arrives, even if the sender stops right after it."""
    sent = _numbered(bed.window)
    async with _nodes(bed, 2, only=1) as (second,):
        async with bed.factory(bed.settings(0, 2), _Inbox()) as first:
            await _settle(bed, first, second)
            for data in sent:
                first.send(data)
            await asyncio.wait_for(first.flush(), bed.deadline)
        await _until(lambda: set(second.inbox.data) >= set(sent), bed, "flush returned before everything had left")


async def dead_peer_disturbs_nobody(bed: TransportBed) -> None:
    """With one peer that never ran, sending goes on without exceptions, and the living peer gets everything."""
    sent = _numbered(200)
    async with AsyncExitStack() as stack:
        inbox = _Inbox()
        living = _Node(await stack.enter_async_context(bed.factory(bed.settings(1, 3), inbox)), inbox)
        first = await stack.enter_async_context(bed.factory(bed.settings(0, 3), _Inbox()))
        await _settle(bed, first, living)
        await _send_paced(bed, _Node(first, _Inbox()), sent, [living])
        assert Counter(inbox.data) == Counter(sent), "a dead peer cost the living one datagrams"


async def stream_resumes_after_a_restart(bed: TransportBed) -> None:
    """Receiver and sender may each stop and come back at the same address: the stream goes on by itself."""
    async with _nodes(bed, 2, only=0) as (first,):
        for name in (b"once", b"twice"):
            async with _nodes(bed, 2, only=1) as (second,):
                await _send_until_received(bed, first, second, name)
            first.transport.send(b"into the void")
    async with _nodes(bed, 2) as (first, second):
        await _send_until_received(bed, first, second, b"both new")


async def delivers_ten_thousand_once(bed: TransportBed) -> None:
    """10,000 datagrams, sent no faster than they are taken, arrive once each."""
    sent = _numbered(10_000)
    async with _nodes(bed, 2) as (first, second):
        await _send_paced(bed, first, sent, [second])
        assert len(second.inbox.data) == len(set(second.inbox.data)), "datagrams were repeated"
        assert set(second.inbox.data) == set(sent), "datagrams were changed"


async def counts_in_plain_integers(bed: TransportBed) -> None:
    """`statistics` gives plain integers by snake_case name, `sent` and `received` among them, and they grow."""
    async with _nodes(bed, 2) as (first, second):
        before = dict(first.transport.statistics()), dict(second.transport.statistics())
        await _send_paced(bed, first, _numbered(10), [second])
        after = first.transport.statistics(), second.transport.statistics()
        for name, value in (*after[0].items(), *after[1].items()):
            assert type(value) is int, f"{name} is not an int"
            assert re.fullmatch("[a-z][a-z0-9_]*", name), f"{name} is not in snake_case"
        assert after[0]["sent"] >= before[0]["sent"] + 10, "`sent` did not grow by what was sent"
        assert after[1]["received"] >= before[1]["received"] + 10, "`received` did not grow by what came"


async def is_silent_when_stopped(bed: TransportBed) -> None:
    """Before it is entered and after it is left, `send` neither raises nor sends, and nothing is received any more."""
    async with _nodes(bed, 2, only=1) as (second,):
        inbox = _Inbox()
        first = bed.factory(bed.settings(0, 2), inbox)
        first.send(b"too early")
        async with first:
            await _send_until_received(bed, second, _Node(first, inbox), b"to the first")
        first.send(b"too late")
        received = len(inbox.items)
        async with bed.factory(bed.settings(0, 2), _Inbox()) as again:
            await _settle(bed, again, second)
        assert not {b"too early", b"too late"} & set(second.inbox.data), "it sent while it was not running"
        assert len(inbox.items) == received, "it received after it had stopped"


async def stops_with_data_waiting(bed: TransportBed) -> None:
    """Left with much to send, and one peer dead, it ends in time; what arrived is unchanged, once each, in order."""
    sent = _flood(bed)
    async with _nodes(bed, 3, only=1) as (second,):
        async with bed.factory(bed.settings(0, 3), _Inbox()) as first:
            await _settle(bed, first, second)
            for data in sent:
                first.send(data)
            started = time.monotonic()
        assert time.monotonic() - started < bed.deadline, "it did not stop in time"
        await asyncio.sleep(10 * _STEP)
        arrived = second.inbox.data
        assert Counter(arrived) <= Counter(sent), "datagrams were changed or repeated"
        assert not bed.ordered or arrived == sorted(arrived), "datagrams came in another order than they were sent"


async def is_authenticated_by_default(bed: TransportBed) -> None:
    """Settings without what authenticates the link are refused when it is made."""
    if bed.unauthenticated is not None:
        with suppress(ConfigError):
            made = bed.factory(bed.unauthenticated(), _Inbox())
            raise AssertionError(f"{made!r} was made without authentication")


async def garbage_disturbs_nobody(bed: TransportBed) -> None:
    """Bytes that mean nothing are neither delivered nor in the way of what the peers send."""
    if bed.garbage is None:
        return
    sent = _numbered(200)
    async with _nodes(bed, 2) as (first, second):
        for part in (sent[:100], sent[100:]):
            await bed.garbage(bed.settings(1, 2))
            await _send_paced(bed, first, part, [second])
        assert Counter(second.inbox.data) == Counter(sent), "garbage was delivered, or cost datagrams"


async def stalled_peer_disturbs_nobody(bed: TransportBed) -> None:
    """A peer that never reads costs the others nothing and the sender no wait; what it misses is counted."""
    if bed.stalled is None:
        return
    flood = _flood(bed)
    async with AsyncExitStack() as stack:
        inbox = _Inbox()
        living = _Node(await stack.enter_async_context(bed.factory(bed.settings(1, 3), inbox)), inbox)
        first = await stack.enter_async_context(bed.factory(bed.settings(0, 3), _Inbox()))
        await stack.enter_async_context(bed.stalled(bed.settings(2, 3)))
        await _settle(bed, first, living)
        before = _failures(first)
        await _send_paced(bed, _Node(first, _Inbox()), flood, [living])
        assert Counter(inbox.data) == Counter(flood), "a peer that does not read cost the others datagrams"
        assert _failures(first) > before, "what the peer that does not read missed is not counted"


_FLOOD = 20_000
_FLOOD_SIZE = 1232
"""Datagrams of the flood and their bytes: 25 MB are more than socket buffers and queues should take."""
_STEP = 0.002
"""Seconds between two looks at a condition."""
_PROBE = b"probe"


@asynccontextmanager
async def _nodes(bed: TransportBed, count: int, *, only: int | None = None) -> AsyncIterator[list[_Node]]:
    """Run the nodes of a network of `count`, all or `only` one of them; give them once they reach each other."""
    async with AsyncExitStack() as stack:
        nodes = []
        for index in range(count) if only is None else (only,):
            inbox = _Inbox()
            transport = await stack.enter_async_context(bed.factory(bed.settings(index, count), inbox))
            nodes.append(_Node(transport, inbox))
        for first in nodes:
            for second in nodes:
                if first is not second:
                    await _settle(bed, first.transport, second)
        yield nodes


async def _settle(bed: TransportBed, sender: Transport, receiver: _Node) -> None:
    """Send until something arrives: a link that has to connect first gets the time to."""
    receiver.inbox.reached = False
    await _send_until(lambda: receiver.inbox.reached, bed, sender, _PROBE)


async def _send_until_received(bed: TransportBed, sender: _Node, receiver: _Node, data: bytes) -> None:
    await _send_until(lambda: data in receiver.inbox.data, bed, sender.transport, data)


async def _send_until(condition: Callable[[], bool], bed: TransportBed, sender: Transport, data: bytes) -> None:
    end = time.monotonic() + bed.deadline
    while not condition():
        assert time.monotonic() < end, f"nothing arrived within {bed.deadline} s"
        sender.send(data)
        await asyncio.sleep(10 * _STEP)


async def _send_paced(bed: TransportBed, sender: _Node, sent: Sequence[bytes], receivers: Sequence[_Node]) -> None:
    """Send with at most `window` datagrams on their way; give up when they do not arrive."""
    start = [len(receiver.inbox.items) for receiver in receivers]
    for position in range(0, len(sent), bed.window):
        window = sent[position : position + bed.window]
        for data in window:
            sender.transport.send(data)
        wanted = position + len(window)
        await _until(
            lambda: all(len(node.inbox.items) >= begin + wanted for begin, node in zip(start, receivers, strict=True)),  # noqa: B023
            bed,
            "datagrams were lost",
        )


async def _until(condition: Callable[[], bool], bed: TransportBed, complaint: str) -> None:
    end = time.monotonic() + bed.deadline
    while not condition():
        assert time.monotonic() < end, complaint
        await asyncio.sleep(_STEP)


def _numbered(count: int) -> list[bytes]:
    return [b"datagram %06d" % number for number in range(count)]


def _flood(bed: TransportBed) -> list[bytes]:
    noise = random.Random(1)  # so that compressing does not make them less
    return [data + noise.randbytes(min(bed.max_size, _FLOOD_SIZE) - len(data)) for data in _numbered(_FLOOD)]


def _failures(transport: Transport) -> int:
    """All that a transport counts but what went well and what it holds."""
    return sum(
        value
        for name, value in transport.statistics().items()
        if not name.startswith(("sent", "received")) and not name.endswith("bytes")
    )
