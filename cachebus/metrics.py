"""The node's counters for Prometheus, read from its status when they are asked for.

Decides names and labels. Labels are bounded: names of parts from the configuration, and reasons from an enum; never a
query name, a client or a peer. The node counts in plain ints: prometheus-client's own counters cost 30 times as much.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

Status = Mapping[str, Any]
"""The node's status, as `status` shows it."""

STAGES = {"sources": "source", "transports": "transport", "sinks": "sink"}
"""Section of the status to the label that names its parts."""
SINGLE = ("share", "shim", "snapshot")
"""Sections of the status that are one part each; its name is its stage too."""
CACHE_GAUGES = frozenset({"entries", "bytes"})
GAUGES = frozenset(
    {
        "block_lines_skipped", "block_rules", "certificate_expires", "clock_offset", "connected", "connections",
        "failures_known", "finished", "flushes_waiting", "gaps", "held",
        "in_flight", "interface_up", "local_names", "origins", "pending", "pending_bytes", "policy_differs",
        "protocol", "queue_bytes",
        "queued", "queued_bytes", "receive_buffer_bytes", "receive_queue_bytes", "refill_queued", "refilling",
        "send_buffer_bytes", "serving", "subnet_known", "subscribers", "swild_owners", "tcp_open", "topics", "up",
        "workers",
    }
)  # fmt: skip
"""Numbers that go up and down; every other one only counts up."""
DROPS = frozenset({"dropped", "kernel_drops"})
"""Counters of what a full queue lost: together they are `cachebus_queue_dropped_total`, told apart by `queue`."""
MESSAGES = frozenset({"sent", "received", "accepted"})
MAX_REASONS = 200
"""Reasons per part; the enum has some 50, a defect must not make a million series."""
_Family = CounterMetricFamily | GaugeMetricFamily
_WORD = re.compile(r"[a-z][a-z0-9_]{0,63}")


class NodeCollector(Collector):
    """Makes the metric families out of one look at the status."""

    def __init__(self, status: Callable[[], Status]) -> None:
        self._status = status

    def collect(self) -> Iterable[Metric]:
        """Give every family; a family never repeats within one scrape."""
        status = self._status()
        yield InfoMetricFamily(
            "cachebus_build",
            "The running node.",
            {name: str(status.get(name, "")) for name in ("version", "node", "cluster")},
        )
        yield GaugeMetricFamily("cachebus_uptime_seconds", "Seconds since the start.", status.get("uptime", 0.0))
        yield from _flat("cachebus_cache", "of the cache", status.get("cache", {}), CACHE_GAUGES)
        yield from _flat("cachebus_shim", "of the shim", status.get("shim", {}), GAUGES)
        yield from _flat("cachebus_snapshot", "of copies of the cache", status.get("snapshot", {}), GAUGES)
        yield from _flat("cachebus_share", "by the share policy and the publisher", status.get("share", {}), GAUGES)
        yield from _refused(status)
        yield from _dropped(status)
        for section, label in STAGES.items():
            yield from _parts(label, status.get(section, {}))


def registry_for(status: Callable[[], Status]) -> CollectorRegistry:
    """Make a registry of its own with the node's collector: nothing else of the process shows up in it."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Described(status))
    return registry


def render(status: Status) -> bytes:
    """Give the metrics of one status in Prometheus' text format 0.0.4."""
    return generate_latest(registry_for(lambda: status))


class _Described(NodeCollector):
    def describe(self) -> Iterable[Metric]:
        """Nothing: registering must not ask the node for its status."""
        return []


def _family(name: str, help_text: str, *, gauge: bool, label: str | None = None) -> _Family:
    kind = GaugeMetricFamily if gauge else CounterMetricFamily
    return kind(name, help_text, labels=[] if label is None else [label])


def _words(counter: str) -> str:
    return counter.replace("_", " ").capitalize()


def _numbers(counters: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in counters.items():
        if isinstance(value, int | float) and _WORD.fullmatch(name):
            yield name, value


def _flat(prefix: str, what: str, counters: Mapping[str, Any], gauges: frozenset[str]) -> Iterator[Metric]:
    for counter, value in _numbers(counters):
        if counter in DROPS:
            continue
        family = _family(f"{prefix}_{counter}", f"{_words(counter)} {what}.", gauge=counter in gauges)
        family.add_metric([], value)
        yield family


def _parts(label: str, parts: Mapping[str, Mapping[str, Any]]) -> Iterator[Metric]:
    families: dict[str, _Family] = {}
    for part, counters in parts.items():
        for counter, value in _numbers(counters):
            if counter in DROPS:
                continue
            family = families.get(counter)
            if family is None:
                text = f"{_words(counter)} of a {label}."
                family = _family(_part_metric(label, counter), text, gauge=counter in GAUGES, label=label)
                families[counter] = family
            family.add_metric([part], value)
    yield from families.values()


def _part_metric(label: str, counter: str) -> str:
    if label == "transport" and counter in MESSAGES:
        return f"cachebus_messages_{counter}"
    return f"cachebus_{label}_{counter}"


def _refused(status: Status) -> Iterator[Metric]:
    family = CounterMetricFamily(
        "cachebus_refused",
        "What was not taken, by the stage, its part, and the reason.",
        labels=["stage", "part", "reason"],
    )
    for stage, part, counters in _stages(status):
        reasons = counters.get("refused", {})
        if isinstance(reasons, Mapping):
            for reason, count in list(reasons.items())[:MAX_REASONS]:
                family.add_metric([stage, part, str(reason)], count)
    yield family


def _dropped(status: Status) -> Iterator[Metric]:
    family = CounterMetricFamily(
        "cachebus_queue_dropped", "What a full queue lost, by the stage, its part, and the queue.",
        labels=["stage", "part", "queue"],
    )  # fmt: skip
    for stage, part, counters in _stages(status):
        for counter, value in _numbers(counters):
            if counter in DROPS:
                family.add_metric([stage, part, "kernel" if counter == "kernel_drops" else "node"], value)
    yield family


def _stages(status: Status) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    for section, stage in STAGES.items():
        for part, counters in status.get(section, {}).items():
            yield stage, part, counters
    for single in SINGLE:
        if single in status:
            yield single, single, status[single]
