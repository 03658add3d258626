"""Questions that no upstream could answer lately: not asked again at once (RFC 9520), and no oftener than that.

Decides for how long a failure stands. Knows no upstream and no socket; `now` is an argument. Bounded; holds questions,
never who asked them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import NamedTuple

from cachebus.flushes import Flush
from cachebus.shim.caching import FailureSettings
from cachebus.shim.lookup import Found, Stage
from cachebus.shim.query import Ede, Query, Response
from cachebus.wire.message import SERVFAIL

MAX_FAILURES = 10_000
"""Questions remembered, about 3 MB; the one that failed longest ago gives way."""
RECHECK = 30.0
"""Seconds in which what can be answered from stale data is not asked for again (RFC 8767 section 5)."""
FORGIVEN = 60.0
"""Seconds after the end of a failure in which a further one counts as the next of a row."""
_NO_ANSWER = ((Ede.NO_REACHABLE_AUTHORITY, "no upstream answered"),)
_CACHED = (Ede.CACHED_ERROR, "")


class _Failure(NamedTuple):
    since: float
    until: float
    in_a_row: int
    errors: tuple[tuple[int, str], ...]


class Question(NamedTuple):
    """What failed: one question as it was put to upstreams."""

    qname: bytes
    """Lower-case wire form."""
    qtype: int
    checking_disabled: bool
    """Another question, for it asks for less (RFC 9520 section 3.2, RFC 4035 section 4.7)."""
    subnet: bytes = b""
    """The client subnet option that was told: a client that sends one which fails must not make it fail for others."""


def _no_subnet(query: Query) -> bytes:
    return b""


class Failures:
    """When which question failed last."""

    def __init__(self, settings: FailureSettings) -> None:
        self._settings = settings
        self._failures: OrderedDict[Question, _Failure] = OrderedDict()
        self.noted = 0

    def finished(self, question: Question, response: Response | None, now: float) -> None:
        """Take note of how a look-up ended; None is that nobody answered."""
        if response is not None and response.rcode != SERVFAIL:
            self._failures.pop(question, None)
            return
        before = self._failures.pop(question, None)
        if before is not None and before.since <= now < before.until:
            self._failures[question] = before  # of a look-up that began earlier: the same failure
            return
        row = 0 if before is None or now > before.until + FORGIVEN else before.in_a_row + 1
        wait = min(self._settings.first * 2.0 ** min(row, 10), self._settings.most)
        errors = _NO_ANSWER if response is None else response.errors
        self._failures[question] = _Failure(now, now + wait, row, errors)
        self.noted += 1
        if len(self._failures) > MAX_FAILURES:
            self._failures.popitem(last=False)

    def errors(self, question: Question, now: float) -> tuple[tuple[int, str], ...] | None:
        """Why a question failed, while that stands; else None."""
        known = self._failures.get(question)
        return known.errors if known is not None and known.since <= now < known.until else None

    def is_recent(self, question: Question, now: float) -> bool:
        """Whether it failed in the last `RECHECK` seconds."""
        known = self._failures.get(question)
        return known is not None and known.since <= now < known.since + RECHECK

    def forget(self, flush: Flush) -> int:
        """Let what was flushed be asked for again; gives the number of failures forgotten."""
        gone = [question for question in self._failures if flush.covers(question.qname)]
        for question in gone:
            del self._failures[question]
        return len(gone)

    def __len__(self) -> int:
        return len(self._failures)


class FailureStage:
    """Answers what failed a moment ago with SERVFAIL and EDE 13, and leaves everything else to the stage behind it."""

    def __init__(
        self, failures: Failures, inner: Stage, last_resort: Stage, *, subnet: Callable[[Query], bytes] = _no_subnet
    ) -> None:
        """`last_resort` is asked before SERVFAIL is given, as it is after a look-up that nobody answered.

        `subnet`: what upstreams are told of the client of a query.
        """
        self._failures = failures
        self._subnet = subnet
        self._inner = inner
        self._last_resort = last_resort
        self.answered = 0

    def answer(self, query: Query, now: float) -> Found:
        """SERVFAIL while a failure stands, or what the inner stage gives. Without RD nothing would be asked anyway."""
        if len(self._failures) and query.recursion_desired:
            question = Question(query.qname, query.qtype, query.checking_disabled, self._subnet(query))
            errors = self._failures.errors(question, now)
            if errors is not None:
                self.answered += 1
                instead = self._last_resort.answer(query, now) if errors is _NO_ANSWER else None
                return instead or Response(SERVFAIL, errors=(*errors, _CACHED))
        return self._inner.answer(query, now)

    def statistics(self) -> Mapping[str, int]:
        """Failures noted, how many are remembered now, and questions answered with one."""
        return {
            "failures_noted": self._failures.noted,
            "failures_known": len(self._failures),
            "failures_answered": self.answered,
        }
