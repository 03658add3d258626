"""The shim's `swild` section. Knows this section alone; the docstring under a field is its reference text."""

from __future__ import annotations

from enum import Enum

from pydantic import Field

from cachebus.config.section import MAX_NAMES, Section
from cachebus.config.values import Name, Seconds


class SwildInclude(Enum):
    """Where a synthesised response carries the SWILD."""

    ANSWER = "answer"
    ADDITIONAL = "additional"
    OFF = "off"


class Swild(Section):
    """Answer for the subdomains of a SWILD owner without asking for each of them. Off without `zones`."""

    zones: tuple[Name, ...] = Field(default=(), max_length=MAX_NAMES)
    """SWILD counts at and below these names; `.` stands for all of them."""
    type: int = Field(default=65392, ge=65280, le=65534)
    """The type code, for private use; the same on every node of a cluster."""
    ttl_cap: Seconds = Field(default=3600, ge=1, le=7 * 86400)
    """The longest that a SWILD counts, and the longest TTL of a CNAME made from it."""
    include: SwildInclude = SwildInclude.ANSWER
    """Section of the response that carries the SWILD too, so that the next forwarder learns it; or `off`."""
    discover: bool = True
    """Ask for the SWILD of a name when two names below it were found to be aliases of one target."""
