"""Nodes on a bridge in network namespaces: multicast reaches all, a partition heals, and nothing spoilt is filled.

The processes and their network are in `bridge_inside` and `bridge_node`; here is what must come of it.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.farm.namespace import run_inside
from tests.scenarios.bridge_inside import GROUP_IPV6, ROUND
from tests.servers import require

pytestmark = pytest.mark.interop
DEADLINE = 110.0
PARTITION = 10
"""Seconds that links are down."""
RESUME = 5.0
"""Seconds within which every node hears every other again."""


def scenario(*arguments: str) -> Any:
    return json.loads(run_inside("tests.scenarios.bridge_inside", *arguments, timeout=DEADLINE).splitlines()[-1])


def assert_complete(held: list[dict[str, int]], *, pairs: int) -> None:
    assert [one["held"] for one in held] == [ROUND] * pairs
    assert_right(held)


def assert_right(held: list[dict[str, int]]) -> None:
    assert [one["wrong"] for one in held] == [0] * len(held)


def test_multicast_reaches_all() -> None:
    assert_complete(scenario("reach", "dns", GROUP_IPV6)["held"], pairs=20)


@pytest.mark.parametrize(("kind", "codec"), [("multicast", "batch"), ("tcp", "cdns")])
def test_partition_heals_and_its_gaps_are_counted_exactly(kind: str, codec: str) -> None:
    found = scenario("partition", kind, str(PARTITION))
    assert_complete(found["reached"], pairs=20)
    assert found["healed_after"] < RESUME
    assert found["gaps"] == found["lost"]
    assert min(found["lost"]) > 0
    assert min(one["held"] for one in found["during"]) == 0, "nothing was parted"
    assert_right(found["during"])
    assert_complete(found["held"], pairs=20)
    assert found["interface_up"] == [1 if kind == "multicast" else None] * 5
    assert [set(refused) for refused in found["refused"]] == [set()] * 5


@pytest.mark.parametrize(("kind", "codec"), [("multicast", "batch"), ("udp", "batch"), ("udp", "dns")])
def test_a_fifth_of_all_datagrams_lost_fills_nothing_wrong(kind: str, codec: str) -> None:
    require("nft")
    found = scenario("loss", kind, codec)
    assert min(found["lost"]) > 0, "nothing was lost"
    if codec == "batch":
        assert found["gaps"] == found["lost"]
    assert_right(found["during"])
    assert 0 < min(one["held"] for one in found["during"]) < ROUND
    assert_complete(found["held"], pairs=6)
    assert [set(refused) for refused in found["refused"]] == [set()] * 3


@pytest.mark.parametrize(("kind", "codec"), [("multicast", "dns"), ("udp", "batch")])
def test_repeated_and_reordered_datagrams_fill_nothing_wrong_or_twice(kind: str, codec: str) -> None:
    found = scenario("spoil", kind, codec)
    report, passed = found["report"], found["passed"]
    assert passed["duplicates"] > 0
    assert report["refused"] == {"duplicate": passed["duplicates"]}
    assert report["accepted"] == found["held"]["held"] == found["held"]["entries"] == 4 * ROUND
    assert found["held"]["wrong"] == 0
    if codec == "batch":
        assert (report["gaps"], report["duplicates"]) == (0, passed["duplicates"])
        assert report["reordered"] > 0
