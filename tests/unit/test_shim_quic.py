"""DNS over QUIC with aioquic's client: framing, the protocol's errors, limits, and that nothing is left behind."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import dns.edns
import dns.message
import pytest

pytest.importorskip("aioquic")
from aioquic.asyncio.client import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration
from cryptography.hazmat.primitives.serialization import Encoding

from cachebus.cache import Cache
from cachebus.errors import FrameError
from cachebus.shim import Shim, doq, quic
from cachebus.shim.query import Channel
from cachebus.testing import ManualClock
from tests.unit.listen_bed import Authority
from tests.unit.shim_bed import WAIT, ScriptedUpstream, bus_answer, records, reply_to, rrset, settings, until


def query(name: str = "www.example.", **options: object) -> bytes:
    made = dns.message.make_query(name, "A", **options)
    made.id = 0
    return made.to_wire()


def framed(message: bytes) -> bytes:
    return len(message).to_bytes(2, "big") + message


class Client(QuicConnectionProtocol):
    """Keeps what streams bring, and how the connection ended."""

    def __init__(self, *arguments: object, **more: object) -> None:
        super().__init__(*arguments, **more)
        self.received: dict[int, bytes] = {}
        self.ended: set[int] = set()
        self.resets: dict[int, int] = {}
        self.closed: int | None = None

    def quic_event_received(self, event: events.QuicEvent) -> None:
        match event:
            case events.StreamDataReceived():
                self.received[event.stream_id] = self.received.get(event.stream_id, b"") + event.data
                if event.end_stream:
                    self.ended.add(event.stream_id)
            case events.StreamReset():
                self.resets[event.stream_id] = event.error_code
            case events.ConnectionTerminated():
                self.closed = event.error_code

    def send(self, data: bytes, *, end: bool = True, one_way: bool = False) -> int:
        stream = self._quic.get_next_available_stream_id(is_unidirectional=one_way)
        self._quic.send_stream_data(stream, data, end_stream=end)
        self.transmit()
        return stream

    async def reply(self, stream: int) -> dns.message.Message:
        await until(lambda: stream in self.ended)
        data = self.received[stream]
        assert int.from_bytes(data[:2], "big") == len(data) - 2
        return dns.message.from_wire(data[2:])


class Bed:
    def __init__(
        self, authority: Authority, *upstreams: ScriptedUpstream, host: str = "127.0.0.1", **changes: object
    ) -> None:
        clock = ManualClock()
        cache = Cache("node-a")
        address = rrset("www.example.", "A", 300, bytes((192, 0, 2, 1)))
        cache.put(bus_answer(address, learned=clock.now, transport=""), clock.now)
        encrypted = authority.settings(tls=(), https=(), quic=((host, 0),))
        self.shim = Shim(settings(*upstreams, encrypted=encrypted, **changes), cache, lambda answer: None, clock)
        self.authority = authority

    @asynccontextmanager
    async def client(self, *, host: str = "127.0.0.1", alpn: str = "doq") -> AsyncIterator[Client]:
        configuration = QuicConfiguration(
            alpn_protocols=[alpn], cafile=str(self.authority.ca), server_name=host, verify_mode=ssl.CERT_REQUIRED
        )
        port = self.shim.encrypted[Channel.QUIC][0][1]
        async with asyncio.timeout(WAIT):
            async with connect(host, port, configuration=configuration, create_protocol=Client) as client:
                yield client

    def count(self, name: str) -> int:
        return self.shim.statistics()[name]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


async def test_a_question_for_each_stream(authority: Authority) -> None:
    bed = Bed(authority)
    async with bed.shim, bed.client() as client:
        streams = [client.send(framed(query())) for _ in range(3)]
        pieces = client.send(framed(query())[:1], end=False)
        for byte in framed(query())[1:]:
            client._quic.send_stream_data(pieces, bytes((byte,)))
            client.transmit()
        client._quic.send_stream_data(pieces, b"", end_stream=True)
        client.transmit()
        for stream in (*streams, pieces):
            reply = await client.reply(stream)
            assert reply.id == 0
            assert reply.answer[0][0].to_text() == "192.0.2.1"
        assert bed.count("quic_requests") == 4
        assert bed.count("tcp_open") == 1


async def test_questions_that_have_to_wait(authority: Authority) -> None:
    gate = asyncio.Event()

    def respond(message: dns.message.Message, stream: bool) -> bytes | None:
        return reply_to(message, records("slow.example. 300 IN A 192.0.2.2")) if gate.is_set() else None

    async with ScriptedUpstream(respond) as upstream:
        bed = Bed(authority, upstream)
        async with bed.shim, bed.client() as client:
            slow = client.send(framed(query("slow.example.")))
            fast = client.send(framed(query()))
            await client.reply(fast)
            assert slow not in client.ended
            gate.set()
            assert (await client.reply(slow)).answer


@pytest.mark.parametrize(
    "data",
    [
        framed(query()) + b"x",
        framed(query())[:-1],
        b"\0",
        b"",
        framed(b"\0\1" + query()[2:]),
        framed(b"\0\0"),
        framed(b"\0\0\x80" + query()[3:]),
        framed(query(use_edns=0, options=[dns.edns.GenericOption(11, b"")])),
    ],
    ids=["two messages", "cut", "half a length", "nothing", "id", "short", "response", "keepalive"],
)
async def test_errors_of_protocol_end_the_connection(authority: Authority, data: bytes) -> None:
    bed = Bed(authority)
    async with bed.shim:
        async with bed.client() as client:
            client.send(data)
            await until(lambda: client.closed is not None)
            assert client.closed == doq.PROTOCOL_ERROR
        await until(lambda: bed.count("tcp_open") == 0)
        assert bed.count("quic_ended") == 1
        async with bed.client() as client:
            assert (await client.reply(client.send(framed(query())))).answer


async def test_a_stream_of_one_direction_is_an_error_of_protocol(authority: Authority) -> None:
    bed = Bed(authority)
    async with bed.shim, bed.client() as client:
        client.send(framed(query()), one_way=True)
        await until(lambda: client.closed == doq.PROTOCOL_ERROR)


async def test_a_question_taken_back_is_forgotten(authority: Authority) -> None:
    async with ScriptedUpstream(lambda message, stream: None) as upstream:
        bed = Bed(authority, upstream)
        async with bed.shim, bed.client() as client:
            stream = client.send(framed(query("slow.example.")))
            half = client.send(framed(query())[:5], end=False)
            await until(lambda: bed.count("in_flight") == 1)
            client._quic.stop_stream(stream, doq.REQUEST_CANCELLED)
            client._quic.reset_stream(half, doq.REQUEST_CANCELLED)
            client.transmit()
            await until(lambda: bed.count("quic_resets") == 2)
            assert (await client.reply(client.send(framed(query())))).answer
            assert client.closed is None
            assert client.resets[half] == doq.REQUEST_CANCELLED


async def test_rapid_resets_end_the_connection(authority: Authority) -> None:
    async with ScriptedUpstream(lambda message, stream: None) as upstream:
        bed = Bed(authority, upstream)
        async with bed.shim, bed.client() as client:
            for _ in range(quic.MAX_RESETS * 2):
                if client.closed is not None:
                    break
                stream = client.send(framed(query("slow.example."))[:9], end=False)
                client._quic.reset_stream(stream, doq.REQUEST_CANCELLED)
                client.transmit()
                await asyncio.sleep(0)
            await until(lambda: client.closed == doq.EXCESSIVE_LOAD)


async def test_streams_that_never_end_are_bounded(authority: Authority) -> None:
    bed = Bed(authority)
    async with bed.shim, bed.client() as client:
        for _ in range(120):
            client.send(b"\xff\xff" + bytes(5000), end=False)
        await until(lambda: client.closed == doq.EXCESSIVE_LOAD)
        assert bed.count("tcp_open") == 0


async def test_another_protocol_is_refused(authority: Authority) -> None:
    bed = Bed(authority)
    async with bed.shim:
        with pytest.raises(ConnectionError):
            async with bed.client(alpn="h3"):
                pass
        await until(lambda: bed.count("tcp_open") == 0)


async def test_the_certificate_is_exchanged_while_a_client_stays(authority: Authority) -> None:
    bed = Bed(authority)
    async with bed.shim, bed.client() as stays:
        assert (await stays.reply(stays.send(framed(query())))).answer
        new = authority.issue()
        async with bed.client() as comes:
            shown = comes._quic.tls._peer_certificate
            assert shown.public_bytes(Encoding.DER) == new
        assert (await stays.reply(stays.send(framed(query())))).answer


@pytest.mark.parametrize(("host", "asked"), [("0.0.0.0", "127.0.0.1"), ("::", "::1"), ("::1", "::1")])
async def test_wildcards_and_ipv6(authority: Authority, host: str, asked: str) -> None:
    bed = Bed(authority, host=host)
    async with bed.shim, bed.client(host=asked) as client:
        assert (await client.reply(client.send(framed(query())))).answer


async def test_noise_is_dropped(authority: Authority) -> None:
    bed = Bed(authority)
    async with bed.shim:
        port = bed.shim.encrypted[Channel.QUIC][0][1]
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            asyncio.DatagramProtocol, remote_addr=("127.0.0.1", port)
        )
        for noise in (b"", b"\0", b"\xff" * 1300, b"\xc0\0\0\0\1\x08" + bytes(1300), bytes(1300)):
            transport.sendto(noise)
        async with bed.client() as client:
            assert (await client.reply(client.send(framed(query())))).answer
        transport.close()


async def test_nothing_is_left_behind(authority: Authority) -> None:
    loop = asyncio.get_running_loop()

    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    tasks, files = len(asyncio.all_tasks(loop)), descriptors()
    async with ScriptedUpstream(lambda message, stream: None) as upstream:
        bed = Bed(authority, upstream)
        await bed.shim.__aenter__()
        async with bed.client() as client:
            client.send(framed(query("slow.example.")))
            await until(lambda: bed.count("in_flight") == 1)
            await bed.shim.__aexit__(None, None, None)
            await until(lambda: client.closed == doq.NO_ERROR)
        assert bed.count("tcp_open") == 0
        assert bed.count("in_flight") == 0
    await until(lambda: descriptors() <= files)
    assert len(asyncio.all_tasks(loop)) == tasks


class TestQuestion:
    @pytest.mark.parametrize("step", [1, 2, 3, 1000])
    def test_whole(self, step: int) -> None:
        question, data = doq.Question(), framed(query())
        for start in range(0, len(data), step):
            question.feed(data[start : start + step])
        assert question.end() == query()

    def test_an_empty_message_has_no_id(self) -> None:
        question = doq.Question()
        question.feed(b"\0\0")
        with pytest.raises(FrameError):
            question.end()
