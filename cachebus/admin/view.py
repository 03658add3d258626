"""What the admin API asks of a node, as a protocol. The node implements it; server and tests need nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Protocol

from cachebus.flushes import Flush

Report = Mapping[str, Any]
"""A JSON object, as the contract shapes it."""


class NodeView(Protocol):
    """What can be seen of a running node. Called on the event loop; answers at once from memory."""

    def status(self) -> Report:
        """Counters of every part; see `reports.status_report`."""
        ...

    def lookup(self, qname: bytes, qtype: int | None, now: float) -> Sequence[Report]:
        """What the cache holds for a lower-case wire name: the chain of a type, or every type. Empty: nothing."""
        ...

    def why(self, qname: bytes, qtype: int | None, now: float) -> Sequence[Report]:
        """The same with the history of the name."""
        ...

    def metrics(self) -> bytes:
        """The counters in Prometheus' text format."""
        ...

    async def flush(self, flush: Flush) -> Report:
        """Forget something, here and in the sinks; what became of it."""
        ...

    def give_copy(self) -> AsyncIterator[bytes]:
        """The pieces of a C-DNS file of what the cache holds."""
        ...

    async def take_copy(self, pieces: AsyncIterator[bytes]) -> Report:
        """Merge such a file into the cache; what became of it. Raises `FrameError` when it is none."""
        ...
