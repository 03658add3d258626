"""snapshot/: a cache becomes a C-DNS file and another cache, by rank and with the times that were; over sockets too."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import dns.flags
import dns.message
import pytest
import uvloop

from cachebus.answer import Answer, Evidence, Refusal, RRset
from cachebus.assembly import levels_taken
from cachebus.cache import SLICE as LOOK
from cachebus.cache import Cache
from cachebus.codecs.cdns import CdnsCodec
from cachebus.codecs.dns import DnsCodec, DnsCodecSettings
from cachebus.config import loads
from cachebus.config.transports import TransportTls
from cachebus.errors import CachebusError, FrameError
from cachebus.filters.policy import Policy, PolicySettings
from cachebus.links import Owner, certificates, make_copy_codec
from cachebus.presentation import name_from_text
from cachebus.shim.exchange import Exchange, compose_query
from cachebus.shim.learn import Learner
from cachebus.shim.settings import UpstreamSettings
from cachebus.shim.upstream import Quality, Reply, Upstream
from cachebus.snapshot import joining, server
from cachebus.snapshot.copy import PIECE, SLICE, Taker, give
from cachebus.snapshot.server import MAX_CLIENTS, SnapshotServer
from cachebus.snapshot.service import OPERATOR, Snapshots, SnapshotSettings
from cachebus.testing import ManualClock
from cachebus.wire import rrtypes
from cachebus.wire.message import pack, parse
from tests.certificates import Authority
from tests.core_bed import address, answer, key, rrset
from tests.unit.shim_bed import records, reply_to

NOW = 1_800_000_000.0
POLICY = Policy(PolicySettings())
A = rrtypes.A


def codec(node: str = "b") -> CdnsCodec:
    return make_copy_codec(Owner(node=node, cluster="test"), None, insecure=True)


def warm(count: int, *, node: str = "a") -> Cache:
    cache = Cache(node)
    for number in range(count):
        cache.put(address(f"n{number}.example.com", learned=NOW - 100, origin=node), NOW)
    return cache


async def pieces_of(cache: Cache, clock: ManualClock, **more: object) -> list[bytes]:
    return [piece async for piece in give(cache, POLICY, codec("a"), clock, rate=10_000_000, **more)]  # type: ignore[arg-type]


async def merge(
    data: bytes, cache: Cache, clock: ManualClock, *, max_entries: int = 1000, step: int = 1 << 20
) -> Taker:
    taker = Taker(cache, POLICY, codec(), clock, sender=OPERATOR, max_entries=max_entries)
    for start in range(0, len(data), step):
        await taker.feed(data[start : start + step])
    return taker


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOW)


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("step", [1, 1000, 1 << 20])
async def test_a_copy_has_everything_with_its_origin_evidence_and_times(
    clock: ManualClock, compress: bool, step: int
) -> None:
    source = warm(20)
    source.put(
        address("peer.example.com", learned=NOW - 7, origin="c", evidence=Evidence.CONFIRMED, transport="lan"), NOW
    )
    data = b"".join(await pieces_of(source, clock, compress=compress))
    cold = Cache("b")
    taker = await merge(data, cold, clock, step=step)
    assert taker.whole
    assert (taker.merged.received, taker.merged.merged, taker.merged.refused) == (21, 21, {})
    copied = cold.get(name_from_text("peer.example.com"), A, NOW)
    assert copied is not None
    assert (copied.origin, copied.evidence, copied.learned, copied.transport) == (
        "c", Evidence.CONFIRMED, NOW - 7, "snapshot",
    )  # fmt: skip
    own = cold.get(name_from_text("n3.example.com"), A, NOW)
    assert own is not None
    assert (own.origin, own.local, own.learned) == ("a", False, NOW - 100)
    assert own.expires <= NOW + 200


async def test_what_lives_on_the_node_already_is_not_replaced_by_a_copy(clock: ManualClock) -> None:
    data = b"".join(await pieces_of(warm(3), clock))
    joined = Cache("b")
    joined.put(address("n0.example.com", last=9, learned=NOW, transport="lan", origin="a"), NOW)
    joined.put(address("n1.example.com", last=9, learned=NOW), NOW)
    taker = await merge(data, joined, clock)
    assert taker.merged.merged == 1
    assert taker.merged.refused == {Refusal.BETTER_KNOWN: 1, Refusal.LOCAL_DATA_LIVE: 1}


async def test_a_copy_taken_twice_changes_nothing(clock: ManualClock) -> None:
    data = b"".join(await pieces_of(warm(5), clock))
    cold = Cache("b")
    await merge(data, cold, clock)
    again = await merge(data, cold, clock)
    assert again.merged.refused == {Refusal.BETTER_KNOWN: 5}


async def test_what_died_on_the_way_stays_dead(clock: ManualClock) -> None:
    data = b"".join(await pieces_of(warm(5), clock))
    clock.advance(300)
    taker = await merge(data, Cache("b"), clock)
    assert taker.merged.refused == {Refusal.EXPIRED: 5}


async def test_what_may_not_be_shared_is_not_copied_and_not_taken(clock: ManualClock) -> None:
    source = warm(1)
    source.put(address("printer.local", learned=NOW), NOW)
    everything = Policy(PolicySettings(private_names=True))
    assert (await merge(b"".join(await pieces_of(source, clock)), Cache("b"), clock)).merged.received == 1
    data = b"".join([piece async for piece in give(source, everything, codec("a"), clock)])
    taker = await merge(data, Cache("b"), clock)
    assert taker.merged.refused == {Refusal.SPECIAL_USE_NAME: 1}


async def test_infrastructure_types_are_copied_only_where_they_are_shared(clock: ManualClock) -> None:
    source = warm(1)
    source.put(answer(rrset("example.com", "NS", "ns1.example.com."), learned=NOW), NOW)
    assert (await merge(b"".join(await pieces_of(source, clock)), Cache("b"), clock)).merged.received == 1
    sharing = Policy(PolicySettings(infrastructure=True))
    data = b"".join([piece async for piece in give(source, sharing, codec("a"), clock)])
    assert (await merge(data, Cache("b"), clock)).merged.refused == {Refusal.QTYPE: 1}


@pytest.mark.parametrize(
    ("trust", "flags", "copied"),
    [
        ({}, dns.flags.RA, 0),
        ({"authoritative": True}, dns.flags.RA, 0),
        ({"authoritative": True}, dns.flags.AA, 1),
        ({"validating": True}, dns.flags.RA, 0),
        ({"validating": True}, dns.flags.RA | dns.flags.AD, 0),  # without RRSIGs
    ],
)
async def test_what_an_upstream_told_the_shims_own_clients_is_in_no_copy(
    clock: ManualClock, trust: dict[str, bool], flags: int, copied: int
) -> None:
    source = Cache("a")
    learner = Learner("a", source, lambda one: source.put(one, NOW), infrastructure=False, max_ttl=86400)
    name = name_from_text("www.example.com")
    outgoing = compose_query(name, A, recurse=True)
    wire = reply_to(dns.message.from_wire(outgoing.wire), records("www.example.com. 300 IN A 192.0.2.1"), flags=flags)
    upstream = Upstream(UpstreamSettings(address=("127.0.0.1", 53), **trust))
    learner.learn(name, A, Reply(upstream, Exchange(outgoing.wire, wire), parse(wire), Quality.GOOD), NOW)
    assert source.get(name, A, NOW) is not None  # our own clients get it
    taker = await merge(b"".join(await pieces_of(source, clock)), Cache("b"), clock)
    assert taker.merged.received == copied


async def test_no_more_is_given_or_taken_than_the_limit(clock: ManualClock) -> None:
    data = b"".join(await pieces_of(warm(500), clock, max_entries=150))
    assert (await merge(data, Cache("b"), clock)).merged.received == 150
    limited = await merge(b"".join(await pieces_of(warm(500), clock)), Cache("b"), clock, max_entries=10)
    assert limited.full
    assert limited.merged.received == 10


async def test_a_copy_is_paced(clock: ManualClock) -> None:
    loop = asyncio.get_running_loop()
    begun = loop.time()
    async for _ in give(warm(300), POLICY, codec("a"), clock, rate=1000):
        pass
    assert loop.time() - begun >= 0.3


async def test_a_copy_leaves_the_event_loop_its_turns(clock: ManualClock) -> None:
    """Between two of them no more is looked at, given or taken than a slice, what is not popular included."""
    source = warm(2000)
    turns = looked = most = 0
    slices = source.slices

    def counted(now: float, **more: bool) -> Iterator[list[Answer]]:
        nonlocal looked
        for part in slices(now, **more):
            looked += 1
            yield part

    async def others() -> None:
        nonlocal turns, looked, most
        while True:
            turns += 1
            most, looked = max(most, looked), 0
            await asyncio.sleep(0)

    source.slices = counted  # type: ignore[method-assign, assignment]
    ticking = asyncio.create_task(others())
    data = await pieces_of(source, clock)
    assert most == 1
    assert max(map(len, data)) < 200 * SLICE
    given, turns = turns, 0
    assert given >= 2 * 2000 / LOOK
    taker = await merge(b"".join(data), Cache("b"), clock, max_entries=2000)
    assert taker.merged.merged == 2000
    assert turns >= 2000 / SLICE
    ticking.cancel()


@pytest.mark.parametrize(
    "data", [b"", b"x", b"GET / HTTP/1.1\r\n\r\n", b"\x28\xb5\x2f\xfdxxxxxxxx", b"\x83\x65C-DNS\xff"]
)
async def test_what_is_no_copy_is_refused(clock: ManualClock, data: bytes) -> None:
    snapshots = service(Cache("b"), clock)

    async def pieces() -> AsyncIterator[bytes]:
        yield data

    with pytest.raises(FrameError):
        await snapshots.take(pieces())


async def test_a_bomb_is_given_up(clock: ManualClock) -> None:
    from backports import zstd

    taker = Taker(Cache("b"), POLICY, codec(), clock, sender=OPERATOR)
    with pytest.raises(FrameError):
        await taker.feed(zstd.compress(bytes(PIECE * 5000)))


async def test_a_copy_of_which_nothing_is_taken_has_an_end(clock: ManualClock) -> None:
    data = b"".join(await pieces_of(warm(1000), clock))
    clock.advance(300)
    with pytest.raises(FrameError, match="does not end"):
        await merge(data, Cache("b"), clock, max_entries=100)


async def test_what_was_flushed_here_does_not_come_back_by_a_copy(clock: ManualClock) -> None:
    data = b"".join(await pieces_of(warm(5), clock))
    cold = Cache("b")
    cold.flush(name_from_text("n1.example.com"), NOW)
    assert (await merge(data, cold, clock)).merged.refused == {Refusal.FLUSHED: 1}


def test_a_copy_is_taken_of_the_levels_that_some_transport_takes() -> None:
    secret = base64.b64encode(bytes(32)).decode()
    text = f"node: a\nkeys: {{k: {{algorithm: hmac-sha256, secret: {secret}}}}}\ntransports:\n"
    line = '  %s: {type: udp, listen: "127.0.0.1:0", key: k, accept: {evidence: [%s]}}\n'
    assert levels_taken(loads("node: a")) == frozenset(Evidence)
    some = loads(text + line % ("x", "validated") + line % ("y", "confirmed"))
    assert levels_taken(some) == {Evidence.CONFIRMED, Evidence.VALIDATED}


# Over sockets


def service(
    cache: Cache, clock: ManualClock, settings: SnapshotSettings | None = None, *, node: str = "b"
) -> Snapshots:
    return Snapshots(
        settings or SnapshotSettings(), cache=cache, policy=POLICY, for_peers=lambda: codec(node),
        for_operator=lambda: codec(node), clock=clock, on_merged=lambda: None, is_connected=lambda: True,
    )  # fmt: skip


def tls(authority: Authority, name: str, peer: str) -> TransportTls:
    cert, key = authority.write(name)
    return TransportTls.model_validate({"cert": cert, "key": key, "ca": authority.path, "peers": [peer]})


async def serving(cache: Cache, clock: ManualClock, **more: object) -> Snapshots:
    settings = SnapshotSettings(listen=("127.0.0.1", 0), rate=1_000_000, **more)  # type: ignore[arg-type]
    return service(cache, clock, settings, node="a")


def port(snapshots: Snapshots) -> int:
    assert snapshots.server is not None
    return snapshots.server.port


async def test_a_node_that_joins_has_it_all_from_the_first_peer_that_gives(clock: ManualClock) -> None:
    async with await serving(warm(300), clock, zstd=True) as giving:
        cold = Cache("b")
        merged_flag = asyncio.Event()
        served_before: list[int] = []

        def is_connected() -> bool:
            served_before.append(giving.statistics()["served"])
            return True

        settings = SnapshotSettings(peers=[("127.0.0.1", 9), ("127.0.0.1", port(giving))])
        joining_node = Snapshots(
            settings, cache=cold, policy=POLICY, for_peers=codec, for_operator=codec, clock=clock,
            on_merged=merged_flag.set, is_connected=is_connected,
        )  # fmt: skip
        async with joining_node:
            joining_node.join()
            await asyncio.sleep(0)
            clock.advance(2)
            await asyncio.wait_for(merged_flag.wait(), 5)
        assert cold.statistics()["entries"] == 300
        assert joining_node.statistics() == {"taken": 1, "received": 300, "merged": 300}
        assert giving.statistics()["served"] == 1
        assert served_before == [0]


async def test_a_copy_is_asked_for_once_what_peers_send_is_taken(
    clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a peer learns while its messages are refused is in the copy, and from then on nothing is refused."""
    monkeypatch.setattr(joining, "LOOK", 0.0)
    started = clock.advance(0.3)
    theirs = DnsCodec(DnsCodecSettings(transport="lan", key=key()), start=None)
    ours = DnsCodec(DnsCodecSettings(transport="lan", key=key()), start=started)
    numbers = itertools.count()

    def refused() -> list[Refusal]:
        behind = clock() - joining.CLOCKS_DIFFER
        (message,), _ = theirs.encode([address(f"n{next(numbers)}.example.com", learned=behind)], behind)
        return ours.decode_all(((message, "a"),), clock())[1]

    waiting = asyncio.create_task(joining.until_live(lambda: True, clock))
    await asyncio.sleep(0)
    seen = []
    while not waiting.done():
        seen += refused()
        clock.advance(0.05)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert set(seen) == {Refusal.BEFORE_START}
    assert refused() == []
    assert clock() - started < 1 + joining.CLOCKS_DIFFER


async def test_a_copy_waits_for_the_links_and_not_for_ever(clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "LOOK", 0.0)
    looks = iter((False, False, True))
    waiting = asyncio.create_task(joining.until_live(lambda: next(looks), clock))
    await asyncio.sleep(0)
    clock.advance(2)
    await asyncio.wait_for(waiting, 5)
    assert list(looks) == []
    monkeypatch.setattr(joining, "PATIENCE", 0.05)
    await asyncio.wait_for(joining.until_live(lambda: False, clock), 5)


async def test_over_tls_only_a_named_peer_gets_one_and_is_believed(clock: ManualClock, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    names = ("a.example.net", "b.example.net", "c.example.net")
    a = certificates(tls(authority, names[0], names[1]))
    b, c = tls(authority, names[1], names[0]), tls(authority, names[2], names[0])
    assert a is not None
    async with await serving(warm(3), clock, tls=a) as giving:
        where = ("127.0.0.1", port(giving))

        def taker(section: TransportTls, cache: Cache) -> joining.MakeTaker:
            owner = Owner(node="b", cluster="test")
            return lambda sender: Taker(cache, POLICY, make_copy_codec(owner, section), clock, sender=sender)

        cold = Cache("b")
        taken = await joining.fetch(where, certificates(b), taker(b, cold))
        assert (taken.whole, cold.statistics()["entries"]) == (True, 3)
        cached = cold.get(name_from_text("n0.example.com"), A, NOW)
        assert cached is not None
        assert (cached.signer, cached.origin) == ("a.example.net", "a")
        with pytest.raises((CachebusError, OSError)):
            await joining.fetch(where, certificates(c), taker(c, Cache("c")))
        with pytest.raises((CachebusError, OSError)):
            await joining.fetch(where, None, taker(b, Cache("b")))


def test_a_client_whose_first_bytes_come_with_its_connection_gets_one(clock: ManualClock, tmp_path: Path) -> None:
    """In one turn of the daemon's loop: they must reach TLS, or the handshake never ends."""
    authority = Authority(tmp_path)
    a, b = (certificates(tls(authority, f"{own}.example.net", f"{peer}.example.net")) for own, peer in ("ab", "ba"))
    assert a is not None
    assert b is not None
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = b.client_context().wrap_bio(incoming, outgoing)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()

    async def first_bytes() -> bytes:
        loop = asyncio.get_running_loop()
        async with await serving(warm(3), clock, tls=a) as giving, asyncio.timeout(server.HANDSHAKE_TIME - 1):
            with socket.create_connection(("127.0.0.1", port(giving))) as connection:
                connection.sendall(outgoing.read())
                connection.setblocking(False)
                while True:
                    incoming.write(await loop.sock_recv(connection, 65536))
                    with contextlib.suppress(ssl.SSLWantReadError):
                        return client.read(6)
                    await loop.sock_sendall(connection, outgoing.read())

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(first_bytes()) == b"\x83\x65C-DN"


async def test_who_takes_a_little_now_and_then_loses_its_place(
    clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MAX_WAIT", 0.3)
    cache = Cache("a")
    for number in range(1000):  # more than the kernel's buffers hold
        packed = pack(16, 300, [number.to_bytes(2) + bytes(30_000)])
        cache.put(answer(RRset(b"\3%03d\0" % number, 16, 300, packed), learned=NOW), NOW)
    async with await serving(cache, clock) as giving:
        reader, writer = await asyncio.open_connection("127.0.0.1", port(giving), limit=1024)
        async with asyncio.timeout(10):
            while not giving.statistics()["failed"]:
                await reader.read(1)
                await asyncio.sleep(0.01)
        assert giving.statistics()["serving"] == 0
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def test_who_lets_a_copy_trickle_is_given_up(clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "STALL", 0.1)

    ended = asyncio.Event()

    async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for byte in codec("a").framing.opening():
            if writer.is_closing():
                break
            writer.write(bytes((byte,)))
            await asyncio.sleep(0.01)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        ended.set()

    async with await asyncio.start_server(trickle, "127.0.0.1", 0) as listening:
        where = listening.sockets[0].getsockname()[:2]
        with pytest.raises(FrameError, match="trickles"):
            await joining.fetch(where, None, lambda sender: Taker(Cache("b"), POLICY, codec(), clock, sender=sender))
        await asyncio.wait_for(ended.wait(), 5)


async def test_more_clients_than_can_be_served_are_refused(clock: ManualClock) -> None:
    async def slow() -> AsyncIterator[bytes]:
        yield b"x"
        await asyncio.sleep(60)

    async with SnapshotServer(("127.0.0.1", 0), None, slow) as server:
        ends = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(MAX_CLIENTS + 1)]
        answers = [await asyncio.wait_for(reader.read(1), 5) for reader, _ in ends]
        assert sorted(answers) == [b"", *[b"x"] * MAX_CLIENTS]
        assert server.statistics()["refused"] == 1
        for _, writer in ends:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for _, writer in ends), return_exceptions=True)


async def test_a_copy_that_is_cut_is_told_and_what_came_stays(clock: ManualClock) -> None:
    whole = b"".join(await pieces_of(warm(300), clock))

    async def cut() -> AsyncIterator[bytes]:
        yield whole[: len(whole) // 2]

    async with SnapshotServer(("127.0.0.1", 0), None, cut) as server:
        cold = Cache("b")
        with pytest.raises(FrameError):
            await joining.fetch(
                ("127.0.0.1", server.port), None, lambda sender: Taker(cold, POLICY, codec(), clock, sender=sender)
            )
        assert 0 < cold.statistics()["entries"] < 300
