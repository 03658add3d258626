"""`python -m tests.fuzz`: every target at length, in processes of their own, and the branches that each reaches.

A process measures branch coverage on its first examples and then goes on without, because tracing slows Python several
times. The last line of a run says what was found; any of it makes the exit status 1.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import coverage

if TYPE_CHECKING:
    from tests.fuzz.harness import Part, Report, Target

ROOT = Path(__file__).parents[2]
DEFAULT_EXAMPLES = 100_000
MINIMUM = 90.0
"""Percent of a parser's branches."""
TRACED_EXAMPLES = 10_000
"""Examples that coverage is measured on, and more only while a part is below `MINIMUM`."""
TRACED_SECONDS = 100.0
"""CPU seconds after which no more are: enough for 10,000 of the dearest, and for 40,000 of most."""
SLICE = 2000
"""Examples between two looks at the clock and at what was reached."""
MAY_TAKE = 4 * 3600.0
"""Seconds after which a target that cannot be interrupted is given up: the longest takes 250 on a core of its own, but
one may have to share it with a dozen others."""


class Branches(NamedTuple):
    """How much of a part was reached."""

    part: str
    covered: int
    total: int
    missing: list[str]
    """`LINE->LINE` of branches never taken."""

    @property
    def percent(self) -> float:
        """Of the branches; a part without any is whole."""
        return 100 * self.covered / self.total if self.total else 100.0


def main() -> int:
    """Run as told; 0 when nothing was found."""
    options = _options()
    if options.worker:
        return _work(options.worker, options.seed, options.examples, options.start)
    if options.only and options.start is not None:
        return _work(options.only[0], options.seed, options.examples, options.start)
    names = _names(options.only)
    say(f"{options.examples} examples each of {len(names)} parsers, seed {options.seed}")
    began = time.monotonic()
    failed = []
    with ThreadPoolExecutor(options.jobs) as pool:
        runs = {pool.submit(_spawn, name, options.seed, options.examples): name for name in names}
        for run in as_completed(runs):
            output, right = run.result()
            say(output)
            if not right:
                failed.append(runs[run])
    count = f"{len(names) - len(failed)} right, {len(failed)} failed {' '.join(sorted(failed))}"
    say(f"{time.monotonic() - began:.0f} s; {count}".rstrip())
    return 1 if failed else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description=__doc__.splitlines()[0] if __doc__ else None
    )
    parser.add_argument("--examples", type=int, default=int(os.environ.get("FUZZ_EXAMPLES") or DEFAULT_EXAMPLES))
    parser.add_argument(
        "--seed", type=int, default=int(os.environ.get("FUZZ_SEED") or time.time()), help="default: the time"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", action="append", default=[], metavar="TARGET")
    parser.add_argument("--start", type=int, help="with --only: from this example on, to repeat one")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


def _names(only: list[str]) -> list[str]:
    from tests.fuzz.catalogue import TARGETS

    unknown = set(only) - set(TARGETS)
    if unknown:
        _stop(f"no such target: {' '.join(sorted(unknown))}; there are {' '.join(TARGETS)}")
    return sorted(only or TARGETS, key=lambda name: -TARGETS[name].cost)


def _spawn(name: str, seed: int, examples: int) -> tuple[str, bool]:
    command = [sys.executable, "-m", "tests.fuzz", "--worker", name, "--seed", str(seed), "--examples", str(examples)]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=MAY_TAKE, check=False)
    except subprocess.TimeoutExpired:
        return f"{name}: FAILED: not done after {MAY_TAKE:.0f} s", False
    return (done.stdout + done.stderr).rstrip(), done.returncode == 0


def _work(name: str, seed: int, examples: int, start: int | None) -> int:
    """One target in this process; from `start` without coverage."""
    covered = [] if start is not None else _trace(name, seed, examples)
    from tests.fuzz.harness import Found, run

    try:
        report = run(_make(name), examples, seed, start=start or 0)
    except Found as found:
        _story(found)
        return 1
    low = [branches for branches in covered if branches.percent < MINIMUM]
    say(_line(name, report, covered))
    for branches in low:
        say(f"{name}: FAILED: {branches.part}: {branches.percent:.1f} % of its branches, below {MINIMUM:.0f} %")
        say(f"    never taken: {' '.join(branches.missing)}")
    return 1 if low else 0


def _story(found: AssertionError) -> None:
    say(f"FAILED {found}")
    cause = found.__cause__
    while cause is not None and cause.__traceback__ is not None:
        trace = cause.__traceback__
        while trace.tb_next is not None:
            trace = trace.tb_next
        say(f"    {trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}: {type(cause).__name__}: {cause}")
        cause = cause.__cause__ or cause.__context__


def _line(name: str, report: Report, covered: list[Branches]) -> str:
    parts = ", ".join(f"{branches.part} {branches.percent:.1f} %" for branches in covered)
    return (
        f"{name:<16} {report.examples:>7} examples, {100 * report.mutated / report.examples:.0f} % mutated, "
        f"{100 * report.taken / report.examples:>2.0f} % taken, {report.seconds:>6.1f} s, "
        f"slowest {1000 * report.slowest:.1f} ms, memory +{report.growth / (1 << 20):.1f} MiB; branches: {parts}"
    )


def _trace(name: str, seed: int, examples: int) -> list[Branches]:
    """Run the first examples under coverage of the target's parts alone: the grammar and the checks need none.

    Importing runs no function of a part that counts, so it is not traced.
    """
    from tests.fuzz.catalogue import TARGETS
    from tests.fuzz.harness import TRACED, Found, run

    paths = [str(ROOT / part.path) for part in TARGETS[name].parts]
    measured = coverage.Coverage(branch=True, data_file=None, config_file=False, messages=False, include=paths)
    measured.set_option("run:disable_warnings", ["already-imported"])
    measured.start()
    target = _make(name)
    until = time.process_time() + TRACED_SECONDS
    done = 0
    while done < examples and time.process_time() < until:
        try:
            run(target, min(SLICE, examples - done), seed, start=done, limits=TRACED)
        except Found:
            break  # the run without tracing tells it
        done += SLICE
        if done >= min(TRACED_EXAMPLES, examples):
            measured.stop()
            reached = [_reached(measured, part) for part in target.parts]
            if all(branches.percent >= MINIMUM for branches in reached):
                return reached
            measured.start()
    measured.stop()
    return [_reached(measured, part) for part in target.parts]


def _reached(measured: coverage.Coverage, part: Part) -> Branches:
    path = str(ROOT / part.path)
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        measured.json_report(morfs=[path], outfile=file.name)
        report = json.loads(Path(file.name).read_text(encoding="utf-8"))
    (found,) = report["files"].values()
    functions = {name: data for name, data in found["functions"].items() if name and part.has(name)}
    covered = sum(data["summary"]["covered_branches"] for data in functions.values())
    total = sum(data["summary"]["num_branches"] for data in functions.values())
    missing = [f"{one}->{other}" for data in functions.values() for one, other in data["missing_branches"]]
    return Branches(part.path.removeprefix("cachebus/"), covered, total, missing)


def _make(name: str) -> Target[Any]:
    from tests.fuzz.catalogue import TARGETS

    make: Callable[[], Target[Any]] = TARGETS[name]
    return make()


def say(text: str) -> None:
    """A line, at once: a run takes a while."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _stop(text: str) -> NoReturn:
    sys.stderr.write(text + "\n")
    sys.exit(2)


if __name__ == "__main__":
    sys.exit(main())
