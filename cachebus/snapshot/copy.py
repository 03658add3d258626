"""A cache to the pieces of a C-DNS file, and such pieces into a cache.

Decides what of a cache may be copied, no more than may be shared live, and that what comes is merged by rank and never
published again: peers have it from the same origins. Knows neither sockets nor files.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field

from cachebus.answer import Answer, Refusal
from cachebus.cache import Cache
from cachebus.codecs.cdns import CdnsCodec
from cachebus.errors import FrameError
from cachebus.filters.policy import Policy
from cachebus.ports import Clock, Sender

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

SLICE = 128
"""Answers of a block: a millisecond of work, after which the event loop gets its turn."""
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
"""First bytes of a zstd frame (RFC 8878 section 3.1.1)."""
ZSTD_LEVEL = 3
WINDOW_LOG = 21
"""Window taken, 2 MiB: what a compressed copy makes us hold."""
PIECE = 64 * 1024
"""Bytes decompressed at a time."""
MAX_YIELD = 1000
"""Times its size that a compressed copy may have: answers compress to a hundredth at best, a bomb to a
thirty-thousandth."""
MAX_ENTRIES = 1_000_000
"""Default of what is given and taken, in RRsets."""
MAX_RATE = 60_000
"""Default of RRsets a second: less than half of a core on either side, so that live traffic is not held up."""


IN_VAIN = 2
"""Times as many blocks and answers as are taken that may come: a copy of which nothing is taken has an end, too."""


@dataclass(slots=True)
class Merged:
    """What became of a copy."""

    received: int = 0
    """Answers."""
    merged: int = 0
    """Answers of which something was stored."""
    refused: dict[Refusal, int] = field(default_factory=dict)
    """Blocks and answers; `better-known` is what the live stream, or this node itself, had brought already."""

    def count(self, refusal: Refusal) -> None:
        """One more."""
        self.refused[refusal] = self.refused.get(refusal, 0) + 1


async def give(
    cache: Cache,
    policy: Policy,
    codec: CdnsCodec,
    clock: Clock,
    *,
    max_entries: int = MAX_ENTRIES,
    rate: int = MAX_RATE,
    compress: bool = False,
) -> AsyncIterator[bytes]:
    """The pieces of a file of what `cache` holds, the most popular first, TTLs aged; at most `rate` RRsets a second.

    What the policy would not take from a peer is left out. The file is whole when the last piece was given.
    """
    loop = asyncio.get_running_loop()
    begun = loop.time()
    packer = zstd.ZstdCompressor(ZSTD_LEVEL) if compress else None
    framing = codec.framing
    given = 0
    waiting = [framing.opening()]
    for answers in _slices(cache, policy, clock):
        if not answers:
            await asyncio.sleep(0)
            continue
        answers = answers[: max_entries - given]
        given += len(answers)
        messages, _ = codec.encode(answers, clock())
        waiting += map(framing.frame, messages)
        yield _packed(packer, waiting)
        waiting = []
        await asyncio.sleep(max(0.0, begun + given / rate - loop.time()))
        if given >= max_entries:
            break
    yield _packed(packer, [*waiting, framing.closing()], last=True)


def _slices(cache: Cache, policy: Policy, clock: Clock) -> Iterator[list[Answer]]:
    """What may be copied, in slices. One without any stands for work that deserves a turn of the event loop."""
    held: list[Answer] = []
    for part in cache.slices(clock(), as_learned=True):
        held += [
            answer
            for answer, refusal in zip(part, policy.refuse_any(part), strict=True)
            if refusal is None and policy.refuse_type(answer.qtype) is None
        ]
        yield []
        full = len(held) - len(held) % SLICE
        for start in range(0, full, SLICE):
            yield held[start : start + SLICE]
        held = held[full:]
    if held:
        yield held


def _packed(packer: zstd.ZstdCompressor | None, pieces: list[bytes], *, last: bool = False) -> bytes:
    data = b"".join(pieces)
    if packer is None:
        return data
    return packer.compress(data, packer.FLUSH_FRAME if last else packer.FLUSH_BLOCK)


class Taker:
    """Merges the bytes of a copy into a cache. `merged` tells what became of it."""

    def __init__(
        self,
        cache: Cache,
        policy: Policy,
        codec: CdnsCodec,
        clock: Clock,
        *,
        sender: Sender,
        max_entries: int = MAX_ENTRIES,
    ) -> None:
        """`sender`: whom the link authenticated, as the codec has to be told."""
        self._cache = cache
        self._policy = policy
        self._codec = codec
        self._clock = clock
        self._sender = sender
        self._max_entries = max_entries
        self._splitter = codec.framing.splitter()
        self._unpack: Callable[[bytes], Iterator[bytes]] | None = None
        self._head = b""
        self._seen = 0
        self.blocks = 0
        """Blocks that came."""
        self.merged = Merged()

    @property
    def full(self) -> bool:
        """As much came as is taken."""
        return self.merged.received >= self._max_entries

    @property
    def whole(self) -> bool:
        """The end of the file came: nothing of it is missing."""
        return self._splitter.finished

    async def feed(self, data: bytes) -> None:
        """Take the next bytes, block by block, with a turn for the event loop after each.

        Raises `FrameError` for what is no copy of a cache.
        """
        if self._unpack is None:
            self._head += data
            if len(self._head) < len(ZSTD_MAGIC):
                return
            self._unpack = _Inflater().feed if self._head.startswith(ZSTD_MAGIC) else _plain
            data, self._head = self._head, b""
        for piece in self._unpack(data):
            for message in self._splitter.receive_data(piece):
                if not self.full:
                    self._merge(message)
                    await asyncio.sleep(0)

    def _merge(self, message: bytes) -> None:
        now = self._clock()
        answers, refusals = self._codec.decode_all(((message, self._sender),), now)
        self.blocks += 1
        self._seen += 1 + len(answers) + len(refusals)
        if self._seen > IN_VAIN * self._max_entries + SLICE:
            raise FrameError("a copy that does not end")
        for refusal in refusals:
            self.merged.count(refusal)
        answers = answers[: self._max_entries - self.merged.received]
        self.merged.received += len(answers)
        allowed = []
        for answer, reason in zip(answers, self._policy.refuse_any(answers), strict=True):
            if reason is None:
                allowed.append(answer)
            else:
                self.merged.count(reason)
        for outcome in self._cache.put_all(allowed, now):
            if outcome is None:
                self.merged.merged += 1
            else:
                self.merged.count(outcome)


def _plain(data: bytes) -> Iterator[bytes]:
    yield data


class _Inflater:
    """Decompresses in pieces, and gives up a bomb."""

    def __init__(self) -> None:
        self._decompressor = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: WINDOW_LOG})
        self._taken = self._given = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        decompressor = self._decompressor
        if decompressor.eof:
            raise FrameError("bytes after the end of what is compressed")
        self._taken += len(data)
        try:
            piece = decompressor.decompress(data, PIECE)
            while True:
                self._given += len(piece)
                if self._given > MAX_YIELD * self._taken + PIECE:
                    raise FrameError("compressed a thousand times: no cache is like that")
                yield piece
                if decompressor.eof or (decompressor.needs_input and len(piece) < PIECE):
                    return
                piece = decompressor.decompress(b"", PIECE)
        except zstd.ZstdError as error:
            raise FrameError(f"cannot be decompressed: {error}") from None
