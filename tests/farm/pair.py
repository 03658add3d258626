"""Two nodes joined by udp: a source resolver beside one, an Unbound without upstreams beside the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dns.flags
from dns.message import Message

from tests.farm.client import Endpoint, Question, data, signatures
from tests.farm.node import CachebusNode, Cluster, Config, unbound_sink
from tests.farm.process import eventually
from tests.farm.unbound import Unbound
from tests.servers import free_port

CONNECT_DEADLINE = 10.0
"""Seconds for a resolver to connect to its node's dnstap socket; libfstrm tries once a second."""
SHARED_WITHIN = 3.0
"""Seconds from the source resolver's last answer to Unbound B's readiness: what the issue asks for."""


def dead_upstreams(zones: Sequence[str]) -> dict[str, Endpoint]:
    """Stubs for a resolver whose upstreams are dead: a port where nobody listens."""
    return dict.fromkeys(zones, Endpoint("127.0.0.1", free_port()))


@dataclass
class Pair:
    """Node a learns, node b fills `unbound_b`."""

    directory: Path
    source: Config
    stubs_b: Mapping[str, Endpoint]
    anchors_b: Sequence[str] = ()
    server_b: Sequence[str] = ()
    dnstap_b: Path | None = None
    node_b: Mapping[str, Any] = field(default_factory=dict)
    node_a: Mapping[str, Any] = field(default_factory=dict)

    def start(self, running: ExitStack) -> None:
        cluster = Cluster()
        cluster.add("a", "b")
        self.unbound_b = running.enter_context(
            Unbound(
                self.directory,
                name="unbound-b",
                stubs=self.stubs_b,
                anchors=self.anchors_b,
                server=self.server_b,
                dnstap=self.dnstap_b,
            )
        )
        sinks = {"resolver": unbound_sink(self.unbound_b.control_path)}
        self.b = running.enter_context(
            CachebusNode(self.directory, cluster.config("b", **{"sinks": sinks, **self.node_b}))
        )
        self.b.wait_until_live()
        sources = {"resolver": self.source}
        self.a = running.enter_context(
            CachebusNode(self.directory, cluster.config("a", **{"sources": sources, **self.node_a}))
        )

    def wait_for_source(self, connections: int = 1) -> None:
        """Until the source resolver is connected to node a."""
        eventually(
            lambda: self.a.status()["sources"]["resolver"]["connections"] >= connections,
            CONNECT_DEADLINE,
            "the resolver is connected to node a",
        )


def check_same(expected: Mapping[Question, Message], got: Mapping[Question, Message], *, secure: bool) -> None:
    """Every question has the same RDATA in both; the signed ones RRSIGs, and AD exactly where `secure` allows it."""
    wrong = []
    for question, theirs in expected.items():
        if question not in got:
            wrong.append(f"{question}: no answer")
            continue
        ours = got[question]
        if data(theirs) != data(ours):
            wrong.append(f"{question}: {sorted(data(ours))} instead of {sorted(data(theirs))}")
        elif question.secure and signatures(theirs) != signatures(ours):
            wrong.append(f"{question}: other RRSIGs")
        elif bool(ours.flags & dns.flags.AD) != (question.secure and secure):
            wrong.append(f"{question}: AD={int(bool(ours.flags & dns.flags.AD))}")
        elif any(rrset.ttl > theirs_ttl(theirs) for rrset in ours.answer):
            wrong.append(f"{question}: TTL has grown")
    assert not wrong, f"{len(wrong)} of {len(expected)} wrong:\n" + "\n".join(wrong[:20])


def theirs_ttl(message: Message) -> int:
    """Largest TTL of an answer: a synthesised CNAME may have less (0 in Unbound) than the DNAME it comes from."""
    return max(rrset.ttl for rrset in message.answer)
