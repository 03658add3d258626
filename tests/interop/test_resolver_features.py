"""What a resolver makes up by itself, or for some clients only, is never shared: RPZ, local data, DNS64, ECS, CD=1."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import dns.edns
import dns.message
import pytest

from tests.farm.authoritative import Nsd
from tests.farm.client import Endpoint, Question, ask, ask_all, data
from tests.farm.lies import FORGED_TEXT, SIGNED_EVIL, Liar, a, signed_question
from tests.farm.node import dnstap_source
from tests.farm.pair import Pair, dead_upstreams
from tests.farm.process import eventually
from tests.farm.python_server import PythonServer, Query, nodata, record, reply
from tests.farm.unbound import Unbound
from tests.farm.zones import PLAIN, Zones
from tests.servers import require

pytestmark = pytest.mark.interop

ARRIVE = 10.0
"""Seconds for a shared answer to arrive at B: far more than it takes."""
REWRITTEN = Question(f"a0.{PLAIN}", "A")
RESPONSE_ADDRESS = Question(f"a4.{PLAIN}", "A")
LOCAL_DATA = Question(f"a1.{PLAIN}", "A")
LOCAL_ONLY = Question("made-up.local-data.test.", "A")
SYNTHESISED = Question(f"a2.{PLAIN}", "AAAA")
RPZ = f"""$ORIGIN rpz.test.
@ 3600 IN SOA ns h 1 2 3 4 5
@ 3600 IN NS ns
a0.plain.test 3600 IN A {FORGED_TEXT}
32.17.2.0.192.rpz-ip 3600 IN A {FORGED_TEXT}
"""
"""Rewrites one name, and every answer that holds 192.0.2.17 (a4.plain.test)."""


def last_word(pair: Pair, resolver: Endpoint, name: str) -> None:
    """Ask for a name nobody asked for, and wait until B has it: whatever was asked before was judged by then."""
    sentinel = Question(f"{name}.wild.{PLAIN}", "A")
    assert ask(resolver, sentinel)
    pair.unbound_b.wait_for([sentinel], ARRIVE)


def forged(pair: Pair) -> set[tuple[str, str]]:
    return {key for key, rdatas in pair.unbound_b.held().items() if FORGED_TEXT in rdatas}


@pytest.fixture(params=["authoritative", "confirmed"])
def making_things_up(
    request: pytest.FixtureRequest, farm: Path, running: ExitStack, zones: Zones, nsd: Nsd
) -> tuple[Pair, Unbound]:
    """Unbound with RPZ, local data and DNS64, and the pair behind it."""
    require("unbound")
    (farm / "rpz.zone").write_text(RPZ)
    pair = Pair(farm, dnstap_source(farm / "tap", trust=[request.param], validating=True), dead_upstreams(zones.names))
    pair.start(running)
    source = Unbound(
        farm,
        stubs=dict.fromkeys(zones.names, nsd.endpoint),
        anchors=[zones.anchor],
        dnstap=farm / "tap",
        server=[
            'module-config: "respip dns64 validator iterator"',
            f'local-zone: "{LOCAL_DATA.name}" redirect',
            f'local-data: "{LOCAL_DATA.name} A {FORGED_TEXT}"',
            f'local-data: "{LOCAL_ONLY.name} A {FORGED_TEXT}"',
        ],
        extra=[f'rpz:\n  name: "rpz.test."\n  zonefile: "{farm}/rpz.zone"'],
    )
    running.enter_context(source)
    pair.wait_for_source()
    return pair, source


def test_rpz_local_data_and_dns64_stay_where_they_are(making_things_up: tuple[Pair, Unbound]) -> None:
    pair, source = making_things_up
    answers = ask_all(source.endpoint, [REWRITTEN, RESPONSE_ADDRESS, LOCAL_DATA, LOCAL_ONLY, SYNTHESISED])
    for question in (REWRITTEN, RESPONSE_ADDRESS, LOCAL_DATA, LOCAL_ONLY):
        assert FORGED_TEXT in str(data(answers[question])), question
    assert "64:ff9b::" in str(data(answers[SYNTHESISED]))
    last_word(pair, source.endpoint, "after-making-things-up")
    assert not forged(pair)
    held = pair.unbound_b.held()
    assert (SYNTHESISED.name, "AAAA") not in held
    assert not pair.b.lookup(SYNTHESISED)
    for question in (REWRITTEN, RESPONSE_ADDRESS, LOCAL_DATA, LOCAL_ONLY):
        assert FORGED_TEXT not in str(pair.b.lookup(question)), question


def test_answers_to_checking_disabled_clients_confirm_nothing(
    farm: Path, running: ExitStack, zones: Zones, nsd: Nsd
) -> None:
    require("unbound")
    liar = Liar()
    server = running.enter_context(PythonServer(liar))
    stubs = {**dict.fromkeys(zones.names, nsd.endpoint), SIGNED_EVIL: server.endpoint}
    pair = Pair(farm, dnstap_source(farm / "tap", validating=True), dead_upstreams(list(stubs)))
    pair.start(running)
    anchors = [zones.anchor, liar.signed.signer.anchor]
    source = running.enter_context(Unbound(farm, stubs=stubs, anchors=anchors, dnstap=farm / "tap"))
    pair.wait_for_source()
    bogus, fine = signed_question("rrsig-bogus"), Question(f"a3.{PLAIN}", "A")
    for question in (bogus, fine):
        answer = ask(source.endpoint, question, checking_disabled=True)
        assert answer is not None
        assert answer.answer
    last_word(pair, source.endpoint, "after-cd")
    held = pair.unbound_b.held()
    for question in (bogus, fine):
        assert (question.name, "A") not in held
        assert not pair.b.lookup(question)


def client_subnet(query: Query) -> bytes:
    """Answer with the scope /24 of whatever client subnet was sent; without one, for everybody."""
    if query.type != "A":
        return nodata(query, "ecs.test.")
    message = dns.message.from_wire(query.wire)
    scoped = [
        dns.edns.ECSOption(option.address, option.srclen, 24)
        for option in message.options
        if isinstance(option, dns.edns.ECSOption)
    ]
    options = b"".join(
        int(option.otype).to_bytes(2, "big") + len(option.to_wire()).to_bytes(2, "big") + option.to_wire()
        for option in scoped
    )
    additional = (record(b"\0", "OPT", 0, options, rrclass=1232),) if scoped else ()
    return reply(query, a(query.owner), additional=additional)


@pytest.mark.parametrize("trust", ["authoritative", "confirmed"])
def test_an_answer_for_a_client_subnet_is_not_shared(
    farm: Path, running: ExitStack, zones: Zones, nsd: Nsd, trust: str
) -> None:
    require("unbound")
    server = running.enter_context(PythonServer(client_subnet, host="127.0.0.3"))
    stubs = {**dict.fromkeys(zones.names, nsd.endpoint), "ecs.test.": server.endpoint}
    pair = Pair(farm, dnstap_source(farm / "tap", trust=[trust]), dead_upstreams(list(stubs)))
    pair.start(running)
    source = Unbound(
        farm,
        stubs=stubs,
        dnstap=farm / "tap",
        server=[
            'module-config: "subnetcache validator iterator"',
            f"send-client-subnet: {server.endpoint.host}",
            "client-subnet-always-forward: no",
            "max-client-subnet-ipv4: 24",
        ],
    )
    running.enter_context(source)
    pair.wait_for_source()
    question = Question("www.ecs.test.", "A")
    answer = ask(source.endpoint, question)
    assert answer is not None
    assert answer.answer
    last_word(pair, source.endpoint, "after-ecs")
    assert (question.name, "A") not in pair.unbound_b.held()
    assert not pair.b.lookup(question)


def test_without_query_frames_nothing_is_shared(farm: Path, running: ExitStack, zones: Zones, nsd: Nsd) -> None:
    require("unbound")
    source_settings = dnstap_source(farm / "tap", trust=["authoritative"], evidence_window="2s")
    pair = Pair(farm, source_settings, dead_upstreams(zones.names))
    pair.start(running)
    stubs = dict.fromkeys(zones.names, nsd.endpoint)
    source = Unbound(farm, stubs=stubs, anchors=[zones.anchor], dnstap=farm / "tap", dnstap_queries=False)
    running.enter_context(source)
    pair.wait_for_source()
    questions = zones.questions[:20]
    assert len(ask_all(source.endpoint, questions)) == len(questions)
    eventually(
        lambda: pair.a.status()["sources"]["resolver"]["refused"].get("unpaired", 0) >= len(questions),
        ARRIVE,
        "every answer is refused as unpaired",
    )
    assert pair.a.transport()["sent"] == 0
    assert not pair.unbound_b.held().keys() & {question[:2] for question in questions}


def test_what_the_bus_filled_is_not_shared_again(farm: Path, running: ExitStack, zones: Zones, nsd: Nsd) -> None:
    require("unbound")
    taps = {name: farm / f"tap-{name}" for name in "ab"}
    pair = Pair(
        farm,
        dnstap_source(taps["a"], validating=True),
        dead_upstreams(zones.names),
        [zones.anchor],
        node_b={"sources": {"resolver": dnstap_source(taps["b"], trust=["authoritative"], validating=True)}},
        dnstap_b=taps["b"],
    )
    pair.start(running)
    stubs = dict.fromkeys(zones.names, nsd.endpoint)
    source = running.enter_context(Unbound(farm, stubs=stubs, anchors=[zones.anchor], dnstap=taps["a"]))
    pair.wait_for_source()
    questions = [question for question in zones.questions if question.secure][:20] + zones.questions[:20]
    ask_all(source.endpoint, questions)
    pair.unbound_b.wait_for(questions, ARRIVE)
    before = pair.b.status()["sources"]["resolver"]["frames"]
    for _ in range(3):
        assert len(ask_all(pair.unbound_b.endpoint, questions)) == len(questions)
    eventually(
        lambda: pair.b.status()["sources"]["resolver"]["frames"] >= before + 3 * len(questions),
        ARRIVE,
        "node b has seen what its resolver told clients",
    )
    assert pair.b.transport()["sent"] == 0
