"""The word that every judge ends with. Decides nothing."""

from __future__ import annotations

from typing import NamedTuple

from cachebus.answer import Answer, Refusal


class Verdict(NamedTuple):
    """What a judge decided about one frame. A later verdict on the same frame replaces the earlier (it only rises)."""

    frame: int
    """Number of the frame that carried the records, counted from 1 by the judge."""
    answer: Answer | None
    """The accepted answer, or None when refused."""
    reason: Refusal | None
    """Why it was refused, or None when accepted."""
