"""What the local resolver is known to hold live, so that nothing is filled over it. Bounded; no clock of its own."""

from __future__ import annotations

from cachebus.flushes import Flush


class Holdings:
    """What the local resolver is known to hold live, positive or negative, from what it told its clients. Bounded."""

    LIMIT = 200_000
    """Questions remembered in each of two generations; about 25 MB."""

    def __init__(self) -> None:
        self._young: dict[bytes, float] = {}
        self._old: dict[bytes, float] = {}

    def hold(self, qname: bytes, qtype: int, expires: float) -> None:
        """The resolver holds this answer until `expires`; type 0 stands for the whole name (NXDOMAIN)."""
        if len(self._young) >= self.LIMIT:
            self._old, self._young = self._young, {}
        self._young[qname + qtype.to_bytes(2, "big")] = expires

    def holds(self, qname: bytes, qtype: int, now: float) -> bool:
        """Whether it is known to hold an answer to this question at `now`."""
        for key in (qname + qtype.to_bytes(2, "big"), qname + b"\0\0"):
            expires = self._young.get(key) or self._old.get(key)
            if expires is not None and expires > now:
                return True
        return False

    def forget(self, flush: Flush) -> None:
        """The resolver was made to forget something."""
        self._young = {key: expires for key, expires in self._young.items() if not flush.covers(key[:-2])}
        self._old = {key: expires for key, expires in self._old.items() if not flush.covers(key[:-2])}

    def clear(self) -> None:
        """The resolver has lost its cache."""
        self._young, self._old = {}, {}
