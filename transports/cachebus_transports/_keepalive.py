"""Lets TCP itself notice a peer that has vanished without a word, in seconds instead of minutes.

Decides how often it asks and how long it waits: its own timers would outlast a partition by many seconds.
"""

from __future__ import annotations

import contextlib
import socket

KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, KEEPALIVE_COUNT = 3, 1, 3
"""Seconds of silence before TCP asks, between two questions, and questions without an answer."""
USER_TIMEOUT = 5000
"""Milliseconds without an acknowledgement."""


def keep_alive(opened: socket.socket) -> None:
    """Set a connection so, and send what is written at once."""
    with contextlib.suppress(OSError):  # it may be gone already
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_COUNT)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT)
