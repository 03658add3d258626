"""Client messages on the wire: what is a question, what is refused with which RCODE, what gets silence."""

from __future__ import annotations

import dns.edns
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.tsigkeyring
import pytest

from cachebus.shim.query import Drop, Edns, Error, Query, parse_query
from cachebus.shim.reply import compose_error
from cachebus.wire.message import BADVERS, FORMERR, NOTIMP, REFUSED

HEADER = bytes.fromhex("abcd01000001000000000000")
QUESTION = b"\3WwW\7example\0\0\1\0\1"
OPT = bytes.fromhex("00002904d000000000 0000")


def with_opt(opt: bytes, count: int = 1) -> bytes:
    return HEADER[:10] + count.to_bytes(2, "big") + QUESTION + opt


def test_a_plain_question_byte_by_byte() -> None:
    query = parse_query(HEADER + QUESTION)
    assert query == Query(b"\xab\xcd", 0x0100, QUESTION, b"\3www\7example\0", 1, None)
    assert isinstance(query, Query)
    assert (query.do, query.wants_ad, query.checking_disabled, query.recursion_desired) == (False, False, False, True)


def test_edns_of_a_dnspython_query() -> None:
    message = dns.message.make_query(
        "example.", "AAAA", use_edns=0, payload=4096, want_dnssec=True, options=[dns.edns.GenericOption(65001, b"x")]
    )
    message.flags = dns.flags.RD | dns.flags.CD | dns.flags.AD
    query = parse_query(message.to_wire())
    assert isinstance(query, Query)
    assert query.edns == Edns(4096, do=True, options=b"\xfd\xe9\0\1x")
    assert (query.do, query.wants_ad, query.checking_disabled, query.qtype) == (True, True, True, 28)


def test_small_payloads_count_as_512() -> None:
    query = parse_query(with_opt(bytes.fromhex("0000290000000000000000")))
    assert isinstance(query, Query)
    assert query.edns == Edns(512, do=False)


@pytest.mark.parametrize("length", range(12))
def test_less_than_a_header_is_dropped(length: int) -> None:
    assert parse_query((HEADER + QUESTION)[:length]) is Drop.SHORT


def test_a_response_is_dropped() -> None:
    assert parse_query(b"\xab\xcd\x81\0" + (HEADER + QUESTION)[4:]) is Drop.RESPONSE


@pytest.mark.parametrize("opcode", [1, 2, 4, 5, 6, 15])
def test_other_opcodes_are_not_implemented(opcode: int) -> None:
    wire = b"\xab\xcd" + bytes((opcode << 3, 0)) + (HEADER + QUESTION)[4:]
    error = parse_query(wire)
    assert isinstance(error, Error)
    assert error.rcode == NOTIMP
    reply = dns.message.from_wire(compose_error(error))
    assert (reply.id, reply.opcode(), reply.rcode()) == (0xABCD, opcode, NOTIMP)
    assert reply.flags & dns.flags.QR


@pytest.mark.parametrize(
    ("what", "wire"),
    [
        ("no question", HEADER[:4] + bytes(8)),
        ("two questions", HEADER[:4] + b"\0\2" + HEADER[6:] + QUESTION * 2),
        ("an answer record", HEADER[:4] + b"\0\1\0\1\0\0\0\0" + QUESTION + b"\xc0\x0c\0\1\0\1\0\0\0\0\0\4\1\2\3\4"),
        ("an authority record", HEADER[:4] + b"\0\1\0\0\0\1\0\0" + QUESTION + b"\xc0\x0c\0\1\0\1\0\0\0\0\0\4\1\2\3\4"),
        ("bytes after the question", HEADER + QUESTION + b"\0"),
        ("the question cut short", HEADER + QUESTION[:-1]),
        ("a name without end", HEADER + b"\3www"),
        ("a pointer to itself", HEADER + b"\xc0\x0c\0\1\0\1"),
        ("a label of unknown form", HEADER + b"\x43www\0\0\1\0\1"),
        ("a name of 256 bytes", HEADER + (b"\x3f" + b"a" * 63) * 4 + b"\0\0\1\0\1"),
        ("type 0", HEADER + b"\0\0\0\0\1"),
        ("type OPT", HEADER + b"\0\0\x29\0\1"),
        ("type TSIG", HEADER + b"\0\0\xfa\0\1"),
        ("type TKEY", HEADER + b"\0\0\xf9\0\1"),
        ("a reserved meta type", HEADER + b"\0\0\x80\0\1"),
        ("two OPT", with_opt(OPT + OPT, 2)),
        ("OPT with an owner", with_opt(b"\1a" + OPT)),
        ("OPT cut short", with_opt(OPT[:-1])),
        ("OPT whose options run over", with_opt(OPT[:-2] + b"\0\4\0\x0a\0\1")),
        ("three additional records", with_opt(OPT + OPT + OPT, 3)),
        ("bytes after OPT", with_opt(OPT + b"\0")),
        ("an OPT announced and missing", with_opt(b"")),
        ("a broken TSIG", with_opt(b"\1k\0\0\xfa\0\xff\0\0\0\0\0\2\0\0")),
    ],
)
def test_malformed_messages_get_formerr(what: str, wire: bytes) -> None:
    error = parse_query(wire)
    assert isinstance(error, Error), what
    assert error.rcode == FORMERR, what
    reply = dns.message.from_wire(compose_error(error))
    assert (reply.id, reply.rcode()) == (0xABCD, FORMERR), what


@pytest.mark.parametrize("qtype", ["AXFR", "IXFR"])
def test_zone_transfers_are_refused(qtype: str) -> None:
    error = parse_query(dns.message.make_query("example.", qtype).to_wire())
    assert isinstance(error, Error)
    assert error.rcode == REFUSED
    assert dns.message.from_wire(compose_error(error)).question[0].name == dns.name.from_text("example.")


@pytest.mark.parametrize("qclass", ["CH", "HS", "ANY", "NONE"])
def test_other_classes_are_refused(qclass: str) -> None:
    error = parse_query(dns.message.make_query("version.bind.", "TXT", qclass).to_wire())
    assert isinstance(error, Error)
    assert error.rcode == REFUSED


def test_a_newer_edns_version_gets_badvers_with_ours() -> None:
    message = dns.message.make_query("example.", "A", use_edns=1, payload=1232)
    error = parse_query(message.to_wire())
    assert isinstance(error, Error)
    assert error.rcode == BADVERS
    reply = dns.message.from_wire(compose_error(error))
    assert reply.rcode() == dns.rcode.BADVERS
    assert (reply.edns, reply.payload) == (0, 1232)


def test_a_signed_query_gets_badkey_and_no_answer() -> None:
    message = dns.message.make_query("example.", "A")
    message.use_tsig(dns.tsigkeyring.from_text({"some.key.": "AAECAwQFBgcICQoLDA0ODw=="}), algorithm="hmac-sha256")
    wire = message.to_wire()
    error = parse_query(wire)
    assert isinstance(error, Error)
    reply = compose_error(error)
    parsed = dns.message.from_wire(reply, ignore_trailing=False, keyring=False)
    assert parsed.rcode() == dns.rcode.NOTAUTH
    assert parsed.tsig is not None
    tsig = parsed.tsig[0]
    assert (tsig.error, tsig.mac, tsig.original_id) == (dns.rcode.BADKEY, b"", message.id)
    assert parsed.tsig.name == dns.name.from_text("some.key.")


def test_the_largest_name_is_taken() -> None:
    name = (b"\x3f" + b"a" * 63) * 3 + b"\x3d" + b"b" * 61 + b"\0"
    query = parse_query(HEADER + name + b"\0\1\0\1")
    assert len(name) == 255
    assert isinstance(query, Query)
    assert query.qname == name


@pytest.mark.parametrize("opcode", [dns.opcode.NOTIFY, dns.opcode.UPDATE])
def test_notify_and_update_are_not_implemented(opcode: dns.opcode.Opcode) -> None:
    message = dns.message.make_query("example.", "SOA")
    message.set_opcode(opcode)
    error = parse_query(message.to_wire())
    assert isinstance(error, Error)
    assert error.rcode == NOTIMP
