"""The judge of dnstap sources: pairing, confirmation, chains of several responses, levels, memory."""

from __future__ import annotations

import itertools
from ipaddress import ip_network
from pathlib import Path

import pytest

from cachebus.answer import Answer, Evidence, Refusal
from cachebus.errors import ConfigError
from cachebus.filters import pairing, pending, trust
from cachebus.filters.settings import JudgeSettings, Pairing, ResolverFrames
from cachebus.filters.trust import DnstapJudge
from cachebus.filters.verdict import Verdict
from cachebus.presentation import name_from_text, type_to_text
from cachebus.wire.dnstap import decode
from cachebus.wire.framestream import FrameStreamReceiver
from cachebus.wire.message import cname_target, records
from tests.trust_frames import NOW, ZONE, Lab, Outcome, frame, message, rdatas, rrsig, run, settings

DATA = Path(__file__).parent.parent / "data"
AUTHORITATIVE, CONFIRMED, VALIDATED = Evidence
WWW = "www.example.test."
A1 = f"{WWW} 300 A 192.0.2.1"
A2 = f"{WWW} 300 A 192.0.2.2"


def capture(name: str, using: JudgeSettings) -> tuple[Outcome, DnstapJudge]:
    """A captured file judged at its own times."""
    judge = DnstapJudge(using)
    outcome = Outcome()
    now = 0.0
    for payload in FrameStreamReceiver().receive_data((DATA / f"{name}.dnstap").read_bytes()):
        decoded = decode(payload)
        now = max(now, decoded.response_time if decoded.is_response else decoded.query_time)
        outcome.verdicts += judge.feed(payload, now)
    outcome.verdicts += judge.expire(now + 60)
    return outcome, judge


# Captures of real servers


@pytest.mark.parametrize("level", [AUTHORITATIVE, CONFIRMED])
def test_of_the_evil_capture_exactly_two_records_are_accepted(level: Evidence) -> None:
    outcome, judge = capture("unbound-evil", settings(level))
    assert {v.frame for v in outcome.verdicts if v.answer} == {3, 7}
    assert outcome.shown() == {
        ("ok.example.test.", "A", 300, "confirmed"),
        ("oob.example.test.", "A", 300, "confirmed"),
    }
    assert outcome.owners() == {"ok.example.test.", "oob.example.test."}
    assert all(len(records(rrset.rrs)) == 1 for answer in outcome.answers for rrset in answer.rrsets)
    assert judge.refusals == {
        Refusal.RCODE: 5,
        Refusal.QUESTION_MISMATCH: 8,
        Refusal.NOT_A_RESPONSE: 8,
        Refusal.TRUNCATED: 8,
    }


def test_the_evil_capture_gives_nothing_validated() -> None:
    assert not capture("unbound-evil", settings(VALIDATED))[0].answers


def test_unbound_confirms_all_its_answers() -> None:
    outcome, _ = capture("unbound", settings())
    assert {(a.name, a.type, len(a.rrsets)) for a in outcome.answers} == {
        ("www.example.test.", "A", 1),
        ("www.example.test.", "AAAA", 1),
        ("alias.example.test.", "A", 2),
        ("txt.example.test.", "TXT", 1),
        ("mail.example.test.", "MX", 1),
        ("host.sub.example.test.", "A", 1),
        ("big.example.test.", "TXT", 1),
    }
    assert outcome.reasons == {Refusal.NO_ANSWER, Refusal.RCODE}


def test_bind_logs_the_client_before_the_resolver() -> None:
    outcome, _ = capture("bind", settings())
    assert outcome.questions() == {
        ("www.example.test.", "A"),
        ("alias.example.test.", "A"),
        ("host.sub.example.test.", "A"),
    }
    assert {answer.evidence for answer in outcome.answers} == {CONFIRMED}


def test_unbound_with_many_queries_at_once_told_the_whole_hostile_list() -> None:
    """A lying server's answers (A 203.0.113.66) and its honest ones, asked for within 0.1 s; see `pairing`."""
    outcome, judge = capture("unbound-concurrent", settings())
    assert outcome.questions() == {
        *(
            (f"{name}.evil.test.", "A")
            for name in ("www.honest", "sentinel.honest", "www.out-of-zone", "www.sibling-zone")
        ),
        ("www.cname-out.evil.test.", "A"),
        ("www.bank.test.", "A"),
        ("www.nodata-with-cname.evil.test.", "CNAME"),
        ("honest.signedevil.test.", "A"),
        ("ttl-above-signed.signedevil.test.", "A"),
    }
    assert not any(bytes((203, 0, 113, 66)) in rdatas(answer) for answer in outcome.answers)
    assert {answer.name for answer in outcome.answers if answer.evidence is VALIDATED} == {
        "honest.signedevil.test.",
        "ttl-above-signed.signedevil.test.",
    }
    assert Refusal.UNPAIRED not in judge.refusals
    assert sum(judge.refusals.values()) == 108


def test_powerdns_needs_authoritative() -> None:
    assert not capture("pdns-recursor", settings())[0].answers
    outcome, _ = capture("pdns-recursor", settings(AUTHORITATIVE))
    assert outcome.questions() == {("www.example.test.", "A"), ("alias.example.test.", "A")}


@pytest.mark.parametrize("name", ["kresd", "dnsdist"])
def test_servers_without_resolver_frames_give_nothing_without_ad(name: str) -> None:
    assert not capture(name, settings(AUTHORITATIVE))[0].answers
    outcome, _ = capture(name, settings(AUTHORITATIVE, resolver_frames=ResolverFrames.NONE))
    assert not outcome.answers
    assert outcome.reasons == {Refusal.NOT_VALIDATED, Refusal.RCODE}


def test_new_and_unknown_types_pass() -> None:
    outcome, _ = capture("https65", settings(AUTHORITATIVE))
    assert {answer.type for answer in outcome.answers} == {"HTTPS", "A", "TYPE65400", "TLSA"}


# Pairing and confirmation


def test_any_order_of_query_response_and_client_gives_the_same() -> None:
    for order in itertools.permutations(range(3)):
        frames = Lab().learned(WWW, "A", [A1, A2])
        outcome = run([frames[index] for index in order])
        assert outcome.shown() == {(WWW, "A", 300, "confirmed")}, order
        assert not outcome.refusals


def test_authoritative_is_given_at_once_and_rises() -> None:
    lab = Lab()
    answer = [A1, rrsig(WWW, "A")]
    query, told = lab.exchange(WWW, "A", answer)
    judge = DnstapJudge(settings(AUTHORITATIVE))
    clients = [
        lab.client(WWW, "A", [A1]),
        lab.client(WWW, "A", answer, flags="QR RD RA AD"),
        lab.client(WWW, "A", [A1]),
    ]
    fed = [judge.feed(payload, NOW) for payload in (query, told, *clients)]
    levels = [[verdict.answer.evidence for verdict in verdicts if verdict.answer] for verdicts in fed]
    assert levels == [[], [AUTHORITATIVE], [CONFIRMED], [VALIDATED], []]
    assert not judge.expire(NOW + 60)


def test_confirmed_is_given_with_the_client_response_and_not_before() -> None:
    lab = Lab()
    judge = DnstapJudge(settings())
    given = [len(judge.feed(payload, NOW)) for payload in lab.learned(WWW, "A", [A1])]
    assert given == [0, 0, 1]


def test_the_smaller_ttl_counts() -> None:
    lab = Lab()
    frames = [*lab.exchange(WWW, "A", [A1]), lab.client(WWW, "A", [f"{WWW} 120 A 192.0.2.1"])]
    assert run(frames).shown() == {(WWW, "A", 120, "confirmed")}


def test_order_and_letter_case_in_rdata_make_no_difference() -> None:
    lab = Lab()
    frames = [
        *lab.exchange(WWW, "MX", [f"{WWW} 300 MX 10 A.example.test.", f"{WWW} 300 MX 20 b.example.test."]),
        lab.client(WWW, "MX", [f"{WWW} 300 MX 20 B.example.test.", f"{WWW} 300 MX 10 a.EXAMPLE.test."]),
    ]
    assert run(frames).shown() == {(WWW, "MX", 300, "confirmed")}


@pytest.mark.parametrize("told", [[A1], [A1, A2, f"{WWW} 300 A 192.0.2.3"], [f"{WWW} 300 TXT x"], []])
def test_another_set_of_rdata_confirms_nothing(told: list[str]) -> None:
    lab = Lab()
    outcome = run([*lab.exchange(WWW, "A", [A1, A2]), lab.client(WWW, "A", told)])
    assert outcome.reasons == {Refusal.UNCONFIRMED}


def test_a_client_after_the_window_confirms_nothing() -> None:
    lab = Lab()
    judge = DnstapJudge(settings())
    verdicts = [*judge.feed(lab.exchange(WWW, "A", [A1])[0], NOW)]
    lab = Lab()
    for payload in lab.exchange(WWW, "A", [A1]):
        verdicts += judge.feed(payload, NOW)
    verdicts += judge.feed(lab.client(WWW, "A", [A1], later=10.5), NOW + 10.5)
    assert [v.reason for v in verdicts if v.frame == 3] == [Refusal.UNCONFIRMED]


def test_frame_times_count_too_where_frames_arrive_late() -> None:
    lab = Lab()
    frames = [*lab.exchange(WWW, "A", [A1]), lab.client(WWW, "A", [A1], later=-11)]
    assert run(frames).reasons == {Refusal.UNCONFIRMED}


def test_what_is_left_of_an_older_copy_does_not_confirm_a_refresh() -> None:
    lab = Lab()
    stale = lab.client(WWW, "A", [f"{WWW} 30 A 192.0.2.1"], later=-1)
    fetched = lab.exchange(WWW, "A", [A1])
    assert run([stale, *fetched]).reasons == {Refusal.UNCONFIRMED}
    fresh = lab.client(WWW, "A", [f"{WWW} 299 A 192.0.2.1"], later=1)
    assert run([stale, *fetched, fresh]).shown() == {(WWW, "A", 299, "confirmed")}


def test_ad_validates_only_with_signatures() -> None:
    lab = Lab()
    signed = [A1, rrsig(WWW, "A")]
    frames = [*lab.exchange(WWW, "A", signed), lab.client(WWW, "A", signed, flags="QR RD RA AD")]
    (answer,) = run(frames).answers
    assert answer.evidence is VALIDATED
    assert answer.rrsets[0].sigs
    lab = Lab()
    frames = [*lab.exchange(WWW, "A", [A1]), lab.client(WWW, "A", [A1], flags="QR RD RA AD")]
    assert run(frames).shown() == {(WWW, "A", 300, "confirmed")}


def test_ad_of_the_resolvers_own_frames_means_nothing() -> None:
    lab = Lab()
    answer = [A1, rrsig(WWW, "A")]
    outcome = run(lab.exchange(WWW, "A", answer, flags="QR AA AD"), settings(AUTHORITATIVE))
    assert outcome.shown() == {(WWW, "A", 300, "authoritative")}


def test_pairing_off_takes_a_response_alone() -> None:
    told = Lab().exchange(WWW, "A", [A1])[1]
    assert run([told], settings(AUTHORITATIVE)).reasons == {Refusal.UNPAIRED}
    assert run([told], settings(AUTHORITATIVE, pairing=Pairing.OFF)).shown() == {(WWW, "A", 300, "authoritative")}


def test_a_refused_response_that_comes_first_uses_up_its_query_too() -> None:
    lab = Lab()
    query, told = lab.exchange(WWW, "A", [A1])
    ident = decode(told).message[:2]
    failed = frame(
        "RESOLVER_RESPONSE",
        ident + message(WWW, "A", flags="QR AA", rcode=2)[2:],
        port=decode(told).query_port,
        zone=ZONE,
    )
    outcome = run([failed, query, told], settings(AUTHORITATIVE))
    assert outcome.refusals == {1: Refusal.RCODE, 3: Refusal.UNPAIRED}


def test_two_open_queries_with_one_id_and_port_are_told_apart_by_their_questions() -> None:
    lab = Lab()
    one, two = (
        message(f"{name}.example.test.", "A", [f"{name}.example.test. 300 A 192.0.2.1"], flags="QR AA", ident=9)
        for name in "ab"
    )
    frames = [
        lab.query("a.example.test.", "A", 9, 5000),
        lab.query("b.example.test.", "A", 9, 5000),
        frame("RESOLVER_RESPONSE", two, port=5000, zone=ZONE),
        frame("RESOLVER_RESPONSE", one, port=5000, zone=ZONE),
    ]
    assert run(frames, settings(AUTHORITATIVE)).questions() == {("a.example.test.", "A"), ("b.example.test.", "A")}


def three_open(port: int, question: str = WWW) -> list[bytes]:
    """Queries from ports 5001 to 5003, then a response to the one from 5002 that is logged with `port`."""
    lab = Lab()
    told = message(question, "A", [f"{question} 300 A 192.0.2.1"], flags="QR AA", ident=2)
    names = ("a.example.test.", WWW, "c.example.test.")
    asked = [lab.query(name, "A", number, 5000 + number) for number, name in enumerate(names, 1)]
    return [*asked, frame("RESOLVER_RESPONSE", told, port=port, zone=ZONE)]


def test_unbound_logs_the_port_of_the_socket_it_opened_last() -> None:
    for port in (5002, 5003):
        assert run(three_open(port), settings(AUTHORITATIVE)).questions() == {(WWW, "A")}
    outcome = run(three_open(5003, "WWW.example.test."), settings(AUTHORITATIVE))
    assert outcome.reasons == {Refusal.QUESTION_MISMATCH}


@pytest.mark.parametrize("port", [5000, 5001, 5004])
def test_any_other_port_is_refused(port: int) -> None:
    frames = three_open(port)
    assert run(frames, settings(AUTHORITATIVE)).reasons == {Refusal.UNPAIRED}
    to_come = Lab().query("d.example.test.", "A", 4, 5004)
    assert run([*frames, to_come], settings(AUTHORITATIVE)).reasons == {Refusal.UNPAIRED}


def test_a_port_opened_long_before_the_response_is_refused() -> None:
    frames = three_open(5003)
    more = [Lab().query("d.example.test.", "A", 9, 6000 + number) for number in range(pairing.RECENT_PORTS)]
    assert run([*frames[:3], *more, frames[3]], settings(AUTHORITATIVE)).reasons == {Refusal.UNPAIRED}


def test_a_query_is_used_up_whatever_port_its_response_was_logged_with() -> None:
    frames = three_open(5003)
    outcome = run([*frames, *three_open(5002)[3:], frames[3]], settings(AUTHORITATIVE))
    assert outcome.refusals == {5: Refusal.UNPAIRED, 6: Refusal.UNPAIRED}


def test_another_server_is_another_pair() -> None:
    lab = Lab()
    query, told = lab.exchange(WWW, "A", [A1])
    moved = frame("RESOLVER_RESPONSE", decode(told).message, port=decode(told).query_port, zone=ZONE, server=bytes(4))
    assert run([query, moved], settings(AUTHORITATIVE)).refusals == {2: Refusal.UNPAIRED}


def test_a_checked_client_makes_up_for_an_unchecked_one() -> None:
    lab = Lab()
    unchecked = frame("CLIENT_QUERY", message(WWW, "A", flags="RD CD", ident=1), port=1)
    checked = frame("CLIENT_QUERY", message(WWW, "A", flags="RD", ident=2), port=2)
    exchange = lab.exchange(WWW, "A", [A1])
    assert run([unchecked, *exchange], settings(AUTHORITATIVE)).reasons == {Refusal.CLIENT_CHECKING_DISABLED}
    assert run([unchecked, checked, *exchange], settings(AUTHORITATIVE)).shown() == {(WWW, "A", 300, "authoritative")}


def test_learned_is_the_response_time_within_the_window() -> None:
    for offset, expected in ((-3.5, -3.5), (-600, -10), (600, 0)):
        lab = Lab(time=NOW + offset)
        judge = DnstapJudge(settings(AUTHORITATIVE))
        verdicts = [v for payload in lab.exchange(WWW, "A", [A1]) for v in judge.feed(payload, NOW)]
        assert [v.answer.learned for v in verdicts if v.answer] == [NOW + expected]


@pytest.mark.parametrize("offset", [-7200, 7200])
def test_a_resolver_whose_clock_is_wrong_is_judged_by_its_own_clock(offset: float) -> None:
    lab = Lab(time=NOW + offset)
    held: list[float] = []
    judge = DnstapJudge(settings(), on_held=lambda qname, qtype, expires, negative: held.append(expires))
    outcome = run(lab.learned(WWW, "A", [A1]), judge=judge)
    (answer,) = outcome.answers
    assert answer.evidence is CONFIRMED
    assert answer.learned in (NOW, NOW - 10)
    assert held == [answer.learned + 300]
    late = [*lab.exchange(WWW, "A", [A1]), lab.client(WWW, "A", [A1], later=10.5)]
    assert run(late).reasons == {Refusal.UNCONFIRMED}


def test_a_short_ttl_fetched_again_is_confirmed_by_a_client_logged_first() -> None:
    judge = DnstapJudge(settings())
    short = f"{WWW} 2 A 192.0.2.1"
    answers = []
    for start in (0.0, 2.5, 5.0):
        lab = Lab(serial=int(start * 100), time=NOW + start)
        query, told, client = lab.learned(WWW, "A", [short])
        for payload in (query, client, told):  # all of it half a second late
            answers += [v.answer for v in judge.feed(payload, NOW + start + 0.5)]
    assert [answer.evidence for answer in answers if answer] == [CONFIRMED] * 3


def test_a_clock_that_was_set_back_closes_what_was_open() -> None:
    judge = DnstapJudge(settings())
    verdicts: list[Verdict] = []
    for payload in Lab().exchange(WWW, "A", [A1]):
        verdicts += judge.feed(payload, NOW)
    verdicts += judge.expire(NOW - 86400)
    assert [v.reason for v in verdicts] == [Refusal.UNCONFIRMED]


def test_time_a_little_back_closes_nothing() -> None:
    judge = DnstapJudge(settings())
    frames = Lab().learned(WWW, "A", [A1])
    verdicts = [*judge.feed(frames[0], NOW + 100), *judge.feed(frames[1], NOW), *judge.feed(frames[2], NOW)]
    assert [v.reason for v in verdicts] == [None]


# Chains


def test_a_chain_within_the_zone_is_one_answer() -> None:
    alias = ["alias.example.test. 60 CNAME Www.example.test.", A1, A2]
    (answer,) = run(Lab().learned("alias.example.test.", "A", alias)).answers
    assert (answer.name, answer.type, answer.ttl) == ("alias.example.test.", "A", 60)
    assert [type_to_text(rrset.type) for rrset in answer.rrsets] == ["CNAME", "A"]


OTHER = "www.other.test."
ALIAS = f"alias.example.test. 600 CNAME {OTHER}"
TARGET = f"{OTHER} 300 A 192.0.2.20"


def whole(outcome: Outcome) -> Answer:
    return next(answer for answer in outcome.answers if answer.name == "alias.example.test." and answer.type == "A")


def test_a_chain_across_zones_is_completed_in_any_order() -> None:
    for order in itertools.permutations(range(3)):
        lab = Lab()
        parts = [
            lab.exchange("alias.example.test.", "A", [ALIAS]),
            lab.exchange(OTHER, "A", [TARGET], zone="other.test."),
            [lab.client("alias.example.test.", "A", [ALIAS, TARGET])],
        ]
        outcome = run([payload for index in order for payload in parts[index]])
        answer = whole(outcome)
        assert [rrset.owner for rrset in answer.rrsets] == [
            name_from_text("alias.example.test."),
            name_from_text(OTHER),
        ]
        assert answer.evidence is CONFIRMED
        assert (OTHER, "A") in outcome.questions()
        assert not outcome.refusals


def test_the_answer_is_as_strong_as_its_weakest_rrset() -> None:
    lab = Lab()
    frames = [
        *lab.exchange("alias.example.test.", "A", [ALIAS]),
        *lab.exchange(OTHER, "A", [TARGET], zone="other.test."),
        lab.client(OTHER, "A", [TARGET]),
    ]
    outcome = run(frames, settings(AUTHORITATIVE))
    assert whole(outcome).evidence is AUTHORITATIVE
    assert (OTHER, "A", 300, "confirmed") in outcome.shown()
    assert ("alias.example.test.", "A") not in run(frames).questions()


def test_what_cannot_be_completed_is_shared_under_its_own_name() -> None:
    outcome = run(Lab().learned("alias.example.test.", "A", [ALIAS]))
    assert outcome.shown() == {("alias.example.test.", "CNAME", 600, "confirmed")}


def test_a_target_taken_from_the_resolvers_cache_completes_later_aliases() -> None:
    lab = Lab()
    frames = [
        *lab.learned(OTHER, "A", [TARGET], zone="other.test."),
        *lab.learned("alias.example.test.", "A", [ALIAS, TARGET]),
    ]
    assert [rrset.owner for rrset in whole(run(frames)).rrsets][1] == name_from_text(OTHER)


def test_a_loop_over_several_zones_is_never_an_answer() -> None:
    lab = Lab()
    back = f"{OTHER} 300 CNAME alias.example.test."
    frames = [*lab.exchange("alias.example.test.", "A", [ALIAS]), *lab.exchange(OTHER, "A", [back], zone="other.test.")]
    outcome = run(frames, settings(AUTHORITATIVE))
    assert outcome.questions() == {("alias.example.test.", "CNAME"), (OTHER, "CNAME")}


def test_many_zones_make_no_endless_chain() -> None:
    lab = Lab()
    frames = []
    for number in range(30):
        name, target = f"a.z{number}.test.", f"a.z{number + 1}.test."
        frames += lab.exchange(name, "A", [f"{name} 300 CNAME {target}"], zone=f"z{number}.test.")
    frames += lab.exchange("a.z30.test.", "A", ["a.z30.test. 300 A 192.0.2.1"], zone="z30.test.")
    outcome = run(frames, settings(AUTHORITATIVE))
    assert max(len(answer.rrsets) for answer in outcome.answers) == 12
    assert ("a.z19.test.", "A") in outcome.questions()
    assert ("a.z18.test.", "A") not in outcome.questions()


def test_only_the_confirmed_part_of_a_chain_is_shared() -> None:
    lab = Lab()
    alias = "alias.example.test. 300 CNAME www.example.test."
    blocked = f"{WWW} 300 A 192.0.2.200"
    outcome = run(
        [
            *lab.exchange("alias.example.test.", "A", [alias, A1]),
            lab.client("alias.example.test.", "A", [alias, blocked]),
        ]
    )
    assert outcome.shown() == {("alias.example.test.", "CNAME", 300, "confirmed")}


DNAME = "old.example.test. 600 DNAME new.example.test."


def test_a_dname_gives_its_cname_its_own_ttl_and_is_kept() -> None:
    lab = Lab()
    name, target = "www.old.example.test.", "www.new.example.test. 300 A 192.0.2.7"
    told = [
        DNAME,
        rrsig("old.example.test.", "DNAME", ttl=600, original=600),
        f"{name} 600 CNAME www.new.example.test.",
        target,
    ]
    unbound = [DNAME, f"{name} 0 CNAME www.new.example.test.", target]  # Unbound shows the CNAME with TTL 0
    (answer,) = run([*lab.exchange(name, "A", told), lab.client(name, "A", unbound)]).answers
    assert [(type_to_text(rrset.type), rrset.ttl) for rrset in answer.rrsets] == [
        ("DNAME", 600),
        ("CNAME", 600),
        ("A", 300),
    ]
    assert answer.rrsets[0].sigs
    assert cname_target(answer.rrsets[1]) == name_from_text("www.new.example.test.")
    assert answer.evidence is CONFIRMED


def test_a_signed_dname_chain_is_validated() -> None:
    lab = Lab()
    name = "www.old.example.test."
    told = [
        DNAME,
        rrsig("old.example.test.", "DNAME", ttl=600, original=600),
        f"{name} 0 CNAME www.new.example.test.",
        "www.new.example.test. 300 A 192.0.2.7",
        rrsig("www.new.example.test.", "A"),
    ]
    frames = [*lab.exchange(name, "A", told), lab.client(name, "A", told, flags="QR RD RA AD")]
    assert run(frames, settings(VALIDATED)).shown() == {(name, "A", 300, "validated")}


def test_a_dname_out_of_the_zone_leaves_itself_and_its_cname() -> None:
    lab = Lab()
    name = "www.old.example.test."
    told = ["old.example.test. 600 DNAME other.test.", f"{name} 600 CNAME www.other.test."]
    parts = [*lab.exchange(name, "A", told), lab.client(name, "A", [*told, TARGET])]
    outcome = run(parts)
    assert outcome.questions() == {("old.example.test.", "DNAME"), (name, "CNAME")}
    outcome = run([*parts[:2], *lab.exchange(OTHER, "A", [TARGET], zone="other.test."), parts[2]])
    answer = next(answer for answer in outcome.answers if answer.name == name and answer.type == "A")
    assert [type_to_text(rrset.type) for rrset in answer.rrsets] == ["DNAME", "CNAME", "A"]


@pytest.mark.parametrize(
    ("owner", "alias", "target"),
    [
        ("a.example.test.", "b.a.example.test.", "b.other.test."),  # a CNAME and a DNAME of the same owner
        ("example.test.", "b.example.test.", "b.other.test."),  # a CNAME below a DNAME that does not yield it
    ],
)
def test_responses_that_contradict_each_other_make_no_chain(owner: str, alias: str, target: str) -> None:
    lab = Lab()
    cname = f"a.example.test. 300 CNAME {alias}"
    below = [f"{owner} 300 DNAME other.test.", f"{target} 300 A 192.0.2.1"]
    frames = [*lab.exchange("a.example.test.", "A", [cname]), *lab.exchange(alias, "A", below, zone=".")]
    outcome = run(frames, settings(AUTHORITATIVE))
    assert outcome.questions() == {("a.example.test.", "CNAME"), (alias, "A")}


def test_swild_above_the_question_is_an_answer_of_its_own() -> None:
    lab = Lab()
    swild = "example.test. 900 TYPE65392 \\# 16 015f076578616d706c650474657374 00"
    outside = swild.replace("example.test.", "test.")
    outcome = run(lab.learned(WWW, "A", [A1, swild, outside]))
    assert outcome.shown() == {(WWW, "A", 300, "confirmed"), ("example.test.", "TYPE65392", 900, "confirmed")}
    assert run(lab.learned(WWW, "A", [A1, swild]), settings(CONFIRMED, swild=None)).questions() == {(WWW, "A")}


def test_swild_beside_no_answer_is_kept() -> None:
    swild = "example.test. 900 TYPE65392 \\# 16 015f076578616d706c650474657374 00"
    outcome = run(Lab().exchange(WWW, "A", [swild]), settings(AUTHORITATIVE))
    assert outcome.questions() == {("example.test.", "TYPE65392")}


def test_infrastructure_types_on_request() -> None:
    frames = Lab().learned("sub.example.test.", "NS", ["sub.example.test. 300 NS ns.example.test."])
    assert run(frames).reasons == {Refusal.QTYPE}
    assert run(frames, settings(infrastructure=True)).questions() == {("sub.example.test.", "NS")}


def test_max_ttl() -> None:
    frames = Lab().learned(WWW, "A", [f"{WWW} 999999 A 192.0.2.1"])
    assert run(frames).shown() == {(WWW, "A", 86400, "confirmed")}
    assert run(frames, settings(max_ttl=60)).shown() == {(WWW, "A", 60, "confirmed")}
    assert run(frames, settings(max_ttl=604800)).shown() == {(WWW, "A", 604800, "confirmed")}


# Forwarders, resolvers without resolver frames


def test_a_trusted_forwarder_needs_the_clients_confirmation() -> None:
    using = settings(AUTHORITATIVE, trusted_forwarders=(ip_network("192.0.2.53/32"),))
    lab = Lab()
    exchange = lab.exchange(OTHER, "A", [TARGET], kind="FORWARDER", flags="QR RA AD", zone=None)
    assert run(exchange, using).reasons == {Refusal.UNCONFIRMED}
    assert run([*exchange, lab.client(OTHER, "A", [TARGET])], using).shown() == {(OTHER, "A", 300, "confirmed")}
    assert run(exchange[1:], using).reasons == {Refusal.UNPAIRED}
    assert run(exchange, settings(AUTHORITATIVE)).reasons == {Refusal.UNTRUSTED_FORWARDER}


def test_a_resolver_query_does_not_pair_a_forwarders_response() -> None:
    using = settings(AUTHORITATIVE, trusted_forwarders=(ip_network("192.0.2.0/24"),))
    lab = Lab()
    told = lab.exchange(WWW, "A", [A1], kind="FORWARDER", flags="QR")[1]
    query = lab.query(WWW, "A", int.from_bytes(decode(told).message[:2], "big"), decode(told).query_port)
    assert run([query, told, lab.client(WWW, "A", [A1])], using).refusals == {2: Refusal.UNPAIRED}


def test_a_client_response_stands_alone_only_with_ad_and_signatures() -> None:
    using = settings(CONFIRMED, resolver_frames=ResolverFrames.NONE)
    signed = [A1, rrsig(WWW, "A")]
    ad = "QR RD RA AD"
    lab = Lab()
    assert run([lab.client(WWW, "A", signed, flags=ad)], using).shown() == {(WWW, "A", 300, "validated")}
    assert run([lab.client(WWW, "A", signed)], using).reasons == {Refusal.NOT_VALIDATED}
    assert run([lab.client(WWW, "A", [A1], flags=ad)], using).reasons == {Refusal.RRSIG_MISSING}
    assert run([lab.client(WWW, "A", signed, flags=ad + " CD")], using).reasons == {Refusal.CLIENT_CHECKING_DISABLED}
    assert run(lab.learned(WWW, "A", [A1])[:2], using).answers == []


def test_one_rrset_filled_by_us_anywhere_on_the_chain_is_enough() -> None:
    alias = ["alias.example.test. 300 CNAME www.example.test.", rrsig("alias.example.test.", "CNAME")]
    told = Lab().client("alias.example.test.", "A", [*alias, A1, rrsig(WWW, "A")], flags="QR RD RA AD")
    using = settings(CONFIRMED, resolver_frames=ResolverFrames.NONE)
    www = name_from_text(WWW)
    judge = DnstapJudge(using, is_filled=lambda owner, rrtype, now: (owner, rrtype) == (www, 1))
    assert [verdict.reason for verdict in judge.feed(told, NOW)] == [Refusal.FILLED_BY_US]
    assert run([told], using).shown() == {("alias.example.test.", "A", 300, "validated")}


# What the resolver holds, and what clients cost


def test_on_held_hears_positive_and_negative_answers() -> None:
    held: list[tuple[bytes, int, float, bool]] = []
    judge = DnstapJudge(settings(), on_held=lambda *told: held.append(told))
    lab = Lab()
    soa = "example.test. 120 SOA ns. host. 1 1 1 1 60"
    alias = ["alias.example.test. 50 CNAME www.example.test.", A1]
    for payload in (
        lab.client(WWW, "A", [A1]),
        lab.client("alias.example.test.", "A", alias),
        lab.client("no.example.test.", "A", rcode=3, authority=[soa]),
        lab.client("empty.example.test.", "AAAA", authority=[soa]),
        lab.client(
            "alias2.example.test.", "A", ["alias2.example.test. 20 CNAME no.example.test."], rcode=3, authority=[soa]
        ),
        lab.client("bare.example.test.", "A"),
        lab.client("fail.example.test.", "A", rcode=2),
        lab.client("cd.example.test.", "A", ["cd.example.test. 300 A 192.0.2.1"], flags="QR RD RA CD"),
    ):
        judge.feed(payload, NOW)
    assert held == [
        (name_from_text(WWW), 1, NOW + 300, False),
        (name_from_text("alias.example.test."), 1, NOW + 50, False),
        (name_from_text("no.example.test."), 0, NOW + 60, True),
        (name_from_text("empty.example.test."), 28, NOW + 60, True),
        (name_from_text("alias2.example.test."), 1, NOW + 20, True),
    ]


def test_cache_hits_are_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = []
    real = trust.parse
    monkeypatch.setattr(trust, "parse", lambda wire: parsed.append(1) or real(wire))
    held: list[tuple[bytes, int, float, bool]] = []
    judge = DnstapJudge(settings(AUTHORITATIVE), on_held=lambda *told: held.append(told))
    lab = Lab()
    for payload in lab.learned(WWW, "A", [A1, rrsig(WWW, "A")]):
        judge.feed(payload, NOW)
    before = len(parsed)
    for number in range(1000):
        judge.feed(lab.client(WWW, "A", [A1], later=number / 200), NOW + number / 200)
    assert len(parsed) == before
    assert len(held) == 1


def test_a_client_told_otherwise_is_compared_a_few_times_only(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    monkeypatch.setattr(pending, "same_data", lambda one, other: compared.append(1) and False)
    lab = Lab()
    frames = [*lab.exchange(WWW, "A", [A1]), *(lab.client(WWW, "A", [A2]) for _ in range(100))]
    assert run(frames).reasons == {Refusal.UNCONFIRMED}
    assert len(compared) == pending.MAX_LOOKS


# Bounds


def test_pending_responses_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pending, "MAX_CASES", 10)
    lab = Lab()
    frames = [
        p for n in range(25) for p in lab.exchange(f"n{n}.example.test.", "A", [f"n{n}.example.test. 300 A 192.0.2.1"])
    ]
    outcome = run(frames)
    reasons = list(outcome.refusals.values())
    assert reasons.count(Refusal.OVERLOAD) == 15
    assert reasons.count(Refusal.UNCONFIRMED) == 10
    assert [frame for frame, reason in outcome.refusals.items() if reason is Refusal.OVERLOAD] == list(range(2, 32, 2))


def test_pending_bytes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pending, "MAX_CASE_BYTES", 100_000)
    judge = DnstapJudge(settings())
    lab = Lab()
    long = " ".join(['"' + "x" * 250 + '"'] * 30)
    for number in range(100):
        for payload in lab.exchange(f"t{number}.example.test.", "TXT", [f"t{number}.example.test. 300 TXT {long}"]):
            judge.feed(payload, NOW)
        assert judge.statistics()["pending_bytes"] <= 100_000
    assert judge.refusals[Refusal.OVERLOAD] > 80


def test_responses_that_wait_for_queries_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairing, "MAX_WAITING", 10)
    lab = Lab()
    outcome = run(
        [lab.exchange(f"n{n}.example.test.", "A", [f"n{n}.example.test. 300 A 192.0.2.1"])[1] for n in range(25)]
    )
    reasons = list(outcome.refusals.values())
    assert reasons.count(Refusal.OVERLOAD) == 15
    assert reasons.count(Refusal.UNPAIRED) == 10


def test_queries_are_bounded_and_the_loss_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairing, "MAX_QUERIES", 10)
    judge = DnstapJudge(settings(AUTHORITATIVE))
    lab = Lab()
    exchanges = [lab.exchange(f"n{n}.example.test.", "A", [f"n{n}.example.test. 300 A 192.0.2.1"]) for n in range(25)]
    outcome = run([*(query for query, _ in exchanges), *(told for _, told in exchanges)], judge=judge)
    assert len(outcome.answers) == 10
    assert list(outcome.refusals.values()) == [Refusal.UNPAIRED] * 15
    assert judge.statistics()["forgotten_queries"] == 15


def test_many_aliases_of_one_target_stay_cheap() -> None:
    lab = Lab()
    frames = []
    for number in range(300):
        frames += lab.exchange(f"a{number}.example.test.", "A", [f"a{number}.example.test. 300 CNAME {OTHER}"])
    frames += lab.exchange(OTHER, "A", [TARGET], zone="other.test.")
    judge = DnstapJudge(settings(AUTHORITATIVE))
    given = [verdict.answer for payload in frames for verdict in judge.feed(payload, NOW)]
    assert sum(answer is not None and len(answer.rrsets) == 2 for answer in given) == pending.MAX_WAITERS
    given = [verdict.answer for verdict in judge.expire(NOW + 11)]
    assert sum(answer is not None and len(answer.rrsets) == 2 for answer in given) == 300 - pending.MAX_WAITERS


def test_a_client_given_ttl_0_confirms_nothing() -> None:
    lab = Lab()
    outcome = run([*lab.exchange(WWW, "A", [A1]), lab.client(WWW, "A", [f"{WWW} 0 A 192.0.2.1"])])
    assert outcome.reasons == {Refusal.TTL_ZERO}


def test_a_name_fetched_all_the_time_waits_a_bounded_number_of_times() -> None:
    lab = Lab()
    count = pending.MAX_SAME_RRSET + 6
    frames = [payload for _ in range(count) for payload in lab.exchange(WWW, "A", [A1])]
    outcome = run([*frames, lab.client(WWW, "A", [A1])])
    assert len(outcome.answers) == pending.MAX_SAME_RRSET
    assert list(outcome.refusals.values()) == [Refusal.UNCONFIRMED] * 6


def test_an_alias_in_other_words_is_confirmed_by_its_target_alone() -> None:
    lab = Lab()
    name = "alias.example.test."
    frames = [
        *lab.exchange(name, "A", [f"{name} 300 CNAME {WWW}", A1]),
        lab.client(WWW, "A", [A1]),
        lab.client(name, "A", [f"{name} 300 CNAME WWW.example.test."]),
    ]
    assert run(frames).shown() == {(name, "A", 300, "confirmed")}


def test_a_malformed_client_response_confirms_nothing() -> None:
    lab = Lab()
    told = message(WWW, "A", [A1], flags="QR RD RA")
    frames = [*lab.exchange(WWW, "A", [A1]), frame("CLIENT_RESPONSE", told + b"x"), frame("CLIENT_RESPONSE", told[:-1])]
    assert run(frames).reasons == {Refusal.UNCONFIRMED}


@pytest.mark.parametrize("flags", ["RD RA", "QR TC RD RA"])
def test_a_client_response_of_another_form_confirms_nothing(flags: str) -> None:
    lab = Lab()
    frames = [*lab.exchange(WWW, "A", [A1]), lab.client(WWW, "A", [A1], flags=flags)]
    assert run(frames).reasons == {Refusal.UNCONFIRMED}


def test_frames_of_other_kinds_are_context() -> None:
    judge = DnstapJudge(settings(AUTHORITATIVE))
    wire = message(WWW, "A", [A1], flags="QR AA")
    for kind in ("AUTH_RESPONSE", "STUB_RESPONSE", "TOOL_QUERY", "UPDATE_RESPONSE"):
        assert judge.feed(frame(kind, wire, zone=ZONE), NOW) == []
    assert judge.statistics()["context"] == 4


def test_garbage_is_refused_and_counted() -> None:
    judge = DnstapJudge(settings())
    assert judge.feed(b"\xff\xff", NOW) == [Verdict(1, None, Refusal.MALFORMED)]
    assert judge.feed(b"", NOW)[0].reason is Refusal.MALFORMED
    assert judge.feed(frame("RESOLVER_RESPONSE", b"\0\1", zone=ZONE), NOW)[0].reason is Refusal.MALFORMED
    for kind in ("RESOLVER_QUERY", "CLIENT_QUERY", "CLIENT_RESPONSE"):
        assert judge.feed(frame(kind, b"\0\1\2"), NOW) == []
    assert judge.statistics()["refused_malformed"] == 3
    assert judge.statistics()["context"] == 3


def test_settings_that_cannot_be() -> None:
    with pytest.raises(ConfigError):
        JudgeSettings(trust=frozenset())
    with pytest.raises(ConfigError):
        JudgeSettings(evidence_window=0)
