"""The CBOR decoder: values, bounds and refusals, by bytes (RFC 8949 appendix A and section 3)."""

from __future__ import annotations

import cbor2
import pytest

from cachebus.errors import FrameError
from cachebus.wire import cbor

VALUES = [
    ("00", 0), ("17", 23), ("1818", 24), ("1903e8", 1000), ("1a000f4240", 1000000),
    ("1bffffffffffffffff", 18446744073709551615), ("20", -1), ("3863", -100),
    ("3bffffffffffffffff", -18446744073709551616),
    ("f4", False), ("f5", True), ("f6", None), ("f7", None), ("f0", None), ("f8ff", None),
    ("f93c00", 1.0), ("fa47c35000", 100000.0), ("fb3ff199999999999a", 1.1),
    ("40", b""), ("4401020304", b"\1\2\3\4"), ("60", ""), ("6449455446", "IETF"), ("62c3bc", "ü"),
    ("80", []), ("83010203", [1, 2, 3]), ("a0", {}), ("a201020304", {1: 2, 3: 4}), ("a1386301", {-100: 1}),
    ("c11a514b67b0", 1363896240), ("d818456449455446", b"dIETF"),
    ("5f42010243030405ff", b"\1\2\3\4\5"), ("7f657374726561646d696e67ff", "streaming"),
    ("9f018202039f0405ffff", [1, [2, 3], [4, 5]]), ("bf0102039fffff", {1: 2, 3: []}), ("1800", 0), ("5f5800ff", b""),
]  # fmt: skip

MALFORMED = [
    ("", "past the end"), ("18", "past the end"), ("1b00000000000000", "past the end"), ("4201", "past the end"),
    ("8201", "room"), ("a101", "room"), ("9b0000000100000000", "room"), ("bbffffffffffffffff", "room"),
    ("5bffffffffffffffff00", "past the end"), ("1c", "reserved"), ("ff", "break"), ("1f", "break"), ("df00", "break"),
    ("9f01", "past the end"), ("bf01", "past the end"), ("5f4101", "past the end"), ("a201020103", "key twice"),
    ("bf01020103ff", "key twice"), ("a2010218010300", "key twice"), ("a1414100", "key is not an integer"),
    ("a1f500", "key is not an integer"), ("62ff00", "UTF-8"), ("7f61ffff", "UTF-8"), ("5f6161ff", "chunks"),
    ("5f5f4101ffff", "chunks"), ("5f00ff", "chunks"), ("f817", "two bytes"), ("a1", "room"), ("bf01ff", "break"),
    ("f9", "past the end"),
]  # fmt: skip


@pytest.mark.parametrize(("encoded", "value"), VALUES)
def test_values(encoded: str, value: object) -> None:
    data = bytes.fromhex(encoded)
    found = cbor.decode_whole(data)
    assert found == value
    assert type(found) is type(value)
    assert cbor.decode(data + b"\xff", 0) == (value, len(data))


@pytest.mark.parametrize(("encoded", "reason"), MALFORMED)
def test_malformed(encoded: str, reason: str) -> None:
    with pytest.raises(FrameError, match=reason):
        cbor.decode_whole(bytes.fromhex(encoded))


def test_bytes_after_the_item() -> None:
    with pytest.raises(FrameError, match="after the item"):
        cbor.decode_whole(b"\0\0")


@pytest.mark.parametrize("opening", [b"\x81", b"\x9f", b"\xa1\x00", b"\xbf\x00", b"\xc1"])
def test_nesting_is_bounded(opening: bytes) -> None:
    deep = opening * cbor.MAX_DEPTH
    closing = b"\xff" * cbor.MAX_DEPTH if opening[0] & 31 == 31 else b""
    assert cbor.decode(deep + b"\0" + closing)[1] == len(deep) + 1 + len(closing)
    with pytest.raises(FrameError, match="too deep"):
        cbor.decode_whole(opening + deep + b"\0" + closing + b"\xff")
    with pytest.raises(FrameError, match="too deep"):
        cbor.EndFinder().find(opening * (2 * cbor.MAX_DEPTH))


def test_containers_are_counted() -> None:
    data = b"\x83\x80\xa0\x9f\xff"
    assert cbor.decode_whole(data, containers=4) == [[], {}, []]
    with pytest.raises(FrameError, match="too many"):
        cbor.decode_whole(data, containers=3)


@pytest.mark.parametrize(("encoded", "value"), VALUES)
def test_the_end_is_found_in_any_portions(encoded: str, value: object) -> None:
    data = bytes.fromhex(encoded)
    finder = cbor.EndFinder()
    for length in range(len(data)):
        assert finder.find(data[:length]) == -1
    assert finder.find(data) == len(data)
    assert cbor.EndFinder().find(data + b"\0\0") == len(data)
    assert cbor.EndFinder(3).find(b"xxx" + data) == len(data) + 3


@pytest.mark.parametrize("encoded", ["ff", "1c", "1f", "df00", "5f6161", "5f5f", "7f4141", "5f00", "9fdf"])
def test_what_can_have_no_end(encoded: str) -> None:
    with pytest.raises(FrameError):
        cbor.EndFinder().find(bytes.fromhex(encoded))


@pytest.mark.parametrize("number", [0, 23, 24, 255, 256, 65535, 65536, 2**32 - 1, 2**32, 2**64 - 1])
def test_writing(number: int) -> None:
    assert cbor.integer(number) == cbor2.dumps(number)
    assert cbor.integer(-1 - number) == cbor2.dumps(-1 - number)


def test_writing_strings() -> None:
    assert cbor.text("ü" * 20) == cbor2.dumps("ü" * 20)
