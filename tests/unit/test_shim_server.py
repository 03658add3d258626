"""The listeners over real sockets: access, TCP as RFC 7766 wants it, limits, and that nothing is left behind."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from ipaddress import ip_network
from typing import Any

import dns.flags
import dns.message
import dns.rcode
import pytest

from cachebus.cache import Cache
from cachebus.errors import ConfigError
from cachebus.shim import Shim, parse_endpoint
from cachebus.shim import connections as connections_module
from cachebus.shim import server as server_module
from cachebus.shim.query import Channel
from cachebus.shim.sockets import bind_both, bind_datagram
from cachebus.shim.tcp import MAX_UNDER_WAY
from cachebus.shim.udp import reply_from
from cachebus.testing import ManualClock
from tests.unit.shim_bed import (
    WAIT,
    ScriptedUpstream,
    ask,
    ask_udp,
    bus_answer,
    records,
    reply_to,
    rrset,
    settings,
    texts,
    until,
)

ADDRESS = bytes((192, 0, 2, 1))


@asynccontextmanager
async def shim_with_data(*upstreams: ScriptedUpstream, **changes: Any) -> AsyncIterator[Shim]:
    """A shim whose cache holds `www.example. A`, and `big.example. TXT` of 2,000 bytes."""
    clock = ManualClock()
    cache = Cache("node-a")
    cache.put(bus_answer(rrset("www.example.", "A", 300, ADDRESS), learned=clock.now, transport=""), clock.now)
    text = (b"\xc8" + b"x" * 200) * 10
    cache.put(bus_answer(rrset("big.example.", "TXT", 300, text), learned=clock.now, transport=""), clock.now)
    async with Shim(settings(*upstreams, **changes), cache, lambda answer: None, clock) as shim:
        yield shim


def query(name: str, rrtype: str = "A", ident: int = 1) -> bytes:
    message = dns.message.make_query(name, rrtype)
    message.id = ident
    return message.to_wire()


def framed(*messages: bytes) -> bytes:
    return b"".join(len(message).to_bytes(2, "big") + message for message in messages)


async def read_message(reader: asyncio.StreamReader) -> dns.message.Message:
    async with asyncio.timeout(WAIT):
        size = int.from_bytes(await reader.readexactly(2), "big")
        return dns.message.from_wire(await reader.readexactly(size))


@asynccontextmanager
async def connected(shim: Shim) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(*shim.endpoints[0])
    try:
        yield reader, writer
    finally:
        writer.close()


async def closed(reader: asyncio.StreamReader) -> None:
    """Wait until the server has closed the connection."""
    async with asyncio.timeout(WAIT):
        with suppress(ConnectionResetError):
            assert await reader.read() == b""


async def test_udp_and_tcp_on_one_port_and_truncation_between_them() -> None:
    async with shim_with_data() as shim:
        assert (await ask(shim.endpoints[0], "big.example.", "TXT")).flags & dns.flags.TC
        async with connected(shim) as (reader, writer):
            writer.write(framed(query("big.example.", "TXT")))
            reply = await read_message(reader)
            assert len(reply.answer[0][0].strings) == 10


async def test_pipelined_questions_byte_by_byte() -> None:
    async with shim_with_data() as shim, connected(shim) as (reader, writer):
        for byte in framed(*(query("www.example.", ident=ident) for ident in range(3))):
            writer.write(bytes((byte,)))
            await writer.drain()
        assert [(await read_message(reader)).id for _ in range(3)] == [0, 1, 2]


async def test_answers_come_in_the_order_in_which_they_are_found() -> None:
    gate = asyncio.Event()

    def respond(message: dns.message.Message, stream: bool) -> bytes | None:
        return reply_to(message, records("slow.example. 300 IN A 192.0.2.2")) if gate.is_set() else None

    async with ScriptedUpstream(respond) as upstream, shim_with_data(upstream) as shim, connected(shim) as streams:
        reader, writer = streams
        writer.write(framed(query("slow.example.", ident=1), query("www.example.", ident=2)))
        assert (await read_message(reader)).id == 2
        gate.set()
        assert (await read_message(reader)).id == 1


async def test_a_client_may_close_its_half_and_still_gets_its_answers() -> None:
    async with (
        ScriptedUpstream(lambda message, stream: reply_to(message, records("a. 60 IN A 192.0.2.2"))) as upstream,
        shim_with_data(upstream) as shim,
        connected(shim) as (reader, writer),
    ):
        writer.write(framed(query("a."), query("www.example.", ident=2)))
        writer.write_eof()
        assert {(await read_message(reader)).id for _ in range(2)} == {1, 2}
        await closed(reader)


async def test_an_idle_connection_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections_module, "IDLE_TIMEOUT", 0.2)
    monkeypatch.setattr(server_module, "SWEEP_INTERVAL", 0.02)
    async with shim_with_data() as shim, connected(shim) as (reader, writer):
        writer.write(b"\0")  # half a length is no activity
        await closed(reader)
        assert shim.statistics()["tcp_timed_out"] == 1
        assert shim.statistics()["tcp_open"] == 0


async def test_a_client_that_reads_no_replies_is_not_served_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections_module, "IDLE_TIMEOUT", 0.3)
    monkeypatch.setattr(server_module, "SWEEP_INTERVAL", 0.02)
    async with shim_with_data() as shim:
        with socket.create_connection(shim.endpoints[0]) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.settimeout(0)
            await until(lambda: shim.statistics()["tcp_open"] == 1)
            burst = framed(*[query("big.example.", "TXT")] * 50)
            sent = 0

            def push() -> bool:
                nonlocal sent
                try:
                    sent += client.send(burst)
                except BlockingIOError:
                    pass
                except OSError:
                    return True
                return shim.statistics()["tcp_open"] == 0

            await until(push)
        assert shim.statistics()["tcp_timed_out"] == 1


async def test_the_longest_idle_connection_makes_room() -> None:
    async with shim_with_data(max_tcp_connections=10) as shim:
        clients = [await asyncio.open_connection(*shim.endpoints[0]) for _ in range(10)]
        await until(lambda: shim.statistics()["tcp_open"] == 10)
        clients[0][1].write(framed(query("www.example.")))
        await read_message(clients[0][0])
        async with connected(shim) as (reader, writer):
            writer.write(framed(query("www.example.", ident=7)))
            assert (await read_message(reader)).id == 7
            await closed(clients[1][0])
            clients[0][1].write(framed(query("www.example.", ident=8)))
            assert (await read_message(clients[0][0])).id == 8
            assert shim.statistics()["tcp_evicted"] == 1
        for _, writer in clients:
            writer.close()


async def test_work_under_way_on_one_connection_is_bounded() -> None:
    async with (
        ScriptedUpstream(lambda message, stream: None) as silent,
        shim_with_data(silent) as shim,
        connected(shim) as (_, writer),
    ):
        count = MAX_UNDER_WAY * 3
        writer.write(framed(*(query(f"n{n}.example.", ident=n) for n in range(count))))
        await until(lambda: shim.statistics()["in_flight"] == MAX_UNDER_WAY)
        # Another client is served meanwhile, and the rest is not even read.
        assert (await ask(shim.endpoints[0], "www.example.")).rcode() == 0
        assert shim.statistics()["queries"] == MAX_UNDER_WAY + 1


async def test_work_under_way_in_all_is_bounded_and_cached_names_are_still_answered() -> None:
    async with (
        ScriptedUpstream(lambda message, stream: None) as silent,
        shim_with_data(silent, max_in_flight=16) as shim,
    ):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as flood:
            flood.connect(shim.endpoints[0])
            for number in range(100):
                flood.send(query(f"n{number}.example."))
            await until(lambda: shim.statistics()["overloaded"] == 84)
        assert shim.statistics()["in_flight"] == 16
        assert (await ask(shim.endpoints[0], "www.example.")).rcode() == 0
        reply = await ask(shim.endpoints[0], "one-more.example.", use_edns=0)
        assert reply.rcode() == dns.rcode.SERVFAIL
        assert [int(option.code) for option in reply.options] == [14]


async def test_only_allowed_clients_are_served() -> None:
    async with shim_with_data(allow=(ip_network("192.0.2.0/24"), ip_network("2001:db8::/32"))) as shim:
        reply = await ask(shim.endpoints[0], "www.example.", use_edns=0)
        assert reply.rcode() == dns.rcode.REFUSED
        assert not reply.answer
        assert [int(option.code) for option in reply.options] == [18]
        assert shim.statistics()["prohibited"] == 1


async def test_no_client_is_remembered_and_any_address_form_is_taken() -> None:
    async with shim_with_data() as shim:
        service = shim._service
        for number in range(100):
            assert service.handle(query("www.example."), f"198.51.100.{number}", Channel.UDP) is not None
        assert not any("198.51.100." in repr(value) for value in vars(service).values())
        assert service.handle(query("www.example."), "fe80::1%eth0", Channel.UDP) is not None


async def test_bytes_without_sense_get_formerr_or_silence_and_no_log(caplog: pytest.LogCaptureFixture) -> None:
    async with shim_with_data() as shim:
        for wire in (b"", b"\0" * 11, b"\xff" * 512):
            assert await ask_udp(shim.endpoints[0], wire, within=0.05) is None
        reply = await ask_udp(shim.endpoints[0], b"\0" * 500)
        assert reply is not None
        assert dns.message.from_wire(reply).rcode() == dns.rcode.FORMERR
        async with connected(shim) as (reader, writer):
            writer.write(framed(b"", b"\0", b"\0" * 500))
            assert (await read_message(reader)).rcode() == dns.rcode.FORMERR
        counters = shim.statistics()
        assert (counters["dropped_short"], counters["dropped_response"], counters["errors"]) == (4, 1, 2)
    assert not caplog.records


async def test_a_bug_in_a_stage_is_logged_and_hurts_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    async with (
        ScriptedUpstream(lambda message, stream: reply_to(message)) as upstream,
        shim_with_data(upstream) as shim,
    ):

        def broken(*arguments: object) -> None:
            raise RuntimeError("a bug")

        shim._forwarder._learn = broken
        assert await ask_udp(shim.endpoints[0], query("other.example."), within=0.2) is None
        assert (await ask(shim.endpoints[0], "www.example.")).rcode() == 0
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


async def test_ipv6_and_wildcard_addresses_answer_from_the_address_asked() -> None:
    for listen, asked in (("::1", "::1"), ("0.0.0.0", "127.0.0.77"), ("::", "::1")):
        async with shim_with_data(listen=((listen, 0),)) as shim:
            port = shim.endpoints[0][1]
            reply = await ask((asked, port), "www.example.")  # a connected socket: from nowhere else
            assert texts(reply.answer) == ["www.example. 300 IN A 192.0.2.1"], listen


async def test_wildcard_sockets_wait_for_upstreams_too() -> None:
    async with (
        ScriptedUpstream(lambda message, stream: reply_to(message)) as upstream,
        shim_with_data(upstream, listen=(("0.0.0.0", 0),)) as shim,
    ):
        assert (await ask(("127.0.0.5", shim.endpoints[0][1]), "other.example.")).rcode() == 0


@pytest.mark.parametrize(("host", "level", "option"), [("127.0.0.1", 0, 10), ("::1", 41, 23)])
def test_udp_replies_are_never_fragmented(host: str, level: int, option: int) -> None:
    for sock in (*bind_both((host, 0)), bind_datagram((host, 0))):
        with sock:
            assert sock.type == socket.SOCK_STREAM or sock.getsockopt(level, option) == 3


def test_packet_information_is_turned_round() -> None:
    asked, local = bytes((192, 0, 2, 9)), bytes((10, 0, 0, 1))
    control = [(socket.SOL_SOCKET, 29, bytes(16)), (socket.IPPROTO_IP, 8, struct.pack("=I4s4s", 3, local, asked))]
    assert reply_from(control) == [(socket.IPPROTO_IP, 8, struct.pack("=I4s4s", 0, asked, bytes(4)))]
    assert reply_from([]) == []


async def test_several_addresses() -> None:
    async with shim_with_data(listen=(("127.0.0.1", 0), ("127.0.0.2", 0))) as shim:
        for endpoint in shim.endpoints:
            assert (await ask(endpoint, "www.example.")).rcode() == 0


async def test_nothing_is_left_behind() -> None:
    loop = asyncio.get_running_loop()
    before: Callable[[], int] = lambda: len(asyncio.all_tasks(loop))  # noqa: E731
    tasks = before()
    async with ScriptedUpstream(lambda message, stream: None) as silent:
        async with shim_with_data(silent) as shim:
            reader, writer = await asyncio.open_connection(*shim.endpoints[0])
            writer.write(framed(query("a.example."), query("b.example.")))
            await until(lambda: shim.statistics()["in_flight"] == 2)
        await closed(reader)
        writer.close()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(*shim.endpoints[0])
    assert before() == tasks


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("192.0.2.1", ("192.0.2.1", 53)),
        ("192.0.2.1:5353", ("192.0.2.1", 5353)),
        ("2001:db8::1", ("2001:db8::1", 53)),
        ("[2001:db8::1]", ("2001:db8::1", 53)),
        ("[2001:db8::1]:5353", ("2001:db8::1", 5353)),
    ],
)
def test_endpoints(text: str, expected: tuple[str, int]) -> None:
    assert parse_endpoint(text, 53) == expected


@pytest.mark.parametrize(
    "text",
    ["", "localhost", "localhost:53", "192.0.2.1:", "192.0.2.1:x", "192.0.2.1:65536", "[::1", "[::1]x", "[::1]:"],
)
def test_what_is_no_endpoint(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_endpoint(text, 53)


@pytest.mark.parametrize(
    "changes",
    [
        {"listen": ()},
        {"max_tcp_connections": 9},
        {"max_in_flight": 70000},
        {"max_connections_per_client": 0},
        {"timeout": 0.0},
        {"max_ttl": 0},
    ],
)
def test_settings_out_of_range_raise(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        settings(**changes)
