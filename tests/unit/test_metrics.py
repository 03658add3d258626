"""The status as Prometheus metrics: names, labels, and that nothing unbounded becomes a label."""

from __future__ import annotations

from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from cachebus.metrics import MAX_REASONS, registry_for, render

STATUS: dict[str, Any] = {
    "node": "ams-1",
    "cluster": "home",
    "version": "0.1.0",
    "uptime": 12.5,
    "cache": {"entries": 3, "bytes": 900, "hits": 7, "misses": 1},
    "sources": {"unbound": {"frames": 5, "bytes": 70, "connections": 1, "refused": {"unpaired": 2}}},
    "transports": {
        "lan": {"sent": 4, "received": 9, "accepted": 6, "refused": {"bad-mac": 3}, "dropped": 1, "kernel_drops": 2},
        "wan": {"sent": 1, "received": 0, "accepted": 0, "refused": {}, "dropped": 0},
    },
    "share": {"published": 2, "dropped": 0, "refused": {"denied": 8}},
    "sinks": {"unbound": {"filled": 6, "queued": 2, "dropped": 5}},
}


def samples(status: dict[str, Any]) -> dict[str, float]:
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(render(status).decode()):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            key = f"{sample.name}{{{labels}}}"
            assert key not in found
            found[key] = sample.value
    return found


def test_what_a_reload_may_lower_is_no_counter() -> None:
    shim = {"block_rules": 3, "block_lines_skipped": 1, "local_names": 2, "blocked": 5}
    assert {name for name in samples({"shim": shim}) if "shim" in name} == {
        "cachebus_shim_block_rules{}",
        "cachebus_shim_block_lines_skipped{}",
        "cachebus_shim_local_names{}",
        "cachebus_shim_blocked_total{}",
    }


def test_every_number_under_its_name() -> None:
    assert samples(STATUS) == {
        "cachebus_build_info{cluster=home,node=ams-1,version=0.1.0}": 1,
        "cachebus_uptime_seconds{}": 12.5,
        "cachebus_cache_entries{}": 3,
        "cachebus_cache_bytes{}": 900,
        "cachebus_cache_hits_total{}": 7,
        "cachebus_cache_misses_total{}": 1,
        "cachebus_refused_total{part=unbound,reason=unpaired,stage=source}": 2,
        "cachebus_refused_total{part=lan,reason=bad-mac,stage=transport}": 3,
        "cachebus_queue_dropped_total{part=lan,queue=node,stage=transport}": 1,
        "cachebus_queue_dropped_total{part=lan,queue=kernel,stage=transport}": 2,
        "cachebus_queue_dropped_total{part=wan,queue=node,stage=transport}": 0,
        "cachebus_queue_dropped_total{part=unbound,queue=node,stage=sink}": 5,
        "cachebus_source_frames_total{source=unbound}": 5,
        "cachebus_source_bytes_total{source=unbound}": 70,
        "cachebus_source_connections{source=unbound}": 1,
        "cachebus_share_published_total{}": 2,
        "cachebus_refused_total{part=share,reason=denied,stage=share}": 8,
        "cachebus_queue_dropped_total{part=share,queue=node,stage=share}": 0,
        "cachebus_messages_sent_total{transport=lan}": 4,
        "cachebus_messages_sent_total{transport=wan}": 1,
        "cachebus_messages_received_total{transport=lan}": 9,
        "cachebus_messages_received_total{transport=wan}": 0,
        "cachebus_messages_accepted_total{transport=lan}": 6,
        "cachebus_messages_accepted_total{transport=wan}": 0,
        "cachebus_sink_filled_total{sink=unbound}": 6,
        "cachebus_sink_queued{sink=unbound}": 2,
    }


def test_a_node_with_nothing_has_no_counters_but_is_up() -> None:
    assert samples({"node": "a", "uptime": 1}) == {
        "cachebus_build_info{cluster=,node=a,version=}": 1,
        "cachebus_uptime_seconds{}": 1,
    }


def test_reasons_are_bounded_and_odd_counters_make_no_names() -> None:
    reasons = {f"r{n}": 1 for n in range(10_000)}
    status = {**STATUS, "transports": {"lan": {"refused": reasons, "www.example.com": 3, "Bad-Name": 1}}}
    found = samples(status)
    assert sum(key.startswith("cachebus_refused_total{part=lan") for key in found) == MAX_REASONS
    assert not any("example" in key or "Bad" in key for key in found)


def test_label_values_are_escaped() -> None:
    assert samples({**STATUS, "cluster": 'a"\n\\'})['cachebus_build_info{cluster=a"\n\\,node=ams-1,version=0.1.0}'] == 1


def test_the_registry_asks_for_the_status_at_every_scrape_and_not_before() -> None:
    asked = []

    def status() -> dict[str, Any]:
        asked.append(1)
        return STATUS

    registry = registry_for(status)
    assert asked == []
    assert registry.get_sample_value("cachebus_cache_entries") == 3
    assert registry.get_sample_value("cachebus_messages_sent_total", {"transport": "lan"}) == 4
    assert len(asked) == 2
