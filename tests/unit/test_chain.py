"""What an answer is: chains, DNAMEs, TTLs and RRSIGs on either side of the bus (trust rules, section 3)."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from cachebus.answer import Evidence, Refusal, RRset
from cachebus.filters.chain import (
    MAX_CNAMES,
    MAX_SIGNATURES,
    Chain,
    Link,
    assemble,
    chain_from,
    limit,
    limit_chain,
    refused_type,
    signed,
    synthesise,
)
from cachebus.presentation import name_from_text, name_to_text, type_to_text
from cachebus.wire.message import cname_target, parse, records
from cachebus.wire.rrtypes import ANY, CNAME, DNAME, NS, RRSIG, A
from tests.trust_frames import NOW, message, rrsig

WWW = "www.example.test."
QNAME = name_from_text(WWW)


def rrsets(*lines: str) -> tuple[RRset, ...]:
    """The answer section of a message made of these records."""
    return parse(message(WWW, "A", lines)).answer


def walk(*lines: str, qname: str = WWW, qtype: int = A, zone: str = ".") -> Chain | Refusal:
    return chain_from(rrsets(*lines), name_from_text(qname), qtype, zone=name_from_text(zone))


def shown(found: Iterable[RRset]) -> list[tuple[str, str]]:
    return [(name_to_text(rrset.owner), type_to_text(rrset.type)) for rrset in found]


def test_the_chain_is_in_order_whatever_the_order_of_records() -> None:
    chain = walk(
        "c.example.test. 300 A 192.0.2.1",
        "other.example.test. 300 A 192.0.2.2",
        "b.example.test. 300 CNAME c.example.test.",
        f"{WWW} 300 CNAME B.example.test.",
    )
    assert isinstance(chain, Chain)
    assert chain.complete
    assert shown(chain.rrsets()) == [(WWW, "CNAME"), ("b.example.test.", "CNAME"), ("c.example.test.", "A")]


def test_a_chain_that_stops_says_where_it_goes_on() -> None:
    chain = walk(f"{WWW} 300 CNAME cdn.other.test.", "cdn.other.test. 300 A 192.0.2.1", zone="example.test.")
    assert isinstance(chain, Chain)
    assert not chain.complete
    assert chain.target == name_from_text("cdn.other.test.")
    assert shown(chain.rrsets()) == [(WWW, "CNAME")]


def test_the_zone_is_matched_by_label() -> None:
    assert walk("wwwexample.test. 300 A 192.0.2.1", qname="wwwexample.test.", zone="example.test.") is Refusal.NO_ANSWER
    assert isinstance(walk(f"{WWW} 300 A 192.0.2.1", zone="example.test."), Chain)
    assert isinstance(walk(f"{WWW} 300 A 192.0.2.1", zone=WWW), Chain)


def test_a_cname_asked_for_is_not_followed() -> None:
    chain = walk(f"{WWW} 300 CNAME b.example.test.", "b.example.test. 300 CNAME c.example.test.", qtype=CNAME)
    assert isinstance(chain, Chain)
    assert chain.complete
    assert shown(chain.rrsets()) == [(WWW, "CNAME")]


@pytest.mark.parametrize(
    ("lines", "refusal"),
    [
        ([], Refusal.NO_ANSWER),
        (["other.example.test. 300 A 192.0.2.1"], Refusal.NO_ANSWER),
        ([f"{WWW} 300 AAAA ::1"], Refusal.NO_ANSWER),
        ([f"{WWW} 300 CNAME {WWW}"], Refusal.CHAIN_LOOP),
        ([f"{WWW} 300 CNAME a.test.", "a.test. 300 CNAME b.test.", "b.test. 300 CNAME a.test."], Refusal.CHAIN_LOOP),
        ([f"{WWW} 300 CNAME a.test.", f"{WWW} 300 CNAME b.test."], Refusal.BROKEN_CHAIN),
        ([f"{WWW} 300 CNAME a.test.", f"{WWW} 300 A 192.0.2.1"], Refusal.BROKEN_CHAIN),
        ([f"{WWW} 300 CNAME a.test.", f"{WWW} 300 MX 10 a.test."], Refusal.BROKEN_CHAIN),
        (["example.test. 300 DNAME a.test.", "example.test. 300 DNAME b.test."], Refusal.BROKEN_CHAIN),
        (["example.test. 300 DNAME a.test.", f"{WWW} 300 CNAME www.b.test."], Refusal.FORGED_CNAME),
        (["example.test. 300 DNAME a.test.", f"{WWW} 300 A 192.0.2.1"], Refusal.FORGED_CNAME),
        (["example.test. 300 DNAME example.test.", f"{WWW} 300 DNAME b.test."], Refusal.FORGED_CNAME),
        (["test. 300 DNAME example.test."], Refusal.CHAIN_LOOP),
    ],
)
def test_refused_chains(lines: list[str], refusal: Refusal) -> None:
    assert walk(*lines) is refusal


def test_the_same_cname_twice_in_other_letters_is_one() -> None:
    chain = walk(f"{WWW} 300 CNAME a.test.", f"{WWW} 60 CNAME A.test.", "a.test. 300 A 192.0.2.1")
    assert isinstance(chain, Chain)
    assert chain.complete


def test_rrsig_and_nsec_may_stand_beside_a_cname() -> None:
    chain = walk(f"{WWW} 300 CNAME a.test.", rrsig(WWW, "CNAME"), f"{WWW} 300 NSEC z.test. CNAME", rrsig(WWW, "NSEC"))
    assert isinstance(chain, Chain)


def test_long_chains_stop() -> None:
    def of(links: int) -> Chain | Refusal:
        lines = [f"n{n}.test. 300 CNAME n{n + 1}.test." for n in range(links)]
        return walk(*lines, f"n{links}.test. 300 A 192.0.2.1", qname="n0.test.")

    longest = of(MAX_CNAMES)
    assert isinstance(longest, Chain)
    assert longest.complete
    assert of(MAX_CNAMES + 1) is Refusal.CHAIN_LOOP


def test_a_dname_yields_its_cname_with_or_without_one() -> None:
    dname = "example.test. 600 DNAME Example.net."
    for more in ([], [f"{WWW} 0 CNAME www.example.net."]):
        chain = walk(dname, *more, "www.example.net. 300 A 192.0.2.1")
        assert isinstance(chain, Chain)
        assert shown(chain.rrsets()) == [("example.test.", "DNAME"), (WWW, "CNAME"), ("www.example.net.", "A")]
        cname = chain.rrsets()[1]
        assert cname.ttl == 600
        assert cname_target(cname) == name_from_text("www.example.net.")


def test_a_dname_asked_for_is_an_answer_like_any_other() -> None:
    chain = walk("example.test. 600 DNAME example.net.", qname="example.test.", qtype=DNAME)
    assert isinstance(chain, Chain)
    assert shown(chain.rrsets()) == [("example.test.", "DNAME")]


def test_a_dname_does_not_rename_its_own_owner() -> None:
    assert walk("example.test. 600 DNAME example.net.", qname="example.test.") is Refusal.NO_ANSWER


def test_a_cname_of_a_dname_asked_for_ends_the_chain() -> None:
    chain = walk("example.test. 600 DNAME example.net.", qtype=CNAME)
    assert isinstance(chain, Chain)
    assert chain.complete
    assert shown(chain.rrsets()) == [("example.test.", "DNAME"), (WWW, "CNAME")]


def test_a_substitution_beyond_255_bytes_is_none() -> None:
    long = ".".join(["a" * 63] * 3) + ".test."
    (dname,) = rrsets(f"example.test. 600 DNAME {long}")
    assert synthesise(dname, name_from_text("b" * 63 + ".example.test.")) is Refusal.BROKEN_CHAIN
    kept = synthesise(dname, QNAME)
    assert isinstance(kept, RRset)
    assert name_to_text(cname_target(kept)) == f"www.{long}"


# TTL and signatures


def limited(*lines: str, learned: float = NOW, max_ttl: int = 86400) -> RRset | Refusal:
    return limit(rrsets(*lines)[0], learned, max_ttl=max_ttl)


@pytest.mark.parametrize(
    ("lines", "ttl"),
    [
        ([f"{WWW} 300 A 192.0.2.1"], 300),
        ([f"{WWW} 300 A 192.0.2.1", f"{WWW} 200 A 192.0.2.2"], 200),
        ([f"{WWW} 90000 A 192.0.2.1"], 86400),
        ([f"{WWW} 300 A 192.0.2.1", rrsig(WWW, "A", ttl=100)], 100),
        ([f"{WWW} 300 A 192.0.2.1", rrsig(WWW, "A", original=50)], 50),
        ([f"{WWW} 300 A 192.0.2.1", rrsig(WWW, "A", expiration=40)], 40),
        ([f"{WWW} 300 A 192.0.2.1", rrsig(WWW, "A", expiration=1)], 1),
        ([f"{WWW} 300 A 192.0.2.1", rrsig(WWW, "A", original=70), rrsig(WWW, "A", expiration=60)], 60),
    ],
)
def test_the_shortest_life_counts(lines: list[str], ttl: int) -> None:
    kept = limited(*lines)
    assert isinstance(kept, RRset)
    assert kept.ttl == ttl


@pytest.mark.parametrize(
    ("lines", "refusal"),
    [
        ([f"{WWW} 0 A 192.0.2.1"], Refusal.TTL_ZERO),
        ([f"{WWW} 300 A 192.0.2.1", rrsig(WWW, "A", ttl=0)], Refusal.TTL_ZERO),
        ([f"{WWW} 300 A 192.0.2.1", rrsig(WWW, "A", original=0)], Refusal.TTL_ZERO),
        ([f"{WWW} 300 A 192.0.2.1", rrsig(WWW, "A", original=0x80000001)], Refusal.TTL_ZERO),
        ([f"{WWW} 300 A 192.0.2.1", rrsig(WWW, "A", expiration=0)], Refusal.RRSIG_EXPIRED),
        ([f"{WWW} 300 A 192.0.2.1", rrsig(WWW, "A", expiration=-1)], Refusal.RRSIG_EXPIRED),
        ([f"{WWW} 300 A 192.0.2.1", rrsig(WWW, "A"), rrsig(WWW, "A", expiration=-1)], Refusal.RRSIG_EXPIRED),
        ([f"{WWW} 300 A 192.0.2.1", rrsig(WWW, "A", inception=1)], Refusal.RRSIG_NOT_YET_VALID),
        ([f"{WWW} 300 A 192.0.2.1", rrsig(WWW, "A", labels=2)], Refusal.WILDCARD_WITHOUT_PROOF),
    ],
)
def test_what_must_not_be_shared(lines: list[str], refusal: Refusal) -> None:
    assert limited(*lines) is refusal


@pytest.mark.parametrize(("expiration", "ttl"), [(2, 1), (3, 2), (1, None)])
def test_nothing_outlives_its_signature_by_a_fraction_of_a_second(expiration: int, ttl: int | None) -> None:
    kept = limited(f"{WWW} 300 A 192.0.2.1", rrsig(WWW, "A", expiration=expiration), learned=NOW + 0.5)
    assert kept is Refusal.RRSIG_EXPIRED if ttl is None else isinstance(kept, RRset) and kept.ttl == ttl


def test_a_signature_is_not_taken_a_fraction_of_a_second_early() -> None:
    lines = f"{WWW} 300 A 192.0.2.1", rrsig(WWW, "A", inception=1)
    assert limited(*lines, learned=NOW + 0.5) is Refusal.RRSIG_NOT_YET_VALID
    assert isinstance(limited(*lines, learned=NOW + 1), RRset)


def test_inception_now_is_valid() -> None:
    assert isinstance(limited(f"{WWW} 300 A 192.0.2.1", rrsig(WWW, "A", inception=0)), RRset)


def test_the_wildcard_itself_is_no_expansion() -> None:
    kept = limited("*.example.test. 300 A 192.0.2.1", rrsig("*.example.test.", "A", labels=2))
    assert isinstance(kept, RRset)
    assert kept.sigs


def test_signatures_that_cannot_belong_to_it_are_left_out() -> None:
    good = rrsig(WWW, "A")
    for alien in (rrsig(WWW, "A", labels=9), rrsig(WWW, "A", signer="other.test."), rrsig(WWW, "A", signer=f"a.{WWW}")):
        kept = limited(f"{WWW} 300 A 192.0.2.1", alien, good)
        assert isinstance(kept, RRset)
        assert len(records(kept.sigs)) == 1
        kept = limited(f"{WWW} 300 A 192.0.2.1", alien)
        assert isinstance(kept, RRset)
        assert kept.sigs == b""
        assert not signed([Link(kept)])


def test_signature_times_are_serial_numbers() -> None:
    end_of_32_bits = float((1 << 32) - 10)
    kept = limited(
        f"{WWW} 300 A 192.0.2.1",
        rrsig(WWW, "A")
        .replace(f" {int(NOW) + 86400} ", " 50 ")
        .replace(f" {int(NOW) - 86400} ", f" {(1 << 32) - 100} "),
        learned=end_of_32_bits,
    )
    assert isinstance(kept, RRset)
    assert kept.ttl == 60


def test_a_chain_is_refused_for_any_of_its_rrsets() -> None:
    chain = walk(f"{WWW} 300 CNAME a.test.", "a.test. 0 A 192.0.2.1")
    assert isinstance(chain, Chain)
    assert limit_chain(chain.links, NOW) is Refusal.TTL_ZERO


# On receipt


def test_assemble_gives_the_whole_answer_with_its_ttls() -> None:
    found = assemble(QNAME, A, rrsets(f"{WWW} 300 CNAME a.test.", "a.test. 99999 A 192.0.2.1"), NOW, max_ttl=3600)
    assert isinstance(found, tuple)
    assert [rrset.ttl for rrset in found] == [300, 3600]


def test_assemble_refuses_what_is_not_an_answer() -> None:
    partial = rrsets(f"{WWW} 300 CNAME a.test.")
    assert assemble(QNAME, A, partial, NOW) is Refusal.NO_ANSWER
    assert assemble(QNAME, A, partial, NOW, partial=True) == partial
    assert assemble(QNAME, ANY, rrsets(f"{WWW} 300 A 192.0.2.1"), NOW) is Refusal.QTYPE
    assert assemble(QNAME, RRSIG, rrsets(f"{WWW} 300 A 192.0.2.1"), NOW) is Refusal.QTYPE
    assert assemble(QNAME, A, rrsets(f"{WWW} 300 CNAME {WWW}"), NOW) is Refusal.CHAIN_LOOP
    assert assemble(QNAME, A, rrsets(f"{WWW} 0 A 192.0.2.1"), NOW) is Refusal.TTL_ZERO


def test_assemble_wants_signatures_for_validated() -> None:
    plain, both = rrsets(f"{WWW} 300 A 192.0.2.1"), rrsets(f"{WWW} 300 A 192.0.2.1", rrsig(WWW, "A"))
    assert assemble(QNAME, A, plain, NOW, evidence=Evidence.VALIDATED) is Refusal.RRSIG_MISSING
    assert assemble(QNAME, A, both, NOW, evidence=Evidence.VALIDATED) == both
    half = rrsets(f"{WWW} 300 CNAME a.test.", "a.test. 300 A 192.0.2.1", rrsig("a.test.", "A", signer="test."))
    assert assemble(QNAME, A, half, NOW, evidence=Evidence.VALIDATED) is Refusal.RRSIG_MISSING


def test_types_never_shared() -> None:
    assert all(refused_type(code, infrastructure=True) for code in (0, 41, 46, 47, 50, 128, 249, 250, 251, 252, 255))
    assert not any(refused_type(code, infrastructure=False) for code in (1, 5, 16, 28, 33, 39, 64, 65, 256, 65392))
    assert [refused_type(NS, infrastructure=allowed) for allowed in (False, True)] == [True, False]


def test_more_signatures_than_the_cache_can_count_are_refused() -> None:
    rrset = rrsets(f"{WWW} 300 A 192.0.2.1", rrsig(WWW, "A"))[0]
    many = rrset._replace(sigs=rrset.sigs * (MAX_SIGNATURES // len(rrset.sigs)))
    assert isinstance(limit(many, NOW), RRset)
    assert limit(many._replace(sigs=many.sigs + rrset.sigs), NOW) is Refusal.OVERSIZE
