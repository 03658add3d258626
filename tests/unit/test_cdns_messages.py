"""C-DNS captures as DNS messages and dnstap frames: what other writers' files say, and what they leave open."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cbor2
import pytest

from cachebus.answer import Evidence, Refusal
from cachebus.errors import FrameError
from cachebus.filters.settings import JudgeSettings
from cachebus.filters.trust import DnstapJudge
from cachebus.presentation import name_from_text
from cachebus.sources.file import Format, open_capture, recognise
from cachebus.wire.cdns_messages import Captured, CdnsFileReceiver, read_messages
from cachebus.wire.cdns_stream import CdnsSplitter, PreambleReader
from cachebus.wire.dnstap import MessageType, SocketProtocol, decode
from cachebus.wire.framestream import FrameStreamReceiver
from cachebus.wire.message import AA, AD, CD, QR, RD, parse
from tests.cdns_bed import DATA, NOW, codec, loads, some_answers

COMPACTOR = DATA / "compactor-unbound.cdns"
WWW, ZONE = name_from_text("www.Example.test."), name_from_text("example.test.")

FILE: list[Any] = [
    "C-DNS",
    {0: 1, 1: 0, 3: [{0: {0: 1000, 1: 100, 2: {0: 0x3FFFF, 1: 0x1FFFF, 2: 3, 3: 0}, 3: [0], 4: [1]}}]},
    [
        {
            0: {0: [1_800_000_000, 500]},
            2: {
                0: [bytes((192, 0, 2, 1)), bytes((192, 0, 2, 53))],
                1: [{0: 1, 1: 1}, {0: 41, 1: 1232}],
                2: [WWW, bytes((198, 51, 100, 7)), ZONE, b"\0", b""],
                3: [{0: 1, 1: 53, 2: 0, 3: 2, 4: 15, 5: 0, 6: 1 << 14 | 1 << 4 | 3 << 15, 8: 0, 9: 1, 14: 1232, 16: 0}],
                6: [[0], [1]],
                7: [{0: 0, 1: 0, 2: 300, 3: 1}, {0: 3, 1: 1, 2: 0, 3: 4}],
            },
            3: [{0: 250, 1: 0, 2: 4321, 3: 77, 4: 0, 6: 30, 7: 0, 10: {0: 2}, 11: {}, 12: {1: 0, 3: 1}}],
        }
    ],
]
"""A file that leaves nothing open: one query of a resolver with the authoritative response to it."""


def changed(*changes: tuple[tuple[Any, ...], Any]) -> list[Any]:
    """`FILE` with values set, or left out where they are None."""
    value = copy.deepcopy(FILE)
    for path, new in changes:
        at = value
        for key in path[:-1]:
            at = at[key]
        if new is None:
            del at[path[-1]]
        else:
            at[path[-1]] = new
    return value


def messages(value: Any) -> list[Captured | None]:
    found = []
    for message in CdnsSplitter(closed=True).receive_data(cbor2.dumps(value)):
        found += list(read_messages(message, PreambleReader()))
    return found


def some(value: Any) -> list[Captured]:
    found = messages(value)
    assert None not in found
    return [one for one in found if one is not None]


SIGNATURE = (2, 0, 2, 3, 0)
ITEM = (2, 0, 3, 0)
STORAGE = (1, 3, 0, 0)


def test_a_pair() -> None:
    query, response = some(FILE)
    assert (query.kind, response.kind) == (MessageType.RESOLVER_QUERY, MessageType.RESOLVER_RESPONSE)
    assert (query.time, response.time) == pytest.approx((1_800_000_000.75, 1_800_000_000.78))
    assert (query.zone, response.zone) == (None, ZONE)
    for one in (query, response):
        assert (one.query_address, one.query_port) == (bytes((192, 0, 2, 1)), 4321)
        assert (one.response_address, one.response_port) == (bytes((192, 0, 2, 53)), 53)
        assert one.protocol is SocketProtocol.UDP
    asked, answered = parse(query.wire), parse(response.wire)
    assert (asked.id, asked.flags, asked.question) == (77, RD, WWW + b"\0\1\0\1")
    assert asked.opt is not None
    assert asked.opt.payload == 1232
    assert (answered.id, answered.flags, answered.question) == (77, QR | AA, asked.question)
    assert answered.answer[0].rrs.endswith(bytes((198, 51, 100, 7)))
    assert answered.answer[0].ttl == 300
    assert answered.opt is not None


def test_the_rules_of_evidence_take_it() -> None:
    judge = DnstapJudge(JudgeSettings(trust=frozenset({Evidence.AUTHORITATIVE})))
    verdicts = [verdict for one in some(FILE) for verdict in judge.feed(one.payload(), one.time)]
    (verdict,) = verdicts
    assert verdict.answer is not None
    assert verdict.answer.name == "www.example.test."
    assert verdict.answer.evidence is Evidence.AUTHORITATIVE
    assert verdict.answer.learned == pytest.approx(1_800_000_000.78)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ([((*ITEM, 10), None)], Refusal.NO_QUERY_ZONE),
        ([((*SIGNATURE, 4), 2)], Refusal.UNPAIRED),  # a response alone
        ([((*STORAGE, 5), 4)], Refusal.UNPAIRED),  # names whose case is lost: who knows what was asked
        ([((*SIGNATURE, 6), 1 << 4)], Refusal.NOT_AUTHORITATIVE),
        ([((*SIGNATURE, 16), 3)], Refusal.RCODE),
        ([((*SIGNATURE, 4), 15 | 32)], Refusal.QUESTION_COUNT),
        ([((*SIGNATURE, 6), 1 << 14 | 1 << 13)], Refusal.TRUNCATED),
        ([((*SIGNATURE, 5), 4)], Refusal.OPCODE),
        ([((2, 0, 2, 2, 2), name_from_text("other.test."))], Refusal.OUT_OF_ZONE),
        ([((*ITEM, 12), {})], Refusal.NO_ANSWER),
    ],
)
def test_what_the_rules_of_evidence_refuse(changes: list[Any], reason: Refusal) -> None:
    judge = DnstapJudge(JudgeSettings(trust=frozenset({Evidence.AUTHORITATIVE})))
    verdicts = [verdict for one in some(changed(*changes)) for verdict in judge.feed(one.payload(), one.time)]
    verdicts += judge.expire(NOW + 100)
    assert [verdict.reason for verdict in verdicts] == [reason]


@pytest.mark.parametrize(
    ("flags", "kinds"),
    [
        (1, [MessageType.RESOLVER_QUERY]),
        (2, [MessageType.RESOLVER_RESPONSE]),
        (3, [MessageType.RESOLVER_QUERY, MessageType.RESOLVER_RESPONSE]),
        (3 | 16, [MessageType.RESOLVER_RESPONSE]),
        (1 | 16, [MessageType.RESOLVER_QUERY]),
        (2 | 32, [MessageType.RESOLVER_RESPONSE]),
    ],
)
def test_what_an_item_holds(flags: int, kinds: list[MessageType]) -> None:
    found = some(changed(((*SIGNATURE, 4), flags)))
    assert [one.kind for one in found] == kinds
    assert all(
        parse(one.wire).questions == (0 if flags & 48 and len(kinds) == 1 and flags != 19 else 1) for one in found
    )


@pytest.mark.parametrize(
    ("kind", "said"), [(0, "STUB"), (1, "CLIENT"), (2, "RESOLVER"), (3, "AUTH"), (4, "FORWARDER"), (5, "TOOL")]
)
def test_kinds(kind: int, said: str) -> None:
    found = some(changed(((*SIGNATURE, 3), kind)))
    assert [one.kind.name for one in found] == [f"{said}_QUERY", f"{said}_RESPONSE"]


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        ([((*ITEM, 4), None)], 1),  # no signature: neither flags nor kind
        ([((*SIGNATURE, 4), None)], 1),
        ([((*SIGNATURE, 4), 0)], 1),
        ([((*SIGNATURE, 3), None)], 1),
        ([((*SIGNATURE, 3), 9)], 1),
        ([((*SIGNATURE, 16), None), ((*SIGNATURE, 4), 2)], 1),  # no RCODE
        ([((*SIGNATURE, 16), 16), ((*ITEM, 12), {1: 0}), ((*SIGNATURE, 4), 2)], 1),  # its upper bits have no place
        ([((*ITEM, 7), None)], 2),
        ([((*SIGNATURE, 8), None)], 2),
    ],
)
def test_items_that_say_too_little(changes: list[Any], count: int) -> None:
    value = changed(*changes)
    assert messages(value) == [None] * count
    assert list(CdnsFileReceiver().receive_data(cbor2.dumps(value))) == [b""] * count


def test_what_dnstap_cannot_say_is_counted_too() -> None:
    value = changed(((2, 0, 2, 2, 2), b"\x3fno name"))
    payloads = list(CdnsFileReceiver().receive_data(cbor2.dumps(value)))
    assert [len(payload) > 0 for payload in payloads] == [True, False]
    judge = DnstapJudge(JudgeSettings())
    assert [verdict.reason for verdict in judge.feed(b"", NOW)] == [Refusal.MALFORMED]


def test_flags_addresses_and_times() -> None:
    value = changed(
        ((*SIGNATURE, 6), 1 | 1 << 1 | 1 << 7 | 1 << 8 | 1 << 9),
        ((*SIGNATURE, 2), 1 | 2 << 1),
        ((2, 0, 2, 0), [bytes.fromhex("20010db8"), b""]),
        ((*ITEM, 6), -300),
        ((*SIGNATURE, 13), 1),
    )
    query, response = some(value)
    assert parse(query.wire).flags == CD | AD
    opt = parse(query.wire).opt
    assert opt is not None
    assert (opt.version, opt.do) == (1, True)
    assert parse(response.wire).flags == QR | CD | AD
    assert query.query_address == bytes.fromhex("20010db8").ljust(16, b"\0")  # only its first bits were kept
    assert query.response_address == bytes(16)
    assert query.protocol is SocketProtocol.DOT
    assert response.time == pytest.approx(1_800_000_000.45)
    no_time = some(changed(((2, 0, 0, 0), None)))
    assert {one.time for one in no_time} == {0.0}
    assert {one.time for one in some(changed(((*ITEM, 0), None)))} == {0.0}
    assert {one.query_address for one in some(changed(((*ITEM, 1), None)))} == {b""}


def test_more_questions() -> None:
    value = changed(((*ITEM, 12), {0: 0, 1: 0}), ((2, 0, 2, 4), [[0, 0]]), ((2, 0, 2, 5), [{0: 2, 1: 0}]))
    assert parse(some(value)[1].wire).questions == 3
    assert parse(some(changed(((*SIGNATURE, 9), 0)))[1].wire).questions == 0


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ([((*STORAGE, 2, 2), 1)], "without TTLs or RDATA"),
        ([((*STORAGE, 2, 2), 2)], "without TTLs or RDATA"),
        ([((*STORAGE, 5), 1)], "anonymised"),
        ([((2, 0, 0, 1), 1)], "index leads nowhere"),
        ([((*ITEM, 4), 1)], "index leads nowhere"),
        ([((*ITEM, 7), 9)], "index leads nowhere"),
        ([((*ITEM, 1), 9)], "index leads nowhere"),
        ([((*ITEM, 12), {1: 9})], "index leads nowhere"),
        ([((*ITEM, 12), {0: 0})], "index leads nowhere"),
        ([((*ITEM, 10), {0: 9})], "index leads nowhere"),
        ([((*ITEM, 6), "x")], "integer belongs"),
        ([((*ITEM, 6), True)], "integer belongs"),
        ([((*ITEM, 6), -(1 << 63))], "out of range"),
        ([((2, 0, 0, 0), [1, 2.5])], "unsigned integer"),
        ([((2, 0, 2, 0, 0), bytes(5))], "address is too long"),
        ([((2, 0, 2, 2, 1), bytes(66000))], "more than a message"),
        ([((2, 0, 2, 6, 0), [0] * 5000)], "more than a message"),
        ([((*ITEM, 12), {0: 0}), ((2, 0, 2, 4), [[0] * 20000])], "more than a message"),
        ([((2, 0, 3), [FILE[2][0][3][0]] * 3000), ((2, 0, 2, 2, 1), bytes(60000))], "stands for too much"),
    ],
)
def test_refused_whole(changes: list[Any], reason: str) -> None:
    with pytest.raises(FrameError, match=reason):
        messages(changed(*changes))


# What dns-stats compactor made of a capture of Unbound


def frames(found: Iterable[bytes]) -> list[tuple[MessageType, int, bytes]]:
    return sorted((frame.type, parse(frame.message).id, frame.message) for frame in map(decode, found))


def test_a_compactor_file_says_what_the_capture_said() -> None:
    original = frames(FrameStreamReceiver().receive_data((DATA / "unbound.dnstap").read_bytes()))
    again = frames(open_capture(COMPACTOR))
    assert [one[:2] for one in again] == [one[:2] for one in original]
    for (_, _, before), (_, _, after) in zip(original, again, strict=True):
        was, now = parse(before), parse(after)
        assert (was.question, was.flags, was.rcode) == (now.question, now.flags, now.rcode)
        assert set(was.answer) == set(now.answer)
        assert set(was.authority) == set(now.authority)


def test_a_compactor_file_has_no_zones_and_so_no_evidence() -> None:
    judge = DnstapJudge(JudgeSettings(trust=frozenset(Evidence)))
    reasons = []
    for payload in open_capture(COMPACTOR):
        frame = decode(payload)
        reasons += [verdict.reason for verdict in judge.feed(payload, frame.query_time or frame.response_time)]
    assert set(reasons) == {Refusal.NO_QUERY_ZONE, Refusal.RCODE}


def test_files_are_recognised_and_read(tmp_path: Path) -> None:
    assert recognise(COMPACTOR) is Format.CDNS
    assert Format.CDNS.is_dnstap
    cut = tmp_path / "cut.cdns"
    cut.write_bytes(COMPACTOR.read_bytes()[:-2])
    with pytest.raises(FrameError, match=r"cut\.cdns: the stream ends in a block"):
        list(open_capture(cut))


def test_the_receiver_s_other_side() -> None:
    receiver = CdnsFileReceiver()
    assert not receiver.started
    data = cbor2.dumps(FILE)
    assert list(receiver.receive_data(data[:-1])) == []
    assert receiver.buffered
    assert receiver.started
    assert not receiver.finished
    with pytest.raises(FrameError):
        receiver.receive_end()
    assert len(list(receiver.receive_data(data[-1:]))) == 2
    assert receiver.finished
    assert receiver.data_to_send() == b""


def test_our_own_files_are_files_like_any_other() -> None:
    """Private keys prove nothing in a file: their answers read as responses without a query."""
    answers = some_answers()
    message = codec().encode(answers, NOW)[0][0]
    found = some(loads(message))
    assert [parse(one.wire).qname for one in found] == [one.qname for one in answers]
    judge = DnstapJudge(JudgeSettings(trust=frozenset(Evidence)))
    verdicts = [verdict for one in found for verdict in judge.feed(one.payload(), one.time)] + judge.expire(NOW + 99)
    assert {verdict.reason for verdict in verdicts} <= {
        Refusal.NO_QUERY_ZONE,
        Refusal.NOT_AUTHORITATIVE,
        Refusal.UNPAIRED,
    }
