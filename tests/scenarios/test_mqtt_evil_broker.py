"""A broker that alters, injects, replays, retains, reorders or relabels, and what it cannot do by that.

Two nodes with codec `batch` over a real Mosquitto; the receiver's connection runs through a relay of the test's own.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from cachebus_transports.mqtt import MqttTransport

from cachebus.answer import Answer, Refusal
from cachebus.cache import Cache
from cachebus.codecs.batch import BatchCodec, BatchCodecSettings
from cachebus.filters.policy import Policy, PolicySettings
from cachebus.history import History
from cachebus.ports import TransportSettings
from cachebus.presentation import name_from_text
from cachebus.subscriber import Subscriber
from tests.core_bed import address, key
from tests.farm.evil_broker import RETAIN, EvilBroker, Message
from tests.farm.mosquitto import Mosquitto
from tests.servers import require

pytestmark = pytest.mark.interop
CLUSTER = "home"
DEADLINE = 5.0
"""Seconds in which anything awaited has happened."""
SEED = 20261121
ENVELOPES = 60
"""Of three answers each."""
FORGERIES = {Refusal.BAD_MAC, Refusal.UNKNOWN_KEY, Refusal.WRONG_ALGORITHM, Refusal.TRUNCATED_MAC, Refusal.MALFORMED}


def make_codec(node: str, *, start: float | None = None, **more: object) -> BatchCodec:
    settings = BatchCodecSettings(node=node, cluster=CLUSTER, transport="wan", key=key(**more))  # type: ignore[arg-type]
    return BatchCodec(settings, start=time.time() - 1 if start is None else start)


def truth(number: int) -> Answer:
    """What the sender says of its name `number`."""
    return address(f"www{number}.example.com", last=number % 250 + 1, learned=time.time(), origin="a")


class Sender:
    """Node `a`."""

    def __init__(self, url: str) -> None:
        self.codec = make_codec("a")
        self.envelopes: list[bytes] = []
        settings = TransportSettings(name="wan", node="a", cluster=CLUSTER, url=url)
        self.transport = MqttTransport(settings, lambda data, sender: None)
        self._next = 0

    def send(self, envelopes: int) -> None:
        for _ in range(envelopes):
            numbers = range(self._next, self._next + 3)
            self._next += 3
            messages, left_out = self.codec.encode([truth(number) for number in numbers], time.time())
            assert len(messages) == 1
            assert not left_out
            self.envelopes += messages
            self.transport.send(messages[0])

    def restart(self) -> None:
        """Begin a new stream."""
        self.codec = make_codec("a")


class Receiver:
    """Node `b`."""

    def __init__(self, url: str, start: float | None) -> None:
        self.codec = make_codec("b", start=start)
        self.cache = Cache("b")
        self.subscriber = Subscriber(
            codec=self.codec, policy=Policy(PolicySettings()), cache=self.cache, sinks=(), history=History("b"),
            clock=time.time,
        )  # fmt: skip
        settings = TransportSettings(name="wan", node="b", cluster=CLUSTER, url=url)
        self.transport = MqttTransport(settings, self.subscriber.receive)

    @property
    def accepted(self) -> int:
        return self.subscriber.accepted

    @property
    def received(self) -> int:
        return self.subscriber.received

    def refused(self, *reasons: Refusal) -> int:
        return sum(self.subscriber.refused.get(reason, 0) for reason in reasons)

    def holds_only_the_truth(self, names: int) -> bool:
        held = 0
        for number in range(names):
            cached = self.cache.get(name_from_text(f"www{number}.example.com"), 1, time.time())
            if cached is not None:
                held += 1
                assert cached.rrset.rrs[-4:] == bytes([192, 0, 2, number % 250 + 1]), "a wrong answer was filled"
                assert cached.origin == "a", "an answer is shown as somebody else's"
        return held == self.cache.statistics()["entries"]


@pytest.fixture
def mosquitto(farm: Path) -> Iterator[Mosquitto]:
    require("mosquitto")
    with Mosquitto(farm) as broker:
        yield broker


@asynccontextmanager
async def nodes(mosquitto: Mosquitto, start: float | None = None) -> AsyncIterator[tuple[Sender, EvilBroker, Receiver]]:
    async with EvilBroker(mosquitto.port) as evil:
        sender, receiver = Sender(mosquitto.url()), Receiver(f"mqtt://127.0.0.1:{evil.port}", start)
        async with receiver.transport, sender.transport:
            for transport in (receiver.transport, sender.transport):
                await until(lambda: transport.statistics()["connections"] == 1)  # noqa: B023
            yield sender, evil, receiver


async def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, "not in time"
        await asyncio.sleep(0.01)


async def test_without_malice_everything_arrives(mosquitto: Mosquitto) -> None:
    """The bed itself: what follows would prove nothing if nothing arrived anyway."""
    async with nodes(mosquitto) as (sender, _, receiver):
        sender.send(ENVELOPES)
        await until(lambda: receiver.accepted == 3 * ENVELOPES)
        assert receiver.holds_only_the_truth(3 * ENVELOPES)
        assert receiver.subscriber.refused == {}


async def test_altered_envelopes_are_refused(mosquitto: Mosquitto) -> None:
    generator = random.Random(SEED)

    def alter(message: Message) -> Sequence[Message]:
        data = bytearray(message.payload)
        match generator.randrange(4):
            case 0:
                data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
            case 1:
                del data[generator.randrange(len(data)) :]
            case 2:
                data += generator.randbytes(generator.randrange(1, 20))
            case _:
                at = generator.randrange(len(data) - 4)
                data[at : at + 4] = generator.randbytes(4)
        return [message._replace(payload=bytes(data))]

    async with nodes(mosquitto) as (sender, evil, receiver):
        evil.mangle = alter
        sender.send(ENVELOPES)
        await until(lambda: receiver.received == ENVELOPES)
        changed = ENVELOPES  # a change to the same bytes has a chance of one in 2**32
        assert receiver.refused(*FORGERIES) == changed
        assert (receiver.accepted, receiver.cache.statistics()["entries"]) == (0, 0)
        assert receiver.codec.counters()["gaps"] == 0, "what is not authentic moves no counter of a stream"


async def test_injected_envelopes_are_refused(mosquitto: Mosquitto) -> None:
    """Noise, empty messages, and envelopes as we make them under a key of the broker's own with the right name."""
    forger = make_codec("a", secret=bytes(32))
    stranger = make_codec("a", name="evil-2026", secret=bytes(32))
    generator = random.Random(SEED)

    def inject(message: Message) -> Sequence[Message]:
        lie = [address("www0.example.com", last=66, learned=time.time(), origin="a")]
        forged = [codec.encode(lie, time.time())[0][0] for codec in (forger, stranger)]
        head = message.payload[:64]
        lies = [*forged, forger.hello(time.time()), forger.will() or b"", b"", generator.randbytes(200), head]
        return [message, *(message._replace(payload=payload) for payload in lies)]

    async with nodes(mosquitto) as (sender, evil, receiver):
        evil.mangle = inject
        sender.send(10)
        await until(lambda: receiver.received == 80)
        assert receiver.accepted == 30
        assert receiver.refused(*FORGERIES) == 70
        assert receiver.refused(Refusal.UNKNOWN_KEY) >= 10
        assert receiver.refused(Refusal.BAD_MAC) >= 30
        assert receiver.holds_only_the_truth(30)
        assert not any(peer.gone for peer in receiver.codec.presence().values()), "a forged will was believed"


async def test_replayed_envelopes_are_refused(mosquitto: Mosquitto) -> None:
    """At once, much later, and of a stream that has ended."""
    remembered: list[Message] = []

    def twice(message: Message) -> Sequence[Message]:
        remembered.append(message)
        return [message, message]

    async with nodes(mosquitto) as (sender, evil, receiver):
        evil.mangle = twice
        sender.send(20)
        await until(lambda: receiver.received == 40)
        assert (receiver.accepted, receiver.refused(Refusal.DUPLICATE)) == (60, 20)
        evil.mangle = lambda message: [message, *remembered]
        sender.send(1)
        await until(lambda: receiver.received == 61)
        assert (receiver.accepted, receiver.refused(Refusal.DUPLICATE)) == (63, 40)
        sender.restart()
        sender.send(1)
        await until(lambda: receiver.received == 82)
        assert (receiver.accepted, receiver.refused(Refusal.OLD_STREAM)) == (66, 20)
        assert receiver.holds_only_the_truth(66)
        assert receiver.codec.counters()["restarts"] == 1


async def test_what_was_sent_before_a_node_began_is_refused_when_replayed_to_it(mosquitto: Mosquitto) -> None:
    async with nodes(mosquitto) as (sender, evil, first):
        sender.send(5)
        await until(lambda: first.accepted == 15)
    old = list(sender.envelopes)
    async with nodes(mosquitto, time.time() + 0.001) as (sender, evil, second):
        evil.mangle = lambda message: [message._replace(payload=payload) for payload in old]
        sender.send(1)
        await until(lambda: second.received == 5)
        assert second.subscriber.refused == {Refusal.BEFORE_START: 5}
        assert second.cache.statistics()["entries"] == 0


async def test_retained_envelopes_do_not_reach_the_codec(mosquitto: Mosquitto) -> None:
    async with nodes(mosquitto) as (sender, evil, receiver):
        evil.mangle = lambda message: [message._replace(first=message.first | RETAIN)]
        sender.send(ENVELOPES)
        await until(lambda: receiver.transport.statistics()["retained"] == ENVELOPES)
        assert (receiver.received, receiver.cache.statistics()["entries"]) == (0, 0)
        evil.mangle = lambda message: [message]
        sender.send(1)
        await until(lambda: receiver.accepted == 3)


async def test_reordered_envelopes_are_taken_and_counted(mosquitto: Mosquitto) -> None:
    generator = random.Random(SEED)
    held: list[Message] = []
    order: list[bytes] = []

    def shuffle(message: Message) -> Sequence[Message]:
        held.append(message)
        if len(held) < 10:
            return []
        batch, held[:] = list(held), []
        generator.shuffle(batch)
        order.extend(one.payload for one in batch)
        return batch

    async with nodes(mosquitto) as (sender, evil, receiver):
        sender.send(1)
        await until(lambda: receiver.accepted == 3)
        evil.mangle = shuffle
        sender.send(ENVELOPES)
        await until(lambda: receiver.received == 1 + ENVELOPES)
        numbers = [sender.envelopes.index(payload) for payload in order]
        late = sum(number < max(numbers[:place], default=0) for place, number in enumerate(numbers))
        assert late > 10, "the relay did not reorder"
        assert receiver.accepted == 3 * (1 + ENVELOPES)
        assert {name: receiver.codec.counters()[name] for name in ("reordered", "gaps", "duplicates")} == {
            "reordered": late, "gaps": 0, "duplicates": 0,
        }  # fmt: skip
        assert receiver.holds_only_the_truth(3 * (1 + ENVELOPES))


async def test_lost_envelopes_are_counted_exactly(mosquitto: Mosquitto) -> None:
    generator = random.Random(SEED)
    lost: Counter[bool] = Counter()

    def lose(message: Message) -> Sequence[Message]:
        away = generator.random() < 0.3
        lost[away] += 1
        return [] if away else [message]

    async with nodes(mosquitto) as (sender, evil, receiver):
        sender.send(1)
        await until(lambda: receiver.accepted == 3)
        evil.mangle = lose
        sender.send(ENVELOPES)
        await until(lambda: sum(lost.values()) == ENVELOPES)
        evil.mangle = lambda message: [message]
        sender.transport.send(sender.codec.hello(time.time()))  # so that a loss at the end shows too
        await until(lambda: receiver.received == 2 + lost[False])
        assert lost[True] > 5
        assert receiver.codec.counters()["gaps"] == lost[True]
        assert receiver.holds_only_the_truth(3 * (1 + ENVELOPES))


async def test_a_topic_proves_nothing(mosquitto: Mosquitto) -> None:
    """Relabelled as another node's, an envelope is still its author's; as the receiver's own, it is dropped."""

    def relabel(name: bytes) -> Callable[[Message], Sequence[Message]]:
        def mangle(message: Message) -> Sequence[Message]:
            assert b"/v1/a" in message.head
            return [message._replace(head=message.head.replace(b"/v1/a", b"/v1/" + name))]

        return mangle

    async with nodes(mosquitto) as (sender, evil, receiver):
        evil.mangle = relabel(b"c")
        sender.send(2)
        await until(lambda: receiver.accepted == 6)
        evil.mangle = relabel(b"b")
        sender.send(2)
        await until(lambda: receiver.transport.statistics()["own"] == 2)
        assert receiver.accepted == 6
        assert receiver.holds_only_the_truth(12)


async def test_a_mixture_of_everything(mosquitto: Mosquitto) -> None:
    generator = random.Random(SEED)
    seen: list[Message] = []

    def anything(message: Message) -> Sequence[Message]:
        seen.append(message)
        data = bytearray(message.payload)
        data[generator.randrange(len(data))] ^= 0x10
        evil = [
            message._replace(payload=bytes(data)),
            message._replace(first=message.first | RETAIN),
            generator.choice(seen)._replace(first=message.first),
        ]
        mixed = [*generator.sample(evil, 2), *([] if generator.random() < 0.2 else [message])]
        generator.shuffle(mixed)
        return mixed

    async with nodes(mosquitto) as (sender, evil, receiver):
        evil.mangle = anything
        sender.send(ENVELOPES)
        await until(lambda: len(seen) == ENVELOPES)
        evil.mangle = lambda message: [message]
        sender.send(1)
        await until(
            lambda: receiver.cache.get(name_from_text(f"www{3 * ENVELOPES}.example.com"), 1, time.time()) is not None
        )
        assert receiver.holds_only_the_truth(3 * (1 + ENVELOPES))
        known = FORGERIES | {Refusal.DUPLICATE, Refusal.BETTER_KNOWN}
        assert set(receiver.subscriber.refused) <= known, "refused for a reason that is not the true one"
        assert receiver.accepted % 3 == 0
        assert receiver.accepted <= 3 * (1 + ENVELOPES), "something was filled twice"
