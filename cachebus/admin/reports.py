"""The JSON shapes of the admin API, from the cache, the history and the parts' counters.

Pure: `now` is an argument, and no part is known beyond what it counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cachebus.admin.records import record_texts
from cachebus.admin.view import Report
from cachebus.answer import Refusal
from cachebus.cache import Cache
from cachebus.entry import Cached, Lookup
from cachebus.ports import Codec
from cachebus.presentation import TYPES, name_to_text, type_to_text
from cachebus.wire.message import NXDOMAIN
from cachebus.wire.rrtypes import ANY

Counters = Mapping[str, int | Mapping[Refusal, int] | Mapping[str, int]]
"""A part's statistics: numbers by snake_case name, and numbers by reason under a name such as `refused`."""

TRANSPORT_COUNTERS = ("sent", "received", "accepted", "refused", "dropped", "gaps")
"""What the contract shows of every transport, also while it is 0."""
MAX_PEERS = 1000
"""Origins shown of one transport, those heard last: more than a cluster has."""
MAX_HISTORY = 1000
"""Events shown of one name."""
_NEVER_HELD = frozenset({41, 249, 250, 251, 252, 255})
"""OPT and the question-only types: no cache entry can have them."""


def status_report(
    *,
    node: str,
    cluster: str,
    uptime: float,
    cache: Mapping[str, int],
    sources: Mapping[str, Counters],
    transports: Mapping[str, Counters],
    sinks: Mapping[str, Counters],
    shim: Counters | None = None,
    version: str = "",
) -> dict[str, Any]:
    """Shape `status`: what each part, by its name in the configuration, has counted. `uptime` in seconds."""
    report: dict[str, Any] = {
        "node": node,
        "cluster": cluster,
        "uptime": round(uptime, 3),
        "cache": dict(cache),
        "sources": {name: _counters(counters) for name, counters in sources.items()},
        "transports": {name: _transport(counters) for name, counters in transports.items()},
        "sinks": {name: _counters(counters) for name, counters in sinks.items()},
    }
    if shim is not None:
        report["shim"] = _counters(shim)
    if version:
        report["version"] = version
    return report


def peers_report(codecs: Mapping[str, Codec]) -> dict[str, Any]:
    """By transport and origin: when it was heard last, whether it left, and whether its policy is ours."""
    return {
        name: {
            origin: {"heard": round(known.heard, 3), "gone": known.gone, "policy_agrees": known.policy_agrees}
            for origin, known in sorted(presence.items(), key=lambda item: -item[1].heard)[:MAX_PEERS]
        }
        for name, codec in codecs.items()
        if (presence := codec.presence())
    }


def _transport(counters: Counters) -> dict[str, Any]:
    report: dict[str, Any] = {name: {} if name == "refused" else 0 for name in TRANSPORT_COUNTERS}
    return report | _counters(counters)


def _counters(counters: Counters) -> dict[str, Any]:
    return {
        name: value if isinstance(value, int) else {_word(reason): count for reason, count in value.items() if count}
        for name, value in counters.items()
    }


def _word(reason: Refusal | str) -> str:
    return reason.value if isinstance(reason, Refusal) else reason


def lookup_report(cache: Cache, qname: bytes, qtype: int | None, now: float) -> list[dict[str, Any]]:
    """Shape `lookup`: each RRset of the chain from `qname` to `qtype`; without a type everything held at `qname`."""
    if qtype is None:
        return [_cached(entry, qname, now, asked) for asked, entry in _everything(cache, qname, now)]
    found = cache.resolve(qname, qtype, now)
    return [] if found is None else _chain(cache, found, qtype, now)


def _everything(cache: Cache, qname: bytes, now: float) -> list[tuple[int, Cached]]:
    """Each with its type, since a denial holds the zone's SOA, which is not what it denies; of all types it is ANY."""
    codes = [code for code in TYPES if code not in _NEVER_HELD]
    return [(code or ANY, entry) for code in (0, *codes) if (entry := cache.get(qname, code, now)) is not None]


def _chain(cache: Cache, found: Lookup, qtype: int, now: float) -> list[dict[str, Any]]:
    lines = [_cached(entry, entry.rrset.owner, now) for entry in found.chain]
    if found.complete:
        end = cache.get(found.target, 0 if found.rcode == NXDOMAIN else qtype, now)
        if end is not None and end.negative:
            lines.append(_cached(end, found.target, now, qtype))
    return lines


def _cached(entry: Cached, owner: bytes, now: float, asked: int | None = None) -> dict[str, Any]:
    rrset = entry.rrset
    report: dict[str, Any] = {
        "name": name_to_text(owner),
        "type": type_to_text(rrset.type if asked is None else asked),
        "ttl": max(0, int(entry.expires - now)),
        "records": [] if entry.negative else record_texts(rrset),
        "origin": entry.origin,
        "evidence": entry.evidence.text,
        "transport": entry.transport,
        "learned": round(entry.learned, 3),
        "received": round(entry.received, 3),
        "signer": entry.signer,
        "rank": entry.rank.name.lower().replace("_", "-"),
    }
    if entry.negative:
        report["negative"] = True
    return report


def why_report(
    cache: Cache, history: Sequence[Mapping[str, object]], qname: bytes, qtype: int | None, now: float
) -> list[dict[str, Any]]:
    """Shape `why`: as `lookup`, each with the history of the asked name; one line without data when nothing is held.

    `history` is what `History.about` gives for `qname`, oldest first; the newest `MAX_HISTORY` are shown.
    """
    events = list(history[-MAX_HISTORY:])
    held: Sequence[Report] = lookup_report(cache, qname, qtype, now)
    if held:
        return [{**line, "history": events} for line in held]
    if not events:
        return []
    nothing = {
        "name": name_to_text(qname), "type": type_to_text(qtype or 255), "ttl": 0, "records": [], "origin": "",
        "evidence": "", "transport": "", "learned": None, "received": None,
    }  # fmt: skip
    return [{**nothing, "history": events}]
