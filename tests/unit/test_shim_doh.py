"""DNS over HTTPS in memory: what a request asks, how long a reply is fresh, and connections with h2's client."""

from __future__ import annotations

import asyncio
import base64
import struct
from typing import Any

import dns.message
import pytest
from h2.errors import ErrorCodes

from cachebus.errors import FrameError
from cachebus.shim import doh, http2, https
from cachebus.shim.doh import Get, Post, Status, freshness, read_request
from cachebus.shim.http2 import FrameSplitter
from cachebus.shim.query import Channel
from tests.unit.listen_bed import PEER, H2Client

PATH = b"/dns-query"
QUERY = dns.message.make_query("www.example.", "A").to_wire()


def reply(*lines: str, rcode: int = 0, section: str = "ANSWER") -> bytes:
    text = f"id 0\nflags QR RD RA\nrcode {rcode}\n;QUESTION\nwww.example. IN A\n;{section}\n" + "\n".join(lines)
    return dns.message.from_text(text).to_wire()


REPLY = reply("www.example. 300 IN A 192.0.2.1")


def headers(**fields: str) -> list[tuple[bytes, bytes]]:
    given = {"method": "POST", "path": "/dns-query", "content_type": "application/dns-message", **fields}
    return [
        ((b":" if name in ("method", "path") else b"") + name.replace("_", "-").encode(), value.encode())
        for name, value in given.items()
    ]


def base64url(message: bytes) -> str:
    return base64.urlsafe_b64encode(message).rstrip(b"=").decode()


def got(query: str) -> Get | Post | Status:
    return read_request(headers(method="GET", path=f"/dns-query?{query}"), PATH)


class TestRequest:
    def test_get(self) -> None:
        # The example of RFC 8484 section 4.1.1, and one with every length of the last group.
        example = "AAABAAABAAAAAAAAA3d3dwdleGFtcGxlA2NvbQAAAQAB"
        asked = got(f"dns={example}")
        assert isinstance(asked, Get)
        assert dns.message.from_wire(asked.message).question[0].name.to_text() == "www.example.com."
        for size in range(1, 70):
            message = bytes(range(200, 200 + size % 50)) + b"\xfb\xff" * size
            assert got(f"ct=x&dns={base64url(message)}&more") == Get(message)

    @pytest.mark.parametrize(
        "query",
        [
            "",
            "dns",
            "dn=AAAA",
            "dns=AAAA&dns=AAAA",
            "dns=AA==",
            "dns=A",
            "dns=A+A/",
            "dns=AA%3D%3D",
            "dns=AA AA",
            "dns=é",
        ],
    )
    def test_get_without_a_message(self, query: str) -> None:
        assert got(query) is Status.BAD_REQUEST

    def test_too_long(self) -> None:
        assert got(f"dns={base64url(bytes(doh.MAX_MESSAGE))}") == Get(bytes(doh.MAX_MESSAGE))
        assert got(f"dns={base64url(bytes(doh.MAX_MESSAGE + 1))}") is Status.URI_TOO_LONG
        assert read_request(headers(content_length=str(doh.MAX_MESSAGE)), PATH) == Post()
        assert read_request(headers(content_length=str(doh.MAX_MESSAGE + 1)), PATH) is Status.CONTENT_TOO_LARGE
        assert read_request(headers(content_length="9" * 5000), PATH) is Status.CONTENT_TOO_LARGE
        assert read_request(headers(cookie="x" * doh.MAX_HEADERS), PATH) is Status.HEADERS_TOO_LARGE

    @pytest.mark.parametrize("media", ["application/dns-message", "Application/DNS-Message; charset=x"])
    def test_post(self, media: str) -> None:
        assert read_request(headers(content_type=media), PATH) == Post()

    @pytest.mark.parametrize("media", ["", "text/plain", "application/dns-json", "application/dns-messages"])
    def test_post_of_something_else(self, media: str) -> None:
        assert read_request(headers(content_type=media), PATH) is Status.UNSUPPORTED_MEDIA_TYPE

    @pytest.mark.parametrize("path", ["/", "/dns-query/", "/DNS-query", "/dns-queryx?dns=AAAA", "dns-query", "*"])
    def test_elsewhere(self, path: str) -> None:
        assert read_request(headers(path=path), PATH) is Status.NOT_FOUND

    @pytest.mark.parametrize("method", ["PUT", "HEAD", "DELETE", "OPTIONS", "get", "CONNECT"])
    def test_other_methods(self, method: str) -> None:
        assert read_request(headers(method=method), PATH) is Status.METHOD_NOT_ALLOWED
        assert read_request([], b"") is Status.METHOD_NOT_ALLOWED


@pytest.mark.parametrize(
    ("message", "seconds"),
    [
        (REPLY, 300),
        (reply("www.example. 300 IN CNAME a.example.", "a.example. 7 IN A 192.0.2.1"), 7),
        (reply("www.example. 0 IN A 192.0.2.1"), 0),
        (reply("example. 900 IN SOA a. b. 1 2 3 4 60", rcode=3, section="AUTHORITY"), 60),
        (reply("example. 30 IN SOA a. b. 1 2 3 4 60", section="AUTHORITY"), 30),
        (reply(), 0),
        (reply(rcode=2), 0),
        (reply("www.example. 300 IN A 192.0.2.1", rcode=2), 0),
        (b"\0\0\x80\4" + bytes(8), 0),
    ],
)
def test_a_reply_is_fresh_for_its_smallest_ttl(message: bytes, seconds: int) -> None:
    assert freshness(message) == seconds


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + struct.pack("!BBI", kind, flags, stream) + payload


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


class TestFrames:
    @pytest.mark.parametrize("step", [1, 7, 1000])
    def test_whole_frames_come_out(self, step: int) -> None:
        frames = [frame(4), frame(0, 1, 1, b"x" * 300), frame(8, 0, 0, b"\0\0\1\0")]
        data = PREFACE + b"".join(frames)
        splitter, found = FrameSplitter(preface=True), []
        for start in range(0, len(data), step):
            splitter.feed(data[start : start + step])
            while (one := splitter.next_frame()) is not None:
                found.append(one)
        assert found == [PREFACE, *frames]
        assert len(splitter) == 0

    def test_a_frame_too_long_is_refused_by_its_header(self) -> None:
        splitter = FrameSplitter(preface=True)
        splitter.feed(PREFACE + frame(0, 0, 1, b"")[3:].join([b"\0\x40\1", b""]))
        assert splitter.next_frame() == PREFACE
        with pytest.raises(FrameError):
            splitter.next_frame()

    @pytest.mark.parametrize(
        ("one", "count"),
        [
            (frame(9, 0, 1, b"x"), http2.MAX_CONTINUATIONS),
            (frame(6, 0, 0, bytes(8)), http2.MAX_OTHER_FRAMES),
            (frame(0, 0, 1), http2.MAX_OTHER_FRAMES),
            (frame(200, 0, 0), http2.MAX_OTHER_FRAMES),
        ],
    )
    def test_floods_end(self, one: bytes, count: int) -> None:
        splitter = FrameSplitter(preface=True)
        splitter.feed(PREFACE + one * (count + 1))
        assert splitter.next_frame() == PREFACE
        assert [splitter.next_frame() for _ in range(count)] == [one] * count
        with pytest.raises(FrameError):
            splitter.next_frame()

    def test_requests_pay_for_what_comes_between_them(self) -> None:
        splitter = FrameSplitter(preface=True)
        splitter.feed(PREFACE)
        splitter.next_frame()
        for _ in range(20):
            splitter.feed(frame(8, 0, 0, b"\0\0\1\0") * 100)
            for _ in range(100):
                assert splitter.next_frame()
            splitter.message_came()


@pytest.mark.parametrize("step", [None, 1, 13])
async def test_get_and_post(step: int | None) -> None:
    client = H2Client(lambda message: REPLY, step=step)
    post = client.request(body=QUERY)
    get = client.request("GET", f"/dns-query?dns={base64url(QUERY)}")
    client.exchange()
    for stream in (post, get):
        assert client.statuses[stream] == 200
        assert client.bodies[stream] == REPLY
        assert client.headers[stream] == {
            "content-type": "application/dns-message",
            "content-length": str(len(REPLY)),
            "cache-control": "max-age=300",
        }
    assert client.ended == {post, get}
    assert client.service.asked == [(QUERY, PEER[0], Channel.HTTPS)] * 2


async def test_replies_come_as_they_are_found() -> None:
    gate = asyncio.Event()

    async def later() -> bytes:
        await gate.wait()
        return REPLY

    client = H2Client(lambda message: later() if message == QUERY else REPLY)
    slow, fast = client.request(body=QUERY), client.request(body=QUERY + b"x")
    await client.settle()
    assert client.ended == {fast}
    assert client.server.under_way == 1
    gate.set()
    await client.settle()
    assert client.ended == {slow, fast}
    assert (client.server.under_way, len(client.tasks)) == (0, 0)


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        ({"method": "GET", "path": "/dns-query"}, 400),
        ({"method": "GET", "path": "/elsewhere?dns=AAAA"}, 404),
        ({"method": "PUT", "body": QUERY}, 405),
        ({"body": QUERY, "content_type": "text/plain"}, 415),
        ({"body": bytes(doh.MAX_MESSAGE + 1)}, 413),
        ({"body": QUERY, "more": (("content-length", str(doh.MAX_MESSAGE + 1)),), "end": False}, 413),
        ({"method": "GET", "path": "/dns-query?dns=AAAA", "more": (("x", "y" * doh.MAX_HEADERS),)}, 431),
        ({"body": b"\0\0\x80\0"}, 400),
    ],
)
async def test_refused_with_its_status_and_the_connection_stays(request_: dict[str, Any], status: int) -> None:
    client = H2Client(lambda message: None if message == b"\0\0\x80\0" else REPLY)
    stream = client.request(**request_)
    client.exchange()
    assert client.statuses[stream] == status
    assert client.bodies.get(stream, b"") == b""
    assert (client.headers[stream].get("allow") == "GET, POST") is (status == 405)
    after = client.request(body=QUERY)
    client.exchange()
    assert client.statuses[after] == 200
    assert client.counters.refused == 1
    assert not client.server._requests


async def test_headers_beyond_every_bound_end_the_connection() -> None:
    client = H2Client(lambda message: REPLY)
    client.request("GET", "/dns-query?dns=AAAA", more=tuple((f"x{n}", "y" * 4000) for n in range(25)))
    client.exchange()
    assert client.goaway is not None
    assert client.transport.closed


async def test_a_reset_stream_is_forgotten_but_its_question_counts() -> None:
    gate = asyncio.Event()

    async def later() -> bytes:
        await gate.wait()
        return REPLY

    client = H2Client(lambda message: later())
    for _ in range(10):
        stream = client.request(body=QUERY)
        client.exchange()
        client.http.reset_stream(stream, ErrorCodes.CANCEL)
        client.exchange()
    assert not client.server._waiting
    assert not client.server._requests
    assert client.server.under_way == 10
    assert client.counters.resets == 10
    gate.set()
    await client.settle()
    assert client.server.under_way == 0
    assert not client.bodies
    assert not client.transport.closed


async def test_rapid_resets_end_the_connection_and_ask_little() -> None:
    gate = asyncio.Event()

    async def later() -> bytes:
        await gate.wait()
        return REPLY

    client = H2Client(lambda message: later())
    for _ in range(1000):
        if client.transport.closed:
            break
        stream = client.request(body=QUERY)
        client.http.reset_stream(stream, ErrorCodes.CANCEL)
        client.exchange()
    assert client.goaway == ErrorCodes.ENHANCE_YOUR_CALM
    assert len(client.service.asked) <= https.MAX_RESETS + 1
    assert client.counters.ended == 1
    gate.set()
    await client.settle()
    assert len(client.tasks) == 0


async def test_more_than_may_be_under_way_is_turned_away() -> None:
    gate = asyncio.Event()

    async def later() -> bytes:
        await gate.wait()
        return REPLY

    client = H2Client(lambda message: later())
    for _ in range(https.MAX_UNDER_WAY // 2):  # taken back, and still under way
        stream = client.request(body=QUERY)
        client.exchange()
        client.http.reset_stream(stream, ErrorCodes.CANCEL)
    streams = [client.request(body=QUERY) for _ in range(https.MAX_STREAMS)]
    client.exchange()
    assert client.server.under_way == https.MAX_UNDER_WAY
    assert set(client.resets.values()) == {ErrorCodes.REFUSED_STREAM}
    assert client.counters.turned_away == https.MAX_UNDER_WAY // 2 == len(client.resets)
    gate.set()
    await client.settle()
    assert len(client.ended) == len(streams) - len(client.resets)


async def test_more_streams_than_allowed_end_the_connection() -> None:
    client = H2Client(lambda message: REPLY)
    client.http.remote_settings.max_concurrent_streams = 1000  # as if it had been told so
    client.http.remote_settings.acknowledge()
    for _ in range(https.MAX_STREAMS + 1):
        client.request(body=b"x", end=False)
    client.exchange()
    assert client.goaway is not None
    assert client.transport.closed


async def test_a_big_reply_waits_for_the_windows() -> None:
    big = REPLY + bytes(65000)
    client = H2Client(lambda message: big)
    streams = [client.request(body=QUERY) for _ in range(3)]
    client.exchange(acknowledge=False)
    assert sum(map(len, client.bodies.values())) == 65535
    assert client.server.is_idle
    client.http.increment_flow_control_window(200_000)
    client.exchange()
    assert [client.bodies[stream] for stream in streams] == [big] * 3
    assert client.ended == set(streams)
    assert not client.server._held


async def test_what_a_client_lets_wait_is_bounded() -> None:
    big = REPLY + bytes(65000)
    client = H2Client(lambda message: big)
    client.http.update_settings({4: 0})
    client.exchange()
    for _ in range(20):
        client.request(body=QUERY)
        client.exchange(acknowledge=False)
    held = sum(map(len, client.server._held.values()))
    assert held <= https.MAX_HELD + len(big)
    assert set(client.resets.values()) == {ErrorCodes.ENHANCE_YOUR_CALM}
    client.http.update_settings({4: 65535})
    client.http.increment_flow_control_window(1 << 20)
    client.exchange()
    assert len(client.ended) + len(client.resets) == 20
    assert not client.server._held


async def test_bodies_that_never_end_are_bounded_by_the_connections_window() -> None:
    client = H2Client(lambda message: REPLY)
    for _ in range(90):
        if client.http.local_flow_control_window(client.request(end=False)) < 16000:
            break
        stream = client.http.highest_outbound_stream_id
        client.http.send_data(stream, bytes(16000))
        client.exchange()
    kept = sum(len(request.body) for request in client.server._requests.values())
    assert kept <= 65535
    assert not client.service.asked


async def test_a_client_that_takes_nothing_is_not_read() -> None:
    client = H2Client(lambda message: REPLY)
    client.server.pause_writing()
    assert client.transport.paused
    stream = client.request(body=QUERY)
    client.exchange()
    assert not client.service.asked
    client.server.resume_writing()
    assert not client.transport.paused
    client.exchange()
    assert client.ended == {stream}


async def test_a_client_that_takes_nothing_of_very_much_is_cut() -> None:
    async def later() -> bytes:
        return REPLY

    client = H2Client(lambda message: later())
    client.request(body=QUERY)
    client.exchange()
    client.server.pause_writing()
    client.transport.unsent = https.MAX_UNREAD + 1
    for _ in range(5):
        await asyncio.sleep(0)
    assert client.transport.aborted


@pytest.mark.parametrize(
    "flood",
    [
        frame(6, 0, 0, bytes(8)) * 1000,
        frame(4) * 1000,
        frame(1, 0, 1, b"\x82") + frame(9, 0, 1, b"\x82") * 100,
        frame(2, 0, 1, bytes(5)) * 1000,
        frame(0xFE, 0, 0, b"x") * 1000,
        b"\xff" * 100_000,
        b"GET / HTTP/1.1\r\nhost: x\r\n\r\n" * 10,
    ],
    ids=["ping", "settings", "continuation", "priority", "unknown", "noise", "http1"],
)
async def test_floods_end_the_connection(flood: bytes) -> None:
    client = H2Client(lambda message: REPLY)
    client.transport.take()
    client.send(flood)
    assert client.transport.closed
    assert len(client.transport.take()) < 10_000
    assert client.counters.ended == 1
    client.send(flood)  # what was on its way: nothing comes of it
    assert not client.service.asked


async def test_goodbye() -> None:
    gate = asyncio.Event()

    async def later() -> bytes:
        await gate.wait()
        return REPLY

    client = H2Client(lambda message: later())
    client.request(body=QUERY)
    client.exchange()
    client.server.shut()
    client.exchange()
    assert client.goaway == ErrorCodes.NO_ERROR
    assert client.transport.closed
    client.server.connection_lost(None)
    gate.set()
    await client.settle()
    assert (client.server.under_way, client.connections.open, len(client.tasks)) == (0, 0, 0)


async def test_the_clients_goodbye_ends_it() -> None:
    client = H2Client(lambda message: REPLY)
    client.http.close_connection()
    client.exchange()
    assert client.transport.closed


async def test_a_half_closed_client_gets_what_is_under_way() -> None:
    gate = asyncio.Event()

    async def later() -> bytes:
        await gate.wait()
        return REPLY

    client = H2Client(lambda message: later())
    stream = client.request(body=QUERY)
    client.exchange()
    assert client.server.eof_received()
    gate.set()
    await client.settle()
    assert client.ended == {stream}
    assert client.transport.closed
    assert not H2Client(lambda message: REPLY).server.eof_received()


async def test_the_header_compressions_table_is_ours_to_bound() -> None:
    client = H2Client(lambda message: REPLY)
    client.http.update_settings({1: 1 << 24})
    client.exchange()
    stream = client.request(body=QUERY)
    client.exchange()
    assert client.statuses[stream] == 200
    assert client.server._http.encoder.header_table_size == https.ENCODER_TABLE


async def test_a_bug_in_the_service_resets_the_stream(caplog: pytest.LogCaptureFixture) -> None:
    async def broken() -> bytes:
        raise RuntimeError("a bug")

    client = H2Client(lambda message: broken())
    stream = client.request(body=QUERY)
    client.exchange()
    await client.settle()
    assert client.resets == {stream: ErrorCodes.INTERNAL_ERROR}
    assert client.server.under_way == 0
    assert len(caplog.records) == 1


async def test_what_is_under_way_at_the_end_leaves_nothing() -> None:
    async def never() -> bytes:
        await asyncio.Event().wait()
        raise AssertionError

    client = H2Client(lambda message: never())
    client.request(body=QUERY)
    client.exchange()
    client.server.abort()
    client.server.connection_lost(None)
    await client.tasks.end()
    assert (client.server.under_way, len(client.tasks)) == (0, 0)
