"""Nodes on a bridge, each in a network namespace: all reached, links down, datagrams lost, repeated and reordered.

Not a test module: `test_multicast_bridge` runs it in namespaces of its own and reads the JSON that it prints.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests.certificates import Authority
from tests.farm.namespace import commands, run

KEY = "cluster-2026: {algorithm: hmac-sha256, secret: MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=}"
GROUP, SPOILED = "239.255.67.66:5390", "239.255.67.67:5390"
GROUP_IPV6 = "[ff15::6766]:5390"
DEADLINE = 30.0
START_SECOND = 1.1
"""TSIG counts whole seconds, so a node refuses what was signed in the second of its own start (`before-start`)."""
ROUND = 320
"""Answers that a node publishes at a time."""


class Child:
    """A process of `bridge_node` in a namespace."""

    def __init__(self, namespace: str, *arguments: str) -> None:
        self._process = subprocess.Popen(
            ["ip", "netns", "exec", namespace, sys.executable, "-m", "tests.scenarios.bridge_node", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def hear(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the process has ended"
        return json.loads(line)

    def say(self, *words: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(" ".join(map(str, words)) + "\n")
        self._process.stdin.flush()

    def ask(self, *words: object) -> Any:
        self.say(*words)
        return self.hear()

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


@contextmanager
def bridge(transport: Callable[[int], str], *, nodes: int = 5, start: int = 1) -> Iterator[list[Child]]:
    """Nodes 1 to `nodes` at 192.0.2.N, each with the section that `transport` gives."""
    commands(["link add br0 type bridge mcast_snooping 0", "link set br0 up"])
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        authority = Authority(directory)
        children = []
        for index in range(start, start + nodes):
            connect(index)
            authority.write(f"n{index}.example")
            path = directory / f"{index}.yaml"
            path.write_text(f"node: n{index}\nkeys: {{{KEY}}}\ntransports:\n  lan: {transport(index)}\n")
            path.chmod(0o600)
            children.append(Child(f"n{index}", "node", str(path)))
            stack.callback(children[-1].end)
        for child in children:
            assert child.hear() == {"up": True}
        time.sleep(START_SECOND)
        yield children


def connect(index: int) -> None:
    commands(
        [
            f"netns add n{index}",
            f"link add port{index} type veth peer name eth0 netns n{index}",
            f"link set port{index} master br0 up",
        ]
    )
    bring_up(index)


def bring_up(index: int) -> None:
    inside = f"-n n{index}"
    commands(
        [
            f"{inside} link set lo up",
            f"{inside} link set eth0 up",
            f"{inside} address add 192.0.2.{index}/24 dev eth0",
            f"{inside} address add 2001:db8::{index}/64 dev eth0 nodad",
        ]
    )


def until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.1)


def publish_all(children: list[Child], first: int) -> None:
    for child in children:
        child.say("publish", first, ROUND)
    for child in children:
        child.hear()


def settled(children: list[Child]) -> list[dict[str, Any]]:
    """Reports, once nothing moves any more."""
    last: list[int] = []
    while True:
        reports = [child.ask("report") for child in children]
        received = [report["received"] for report in reports]
        if received == last:
            return reports
        last = received
        time.sleep(0.3)


def said(report: dict[str, Any]) -> int:
    """Messages that a node has numbered, whether or not they got away."""
    return int(report["sent"] + report["send_errors"] + report["dropped"])


def heard(report: dict[str, Any]) -> int:
    return int(report["received"] - report["refused"].get("own-message", 0))


def lost(before: list[dict[str, Any]], after: list[dict[str, Any]], index: int) -> int:
    """What the others have said in between and this one has not heard."""
    others = [other for other in range(len(before)) if other != index]
    numbered = sum(said(after[other]) - said(before[other]) for other in others)
    return numbered - (heard(after[index]) - heard(before[index]))


def held(children: list[Child], first: int, *, start: int = 1) -> list[dict[str, int]]:
    """What each holds of each other's answers of one round."""
    return [
        child.ask("held", f"n{start + other}", first, ROUND)
        for index, child in enumerate(children)
        for other in range(len(children))
        if other != index
    ]


def multicast(codec: str, group: str = GROUP, **more: object) -> Callable[[int], str]:
    options = "".join(f", {key}: {json.dumps(value)}" for key, value in more.items())
    return lambda index: (
        f"{{type: multicast, codec: {codec}, key: cluster-2026, group: {json.dumps(group)}, interface: eth0{options}}}"
    )


# Scenarios: each prints what it saw


def reach(codec: str, group: str) -> dict[str, Any]:
    with bridge(multicast(codec, group)) as children:
        publish_all(children, 0)
        settled(children)
        return {"held": held(children, 0)}


def tls(index: int) -> str:
    """Codec cdns over tcp: each sends to the others, and is known by its certificate."""
    peers = json.dumps([f"192.0.2.{other}:5391" for other in range(1, 6)])
    names = json.dumps([f"n{other}.example" for other in range(1, 6)])
    files = f"cert: n{index}.example.pem, key: n{index}.example.key, ca: test-authority.pem"
    return f'{{type: tcp, listen: "192.0.2.{index}:5391", peers: {peers}, tls: {{{files}, peers: {names}}}}}'


def partition(kind: str, seconds: str) -> dict[str, Any]:
    """Node 5's port is down, then node 4's own link; then node 3's interface is another one of the same name."""
    with bridge(tls if kind == "tcp" else multicast("batch")) as children:
        if kind == "tcp":
            until(lambda: all(child.ask("report")["connections"] == 8 for child in children), "not all are linked")
        publish_all(children, 0)
        before = settled(children)
        reached = held(children, 0)
        commands(["link set port5 down", "-n n4 link set eth0 down", "-n n3 link del eth0"])
        publish_all(children, 1000)
        time.sleep(float(seconds) / 2)
        publish_all(children, 2000)
        time.sleep(float(seconds) / 2)
        commands(["link set port5 up", "-n n4 link set eth0 up"])
        commands(["link add port3 type veth peer name eth0 netns n3", "link set port3 master br0 up"])
        bring_up(3)
        healed = time.monotonic()
        number = iter(range(10_000, 90_000, 16))

        def all_heard() -> bool:
            for child in children:
                child.ask("publish", (first := next(number)), 1)
                time.sleep(0.1)  # the batch waits for company, too
                name = f"n{1 + children.index(child)}"
                if not all(other is child or other.ask("held", name, first, 1)["held"] for other in children):
                    return False
            return True

        until(all_heard, "the partition did not heal")
        took = time.monotonic() - healed
        publish_all(children, 3000)
        after = settled(children)
        return {
            "reached": reached,
            "healed_after": took,
            "gaps": [now["gaps"] - then["gaps"] for then, now in zip(before, after, strict=True)],
            "lost": [missing(kind, before, after, index) for index in range(len(children))],
            "during": held(children, 1000),
            "held": held(children, 3000),
            "interface_up": [report.get("interface_up") for report in after],
            "refused": [report["refused"] for report in after],
        }


def loss(kind: str, codec: str) -> dict[str, Any]:
    """Every node drops 20 % of what comes in."""
    with bridge(_section(kind, codec, 3), nodes=3) as children:
        publish_all(children, 0)
        before = settled(children)
        for index in (1, 2, 3):
            drop = "add rule inet x i udp dport 5390 numgen random mod 100 < 20 counter drop"
            hook = "add chain inet x i { type filter hook input priority 0; }"
            for line in ("add table inet x", hook, drop):
                run("ip", "netns", "exec", f"n{index}", "nft", line)
        publish_all(children, 1000)
        settled(children)
        for index in (1, 2, 3):
            run("ip", "netns", "exec", f"n{index}", "nft", "delete table inet x")
        publish_all(children, 2000)
        after = settled(children)
        return {
            "gaps": [now.get("gaps", 0) - then.get("gaps", 0) for then, now in zip(before, after, strict=True)],
            "lost": [missing(kind, before, after, index) for index in range(3)],
            "during": held(children, 1000),
            "held": held(children, 2000),
            "refused": [report["refused"] for report in after],
        }


def _section(kind: str, codec: str, nodes: int) -> Callable[[int], str]:
    if kind == "multicast":
        return multicast(codec)
    peers = json.dumps([f"192.0.2.{index}:5390" for index in range(1, nodes + 1)])
    return lambda index: (
        f'{{type: udp, codec: {codec}, key: cluster-2026, listen: "192.0.2.{index}:5390", peers: {peers}}}'
    )


def missing(kind: str, before: list[dict[str, Any]], after: list[dict[str, Any]], index: int) -> int:
    if kind == "multicast":
        return lost(before, after, index)
    # Otherwise a message counts once for each of the others, among which it is given up for one as for all.
    others = [other for other in range(len(before)) if other != index]
    numbered = sum(
        after[other].get(name, 0) - before[other].get(name, 0)
        for other in others
        for name in ("sent", "dropped", "expired")
    )
    return int(numbered // len(others) - (after[index]["received"] - before[index]["received"]))


def spoil(kind: str, codec: str) -> dict[str, Any]:
    """From node 1 to node 2 only through a relay that repeats and reorders."""
    if kind == "multicast":
        ends = {"from": GROUP, "to": SPOILED, "options": {"interface": "eth0"}}
        section: Callable[[int], str] = lambda index: multicast(codec, GROUP if index == 1 else SPOILED)(index)  # noqa: E731
    else:
        ends = {"from": "192.0.2.3:5390", "to": "192.0.2.2:5390"}
        section = lambda index: (  # noqa: E731
            f'{{type: udp, codec: {codec}, key: cluster-2026, listen: "192.0.2.{index}:5390", '
            f'peers: ["192.0.2.{3 if index == 1 else 1}:5390"]}}'
        )
    with bridge(section, nodes=2) as (first, second):
        connect(3)
        relay = Child("n3", "relay", json.dumps({"type": kind, "seed": 20261121, **ends}))
        try:
            assert relay.hear() == {"up": True}
            first.ask("publish", 0, 4 * ROUND)
            settled([first, second])
            passed = relay.ask("end")
            (report,) = settled([second])
            return {"passed": passed, "report": report, "held": second.ask("held", "n1", 0, 4 * ROUND)}
        finally:
            relay.end()


SCENARIOS: dict[str, Callable[..., dict[str, Any]]] = {
    "reach": reach,
    "partition": partition,
    "loss": loss,
    "spoil": spoil,
}

if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    sys.stdout.write(json.dumps(SCENARIOS[name](*arguments)) + "\n")
