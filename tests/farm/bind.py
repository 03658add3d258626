"""BIND's named as a resolver. Knows nothing of what it resolves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.farm.client import Endpoint, Question, ask
from tests.farm.process import Process
from tests.servers import free_port


class Bind(Process):
    """One named on a loopback port.

    Every authoritative server of `stubs` has to listen on the same port, because named asks all servers at the port
    of its `port` option. `anchors` are DS records; without any, nothing is validated. With `forward` every other
    question goes to that one server.
    """

    def __init__(
        self,
        directory: Path,
        *,
        name: str = "bind",
        stubs: Mapping[str, Endpoint] | None = None,
        forward: Endpoint | None = None,
        anchors: Sequence[str] = (),
        dnstap: Path | None = None,
        options: Sequence[str] = (),
    ) -> None:
        super().__init__(directory, name)
        self.endpoint = Endpoint("127.0.0.1", free_port())
        self.stubs = dict(stubs or {})
        self.forward = forward
        self.anchors = list(anchors)
        self.dnstap = dnstap
        self.options = list(options)

    def prepare(self) -> None:
        servers = [*self.stubs.values(), *([] if self.forward is None else [self.forward])]
        ports = {endpoint.port for endpoint in servers}
        assert len(ports) == 1, "named asks every server at one port"
        here = self.directory
        lines = [
            "options {",
            f'  directory "{here}"; pid-file "{here}/pid"; session-keyfile "{here}/session.key";',
            f'  managed-keys-directory "{here}"; lock-file none;',
            f"  port {ports.pop()}; listen-on port {self.endpoint.port} {{ {self.endpoint.host}; }};",
            "  listen-on-v6 { none; };",
            "  recursion yes; allow-query { any; }; allow-recursion { any; }; empty-zones-enable no;",
            f"  dnssec-validation {'yes' if self.anchors else 'no'}; minimal-responses yes; qname-minimization off;",
        ]
        if self.dnstap:
            lines += [
                "  dnstap { client; resolver; forwarder; };",
                f'  dnstap-output unix "{self.dnstap}"; fstrm-set-reopen-interval 1;',
            ]
        if self.forward:
            lines.append(f"  forward only; forwarders {{ {self.forward.host}; }};")
        lines += [*(f"  {option}" for option in self.options), "};", "controls { };"]
        lines += [_anchor(anchor) for anchor in self.anchors]
        lines += [
            f'zone "{zone}" {{ type static-stub; server-addresses {{ {endpoint.host}; }}; }};'
            for zone, endpoint in self.stubs.items()
        ]
        (here / "named.conf").write_text("\n".join(lines) + "\n")

    def command(self) -> Sequence[str]:
        return ["named", "-g", "-n", "1", "-c", str(self.directory / "named.conf")]

    def is_ready(self) -> bool:
        reply = ask(self.endpoint, Question("localhost.", "A"), timeout=0.3, recurse=False)
        return reply is not None and "running" in self.log_tail()


def _anchor(ds: str) -> str:
    """A DS record in named's own words."""
    zone, _, _, tag, algorithm, digest_type, *digest = ds.split()
    return f'trust-anchors {{ "{zone}" static-ds {tag} {algorithm} {digest_type} "{"".join(digest)}"; }};'
