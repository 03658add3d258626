"""Transport `multicast` against the transport contract, on an interface of its own in a namespace of its own."""

from __future__ import annotations

import json
from functools import cache

import pytest

from cachebus.testing import transport_contract
from tests.contract.multicast_inside import BEDS
from tests.farm.namespace import run_inside

DEADLINE = 150.0


CHECKS = [check.__name__ for check in transport_contract()]


@cache
def errors(bed: str) -> dict[str, str]:
    """Check -> what went wrong. One namespace and one process per bed."""
    try:
        lines = run_inside("tests.contract.multicast_inside", bed, timeout=DEADLINE).splitlines()
    except AssertionError as error:  # once for all checks
        return dict.fromkeys(CHECKS, str(error))
    return {found["check"]: found["error"] for found in map(json.loads, lines)}


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("bed", list(BEDS))
def test_contract(check: str, bed: str) -> None:
    assert not errors(bed)[check], errors(bed)[check]
