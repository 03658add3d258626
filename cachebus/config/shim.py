"""The `shim` section as frozen models: the DNS server for clients and the upstreams behind it.

Knows this section alone; what ties it to others is in `shim_checks`. The docstring under a field is its description in
the JSON schema and in the configuration reference.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from cachebus.config.section import MAX_NAMES, Section
from cachebus.config.values import Duration, ListenAddress, Network, OrText, SocketAddress, parse_address

DO53_PORT = 53
DOT_PORT = 853


class Upstream(Section):
    """A server that the shim sends its misses to."""

    address: str
    """ADDRESS, or ADDRESS:PORT; port 53, or 853 with `tls_name`."""
    validating: bool = False
    """It validates DNSSEC and its AD bit counts; only on loopback or with `tls_name`, elsewhere anyone could set it."""
    authoritative: bool = False
    """An authoritative server: AA=1 is evidence."""
    tls_name: str | None = None
    """DNS over TLS; the name that its certificate must be for."""

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return {"address": value} if isinstance(value, str) else value

    @property
    def endpoint(self) -> SocketAddress:
        """Host and port. Raises `ValueError` when `address` is not one; a loaded configuration's is."""
        return parse_address(self.address, default_port=DO53_PORT if self.tls_name is None else DOT_PORT)


class Shim(Section):
    """The DNS server for clients: answers from the cache, forwards what is missing."""

    listen: tuple[ListenAddress, ...] = Field(min_length=1, max_length=MAX_NAMES)
    """ADDRESS:PORT, each for UDP and TCP."""
    upstreams: tuple[Annotated[Upstream, OrText()], ...] = Field(default=(), max_length=64)
    """Where misses go, in order of preference. Without any, only what the cache holds is answered."""
    allow: tuple[Network, ...] | None = Field(default=None, max_length=MAX_NAMES)
    """Networks whose clients are served; loopback only unless set."""
    max_tcp_connections: int = Field(default=512, ge=10, le=65536)
    """Beyond it the connection idle for longest is closed."""
    max_in_flight: int = Field(default=2048, ge=16, le=65536)
    """Client questions that may wait for an upstream; one more gets SERVFAIL at once."""
    timeout: Duration = Field(default=4.5, ge=0.1, le=60)
    """Time for one question, all tries together: 0.1 to 60 seconds."""
    workers: int = Field(default=1, ge=1, le=64)
    """Processes that share the addresses, each with a cache of its own of the size set in `cache`. One, the default, is
    the node's own process; more pay where one core does not answer all clients."""
