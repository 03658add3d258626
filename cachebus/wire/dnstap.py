"""Reads and writes one dnstap payload: who told whom what, and when.

Decides whether a payload is a well-formed dnstap message of one known kind that carries exactly the DNS message its
kind promises. Refuses to know whether that DNS message is any good, and what a frame proves (the trust filter's work).
"""

from __future__ import annotations

from enum import IntEnum
from functools import lru_cache
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError

from cachebus.errors import FrameError, MessageError
from cachebus.presentation import check_name
from cachebus.wire import dnstap_pb2

MAX_PORT = 65535
"""dnstap gives ports as u32; UDP and TCP have 16 bits."""
NANOSECONDS = 1_000_000_000
_FAMILIES = {0: None, 4: 1, 16: 2}
"""Bytes of an address (0 when it is not given), with the socket family that goes with it."""
_ZONES_REMEMBERED = 4096
"""A resolver asks few zones again and again; checking a name costs more than decoding the rest of the payload."""


class MessageType(IntEnum):
    """Kind of a dnstap message, with dnstap's names. Queries are odd, responses even."""

    AUTH_QUERY = 1
    AUTH_RESPONSE = 2
    RESOLVER_QUERY = 3
    RESOLVER_RESPONSE = 4
    CLIENT_QUERY = 5
    CLIENT_RESPONSE = 6
    FORWARDER_QUERY = 7
    FORWARDER_RESPONSE = 8
    STUB_QUERY = 9
    STUB_RESPONSE = 10
    TOOL_QUERY = 11
    TOOL_RESPONSE = 12
    UPDATE_QUERY = 13
    UPDATE_RESPONSE = 14

    @property
    def is_response(self) -> bool:
        """True for the kinds that carry a response."""
        return not self & 1


class SocketProtocol(IntEnum):
    """How a DNS message travelled, with dnstap's names."""

    UDP = 1
    TCP = 2
    DOT = 3
    DOH = 4
    DNSCRYPT_UDP = 5
    DNSCRYPT_TCP = 6
    DOQ = 7


_TYPES = {int(kind): kind for kind in MessageType}
"""A dictionary look-up costs a tenth of calling the enumeration."""


class Frame(NamedTuple):
    """One dnstap message."""

    type: MessageType
    protocol: int
    """A `SocketProtocol`."""
    query_address: bytes
    """4 or 16 bytes of the side that asked, or empty."""
    query_port: int
    """0 when not given."""
    response_address: bytes
    """4 or 16 bytes of the side that answers, or empty."""
    response_port: int
    """0 when not given."""
    query_zone: bytes | None
    """The zone that the resolver took the answering server to speak for: wire form, lower case; None when not given."""
    query_time: float
    """Seconds since the epoch; 0.0 when not given."""
    response_time: float
    """Seconds since the epoch; 0.0 when not given."""
    message: bytes
    """The DNS message, verbatim: the query of a query kind, the response of a response kind."""
    is_response: bool


def decode(payload: bytes) -> Frame:
    """Read one payload (the content of a data frame).

    Raises `FrameError` when it is not protobuf, not of a known kind, lacks its DNS message or its protocol, carries a
    query and a response at once, or has an impossible address, port, time or zone.
    """
    try:
        outer = dnstap_pb2.Dnstap.FromString(payload)
    except DecodeError as error:
        raise FrameError("not a protobuf message") from error
    # A value that an enumeration does not know reads as its default, and a missing required field does not raise, so
    # presence is asked for every one of them.
    if not outer.HasField("type") or not outer.HasField("message"):
        raise FrameError("not a dnstap message")
    inner = outer.message
    if not inner.HasField("type"):
        raise FrameError("a dnstap message of an unknown kind")
    if not inner.HasField("socket_protocol"):
        raise FrameError("a dnstap message without a known socket protocol")
    code: int = inner.type
    is_response = not code & 1
    query_address: bytes = inner.query_address
    response_address: bytes = inner.response_address
    if len(query_address) not in _FAMILIES or len(response_address) not in _FAMILIES:
        raise FrameError("an address of neither 4 nor 16 bytes")
    query_port: int = inner.query_port
    response_port: int = inner.response_port
    if query_port > MAX_PORT or response_port > MAX_PORT:
        raise FrameError("a port above 65535")
    return Frame(
        _TYPES[code],
        inner.socket_protocol,
        query_address,
        query_port,
        response_address,
        response_port,
        _zone(inner.query_zone) if inner.HasField("query_zone") else None,
        _time(inner.query_time_sec, inner.query_time_nsec),
        _time(inner.response_time_sec, inner.response_time_nsec),
        _message(inner, is_response),
        is_response,
    )


def _message(inner: Any, is_response: bool) -> bytes:
    query: bytes = inner.query_message
    response: bytes = inner.response_message
    message, other = (response, query) if is_response else (query, response)
    if not message:
        raise FrameError("a dnstap message without its DNS message")
    if other:
        raise FrameError("a dnstap message with a query and a response")
    return message


def _time(seconds: int, nanoseconds: int) -> float:
    if nanoseconds >= NANOSECONDS:
        raise FrameError("a fraction of a second of more than a second")
    return seconds + nanoseconds / NANOSECONDS


@lru_cache(maxsize=_ZONES_REMEMBERED)
def _zone(name: bytes) -> bytes:
    try:
        check_name(name)
    except MessageError as error:
        raise FrameError(f"query_zone: {error}") from error
    return name.lower()


def encode(
    kind: MessageType,
    message: bytes,
    *,
    protocol: SocketProtocol = SocketProtocol.UDP,
    query_address: bytes = b"",
    query_port: int = 0,
    response_address: bytes = b"",
    response_port: int = 0,
    query_zone: bytes | None = None,
    query_time: float = 0.0,
    response_time: float = 0.0,
    identity: bytes = b"",
) -> bytes:
    """Compose one payload; what is empty or zero is left out. `decode` of it gives the same values back.

    Raises `FrameError` for what `decode` would refuse.
    """
    inner = dnstap_pb2.Message(type=int(kind), socket_protocol=int(protocol))
    for side, address, port, time in (
        ("query", query_address, query_port, query_time),
        ("response", response_address, response_port, response_time),
    ):
        if address:
            setattr(inner, f"{side}_address", address)
            inner.socket_family = _FAMILIES.get(len(address)) or 1
        if port:
            setattr(inner, f"{side}_port", port)
        if time:
            # Apart, because a float has too few digits for the nanoseconds of a whole time.
            carry, nanoseconds = divmod(round(time % 1 * NANOSECONDS), NANOSECONDS)
            setattr(inner, f"{side}_time_sec", int(time) + carry)
            setattr(inner, f"{side}_time_nsec", nanoseconds)
    if query_zone is not None:
        inner.query_zone = query_zone
    if kind.is_response:
        inner.response_message = message
    else:
        inner.query_message = message
    outer = dnstap_pb2.Dnstap(type=dnstap_pb2.Dnstap.MESSAGE, message=inner)
    if identity:
        outer.identity = identity
    payload: bytes = outer.SerializeToString()
    decode(payload)
    return payload
