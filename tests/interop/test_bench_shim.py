"""`bench --shim` for real, with fewer names: what it promises of a machine of its own is shown by the whole run."""

from __future__ import annotations

import pytest

from cachebus.cli.bench_shim import measure_shim
from tests.servers import require

pytestmark = [pytest.mark.interop, pytest.mark.alone]

ENTRIES = 20_000
MAX_TIMES_CPU = 5.0
"""Of Unbound's CPU per query, pure Python: what is compiled, which is what is promised, takes less than 2."""
MAX_BYTES = 330
"""Per RRset: with so few, the shards' dicts are emptier than they are with a million, where 300 are promised."""


def test_a_small_run_adds_up() -> None:
    require("dnsperf", "unbound")
    found = measure_shim(ENTRIES)
    assert found["entries"] == ENTRIES
    assert 1000 < found["names_asked"] < ENTRIES
    assert found["fast_share"] > 0.99
    assert found["bytes_per_rrset"] < MAX_BYTES
    for row in (found, found["unbound"]):
        assert row["queries_per_second"] > 1000
        assert 0 < row["latency_ms"]["p50"] <= row["latency_ms"]["p99"]
    assert 0 < found["cpu_us_per_query"] < MAX_TIMES_CPU * found["unbound"]["cpu_us_per_query"]
