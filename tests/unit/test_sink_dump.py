"""The text for load_cache, byte by byte; what it says about trust and TTLs; what is refused."""

from __future__ import annotations

import pytest

from cachebus.answer import Answer, Evidence, RRset
from cachebus.errors import MessageError
from cachebus.presentation import name_from_text
from cachebus.unbound.dump import MAX_LINE, Entry, Security, compose, dump, name_text, security_of
from cachebus.wire import rrtypes
from cachebus.wire.message import pack

NOW = 1_800_000_000.0
SIG = pack(rrtypes.RRSIG, 0, [b"\0\1\x0d\2" + bytes(14) + b"\4test\0" + b"signature"])


def name(text: str) -> bytes:
    return name_from_text(text)


def rrset(owner: str, rrtype: int, *rdatas: bytes, ttl: int = 300, sigs: bytes = b"") -> RRset:
    return RRset(name(owner), rrtype, ttl, pack(rrtype, 7, rdatas), sigs)


def answer(
    qname: str, qtype: int, *rrsets: RRset, evidence: Evidence = Evidence.CONFIRMED, validating: bool = False
) -> Answer:
    return Answer(name(qname), qtype, rrsets, evidence, "node-a", NOW, validating, "lan", "key")


WWW = rrset("www.test", rrtypes.A, b"\xc0\0\2\1", b"\xc0\0\2\2")


def test_an_address_byte_by_byte() -> None:
    entry = compose(answer("www.test", rrtypes.A, WWW), NOW + 10.5)
    assert entry is not None
    assert dump([entry]) == (
        b"START_RRSET_CACHE\n"
        b";rrset 289 2 0 5 0\n"
        b"www.test. 289 IN TYPE1 \\# 4 c0000201\n"
        b"www.test. 289 IN TYPE1 \\# 4 c0000202\n"
        b"END_RRSET_CACHE\n"
        b"START_MSG_CACHE\n"
        b"msg www.test. IN TYPE1 32896 1 289 0 1 0 0 -1\n"
        b"www.test. IN TYPE1 0\n"
        b"END_MSG_CACHE\n"
        b"EOF\n"
    )
    assert entry.size == len(entry.rrsets) + len(entry.messages)


def test_a_chain_has_a_message_for_every_owner_and_the_smallest_ttl_that_it_needs() -> None:
    alias = rrset("a.test", rrtypes.CNAME, name("www.test"), ttl=60)
    entry = compose(answer("a.test", rrtypes.A, alias, WWW), NOW)
    assert entry is not None
    assert entry.messages == (
        "msg a.test. IN TYPE1 32896 1 60 0 2 0 0 -1\na.test. IN TYPE5 0\nwww.test. IN TYPE1 0\n"
        "msg www.test. IN TYPE1 32896 1 300 0 1 0 0 -1\nwww.test. IN TYPE1 0\n"
    )


def test_a_dname_stands_before_its_cname_and_has_no_message_of_its_own() -> None:
    chain = (
        rrset("d.test", rrtypes.DNAME, name("e.test")),
        rrset("x.d.test", rrtypes.CNAME, name("x.e.test")),
        rrset("x.e.test", rrtypes.A, bytes(4)),
    )
    entry = compose(answer("x.d.test", rrtypes.A, *chain), NOW)
    assert entry is not None
    assert [line for line in entry.messages.splitlines() if line.startswith("msg")] == [
        "msg x.d.test. IN TYPE1 32896 1 300 0 3 0 0 -1",
        "msg x.e.test. IN TYPE1 32896 1 300 0 1 0 0 -1",
    ]


def test_no_message_is_made_for_a_target_that_the_resolver_holds() -> None:
    alias = rrset("a.test", rrtypes.CNAME, name("www.test"))
    asked = []

    def held(qname: bytes, qtype: int) -> bool:
        asked.append((qname, qtype))
        return True

    entry = compose(answer("a.test", rrtypes.A, alias, WWW), NOW, held)
    assert entry is not None
    assert entry.messages.count("msg ") == 1
    assert asked == [(name("www.test"), rrtypes.A)]


def test_rrsigs_are_lines_of_their_rrset() -> None:
    entry = compose(answer("www.test", rrtypes.A, WWW._replace(sigs=SIG), evidence=Evidence.VALIDATED), NOW)
    assert entry is not None
    lines = entry.rrsets.splitlines()
    assert lines[0] == ";rrset 300 2 1 5 5"
    assert lines[3].startswith("www.test. 300 IN TYPE46 \\# 33 00010d02")
    assert entry.messages.startswith("msg www.test. IN TYPE1 32896 1 300 5 1 0 0 -1\n")


@pytest.mark.parametrize(
    ("evidence", "validating", "sigs", "security"),
    [
        (Evidence.VALIDATED, True, SIG, Security.SECURE),
        (Evidence.VALIDATED, False, SIG, Security.SECURE),
        (Evidence.VALIDATED, True, b"", Security.UNCHECKED),
        (Evidence.CONFIRMED, True, b"", Security.INSECURE),
        (Evidence.CONFIRMED, True, SIG, Security.UNCHECKED),
        (Evidence.CONFIRMED, False, b"", Security.UNCHECKED),
        (Evidence.AUTHORITATIVE, True, b"", Security.UNCHECKED),
        (Evidence.AUTHORITATIVE, True, SIG, Security.UNCHECKED),
    ],
)
def test_security(evidence: Evidence, validating: bool, sigs: bytes, security: Security) -> None:
    told = answer("www.test", rrtypes.A, WWW._replace(sigs=sigs), evidence=evidence, validating=validating)
    assert security_of(told) is security
    entry = compose(told, NOW)
    assert entry is not None
    assert entry.rrsets.startswith(f";rrset 300 2 {1 if sigs else 0} 5 {security:d}\n")
    assert f" 300 {security:d} 1 0 0 -1\n" in entry.messages


def test_a_synthesised_cname_needs_no_rrsig_but_every_other_one_does() -> None:
    dname = rrset("d.test", rrtypes.DNAME, name("e.test"), sigs=SIG)
    cname = rrset("x.d.test", rrtypes.CNAME, name("x.e.test"))
    end = rrset("x.e.test", rrtypes.A, bytes(4), sigs=SIG)
    whole = answer("x.d.test", rrtypes.A, dname, cname, end, evidence=Evidence.VALIDATED)
    assert security_of(whole) is Security.SECURE
    assert security_of(whole._replace(rrsets=(dname._replace(sigs=b""), cname, end))) is Security.UNCHECKED
    assert security_of(whole._replace(rrsets=(cname, end))) is Security.UNCHECKED


@pytest.mark.parametrize(
    ("after", "expected"), [(0, 300), (299, 1), (299.01, None), (300, None), (1e9, None), (-50, 300)]
)
def test_ttl_is_what_is_left_and_never_grows(after: float, expected: int | None) -> None:
    entry = compose(answer("www.test", rrtypes.A, WWW), NOW + after)
    assert (entry is None) == (expected is None)
    if entry is not None:
        assert entry.rrsets.startswith(f";rrset {expected} ")


def test_the_same_record_twice_is_one() -> None:
    entry = compose(answer("www.test", rrtypes.A, rrset("www.test", rrtypes.A, bytes(4), bytes(4))), NOW)
    assert entry is not None
    assert entry.rrsets == ";rrset 300 1 0 5 0\nwww.test. 300 IN TYPE1 \\# 4 00000000\n"


def test_names_hold_nothing_but_plain_letters_and_escapes() -> None:
    assert name_text(b"\0") == "."
    assert (
        name_text(b'\x03a-_\x0b\n" ;\\.\0\xff*$(\0') == "a-_.\\010\\034\\032\\059\\092\\046\\000\\255\\042\\036\\040."
    )
    for byte in range(256):
        text = name_text(bytes([1, byte, 0]))
        assert text == f"{chr(byte)}." if (chr(byte).isalnum() and byte < 128) or byte in b"-_" else f"\\{byte:03d}."


@pytest.mark.parametrize("wire", [b"", b"\1a", b"\1a\0\0", b"\xc0\x0c", b"\x40" + bytes(65), b"\1a" * 127 + b"\1a\0"])
def test_what_is_no_name_is_refused(wire: bytes) -> None:
    with pytest.raises(MessageError):
        name_text(wire)


def _chain_of(*rrsets: RRset) -> Answer:
    return answer("a.test", rrtypes.A, *rrsets)


_ALIAS = rrset("a.test", rrtypes.CNAME, name("www.test"))


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(_chain_of(), id="nothing"),
        pytest.param(_chain_of(_ALIAS), id="no end"),
        pytest.param(_chain_of(WWW), id="another owner"),
        pytest.param(_chain_of(WWW, _ALIAS), id="another order"),
        pytest.param(_chain_of(_ALIAS, WWW, WWW), id="more than the chain"),
        pytest.param(_chain_of(_ALIAS, rrset("www.test", rrtypes.AAAA, bytes(16))), id="another type"),
        pytest.param(
            _chain_of(_ALIAS, rrset("www.test", rrtypes.CNAME, name("a.test")), _ALIAS), id="loop"
        ),
        pytest.param(_chain_of(rrset("test", rrtypes.DNAME, name("b")), WWW), id="dname without cname"),
        pytest.param(_chain_of(rrset("a.test", rrtypes.DNAME, name("b")), _ALIAS, WWW), id="dname at the name itself"),
        pytest.param(_chain_of(rrset("b.test", rrtypes.DNAME, name("b")), _ALIAS, WWW), id="dname elsewhere"),
        pytest.param(_chain_of(rrset("test", rrtypes.DNAME, name("b"))), id="dname alone"),
    ],
)  # fmt: skip
def test_what_is_no_chain_is_refused(bad: Answer) -> None:
    with pytest.raises(MessageError):
        compose(bad, NOW)


@pytest.mark.parametrize(
    ("rrtype", "rdata"),
    [
        (rrtypes.A, b""),
        (rrtypes.A, bytes(3)),
        (rrtypes.AAAA, bytes(4)),
        (rrtypes.MX, b"\0\n"),
        (rrtypes.MX, b"\0\n\5A"),
        (rrtypes.MX, b"\0\n\1a\0x"),
        (rrtypes.PTR, b"\xc0\0"),
        (rrtypes.PTR, b"\1a\0\xc0\0"),
        (rrtypes.SRV, bytes(6)),
        (rrtypes.SOA, bytes(3)),
        (65400, bytes(MAX_LINE // 2)),
    ],
)
def test_rdata_that_its_type_cannot_have_is_refused(rrtype: int, rdata: bytes) -> None:
    # Unbound 1.17.1 loads each of the short ones and answers clients with malformed messages.
    with pytest.raises(MessageError):
        compose(answer("www.test", rrtype, rrset("www.test", rrtype, rdata)), NOW)


@pytest.mark.parametrize(
    "packed",
    [
        b"\xc0",
        b"\xc0\x0c\0\1\0\1\0\0\0\0\0",
        b"\xc0\x0c\0\1\0\1\0\0\0\0\0\5\0\0\0\0",
        b"\xc0\x0d\0\1\0\1\0\0\0\0\0\4\0\0\0\0",
        b"\xc0\x0c\0\2\0\1\0\0\0\0\0\4\0\0\0\0",
        b"\xc0\x0c\0\1\0\3\0\0\0\0\0\4\0\0\0\0",
        b"",
    ],
)
def test_what_is_no_packed_record_is_refused(packed: bytes) -> None:
    with pytest.raises(MessageError):
        compose(answer("www.test", rrtypes.A, WWW._replace(rrs=packed)), NOW)


def test_an_empty_dump_is_still_a_dump() -> None:
    assert dump(()) == b"START_RRSET_CACHE\nEND_RRSET_CACHE\nSTART_MSG_CACHE\nEND_MSG_CACHE\nEOF\n"
    assert dump([Entry("r\n", "m\n")]).count(b"\n") == 7
