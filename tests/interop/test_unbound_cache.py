"""A node that starts late beside a warm Unbound: what servers said is read from its cache and shared, nothing else."""

from __future__ import annotations

import signal
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.farm.authoritative import Nsd
from tests.farm.client import Question, ask_all, data
from tests.farm.node import CachebusNode, Cluster, Config
from tests.farm.pair import Pair, check_same, dead_upstreams
from tests.farm.process import eventually
from tests.farm.unbound import Unbound
from tests.farm.zones import SIGNED, Zones
from tests.servers import require

pytestmark = pytest.mark.interop

READ_WITHIN = 20.0
"""Seconds for reading some 200 answers and sending them."""
BLOCKED = "a0.plain.test."


def cache_of(server: Unbound, **more: Any) -> Config:
    return {"type": "unbound-cache", "control": f"unix:{server.control_path}", "validating": True, **more}


def finished(node: CachebusNode) -> dict[str, Any]:
    """Counters of the source once it has read everything."""
    counters: dict[str, Any] = {}

    def is_finished() -> bool:
        counters.update(node.status()["sources"]["resolver"])
        return bool(counters["finished"])

    eventually(is_finished, READ_WITHIN, "the cache is read")
    return counters


def alone(farm: Path, running: ExitStack, source: Config, name: str = "c") -> CachebusNode:
    """A node with one transport and nobody at its other end."""
    cluster = Cluster()
    cluster.add(name, "nobody")
    return running.enter_context(CachebusNode(farm, cluster.config(name, sources={"resolver": source})))


def warm(running: ExitStack, farm: Path, zones: Zones, nsd: Nsd, **more: Any) -> Unbound:
    stubs = dict.fromkeys(zones.names, nsd.endpoint)
    return running.enter_context(Unbound(farm, name="warm", stubs=stubs, anchors=[zones.anchor], **more))


def test_a_warm_cache_reaches_the_others_and_does_not_come_back(
    farm: Path, running: ExitStack, zones: Zones, nsd: Nsd
) -> None:
    require("unbound")
    source = warm(running, farm, zones, nsd)
    learned = ask_all(source.endpoint, zones.questions)
    pair = Pair(farm, cache_of(source), dead_upstreams(zones.names), [zones.anchor])
    pair.start(running)
    counters = finished(pair.a)
    assert counters["failures"] == counters["unreadable"] == counters["incomplete"] == counters["too_much"] == 0
    pair.unbound_b.wait_for_data(learned.values(), READ_WITHIN)
    check_same(learned, ask_all(pair.unbound_b.endpoint, zones.questions), secure=True)

    # What B holds now, validated again or not, came from the bus: a node that reads it finds nothing of its own.
    echo = alone(farm, running, cache_of(pair.unbound_b))
    counters = finished(echo)
    assert counters["rrsets"] >= len(learned)
    assert counters["answers"] == 0
    assert echo.status()["share"]["published"] == 0


def test_what_the_validator_has_not_seen_needs_to_be_trusted_explicitly(
    farm: Path, running: ExitStack, zones: Zones, nsd: Nsd
) -> None:
    require("unbound")
    stubs = dict.fromkeys(zones.names, nsd.endpoint)
    source = running.enter_context(Unbound(farm, name="trusting", stubs=stubs))
    learned = ask_all(source.endpoint, zones.questions)
    careful = finished(alone(farm, running, cache_of(source)))
    assert careful["answers"] == 0
    assert careful["refused"]["evidence-too-weak"] >= len(learned)
    assert finished(alone(farm, running, cache_of(source, trust=["authoritative"]), "d"))["answers"] >= len(learned)


def test_a_reload_does_not_read_again(farm: Path, running: ExitStack, zones: Zones, nsd: Nsd) -> None:
    require("unbound")
    source = warm(running, farm, zones, nsd)
    ask_all(source.endpoint, zones.questions[:20])
    node = alone(farm, running, cache_of(source))
    answers = finished(node)["answers"]
    assert answers >= 20
    ask_all(source.endpoint, zones.questions)
    node.signal(signal.SIGHUP)
    eventually(lambda: "messages" not in finished(node), READ_WITHIN, "the reload is over")
    assert finished(node)["answers"] == answers


def test_what_a_response_policy_put_in_place_is_not_read(
    farm: Path, running: ExitStack, zones: Zones, nsd: Nsd
) -> None:
    require("unbound")
    (farm / "rpz").write_text(
        "$ORIGIN rpz.\n@ 3600 SOA localhost. nobody. 1 3600 600 86400 60\n@ 3600 NS localhost.\n"
        f"{BLOCKED.removesuffix('.')} 300 A 203.0.113.66\n32.5.2.0.192.rpz-ip 300 A 203.0.113.66\n"
    )
    zone = f'rpz:\n  name: "rpz."\n  zonefile: "{farm}/rpz"'
    source = warm(running, farm, zones, nsd, server=['module-config: "respip validator iterator"'], extra=[zone])
    questions = [Question(BLOCKED, "A"), Question("a1.plain.test.", "A"), Question("a2.plain.test.", "A")]
    told = ask_all(source.endpoint, questions)
    assert ["203.0.113.66" in str(data(told[question])) for question in questions] == [True, True, False]
    node = alone(farm, running, cache_of(source, trust=["authoritative"]))
    assert finished(node)["answers"] >= 1
    assert "192.0.2.9" in str(node.lookup(questions[2])), (finished(node), source.control("dump_cache"))
    assert "203.0.113.66" not in str([node.lookup(question) for question in questions])


def test_a_cache_that_modules_write_into_is_not_read(farm: Path, running: ExitStack, zones: Zones, nsd: Nsd) -> None:
    require("unbound")
    source = warm(running, farm, zones, nsd, server=['module-config: "dns64 validator iterator"'])
    ask_all(source.endpoint, [Question("a0.plain.test.", "AAAA")])
    counters = finished(alone(farm, running, cache_of(source)))
    assert (counters["failures"], counters["answers"], counters["bytes"]) == (1, 0, 0)


def test_names_below_the_anchor_are_shared_as_validated(farm: Path, running: ExitStack, zones: Zones, nsd: Nsd) -> None:
    require("unbound")
    source = warm(running, farm, zones, nsd)
    secure = [question for question in zones.questions if question.secure]
    assert all(question.name.endswith(SIGNED) for question in secure)
    ask_all(source.endpoint, secure)
    node = alone(farm, running, cache_of(source, trust=["validated"]))
    assert finished(node)["answers"] >= len(set(secure))
    assert {entry["evidence"] for entry in node.lookup(secure[0])} == {"validated"}
