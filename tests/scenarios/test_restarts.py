"""Killing and restarting any process needs no operator: within 5 s the stream resumes and Unbound B is full again."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import dns.message
import pytest

from tests.farm.authoritative import Nsd
from tests.farm.client import Question, ask, ask_all
from tests.farm.node import CachebusNode, Cluster, dnstap_source, unbound_sink
from tests.farm.pair import Pair, check_same, dead_upstreams
from tests.farm.process import Process, eventually
from tests.farm.unbound import Unbound
from tests.farm.zones import PLAIN, Zones
from tests.servers import require

pytestmark = pytest.mark.interop

RESUMED_WITHIN = 5.0
"""Seconds that the issue allows."""
FIRST_FILL = 10.0
CONNECTS_WITHIN = 10.0


class Scene:
    """A pair that has shared all names, and goes on sharing new ones."""

    def __init__(self, pair: Pair, source: Unbound, nsd: Nsd, learned: list[dns.message.Message]) -> None:
        self.pair = pair
        self.learned = learned
        self.processes: dict[str, Process] = {
            "node-a": pair.a,
            "node-b": pair.b,
            "unbound-a": source,
            "unbound-b": pair.unbound_b,
            "authoritative": nsd,
        }
        self.source = source
        self._numbers = itertools.count()

    def new_name_arrives(self) -> bool:
        """Ask the source for a name nobody asked for before; true when B knows one of those asked so far."""
        question = Question(f"new{next(self._numbers)}.wild.{PLAIN}", "A")
        ask(self.source.endpoint, question, timeout=0.5)
        asked = {name for name, _ in self.pair.unbound_b.answers() if name.endswith(f".wild.{PLAIN}")}
        return bool(asked - self.seen)

    def forget(self) -> None:
        """What B knows by now does not count."""
        self.seen = {name for name, _ in self.pair.unbound_b.answers() if name.endswith(f".wild.{PLAIN}")}


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, zones: Zones) -> Iterator[Scene]:
    require("unbound", "nsd")
    farm = tmp_path_factory.mktemp("f")
    with ExitStack() as running:
        nsd = running.enter_context(Nsd(farm, zones.files))
        source_settings = dnstap_source(farm / "tap", validating=True)
        pair = Pair(farm, source_settings, dead_upstreams(zones.names), [zones.anchor])
        pair.start(running)
        stubs = dict.fromkeys(zones.names, nsd.endpoint)
        source = running.enter_context(Unbound(farm, stubs=stubs, anchors=[zones.anchor], dnstap=farm / "tap"))
        pair.wait_for_source()
        learned = ask_all(source.endpoint, zones.questions)
        assert len(learned) == len(set(zones.questions))
        pair.unbound_b.wait_for_data(learned.values(), FIRST_FILL)
        yield Scene(pair, source, nsd, list(learned.values()))


def test_unbound_b_is_filled_again_after_a_reload(scene: Scene) -> None:
    scene.pair.unbound_b.control("reload")
    eventually(scene.pair.unbound_b.is_ready, RESUMED_WITHIN, "Unbound B has reloaded")
    scene.pair.unbound_b.wait_for_data(scene.learned, RESUMED_WITHIN)


def test_a_restarted_resolver_has_what_it_had_learned_itself(farm: Path, running: ExitStack, zones: Zones) -> None:
    """With nobody left to ask: neither an authoritative server nor a peer."""
    require("unbound", "nsd")
    nsd = running.enter_context(Nsd(farm, zones.files))
    stubs = dict.fromkeys(zones.names, nsd.endpoint)
    resolver = Unbound(farm, stubs=stubs, anchors=[zones.anchor], dnstap=farm / "tap")
    cluster = Cluster()
    cluster.add("a")
    sources = {"resolver": dnstap_source(farm / "tap", validating=True)}
    sinks = {"resolver": unbound_sink(resolver.control_path)}
    node = running.enter_context(CachebusNode(farm, cluster.config("a", sources=sources, sinks=sinks)))
    running.enter_context(resolver)
    eventually(
        lambda: node.status()["sources"]["resolver"]["connections"], CONNECTS_WITHIN, "the resolver is connected"
    )
    learned = ask_all(resolver.endpoint, zones.questions)
    assert len(learned) == len(set(zones.questions))
    eventually(lambda: all(node.lookup(question) for question in learned), FIRST_FILL, "the node has it all")
    nsd.stop()
    resolver.restart()
    resolver.wait_for_data(learned.values(), RESUMED_WITHIN)
    check_same(learned, ask_all(resolver.endpoint, zones.questions), secure=True)


@pytest.mark.parametrize("name", ["unbound-b", "authoritative", "unbound-a", "node-a", "node-b"])
def test_the_stream_resumes(scene: Scene, name: str) -> None:
    process = scene.processes[name]
    ask_all(scene.source.endpoint, [Question(f"{name}-{i}.wild.{PLAIN}", "A") for i in range(20)], timeout=0.05)
    process.restart()
    restarted = time.monotonic()
    scene.forget()
    eventually(scene.new_name_arrives, RESUMED_WITHIN, "a new name arrives at B")
    if name == "unbound-b":
        scene.pair.unbound_b.wait_for_data(scene.learned, restarted + RESUMED_WITHIN - time.monotonic())
