"""What a judge is told of its source's configuration, and the enums of it. Decides nothing."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Network, IPv6Network

from cachebus.answer import Evidence
from cachebus.errors import ConfigError
from cachebus.filters.chain import DEFAULT_MAX_TTL, DEFAULT_SWILD

EVIDENCE_WINDOW = 10.0
"""Seconds within which a query, its response and the client's response belong together. Resolvers log up to a second
late and a slow resolution takes several."""
STALE_TTL = 30
"""Seconds; the TTL that resolvers give to stale answers (RFC 8767 section 5)."""


class Pairing(Enum):
    """Whether a response counts without its query."""

    REQUIRE = "require"
    OFF = "off"


class ResolverFrames(Enum):
    """Whether the resolver logs what it asks and is told."""

    NORMAL = "normal"
    NONE = "none"
    """Knot Resolver, dnsdist, CoreDNS: CLIENT_RESPONSE must stand alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeSettings:
    """One source's rules of evidence. Raises `ConfigError` for values that cannot be."""

    name: str = ""
    """The source's name in the configuration."""
    node: str = ""
    """This node's name: the origin of its answers."""
    trust: frozenset[Evidence] = frozenset({Evidence.CONFIRMED, Evidence.VALIDATED})
    """Levels that may be shared; a listed level includes the stronger ones."""
    claims: Evidence = Evidence.CONFIRMED
    """The strongest level that a direct source may claim."""
    pairing: Pairing = Pairing.REQUIRE
    evidence_window: float = EVIDENCE_WINDOW
    """Seconds, more than 0."""
    resolver_frames: ResolverFrames = ResolverFrames.NORMAL
    stale_ttl: int = STALE_TTL
    """Seconds that a TTL must exceed with `ResolverFrames.NONE`, and from validating upstreams."""
    validating: bool = False
    """The resolver validates: carried to `Answer.validating`."""
    trusted_forwarders: tuple[IPv4Network | IPv6Network, ...] = ()
    infrastructure: bool = False
    """NS, DS, DNSKEY and SOA may be shared."""
    max_ttl: int = DEFAULT_MAX_TTL
    """Seconds."""
    swild: int | None = DEFAULT_SWILD
    """Type code of SWILD; None: not known here."""

    def __post_init__(self) -> None:
        """Check what types cannot."""
        if not self.trust:
            raise ConfigError("trust: names no level")
        if not self.evidence_window > 0:
            raise ConfigError("evidence_window: must be more than 0")

    @property
    def lowest(self) -> Evidence:
        """The weakest level that may be shared."""
        return min(self.trust)
