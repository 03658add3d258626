"""recvmmsg(2) and sendmmsg(2): many datagrams in one system call, which halves what the kernel costs a busy server.

The standard library has neither, so they are called through ctypes. Knows no DNS and no layout: that is `burst`'s.
"""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any

_LIBRARY = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
_NEEDED = ("recvmmsg", "sendmmsg")
_AS_LAID_OUT = struct.calcsize("P") == 8 and struct.calcsize("N") == 8
_NOW = socket.MSG_DONTWAIT
_PASSING = frozenset({errno.EAGAIN, errno.EWOULDBLOCK, errno.ENOBUFS, errno.ENOMEM})
"""Errors of a send that its successors would meet as well."""


def is_available() -> bool:
    """Whether this machine has the calls, and memory as `burst` lays it out."""
    return _AS_LAID_OUT and all(hasattr(_LIBRARY, name) for name in _NEEDED)


def address_of(memory: bytearray) -> int:
    """Where `memory` stands, as long as nobody resizes it."""
    return ctypes.addressof((ctypes.c_char * len(memory)).from_buffer(memory))


class Calls:
    """Both calls for one socket and two arrays of message headers."""

    def __init__(self, sock: socket.socket, received: bytearray, replies: bytearray, *, header: int) -> None:
        """`header`: bytes of one element of the arrays."""
        self._fd = ctypes.c_int(sock.fileno())
        self._received = ctypes.c_void_p(address_of(received))
        self._replies = [ctypes.c_void_p(address_of(replies) + at) for at in range(0, len(replies), header)]
        self._slots = ctypes.c_uint(len(received) // header)
        self._flags = ctypes.c_int(_NOW)
        self._none = ctypes.c_void_p(None)
        self._recvmmsg: Callable[..., Any] = getattr(_LIBRARY, _NEEDED[0])
        self._sendmmsg: Callable[..., Any] = getattr(_LIBRARY, _NEEDED[1])

    def receive(self) -> int:
        """Datagrams received now; 0 when none waits, or for an error about an earlier reply."""
        return max(0, int(self._recvmmsg(self._fd, self._received, self._slots, self._flags, self._none)))

    def send(self, first: int, last: int) -> int:
        """Send the replies in the slots from `first` up to `last`; gives how many could not be.

        One that the kernel refuses costs the others nothing; when it has no room, the rest is lost, as datagrams are.
        """
        lost = 0
        while first < last:
            sent = self._sendmmsg(self._fd, self._replies[first], last - first, self._flags)
            if sent > 0:
                first += sent
            elif ctypes.get_errno() in _PASSING:
                return lost + last - first
            else:
                lost += 1
                first += 1
        return lost
