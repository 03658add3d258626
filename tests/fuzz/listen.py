"""Targets: what clients send the shim's stream listeners (`shim.https`, `shim.doh`, `shim.doq`)."""

from __future__ import annotations

import asyncio
import base64
import struct
from collections.abc import Callable
from contextlib import suppress
from ipaddress import ip_network
from itertools import pairwise
from random import Random
from typing import Any

import h2.connection
from h2.config import H2Configuration

from cachebus.cache import Cache
from cachebus.errors import FrameError, MessageError
from cachebus.shim.connections import Connections
from cachebus.shim.ddr import DISCOVERY, DiscoveryStage
from cachebus.shim.doh import MAX_HEADERS, MAX_MESSAGE, Get, Post, Status, freshness, read_request
from cachebus.shim.doq import Question
from cachebus.shim.encrypted import DdrSettings
from cachebus.shim.http2 import MAX_FRAME
from cachebus.shim.https import MAX_RESETS, HttpsConnection, HttpsCounters
from cachebus.shim.lookup import CacheStage, LookupOrder
from cachebus.shim.query import Channel, Query, parse_query
from cachebus.shim.service import Service
from cachebus.shim.tasks import Tasks
from cachebus.wire.message import parse
from tests.fuzz.grammar import QR, RD, pick_name, pick_type
from tests.fuzz.harness import Part, Target
from tests.fuzz.messages import BytesTarget
from tests.fuzz.mutate import BYTES, below, mutate, mutate_text

NOW = 1_800_000_000
CLIENT = ("192.0.2.7", 40000)
PATH = "/dns-query"


def make_query(rng: Random) -> bytes:
    """A query as clients send it, mostly with message ID 0."""
    name = DISCOVERY if rng.random() < 0.2 else pick_name(rng)
    question = name + struct.pack("!HH", 64 if name is DISCOVERY else pick_type(rng), 1)
    opt = b"\0" + struct.pack("!HHIH", 41, 1232, 0x8000, 0) if rng.random() < 0.5 else b""
    if opt and rng.random() < 0.1:
        opt = opt[:-2] + b"\0\4\0\x0b\0\0"  # edns-tcp-keepalive
    ident = b"\0\0" if rng.random() < 0.9 else rng.randbytes(2)
    flags = RD if rng.random() < 0.97 else RD | QR
    return ident + struct.pack("!HHHHH", flags, 1, 0, 0, bool(opt)) + question + opt


class _Transport(asyncio.Transport):
    """Keeps what is written, and how it ended."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.closed = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return CLIENT if name == "peername" else default

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.closed, "nothing is written after the end"
        self.written += data

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        raise AssertionError("nothing is ever full here")

    def resume_reading(self) -> None:
        assert not self.closed

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    abort = close


def _order() -> LookupOrder:
    discovery = DiscoveryStage(DdrSettings(name=b"\3dns\7example\0"), PATH)
    discovery.announce({Channel.TLS: ((CLIENT[0], 853),), Channel.HTTPS: ((CLIENT[0], 443),)})
    return LookupOrder([discovery, CacheStage(Cache("n1", max_entries=10))], lambda: NOW)


_ORDER = _order()
_ALLOW = (ip_network("192.0.2.0/24"),)


class _Service(Service):
    """The real one before an empty cache, with a list of what it was asked."""

    def __init__(self) -> None:
        super().__init__(_ORDER, Tasks(), lambda: NOW, allow=_ALLOW, max_in_flight=16)
        self.asked: list[bytes] = []

    def handle(self, data: bytes, client: str, channel: Channel) -> Any:
        assert (client, channel.is_encrypted) == (CLIENT[0], channel is not Channel.TCP)
        self.asked.append(data)
        return super().handle(data, client, channel)


class _Run:
    """One connection that is fed an example in pieces, and what came of it."""

    def __init__(self, make: Callable[[Service, Connections], asyncio.Protocol], pieces: list[bytes]) -> None:
        self.service = _Service()
        self.connections = Connections(10, per_client=5, clock=lambda: 0.0)
        self.protocol = make(self.service, self.connections)
        self.transport = _Transport()
        self.protocol.connection_made(self.transport)
        for piece in pieces:
            if self.transport.closed:  # as a transport that is closed brings nothing
                break
            self.protocol.data_received(piece)
        self.closed = self.transport.closed
        self.protocol.connection_lost(None)
        assert self.connections.open == 0


def cut(rng: Random, data: bytes) -> list[bytes]:
    """The same bytes in pieces, now and then each on its own."""
    if rng.random() < 0.1:
        return [data[at : at + 1] for at in range(len(data))]
    places = sorted({below(rng, len(data) + 1) for _ in range(below(rng, 6))} | {0, len(data)})
    return [data[start:end] for start, end in pairwise(places)]


class RequestTarget(Target[tuple[tuple[bytes, bytes], ...]]):
    """`read_request`: a message, the way to one, or the status that says why not."""

    name = "doh-request"
    parts = (Part("cachebus/shim/doh.py", only=("read_request", "_read_get", "_read_post")),)

    def valid(self, rng: Random) -> tuple[tuple[bytes, bytes], ...]:
        get = rng.random() < 0.6
        path, message = PATH, make_query(rng)
        if get:
            encoded = base64.urlsafe_b64encode(message).rstrip(b"=").decode()
            path += f"?{'ct=x&' if rng.random() < 0.2 else ''}dns={encoded}"
        headers = [(b":method", b"GET" if get else b"POST"), (b":scheme", b"https"), (b":path", path.encode())]
        if not get:
            headers += [(b"content-type", b"application/dns-message"), (b"content-length", b"%d" % len(message))]
        return tuple(headers)

    def mutated(self, rng: Random) -> tuple[tuple[bytes, bytes], ...]:
        headers = list(self.valid(rng))
        at = below(rng, len(headers))
        name, value = headers[at]
        if rng.random() < 0.03:
            value *= below(rng, 1500)
        elif rng.random() < 0.1:
            del headers[at]
            return tuple(headers)
        elif rng.random() < 0.5:
            value = mutate_text(rng, value.decode(), [":", "dns=", "&", "=", "?", "%3D", "+", "-", "_"]).encode()
        else:
            value = mutate(rng, value)
        headers[at] = (name, value)
        return tuple(headers)

    def noise(self, rng: Random) -> tuple[tuple[bytes, bytes], ...]:
        return tuple((rng.randbytes(below(rng, 9)), rng.randbytes(below(rng, 50))) for _ in range(below(rng, 5)))

    def check(self, example: tuple[tuple[bytes, bytes], ...], rng: Random) -> bool:
        asked = read_request(example, PATH.encode())
        fields = dict(example)
        match asked:
            case Status():
                return False
            case Get(message):
                assert len(message) <= MAX_MESSAGE
                _, _, query = fields[b":path"].partition(b"?")
                (encoded,) = [field[4:] for field in query.split(b"&") if field.startswith(b"dns=")]
                assert base64.urlsafe_b64decode(encoded + b"==") == message
            case Post():
                assert fields[b":method"] == b"POST"
        assert sum(len(name) + len(value) + 32 for name, value in example) <= MAX_HEADERS
        return True


class HttpsTarget(BytesTarget):
    """An HTTP/2 client's bytes: requests are answered, whatever else ends the connection, however they arrive."""

    name = "shim-https"
    parts = (
        Part("cachebus/shim/doh.py", only=("freshness",)),
        Part("cachebus/shim/http2.py"),
        Part("cachebus/shim/https.py", only=("HttpsConnection._take_frames", "HttpsConnection._refuse")),
    )
    cost = 5
    calls = 3

    def valid(self, rng: Random) -> bytes:
        http = h2.connection.H2Connection(H2Configuration(client_side=True, header_encoding="ascii"))
        http.initiate_connection()
        for _ in range(1 + below(rng, 4)):
            self._request(http, rng)
            if rng.random() < 0.3:
                self._aside(http, rng)
        return http.data_to_send()

    def _request(self, http: h2.connection.H2Connection, rng: Random) -> None:
        stream, message = http.get_next_available_stream_id(), make_query(rng)
        get, end = rng.random() < 0.4, rng.random() < 0.9
        path = PATH if rng.random() < 0.95 else "/"
        if get:
            path += "?dns=" + base64.urlsafe_b64encode(message).rstrip(b"=").decode()
        method = "PUT" if rng.random() < 0.03 else "GET" if get else "POST"
        headers = [(":method", method), (":scheme", "https"), (":authority", "x"), (":path", path)]
        if not get:
            headers.append(("content-type", "application/dns-message" if rng.random() < 0.95 else "x"))
        if rng.random() < 0.02:
            headers += [(f"x{number}", "y" * 4000) for number in range(9)]
        http.send_headers(stream, headers, end_stream=get and end)
        if get and not end:
            http.send_data(stream, b"x" * below(rng, 9))
        if not get:
            if rng.random() < 0.05:
                message += bytes(MAX_MESSAGE)
            for start in range(0, len(message), MAX_FRAME):
                http.send_data(stream, message[start : start + MAX_FRAME])
            if end:
                http.end_stream(stream)
        if not end and rng.random() < 0.6:
            http.reset_stream(stream)

    def _aside(self, http: h2.connection.H2Connection, rng: Random) -> None:
        match below(rng, 5):
            case 0:
                http.ping(bytes(8))
            case 1:
                http.update_settings({4: below(rng, 70000), 1: below(rng, 10000)})
            case 2:
                http.increment_flow_control_window(1 + below(rng, 70000))
            case 3:
                http.close_connection()
                http.state_machine.state = h2.connection.ConnectionState.CLIENT_OPEN
            case 4:
                http.prioritize(http.highest_outbound_stream_id, weight=1 + below(rng, 255))

    def mutated(self, rng: Random) -> bytes:
        data = self.valid(rng)
        if rng.random() < 0.5:
            return mutate(rng, data, (data,), start=24)
        frames = _frames(data)
        for _ in range(1 + below(rng, 3)):
            at = 1 + below(rng, len(frames) - 1)
            match below(rng, 6):
                case 0:
                    frames[at] = mutate(rng, frames[at])
                case 1:
                    frames.insert(at, frames[1 + below(rng, len(frames) - 1)])
                case 2:
                    frames[at] = frames[at][:3] + bytes((below(rng, 11),)) + frames[at][4:]
                case 3:
                    frames[at] = frames[at][:4] + bytes((BYTES[below(rng, len(BYTES))],)) + frames[at][5:]
                case 4:
                    frames[at] = frames[at] * (below(rng, 400) if rng.random() < 0.2 else 2)
                case 5:
                    frames.insert(at, b"\0\0\1\x09\0\0\0\0\1\x82" * below(rng, 8))
        return b"".join(frames)

    def noise(self, rng: Random) -> bytes:
        return (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" if rng.random() < 0.7 else b"") + super().noise(rng)

    def check(self, example: bytes, rng: Random) -> bool:
        def make(service: Service, connections: Connections) -> asyncio.Protocol:
            return HttpsConnection(service, Tasks(), connections, HttpsCounters(), path=PATH)

        whole, pieces = _Run(make, [example]), _Run(make, cut(rng, example))
        assert whole.service.asked == pieces.service.asked
        assert whole.transport.written == pieces.transport.written
        assert whole.closed == pieces.closed
        for run in (whole, pieces):
            connection = run.protocol
            assert isinstance(connection, HttpsConnection)
            assert not connection._requests
            assert not connection._held
            assert connection._resets <= MAX_RESETS + 1
            assert run.closed or len(connection._frames) <= MAX_FRAME + 9
        frames = _frames(bytes(whole.transport.written), preface=False)
        assert sum(map(len, frames)) == len(whole.transport.written), "only whole frames are sent"
        for message in whole.service.asked[:1]:
            self._fresh(message)
        return bool(whole.service.asked)

    def _fresh(self, message: bytes) -> None:
        reply = _Service().handle(message, CLIENT[0], Channel.HTTPS)
        if reply is None:
            return
        found = parse(reply)
        ttls = [rrset.ttl for section in (found.answer, found.authority) for rrset in section]
        assert freshness(reply) == (min(ttls, default=0) if found.rcode in (0, 3) else 0)


def _frames(data: bytes, *, preface: bool = True) -> list[bytes]:
    position = 24 if preface else 0
    frames = [data[:position]] if preface else []
    while position + 9 <= len(data):
        end = position + 9 + int.from_bytes(data[position : position + 3], "big")
        frames.append(data[position:end])
        position = end
    return frames


class QuestionTarget(BytesTarget):
    """A DoQ stream's bytes: one message with ID 0 that may be on QUIC, or an error."""

    name = "doq-stream"
    parts = (Part("cachebus/shim/doq.py"),)

    def valid(self, rng: Random) -> bytes:
        message = make_query(rng)
        return len(message).to_bytes(2, "big") + message

    def check(self, example: bytes, rng: Random) -> bool:
        question = Question()
        try:
            for piece in cut(rng, example):
                question.feed(piece)
                assert len(question) <= len(example)
            message = question.end()
        except FrameError:
            return False
        assert example == len(message).to_bytes(2, "big") + message
        assert message[:2] == b"\0\0"
        with suppress(MessageError):
            if not isinstance(parse_query(message), Query):
                return True
            opt = parse(message).opt
            assert opt is None or opt.options[:2] != b"\0\x0b"
        return True


TARGETS: tuple[type[Target[Any]], ...] = (RequestTarget, HttpsTarget, QuestionTarget)
