"""A short, seeded run of every target: `FUZZ_EXAMPLES` inputs each (default 1000), `FUZZ_SEED` (default 1).

`make fuzz` runs the same targets at length, in processes of their own, and asks for the parsers' branch coverage.
"""

from __future__ import annotations

import os

import pytest

from tests.fuzz.catalogue import TARGETS
from tests.fuzz.harness import run

DEFAULT_EXAMPLES = 1000
"""Seconds for all targets together."""


@pytest.mark.fuzz
@pytest.mark.parametrize("name", TARGETS)
def test_any_input_gives_a_value_or_the_documented_error(name: str) -> None:
    examples = int(os.environ.get("FUZZ_EXAMPLES") or DEFAULT_EXAMPLES)
    run(TARGETS[name](), examples, int(os.environ.get("FUZZ_SEED") or 1))
