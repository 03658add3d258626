"""What the listeners are told beyond UDP and TCP: where they speak TLS, HTTPS and QUIC, and what clients hear of that.

Refuses settings that cannot work. Knows nothing of YAML; the node fills these from the checked configuration.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.util import find_spec
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

from cachebus.errors import ConfigError

if TYPE_CHECKING:
    from cachebus.shim.settings import Endpoint
    from cachebus.shim.tls import ServerCertificate

HTTPS_PATH = "/dns-query"
"""Where DoH is asked unless the configuration says otherwise: the path that clients know (RFC 8484 section 4.1.1)."""
PER_CLIENT = 128
"""Connections of one client, 1 to 65536: a busy forwarder has some dozens, and no client may have all of 512."""
QUIC_MISSING = "DNS over QUIC needs aioquic: pip install 'cachebus[quic]'"


@dataclass(frozen=True, slots=True, kw_only=True)
class DdrSettings:
    """How encrypted listeners are named to clients that ask (RFC 9462)."""

    name: bytes
    """Target of the SVCB records, wire form, lower case: what clients send as server name."""
    addresses: tuple[IPv4Address | IPv6Address, ...] = ()
    """Hints for listeners on a wildcard address, which does not tell under which addresses clients know this host."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncryptedSettings:
    """Where the shim speaks TLS, HTTPS and QUIC. Raises `ConfigError` for what cannot work."""

    tls: tuple[Endpoint, ...] = ()
    """DNS over TLS (RFC 7858) on each; port 0 takes a free one."""
    https: tuple[Endpoint, ...] = ()
    """DNS over HTTPS (RFC 8484), HTTP/2 only."""
    quic: tuple[Endpoint, ...] = ()
    """DNS over QUIC (RFC 9250); needs the extra `quic`."""
    certificate: ServerCertificate | None = field(default=None, repr=False)
    https_path: str = HTTPS_PATH
    ddr: DdrSettings | None = None
    """None: nothing is told."""

    def __post_init__(self) -> None:
        if self.any and self.certificate is None:
            raise ConfigError("shim: listen_tls, listen_https and listen_quic need `tls`: a certificate and its key")
        if self.quic and find_spec("aioquic") is None:
            raise ConfigError(f"shim.listen_quic: {QUIC_MISSING}")

    @property
    def any(self) -> bool:
        """There is an encrypted listener."""
        return bool(self.tls or self.https or self.quic)
