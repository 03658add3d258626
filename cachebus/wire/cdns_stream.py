"""C-DNS as a stream: one file whose blocks follow each other while they are made, and what takes it apart again.

Decides where a block ends. The unit outside is a file of one block, which says all that its block needs to be read; on
a stream, what they have in common is sent once. Refuses to know what a block says. Bad bytes end in `FrameError`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from cachebus.errors import FrameError
from cachebus.wire.cbor import ARRAY, EndFinder, decode_whole, head
from cachebus.wire.cdns import FILE_TYPE, Parameters, file_preamble, read_file_preamble
from cachebus.wire.cdns_write import MAX_BLOCK

MAX_PREAMBLE: Final = 64 * 1024
"""Bytes before the blocks: ours are some 250; a list of all types and of a large host's addresses is 10 KiB."""
ONE_BLOCK: Final = 0x81
"""Head of an array of one."""
_ANY_NUMBER: Final = 0x9F
"""Head of an array that ends at a break."""
_BREAK: Final = 0xFF
_LENGTH_AT: Final = 6
_SAYS_LENGTH: Final = re.compile(rb"(?s)[\xa1-\xb7]\x00[\xa1-\xb7]\x38\x63\x1a.{4}").match
"""A map that begins with a preamble that begins with key -100 and a u32: how a block of ours begins."""


class CdnsFraming:
    """A `ports.Framing`: one C-DNS file for each stream, ended by a break when it ends cleanly."""

    def __init__(self, node: str, generator: str) -> None:
        """`node` and `generator` stand in the preamble as host-id and generator-id."""
        self._preamble = file_preamble(node, generator)
        self.before = self._preamble + bytes((ONE_BLOCK,))
        """What a message has before its block."""

    def opening(self) -> bytes:
        """File type, preamble and the head of the blocks."""
        return self._preamble + bytes((_ANY_NUMBER,))

    def frame(self, message: bytes) -> bytes:
        """The block of a message. Raises `FrameError` for a message of another codec, and for an oversize one."""
        before = self.before
        if not message.startswith(before):
            raise FrameError("not a message that this codec made")
        if len(message) - len(before) > MAX_BLOCK:
            raise FrameError(f"a message is longer than {MAX_BLOCK} bytes")
        return message[len(before) :]

    def closing(self) -> bytes:
        """The break."""
        return bytes((_BREAK,))

    def splitter(self) -> CdnsSplitter:
        """For one received stream."""
        return CdnsSplitter()


class CdnsSplitter:
    """Takes one C-DNS file or stream apart, into files of one block each."""

    def __init__(self, *, max_block: int = MAX_BLOCK, closed: bool = False) -> None:
        """`max_block`: bytes of a block at most. `closed`: the end must be there (a file, which is written whole)."""
        self._max_block = max_block
        self._closed = closed
        self._buffer = bytearray()
        self._finder = EndFinder(len(FILE_TYPE))
        self._before = b""
        self._left = -1
        """Blocks that are still to come; -1: until a break."""
        self._finished = False
        self._failure: FrameError | None = None

    @property
    def started(self) -> bool:
        """True once the opening is over."""
        return bool(self._before)

    @property
    def finished(self) -> bool:
        """True once the sender has said that no more blocks come."""
        return self._finished

    @property
    def buffered(self) -> int:
        """Bytes held of a block that is not complete."""
        return len(self._buffer)

    def data_to_send(self) -> bytes:
        """Nothing: a file says nothing back."""
        return b""

    def receive_data(self, data: bytes) -> Iterator[bytes]:
        """Take the next bytes; give the messages that they complete, then raise `FrameError` if need be."""
        if self._failure is not None:
            raise self._failure
        self._buffer += data
        try:
            if not self._before and not self._open():
                return
            yield from self._blocks()
        except FrameError as error:
            self._failure = error
            self._buffer.clear()
            raise

    def receive_end(self) -> None:
        """Take note of the end. Raises `FrameError` when it cuts the opening or a block in two; whole blocks count.

        A stream may stop without its break: its sender is gone. A file may not.
        """
        if self._failure is not None:
            raise self._failure
        if self._buffer or not self._before:
            raise FrameError("the stream ends within its opening" if not self._before else "the stream ends in a block")
        if self._closed and not self._finished:
            raise FrameError("the file ends without the end of its blocks")

    def _open(self) -> bool:
        buffer = self._buffer
        length = min(len(buffer), len(FILE_TYPE))
        if buffer[:length] != FILE_TYPE[:length]:
            raise FrameError("not C-DNS")
        if len(buffer) <= length:
            return False
        end = self._finder.find(buffer)
        if max(end, len(buffer) if end < 0 else 0) > MAX_PREAMBLE:
            raise FrameError("the preamble of a C-DNS file is too long")
        if end < 0 or not (size := self._array_head(end)):
            return False
        read_file_preamble(decode_whole(bytes(buffer[length:end])))
        self._before = bytes(buffer[:end]) + head(ARRAY, 1)
        del buffer[: end + size]
        self._finder = EndFinder()
        return True

    def _array_head(self, at: int) -> int:
        """Bytes of the head of the blocks' array, which it takes note of; 0 while it is not all there."""
        if at >= len(self._buffer):
            return 0
        first = self._buffer[at]
        if first == _ANY_NUMBER:
            return 1
        minor = first & 31
        if first >> 5 != ARRAY or minor > 27:
            raise FrameError("a C-DNS file without blocks")
        size = 1 if minor < 24 else 1 + (1 << (minor - 24))
        if at + size > len(self._buffer):
            return 0
        self._left = minor if size == 1 else int.from_bytes(self._buffer[at + 1 : at + size], "big")
        return size

    def _blocks(self) -> Iterator[bytes]:
        buffer = self._buffer
        while True:
            if not self._left:
                self._finished = True
            if not buffer:
                return
            if self._finished:
                raise FrameError("bytes after the end of a C-DNS file")
            if buffer[0] == _BREAK and self._left < 0:
                self._left = 0
                del buffer[:1]
                continue
            length = self._block_length()
            if length > self._max_block or (length < 0 and len(buffer) > self._max_block):
                raise FrameError(f"a C-DNS block is longer than {self._max_block} bytes")
            if length < 0 or length > len(buffer):
                return
            message = self._before + bytes(memoryview(buffer)[:length])
            del buffer[:length]
            if self._left > 0:
                self._left -= 1
            self._finder = EndFinder()
            yield message

    def _block_length(self) -> int:
        """Bytes of the first block, or -1 while that cannot be told. One of ours says it itself: it is not believed,
        for whoever reads the block sees whether it ends there."""
        buffer = self._buffer
        if _SAYS_LENGTH(buffer) is not None:
            length = int.from_bytes(buffer[_LENGTH_AT : _LENGTH_AT + 4], "big")
            if length < _LENGTH_AT + 4:
                raise FrameError("a C-DNS block says an impossible length")
            return length
        return self._finder.find(buffer)


class PreambleReader:
    """Reads what stands before the block of a message; what it has read once it knows again."""

    _MOST: Final = 256
    """Openings remembered: as many peers with links at once."""

    def __init__(self) -> None:
        self._known: dict[bytes, list[Parameters]] = {}
        self._last = b""

    def read(self, message: bytes) -> tuple[list[Parameters], int]:
        """The block parameters of a message, and where its block begins. Raises `FrameError`."""
        last = self._last
        if last and message.startswith(last):
            return self._known[last], len(last)
        if not message.startswith(FILE_TYPE):
            raise FrameError("not C-DNS")
        start = len(FILE_TYPE)
        end = EndFinder(start).find(message[:MAX_PREAMBLE])
        if end < 0 or message[end : end + 1] != bytes((ONE_BLOCK,)):
            raise FrameError("not a C-DNS file of one block")
        before = message[: end + 1]
        known = self._known.get(before)
        if known is None:
            known = read_file_preamble(decode_whole(message[start:end]))
            if len(self._known) >= self._MOST:
                self._known.clear()
            self._known[before] = known
        self._last = before
        return known, len(before)
