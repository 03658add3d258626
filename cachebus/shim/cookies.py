"""DNS cookies for clients (RFC 7873) as every server of an anycast address makes them (RFC 9018).

Decides whether a client proved that it gets what is sent to its address, and what cookie it is given. Not what
follows from that (`gate.py`). Keeps no client: a server cookie is made from the message and a secret alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from hashlib import blake2b
from hmac import compare_digest
from secrets import token_bytes
from typing import NamedTuple

from cachebus.errors import ConfigError
from cachebus.shim.access import packed_address

COOKIE = 10
"""EDNS option code (RFC 7873 section 4)."""
SECRET_BYTES = 16
"""SipHash's key (RFC 9018 section 4.4)."""
MAX_SECRETS = 3
"""One that signs, one that was, one that comes (RFC 9018 section 5)."""
LIFE = 3600
"""Seconds for which a server cookie is good (RFC 9018 section 4.3)."""
MAX_FUTURE = 300
"""Seconds that another server's clock may be ahead (same section)."""
RENEW_AFTER = 1800
"""Seconds after which a client is given a new server cookie (same section)."""
SEED_PERIOD = 86400
"""Seconds that a secret of our own making is used: far below the month of RFC 7873 section 7.1."""

_CLIENT_BYTES = 8
_WHOLE_BYTES = 24
"""Client cookie (8), version (1), reserved (3), time (4), hash (8)."""
_SERVER_BYTES = range(8, 33)
_VERSION = b"\1\0\0\0"
_MASK = 0xFFFFFFFFFFFFFFFF
_MAX_PROVEN = 10_000
"""Cookies remembered as checked."""

_Key = tuple[int, int]


def siphash24(key: bytes, data: bytes) -> bytes:
    """SipHash-2-4 (Aumasson and Bernstein, 2012) of `data` under 16 bytes of key: 8 bytes, little-endian as there."""
    return _siphash24(_halves(key), data).to_bytes(8, "little")


def _halves(key: bytes) -> _Key:
    return int.from_bytes(key[:8], "little"), int.from_bytes(key[8:16], "little")


def _siphash24(key: _Key, data: bytes) -> int:
    size = len(data)
    padded = data + bytes(7 - size % 8) + bytes((size & 0xFF,))
    v0, v1, v2, v3 = key[0] ^ 0x736F6D6570736575, key[1] ^ 0x646F72616E646F6D, 0, 0
    v2, v3 = key[0] ^ 0x6C7967656E657261, key[1] ^ 0x7465646279746573
    for start in range(0, size + 1, 8):
        word = int.from_bytes(padded[start : start + 8], "little")
        v0, v1, v2, v3 = _rounds(2, v0, v1, v2, v3 ^ word)
        v0 ^= word
    v0, v1, v2, v3 = _rounds(4, v0, v1, v2 ^ 0xFF, v3)
    return v0 ^ v1 ^ v2 ^ v3


def _rounds(count: int, v0: int, v1: int, v2: int, v3: int) -> tuple[int, int, int, int]:
    for _ in range(count):
        v0 = v0 + v1 & _MASK
        v1 = (v1 << 13 & _MASK | v1 >> 51) ^ v0
        v0 = v0 << 32 & _MASK | v0 >> 32
        v2 = v2 + v3 & _MASK
        v3 = (v3 << 16 & _MASK | v3 >> 48) ^ v2
        v0 = v0 + v3 & _MASK
        v3 = (v3 << 21 & _MASK | v3 >> 43) ^ v0
        v2 = v2 + v1 & _MASK
        v1 = (v1 << 17 & _MASK | v1 >> 47) ^ v2
        v2 = v2 << 32 & _MASK | v2 >> 32
    return v0, v1, v2, v3


@dataclass(frozen=True, slots=True, kw_only=True)
class CookieSettings:
    """What server cookies are signed with. Raises `ConfigError` for secrets of the wrong size."""

    secrets: tuple[bytes, ...] = field(default=(), repr=False)
    """Shared with the other servers of an anycast address; the first signs, all are good. None: made from `seed`."""
    seed: bytes = field(default_factory=lambda: token_bytes(32), repr=False)
    """What a secret for each day is made from: the same in every process that has the same settings."""

    def __post_init__(self) -> None:
        if len(self.secrets) > MAX_SECRETS or any(len(secret) != SECRET_BYTES for secret in self.secrets):
            raise ConfigError(f"cookies want at most {MAX_SECRETS} secrets of {SECRET_BYTES} bytes")


class Proof(Enum):
    """What a COOKIE option says about the address that it came from."""

    NONE = "none"
    """It holds no server cookie."""
    BAD = "bad"
    """The server cookie is none of ours, is another address's, or is too old."""
    GOOD = "good"
    """The client gets what is sent to its address."""


class Cookie(NamedTuple):
    """What became of a client's COOKIE option."""

    proof: Proof
    option: bytes
    """The whole option that the reply carries."""


class ServerCookies:
    """Checks and makes server cookies of version 1."""

    def __init__(self, settings: CookieSettings) -> None:
        self._shared: Sequence[_Key] = tuple(_halves(secret) for secret in settings.secrets)
        self._seed = settings.seed
        self._day = -1
        self._keys = self._shared
        self._salt = token_bytes(16)
        self._proven: dict[int, float] = {}

    def check(self, data: bytes, client: str, now: float) -> Cookie | None:
        """Look at the data of a COOKIE option; None when it is malformed (RFC 7873 section 5.2.2).

        `client`: the address it came from, part of what the cookie proves.
        """
        given = data[_CLIENT_BYTES:]
        if len(data) < _CLIENT_BYTES or (given and len(given) not in _SERVER_BYTES):
            return None
        address = packed_address(client)
        if len(data) == _WHOLE_BYTES and data[_CLIENT_BYTES] == 1:
            # SipHash costs 10 us in Python, so what was found good once is known by the interpreter's own keyed hash,
            # salted, until it is time for a new cookie. It cannot be forged more easily than the cookie.
            mark = hash(b"".join((self._salt, address, data)))
            if self._proven.get(mark, 0.0) > now:
                return Cookie(Proof.GOOD, _option(data))
            age = _age(data, now)
            keys = self._keys_at(now)
            if -MAX_FUTURE <= age <= LIFE:
                signed, got = data[:-8] + address, data[-8:]
                for key in keys:
                    if compare_digest(_siphash24(key, signed).to_bytes(8, "little"), got):
                        return self._renew(data, address, now, mark if key == keys[0] else None)
        proof = Proof.BAD if given else Proof.NONE
        return Cookie(proof, _option(self._make(data[:_CLIENT_BYTES], address, now)))

    def _renew(self, data: bytes, address: bytes, now: float, mark: int | None) -> Cookie:
        age = _age(data, now)
        if mark is None or age > RENEW_AFTER or data[8:12] != _VERSION:
            return Cookie(Proof.GOOD, _option(self._make(data[:_CLIENT_BYTES], address, now)))
        if len(self._proven) >= _MAX_PROVEN:
            self._proven.clear()
        # Never beyond the day: with the next day's secret it needs another look.
        self._proven[mark] = min(now + RENEW_AFTER - age, (now // SEED_PERIOD + 1) * SEED_PERIOD)
        return Cookie(Proof.GOOD, _option(data))

    def _make(self, client_cookie: bytes, address: bytes, now: float) -> bytes:
        cookie = client_cookie + _VERSION + (int(now) & 0xFFFFFFFF).to_bytes(4, "big")
        return cookie + _siphash24(self._keys_at(now)[0], cookie + address).to_bytes(8, "little")

    def _keys_at(self, now: float) -> Sequence[_Key]:
        """The keys that are good at `now`, the one that signs first."""
        day = int(now // SEED_PERIOD)
        if not self._shared and day != self._day:
            self._day = day
            self._keys = tuple(_halves(self._of_day(each)) for each in (day, day - 1))
        return self._keys

    def _of_day(self, day: int) -> bytes:
        return blake2b(day.to_bytes(8, "big", signed=True), key=self._seed, digest_size=SECRET_BYTES).digest()


def _age(data: bytes, now: float) -> int:
    """Seconds since the cookie was made; negative in the future. By serial numbers (RFC 9018 section 4.3)."""
    made = int.from_bytes(data[12:16], "big")
    return (int(now) - made + 0x80000000 & 0xFFFFFFFF) - 0x80000000


def _option(cookie: bytes) -> bytes:
    return COOKIE.to_bytes(2, "big") + len(cookie).to_bytes(2, "big") + cookie
