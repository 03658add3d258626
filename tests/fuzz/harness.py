"""Runs one parser over many inputs: a value or the documented error, in bounded time and memory.

Knows no parser: a `Target` draws the inputs and says what must hold. A run is a function of its seed: every example has
a seed of its own, so one can be repeated without those before it (but for those of its block, which share state).

Time is CPU time of this thread, so a busy machine is no failure. Memory is how far the resident set rose above what it
was after a warm-up.
"""

from __future__ import annotations

import contextlib
import gc
import resource
import signal
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

MAX_SECONDS = 0.25
"""CPU seconds for reading one example: 64 KiB of the worst message take 80 to 150 ms, everything usual below 5 ms."""
HANG_SECONDS = 5.0
"""CPU seconds after which an example is interrupted."""
MAX_GROWTH = 64 << 20
"""Bytes that a whole run may add to the process: a few times the largest input, and what its parser remembers."""
MIN_MUTATED = 0.5
"""Share of the examples that are mutations of valid input."""
WARM_UP = 200
"""Examples before memory and mixture are looked at: imports, caches and the allocator's arenas settle."""
MUTATED, VALID = 0.7, 0.9
"""Of the examples 70 % are mutations, 20 % valid, 10 % noise."""

T = TypeVar("T")


class Part(NamedTuple):
    """Code whose branches a target must reach."""

    path: str
    """From the root of the project."""
    only: tuple[str, ...] = ()
    """Functions and classes (with all their methods) that are the parser; empty: the whole file."""
    without: tuple[str, ...] = ()
    """Functions and classes that are not."""

    def has(self, function: str) -> bool:
        """Whether a function, as `name` or `Class.name`, belongs to it."""
        names = {function, function.split(".", maxsplit=1)[0]}
        return (not self.only or not names.isdisjoint(self.only)) and names.isdisjoint(self.without)


class Target(ABC, Generic[T]):
    """One parser: what it is fed, and what must hold of what it gives."""

    name: ClassVar[str]
    parts: ClassVar[tuple[Part, ...]]
    block: ClassVar[int] = 1
    """Examples that share one state."""
    cost: ClassVar[int] = 1
    """Roughly, in units of the cheapest: the dearest run first."""
    calls: ClassVar[int] = 1
    """Times that one check has the parser read its input: what it may cost is so many times `MAX_SECONDS`."""

    def begin(self, rng: Random) -> None:
        """Make a fresh state for the next block."""

    def finish(self) -> None:
        """Check what must hold at the end of a block."""

    def draw(self, rng: Random) -> tuple[T, bool]:
        """An input, and whether it is a mutation of valid input."""
        die = rng.random()
        if die < MUTATED:
            return self.mutated(rng), True
        return (self.valid(rng) if die < VALID else self.noise(rng)), False

    @abstractmethod
    def valid(self, rng: Random) -> T:
        """An input as it should be."""

    @abstractmethod
    def mutated(self, rng: Random) -> T:
        """A mutation of such an input."""

    @abstractmethod
    def noise(self, rng: Random) -> T:
        """Something without any form."""

    @abstractmethod
    def check(self, example: T, rng: Random) -> bool:
        """Parse it; gives whether that gave a value. Raises whatever is not the documented error."""


class Found(AssertionError):  # noqa: N818 -- it names what was found, not what went wrong here
    """Raised for the example that broke a rule; says how to repeat it."""


class Report(NamedTuple):
    """What one run did."""

    examples: int
    mutated: int
    taken: int
    """Examples that gave a value."""
    seconds: float
    """CPU time of the checks and of making the examples."""
    slowest: float
    growth: int
    """Bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one example, and the whole run, may cost."""

    seconds: float = MAX_SECONDS
    hang: float = HANG_SECONDS
    growth: int = MAX_GROWTH


TRACED = Limits(seconds=float("inf"), hang=60.0, growth=1 << 40)
"""While coverage is measured only a hang counts."""


def run(target: Target[Any], examples: int, seed: int, *, limits: Limits | None = None, start: int = 0) -> Report:
    """Feed `examples` inputs from number `start` on, and those before it in its block.

    Raises `Found` for the first that breaks a rule.
    """
    if limits is None:
        limits = Limits() if sys.gettrace() is None else TRACED
    gc.collect()
    gc.freeze()  # what is there already is not walked again for each example's garbage
    try:
        with _interrupted():
            return _run(target, range(start - start % target.block, start + examples), seed, limits)
    finally:
        gc.unfreeze()


def _run(target: Target[Any], numbers: range, seed: int, limits: Limits) -> Report:
    start, examples = numbers.start, len(numbers)
    rng = Random()
    mutated = taken = 0
    slowest = 0.0
    began = time.process_time()
    baseline = _resident()
    for number in numbers:
        if number - start == WARM_UP:
            baseline = _reset_peak()
        rng.seed(seed << 40 | number)
        example: Any = None
        try:
            if number % target.block == 0:
                if number > start:
                    target.finish()
                target.begin(rng)
            example, is_mutation = target.draw(rng)
            signal.setitimer(signal.ITIMER_VIRTUAL, limits.hang)
            before = time.thread_time()
            taken += target.check(example, rng)
            spent = time.thread_time() - before
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        except Exception as error:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            raise Found(_story(target, seed, number, example, f"{type(error).__name__}: {error}")) from error
        mutated += is_mutation
        if spent > slowest:
            slowest = spent
            if spent > limits.seconds * target.calls:
                raise Found(_story(target, seed, number, example, f"took {spent:.3f} s"))
    try:
        target.finish()
    except Exception as error:
        raise Found(_story(target, seed, numbers[-1], None, f"{type(error).__name__}: {error}")) from error
    growth = max(_peak() - baseline, 0)
    if growth > limits.growth:
        raise Found(f"{target.name}: memory grew by {growth >> 20} MiB in {examples} examples of seed {seed}")
    if mutated < MIN_MUTATED * examples and examples > WARM_UP:
        raise Found(f"{target.name}: only {mutated} of {examples} examples were mutations of valid input")
    return Report(examples, mutated, taken, time.process_time() - began, slowest, growth)


def _story(target: Target[Any], seed: int, number: int, example: object, what: str) -> str:
    again = f"python -m tests.fuzz --only {target.name} --seed {seed} --start {number} --examples 1"
    shown = example.hex() if isinstance(example, bytes) else repr(example)
    return f"{target.name}: {what}\nexample {number}: {shown}\nagain: {again}"


class _HungError(Exception):
    """Raised in the middle of an example that does not end."""


@contextlib.contextmanager
def _interrupted() -> Iterator[None]:
    """Let an example that spends too much CPU time end in `_HungError`."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise _HungError("does not end")

    before = signal.signal(signal.SIGVTALRM, stop)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def _reset_peak() -> int:
    """Forget the highest resident size so far, where Linux lets us; gives the size now, in bytes."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _peak()


def _peak() -> int:
    return _status("VmHWM:") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _resident() -> int:
    return _status("VmRSS:") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _status(field: str) -> int:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith(field):
                return int(line.split()[1]) * 1024
    return 0
