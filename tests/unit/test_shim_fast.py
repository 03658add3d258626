"""The short way of plain questions: which it takes, that it gives what the long way gives, and the burst around it."""

from __future__ import annotations

import asyncio
import socket
import time
from contextlib import closing
from ipaddress import ip_address, ip_network
from typing import Any

import dns.edns
import dns.flags
import dns.message
import pytest

from cachebus.answer import Evidence, RRset
from cachebus.cache import Cache
from cachebus.entry import USED
from cachebus.presentation import name_from_text
from cachebus.shim import LOOPBACK, mmsg, udp
from cachebus.shim.access import AccessList
from cachebus.shim.burst import MAX_DATAGRAM, SLOTS
from cachebus.shim.fast import FastPath
from cachebus.shim.front import FrontSettings
from cachebus.shim.lookup import CacheStage, LookupOrder
from cachebus.shim.query import Channel
from cachebus.shim.service import Service
from cachebus.shim.settings import Network
from cachebus.shim.shim import Shim
from cachebus.shim.tasks import Tasks
from cachebus.shim.udp import BurstListener, UdpListener
from cachebus.testing import ManualClock
from tests.unit.shim_bed import ScriptedUpstream, bus_answer, reply_to, rrset, settings, until

NOW = 1_800_000_000.0
CLIENT = bytes((127, 0, 0, 1))
ADDRESS = bytes((192, 0, 2, 1))


def wire(name: str = "www.example.", rrtype: str = "A", *, flags: int = dns.flags.RD, **options: Any) -> bytes:
    message = dns.message.make_query(name, rrtype, **options)
    message.flags = dns.flags.Flag(flags)
    return message.to_wire()


class Bed:
    """A cache with both ways to its answers."""

    def __init__(self, *rrsets: RRset, allow: tuple[Network, ...] = LOOPBACK, **answer: Any) -> None:
        self.cache = Cache("node-a", max_entries=1000)
        self.clock = ManualClock(NOW)
        self.refreshed: list[bytes] = []
        stage = CacheStage(self.cache, refresh=lambda query: self.refreshed.append(query.qname))
        self.long = Service(LookupOrder([stage], self.clock), Tasks(), self.clock, allow=allow, max_in_flight=16)
        self.short = FastPath(self.cache, AccessList(allow).serves, refreshes=True)
        for one in rrsets:
            assert self.cache.put(bus_answer(one, learned=NOW, **answer), NOW) is None

    def both(self, data: bytes) -> tuple[bytes, bytes | None]:
        """What the long way gives, and then the short one."""
        answered = self.long.handle(data, "127.0.0.1", Channel.UDP)
        assert isinstance(answered, bytes)
        return answered, self.short.answer(data, CLIENT, self.clock())


@pytest.fixture
def bed() -> Bed:
    return Bed(
        rrset("www.example.", "A", 300, ADDRESS),
        rrset("two.example.", "AAAA", 300, bytes(15) + b"\1", bytes(15) + b"\2"),
        rrset("alias.example.", "CNAME", 200, b"\3Cdn\4test\0"),
        rrset("cdn.test.", "CNAME", 100, b"\3www\7Example\0"),
    )


@pytest.mark.parametrize(
    "data",
    [
        wire(),
        wire("WwW.eXample."),
        wire(flags=0),
        wire(flags=dns.flags.RD | dns.flags.AD),
        wire(use_edns=0, payload=1232),
        wire(use_edns=0, payload=0),
        wire(use_edns=0, payload=65535),
        wire("two.example.", "AAAA"),
        wire("ALIAS.example.", use_edns=0),
        wire("alias.example.", "CNAME"),
    ],
)
def test_takes_what_is_plain_and_gives_what_the_long_way_gives(bed: Bed, data: bytes) -> None:
    for _ in range(2):
        expected, found = bed.both(data)
        assert found == expected
    assert bed.short.answered == 2


@pytest.mark.parametrize(
    "data",
    [
        b"",
        wire()[:11],
        wire()[:-1],
        wire() + b"\0",
        wire(flags=dns.flags.QR),
        wire(flags=0x2000),
        wire(flags=dns.flags.RD | dns.flags.CD),
        wire(want_dnssec=True),
        wire(use_edns=1),
        wire(use_edns=0, options=[dns.edns.GenericOption(10, b"12345678")]),
        wire(rdclass="CH"),
        wire(rrtype="ANY"),
        wire(rrtype="TXT"),
        wire("unknown.example."),
        wire("two.example."),
    ],
)
def test_leaves_everything_else_to_the_long_way(bed: Bed, data: bytes) -> None:
    bed.long.handle(wire(), "127.0.0.1", Channel.UDP)
    assert bed.short.answer(data, CLIENT, NOW) is None
    assert bed.short.answered == 0


def test_what_is_asked_for_the_first_time_is_marked_as_used(bed: Bed) -> None:
    for name, rrtype in (("www.example.", 1), ("alias.example.", 5), ("cdn.test.", 5)):
        assert not bed.cache._held(name_from_text(name) + rrtype.to_bytes(2))[25] & USED
    assert bed.short.answer(wire("alias.example."), CLIENT, NOW) is not None
    for name, rrtype in (("www.example.", 1), ("alias.example.", 5), ("cdn.test.", 5)):
        assert bed.cache._held(name_from_text(name) + rrtype.to_bytes(2))[25] & USED


def test_counts_a_hit_of_the_cache(bed: Bed) -> None:
    bed.both(wire("alias.example."))
    assert (bed.cache.hits, bed.cache.misses) == (2, 0)


def test_ttls_count_down_and_the_end_is_left_to_the_long_way(bed: Bed) -> None:
    for later, taken in ((0, True), (100.5, True), (200, True), (295, False), (301, False)):
        bed.clock.now = NOW + later
        expected, found = bed.both(wire())
        assert found == (expected if taken else None), later


def test_entries_about_to_be_fetched_again_take_the_long_way() -> None:
    for number in range(10):
        name = f"n{number}.example."
        bed = Bed(rrset(name, "A", 300, ADDRESS), transport="")
        due = []
        for later in range(240, 300):
            bed.clock.now = NOW + later
            bed.refreshed.clear()
            _, found = bed.both(wire(name))
            assert found is None or not bed.refreshed
            due += bed.refreshed
        assert due or bed.cache.shortened(name_from_text(name), 300) >= 299


def test_only_clients_that_are_served(bed: Bed) -> None:
    bed.both(wire())
    assert bed.short.answer(wire(), bytes((192, 0, 2, 1)), NOW) is None
    assert bed.short.answer(wire(), bytes(15) + b"\1", NOW) is not None
    assert bed.short.answer(wire(), bytes(15) + b"\2", NOW) is None


def test_names_that_another_stage_answers_for_take_the_long_way(bed: Bed) -> None:
    asked: list[bytes] = []

    def claims(name: bytes) -> bool:
        asked.append(name)
        return True

    short = FastPath(bed.cache, AccessList(LOOPBACK).serves, refreshes=True, claims=claims)
    bed.both(wire("WWW.Example."))
    assert short.answer(wire("WWW.Example."), CLIENT, NOW) is None
    assert asked == [name_from_text("www.example.")]
    assert short.answered == 0


def test_access_by_bits() -> None:
    networks = [ip_network(text) for text in ("10.0.0.0/8", "192.0.2.128/25", "2001:db8::/33", "0.0.0.0/32")]
    allowed = AccessList(networks)
    for text in ("10.255.0.1", "11.0.0.1", "192.0.2.127", "192.0.2.128", "2001:db8::1", "2001:db8:8000::", "0.0.0.0"):
        address = ip_address(text)
        assert allowed.serves(address.packed) == any(address in network for network in networks), text


def test_validated_data_has_ad_for_those_who_ask(bed: Bed) -> None:
    bed = Bed(
        rrset("alias.example.", "CNAME", 200, b"\3www\7example\0"),
        rrset("www.example.", "A", 300, ADDRESS),
        evidence=Evidence.VALIDATED,
    )
    for flags in (dns.flags.RD, dns.flags.RD | dns.flags.AD):
        expected, found = bed.both(wire("alias.example.", flags=flags))
        assert found == expected
        assert bool(expected[3] & 0x20) == bool(flags & dns.flags.AD)


def test_negative_answers_take_the_long_way(bed: Bed) -> None:
    for rrtype, rcode in ((28, 0), (0, 3)):
        bed.cache.put_negative(name_from_text("cdn.test."), rrtype, rcode, None, 60, NOW, "node-a")
    for data in (wire("cdn.test.", "AAAA"), wire("cdn.test."), wire("alias.example.")):
        bed.long.handle(data, "127.0.0.1", Channel.UDP)
        assert bed.short.answer(data, CLIENT, NOW) is None


def test_what_does_not_fit_takes_the_long_way() -> None:
    bed = Bed(rrset("www.example.", "A", 300, *(bytes((192, 0, 2, number)) for number in range(60))))
    assert bed.both(wire())[1] is None
    assert bed.both(wire(use_edns=0, payload=600))[1] is None
    expected, found = bed.both(wire(use_edns=0, payload=1232))
    assert found == expected


# The listeners


LISTENERS = [pytest.param(True, id="burst"), pytest.param(False, id="one by one")]


@pytest.fixture(params=LISTENERS)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type[UdpListener]:
    """Each kind of listener, made the one that is used."""
    monkeypatch.setattr(mmsg, "is_available", lambda: request.param)
    return BurstListener if request.param else UdpListener


def test_this_system_has_bursts() -> None:
    assert mmsg.is_available()


def clients(count: int, family: socket.AddressFamily = socket.AF_INET) -> list[socket.socket]:
    found = []
    for _ in range(count):
        client = socket.socket(family, socket.SOCK_DGRAM)
        client.settimeout(10)
        client.connect(("::1" if family == socket.AF_INET6 else "127.0.0.1", 1))  # an address, until a port is known
        found.append(client)
    return found


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "0.0.0.0", "::"])
async def test_a_mixed_burst_is_answered_each_to_its_client(kind: type[UdpListener], host: str) -> None:
    """More than one call takes; plain, unknown, malformed, refused and slow questions side by side."""
    cache = Cache("node-a")
    now = time.time()
    for number in range(10):
        answer = bus_answer(rrset(f"n{number}.example.", "A", 3600, bytes((192, 0, 2, number))), learned=now)
        assert cache.put(answer, now) is None
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    asked = "::1" if ":" in host else "127.0.0.1"
    async with (
        ScriptedUpstream(lambda message, stream: reply_to(message, rcode=3)) as upstream,
        Shim(settings(upstream, listen=((host, 0),)), cache, lambda answer: None, time.time) as shim,
    ):
        assert type(shim._server._udp[0]) is kind
        asking = clients(3 * SLOTS, family)
        loop = asyncio.get_running_loop()
        try:
            for client in asking:
                client.connect((asked, shim.endpoints[0][1]))
                client.setblocking(False)
            for _ in range(2):
                expected: list[int | None] = []
                for number, client in enumerate(asking):
                    match number % 8:
                        case 0:
                            data, rcode = wire(f"missing{number}.test."), 3
                        case 1:
                            data, rcode = wire()[:-3], 1
                        case 2:
                            data, rcode = b"\0" * 7, None
                        case 3:
                            data, rcode = wire("x.example.", "AXFR"), 5
                        case _:
                            data, rcode = wire(f"n{number % 10}.example."), 0
                    expected.append(rcode)
                    client.send(data)
                for number, (client, rcode) in enumerate(zip(asking, expected, strict=True)):
                    if rcode is None:
                        continue
                    async with asyncio.timeout(10):
                        reply = await loop.sock_recv(client, 4096)
                    assert reply[3] & 0xF == rcode, number
                    if rcode == 0:
                        assert reply.endswith(bytes((192, 0, 2, number % 10)))
            assert shim.statistics()["fast"] >= SLOTS
            assert shim.statistics()["dropped_short"] == 2 * 3 * SLOTS // 8
        finally:
            for client in asking:
                client.close()


async def test_a_datagram_beyond_the_buffer_is_malformed_and_harms_no_neighbour(kind: type[UdpListener]) -> None:
    async with Shim(settings(), Cache("node-a"), lambda answer: None, time.time) as shim:
        with closing(clients(1)[0]) as client:
            client.connect(shim.endpoints[0])
            client.setblocking(False)
            client.send(wire() + bytes(2 * MAX_DATAGRAM))
            client.send(wire(flags=0))
            loop = asyncio.get_running_loop()
            async with asyncio.timeout(10):
                found = {(await loop.sock_recv(client, 4096))[3] & 0xF for _ in range(2)}
        assert found == {1, 5}


async def test_a_reply_that_cannot_be_sent_is_counted_and_costs_the_others_nothing() -> None:
    async with Shim(settings(), Cache("node-a"), lambda answer: None, time.time) as shim:
        listener = shim._server._udp[0]
        assert isinstance(listener, BurstListener)
        lost = listener._calls.send(0, 3)  # three empty addresses
        assert lost == 3
        with closing(clients(1)[0]) as client:
            client.connect(shim.endpoints[0])
            client.setblocking(False)
            client.send(wire(flags=0))
            async with asyncio.timeout(10):
                assert (await asyncio.get_running_loop().sock_recv(client, 4096))[3] & 0xF == 5


async def test_cached_answers_go_before_all_that_waits(
    kind: type[UdpListener], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many questions as fit, each of which takes its whole turn: a cached answer waits for one of them at most."""
    monkeypatch.setattr(udp, "MAX_WAITING", 50)
    monkeypatch.setattr(udp, "TURN", 0.0)
    cache = Cache("node-a")
    now = time.time()
    cache.put(bus_answer(rrset("www.example.", "A", 3600, ADDRESS), learned=now), now)
    async with Shim(settings(), cache, lambda answer: None, time.time) as shim:
        with closing(clients(1)[0]) as client:
            client.connect(shim.endpoints[0])
            client.setblocking(False)
            for number in range(80):
                client.send(wire(f"unknown{number}.test.", flags=0))
            client.send(wire())
            loop = asyncio.get_running_loop()
            replies = 0
            while True:
                async with asyncio.timeout(10):
                    reply = await loop.sock_recv(client, 4096)
                if reply.endswith(ADDRESS):
                    break
                replies += 1
            assert replies < 10
            await until(lambda: shim._service.counters["queries"] == 50)
        assert shim.statistics()["udp_dropped"] == 30


async def test_without_a_short_way_a_burst_waits_in_the_kernel(
    kind: type[UdpListener], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a rate limit: more cached questions at once than may wait."""
    monkeypatch.setattr(udp, "MAX_WAITING", 2 * SLOTS)
    monkeypatch.setattr(udp, "TURN", 0.0)
    cache = Cache("node-a")
    now = time.time()
    cache.put(bus_answer(rrset("www.example.", "A", 3600, ADDRESS), learned=now), now)
    async with Shim(settings(front=FrontSettings(rotate=True)), cache, lambda answer: None, time.time) as shim:
        assert shim._fast is None
        with closing(clients(1)[0]) as client:
            client.connect(shim.endpoints[0])
            client.setblocking(False)
            for _ in range(5 * SLOTS):
                client.send(wire())
            async with asyncio.timeout(10):
                for _ in range(5 * SLOTS):
                    assert (await asyncio.get_running_loop().sock_recv(client, 4096)).endswith(ADDRESS)
        assert shim.statistics()["udp_dropped"] == 0


async def test_what_waits_when_the_listener_ends_is_let_go(
    kind: type[UdpListener], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(udp, "TURN", 0.0)
    async with Shim(settings(), Cache("node-a"), lambda answer: None, time.time) as shim:
        listener = shim._server._udp[0]
        assert type(listener) is kind
        for _ in range(40):
            listener._postpone(wire(flags=0), ("127.0.0.1", 9), [])
        listener._work_off()
        assert len(listener._waiting) == 39
    assert not listener._waiting
    await asyncio.sleep(0)
    assert shim.statistics()["queries"] == 1
