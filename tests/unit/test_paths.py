"""The two paths, joined in memory: what one node learns, the other holds."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from cachebus.answer import Answer, Evidence, Refusal
from cachebus.cache import Cache
from cachebus.codecs.dns import DnsCodec, DnsCodecSettings
from cachebus.filters.noise import Noise, NoiseSettings
from cachebus.filters.policy import Policy, PolicySettings
from cachebus.history import History
from cachebus.outlet import Outlet
from cachebus.ports import TransportSettings
from cachebus.presentation import name_from_text
from cachebus.publisher import MAX_QUEUED, Publisher
from cachebus.subscriber import Subscriber
from cachebus.testing import ManualClock, MemoryNetwork, MemoryTransport
from tests.core_bed import NOW, address, answer, key, rrset, rrsig


class SeenSink:
    """Keeps what it is offered."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []

    def offer(self, given: Answer, now: float) -> None:
        self.answers.append(given)


class MemoryNode:
    """Cache, publisher and subscriber of one node on a network of the test's own."""

    def __init__(self, name: str, network: MemoryNetwork, peers: Sequence[str], clock: ManualClock) -> None:
        self.cache = Cache(name)
        self.history = History(name)
        self.sink = SeenSink()
        codec = DnsCodec(DnsCodecSettings(transport="lan", key=key()), start=clock() - 1)
        policy = Policy(PolicySettings())
        self.subscriber = Subscriber(
            codec=codec, policy=policy, cache=self.cache, sinks=(self.sink,),  # type: ignore[arg-type]
            history=self.history, clock=clock,
        )  # fmt: skip
        settings = TransportSettings(name="lan", node=name, cluster="home", listen=name, peers=tuple(peers))
        self.transport: MemoryTransport = network.transport(settings, self.subscriber.receive)
        self.publisher = Publisher(
            policy=policy, noise=Noise(NoiseSettings()), cache=self.cache,
            outlets=[Outlet("lan", codec, self.transport)], history=self.history, clock=clock,
        )  # fmt: skip

    async def __aenter__(self) -> MemoryNode:
        await self.transport.__aenter__()
        await self.publisher.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.publisher.__aexit__(None, None, None)
        await self.transport.__aexit__(None, None, None)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOW)


async def settle(node: MemoryNode) -> None:
    """Let the publisher's task run until everything published has gone to the transport."""
    for _ in range(10_000):
        await asyncio.sleep(0)
        if not node.publisher.statistics()["queued"]:
            break
    else:
        raise AssertionError("the publisher does not send")
    await asyncio.sleep(0)


async def test_what_a_learns_b_holds_with_its_provenance(clock: ManualClock) -> None:
    network = MemoryNetwork()
    async with MemoryNode("a", network, ["b"], clock) as a, MemoryNode("b", network, ["a"], clock) as b:
        assert a.publisher.publish(address(evidence=Evidence.CONFIRMED)) is None
        await settle(a)
        clock.advance(2)
        assert network.deliver() == 1
        cached = b.cache.get(name_from_text("www.example.com"), 1, clock())
        assert cached is not None
        assert (cached.origin, cached.transport, cached.signer) == ("a", "lan", "cluster-2026")
        assert cached.evidence is Evidence.AUTHORITATIVE
        assert cached.rrset.ttl <= 298
        assert b.subscriber.statistics() == {"received": 1, "accepted": 1}
        mine = a.cache.get(name_from_text("www.example.com"), 1, clock())
        assert mine is not None
        assert mine.local
        assert [event["event"] for event in a.history.about(name_from_text("www.example.com"))] == ["shared"]


async def test_the_sinks_get_shortened_ttls_and_only_what_the_cache_took(clock: ManualClock) -> None:
    network = MemoryNetwork()
    async with MemoryNode("a", network, ["b"], clock) as a, MemoryNode("b", network, [], clock) as b:
        b.cache.put(address(last=9, evidence=Evidence.CONFIRMED, learned=clock()), clock())
        a.publisher.publish(address(last=1, ttl=1000))
        a.publisher.publish(address("other.example.com", ttl=1000))
        await settle(a)
        network.deliver()
        assert [each.name for each in b.sink.answers] == ["other.example.com."]
        assert 900 <= b.sink.answers[0].ttl <= 1000
        assert b.subscriber.refused == {Refusal.LOCAL_DATA_LIVE: 1}
        assert b.history.about(name_from_text("www.example.com"))[0]["event"] == "refused"


async def test_loss_duplication_and_reordering_fill_nothing_wrong(clock: ManualClock) -> None:
    network = MemoryNetwork()
    async with MemoryNode("a", network, ["b"], clock) as a, MemoryNode("b", network, [], clock) as b:
        for last in range(1, 5):
            a.publisher.publish(address(last=last, learned=clock()))
            await settle(a)
            clock.advance(1)
        network.drop(0)
        network.duplicate(0)
        network.reorder([3, 2, 1, 0])
        network.deliver()
        cached = b.cache.get(name_from_text("www.example.com"), 1, clock())
        assert cached is not None
        assert cached.rrset.rrs[-1] == 4
        assert b.subscriber.refused[Refusal.DUPLICATE] == 1


async def test_what_a_peer_told_us_is_not_told_again_until_half_of_it_has_passed(clock: ManualClock) -> None:
    network = MemoryNetwork()
    async with MemoryNode("a", network, ["b"], clock) as a, MemoryNode("b", network, ["a"], clock) as b:
        a.publisher.publish(address())
        await settle(a)
        network.deliver()
        assert b.publisher.publish(address(learned=clock())) is Refusal.KNOWN_FROM_PEER
        clock.advance(200)
        assert b.publisher.publish(address(learned=clock())) is None


async def test_a_better_level_is_told_although_a_peer_told_us(clock: ManualClock) -> None:
    network = MemoryNetwork()
    async with MemoryNode("a", network, ["b"], clock) as a, MemoryNode("b", network, ["a"], clock) as b:
        a.publisher.publish(address())
        await settle(a)
        network.deliver()
        signed = rrset("www.example.com", "A", "192.0.2.1", sigs=rrsig("www.example.com", "A"))
        assert b.publisher.publish(answer(signed, evidence=Evidence.VALIDATED, learned=clock())) is None


async def test_what_policy_refuses_is_kept_locally_and_counted(clock: ManualClock) -> None:
    network = MemoryNetwork()
    async with MemoryNode("a", network, ["b"], clock) as a:
        assert a.publisher.publish(address("nas.home.arpa")) is Refusal.SPECIAL_USE_NAME
        assert a.cache.get(name_from_text("nas.home.arpa"), 1, clock()) is not None
        assert a.publisher.refused == {Refusal.SPECIAL_USE_NAME: 1}


async def test_nothing_blocks_a_source_and_what_overflows_is_counted(clock: ManualClock) -> None:
    network = MemoryNetwork(limit=MAX_QUEUED * 2)
    async with MemoryNode("a", network, ["b"], clock) as a:
        for number in range(MAX_QUEUED + 50):
            a.publisher.publish(address(f"n{number}.example.com"))
        assert a.publisher.statistics() == {"published": 0, "queued": MAX_QUEUED, "dropped": 50, "errors": 0}


async def test_leaving_sends_what_is_queued(clock: ManualClock) -> None:
    network = MemoryNetwork()
    async with MemoryNode("b", network, [], clock) as b:
        async with MemoryNode("a", network, ["b"], clock) as a:
            for number in range(200):
                a.publisher.publish(address(f"n{number}.example.com"))
        network.deliver()
        assert b.subscriber.accepted == 200


async def test_a_transport_that_raises_costs_one_batch_and_ends_nothing(
    clock: ManualClock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = MemoryNetwork()
    async with MemoryNode("b", network, [], clock) as b:
        async with asyncio.timeout(5), MemoryNode("a", network, ["b"], clock) as a:
            with monkeypatch.context() as broken:
                broken.setattr(MemoryTransport, "send", lambda self, data: 1 // 0)
                a.publisher.publish(address("lost.example.com"))
                await settle(a)
            a.publisher.publish(address("sent.example.com"))
        assert network.deliver() == 1
        assert b.cache.get(name_from_text("sent.example.com"), 1, clock()) is not None
    assert a.publisher.statistics()["errors"] == 1
    assert "ZeroDivisionError" in caplog.text


async def test_what_the_codec_leaves_out_is_counted_by_reason(clock: ManualClock) -> None:
    network = MemoryNetwork()
    async with MemoryNode("a", network, ["b"], clock) as a:
        texts = [f'"{"x" * 200}{number}"' for number in range(8)]
        a.publisher.publish(answer(rrset("big.example.com", "TXT", *texts)))
        await settle(a)
        assert a.publisher.left_out == {"lan": {Refusal.OVERSIZE: 1}}
        assert a.publisher.published == 0
        assert [event["event"] for event in a.history.about(name_from_text("big.example.com"))] == ["not-shared"]


async def test_only_what_left_the_node_counts_as_sent(clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Left out by the codec, given up by the full queue, lost with a batch: each is new when it is seen again."""
    network = MemoryNetwork()
    async with MemoryNode("a", network, ["b"], clock) as a:
        big = answer(rrset("big.example.com", "TXT", *[f'"{"x" * 200}{number}"' for number in range(8)]))
        for given, again in ((big, None), (address("small.example.com"), Refusal.ALREADY_SHARED)):
            a.publisher.publish(given)
            await settle(a)
            assert a.publisher.publish(given) is again
        await settle(a)
        assert a.publisher.published == 1
        monkeypatch.setattr("cachebus.publisher.MAX_QUEUED", 1)
        for name in ("first", "second"):
            assert a.publisher.publish(address(f"{name}.example.com")) is None
        assert a.publisher.dropped == 1
        await settle(a)
        assert a.publisher.publish(address("second.example.com")) is Refusal.ALREADY_SHARED
        assert a.publisher.publish(address("first.example.com")) is None
        with monkeypatch.context() as broken:
            broken.setattr(MemoryTransport, "send", lambda self, data: 1 // 0)
            await settle(a)
        assert a.publisher.errors == 1
        assert a.publisher.publish(address("first.example.com")) is None


async def test_garbage_is_counted(clock: ManualClock) -> None:
    network = MemoryNetwork()
    async with MemoryNode("b", network, [], clock) as b:
        for data in (b"", b"x", bytes(12), bytes(600)):
            b.subscriber.receive(data, ("192.0.2.1", 1))
        assert sum(b.subscriber.refused.values()) == 4
        assert b.subscriber.accepted == 0


async def test_five_nodes_refresh_one_hot_name_about_once_a_ttl(clock: ManualClock) -> None:
    """Clients ask every node all the time; whoever misses asks the authoritative server and tells the others."""
    network = MemoryNetwork()
    names = [f"node-{number}" for number in range(5)]
    nodes = [MemoryNode(name, network, [peer for peer in names if peer != name], clock) for name in names]
    qname, ttl, queries = name_from_text("www.example.com"), 60, 0
    for node in nodes:
        await node.__aenter__()
    ended = clock() + 20 * ttl
    while clock() < ended:
        for node in nodes:
            if node.cache.get(qname, 1, clock()) is None:
                queries += 1
                node.publisher.publish(address(ttl=ttl, learned=clock()))
                await settle(node)
                network.deliver()
        clock.advance(0.25)
    for node in nodes:
        await node.__aexit__()
    assert 20 <= queries <= 30


async def test_a_chain_carries_nothing_past_better_data_to_the_sinks(clock: ManualClock) -> None:
    network = MemoryNetwork()
    async with MemoryNode("a", network, ["b"], clock) as a, MemoryNode("b", network, [], clock) as b:
        b.cache.put(address(last=9, evidence=Evidence.VALIDATED, learned=clock()), clock())
        forged = rrset("www.example.com", "A", "203.0.113.66")
        a.publisher.publish(answer(rrset("new.example.com", "CNAME", "www.example.com."), forged))
        true = rrset("www.example.com", "A", "192.0.2.9")
        a.publisher.publish(answer(rrset("old.example.com", "CNAME", "www.example.com."), true))
        await settle(a)
        network.deliver()
        assert [each.name for each in b.sink.answers] == ["old.example.com."]
