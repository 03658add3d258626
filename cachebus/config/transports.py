"""The configuration of a transport: the keys that all have, and those that the types of this project add.

Knows which codec goes with which type. What ties a transport to keys, files and addresses is in `transport_checks`.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field, PrivateAttr, SecretStr

from cachebus.answer import Evidence
from cachebus.config.section import MAX_NAMES, Question, Section
from cachebus.config.values import Duration, File, Label, Level, Levels, PublicKey, Size, TypeName


class CodecName(Enum):
    """What the bytes of a transport are."""

    DNS = "dns"
    BATCH = "batch"
    CDNS = "cdns"


DEFAULT_CODECS = {
    "udp": CodecName.DNS,
    "multicast": CodecName.DNS,
    "mqtt": CodecName.BATCH,
    "zeromq": CodecName.BATCH,
    "tcp": CodecName.CDNS,
    "tls": CodecName.CDNS,
    "quic": CodecName.CDNS,
}
"""Type -> the codec that it has unless the configuration names one; `dns` for any other."""
STREAM_TYPES = frozenset({"tcp", "tls", "quic"})
"""Types whose links are byte streams with an authenticated other end, which codec `cdns` needs."""
DATAGRAM_TYPES = frozenset({"udp", "multicast"})
DATAGRAM_MESSAGE = 1232
"""Bytes that fit every path without fragments (RFC 9715 section 3.1)."""
DNS_MESSAGE = 65535
"""Bytes of the longest DNS message (RFC 1035 section 4.2.2)."""
ENVELOPE = 64 * 1024
"""Bytes of a batch or block: a quarter of what every broker carries."""
DATAGRAM_FLUSH = 16
"""Answers that usually fit one datagram; the codec splits what does not."""


class Accept(Section):
    """What is taken from a transport."""

    evidence: Levels = (Evidence.AUTHORITATIVE,)
    """Levels that are taken. A level includes the stronger ones."""

    @property
    def minimum_evidence(self) -> Evidence:
        """The weakest level that is taken."""
        return min(self.evidence)


class Peer(Section):
    """What the holder of a certificate may claim."""

    origins: tuple[Label, ...] | None = Field(default=None, max_length=MAX_NAMES)
    """Names of the nodes that speak with it; unless set, the first label of the certificate's name."""
    max_evidence: Level = Evidence.VALIDATED
    """The strongest level that it may claim."""


def _named(value: Any) -> Any:
    if not isinstance(value, list | tuple):
        return value
    if not all(isinstance(key, str) for key in value):
        raise ValueError("wants a list of names, or a mapping (`name: {}`)")
    return {key: {} for key in value}


class TransportTls(Section):
    """TLS 1.3 with certificates at both ends."""

    cert: File | None = None
    """PEM file: certificate chain of this node. A broker may do without."""
    key: File | None = None
    """PEM file: private key of `cert`; not open to group or others."""
    ca: File
    """PEM file: certificates that sign the other end's certificate."""
    peers: Annotated[Mapping[str, Peer], BeforeValidator(_named)] = Field(default_factory=dict, max_length=MAX_NAMES)
    """Names (SAN dNSName) of the certificates that are let in: a list, or a mapping to what each may claim."""


class Flush(Section):
    """When answers that wait for company are sent: whichever comes first."""

    count: int | None = Field(default=None, ge=1, le=4096)
    """This many wait: 1 to 4096; 64 unless set, 512 with codec `cdns`, 16 in datagrams."""
    bytes: Size | None = Field(default=None, ge=512, le=256 * 1024)
    """They are about this large together: 512 bytes to 256 KiB; 48 KiB unless set."""
    interval: Duration = Field(default=0.02, ge=0, le=10)
    """The oldest has waited for this long: 0 to 10 seconds."""


class Transport(Section):
    """A link to the peers. Keys beyond these belong to the transport's type and are passed on to it."""

    model_config = ConfigDict(extra="allow")

    type: TypeName
    """`udp`, `multicast`, `mqtt`, `zeromq`, `tcp`, `quic`, or the name of any other installed transport."""
    codec: CodecName | None = None
    """`dns`: one TSIG-signed DNS message per answer (udp, multicast). `batch`: many answers under one MAC (mqtt,
    zeromq). `cdns`: blocks of RFC 8618 (tcp, quic)."""
    key: str | None = None
    """Name of the key that signs what is sent; it is accepted too. Codec `cdns` has none: its link authenticates."""
    keys: tuple[str, ...] = Field(default=(), max_length=MAX_NAMES)
    """Names of further keys that are accepted: the peers' own, and old and new ones during a rollover."""
    listen: str | None = None
    """udp, tcp, quic: ADDRESS:PORT to receive on."""
    peers: tuple[str, ...] = Field(default=(), max_length=MAX_NAMES)
    """udp, tcp, quic: ADDRESS:PORT of each peer to send to."""
    url: str | None = None
    """mqtt: `mqtt://[USER@]HOST:PORT` or `mqtts://`. Other types: where to connect, if they have one."""
    tls: TransportTls | None = None
    """tcp, quic, mqtts: certificates."""
    cluster: Label | None = None
    """Name of the cluster on this transport; that of the node unless set."""
    accept: Accept = Accept()
    """What is taken from the peers on this transport."""
    question: Question = Question.KEEP
    """Codec `dns`. `keep`: messages carry the question. `omit`: they do not, which some receivers do not understand."""
    max_message: Size | None = Field(default=None, ge=512, le=256 * 1024)
    """Longest message in bytes, 512 to 256 KiB; unless set 1232 in datagrams, 65535 for DNS messages elsewhere, 64 KiB
    for batches and blocks. A larger answer is not sent here, and counted."""
    flush: Flush = Flush()
    """Codecs `batch` and `cdns`: how long answers wait for company."""
    zstd: bool = False
    """Compress: each batch, or the whole stream (tcp, quic)."""

    _options: Mapping[str, object] = PrivateAttr(default_factory=dict)

    @property
    def options(self) -> Mapping[str, object]:
        """Every key that is not one of these, with the types YAML gives them."""
        return self._options

    @property
    def codec_name(self) -> CodecName:
        """The codec, by the type where it is not named."""
        return self.codec or DEFAULT_CODECS.get(self.type, CodecName.DNS)

    @property
    def longest(self) -> int:
        """Bytes of the longest message."""
        if self.max_message is not None:
            return self.max_message
        if self.type in DATAGRAM_TYPES:
            return DATAGRAM_MESSAGE
        return DNS_MESSAGE if self.codec_name is CodecName.DNS else ENVELOPE

    @property
    def accepted_keys(self) -> tuple[str, ...]:
        """Names of all keys that are accepted: `key` first, then `keys`."""
        return tuple(dict.fromkeys((*((self.key,) if self.key is not None else ()), *self.keys)))


class UdpOptions(Section):
    """Keys of a transport of type udp besides the common ones."""

    peers_only: bool = False
    """Drop what comes from an address that is no peer's, before its signature is looked at."""
    socket_buffer: Size | None = Field(default=None, ge=64 * 1024, le=512 * 1024 * 1024)
    """Socket buffer to ask the kernel for, in each direction: 64 KiB to 512 MiB; 8 MiB unless set."""


class MulticastOptions(Section):
    """Keys of a transport of type multicast besides the common ones."""

    group: str
    """GROUP:PORT, an IPv4 or IPv6 multicast address and port."""
    interface: str | None = None
    """Name or address of the interface; the system's choice unless set."""
    hops: int | None = Field(default=None, ge=0, le=255)
    """Hop limit (TTL): 0 to 255; 1, this link only, unless set."""
    loop: bool | None = None
    """Whether other nodes on this machine receive what is sent."""
    sources: tuple[str, ...] = Field(default=(), max_length=MAX_NAMES)
    """Addresses whose datagrams are taken (source-specific multicast, RFC 4607)."""
    socket_buffer: Size | None = Field(default=None, ge=64 * 1024, le=512 * 1024 * 1024)
    """As of udp."""


class MqttOptions(Section):
    """Keys of a transport of type mqtt besides the common ones."""

    qos: int = Field(default=0, ge=0, le=1)
    """0: at most once. 1: at least once; repeats are known by their sequence number."""
    username: str | None = None
    """Name of the account at the broker; also from the URL."""
    password: SecretStr | None = None
    """`file:PATH` or `env:VAR` that holds the password."""
    keepalive: Duration | None = Field(default=None, ge=5, le=3600)
    """Seconds without a packet after which the broker is asked whether it lives: 5 s to 1 h."""


class Curve(Section):
    """CURVE encryption and authentication of ZeroMQ; keys are made by `cachebus keygen curve`."""

    secret: File
    """File of this node's key pair, mode 0600."""
    server: PublicKey | Mapping[str, PublicKey] | None = None
    """Public key (Z85) of the other end, where this end connects; a file with it as `file:PATH`; or a name of `allow`.
    Where there are several other ends: a mapping of their endpoints to these."""
    allow: PublicKey | Annotated[Mapping[str, PublicKey], Field(max_length=MAX_NAMES)] = Field(default_factory=dict)
    """Names of nodes and their public keys (Z85, or `file:PATH`), or `file:PATH` of all, where others connect."""


class Hub(Section):
    """The two endpoints of a ZeroMQ hub (`cachebus forward`)."""

    publishers: str
    """Where this node connects to publish, as `tcp://192.0.2.5:5391`."""
    subscribers: str
    """Where it connects to subscribe."""


class ZeromqOptions(Section):
    """Keys of a transport of type zeromq besides the common ones."""

    bind: tuple[str, ...] = Field(default=(), max_length=MAX_NAMES)
    """Endpoints that peers subscribe to, as `tcp://192.0.2.10:5391` or `ipc:///run/cachebus/bus`."""
    connect: tuple[str, ...] = Field(default=(), max_length=MAX_NAMES)
    """Endpoints of the peers to subscribe to."""
    hub: Hub | None = None
    """Through a hub instead: both sockets connect to it."""
    curve: Curve | None = None
    """Encryption, and who may connect."""
    hwm: int | None = Field(default=None, ge=16, le=1_000_000)
    """Messages that ZeroMQ holds for each peer; more are lost, and show as gaps."""


class StreamOptions(Section):
    """Keys of a transport of type tcp or quic besides the common ones."""

    insecure: bool = False
    """tcp: allow cleartext, on loopback only. Any local user can then write here."""
    subscribe: bool = False
    """Ask the `peers` for their stream too, on the connections that this node opens: for who cannot be connected to."""


OPTIONS: Mapping[str, type[Section]] = {
    "udp": UdpOptions,
    "multicast": MulticastOptions,
    "mqtt": MqttOptions,
    "zeromq": ZeromqOptions,
    "tcp": StreamOptions,
    "tls": StreamOptions,
    "quic": StreamOptions,
}
"""Type of this project -> the keys it adds. Those of other types are theirs to check."""
