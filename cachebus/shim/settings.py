"""What the shim is told: where it listens, whom it serves, whom it asks. Refuses settings that would be unsafe.

Knows nothing of YAML; the node fills these from the checked configuration.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import ip_address

from cachebus.errors import ConfigError
from cachebus.filters.chain import DEFAULT_MAX_TTL
from cachebus.shim.access import LOOPBACK as LOOPBACK
from cachebus.shim.access import Network as Network
from cachebus.shim.caching import CachingSettings
from cachebus.shim.encrypted import PER_CLIENT, EncryptedSettings
from cachebus.shim.front import FrontSettings
from cachebus.shim.local_settings import LocalSettings
from cachebus.shim.swild_owners import SwildSettings

Endpoint = tuple[str, int]
"""An IP address (no name: the shim is what resolves names) and a port."""

DO53_PORT = 53
DOT_PORT = 853
"""RFC 7858 section 3.1."""


class Choice(Enum):
    """Which of the upstreams that work is asked first."""

    FASTEST = "fastest"
    """The one whose replies come soonest; each of the others now and then, so that a change is noticed."""
    ORDERED = "ordered"
    """The first that is configured."""


def parse_endpoint(text: str, default_port: int) -> Endpoint:
    """Address and port of `192.0.2.1`, `192.0.2.1:5353`, `2001:db8::1` or `[2001:db8::1]:5353`.

    Raises `ConfigError` for names, for ports outside 0 to 65535 and for anything else.
    """
    host, port_text = text, ""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ConfigError(f"{text!r} is not ADDRESS or ADDRESS:PORT")
        port_text = rest[1:]
        if rest and not port_text:
            raise ConfigError(f"{text!r} has no port after the colon")
    elif text.count(":") == 1:
        host, _, port_text = text.partition(":")
    try:
        ip_address(host)
    except ValueError:
        raise ConfigError(f"{text!r} is not an IP address with or without a port") from None
    if not port_text and text.count(":") != 1:
        return host, default_port
    if not (port_text.isascii() and port_text.isdigit() and len(port_text) <= 5 and int(port_text) <= 65535):
        raise ConfigError(f"{text!r} has no port between 0 and 65535")
    return host, int(port_text)


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamSettings:
    """One server that misses are sent to. Raises `ConfigError` when its AD bit could be forged on the way."""

    address: Endpoint
    validating: bool = False
    """Its AD bit counts. Only on loopback, or over TLS with a verified name: anyone between could set it."""
    authoritative: bool = False
    """It is asked with RD=0 and AA=1 is evidence; a referral from it is a failure."""
    tls_name: str | None = None
    """Over TLS (RFC 7858) to a server whose certificate is for this name; never falls back to cleartext."""
    https: tuple[str, str] | None = None
    """DNS over HTTPS (RFC 8484): the URL's host and port, and its path. Needs `tls_name`."""
    tls: ssl.SSLContext | None = field(default=None, repr=False)
    """Trust store of its own; None takes the system's."""

    def __post_init__(self) -> None:
        if self.validating and self.tls_name is None and not self.is_loopback:
            raise ConfigError(
                f"upstream {self.text} cannot be `validating` over the network in cleartext: give it a `tls_name`"
            )
        if self.validating and self.authoritative:
            raise ConfigError(f"upstream {self.text} is `validating` or `authoritative`, not both")
        if self.https is not None and self.tls_name is None:
            raise ConfigError(f"upstream {self.text}: HTTPS needs a `tls_name`")
        if not 0 < self.address[1] <= 65535:
            raise ConfigError(f"upstream {self.text} has no port")

    @property
    def is_loopback(self) -> bool:
        """Nobody but this host can answer in its name."""
        return ip_address(self.address[0]).is_loopback

    @property
    def text(self) -> str:
        """`ADDRESS:PORT`, IPv6 in brackets."""
        host, port = self.address
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShimSettings:
    """Everything the shim takes from the configuration. Raises `ConfigError` for what cannot work."""

    node: str
    """Origin of what it learns."""
    listen: tuple[Endpoint, ...]
    """UDP and TCP on each; port 0 takes a free one."""
    upstreams: tuple[UpstreamSettings, ...] = ()
    """Without any, only what the cache holds is answered."""
    choice: Choice = Choice.FASTEST
    """Among those that are `validating`, or `authoritative`, or neither, each in turn as configured."""
    allow: tuple[Network, ...] = LOOPBACK
    """Networks whose clients are served; everyone else gets REFUSED."""
    max_tcp_connections: int = 512
    """10 to 65536. Beyond it the connection idle for longest makes room."""
    max_in_flight: int = 2048
    """16 to 65536 client questions waiting for an upstream; beyond it a question gets SERVFAIL at once."""
    refresh: bool = True
    """Fetch what is asked for again shortly before it expires, at a time of this node's own, so that the nodes of a
    cluster do not do so all at once. Of no use where nothing is shared."""
    infrastructure: bool = False
    """NS, DS, DNSKEY and SOA may be shared, as in the share policy."""
    max_ttl: int = DEFAULT_MAX_TTL
    """Seconds, 1 to 7 days: what an upstream says longer is kept, and shared, for this long."""
    timeout: float = 4.5
    """0.1 to 60 seconds for one question, all tries together: a stub resolver gives up after 5."""
    local: LocalSettings = field(default_factory=LocalSettings)
    """What is answered before everything else."""
    swild: SwildSettings = field(default_factory=SwildSettings)
    caching: CachingSettings = field(default_factory=CachingSettings)
    """What is kept for how long, and what is answered when upstreams do not."""
    front: FrontSettings = field(default_factory=FrontSettings)
    """What clients meet: access, cookies, padding, rate limits and the rest."""
    max_connections_per_client: int = PER_CLIENT
    """1 to 65536 of `max_tcp_connections`. Beyond it the client's own connection idle for longest makes room."""
    encrypted: EncryptedSettings = field(default_factory=EncryptedSettings)
    """Listeners for TLS, HTTPS and QUIC."""
    workers: int = 1
    """1 to 64 processes that answer, each with a cache of its own. One is the node's process, with the node's cache."""

    def __post_init__(self) -> None:
        if not self.listen:
            raise ConfigError("shim.listen names no address")
        for name, low, high in (
            ("max_tcp_connections", 10, 65536),
            ("max_connections_per_client", 1, 65536),
            ("max_in_flight", 16, 65536),
            ("timeout", 0.1, 60),
            ("max_ttl", 1, 7 * 86400),
            ("workers", 1, 64),
        ):
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"shim.{name} is not between {low} and {high}")
