"""Domain names on the wire: where they end, what they are once decompressed, and which stands above which.

Works on bytes alone (RFC 1035 sections 3.1 and 4.1.4); lower case is ASCII lower case (RFC 4343), which `bytes.lower`
gives for a whole wire-form name at once, because a label's length byte (0-63) is never a letter.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from cachebus.errors import MessageError
from cachebus.presentation import MAX_LABEL, MAX_NAME

if TYPE_CHECKING:
    from mypy_extensions import i64

POINTER = 0xC0
"""The two top bits of a length byte that make it a compression pointer."""
MAX_POINTERS = 127
"""Pointers followed for one name: one for each label it can have. Without a bound, 64 KiB of pointers to pointers with
names that begin at the last of them cost 20 s to read (measured)."""


def skip_name(wire: bytes, position: int, end: int) -> int:
    """Position after the name at `position`, which must lie before `end`. Pointers are not followed.

    Raises `MessageError` when the name runs past `end` or a length byte has an unknown form.
    """
    while position < end:
        length = wire[position]
        if not length:
            return position + 1
        if length <= MAX_LABEL:
            position += length + 1
        elif length >= POINTER:
            if position + 2 > end:
                break
            return position + 2
        else:
            raise MessageError("a label has an unknown form")
    raise MessageError("a name runs past its end")


def read_name(wire: bytes, position: int, end: int) -> tuple[bytes, int]:
    """The decompressed name at `position`, its case kept, and the position after it.

    Every pointer must lead to before the piece of name that it ends (RFC 1035 section 4.1.4, "a prior occurrence"), so
    loops and forward pointers end in `MessageError`, as does a name beyond 255 bytes or `MAX_POINTERS`.
    """
    pieces = []
    length_so_far = 1
    start = position
    after = 0
    limit = end
    while True:
        if position >= limit:
            raise MessageError("a name runs past its end")
        length = wire[position]
        if length <= MAX_LABEL:
            if length:
                position += length + 1
                length_so_far += length + 1
                if length_so_far > MAX_NAME:
                    raise MessageError(f"a name is longer than {MAX_NAME} bytes")
                continue
            position += 1
            if position > limit:
                raise MessageError("a name runs past its end")
            pieces.append(wire[start:position])
            return (pieces[0] if len(pieces) == 1 else b"".join(pieces)), after or position
        if length < POINTER or position + 2 > limit:
            raise MessageError("a label has an unknown form")
        target = (length & 0x3F) << 8 | wire[position + 1]
        pieces.append(wire[start:position])
        if not after:
            after = position + 2
        if target >= start or target < 12:
            raise MessageError("a compression pointer does not lead back")
        if len(pieces) > MAX_POINTERS:
            raise MessageError("a name is compressed too often")
        position = start = target


def is_at_or_below(name: bytes, ancestor: bytes) -> bool:
    """Whether `name` is `ancestor` or stands below it, by label. Both uncompressed, lower case."""
    if not name.endswith(ancestor):
        return False
    target: i64 = len(name) - len(ancestor)
    position: i64 = 0
    while position < target:
        position += name[position] + 1
    return position == target


def parent(name: bytes) -> bytes:
    """`name` without its first label; the root has none and is given back."""
    return name[name[0] + 1 :] if name[0] else name


def ancestors(name: bytes) -> Iterator[bytes]:
    """`name` itself, then each name above it, the root last."""
    position = 0
    while length := name[position]:
        yield name[position:]
        position += length + 1
    yield b"\0"


def label_count(name: bytes) -> int:
    """Labels without the root, as the RRSIG labels field counts them but for a leading `*` (RFC 4034 section 3.1.3)."""
    count: i64 = 0
    position: i64 = 0
    length: i64 = name[0]
    while length:
        position += length + 1
        count += 1
        length = name[position]
    return count
