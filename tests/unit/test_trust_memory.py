"""The bounded memory under pairing and confirmation."""

from __future__ import annotations

import random

from cachebus.filters.memory import ENTRY_OVERHEAD, MAX_SAME_KEY, Memory


def memory(*, window: float = 10, entries: int = 100, size: int = 1 << 20) -> Memory[str, int]:
    return Memory(window=window, max_entries=entries, max_bytes=size)


def values(held: Memory[str, int], key: str) -> list[int]:
    found = []
    entry = held.first(key)
    while entry is not None:
        found.append(entry.value)
        entry = entry.next
    return found


def test_entries_of_one_key_are_in_order_and_leave_from_anywhere() -> None:
    held = memory()
    for value in range(3):
        held.put("a", value, 10, now=0)
    middle = held.first("a")
    assert middle is not None
    assert middle.next is not None
    held.remove(middle.next)
    assert values(held, "a") == [0, 2]
    held.remove(middle)
    assert values(held, "a") == [2]
    held.discard("a")
    assert values(held, "a") == []
    assert (len(held), held.held_bytes, "a" in held) == (0, 0, False)


def test_the_window() -> None:
    held = memory()
    held.put("a", 1, 0, now=0)
    held.put("b", 2, 0, now=5)
    assert held.expire(10) == []
    assert held.expire(10.5) == [1]
    assert held.expire(16) == [2]


def test_a_clock_set_back_expires_everything() -> None:
    held = memory()
    held.put("a", 1, 0, now=1000)
    assert held.expire(10) == [1]


def test_count_bytes_and_same_key_are_bounded() -> None:
    held = memory(entries=3)
    assert [held.put(str(n), n, 0, now=0) for n in range(5)] == [[], [], [], [0], [1]]
    held = memory(size=3 * (ENTRY_OVERHEAD + 100))
    assert [held.put(str(n), n, 100, now=0) for n in range(5)] == [[], [], [], [0], [1]]
    assert held.put("big", 9, 10_000, now=0) == [2, 3, 4, 9]
    held = memory()
    dropped = [held.put("same", n, 0, now=0) for n in range(MAX_SAME_KEY + 2)]
    assert dropped[-2:] == [[0], [1]]
    assert held.forgotten == 2


def test_used_entries_do_not_pile_up_in_the_queue() -> None:
    held = memory(entries=10)
    held.put("old", -1, 0, now=0)
    for value in range(10_000):
        held.put("a", value, 0, now=0)
        entry = held.first("a")
        assert entry is not None
        held.remove(entry)
    assert len(held._queue) <= 20


def test_the_account_is_right_whatever_happens() -> None:
    shuffle = random.Random(5)
    held = memory(entries=20, size=20 * 600)
    for step in range(5000):
        key = shuffle.choice("abcdefgh")
        match shuffle.randrange(4):
            case 0 | 1:
                held.put(key, step, shuffle.randrange(400), now=step / 10)
            case 2:
                entry = held.first(key)
                if entry is not None:
                    held.remove(entry)
            case _:
                held.expire(step / 10)
        alive = [entry for entry in held._queue if entry.live]
        assert len(held) == len(alive) == sum(len(values(held, letter)) for letter in "abcdefgh")
        assert held.held_bytes == sum(entry.size for entry in alive)
