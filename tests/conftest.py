"""How the whole test suite runs: seeded property tests, and in CI no skips. Knows nothing of what is tested.

- `PROPERTY_EXAMPLES` raises the number of examples of every property test (default 200); then they are not seeded.
- `SOAK_SECONDS` is how long a test marked `soak` goes on (default 3).
- `CI=1` (or `true`) turns every skip into a failure that names its reason.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

DEFAULT_EXAMPLES = 200
"""Enough to meet a property's cases in seconds; the numbers are for `tests/fuzz`, which is ten times as fast."""
DEFAULT_SOAK_SECONDS = 3.0
"""Long enough for a leak per message to show in a count; `make soak` runs minutes."""

_examples = os.environ.get("PROPERTY_EXAMPLES", "")
settings.register_profile(
    "cachebus",
    max_examples=int(_examples) if _examples else DEFAULT_EXAMPLES,
    derandomize=not _examples,  # the same examples every time, so that a red run is red for a reason
    database=None,
    deadline=None,  # a busy machine is no bug; bounds on work are asserted by counting, not by the clock
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("cachebus")


def pytest_configure(config: pytest.Config) -> None:
    """Own the main thread's first event loop.

    pytest-asyncio asks for the current loop before its first test. Python makes one then, nobody closes it, and some
    later test fails with its ResourceWarning, whenever the garbage collector happens to find it.
    """
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    config.add_cleanup(loop.close)


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name a case with bytes by its place: they may hold a random ID, and all processes must agree on names."""
    return argname if isinstance(val, bytes) else None


def in_ci() -> bool:
    """True where a skip is a failure."""
    return os.environ.get("CI", "").strip().lower() in {"1", "true", "yes"}


@pytest.fixture
def soak_seconds() -> float:
    """How long a test marked `soak` shall go on, in seconds."""
    return float(os.environ.get("SOAK_SECONDS", DEFAULT_SOAK_SECONDS))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    """In CI a test that skips itself has failed; an expected failure (`xfail`) is not a skip."""
    report = yield
    if in_ci() and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI: {_reason(report.longrepr)}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Iterator[None]:
    """The same for a module that skips itself while it is imported."""
    report = yield
    if in_ci() and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"skipped in CI: {_reason(report.longrepr)}"
    return report


def _reason(longrepr: object) -> str:
    """The words of a skip: pytest gives (file, line, reason)."""
    if isinstance(longrepr, tuple) and len(longrepr) == 3:
        return str(longrepr[2])
    return str(longrepr)
