"""The pipe between the node's process and a worker: both ways, bounded, and over when the other end is."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from cachebus.answer import Answer, Evidence
from cachebus.shim import pipe
from cachebus.shim.pipe import Kind, Link
from tests.unit.shim_bed import bus_answer, rrset, signature, until

NOW = 1_800_000_000.0


def answer(number: int = 0) -> Answer:
    name = f"n{number}.example."
    return bus_answer(
        rrset(name, "CNAME", 60, b"\4Edge\3cdn\0"),
        rrset("edge.cdn.", "A", 30, bytes((192, 0, 2, 1)), sigs=signature("edge.cdn.", "A")),
        evidence=Evidence.VALIDATED,
        learned=NOW + 0.25,
    )


class End:
    """One end that remembers what it heard."""

    def __init__(self, sock: socket.socket) -> None:
        self.heard: list[tuple[Kind, Any]] = []
        self.link = Link(sock, lambda kind, body: self.heard.append((kind, body)))


def ends() -> tuple[End, End]:
    ours, theirs = socket.socketpair()
    return End(ours), End(theirs)


async def test_answers_and_orders_arrive_as_they_were_sent() -> None:
    node, worker = ends()
    async with node.link, worker.link:
        node.link.offer(answer(1))
        node.link.order(Kind.FLUSH, (b"\0", True, b"", -1))
        worker.link.order(Kind.STATISTICS, {"queries": 7})
        await until(lambda: len(worker.heard) == 2 and node.heard)
        # A flush goes ahead: what is older than it is refused behind it, and must not be in the cache before.
        assert worker.heard == [(Kind.FLUSH, [b"\0", True, b"", -1]), (Kind.ANSWERS, [answer(1)])]
        assert type(worker.heard[1][1][0].evidence) is Evidence
        assert node.heard == [(Kind.STATISTICS, {"queries": 7})]


async def test_the_oldest_answer_is_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipe, "MAX_QUEUED", 10)
    node, worker = ends()
    for number in range(25):
        node.link.offer(answer(number))
    assert (node.link.queued, node.link.dropped) == (10, 15)
    async with node.link, worker.link:
        await until(lambda: worker.heard)
        assert worker.heard[0][1][0] == answer(15)


async def test_many_answers_wait_for_room_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipe, "MAX_QUEUED", 100)
    node, worker = ends()
    async with node.link, worker.link:
        await node.link.take(answer(number) for number in range(1000))
        await node.link.sent()
        await until(lambda: sum(len(body) for _, body in worker.heard) == 1000)
        assert node.link.dropped == 0


async def test_who_takes_no_orders_is_as_good_as_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipe, "MAX_ORDERS", 3)
    node, worker = ends()
    for _ in range(4):
        node.link.order(Kind.FLUSH, ())
    assert node.link.closed.is_set()
    worker.link._socket.close()
    node.link._socket.close()


@pytest.mark.parametrize(
    "data",
    [b"\xff\xff\xff\xff", b"\0\0\0\1\xc1", b"\0\0\0\3\x92\x63\xc0", b"\0\0\0\1\1", b"\0\0\0\4\x92\0\x91\1", b"\0\0"],
    ids=["beyond all bounds", "no msgpack", "no kind", "no pair", "no answer", "cut short"],
)
async def test_a_frame_that_is_wrong_ends_the_link(data: bytes) -> None:
    ours, theirs = socket.socketpair()
    end = End(ours)
    async with end.link:
        theirs.sendall(data)
        if data == b"\0\0":
            theirs.close()
        async with asyncio.timeout(10):
            await end.link.closed.wait()
        await end.link.sent()  # waits for nobody
    theirs.close()
    assert end.heard == []


async def test_the_end_of_one_is_the_end_of_the_other() -> None:
    node, worker = ends()
    async with node.link:
        async with worker.link:
            pass
        async with asyncio.timeout(10):
            await node.link.closed.wait()
