"""The transport `mqtt` without a broker of others: its settings, queue, packets, and a broker of the test's own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from cachebus_transports import mqtt, mqtt_link, mqtt_lookup, mqtt_session
from cachebus_transports.mqtt import MqttTransport
from cachebus_transports.mqtt_link import MAX_PACKET, Link
from cachebus_transports.mqtt_options import MqttOptions, node_of, parse_options
from cachebus_transports.mqtt_packet import decode_publish
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt import _packet
from paho.mqtt.client import Client
from paho.mqtt.enums import MQTTProtocolVersion

from cachebus.errors import ConfigError
from cachebus.ports import TransportSettings

CLUSTER = "home"
DEADLINE = 5.0


def settings(url: str | None, **more: object) -> TransportSettings:
    known = {name: more.pop(name) for name in ("cluster", "node", "tls", "will", "listen", "peers") if name in more}
    basics: dict[str, object] = {"name": "wan", "node": "one", "cluster": CLUSTER} | known
    return TransportSettings(url=url, options=more, **basics)  # type: ignore[arg-type]


def options(url: str, **more: object) -> MqttOptions:
    return parse_options(settings(url, **more))


# Settings


def test_a_url_says_where_and_as_whom() -> None:
    parsed = options("mqtt://alice@[::1]:1884/home", password="secret")
    assert (parsed.host, parsed.port, parsed.secure, parsed.shown) == ("::1", 1884, False, "[::1]:1884")
    assert (parsed.username, parsed.password, parsed.qos, parsed.keepalive) == ("alice", "secret", 0, 15)
    assert (parsed.topic, parsed.client_id) == ("cachebus/home/v1/one", "cachebus-home-one")
    assert options("mqtts://broker.example.net").port == 8883
    assert options("mqtt://broker.example.net").port == 1883
    assert options("mqtt://127.0.0.1/lab", cluster="").cluster == "lab"
    assert options("mqtt://127.0.0.1").literal
    assert not options("mqtt://localhost").literal


@pytest.mark.parametrize(
    ("url", "more", "complaint"),
    [
        (None, {}, "needs `url`"),
        ("http://127.0.0.1", {}, "begins with mqtt://"),
        ("mqtt://", {}, "no host"),
        ("mqtt://127.0.0.1:0", {}, "port"),
        ("mqtt://127.0.0.1:x", {}, "is not mqtt://"),
        ("mqtt://127.0.0.1:65536", {}, "is not mqtt://"),
        ("mqtt://[::1", {}, "is not mqtt://"),
        ("mqtt://a b", {}, "no host"),
        ("mqtt://a..b", {}, "no host"),
        (f"mqtt://{'a' * 64}.example", {}, "no host"),
        ("mqtt://127.0.0.1?x=1", {}, "takes no"),
        ("mqtt://u:hunter2@127.0.0.1", {}, "holds a password"),
        ("mqtt://127.0.0.1/other", {}, "names the cluster"),
        ("mqtt://127.0.0.1", {"cluster": "Home"}, "cluster: "),
        ("mqtt://127.0.0.1", {"cluster": ""}, "cluster: "),
        ("mqtt://127.0.0.1", {"node": "one.example"}, "node: "),
        ("mqtt://127.0.0.1", {"listen": "127.0.0.1:1"}, "neither `listen`"),
        ("mqtt://127.0.0.1", {"peers": ("127.0.0.1:1",)}, "neither `listen`"),
        ("mqtt://127.0.0.1", {"tls": object()}, "mqtts://"),
        ("mqtt://127.0.0.1", {"qos": 2}, "qos: "),
        ("mqtt://127.0.0.1", {"qos": True}, "qos: "),
        ("mqtt://127.0.0.1", {"keepalive": 0}, "keepalive: "),
        ("mqtt://127.0.0.1", {"keepalive": "15"}, "keepalive: "),
        ("mqtt://127.0.0.1", {"password": "hunter2"}, "needs a username"),
        ("mqtt://127.0.0.1", {"username": "\0"}, "username: "),
        ("mqtt://bob@127.0.0.1", {"username": "alice"}, "username: "),
        ("mqtt://bob@127.0.0.1", {"password": "x" * 5000}, "password: "),
        ("mqtt://bob@192.0.2.1", {"password": "hunter2"}, "clear text"),
    ],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(url: str | None, more: dict[str, object], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as refused:
        options(url, **more)  # type: ignore[arg-type]
    assert "hunter2" not in str(refused.value)


def test_secrets_are_not_shown() -> None:
    assert "hunter2" not in repr(options("mqtt://bob@127.0.0.1", password="hunter2"))


def test_a_topic_is_a_nodes_or_nobodys() -> None:
    prefix = "cachebus/home/v1/"
    assert node_of("cachebus/home/v1/ams-1", prefix) == "ams-1"
    for topic in (
        "",
        prefix,
        "cachebus/home/v2/ams-1",
        prefix + "a/b",
        prefix + "a.b",
        prefix + "A",
        prefix + 64 * "a",
    ):
        assert node_of(topic, prefix) is None


# The queue


# One packet


def packet(first: int, body: bytes) -> bytes:
    length, rest = bytearray(), len(body)
    while rest > 127:
        length.append(rest & 127 | 128)
        rest >>= 7
    return bytes([first, *length, rest]) + body


def publish(topic: bytes, payload: bytes, *, qos: int = 0, number: int = 1, properties: bytes = b"") -> bytes:
    body = struct.pack("!H", len(topic)) + topic
    body += struct.pack("!H", number) if qos else b""
    return body + bytes([len(properties)]) + properties + payload


@given(
    topic=st.binary(min_size=1, max_size=40), payload=st.binary(max_size=300), qos=st.sampled_from([0, 1]),
    number=st.integers(1, 65535), v5=st.booleans(), retain=st.booleans(), expiry=st.none() | st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_a_message_is_read_as_paho_reads_it(
    topic: bytes, payload: bytes, qos: int, number: int, v5: bool, retain: bool, expiry: int | None
) -> None:
    properties = b"" if expiry is None else b"\x02" + expiry.to_bytes(4, "big") + b"\x03\x00\x03abc"
    body = struct.pack("!H", len(topic)) + topic + (struct.pack("!H", number) if qos else b"")
    body += (bytes([len(properties)]) + properties if v5 else b"") + payload
    first = 0x30 | qos << 1 | retain
    read = decode_publish(first, body, v5=v5)
    version = MQTTProtocolVersion.MQTTv5 if v5 else MQTTProtocolVersion.MQTTv311
    theirs = _packet.decode_publish(first, body, version)
    assert read == (theirs.topic, theirs.mid, theirs.retain, theirs.payload)


@given(body=st.binary(max_size=60), first=st.integers(0x30, 0x33), v5=st.booleans())
def test_any_bytes_are_a_message_or_an_error(body: bytes, first: int, v5: bool) -> None:
    try:
        read = decode_publish(first, body, v5=v5)
    except ValueError:
        return
    assert body.endswith(read.payload)
    assert len(read.topic) + len(read.payload) + 2 <= len(body)


# The link


class Wire(asyncio.Transport):
    """A connection that only remembers."""

    def __init__(self) -> None:
        super().__init__()
        self.closing = False
        self.aborted = False
        self.written = b""

    def is_closing(self) -> bool:
        return self.closing

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        assert high == mqtt_link.HIGH_WATER

    def get_write_buffer_size(self) -> int:
        return 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += bytes(data)

    def close(self) -> None:
        self.closing = True

    def abort(self) -> None:
        self.closing = self.aborted = True


class Reading:
    """Keeps what a link tells, as (first byte, body)."""

    def __init__(self) -> None:
        self.link: Link | None = None
        self.packets: list[tuple[int, bytes]] = []
        self.rooms = 0

    def published(self, first: int, body: bytes) -> None:
        self.packets.append((first, body))

    def packet(self, begins: int) -> None:
        """Reads as paho does: byte by byte, then the rest."""
        assert self.link is not None
        first, size, shift = self.link.recv(1)[0], 0, 0
        while True:
            byte = self.link.recv(1)[0]
            size |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
        body = b""
        while len(body) < size:
            body += self.link.recv(size - len(body))
        with pytest.raises(BlockingIOError):
            self.link.recv(1)
        self.packets.append((first, body))

    def turn_ends(self) -> None:
        pass

    def room(self) -> None:
        self.rooms += 1


def make_link() -> tuple[Link, Reading, Wire]:
    reading, wire = Reading(), Wire()
    link = reading.link = Link(reading)
    link.connection_made(wire)
    return link, reading, wire


_PACKETS = st.lists(
    st.tuples(st.sampled_from([0x20, 0x30, 0x31, 0x32, 0x40, 0x90, 0xD0, 0xE0]), st.binary(max_size=400)), max_size=8
)


@given(packets=_PACKETS, cuts=st.lists(st.integers(1, 300), max_size=30))
def test_packets_are_whole_however_they_come(packets: list[tuple[int, bytes]], cuts: list[int]) -> None:
    async def run() -> None:
        link, reading, wire = make_link()
        stream = b"".join(packet(first, body) for first, body in packets)
        for cut in cuts:
            link.data_received(stream[:cut])
            stream = stream[cut:]
        link.data_received(stream)
        assert reading.packets == packets
        assert not wire.closing

    asyncio.run(run())


@given(data=st.binary(max_size=200), cut=st.integers(0, 200))
def test_no_bytes_of_a_broker_break_the_link(data: bytes, cut: int) -> None:
    async def run() -> None:
        link, _, wire = make_link()
        for part in (data[:cut], data[cut:]):
            if not wire.closing:
                link.data_received(part)
        link.connection_lost(None)
        assert link.lost.done()

    asyncio.run(run())


async def test_a_message_that_is_too_large_is_skipped_without_being_kept() -> None:
    link, reading, wire = make_link()
    stream = packet(0x30, bytes(3 * MAX_PACKET)) + packet(0x30, b"next")
    for start in range(0, len(stream), 50_000):
        link.data_received(stream[start : start + 50_000])
        assert len(link._received) <= 50_000
    assert (reading.packets, link.oversize, wire.closing) == ([(0x30, b"next")], 1, False)


@pytest.mark.parametrize("first", [0x32, 0x34, 0x36, 0x90])
async def test_a_packet_that_is_too_large_and_wants_an_answer_ends_the_connection(first: int) -> None:
    link, reading, wire = make_link()
    link.data_received(packet(first, bytes(2 * MAX_PACKET))[:1000])
    assert (wire.aborted, reading.packets) == (True, [])


@pytest.mark.parametrize("data", [b"\x30\xff\xff\xff\xff\x01", packet(0x34, b"QoS 2"), packet(0x36, b"QoS 3")])
async def test_what_is_not_asked_for_ends_the_connection(data: bytes) -> None:
    link, reading, wire = make_link()
    link.data_received(data)
    assert (wire.aborted, reading.packets) == (True, [])


async def test_nothing_is_written_while_the_kernel_takes_none() -> None:
    link, reading, wire = make_link()
    assert link.send(b"one") == 3
    assert (link.waiting(), wire.written) == (3, b"")
    link.send(b"two")
    link.push()
    link.pause_writing()
    with pytest.raises(BlockingIOError):
        link.send(b"three")
    link.resume_writing()
    assert (wire.written, reading.rooms) == (b"onetwo", 1)
    link.send(b"four")
    link.close()
    assert (wire.written, wire.closing) == (b"onetwofour", True)
    link.connection_lost(None)
    with pytest.raises(ConnectionError):
        link.send(b"five")


# A broker of the test's own


class Broker:
    """Answers a CONNECT with `welcome(version)`, bytes, or None to close without a word. Grants every subscription."""

    def __init__(self, welcome: Callable[[int], bytes | None], after: bytes = b"") -> None:
        self.welcome = welcome
        self.after = after
        """Sent once somebody has subscribed."""
        self.versions: list[int] = []
        self.connects: list[bytes] = []
        self.received: list[tuple[int, bytes]] = []
        self._server: asyncio.Server | None = None
        self._writers: list[asyncio.StreamWriter] = []

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    async def __aenter__(self) -> Broker:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *error: object) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self._writers:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                first, body = await self._packet(reader)
                if first == 0x10:
                    self.versions.append(body[6])
                    self.connects.append(body)
                    reply = self.welcome(body[6])
                    if reply is None:
                        break
                    writer.write(reply)
                elif first == 0x82:
                    granted = b"\0\0" if self.versions[-1] == 5 else b"\0"
                    writer.write(packet(0x90, body[:2] + granted) + self.after)
                else:
                    self.received.append((first, body))
        writer.close()

    @staticmethod
    async def _packet(reader: asyncio.StreamReader) -> tuple[int, bytes]:
        first, size, shift = (await reader.readexactly(1))[0], 0, 0
        while True:
            byte = (await reader.readexactly(1))[0]
            size |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return first, await reader.readexactly(size)


def accept(version: int, properties: bytes = b"") -> bytes:
    return packet(0x20, b"\0\0" + (bytes([len(properties)]) + properties if version == 5 else b""))


@asynccontextmanager
async def connected(broker: Broker, **more: object) -> AsyncIterator[tuple[MqttTransport, list[tuple[bytes, object]]]]:
    inbox: list[tuple[bytes, object]] = []
    async with broker:
        transport = MqttTransport(
            settings(f"mqtt://127.0.0.1:{broker.port}", **more), lambda data, sender: inbox.append((data, sender))
        )
        async with transport:
            yield transport, inbox


async def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, "not in time"
        await asyncio.sleep(0.005)


def test_paho_still_lets_its_connection_be_made_for_it() -> None:
    """The one thing of paho's own that is replaced; without it, it would connect by itself, and block."""
    assert callable(getattr(Client, "_create_socket", None))


async def test_version_5_is_tried_first_and_stays() -> None:
    async with connected(Broker(accept), will=b"gone") as (transport, _):
        await until(lambda: transport.statistics()["connections"] == 1)
        assert transport.statistics()["protocol"] == 5


@pytest.mark.parametrize(
    "refusal",
    [None, packet(0x20, b"\0\x01"), packet(0x20, b"\0\x84\0")],
    ids=["closed without a word", "code 1 of 3.1.1", "reason 132 of 5"],
)
async def test_a_broker_without_version_5_is_asked_with_3_1_1_at_once(refusal: bytes | None) -> None:
    broker = Broker(lambda version: refusal if version == 5 else accept(version))
    async with connected(broker, qos=1) as (transport, _):
        await until(lambda: transport.statistics()["connections"] == 1)
        assert broker.versions == [5, 4]
        assert (transport.statistics()["protocol"], transport.statistics()["failed_connects"]) == (4, 0)
        transport.send(b"payload")
        await until(lambda: bool(broker.received))
        assert broker.received[0] == (0x32, b"\0\x14cachebus/home/v1/one\0\x02payload")


async def test_a_refusal_is_no_reason_to_try_another_version(caplog: pytest.LogCaptureFixture) -> None:
    text = b"go\x1b away"
    reason = b"\x1f" + struct.pack("!H", len(text)) + text
    broker = Broker(lambda version: packet(0x20, b"\0\x87" + bytes([len(reason)]) + reason))
    with caplog.at_level(logging.WARNING):
        async with connected(broker, username="alice", password="hunter2") as (transport, _):
            await until(lambda: transport.statistics()["failed_connects"] >= 2)
            assert set(broker.versions) == {5}
    assert len(caplog.records) == 1, "the same failure is told once"
    assert "Not authorized: go? away" in caplog.text
    assert "hunter2" not in caplog.text


async def test_the_brokers_word_on_sizes_and_numbers_is_kept() -> None:
    """Maximum Packet Size 200, Receive Maximum 2: the third of QoS 1 waits for an acknowledgement."""
    limits = b"\x27\0\0\0\xc8" + b"\x21\0\x02"
    broker = Broker(lambda version: accept(version, limits))
    async with connected(broker, qos=1) as (transport, _):
        await until(lambda: transport.statistics()["connections"] == 1)
        for data in (bytes(200), b"1", b"2", b"3"):
            transport.send(data)
        await until(lambda: len(broker.received) == 2)
        await asyncio.sleep(0.05)
        shown = transport.statistics()
        assert (shown["oversize"], shown["sent"], shown["in_flight"], shown["queued"]) == (1, 2, 2, 1)
        number = broker.received[0][1][22:24]
        broker._writers[-1].write(packet(0x40, number))
        await until(lambda: len(broker.received) == 3)
        shown = transport.statistics()
        assert (shown["acknowledged"], shown["sent"], shown["in_flight"]) == (1, 3, 2)


async def test_maximum_qos_0_is_kept_and_the_will_is_of_qos_0() -> None:
    broker = Broker(lambda version: accept(version, b"\x24\0"))
    async with connected(broker, qos=1, will=b"gone") as (transport, _):
        await until(lambda: transport.statistics()["connections"] == 1)
        transport.send(b"data")
        await until(lambda: bool(broker.received))
        assert broker.received[0][0] == 0x30
        flags = broker.connects[0][7]
        assert flags == 0x06, "clean start and a will of QoS 0, not retained"
        assert b"gone" in broker.connects[0]


async def test_messages_are_acknowledged_and_handed_on_with_their_node() -> None:
    topic = b"cachebus/home/v1/two"
    after = packet(0x32, publish(topic, b"data", qos=1, number=513, properties=b"\x02\0\0\0\x3c"))
    broker = Broker(accept, after)
    async with connected(broker) as (transport, inbox):
        await until(lambda: bool(inbox) and bool(broker.received))
        assert inbox == [(b"data", "two")]
        assert broker.received[0][0] == 0x40
        assert broker.received[0][1][:2] == b"\x02\x01"
        assert transport.statistics()["received"] == 1


@pytest.mark.parametrize(
    "after",
    [
        packet(0x30, publish(b"cachebus/home/v1/two\xff", b"data")),
        packet(0x30, publish(b"cachebus/home/v1/zw\xc3\xb6lf", b"data")),
        packet(0x30, publish(b"", b"data", properties=b"\x23\0\x01")),
    ],
)  # fmt: skip
async def test_messages_on_strange_topics_are_counted(after: bytes) -> None:
    async with connected(Broker(accept, after)) as (transport, inbox):
        await until(lambda: transport.statistics()["unexpected"] == 1)
        assert inbox == []


@pytest.mark.parametrize(
    ("after", "complaint"),
    [
        (packet(0xC0, b""), "a packet of type 12"),
        (packet(0x62, b"\0\x01"), "a packet of type 6"),
        (packet(0x20, b"\0\0\0"), "a second welcome"),
        (packet(0x32, publish(b"cachebus/home/v1/two", b"", qos=1, number=0)), "identifier is missing"),
        (packet(0x30, b"\0\x14cachebus/home/v1/two\x05"), "the packet is cut"),
        (packet(0x30, b""), "the properties have no length"),
    ],
)
async def test_a_broker_that_does_not_keep_to_the_protocol_is_left(
    after: bytes, complaint: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        async with connected(Broker(accept, after)) as (transport, inbox):
            await until(lambda: transport.statistics()["reconnects"] >= 1)
            assert inbox == []
    assert complaint in caplog.text


async def test_a_broker_that_takes_no_acknowledgements_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mqtt_session, "MAX_UNWRITTEN", 3)
    broker = Broker(accept)
    async with connected(broker) as (transport, inbox):
        await until(lambda: transport.statistics()["connections"] == 1)
        session = transport._session
        assert session is not None
        session.link.pause_writing()
        for number in range(1, 6):
            data = publish(b"cachebus/home/v1/two", b"%d" % number, qos=1, number=number)
            broker._writers[-1].write(packet(0x32, data))
        await until(lambda: transport.statistics()["reconnects"] == 1)
        assert [data for data, _ in inbox] == [b"1", b"2", b"3"]


@given(noise=st.binary(min_size=1, max_size=120))
def test_a_broker_that_talks_nonsense_never_makes_a_traceback(noise: bytes) -> None:
    """After the welcome: whatever paho or we make of it, no exception reaches the event loop."""

    async def run() -> None:
        caught: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: caught.append(context))
        broker = Broker(accept, noise + packet(0x20, b"\xff"))
        async with connected(broker) as (transport, _):
            await until(lambda: transport.statistics()["connects"] == 1)
            await asyncio.sleep(0)
        assert caught == []

    asyncio.run(run())


async def test_without_a_broker_messages_wait_and_flush_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mqtt, "FLUSH_WAIT", 0.1)
    transport = MqttTransport(settings("mqtt://127.0.0.1:1"), lambda data, sender: None)
    async with transport:
        transport.send(b"data")
        await asyncio.wait_for(transport.flush(), 1.0)
        shown = transport.statistics()
        assert (shown["queued"], shown["connections"], shown["protocol"], shown["sent"]) == (1, 0, 0, 0)
    assert transport.statistics()["dropped"] == 1


@pytest.mark.parametrize("answer", [b"", None])
async def test_it_stops_at_once_whatever_it_waits_for(answer: bytes | None) -> None:
    """A broker that takes the connection and says nothing; and one that hangs up each time."""
    broker = Broker(lambda version: answer)
    async with connected(broker):
        await until(lambda: bool(broker.versions))
        started = time.monotonic()
    assert time.monotonic() - started < 2.0


def resolving(monkeypatch: pytest.MonkeyPatch, find: Callable[[str], list[str]]) -> None:
    """Let `find` stand in for the system's resolver."""

    def getaddrinfo(host: str, port: int, **more: object) -> list[object]:
        return [(0, 0, 0, "", (address, port)) for address in find(host)]

    monkeypatch.setattr(mqtt_lookup.socket, "getaddrinfo", getaddrinfo)


async def test_a_name_is_resolved_at_each_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name with a dead address first: the next attempt takes the next one."""
    asked: list[str] = []

    def find(host: str) -> list[str]:
        asked.append(host)
        return ["127.0.0.2", "127.0.0.1"]

    async with Broker(accept) as broker:
        resolving(monkeypatch, find)
        transport = MqttTransport(settings(f"mqtt://broker.test:{broker.port}"), lambda data, sender: None)
        async with transport:
            await until(lambda: transport.statistics()["connections"] == 1)
            assert asked == ["broker.test", "broker.test"]
            assert transport.statistics()["failed_connects"] == 1


async def test_a_resolver_that_is_down_is_asked_once_and_delays_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mqtt, "CONNECT_TIMEOUT", 0.02)
    monkeypatch.setattr(mqtt, "MAX_DELAY", 0.02)
    answer = threading.Event()
    asked: list[str] = []

    def find(host: str) -> list[str]:
        asked.append(host)
        assert answer.wait(DEADLINE)
        return ["127.0.0.1"]

    resolving(monkeypatch, find)
    async with Broker(accept) as broker:
        transport = MqttTransport(settings(f"mqtt://broker.test:{broker.port}"), lambda data, sender: None)
        async with transport:
            await until(lambda: transport.statistics()["failed_connects"] >= 3)
            assert asked == ["broker.test"]
            monkeypatch.setattr(mqtt, "CONNECT_TIMEOUT", DEADLINE)
            answer.set()
            await until(lambda: transport.statistics()["connections"] == 1)
        answer.clear()
        async with MqttTransport(settings(f"mqtt://broker.test:{broker.port}"), lambda data, sender: None):
            await until(lambda: len(asked) == 2)
            began = time.monotonic()
        await asyncio.get_running_loop().shutdown_default_executor()
        assert time.monotonic() - began < 1.0, "the end waited for the resolver"
        answer.set()


async def test_a_broker_that_is_away_is_reported_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whichever of the addresses of its name is tried."""
    monkeypatch.setattr(mqtt, "MAX_DELAY", 0.01)
    monkeypatch.setattr(mqtt, "MIN_DELAY", 0.01)
    resolving(monkeypatch, lambda host: ["127.0.0.1", "127.0.0.2"])
    async with MqttTransport(settings("mqtt://localhost:1"), lambda data, sender: None) as transport:
        await until(lambda: transport.statistics()["failed_connects"] >= 6)
    assert caplog.messages == ["transport wan: cannot connect to localhost:1: Connection refused"]


async def test_a_broker_that_vanishes_is_noticed_by_tcp() -> None:
    async with connected(Broker(accept)) as (transport, _):
        await until(lambda: transport._session is not None)
        assert transport._session is not None
        link = transport._session.link._transport
        assert link is not None
        opened = link.get_extra_info("socket")
        assert opened.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 5000
        assert opened.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1


def test_settings_show_no_password() -> None:
    shown = settings("mqtt://u@127.0.0.1", password="hunter2")
    assert "hunter2" not in repr(shown) + repr(parse_options(shown))


async def test_a_broker_that_hangs_up_after_its_welcome_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    broker = Broker(lambda version: accept(version) + packet(0xE0, b"\x87\0"))
    async with connected(broker) as (transport, _):
        await until(lambda: transport.statistics()["failed_connects"] >= 1)
    assert "Not authorized" in caplog.text
