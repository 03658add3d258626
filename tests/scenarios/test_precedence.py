"""Bus data never displaces what the local resolver knows better: its own RRset, its own NXDOMAIN, its validator."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import dns.flags
import dns.rcode
import pytest

from tests.farm.authoritative import Nsd
from tests.farm.client import Question, ask, data
from tests.farm.lies import FORGED, FORGED_TEXT, a
from tests.farm.node import dnstap_source
from tests.farm.pair import Pair
from tests.farm.process import eventually
from tests.farm.python_server import PythonServer, Query, nodata, reply
from tests.farm.unbound import Unbound
from tests.farm.zones import PLAIN, SIGNED, Zones
from tests.servers import require

pytestmark = pytest.mark.interop

ARRIVE = 10.0
"""Seconds for a shared answer to arrive at B: far more than it takes."""
PLAIN_NAME = Question(f"a0.{PLAIN}", "A")
PLAIN_MISSING = Question(f"missing.{PLAIN}", "A")
SIGNED_NAME = Question(f"a0.{SIGNED}", "A", dnssec=True, secure=True)
SIGNED_MISSING = Question(f"missing.{SIGNED}", "A", dnssec=True, secure=True)
SIGNED_UNKNOWN = Question(f"a1.{SIGNED}", "A", dnssec=True, secure=True)
"""A name of the signed zone that B has never asked for."""
SENTINEL_ZONE = "forger.test."


def forger(query: Query) -> bytes:
    """Another view of every zone: one forged address for every name, unsigned."""
    if query.type != "A":
        return nodata(query, ".".join(query.name.split(".")[-3:]))
    return reply(query, a(query.owner, FORGED))


@dataclass
class Scene:
    pair: Pair
    source: Unbound
    sentinels: int = 0

    def share(self, *questions: Question) -> None:
        """Have the source resolver learn these from the forger, and wait until B has what it learned after them."""
        for question in questions:
            answer = ask(self.source.endpoint, question)
            assert answer is not None
            assert FORGED_TEXT in str(data(answer))
        self.sentinels += 1
        sentinel = Question(f"s{self.sentinels}.{SENTINEL_ZONE}", "A")
        assert ask(self.source.endpoint, sentinel)
        self.pair.unbound_b.wait_for([sentinel], ARRIVE)

    def ask_b(self, question: Question) -> frozenset[str]:
        answer = ask(self.pair.unbound_b.endpoint, question)
        assert answer is not None
        assert bool(answer.flags & dns.flags.AD) == question.secure
        return data(answer)


@pytest.fixture(params=["authoritative", "confirmed"])
def scene(request: pytest.FixtureRequest, farm: Path, running: ExitStack, zones: Zones, nsd: Nsd) -> Scene:
    """A source that validates nothing and asks a forger; B validates and asks the true server."""
    require("unbound")
    server = running.enter_context(PythonServer(forger))
    taps = {name: farm / f"tap-{name}" for name in "ab"}
    pair = Pair(
        farm,
        dnstap_source(taps["a"], trust=[request.param]),
        dict.fromkeys([*zones.names], nsd.endpoint),
        [zones.anchor],
        dnstap_b=taps["b"],
        node_b={"sources": {"resolver": dnstap_source(taps["b"], trust=["confirmed"], validating=True)}},
    )
    pair.start(running)
    stubs = dict.fromkeys([*zones.names, SENTINEL_ZONE], server.endpoint)
    source = running.enter_context(Unbound(farm, stubs=stubs, dnstap=taps["a"]))
    pair.wait_for_source()
    eventually(lambda: pair.b.status()["sources"]["resolver"]["connections"], ARRIVE, "Unbound B is connected")
    return Scene(pair, source)


def wait_until_known(scene: Scene, *questions: Question) -> None:
    """Until node b has seen what its resolver asked: dnstap arrives up to a second late."""
    eventually(lambda: all(scene.pair.b.lookup(question) for question in questions), ARRIVE, "node b knows them")


def test_live_local_rrset_survives(scene: Scene) -> None:
    true = scene.ask_b(PLAIN_NAME)
    assert FORGED_TEXT not in str(true)
    wait_until_known(scene, PLAIN_NAME)
    scene.share(PLAIN_NAME)
    assert scene.ask_b(PLAIN_NAME) == true
    assert FORGED_TEXT not in str(scene.pair.b.lookup(PLAIN_NAME))


def test_live_validated_rrset_survives(scene: Scene) -> None:
    true = scene.ask_b(SIGNED_NAME)
    scene.share(SIGNED_NAME)
    assert scene.ask_b(SIGNED_NAME) == true


@pytest.mark.parametrize("question", [PLAIN_MISSING, SIGNED_MISSING], ids=["unsigned", "signed"])
def test_live_local_nxdomain_survives(scene: Scene, question: Question) -> None:
    first = ask(scene.pair.unbound_b.endpoint, question)
    assert first is not None
    assert first.rcode() == dns.rcode.NXDOMAIN
    marker = Question(f"a5.{PLAIN}", "A")
    scene.ask_b(marker)
    wait_until_known(scene, marker)  # asked after it, so that node b has seen the NXDOMAIN as well
    scene.share(question)
    again = ask(scene.pair.unbound_b.endpoint, question)
    assert again is not None
    assert again.rcode() == dns.rcode.NXDOMAIN
    assert not again.answer


def test_forged_data_for_a_signed_zone_is_never_answered(scene: Scene) -> None:
    scene.share(SIGNED_UNKNOWN)
    for _ in range(3):
        assert FORGED_TEXT not in str(scene.ask_b(SIGNED_UNKNOWN))
