"""The farm's fixtures, for the tests with real servers."""

from tests.farm.fixtures import farm, nsd, running, zones

__all__ = ["farm", "nsd", "running", "zones"]
