"""Codec `cdns`: whose a block is, whether it is timely and new, and which of its answers are taken."""

from __future__ import annotations

import pytest

from cachebus.answer import Answer, Evidence, Refusal
from cachebus.cli.bench_trace import trace
from cachebus.codecs import cdns
from cachebus.codecs.cdns import CdnsCodec, Peer
from cachebus.errors import ConfigError
from cachebus.wire import rrtypes
from cachebus.wire.cdns_write import BlockHead, write_block
from tests.cdns_bed import NOW, address, answer, codec, rrset, some_answers

ALPHA = "alpha.test"
ALIAS = rrset("a.test.", rrtypes.CNAME, b"\1b\4test\0")


def came(answers: list[Answer], *, transport: str = "t", signer: str = ALPHA) -> list[Answer]:
    return [one._replace(transport=transport, signer=signer) for one in answers]


def pass_on(sender: CdnsCodec, receiver: CdnsCodec, answers: list[Answer], *, now: float = NOW) -> list[Refusal]:
    """What the receiver refuses of some answers."""
    messages, left_out = sender.encode(answers, now)
    assert not left_out
    return receiver.decode_all([(message, ALPHA) for message in messages], now)[1]


def test_answers_arrive_as_they_were() -> None:
    answers = some_answers()
    messages, left_out = codec().encode(answers, NOW)
    assert len(messages) == 1
    assert not left_out
    assert codec("beta").decode_all([(messages[0], ALPHA)], NOW) == (came(answers), [])


def test_a_whole_trace_arrives() -> None:
    answers = trace(1500, NOW, origin="alpha")
    messages, left_out = codec().encode(answers, NOW)
    assert not left_out
    assert all(len(message) <= 64 * 1024 for message in messages)
    found, refusals = codec("beta").decode_all([(message, ALPHA) for message in messages], NOW)
    assert not refusals
    assert found == came(answers)


def test_ttls_count_from_when_it_was_learned() -> None:
    old = address(age=200.5)
    (found,), _ = codec("beta").decode_all([(codec().encode([old], NOW)[0][0], ALPHA)], NOW + 5)
    assert (found.learned, found.ttl) == (NOW - 200.5, 300)
    ahead = codec("beta").decode_all([(codec().encode([address(age=-20)], NOW)[0][0], ALPHA)], NOW)[0]
    assert ahead[0].learned == NOW  # a clock that is ahead makes nothing live longer


def test_no_answer_outlives_its_signature_by_a_fraction_of_a_second() -> None:
    given = address("s.test.", signed=True, ttl=86400, age=0.5)  # signed until `NOW` + 9000
    ((found,), refusals) = codec("beta").decode_all([(codec().encode([given], NOW)[0][0], ALPHA)], NOW)
    assert not refusals
    assert found.ttl == 9000
    assert found.learned + found.ttl <= NOW + 9000


@pytest.mark.parametrize("ahead", [0.0, 20.0, 299.0])
@pytest.mark.parametrize("snapshot", [False, True])
def test_an_answer_is_no_younger_because_its_senders_clock_is_ahead(ahead: float, snapshot: bool) -> None:
    (message,) = codec().encode([address(age=100 - ahead)], NOW + ahead)[0]
    (found,), refusals = codec("beta", snapshot=snapshot).decode_all([(message, ALPHA)], NOW)
    assert (found.learned, found.ttl, refusals) == (NOW - 100, 300, [])


def test_left_out() -> None:
    expired = address(age=300)
    large = answer(rrset("large.test.", rrtypes.TXT, bytes(60_000)), qtype=rrtypes.TXT)
    messages, left_out = codec().encode([expired, address(), large], NOW)
    assert len(messages) == 1
    assert left_out == [(expired, Refusal.EXPIRED), (large, Refusal.OVERSIZE)]
    assert codec().encode([expired], NOW)[0] == []


def test_split_by_bytes() -> None:
    answers = [address(f"n{number}.test.", number) for number in range(200)]
    messages, _ = codec(max_message=2048).encode(answers, NOW)
    assert max(map(len, messages)) <= 2048
    receiver = codec("beta")
    found, refusals = receiver.decode_all([(message, ALPHA) for message in messages], NOW)
    assert (found, refusals) == (came(answers), [])
    assert receiver.counters()["blocks"] == len(messages)


@pytest.mark.parametrize("size", [100, 2 << 20])
def test_a_limit_out_of_range(size: int) -> None:
    with pytest.raises(ConfigError, match="2048 to 1048576"):
        codec(max_message=size)


# Whose


def test_senders() -> None:
    sender = codec()
    for who, options, refusal in (
        (ALPHA, {}, None),
        ("beta.test", {}, Refusal.UNKNOWN_KEY),
        (("127.0.0.1", 5), {}, Refusal.UNSIGNED),
        (("127.0.0.1", 5), {"insecure_link": True}, None),
        (("::1", 5, 0, 0), {"insecure_link": True}, None),
        (("192.0.2.1", 5), {"insecure_link": True}, Refusal.UNSIGNED),
        (ALPHA, {"peers": {ALPHA: Peer(frozenset({"gamma"}))}}, Refusal.WRONG_ORIGIN),
        (ALPHA, {"peers": {ALPHA: Peer()}}, None),
    ):
        receiver = codec("beta", **options)  # type: ignore[arg-type] -- options of any kind
        message = sender.encode([address()], NOW)[0][0]
        answers, refusals = receiver.decode_all([(message, who)], NOW)
        assert refusals == ([] if refusal is None else [refusal]), who
        assert len(answers) == (refusal is None)
        if answers:
            assert answers[0].signer == (who if isinstance(who, str) else "")


def test_evidence_is_capped_by_what_the_peer_may_claim() -> None:
    signed = address("s.test.", signed=True, evidence=Evidence.VALIDATED)
    message = codec().encode([signed, address()], NOW)[0][0]
    weak = {ALPHA: Peer(frozenset({"alpha"}), Evidence.CONFIRMED)}
    found, _ = codec("beta", peers=weak).decode_all([(message, ALPHA)], NOW)
    assert [one.evidence for one in found] == [Evidence.CONFIRMED, Evidence.CONFIRMED]
    strict = codec("beta", peers=weak, accept=frozenset({Evidence.VALIDATED}))
    assert strict.decode_all([(message, ALPHA)], NOW) == ([], [Refusal.EVIDENCE_TOO_WEAK] * 2)


def test_validated_needs_rrsigs_and_the_flag() -> None:
    unsigned = address(evidence=Evidence.VALIDATED)
    assert pass_on(codec(), codec("beta"), [unsigned]) == [Refusal.RRSIG_MISSING]
    message = codec().encode([address("s.test.", signed=True, evidence=Evidence.VALIDATED)], NOW)[0][0]
    flag, level = b"\x06\x19\x02\x00", b"\x0a\xa1\x38\x63\x03"
    assert flag in message
    assert level in message
    for altered in (message.replace(flag, b"\x06\x19\x40\x00"), message.replace(level, level[:-1] + b"\x02")):
        assert codec("beta").decode_all([(altered, ALPHA)], NOW) == ([], [Refusal.MALFORMED])


@pytest.mark.parametrize("level", [0, 4, 8, 23])
def test_an_impossible_level(level: int) -> None:
    message = (
        codec().encode([address()], NOW)[0][0].replace(b"\x0a\xa1\x38\x63\x02", b"\x0a\xa1\x38\x63" + bytes((level,)))
    )
    assert codec("beta").decode_all([(message, ALPHA)], NOW) == ([], [Refusal.MALFORMED])


# When, and what number


def test_time_and_order() -> None:
    sender, receiver = codec(), codec("beta")
    first, second, third = (sender.encode([address()], NOW)[0][0] for _ in range(3))

    def refused(message: bytes, now: float = NOW) -> list[Refusal]:
        return receiver.decode_all([(message, ALPHA)], now)[1]

    assert refused(first) == []
    assert refused(first) == [Refusal.DUPLICATE]
    assert refused(third) == []
    assert receiver.counters()["gaps"] == 1
    assert refused(second) == []
    counters = receiver.counters()
    assert (counters["gaps"], counters["reordered"], counters["duplicates"], counters["blocks"]) == (0, 1, 1, 3)
    late = sender.encode([address()], NOW)[0][0]
    assert refused(late, NOW + 61) == [Refusal.EXPIRED]
    assert refused(late, NOW - 301) == [Refusal.BAD_TIME]
    assert codec("beta", start=NOW + 1).decode_all([(late, ALPHA)], NOW + 2)[1] == [Refusal.BEFORE_START]
    again = codec(start=NOW + 20)
    assert refused(again.encode([address()], NOW + 21)[0][0], NOW + 21) == []
    assert refused(late, NOW + 22) == [Refusal.OLD_STREAM]
    assert receiver.counters()["restarts"] == 1


def test_clusters_and_namesakes() -> None:
    sender = codec()
    own = sender.encode([address()], NOW)[0][0]
    peers = {ALPHA: Peer()}
    namesake = codec(peers=peers, start=NOW - 5)
    assert namesake.decode_all([(own, ALPHA)], NOW) == ([], [Refusal.OWN_MESSAGE])
    assert namesake.counters()["namesakes"] == 1
    assert sender.decode_all([(own, ALPHA)], NOW) == ([], [Refusal.OWN_MESSAGE])
    assert sender.counters()["namesakes"] == 0
    foreign = sender.framing.before + write_block(BlockHead(1, 1, int(NOW * 1000), "other"), [address()])
    assert codec("beta").decode_all([(foreign, ALPHA)], NOW) == ([], [Refusal.WRONG_CLUSTER])


def test_malformed_blocks_use_no_number_up() -> None:
    sender, receiver = codec(), codec("beta")
    message = sender.encode([address()], NOW)[0][0]
    for broken in (message[:-1], message + b"\0", b"", message.replace(b"\xc0\0\2\1", b"\xc0\0\2")):
        assert receiver.decode_all([(broken, ALPHA)], NOW)[1] == [Refusal.MALFORMED]
    assert receiver.decode_all([(message, ALPHA)], NOW)[1] == []


def test_hints_without_ttl_or_rdata_are_refused() -> None:
    sender = codec()
    message = sender.encode([address()], NOW)[0][0]
    for hint in (b"\x00", b"\x01", b"\x02"):
        said = message.replace(b"\x02\x03\x03\x00\x03\x81\x00", b"\x02" + hint + b"\x03\x00\x03\x81\x00", 1)
        assert said != message
        assert codec("beta").decode_all([(said, ALPHA)], NOW)[1] == [Refusal.MALFORMED]
    no_ticks = message.replace(b"\x00\x19\x03\xe8", b"\x00\x19\x00\x00", 1)
    assert codec("beta").decode_all([(no_ticks, ALPHA)], NOW)[1] == [Refusal.MALFORMED]


# Form: the rules of the batch codec's tests stand in form.py; here, that every way leads there


@pytest.mark.parametrize(
    ("made", "refusal"),
    [
        (answer(rrset("a.test.", rrtypes.A, b"\1\2\3")), Refusal.MALFORMED),
        (answer(rrset("a.test.", rrtypes.A, b"\1\2\3\4")._replace(ttl=1 << 31)), Refusal.TTL_ZERO),
        (answer(rrset("a.test.", rrtypes.A, b"\1\2\3\4"), qtype=rrtypes.AAAA), Refusal.NO_ANSWER),
        (answer(rrset("a.test.", rrtypes.NS, b"\0"), qtype=rrtypes.NS), Refusal.QTYPE),
        (answer(ALIAS._replace(owner=b"\1b\4test\0"), rrset("c.test.", rrtypes.A, b"abcd")), Refusal.CHAIN_LOOP),
        (answer(ALIAS, rrset("c.test.", rrtypes.A, b"abcd")), Refusal.NO_ANSWER),
        (address()._replace(qname=b"\3WWW\7example\3com\0"), Refusal.MALFORMED),
        (address()._replace(qname=b"\3www"), Refusal.MALFORMED),
    ],
)  # fmt: skip
def test_form(made: Answer, refusal: Refusal) -> None:
    assert pass_on(codec(), codec("beta"), [made]) == [refusal]


def test_one_bad_name_costs_only_its_answer() -> None:
    bad = address("bad.test.")._replace(qname=b"\3www")
    message = codec().encode([address(), bad, address("good.test.")], NOW)[0][0]
    found, refusals = codec("beta").decode_all([(message, ALPHA)], NOW)
    assert [one.name for one in found] == ["www.example.com.", "good.test."]
    assert refusals == [Refusal.MALFORMED]


def test_nothing_left_of_it_on_arrival() -> None:
    message = codec().encode([address(ttl=30)], NOW)[0][0]
    assert codec("beta").decode_all([(message, ALPHA)], NOW + 30) == ([], [Refusal.EXPIRED])


# Hello, state, snapshots


def test_hello() -> None:
    sender, receiver = codec(policy_hash="abc"), codec("beta", policy_hash="abd")
    sender.encode([address()], NOW)
    assert receiver.decode_all([(sender.hello(NOW), ALPHA)], NOW) == ([], [])
    assert receiver.counters()["hellos"] == 1
    assert receiver.counters()["policy_differs"] == 1
    assert receiver.presence()["alpha"].policy_agrees is False
    assert receiver.decode_all([(codec().hello(NOW), ALPHA)], NOW)[0] == []
    sender.encode([address()], NOW)
    receiver.decode_all([(sender.hello(NOW), ALPHA)], NOW)
    assert sender.will() is None
    assert receiver.clock_offsets(NOW) == {"alpha": 0.0}


def test_a_hello_shows_what_was_lost_before_it() -> None:
    sender, receiver = codec(), codec("beta")
    receiver.decode_all([(sender.hello(NOW), ALPHA)], NOW)
    sender.encode([address()], NOW)
    receiver.decode_all([(sender.hello(NOW), ALPHA)], NOW)
    assert receiver.counters()["gaps"] == 1


def test_state_lives_on() -> None:
    sender, receiver = codec(), codec("beta")
    old = sender.encode([address()], NOW)[0][0]
    new = codec(start=NOW - 1)
    receiver.decode_all([(new.encode([address()], NOW)[0][0], ALPHA)], NOW)
    restarted = codec("beta")
    restarted.restore(receiver.state())
    assert restarted.decode_all([(old, ALPHA)], NOW)[1] == [Refusal.OLD_STREAM]
    assert {"alpha", "beta"} == receiver.state().keys()
    behind = codec("beta", start=NOW - 1000)  # its clock was set back
    behind.restore(receiver.state())
    assert behind.state()["beta"] > receiver.state()["beta"]
    reloaded = codec("beta")
    reloaded.inherit(receiver)
    assert reloaded.state() == receiver.state()
    reloaded.tick(1.0)
    assert codec("gamma", start=None).state() == {}


def test_what_the_codec_before_a_reload_sends_to_its_end_costs_the_next_one_nothing() -> None:
    before, after, receiver = codec(), codec(start=NOW), codec("beta")
    after.inherit(before)  # while the one before it still has answers to send
    for sender in (before, before, after):
        assert pass_on(sender, receiver, [address()]) == []
    assert receiver.counters()["duplicates"] == 0


def test_snapshots_keep_origins_and_age() -> None:
    answers = [address("a.test."), address("b.test.", origin="gamma", age=250), address("c.test.", origin="beta")]
    sender = codec(start=None)
    messages, _ = sender.encode(answers, NOW)
    assert len(messages) == 3
    assert codec("beta").decode_all([(message, ALPHA) for message in messages], NOW) == (
        came(answers[:1]), [Refusal.WRONG_ORIGIN] * 2,
    )  # fmt: skip
    reader = codec("beta", snapshot=True, start=None)
    assert reader.decode_all([(message, ALPHA) for message in messages], NOW + 20) == (came(answers), [])
    stranger = codec("beta", snapshot=True, start=None, peers={ALPHA: Peer(frozenset({"delta"}))})
    assert set(stranger.decode_all([(message, ALPHA) for message in messages], NOW)[1]) == {Refusal.WRONG_ORIGIN}


@pytest.mark.parametrize("origin", ["a\nb", "\x1b[2J", "x" * 64, "\u0430lpha", ""])
def test_an_origin_is_a_name_or_an_address(origin: str) -> None:
    copying = codec("beta", snapshot=True, peers={ALPHA: Peer()})
    for host, learned_by in ((origin, origin), ("alpha", origin)):
        if not learned_by and host:
            continue
        (message,) = codec(host).encode([address()._replace(origin=learned_by)], NOW)[0]
        assert copying.decode_all([(message, ALPHA)], NOW) == ([], [Refusal.WRONG_ORIGIN])
    sender = codec(start=NOW)
    for learned_by in ("c-1", "192.0.2.1", "fe80::1%eth0"):
        (message,) = sender.encode([address()._replace(origin=learned_by)], NOW)[0]
        assert copying.decode_all([(message, ALPHA)], NOW)[0][0].origin == learned_by


def test_a_copy_names_no_more_origins_than_a_cluster_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cdns, "MAX_COPIED_ORIGINS", 3)
    sender, copying = codec(), codec("beta", snapshot=True)
    messages, _ = sender.encode([address()._replace(origin=f"n{number % 5}") for number in range(10)], NOW)
    messages += sender.encode([address()._replace(origin="n1")], NOW)[0]
    found, refusals = copying.decode_all([(message, ALPHA) for message in messages], NOW)
    assert {one.origin for one in found} == {"n0", "n1", "n2"}
    assert refusals == [Refusal.OVERLOAD] * 2


def test_a_senders_name_instead_of_its_address_is_nobodys() -> None:
    (message,) = codec().encode([address()], NOW)[0]
    receiver = codec("beta", insecure_link=True)
    assert receiver.decode_all([(message, ("localhost", 1))], NOW) == ([], [Refusal.UNSIGNED])


def test_memory_of_senders_is_bounded() -> None:
    receiver = codec("beta")
    for number in range(20_100):
        receiver.decode_all([(b"", (f"192.0.{number >> 8}.{number & 255}", 53))], NOW)
    assert len(receiver._senders) <= 10_000
