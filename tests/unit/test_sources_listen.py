"""Both listening sources over real sockets: connections, framing, limits, the end, and the loop that stays alive."""

# ruff: noqa: ASYNC240 -- a test may touch its own small files

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import trustme
import uvloop

from cachebus.config.values import SocketAddress, UnixAddress
from cachebus.errors import TransportError
from cachebus.sources import listen
from cachebus.sources.access import ListenSettings
from cachebus.sources.arrival import TICK
from cachebus.sources.listen import READ_SIZE, DnstapSource, ListeningSource, StreamSource
from cachebus.testing import ManualClock
from cachebus.wire.framestream import (
    DNSTAP_CONTENT_TYPE,
    ControlType,
    control_frame,
    data_frame,
    write_frames,
    write_messages,
)

DEADLINE = 10.0
READY = control_frame(ControlType.READY, DNSTAP_CONTENT_TYPE)
START = control_frame(ControlType.START, DNSTAP_CONTENT_TYPE)
STOP = control_frame(ControlType.STOP)
ACCEPT = control_frame(ControlType.ACCEPT, DNSTAP_CONTENT_TYPE)
FINISH = control_frame(ControlType.FINISH)

Frames = list[tuple[bytes, float]]
Link = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(DEADLINE):
        while not condition():  # noqa: ASYNC110 -- what is waited for has no event
            await asyncio.sleep(0.005)


class Bed:
    """A source, what it delivered, and its clock."""

    def __init__(self, kind: type[ListeningSource], address: UnixAddress | SocketAddress, **settings: Any) -> None:
        self.frames: Frames = []
        self.clock = ManualClock()
        self.source = kind(
            ListenSettings(name="r", listen=address, **settings),
            lambda frame, now: self.frames.append((frame, now)),
            self.clock,
        )

    @property
    def payloads(self) -> list[bytes]:
        return [frame for frame, _ in self.frames]

    def count(self, name: str) -> int:
        return self.source.statistics()[name]

    async def connect(self, context: ssl.SSLContext | None = None) -> Link:
        address = self.source.address
        if isinstance(address, UnixAddress):
            return await asyncio.open_unix_connection(address.path)
        name = "localhost" if context else None
        return await asyncio.open_connection(address.host, address.port, ssl=context, server_hostname=name)

    async def say(self, data: bytes) -> Link:
        link = await self.connect()
        link[1].write(data)
        await link[1].drain()
        return link


@pytest.fixture
def place(tmp_path_factory: pytest.TempPathFactory) -> UnixAddress:
    return UnixAddress(str(tmp_path_factory.mktemp("s") / "s"))


@asynccontextmanager
async def running(
    kind: type[ListeningSource], address: UnixAddress | SocketAddress, **settings: Any
) -> AsyncIterator[Bed]:
    bed = Bed(kind, address, **settings)
    async with bed.source:
        yield bed


async def close(link: Link) -> None:
    link[1].close()
    with suppress(OSError):
        await link[1].wait_closed()


async def ended(link: Link) -> bytes:
    """What the source still sent before it closed the connection."""
    async with asyncio.timeout(DEADLINE):
        try:
            data = await link[0].read()
        except ConnectionError:
            data = b""
    await close(link)
    return data


async def test_a_bidirectional_sender_is_answered(place: UnixAddress) -> None:
    async with running(DnstapSource, place) as bed:
        link = await bed.say(READY)
        assert await asyncio.wait_for(link[0].readexactly(len(ACCEPT)), DEADLINE) == ACCEPT
        link[1].write(START + data_frame(b"one"))
        await until(lambda: bed.payloads == [b"one"])
        link[1].write(data_frame(b"two") + STOP)
        assert await ended(link) == FINISH
        assert bed.payloads == [b"one", b"two"]
        await until(lambda: bed.count("connections") == 0)
    assert bed.source.statistics() == {
        "connections": 0,
        "accepted_connections": 1,
        "refused_connections": 0,
        "frames": 2,
        "bytes": len(READY + START + data_frame(b"one") * 2 + STOP),
        "malformed": 0,
        "timeouts": 0,
    }


async def test_unidirectional_senders_several_at_once_and_plain_ends(place: UnixAddress) -> None:
    async with running(DnstapSource, place) as bed:
        links = [await bed.say(START + data_frame(bytes([number]))) for number in range(5)]
        await until(lambda: len(bed.frames) == 5)
        assert bed.count("connections") == 5
        for link in links:
            await close(link)
        await until(lambda: bed.count("connections") == 0)
        whole = b"".join(write_frames([b"x", b"y"]))
        assert await ended(await bed.say(whole)) == b""
        assert sorted(bed.payloads) == [bytes([number]) for number in range(5)] + [b"x", b"y"]
        assert bed.count("malformed") == 0


async def test_messages_byte_by_byte(place: UnixAddress) -> None:
    async with running(StreamSource, place) as bed:
        link = await bed.connect()
        for byte in b"".join(write_messages([b"first", b"second"])):
            link[1].write(bytes([byte]))
            await link[1].drain()
        await until(lambda: bed.payloads == [b"first", b"second"])
        await close(link)


@pytest.mark.parametrize(
    ("kind", "data", "good"),
    [
        (DnstapSource, data_frame(b"x"), []),
        (DnstapSource, START + data_frame(b"good") + START, [b"good"]),
        (DnstapSource, START + struct.pack(">I", 2**31), []),
        (DnstapSource, control_frame(ControlType.READY, b"other"), []),
        (StreamSource, data_frame(b"good") + struct.pack(">I", 65536), [b"good"]),
        (StreamSource, START, []),
    ],
    ids=["no opening", "START twice", "too long", "content type", "message too long", "dnstap to a stream"],
)
async def test_a_malformed_stream_ends_its_connection_only(
    place: UnixAddress, kind: type[ListeningSource], data: bytes, good: list[bytes]
) -> None:
    async with running(kind, place) as bed:
        bystander = await bed.say(START if kind is DnstapSource else b"")
        assert await ended(await bed.say(data)) == b""
        assert bed.payloads == good
        assert bed.count("malformed") == 1
        bystander[1].write(data_frame(b"still here"))
        await until(lambda: bed.payloads == [*good, b"still here"])
        await close(bystander)


async def test_a_stream_that_ends_inside_a_frame_is_counted(place: UnixAddress) -> None:
    async with running(StreamSource, place) as bed:
        await close(await bed.say(data_frame(b"whole") + data_frame(b"half")[:6]))
        await until(lambda: bed.count("malformed") == 1)
        assert bed.payloads == [b"whole"]


async def test_connections_are_bounded(place: UnixAddress) -> None:
    async with running(StreamSource, place, max_connections=2) as bed:
        first, second = await bed.say(b""), await bed.say(b"")
        await until(lambda: bed.count("connections") == 2)
        assert await ended(await bed.connect()) == b""
        assert bed.count("refused_connections") == 1
        await close(first)
        await until(lambda: bed.count("connections") == 1)
        third = await bed.say(data_frame(b"in"))
        await until(lambda: bed.payloads == [b"in"])
        await close(second)
        await close(third)


async def test_other_users_are_refused(place: UnixAddress, monkeypatch: pytest.MonkeyPatch) -> None:
    stranger = 4711 if os.geteuid() != 4711 else 4712
    monkeypatch.setattr(listen, "peer_uid", lambda connection: stranger)
    async with running(StreamSource, place) as bed:
        assert await ended(await bed.connect()) == b""
        assert bed.count("refused_connections") == 1
    async with running(StreamSource, place, allow_uids=frozenset({stranger})) as bed:
        link = await bed.say(data_frame(b"hello"))
        await until(lambda: bed.payloads == [b"hello"])
        await close(link)


async def test_an_opening_that_trickles_is_given_up(place: UnixAddress) -> None:
    async with running(DnstapSource, place, handshake_timeout=0.2) as bed:
        silent = await bed.connect()
        trickling = await bed.say(READY[:5])
        for byte in READY[5:9]:
            trickling[1].write(bytes([byte]))
            await asyncio.sleep(0.02)
        assert await ended(trickling) == b""
        assert await ended(silent) == b""
        assert bed.count("timeouts") == 2


async def test_an_unfinished_frame_is_given_up_but_silence_is_not(place: UnixAddress) -> None:
    async with running(DnstapSource, place, handshake_timeout=0.2, stall_timeout=0.2) as bed:
        quiet = await bed.say(START + data_frame(b"quiet"))
        stalled = await bed.say(START + data_frame(b"whole") + data_frame(b"half")[:5])
        assert await ended(stalled) == b""
        assert bed.count("timeouts") == 1
        quiet[1].write(data_frame(b"and back"))
        await until(lambda: b"and back" in bed.payloads)
        await close(quiet)


async def test_at_the_end_what_has_arrived_is_delivered_and_the_file_removed(place: UnixAddress) -> None:
    count = 3 * READ_SIZE // len(data_frame(bytes(1000)))
    bed = Bed(DnstapSource, place)
    with socket.socket(socket.AF_UNIX) as client:
        async with bed.source:
            client.connect(place.path)
            client.sendall(READY + START + data_frame(b"first"))
            await until(lambda: bed.payloads == [b"first"])
            # Said without giving the source a turn: it has to find this at its end.
            client.sendall(data_frame(bytes(1000)) * count + STOP)
        assert len(bed.frames) == 1 + count
        assert client.recv(1000) == ACCEPT + FINISH
        assert client.recv(1000) == b""
    assert not os.path.lexists(place.path)
    with pytest.raises(FileNotFoundError):
        await bed.connect()


async def test_what_arrives_in_the_same_turn_as_the_end_is_delivered(place: UnixAddress) -> None:
    """As when SIGTERM finds the loop busy: the end and the bytes are seen together, and the end is served first."""
    bed = Bed(StreamSource, place)
    told, tell = socket.socketpair()
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(told, ended.set)
    with told, tell, socket.socket(socket.AF_UNIX) as client:
        async with bed.source:
            client.connect(place.path)
            client.sendall(struct.pack("!I", 3) + b"one")
            await until(lambda: bed.payloads == [b"one"])
            tell.send(b"x")
            client.sendall((struct.pack("!I", 3) + b"two") * 3)
            await ended.wait()
        assert bed.payloads == [b"one", *[b"two"] * 3]
        asyncio.get_running_loop().remove_reader(told)


async def test_at_the_end_a_malformed_rest_is_counted_after_what_is_good(place: UnixAddress) -> None:
    bed = Bed(StreamSource, place)
    with socket.socket(socket.AF_UNIX) as client:
        async with bed.source:
            client.connect(place.path)
            await until(lambda: bed.count("connections") == 1)
            await asyncio.sleep(0)
            client.sendall(data_frame(b"good") + bytes(4))
    assert bed.payloads == [b"good"]
    assert bed.count("malformed") == 1


async def test_a_bug_behind_deliver_is_logged_and_ends_one_connection_only(
    place: UnixAddress, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(StreamSource, place) as bed:
        deliver = bed.source._deliver

        def broken(payload: bytes, now: float) -> None:
            if payload == b"bad":
                raise ZeroDivisionError
            deliver(payload, now)

        bed.source._deliver = broken
        other = await bed.say(b"")
        assert await ended(await bed.say(data_frame(b"bad"))) == b""
        await until(lambda: "a connection failed" in caplog.text)
        assert "ZeroDivisionError" in caplog.text
        other[1].write(data_frame(b"fine"))
        await until(lambda: bed.payloads == [b"fine"])
        await close(other)


async def test_when_descriptors_run_out_it_goes_on_later(place: UnixAddress, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen, "ACCEPT_PAUSE", 0.01)
    loop = asyncio.get_running_loop()
    accept = loop.sock_accept
    failures = iter([OSError(24, "Too many open files")] * 3)

    async def failing(listener: socket.socket) -> Any:
        if (error := next(failures, None)) is not None:
            raise error
        return await accept(listener)

    monkeypatch.setattr(loop, "sock_accept", failing)
    async with running(StreamSource, place) as bed:
        link = await bed.say(data_frame(b"late"))
        await until(lambda: bed.payloads == [b"late"])
        await close(link)


async def test_it_can_be_entered_again(place: UnixAddress) -> None:
    bed = Bed(StreamSource, place)
    for payload in (b"one", b"two"):
        async with bed.source:
            link = await bed.say(data_frame(payload))
            await until(lambda payload=payload: bed.payloads[-1:] == [payload])
            await close(link)
    assert bed.payloads == [b"one", b"two"]


async def test_two_sources_cannot_share_an_address(place: UnixAddress) -> None:
    async with running(StreamSource, place):
        with pytest.raises(TransportError, match="another process listens"):
            await Bed(StreamSource, place).source.__aenter__()


async def test_a_flood_leaves_turns_to_others(place: UnixAddress) -> None:
    """Between two turns of the loop a connection delivers no more than one read's worth."""
    delivered = 0
    most = 0
    frame = data_frame(bytes(100))
    total = 60 * READ_SIZE // len(frame)

    def turn() -> None:
        nonlocal delivered, most
        most, delivered = max(most, delivered), 0
        if len(bed.frames) < total:
            loop.call_soon(turn)

    async with running(StreamSource, place) as bed:
        loop = asyncio.get_running_loop()
        deliver = bed.source._deliver

        def counting(payload: bytes, now: float) -> None:
            nonlocal delivered
            delivered += 4 + len(payload)
            deliver(payload, now)

        bed.source._deliver = counting
        link = await bed.connect()
        link[1].write(frame * total)
        loop.call_soon(turn)
        await until(lambda: len(bed.frames) == total)
        await close(link)
    assert 0 < most <= READ_SIZE + len(frame)


async def test_what_waited_during_a_stall_is_not_fresh(place: UnixAddress) -> None:
    async with running(StreamSource, place) as bed:
        link = await bed.say(data_frame(b"before") + data_frame(b"begun")[:6])
        await until(lambda: bed.payloads == [b"before"])
        start = bed.clock.now
        assert bed.frames[0][1] == start
        bed.clock.advance(60.0)
        link[1].write(data_frame(b"begun")[6:] + data_frame(b"waited"))
        await until(lambda: len(bed.frames) == 3)
        assert [time for _, time in bed.frames[1:]] == [start, start]
        # A connection that waited in the backlog all the while is no fresher.
        other = await bed.say(data_frame(b"other"))
        await until(lambda: len(bed.frames) == 4)
        assert bed.frames[3] == (b"other", start)
        await asyncio.sleep(3 * TICK)
        link[1].write(data_frame(b"after"))
        await until(lambda: len(bed.frames) == 5)
        assert bed.frames[4] == (b"after", start + 60.0)
        await close(link)
        await close(other)


async def test_tcp_on_loopback() -> None:
    async with running(DnstapSource, SocketAddress("127.0.0.1", 0), insecure=True) as bed:
        assert isinstance(bed.source.address, SocketAddress)
        assert bed.source.address.port != 0
        link = await bed.say(START + data_frame(b"tcp"))
        await until(lambda: bed.payloads == [b"tcp"])
        await close(link)
    assert isinstance(bed.source.address, SocketAddress)


class Certificates:
    def __init__(self) -> None:
        self.authority = trustme.CA()
        self.server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.server.verify_mode = ssl.CERT_REQUIRED
        self.authority.configure_trust(self.server)
        self.authority.issue_cert("localhost").configure_cert(self.server)

    def client(self, *, signed_by: trustme.CA | None) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        if signed_by is not None:
            signed_by.issue_cert("client").configure_cert(context)
        return context


async def test_tls_with_the_right_client_certificate() -> None:
    certificates = Certificates()
    async with running(DnstapSource, SocketAddress("127.0.0.1", 0), tls=certificates.server) as bed:
        reader, writer = await bed.connect(certificates.client(signed_by=certificates.authority))
        writer.write(READY + START + data_frame(b"tls"))
        assert await asyncio.wait_for(reader.readexactly(len(ACCEPT)), DEADLINE) == ACCEPT
        await until(lambda: bed.payloads == [b"tls"])
        writer.write(data_frame(b"last"))
        await writer.drain()
        await until(lambda: bed.payloads == [b"tls", b"last"])
        await close((reader, writer))
        await until(lambda: bed.count("connections") == 0)


@pytest.mark.parametrize("stranger", [False, True], ids=["none", "another authority's"])
async def test_tls_without_it(stranger: bool) -> None:
    certificates = Certificates()
    context = certificates.client(signed_by=trustme.CA() if stranger else None)
    async with running(DnstapSource, SocketAddress("127.0.0.1", 0), tls=certificates.server) as bed:
        try:
            link = await bed.connect(context)
            link[1].write(START + data_frame(b"x"))
            assert await ended(link) == b""
        except (ssl.SSLError, ConnectionError):
            pass
        await until(lambda: bed.count("refused_connections") == 1)
        await until(lambda: bed.count("connections") == 0)
        assert bed.frames == []


async def test_tls_at_the_end() -> None:
    certificates = Certificates()
    bed = Bed(StreamSource, SocketAddress("127.0.0.1", 0), tls=certificates.server)
    async with bed.source:
        link = await bed.connect(certificates.client(signed_by=certificates.authority))
        link[1].write(data_frame(b"one"))
        await until(lambda: bed.payloads == [b"one"])
        link[1].write(data_frame(b"two"))
        await link[1].drain()
    assert await ended(link) == b""
    assert bed.payloads == [b"one", b"two"]


async def test_a_bystander_that_never_speaks_tls_is_given_up() -> None:
    certificates = Certificates()
    address = SocketAddress("127.0.0.1", 0)
    async with running(DnstapSource, address, tls=certificates.server, handshake_timeout=0.2) as bed:
        assert isinstance(bed.source.address, SocketAddress)
        with socket.create_connection((bed.source.address.host, bed.source.address.port)):
            await until(lambda: bed.count("refused_connections") == 1)
        assert bed.count("connections") == 0


@pytest.mark.parametrize(
    "scenario",
    [
        test_a_bidirectional_sender_is_answered,
        test_a_stream_that_ends_inside_a_frame_is_counted,
        test_connections_are_bounded,
        test_an_opening_that_trickles_is_given_up,
        test_an_unfinished_frame_is_given_up_but_silence_is_not,
        test_at_the_end_what_has_arrived_is_delivered_and_the_file_removed,
        test_what_arrives_in_the_same_turn_as_the_end_is_delivered,
        test_a_flood_leaves_turns_to_others,
        test_what_waited_during_a_stall_is_not_fresh,
    ],
)
def test_on_the_daemons_loop(scenario: Callable[[UnixAddress], Coroutine[Any, Any, None]], place: UnixAddress) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scenario(place))


@pytest.mark.parametrize(
    "scenario",
    [
        test_tcp_on_loopback,
        test_tls_with_the_right_client_certificate,
        test_tls_at_the_end,
        test_a_bystander_that_never_speaks_tls_is_given_up,
    ],
)
def test_tcp_on_the_daemons_loop(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scenario())
