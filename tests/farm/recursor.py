"""PowerDNS Recursor as a resolver. Knows nothing of what it resolves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.farm.client import Endpoint, Question, ask
from tests.farm.process import Process
from tests.servers import free_port


class Recursor(Process):
    """One pdns_recursor on a loopback port; it keeps RRSIGs but validates nothing."""

    def __init__(
        self,
        directory: Path,
        *,
        name: str = "recursor",
        stubs: Mapping[str, Endpoint],
        dnstap: Path | None = None,
        settings: Sequence[str] = (),
    ) -> None:
        super().__init__(directory, name)
        self.endpoint = Endpoint("127.0.0.1", free_port())
        self.stubs = dict(stubs)
        self.dnstap = dnstap
        self.settings = list(settings)

    def prepare(self) -> None:
        here = self.directory
        forwards = ",".join(f"{zone}={endpoint.host}:{endpoint.port}" for zone, endpoint in self.stubs.items())
        lines = [
            f"config-dir={here}\nsocket-dir={here}\nlua-config-file={here}/config.lua",
            f"local-address={self.endpoint.host}\nlocal-port={self.endpoint.port}",
            f"forward-zones={forwards}",
            "daemon=no\ndisable-syslog=yes\nlog-common-errors=yes\nquiet=yes\nwrite-pid=no",
            "allow-from=127.0.0.0/8\ndont-query=\nserve-rfc1918=off\nsecurity-poll-suffix=\nthreads=1",
            "dnssec=process-no-validate\nqname-minimization=no\nroot-nx-trust=no",
        ]
        (here / "recursor.conf").write_text("\n".join([*lines, *self.settings]) + "\n")
        (here / "config.lua").write_text(self._lua())

    def _lua(self) -> str:
        if not self.dnstap:
            return ""
        options = "logQueries=true, logResponses=true, reopenInterval=1, flushTimeout=1"
        return f'dnstapFrameStreamServer({{"{self.dnstap}"}}, {{{options}}})\n'

    def command(self) -> Sequence[str]:
        return ["pdns_recursor", f"--config-dir={self.directory}"]

    def is_ready(self) -> bool:
        return ask(self.endpoint, Question("localhost.", "A"), timeout=0.3, recurse=False) is not None
