"""A node as a process of its own that publishes and reports on command; a relay that spoils what it passes on.

Not a test module: `bridge_inside` starts it in a network namespace. Commands come by standard input, one per line, and
each is answered by one line of JSON.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from cachebus import config
from cachebus.answer import Answer, Evidence, RRset
from cachebus.node import Node
from cachebus.ports import Sender, TransportSettings
from cachebus.presentation import name_from_text
from cachebus.registry import load_transport
from cachebus.wire.message import pack

A = 1
TTL = 600
PACE = 16, 0.02
"""Answers, and seconds between them: far below what would fill a socket buffer."""


def answers(node: str, first: int, count: int, now: float) -> Iterator[Answer]:
    """Answers whose RDATA follows from their name, so that every other RDATA is a wrong one."""
    for number in range(first, first + count):
        owner = name_from_text(f"n{number}.{node}.corp-bus.org.")
        rrset = RRset(owner, A, TTL, pack(A, TTL, [address_of(owner)]))
        yield Answer(owner, A, (rrset,), Evidence.CONFIRMED, node, now)


def address_of(owner: bytes) -> bytes:
    """The one address of a name, in 203.0.113.0/24."""
    return b"\xcb\x00\x71" + hashlib.sha256(owner).digest()[:1]


async def publish(node: Node, name: str, first: int, count: int) -> dict[str, int]:
    publisher = node._parts.publisher
    step, pause = PACE
    for start in range(first, first + count, step):
        for answer in answers(name, start, min(step, first + count - start), time.time()):
            publisher.publish(answer)
        await asyncio.sleep(pause)
    return {"published": count}


def held(node: Node, name: str, first: int, count: int) -> dict[str, int]:
    """How many of another node's answers are in the cache, and how many of these are not what was published."""
    now = time.time()
    found = wrong = 0
    for answer in answers(name, first, count, now):
        cached = node._keep.cache.get(answer.qname, A, now)
        if cached is not None:
            found += 1
            rdata = cached.rrset.rrs[12:]
            wrong += rdata != address_of(answer.qname) or cached.rrset.ttl > TTL or len(cached.rrset.rrs) != 16
    return {"held": found, "wrong": wrong, "entries": node._keep.cache.statistics()["entries"]}


async def run_node(path: Path) -> None:
    configuration = config.load(path)
    async with Node(configuration) as node:
        lines = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
        tell({"up": True})
        while line := await lines.readline():
            match line.decode().split():
                case ["publish", first, count]:
                    tell(await publish(node, configuration.node, int(first), int(count)))
                case ["held", name, first, count]:
                    tell(held(node, name, int(first), int(count)))
                case ["report"]:
                    tell(node.status()["transports"]["lan"])


async def run_relay(text: str) -> None:
    """Pass on what comes by one transport to another: every fifth twice, and out of order; all by a fixed seed."""
    given = json.loads(text)
    rng = random.Random(given["seed"])
    waiting: list[bytes] = []
    duplicates = passed = 0

    def receive(data: bytes, sender: Sender) -> None:
        nonlocal duplicates, passed
        passed += 1
        waiting.append(data)
        if rng.random() < 0.2:
            duplicates += 1
            waiting.append(data)
        while len(waiting) > 24:
            outgoing.send(waiting.pop(rng.randrange(len(waiting))))

    def settings(listen: str | None, peers: list[str]) -> TransportSettings:
        return TransportSettings(
            name="relay", node="relay", cluster="x", listen=listen, peers=tuple(peers), options=given.get("options", {})
        )

    factory = load_transport(given["type"])
    outgoing = factory(settings(None, [given["to"]]), lambda data, sender: None)
    async with outgoing, factory(settings(given["from"], []), receive):
        lines = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
        tell({"up": True})
        while await lines.readline():
            while waiting:
                outgoing.send(waiting.pop(rng.randrange(len(waiting))))
            tell({"passed": passed, "duplicates": duplicates})


def tell(value: object) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    role, argument = sys.argv[1:]
    asyncio.run(run_node(Path(argument)) if role == "node" else run_relay(argument))
