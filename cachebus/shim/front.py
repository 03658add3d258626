"""What the shim's face to its clients is told. Holds settings and decides nothing."""

from __future__ import annotations

from dataclasses import dataclass, field

from cachebus.shim.access import Network
from cachebus.shim.chaos import ChaosSettings
from cachebus.shim.cookies import CookieSettings
from cachebus.shim.limits import RateLimit


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontSettings:
    """What the shim's face to its clients is told."""

    deny: tuple[Network, ...] = ()
    """Not served, whatever `allow` says."""
    cookies: CookieSettings | None = field(default_factory=CookieSettings)
    padding: bool = True
    """Replies over encrypted channels hide their length."""
    rate_limit: RateLimit | None = None
    """None: off, because the default serves loopback only, where nobody from outside can forge an address."""
    chaos: ChaosSettings | None = None
    """None: questions of class CHAOS are refused."""
    minimal: bool = True
    """False: addresses that the records of an answer point to are added, where the cache holds them."""
    rotate: bool = False
    """The records of an RRset in another order each time."""
