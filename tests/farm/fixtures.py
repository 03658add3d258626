"""Fixtures that the interop tests and the scenarios share; their conftest files import them by name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.farm.authoritative import Nsd
from tests.farm.zones import Zones, make_zones
from tests.servers import require


@pytest.fixture(scope="session")
def zones(tmp_path_factory: pytest.TempPathFactory) -> Zones:
    """The test zones, signed once a session."""
    return make_zones(tmp_path_factory.mktemp("zones"))


@pytest.fixture(scope="session")
def nsd(tmp_path_factory: pytest.TempPathFactory, zones: Zones) -> Iterator[Nsd]:
    """One NSD for all tests that leave it alone."""
    require("nsd")
    with Nsd(tmp_path_factory.mktemp("f"), zones.files) as server:
        yield server


@pytest.fixture
def farm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a short path, for unix sockets have room for 107 bytes only."""
    return tmp_path_factory.mktemp("f")


@pytest.fixture
def running() -> Iterator[ExitStack]:
    """Holds the servers a test starts; they end with the test, the last one first."""
    with ExitStack() as stack:
        yield stack
