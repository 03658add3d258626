"""Many messages to one DNS server over raw sockets, many under way at once. Reads no message beyond its ID."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Sequence

from tests.farm.client import Endpoint

WINDOW = 40
"""Messages under way: less than a resolver's own limits, so that none is dropped."""
RETRY_AFTER = 1.0
"""Seconds after which a datagram is sent again."""


def over_udp(server: Endpoint, wires: Sequence[bytes], *, within: float) -> list[bytes | None]:
    """The reply to each message, None where none came in time. The IDs must differ."""
    replies: dict[bytes, bytes] = {}
    waiting: dict[bytes, tuple[bytes, float]] = {}
    todo = list(reversed(wires))
    deadline = time.monotonic() + within
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.connect(server)
        udp.setblocking(False)
        while (todo or waiting) and (now := time.monotonic()) < deadline:
            while todo and len(waiting) < WINDOW:
                wire = todo.pop()
                waiting[wire[:2]] = (wire, now)
                udp.send(wire)
            if select.select([udp], [], [], 0.05)[0]:
                _receive(udp, waiting, replies)
            for ident, (wire, sent) in waiting.items():
                if now - sent > RETRY_AFTER:
                    waiting[ident] = (wire, now)
                    udp.send(wire)
    return [replies.get(wire[:2]) for wire in wires]


def _receive(udp: socket.socket, waiting: dict[bytes, tuple[bytes, float]], replies: dict[bytes, bytes]) -> None:
    while True:
        try:
            data = udp.recv(65535)
        except BlockingIOError:
            return
        if waiting.pop(data[:2], None) is not None:
            replies[data[:2]] = data


def over_tcp(server: Endpoint, wires: Sequence[bytes], *, within: float) -> list[bytes | None]:
    """The same over one TCP connection, pipelined (RFC 7766 section 6.2.1.1)."""
    replies: dict[bytes, bytes] = {}
    deadline = time.monotonic() + within
    with socket.create_connection(server, timeout=within) as tcp, tcp.makefile("rb") as stream:
        for start in range(0, len(wires), WINDOW):
            batch = wires[start : start + WINDOW]
            tcp.sendall(b"".join(len(wire).to_bytes(2, "big") + wire for wire in batch))
            for _ in batch:
                tcp.settimeout(max(deadline - time.monotonic(), 0.1))
                reply = stream.read(int.from_bytes(stream.read(2), "big"))
                replies[reply[:2]] = reply
    return [replies.get(wire[:2]) for wire in wires]
