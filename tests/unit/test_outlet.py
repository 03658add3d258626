"""outlet.py: when answers that wait for company are sent."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Self

import pytest

from cachebus.answer import Answer, Refusal
from cachebus.outlet import Collect, Outlet
from cachebus.ports import LeftOut
from tests.core_bed import address


class Link:
    """A transport that remembers."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def send(self, data: bytes) -> None:
        self.sent.append(data)

    async def flush(self) -> None: ...

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def statistics(self) -> dict[str, int]:
        return {}


class Counting:
    """A codec whose message is the number of its answers; it leaves out those of `unfit`."""

    def __init__(self) -> None:
        self.unfit: set[Answer] = set()

    def encode(self, answers: Sequence[Answer], now: float) -> tuple[list[bytes], list[LeftOut]]:
        fit = [one for one in answers if one not in self.unfit]
        return [b"%d" % len(fit)] if fit else [], [(one, Refusal.EXPIRED) for one in answers if one in self.unfit]

    def hello(self, now: float) -> bytes:
        return b"hello"

    def will(self) -> None: ...


@pytest.fixture
def link() -> Link:
    return Link()


@pytest.fixture
def codec() -> Counting:
    return Counting()


def outlet(codec: Counting, link: Link, collect: Collect | None) -> Outlet:
    return Outlet("wan", codec, link, collect)  # type: ignore[arg-type]


ANSWERS = [address(f"n{number}.example") for number in range(10)]
COLLECT = Collect(count=4, octets=1 << 20, interval=0.02)


def test_without_company_answers_are_sent_at_once(codec: Counting, link: Link) -> None:
    out = outlet(codec, link, None)
    out.send(ANSWERS[:3], 0.0, 5.0)
    assert (link.sent, out.due, out.waiting) == ([b"3"], None, 0)


def test_a_full_number_is_sent_and_the_rest_is_due_an_interval_after_its_first(codec: Counting, link: Link) -> None:
    out = outlet(codec, link, COLLECT)
    out.send(ANSWERS, 0.0, 5.0)
    assert (link.sent, out.due, out.waiting) == ([b"4", b"4"], 5.02, 2)
    out.send(ANSWERS[:1], 0.0, 5.01)
    assert out.due == 5.02
    out.flush(0.0)
    assert (link.sent, out.due, out.waiting) == ([b"4", b"4", b"3"], None, 0)


def test_so_is_what_is_large_together(codec: Counting, link: Link) -> None:
    out = outlet(codec, link, Collect(count=100, octets=1, interval=1.0))
    out.send(ANSWERS[:2], 0.0, 5.0)
    assert link.sent == [b"1", b"1"]


def test_what_the_codec_leaves_out_is_given_with_its_reason(codec: Counting, link: Link) -> None:
    codec.unfit = {ANSWERS[1]}
    out = outlet(codec, link, COLLECT)
    assert out.send(ANSWERS[:3], 0.0, 5.0) == []
    assert out.flush(0.0) == [(ANSWERS[1], Refusal.EXPIRED)]
    assert link.sent == [b"2"]


def test_greetings_go_where_the_codec_has_them(codec: Counting, link: Link) -> None:
    out = outlet(codec, link, COLLECT)
    out.greet(0.0)
    out.take_leave()
    assert link.sent == [b"hello"]
