"""DNS over HTTPS as bytes (RFC 8484): what a request asks, and how long a reply is fresh.

Decides what is refused, and with which status. Knows no connection, and nothing of HTTP/2.
"""

from __future__ import annotations

import binascii
from collections.abc import Iterable
from enum import Enum
from typing import NamedTuple

from cachebus.wire import rrtypes
from cachebus.wire.message import HEADER_LENGTH, NOERROR, NXDOMAIN, RCODE
from cachebus.wire.name import skip_name

MAX_MESSAGE = 16384
"""Bytes of a query: a padded one has some hundred. Longer ones get 413 or 414."""
MAX_HEADERS = 32768
"""Bytes of a request's headers as HTTP/2 counts them (RFC 9113 section 6.5.2): the longest GET and 10 KiB beside it."""
MEDIA_TYPE = b"application/dns-message"

_TO_STANDARD = bytes.maketrans(b"-_", b"+/")
_NOT_BASE64URL = b"+/="

Headers = Iterable[tuple[bytes, bytes]]


class Status(Enum):
    """Why a request is refused (RFC 9110 section 15.5)."""

    BAD_REQUEST = 400
    """No `dns` parameter, not base64url, or no DNS query."""
    NOT_FOUND = 404
    METHOD_NOT_ALLOWED = 405
    CONTENT_TOO_LARGE = 413
    URI_TOO_LONG = 414
    UNSUPPORTED_MEDIA_TYPE = 415
    HEADERS_TOO_LARGE = 431


class Get(NamedTuple):
    """A request that is all in its headers."""

    message: bytes


class Post(NamedTuple):
    """A request whose message is its body."""


def read_request(headers: Headers, path: bytes) -> Get | Post | Status:
    """What a request's headers ask of the resource at `path`. HTTP/2 has checked their form (RFC 9113 section 8.2)."""
    size = 0
    fields: dict[bytes, bytes] = {}
    for name, value in headers:
        size += len(name) + len(value) + 32
        fields[name] = value
    if size > MAX_HEADERS:
        return Status.HEADERS_TOO_LARGE
    target, _, query = fields.get(b":path", b"").partition(b"?")
    if target != path:
        return Status.NOT_FOUND
    match fields.get(b":method"):
        case b"GET":
            return _read_get(query)
        case b"POST":
            return _read_post(fields)
    return Status.METHOD_NOT_ALLOWED


def _read_get(query: bytes) -> Get | Status:
    values = [field[4:] for field in query.split(b"&") if field.startswith(b"dns=")]
    if len(values) != 1:
        return Status.BAD_REQUEST
    text = values[0]
    if len(text) > (MAX_MESSAGE * 4 + 2) // 3:
        return Status.URI_TOO_LONG
    if any(byte in text for byte in _NOT_BASE64URL):
        return Status.BAD_REQUEST  # padding must not be there (RFC 8484 section 6)
    try:
        message = binascii.a2b_base64(text.translate(_TO_STANDARD) + b"=" * (-len(text) % 4), strict_mode=True)
    except binascii.Error:
        return Status.BAD_REQUEST
    return Get(message)


def _read_post(fields: dict[bytes, bytes]) -> Post | Status:
    if fields.get(b"content-type", b"").partition(b";")[0].strip().lower() != MEDIA_TYPE:
        return Status.UNSUPPORTED_MEDIA_TYPE
    length = fields.get(b"content-length", b"")
    if length.isdigit() and int(length[:20]) > MAX_MESSAGE:
        return Status.CONTENT_TOO_LARGE
    return Post()


def freshness(reply: bytes) -> int:
    """Seconds that an HTTP cache may keep our own reply: its smallest TTL (RFC 8484 section 5.1), 0 for failures.

    A denial has that of its SOA, or the MINIMUM in there if that is less (RFC 2308 section 5).
    """
    if reply[3] & RCODE not in (NOERROR, NXDOMAIN):
        return 0
    position = HEADER_LENGTH
    if reply[4:6] != b"\0\0":
        position = skip_name(reply, position, len(reply)) + 4
    smallest = None
    for _ in range((reply[6] << 8 | reply[7]) + (reply[8] << 8 | reply[9])):
        position = skip_name(reply, position, len(reply))
        end = position + 10 + (reply[position + 8] << 8 | reply[position + 9])
        ttl = int.from_bytes(reply[position + 4 : position + 8], "big")
        if reply[position] << 8 | reply[position + 1] == rrtypes.SOA:
            ttl = min(ttl, int.from_bytes(reply[end - 4 : end], "big"))
        smallest = ttl if smallest is None else min(smallest, ttl)
        position = end
    return smallest or 0
