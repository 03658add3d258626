"""Tell systemd how the daemon is (sd_notify(3)): one datagram to the socket it named. Without one nothing happens."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import suppress


class Notifier:
    """Sends states; a socket that is gone or full never disturbs the daemon."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._path = environment.get("NOTIFY_SOCKET", "")
        own = environment.get("WATCHDOG_PID", "") in ("", str(os.getpid()))
        text = environment.get("WATCHDOG_USEC", "") if own else ""
        self.watchdog: float | None = int(text) / 2e6 if text.isdigit() and int(text) else None
        """Seconds between two signs of life: half of what systemd demands; None when it demands none."""

    def send(self, state: str) -> None:
        """Send `READY=1`, `RELOADING=1`, `STOPPING=1`, `WATCHDOG=1` or several lines of these."""
        if not self._path.startswith(("/", "@")):
            return
        address = "\0" + self._path[1:] if self._path.startswith("@") else self._path
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender:
            sender.sendto(state.encode(), address)
