"""Codec `batch`: what we send, what we take, and every reason for what we do not (trust rules 6 and 8)."""

from __future__ import annotations

import hmac
import struct
from typing import Any

import msgpack
import pytest
from backports import zstd
from hypothesis import given
from hypothesis import strategies as st

from cachebus.answer import Answer, Evidence, Refusal, RRset
from cachebus.cache import Cache
from cachebus.codecs.batch import BatchCodec, BatchCodecSettings
from cachebus.codecs.columns import MAX_ROWS
from cachebus.errors import ConfigError
from cachebus.filters.policy import Policy, PolicySettings
from cachebus.history import History
from cachebus.presentation import name_from_text, name_to_text
from cachebus.subscriber import STEP, Subscriber
from cachebus.wire.batch import MAX_ENVELOPE, MAX_ITEMS, MAX_PAYLOAD
from cachebus.wire.message import pack
from cachebus.wire.sequence import WINDOW
from cachebus.wire.tsig import Key
from tests.core_bed import KEY_NAME, NOW, SECRET, address, answer, key, rrset, rrsig

SENDER = "broker"
STREAM = int((NOW - 30) * 1000) << 22 | 1
MS = int(NOW * 1000)
PREFIX = b"CBE1\x0d" + b"cluster-2026." + b"\x01"


def codec(
    node: str = "b", with_key: Key | None = None, *, start: float | None = NOW - 30, **more: Any
) -> BatchCodec:  # fmt: skip
    return BatchCodec(
        BatchCodecSettings(node=node, cluster="c", transport="mq", key=with_key or key(), **more), start=start
    )


def sent(*answers: Answer, now: float = NOW, node: str = "a", **more: Any) -> bytes:
    messages, left_out = codec(node, **more).encode(answers, now)
    assert not left_out
    assert len(messages) == 1
    return messages[0]


def refused(data: bytes, now: float = NOW, by: BatchCodec | None = None) -> Refusal:
    answers, refusals = (by or codec()).decode_all([(data, SENDER)], now)
    assert not answers
    assert len(refusals) == 1
    return refusals[0]


def taken(data: bytes, now: float = NOW, by: BatchCodec | None = None) -> list[Answer]:
    answers, refusals = (by or codec()).decode_all([(data, SENDER)], now)
    assert not refusals
    return answers


def envelope(body: object, *, secret: bytes = SECRET, prefix: bytes = PREFIX) -> bytes:
    """An envelope by the documentation, of any body; written apart from the code under test."""
    packed = body if isinstance(body, bytes) else msgpack.packb(body)
    return prefix + hmac.digest(secret, prefix + packed, "sha256") + packed


def body(payload: bytes = b"", **changed: Any) -> list[Any]:
    fields: dict[str, Any] = {
        "cluster": "c", "origin": "a", "stream": STREAM, "sequence": 1, "time": MS, "kind": 0, "compression": 0,
        "payload": payload, **changed,
    }  # fmt: skip
    return list(fields.values())


def columns(
    heads: list[tuple[int, int, int, int]],
    rows: list[tuple[int, int, int, int, int]],
    names: list[str],
    rdatas: list[bytes],
) -> bytes:
    return msgpack.packb(
        [
            b"".join(struct.pack("!BBHI", *head) for head in heads),
            b"".join(struct.pack("!HIHBB", *row) for row in rows),
            b"".join(map(name_from_text, names)),
            *rdatas,
        ]
    )


ONE = columns([(1, 1, 1, 0)], [(1, 300, 1, 0, 0)], ["www.example.com"], [b"\xc0\0\2\1"])
SIGNED = rrset("www.example.com", "A", "192.0.2.1", "192.0.2.2", sigs=rrsig("www.example.com", "A"))
CHAIN = (
    rrset("alias.example.com", "CNAME", "Www.example.net."),
    rrset("www.example.net", "AAAA", "2001:db8::1", "2001:db8::2"),
)
DNAME = (
    rrset("d.example.com", "DNAME", "example.net."),
    rrset("x.d.example.com", "CNAME", "x.example.net."),
    rrset("x.example.net", "TXT", '"y"'),
)
ANSWERS = [
    address(),
    answer(SIGNED, evidence=Evidence.VALIDATED, learned=NOW - 7),
    answer(*CHAIN, evidence=Evidence.CONFIRMED),
    answer(*DNAME)._replace(qname=name_from_text("x.d.example.com")),
    answer(rrset("example.com", "MX", "10 a.example.com.", "20 B.example.com.")),
    answer(rrset("h.example.com", "HTTPS", "1 . alpn=h2"))._replace(validating=True),
    answer(rrset("n.example.com", "NAPTR", '1 2 "s" "x" "" a.example.com.')),
    answer(RRset(b"\0", 1, 60, pack(1, 60, [b"\xc0\0\2\1"]))),
]


# Bytes


def test_an_envelope_byte_by_byte() -> None:
    sender = codec("a", start=None)
    sender.restore({})
    data = sender.encode([address()], NOW)[0][0]
    name = b"\3www\7example\3com\0"
    payload = (
        b"\x94"
         b"\xc4\x08" + b"\x01\x01\x00\x01\x00\x00\x00\x00"
        + b"\xc4\x0a" + b"\x00\x01\x00\x00\x01\x2c\x00\x01\x00\x00"
        + b"\xc4\x11" + name
        + b"\xc4\x04" + b"\xc0\x00\x02\x01"
    )  # fmt: skip
    stream = sender.state()["a"]
    packed = (
        b"\x98\xa1c\xa1a"
         b"\xcf" + stream.to_bytes(8, "big")
        + b"\x01"
        + b"\xcf" + MS.to_bytes(8, "big")
        + b"\x00\x00"
        + b"\xc4" + bytes([len(payload)]) + payload
    )  # fmt: skip
    assert data == PREFIX + hmac.digest(SECRET, PREFIX + packed, "sha256") + packed


def test_what_the_documentation_says_is_taken() -> None:
    (got,) = taken(envelope(body(ONE)))
    assert got == address(learned=NOW, transport="mq", signer=KEY_NAME)


@pytest.mark.parametrize("compressed", [False, True])
def test_the_round_trip_keeps_everything(compressed: bool) -> None:
    many = ANSWERS * 3
    data = sent(*many, zstd=compressed)
    got = taken(data)
    assert (b"\x28\xb5\x2f\xfd" in data) == compressed
    assert got == [one._replace(origin="a", transport="mq", signer=KEY_NAME) for one in many]


@pytest.mark.parametrize("algorithm", ["hmac-sha384", "hmac-sha512"])
def test_other_algorithms(algorithm: str) -> None:
    other = key(algorithm=algorithm)
    assert len(taken(sent(*ANSWERS, with_key=other), by=codec(with_key=other))) == len(ANSWERS)


def test_ttls_count_from_when_it_was_learned() -> None:
    got = taken(sent(address(ttl=300, learned=NOW - 100.9996)), NOW + 30)[0]
    assert got.ttl == 300
    assert NOW - 101.002 < got.learned <= NOW - 100.9996


def test_an_answer_from_the_future_does_not_grow() -> None:
    receiver = codec(start=NOW - 300)
    assert taken(sent(address(), now=NOW + 200), NOW, receiver)[0].learned == NOW - 200
    assert -200.01 < receiver.clock_offsets(NOW)["a"] < -199.99
    assert taken(sent(address(learned=NOW + 9)))[0].learned == NOW


@pytest.mark.parametrize("ahead", [0.0, 20.0, 299.0])
def test_an_answer_is_no_younger_because_its_senders_clock_is_ahead(ahead: float) -> None:
    (found,) = taken(sent(address(learned=NOW + ahead - 100, ttl=300), now=NOW + ahead))
    assert found.learned + found.ttl == NOW - 100 + 300


def test_a_record_twice_is_sent_once() -> None:
    both = pack(1, 300, [b"\xc0\0\2\1"]) + pack(1, 60, [b"\xc0\0\2\1"])
    assert taken(sent(answer(RRset(b"\1a\0", 1, 60, both))))[0].rrsets[0].rrs == pack(1, 60, [b"\xc0\0\2\1"])


# Splitting


def test_envelopes_are_as_few_as_hold_the_answers_in_order() -> None:
    sender = codec("a", max_message=1024)
    many = [address(f"host-{number}.example.com") for number in range(200)]
    messages, left_out = sender.encode(many, NOW)
    assert not left_out
    assert all(len(message) <= 1024 for message in messages)
    assert len(messages) < 200 * 60 / 800
    got, refusals = codec().decode_all([(message, SENDER) for message in messages], NOW)
    assert not refusals
    assert [one.qname for one in got] == [one.qname for one in many]


@given(st.lists(st.integers(1, 700), min_size=1, max_size=30), st.booleans())
@pytest.mark.property
def test_no_envelope_is_longer_than_its_limit(sizes: list[int], compressed: bool) -> None:
    sender = codec("a", max_message=1232, zstd=compressed)
    made = [answer(RRset(b"\1a\0", 99, 60, pack(99, 60, [bytes(size)]))) for size in sizes]
    messages, left_out = sender.encode(made, NOW)
    assert max(map(len, messages)) <= 1232
    assert not left_out
    assert len(taken_all(messages)) == len(made)


def taken_all(messages: list[bytes]) -> list[Answer]:
    answers, refusals = codec().decode_all([(message, SENDER) for message in messages], NOW)
    assert not refusals
    return answers


def test_what_is_not_sent() -> None:
    big = answer(rrset("big.example.com", "TXT", *(f'"{"x" * 200}{n}"' for n in range(8))))
    dead = address(ttl=30, learned=NOW - 30)
    wide = answer(RRset(b"\1a\0", 1, 60, pack(1, 60, [n.to_bytes(4, "big") for n in range(MAX_ITEMS)])))
    signed = answer(RRset(b"\1a\0", 1, 60, pack(1, 60, [b"abcd"]), pack(46, 60, [bytes([n]) for n in range(256)])))
    zero = answer(rrset("a.example.com", "A", "192.0.2.1", ttl=0))
    given = [big, address(), dead, zero, wide, signed]
    messages, left_out = codec("a", max_message=1024).encode(given, NOW)
    assert len(messages) == 1
    assert left_out == [
        (big, Refusal.OVERSIZE), (dead, Refusal.EXPIRED), (zero, Refusal.EXPIRED), (wide, Refusal.OVERSIZE),
        (signed, Refusal.OVERSIZE),
    ]  # fmt: skip
    assert codec("a", max_message=MAX_ENVELOPE).encode([wide], NOW)[1] == [(wide, Refusal.OVERSIZE)]
    assert len(codec("a", max_message=4096).encode([big], NOW)[0]) == 1


def test_as_many_records_as_are_taken() -> None:
    part = answer(RRset(b"\1a\0", 1, 60, pack(1, 60, [n.to_bytes(4, "big") for n in range(MAX_ITEMS // 8)])))
    messages, left_out = codec("a", max_message=MAX_ENVELOPE).encode([part] * 8 + [address()], NOW)
    assert (len(messages), left_out) == (2, [])
    assert len(taken_all(messages)) == 9


def test_too_short_or_too_long_a_limit() -> None:
    for limit in (511, MAX_ENVELOPE + 1):
        with pytest.raises(ConfigError, match="mq"):
            codec(max_message=limit)


def test_nothing_to_send() -> None:
    assert codec("a").encode([], NOW) == ([], [])


# Authentication


def test_another_key_or_algorithm() -> None:
    assert refused(sent(address(), with_key=key("other"))) is Refusal.UNKNOWN_KEY
    assert refused(sent(address(), with_key=key(algorithm="hmac-sha512"))) is Refusal.WRONG_ALGORITHM
    assert refused(sent(address(), with_key=key(secret=b"y" * 32))) is Refusal.BAD_MAC
    assert len(taken(sent(address(), with_key=key("other")), by=codec(more_keys=(key("other"),)))) == 1


def test_cut_anywhere_it_is_refused() -> None:
    data = sent(address())
    receiver = codec()
    reasons = [refused(data[:end], by=receiver) for end in range(len(data))]
    mac = len(PREFIX)
    assert set(reasons[:4]) == {Refusal.MALFORMED}
    assert set(reasons[mac : mac + 32]) == {Refusal.TRUNCATED_MAC}
    assert set(reasons[mac + 32 :]) == {Refusal.BAD_MAC}
    assert receiver.counters()["envelopes"] == 0
    assert taken(data, by=receiver)


@given(st.data())
@pytest.mark.property
def test_any_byte_altered_it_is_refused(data: st.DataObject) -> None:
    message = bytearray(sent(*ANSWERS))
    at = data.draw(st.integers(0, len(message) - 1))
    message[at] ^= data.draw(st.integers(1, 255))
    assert refused(bytes(message)) in {
        Refusal.MALFORMED, Refusal.UNKNOWN_KEY, Refusal.WRONG_ALGORITHM, Refusal.BAD_MAC,
    }  # fmt: skip


def test_bytes_behind_it() -> None:
    assert refused(sent(address()) + b"\0") is Refusal.BAD_MAC
    assert refused(envelope(msgpack.packb(body(ONE)) + b"\0")) is Refusal.TRAILING_BYTES
    assert refused(envelope(body(ONE + b"\0"))) is Refusal.TRAILING_BYTES


def test_larger_than_any_envelope() -> None:
    assert refused(envelope(body(bytes(MAX_ENVELOPE)))) is Refusal.OVERSIZE


def test_secrets_are_in_no_text() -> None:
    assert "AAECAw" not in repr(codec()._settings)
    assert repr(SECRET) not in repr(codec()._settings) + repr(codec())


# Whose


def test_another_cluster() -> None:
    other = BatchCodec(BatchCodecSettings(node="a", cluster="d", transport="mq", key=key()), start=NOW)
    assert refused(other.encode([address()], NOW)[0][0]) is Refusal.WRONG_CLUSTER


def test_the_key_is_bound_to_origins() -> None:
    data = sent(address(), node="a")
    assert refused(data, by=codec(with_key=key(origins=["x"]))) is Refusal.WRONG_ORIGIN
    assert taken(data, by=codec(with_key=key(origins=["x", "a"])))[0].origin == "a"
    assert refused(codec("a").will() or b"", by=codec(with_key=key(origins=["x"]))) is Refusal.WRONG_ORIGIN


def test_the_key_says_what_its_holder_may_claim() -> None:
    data = sent(*ANSWERS[:3])
    confirmed = codec(with_key=key(max_evidence=Evidence.CONFIRMED))
    assert [one.evidence for one in taken(data, by=confirmed)] == [1, 2, 2]
    answers, refusals = codec(accept=frozenset({Evidence.CONFIRMED, Evidence.VALIDATED})).decode_all([(data, "")], NOW)
    assert [one.evidence for one in answers] == [3, 2]
    assert refusals == [Refusal.EVIDENCE_TOO_WEAK]


def test_our_own() -> None:
    sender = codec("b")
    messages = [*sender.encode([address()], NOW)[0], sender.hello(NOW), sender.will() or b""]
    answers, refusals = sender.decode_all([(message, SENDER) for message in messages], NOW)
    assert (answers, refusals) == ([], [Refusal.OWN_MESSAGE] * 3)
    assert sender.counters()["namesakes"] == 0
    assert refused(sent(address(), node="b"), by=sender) is Refusal.OWN_MESSAGE
    assert sender.counters()["namesakes"] == 1


# When


@pytest.mark.parametrize(
    ("at", "refusal"),
    [(60.9, Refusal.EXPIRED), (-300.9, Refusal.BAD_TIME)],
)
def test_out_of_time(at: float, refusal: Refusal) -> None:
    receiver = codec(start=NOW - 1000)
    data = sent(address())
    assert refused(data, NOW + at, receiver) is refusal
    assert taken(data, NOW, receiver)  # it was not remembered


def test_sent_before_we_listened() -> None:
    assert refused(sent(address()), NOW + 5, codec(start=NOW + 1)) is Refusal.BEFORE_START
    assert taken(sent(address()), NOW + 5, codec(start=NOW))


def test_a_file_is_read_at_any_time() -> None:
    assert taken(sent(address(ttl=86400)), NOW + 5000, codec(start=None))


def test_dead_on_arrival() -> None:
    assert refused(sent(address(ttl=30)), NOW + 30) is Refusal.EXPIRED
    mixed = answer(CHAIN[0], CHAIN[1]._replace(ttl=20))
    assert refused(sent(mixed), NOW + 20) is Refusal.EXPIRED


# New


def test_a_broker_that_repeats_replays_and_reorders() -> None:
    sender, receiver = codec("a"), codec()
    messages = [sender.encode([address(last=number)], NOW)[0][0] for number in range(5)]
    assert taken(messages[0], by=receiver)
    assert taken(messages[3], by=receiver)
    assert receiver.counters()["gaps"] == 2
    assert taken(messages[1], by=receiver)
    assert refused(messages[1], by=receiver) is Refusal.DUPLICATE
    assert refused(messages[3], by=receiver) is Refusal.DUPLICATE
    counters = receiver.counters()
    assert [counters[name] for name in ("gaps", "reordered", "duplicates")] == [1, 1, 2]


def test_a_message_below_the_window() -> None:
    sender, receiver = codec("a"), codec()
    first = sender.encode([address()], NOW)[0][0]
    sender._sending.sequence += WINDOW
    assert taken(sender.encode([address()], NOW)[0][0], by=receiver)
    assert refused(first, by=receiver) is Refusal.REPLAY_WINDOW


def test_a_restarted_origin() -> None:
    before, after, receiver = codec("a"), codec("a", start=NOW - 1), codec()
    old = [before.encode([address()], NOW)[0][0] for _ in range(2)]
    assert taken(old[0], by=receiver)
    assert taken(after.encode([address()], NOW)[0][0], by=receiver)
    assert refused(old[1], by=receiver) is Refusal.OLD_STREAM
    assert receiver.counters()["restarts"] == 1
    assert refused(before.will() or b"", by=receiver) is Refusal.OLD_STREAM
    assert not receiver.presence()["a"].gone


def test_replays_find_no_way_in_by_a_reload_or_a_restart() -> None:
    sender, receiver = codec("a"), codec()
    message = sender.encode([address()], NOW)[0][0]
    assert taken(message, by=receiver)
    reloaded = codec()
    reloaded.inherit(receiver)
    assert refused(message, by=reloaded) is Refusal.DUPLICATE
    assert refused(message, NOW + 1, codec(start=NOW + 0.5)) is Refusal.BEFORE_START
    newer = codec("a", start=NOW)
    assert taken(newer.hello(NOW) + b"", by=receiver) == []
    restarted = codec(start=NOW - 1)
    restarted.restore(receiver.state())
    assert refused(message, by=restarted) is Refusal.OLD_STREAM


def test_a_reload_goes_on_with_our_stream() -> None:
    before, after, receiver = codec("a"), codec("a", start=NOW), codec()
    after_will = before.will()
    assert taken(before.encode([address()], NOW)[0][0], by=receiver)
    after.inherit(before)
    assert taken(after.encode([address()], NOW)[0][0], by=receiver)
    assert after.will() == after_will
    counters = receiver.counters()
    assert (counters["restarts"], counters["gaps"]) == (0, 0)


def test_what_the_codec_before_a_reload_sends_to_its_end_costs_the_next_one_nothing() -> None:
    before, after, receiver = codec("a"), codec("a", start=NOW), codec()
    after.inherit(before)  # while the one before it still has answers to send
    for sender in (before, before, after):
        assert taken(sender.encode([address()], NOW)[0][0], by=receiver)
    assert receiver.counters()["duplicates"] == 0


def test_a_clock_that_was_far_ahead_in_the_last_run_silences_nobody() -> None:
    sender, receiver = codec("a"), codec()
    sender.restore({"a": int((NOW + 86400) * 1000) << 22})
    assert taken(sender.encode([address()], NOW)[0][0], by=receiver)
    sender.restore({"a": (1 << 63) - 1})
    assert sender.state()["a"] < 1 << 63


def test_the_will_of_our_last_run_is_no_namesake() -> None:
    before, after = codec("a"), codec("a", start=NOW)
    assert refused(before.will() or b"", by=after) is Refusal.OWN_MESSAGE
    assert after.counters()["namesakes"] == 0


def test_another_policy_of_our_own_is_compared_anew() -> None:
    before, after = codec(policy_hash="x"), codec(policy_hash="y")
    taken(codec("a", policy_hash="x").hello(NOW), by=before)
    after.inherit(before)
    assert after.presence()["a"].policy_agrees is None


def test_our_stream_is_newer_though_the_clock_was_set_back() -> None:
    first, receiver = codec("a"), codec()
    assert taken(first.encode([address()], NOW)[0][0], by=receiver)
    second = codec("a", start=NOW - 3600)
    second.restore(first.state())
    assert taken(second.encode([address()], NOW)[0][0], by=receiver)


# Presence


def test_a_hello_shows_what_was_lost_before_it() -> None:
    sender, receiver = codec("a", policy_hash="abc"), codec(policy_hash="abc")
    assert taken(sender.hello(NOW), by=receiver) == []
    sender.encode([address()], NOW)
    assert taken(sender.hello(NOW), by=receiver) == []
    counters = receiver.counters()
    assert (counters["gaps"], counters["hellos"], counters["policy_differs"]) == (1, 2, 0)
    known = receiver.presence()["a"]
    assert (known.policy_agrees, known.gone, known.heard) == (True, False, NOW)
    assert known.stream == sender.state()["a"]


def test_another_policy_is_shown_and_counted() -> None:
    receiver = codec(policy_hash="abc")
    assert taken(codec("a", policy_hash="xyz").hello(NOW), by=receiver) == []
    assert taken(codec("d").hello(NOW), by=receiver) == []
    assert taken(codec("e", policy_hash="abc").hello(NOW), by=receiver) == []
    assert receiver.counters()["policy_differs"] == 1
    assert {name: known.policy_agrees for name, known in receiver.presence().items()} == {
        "a": False, "d": None, "e": True,
    }  # fmt: skip


def test_a_will_is_exempt_from_age_and_number_and_fills_nothing() -> None:
    sender, receiver = codec("a"), codec()
    will = sender.will()
    assert will
    assert refused(will, by=receiver) is Refusal.OLD_STREAM  # of an origin never heard of
    assert taken(sender.hello(NOW), by=receiver) == []
    for at in (NOW + 5000, NOW + 9000):
        assert taken(will, at, receiver) == []
        assert receiver.presence()["a"].gone
    assert receiver.counters()["wills"] == 2
    assert receiver.counters()["gaps"] == 0
    assert taken(sender.hello(NOW + 1), NOW + 1, receiver) == []
    assert not receiver.presence()["a"].gone


def test_without_a_start_there_is_no_will_before_the_first_message() -> None:
    tool = codec("a", start=None)
    assert tool.will() is None
    tool.hello(NOW)
    assert tool.will()


# Form of the envelope


WRONG_BODIES: list[tuple[Refusal, object]] = [
    (Refusal.MALFORMED, b""),
    (Refusal.MALFORMED, b"\xc1"),
    (Refusal.MALFORMED, b"\x91" * 1000),
    (Refusal.MALFORMED, b"\x91" * 5000),
    (Refusal.MALFORMED, b"\xdd\xff\xff\xff\xff"),
    (Refusal.MALFORMED, b"\xdf\xff\xff\xff\xff"),
    (Refusal.MALFORMED, b"\xc6\xff\xff\xff\xff"),
    (Refusal.MALFORMED, b"\x81\x90\x01"),
    (Refusal.MALFORMED, 7),
    (Refusal.MALFORMED, "text"),
    (Refusal.MALFORMED, {}),
    (Refusal.MALFORMED, body(ONE)[:7]),
    (Refusal.MALFORMED, [*body(ONE), {}]),
    (Refusal.MALFORMED, [*body(kind=1), []]),
    (Refusal.MALFORMED, [*body(kind=1), None]),
    (Refusal.MALFORMED, body(kind=1)),
    (Refusal.MALFORMED, [*body(kind=2), {}]),
    (Refusal.MALFORMED, [*body(b"x", kind=1), {}]),
    (Refusal.MALFORMED, [*body(kind=1), {str(number): 1 for number in range(17)}]),
    (Refusal.MALFORMED, [*body(kind=1), {"policy": "x" * 300}]),
    (Refusal.MALFORMED, [*body(kind=1), {7: "x"}]),
    (Refusal.MALFORMED, body(ONE, kind=3)),
    (Refusal.MALFORMED, body(ONE, kind=-1)),
    (Refusal.MALFORMED, body(ONE, compression=2)),
    (Refusal.MALFORMED, body(ONE, cluster=b"c")),
    (Refusal.MALFORMED, body(ONE, cluster="c" * 300)),
    (Refusal.MALFORMED, body(ONE, origin=b"a")),
    (Refusal.MALFORMED, body(ONE, origin="")),
    (Refusal.MALFORMED, body(ONE, origin="a\x1b[2J")),
    (Refusal.MALFORMED, body(ONE, origin="x" * 64)),
    (Refusal.MALFORMED, body(ONE, stream=1.0)),
    (Refusal.MALFORMED, body(ONE, stream="1")),
    (Refusal.MALFORMED, body(ONE, stream=-1)),
    (Refusal.MALFORMED, body(ONE, stream=1 << 63)),
    (Refusal.MALFORMED, body(ONE, sequence=0)),
    (Refusal.MALFORMED, body(ONE, sequence=True)),
    (Refusal.MALFORMED, body(ONE, sequence=None)),
    (Refusal.MALFORMED, body(ONE, time=float(MS))),
    (Refusal.MALFORMED, body("text")),  # type: ignore[arg-type]
    (Refusal.MALFORMED, body([])),  # type: ignore[arg-type]
    (Refusal.MALFORMED, body(ONE, stream=msgpack.ExtType(1, b"x"))),
    (Refusal.BAD_TIME, body(ONE, time=(1 << 64) - 1)),
    (Refusal.BAD_TIME, body(ONE, stream=(1 << 63) - 1)),
    (Refusal.EXPIRED, body(ONE, time=0)),
]


@pytest.mark.parametrize(("refusal", "given"), WRONG_BODIES, ids=lambda value: repr(value)[:60])
def test_body(refusal: Refusal, given: object) -> None:
    receiver = codec()
    assert refused(envelope(given), by=receiver) is refusal
    assert receiver.state().keys() <= {"b"}


HEAD, ROW, NAME, DATA = (1, 1, 1, 0), (1, 300, 1, 0, 0), "www.example.com", b"\xc0\0\2\1"
WRONG_PAYLOADS = {
    "empty": b"",
    "nothing": b"\x90",
    "two columns": msgpack.packb([b"", b""]),
    "a number": b"\x07",
    "a map": b"\x80",
    "text among the bytes": msgpack.packb([b"", b"", b"", "x"]),
    "a number among the bytes": msgpack.packb([b"", b"", b"", 7]),
    "nothing among the bytes": msgpack.packb([b"", b"", b"", None]),
    "a list among the bytes": msgpack.packb([b"", b"", b"", [b"x"]]),
    "text for a column": msgpack.packb(["", b"", b""]),
    "an extension": msgpack.packb([b"", b"", b"", msgpack.ExtType(1, b"x")]),
    "nested": b"\x91" * 2000,
    "a list that is announced only": b"\xdd\xff\xff\xff\xff",
    "bytes that are announced only": b"\x94\xc4\x00\xc4\x00\xc4\x00\xc6\xff\xff\xff\xff",
    "more items than are taken": msgpack.packb([b""] * (MAX_ITEMS + 1)),
    "half a head": msgpack.packb([bytes(7), b"", b""]),
    "half a row": msgpack.packb([b"", bytes(11), b""]),
    "no row": columns([HEAD], [], [NAME], [DATA]),
    "a row too many": columns([HEAD], [ROW, ROW], [NAME], [DATA, DATA]),
    "no name": columns([HEAD], [ROW], [], [DATA]),
    "a name too many": columns([HEAD], [ROW], [NAME, NAME], [DATA]),
    "a name announced": columns([HEAD], [(1, 300, 1, 0, 1)], [NAME], [DATA]),
    "an owner flag that means nothing": columns([HEAD], [(1, 300, 1, 0, 2)], [NAME, NAME, NAME], [DATA]),
    "no record": columns([HEAD], [ROW], [NAME], []),
    "a record too many": columns([HEAD], [ROW], [NAME], [DATA, DATA]),
    "a cut name": msgpack.packb([bytes(8), b"", b"\3www"]),
    "a compressed name": msgpack.packb([struct.pack("!BBHI", *HEAD), struct.pack("!HIHBB", *ROW), b"\xc0\x0c", DATA]),
    "a long name": msgpack.packb(
        [struct.pack("!BBHI", *HEAD), struct.pack("!HIHBB", *ROW), b"\1x" * 128 + b"\0", DATA]
    ),
}


@pytest.mark.parametrize("name", WRONG_PAYLOADS)
def test_payload(name: str) -> None:
    assert refused(envelope(body(WRONG_PAYLOADS[name]))) is Refusal.MALFORMED


def test_an_empty_payload_of_columns_is_an_envelope_without_answers() -> None:
    assert taken(envelope(body(columns([], [], [], [])))) == []


@pytest.mark.parametrize(
    "parts",
    [
        [(1).to_bytes(1) + bytes(7), b"", b"\0"],
        [b"\1\1\0\1" + bytes(4), struct.pack("!HIHBB", 1, 300, 0, 0, 0), b"\0"],
    ],
)
def test_an_answer_without_rrsets_and_an_rrset_without_records_cost_the_envelope(parts: list[bytes]) -> None:
    assert refused(envelope(body(msgpack.packb(parts)))) is Refusal.MALFORMED
    many = zstd.compress(msgpack.packb([parts[0] * 10_000, parts[1] * 10_000, parts[2] * 10_000]))
    assert refused(envelope(body(many, compression=1))) is Refusal.MALFORMED  # and not ten thousand times


@pytest.mark.parametrize(
    ("rrtype", "rdatas"),
    [
        (1, [number.to_bytes(4) for number in range(5000)]),
        (16, [bytes((number,)) * 60_000 for number in range(2)]),
        (16, [bytes(65_530)]),
        (15, [bytes((number >> 8, number & 255)) + b"\x3f" + bytes(63) + b"\0" for number in range(1000)]),
    ],
)
def test_more_than_a_dns_message_holds_is_no_answer(rrtype: int, rdatas: list[bytes]) -> None:
    payload = columns([(1, 1, rrtype, 0)], [(rrtype, 300, len(rdatas), 0, 0)], ["www.example.com"], rdatas)
    assert refused(envelope(body(payload))) is Refusal.OVERSIZE


def test_decompression_is_bounded() -> None:
    bomb = zstd.compress(bytes(100 << 20))
    assert refused(envelope(body(bomb, compression=1))) is Refusal.OVERSIZE
    exact = zstd.compress(bytes(MAX_PAYLOAD))
    assert refused(envelope(body(exact, compression=1))) is Refusal.TRAILING_BYTES  # decompressed, and then no payload
    assert taken(envelope(body(zstd.compress(ONE), compression=1)))


def test_a_frame_that_asks_for_much_memory() -> None:
    compressor = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: 25})
    frame = compressor.compress(ONE) + compressor.flush()
    assert refused(envelope(body(frame, compression=1))) is Refusal.MALFORMED


@pytest.mark.parametrize(
    ("refusal", "frame"),
    [
        (Refusal.MALFORMED, b""),
        (Refusal.MALFORMED, b"not zstd at all"),
        (Refusal.MALFORMED, zstd.compress(ONE)[:-1]),
        (Refusal.TRAILING_BYTES, zstd.compress(ONE) + b"\0"),
        (Refusal.TRAILING_BYTES, zstd.compress(ONE) * 2),
    ],
)
def test_frames(refusal: Refusal, frame: bytes) -> None:
    assert refused(envelope(body(frame, compression=1))) is refusal


# Hostile answers


def hostile(*given: RRset, qname: str = "", qtype: int = 0, evidence: int = 1) -> bytes:
    """These RRsets as an answer to that question, every owner named."""
    rows, names, rdatas = [], [qname or name_to_text(given[0].owner)], []
    for each in given:
        found, sigs = (records_of(packed) for packed in (each.rrs, each.sigs))
        rows.append((each.type, each.ttl, len(found), len(sigs), 1))
        names.append(name_to_text(each.owner))
        rdatas += [*found, *sigs]
    return envelope(body(columns([(evidence, len(given), qtype or given[-1].type, 0)], rows, names, rdatas)))


def records_of(packed: bytes) -> list[bytes]:
    found = []
    while packed:
        end = 12 + int.from_bytes(packed[10:12], "big")
        found.append(packed[12:end])
        packed = packed[end:]
    return found


def signed(**more: Any) -> RRset:
    return rrset("www.example.com", "A", "192.0.2.1", sigs=rrsig("www.example.com", "A", **more))


WWW = rrset("www.example.com", "A", "192.0.2.1")
FORGED = rrset("x.d.example.com", "CNAME", "x.bank.com.")
ALIAS = rrset("alias.example.com", "CNAME", "www.example.com.")


def test_named_owners_are_right_too() -> None:
    assert taken(hostile(ALIAS, WWW))[0].rrsets == (ALIAS, WWW)
    assert taken(hostile(signed(), evidence=3))[0].evidence is Evidence.VALIDATED


@pytest.mark.parametrize(
    ("refusal", "data"),
    [
        (Refusal.NO_ANSWER, hostile(ALIAS, qtype=1)),
        (Refusal.NO_ANSWER, hostile(WWW, qname="mail.example.com")),
        (Refusal.MALFORMED, envelope(body(columns([(1, 0, 1, 0)], [], ["a.test"], [])))),
        (Refusal.BROKEN_CHAIN, hostile(ALIAS, rrset("www.bank.com", "A", "192.0.2.1"), WWW)),
        (Refusal.BROKEN_CHAIN, hostile(ALIAS, WWW, WWW)),
        (Refusal.BROKEN_CHAIN, hostile(ALIAS, rrset("alias.example.com", "A", "192.0.2.6"))),
        (Refusal.BROKEN_CHAIN, hostile(rrset("x.example.com", "CNAME", "a.test.", "b.test."), qtype=5)),
        (Refusal.CHAIN_LOOP, hostile(ALIAS, rrset("www.example.com", "CNAME", "alias.example.com."), qtype=1)),
        (Refusal.CHAIN_LOOP, hostile(rrset("a.test", "CNAME", "a.test."), qtype=1)),
        (Refusal.CHAIN_LOOP, hostile(*[rrset(f"{n}.test", "CNAME", f"{n + 1}.test.") for n in range(14)], qtype=1)),
        (Refusal.FORGED_CNAME, hostile(DNAME[0], FORGED, qname="x.d.example.com", qtype=5)),
        (Refusal.RRSIG_MISSING, hostile(WWW, evidence=3)),
        (Refusal.RRSIG_MISSING, hostile(ALIAS, signed(), evidence=3)),
        (Refusal.RRSIG_MISSING, hostile(signed(signer="bank.com"), evidence=3)),
        (Refusal.RRSIG_EXPIRED, hostile(signed(expiration=-1))),
        (Refusal.RRSIG_NOT_YET_VALID, hostile(signed(inception=10))),
        (Refusal.WILDCARD_WITHOUT_PROOF, hostile(signed(labels=2))),
        (Refusal.MALFORMED, hostile(WWW._replace(sigs=rrsig("www.example.com", "AAAA")))),
        (Refusal.MALFORMED, hostile(WWW._replace(sigs=rrsig("www.example.com", "A") * 2))),
        (Refusal.MALFORMED, hostile(WWW._replace(sigs=pack(46, 1, [b"\0\1"])))),
        (Refusal.MALFORMED, hostile(WWW._replace(rrs=WWW.rrs * 2))),
        (Refusal.MALFORMED, hostile(WWW._replace(rrs=b""))),
        (Refusal.MALFORMED, hostile(WWW._replace(rrs=pack(1, 60, [b"abc"])))),
        (Refusal.MALFORMED, hostile(ALIAS._replace(rrs=pack(5, 60, [b"\3www\xc0\x0c"])), qtype=5)),
        (Refusal.MALFORMED, hostile(ALIAS._replace(rrs=pack(5, 60, [b"\3www"])), qtype=5)),
        (Refusal.MALFORMED, hostile(ALIAS._replace(rrs=pack(5, 60, [b"\1x" * 128 + b"\0"])), qtype=5)),
        (Refusal.MALFORMED, hostile(RRset(b"\1a\0", 15, 60, pack(15, 60, [b"\0\1\1b\0\0"])))),
        (Refusal.TTL_ZERO, hostile(WWW._replace(ttl=0))),
        (Refusal.TTL_ZERO, hostile(WWW._replace(ttl=0x80000001))),
        (Refusal.QTYPE, hostile(WWW, qtype=255)),
        (Refusal.QTYPE, hostile(rrset("a.test", "NS", "b.test."))),
        (Refusal.QTYPE, hostile(RRset(b"\1a\0", 46, 60, pack(46, 60, [records_of(rrsig("a.b", "A"))[0]])))),
        (Refusal.MALFORMED, envelope(body(columns([(0, 1, 1, 0)], [ROW], [NAME], [DATA])))),
        (Refusal.MALFORMED, envelope(body(columns([(9, 1, 1, 0)], [ROW], [NAME], [DATA])))),
        (Refusal.EXPIRED, envelope(body(columns([(1, 1, 1, 300_000)], [ROW], [NAME], [DATA])))),
        (Refusal.EXPIRED, envelope(body(columns([(1, 1, 1, 0xFFFFFFFF)], [ROW], [NAME], [DATA])))),
    ],
    ids=lambda value: value.value if isinstance(value, Refusal) else "",
)  # fmt: skip
def test_rules_of_answers_apply_on_receipt(refusal: Refusal, data: bytes) -> None:
    assert refused(data) is refusal


def test_one_wrong_answer_costs_no_other() -> None:
    receiver = codec()
    data = envelope(
        body(
            columns(
                [HEAD, (1, 1, 1, 0), (0, 2, 1, 0), HEAD],
                [ROW, (1, 0, 1, 0, 0), (5, 9, 1, 0, 0), (1, 9, 1, 0, 0), ROW],
                ["a.test", "b.test", "c.test", "e.test"],
                [DATA, DATA, name_from_text("d.test"), DATA, DATA],
            )
        )
    )
    answers, refusals = receiver.decode_all([(data, SENDER)], NOW)
    assert [one.name for one in answers] == ["a.test.", "e.test."]
    assert refusals == [Refusal.TTL_ZERO, Refusal.MALFORMED]


def test_infrastructure_types_only_when_asked_for() -> None:
    data = hostile(rrset("a.test", "NS", "b.test."))
    assert len(taken(data, by=codec(infrastructure=True))) == 1


def test_names_come_in_lower_case_and_targets_keep_theirs() -> None:
    upper = envelope(
        body(
            columns([(1, 2, 1, 0)], [(5, 300, 1, 0, 0), ROW], [], [b"\3wWw\4Test\0", DATA]).replace(
                b"\xc4\0", b"\xc4\x08\1A\4tESt\0", 1
            )
        )
    )
    (got,) = taken(upper)
    assert (got.name, got.rrsets[1].owner) == ("a.test.", b"\3www\4test\0")
    assert got.rrsets[0].rrs.endswith(b"\3wWw\4Test\0")


def test_ttl_is_limited_on_receipt() -> None:
    assert taken(hostile(WWW._replace(ttl=7 * 86400)))[0].ttl == 86400
    assert taken(hostile(signed(ttl=60)._replace(ttl=3600)))[0].ttl == 60
    assert taken(hostile(signed(ttl=3600, expiration=90)._replace(ttl=3600)))[0].ttl == 89  # 89.75 seconds are left


def test_a_private_address_is_the_policys() -> None:
    (got,) = taken(hostile(rrset("www.example.com", "A", "10.0.0.1")))
    assert Policy(PolicySettings()).refuse_any([got]) == [Refusal.PRIVATE_ADDRESS]


def test_rows_are_remembered_within_bounds_and_never_mixed_up() -> None:
    by = codec()
    many = [address(f"w{number}.example.com", ttl=100 + number) for number in range(MAX_ROWS + 300)]
    messages, _ = codec("a", max_message=MAX_ENVELOPE).encode(many, NOW)
    got = [each for message in messages for each in taken(message, by=by)]
    assert [(each.qname, each.ttl) for each in got] == [(each.qname, each.ttl) for each in many]
    assert all(int.from_bytes(each.rrsets[0].rrs[6:10]) == each.ttl for each in got)
    assert len(by._rows._known) <= MAX_ROWS


# Two nodes


def test_two_nodes_joined_in_memory() -> None:
    left, right = codec("a"), codec("b")
    cache = Cache("b")
    subscriber = Subscriber(
        codec=right, policy=Policy(PolicySettings()), cache=cache, sinks=(), history=History("t"), clock=lambda: NOW + 1
    )
    messages, _ = left.encode([address(), *ANSWERS[1:3]], NOW)
    for message in [*messages, left.hello(NOW), *messages]:
        subscriber.receive(message, SENDER)
    assert (subscriber.accepted, subscriber.refused) == (3, {Refusal.DUPLICATE: 1})
    held = cache.get(name_from_text("www.example.net"), 28, NOW + 1)
    assert held
    assert held.rrset.rrs == CHAIN[1].rrs
    assert held.origin == "a"


def test_what_arrives_together_is_taken_whole_and_in_order_however_much_it_is() -> None:
    left, right, cache = codec("a"), codec("b"), Cache("b")
    many = [address(f"w{number}.example.com") for number in range(2000)]
    messages = [left.encode(many[at : at + 50], NOW)[0][0] for at in range(0, len(many), 50)]
    assert sum(map(len, messages)) > 4 * STEP
    subscriber = Subscriber(
        codec=right, policy=Policy(PolicySettings()), cache=cache, sinks=(), history=History("t"), clock=lambda: NOW + 1
    )
    subscriber.receive_all([(message, SENDER) for message in [*messages, messages[0], b"x" * STEP, messages[-1]]])
    assert (subscriber.received, subscriber.accepted) == (43, 2000)
    assert subscriber.refused == {Refusal.DUPLICATE: 2, Refusal.MALFORMED: 1}
    assert right.counters()["reordered"] == 0
    assert all(cache.get(each.qname, 1, NOW + 1) for each in many)
