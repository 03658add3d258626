"""Codec `dns`: what we send, what we take (trust rules 5 and 6)."""

from __future__ import annotations

from collections.abc import Sequence

import dns.flags
import dns.message
import dns.rrset
import pytest

from cachebus.answer import Answer, Evidence, Refusal, RRset
from cachebus.codecs.dns import OFFSET_WINDOW, DnsCodec, DnsCodecSettings, QuestionMode
from cachebus.presentation import name_from_text
from cachebus.wire.message import AA, AD, QR, compose, pack, parse
from cachebus.wire.tsig import Key, Signer
from tests.core_bed import KEY_NAME, NOW, SECRET, address, answer, key, keyring, rrset, rrsig

PEER = ("192.0.2.11", 5390)


def codec(with_key: Key | None = None, **more: object) -> DnsCodec:
    return DnsCodec(
        DnsCodecSettings(transport="lan", key=with_key or key(), **more),  # type: ignore[arg-type]
        start=None,
    )


def sent(given: Answer, now: float = NOW, **more: object) -> bytes:
    messages, refusals = codec(**more).encode([given], now)
    assert not refusals
    return messages[0]


def taken(data: bytes, now: float = NOW, **more: object) -> Sequence[Answer] | Refusal:
    return codec(**more).decode(data, PEER, now)


def one(data: bytes, now: float = NOW, **more: object) -> Answer:
    found = taken(data, now, **more)
    assert not isinstance(found, Refusal), found
    assert len(found) == 1
    return found[0]


def signed(message: bytes, now: float = NOW) -> bytes:
    return Signer(key()).sign(message, now)[0]


CHAIN = (rrset("alias.example.com", "CNAME", "www.example.com."), rrset("www.example.com", "A", "192.0.2.1"))


def test_what_is_sent_is_a_new_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: NOW)
    data = sent(answer(*CHAIN))
    message = dns.message.from_wire(data, keyring=keyring())
    assert message.had_tsig
    assert dns.flags.to_text(message.flags) == "QR AA"
    assert message.rcode() == 0
    assert message.edns == -1
    assert message.question[0].to_text() == "alias.example.com. IN A"
    assert [each.to_text() for each in message.answer] == [
        "alias.example.com. 300 IN CNAME www.example.com.", "www.example.com. 300 IN A 192.0.2.1",
    ]  # fmt: skip
    assert not message.authority
    assert not message.additional
    ids = {parse(sent(address())).id for _ in range(20)}
    assert len(ids) > 10


def test_ad_only_for_validated_and_then_no_aa() -> None:
    www = rrset("www.example.com", "A", "192.0.2.1", sigs=rrsig("www.example.com", "A"))
    assert parse(sent(answer(www, evidence=Evidence.VALIDATED))).flags == QR | AD
    assert parse(sent(answer(www, evidence=Evidence.CONFIRMED))).flags == QR | AA


def test_ttls_are_aged_on_both_sides() -> None:
    data = sent(address(ttl=300), NOW + 100.5)
    # Counted from the second of signing, as the receiver does: 100.5 s after learning are 99.75 s at that second.
    assert parse(data).answer[0].ttl == 200
    got = one(data, NOW + 130)
    assert (got.learned, got.ttl) == (int(NOW + 100.5), 200)
    assert got.learned + got.ttl <= NOW + 300


def test_what_has_died_while_it_waited_is_not_sent() -> None:
    given = address(ttl=30)
    assert codec().encode([given], NOW + 31) == ([], [(given, Refusal.EXPIRED)])


def test_a_message_from_the_future_does_not_grow() -> None:
    got = one(sent(address(), NOW + 200), NOW)
    assert got.learned == NOW


def test_larger_than_a_datagram_is_counted() -> None:
    big = answer(rrset("big.example.com", "TXT", *(f'"{"x" * 200}{n}"' for n in range(8))))
    assert codec().encode([big, address()], NOW)[1] == [(big, Refusal.OVERSIZE)]
    assert len(sent(big, max_message=4096)) < 4096


def test_the_round_trip_keeps_everything() -> None:
    given = answer(*CHAIN)
    got = one(sent(given))
    assert (got.qname, got.qtype, got.rrsets) == (given.qname, given.qtype, given.rrsets)
    assert (got.evidence, got.origin, got.transport, got.signer) == (
        Evidence.AUTHORITATIVE, "192.0.2.11", "lan", KEY_NAME,
    )  # fmt: skip


def test_without_a_question_and_with_a_dummy_one() -> None:
    for data in (
        sent(answer(*CHAIN), question=QuestionMode.OMIT),
        signed(compose(1, QR | AA, name_from_text("dummy.invalid"), 16, [(each, 300) for each in CHAIN])),
    ):
        got = one(data)
        assert (got.name, got.type) == ("alias.example.com.", "A")
        assert got.rrsets == CHAIN


def test_unrelated_rrsets_under_a_dummy_question_are_taken_under_their_own_names() -> None:
    pair = (rrset("a.example.com", "A", "192.0.2.1"), rrset("b.example.com", "TXT", '"x"'))
    found = taken(signed(compose(1, QR | AA, b"\0", 1, [(each, 300) for each in pair])))
    assert not isinstance(found, Refusal)
    assert [(each.name, each.type) for each in found] == [("a.example.com.", "A"), ("b.example.com.", "TXT")]


def test_the_question_is_answered_by_its_chain_only() -> None:
    beside = rrset("www.bank.com", "A", "192.0.2.66")
    got = one(signed(compose(1, QR | AA, CHAIN[0].owner, 1, [(each, 300) for each in (*CHAIN, beside)])))
    assert got.rrsets == CHAIN


def test_what_the_hackathon_scripts_send(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: NOW)
    message = dns.message.make_response(dns.message.make_query("Mail.Example.com", "MX"))
    message.answer.append(
        dns.rrset.from_text("Mail.Example.com.", 60, "IN", "MX", "10 mx1.example.com.", "20 mx2.example.com.")
    )
    message.use_tsig(keyring(), KEY_NAME)
    got = one(message.to_wire())
    assert got.name == "mail.example.com."
    assert got.ttl == 60


def _flags(extra: int) -> bytes:
    www = address().rrsets[0]
    return signed(compose(1, extra, www.owner, 1, [(www, 300)]))


@pytest.mark.parametrize(
    ("refusal", "data"),
    [
        (Refusal.NOT_A_RESPONSE, _flags(AA)),
        (Refusal.OPCODE, _flags(QR | 0x2800)),
        (Refusal.TRUNCATED, _flags(QR | 0x0200)),
        (Refusal.RCODE, _flags(QR | 3)),
        (Refusal.RRSIG_MISSING, _flags(QR | AD)),
        (Refusal.NO_ANSWER, signed(compose(1, QR, b"\0", 1, []))),
        (Refusal.MALFORMED, signed(compose(1, QR, b"\0", 1, []) + b"\0")),
        (Refusal.UNSIGNED, compose(1, QR, b"\0", 1, [])),
    ],
    ids=lambda value: value.value if isinstance(value, Refusal) else "",
)
def test_refused_forms(refusal: Refusal, data: bytes) -> None:
    assert taken(data) is refusal


def _rrset_message(made: RRset, flags: int = QR | AA, qtype: int = 0) -> bytes:
    return signed(compose(1, flags, made.owner, qtype or made.type, [(made, made.ttl)]))


@pytest.mark.parametrize(
    ("refusal", "made"),
    [
        (Refusal.TTL_ZERO, rrset("www.example.com", "A", "192.0.2.1", ttl=0)),
        (Refusal.TTL_ZERO, rrset("www.example.com", "A", "192.0.2.1", ttl=0x80000001)),
        (Refusal.QTYPE, rrset("www.example.com", "NS", "a.example.com.")),
        (Refusal.QTYPE, rrset("www.example.com", "NSEC", "a.example.com. A")),
        (Refusal.MALFORMED, RRset(name_from_text("a.example.com"), 1, 60, pack(1, 60, [b"\1\2\3"]))),
        (
            Refusal.WILDCARD_WITHOUT_PROOF,
            rrset("www.example.com", "A", "192.0.2.1", sigs=rrsig("www.example.com", "A", labels=2)),
        ),
        (
            Refusal.RRSIG_EXPIRED,
            rrset("www.example.com", "A", "192.0.2.1", sigs=rrsig("www.example.com", "A", expiration=-1)),
        ),
        (
            Refusal.RRSIG_NOT_YET_VALID,
            rrset("www.example.com", "A", "192.0.2.1", sigs=rrsig("www.example.com", "A", inception=10)),
        ),
    ],
    ids=lambda value: value.value if isinstance(value, Refusal) else "",
)
def test_section_3_applies_on_receipt(refusal: Refusal, made: RRset) -> None:
    assert taken(_rrset_message(made)) is refusal


def test_ttl_is_limited_by_the_signature() -> None:
    made = rrset("www.example.com", "A", "192.0.2.1", ttl=86400, sigs=rrsig("www.example.com", "A", ttl=3600))
    assert one(_rrset_message(made)).ttl == 3600
    soon = rrset(
        "www.example.com", "A", "192.0.2.1", ttl=3600, sigs=rrsig("www.example.com", "A", ttl=3600, expiration=90)
    )
    assert one(_rrset_message(soon)).ttl == 89  # 89.75 seconds are left
    assert one(_rrset_message(rrset("a.example.com", "A", "192.0.2.1", ttl=7 * 86400))).ttl == 86400


def test_a_signature_of_a_stranger_is_left_out_and_does_not_make_it_signed() -> None:
    made = rrset("www.example.com", "A", "192.0.2.1", sigs=rrsig("www.example.com", "A", signer="bank.com"))
    assert one(_rrset_message(made)).rrsets[0].sigs == b""
    assert taken(_rrset_message(made, QR | AD)) is Refusal.RRSIG_MISSING


def test_the_key_says_what_its_holder_may_claim() -> None:
    www = rrset("www.example.com", "A", "192.0.2.1", sigs=rrsig("www.example.com", "A"))
    data = sent(answer(www, evidence=Evidence.VALIDATED))
    assert one(data).evidence is Evidence.VALIDATED
    weak = key(max_evidence=Evidence.CONFIRMED, evidence=Evidence.CONFIRMED)
    assert one(data, with_key=weak).evidence is Evidence.CONFIRMED
    low = key(max_evidence=Evidence.AUTHORITATIVE, evidence=Evidence.AUTHORITATIVE)
    assert one(data, with_key=low).evidence is Evidence.AUTHORITATIVE
    only_validated = frozenset({Evidence.VALIDATED})
    assert taken(sent(address()), accept=only_validated) is Refusal.EVIDENCE_TOO_WEAK


def test_origin_is_the_bound_node_else_the_address() -> None:
    data = sent(address())
    assert one(data, with_key=key(origins=["ams-1"])).origin == "ams-1"
    assert one(data, with_key=key(origins=["ams-1", "ams-2"])).origin == "192.0.2.11"
    assert one(data).origin == "192.0.2.11"


def test_two_keys_of_one_sender() -> None:
    old = Key.make("old", "hmac-sha256", SECRET, origins=["before"])
    both = codec(key(origins=["after"]), more_keys=(old,))
    for with_key, origin in ((old, "before"), (key(), "after"), (old, "before")):
        message = compose(len(origin), QR | AA, address().qname, 1, [(address().rrsets[0], 300)])
        found = both.decode(Signer(with_key).sign(message + b"", NOW)[0], PEER, NOW)
        assert isinstance(found, Refusal) or found[0].origin == origin


def test_our_own_message_coming_back() -> None:
    both = codec()
    assert both.decode(both.encode([address()], NOW)[0][0], PEER, NOW) is Refusal.OWN_MESSAGE


def test_the_clock_offset_is_the_smallest_age_of_the_last_minutes() -> None:
    receiver = codec()

    def hear(at: float, age: float) -> None:
        receiver.decode(sent(address(learned=at), at), PEER, int(at) + age)

    for second, age in enumerate((7.75, 4.0, 9.75)):
        hear(NOW + second, age)
    assert receiver.clock_offsets(NOW + 12) == {"192.0.2.11": pytest.approx(4.0)}
    hear(NOW + OFFSET_WINDOW + 10, 20.0)  # its clock went wrong; the window before this one counts on
    assert receiver.clock_offsets(NOW + OFFSET_WINDOW + 31) == {"192.0.2.11": pytest.approx(4.0)}
    hear(NOW + 2 * OFFSET_WINDOW + 20, 20.0)
    assert receiver.clock_offsets(NOW + 2 * OFFSET_WINDOW + 41) == {"192.0.2.11": pytest.approx(20.0)}
    assert receiver.clock_offsets(NOW + 4 * OFFSET_WINDOW + 60) == {}
    hear(NOW, 2.0)  # our own clock was set back
    assert receiver.clock_offsets(NOW + 3) == {"192.0.2.11": pytest.approx(2.0)}


def test_of_several_types_behind_an_alias_each_is_taken_under_a_dummy_question() -> None:
    ends = (CHAIN[-1], rrset("www.example.com", "AAAA", "2001:db8::1"))
    aliases = CHAIN[:-1]
    found = taken(signed(compose(1, QR | AA, b"\0", 1, [(each, 300) for each in (*aliases, *ends)])))
    assert not isinstance(found, Refusal)
    assert [(each.name, each.type, each.rrsets) for each in found] == [
        ("alias.example.com.", "A", (*aliases, ends[0])),
        ("alias.example.com.", "AAAA", (*aliases, ends[1])),
    ]


def test_a_reload_keeps_the_replay_memory() -> None:
    before, after = codec(), codec()
    data = sent(address())
    before.decode(data, PEER, NOW)
    after.inherit(before)
    assert after.decode(data, PEER, NOW) is Refusal.DUPLICATE
    assert after.clock_offsets(NOW)


@pytest.mark.parametrize(
    ("header", "refusal"),
    [
        ("c00c 001c 0003 0000012c 0010", Refusal.CLASS),
        ("c00c 001c 0001 0000012c ffff", Refusal.MALFORMED),
        ("c00c 001c 0001 00000000 0010", Refusal.TTL_ZERO),
    ],
)
def test_a_record_that_imitates_a_header_hides_no_other(header: str, refusal: Refusal) -> None:
    www = rrset("www.example.com", "AAAA", "2001:db8::1", "2001:db8::2")
    message = compose(1, QR | AA, www.owner, 28, [(www, 300)])
    first = message[-56:-44]
    assert taken(signed(message[:-56] + first + first + bytes(4) + bytes.fromhex(header) + bytes(16))) is refusal


@pytest.mark.parametrize(("offset", "refusal"), [(-84, Refusal.TTL_ZERO), (-98, Refusal.TTL_ZERO)])
def test_top_bit_ttls_of_a_signature(offset: int, refusal: Refusal) -> None:
    www = rrset("www.example.com", "A", "192.0.2.1", sigs=rrsig("www.example.com", "A"))
    message = bytearray(compose(1, QR | AA, www.owner, 1, [(www, 300)]))
    sig = len(message) - len(www.sigs)
    at = sig + 6 if offset == -98 else sig + 12 + 4
    message[at] |= 0x80
    assert taken(signed(bytes(message))) is refusal


def test_a_signature_without_signer_borrows_none_from_the_key_name() -> None:
    www = rrset("www.example.com", "A", "192.0.2.1", sigs=rrsig("www.example.com", "A")[:30])
    sigs = www.sigs[:10] + (18).to_bytes(2, "big") + www.sigs[12:]
    message = compose(1, QR | AA, www.owner, 1, [(www._replace(sigs=sigs), 300)])
    other = key("example.com")
    assert taken(Signer(other).sign(message, NOW)[0], more_keys=(other,)) is Refusal.MALFORMED


def test_what_nobody_checked_and_what_is_true_for_some_clients_only() -> None:
    www = CHAIN[1]
    message = compose(1, QR | AA | 0x10, www.owner, 1, [(www, 300)])
    assert taken(signed(message)) is Refusal.CLIENT_CHECKING_DISABLED
    message = compose(1, QR | AA, www.owner, 1, [(www, 300)])
    opt = bytes.fromhex("00 0029 04d0 00000000 000b 0008 0007 0001 18 18 c00002")
    scoped = message[:10] + b"\0\1" + message[12:] + opt
    assert taken(signed(scoped)) is Refusal.CLIENT_SUBNET


def test_a_chain_that_stops_early_is_taken_link_by_link() -> None:
    links = (rrset("a.example.com", "CNAME", "b.example.com."), rrset("b.example.com", "CNAME", "c.example.com."))
    message = compose(1, QR | AA, links[0].owner, 1, [(link, 300) for link in links])
    found = taken(signed(message))
    assert not isinstance(found, Refusal)
    assert [(each.name, each.type, len(each.rrsets)) for each in found] == [
        ("a.example.com.", "CNAME", 1),
        ("b.example.com.", "CNAME", 1),
    ]


def test_a_dummy_question_with_a_flood_of_names_is_refused_at_once() -> None:
    flood = [(rrset(f"n{number}.example.com", "A", "192.0.2.1"), 300) for number in range(65)]
    assert taken(signed(compose(1, QR | AA, b"\5dummy\0", 1, flood))) is Refusal.OVERSIZE
    assert len(taken(signed(compose(1, QR | AA, b"\5dummy\0", 1, flood[:64])))) == 64  # type: ignore[arg-type]
