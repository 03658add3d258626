"""When bytes that are read now can have been sent at the latest, and at the earliest.

A message of a direct source has no time of its own, so its life is counted from its arrival. After a stall of this
process (SIGSTOP, a suspended machine, swapping) what waited in the kernel would look fresh although it is as old as
the stall: dead data would come back to life. This file decides which time such bytes get. It knows no clock and no
socket: `now` is an argument.
"""

from __future__ import annotations

TICK = 0.25
"""Seconds between two ticks: short against a TTL's second, and four wake-ups a second cost nothing."""
STALL = 2.0
"""Seconds without two ticks that count as a stall: TTLs are whole seconds, and a busy loop is late by less."""
KERNEL_BUFFERS = 16 * 1024 * 1024
"""Bytes that the kernel holds at most for a connection (Linux: 6 MiB for TCP, 208 KiB for unix, unless tuned)."""


class Arrival:
    """The arrival time of what is read from one socket."""

    __slots__ = ("_previous", "_safe", "_unread")

    def __init__(self, now: float) -> None:
        self._safe = now
        self._previous = now
        self._unread = 0

    def tick(self, now: float) -> None:
        """To be called every `TICK` seconds from the loop that reads the socket.

        What is read after this was sent after the tick before: between two ticks that loop has looked at the socket.
        """
        if 0 < self._unread < KERNEL_BUFFERS:
            return  # not yet seen empty, so what comes next may have been waiting all along
        self._safe, self._previous = self._previous, now

    def read(self, size: int, limit: int) -> None:
        """Take note of a read of `size` bytes where `limit` were asked for: fewer means that nothing more waited."""
        self._unread = 0 if size < limit else self._unread + size

    def time(self, now: float) -> float:
        """Seconds since the epoch: `now`, or after a stall the last time that is known to lie before the sending."""
        return now if now - self._safe < STALL else self._safe
