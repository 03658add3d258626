"""`cachebus.connect`: over real sockets of each transport, to subscribers that are slow, choosy, late or several."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import dns.message
import dns.rrset
import pytest

import cachebus
from cachebus import Answer, Evidence, Refusal, RRset
from cachebus.client import Answers, Bus
from cachebus.errors import ConfigError, MessageError, TransportError
from cachebus.presentation import name_from_text
from cachebus.wire.message import pack
from tests.servers import free_port

KEY = "cluster:hmac-sha256:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
DEADLINE = 10.0


def answer(name: str = "www.example.net", *, learned: float | None = None, ttl: int = 300) -> Answer:
    owner = name_from_text(name)
    rrset = RRset(owner, 1, ttl, pack(1, ttl, [b"\xcb\0\x71\1"]))
    return Answer(owner, 1, (rrset,), Evidence.CONFIRMED, "elsewhere", time.time() if learned is None else learned)


def response(name: str = "www.example.net") -> dns.message.Message:
    message = dns.message.make_response(dns.message.make_query(name, "A"))
    message.answer.append(dns.rrset.from_text(f"{name}.", 300, "IN", "A", "203.0.113.1"))
    return message


def udp() -> tuple[Bus, Bus]:
    """Who listens, and who sends."""
    url = f"udp://127.0.0.1:{free_port()}"
    return cachebus.connect(url, key=KEY), cachebus.connect(url, key=KEY, role="publish")


LINKS: dict[str, Callable[[int, Path], tuple[Bus, Bus]]] = {
    "udp": lambda port, _: (
        cachebus.connect(f"udp://localhost:{port}", key=KEY),
        cachebus.connect(f"udp://127.0.0.1:{port}", key=KEY, role="publish"),
    ),
    "zeromq": lambda port, _: (
        cachebus.connect(f"zmq+tcp://127.0.0.1:{port}", key=KEY),
        cachebus.connect(f"zmq+tcp://127.0.0.1:{port}?bind=1", key=KEY),
    ),
    "ipc": lambda _, path: (
        cachebus.connect(f"zmq+ipc://{path}/bus?bind=1", key=KEY, role="subscribe"),
        cachebus.connect(f"zmq+ipc://{path}/bus", key=KEY, role="publish"),
    ),
    "tcp": lambda port, _: (
        cachebus.connect(f"tcp://127.0.0.1:{port}?listen=1"),
        cachebus.connect(f"tcp://127.0.0.1:{port}"),
    ),
    "tcp-subscribed": lambda port, _: (
        cachebus.connect(f"tcp://127.0.0.1:{port}"),
        cachebus.connect(f"tcp://127.0.0.1:{port}?listen=1"),
    ),
    "tcp-batch": lambda port, _: (
        cachebus.connect(f"tcp://127.0.0.1:{port}?listen=1", codec="batch", key=KEY),
        cachebus.connect(f"tcp://127.0.0.1:{port}", codec="batch", key=KEY),
    ),
}


@pytest.mark.parametrize("name", LINKS)
async def test_what_is_published_arrives(name: str, tmp_path: Path) -> None:
    receiver, sender = LINKS[name](free_port(), tmp_path)
    async with receiver, sender:
        answers = receiver.subscribe()
        first = await reached(sender, answers)
        assert (first.name, first.type, first.ttl) == ("probe.example.net.", "A", 300)
        sent = [f"n{number}.example.net." for number in range(100)]
        for text in sent:
            assert sender.publish(answer(text)) == ()
        found = [one.name for one in await several(answers, 100)]
        assert found == sent
        assert (receiver.gaps, receiver.missed, receiver.refused) == (0, 0, {})


async def reached(sender: Bus, answers: Answers) -> Answer:
    """Publish until something arrives, and give it; nothing else is on its way then."""
    async with asyncio.timeout(DEADLINE):
        waiting = asyncio.ensure_future(anext(answers))
        number = 0
        while not waiting.done():
            sender.publish(answer("probe.example.net"))
            number += 1
            await asyncio.wait([waiting], timeout=0.2)
        await sender.flush()
        last = waiting.result()
        while True:  # the further probes
            try:
                await asyncio.wait_for(anext(answers), 0.3)
            except TimeoutError:
                return last


async def several(answers: Answers, count: int) -> list[Answer]:
    async with asyncio.timeout(DEADLINE):
        return [await anext(answers) for _ in range(count)]


async def test_wire_and_dnspython_messages_are_published() -> None:
    receiver, sender = udp()
    async with receiver, sender:
        answers = receiver.subscribe()
        assert sender.publish(response("one.example.net")) == ()
        assert sender.publish(response("two.example.net").to_wire()) == ()
        assert [one.name for one in await several(answers, 2)] == ["one.example.net.", "two.example.net."]


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        (b"", Refusal.MALFORMED),
        (dns.message.make_query("example.net", "A", id=1).to_wire(), Refusal.NOT_A_RESPONSE),
        (dns.message.make_response(dns.message.make_query("example.net", "A", id=1)).to_wire(), Refusal.NO_ANSWER),
        (answer(learned=1.0), Refusal.EXPIRED),
        (answer()._replace(qtype=255), Refusal.QTYPE),
        (answer()._replace(evidence=Evidence.VALIDATED), Refusal.RRSIG_MISSING),
    ],
)  # fmt: skip
async def test_what_is_no_answer_is_not_published(what: Answer | bytes, reason: Refusal) -> None:
    _, sender = udp()
    async with sender:
        assert sender.publish(what) == (reason,)
        assert sender.left_out == {reason: 1}
        assert sender.statistics()["published"] == 0


async def test_subscribers_are_given_what_they_asked_for() -> None:
    receiver, sender = udp()
    async with receiver, sender:
        everything, named, typed, nobody = (
            receiver.subscribe(),
            receiver.subscribe(names=["example.org"]),
            receiver.subscribe(types={"A", "TYPE65"}, origins={"127.0.0.1"}),
            receiver.subscribe(types=[28]),
        )
        for text in ("a.example.net", "b.example.org", "example.org"):
            sender.publish(answer(text))
        assert len(await several(everything, 3)) == 3
        assert [one.name for one in await several(named, 2)] == ["b.example.org.", "example.org."]
        assert len(await several(typed, 3)) == 3
        nobody.end()
        assert [one async for one in nobody] == []


async def test_a_slow_subscriber_misses_the_oldest_and_is_told() -> None:
    receiver, sender = udp()
    receiver = cachebus.connect(receiver._opening.url.text, key=KEY, waiting=10)
    async with receiver, sender:
        slow, batches = receiver.subscribe(), receiver.batches()
        for number in range(25):
            sender.publish(answer(f"n{number}.example.net"))
        async with asyncio.timeout(DEADLINE):
            while receiver.accepted < 25:
                await anext(batches)
        assert slow.missed == 15
        assert [one.name for one in await several(slow, 1)] == ["n15.example.net."]
        del slow
        assert receiver.missed == 15 + batches.missed


async def test_iteration_ends_with_the_bus() -> None:
    receiver, _ = udp()
    async with receiver:
        answers = receiver.subscribe()
        waiting = asyncio.create_task(anext(answers, None))  # type: ignore[arg-type]
        await asyncio.sleep(0)
    assert await waiting is None


async def test_answers_without_a_subscriber_are_counted() -> None:
    receiver, sender = udp()
    async with receiver, sender:
        sender.publish(answer())
        async with asyncio.timeout(DEADLINE):
            while not receiver.received:  # noqa: ASYNC110 - what is waited for is that nobody is told
                await asyncio.sleep(0.01)
        assert receiver.unclaimed == 1


async def test_a_link_that_goes_one_way_says_so() -> None:
    receiver, sender = udp()
    async with receiver, sender:
        with pytest.raises(ConfigError, match="sends nothing"):
            receiver.publish(answer())
        with pytest.raises(ConfigError, match="nothing arrives"):
            sender.subscribe()
    with pytest.raises(TransportError, match="not open"):
        sender.publish(answer())


def test_messages_are_built_when_asked_for() -> None:
    one = answer()
    message = one.to_message()
    assert message.answer[0].to_text() == "www.example.net. 300 IN A 203.0.113.1"
    assert dns.message.from_wire(one.wire) == message
    assert message.flags & dns.flags.AA
    owner = name_from_text("www.example.net")
    with pytest.raises(MessageError):
        one._replace(rrsets=(RRset(owner, 1, 300, pack(1, 300, [b"123"])),)).to_message()
    with pytest.raises(MessageError):
        one._replace(rrsets=(RRset(owner, 16, 300, pack(16, 300, [bytes([9, n]) * 200 for n in range(250)])),)).wire  # noqa: B018


@pytest.mark.parametrize(
    "arguments",
    [
        {"url": "udp://127.0.0.1:53"}, {"url": "udp://127.0.0.1:53", "key": "x"},
        {"url": "udp://127.0.0.1:53", "key": KEY, "role": "listen"},
        {"url": "udp://127.0.0.1:53", "key": KEY, "waiting": 0},
        {"url": "udp://127.0.0.1:53", "key": KEY, "accept": "good"}, {"url": "nothing", "key": KEY},
        {"url": "mqtt://127.0.0.1", "key": KEY, "password": "plain"},
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_at_once(arguments: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        cachebus.connect(**arguments)  # type: ignore[arg-type]


def test_importing_the_package_stays_light() -> None:
    code = "import sys, cachebus; print([m for m in ('pydantic', 'dns', 'asyncio', 'msgpack') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "[]\n"
