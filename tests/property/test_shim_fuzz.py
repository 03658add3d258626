"""Whatever clients and upstreams send, the shim answers well-formed messages or nothing, and keeps only what parses."""

from __future__ import annotations

import random
from typing import Any

import dns.edns
import dns.exception
import dns.flags
import dns.message
import dns.tsigkeyring
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachebus.answer import Refusal
from cachebus.cache import Cache
from cachebus.errors import MessageError
from cachebus.presentation import name_from_text
from cachebus.shim import LOOPBACK, UpstreamSettings
from cachebus.shim.exchange import CaseNotKeptError, Exchange, belongs, compose_query
from cachebus.shim.forward import read_chain
from cachebus.shim.learn import Learner
from cachebus.shim.lookup import CacheStage, LookupOrder
from cachebus.shim.query import Channel, Drop, Error, Query, Response, parse_query
from cachebus.shim.reply import MAX_UDP_PAYLOAD, compose_reply
from cachebus.shim.service import Service
from cachebus.shim.tasks import Tasks
from cachebus.shim.upstream import Quality, Reply, Upstream, question_in_lower_case
from cachebus.testing import ManualClock
from cachebus.wire.message import parse
from tests.unit.shim_bed import bus_answer, records, reply_to, rrset, signature

pytestmark = pytest.mark.property
NOW = 1_800_000_000.0


def _valid_queries() -> list[bytes]:
    names = ("www.example.", "in.example.", "no.example.", ".", "x" * 63 + ".example.")
    edns: tuple[dict[str, Any], ...] = ({}, {"use_edns": 0, "want_dnssec": True}, {"use_edns": 1})
    made = [
        dns.message.make_query(name, rrtype, **options).to_wire()
        for name in names
        for rrtype in ("A", "TXT", "ANY", "AXFR")
        for options in edns
    ]
    cookie = dns.edns.GenericOption(10, b"12345678")
    made.append(dns.message.make_query("www.example.", "A", use_edns=0, options=[cookie]).to_wire())
    signed = dns.message.make_query("www.example.", "A")
    signed.use_tsig(dns.tsigkeyring.from_text({"some.key.": "AAECAwQFBgcICQoLDA0ODw=="}), algorithm="hmac-sha256")
    return [*made, signed.to_wire()]


QUERIES = _valid_queries()
OUTGOING = compose_query(name_from_text("www.example."), 1, recurse=True)
ANSWER = (
    "www.example. 300 IN CNAME a.in.example.",
    "in.example. 300 IN DNAME out.example.",
    "a.in.example. 0 IN CNAME a.out.example.",
    "a.out.example. 60 IN A 192.0.2.1",
    "a.out.example. 60 IN A 192.0.2.2",
    "a.out.example. 60 IN RRSIG A 13 3 60 20271231000000 20231114221320 258 example. AAAA",
)
SOA = ("example. 3600 IN SOA ns.example. host.example. 1 7200 3600 604800 60", "example. 60 IN NSEC w.example. SOA")
QUESTION = dns.message.from_wire(OUTGOING.wire)
REPLIES = [
    reply_to(QUESTION, records(*ANSWER), flags=dns.flags.AA),
    reply_to(QUESTION, records(*ANSWER), flags=dns.flags.AD),
    reply_to(QUESTION, records(ANSWER[0]), authority=records(*SOA), rcode=3),
    reply_to(QUESTION, authority=records(*SOA)),
]


def mutated(valid: bytes, seed: int) -> bytes:
    """Some bytes changed, cut, doubled or put in: the same for the same seed."""
    chance = random.Random(seed)
    wire = bytearray(valid)
    for _ in range(chance.randrange(1, 5)):
        position = chance.randrange(len(wire) + 1)
        match chance.randrange(5):
            case 0 | 1 if position < len(wire):
                wire[position] = chance.choice((0, 1, 12, 0x3F, 0x40, 0x80, 0xC0, 0xFF, chance.randrange(256)))
            case 2:
                del wire[position : position + chance.randrange(1, 8)]
            case 3:
                wire[position:position] = chance.randbytes(chance.randrange(1, 8))
            case _:
                wire += wire[position : position + chance.randrange(20)]
    return bytes(wire)


def messages(valid: list[bytes]) -> st.SearchStrategy[bytes]:
    """Arbitrary bytes, and twice as often mutations of valid messages."""
    changed = st.builds(mutated, st.sampled_from(valid), st.integers(0, 2**48))
    return st.one_of(st.binary(max_size=600), changed, changed)


def filled_cache() -> Cache:
    cache = Cache("node-a", max_entries=1000)
    cache.put(
        bus_answer(rrset("www.example.", "A", 300, b"\1\2\3\4", sigs=signature("www.example.", "A")), learned=NOW), NOW
    )
    signed = rrset("www.example.", "A", 300, b"\1\2\3\4", sigs=signature("www.example.", "A"))
    soa = rrset("example.", "SOA", 60, b"\0\0" + bytes(20))
    cache.put(bus_answer(signed, learned=NOW), NOW)
    cache.put(bus_answer(rrset("in.example.", "DNAME", 300, b"\7example\0"), learned=NOW), NOW)
    cache.put_negative(name_from_text("no.example."), 0, 3, soa, 60, NOW, "node-a")
    return cache


@given(messages(QUERIES))
def test_any_bytes_from_a_client_get_a_well_formed_reply_or_silence(wire: bytes) -> None:
    clock = ManualClock(NOW)
    order = LookupOrder([CacheStage(filled_cache())], clock)
    service = Service(order, Tasks(), clock, allow=LOOPBACK, max_in_flight=16)
    parsed = parse_query(wire)
    reply = service.handle(wire, "127.0.0.1", Channel.UDP)
    if isinstance(parsed, Drop):
        assert reply is None
        return
    assert isinstance(reply, bytes)
    assert len(reply) <= MAX_UDP_PAYLOAD
    assert reply[:2] == wire[:2]
    assert reply[2] & 0x80
    parse(reply)
    message = dns.message.from_wire(reply, raise_on_truncation=False, keyring=False)
    if isinstance(parsed, Error):
        assert message.rcode() == parsed.rcode
        assert not message.answer
    else:
        assert isinstance(parsed, Query)
        assert reply[12 : 12 + len(parsed.question)] == parsed.question
        assert (message.edns >= 0) == (parsed.edns is not None)


@given(st.sampled_from(QUERIES), st.integers(0, 2**48))
def test_a_query_is_read_as_dnspython_reads_it(valid: bytes, seed: int) -> None:
    wire = mutated(valid, seed)
    parsed = parse_query(wire)
    if not isinstance(parsed, Query):
        return
    message = dns.message.from_wire(wire, question_only=True)
    assert message.question[0].name.canonicalize().to_wire() == parsed.qname
    assert int(message.question[0].rdtype) == parsed.qtype
    try:
        whole = dns.message.from_wire(wire)
    except dns.exception.DNSException:
        return  # it reads the RDATA of records that we pass over
    assert bool(whole.ednsflags & dns.flags.DO) == parsed.do


@given(messages(REPLIES), st.sampled_from([{}, {"authoritative": True}, {"validating": True}]))
def test_any_bytes_from_an_upstream_are_kept_and_passed_on_well_formed_or_refused(
    wire: bytes, trust: dict[str, bool]
) -> None:
    try:
        if not belongs(wire, OUTGOING):
            return
        message = parse(question_in_lower_case(wire))
    except (CaseNotKeptError, MessageError):
        return
    upstream = Upstream(UpstreamSettings(address=("127.0.0.1", 53), **trust))
    reply = Reply(upstream, Exchange(OUTGOING.wire, wire), message, Quality.GOOD)
    cache = Cache("node-a", max_entries=1000)
    learner = Learner("node-a", cache, lambda answer: cache.put(answer, NOW), infrastructure=False, max_ttl=86400)
    qname = name_from_text("www.example.")
    learner.learn(qname, 1, reply, NOW)
    found = read_chain(message, qname, 1)
    client = parse_query(dns.message.make_query("WWW.Example.", "A", want_dnssec=True).to_wire())
    assert isinstance(client, Query)
    responses = [CacheStage(cache).answer(client, NOW)]
    if not isinstance(found, Refusal):
        responses.append(Response(message.rcode & 0xF, found.rrsets, message.authority))
    for response in responses:
        if response is not None:
            parse(compose_reply(client, response, 65535))
