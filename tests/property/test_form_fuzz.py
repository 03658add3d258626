"""The form check of received answers: the short way gives nothing that the long way does not give."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachebus.answer import Evidence, Refusal, RRset
from cachebus.codecs.form import Raw, _long_way, check, split_names, take, take_usual
from cachebus.errors import MessageError
from cachebus.filters.chain import DEFAULT_MAX_TTL
from cachebus.presentation import check_name
from cachebus.wire.message import records
from tests.core_bed import NOW, rrset, rrsig

pytestmark = pytest.mark.property


def raw(made: RRset) -> Raw:
    return (
        made.owner,
        made.type,
        made.ttl,
        [rdata for _, _, rdata in records(made.rrs)],
        [rdata for _, _, rdata in records(made.sigs)],
    )


def sig(owner: str, rrtype: str, **more: int | str) -> bytes:
    return rrsig(owner, rrtype, **more)  # type: ignore[arg-type]


CHAINS = [
    [rrset("www.example.com", "A", "192.0.2.1")],
    [rrset("www.example.com", "A", "192.0.2.1", "192.0.2.2", sigs=sig("www.example.com", "A"))],
    [rrset("www.example.com", "A", "192.0.2.1", sigs=sig("www.example.com", "A", ttl=60))],
    [rrset("www.example.com", "A", "192.0.2.1", sigs=sig("www.example.com", "A", labels=2))],
    [rrset("*.example.com", "A", "192.0.2.1", sigs=sig("*.example.com", "A", labels=2))],
    [rrset("w.example.com", "A", "192.0.2.1", sigs=sig("w.example.com", "A") + sig("w.example.com", "A", key_tag=1))],
    [rrset("a.example.com", "CNAME", "b.example.com."), rrset("b.example.com", "AAAA", "2001:db8::1")],
    [
        rrset("a.example.com", "CNAME", "b.example.net.", sigs=sig("a.example.com", "CNAME")),
        rrset("b.example.net", "TXT", '"x"', '"y"', sigs=sig("b.example.net", "TXT")),
    ],
    [rrset("a.test", "CNAME", "b.test."), rrset("b.test", "CNAME", "a.test.")],
    [rrset("example.com", "MX", "10 a.example.com.", "20 b.example.com.")],
    [rrset("_sip._udp.example.com", "SRV", "1 2 53 a.example.com.")],
    [rrset("1.2.0.192.in-addr.arpa", "PTR", "a.example.com.")],
    [rrset("example.com", "SOA", "a.example.com. b.example.com. 1 2 3 4 5")],
    [rrset("d.example.com", "DNAME", "example.net."), rrset("x.d.example.com", "CNAME", "x.example.net.")],
    [rrset("h.example.com", "HTTPS", "1 . alpn=h2")],
    [rrset("example.com", "MX", "10 a.example.com.", sigs=sig("example.com", "MX", signer="example.com"))],
    [rrset("a.b.example.com", "A", "192.0.2.1", sigs=sig("a.b.example.com", "A", signer="example.com"))],
    [rrset("www.example.com", "A", "192.0.2.1", sigs=sig("www.example.com", "A", signer="example.org"))],
    [rrset("www.example.com", "A", *[f"192.0.2.{last}" for last in range(1, 12)])],
    [rrset(f"{number}.test", "CNAME", f"{number + 1}.test.") for number in range(9)],
]
NAMES = sorted({made.owner for chain in CHAINS for made in chain} | {b"\0", b"\3com\0"})
TYPES = [1, 2, 5, 6, 12, 15, 16, 28, 33, 35, 39, 46, 65, 255, 0, 70000, -1]
TTLS = [0, 1, 60, 86400, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 32, -5]


def changed(draw: st.DrawFn, data: bytes) -> bytes:
    at = draw(st.integers(0, len(data)))
    match draw(st.integers(0, 3)):
        case 0:
            return data[:at] + draw(st.binary(max_size=3)) + data[at + 1 :]
        case 1:
            return data[:at]
        case 2:
            return data + draw(st.sampled_from([b"\0", b"\xc0\x0c", data]))
        case _:
            return data.swapcase()


@st.composite
def answers(draw: st.DrawFn) -> tuple[bytes, int, list[Raw], Evidence]:
    """Chains as they should be, with a few changes."""
    chain = [raw(made) for made in draw(st.sampled_from(CHAINS))]
    qname, qtype = chain[0][0], chain[-1][1]
    for _ in range(draw(st.integers(0, 3))):
        if not chain:
            break
        at = draw(st.integers(0, len(chain) - 1))
        owner, rrtype, ttl, rdatas, sigs = chain[at]
        match draw(st.integers(0, 10)):
            case 0:
                chain[at] = (draw(st.sampled_from(NAMES)), rrtype, ttl, rdatas, sigs)
            case 1:
                chain[at] = (owner, draw(st.sampled_from(TYPES)), ttl, rdatas, sigs)
            case 2:
                chain[at] = (owner, rrtype, draw(st.sampled_from(TTLS)), rdatas, sigs)
            case 3 if rdatas:
                chain[at] = (owner, rrtype, ttl, [*rdatas, changed(draw, rdatas[-1])], sigs)
            case 4 if rdatas:
                chain[at] = (owner, rrtype, ttl, [changed(draw, rdatas[0]), *rdatas[1:]], sigs)
            case 5 if sigs:
                chain[at] = (owner, rrtype, ttl, rdatas, [changed(draw, sigs[0]), *sigs[1:]])
            case 6:
                chain[at] = (owner, rrtype, ttl, rdatas[1:], sigs)
            case 7:
                chain[at] = (owner, rrtype, ttl, rdatas, sigs[1:])
            case 8:
                del chain[at]
            case 9:
                chain.insert(at, raw(draw(st.sampled_from(CHAINS))[0]))
            case _:
                qname, qtype = draw(st.sampled_from(NAMES)), draw(st.sampled_from(TYPES))
    return qname, qtype, chain, draw(st.sampled_from(Evidence))


@given(answers(), st.sampled_from([NOW, NOW + 86399, NOW - 3600, NOW + 9e6]), st.sampled_from([DEFAULT_MAX_TTL, 30]))
def test_the_short_way_is_the_long_way(
    given_: tuple[bytes, int, list[Raw], Evidence], learned: float, max_ttl: int
) -> None:
    qname, qtype, chain, evidence = given_
    short = take_usual(qname, qtype, chain, evidence, learned, max_ttl)
    long = _long_way(qname, qtype, chain, evidence, learned, max_ttl, infrastructure=False)
    assert short is None or short == long
    assert take(qname, qtype, chain, evidence, learned, max_ttl, infrastructure=False) == long
    if not isinstance(long, Refusal):
        assert all(0 < made.ttl <= max_ttl for made in long)
        assert {(made.owner, made.type) for made in long} >= {made[:2] for made in chain}


@pytest.mark.parametrize("number", range(len(CHAINS)))
def test_the_short_way_is_for_what_is_usual(number: int) -> None:
    chain = [raw(made) for made in CHAINS[number]]
    usual = take_usual(chain[0][0], chain[-1][1], chain, Evidence.AUTHORITATIVE, NOW, DEFAULT_MAX_TTL)
    assert (usual is None) == (number in (3, 4, 8, 12, 13, 17, 19))


@given(st.lists(st.sampled_from([*NAMES, b"\1A\0", b"\xc0\x0c", b"\1x" * 127 + b"\0", b"\1x" * 128 + b"\0", b"\3a"])))
def test_names(pieces: list[bytes]) -> None:
    names = split_names(b"".join(pieces))
    try:
        for piece in pieces:
            check_name(piece)
    except MessageError:
        assert names is None or b"".join(names) == b"".join(pieces).lower()
    else:
        assert names == [piece.lower() for piece in pieces]
    for name in names or ():
        check_name(name)


@given(answers(), st.sampled_from([b"", b"\1A\0", b"\xc0\x0c", b"\3a", b"\1a\0\0", b"\1x" * 128 + b"\0"]))
def test_names_of_strangers_are_looked_at(given_: tuple[bytes, int, list[Raw], Evidence], name: bytes) -> None:
    qname, qtype, chain, evidence = given_
    assert check(name, qtype, chain, evidence, NOW, 30, infrastructure=False) is Refusal.MALFORMED
    chain = [(name, *made[1:]) for made in chain]
    if chain:
        assert check(qname, qtype, chain, evidence, NOW, 30, infrastructure=False) is Refusal.MALFORMED
