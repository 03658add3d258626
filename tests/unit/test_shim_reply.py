"""Replies on the wire: case, TTLs, DO and AD, EDNS, truncation."""

from __future__ import annotations

import dns.flags
import dns.message
import dns.rcode

from cachebus.shim.query import Ede, Edns, Query, Response, parse_query
from cachebus.shim.reply import MAX_ERROR_TEXT, MAX_UDP_PAYLOAD, compose_reply, udp_limit
from tests.unit.shim_bed import rrset, signature, texts

ADDRESS = bytes((192, 0, 2, 1))


def query(name: str = "www.example.", rrtype: str = "A", *, flags: int = 0x0100, **options: object) -> Query:
    message = dns.message.make_query(name, rrtype, **options)
    message.flags = dns.flags.Flag(flags)
    parsed = parse_query(message.to_wire())
    assert isinstance(parsed, Query)
    return parsed


def test_a_reply_byte_by_byte() -> None:
    asked = parse_query(bytes.fromhex("abcd01000001000000000000") + b"\3WwW\7eXample\0\0\1\0\1")
    assert isinstance(asked, Query)
    reply = compose_reply(asked, Response(0, (rrset("www.example.", "A", 299, ADDRESS),)), 512)
    assert reply == (
        bytes.fromhex("abcd81800001000100000000")
        + b"\3WwW\7eXample\0\0\1\0\1"
        + bytes.fromhex("c00c000100010000012b0004c0000201")
    )


def test_owners_of_a_chain_point_back_and_keep_their_case() -> None:
    chain = (
        rrset("www.example.", "CNAME", 60, b"\4Edge\3CDN\0"),
        rrset("edge.cdn.", "A", 30, ADDRESS, bytes((192, 0, 2, 2))),
    )
    wire = compose_reply(query("WWW.example."), Response(0, chain), 512)
    lines = texts(dns.message.from_wire(wire).answer)
    assert lines == [
        "WWW.example. 60 IN CNAME Edge.CDN.",
        "Edge.CDN. 30 IN A 192.0.2.1",
        "Edge.CDN. 30 IN A 192.0.2.2",
    ]


def test_rrsigs_and_proofs_only_with_do() -> None:
    signed = rrset("www.example.", "A", 60, ADDRESS, sigs=signature("www.example.", "A"))
    soa = rrset("example.", "SOA", 60, b"\0\0" + bytes(20), sigs=signature("example.", "SOA"))
    proof = rrset("example.", "NSEC", 60, b"\0\0\1\x40", sigs=signature("example.", "NSEC"))
    response = Response(0, (signed,), (soa, proof), authentic=True)
    without = dns.message.from_wire(compose_reply(query(), response, 1232))
    assert [item.rdtype for item in (*without.answer, *without.authority)] == [1, 6]
    assert not without.flags & dns.flags.AD
    full = dns.message.from_wire(compose_reply(query(want_dnssec=True), response, 1232))
    assert [item.rdtype for item in full.answer] == [1, 46]
    assert [item.rdtype for item in full.authority] == [6, 46, 47, 46]
    assert full.flags & dns.flags.AD
    assert full.ednsflags & dns.flags.DO


def test_ad_for_clients_that_ask_for_it_and_for_authentic_data_only() -> None:
    data = (rrset("www.example.", "A", 60, ADDRESS),)
    wants = query(flags=dns.flags.RD | dns.flags.AD)
    assert dns.message.from_wire(compose_reply(wants, Response(0, data, authentic=True), 512)).flags & dns.flags.AD
    assert not dns.message.from_wire(compose_reply(wants, Response(0, data), 512)).flags & dns.flags.AD


def test_rd_and_cd_are_copied_and_ra_is_set() -> None:
    for flags in (0, dns.flags.RD, dns.flags.CD, dns.flags.RD | dns.flags.CD):
        reply = dns.message.from_wire(compose_reply(query(flags=flags), Response(0), 512))
        assert reply.flags == flags | dns.flags.QR | dns.flags.RA


def test_what_is_too_big_becomes_tc_with_question_and_opt() -> None:
    many = rrset("www.example.", "A", 60, *(bytes((192, 0, 2, n)) for n in range(100)))
    asked = query(use_edns=0, payload=1400)
    wire = compose_reply(asked, Response(0, (many,), authentic=True, errors=((3, "x" * 100),)), udp_limit(asked.edns))
    reply = dns.message.from_wire(wire, raise_on_truncation=False)
    assert reply.flags & dns.flags.TC
    assert not reply.answer
    assert reply.question
    assert (reply.edns, reply.payload, reply.options) == (0, MAX_UDP_PAYLOAD, ())
    whole = dns.message.from_wire(compose_reply(asked, Response(0, (many,)), 65535))
    assert len(whole.answer[0]) == 100
    assert not whole.flags & dns.flags.TC


def test_the_limit_is_exact() -> None:
    data = Response(0, (rrset("www.example.", "A", 60, ADDRESS),))
    size = len(compose_reply(query(), data, 65535))
    assert len(compose_reply(query(), data, size)) == size
    assert compose_reply(query(), data, size - 1)[2] & 0x02


def test_udp_limits() -> None:
    assert udp_limit(None) == 512
    assert udp_limit(Edns(512, do=False)) == 512
    assert udp_limit(Edns(700, do=False)) == 700
    assert udp_limit(Edns(65535, do=False)) == 1232


def test_extended_errors_only_to_edns_clients_and_bounded() -> None:
    response = Response(dns.rcode.SERVFAIL, errors=((Ede.NETWORK_ERROR, "é" * 500), (Ede.OTHER, "")))
    plain = dns.message.from_wire(compose_reply(query(), response, 512))
    assert plain.edns == -1
    reply = dns.message.from_wire(compose_reply(query(use_edns=0), response, 1232))
    assert [int(option.code) for option in reply.options] == [23, 0]
    assert len(reply.options[0].text) == MAX_ERROR_TEXT // 2


def test_extended_rcodes_need_opt() -> None:
    reply = dns.message.from_wire(compose_reply(query(use_edns=0), Response(dns.rcode.BADVERS), 512))
    assert reply.rcode() == dns.rcode.BADVERS


def test_owners_share_the_ends_that_stand_there_already() -> None:
    soa = rrset("example.", "SOA", 60, b"\0\0" + bytes(20))
    proofs = [rrset(f"{name}.zone.example.", "NSEC", 60, b"\0\0\1\x40") for name in ("a", "b.a", "other")]
    response = Response(3, (), (soa, *proofs, rrset("else.", "NSEC", 60, b"\0\0\1\x40"), rrset(".", "NSEC", 60, b"\0")))
    wire = compose_reply(query("Www.eXample.", want_dnssec=True), response, 1232)
    owners = [line.split()[0].lower() for line in texts(dns.message.from_wire(wire).authority)]
    names = ["example.", "a.zone.example.", "b.a.zone.example.", "other.zone.example.", "else.", "."]
    assert owners == names
    assert wire.lower().count(b"\7example") == 1
    assert wire.count(b"\4zone") == 1
    assert wire.count(b"\1a\4") == 1


def test_ends_are_shared_behind_an_alias_too() -> None:
    alias = rrset("www.example.", "CNAME", 60, b"\4Edge\3CDN\0")
    soa = rrset("example.", "SOA", 60, b"\0\0" + bytes(20))
    wire = compose_reply(query("www.example."), Response(0, (alias,), (soa, soa._replace(owner=b"\3cdn\0"))), 512)
    assert [line.split()[0] for line in texts(dns.message.from_wire(wire).authority)] == ["example.", "cdn."]
    assert wire.count(b"\7example") == 1


def test_who_asks_for_everything_gets_rrsigs_without_do() -> None:
    signed = rrset("www.example.", "A", 60, ADDRESS, sigs=signature("www.example.", "A"))
    reply = dns.message.from_wire(compose_reply(query(rrtype="ANY"), Response(0, (signed,)), 1232))
    assert [item.rdtype for item in reply.answer] == [1, 46]
