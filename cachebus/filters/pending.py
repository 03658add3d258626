"""What the resolver learned within the window, and what has become of it: raised, completed, shared, given up.

A *case* is one response that passed every check on its own; what it *learned* are its RRsets, each with a level of its
own. Cases complete each other's chains. Decides when an answer has the evidence that its source must have; refuses to
know how a response was paired and what a client's response looks like.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from cachebus.answer import Answer, Evidence, Refusal, RRset
from cachebus.filters.chain import MAX_CNAMES, Chain, Link, chain_from, limit
from cachebus.filters.clients import Question, Sighting
from cachebus.filters.settings import JudgeSettings
from cachebus.filters.verdict import Verdict
from cachebus.wire.message import same_data

FORWARDED = 0
"""Below every level: a trusted forwarder's word, which needs the client's confirmation."""
MAX_CASES = 65536
"""Responses kept for one window: 6,500 a second over 10 s, more than one Python process can judge."""
MAX_CASE_BYTES = 96 << 20
"""Bytes of the same, overhead included."""
CASE_OVERHEAD = 1200
"""Bytes that a case costs beside its records (measured): objects, index entries."""
LEARNED_OVERHEAD = 500
"""Bytes that each of its RRsets costs beside its records."""
MAX_LOOKS = 8
"""Client responses compared with one RRset. Two or three differ for good reasons (another thread's cache); after eight
the resolver tells its clients something else, and client traffic must not cost more."""
MAX_SAME_RRSET = 64
"""RRsets of one owner and type that wait for confirmation; a name asked for more often confirms soon or never."""
MAX_WAITERS = 64
"""Chains that wait for one name's answer; more are shared as RRsets under their own names."""
CLOCK_TICK = 0.010
"""Seconds: resolvers stamp frames from a coarse clock, 4 ms on Linux, 10 ms elsewhere."""


class Learned:
    """One RRset that the resolver was told, and how sure it is."""

    __slots__ = ("case", "level", "looks", "names", "rrset")

    def __init__(self, case: Case, rrset: RRset, level: int) -> None:
        """`level`: `FORWARDED` or an `Evidence`."""
        self.case = case
        self.rrset = rrset
        self.level = level
        self.looks = 0
        self.names: dict[bytes, int] | None = None


class Step(NamedTuple):
    """A link of the chain whose RRset may still rise."""

    learned: Learned
    synthesised: RRset | None

    def rrsets(self) -> tuple[RRset, ...]:
        """The RRset, and the CNAME it yields with the same TTL if it is a DNAME on the chain."""
        rrset = self.learned.rrset
        return (rrset,) if self.synthesised is None else (rrset, self.synthesised._replace(ttl=rrset.ttl))

    @property
    def owner(self) -> bytes:
        """The name on the chain that this step is at."""
        return self.learned.rrset.owner if self.synthesised is None else self.synthesised.owner


class Case:
    """One response, its chain, and what of it was shared."""

    __slots__ = (
        "arrived",
        "asides",
        "complete",
        "frame",
        "learned",
        "logged",
        "note",
        "qname",
        "qtype",
        "shared",
        "size",
        "steps",
        "target",
    )

    def __init__(self, frame: int, question: Question, *, learned: float, logged: float, arrived: float) -> None:
        """`learned`: by our clock; `logged`: by the resolver's; `arrived`: on the clock of `Board.expire`."""
        self.frame = frame
        self.qname, self.qtype = question
        self.learned = learned
        self.logged = logged
        self.arrived = arrived
        self.steps: tuple[Step, ...] = ()
        self.asides: tuple[Step, ...] = ()
        self.complete = False
        self.target = b""
        self.note: Refusal | None = None
        self.shared: dict[Question, int] = {}
        self.size = CASE_OVERHEAD


class Board:
    """Every case of one source within the window."""

    def __init__(self, settings: JudgeSettings, only_unchecked: Callable[[Question], bool]) -> None:
        """`only_unchecked` says whether a question is known from clients with CD=1 only."""
        self._settings = settings
        self._lowest = settings.lowest
        self._window = settings.evidence_window
        self._only_unchecked = only_unchecked
        self._cases: deque[Case] = deque()
        self._bytes = 0
        self._wanted: dict[Question, list[Learned]] = {}
        self._unconfirmed: dict[bytes, int] = {}
        self._unvalidated: dict[bytes, int] = {}
        self._tails: dict[Question, tuple[Case, int]] = {}
        self._waiters: dict[Question, list[Case]] = {}
        self.forgotten = 0
        """Cases that gave way to newer ones after something of them was shared."""

    def __len__(self) -> int:
        """Cases held."""
        return len(self._cases)

    @property
    def held_bytes(self) -> int:
        """Bytes held, as counted against the bound."""
        return self._bytes

    def wants(self, qname: bytes, *, authenticated: bool) -> bool:
        """Whether a client's response to a question of this name, with AD=1 or not, may raise something."""
        return qname in self._unconfirmed or (authenticated and qname in self._unvalidated)

    def open(
        self,
        case: Case,
        links: Sequence[Link],
        *,
        target: bytes,
        asides: Sequence[Link],
        level: int,
        sightings: Callable[[Question], Iterable[Sighting]],
    ) -> list[Verdict]:
        """Take a case in; its chain goes on at `target`, or is complete when that is empty.

        `asides` are RRsets that are answers of their own; `sightings` gives what clients were told before.
        """
        case.steps = tuple(Step(Learned(case, link.rrset, level), link.synthesised) for link in links)
        case.asides = tuple(Step(Learned(case, link.rrset, level), None) for link in asides)
        case.target, case.complete = target, not target and bool(links)
        for step in (*case.steps, *case.asides):
            rrset = step.learned.rrset
            case.size += LEARNED_OVERHEAD + len(rrset.rrs) + len(rrset.sigs)
            self._want(step.learned)
            for sighting in sightings((rrset.owner, rrset.type)):
                self._look(step.learned, sighting)
        for index, step in enumerate(case.steps):
            self._tails[step.owner, case.qtype] = (case, index)
        if target:
            waiters = self._waiters.setdefault((target, case.qtype), [])
            if len(waiters) < MAX_WAITERS:
                waiters.append(case)
        self._cases.append(case)
        self._bytes += case.size
        verdicts: list[Verdict] = []
        self._changed(case, verdicts)
        while len(self._cases) > MAX_CASES or self._bytes > MAX_CASE_BYTES:
            dropped = self._cases.popleft()
            self._close(dropped)
            if dropped.shared:
                self.forgotten += 1
            else:
                verdicts.append(Verdict(dropped.frame, None, Refusal.OVERLOAD))
        return verdicts

    def note(self, question: Question, refusal: Refusal) -> None:
        """Remember why a client's response to this question could not confirm it, for the final refusal."""
        tail = self._tails.get(question)
        if tail is not None and tail[0].note is None:
            tail[0].note = refusal

    def sight(self, rrsets: Iterable[RRset], logged: float, *, authenticated: bool) -> list[Verdict]:
        """A client was given these RRsets, at `logged` by the resolver's clock."""
        raised: dict[Case, None] = {}
        for rrset in rrsets:
            wanted = self._wanted.get((rrset.owner, rrset.type))
            if wanted:
                sighting = Sighting(rrset, authenticated, logged)
                for learned in tuple(wanted):
                    if self._look(learned, sighting):
                        raised[learned.case] = None
        verdicts: list[Verdict] = []
        for case in raised:
            self._changed(case, verdicts)
        return verdicts

    def _look(self, learned: Learned, sighting: Sighting) -> bool:
        """Compare one RRset with what a client was given; gives whether that raised it."""
        rrset, case = learned.rrset, learned.case
        if learned.names is None or abs(sighting.logged - case.logged) > self._window:
            return False
        if learned.level >= Evidence.CONFIRMED and not sighting.authenticated:
            return False
        if sighting.logged < case.logged - CLOCK_TICK and sighting.rrset.ttl < rrset.ttl:
            return False  # told before this was learned, and what is left of an older copy: cached, or stale
        learned.looks += 1
        if learned.looks >= MAX_LOOKS:
            self._unwant(learned)
        if not same_data(rrset, sighting.rrset):
            return False
        both = rrset._replace(ttl=min(rrset.ttl, sighting.rrset.ttl), sigs=sighting.rrset.sigs or rrset.sigs)
        kept = limit(both, case.learned, max_ttl=self._settings.max_ttl)
        if isinstance(kept, Refusal):
            case.note = case.note or kept
            return False
        learned.rrset = kept
        learned.level = Evidence.CONFIRMED
        if sighting.authenticated and kept.sigs:
            learned.level = Evidence.VALIDATED
        elif sighting.authenticated:
            case.note = case.note or Refusal.RRSIG_MISSING
        if learned.names is not None:
            if learned.level is Evidence.VALIDATED or not kept.sigs:
                self._unwant(learned)
            elif learned.names is self._unconfirmed:
                self._count(learned, self._unvalidated)
        return True

    def _want(self, learned: Learned) -> None:
        rrset = learned.rrset
        same = self._wanted.setdefault((rrset.owner, rrset.type), [])
        if len(same) >= MAX_SAME_RRSET:
            self._unwant(same[0])
            same = self._wanted.setdefault((rrset.owner, rrset.type), [])
        same.append(learned)
        self._count(learned, self._unconfirmed)

    def _count(self, learned: Learned, names: dict[bytes, int] | None) -> None:
        """Move the names whose questions may raise an RRset from one count to another, or to none."""
        old = learned.names
        learned.names = names
        for name in (learned.rrset.owner, learned.case.qname):
            if old is not None:
                old[name] -= 1
                if not old[name]:
                    del old[name]
            if names is not None:
                names[name] = names.get(name, 0) + 1

    def _unwant(self, learned: Learned) -> None:
        if learned.names is None:
            return
        self._count(learned, None)
        question = (learned.rrset.owner, learned.rrset.type)
        same = self._wanted[question]
        same.remove(learned)
        if not same:
            del self._wanted[question]

    def _changed(self, case: Case, verdicts: list[Verdict]) -> None:
        """Share what a case, and every chain that goes on in it, has evidence for now."""
        seen = {case}
        todo = [case]
        while todo:
            current = todo.pop()
            self._share(current, verdicts)
            for step in current.steps:
                for waiter in self._waiters.get((step.owner, current.qtype), ()):
                    if waiter not in seen:
                        seen.add(waiter)
                        todo.append(waiter)

    def _share(self, case: Case, verdicts: list[Verdict], *, final: bool = False) -> None:
        steps, complete = (case.steps, True) if case.complete else self._continued(case)
        whole = False
        if complete:
            whole = self._emit(case, (case.qname, case.qtype), steps, verdicts)
        if not whole and (final or not complete):
            for step in case.steps:
                self._emit_alone(case, step, verdicts)
        for step in case.asides:
            self._emit_alone(case, step, verdicts)

    def _continued(self, case: Case) -> tuple[tuple[Step, ...], bool]:
        """The chain through the cases that go on where each stops, and whether it reaches the asked type."""
        steps = list(case.steps)
        target = case.target
        names = {step.owner for step in steps}
        while target and target not in names and len(steps) <= MAX_CNAMES:
            tail = self._tails.get((target, case.qtype))
            if tail is None:
                return case.steps, False
            following, index = tail
            for step in following.steps[index:]:
                if step.owner in names:
                    return case.steps, False
                names.add(step.owner)
                steps.append(step)
            if following.complete:
                return tuple(steps), self._is_chain(case, steps)
            target = following.target
        return case.steps, False

    @staticmethod
    def _is_chain(case: Case, steps: Iterable[Step]) -> bool:
        """Whether steps of several responses hold together: one may have a DNAME where another has a CNAME."""
        rrsets = [rrset for step in steps for rrset in step.rrsets()]
        chain = chain_from(rrsets, case.qname, case.qtype)
        return isinstance(chain, Chain) and chain.complete

    def _emit_alone(self, case: Case, step: Step, verdicts: list[Verdict]) -> None:
        rrset = step.learned.rrset
        if (rrset.owner, rrset.type) != (case.qname, case.qtype) or not case.complete:
            self._emit(case, (rrset.owner, rrset.type), (Step(step.learned, None),), verdicts)
        if step.synthesised is not None:
            self._emit(case, (step.synthesised.owner, step.synthesised.type), (step,), verdicts)

    def _emit(self, case: Case, question: Question, steps: Sequence[Step], verdicts: list[Verdict]) -> bool:
        """Share an answer if its weakest RRset has the evidence and it rose; gives whether it is shared now."""
        level = min(step.learned.level for step in steps)
        before = case.shared.get(question, 0)
        if level < self._lowest:
            return before > 0
        if level <= before:
            return True
        if level == Evidence.AUTHORITATIVE and self._only_unchecked((case.qname, case.qtype)):
            case.note = case.note or Refusal.CLIENT_CHECKING_DISABLED
            return False
        case.shared[question] = level
        answer = Answer(
            question[0],
            question[1],
            tuple(rrset for step in steps for rrset in step.rrsets()),
            Evidence(level),
            self._settings.node,
            min(step.learned.case.learned for step in steps),
            self._settings.validating,
        )
        verdicts.append(Verdict(case.frame, answer, None))
        return True

    def expire(self, now: float) -> list[Verdict]:
        """Close what is older than the window, or from a future that a clock set back has left."""
        verdicts: list[Verdict] = []
        cases = self._cases
        while cases and abs(now - cases[0].arrived) > self._window:
            case = cases.popleft()
            self._share(case, verdicts, final=True)
            self._close(case)
            if not case.shared:
                verdicts.append(Verdict(case.frame, None, self._why_not(case)))
        return verdicts

    def _why_not(self, case: Case) -> Refusal:
        if case.note is not None:
            return case.note
        if self._only_unchecked((case.qname, case.qtype)):
            return Refusal.CLIENT_CHECKING_DISABLED
        confirmed = all(step.learned.level >= Evidence.CONFIRMED for step in (*case.steps, *case.asides))
        return Refusal.NOT_VALIDATED if confirmed else Refusal.UNCONFIRMED

    def _close(self, case: Case) -> None:
        self._bytes -= case.size
        for step in (*case.steps, *case.asides):
            self._unwant(step.learned)
        for step in case.steps:
            tail = self._tails.get((step.owner, case.qtype))
            if tail is not None and tail[0] is case:
                del self._tails[step.owner, case.qtype]
        if case.target:
            question = (case.target, case.qtype)
            waiters = self._waiters.get(question, [])
            if case in waiters:
                waiters.remove(case)
            if not waiters:
                self._waiters.pop(question, None)
