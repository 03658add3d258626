"""Every item of the hostile list, told by a lying server to a real resolver: nothing wrong gets beyond it.

The resolver learns, node a judges, node b and a validating Unbound B are looked into. All lies are told at once, so
that each test also holds with the others mixed in.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import dns.message
import dns.rcode
import pytest

from tests.farm.authoritative import Nsd
from tests.farm.bind import Bind
from tests.farm.client import Endpoint, Question, ask, ask_all, data
from tests.farm.lies import (
    FORGED_TEXT,
    LIES,
    SIGNED_EVIL,
    SIGNED_LIES,
    SIGNED_TTL,
    VICTIM,
    VICTIM_NAME,
    Liar,
    Lie,
    signed_question,
)
from tests.farm.node import dnstap_source
from tests.farm.pair import Pair, dead_upstreams
from tests.farm.python_server import PythonServer
from tests.farm.unbound import Unbound
from tests.farm.zones import Zones
from tests.servers import require

pytestmark = pytest.mark.interop

TELL_ALL = 2.5
"""Seconds for the resolver to ask every question; some it never answers."""
ARRIVE = 10.0
"""Seconds for what was asked last to arrive at B: far more than it takes."""
SENTINEL = Question("sentinel.honest.evil.test.", "A")
"""Asked when all lies were told; when it is in B, they were judged."""
VICTIM_ZONE = "$ORIGIN bank.test.\n@ 3600 IN SOA ns h 1 2 3 4 5\n@ IN NS ns\nns IN A 127.0.0.1\nwww IN A 192.0.2.99\n"
WILDCARD = Question("any.wild.signed.test.", "A", dnssec=True, secure=True)


@dataclass
class Setting:
    """A source resolver, and what may be shared from it."""

    resolver: str
    trust: str
    caps: bool = False

    def __str__(self) -> str:
        return f"{self.resolver}{'-0x20' if self.caps else ''}-{self.trust}"

    @property
    def levels(self) -> list[str]:
        return ["authoritative"] if self.trust == "authoritative" else ["confirmed", "validated"]

    def start(self, farm: Path, stubs: dict[str, Endpoint], anchors: list[str]) -> Unbound | Bind:
        tap = farm / "tap"
        if self.resolver == "bind":
            return Bind(farm, stubs=stubs, anchors=anchors, dnstap=tap)
        server = ["qname-minimisation: no"] + (["use-caps-for-id: yes"] if self.caps else [])
        return Unbound(farm, name="source", stubs=stubs, anchors=anchors, dnstap=tap, server=server)


SETTINGS = [
    Setting("unbound", "authoritative"),
    Setting("unbound", "authoritative", caps=True),
    Setting("unbound", "confirmed"),
    Setting("bind", "authoritative"),
]


@dataclass
class Outcome:
    """What the source asked and answered, and what B holds, after every lie was told."""

    setting: Setting
    server: PythonServer
    pair: Pair
    answers: dict[Question, dns.message.Message]
    held: dict[tuple[str, str], set[str]] = field(default_factory=dict)

    def below(self, zone: str) -> set[tuple[str, str]]:
        held = {(owner, rrtype) for owner, rrtype in self.held if f".{owner}".endswith(f".{zone}")}
        return held - {SENTINEL[:2]}


@pytest.fixture(scope="module", params=SETTINGS, ids=str)
def outcome(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, zones: Zones
) -> Iterator[Outcome]:
    setting: Setting = request.param
    require("unbound", "nsd", setting.resolver)
    farm = tmp_path_factory.mktemp("f")
    (farm / "bank.zone").write_text(VICTIM_ZONE)
    liar = Liar()
    anchors = [liar.signed.signer.anchor, zones.anchor]
    with ExitStack() as running:
        server = running.enter_context(PythonServer(liar))
        files = {VICTIM: farm / "bank.zone", **zones.files}
        honest = running.enter_context(Nsd(farm, files, host="127.0.0.2", port=server.endpoint.port))
        lying = [*(lie.zone for lie in LIES.values()), SIGNED_EVIL]
        stubs = {**dict.fromkeys(lying, server.endpoint), **dict.fromkeys(files, honest.endpoint)}
        stubs_b = {**dead_upstreams(list(stubs)), SIGNED_EVIL: server.endpoint}
        pair = Pair(farm, dnstap_source(farm / "tap", trust=setting.levels, validating=True), stubs_b, anchors)
        pair.start(running)
        source = running.enter_context(setting.start(farm, stubs, anchors))
        pair.wait_for_source()
        questions = [lie.question for lie in LIES.values()] + [signed_question(lie) for lie in SIGNED_LIES]
        answers = ask_all(source.endpoint, [*questions, WILDCARD], timeout=TELL_ALL)
        assert ask(source.endpoint, SENTINEL)
        pair.unbound_b.wait_for([SENTINEL], ARRIVE)
        yield Outcome(setting, server, pair, answers, pair.unbound_b.held())


@pytest.mark.parametrize("lie", LIES.values(), ids=list(LIES))
def test_lie_about_an_unsigned_name(outcome: Outcome, lie: Lie) -> None:
    assert outcome.server.asked[lie.question.name, lie.type], "the lie was never told"
    assert outcome.below(lie.zone) <= lie.rightly_held
    held = outcome.pair.b.lookup(lie.question)
    assert {(entry["name"], entry["type"]) for entry in held} <= lie.rightly_held | {(VICTIM_NAME, "A")}
    assert FORGED_TEXT not in str(held)


def test_honest_answer_arrives(outcome: Outcome) -> None:
    honest = LIES["honest"]
    assert outcome.held[honest.question.name, "A"] == {"192.0.2.53"}
    assert "192.0.2.53" in str(outcome.pair.b.lookup(honest.question))


def test_nothing_forged_is_held_for_the_victim(outcome: Outcome) -> None:
    assert outcome.held.get((VICTIM_NAME, "A"), {"192.0.2.99"}) == {"192.0.2.99"}
    assert FORGED_TEXT not in str(outcome.pair.b.lookup(Question(VICTIM_NAME, "A")))


def test_nothing_forged_is_held_at_all_but_what_is_left_to_the_validator(outcome: Outcome) -> None:
    forged = {key for key, rdatas in outcome.held.items() if FORGED_TEXT in rdatas}
    if outcome.setting.trust == "authoritative":  # B validates by itself: the test of the signed lies asks it
        forged = {(owner, rrtype) for owner, rrtype in forged if not owner.endswith(SIGNED_EVIL)}
    assert not forged


@pytest.mark.parametrize("lie", SIGNED_LIES)
def test_lie_about_a_signed_name(outcome: Outcome, lie: str) -> None:
    question = signed_question(lie)
    assert outcome.server.asked[question.name, "A"], "the lie was never told"
    held = outcome.pair.b.lookup(question)
    if lie in {"rrsig-expired", "rrsig-not-yet-valid", "wildcard"} or outcome.setting.trust == "confirmed":
        assert not held or question.secure
    for entry in held if question.secure else ():
        assert entry["ttl"] <= SIGNED_TTL
    answer = ask(outcome.pair.unbound_b.endpoint, question)
    assert answer is not None
    if question.secure:
        assert data(answer) == {f"{question.name} A 192.0.2.53"}
        assert all(rrset.ttl <= SIGNED_TTL for rrset in answer.answer)
    else:
        assert answer.rcode() == dns.rcode.SERVFAIL
        assert not answer.answer


def test_signed_wildcard_without_its_proof(outcome: Outcome) -> None:
    assert outcome.answers[WILDCARD].answer
    assert not outcome.pair.b.lookup(WILDCARD)
    assert (WILDCARD.name, "A") not in outcome.held
