"""What the `shim` section says about keeping: TTL bounds, failures, stale answers, client subnets.

Knows these keys alone. The docstring under a field is its description in the JSON schema and in the configuration
reference.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from cachebus.config.section import MAX_NAMES, Section
from cachebus.config.values import Duration, Name, Network, Seconds

_ON = frozenset({"on", "yes", "true"})
_OFF = frozenset({"off", "no", "false"})


class ServeStale(Section):
    """Answering clients from what has expired, while no upstream answers (RFC 8767)."""

    max_age: Seconds = Field(default=86400, ge=1, le=7 * 86400)
    """For how long after its expiry: up to 7 days."""
    client_timer: Duration = Field(default=1.8, ge=0, le=4)
    """Time that a client waits for a fresh answer first: 0 to 4 seconds, below `timeout`."""
    answer_ttl: Seconds = Field(default=30, ge=1, le=30)
    """TTL of a stale answer: 1 to 30 seconds."""


class Failures(Section):
    """For how long a question that no upstream could answer is not asked again (RFC 9520)."""

    min: Duration = Field(default=1.0, ge=1, le=300)
    """After the first failure; each further one in a row doubles it."""
    max: Duration = Field(default=30.0, ge=1, le=300)
    """At most."""


class Ttl(Section):
    """For how long the shim's clients are told what its upstreams say. What peers are told has `share.max_ttl`."""

    min: Seconds = Field(default=0, ge=0, le=3600)
    """Lower TTLs, but not 0, count as this; never beyond a signature's, and never for peers or sinks."""
    max: Seconds = Field(default=7 * 86400, ge=1, le=7 * 86400)
    """Higher TTLs count as this, or as `share.max_ttl` where that is less."""
    negative: Seconds = Field(default=3600, ge=0, le=3600)
    """The longest time that nothing is said to be there; 0 keeps no such answer."""


class Ecs(Section):
    """Telling upstreams the client's network (RFC 7871), and keeping answers for the networks they are for."""

    send: bool = False
    """Off: clients' subnet options are ignored, and what an upstream says for some clients only is kept for nobody."""
    ipv4: int = Field(default=24, ge=1, le=24)
    """Bits of an IPv4 address that are told at most."""
    ipv6: int = Field(default=56, ge=1, le=56)
    """Bits of an IPv6 address that are told at most."""
    networks: tuple[Network, ...] = Field(default=(), max_length=MAX_NAMES)
    """Clients whose network is told; all unless set. Private addresses never are."""
    zones: tuple[Name, ...] = Field(default=(), max_length=MAX_NAMES)
    """Names at or below which it is told; all unless set."""


class OrSwitch:
    """Marks a section that may also be written as `on` or `off`, so that the JSON schema says so."""

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"anyOf": [{"type": "boolean"}, handler(schema)]}


def _switched(value: Any) -> Any:
    """`on` is the section with its defaults, `off` none."""
    word = str(value).lower() if isinstance(value, bool | str) else ""
    return {} if word in _ON else None if word in _OFF else value


ServeStaleOrSwitch = Annotated[ServeStale | None, BeforeValidator(_switched), OrSwitch()]
FailuresOrSwitch = Annotated[Failures | None, BeforeValidator(_switched), OrSwitch()]
