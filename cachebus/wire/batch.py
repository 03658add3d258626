"""The envelope of codec `batch`: many answers, one sequence number, one MAC (docs/wire/batch.md).

Turns values into bytes and bytes into values, in layers that a receiver takes off one by one: `Opener` checks the MAC
over all of it before anything else is looked at, `read_body` says whose it is and what it holds, `unpack` decompresses,
`read_columns` takes the answers apart. Decides whether bytes are an authentic, well-formed envelope. Whether it is new,
and whether its answers are answers, others decide.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable
from enum import IntEnum
from hmac import compare_digest
from typing import Any, Final, NamedTuple

import msgpack  # type: ignore[import-untyped]
from backports import zstd

from cachebus.answer import Answer, Refusal
from cachebus.presentation import name_to_text
from cachebus.wire.tsig import Key

MAGIC = b"CBE1"
"""Envelopes begin with it; the digit is the version of the format."""
MAX_ENVELOPE = 256 * 1024
"""Bytes of an envelope, MAC and all: what every broker carries (NATS and RabbitMQ have the lowest limits)."""
MAX_PAYLOAD = 256 * 1024
"""Bytes of the answers in an envelope once decompressed: no sender puts in more than would fit uncompressed."""
MAX_ITEMS = 16384
"""Records in an envelope, so that no array announced makes room for more: 98 KiB of addresses."""
MAX_EXTRA = 16
"""Entries of a hello's map."""
MAX_EXTRA_TEXT = 256
"""Bytes of a text in a hello's map."""
MAX_AGE_MS = 0xFFFFFFFF
"""Milliseconds: 49 days, beyond the life of any answer."""
WINDOW_LOG = 21
"""Two to it are the bytes of memory that a zstd frame may ask for: what its default level uses."""

_CODES = {"hmac-sha256": 1, "hmac-sha384": 2, "hmac-sha512": 3}
_HEAD: Final = struct.Struct("!BBHI")
_ROW: Final = struct.Struct("!HIHBB")
_ROW_PACK: Final = _ROW.pack
HEAD_SIZE: Final = 8
"""Bytes of an answer in its column: evidence and flags, number of RRsets, type asked, age in milliseconds."""
ROW_SIZE: Final = 10
"""Bytes of an RRset in its column, see `Row`."""
_CNAME: Final = 5
_LONGEST_TTL: Final = 0x7FFFFFFF
_COLUMNS = 3
"""Items of the payload before the RDATAs."""
_IS_NODE = re.compile(r"[a-z0-9-]{1,63}").fullmatch
_BODY = 8
"""Elements of the body; a hello has one more."""
_LONGEST_TEXT = 255
_BODY_SIZE = 96
"""Bytes of a body at most, beside the cluster, the origin and the payload: nine headers, three numbers of 9 bytes."""
_DECOMPRESSION: dict[int, int] = {int(zstd.DecompressionParameter.window_log_max): WINDOW_LOG}


class Kind(IntEnum):
    """What an envelope is for."""

    ANSWERS = 0
    HELLO = 1
    """Says who is here and how far its stream is."""
    GONE = 2
    """A broker's word for a node whose connection ended: its stream is over, perhaps."""


class Compression(IntEnum):
    """What was done to the payload."""

    NONE = 0
    ZSTD = 1


class Body(NamedTuple):
    """What the MAC covers, but for who signed it."""

    cluster: str
    origin: str
    stream: int
    sequence: int
    time_ms: int
    """When it was sent: milliseconds since the epoch."""
    kind: int
    compression: int
    payload: bytes
    extra: dict[str, Any]
    """A hello's settings; unknown ones mean nothing."""


class _Seal:
    """What never changes in the envelopes of one key."""

    __slots__ = ("_inner", "_outer", "key", "mac_size", "prefix")

    def __init__(self, key: Key) -> None:
        name = name_to_text(key.name).encode()
        self.key = key
        self.prefix = MAGIC + bytes([len(name)]) + name + bytes([_CODES[key.algorithm]])
        self.mac_size = key.secret.mac_size
        self._inner, self._outer = key.secret.states()

    def mac(self, body: bytes) -> bytes:
        """HMAC over the prefix and the body."""
        inner = self._inner.copy()
        inner.update(self.prefix)
        inner.update(body)
        outer = self._outer.copy()
        outer.update(inner.digest())
        return outer.digest()


class Sealer:
    """Makes envelopes with one key."""

    def __init__(self, key: Key) -> None:
        self._seal = _Seal(key)

    def overhead(self, cluster: str, origin: str) -> int:
        """Bytes that an envelope of answers has at most beside its payload."""
        return len(self._seal.prefix) + self._seal.mac_size + len(cluster.encode()) + len(origin.encode()) + _BODY_SIZE

    def seal(self, body: Body) -> bytes:
        """The envelope."""
        packed: bytes = msgpack.packb(body if body.kind == Kind.HELLO else body[:_BODY])
        return b"".join((self._seal.prefix, self._seal.mac(packed), packed))


class Opener:
    """Checks the MAC of envelopes under several keys."""

    def __init__(self, keys: Iterable[Key]) -> None:
        self._seals = tuple(_Seal(key) for key in keys)

    def open(self, data: bytes) -> tuple[Key, bytes] | Refusal:
        """The key and the body of an authentic envelope.

        `MALFORMED`: not an envelope of this version; `OVERSIZE`; then `UNKNOWN_KEY`, `WRONG_ALGORITHM`,
        `TRUNCATED_MAC` (it ends within the MAC), `BAD_MAC`.
        """
        if len(data) > MAX_ENVELOPE:
            return Refusal.OVERSIZE
        for seal in self._seals:
            if data.startswith(seal.prefix):
                break
        else:
            return self._no_seal(data)
        start = len(seal.prefix)
        end = start + seal.mac_size
        mac, body = data[start:end], data[end:]
        if len(mac) != seal.mac_size:
            return Refusal.TRUNCATED_MAC
        return (seal.key, body) if compare_digest(mac, seal.mac(body)) else Refusal.BAD_MAC

    def _no_seal(self, data: bytes) -> Refusal:
        if not data.startswith(MAGIC) or len(data) <= len(MAGIC):
            return Refusal.MALFORMED
        named = len(MAGIC) + 1 + data[len(MAGIC)]
        if len(data) <= named:
            return Refusal.MALFORMED
        known = any(data[:named] == seal.prefix[:-1] for seal in self._seals)
        return Refusal.WRONG_ALGORITHM if known else Refusal.UNKNOWN_KEY


def read_body(packed: bytes) -> Body | Refusal:
    """What an authentic body says. `MALFORMED` when its form is not the documented one, `TRAILING_BYTES` after it."""
    try:
        found = msgpack.unpackb(
            packed, max_array_len=_BODY + 1, max_map_len=MAX_EXTRA, max_ext_len=0, max_str_len=MAX_EXTRA_TEXT
        )
    except msgpack.ExtraData:
        return Refusal.TRAILING_BYTES
    except (ValueError, msgpack.UnpackException, RecursionError):
        return Refusal.MALFORMED
    if found.__class__ is not list or len(found) not in (_BODY, _BODY + 1):
        return Refusal.MALFORMED
    if tuple(map(type, found[:_BODY])) != (str, str, int, int, int, int, int, bytes):
        return Refusal.MALFORMED
    cluster, origin, stream, sequence, time_ms, kind, compression, payload = found[:_BODY]
    extra = found[_BODY] if len(found) > _BODY else {}
    if extra.__class__ is not dict:
        return Refusal.MALFORMED
    body = Body(cluster, origin, stream, sequence, time_ms, kind, compression, payload, extra)
    if (
        not _IS_NODE(body.origin)
        or min(body[2:7]) < 0
        or body.kind > Kind.GONE
        or body.compression > Compression.ZSTD
        or (len(found) > _BODY) != (body.kind == Kind.HELLO)
        or (body.kind != Kind.ANSWERS and body.payload)
    ):
        return Refusal.MALFORMED
    return body


def compress(payload: bytes) -> tuple[Compression, bytes]:
    """The payload in a zstd frame that says how long it is; as it was where that is not shorter."""
    packed = zstd.compress(payload)
    return (Compression.ZSTD, packed) if len(packed) < len(payload) else (Compression.NONE, payload)


def unpack(compression: int, payload: bytes) -> bytes | Refusal:
    """The payload as it was before compression.

    `OVERSIZE` beyond `MAX_PAYLOAD`, whatever the frame says of itself; `MALFORMED` for anything but one whole frame.
    """
    if compression != Compression.ZSTD:
        return payload
    try:
        decompressor = zstd.ZstdDecompressor(options=_DECOMPRESSION)
        data = decompressor.decompress(payload, max_length=MAX_PAYLOAD + 1)
    except zstd.ZstdError:
        return Refusal.MALFORMED
    if len(data) > MAX_PAYLOAD:
        return Refusal.OVERSIZE
    if not decompressor.eof:
        return Refusal.MALFORMED
    return Refusal.TRAILING_BYTES if decompressor.unused_data else data


class Columns(NamedTuple):
    """The answers of an envelope, column by column. Nothing says yet that the columns fit each other."""

    heads: bytes
    """`HEAD_SIZE` bytes of each answer."""
    rows: bytes
    """`ROW_SIZE` bytes of each RRset."""
    names: bytes
    rdatas: list[bytes]


class Row(NamedTuple):
    """What is said of an RRset beside its owner and its records."""

    type: int
    ttl: int
    records: int
    signatures: int
    named: int
    """1: its owner is among the names; 0: it is the expected one. Anything else is wrong."""


def read_row(row: bytes) -> Row:
    """Take `ROW_SIZE` bytes apart."""
    return Row(*_ROW.unpack(row))


def read_columns(payload: bytes) -> Columns | Refusal:
    """Take a payload apart: `MALFORMED` when it is not an array of byte strings, `OVERSIZE` beyond `MAX_ITEMS`."""
    try:
        items = msgpack.unpackb(payload, max_array_len=MAX_ITEMS, max_map_len=0, max_ext_len=0)
    except msgpack.ExtraData:
        return Refusal.TRAILING_BYTES
    except (ValueError, msgpack.UnpackException, RecursionError):
        return Refusal.MALFORMED
    if not isinstance(items, list) or len(items) < _COLUMNS:
        return Refusal.MALFORMED
    for item in items:
        if not isinstance(item, bytes):
            return Refusal.MALFORMED
    heads, rows, names = items[:_COLUMNS]
    if len(heads) % HEAD_SIZE or len(rows) % ROW_SIZE:
        return Refusal.MALFORMED
    return Columns(heads, rows, names, items[_COLUMNS:])


class Entry(NamedTuple):
    """One answer as it stands in the columns."""

    head: bytes
    rows: bytes
    names: bytes
    rdatas: list[bytes]
    size: int
    """Bytes that it adds to a payload at most."""


def write_entry(answer: Answer, time_ms: int) -> Entry | None:
    """An answer as of `time_ms`; None when it has more RRsets or records than can be counted.

    TTLs are counted from when it was learned, rounded down: what arrives never lives longer than what was sent.
    """
    qname, qtype, rrsets, evidence, _, learned, validating, _, _ = answer
    age = min(max(time_ms - int(learned * 1000), 0), MAX_AGE_MS)
    if len(rrsets) > 0xFF:
        return None
    rows = b""
    names = qname
    rdatas: list[bytes] = []
    expected = qname
    for owner, rrtype, ttl, rrs, sigs in rrsets:
        found = _rdatas(rrs)
        signatures = _rdatas(sigs) if sigs else []
        if len(found) > 0xFFFF or len(signatures) > 0xFF:
            return None
        named = owner != expected
        if named:
            names += owner
        rows += _ROW_PACK(rrtype, min(ttl, _LONGEST_TTL), len(found), len(signatures), named)
        rdatas += found
        rdatas += signatures
        if rrtype == _CNAME:
            expected = found[0].lower()
    size = _HEAD.size + len(rows) + len(names) + sum(map(len, rdatas)) + 3 * len(rdatas)
    head = _HEAD.pack(evidence | validating << 2, len(rrsets), qtype, age)
    return Entry(head, rows, names, rdatas, size)


def write_payload(entries: Iterable[Entry]) -> bytes:
    """Entries as a payload."""
    heads, rows, names, rdatas, _ = zip(*entries, strict=True)
    columns = [b"".join(heads), b"".join(rows), b"".join(names)]
    for found in rdatas:
        columns += found
    packed: bytes = msgpack.packb(columns)
    return packed


def _rdatas(packed: bytes) -> list[bytes]:
    """The different RDATAs of packed records, in order."""
    position = 12 + (packed[10] << 8 | packed[11])
    found = [packed[12:position]]
    end = len(packed)
    while position < end:
        start = position + 12
        position = start + (packed[start - 2] << 8 | packed[start - 1])
        found.append(packed[start:position])
    return found if len(found) == 1 else [*dict.fromkeys(found)]
