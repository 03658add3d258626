"""Changes valid input a little: what a parser meets between its happy path and noise.

Knows only bytes and text. Everything random comes from the `Random` that is passed in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

BYTES = (0x00, 0x01, 0x0C, 0x3F, 0x40, 0x7F, 0x80, 0xC0, 0xC1, 0xFE, 0xFF)
"""Edges of lengths, label types and signed bytes."""
WORDS = (0, 1, 2, 12, 0x3F, 0xFF, 0x100, 0x7FFF, 0x8000, 0xC000, 0xC00C, 0xFFFE, 0xFFFF)
LONGS = (0, 1, 0xFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
MOST_ROUNDS = 5
"""Changes made to one input. Half of the inputs get one only, so that the rest of them is still right."""
MOST_GROWTH = 64
"""Bytes that one change may add."""

Change = Callable[[Random, bytearray, Sequence[bytes]], None]


def below(rng: Random, limit: int) -> int:
    """A number from 0 to `limit - 1`, or 0. Several times cheaper than `randrange`."""
    return int(rng.random() * limit)


def _flip(rng: Random, data: bytearray, others: Sequence[bytes]) -> None:
    data[below(rng, len(data))] ^= 1 << below(rng, 8)


def _byte(rng: Random, data: bytearray, others: Sequence[bytes]) -> None:
    data[below(rng, len(data))] = BYTES[below(rng, len(BYTES))] if rng.random() < 0.7 else below(rng, 256)


def _step(rng: Random, data: bytearray, others: Sequence[bytes]) -> None:
    at = below(rng, len(data))
    data[at] = data[at] + (1 if rng.random() < 0.5 else -1) & 0xFF


def _word(rng: Random, data: bytearray, others: Sequence[bytes]) -> None:
    at = below(rng, len(data))
    value = WORDS[below(rng, len(WORDS))] if rng.random() < 0.7 else len(data) - at + below(rng, 5) - 2 & 0xFFFF
    data[at : at + 2] = value.to_bytes(2, "big")


def _long(rng: Random, data: bytearray, others: Sequence[bytes]) -> None:
    at = below(rng, len(data))
    value = LONGS[below(rng, len(LONGS))] if rng.random() < 0.7 else max(len(data) - at - 4 + below(rng, 5) - 2, 0)
    data[at : at + 4] = value.to_bytes(4, "big")


def _pointer(rng: Random, data: bytearray, others: Sequence[bytes]) -> None:
    """A compression pointer to somewhere, rather to what stands before it."""
    at = below(rng, len(data))
    target = below(rng, at if rng.random() < 0.8 else len(data) + 4)
    data[at : at + 2] = (0xC000 | target & 0x3FFF).to_bytes(2, "big")


def _cut(rng: Random, data: bytearray, others: Sequence[bytes]) -> None:
    at = below(rng, len(data))
    del data[at : at + 1 + below(rng, 8 if rng.random() < 0.8 else len(data))]


def _truncate(rng: Random, data: bytearray, others: Sequence[bytes]) -> None:
    del data[below(rng, len(data)) :]


def _insert(rng: Random, data: bytearray, others: Sequence[bytes]) -> None:
    at = below(rng, len(data) + 1)
    data[at:at] = rng.randbytes(1 + below(rng, 8))


def _repeat(rng: Random, data: bytearray, others: Sequence[bytes]) -> None:
    start = below(rng, len(data))
    piece = data[start : start + 1 + below(rng, MOST_GROWTH)]
    at = start if rng.random() < 0.5 else below(rng, len(data) + 1)
    data[at:at] = piece


def _move(rng: Random, data: bytearray, others: Sequence[bytes]) -> None:
    """Overwrite one stretch with another of the same length."""
    size = 1 + below(rng, min(len(data), 16))
    source, at = below(rng, len(data) - size + 1), below(rng, len(data) - size + 1)
    data[at : at + size] = data[source : source + size]


def _splice(rng: Random, data: bytearray, others: Sequence[bytes]) -> None:
    other = others[below(rng, len(others))] if others else bytes(data)
    if rng.random() < 0.5:
        data[below(rng, len(data)) :] = other[below(rng, len(other)) :]
    else:
        start = below(rng, len(other))
        at = below(rng, len(data) + 1)
        data[at:at] = other[start : start + 1 + below(rng, MOST_GROWTH)]


def _double(rng: Random, data: bytearray, others: Sequence[bytes]) -> None:
    """Several equal things where one is expected."""
    start = below(rng, len(data))
    piece = data[start : start + 1 + below(rng, 16)]
    data[start:start] = piece * (1 + below(rng, 4))


CHANGES: tuple[Change, ...] = (
    _flip, _flip, _byte, _byte, _byte, _step, _step, _word, _word, _long, _pointer, _pointer, _cut, _cut, _truncate,
    _insert, _repeat, _move, _splice, _double,
)  # fmt: skip


def mutate(rng: Random, data: bytes, others: Sequence[bytes] = (), *, start: int = 0) -> bytes:
    """`data` with one to `MOST_ROUNDS` changes behind `start`; never `data` itself. `others` lend pieces."""
    head, tail = data[:start], bytearray(data[start:])
    before = bytes(tail)
    for _ in range(1 if rng.random() < 0.5 else 2 + below(rng, MOST_ROUNDS - 1)):
        if tail:
            CHANGES[below(rng, len(CHANGES))](rng, tail, others)
        else:
            tail += rng.randbytes(1 + below(rng, 8))
    if tail == before:
        if tail:
            tail[below(rng, len(tail))] ^= 1 + below(rng, 255)
        else:
            tail.append(below(rng, 256))
    return head + bytes(tail)


ODD_TEXT = (
    "\0", "\n", "\r", "\t", " ", ".", ":", "\\", '"', "'", "/", "-", "@", "#", "%", "&", "*", "!", "|", ">", "?", "[",
    "]", "{", "}", ",", "0", "1", "9", "a", "Z", "_", "=", "\x7f", "\x85", "\xa0", "\xad", "é", "ß", "İ", "²", "٣",
    "\u200b", "\u2028", "\ufeff", "\uffff", "\U0001f600", "..", "::", "\\000", "\\256", "\\9", "-1", "65536", "1e9",
)  # fmt: skip
"""Separators, quotes, control characters, and what only looks like a letter, digit, space or line end."""


def mutate_text(rng: Random, text: str, others: Sequence[str] = (), pieces: Sequence[str] = ODD_TEXT) -> str:
    """As `mutate`, in characters; `pieces` are what is put in."""
    before = text
    for _ in range(1 if rng.random() < 0.5 else 2 + below(rng, MOST_ROUNDS - 1)):
        text = _change_text(rng, text, others, pieces)
    return text if text != before else text + pieces[below(rng, len(pieces))]


def _change_text(rng: Random, text: str, others: Sequence[str], pieces: Sequence[str]) -> str:
    start = below(rng, len(text) + 1)
    stop = min(len(text), start + below(rng, 8 if rng.random() < 0.8 else MOST_GROWTH))
    match below(rng, 8):
        case 0:
            return text[:start] + text[stop:]
        case 1 | 2:
            return text[:start] + pieces[below(rng, len(pieces))] + text[start:]
        case 3:
            return text[:start] + pieces[below(rng, len(pieces))] + text[stop:]
        case 4:
            return text[:stop] + text[start:stop] * (1 + below(rng, 3)) + text[stop:]
        case 5:
            return (
                text[:start] + chr(ord(text[start]) ^ 1 << below(rng, 7)) + text[start + 1 :]
                if start < len(text)
                else text[:-1]
            )
        case 6 if others:
            other = others[below(rng, len(others))]
            return text[:start] + other[below(rng, len(other)) :]
        case _:
            return text[:start] + text[start:stop].swapcase() + text[stop:]


def noise_text(rng: Random, pieces: Sequence[str] = ODD_TEXT) -> str:
    """Text without any form: pieces, and characters from anywhere."""
    found = []
    for _ in range(below(rng, 24)):
        kind = rng.random()
        if kind < 0.6:
            found.append(pieces[below(rng, len(pieces))])
        elif kind < 0.9:
            found.append(chr(below(rng, 128)))
        else:
            code = below(rng, 0x110000)
            found.append("?" if 0xD800 <= code < 0xE000 else chr(code))
    return "".join(found)
