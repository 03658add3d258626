"""Unbound as a resolver: its configuration, its control socket. Knows nothing of what it resolves."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path

import dns.message
import dns.rdatatype

from tests.farm.client import Endpoint, Question
from tests.farm.process import Process, eventually
from tests.servers import find, free_port

CONTROL_TIMEOUT = 10.0
"""Seconds for one unbound-control command."""


class Unbound(Process):
    """One Unbound on a loopback port.

    `stubs` says which address is authoritative for which zone; point them at a closed port for a resolver whose
    upstreams are dead. `anchors` are DS or DNSKEY records; without any, nothing is validated. `server` holds further
    lines for the `server:` clause, `extra` whole clauses. Without `dnstap_queries` no RESOLVER_QUERY is logged.
    """

    def __init__(
        self,
        directory: Path,
        *,
        name: str = "unbound",
        host: str = "127.0.0.1",
        stubs: Mapping[str, Endpoint] | None = None,
        anchors: Sequence[str] = (),
        dnstap: Path | None = None,
        dnstap_queries: bool = True,
        server: Sequence[str] = (),
        extra: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(directory, name)
        self.endpoint = Endpoint(host, free_port(host))
        self.control_path = self.directory / "ctl"
        self.stubs = dict(stubs or {})
        self.anchors = list(anchors)
        self.dnstap = dnstap
        self.dnstap_queries = dnstap_queries
        self.server = list(server)
        self.extra = list(extra)
        self._environment = {**os.environ, **(environment or {})}

    def prepare(self) -> None:
        (self.directory / "unbound.conf").write_text("\n".join([*self._server(), *self._clauses(), ""]))

    def _server(self) -> list[str]:
        lines = [
            "server:",
            f"  interface: {self.endpoint.host}@{self.endpoint.port}",
            f'  directory: "{self.directory}"\n  pidfile: "{self.directory}/pid"\n  chroot: ""\n  username: ""',
            '  use-syslog: no\n  logfile: ""\n  verbosity: 1\n  log-servfail: yes\n  val-log-level: 2',
            "  do-daemonize: no\n  num-threads: 1\n  do-not-query-localhost: no",
            "  access-control: 127.0.0.0/8 allow_snoop\n  access-control: ::1/128 allow_snoop",
            '  local-zone: "test." nodefault\n  local-zone: "2.0.192.in-addr.arpa." nodefault',
            "  msg-cache-size: 8m\n  rrset-cache-size: 16m\n  minimal-responses: yes\n  unwanted-reply-threshold: 0",
        ]
        lines += [f'  trust-anchor: "{anchor}"' for anchor in self.anchors]
        if not any(line.strip().startswith("module-config") for line in self.server):
            lines.append(f'  module-config: "{"validator " if self.anchors else ""}iterator"')
        return [*lines, *(f"  {line}" for line in self.server)]

    def _clauses(self) -> list[str]:
        lines = [
            "remote-control:\n  control-enable: yes\n  control-use-cert: no",
            f'  control-interface: "{self.control_path}"',
        ]
        for zone, endpoint in self.stubs.items():
            lines.append(f'stub-zone:\n  name: "{zone}"\n  stub-addr: {endpoint.host}@{endpoint.port}')
        if self.dnstap:
            lines += [
                f'dnstap:\n  dnstap-enable: yes\n  dnstap-socket-path: "{self.dnstap}"\n  dnstap-bidirectional: yes',
                f"  dnstap-log-resolver-query-messages: {'yes' if self.dnstap_queries else 'no'}",
                "  dnstap-log-resolver-response-messages: yes",
                "  dnstap-log-client-query-messages: yes\n  dnstap-log-client-response-messages: yes",
                "  dnstap-log-forwarder-query-messages: yes\n  dnstap-log-forwarder-response-messages: yes",
            ]
        return [*lines, *self.extra]

    def command(self) -> Sequence[str]:
        return ["unbound", "-d", "-p", "-c", str(self.directory / "unbound.conf")]

    def environment(self) -> Mapping[str, str]:
        return self._environment

    def is_ready(self) -> bool:
        return self._control("status").returncode == 0

    def _control(self, *arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
        program = find("unbound-control")
        assert program, "unbound-control is not installed"
        return subprocess.run(
            [program, "-c", str(self.directory / "unbound.conf"), *arguments],
            input=text,
            capture_output=True,
            text=True,
            check=False,
            timeout=CONTROL_TIMEOUT,
        )

    def control(self, *arguments: str, text: str = "") -> str:
        """Output of an unbound-control command (`text` goes to its standard input); AssertionError when it fails."""
        done = self._control(*arguments, text=text)
        assert done.returncode == 0, f"unbound-control {' '.join(arguments)}: {done.stdout}{done.stderr}"
        return done.stdout

    def flush(self) -> None:
        """Forget everything: as after a restart, without one."""
        self.control("flush_zone", ".")
        self.control("flush_infra", "all")

    def held(self) -> dict[tuple[str, str], set[str]]:
        """What its cache holds: (owner, type) to the RDATA, negative entries and RRSIGs left out."""
        held: dict[tuple[str, str], set[str]] = {}
        for line in self.control("dump_cache").splitlines():
            fields = line.split(None, 4)
            if len(fields) == 5 and fields[1].isdigit() and fields[2] == "IN" and fields[3] not in {"RRSIG", "NSEC"}:
                held.setdefault((fields[0].lower(), fields[3]), set()).add(fields[4])
        return held

    def answers(self) -> set[tuple[str, str]]:
        """(name, type) of the positive answers in its cache; asked for over the control socket, it resolves nothing."""
        lines = (line.split() for line in self.control("dump_cache").splitlines() if line.startswith("msg "))
        return {(fields[1].lower(), fields[3]) for fields in lines if len(fields) > 8 and fields[8] != "0"}

    def wait_for(self, questions: Sequence[Question], within: float) -> None:
        """Until its cache has an answer to every question. A query, RD=0 too, would be sent on to dead upstreams."""
        self._wait_until_held(self.answers, {question[:2] for question in questions}, within)

    def wait_for_data(self, answers: Iterable[dns.message.Message], within: float) -> None:
        """Until its cache holds every RRset of these answers, but for the CNAMEs that a DNAME beside them yields."""
        wanted = set()
        for answer in answers:
            dnames = [rrset.name for rrset in answer.answer if rrset.rdtype == dns.rdatatype.DNAME]
            wanted |= {
                (rrset.name.to_text().lower(), dns.rdatatype.to_text(rrset.rdtype))
                for rrset in answer.answer
                if rrset.rdtype != dns.rdatatype.RRSIG
                and not (rrset.rdtype == dns.rdatatype.CNAME and any(rrset.name.is_subdomain(name) for name in dnames))
            }
        self._wait_until_held(lambda: self.held().keys(), wanted, within)

    def _wait_until_held(
        self, look: Callable[[], AbstractSet[tuple[str, str]]], wanted: set[tuple[str, str]], within: float
    ) -> None:
        def all_there() -> bool:
            missing = [" ".join(key) for key in wanted - look()]
            assert not missing, f"{len(missing)} missing, among them {', '.join(missing[:5])}"
            return True

        eventually(all_there, within, f"the cache of {self.name} is filled")

    def statistics(self) -> dict[str, float]:
        """Counters since the start, e.g. `total.num.queries`, `total.num.recursivereplies`."""
        lines = self.control("stats_noreset").splitlines()
        return {key: float(value) for key, _, value in (line.partition("=") for line in lines)}
