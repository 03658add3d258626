"""NATS as a broker of MQTT 3.1.1. Knows nothing of cachebus."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path

from tests.farm.process import Process
from tests.servers import free_port


class Nats(Process):
    """One nats-server with its MQTT listener on a loopback port; JetStream, which that needs, in its directory."""

    def __init__(self, directory: Path, *, name: str = "nats") -> None:
        super().__init__(directory, name)
        self.port = free_port()
        self.client_port = free_port()

    def url(self) -> str:
        """As a transport's `url`."""
        return f"mqtt://127.0.0.1:{self.port}"

    def prepare(self) -> None:
        (self.directory / "nats.conf").write_text(
            f'server_name: farm\nlisten: "127.0.0.1:{self.client_port}"\n'
            f'jetstream {{ store_dir: "{self.directory / "jetstream"}" }}\n'
            f'mqtt {{ listen: "127.0.0.1:{self.port}" }}\n'
        )

    def command(self) -> Sequence[str]:
        return ["nats-server", "-c", str(self.directory / "nats.conf")]

    def is_ready(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=0.3):
                return True
        except OSError:
            return False
