"""URLs of links (`udp://`, `mqtt://`, `zmq+tcp://`, `tls://` and so on) as sections of a transport.

Decides what a URL and the options beside it mean to a transport, for somebody who publishes, listens in, or both. Opens
nothing and resolves no names: host names are given back by `names`, and come in again with their addresses.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from pydantic import ValidationError

from cachebus.answer import Evidence
from cachebus.config.transports import DEFAULT_CODECS, STREAM_TYPES, CodecName, Transport
from cachebus.errors import ConfigError

MAX_URL = 2048
"""Characters of a URL: a path of a Unix socket has 108, a host name 253."""
MAX_PEERS = 1000
"""Peers beside a URL: as in the configuration."""
KEY = "key"
"""What the sections made here call the key that signs; further ones are `key-1`, `key-2`, ..."""

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]{0,31}")
_HOST = re.compile(r"[A-Za-z0-9._-]{1,253}")
_ZONE = re.compile(r"[A-Za-z0-9._-]{1,15}")
_LABEL = re.compile(r"[a-z0-9-]{1,63}")
_SPACE = re.compile(r"[\s\0-\x1f\x7f]")
_TYPES = {
    "udp": "udp", "multicast": "multicast", "mqtt": "mqtt", "mqtts": "mqtt", "zmq+tcp": "zeromq", "zmq+ipc": "zeromq",
    "tcp": "tcp", "tls": "tcp", "quic": "quic",
}  # fmt: skip
"""Scheme -> type of the transport. Any other scheme is the type of a transport of its own name."""
_QUERIES: Mapping[str, frozenset[str]] = {
    "multicast": frozenset({"interface", "source", "hops", "loop"}),
    "zeromq": frozenset({"bind"}),
    "tcp": frozenset({"listen"}),
    "quic": frozenset({"listen"}),
}
"""What may stand after the `?` of a type of this project. Another's query is its options."""
_TRUTH = {"0": False, "1": True}


class Role(Enum):
    """What a link is for."""

    BOTH = "both"
    SUBSCRIBE = "subscribe"
    PUBLISH = "publish"


@dataclass(frozen=True, slots=True, kw_only=True)
class Url:
    """A URL taken apart. Its repr holds no password, as a URL with one is refused."""

    text: str
    scheme: str
    host: str
    """Name or address, without brackets; empty where there is none."""
    port: int | None
    path: str
    """What follows the host, unescaped."""
    user: str | None
    query: Mapping[str, tuple[str, ...]]

    @property
    def shown(self) -> str:
        """As errors name it: without anything that may be a password."""
        return f"{self.scheme}://{self.host}" + ("" if self.port is None else f":{self.port}")

    @property
    def type(self) -> str:
        """Type of the transport."""
        return _TYPES.get(self.scheme, self.scheme)


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """What is said beside a URL, by flags or arguments."""

    peers: tuple[str, ...] = ()
    """`HOST:PORT` or `HOST`. For a link that listens: whom to send to, or, where it only subscribes, whom alone to
    hear. With certificates an entry without a port is a name in a peer's certificate."""
    cluster: str | None = None
    """None: that of the URL, or `default`."""
    codec: str | None = None
    """None: that of the transport's type."""
    ca: str | Path | None = None
    cert: str | Path | None = None
    cert_key: str | Path | None = None
    curve_key: str | Path | None = None
    """File of this end's key pair."""
    curve_server: str | None = None
    """Public key of the other end, where this end connects; or `file:PATH`."""
    curve_allow: str | None = None
    """`file:PATH` of the public keys that may connect, where this end binds."""
    accept: Evidence = Evidence.AUTHORITATIVE
    """The weakest level that is taken."""
    more_keys: int = 0
    """Number of keys that are accepted besides the one that signs."""
    options: Mapping[str, object] = field(default_factory=dict)
    """Further keys of the transport's section, as in the configuration."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """What a URL means."""

    section: Transport
    cluster: str
    sends: bool
    """It can publish."""
    receives: bool
    """It can subscribe."""


def parse_url(text: str) -> Url:
    """Take a URL apart. Raises `ConfigError` for what is none, without repeating what may be a password."""
    if len(text) > MAX_URL or _SPACE.search(text):
        raise ConfigError(f"a URL has at most {MAX_URL} characters, and no blanks")
    try:
        parts = urlsplit(text)
        port = parts.port
        host = unquote(parts.hostname or "", errors="strict")  # a zone is written %25eth0 (RFC 6874)
        path = unquote(parts.path, errors="strict")
        query = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query), max_num_fields=100)
    except ValueError:
        raise ConfigError(f"{_shown(text)} is not a URL as udp://192.0.2.1:5390") from None
    if not _SCHEME.fullmatch(parts.scheme) or not text[len(parts.scheme) :].startswith("://"):
        raise ConfigError(f"{_shown(text)} is not of the form SCHEME://HOST:PORT, as udp://192.0.2.1:5390")
    if parts.password is not None:
        raise ConfigError("a URL holds no password, which others would see; write it to a file or into a variable")
    if parts.fragment or text.endswith("#"):
        raise ConfigError("a URL of a link has no #")
    if parts.scheme == "zmq+ipc":
        host, path, port = "", unquote(parts.netloc) + path, None
    elif host and not (is_address(host) or _HOST.fullmatch(host)):
        raise ConfigError(f"{_shown(text)}: the host is neither a name nor an address")
    if "\0" in path:
        raise ConfigError(f"{parts.scheme}://: the path is none")
    values: dict[str, tuple[str, ...]] = {}
    for key, value in query:
        values[key] = (*values.get(key, ()), value)
    user = None if parts.username is None else unquote(parts.username)
    return Url(text=text, scheme=parts.scheme, host=host, port=port, path=path, user=user, query=values)


def is_address(host: str) -> bool:
    """Whether this is an IPv4 or IPv6 address, perhaps with a zone that can be an interface's name."""
    if "%" in host and not _ZONE.fullmatch(host.partition("%")[2]):
        return False
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def names(url: Url, beside: Beside) -> frozenset[str]:
    """The host names that `make_link` has to be given addresses for: those of types that resolve none themselves."""
    if url.type == "mqtt" or url.type not in _TYPES.values() or url.scheme == "zmq+ipc":
        return frozenset()
    secure = beside.cert is not None
    hosts = {url.host, *(host for host, port in map(split_peer, beside.peers) if port is not None or not secure)}
    return frozenset(host for host in hosts if host and not is_address(host))


def split_peer(text: str) -> tuple[str, int | None]:
    """Host and port of `HOST:PORT`, `HOST`, `[ADDRESS]:PORT`, `[ADDRESS]` or `ADDRESS`. Raises `ConfigError`."""
    bare = text.strip()
    if is_address(bare):
        return bare, None
    host, colon, digits = bare.rpartition(":")
    if not colon or bare.endswith("]"):
        host, digits = bare, ""
    port = int(digits) if digits.isascii() and digits.isdigit() and len(digits) <= 5 else None
    if host.startswith("[") and host.endswith("]") and ":" in host:
        host = host[1:-1]
        good = is_address(host)
    else:
        good = bool(_HOST.fullmatch(host))
    if not good or (port is None) != (not digits) or port == 0 or (port or 0) > 65535:
        raise ConfigError(f"{text!r} is not HOST or HOST:PORT")
    return host, port


def endpoint(host: str, port: int) -> str:
    """`ADDRESS:PORT`, IPv6 in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def make_link(url: Url, role: Role, beside: Beside, addresses: Mapping[str, str] | None = None) -> Link:
    """The link that a URL stands for. `addresses`: of host names; one without an address stays as it is.

    Raises `ConfigError` for what contradicts itself, or is nothing that this type of link takes.
    """
    if len(beside.peers) > MAX_PEERS:
        raise ConfigError(f"peers: at most {MAX_PEERS}")
    allowed = _QUERIES.get(url.type, frozenset() if url.type in _TYPES.values() else None)
    if allowed is not None and (unknown := url.query.keys() - allowed):
        takes = f"takes {', '.join(f'{key}=' for key in sorted(allowed))} after the ?" if allowed else "takes no ?"
        raise ConfigError(f"{url.shown}: {url.scheme}:// {takes}, and not {_word(unknown)}")
    if url.user is not None and url.scheme in _TYPES and url.type != "mqtt":
        raise ConfigError(f"{url.shown}: {url.scheme}:// takes no user")
    maker = _Maker(url, role, beside, addresses or {})
    return maker.make()


class _Maker:
    """Makes one link."""

    def __init__(self, url: Url, role: Role, beside: Beside, addresses: Mapping[str, str]) -> None:
        self._url = url
        self._role = role
        self._beside = beside
        self._addresses = addresses
        self._fields: dict[str, Any] = {}
        self._options: dict[str, object] = {}
        self._sends = role is not Role.SUBSCRIBE
        self._receives = role is not Role.PUBLISH

    def make(self) -> Link:
        makers: dict[str, Callable[[], None]] = {
            "udp": self._udp,
            "multicast": self._multicast,
            "mqtt": self._mqtt,
            "zeromq": self._zeromq,
            "tcp": self._stream,
            "quic": self._stream,
        }
        makers.get(self._url.type, self._other)()
        self._refuse_unused()
        return Link(section=self._section(), cluster=self._cluster(), sends=self._sends, receives=self._receives)

    def _section(self) -> Transport:
        url, beside = self._url, self._beside
        given = dict(beside.options)
        common = {key: given.pop(key) for key in tuple(given) if key in Transport.model_fields}
        if taken := {"type", "codec", "key", "keys", "cluster", "tls", "accept", *self._fields} & common.keys():
            raise ConfigError(f"options: {min(taken)}: is said by the URL or an argument of its own")
        codec = _codec(beside.codec, url.type)
        if codec is not CodecName.CDNS:
            common["key"] = KEY
            common["keys"] = tuple(f"{KEY}-{number}" for number in range(1, beside.more_keys + 1))
        self._fields = {"type": url.type, "codec": codec.value, **common, **self._fields}
        try:
            section = Transport.model_validate(self._fields)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            raise ConfigError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
        accept = section.accept.model_copy(update={"evidence": (beside.accept,)})
        section = section.model_copy(update={"accept": accept})
        section._options = {**self._options, **given}  # as the configuration's loader does
        return section

    def _cluster(self) -> str:
        said, in_url = self._beside.cluster, ""
        if self._url.type == "mqtt":
            in_url = self._url.path.strip("/")
        if said and in_url and said != in_url:
            raise ConfigError(f"{self._url.shown} names the cluster {in_url}, and not {said}")
        cluster = said or in_url or "default"
        if not _LABEL.fullmatch(cluster):
            raise ConfigError("cluster: is 1 to 63 of a-z, 0-9 and -")
        return cluster

    def _refuse_unused(self) -> None:
        beside, kind = self._beside, self._url.type
        if kind != "zeromq" and (beside.curve_key or beside.curve_server or beside.curve_allow):
            raise ConfigError(f"{self._url.scheme}:// knows no CURVE: that is for zmq+tcp:// and zmq+ipc://")
        takes_tls = kind in STREAM_TYPES or self._url.scheme == "mqtts" or self._url.scheme not in _TYPES
        if not takes_tls and (beside.ca or beside.cert or beside.cert_key):
            raise ConfigError(f"{self._url.scheme}:// knows no certificates: they are for tls://, quic:// and mqtts://")

    # Types

    def _udp(self) -> None:
        self._no_path()
        if self._role is Role.PUBLISH:
            self._fields["peers"] = (self._endpoint(), *self._peers())
            return
        self._fields |= {"listen": self._endpoint(any_port=True), "peers": self._peers()}
        if self._role is Role.SUBSCRIBE:
            self._options["peers_only"] = bool(self._fields["peers"])
        self._sends = self._role is Role.BOTH and bool(self._fields["peers"])

    def _multicast(self) -> None:
        self._no_path()
        group, query = self._endpoint(), self._url.query
        match self._role:
            case Role.SUBSCRIBE:
                self._fields["listen"] = group
            case Role.PUBLISH:
                self._fields["peers"] = (group,)
            case Role.BOTH:
                self._options["group"] = group
        if "interface" in query:
            self._options["interface"] = self._single("interface")
        if "hops" in query:
            self._options["hops"] = self._number("hops")
        if "loop" in query:
            self._options["loop"] = self._truth("loop")
        sources = [source for text in query.get("source", ()) for source in text.split(",")]
        sources += [self._address(split_peer(peer)[0]) for peer in self._beside.peers]
        if sources:
            self._options["sources"] = sources

    def _mqtt(self) -> None:
        url = self._url
        if url.path.strip("/") and not _LABEL.fullmatch(url.path.strip("/")):
            raise ConfigError(f"{url.shown} is not {url.scheme}://[USER@]HOST:PORT/CLUSTER")
        if not url.host or url.port == 0:
            raise ConfigError(f"{url.shown} has no host, or no port from 1 to 65535")
        if self._beside.peers:
            raise ConfigError("peers: with mqtt, nodes meet at the broker")
        host = f"[{url.host}]" if ":" in url.host else url.host
        user = "" if url.user is None else url.text.partition("://")[2].rpartition("@")[0] + "@"
        port = "" if url.port is None else f":{url.port}"
        self._fields["url"] = f"{url.scheme}://{user}{host}{port}"
        if self._beside.ca or self._beside.cert:
            self._fields["tls"] = self._tls()

    def _zeromq(self) -> None:
        binds = self._truth("bind")
        if self._url.scheme == "zmq+ipc":
            if not self._url.path:
                raise ConfigError(f"{self._url.shown} is not zmq+ipc://PATH")
            own = f"ipc://{self._url.path}"
            others = [f"ipc://{peer}" for peer in self._beside.peers]
        else:
            self._no_path()
            own = f"tcp://{self._endpoint(any_port=binds)}"
            others = [f"tcp://{peer}" for peer in self._peers()]
        if others and self._role is Role.PUBLISH:
            raise ConfigError("peers: a ZeroMQ publisher sends to whoever subscribes")
        if binds and self._role is not Role.SUBSCRIBE:
            self._options["bind"] = [own]
            self._receives = bool(others) and self._receives
        elif not binds and self._role is not Role.PUBLISH:
            self._options["connect"] = [own]
            self._sends = False
        else:
            self._fields["url"] = f"zmq+{own}" + ("?bind=1" if binds else "")
            self._options["direction"] = self._role.value
        if others:
            self._options["connect"] = [*self._options.get("connect", []), *others]  # type: ignore[misc]
        if self._beside.curve_key:
            curve = {"secret": str(self._beside.curve_key)}
            curve |= {"server": self._beside.curve_server} if self._beside.curve_server else {}
            curve |= {"allow": self._beside.curve_allow} if self._beside.curve_allow else {}
            self._options["curve"] = curve
        elif self._beside.curve_server or self._beside.curve_allow:
            raise ConfigError("curve: needs this end's own key too (curve_key)")

    def _stream(self) -> None:
        self._no_path()
        listens, secure = self._truth("listen"), self._beside.cert is not None
        addressed = self._peers(with_port=secure)
        if listens:
            self._fields |= {"listen": self._endpoint(any_port=True), "peers": addressed}
        else:
            self._fields["peers"] = (self._endpoint(), *addressed)
        if self._role is not Role.PUBLISH and self._fields["peers"]:
            self._options["subscribe"] = True
        if secure or self._beside.ca:
            self._fields["tls"] = self._tls(peers=self._certificate_names(listens=listens))
        elif self._url.scheme == "tcp":
            self._options["insecure"] = True  # what tcp:// without certificates asks for; loopback only
        else:
            raise ConfigError(f"{self._url.scheme}:// needs ca, cert and cert_key")

    def _other(self) -> None:
        """A transport of somebody else: it is told the URL, and its host and port as what its role makes of them."""
        url = self._url
        self._fields["url"] = url.text
        self._options |= {key: values[-1] if len(values) == 1 else list(values) for key, values in url.query.items()}
        peers = self._beside.peers
        if url.host and url.port is not None:
            here = endpoint(url.host, url.port)
            if self._role is Role.PUBLISH:
                peers = (here, *peers)
            else:
                self._fields["listen"] = here
        elif not url.host and url.path:
            if self._role is Role.PUBLISH:
                peers = (url.path, *peers)
            else:
                self._fields["listen"] = url.path
        self._fields["peers"] = tuple(peers)
        if self._beside.ca or self._beside.cert:
            self._fields["tls"] = self._tls(peers=tuple(peer for peer in peers if split_peer(peer)[1] is None))

    # Parts

    def _no_path(self) -> None:
        if self._url.path.strip("/"):
            raise ConfigError(f"{self._url.shown} has more than {self._url.scheme}://HOST:PORT")

    def _endpoint(self, *, any_port: bool = False) -> str:
        url = self._url
        if not url.host or url.port is None or not (url.port or any_port):
            raise ConfigError(f"{url.shown} is not of the form {url.scheme}://HOST:PORT")
        return endpoint(self._address(url.host), url.port)

    def _address(self, host: str) -> str:
        return self._addresses.get(host, host)

    def _peers(self, *, with_port: bool = False) -> tuple[str, ...]:
        """The peers as endpoints; those without a port have that of the URL, or are left out (`with_port`)."""
        default = self._url.port or 0
        found = [split_peer(peer) for peer in self._beside.peers]
        return tuple(
            endpoint(self._address(host), default if port is None else port)
            for host, port in found
            if port is not None or not with_port
        )

    def _certificate_names(self, *, listens: bool) -> tuple[str, ...]:
        found = tuple(host for host, port in map(split_peer, self._beside.peers) if port is None)
        if not found and not listens and not is_address(self._url.host):
            found = (self._url.host.lower(),)
        if not found:
            raise ConfigError("peers: has to name the certificates that are let in, as ams-1.example.net")
        return found

    def _tls(self, *, peers: tuple[str, ...] = ()) -> dict[str, Any]:
        beside = self._beside
        if beside.ca is None:
            raise ConfigError("ca: is missing: the certificates that sign the other end's")
        if (beside.cert is None) != (beside.cert_key is None):
            raise ConfigError("cert and cert_key go together")
        if beside.cert is None and peers:
            raise ConfigError("cert and cert_key are missing: both ends show a certificate")
        found: dict[str, Any] = {"ca": beside.ca, "peers": list(peers)}
        return found | ({"cert": beside.cert, "key": beside.cert_key} if beside.cert else {})

    def _single(self, key: str) -> str:
        values = self._url.query.get(key, ())
        if len(values) != 1 or not values[0]:
            raise ConfigError(f"{self._url.shown}: {key}= is there twice, or empty")
        return values[0]

    def _truth(self, key: str) -> bool:
        if key not in self._url.query:
            return False
        value = _TRUTH.get(self._single(key))
        if value is None:
            raise ConfigError(f"{self._url.shown}: {key}= is 0 or 1")
        return value

    def _number(self, key: str) -> int:
        text = self._single(key)
        if not text.isascii() or not text.isdigit() or len(text) > 3:
            raise ConfigError(f"{self._url.shown}: {key}= is a small number")
        return int(text)


def _codec(said: str | None, kind: str) -> CodecName:
    usual = DEFAULT_CODECS.get(kind, CodecName.DNS)
    try:
        codec = usual if said is None else CodecName(said)
    except ValueError:
        raise ConfigError(f"codec: is {', '.join(one.value for one in CodecName)}") from None
    if codec is CodecName.CDNS and kind not in STREAM_TYPES:
        raise ConfigError("codec: cdns has no signature: it needs tcp, tls or quic, whose certificates say who speaks")
    return codec


def _shown(text: str) -> str:
    """A text that is no URL, as far as it cannot be a password."""
    return repr(text) if "@" not in text else "what was given"


def _word(keys: Collection[str]) -> str:
    """The first of some words, where it is one."""
    first = min(keys)
    return repr(first) if first.isidentifier() and first.isascii() else "what is there"
