"""SIGTERM ends a node cleanly and sends what is queued; SIGHUP reloads it without losing its cache."""

from __future__ import annotations

import signal
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml

from cachebus.errors import NodeUnreachable
from tests.farm.authoritative import Nsd
from tests.farm.client import Question, ask, ask_all
from tests.farm.node import dnstap_source
from tests.farm.pair import Pair, dead_upstreams
from tests.farm.process import eventually
from tests.farm.relay import Relay
from tests.farm.unbound import Unbound
from tests.farm.zones import OTHER, PLAIN, Zones
from tests.servers import require

pytestmark = pytest.mark.interop

ARRIVE = 10.0
"""Seconds for a shared answer to arrive at B: far more than it takes."""
FIRST = Question(f"first.wild.{PLAIN}", "A")
LATE = [Question(f"late{i}.wild.{PLAIN}", "A") for i in range(20)]
LATE_LABEL = b"\x05late0\x04wild"
"""In wire form, as frames have it."""
ENDS_WITHIN = 5.0
"""Seconds a node may take to end."""


@pytest.fixture
def scene(farm: Path, running: ExitStack, zones: Zones, nsd: Nsd) -> tuple[Pair, Unbound]:
    require("unbound")
    source_settings = dnstap_source(farm / "tap", trust=["authoritative"])
    pair = Pair(farm, source_settings, dead_upstreams(zones.names), [zones.anchor])
    pair.start(running)
    stubs = dict.fromkeys(zones.names, nsd.endpoint)
    source = running.enter_context(Unbound(farm, stubs=stubs, dnstap=farm / "tap"))
    pair.wait_for_source()
    return pair, source


def plain(zones: Zones) -> list[Question]:
    return [question for question in zones.questions if not question.secure]


def test_sigterm_ends_a_node_cleanly_and_sends_what_is_queued(
    farm: Path, running: ExitStack, zones: Zones, nsd: Nsd
) -> None:
    require("unbound")
    pair = Pair(farm, dnstap_source(farm / "tap", trust=["authoritative"]), dead_upstreams(zones.names), [zones.anchor])
    pair.start(running)
    relay = running.enter_context(Relay(farm / "relay", farm / "tap"))
    stubs = dict.fromkeys(zones.names, nsd.endpoint)
    source = running.enter_context(Unbound(farm, stubs=stubs, dnstap=farm / "relay"))
    ask(source.endpoint, FIRST)
    eventually(lambda: pair.a.lookup(FIRST), ARRIVE, "node a has what the resolver said first")

    pair.a.signal(signal.SIGSTOP)
    questions = plain(zones)
    learned = ask_all(source.endpoint, questions)
    assert len(learned) == len(set(questions))
    # Unbound holds up to 32 frames back and drops what it holds when it ends; but it logs in order.
    ask_all(source.endpoint, LATE)
    eventually(lambda: relay.has_passed(LATE_LABEL), ARRIVE, "the resolver has said it all")
    pair.a.signal(signal.SIGTERM)
    pair.a.signal(signal.SIGCONT)  # it goes on and ends in the same moment, with everything still to be read
    eventually(lambda: not pair.a.running, ENDS_WITHIN, "node a has ended")
    assert pair.a.returncode == 0, pair.a.log_tail()
    pair.unbound_b.wait_for_data(learned.values(), ARRIVE)
    assert pair.b.stop() == 0, pair.b.log_tail()
    for node in (pair.a, pair.b):
        assert "Traceback" not in node.log.read_text()


def test_sighup_reloads_without_losing_the_cache(scene: tuple[Pair, Unbound], zones: Zones) -> None:
    pair, source = scene
    questions = [question for question in plain(zones) if question.name.endswith(OTHER)]
    first, later = questions[:4], questions[4:]
    ask_all(source.endpoint, first)
    pair.unbound_b.wait_for(first, ARRIVE)
    pair.b.config["share"]["deny"] = [question.name for question in later]
    pair.b.file.write_text(yaml.safe_dump(pair.b.config))
    entries = pair.b.status()["cache"]["entries"]
    begun = pair.b.transport()["refused"].get("denied", 0)
    pair.b.signal(signal.SIGHUP)

    def denied() -> bool:
        source.flush()
        ask_all(source.endpoint, later)
        try:
            return bool(pair.b.transport()["refused"].get("denied", 0) > begun)
        except NodeUnreachable:
            return False  # the admin socket is made anew

    eventually(denied, ARRIVE, "the new configuration is in force")
    assert pair.b.running
    assert pair.b.status()["cache"]["entries"] >= entries
    assert all(pair.b.lookup(question) for question in first)


def test_sighup_with_a_broken_configuration_changes_nothing(scene: tuple[Pair, Unbound], zones: Zones) -> None:
    pair, source = scene
    questions = plain(zones)[:4]
    pair.b.file.write_text("node: b\nno-such-key: 1\n")
    pair.b.signal(signal.SIGHUP)
    eventually(lambda: "no-such-key" in pair.b.log.read_text(), ARRIVE, "the log says what is wrong")
    ask_all(source.endpoint, questions)
    pair.unbound_b.wait_for(questions, ARRIVE)
    assert "Traceback" not in pair.b.log.read_text()
