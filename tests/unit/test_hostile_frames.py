"""The hostile list (trust rules, section 9) as crafted dnstap frames: each item alone, then all among good ones.

The same list against real servers is in tests/interop.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

import dns.edns
import pytest

from cachebus.answer import Evidence, Refusal
from cachebus.filters.settings import ResolverFrames
from cachebus.filters.trust import DnstapJudge, JudgeSettings
from tests.trust_frames import NOW, Lab, frame, message, rrsig, run, settings

AUTHORITATIVE, CONFIRMED, VALIDATED = Evidence
Make = Callable[[Lab], Sequence[bytes]]


class Item(NamedTuple):
    """One item of the list."""

    make: Make
    reasons: frozenset[Refusal]
    answers: frozenset[tuple[str, str, int, str]]
    trust: Evidence
    otherwise: frozenset[tuple[str, str, int, str]]
    """What is accepted when less is asked for than `trust`."""
    more: dict[str, object]


ITEMS: dict[str, Item] = {}


def hostile(
    name: str,
    *reasons: Refusal,
    answers: Sequence[tuple[str, str, int, str]] = (),
    trust: Evidence = AUTHORITATIVE,
    otherwise: Sequence[tuple[str, str, int, str]] = (),
    **more: object,
) -> Callable[[Make], Make]:
    """Put a maker of frames on the list, with the reasons for its refusals and all that may be accepted of it."""

    def put(make: Make) -> Make:
        ITEMS[name] = Item(make, frozenset(reasons), frozenset(answers), trust, frozenset(otherwise), more)
        return make

    return put


def address(owner: str, ttl: int = 300, last: int = 66) -> str:
    return f"{owner} {ttl} A 192.0.2.{last}"


@hostile("other question", Refusal.QUESTION_MISMATCH)
def other_question(lab: Lab) -> list[bytes]:
    wire = message("other.victim.test.", "A", [address("other.victim.test.")], flags="QR AA")
    return lab.exchange("wrongq.example.test.", "A", wire=wire)


@hostile("question in another case", Refusal.QUESTION_MISMATCH)
def other_case(lab: Lab) -> list[bytes]:
    wire = message("CASE.example.test.", "A", [address("CASE.example.test.")], flags="QR AA")
    return [
        *lab.exchange("case.example.test.", "A", wire=wire),
        lab.client("case.example.test.", "A", [address("case.example.test.")]),
    ]


@hostile("out-of-zone records", answers=[("oob.example.test.", "A", 300, "confirmed")])
def out_of_zone(lab: Lab) -> list[bytes]:
    answer = [address("oob.example.test."), address("www.bank.test.")]
    return lab.learned("oob.example.test.", "A", answer)


@hostile("out-of-zone question", Refusal.OUT_OF_ZONE)
def out_of_zone_question(lab: Lab) -> list[bytes]:
    return lab.exchange("www.bank.test.", "A", [address("www.bank.test.")])


@hostile("sibling-zone records", answers=[("sib.example.test.", "A", 300, "authoritative")])
def sibling(lab: Lab) -> list[bytes]:
    answer = [
        address("sib.example.test."),
        address("www.sibling.test."),
        address("www.badexample.test."),
        address("test."),
    ]
    return lab.exchange("sib.example.test.", "A", answer)


@hostile(
    "CNAME out of the zone with its target attached",
    answers=[("outalias.example.test.", "CNAME", 300, "authoritative")],
)
def cname_out(lab: Lab) -> list[bytes]:
    answer = ["outalias.example.test. 300 CNAME www.bank.test.", address("www.bank.test.")]
    return lab.exchange("outalias.example.test.", "A", answer)


@hostile("two CNAMEs", Refusal.BROKEN_CHAIN)
def two_cnames(lab: Lab) -> list[bytes]:
    answer = [
        "two.example.test. 300 CNAME a.example.test.",
        "two.example.test. 300 CNAME b.example.test.",
        address("b.example.test."),
    ]
    return lab.exchange("two.example.test.", "A", answer)


@hostile("CNAME beside other data", Refusal.BROKEN_CHAIN)
def cname_and_data(lab: Lab) -> list[bytes]:
    answer = ["both.example.test. 300 CNAME a.example.test.", address("both.example.test.")]
    return lab.exchange("both.example.test.", "A", answer)


@hostile("CNAME loop", Refusal.CHAIN_LOOP)
def cname_loop(lab: Lab) -> list[bytes]:
    answer = ["loop.example.test. 300 CNAME pool.example.test.", "pool.example.test. 300 CNAME loop.example.test."]
    return lab.learned("loop.example.test.", "A", answer)


@hostile("DNAME with a forged CNAME", Refusal.FORGED_CNAME)
def forged_cname(lab: Lab) -> list[bytes]:
    answer = [
        "moved.example.test. 300 DNAME new.example.test.",
        "www.moved.example.test. 300 CNAME evil.example.test.",
        address("evil.example.test."),
    ]
    return lab.learned("www.moved.example.test.", "A", answer)


@hostile("data below a DNAME", Refusal.FORGED_CNAME)
def below_dname(lab: Lab) -> list[bytes]:
    answer = ["gone.example.test. 300 DNAME new.example.test.", address("www.gone.example.test.")]
    return lab.learned("www.gone.example.test.", "A", answer)


@hostile("NODATA with a CNAME", answers=[("nodata.example.test.", "CNAME", 300, "confirmed")])
def nodata_cname(lab: Lab) -> list[bytes]:
    return lab.learned("nodata.example.test.", "A", ["nodata.example.test. 300 CNAME empty.example.test."])


@hostile("NXDOMAIN with a CNAME", Refusal.RCODE)
def nxdomain_cname(lab: Lab) -> list[bytes]:
    answer = ["nx.example.test. 300 CNAME nowhere.example.test."]
    return [
        *lab.exchange("nx.example.test.", "A", answer, rcode=3),
        lab.client("nx.example.test.", "A", answer, rcode=3),
    ]


@hostile("wrong ID", Refusal.UNPAIRED)
def wrong_id(lab: Lab) -> list[bytes]:
    ident, port = lab.next()
    wire = message("badid.example.test.", "A", [address("badid.example.test.")], flags="QR AA", ident=ident ^ 1)
    told = frame("RESOLVER_RESPONSE", wire, port=port, zone="example.test.")
    return [lab.query("badid.example.test.", "A", ident, port), told]


@hostile("wrong port", Refusal.UNPAIRED)
def wrong_port(lab: Lab) -> list[bytes]:
    ident, port = lab.next()
    wire = message("badport.example.test.", "A", [address("badport.example.test.")], flags="QR AA", ident=ident)
    told = frame("RESOLVER_RESPONSE", wire, port=port ^ 0x8000, zone="example.test.")
    return [lab.query("badport.example.test.", "A", ident, port), told]


@hostile("UDP query, TCP response", Refusal.UNPAIRED)
def wrong_protocol(lab: Lab) -> list[bytes]:
    ident, port = lab.next()
    wire = message("tcp.example.test.", "A", [address("tcp.example.test.")], flags="QR AA", ident=ident)
    return [
        lab.query("tcp.example.test.", "A", ident, port),
        frame("RESOLVER_RESPONSE", wire, port=port, zone="example.test.", protocol=2),
    ]


@hostile("second response to one query", Refusal.UNPAIRED, answers=[("once.example.test.", "A", 300, "authoritative")])
def second_response(lab: Lab) -> list[bytes]:
    query, told = lab.exchange("once.example.test.", "A", [address("once.example.test.")])
    return [query, told, told]


@hostile("AA clear", Refusal.NOT_AUTHORITATIVE)
def aa_clear(lab: Lab) -> list[bytes]:
    answer = [address("noaa.example.test.")]
    return [*lab.exchange("noaa.example.test.", "A", answer, flags="QR"), lab.client("noaa.example.test.", "A", answer)]


@hostile("QR=0", Refusal.NOT_A_RESPONSE)
def qr_zero(lab: Lab) -> list[bytes]:
    answer = [address("qr0.example.test.")]
    return [*lab.exchange("qr0.example.test.", "A", answer, flags="AA"), lab.client("qr0.example.test.", "A", answer)]


@hostile("TC", Refusal.TRUNCATED)
def truncated(lab: Lab) -> list[bytes]:
    answer = [address("tc.example.test.")]
    return [
        *lab.exchange("tc.example.test.", "A", answer, flags="QR AA TC"),
        lab.client("tc.example.test.", "A", answer),
    ]


@hostile("SERVFAIL", Refusal.RCODE)
def servfail(lab: Lab) -> list[bytes]:
    return lab.exchange("servfail.example.test.", "A", [address("servfail.example.test.")], rcode=2)


@hostile("RCODE in OPT", Refusal.RCODE)
def badvers(lab: Lab) -> list[bytes]:
    return lab.exchange("badvers.example.test.", "A", [address("badvers.example.test.")], rcode=16, options=())


@hostile("opcode", Refusal.OPCODE)
def opcode(lab: Lab) -> list[bytes]:
    query, _ = lab.exchange("opcode.example.test.", "A")
    wire = bytearray(message("opcode.example.test.", "A", [address("opcode.example.test.")], flags="QR AA"))
    wire[2] |= 0x20
    return [query, *lab.exchange("opcode.example.test.", "A", wire=bytes(wire))]


@hostile("class CH", Refusal.CLASS)
def class_ch(lab: Lab) -> list[bytes]:
    wire = message("ch.example.test.", "A", [address("ch.example.test.")], flags="QR AA", qclass="CH")
    ident, port = lab.next()
    asked = message("ch.example.test.", "A", flags="CD", ident=ident, qclass="CH", options=())
    return [
        frame("RESOLVER_QUERY", asked, port=port, zone="example.test."),
        frame("RESOLVER_RESPONSE", ident.to_bytes(2, "big") + wire[2:], port=port, zone="example.test."),
    ]


@hostile("qtype ANY and its like", Refusal.QTYPE)
def qtype_any(lab: Lab) -> list[bytes]:
    answer = [address("any.example.test.")]
    frames = []
    for qtype in ("ANY", "RRSIG", "NSEC", "NSEC3", "AXFR", "IXFR", "TKEY", "TSIG", "OPT", "NS", "DS", "DNSKEY", "SOA"):
        frames += lab.exchange("any.example.test.", qtype, answer)
    return frames


@hostile("extra question", Refusal.QUESTION_COUNT)
def extra_question(lab: Lab) -> list[bytes]:
    answer = [address("extra.example.test.")]
    return lab.exchange("extra.example.test.", "A", answer, questions=2) + lab.exchange(
        "extra.example.test.", "A", answer, questions=0
    )


@hostile("ECS-scoped", Refusal.CLIENT_SUBNET)
def ecs(lab: Lab) -> list[bytes]:
    answer = [address("ecs.example.test.")]
    option = dns.edns.ECSOption("192.0.2.0", 24, 24)
    return [
        *lab.exchange("ecs.example.test.", "A", answer, options=[option]),
        lab.client("ecs.example.test.", "A", answer),
    ]


@hostile(
    "ECS-scoped to the client",
    Refusal.CLIENT_SUBNET,
    trust=CONFIRMED,
    otherwise=[("ecsc.example.test.", "A", 300, "authoritative")],
)
def ecs_client(lab: Lab) -> list[bytes]:
    answer = [address("ecsc.example.test.")]
    option = dns.edns.ECSOption("192.0.2.0", 24, 24)
    return [
        *lab.exchange("ecsc.example.test.", "A", answer),
        lab.client("ecsc.example.test.", "A", answer, options=[option]),
    ]


@hostile("TTL 0", Refusal.TTL_ZERO)
def ttl_zero(lab: Lab) -> list[bytes]:
    return lab.learned("ttl0.example.test.", "A", [address("ttl0.example.test.", 0)])


@hostile("TTL above the signed one", answers=[("high.example.test.", "A", 60, "validated")])
def ttl_above(lab: Lab) -> list[bytes]:
    answer = [address("high.example.test.", 7200), rrsig("high.example.test.", "A", ttl=7200, original=60)]
    told = lab.client("high.example.test.", "A", answer, flags="QR RD RA AD")
    return [*lab.exchange("high.example.test.", "A", answer), told]


@hostile("top-bit TTL", Refusal.TTL_ZERO)
def ttl_top_bit(lab: Lab) -> list[bytes]:
    wire = message("top.example.test.", "A", [address("top.example.test.", 0x7FFFFFFF)], flags="QR AA")
    assert wire.count(b"\x7f\xff\xff\xff") == 1
    return lab.exchange("top.example.test.", "A", wire=wire.replace(b"\x7f\xff\xff\xff", b"\x80\x00\x01\x2c"))


@hostile(
    "RRSIG missing", Refusal.RRSIG_MISSING, trust=VALIDATED, otherwise=[("nosig.example.test.", "A", 300, "confirmed")]
)
def rrsig_missing(lab: Lab) -> list[bytes]:
    answer = [address("nosig.example.test.")]
    return [
        *lab.exchange("nosig.example.test.", "A", answer),
        lab.client("nosig.example.test.", "A", answer, flags="QR RD RA AD"),
    ]


@hostile(
    "RRSIG bogus", Refusal.UNCONFIRMED, trust=CONFIRMED, otherwise=[("bogus.example.test.", "A", 300, "authoritative")]
)
def rrsig_bogus(lab: Lab) -> list[bytes]:
    answer = [address("bogus.example.test."), rrsig("bogus.example.test.", "A")]
    return [*lab.exchange("bogus.example.test.", "A", answer), lab.client("bogus.example.test.", "A", rcode=2)]


@hostile("RRSIG expired", Refusal.RRSIG_EXPIRED)
def rrsig_expired(lab: Lab) -> list[bytes]:
    answer = [address("old.example.test."), rrsig("old.example.test.", "A", expiration=-1)]
    return lab.learned("old.example.test.", "A", answer)


@hostile("RRSIG not yet valid", Refusal.RRSIG_NOT_YET_VALID)
def rrsig_early(lab: Lab) -> list[bytes]:
    answer = [address("early.example.test."), rrsig("early.example.test.", "A", inception=60)]
    return lab.learned("early.example.test.", "A", answer)


@hostile(
    "RRSIG of another owner",
    Refusal.RRSIG_MISSING,
    trust=VALIDATED,
    otherwise=[("sig.example.test.", "A", 300, "confirmed")],
)
def rrsig_owner(lab: Lab) -> list[bytes]:
    answer = [address("sig.example.test."), rrsig("gis.example.test.", "A")]
    return [
        *lab.exchange("sig.example.test.", "A", answer),
        lab.client("sig.example.test.", "A", answer, flags="QR RD RA AD"),
    ]


@hostile(
    "RRSIG of a foreign signer",
    Refusal.RRSIG_MISSING,
    trust=VALIDATED,
    otherwise=[("signer.example.test.", "A", 300, "confirmed")],
)
def rrsig_signer(lab: Lab) -> list[bytes]:
    answer = [address("signer.example.test."), rrsig("signer.example.test.", "A", signer="evil.test.")]
    return [
        *lab.exchange("signer.example.test.", "A", answer),
        lab.client("signer.example.test.", "A", answer, flags="QR RD RA AD"),
    ]


@hostile("wildcard", Refusal.WILDCARD_WITHOUT_PROOF)
def wildcard(lab: Lab) -> list[bytes]:
    answer = [address("any.wild.example.test."), rrsig("any.wild.example.test.", "A", labels=3)]
    return lab.learned("any.wild.example.test.", "A", answer)


@hostile("compression loop", Refusal.MALFORMED)
def compression_loop(lab: Lab) -> list[bytes]:
    wire = message("ploop.example.test.", "A", [address("ploop.example.test.")], flags="QR AA")
    owner = wire.rindex(b"\xc0\x0c")
    return lab.exchange(
        "ploop.example.test.", "A", wire=wire[:owner] + (0xC000 | owner).to_bytes(2, "big") + wire[owner + 2 :]
    )


@hostile("forward pointer", Refusal.MALFORMED)
def forward_pointer(lab: Lab) -> list[bytes]:
    wire = message("pfwd.example.test.", "A", [address("pfwd.example.test.")], flags="QR AA")
    owner = wire.rindex(b"\xc0\x0c")
    return lab.exchange(
        "pfwd.example.test.", "A", wire=wire[:owner] + (0xC000 | owner + 12).to_bytes(2, "big") + wire[owner + 2 :]
    )


@hostile("oversize RDLENGTH", Refusal.MALFORMED)
def oversize_rdlength(lab: Lab) -> list[bytes]:
    wire = message("rdlen.example.test.", "A", [address("rdlen.example.test.")], flags="QR AA")
    return lab.exchange("rdlen.example.test.", "A", wire=wire[:-6] + b"\xff\xff" + wire[-4:])


@hostile("address of the wrong length", Refusal.MALFORMED)
def short_address(lab: Lab) -> list[bytes]:
    wire = message("short.example.test.", "A", [address("short.example.test.")], flags="QR AA")
    return lab.exchange("short.example.test.", "A", wire=wire[:-6] + b"\x00\x03" + wire[-4:-1])


@hostile("name longer than 255", Refusal.MALFORMED)
def long_name(lab: Lab) -> list[bytes]:
    wire = message("longn.example.test.", "A", [address("longn.example.test.")], flags="QR AA")
    owner = wire.rindex(b"\xc0\x0c")
    return lab.exchange("longn.example.test.", "A", wire=wire[:owner] + (b"\x3f" + b"a" * 63) * 4 + wire[owner:])


@hostile("trailing bytes", Refusal.MALFORMED)
def trailing(lab: Lab) -> list[bytes]:
    wire = message("trail.example.test.", "A", [address("trail.example.test.")], flags="QR AA")
    return lab.exchange("trail.example.test.", "A", wire=wire + b"\0")


@hostile("query frame lost", Refusal.UNPAIRED)
def query_lost(lab: Lab) -> list[bytes]:
    answer = [address("lost.example.test.")]
    return [lab.exchange("lost.example.test.", "A", answer)[1], lab.client("lost.example.test.", "A", answer)]


@hostile("no query_zone", Refusal.NO_QUERY_ZONE)
def no_zone(lab: Lab) -> list[bytes]:
    return lab.exchange("nozone.example.test.", "A", [address("nozone.example.test.")], zone=None)


@hostile("client sent CD=1", Refusal.CLIENT_CHECKING_DISABLED)
def checking_disabled(lab: Lab) -> list[bytes]:
    answer = [address("cd.example.test.")]
    ident, port = lab.next()
    asked = frame("CLIENT_QUERY", message("cd.example.test.", "A", flags="RD CD", ident=ident), port=port)
    told = frame(
        "CLIENT_RESPONSE", message("cd.example.test.", "A", answer, flags="QR RD RA CD", ident=ident), port=port
    )
    return [asked, *lab.exchange("cd.example.test.", "A", answer), told]


@hostile("client sent CD=1, which its response does not show", Refusal.CLIENT_CHECKING_DISABLED)
def checking_disabled_hidden(lab: Lab) -> list[bytes]:
    answer = [address("cdh.example.test.")]
    ident, port = lab.next()
    asked = frame("CLIENT_QUERY", message("cdh.example.test.", "A", flags="RD CD", ident=ident), port=port)
    told = frame("CLIENT_RESPONSE", message("cdh.example.test.", "A", answer, flags="QR RD RA", ident=ident), port=port)
    return [asked, *lab.exchange("cdh.example.test.", "A", answer), told]


@hostile("resolver serving stale")
def stale(lab: Lab) -> list[bytes]:
    answer = [address("stale.example.test.", 30), rrsig("stale.example.test.", "A", ttl=30)]
    query, _ = lab.exchange("stale.example.test.", "A")
    return [query, lab.client("stale.example.test.", "A", answer, flags="QR RD RA AD")]


@hostile("resolver serving stale, and nothing else logged", Refusal.STALE, resolver_frames=ResolverFrames.NONE)
def stale_alone(lab: Lab) -> list[bytes]:
    answer = [address("stale.example.test.", 30), rrsig("stale.example.test.", "A", ttl=30)]
    return [lab.client("stale.example.test.", "A", answer, flags="QR RD RA AD")]


@hostile(
    "RPZ answer", Refusal.UNCONFIRMED, trust=CONFIRMED, otherwise=[("rpz.example.test.", "A", 300, "authoritative")]
)
def rpz(lab: Lab) -> list[bytes]:
    told = [address("rpz.example.test.", 300, last=1)]
    return [
        *lab.exchange("rpz.example.test.", "A", [address("rpz.example.test.")]),
        lab.client("rpz.example.test.", "A", told),
    ]


@hostile("local-data answer")
def local_data(lab: Lab) -> list[bytes]:
    return [lab.client("local.example.test.", "A", [address("local.example.test.")])]


@hostile("DNS64 answer", Refusal.NO_ANSWER, answers=[("dns64.example.test.", "A", 300, "authoritative")])
def dns64(lab: Lab) -> list[bytes]:
    return [
        *lab.exchange("dns64.example.test.", "AAAA"),
        *lab.exchange("dns64.example.test.", "A", [address("dns64.example.test.")]),
        lab.client("dns64.example.test.", "AAAA", ["dns64.example.test. 300 AAAA 64:ff9b::c000:242"]),
    ]


@hostile("bus-filled entry asked for again")
def bus_filled(lab: Lab) -> list[bytes]:
    answer = [address("filled.example.test."), rrsig("filled.example.test.", "A")]
    return [lab.client("filled.example.test.", "A", answer, flags="QR RD RA AD")] * 3


@hostile(
    "bus-filled entry asked for again, and nothing else logged",
    Refusal.FILLED_BY_US,
    resolver_frames=ResolverFrames.NONE,
)
def bus_filled_alone(lab: Lab) -> list[bytes]:
    return bus_filled(lab)[:1]


@hostile("forwarder that nobody trusts", Refusal.UNTRUSTED_FORWARDER)
def forwarder(lab: Lab) -> list[bytes]:
    answer = [address("fwd.example.test.")]
    return [
        *lab.exchange("fwd.example.test.", "A", answer, kind="FORWARDER", flags="QR AA"),
        lab.client("fwd.example.test.", "A", answer),
    ]


def make_judge(using: JudgeSettings) -> DnstapJudge:
    return DnstapJudge(using, is_filled=lambda qname, qtype, now: b"filled" in qname)


@pytest.mark.parametrize("name", ITEMS)
def test_alone(name: str) -> None:
    item = ITEMS[name]
    using = settings(item.trust, **item.more)
    outcome = run(item.make(Lab()), judge=make_judge(using))
    assert outcome.reasons == item.reasons
    assert outcome.shown() == item.answers


@pytest.mark.parametrize("trust", Evidence)
@pytest.mark.parametrize("seed", range(5))
def test_mixed_with_good_ones(seed: int, trust: Evidence) -> None:
    shuffle = random.Random(seed)
    lab = Lab()
    streams: list[list[bytes]] = []
    expected: set[tuple[str, str, int, str]] = set()
    for item in ITEMS.values():
        if not item.more:
            streams.append(list(item.make(lab)))
            allowed = item.otherwise if trust < item.trust else item.answers
            expected |= {shown for shown in allowed if Evidence[shown[3].upper()] >= trust}
    for number in range(40):
        name = f"good{number}.example.test."
        answer = [address(name, 300, number), rrsig(name, "A")]
        streams.append([*lab.exchange(name, "A", answer), lab.client(name, "A", answer, flags="QR RD RA AD")])
        expected.add((name, "A", 300, "validated"))
    frames = []
    while streams:
        stream = shuffle.choice(streams)
        frames.append(stream.pop(0))
        if not stream:
            streams.remove(stream)
    outcome = run(frames, judge=make_judge(settings(trust)))
    assert (
        set().union(*(item.reasons for item in ITEMS.values() if not item.more and item.trust <= trust))
        <= outcome.reasons
    )
    assert outcome.shown() == expected
    assert not outcome.owners() & {"www.bank.test.", "other.victim.test.", "www.sibling.test.", "evil.example.test."}


def test_every_good_frame_of_the_mix_is_accepted_in_any_order() -> None:
    lab = Lab()
    frames = []
    for number in range(200):
        name = f"good{number}.example.test."
        frames += lab.learned(name, "A", [address(name, 300, number % 250)])
    random.Random(1).shuffle(frames)
    outcome = run(frames)
    assert len(outcome.answers) == 200
    assert not outcome.refusals
    assert {answer.learned for answer in outcome.answers} == {NOW}
