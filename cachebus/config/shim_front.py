"""The sections of `shim` that are about its clients: cookies, rate limit, what it says about itself.

The docstring under a field is its description in the JSON schema and in the configuration reference.
"""

from __future__ import annotations

import re
from typing import Any

from pydantic import Field, GetJsonSchemaHandler, PrivateAttr, field_validator, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from cachebus.config.section import MAX_NAMES, Section
from cachebus.config.values import Network

SECRET_BYTES = 16
"""Of a cookie secret: the key of SipHash (RFC 9018 section 4.4)."""
MAX_SECRETS = 3
"""One that signs, one that was, one that comes (RFC 9018 section 5)."""
MAX_STRING = 255
"""Bytes of one string of a TXT record (RFC 1035 section 3.3)."""

_SECRET = re.compile(f"[0-9a-fA-F]{{{2 * SECRET_BYTES}}}")
_SWITCH = ("true", "false", "on", "off", "yes", "no")
"""What switches elsewhere in the configuration too; in YAML 1.2 the last four are text."""


def parse_cookie_secrets(text: str) -> tuple[bytes, ...]:
    """The secrets of a file: one to three lines of 32 hex digits, the first of which signs.

    The form that Unbound and NSD read from `cookie-secret-file`. Raises `ValueError`, which never repeats the text.
    """
    lines = text.split()
    if not 1 <= len(lines) <= MAX_SECRETS or any(_SECRET.fullmatch(line) is None for line in lines):
        raise ValueError(
            f"must hold 1 to {MAX_SECRETS} lines of {2 * SECRET_BYTES} hex digits, the first of which signs"
        )
    return tuple(bytes.fromhex(line) for line in lines)


class OrSwitch:
    """Marks a section that may also be written as true or false, so that the JSON schema says so."""

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"anyOf": [{"type": "boolean"}, handler(schema)]}


class Switched(Section):
    """A section that `true` and `false` switch."""

    enabled: bool = True
    """Whether it is on."""

    @model_validator(mode="before")
    @classmethod
    def _from_switch(cls, value: Any) -> Any:
        is_switch = isinstance(value, bool) or (isinstance(value, str) and value.lower() in _SWITCH)
        return {"enabled": value} if is_switch else value


class Cookies(Switched):
    """DNS cookies for clients (RFC 7873), in the form that every server understands (RFC 9018)."""

    secret: str | None = None
    """`file:PATH` (mode 0600) or `env:VAR`: one to three lines of 32 hex digits, the first of which signs; the same on
    all servers of an anycast address. Without it the node makes its own, a new one each day."""

    _secrets: tuple[bytes, ...] = PrivateAttr(default=())

    @property
    def secrets(self) -> tuple[bytes, ...]:
        """What `secret` pointed to when the configuration was loaded."""
        return self._secrets


class RateLimit(Switched):
    """How many questions the clients of one network may ask."""

    rate: float = Field(default=100.0, ge=0.1, le=1_000_000)
    """Questions per second over UDP from clients that did not prove their address."""
    burst: int = Field(default=500, ge=1, le=10_000_000)
    """Questions at once."""
    verified: int = Field(default=10, ge=0, le=1_000_000)
    """How many times as much clients may ask that proved their address, by a cookie or a stream; 0: without end."""
    slip: int = Field(default=2, ge=0, le=100)
    """Every how many questions over the limit one gets TC=1, or BADCOOKIE, the others silence; 0: never, 1: all."""
    ipv4_prefix: int = Field(default=24, ge=8, le=32)
    """Bits of an IPv4 address that make a network."""
    ipv6_prefix: int = Field(default=56, ge=16, le=128)
    """Bits of an IPv6 address that make a network."""
    exempt: tuple[Network, ...] | None = Field(default=None, max_length=MAX_NAMES)
    """Networks without limit; loopback unless set."""


class Chaos(Switched):
    """What is told to who asks for `version.bind` and the like in class CHAOS."""

    version: str | None = None
    """For version.bind and version.server; unless set, cachebus and its version."""
    hostname: str | None = None
    """For hostname.bind and id.server; unless set, the node's name."""

    @field_validator("version", "hostname")
    @classmethod
    def _fits(cls, value: str | None) -> str | None:
        if value is not None and len(value.encode()) > MAX_STRING:
            raise ValueError(f"is longer than {MAX_STRING} bytes")
        return value
