"""Runs the transport contract over multicast, in a network of its own; prints one JSON line per check.

Not a test module: `test_multicast_contract` runs it in a namespace and reads what it prints.
"""

from __future__ import annotations

import asyncio
import json
import sys
import traceback
from pathlib import Path

import uvloop
from cachebus_transports.multicast import MulticastTransport

from cachebus.ports import TransportSettings
from cachebus.testing import Check, TransportBed, transport_contract
from tests.farm.namespace import commands

BEDS: dict[str, dict[str, object]] = {
    "ipv4": {"group": "239.255.67.66:5390", "interface": "bus0"},
    "ipv4-by-address": {"group": "239.255.67.66:5390", "interface": "192.0.2.1"},
    "ipv4-by-route": {"group": "239.255.67.66:5390"},
    "ipv4-sources": {"group": "232.1.67.66:5390", "interface": "bus0", "sources": ["192.0.2.1", "192.0.2.9"]},
    "ipv6": {"group": "[ff15::6766]:5390", "interface": "bus0"},
    "ipv6-link-local": {"group": "[ff12::6766%bus0]:5390"},
    "ipv6-sources": {"group": "[ff35::8000:6766]:5390", "interface": "bus0", "sources": ["2001:db8::1"]},
}
"""Options of each bed. All nodes are on one machine, so all have one address."""
LINK = [
    "link add bus0 type veth peer name bus1",
    "link set bus1 up",
    "link set bus0 up multicast on",
    "address add 192.0.2.1/24 dev bus0",
    "address add 2001:db8::1/64 dev bus0 nodad",
    "route add 224.0.0.0/4 dev bus0",
]


def bed(name: str) -> TransportBed:
    def settings(index: int, count: int) -> TransportSettings:
        return TransportSettings(name="lan", node=f"node-{index}", cluster="test", options=BEDS[name])

    return TransportBed(factory=MulticastTransport, settings=settings, max_size=65507)


def outcome(name: str, check: Check) -> str:
    """Empty when the check passes, else what went wrong."""

    async def run() -> None:
        await check(bed(name))

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run())
    except Exception:  # noqa: BLE001 - whatever it is goes to the test that reads it
        return traceback.format_exc()
    return ""


def main() -> None:
    Path("/proc/sys/net/ipv6/conf/all/accept_dad").write_text("0")
    commands(LINK)
    for name in sys.argv[1:]:
        for check in transport_contract():
            found = {"bed": name, "check": check.__name__, "error": outcome(name, check)}
            sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
