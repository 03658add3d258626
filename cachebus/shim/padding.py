"""The Padding option (RFC 7830): how much of it hides a reply's length. Knows no message.

RFC 8467 section 4.1: replies in blocks of 468 bytes. RFC 7830 section 6: never where the bytes travel in the clear, so
whether to pad is decided by the channel.
"""

from __future__ import annotations

BLOCK = 468
"""Bytes."""

_PADDING = 12
_HEAD = 4


def padding(length: int, limit: int) -> bytes:
    """The option, head included, that makes a message of `length` bytes a whole number of blocks.

    At the `limit` the last block is cut; nothing where the option itself does not fit.
    """
    size = min(-(-(length + _HEAD) // BLOCK) * BLOCK, limit) - length - _HEAD
    if size < 0:
        return b""
    return _PADDING.to_bytes(2, "big") + size.to_bytes(2, "big") + bytes(size)
