"""The `shim` section as frozen models: the DNS server for clients and the upstreams behind it.

Knows this section alone; what ties it to others is in `shim_checks`. The docstring under a field is its description in
the JSON schema and in the configuration reference.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Annotated, Any, NamedTuple
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from cachebus.config.section import MAX_NAMES, Section
from cachebus.config.shim_caching import Ecs, Failures, FailuresOrSwitch, ServeStaleOrSwitch, Ttl
from cachebus.config.shim_front import Chaos, Cookies, OrSwitch, RateLimit
from cachebus.config.shim_listen import Ddr, HttpsPath, ShimTls
from cachebus.config.shim_local import BlockList, LocalData
from cachebus.config.shim_swild import Swild
from cachebus.config.values import Duration, File, Label, ListenAddress, Network, OrText, SocketAddress, parse_address

DO53_PORT = 53
DOT_PORT = 853
HTTPS_PORT = 443
MAX_URL = 2000
"""Characters of a URL: what every HTTP server takes."""


class UpstreamChoice(Enum):
    """Which of the upstreams that work is asked first."""

    FASTEST = "fastest"
    ORDERED = "ordered"


class Upstream(Section):
    """A server that the shim sends its misses to."""

    address: str | None = None
    """ADDRESS, or ADDRESS:PORT; port 53, or 853 with `tls_name`, or that of `url`."""
    url: str | None = Field(default=None, max_length=MAX_URL)
    """DNS over HTTPS: `https://HOST[:PORT]/PATH`; the certificate must be for HOST. Where that is a name, `address` has
    to say where it is: what resolves names here is this server itself."""
    validating: bool = False
    """It validates DNSSEC and its AD bit counts; only on loopback or with `tls_name`, elsewhere anyone could set it."""
    authoritative: bool = False
    """An authoritative server: AA=1 is evidence."""
    tls_name: str | None = None
    """DNS over TLS; the name that its certificate must be for."""
    ca: File | None = None
    """PEM file: certificates that sign this upstream's, instead of the system's."""

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return {"address": value} if isinstance(value, str) else value

    @property
    def https(self) -> HttpsUrl | None:
        """What `url` says. Raises `ValueError` when it is none; a loaded configuration's is."""
        return None if self.url is None else parse_https_url(self.url)

    @property
    def server_name(self) -> str | None:
        """What the certificate must be for; None without TLS."""
        return self.tls_name if self.https is None else self.https.host

    @property
    def endpoint(self) -> SocketAddress:
        """Host and port. Raises `ValueError` when there is none; a loaded configuration has one."""
        https = self.https
        if https is None:
            if self.address is None:
                raise ValueError("needs an `address` or a `url`")
            return parse_address(self.address, default_port=DO53_PORT if self.tls_name is None else DOT_PORT)
        if self.address is not None:
            return parse_address(self.address, default_port=https.port)
        return SocketAddress(https.host, https.port)


class HttpsUrl(NamedTuple):
    """The parts of an `https:` URL that a request needs."""

    host: str
    """A name, or an IP address without brackets."""
    port: int
    authority: str
    path: str
    """With the query, if there is one."""


def parse_https_url(text: str) -> HttpsUrl:
    """Take an `https:` URL apart. Raises `ValueError` for any other, or one with more than a request needs."""
    parts = urlsplit(text)
    if parts.scheme != "https" or not parts.hostname or not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError("must be https://HOST[:PORT]/PATH")
    if parts.fragment or parts.username is not None:
        raise ValueError("has no use for a user, a password or a #fragment")
    path = parts.path or "/dns-query"
    return HttpsUrl(
        parts.hostname, parts.port or HTTPS_PORT, parts.netloc, path + (f"?{parts.query}" if parts.query else "")
    )


class Shim(Section):
    """The DNS server for clients: answers from the cache, forwards what is missing."""

    listen: tuple[ListenAddress, ...] = Field(min_length=1, max_length=MAX_NAMES)
    """ADDRESS:PORT, each for UDP and TCP."""
    upstreams: tuple[Annotated[Upstream, OrText()], ...] = Field(default=(), max_length=64)
    """Where misses go. Without any, only what the cache holds is answered."""
    upstream_choice: UpstreamChoice = UpstreamChoice.FASTEST
    """`fastest`: the upstream that answers soonest is asked first, among those of equal worth (`validating`,
    `authoritative`, neither). `ordered`: in the order written."""
    allow: tuple[Network, ...] | None = Field(default=None, max_length=MAX_NAMES)
    """Networks whose clients are served; loopback only unless set."""
    max_tcp_connections: int = Field(default=512, ge=10, le=65536)
    """Beyond it the connection idle for longest is closed."""
    max_in_flight: int = Field(default=2048, ge=16, le=65536)
    """Client questions that may wait for an upstream; one more gets SERVFAIL at once."""
    timeout: Duration = Field(default=4.5, ge=0.1, le=60)
    """Time for one question, all tries together: 0.1 to 60 seconds."""
    local_data: LocalData = LocalData()
    """What the shim answers by itself, before everything else."""
    block_lists: Mapping[Label, BlockList] = Field(default_factory=dict, max_length=MAX_NAMES)
    """Files of names that are not answered as the DNS would, by a name of yours."""
    swild: Swild = Field(default_factory=Swild)
    """Wildcards on intermediate nameservers."""
    serve_stale: ServeStaleOrSwitch = None
    """Answer from what has expired while no upstream answers; `off` unless set, `on` for its defaults."""
    prefetch: bool | None = None
    """Fetch what is asked for again shortly before it expires; where there are transports, unless set."""
    failures: FailuresOrSwitch = Failures()
    """How long failures are remembered; `off` asks each time."""
    ttl: Ttl = Ttl()
    """Bounds of TTLs."""
    ecs: Ecs = Ecs()
    """Client subnets."""
    deny: tuple[Network, ...] = Field(default=(), max_length=MAX_NAMES)
    """Networks whose clients are not served, whatever `allow` says."""
    cookies: Annotated[Cookies, OrSwitch()] = Cookies()
    """DNS cookies for clients."""
    padding: bool = True
    """Replies over encrypted channels are padded, so that their length tells nothing (RFC 8467)."""
    rate_limit: Annotated[RateLimit, OrSwitch()] | None = None
    """Bounds for the questions of one network; off unless set."""
    chaos: Annotated[Chaos, OrSwitch()] | None = None
    """What the server tells about itself; nothing unless set."""
    minimal: bool = True
    """`false`: addresses that the records of an answer point to are added where the cache holds them."""
    rotate: bool = False
    """`true`: the records of an RRset come in another order each time."""
    max_connections_per_client: int = Field(default=128, ge=1, le=65536)
    """Of `max_tcp_connections`. Beyond it the one of this client that is idle for longest is closed."""
    listen_tls: tuple[ListenAddress, ...] = Field(default=(), max_length=MAX_NAMES)
    """ADDRESS:PORT for DNS over TLS; port 853."""
    listen_https: tuple[ListenAddress, ...] = Field(default=(), max_length=MAX_NAMES)
    """ADDRESS:PORT for DNS over HTTPS; port 443."""
    listen_quic: tuple[ListenAddress, ...] = Field(default=(), max_length=MAX_NAMES)
    """ADDRESS:PORT for DNS over QUIC; port 853. Needs `pip install 'cachebus[quic]'`."""
    tls: ShimTls | None = None
    """The certificate of these three."""
    https_path: HttpsPath = "/dns-query"
    """Where DNS over HTTPS is asked."""
    ddr: bool | Ddr = True
    """Whether clients that ask hear of the encrypted listeners, and by which name."""
    workers: int = Field(default=1, ge=1, le=64)
    """Processes that share the addresses, each with a cache of its own of the size set in `cache`. One, the default, is
    the node's own process; more pay where one core does not answer all clients."""
