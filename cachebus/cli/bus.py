"""What `tail` and `publish` share: the URL of a link, the codec with a key, and a configuration's share policy.

Decides how `SCHEME://HOST:PORT` becomes what a transport takes. Host names are resolved here, once: transports take
address literals only.
"""

from __future__ import annotations

import ipaddress
import socket
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote, urlsplit

from cachebus.answer import Answer, Refusal
from cachebus.codecs.dns import DnsCodec, DnsCodecSettings
from cachebus.errors import ConfigError, TransportError
from cachebus.filters.policy import Policy
from cachebus.presentation import name_to_text
from cachebus.wire.tsig import Key

if TYPE_CHECKING:
    from cachebus.config.keyfile import KeyMaterial

NODE = "cli"
"""Node name of a command: it appears on no wire, as codec `dns` carries none."""
CLUSTER = "cli"


class Link(NamedTuple):
    """Where a URL points."""

    scheme: str
    """Type of the transport."""
    endpoint: str
    """`ADDRESS:PORT`, IPv6 in brackets."""


class SharePolicy(NamedTuple):
    """What a configuration lets out of its node; without one, everything."""

    policy: Policy | None = None
    infrastructure: bool = False
    """NS, DS, DNSKEY and SOA may be shared."""

    def refuse(self, answer: Answer) -> Refusal | None:
        """Why this answer may not be shared."""
        return None if self.policy is None else self.policy.refuse_to_share(answer)


def parse_url(text: str) -> Link:
    """Take `SCHEME://HOST:PORT` apart and resolve the host.

    Raises `ConfigError` for anything else, `TransportError` when the host has no address.
    """
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError(f"{text!r} is not a URL: {error}") from None
    if not parts.scheme or host is None or port is None:
        raise ConfigError(f"{text!r} is not of the form SCHEME://HOST:PORT, as udp://192.0.2.1:5390")
    if parts.username is not None or parts.path.strip("/") or parts.query or parts.fragment:
        raise ConfigError(f"{text!r} has more than SCHEME://HOST:PORT")
    return Link(parts.scheme, resolve(unquote(host), port))  # a zone is written %25eth0 (RFC 6874)


def parse_peer(text: str, port: int) -> str:
    """`ADDRESS:PORT` of a peer given as HOST or HOST:PORT. Raises as `parse_url`."""
    bare = text.strip()
    if _is_address(bare):
        return resolve(bare, port)
    host, _, own_port = bare.rpartition(":")
    return parse_url(f"peer://{bare}" if host and own_port.isdigit() else f"peer://{bare}:{port}").endpoint


def resolve(host: str, port: int) -> str:
    """First address of a host as `ADDRESS:PORT`; a literal stays what it is. Raises `TransportError`."""
    if not _is_address(host):
        try:
            host = str(socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0][4][0])
        except (OSError, UnicodeError) as error:
            raise TransportError(f"host {host} has no address: {error}") from error
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def make_codec(scheme: str, key: KeyMaterial, *, infrastructure: bool) -> DnsCodec:
    """Codec `dns` with one key, for any time of signing: a command has no replays to fear from before its start."""
    tsig = Key.make(name_to_text(key.name), key.algorithm, key.secret)
    return DnsCodec(DnsCodecSettings(transport=scheme, key=tsig, infrastructure=infrastructure), start=None)


def load_share(config: Path | None) -> SharePolicy:
    """The share policy of a configuration file. Raises `ConfigError` when the file is wrong."""
    if config is None:
        return SharePolicy()
    from cachebus.assembly import make_policy  # the configuration's models take a while to import
    from cachebus.config import load

    share = load(config).share
    return SharePolicy(make_policy(share), share.infrastructure)
