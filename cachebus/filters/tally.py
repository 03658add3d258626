"""Counts verdicts, each frame once. Decides nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from cachebus.answer import Refusal
from cachebus.filters.verdict import Verdict


class Tally:
    """Answers accepted, and frames refused by reason: plain ints."""

    def __init__(self) -> None:
        """Start at 0."""
        self.answers = 0
        """Answers given, those that rose counted each time."""
        self.refusals: dict[Refusal, int] = {}

    def count(self, verdicts: Iterable[Verdict]) -> None:
        """Count some final verdicts."""
        for _, answer, reason in verdicts:
            if answer is not None:
                self.answers += 1
            elif reason is not None:
                self.refusals[reason] = self.refusals.get(reason, 0) + 1

    def statistics(self) -> Mapping[str, int]:
        """`answers`, `refused`, and `refused_REASON` in snake_case."""
        counted = {f"refused_{reason.name.lower()}": count for reason, count in self.refusals.items()}
        return {"answers": self.answers, "refused": sum(self.refusals.values()), **counted}
