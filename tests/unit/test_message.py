"""The message walk, byte by byte."""

from __future__ import annotations

import time

import dns.flags
import dns.message
import dns.rrset
import pytest

from cachebus.answer import RRset
from cachebus.errors import MessageError
from cachebus.presentation import name_from_text
from cachebus.wire import rrtypes
from cachebus.wire.message import (
    AA,
    QR,
    canonical_rdata,
    cname_target,
    compose,
    first_question,
    pack,
    parse,
    records,
    rrsig_fields,
    same_data,
)
from cachebus.wire.name import MAX_POINTERS, ancestors, is_at_or_below, label_count, parent, read_name, skip_name
from tests.core_bed import rdata, read, rrset, rrsig

HEADER = bytes.fromhex("1234 8400 0001 0001 0000 0000")
QUESTION = b"\x03www\x07example\x04test\0\0\x01\0\x01"
RECORD = b"\xc0\x0c\0\x01\0\x01\0\0\x01\x2c\0\x04\xc0\0\x02\x01"


def test_a_message_byte_by_byte() -> None:
    message = parse(HEADER + QUESTION + RECORD)
    assert (message.id, message.flags, message.rcode) == (0x1234, QR | AA, 0)
    assert (message.qname, message.qtype, message.qclass) == (b"\x03www\x07example\x04test\0", 1, 1)
    assert message.question == QUESTION
    assert message.answer == (RRset(b"\x03www\x07example\x04test\0", 1, 300, RECORD),)
    assert message.authority == message.additional == ()
    assert message.opt is None
    assert not message.tsig


def test_every_cut_is_an_error() -> None:
    wire = HEADER + QUESTION + RECORD
    for end in range(len(wire)):
        with pytest.raises(MessageError):
            parse(wire[:end])
    with pytest.raises(MessageError, match="after the last"):
        parse(wire + b"\0")


def test_thousands_of_records_in_one_rrset_cost_no_more_than_as_many_rrsets() -> None:
    """Anybody's server can send a resolver 64 KiB of one RRset."""

    def cost(count: int) -> float:
        body = b"".join(RECORD[:-4] + number.to_bytes(4, "big") for number in range(count))
        wire = HEADER[:6] + count.to_bytes(2, "big") + HEADER[8:] + QUESTION + body
        best = 1e9
        for _ in range(5):
            begun = time.process_time()
            assert len(parse(wire).answer[0].rrs) == 16 * count
            best = min(best, time.process_time() - begun)
        return best / count

    assert cost(4000) < 6 * cost(250)


def test_compose_is_what_parse_reads() -> None:
    www = RRset(b"\x03www\x07example\x04test\0", 1, 300, RECORD)
    assert compose(0x1234, QR | AA, www.owner, 1, [(www, 300)]) == HEADER + QUESTION + RECORD
    aged = compose(0x1234, QR | AA, www.owner, 1, [(www, 7)])
    assert parse(aged).answer[0].ttl == 7


def test_0x20_case_does_not_reach_rdata_through_pointers() -> None:
    question = b"\x03wWw\x07ExAmPlE\x04tEsT\0\0\x05\0\x01"
    # CNAME target: "x" and a pointer to "ExAmPlE.tEsT" in the question.
    record = b"\xc0\x0c\0\x05\0\x01\0\0\x01\x2c\0\x04\x01X\xc0\x10"
    message = parse(HEADER + question + record)
    assert message.question == question
    assert records(message.answer[0].rrs)[0][2] == b"\x01X\x07example\x04test\0"


@pytest.mark.parametrize(
    "pointer",
    [b"\xc0\x21", b"\xc0\xff", b"\xc0\x00", b"\xc0\x0b"],
    ids=["itself", "forward", "into the header", "last byte of the header"],
)
def test_pointers_that_do_not_lead_back(pointer: bytes) -> None:
    wire = HEADER + QUESTION + pointer + RECORD[2:]
    with pytest.raises(MessageError):
        parse(wire)


def test_a_pointer_loop_ends() -> None:
    loop = bytes(12) + b"\x01a\xc0\x0e\x01b\xc0\x0c"
    with pytest.raises(MessageError):
        read_name(loop, 16, len(loop))


def test_pointers_to_pointers_are_followed_a_few_times_only() -> None:
    # 12: the root, then pointers, each to the one before it.
    wire = bytes(13) + b"".join((0xC000 | max(11 + 2 * step, 12)).to_bytes(2, "big") for step in range(8000))
    read_name(wire, 13 + 2 * (MAX_POINTERS - 1), len(wire))
    for at in (13 + 2 * MAX_POINTERS, len(wire) - 2):
        with pytest.raises(MessageError, match="compressed too often"):
            read_name(wire, at, len(wire))


def test_a_name_longer_than_255_through_pointers() -> None:
    # 4 labels of 63 make 256 with the root; spread over two pieces, joined by a pointer.
    first = (b"\x3f" + b"a" * 63) * 3 + b"\0"
    wire = bytes(12) + first + b"\x3e" + b"b" * 62 + b"\xc0\x0c"
    with pytest.raises(MessageError, match="longer than 255"):
        read_name(wire, 12 + len(first), len(wire))
    wire = bytes(12) + first + b"\x3d" + b"b" * 61 + b"\xc0\x0c"
    assert len(read_name(wire, 12 + len(first), len(wire))[0]) == 255


def test_records_are_grouped_and_signatures_attached() -> None:
    message = dns.message.make_response(dns.message.make_query("www.example.test", "A"))
    for owner, rrtype, *texts in (
        ("www.example.test.", "CNAME", "web.example.test."),
        ("web.example.test.", "A", "192.0.2.1", "192.0.2.2"),
    ):
        message.answer.append(dns.rrset.from_text(owner, 60, "IN", rrtype, *texts))
    message.answer.append(
        dns.rrset.from_text(
            "web.example.test.", 60, "IN", "RRSIG", "A 13 3 60 20300101000000 20200101000000 7 example.test. AAAA"
        )
    )
    parsed = parse(message.to_wire())
    assert [(each.owner, each.type) for each in parsed.answer] == [
        (name_from_text("www.example.test"), rrtypes.CNAME),
        (name_from_text("web.example.test"), rrtypes.A),
    ]
    assert cname_target(parsed.answer[0]) == name_from_text("web.example.test")
    assert sorted(rdata for _, _, rdata in records(parsed.answer[1].rrs)) == [b"\xc0\0\2\1", b"\xc0\0\2\2"]
    assert rrsig_fields(records(parsed.answer[1].sigs)[0][2]).key_tag == 7


def test_a_top_bit_ttl_is_zero() -> None:
    wire = HEADER + QUESTION + RECORD[:6] + b"\x80\0\0\x01" + RECORD[10:]
    assert parse(wire).answer[0].ttl == 0


def test_the_same_record_twice_is_one() -> None:
    wire = HEADER[:6] + b"\0\2" + HEADER[8:] + QUESTION + RECORD + RECORD
    assert parse(wire).answer[0].rrs == RECORD


def test_another_class_is_left_out_and_counted() -> None:
    wire = HEADER + QUESTION + RECORD[:4] + b"\0\3" + RECORD[6:]
    message = parse(wire)
    assert message.answer == ()
    assert message.other_class == 1


@pytest.mark.parametrize("length", [0, 3, 5, 16])
def test_an_address_of_another_length(length: int) -> None:
    wire = HEADER + QUESTION + RECORD[:10] + length.to_bytes(2, "big") + bytes(length)
    with pytest.raises(MessageError, match="wrong length"):
        parse(wire)


@pytest.mark.parametrize("signer", [b"\xc0\x0c", b"\xc1\0", b"\1x\xc1\0", b""])
def test_a_signer_that_is_compressed_or_missing(signer: bytes) -> None:
    # A name at offset 256, for a pointer that ends in the byte that ends an uncompressed name.
    room = 256 - len(HEADER + QUESTION) - 12
    filler = b"\xc0\x0c\0\x10\0\1\0\0\0\0" + room.to_bytes(2, "big") + bytes(room)
    middle = filler + b"\4test\0\0\x10\0\1\0\0\0\0\0\1\0"
    rdata = bytes(18) + signer
    sig = b"\xc0\x0c\0\x2e\0\1\0\0\0\x3c" + len(rdata).to_bytes(2, "big") + rdata
    wire = HEADER[:6] + b"\0\3" + HEADER[8:] + QUESTION + middle + sig
    assert wire.index(b"\4test\0\0\x10") == 256
    with pytest.raises(MessageError, match=r"signer|past its end"):
        parse(wire)


def test_opt_gives_version_do_and_the_upper_rcode() -> None:
    header = HEADER[:6] + b"\0\0\0\0\0\1"
    opt = b"\0\0\x29\x04\xd0\x01\x02\x80\x00\0\x04\0\x0a\0\0"
    message = parse(header + QUESTION + opt)
    assert message.rcode == 0x10
    assert message.opt is not None
    assert (message.opt.payload, message.opt.version, message.opt.do, message.opt.options) == (
        1232, 2, True, b"\0\x0a\0\0",
    )  # fmt: skip
    with pytest.raises(MessageError, match="OPT"):
        parse(header[:11] + b"\2" + QUESTION + opt + opt)


@pytest.mark.parametrize(
    ("rrtype", "text"),
    [
        ("MX", "10 Mail.Example.TEST."), ("SRV", "1 2 53 Ns.Example.TEST."), ("NS", "Ns.Example.TEST."),
        ("SOA", "Ns.Example.TEST. Root.Example.TEST. 1 2 3 4 5"), ("DNAME", "Other.TEST."), ("PTR", "A.TEST."),
        ("NAPTR", '10 20 "S" "SIP+D2U" "" _Sip.Example.TEST.'), ("RP", "A.TEST. B.TEST."), ("KX", "1 A.TEST."),
        ("TXT", '"Keep CASE"'), ("HTTPS", "1 . alpn=h2"), ("AAAA", "2001:db8::1"),
    ],
)  # fmt: skip
def test_names_in_rdata_are_lowered_in_canonical_form_only(rrtype: str, text: str) -> None:
    plain = rdata(rrtype, text)
    canonical = canonical_rdata(rrtypes.__dict__.get(rrtype, 0) or rrset("x.test", rrtype, text).type, plain)
    assert canonical == rdata(rrtype, text if rrtype in ("TXT", "HTTPS", "AAAA") else _lowered(rrtype, text))


def _lowered(rrtype: str, text: str) -> str:
    if rrtype == "NAPTR":
        return text.replace("_Sip.Example.TEST.", "_sip.example.test.")
    return text.lower()


def test_compressed_rdata_is_expanded() -> None:
    message = dns.message.make_response(dns.message.make_query("example.test", "MX"))
    message.answer.append(dns.rrset.from_text("example.test.", 60, "IN", "MX", "10 mail.example.test."))
    wire = message.to_wire()
    assert b"\x04mail\xc0\x0c" in wire
    assert records(parse(wire).answer[0].rrs)[0][2] == rdata("MX", "10 mail.example.test.")


def test_same_data_ignores_order_case_and_ttl() -> None:
    one = rrset("example.test", "MX", "10 a.test.", "20 b.test.", ttl=60)
    other = rrset("example.test", "MX", "20 B.test.", "10 A.test.", ttl=5)
    assert same_data(one, other)
    assert not same_data(one, rrset("example.test", "MX", "10 a.test.", "20 c.test."))
    assert not same_data(one, rrset("example.test", "MX", "10 a.test."))


def test_a_composed_chain_reads_the_same_with_and_without_question() -> None:
    chain = (
        rrset("alias.example.test", "CNAME", "www.example.test."),
        rrset("www.example.test", "A", "192.0.2.1", "192.0.2.2", sigs=rrsig("www.example.test", "A")),
    )
    for question in (True, False):
        wire = compose(7, QR | AA, chain[0].owner, 1, [(each, 60) for each in chain], question=question)
        assert [each._replace(ttl=0) for each in parse(wire).answer] == [
            each._replace(ttl=0, rrs=each.rrs.replace(b"\0\0\x01\x2c", b"\0\0\0\x3c", 2),
                          sigs=each.sigs[:6] + b"\0\0\0\x3c" + each.sigs[10:] if each.sigs else b"")
            for each in chain
        ]  # fmt: skip
        assert len(read(wire).question) == question
        assert len(read(wire).answer) == 3


def test_pack_and_records_are_inverse() -> None:
    datas = [b"", b"a", b"\xc0\x0c" * 100]
    assert [rdata for _, _, rdata in records(pack(16, 5, datas))] == datas


def test_first_question() -> None:
    assert first_question(HEADER + QUESTION) == (b"\x03www\x07example\x04test\0", 1, 1, 12 + len(QUESTION))
    with pytest.raises(MessageError):
        first_question(HEADER[:4] + b"\0\0" + HEADER[6:] + QUESTION)


def test_names_stand_above_and_below_by_label() -> None:
    www, example = name_from_text("www.example.test"), name_from_text("example.test")
    assert is_at_or_below(www, example)
    assert is_at_or_below(example, example)
    assert not is_at_or_below(example, www)
    assert not is_at_or_below(name_from_text("badexample.test"), example)
    assert is_at_or_below(www, b"\0")
    # A label that ends in what looks like the ancestor: suffix of bytes, not of labels.
    assert not is_at_or_below(b"\x0eab\x07example\x04tes\x04test\0", name_from_text("example.tes"))
    assert not is_at_or_below(b"\x05a\x04test\0", b"\x04test\0")
    assert parent(www) == example
    assert list(ancestors(example)) == [example, name_from_text("test"), b"\0"]
    assert label_count(www) == 3
    assert skip_name(HEADER + QUESTION, 12, 12 + len(QUESTION)) == 12 + len(QUESTION) - 4
