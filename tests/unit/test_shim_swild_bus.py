"""SWILD on its way from node to node: one that is shared serves every subdomain on every node."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cachebus.answer import Evidence
from cachebus.cache import Cache
from cachebus.codecs.batch import BatchCodec, BatchCodecSettings
from cachebus.codecs.cdns import CdnsCodec, CdnsCodecSettings, Peer
from cachebus.codecs.dns import DnsCodec, DnsCodecSettings
from cachebus.filters.noise import Noise, NoiseSettings
from cachebus.filters.policy import Policy, PolicySettings
from cachebus.history import History
from cachebus.outlet import Outlet
from cachebus.ports import Codec, Sender, TransportSettings
from cachebus.presentation import name_from_text
from cachebus.publisher import Publisher
from cachebus.subscriber import Subscriber
from cachebus.testing import ManualClock, MemoryNetwork
from cachebus.wire.message import canonical_rdata, records, same_data
from tests.core_bed import key
from tests.unit.shim_bed import bus_answer, rrset, signature, texts, until
from tests.unit.swild_bed import BAR, FOO, NOW, SWILD, Authority, swild, swild_bed

SENDER = "a"
OWNER = name_from_text("foo.com.")
MIXED = b"\1_\3Foo\3COM\0"
"""As a zone file may have it. Of a type that nobody need know, no byte is ever changed (RFC 3597 section 7)."""


def dns_codec(node: str) -> Codec:
    return DnsCodec(DnsCodecSettings(transport="lan", key=key()), start=None)


def batch_codec(node: str) -> Codec:
    return BatchCodec(BatchCodecSettings(node=node, cluster="c", transport="lan", key=key()), start=None)


def cdns_codec(node: str) -> Codec:
    return CdnsCodec(CdnsCodecSettings(node=node, cluster="c", transport="lan", peers={"a": Peer(None)}), start=None)


CODECS = (dns_codec, batch_codec, cdns_codec)


@pytest.mark.parametrize("make", CODECS)
@pytest.mark.parametrize("evidence", [Evidence.AUTHORITATIVE, Evidence.VALIDATED])
def test_it_travels_opaque(make: Callable[[str], Codec], evidence: Evidence) -> None:
    sigs = signature("w.foo.com.", SWILD, labels=2) if evidence is Evidence.VALIDATED else b""
    made = bus_answer(rrset("foo.com.", SWILD, 86400, MIXED, sigs=sigs), evidence=evidence, learned=NOW, transport="")
    made = made._replace(origin="a")
    assert Policy(PolicySettings()).refuse_to_share(made) is None
    messages, left_out = make("a").encode([made], NOW)
    assert not left_out
    (found,), refusals = make("b").decode_all([(message, SENDER) for message in messages], NOW)
    assert not refusals
    assert (found.qname, found.qtype) == (OWNER, 65392)
    assert found.rrsets[0].rrs.endswith(MIXED)
    assert [rdata for _, _, rdata in records(found.rrsets[0].sigs)] == [rdata for _, _, rdata in records(sigs)]
    assert Policy(PolicySettings()).refuse_to_accept(found) is None


def test_its_target_is_compared_byte_by_byte() -> None:
    lower = rrset("foo.com.", SWILD, 60, MIXED.lower())
    assert not same_data(rrset("foo.com.", SWILD, 60, MIXED), lower)
    assert canonical_rdata(65392, MIXED) == MIXED


class Bus:
    """From the publisher of one node to the subscriber of the other, by one codec."""

    def __init__(self, make: Callable[[str], Codec], ours: Cache, theirs: Cache, clock: ManualClock) -> None:
        self.network = MemoryNetwork(automatic=True)
        policy = Policy(PolicySettings())
        self.subscriber = Subscriber(
            codec=make("node-b"), policy=policy, cache=theirs, sinks=(), history=History("b"), clock=clock
        )
        settings = TransportSettings(name="lan", node="a", cluster="c", listen="a", peers=("b",))
        there = TransportSettings(name="lan", node="b", cluster="c", listen="b", peers=())
        self.sending = self.network.transport(settings, _nobody)
        self.receiving = self.network.transport(there, self.subscriber.receive)
        self.publisher = Publisher(
            policy=policy,
            noise=Noise(NoiseSettings(), started=NOW),
            cache=ours,
            outlets=[Outlet("lan", make("node-a"), self.sending)],
            history=History("a"),
            clock=clock,
        )


def _nobody(data: bytes, sender: Sender) -> None:
    raise AssertionError("nobody sends to the first node")


@pytest.mark.parametrize("make", CODECS)
@pytest.mark.parametrize("split", [False, True])
async def test_one_that_is_shared_serves_every_subdomain_elsewhere(make: Callable[[str], Codec], split: bool) -> None:
    """`split`: the authoritative server knows only the zone with the SWILD, so the chain comes in two answers."""
    ours, theirs, clock = Cache("node-a"), Cache("node-b"), ManualClock(NOW)
    bus = Bus(make, ours, theirs, clock)
    authority = OneZone(*FOO, *BAR, *swild()) if split else Authority(*FOO, *BAR, *swild())
    nothing = Authority(FOO[0])
    async with (
        bus.sending,
        bus.receiving,
        bus.publisher,
        swild_bed(authority, cache=ours, discover=True, learned=bus.publisher.publish) as first,
        swild_bed(nothing, cache=theirs) as second,
    ):
        await first.ask("one.foo.com.")
        await first.ask("two.foo.com.")
        await until(lambda: first.count("swild_owners"))
        await until(lambda: second.count("swild_owners"))
        await until(lambda: theirs.get(name_from_text("map.bar.net."), 1, NOW))
        before = [cache.statistics()["entries"] for cache in (ours, theirs)]
        asked = len(authority.asked)
        for number in range(50):
            for bed in (first, second):
                reply, upstream = await bed.ask(f"n{number}.foo.com.")
                assert upstream == []
                assert [line.split()[3] for line in texts(reply.answer)] == ["CNAME", "CNAME", "A"]
        assert len(authority.asked) == asked
        assert nothing.asked == []
        assert [cache.statistics()["entries"] for cache in (ours, theirs)] == before
        assert second.count("swild_synthesised") == second.count("swild_entries_saved") == 50


class OneZone(Authority):
    """Follows no CNAME out of the zone that was asked for, as most authoritative servers."""

    def _at(self, name: str, rrtype: str) -> list[str]:
        outside = self.asked[-1].split()[0].endswith("foo.com.") and not name.endswith("foo.com.")
        return [] if outside else super()._at(name, rrtype)

    def _soa(self, name: str) -> list[str]:
        return (
            [] if name.endswith("bar.net.") and self.asked[-1].split()[0].endswith("foo.com.") else super()._soa(name)
        )


async def test_what_came_first_makes_no_difference() -> None:
    parts = [
        rrset("xxx.foo.com.", "CNAME", 600, name_from_text("_.foo.com.")),
        rrset("_.foo.com.", "CNAME", 3600, name_from_text("map.bar.net.")),
        rrset("map.bar.net.", "A", 600, bytes((202, 38, 64, 10))),
        rrset("foo.com.", SWILD, 86400, name_from_text("_.foo.com.")),
    ]
    for order in ((0, 1, 2, 3), (3, 2, 1, 0), (3, 0, 1, 2)):
        async with swild_bed() as bed:
            for index in order:
                bed.cache.put(bus_answer(parts[index], learned=NOW), NOW)
            assert (await bed.ask("yyy.foo.com."))[1] == [], order
