"""DNS over HTTPS (RFC 8484) on HTTP/2 (RFC 9113): one connection's streams, their requests and their replies.

Moves messages between streams and the service, and decides when a connection has had enough. What a request asks is
`doh.py`'s matter, and HTTP/2 itself the library h2's, which does no I/O. HTTP/1.1 is not spoken: RFC 8484 section 5.2
recommends HTTP/2 at least, and ALPN says so before a request is made.

What one connection can make us keep: what came and is no whole frame, or was not read yet because the client takes no
replies; bodies up to the connection's window, which opens again only when a request is whole; `MAX_UNDER_WAY`
questions; and replies that its windows do not let out, `MAX_HELD` bytes. A stream that was reset is forgotten at once,
but its question counts until it is answered: else a client could have any number of them by resetting each
(CVE-2023-44487).
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import asdict, dataclass, field
from typing import Any, cast

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    RemoteSettingsChanged,
    RequestReceived,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)
from h2.exceptions import H2Error
from h2.settings import SettingCodes, Settings

from cachebus.errors import FrameError
from cachebus.shim.connections import Connections
from cachebus.shim.doh import (
    MAX_HEADERS,
    MAX_MESSAGE,
    MEDIA_TYPE,
    Get,
    Headers,
    Post,
    Status,
    freshness,
    read_request,
)
from cachebus.shim.http2 import FrameSplitter
from cachebus.shim.query import Channel
from cachebus.shim.service import Service
from cachebus.shim.tasks import Tasks
from cachebus.shim.tcp import MAX_UNDER_WAY, MAX_UNREAD

MAX_STREAMS = 100
"""Requests of one connection at a time, the least that RFC 9113 section 6.5.2 recommends."""
MAX_RESETS = 100
"""Streams of one connection that may be reset, by whichever side; then it is ended. A client resets what it gives up,
which is seldom, and one that is turned away connects again."""
MAX_HELD = 1 << 18
"""Bytes of replies that wait for the client's windows; beyond it the next one is not held, but its stream reset."""
MAX_FRAME_OUT = 16384
"""Bytes of a frame that we send, whatever the client allows."""
ENCODER_TABLE = 4096
"""Bytes of the header compression's table for our side, whatever the client allows (RFC 7541 section 4.2)."""


class _Http2(H2Connection):
    MAX_CLOSED_STREAMS = 256  # of each of which h2 remembers how it ended; its own 65,536 are 6 MB for a connection


@dataclass(slots=True)
class HttpsCounters:
    """What became of requests."""

    requests: int = 0
    refused: int = 0
    """Answered with a status of an error."""
    turned_away: int = 0
    """Reset because the connection had too much under way."""
    resets: int = 0
    """Streams that clients reset, or that had to be."""
    ended: int = 0
    """Connections that were ended because of what was sent on them."""

    def statistics(self) -> dict[str, int]:
        """By name."""
        return {f"https_{name}": value for name, value in asdict(self).items()}


@dataclass(slots=True)
class _Request:
    asked: Get | Post
    body: bytearray = field(default_factory=bytearray)
    unacknowledged: int = 0
    """Bytes of the windows that open again when it is whole."""


class HttpsConnection(asyncio.Protocol):
    """One client's connection."""

    def __init__(
        self, service: Service, tasks: Tasks, connections: Connections, counters: HttpsCounters, *, path: str
    ) -> None:
        self._service = service
        self._tasks = tasks
        self._connections = connections
        self._counters = counters
        self._path = path.encode()
        self._transport: asyncio.Transport | None = None
        self._client = ""
        self._frames = FrameSplitter(preface=True)
        self._http = _Http2(H2Configuration(client_side=False, header_encoding=None))
        self._http.local_settings = Settings(
            client=False,
            initial_values={
                SettingCodes.MAX_CONCURRENT_STREAMS: MAX_STREAMS,
                SettingCodes.MAX_HEADER_LIST_SIZE: MAX_HEADERS,
            },
        )
        self._requests: dict[int, _Request] = {}
        self._waiting: set[int] = set()
        self._held: dict[int, bytes] = {}
        self._resets = 0
        self._choked = self._finishing = self._ended = self._has_asked = False
        self.under_way = 0
        self.active_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        peer = transport.get_extra_info("peername")
        if not peer or not self._connections.admit(self, peer[0]):
            self._ended = True
            self._transport.abort()
            return
        self._client = peer[0]
        self._http.initiate_connection()
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._ended = True
        self._requests.clear()
        self._waiting.clear()
        self._held.clear()
        self._connections.forget(self)

    def data_received(self, data: bytes) -> None:
        self._frames.feed(data)
        self._take_frames()

    def eof_received(self) -> bool:
        # HTTP/2 has no half-closed connections (RFC 9113 section 5.1 has streams for that); what is asked is answered.
        self._finishing = True
        return self.under_way > 0

    def pause_writing(self) -> None:
        self._choked = True
        self._read_or_not()

    def resume_writing(self) -> None:
        self._choked = False
        self._connections.active(self)
        self._take_frames()

    @property
    def is_idle(self) -> bool:
        """Nothing is under way, or the client takes no replies."""
        return self._choked or not self.under_way

    @property
    def is_dear(self) -> bool:
        """It has asked something."""
        return self._has_asked

    def shut(self) -> None:
        """Say which requests were taken (GOAWAY), and close."""
        self._end(ErrorCodes.NO_ERROR)

    def abort(self) -> None:
        """Close at once."""
        self._ended = True
        if self._transport is not None:
            self._transport.abort()

    def _take_frames(self) -> None:
        try:
            while (
                not (self._choked or self._finishing or self._ended)
                and (frame := self._frames.next_frame()) is not None
            ):
                for event in self._http.receive_data(frame):
                    self._event(event)
                self._flush()
        except FrameError:
            self._counters.ended += 1
            self._end(ErrorCodes.ENHANCE_YOUR_CALM)
        except H2Error:  # it has its GOAWAY ready, with the reason
            self._counters.ended += 1
            self._flush()
            self._close()
        self._read_or_not()

    def _event(self, event: Event) -> None:
        if self._ended:
            return
        match event:
            case RequestReceived():
                self._begin(event.stream_id, cast("Headers", event.headers), whole=event.stream_ended is not None)
            case DataReceived():
                self._add(event.stream_id, event.data, event.flow_controlled_length)
            case StreamEnded():
                self._whole(event.stream_id)
            case StreamReset():
                self._reset(event.stream_id)
            case WindowUpdated():
                self._release()
            case RemoteSettingsChanged():
                self._http.encoder.header_table_size = min(self._http.encoder.header_table_size, ENCODER_TABLE)
                self._release()
            case ConnectionTerminated():  # h2 sends nothing after it, so what is under way has nobody to go to
                self._close()

    def _begin(self, stream: int, headers: Headers, *, whole: bool) -> None:
        self._counters.requests += 1
        if self.under_way >= MAX_UNDER_WAY:
            self._counters.turned_away += 1
            self._give_up(stream, ErrorCodes.REFUSED_STREAM)
            return
        asked = read_request(headers, self._path)
        if isinstance(asked, Status):
            self._refuse(stream, asked, whole=whole)
        else:
            self._requests[stream] = _Request(asked)

    def _add(self, stream: int, data: bytes, length: int) -> None:
        request = self._requests.get(stream)
        if request is None:
            self._http.acknowledge_received_data(length, stream)
            return
        request.unacknowledged += length
        if isinstance(request.asked, Post):
            request.body += data
            if len(request.body) > MAX_MESSAGE:
                self._forget(stream)
                self._refuse(stream, Status.CONTENT_TOO_LARGE, whole=False)

    def _forget(self, stream: int) -> _Request | None:
        request = self._requests.pop(stream, None)
        if request is not None and request.unacknowledged:
            self._http.acknowledge_received_data(request.unacknowledged, stream)
        return request

    def _whole(self, stream: int) -> None:
        request = self._forget(stream)
        if request is None:
            return  # refused already
        self._has_asked = True
        self._frames.message_came()
        self._connections.active(self)
        message = request.asked.message if isinstance(request.asked, Get) else bytes(request.body)
        answered = self._service.handle(message, self._client, Channel.HTTPS)
        if answered is None:
            self._refuse(stream, Status.BAD_REQUEST, whole=True)
        elif isinstance(answered, bytes):
            self._reply(stream, answered)
        else:
            self.under_way += 1
            self._waiting.add(stream)
            self._tasks.start(self._reply_later(stream, answered))

    async def _reply_later(self, stream: int, answered: Coroutine[Any, Any, bytes]) -> None:
        try:
            reply = await answered
            if stream in self._waiting:
                self._waiting.discard(stream)
                self._reply(stream, reply)
        finally:
            self.under_way -= 1
            if self._transport is not None and not self._ended:
                if stream in self._waiting:  # a bug: the client need not wait for its own timer
                    self._waiting.discard(stream)
                    self._give_up(stream, ErrorCodes.INTERNAL_ERROR)
                self._connections.active(self)
                self._flush()
                if self._finishing and not self.under_way:
                    self._close()

    def _reply(self, stream: int, reply: bytes) -> None:
        age = b"max-age=%d" % freshness(reply)
        headers = [(b"content-type", MEDIA_TYPE), (b"content-length", b"%d" % len(reply)), (b"cache-control", age)]
        self._http.send_headers(stream, [(b":status", b"200"), *headers])
        self._send(stream, reply)

    def _refuse(self, stream: int, status: Status, *, whole: bool) -> None:
        self._counters.refused += 1
        headers = [(b":status", b"%d" % status.value), (b"content-length", b"0")]
        if status is Status.METHOD_NOT_ALLOWED:
            headers.append((b"allow", b"GET, POST"))
        self._http.send_headers(stream, headers, end_stream=True)
        if not whole:  # the client need not send the rest (RFC 9113 section 8.1)
            self._give_up(stream, ErrorCodes.NO_ERROR)

    def _send(self, stream: int, body: bytes) -> None:
        """Send what the client's windows let out, and hold the rest."""
        while True:
            size = min(self._http.local_flow_control_window(stream), MAX_FRAME_OUT, self._http.max_outbound_frame_size)
            if size <= 0:
                self._hold(stream, body)
                return
            piece, body = body[:size], body[size:]
            self._http.send_data(stream, piece, end_stream=not body)
            if not body:
                return

    def _hold(self, stream: int, body: bytes) -> None:
        if sum(map(len, self._held.values())) > MAX_HELD:
            self._counters.turned_away += 1
            self._give_up(stream, ErrorCodes.ENHANCE_YOUR_CALM)
        else:
            self._held[stream] = body

    def _release(self) -> None:
        held, self._held = self._held, {}
        for stream, body in held.items():
            self._send(stream, body)
            if stream not in self._held:
                self._connections.active(self)

    def _reset(self, stream: int) -> None:
        self._counters.resets += 1
        self._forget(stream)
        self._waiting.discard(stream)
        self._held.pop(stream, None)
        self._count_reset()

    def _give_up(self, stream: int, code: ErrorCodes) -> None:
        self._http.reset_stream(stream, code)
        self._count_reset()

    def _count_reset(self) -> None:
        self._resets += 1
        if self._resets > MAX_RESETS:
            self._counters.ended += 1
            self._end(ErrorCodes.ENHANCE_YOUR_CALM)

    def _end(self, code: ErrorCodes) -> None:
        """Send GOAWAY and close."""
        if self._transport is None or self._transport.is_closing():
            return
        self._http.close_connection(code)
        self._flush()
        self._close()

    def _close(self) -> None:
        self._ended = True
        self._waiting.clear()
        self._held.clear()
        if self._transport is not None:
            self._transport.close()

    def _flush(self) -> None:
        if self._transport is None or not (data := self._http.data_to_send()):
            return
        self._transport.write(data)
        if self._choked and self._transport.get_write_buffer_size() > MAX_UNREAD:
            self.abort()

    def _read_or_not(self) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        if self._choked:
            self._transport.pause_reading()
        elif not (self._finishing or self._ended):
            self._transport.resume_reading()
