"""How many questions a client's network may ask: a token bucket for each, in a table of fixed size.

Decides by address and time. A network is known by a hash under a key that is thrown away every hour, and its place in
the table is taken by another when that is needed: so no client is remembered, and no flood of addresses costs memory.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from enum import Enum
from secrets import token_bytes

from cachebus.errors import ConfigError
from cachebus.shim.access import LOOPBACK, AccessList, Network, packed_address

WAYS = 4
"""Places that a network may take; the one idle for longest makes room."""
SETS = 1 << 14
"""Times `WAYS`: 65,536 networks, 1 MiB."""
KEY_LIFE = 3600.0
"""Seconds after which all is forgotten: every bucket is full again, which costs no more than one burst each."""
_ROUNDING = 1e-6
"""Seconds: more than what adding times of 1e9 as floats loses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimit:
    """The bounds for one network. Raises `ConfigError` for what cannot be."""

    rate: float = 100.0
    """Questions per second over UDP, by clients that did not prove their address: 0.1 to 1,000,000."""
    burst: int = 500
    """Questions at once: 1 to 10,000,000."""
    verified: int = 10
    """How many times as much clients may ask that proved their address, by a cookie or a stream; 0 without end."""
    slip: int = 2
    """Every how many questions over the limit one is answered, with TC=1 or BADCOOKIE; 0 never, 1 always."""
    ipv4_prefix: int = 24
    ipv6_prefix: int = 56
    exempt: tuple[Network, ...] = LOOPBACK
    """Networks without limit."""

    def __post_init__(self) -> None:
        for name, low, high in (
            ("rate", 0.1, 1e6),
            ("burst", 1, 10_000_000),
            ("verified", 0, 1_000_000),
            ("slip", 0, 100),
            ("ipv4_prefix", 8, 32),
            ("ipv6_prefix", 16, 128),
        ):
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"shim.rate_limit.{name} is not between {low:g} and {high:g}")


class Verdict(Enum):
    """What becomes of a question."""

    PASS = "pass"  # noqa: S105
    SLIP = "slip"
    """Over the limit; a small reply tells an honest client how to prove its address."""
    DROP = "drop"


class RateLimiter:
    """A bucket per network, kept as the time at which it is full again."""

    def __init__(self, settings: RateLimit) -> None:
        self._settings = settings
        self._exempt = AccessList(settings.exempt)
        self._host_bits = {4: 32 - settings.ipv4_prefix, 16: 128 - settings.ipv6_prefix}
        self._keys = array("Q", bytes(8 * WAYS * SETS))
        self._full_at = array("d", bytes(8 * WAYS * SETS))
        self._salt = b""
        self._salt_until = float("-inf")
        self._over = 0
        self.evicted = 0
        """Buckets that made room although they were not full: the table is too small for what is going on."""

    def judge(self, client: str, now: float, *, verified: bool) -> Verdict:
        """Count one question of the address `client`. `verified`: it cannot be forged."""
        settings = self._settings
        factor = settings.verified if verified else 1
        if not factor or self._exempt.allows(client):
            return Verdict.PASS
        if not self._salt_until - KEY_LIFE <= now < self._salt_until:
            self._forget(now)
        address = packed_address(client)
        network = int.from_bytes(address, "big") >> self._host_bits[len(address)]
        # The interpreter's own keyed hash: it only has to be unpredictable, and costs a tenth of any other.
        key = hash(b"%b%d%d.%d" % (self._salt, verified, len(address), network)) & 0xFFFFFFFFFFFFFFFF
        if self._take(key, now, 1.0 / (settings.rate * factor), settings.burst / settings.rate):
            return Verdict.PASS
        self._over += 1
        return Verdict.SLIP if settings.slip and self._over % settings.slip == 0 else Verdict.DROP

    def _take(self, key: int, now: float, interval: float, depth: float) -> bool:
        """Take a token out of the bucket, if there is one; `depth`: seconds in which an empty bucket fills."""
        keys, full_at = self._keys, self._full_at
        first = key % SETS * WAYS
        slot = first
        for place in range(first, first + WAYS):
            if keys[place] == key:
                slot = place
                break
            if full_at[place] < full_at[slot]:
                slot = place
        else:
            self.evicted += full_at[slot] > now
            keys[slot] = key
            full_at[slot] = now
        full = full_at[slot]
        if not now <= full <= now + depth:  # full for a while, or the clock went back
            full = now
        full += interval
        if full - now > depth + _ROUNDING:
            return False
        full_at[slot] = full
        return True

    def _forget(self, now: float) -> None:
        self._salt = token_bytes(16)
        self._salt_until = now + KEY_LIFE
        self._keys = array("Q", bytes(8 * WAYS * SETS))
        self._full_at = array("d", bytes(8 * WAYS * SETS))
