"""What a client meets whatever it asks: EDNS read where it can be, padding, CHAOS, order, additional addresses."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_network

import dns.edns
import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import pytest

from cachebus.answer import RRset
from cachebus.cache import Cache
from cachebus.errors import ConfigError
from cachebus.shim import Shim
from cachebus.shim.access import LOOPBACK
from cachebus.shim.chaos import ChaosSettings
from cachebus.shim.front import FrontSettings
from cachebus.shim.limits import RateLimit
from cachebus.shim.padding import BLOCK, padding
from cachebus.shim.query import Channel, Error, Query, find_option, parse_query
from cachebus.shim.reply import MAX_UDP_PAYLOAD, compose_error
from cachebus.shim.service import Service
from cachebus.testing import ManualClock
from cachebus.wire.message import BADVERS, FORMERR, NOTIMP, pack
from tests.unit.shim_bed import bus_answer, rrset, settings, texts

TARGETS = (b"\0\x0a\5first\7example\0", b"\0\x14\6second\7example\0")


def service(*rrsets: RRset, allow: Sequence[str] | None = None, **front: object) -> Service:
    """A shim's service over a cache with these RRsets, and a few that they point to."""
    clock = ManualClock()
    cache = Cache("node-a")
    default = (
        rrset("www.example.", "A", 300, *(bytes((192, 0, 2, host)) for host in range(1, 5))),
        rrset("example.", "MX", 300, *TARGETS),
        rrset("first.example.", "A", 100, bytes((192, 0, 2, 11))),
        rrset("second.example.", "AAAA", 100, bytes(15) + b"\1"),
    )
    for one in rrsets or default:
        cache.put(bus_answer(one, learned=clock.now, transport=""), clock.now)
    served = LOOPBACK if allow is None else tuple(ip_network(text) for text in allow)
    made = settings(allow=served, front=FrontSettings(**front))  # type: ignore[arg-type]
    return Shim(made, cache, lambda answer: None, clock)._service


def ask(door: Service, query: dns.message.Message, channel: Channel = Channel.UDP, client: str = "127.0.0.1") -> bytes:
    answered = door.handle(query.to_wire(), client, channel)
    assert isinstance(answered, bytes)
    return answered


def question(name: str = "www.example.", rrtype: str = "A", **options: object) -> dns.message.Message:
    return dns.message.make_query(name, rrtype, **options)  # type: ignore[arg-type]


def chaos(name: str, rrtype: str = "TXT", **options: object) -> dns.message.Message:
    return dns.message.make_query(name, rrtype, "CH", **options)  # type: ignore[arg-type]


# EDNS


def test_a_later_version_may_have_options_of_any_form() -> None:
    wire = question(use_edns=1).to_wire()[:-2] + b"\0\3abc"
    parsed = parse_query(wire)
    assert isinstance(parsed, Error)
    assert parsed.rcode == BADVERS


@pytest.mark.parametrize("opcode", [dns.opcode.STATUS, dns.opcode.NOTIFY, dns.opcode.UPDATE])
def test_what_is_no_query_gets_opt_for_opt_and_no_question(opcode: dns.opcode.Opcode) -> None:
    query = question(use_edns=0)
    query.set_opcode(opcode)
    parsed = parse_query(query.to_wire())
    assert isinstance(parsed, Error)
    assert parsed.rcode == NOTIMP
    reply = dns.message.from_wire(compose_error(parsed))
    assert (reply.edns, len(reply.question), reply.opcode()) == (0, 0, opcode)


def test_a_message_without_question_gets_formerr_with_opt() -> None:
    query = question(use_edns=0)
    query.question = []
    reply = dns.message.from_wire(ask(service(), query))
    assert (reply.rcode(), reply.edns) == (dns.rcode.FORMERR, 0)
    query.use_edns(1)
    assert dns.message.from_wire(ask(service(), query)).rcode() == dns.rcode.BADVERS


@pytest.mark.parametrize("counts", ["0000000100000001", "0000000000010001", "0002000000000001"])
def test_records_where_none_belong_are_formerr(counts: str) -> None:
    wire = bytearray(question(use_edns=0).to_wire())
    wire[4:12] = bytes.fromhex(counts)
    parsed = parse_query(bytes(wire))
    assert isinstance(parsed, Error)
    assert parsed.rcode == FORMERR


def test_errors_say_that_recursion_is_there_and_keep_rd_and_cd() -> None:
    query = question(rrtype="AXFR")
    query.flags = dns.flags.RD | dns.flags.CD | dns.flags.AD
    reply = dns.message.from_wire(ask(service(), query))
    assert reply.flags & 0xFFF0 == dns.flags.QR | dns.flags.RD | dns.flags.RA | dns.flags.CD


def test_find_option() -> None:
    options = b"\0\3\0\0" + b"\0\x0a\0\2ab" + b"\0\x0a\0\1c"
    assert find_option(options, 10) == b"ab"
    assert find_option(options, 3) == b""
    assert find_option(options, 12) is None
    assert find_option(b"", 12) is None


@pytest.mark.parametrize(("options", "plain"), [((), True), ((dns.edns.GenericOption(65001, b""),), False)])
def test_plain_questions_are_told_by_the_query_alone(options: tuple[dns.edns.Option, ...], plain: bool) -> None:
    parsed = parse_query(question(use_edns=0, options=options, want_dnssec=True).to_wire())
    assert isinstance(parsed, Query)
    assert parsed.is_plain is plain
    without = parse_query(question(use_edns=False).to_wire())
    assert isinstance(without, Query)
    assert without.is_plain


# Padding


@pytest.mark.parametrize("length", [12, 463, 464, 465, 468, 900, 936])
def test_padding_fills_blocks(length: int) -> None:
    option = padding(length, 65535)
    assert option[:2] == b"\0\x0c"
    assert (length + len(option)) % BLOCK == 0
    assert len(option) - 4 == int.from_bytes(option[2:4], "big") < BLOCK
    assert not any(option[4:])


@pytest.mark.parametrize(("length", "total"), [(65200, 65520), (65520, 65535), (65531, 65535), (65532, 65532)])
def test_padding_keeps_within_the_limit(length: int, total: int) -> None:
    assert length + len(padding(length, 65535)) == total


@pytest.mark.parametrize("channel", Channel)
def test_replies_are_padded_where_they_are_encrypted(channel: Channel) -> None:
    padded = [dns.edns.GenericOption(12, bytes(20))]
    for query in (
        question(use_edns=0),
        question(use_edns=0, options=padded),
        question("nothing.example.", use_edns=0, flags=0),
        question(rrtype="AXFR", use_edns=0),
        chaos("version.bind.", use_edns=0),
    ):
        wire = ask(service(chaos=ChaosSettings(version="x")), query, channel)
        dns.message.from_wire(wire)
        assert (len(wire) % BLOCK == 0) is channel.is_encrypted, query.to_text()
    assert len(ask(service(), question(use_edns=False), channel)) < BLOCK
    assert len(ask(service(padding=False), question(use_edns=0), channel)) < BLOCK


# Cookies in whole replies


def test_a_cookie_is_in_every_kind_of_reply() -> None:
    cookie = [dns.edns.GenericOption(10, bytes(8))]
    door = service(chaos=ChaosSettings(version="x"))
    for query in (
        question(use_edns=0, options=cookie),
        question("no.example.", use_edns=0, options=cookie, flags=0),
        question(rrtype="AXFR", use_edns=0, options=cookie),
        chaos("version.bind.", use_edns=0, options=cookie),
        chaos("other.bind.", use_edns=0, options=cookie),
    ):
        for channel in Channel:
            reply = dns.message.from_wire(ask(door, query, channel))
            assert 10 in [option.otype for option in reply.options], query.to_text()
    off = service(cookies=None)
    assert dns.message.from_wire(ask(off, question(use_edns=0, options=cookie))).options == ()


def test_a_truncated_reply_keeps_its_cookie() -> None:
    text = b"\xc8" + b"x" * 200
    door = service(rrset("big.example.", "TXT", 300, *(text + bytes((1, number)) for number in range(10))))
    query = question("big.example.", "TXT", use_edns=0, options=[dns.edns.GenericOption(10, bytes(8))], payload=4096)
    wire = ask(door, query)
    reply = dns.message.from_wire(wire, raise_on_truncation=False)
    assert reply.flags & dns.flags.TC
    assert [option.otype for option in reply.options] == [10]
    assert len(wire) <= MAX_UDP_PAYLOAD


# Access and rate


def test_denied_clients_are_refused_and_told_nothing() -> None:
    door = service(allow=["192.0.2.0/24"], deny=(ip_network("192.0.2.7"),), chaos=ChaosSettings(version="x"))
    assert dns.message.from_wire(ask(door, question(), client="192.0.2.8")).answer
    for query in (question(), chaos("version.bind.")):
        assert dns.message.from_wire(ask(door, query, client="192.0.2.7")).rcode() == dns.rcode.REFUSED
    assert door.statistics()["prohibited"] == 1


def test_the_rate_limit_is_for_udp_and_off_by_default() -> None:
    limit = RateLimit(rate=1.0, burst=3, slip=0, exempt=())
    door = service(rate_limit=limit)
    wire = question().to_wire()
    answered = [door.handle(wire, "127.0.0.1", Channel.UDP) for _ in range(10)]
    assert sum(answer is not None for answer in answered) == 3
    assert door.statistics()["limited_dropped"] == 7
    assert isinstance(door.handle(wire, "127.0.0.1", Channel.TCP), bytes)
    assert service().gate.limiter is None


# CHAOS


@pytest.mark.parametrize(
    ("name", "text"),
    [("version.bind.", "v 1"), ("VERSION.server.", "v 1"), ("hostname.bind.", "h"), ("id.SERVER.", "h")],
)
@pytest.mark.parametrize("rrtype", ["TXT", "ANY"])
def test_what_the_server_says_about_itself(name: str, text: str, rrtype: str) -> None:
    door = service(chaos=ChaosSettings(version="v 1", hostname="h"))
    for edns in (False, 0):
        reply = dns.message.from_wire(ask(door, chaos(name, rrtype, use_edns=edns)))
        assert reply.flags & dns.flags.AA
        (record,) = reply.answer
        assert (record.rdclass, record.rdtype, record.ttl) == (dns.rdataclass.CH, dns.rdatatype.TXT, 0)
        assert record[0].to_text() == f'"{text}"'
        assert record.name.to_text() == name, "case kept"
        assert reply.edns == (0 if edns == 0 and edns is not False else -1)


@pytest.mark.parametrize(("name", "rrtype"), [("version.bind.", "A"), ("authors.bind.", "TXT"), ("bind.", "TXT")])
def test_nothing_else_of_that_class_is_answered(name: str, rrtype: str) -> None:
    for door in (service(), service(chaos=ChaosSettings(version="v", hostname="h"))):
        assert dns.message.from_wire(ask(door, chaos(name, rrtype))).rcode() == dns.rcode.REFUSED
    assert dns.message.from_wire(ask(service(), chaos("version.bind."))).rcode() == dns.rcode.REFUSED
    quiet = service(chaos=ChaosSettings(version="v"))
    assert dns.message.from_wire(ask(quiet, chaos("id.server."))).rcode() == dns.rcode.REFUSED


def test_what_is_said_has_the_length_of_a_string() -> None:
    ChaosSettings(version="x" * 255)
    with pytest.raises(ConfigError, match="longer than 255 bytes"):
        ChaosSettings(hostname="é" * 128)


# Order, and what is added


def addresses_of(wire: bytes) -> list[str]:
    return [line.split()[-1] for line in texts(dns.message.from_wire(wire).answer)]


def test_records_keep_their_order_unless_it_is_to_rotate() -> None:
    fixed = service()
    first = addresses_of(ask(fixed, question()))
    assert all(addresses_of(ask(fixed, question())) == first for _ in range(5))
    turning = service(rotate=True)
    seen = [addresses_of(ask(turning, question())) for _ in range(4)]
    assert {answer[0] for answer in seen} == set(first)
    assert all(sorted(answer) == sorted(first) for answer in seen)
    assert addresses_of(ask(turning, question("first.example."))) == ["192.0.2.11"]


def test_addresses_are_added_only_when_asked_for_and_only_what_fits() -> None:
    query = question("example.", "MX")
    assert not dns.message.from_wire(ask(service(), query)).additional
    full = service(minimal=False)
    reply = dns.message.from_wire(ask(full, query))
    assert texts(reply.additional) == ["first.example. 100 IN A 192.0.2.11", "second.example. 100 IN AAAA ::1"]
    query.flags |= dns.flags.CD
    assert not dns.message.from_wire(ask(full, query)).additional, "nobody validated them"
    assert not dns.message.from_wire(ask(full, question())).additional
    many = [rrset("x.example.", "A", 100, *(bytes((192, 0, 2, host)) for host in range(40)))]
    crowded = service(rrset("example.", "MX", 300, b"\0\x0a\1x\7example\0"), *many, minimal=False)
    small = dns.message.from_wire(ask(crowded, question("example.", "MX", use_edns=False)))
    assert not small.flags & dns.flags.TC
    assert not small.additional


def test_targets_of_svcb_and_broken_rdata() -> None:
    https = pack(65, 300, [b"\0\1\0", b"\0\2\1x\7example\0", b"\0\3\xc0\x0c", b"\0\4\3ab", b"\0"])
    own = rrset("svc.example.", "A", 100, bytes(4))
    other = rrset("x.example.", "A", 100, bytes(4))
    base = rrset("svc.example.", "HTTPS", 300)._replace(rrs=https)
    wire = ask(service(base, own, other, minimal=False), question("svc.example.", "HTTPS"))
    assert wire[6:12] == bytes((0, 5, 0, 0, 0, 2))
