"""Mosquitto as the broker: plain, with TLS and an access list, or bridged to another. Knows nothing of cachebus."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path

from tests.farm.process import Process
from tests.servers import free_port


class Mosquitto(Process):
    """One broker on a loopback port. `options` are further lines of its configuration.

    With `tls` (directory of `ca.pem`, `broker.pem` and `broker.key`) it demands a client certificate, whose common
    name is then the user's name; `access` are lines of an access list.
    """

    def __init__(
        self,
        directory: Path,
        *,
        name: str = "mosquitto",
        tls: Path | None = None,
        access: Sequence[str] = (),
        bridge_to: int | None = None,
        anonymous: bool = True,
        options: Sequence[str] = (),
    ) -> None:
        super().__init__(directory, name)
        self.port = free_port()
        self.tls = tls
        self.access = list(access)
        self.bridge_to = bridge_to
        self.anonymous = anonymous
        self.options = list(options)

    def url(self, cluster: str = "") -> str:
        """As a transport's `url`."""
        scheme = "mqtt" if self.tls is None else "mqtts"
        return f"{scheme}://127.0.0.1:{self.port}" + (f"/{cluster}" if cluster else "")

    def prepare(self) -> None:
        lines = ["user root"]  # it stays who it is: the directories of a test run are nobody else's
        lines += ["persistence false", "log_dest stdout", "log_type all", "set_tcp_nodelay true"]
        if self.access:
            access = self.directory / "access"
            access.write_text("\n".join(self.access) + "\n")
            access.chmod(0o600)
            lines += [f"acl_file {access}"]
        lines += [f"listener {self.port} 127.0.0.1", "socket_domain ipv4", *self.options]
        if self.tls is None:
            lines += [f"allow_anonymous {str(self.anonymous).lower()}"]
        else:
            lines += [
                f"cafile {self.tls / 'ca.pem'}",
                f"certfile {self.tls / 'broker.pem'}",
                f"keyfile {self.tls / 'broker.key'}",
                "require_certificate true",
                "use_identity_as_username true",
            ]
        if self.bridge_to is not None:
            lines += [
                "connection farm",
                f"address 127.0.0.1:{self.bridge_to}",
                "bridge_protocol_version mqttv50",
                "cleansession true",
                "restart_timeout 1",
                "try_private true",
                "topic cachebus/# both 1",
            ]
        (self.directory / "mosquitto.conf").write_text("\n".join(lines) + "\n")

    def command(self) -> Sequence[str]:
        return ["mosquitto", "-c", str(self.directory / "mosquitto.conf")]

    def is_ready(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=0.3):
                return True
        except OSError:
            return False
