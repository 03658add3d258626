"""What waits for a peer: order, bounds and counts."""

from __future__ import annotations

from cachebus_transports._outbox import Outbox, Waiting


def box(*, messages: int = 100, size: int = 1000, age: float = 60) -> Outbox:
    return Outbox(messages=messages, size=size, age=age)


def fill(outbox: Outbox, *data: bytes, now: float = 0) -> None:
    for one in data:
        outbox.put(Waiting(now, one))


def test_the_queue_keeps_order_and_drops_the_oldest() -> None:
    outbox = box(messages=3, size=10)
    fill(outbox, b"1", b"2", b"3", b"4")
    assert (len(outbox), outbox.bytes, outbox.dropped) == (3, 3, 1)
    fill(outbox, b"x" * 9)
    assert (len(outbox), outbox.bytes, outbox.dropped) == (2, 10, 3)
    first = outbox.take(0)
    assert first is not None
    assert first.data == b"4"
    outbox.put_back([first])
    assert [outbox.take(0), outbox.take(0), outbox.take(0)] == [first, (0, b"x" * 9), None]
    assert outbox.bytes == 0


def test_the_last_message_is_kept_even_if_it_is_longer() -> None:
    outbox = box(size=10)
    fill(outbox, b"1", b"x" * 11)
    assert (outbox.take_many(1, 0), outbox.dropped, outbox.bytes) == ([b"x" * 11], 1, 0)


def test_many_are_taken_up_to_a_limit() -> None:
    outbox = box()
    fill(outbox, b"12", b"34", b"5")
    assert outbox.take_many(4, 0) == [b"12", b"34"]
    assert (len(outbox), outbox.bytes) == (1, 1)
    assert outbox.take_many(0, 0) == [b"5"]
    assert outbox.take_many(9, 0) == []


def test_what_waited_too_long_is_not_sent() -> None:
    outbox = box()
    fill(outbox, b"old")
    fill(outbox, b"young", now=1)
    taken = outbox.take(60.5)
    assert taken is not None
    assert (taken.data, outbox.expired, outbox.dropped, outbox.bytes) == (b"young", 1, 0, 0)
    fill(outbox, b"old")
    fill(outbox, b"young", now=1)
    assert (outbox.take_many(100, 60.5), outbox.expired, outbox.bytes) == ([b"young"], 2, 0)


def test_what_was_under_way_is_the_first_to_go_when_there_is_no_room_for_it() -> None:
    outbox = box(messages=2)
    outbox.put(Waiting(2, b"2"))
    outbox.put(Waiting(3, b"3"))
    outbox.put_back([Waiting(0, b"0"), Waiting(1, b"1")])
    assert [outbox.take(4), outbox.take(4), outbox.dropped] == [(2, b"2"), (3, b"3"), 2]


def test_what_is_given_up_is_dropped() -> None:
    outbox = box()
    fill(outbox, b"1", b"2")
    outbox.clear()
    assert (len(outbox), outbox.bytes, outbox.dropped) == (0, 0, 2)


def test_it_wakes_who_sends() -> None:
    outbox, woken = box(), []
    outbox.wake = lambda: woken.append(len(outbox))
    fill(outbox, b"1", b"2")
    assert woken == [1, 2]
