"""dnstap payloads: what is read, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from cachebus.errors import FrameError
from cachebus.presentation import name_from_text
from cachebus.wire import dnstap_pb2
from cachebus.wire.dnstap import Frame, MessageType, SocketProtocol, decode, encode
from cachebus.wire.framestream import FrameStreamReceiver

DATA = Path(__file__).parents[1] / "data"


def frames(name: str) -> list[Frame]:
    return [decode(payload) for payload in FrameStreamReceiver().receive_data((DATA / name).read_bytes())]


def payload(**changes: object) -> bytes:
    """A RESOLVER_RESPONSE with some fields changed; None leaves one out."""
    fields: dict[str, object] = {
        "type": 4,
        "socket_protocol": 1,
        "response_address": b"\x7f\0\0\1",
        "response_port": 53,
        "query_port": 4711,
        "query_zone": b"\4test\0",
        "response_time_sec": 1_800_000_000,
        "response_time_nsec": 500_000_000,
        "response_message": b"response",
    }
    fields.update(changes)
    outer = dnstap_pb2.Dnstap(type=1)
    for key, value in fields.items():
        if value is not None:
            setattr(outer.message, key, value)
    serialised: bytes = outer.SerializePartialToString()
    return serialised


def varint(number: int, value: int) -> bytes:
    """A protobuf varint field, for values that the schema does not know."""
    assert number < 16
    assert value < 128
    return bytes([number << 3, value])


def in_message(inner: bytes) -> bytes:
    return bytes([14 << 3 | 2, len(inner)]) + inner + varint(15, 1)


def test_a_frame_is_read_with_its_numbers() -> None:
    assert decode(payload()) == Frame(
        type=MessageType.RESOLVER_RESPONSE,
        protocol=SocketProtocol.UDP,
        query_address=b"",
        query_port=4711,
        response_address=b"\x7f\0\0\1",
        response_port=53,
        query_zone=b"\4test\0",
        query_time=0.0,
        response_time=1_800_000_000.5,
        message=b"response",
        is_response=True,
    )


def test_the_bytes_are_the_published_schema() -> None:
    """Field numbers by hand: type 1, protocol 3, query message 10, inside message 14; outer type 15."""
    inner = varint(1, 3) + varint(3, 2) + bytes([10 << 3 | 2, 5]) + b"query"
    frame = decode(in_message(inner))
    assert (frame.type, frame.protocol, frame.message) == (MessageType.RESOLVER_QUERY, SocketProtocol.TCP, b"query")
    assert not frame.is_response
    assert frame.query_zone is None
    assert (frame.query_time, frame.response_time, frame.query_port) == (0.0, 0.0, 0)


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("unbound.dnstap", {"CLIENT_QUERY", "CLIENT_RESPONSE", "RESOLVER_QUERY", "RESOLVER_RESPONSE"}),
        ("bind.dnstap", {"CLIENT_QUERY", "CLIENT_RESPONSE", "RESOLVER_QUERY", "RESOLVER_RESPONSE"}),
        ("pdns-recursor.dnstap", {"RESOLVER_QUERY", "RESOLVER_RESPONSE"}),
        ("dnsdist.dnstap", {"CLIENT_QUERY", "CLIENT_RESPONSE"}),
        ("kresd.dnstap", {"CLIENT_QUERY", "CLIENT_RESPONSE"}),
    ],
)
def test_real_servers_frames_are_read(name: str, kinds: set[str]) -> None:
    found = frames(name)
    assert {frame.type.name for frame in found} == kinds
    for frame in found:
        assert len(frame.message) >= 12
        assert frame.is_response == frame.type.name.endswith("_RESPONSE")
        assert (frame.query_zone is not None) == frame.type.name.startswith("RESOLVER_")
        assert (frame.response_time if frame.is_response else frame.query_time) > 1_700_000_000


@pytest.mark.parametrize(
    ("broken", "text"),
    [
        (b"\xff\xff", "not a protobuf message"),
        (b"", "not a dnstap message"),
        (varint(15, 1), "not a dnstap message"),
        (in_message(varint(1, 4))[:-2], "not a dnstap message"),
        (in_message(varint(1, 4))[:-1] + b"\2", "not a dnstap message"),
        (payload(type=None), "unknown kind"),
        (in_message(varint(1, 99) + varint(3, 1)), "unknown kind"),
        (payload(socket_protocol=None), "known socket protocol"),
        (in_message(varint(1, 4) + varint(3, 99)), "known socket protocol"),
        (payload(response_message=None), "without its DNS message"),
        (payload(response_message=b""), "without its DNS message"),
        (payload(type=3), "without its DNS message"),
        (payload(type=3, query_message=b"q"), "a query and a response"),
        (payload(query_message=b"q"), "a query and a response"),
        (payload(query_port=65536), "a port above 65535"),
        (payload(response_port=2**32 - 1), "a port above 65535"),
        (payload(query_address=b"abc"), "an address of neither"),
        (payload(response_address=bytes(17)), "an address of neither"),
        (payload(response_time_nsec=1_000_000_000), "fraction of a second"),
        (payload(query_zone=b""), "query_zone"),
        (payload(query_zone=b"\4test"), "query_zone: name has no end"),
        (payload(query_zone=b"\4test\0\0"), "query_zone: bytes after the name"),
        (payload(query_zone=b"\xc0\0"), "query_zone: not an uncompressed name"),
        (payload(query_zone=b"\x3f" + bytes(63) + b"\x3f" + bytes(63) + bytes(130)), "query_zone"),
    ],
)
def test_what_is_refused(broken: bytes, text: str) -> None:
    with pytest.raises(FrameError, match=text):
        decode(broken)


def test_the_zone_is_lower_cased_without_touching_lengths() -> None:
    zone = name_from_text("a" * 63 + ".example.")
    assert decode(payload(query_zone=zone.replace(b"example", b"ExAmPlE"))).query_zone == zone


def test_what_was_encoded_is_decoded() -> None:
    encoded = encode(
        MessageType.CLIENT_RESPONSE,
        b"the response",
        protocol=SocketProtocol.DOT,
        query_address=bytes(16),
        query_port=1,
        response_address=bytes(16),
        response_port=853,
        query_zone=b"\0",
        query_time=1.25,
        response_time=2.75,
        identity=b"ns1",
    )
    assert decode(encoded) == Frame(
        MessageType.CLIENT_RESPONSE, 3, bytes(16), 1, bytes(16), 853, b"\0", 1.25, 2.75, b"the response", True
    )
    assert dnstap_pb2.Dnstap.FromString(encoded).message.socket_family == 2
    assert dnstap_pb2.Dnstap.FromString(encoded).identity == b"ns1"


def test_nothing_is_encoded_that_would_be_refused() -> None:
    with pytest.raises(FrameError):
        encode(MessageType.CLIENT_QUERY, b"")
    with pytest.raises(FrameError):
        encode(MessageType.CLIENT_QUERY, b"x", query_address=b"abc")
