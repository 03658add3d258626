"""The keys of the `shim` section for TLS, HTTPS and QUIC: with which certificate, and how clients hear of it.

Knows these keys alone; the docstring under a field is its description in the JSON schema and in the reference.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address
from typing import Annotated, Any

from pydantic import AfterValidator, Field, PlainSerializer

from cachebus.config.section import Section
from cachebus.config.values import File, Name

MAX_PATH = 255
"""Characters of a path: the template that clients hear of has to fit a record."""

_PATH = re.compile("/[a-z0-9._~/-]*", re.IGNORECASE | re.ASCII)
"""What neither a URI template nor percent-encoding would change (RFC 6570, RFC 3986 section 2.3)."""


def _path(text: str) -> str:
    if len(text) > MAX_PATH or _PATH.fullmatch(text) is None:
        raise ValueError(f"must begin with / and have at most {MAX_PATH} of a-z, A-Z, 0-9, /, -, ., _ and ~")
    return text


HttpsPath = Annotated[str, AfterValidator(_path)]
"""A path without a query."""
_TEXT: Any = PlainSerializer(str, return_type=str)


class ShimTls(Section):
    """The certificate that clients are shown. Changed files are used from the next connection on."""

    cert: File
    """PEM file: certificate, with its chain. For DDR it needs the addresses that clients ask as iPAddress names."""
    key: File
    """PEM file: private key of `cert`; not open to others."""


class Ddr(Section):
    """How clients that ask (RFC 9462) hear of the encrypted listeners."""

    name: Name | None = None
    """Host name that the listeners go by; the first dNSName of the certificate unless set."""
    addresses: tuple[Annotated[IPv4Address | IPv6Address, _TEXT], ...] = Field(default=(), max_length=64)
    """Addresses to tell of for listeners on a wildcard address; the others tell their own."""
