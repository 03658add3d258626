"""DNS over HTTPS to an upstream, against a server of the h2 library joined in memory; and the choice of upstreams."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterable

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, Event, RequestReceived, StreamEnded
from h2.settings import SettingCodes

from cachebus.cache import Cache
from cachebus.errors import TransportError
from cachebus.shim.exchange import Outgoing, compose_query
from cachebus.shim.forward import EXPLORE_EVERY, Forwarder
from cachebus.shim.http2 import MAX_FRAME
from cachebus.shim.session import MAX_MESSAGE, Https, LengthPrefixed, Reply
from cachebus.shim.settings import Choice, UpstreamSettings
from cachebus.shim.upstream import Health, Upstream
from cachebus.testing import ManualClock
from tests.unit.shim_bed import settings

QUERY = compose_query(b"\3www\7example\0", 1, recurse=True, padded=True)
OK = [(b":status", b"200"), (b"content-type", b"application/dns-message")]


class Server:
    """The other end, in memory. `respond` is done by the tests."""

    def __init__(self, session: Https) -> None:
        self.session = session
        self.h2 = H2Connection(H2Configuration(client_side=False, header_encoding=None))
        self.h2.initiate_connection()
        self.bodies: dict[int, bytes] = {}
        self.headers: dict[int, dict[bytes, bytes]] = {}
        self.take(session.opening())
        self.flush()

    def take(self, data: bytes) -> list[Event]:
        events = self.h2.receive_data(data)
        for event in events:
            if isinstance(event, RequestReceived):
                assert event.stream_id is not None
                self.headers[event.stream_id] = dict(event.headers or ())
            elif isinstance(event, DataReceived):
                assert event.stream_id is not None
                self.bodies[event.stream_id] = self.bodies.get(event.stream_id, b"") + (event.data or b"")
        return events

    def flush(self) -> list[Reply]:
        replies, back = self.session.receive(self.h2.data_to_send())
        self.take(back)
        return replies

    def answer(self, stream: int, body: bytes, headers: Iterable[tuple[bytes, bytes]] = OK) -> list[Reply]:
        self.h2.send_headers(stream, list(headers))
        replies = []
        for start in range(0, len(body), 16000):
            self.h2.send_data(stream, body[start : start + 16000])
            replies += self.flush()
        self.h2.end_stream(stream)
        return replies + self.flush()


def asked() -> tuple[Server, int, Outgoing]:
    server = Server(Https("dns.example:8443", "/dns-query?a=b"))
    key, sent, data = server.session.ask(QUERY)
    events = server.take(data)
    assert isinstance(events[-1], StreamEnded)
    assert isinstance(key, int)
    return server, key, sent


def test_a_question_is_one_post_with_the_id_0() -> None:
    server, stream, sent = asked()
    assert server.headers[stream] == {
        b":method": b"POST",
        b":scheme": b"https",
        b":authority": b"dns.example:8443",
        b":path": b"/dns-query?a=b",
        b"accept": b"application/dns-message",
        b"content-type": b"application/dns-message",
        b"content-length": b"%d" % len(QUERY.wire),
    }
    assert server.bodies[stream] == sent.wire == b"\0\0" + QUERY.wire[2:]


def test_replies_come_in_any_order_and_pieces() -> None:
    server, first, _ = asked()
    second, _, data = server.session.ask(QUERY)
    server.take(data)
    assert isinstance(second, int)
    assert server.answer(second, b"two" * 9000) == [Reply(second, b"two" * 9000)]
    assert server.answer(first, b"") == [Reply(first, b"")]


@pytest.mark.parametrize(
    ("headers", "body", "reason"),
    [
        ([(b":status", b"503"), OK[1]], b"x", "HTTP status 503"),
        ([OK[0]], b"x", "an HTTP body that is no DNS message"),
        ([OK[0], (b"content-type", b"text/html")], b"x", "an HTTP body that is no DNS message"),
        (OK, bytes(MAX_MESSAGE + 1), "an HTTP body longer than a DNS message"),
    ],
)
def test_what_is_no_dns_message_ends_one_question_only(
    headers: list[tuple[bytes, bytes]], body: bytes, reason: str
) -> None:
    server, stream, _ = asked()
    server.h2.send_headers(stream, headers)
    replies = server.flush()
    for start in range(0, len(body), 16000):
        if not replies:
            server.h2.send_data(stream, body[start : start + 16000])
            replies += server.flush()
    ((key, error),) = replies
    assert key == stream
    assert isinstance(error, TransportError)
    assert str(error) == reason
    again, _, data = server.session.ask(QUERY)
    server.take(data)
    assert isinstance(again, int)
    assert server.answer(again, b"fine") == [Reply(again, b"fine")]


def test_the_content_type_may_have_parameters() -> None:
    server, stream, _ = asked()
    headers = [OK[0], (b"content-type", b"Application/DNS-Message; charset=x")]
    assert server.answer(stream, b"x", headers) == [Reply(stream, b"x")]


def test_a_reset_ends_one_question_and_goaway_all() -> None:
    server, stream, _ = asked()
    server.h2.reset_stream(stream)
    ((_, error),) = server.flush()
    assert isinstance(error, TransportError)
    server.h2.close_connection()
    with pytest.raises(TransportError, match="ends the connection"):
        server.flush()


def test_no_more_streams_than_the_server_takes() -> None:
    server, stream, _ = asked()
    server.h2.update_settings({SettingCodes.MAX_CONCURRENT_STREAMS: 1})
    server.flush()
    with pytest.raises(TransportError, match="TooManyStreamsError"):
        server.session.ask(QUERY)
    server.answer(stream, b"x")
    server.session.ask(QUERY)


def test_a_question_given_up_is_reset_and_its_reply_is_nobodys() -> None:
    server, stream, _ = asked()
    data = server.session.forget(stream)
    server.take(data)
    assert not server.session.forget(stream)
    assert not server.flush()


def test_what_is_no_http2_ends_the_connection() -> None:
    session = Https("dns.example", "/")
    session.opening()
    with pytest.raises(TransportError, match="HTTP/2"):
        session.receive(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 3)


def test_a_frame_that_is_too_long_ends_the_connection_before_it_is_here() -> None:
    server, _, _ = asked()
    with pytest.raises(TransportError, match="FrameError"):
        server.session.receive((MAX_FRAME + 1).to_bytes(3, "big") + bytes(6))


def test_messages_with_lengths_in_any_pieces() -> None:
    session = LengthPrefixed()
    stream = b"\0\3ab1\0\0\0\4cd23"
    for cut in range(len(stream)):
        first, _ = session.receive(stream[:cut])
        second, _ = session.receive(stream[cut:])
        assert [reply.message for reply in first + second] == [b"ab1", b"", b"cd23"]


def test_an_id_under_way_is_not_used_again() -> None:
    session = LengthPrefixed()
    _, first, _ = session.ask(QUERY)
    key, second, data = session.ask(QUERY)
    assert first.wire[:2] != second.wire[:2] == key == data[2:4]
    session.forget(QUERY.wire[:2])
    assert session.ask(QUERY)[1] == QUERY


# The choice


def plan(choice: Choice, upstreams: list[Upstream], questions: int) -> list[str]:
    made = dataclasses.replace(settings(), choice=choice)
    forwarder = Forwarder(made, upstreams, lambda *_: None, ManualClock(0.0))
    order = []
    for number in range(questions):
        first = forwarder._plan(float(number))[0]
        first.health.asked = float(number)
        order.append(first.settings.address[0])
    return order


def upstreams(*round_trips: float, validating: Iterable[int] = ()) -> list[Upstream]:
    made = []
    for number, seconds in enumerate(round_trips):
        trust = {"validating": True, "tls_name": "x.example"} if number in validating else {}
        upstream = Upstream(UpstreamSettings(address=(f"192.0.2.{number}", 53), **trust))  # type: ignore[arg-type]
        upstream.health.took(seconds)
        made.append(upstream)
    return made


def test_the_fastest_is_asked_first_and_the_others_now_and_then() -> None:
    found = plan(Choice.FASTEST, upstreams(0.03, 0.01, 0.02), 4 * EXPLORE_EVERY)
    assert found.count("192.0.2.1") >= 4 * (EXPLORE_EVERY - 1)
    assert {"192.0.2.0", "192.0.2.2"} < set(found)


def test_in_the_order_written_where_that_is_asked_for() -> None:
    assert set(plan(Choice.ORDERED, upstreams(0.03, 0.01), 50)) == {"192.0.2.0"}


def test_speed_chooses_among_equals_only() -> None:
    found = plan(Choice.FASTEST, upstreams(0.05, 0.03, 0.01, validating=(0, 1)), 3 * EXPLORE_EVERY)
    assert set(found) == {"192.0.2.0", "192.0.2.1"}


def test_round_trips_are_smoothed() -> None:
    health = Health()
    health.took(0.1)
    health.took(0.9)
    assert health.round_trip == pytest.approx(0.2)


async def test_an_upstream_learns_how_fast_it_is() -> None:
    from tests.unit.shim_bed import ScriptedUpstream, records, reply_to

    async with ScriptedUpstream(lambda query, _: reply_to(query, records("www.example. 60 IN A 192.0.2.1"))) as server:
        upstream = Upstream(UpstreamSettings(address=server.address))
        await upstream.ask(b"\3www\7example\0", 1, checking_disabled=False)
        assert 0 < upstream.health.round_trip < 10
        assert upstream.health.asked <= asyncio.get_running_loop().time()
        await upstream.close()
    assert Cache("x").statistics()["entries"] == 0
