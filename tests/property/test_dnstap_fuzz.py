"""Any bytes give a dnstap frame or `FrameError`; at least half of them are mutations of real servers' frames."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachebus.errors import FrameError
from cachebus.presentation import check_name
from cachebus.wire.dnstap import Frame, MessageType, SocketProtocol, decode, encode
from cachebus.wire.framestream import FrameStreamReceiver

pytestmark = pytest.mark.property

DATA = Path(__file__).parents[1] / "data"
REAL = [
    payload
    for name in ("unbound", "unbound-evil", "bind", "pdns-recursor", "dnsdist", "kresd")
    for payload in FrameStreamReceiver().receive_data((DATA / f"{name}.dnstap").read_bytes())
]
ADDRESSES = st.sampled_from([b"", bytes(4), bytes(16)]) | st.binary(min_size=4, max_size=4)
LABELS = st.lists(st.binary(min_size=1, max_size=20), max_size=6)
ZONES = st.none() | LABELS.map(lambda labels: b"".join(bytes([len(label)]) + label for label in labels) + b"\0")
TIMES = st.integers(0, 2**33).map(float) | st.integers(0, 2**33).map(lambda seconds: seconds + 0.5)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    data = bytearray(draw(st.sampled_from(REAL)))
    for _ in range(draw(st.integers(1, 5))):
        at = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(["change", "flip", "remove", "insert", "cut"])):
            case "change" if at < len(data):
                data[at] = draw(st.integers(0, 255))
            case "flip" if at < len(data):
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "remove":
                del data[at : at + draw(st.integers(1, 8))]
            case "insert":
                data[at:at] = draw(st.binary(min_size=1, max_size=8))
            case _:
                del data[at:]
    return bytes(data)


def check(frame: Frame) -> None:
    """What every reader of a frame may rely on."""
    assert isinstance(frame.type, MessageType)
    assert SocketProtocol(frame.protocol)
    assert frame.is_response == frame.type.is_response == frame.type.name.endswith("_RESPONSE")
    assert len(frame.query_address) in (0, 4, 16)
    assert len(frame.response_address) in (0, 4, 16)
    assert 0 <= frame.query_port <= 65535
    assert 0 <= frame.response_port <= 65535
    assert 0.0 <= frame.query_time < 2.0**65
    assert 0.0 <= frame.response_time < 2.0**65
    assert frame.message
    if frame.query_zone is not None:
        check_name(frame.query_zone)
        assert frame.query_zone == frame.query_zone.lower()


ANY_PAYLOAD = st.integers(0, 3).flatmap(
    lambda die: mutated() if die else st.binary(max_size=300) | st.sampled_from(REAL)
)
"""Three quarters mutated frames; real ones and arbitrary bytes share the rest."""


@given(ANY_PAYLOAD)
def test_any_bytes_give_a_frame_or_the_documented_error(payload: bytes) -> None:
    try:
        frame = decode(payload)
    except FrameError:
        return
    check(frame)


@given(
    kind=st.sampled_from(MessageType),
    protocol=st.sampled_from(SocketProtocol),
    message=st.binary(min_size=1, max_size=60),
    addresses=st.tuples(ADDRESSES, ADDRESSES),
    ports=st.tuples(st.integers(0, 65535), st.integers(0, 65535)),
    zone=ZONES,
    times=st.tuples(TIMES, TIMES),
)
def test_what_was_encoded_is_decoded(
    kind: MessageType,
    protocol: SocketProtocol,
    message: bytes,
    addresses: tuple[bytes, bytes],
    ports: tuple[int, int],
    zone: bytes | None,
    times: tuple[float, float],
) -> None:
    payload = encode(
        kind,
        message,
        protocol=protocol,
        query_address=addresses[0],
        query_port=ports[0],
        response_address=addresses[1],
        response_port=ports[1],
        query_zone=zone,
        query_time=times[0],
        response_time=times[1],
    )
    lower = None if zone is None else zone.lower()
    frame = decode(payload)
    check(frame)
    assert frame == Frame(
        kind,
        protocol,
        addresses[0],
        ports[0],
        addresses[1],
        ports[1],
        lower,
        times[0],
        times[1],
        message,
        kind.is_response,
    )
