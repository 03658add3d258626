"""How questions and replies are told apart on a stream to an upstream: by a length and the ID, or by HTTP/2. Sans-IO.

Decides what belongs to which question; whether a reply is the right one is for `exchange.belongs`.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Hashable
from typing import NamedTuple, Protocol

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import ConnectionTerminated, DataReceived, Event, ResponseReceived, StreamEnded, StreamReset
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes

from cachebus.errors import FrameError, TransportError
from cachebus.shim.exchange import Outgoing
from cachebus.shim.http2 import FrameSplitter

MAX_MESSAGE = 65535
"""Bytes of a reply, over HTTP too (RFC 8484 section 6)."""
MAX_HEADERS = 16 * 1024
"""Bytes of a response's header fields that are taken: a hundred times what one needs."""
MEDIA_TYPE = b"application/dns-message"


class Reply(NamedTuple):
    """What came for one question."""

    key: Hashable
    message: bytes | TransportError
    """The reply, or why there will be none."""


class Session(Protocol):
    """One connection's state. Methods give the bytes to send, and raise `TransportError` when it cannot go on."""

    alpn: str
    """What TLS is asked to negotiate for it (RFC 7301)."""

    def opening(self) -> bytes:
        """What is sent first."""
        ...

    def ask(self, outgoing: Outgoing) -> tuple[Hashable, Outgoing, bytes]:
        """The key of its reply, the question as it is sent, and the bytes."""
        ...

    def receive(self, data: bytes) -> tuple[list[Reply], bytes]:
        """Replies found in `data`, with what came before."""
        ...

    def forget(self, key: Hashable) -> bytes:
        """Nobody waits for this reply any more."""
        ...


MakeSession = Callable[[], Session]


class LengthPrefixed:
    """Messages with a 16-bit length, told apart by their ID (RFC 7766; over TLS RFC 7858)."""

    alpn = "dot"

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._asked: set[Hashable] = set()

    def opening(self) -> bytes:
        return b""

    def ask(self, outgoing: Outgoing) -> tuple[Hashable, Outgoing, bytes]:
        while outgoing.wire[:2] in self._asked:
            outgoing = outgoing._replace(wire=secrets.token_bytes(2) + outgoing.wire[2:])
        key = outgoing.wire[:2]
        self._asked.add(key)
        return key, outgoing, len(outgoing.wire).to_bytes(2, "big") + outgoing.wire

    def receive(self, data: bytes) -> tuple[list[Reply], bytes]:
        buffer, replies, position = self._buffer, [], 0
        buffer += data
        while len(buffer) - position >= 2:
            end = position + 2 + (buffer[position] << 8 | buffer[position + 1])
            if end > len(buffer):
                break
            message = bytes(buffer[position + 2 : end])
            replies.append(Reply(message[:2], message))
            position = end
        del buffer[:position]
        return replies, b""

    def forget(self, key: Hashable) -> bytes:
        self._asked -= {key}
        return b""


class Https:
    """One POST per question (RFC 8484 section 4.1), as many at a time as the server lets us."""

    alpn = "h2"

    def __init__(self, authority: str, path: str) -> None:
        """`authority`: host and port as the URL has them."""
        self._headers = [
            (b":method", b"POST"),
            (b":scheme", b"https"),
            (b":authority", authority.encode()),
            (b":path", path.encode()),
            (b"accept", MEDIA_TYPE),
            (b"content-type", MEDIA_TYPE),
        ]
        self._h2 = H2Connection(H2Configuration(client_side=True, header_encoding=None))
        self._frames = FrameSplitter(preface=False)
        self._bodies: dict[int, bytearray] = {}

    def opening(self) -> bytes:
        self._h2.local_settings.update({SettingCodes.ENABLE_PUSH: 0, SettingCodes.MAX_HEADER_LIST_SIZE: MAX_HEADERS})
        self._h2.initiate_connection()
        return self._h2.data_to_send()

    def ask(self, outgoing: Outgoing) -> tuple[Hashable, Outgoing, bytes]:
        # HTTP tells questions apart, so that all have the ID 0, and caches on the way know equal ones (section 4.1).
        wire = b"\0\0" + outgoing.wire[2:]
        try:
            stream = self._h2.get_next_available_stream_id()
            self._h2.send_headers(stream, [*self._headers, (b"content-length", b"%d" % len(wire))])
            self._h2.send_data(stream, wire, end_stream=True)
        except ProtocolError as error:
            raise TransportError(f"HTTP/2: {type(error).__name__}") from error
        self._bodies[stream] = bytearray()
        return stream, outgoing._replace(wire=wire), self._h2.data_to_send()

    def receive(self, data: bytes) -> tuple[list[Reply], bytes]:
        replies = []
        self._frames.feed(data)
        try:
            while (frame := self._frames.next_frame()) is not None:
                replies += [reply for event in self._h2.receive_data(frame) if (reply := self._take(event)) is not None]
        except (FrameError, ProtocolError) as error:
            raise TransportError(f"HTTP/2: {type(error).__name__}") from error
        if replies:
            self._frames.message_came()
        return replies, self._h2.data_to_send()

    def _take(self, event: Event) -> Reply | None:
        match event:
            case ConnectionTerminated():
                raise TransportError("the server ends the connection")
            case ResponseReceived(stream_id=int(stream)):
                fields = dict(event.headers or ())
                status, kind = fields.get(b":status", b""), fields.get(b"content-type", b"").partition(b";")[0]
                if status != b"200":
                    return self._fail(stream, f"HTTP status {status[:3].decode(errors='replace')}")
                if kind.strip().lower() != MEDIA_TYPE:
                    return self._fail(stream, "an HTTP body that is no DNS message")
            case DataReceived(stream_id=int(stream)):
                self._h2.acknowledge_received_data(event.flow_controlled_length or 0, stream)
                body = self._bodies.get(stream)
                if body is not None:
                    body += event.data or b""
                    if len(body) > MAX_MESSAGE:
                        return self._fail(stream, "an HTTP body longer than a DNS message")
            case StreamEnded(stream_id=int(stream)):
                body = self._bodies.pop(stream, None)
                return None if body is None else Reply(stream, bytes(body))
            case StreamReset(stream_id=int(stream)):
                gone = self._bodies.pop(stream, None)
                return None if gone is None else Reply(stream, TransportError("the server gave the request up"))
        return None

    def _fail(self, stream: int, reason: str) -> Reply | None:
        if self._bodies.pop(stream, None) is None:
            return None
        self._reset(stream)
        return Reply(stream, TransportError(reason))

    def _reset(self, stream: int) -> None:
        try:
            self._h2.reset_stream(stream, ErrorCodes.CANCEL)
        except ProtocolError:
            return  # it is closed already

    def forget(self, key: Hashable) -> bytes:
        if isinstance(key, int) and self._bodies.pop(key, None) is not None:
            self._reset(key)
        return self._h2.data_to_send()
