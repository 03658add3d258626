"""NSD and Knot serving the test zones. Knows what is in them by their file names only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import dns.flags

from tests.farm.client import Endpoint, Question, ask
from tests.farm.process import Process
from tests.servers import free_port


class Authoritative(Process):
    """A server for the zones in `files` (zone name to zone file)."""

    def __init__(
        self, directory: Path, files: Mapping[str, Path], *, name: str = "", host: str = "127.0.0.1", port: int = 0
    ) -> None:
        super().__init__(directory, name or type(self).__name__.lower())
        self.files = dict(files)
        self.endpoint = Endpoint(host, port or free_port(host))

    def is_ready(self) -> bool:
        replies = [ask(self.endpoint, Question(zone, "SOA"), timeout=0.3, recurse=False) for zone in self.files]
        return all(reply is not None and reply.flags & dns.flags.AA and reply.answer for reply in replies)


class Nsd(Authoritative):
    """NLnet Labs' NSD."""

    def prepare(self) -> None:
        here = self.directory
        lines = [
            "server:",
            f"  ip-address: {self.endpoint.host}@{self.endpoint.port}",
            f'  username: ""\n  chroot: ""\n  zonesdir: "{here}"',
            f'  pidfile: "{here}/pid"\n  xfrdfile: "{here}/xfrd.state"\n  xfrdir: "{here}"',
            f'  database: ""\n  zonelistfile: "{here}/zone.list"',
            "  server-count: 1\n  rrl-ratelimit: 0\n  verbosity: 1",
            "remote-control:\n  control-enable: no",
        ]
        lines += [f'zone:\n  name: "{zone}"\n  zonefile: "{path}"' for zone, path in self.files.items()]
        (here / "nsd.conf").write_text("\n".join(lines) + "\n")

    def command(self) -> Sequence[str]:
        return ["nsd", "-d", "-c", str(self.directory / "nsd.conf")]


class Knot(Authoritative):
    """CZ.NIC's Knot DNS."""

    def prepare(self) -> None:
        here = self.directory
        lines = [
            "server:",
            f'    rundir: "{here}"\n    listen: "{self.endpoint.host}@{self.endpoint.port}"',
            "    udp-workers: 1\n    tcp-workers: 1\n    background-workers: 1",
            f'database:\n    storage: "{here}"',
            "control:\n    listen: knot.sock",
            "log:\n  - target: stderr\n    any: info",
            "zone:",
        ]
        lines += [
            f'  - domain: "{zone}"\n    file: "{path}"\n    zonefile-load: whole\n    journal-content: none'
            for zone, path in self.files.items()
        ]
        (here / "knot.conf").write_text("\n".join(lines) + "\n")

    def command(self) -> Sequence[str]:
        return ["knotd", "-c", str(self.directory / "knot.conf")]
