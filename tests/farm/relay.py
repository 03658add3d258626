"""Stands between a resolver and its node on a unix socket, and knows what the resolver has said. Knows no DNS."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

_READ_SIZE = 65_536
_HELD = 4 * 1024 * 1024
"""Bytes that the kernel is asked to hold for a node that does not read."""
_SO_SNDBUFFORCE = 32


class Relay:
    """Copies the bytes of one connection both ways, and remembers those that it has passed on to the node."""

    def __init__(self, path: Path, node: Path) -> None:
        """`path`: where the resolver connects; `node`: where the node listens."""
        self._node = node
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(1)
        self._ended, self._end = socket.socketpair()
        self._passed = bytearray()
        self._thread = threading.Thread(target=self._run, name="relay")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.close()
        self._thread.join()
        self._ended.close()
        self._listener.close()

    def has_passed(self, text: bytes) -> bool:
        """Whether the kernel holds these bytes for the node, or the node has them."""
        return text in self._passed

    def _run(self) -> None:
        if self._listener not in select.select([self._listener, self._ended], [], [])[0]:
            return
        resolver = self._listener.accept()[0]
        with resolver, socket.socket(socket.AF_UNIX) as node, contextlib.suppress(OSError):
            with contextlib.suppress(PermissionError):
                node.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _HELD)
            node.connect(str(self._node))
            while self._ended not in (readable := select.select([resolver, node, self._ended], [], [])[0]):
                for one, other in ((resolver, node), (node, resolver)):
                    if one in readable:
                        data = one.recv(_READ_SIZE)
                        if not data:
                            return
                        other.sendall(data)
                        if one is resolver:
                            self._passed += data
