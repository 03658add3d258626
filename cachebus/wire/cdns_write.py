"""Writes C-DNS blocks (RFC 8618 section 7.5): one block's tables and items, each answer a response-only item.

Decides how bytes are laid out: what indexes point to and in which form integers stand. Integers that recur have a fixed
width, longer than the shortest where that is needed (RFC 8949 section 3 leaves it to the writer), so that tables are
arrays of equal records: a reader takes them over in one call, and a stream's compressor takes the zeros away. Refuses
to know whose answers these are and whether they may be sent.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

from cachebus.answer import Answer, Evidence, RRset
from cachebus.wire import cbor, rrtypes
from cachebus.wire.cdns import (
    BLOCK_LENGTH,
    CLUSTER,
    ORIGIN,
    POLICY,
    RESPONSE_AA,
    RESPONSE_AD,
    SENT,
    SEQUENCE,
    STREAM,
    TICKS,
    VALIDATING,
)

MAX_BLOCK: Final = 1 << 20
"""Bytes of a block: four times the largest that a codec composes, and below what indexes of 16 bits reach: a record
costs 18 bytes and each name or RDATA at least 2."""
BLOCK_OVERHEAD: Final = 400
"""Bytes of a block without its items, at most: heads, preamble, statistics, names of cluster and origin."""
_ITEM_OVERHEAD: Final = 24 + 7 + 20 + 6
"""Bytes of an item and, at most, of its class and type, its signature and the head of its list of records."""
_RECORD: Final = struct.Struct("!3sHsB2sI2sH").pack
_ITEM: Final = struct.Struct("!3sIsB2sH4sB4sH").pack
_INDEXES: Final = [struct.Struct("!" + "BH" * count) for count in range(24)]
_FEW: Final = 24
"""Below this an integer, or a length, is one byte."""
_MILLISECONDS: Final = 1 << 32


class BlockHead(NamedTuple):
    """What a block says of itself."""

    stream: int
    sequence: int
    sent: int
    """Milliseconds since the epoch."""
    cluster: str
    origin: str = ""
    """Empty when it is the file's host-id."""


def most_bytes(answer: Answer) -> int:
    """An upper bound of what an answer adds to a block."""
    size = _ITEM_OVERHEAD + len(answer.qname) + 3
    for rrset in answer.rrsets:
        # A packed record is 12 bytes and its RDATA; here it is 18, an index of 3, the RDATA and its head of at most 3.
        size += len(rrset.owner) + 3 + 14 + 2 * (len(rrset.rrs) + len(rrset.sigs))
    return size


class _Tables:
    """The tables of one block while they grow."""

    __slots__ = ("_classtypes", "_lists", "_names", "_records", "_signatures")

    def __init__(self) -> None:
        self._classtypes: dict[int, int] = {}
        self._names: dict[bytes, int] = {}
        self._signatures: dict[bytes, int] = {}
        self._lists: dict[bytes, int] = {}
        self._records: dict[bytes, int] = {}

    def item(self, answer: Answer, offset: int) -> bytes:
        """An answer's QueryResponse; `offset`: ticks since the block's earliest time."""
        qname, qtype, rrsets, evidence, _, _, validating, _, _ = answer
        name = self._names.setdefault(qname, len(self._names))
        listed = self._list(rrsets)
        flags = RESPONSE_AD if evidence is Evidence.VALIDATED else RESPONSE_AA
        signature = self._signature(qtype, flags)
        meta = evidence + VALIDATING if validating else int(evidence)
        if signature < _FEW and offset < _MILLISECONDS:
            return _ITEM(
                b"\xa5\x00\x1a", offset, b"\x04", signature, b"\x07\x19", name,
                b"\x0a\xa1\x38\x63", meta, b"\x0c\xa1\x01\x19", listed,
            )  # fmt: skip
        return b"".join((
            b"\xa5\x00", cbor.integer(offset), b"\x04", cbor.integer(signature), b"\x07", cbor.integer(name),
            b"\x0a\xa1\x38\x63", cbor.integer(meta), b"\x0c\xa1\x01", cbor.integer(listed),
        ))  # fmt: skip

    def _classtype(self, rrtype: int) -> int:
        return self._classtypes.setdefault(rrtype, len(self._classtypes))

    def _signature(self, qtype: int, flags: int) -> int:
        kind = cbor.integer(self._classtype(qtype))
        pieces = (b"\xa6\x03\x02\x04\x02\x06\x19", flags.to_bytes(2, "big"), b"\x08", kind, b"\x09\x01\x10\x00")
        return self._signatures.setdefault(b"".join(pieces), len(self._signatures))

    def _list(self, rrsets: Sequence[RRset]) -> int:
        """Index of the list of all records of an answer."""
        indexes: list[int] = []
        for owner, rrtype, ttl, rrs, sigs in rrsets:
            self._add_records(indexes, owner, rrtype, ttl, rrs)
            if sigs:
                self._add_records(indexes, owner, rrtypes.RRSIG, ttl, sigs)
        count = len(indexes) >> 1
        if count < _FEW:
            listed = bytes((0x80 | count,)) + _INDEXES[count].pack(*indexes)
        else:
            pairs = [b"\x19" + index.to_bytes(2, "big") for index in indexes[1::2]]
            listed = cbor.head(cbor.ARRAY, count) + b"".join(pairs)
        return self._lists.setdefault(listed, len(self._lists))

    def _add_records(self, indexes: list[int], owner: bytes, rrtype: int, ttl: int, packed: bytes) -> None:
        names, records = self._names, self._records
        name = names.setdefault(owner, len(names))
        kind = self._classtype(rrtype)
        at, end = 10, len(packed)
        while at < end:
            after = at + 2 + (packed[at] << 8 | packed[at + 1])
            rdata = packed[at + 2 : after]
            data = names.setdefault(rdata, len(names))
            if kind < _FEW:
                record = _RECORD(b"\xa4\x00\x19", name, b"\x01", kind, b"\x02\x1a", ttl, b"\x03\x19", data)
            else:
                record = b"".join((
                    b"\xa4\x00", cbor.integer(name), b"\x01", cbor.integer(kind), b"\x02", cbor.integer(ttl),
                    b"\x03", cbor.integer(data),
                ))  # fmt: skip
            indexes += (0x19, records.setdefault(record, len(records)))
            at = after + 10

    def written(self) -> bytes:
        """The BlockTables."""
        names = list(self._names)
        pieces = [b"\xa5\x01", _array(len(self._classtypes))]
        pieces += [b"\xa2\x00\x19" + rrtype.to_bytes(2, "big") + b"\x01\x01" for rrtype in self._classtypes]
        pieces += (b"\x02", _array(len(names)))
        for name in names:
            size = len(name)
            pieces += (bytes((0x40 | size,)) if size < _FEW else cbor.head(cbor.BYTES, size), name)
        pieces += (b"\x03", _array(len(self._signatures)), *self._signatures)
        pieces += (b"\x06", _array(len(self._lists)), *self._lists)
        pieces += (b"\x07", _array(len(self._records)), *self._records)
        return b"".join(pieces)


def _array(count: int) -> bytes:
    return b"\x99" + count.to_bytes(2, "big")


def write_block(head: BlockHead, answers: Sequence[Answer]) -> bytes:
    """A block of at least one answer, all of class IN. Their TTLs are written as they count: from `learned` on."""
    learned = [int(answer.learned * TICKS) for answer in answers]
    earliest = min(learned)
    tables = _Tables()
    items = [tables.item(answer, time - earliest) for answer, time in zip(answers, learned, strict=True)]
    count = cbor.integer(len(items))
    statistics = b"\x01\xa3\x00" + count + b"\x01" + count + b"\x03" + count
    pieces = (statistics, b"\x02", tables.written(), b"\x03", _array(len(items)), *items)
    return _block(b"\xa4", head, earliest, b"".join(pieces))


def write_hello(head: BlockHead, policy: str) -> bytes:
    """A block without answers: who is here, how far the stream is, and the hash of what a cluster has in common."""
    statistics = b"\x01\xa3\x00\x00\x01\x00" + cbor.integer(POLICY) + cbor.text(policy)
    return _block(b"\xa2", head, head.sent, statistics)


def _block(opening: bytes, head: BlockHead, earliest: int, rest: bytes) -> bytes:
    seconds, ticks = divmod(earliest, TICKS)
    said = [
        b"\x00\x82", cbor.integer(seconds), cbor.integer(ticks),
        cbor.integer(STREAM), _wide(head.stream), cbor.integer(SEQUENCE), _wide(head.sequence),
        cbor.integer(SENT), _wide(head.sent), cbor.integer(CLUSTER), cbor.text(head.cluster),
    ]  # fmt: skip
    if head.origin:
        said += (cbor.integer(ORIGIN), cbor.text(head.origin))
    preamble = b"".join(said)
    # The length stands first: a reader of a stream knows from eleven bytes on how far the block goes.
    before = opening + b"\x00" + cbor.head(cbor.MAP, 7 if head.origin else 6) + cbor.integer(BLOCK_LENGTH) + b"\x1a"
    length = len(before) + 4 + len(preamble) + len(rest)
    return b"".join((before, length.to_bytes(4, "big"), preamble, rest))


def _wide(value: int) -> bytes:
    return b"\x1b" + value.to_bytes(8, "big")
