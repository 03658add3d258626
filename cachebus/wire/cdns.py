"""C-DNS (RFC 8618): the words that its writer and its readers share, and what stands before the blocks of a file.

Knows which key stands for what, our private keys included, and what a file says about itself. What is in a block is
known to `cdns_write` and `cdns_read`. Bad bytes end in `FrameError`.

Private keys stand only where other readers survive them (measured with dns-stats inspector): in BlockPreamble,
BlockStatistics and ResponseProcessingData, at -100 and below.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple, cast

from cachebus.errors import FrameError
from cachebus.wire import cbor, rrtypes

MAX_BLOCK_ITEMS: Final = 1024
"""Items of a block that we write, and of one that is taken from a peer: twice what is flushed together."""
FILE_TYPE: Final = b"\x83\x65C-DNS"
"""How a file starts (section 7.3): an array of three, the first of them this text."""
TICKS: Final = 1000
"""Per second, of what we write: milliseconds."""
PRIVATE_VERSION: Final = 1
"""Of the private keys below, where the generator is ours."""

# File (sections 7.3 and 7.4)
MAJOR: Final = 0
MINOR: Final = 1
PRIVATE: Final = 2
BLOCK_PARAMETERS: Final = 3
STORAGE: Final = 0
COLLECTION: Final = 1
TICKS_PER_SECOND: Final = 0
STORAGE_HINTS: Final = 2
STORAGE_FLAGS: Final = 5
RR_HINTS: Final = 2
TTL_AND_RDATA: Final = 3
"""RR hints: both are stored."""
GENERATOR_ID: Final = 8
HOST_ID: Final = 9

# Block (section 7.5)
PREAMBLE: Final = 0
STATISTICS: Final = 1
TABLES: Final = 2
QUERY_RESPONSES: Final = 3
EARLIEST_TIME: Final = 0
PARAMETERS_INDEX: Final = 1
IP_ADDRESS: Final = 0
CLASSTYPE: Final = 1
NAME_RDATA: Final = 2
QR_SIG: Final = 3
QLIST: Final = 4
QRR: Final = 5
RRLIST: Final = 6
RR: Final = 7

# Private keys
BLOCK_LENGTH: Final = -100
"""BlockPreamble: bytes of the whole block, as u32, so that a stream is split without looking at every item."""
STREAM: Final = -101
"""BlockPreamble: id of the origin's stream."""
SEQUENCE: Final = -102
"""BlockPreamble: number of this block in the stream."""
SENT: Final = -103
"""BlockPreamble: when the block was written, milliseconds since the epoch."""
CLUSTER: Final = -104
"""BlockPreamble: name of the cluster."""
ORIGIN: Final = -105
"""BlockPreamble: name of the node that learned these answers, where it is not the file's host-id (snapshots)."""
POLICY: Final = -100
"""BlockStatistics: hash of the settings that a cluster has to have in common."""
META: Final = -100
"""ResponseProcessingData: level of evidence, plus 4 when the origin validates."""
VALIDATING: Final = 4

HAS_QUERY: Final = 0x01
HAS_RESPONSE: Final = 0x02
QUERY_WITHOUT_QUESTION: Final = 0x10
RESPONSE_WITHOUT_QUESTION: Final = 0x20
"""qr-sig-flags (section 7.5.3.2)."""
RESPONSE_AA: Final = 1 << 14
RESPONSE_AD: Final = 1 << 9
"""qr-dns-flags (section 7.5.3.2)."""
RESOLVER: Final = 2
"""qr-type: a query sent from a recursive resolver to an authoritative server."""

_RR_TYPES: Final = (*(rrtype for rrtype in range(1, 66) if rrtype != rrtypes.OPT), 99, 256, 257, 258, 260, 261)
"""What may stand in our blocks: RR types with an assignment; others go as well, but a list of them all would not."""
_QR_HINTS: Final = 1 << 0 | 1 << 4 | 1 << 7 | 1 << 10 | 1 << 15
"""time-offset, qr-signature-index, query-name-index, response-processing-data, response-answer-sections."""
_SIGNATURE_HINTS: Final = 1 << 3 | 1 << 4 | 1 << 6 | 1 << 8 | 1 << 9 | 1 << 16
"""qr-type, qr-sig-flags, dns-flags, query-class-type, query-qdcount, response-rcode."""
_ANONYMISED_DATA: Final = 1
_NORMALIZED_NAMES: Final = 4
"""storage-flags. Ours says the latter: names are in lower case."""


class Parameters(NamedTuple):
    """What a file says about some of its blocks (section 7.4.1)."""

    ticks: int
    """Per second; 0 when it says 0, which is an error only where a time is read."""
    ttl_and_rdata: bool
    """Records are stored with their TTL and RDATA."""
    host: str
    """Name of the collecting host; empty when it is not told."""
    generator: str
    anonymised: bool
    """Names, addresses or RDATA are others than on the wire."""
    normalised: bool
    """Names have lost their case."""


def file_preamble(node: str, generator: str) -> bytes:
    """Everything of a file up to its blocks, whose array's head follows: file type and FilePreamble."""
    pieces = [
        FILE_TYPE, b"\xa4\x00\x01\x01\x00\x02", cbor.integer(PRIVATE_VERSION), b"\x03\x81\xa2",
        b"\x00\xa6\x00", cbor.integer(TICKS), b"\x01", cbor.integer(MAX_BLOCK_ITEMS),
        b"\x02\xa4\x00", cbor.integer(_QR_HINTS), b"\x01", cbor.integer(_SIGNATURE_HINTS), b"\x02\x03\x03\x00",
        b"\x03\x81\x00\x04", cbor.head(cbor.ARRAY, len(_RR_TYPES)), *map(cbor.integer, _RR_TYPES),
        b"\x05", cbor.integer(_NORMALIZED_NAMES),
        b"\x01\xa2\x08", cbor.text(generator), b"\x09", cbor.text(node),
    ]  # fmt: skip
    return b"".join(pieces)


def read_file_preamble(preamble: object) -> list[Parameters]:
    """The block parameters of a decoded FilePreamble. Raises `FrameError` for another major version, or nonsense.

    Later minor versions are read: they only add keys (section 8).
    """
    found = as_map(preamble)
    if number(found, MAJOR) != 1:
        raise FrameError("C-DNS of another major version than 1")
    number(found, MINOR)
    sets = as_array(found.get(BLOCK_PARAMETERS))
    if not sets:
        raise FrameError("a C-DNS file without block parameters")
    return [_parameters(as_map(one)) for one in sets]


def _parameters(found: Mapping[int, object]) -> Parameters:
    storage = as_map(found.get(STORAGE))
    hints = as_map(storage.get(STORAGE_HINTS))
    collection = as_map(found.get(COLLECTION, {}))
    flags = number_or(storage, STORAGE_FLAGS, 0)
    return Parameters(
        number(storage, TICKS_PER_SECOND),
        number(hints, RR_HINTS) & TTL_AND_RDATA == TTL_AND_RDATA,
        string(collection, HOST_ID),
        string(collection, GENERATOR_ID),
        bool(flags & _ANONYMISED_DATA),
        bool(flags & _NORMALIZED_NAMES),
    )


# What decoded CBOR must be


def as_map(value: object) -> dict[int, object]:
    """A map. Raises `FrameError` for anything else."""
    if not isinstance(value, dict):
        raise FrameError("C-DNS: something else where a map belongs")
    return cast("dict[int, object]", value)


def as_array(value: object) -> list[object]:
    """An array, or nothing, which reads as an empty one. Raises `FrameError` for anything else."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise FrameError("C-DNS: something else where an array belongs")
    return cast("list[object]", value)


def number(found: Mapping[int, object], key: int) -> int:
    """The unsigned integer at `key`. Raises `FrameError` when it is not there, or something else."""
    value = found.get(key)
    if value.__class__ is not int or not isinstance(value, int) or value < 0:
        raise FrameError("C-DNS: something else where an unsigned integer belongs")
    return value


def number_or(found: Mapping[int, object], key: int, default: int) -> int:
    """The unsigned integer at `key`; `default` when it is not there. Raises `FrameError` for anything else."""
    return number(found, key) if key in found else default


def string(found: Mapping[int, object], key: int) -> str:
    """The text at `key`; empty when it is not there. Raises `FrameError` for anything else."""
    value = found.get(key, "")
    if not isinstance(value, str):
        raise FrameError("C-DNS: something else where a text belongs")
    return value
