"""Unbound tells its answers through its python module: at once, and without ever waiting for cachebus."""

from __future__ import annotations

import itertools
import signal
import statistics
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.farm.authoritative import Nsd
from tests.farm.client import Endpoint, Question, ask, ask_all
from tests.farm.node import stream_source
from tests.farm.pair import Pair, check_same, dead_upstreams
from tests.farm.process import eventually
from tests.farm.unbound import Unbound
from tests.farm.zones import PLAIN, Zones
from tests.servers import require

pytestmark = [pytest.mark.interop, pytest.mark.alone]

SHARED_WITHIN = 0.2
"""Seconds from Unbound A's last answer to Unbound B's readiness."""
RESUMED_WITHIN = 5.0
SAMPLES = 300
FLOOD = 4000
"""Answers told to a stopped cachebus: several times what its socket takes."""
NOTICEABLE = 0.005
"""Seconds that a median may differ on a busy machine; a blocked resolver is off by far more."""
EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "unbound" / "cachebus_unbound.py"
PYTHON_PATH = "/usr/lib/python3/dist-packages"
"""Where Debian's python3-unbound is, and where its Unbound does not look by itself."""


def start(farm: Path, running: ExitStack, zones: Zones, nsd: Nsd) -> tuple[Pair, Unbound]:
    require("unbound", "python3-unbound")
    path = farm / "direct"
    pair = Pair(farm, stream_source(path, validating=True), dead_upstreams(zones.names), [zones.anchor])
    pair.start(running)
    source = Unbound(
        farm,
        stubs=dict.fromkeys(zones.names, nsd.endpoint),
        anchors=[zones.anchor],
        server=['module-config: "python validator iterator"'],
        extra=[f'python:\n  python-script: "{EXAMPLE}"'],
        environment={"PYTHONPATH": PYTHON_PATH, "CACHEBUS_SOCKET": str(path)},
    )
    running.enter_context(source)
    first = Question(f"first.wild.{PLAIN}", "A")  # the module connects when there is something to tell
    assert ask(source.endpoint, first)
    pair.wait_for_source()
    eventually(lambda: pair.b.status()["sinks"]["resolver"]["up"], 10, "the sink is up")
    return pair, source


def test_every_name_is_there_within_200_ms(farm: Path, running: ExitStack, zones: Zones, nsd: Nsd) -> None:
    pair, source = start(farm, running, zones, nsd)
    learned = ask_all(source.endpoint, zones.questions)
    assert len(learned) == len(set(zones.questions))
    pair.unbound_b.wait_for_data(learned.values(), SHARED_WITHIN)
    check_same(learned, ask_all(pair.unbound_b.endpoint, zones.questions), secure=True)


def latencies(resolver: Endpoint, label: str) -> list[float]:
    """Seconds that each of `SAMPLES` new names takes, asked for one after the other."""
    samples = []
    for i in range(SAMPLES):
        begun = time.perf_counter()
        answer = ask(resolver, Question(f"{label}{i}.wild.{PLAIN}", "A"))
        samples.append(time.perf_counter() - begun)
        assert answer is not None
        assert answer.answer
    return samples


def test_a_stopped_cachebus_leaves_the_resolver_alone(farm: Path, running: ExitStack, zones: Zones, nsd: Nsd) -> None:
    pair, source = start(farm, running, zones, nsd)
    before = latencies(source.endpoint, "before")
    pair.a.signal(signal.SIGSTOP)
    flood = [Question(f"flood{i}.wild.{PLAIN}", "A") for i in range(FLOOD)]
    assert len(ask_all(source.endpoint, flood)) == FLOOD
    after = latencies(source.endpoint, "after")
    assert statistics.median(after) < statistics.median(before) + NOTICEABLE
    assert max(after) < 1.0, "a query waited for cachebus"

    pair.a.signal(signal.SIGCONT)
    numbers = itertools.count()
    asked: list[Question] = []

    def new_name_arrives() -> bool:
        # What waited is written, a socket's buffer at a time, when the next query comes.
        asked.extend(Question(f"again{next(numbers)}.wild.{PLAIN}", "A") for _ in range(5))
        ask_all(source.endpoint, asked[-5:], timeout=1.0)
        return any(pair.b.lookup(question) for question in asked)

    eventually(new_name_arrives, RESUMED_WITHIN, "a new name arrives at B")
    assert pair.a.status()["sources"]["resolver"]["malformed"] == 0
