"""What the shim is told about keeping: TTL bounds, failures, stale answers, client subnets. Refuses what is unsafe.

Knows nothing of YAML; the node fills these from the checked configuration.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network

from cachebus.errors import ConfigError

MAX_MIN_TTL = 3600
"""Seconds a TTL may be raised to: more keeps clients from a server that has moved for longer than its owner thinks."""
MAX_NEGATIVE = 3600
"""Seconds that "no such thing" is believed at most (RFC 2308 section 5 recommends one to three hours)."""
MAX_MAX_TTL = 7 * 86400
MAX_FAILURE = 300.0
"""Seconds that a failure may be remembered (RFC 9520 section 3.2: at most five minutes)."""
MIN_FAILURE = 1.0
"""Seconds that it must be, at least (as above)."""
MAX_STALE_AGE = 7 * 86400
"""Seconds after expiry (RFC 8767 section 5 suggests one to three days, and allows a week)."""
MAX_STALE_TTL = 30
"""Seconds: as RFC 8767 section 4 recommends, and no more, for TTLs up to this are what tells stale answers from fresh
ones to nodes that listen to whoever stands behind us (trust rules, section 2)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TtlSettings:
    """For how long the shim's own clients are told what upstreams say. Raises `ConfigError`."""

    minimum: int = 0
    """Seconds. A lower TTL counts as this, but for 0; within what signatures allow, and never for peers."""
    maximum: int = MAX_MAX_TTL
    negative: int = MAX_NEGATIVE
    """Seconds at most for NXDOMAIN and NODATA; 0 keeps none."""

    def __post_init__(self) -> None:
        _within("ttl.min", self.minimum, 0, MAX_MIN_TTL)
        _within("ttl.max", self.maximum, 1, MAX_MAX_TTL)
        _within("ttl.negative", self.negative, 0, MAX_NEGATIVE)
        if self.minimum > self.maximum:
            raise ConfigError("shim.ttl.min is above shim.ttl.max")


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureSettings:
    """For how long a failed look-up is not tried again (RFC 9520). Raises `ConfigError`."""

    first: float = MIN_FAILURE
    """Seconds after the first failure; each further one doubles them."""
    most: float = 30.0
    """Seconds at most: clients are back soon after the upstream is. 0: every question is tried."""

    def __post_init__(self) -> None:
        if self.most:
            _within("failures.min", self.first, MIN_FAILURE, MAX_FAILURE)
            _within("failures.max", self.most, self.first, MAX_FAILURE)


@dataclass(frozen=True, slots=True, kw_only=True)
class StaleSettings:
    """Serving what has expired while no upstream answers (RFC 8767). Raises `ConfigError`."""

    max_age: int = 86400
    """Seconds after expiry."""
    client_timer: float = 1.8
    """Seconds a client waits for a fresh answer, below the 2 after which many ask again; 0 to 4."""
    answer_ttl: int = MAX_STALE_TTL

    def __post_init__(self) -> None:
        _within("serve_stale.max_age", self.max_age, 1, MAX_STALE_AGE)
        _within("serve_stale.client_timer", self.client_timer, 0, 4)
        _within("serve_stale.answer_ttl", self.answer_ttl, 1, MAX_STALE_TTL)


@dataclass(frozen=True, slots=True, kw_only=True)
class SubnetSettings:
    """Telling upstreams the subnet of the client (RFC 7871). Raises `ConfigError`."""

    send: bool = False
    ipv4: int = 24
    """Bits of an IPv4 address that are told at most (RFC 7871 section 11.1 recommends 24)."""
    ipv6: int = 56
    """Bits of an IPv6 address (the same: 56)."""
    networks: tuple[IPv4Network | IPv6Network, ...] = ()
    """Clients whose subnet is told; empty: all."""
    zones: tuple[bytes, ...] = (b"\0",)
    """Names, lower-case wire form, at or below which it is told."""

    def __post_init__(self) -> None:
        _within("ecs.ipv4", self.ipv4, 1, 24)
        _within("ecs.ipv6", self.ipv6, 1, 56)


@dataclass(frozen=True, slots=True, kw_only=True)
class CachingSettings:
    """All of it."""

    ttl: TtlSettings = field(default_factory=TtlSettings)
    failures: FailureSettings = field(default_factory=FailureSettings)
    stale: StaleSettings | None = None
    """None: what has expired is gone."""
    subnet: SubnetSettings = field(default_factory=SubnetSettings)


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConfigError(f"shim.{name} is not between {low:g} and {high:g}")
