"""What lately happened to a name on this node: the short memory behind `cachebus why`. Never written to disk."""

from __future__ import annotations

from collections import deque

MAX_EVENTS = 20_000
"""Events kept, of all names together; about 4 MB."""


class History:
    """A ring of events. Records names that were shared, accepted or refused, never who asked for them."""

    def __init__(self, node: str, limit: int = MAX_EVENTS) -> None:
        self._node = node
        self._events: deque[tuple[float, bytes, str, str]] = deque(maxlen=limit)

    def record(self, now: float, name: bytes, event: str, detail: str) -> None:
        """`name` in lower-case wire form; `event` one kebab-case word."""
        self._events.append((now, name, event, detail))

    def about(self, name: bytes) -> list[dict[str, object]]:
        """The events of one name, oldest first, in the shape of `why --json`."""
        return [
            {"time": time, "node": self._node, "event": event, "detail": detail}
            for time, about, event, detail in self._events
            if about == name
        ]
