"""What a configuration says of an MQTT link, checked. Opens nothing and knows no MQTT library.

Refuses what would leak: a password in a URL, which ends up in process lists and logs, or one without TLS to a host
other than this one. Topics are `cachebus/<cluster>/v1/<node>`: few levels, no dots or blanks, so that every broker
carries them, those that map topics to other names (NATS, AMQP) included.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from urllib.parse import SplitResult, urlsplit

from cachebus.errors import ConfigError
from cachebus.ports import Tls, TransportSettings

PORT = 1883
"""Of `mqtt://` without a port (IANA: mqtt)."""
SECURE_PORT = 8883
"""Of `mqtts://` without a port (IANA: secure-mqtt)."""
KEEPALIVE = 15
"""Default of `keepalive`, in seconds: a silent broker is given up within twice that."""
MIN_KEEPALIVE = 5
"""Less and a busy broker would be taken for a dead one."""
MAX_KEEPALIVE = 3600
"""More and a firewall forgets the connection in between; 0, MQTT's "never ask", would not see a dead broker at all."""
MAX_CREDENTIAL = 4096
"""Bytes of a username or password. MQTT carries 65535; tokens are rarely more than 2000."""
QUALITIES = (0, 1)
"""Levels of QoS. 2 costs four packets a message for what the envelope's sequence number does already."""

_LABEL = re.compile(r"[a-z0-9-]{1,63}")
_HOST = re.compile(r"(?=.{1,254}\Z)[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?")
"""A host name; with other labels the system's resolver would raise rather than answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MqttOptions:
    """Where the broker is, who we are there, and how we speak to it."""

    name: str
    """Of the transport, for logs."""
    host: str
    port: int
    secure: bool
    """TLS."""
    tls: Tls | None = field(repr=False)
    """None with `secure`: the system's certificate authorities, and no certificate of ours."""
    cluster: str
    node: str
    qos: int
    keepalive: int
    """Seconds."""
    username: str | None
    password: str | None = field(repr=False)
    will: bytes | None = field(repr=False)

    @property
    def client_id(self) -> str:
        """The same at each start, so that the broker drops a connection of ours that it still takes for alive."""
        return f"cachebus-{self.cluster}-{self.node}"

    @property
    def prefix(self) -> str:
        """Of every topic of the cluster; the node's name follows."""
        return f"cachebus/{self.cluster}/v1/"

    @property
    def topic(self) -> str:
        """Where this node publishes."""
        return self.prefix + self.node

    @property
    def literal(self) -> bool:
        """The host is an address: nothing has to be resolved."""
        return _is_address(self.host)

    @property
    def shown(self) -> str:
        """The broker, as logs name it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_options(settings: TransportSettings) -> MqttOptions:
    """Check the settings of a transport `mqtt` or `mqtts`. Raises `ConfigError` for what makes no sense."""
    if settings.url is None:
        raise ConfigError("mqtt needs `url`")
    if settings.listen is not None or settings.peers:
        raise ConfigError("mqtt knows neither `listen` nor `peers`: its nodes meet at the broker of `url`")
    url = _split(settings.url)
    secure = url.scheme == "mqtts"
    if settings.tls is not None and not secure:
        raise ConfigError("url: has to be mqtts:// where `tls` is given")
    host, port = _endpoint(url, SECURE_PORT if secure else PORT)
    username, password = _credentials(settings, url.username or None)
    if password is not None and not secure and not _is_local(host):
        raise ConfigError("password: would cross the network in clear text; use mqtts://")
    return MqttOptions(
        name=settings.name,
        host=host,
        port=port,
        secure=secure,
        tls=settings.tls,
        cluster=_cluster(settings.cluster, url.path.strip("/")),
        node=_label("node", settings.node),
        qos=_quality(settings.options.get("qos")),
        keepalive=_keepalive(settings.options.get("keepalive")),
        username=username,
        password=password,
        will=settings.will,
    )


def _split(text: str) -> SplitResult:
    """The parts of a URL. No message repeats it: it may hold a password, where one does not belong."""
    try:
        url = urlsplit(text)
        url.port  # noqa: B018 -- looked at here because it raises
    except ValueError:
        raise ConfigError("url: is not mqtt://[USER@]HOST:PORT[/CLUSTER]") from None
    if url.scheme not in {"mqtt", "mqtts"}:
        raise ConfigError("url: begins with mqtt:// or mqtts://")
    if url.password is not None:
        raise ConfigError("url: holds a password; write it as `password`, which takes file: and env:")
    if url.query or url.fragment:
        raise ConfigError("url: takes no ? or #")
    return url


def _endpoint(url: SplitResult, default: int) -> tuple[str, int]:
    host = url.hostname or ""
    if not (_is_address(host) or _HOST.fullmatch(host)):
        raise ConfigError("url: has no host")
    port = default if url.port is None else url.port
    if port == 0:
        raise ConfigError("url: has no port from 1 to 65535")
    return host, port


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_local(host: str) -> bool:
    return ipaddress.ip_address(host).is_loopback if _is_address(host) else host == "localhost"


def _cluster(configured: str, in_url: str) -> str:
    if configured and in_url and configured != in_url:
        raise ConfigError(f"url: names the cluster {in_url!r}, but this node is of {configured!r}")
    return _label("cluster", configured or in_url)


def _label(key: str, value: str) -> str:
    if not _LABEL.fullmatch(value):
        raise ConfigError(f"{key}: is 1 to 63 of a-z, 0-9 and -")
    return value


def _quality(value: object) -> int:
    if value is None:
        return QUALITIES[0]
    if type(value) is not int or value not in QUALITIES:
        raise ConfigError("qos: is 0 or 1")
    return value


def _keepalive(value: object) -> int:
    if value is None:
        return KEEPALIVE
    if isinstance(value, bool) or not isinstance(value, int | float) or not MIN_KEEPALIVE <= value <= MAX_KEEPALIVE:
        raise ConfigError(f"keepalive: is a number of seconds from {MIN_KEEPALIVE} to {MAX_KEEPALIVE}")
    return int(value)


def _credentials(settings: TransportSettings, in_url: str | None) -> tuple[str | None, str | None]:
    username = _credential("username", settings.options.get("username"))
    password = _credential("password", settings.options.get("password"))
    if username is not None and in_url is not None and username != in_url:
        raise ConfigError("username: is not the one in `url`")
    username = username if username is not None else in_url
    if password is not None and username is None:
        raise ConfigError("password: needs a username (MQTT 3.1.1 section 3.1.2.9)")
    return username, password


def _credential(key: str, value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not value or "\0" in value or len(value.encode()) > MAX_CREDENTIAL:
        raise ConfigError(f"{key}: is a text of up to {MAX_CREDENTIAL} bytes")
    return value


def node_of(topic: str, prefix: str) -> str | None:
    """Whose topic this is, by the broker's word; None when it is no topic of a node of ours."""
    if not topic.startswith(prefix):
        return None
    node = topic[len(prefix) :]
    return node if _LABEL.fullmatch(node) else None
