"""CBOR (RFC 8949) as C-DNS needs it: a strict decoder bounded in every direction, and the end of an item in a stream.

Decides what is well-formed CBOR and how much of it one item may hold: nesting, containers and lengths are checked
against what is there before anything is made of them, and a map that has a key twice is refused. Map keys are integers
(RFC 8618 section 7.1). Knows nothing of what an item means. Bad bytes end in `FrameError`.

The library cbor2 is not used: it builds what tags ask for (patterns, decimals, dates) before anybody can say no, bounds
no number of containers, refuses duplicate keys only in its newest releases and does not say where an item ends. It is
ten times as fast as this module uncompiled, and no faster than it compiled (measured, cbor2 6.2); what comes often does
not come here, see `cdns_read`.
"""

from __future__ import annotations

import struct
from typing import Final

from cachebus.errors import FrameError

MAX_DEPTH: Final = 16
"""Containers and tags inside each other: C-DNS has eight, and private values may have a few more."""
MAX_CONTAINERS: Final = 1 << 17
"""Maps and arrays of one item. An empty one costs 1 byte on the wire and up to 64 in memory, so this bounds what a
message of small ones can grow to; a block of 1,024 signed answers has some 10,000."""

UINT: Final = 0
NINT: Final = 1
BYTES: Final = 2
TEXT: Final = 3
ARRAY: Final = 4
MAP: Final = 5
TAG: Final = 6
SIMPLE: Final = 7
_INDEFINITE: Final = 31
_BREAK: Final = 0xFF
_FLOATS: Final = {25: struct.Struct("!e"), 26: struct.Struct("!f"), 27: struct.Struct("!d")}

_END: Final = "an item runs past the end"


def decode(data: bytes, position: int = 0, *, containers: int = MAX_CONTAINERS) -> tuple[object, int]:
    """The item at `position`, and the position after it.

    Integers, byte and text strings, lists, dicts with integer keys, booleans, floats, None (null, undefined and simple
    values without a meaning); a tag is read through. Raises `FrameError` for anything malformed, cut short, nested
    deeper than `MAX_DEPTH` or of more than `containers` maps and arrays.
    """
    decoder = Decoder(data, position, containers)
    value = decoder.item(0)
    return value, decoder.position


def decode_whole(data: bytes, *, containers: int = MAX_CONTAINERS) -> object:
    """The one item that `data` is. Raises `FrameError` as `decode` does, and for bytes after it."""
    value, end = decode(data, containers=containers)
    if end != len(data):
        raise FrameError("bytes after the item")
    return value


class Decoder:
    """Reads items one after the other from bytes that are all there."""

    __slots__ = ("_containers", "_data", "_end", "position")

    def __init__(self, data: bytes, position: int, containers: int) -> None:
        self._data = data
        self._end = len(data)
        self._containers = containers
        self.position = position

    def item(self, depth: int) -> object:
        """The next item."""
        data = self._data
        at = self.position
        if at >= self._end:
            raise FrameError(_END)
        first = data[at]
        minor = first & 31
        if minor < 24:
            self.position = at + 1
            number = minor
        elif minor == _INDEFINITE:
            self.position = at + 1
            return self._indefinite(first >> 5, depth)
        else:
            number = self._argument(minor)
        major = first >> 5
        if major == UINT:
            return number
        if major == BYTES:
            return self._take(number)
        if major == MAP:
            return self._map(number, depth)
        if major == ARRAY:
            return self._array(number, depth)
        if major == NINT:
            return -1 - number
        if major == TEXT:
            return self._text(number)
        if major == TAG:
            if depth >= MAX_DEPTH:
                raise FrameError("items are nested too deep")
            return self.item(depth + 1)
        return self._simple(minor, number)

    def _argument(self, minor: int) -> int:
        if minor > 27:
            raise FrameError("a reserved length form")
        start = self.position + 1
        end = start + (1 << (minor - 24))
        if end > self._end:
            raise FrameError(_END)
        self.position = end
        data = self._data
        if minor == 24:
            return data[start]
        if minor == 25:
            return data[start] << 8 | data[start + 1]
        return int.from_bytes(data[start:end], "big")

    def _take(self, length: int) -> bytes:
        start = self.position
        end = start + length
        if end > self._end:
            raise FrameError(_END)
        self.position = end
        return self._data[start:end]

    def _text(self, length: int) -> str:
        try:
            return self._take(length).decode()
        except UnicodeDecodeError as error:
            raise FrameError("a text is not UTF-8") from error

    def _open(self, depth: int, least: int) -> None:
        """Take note of a container whose content is at least that many bytes."""
        if depth >= MAX_DEPTH:
            raise FrameError("items are nested too deep")
        self._containers -= 1
        if self._containers < 0:
            raise FrameError("too many maps and arrays")
        if least > self._end - self.position:
            raise FrameError("more items announced than there is room for")

    def _array(self, count: int, depth: int) -> list[object]:
        self._open(depth, count)
        found: list[object] = []
        for _ in range(count):
            found.append(self.item(depth + 1))  # noqa: PERF401 -- a loop compiles to less than a comprehension
        return found

    def _map(self, count: int, depth: int) -> dict[int, object]:
        self._open(depth, 2 * count)
        found: dict[int, object] = {}
        for _ in range(count):
            self._pair(found, depth)
        if len(found) != count:
            raise FrameError("a map has a key twice")
        return found

    def _pair(self, found: dict[int, object], depth: int) -> None:
        at = self.position
        if at < self._end and self._data[at] < 24:
            self.position = at + 1
            key = self._data[at]
        else:
            key = self._key()
        found[key] = self.item(depth + 1)

    def _key(self) -> int:
        if self.position >= self._end:
            raise FrameError(_END)
        if self._data[self.position] >> 5 > NINT:
            raise FrameError("a map key is not an integer")
        key = self.item(0)
        assert isinstance(key, int)
        return key

    def _indefinite(self, major: int, depth: int) -> object:
        if major == ARRAY:
            self._open(depth, 1)
            array: list[object] = []
            while not self._at_break():
                array.append(self.item(depth + 1))
            return array
        if major == MAP:
            self._open(depth, 1)
            found: dict[int, object] = {}
            count = 0
            while not self._at_break():
                self._pair(found, depth)
                count += 1
            if len(found) != count:
                raise FrameError("a map has a key twice")
            return found
        if major not in (BYTES, TEXT):
            raise FrameError("a break, or a length form, where none may stand")
        chunks: list[bytes] = []
        while not self._at_break():
            chunks.append(self._chunk(major))
        if major == BYTES:
            return b"".join(chunks)
        try:
            return "".join([chunk.decode() for chunk in chunks])
        except UnicodeDecodeError as error:
            raise FrameError("a text is not UTF-8") from error

    def _chunk(self, major: int) -> bytes:
        """One of the strings of definite length that an indefinite one is made of (RFC 8949 section 3.2.3)."""
        first = self._data[self.position]
        minor = first & 31
        if first >> 5 != major or minor == _INDEFINITE:
            raise FrameError("a string of chunks holds something else")
        if minor < 24:
            self.position += 1
            return self._take(minor)
        return self._take(self._argument(minor))

    def _at_break(self) -> bool:
        if self.position >= self._end:
            raise FrameError(_END)
        if self._data[self.position] != _BREAK:
            return False
        self.position += 1
        return True

    def _simple(self, minor: int, number: int) -> object:
        if minor >= 25:
            size = 1 << (minor - 24)
            (value,) = _FLOATS[minor].unpack_from(self._data, self.position - size)
            return float(value)
        if minor == 24 and number < 32:
            raise FrameError("a simple value in two bytes that fits in one")  # RFC 8949 section 3.3
        return number == 21 if number in (20, 21) else None


class EndFinder:
    """Finds where one item ends in bytes that come in portions, looking at each byte once.

    Holds only where it stands: what each open container still lacks. Checks nesting and what ends an item, and leaves
    everything else to `decode`.
    """

    __slots__ = ("_lacking", "_position")

    def __init__(self, start: int = 0) -> None:
        """`start`: where the item begins in what `find` is given."""
        self._position = start
        self._lacking: list[int] = [1]
        """Items that each open container still lacks; below 0 for one that ends at a break (-1, strings -2, -3)."""

    def find(self, data: bytes | bytearray) -> int:
        """The position after the item, or -1 while it is not all there. `data` only grows.

        Raises `FrameError` when no further bytes can make it well-formed.
        """
        end = len(data)
        lacking = self._lacking
        while lacking:
            at = self._position
            if at >= end:
                return -1
            first = data[at]
            minor = first & 31
            number = minor
            after = at + 1
            if 24 <= minor < 28:
                after += 1 << (minor - 24)
                if after > end:
                    return -1
                number = int.from_bytes(data[at + 1 : after], "big")
            elif 28 <= minor < _INDEFINITE:
                raise FrameError("a reserved length form")
            self._position = after
            self._step(first >> 5, minor, number)
            while lacking and not lacking[-1]:
                lacking.pop()
        return self._position if self._position <= end else -1

    def _step(self, major: int, minor: int, number: int) -> None:
        lacking = self._lacking
        within = lacking[-1]
        if major == SIMPLE and minor == _INDEFINITE:
            if within >= 0:
                raise FrameError("a break where none may stand")
            lacking.pop()
            return
        if within < -1 and (major != -within or minor == _INDEFINITE):
            raise FrameError("a string of chunks holds something else")
        if within > 0:
            lacking[-1] = within - 1
        if minor == _INDEFINITE:
            if major in (BYTES, TEXT):
                lacking.append(-major)
            elif major in (ARRAY, MAP):
                lacking.append(-1)
            else:
                raise FrameError("a length form where none may stand")
        elif major in (BYTES, TEXT):
            self._position += number
        elif major == ARRAY:
            lacking.append(number)
        elif major == MAP:
            lacking.append(2 * number)
        elif major == TAG:
            lacking.append(1)
        if len(lacking) > MAX_DEPTH + 2:
            raise FrameError("items are nested too deep")


def head(major: int, number: int) -> bytes:
    """The shortest form of an item's first bytes: major type and argument (RFC 8949 section 4.2.1)."""
    first = major << 5
    if number < 24:
        return bytes((first | number,))
    if number < 0x100:
        return bytes((first | 24, number))
    if number < 0x10000:
        return bytes((first | 25, number >> 8, number & 0xFF))
    if number < 0x100000000:
        return bytes((first | 26,)) + number.to_bytes(4, "big")
    return bytes((first | 27,)) + number.to_bytes(8, "big")


def integer(number: int) -> bytes:
    """An integer of either sign."""
    return head(UINT, number) if number >= 0 else head(NINT, -1 - number)


def text(value: str) -> bytes:
    """A text string."""
    data = value.encode()
    return head(TEXT, len(data)) + data


def byte_string(value: bytes) -> bytes:
    """A byte string."""
    return head(BYTES, len(value)) + value
