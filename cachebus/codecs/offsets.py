"""How far each peer's clock is off: the smallest age seen of late, because what was held up on its way says nothing.

Knows no codec. Decides nothing: what is shown is for the operator.
"""

from __future__ import annotations

WINDOW = 120.0
"""Seconds in each of two windows that an offset is taken from: long enough for a message that was not held up, short
enough to see a clock that was set right, or wrong."""
MAX_PEERS = 10_000
"""Peers remembered."""
_UNHEARD = float("inf")


class ClockOffsets:
    """The smallest ages of each peer's messages, in the present window and the one before it."""

    def __init__(self) -> None:
        self._peers: dict[str, _Peer] = {}

    def note(self, name: str, age: float, now: float) -> None:
        """A message of this peer is `age` seconds old by our clock."""
        peer = self._peers.get(name)
        if peer is None:
            if len(self._peers) >= MAX_PEERS:
                self._peers.clear()
            peer = self._peers[name] = _Peer()
        peer.turn(now)
        peer.youngest = min(peer.youngest, age)

    def offsets(self, now: float) -> dict[str, float]:
        """Per peer heard of in the last minutes: seconds by which its clock is behind ours (negative: ahead)."""
        found = {}
        for name, peer in self._peers.items():
            peer.turn(now)
            offset = min(peer.youngest, peer.before)
            if offset != _UNHEARD:
                found[name] = offset
        return found


class _Peer:
    __slots__ = ("before", "since", "until", "youngest")

    def __init__(self) -> None:
        self.since = self.until = 0.0
        self.youngest = self.before = _UNHEARD

    def turn(self, now: float) -> None:
        """Begin a window where the present one is over, or our clock was set back."""
        if not self.since <= now < self.until:
            self.before = self.youngest if self.until <= now < self.until + WINDOW else _UNHEARD
            self.youngest = _UNHEARD
            self.since, self.until = now, now + WINDOW
