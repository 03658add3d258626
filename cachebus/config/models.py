"""The configuration's sections as frozen models: which keys there are, what each takes, and its default.

Knows one section at a time; what ties sections together is in `checks`. The docstring under a field is its description
in the JSON schema and in the configuration reference.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr, SecretStr, model_validator

from cachebus.answer import Evidence
from cachebus.config.keyfile import DIGEST_BYTES
from cachebus.config.problems import Problem
from cachebus.config.section import MAX_NAMES, Section
from cachebus.config.shim import Shim
from cachebus.config.transports import Transport, TransportTls
from cachebus.config.values import (
    Duration,
    Endpoint,
    File,
    Label,
    Level,
    Levels,
    ListenAddress,
    Name,
    Network,
    Seconds,
    Size,
    UnixPath,
)

DEFAULT_TRUST = (Evidence.CONFIRMED, Evidence.VALIDATED)
"""What a dnstap or direct source shares unless told otherwise (trust rules, section 2)."""
STALE_TTL = 30
"""Seconds: the TTL that serve-stale answers carry (RFC 8767 section 4)."""


class Algorithm(Enum):
    """TSIG algorithms (RFC 8945 section 6)."""

    HMAC_SHA256 = "hmac-sha256"
    HMAC_SHA384 = "hmac-sha384"
    HMAC_SHA512 = "hmac-sha512"


class Pairing(Enum):
    """Whether a RESOLVER_RESPONSE needs its RESOLVER_QUERY."""

    REQUIRE = "require"
    OFF = "off"


class ResolverFrames(Enum):
    """Whether a resolver's dnstap has RESOLVER_* frames."""

    NORMAL = "normal"
    NONE = "none"


class FileFormat(Enum):
    """What a capture file holds."""

    AUTO = "auto"
    DNSTAP = "dnstap"
    WIRE = "wire"
    CDNS = "cdns"


class PrivateNames(Enum):
    """What becomes of special-use names and private addresses."""

    NEVER = "never"
    ALLOW = "allow"


class Key(Section):
    """A TSIG key: what it signs with, and what it may claim."""

    algorithm: Algorithm = Algorithm.HMAC_SHA256
    """TSIG algorithm (RFC 8945); a key file's own must agree."""
    secret: SecretStr
    """`file:PATH` of a key file (mode 0600, NAME:ALG:BASE64), `env:VAR`, or the base64 itself."""
    origins: tuple[Label, ...] | None = Field(default=None, max_length=MAX_NAMES)
    """Names of the nodes that sign with this key, best exactly one. Without it an origin is shown as unverified."""
    max_evidence: Level = Evidence.VALIDATED
    """The strongest level that a message under this key may claim."""
    evidence: Level = Evidence.AUTHORITATIVE
    """The level of a message that does not say (AD=0)."""

    _name: bytes = PrivateAttr(default=b"")
    _secret: bytes = PrivateAttr(default=b"")

    def secret_bytes(self) -> bytes:
        """Give the shared secret, read from where `secret` points when the configuration was loaded."""
        return self._secret

    @property
    def name(self) -> bytes:
        """The key's name in lower-case wire form, as TSIG carries it."""
        return self._name


class ServerTls(Section):
    """TLS for a listening socket: its certificate, and who may connect."""

    cert: File
    """PEM file: certificate chain of this end."""
    key: File
    """PEM file: private key of `cert`; not open to group or others."""
    ca: File
    """PEM file: certificates that sign the other end's certificate; one is always demanded."""


class DnstapEvidence(Section):
    """How dnstap frames become evidence."""

    trust: Levels = DEFAULT_TRUST
    """Levels that may be shared from here: authoritative, confirmed, validated. A level includes the stronger ones."""
    pairing: Pairing = Pairing.REQUIRE
    """`require`: a response counts only with its query. `off` where the resolver does not log RESOLVER_QUERY."""
    evidence_window: Duration = Field(default=10.0, ge=0.1, le=300)
    """How long a response waits for its query and for a client's confirmation: 0.1 to 300 seconds."""
    resolver_frames: ResolverFrames = ResolverFrames.NORMAL
    """`none` for resolvers that log no RESOLVER_* frames (Knot Resolver, dnsdist, CoreDNS)."""
    stale_ttl: Seconds = Field(default=STALE_TTL, ge=0, le=86400)
    """With `resolver_frames: none`: an answer whose TTL is not above this may be stale, and is refused."""
    validating: bool = False
    """The resolver validates DNSSEC, so an unsigned answer of it was found insecure, not merely unchecked."""
    trusted_forwarders: tuple[Network, ...] = Field(default=(), max_length=MAX_NAMES)
    """Addresses or networks of forwarders whose answers count when a client's answer confirms them."""

    @property
    def minimum_evidence(self) -> Evidence:
        """The weakest level that may be shared."""
        return min(self.trust)


class Listening(Section):
    """A socket that takes a resolver's output. Whoever can write to it can write to every cache of the cluster."""

    listen: Endpoint
    """`unix:/absolute/path` (mode 0660), or ADDRESS:PORT."""
    allow_uids: tuple[Annotated[int, Field(ge=0, le=2**32 - 2)], ...] = Field(default=(), max_length=MAX_NAMES)
    """User ids that may connect to the unix socket, besides root and cachebus's own."""
    insecure: bool = False
    """Allow TCP on loopback without TLS: any local user can then write to it."""
    tls: ServerTls | None = None
    """TLS with client certificates; beyond loopback TCP needs it."""


class DnstapSource(DnstapEvidence, Listening):
    """A resolver's dnstap, over Frame Streams."""

    type: Literal["dnstap"]
    """`dnstap`, which tells this kind from the others."""


class StreamSource(Listening):
    """A resolver's own output: DNS messages, each after its length as u32."""

    type: Literal["stream"]
    """`stream`, which tells this kind from the others."""
    claims: Level
    """What a message says about itself: `confirmed` when each is the resolver's finished answer, `validated` when its
    AD bit may be believed too, `authoritative` otherwise."""
    trust: Levels = DEFAULT_TRUST
    """Levels that may be shared from here. A level includes the stronger ones."""
    validating: bool = False
    """The resolver validates DNSSEC, so an unsigned answer of it was found insecure, not merely unchecked."""

    @property
    def minimum_evidence(self) -> Evidence:
        """The weakest level that may be shared."""
        return min(self.trust)


class FileSource(DnstapEvidence):
    """A capture, read once at the start."""

    type: Literal["file"]
    """`file`, which tells this kind from the others."""
    path: File
    """The file; relative to the configuration's directory."""
    format: FileFormat = FileFormat.AUTO
    """`dnstap`, `wire` (u32 length and message), `cdns` (RFC 8618), or `auto`: by its content."""
    claims: Level | None = None
    """For a `wire` file: what its messages say about themselves, see `stream`."""


class ControlTls(Section):
    """The files of `unbound-control-setup`."""

    cert: File
    """PEM file: unbound_control.pem."""
    key: File
    """PEM file: unbound_control.key."""
    ca: File
    """PEM file: unbound_server.pem."""


class UnboundCacheSource(Section):
    """The cache of an Unbound that is already warm, read once at the start (`dump_cache`)."""

    type: Literal["unbound-cache"]
    """`unbound-cache`, which tells this kind from the others."""
    control: Endpoint
    """`unix:PATH` or ADDRESS:PORT of its control-interface."""
    tls: ControlTls | None = None
    """Certificates for a control-interface over TCP."""
    rate: int = Field(default=500, ge=1, le=10_000)
    """Most answers per second that are taken from what was read."""
    max_bytes: Size = Field(default=128 * 1024 * 1024, ge=1024 * 1024, le=1024 * 1024 * 1024)
    """Most memory for what was read; what is beyond it is left out and counted."""
    trust: Levels = DEFAULT_TRUST
    """Levels that may be shared from here. A level includes the stronger ones."""
    validating: bool = False
    """The resolver validates DNSSEC, so what it found insecure may be filled as such elsewhere."""

    @property
    def minimum_evidence(self) -> Evidence:
        """The weakest level that may be shared."""
        return min(self.trust)


Source = Annotated[DnstapSource | StreamSource | FileSource | UnboundCacheSource, Field(discriminator="type")]


class CacheSink(Section):
    """The node's own cache, which the shim answers from. It exists without being named here."""

    type: Literal["cache"]
    """`cache`, which tells this kind from the others."""


class UnboundSink(Section):
    """An Unbound, filled through its control socket (`load_cache`)."""

    type: Literal["unbound"]
    """`unbound`, which tells this kind from the others."""
    control: Endpoint
    """`unix:PATH` or ADDRESS:PORT of its control-interface."""
    tls: ControlTls | None = None
    """Certificates for a control-interface over TCP."""
    rate: int | None = Field(default=None, ge=1, le=10_000)
    """Most answers per second that are written to it; 1000 unless set."""


class CallbackSink(Section):
    """A Python function, called with each answer that was accepted."""

    type: Literal["callback"]
    """`callback`, which tells this kind from the others."""
    function: str = Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$")
    """`package.module:function`: called with each `Answer`; a coroutine function runs on the event loop, any other in a
    thread."""


Sink = Annotated[CacheSink | UnboundSink | CallbackSink, Field(discriminator="type")]


class Rate(Section):
    """Caps on what is sent, in answers per second."""

    node: float | None = Field(default=None, gt=0)
    """For this node in all."""
    zone: float | None = Field(default=None, gt=0)
    """For any one zone."""


class Share(Section):
    """The share policy."""

    min_ttl: Seconds = Field(default=30, ge=0, le=86400)
    """Answers with less left are not worth a message: 0 to 1 day."""
    max_ttl: Seconds = Field(default=86400, ge=1, le=7 * 86400)
    """Longer TTLs are shortened to this: up to 7 days."""
    private_names: PrivateNames = PrivateNames.NEVER
    """`never`: no special-use or locally served names, no private address for a public name."""
    second_sighting: Seconds | None = Field(default=None, ge=1, le=7 * 86400)
    """Share a name only when it is learned a second time within this time; `off` unless set."""
    damping: Seconds | None = Field(default=None, ge=1, le=86400)
    """For this long after the start share a name only when it is learned a second time, as a cold node resolves
    everything anew; `off` unless set."""
    infrastructure: bool = False
    """Share NS, DS, DNSKEY and SOA answers too."""
    allow: tuple[Name, ...] = Field(default=(), max_length=MAX_NAMES)
    """Names at or below which `private_names: never` does not hold, such as a test zone. Restricts nothing else."""
    deny: tuple[Name, ...] = Field(default=(), max_length=MAX_NAMES)
    """Names at or below which nothing is shared or accepted. Wins over everything."""
    rate: Rate = Rate()
    """Caps on what is sent."""

    @model_validator(mode="before")
    @classmethod
    def _off(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        off = [key for key in ("second_sighting", "damping") if str(value.get(key)).lower() in ("off", "false", "no")]
        return {**value, **dict.fromkeys(off)}


class Cache(Section):
    """How much the cache holds."""

    max_entries: int = Field(default=200_000, ge=100, le=50_000_000)
    """Most RRsets."""
    max_bytes: Size = Field(default=128 * 1024 * 1024, ge=1024 * 1024)
    """Most memory for them, by the cache's own account: at least 1 MiB."""


class Admin(Section):
    """The admin API."""

    socket: UnixPath | None = None
    """Unix socket (mode 0660) of the JSON API, which `status`, `lookup`, `why`, `flush` and `snapshot` talk to."""
    http: ListenAddress | None = None
    """ADDRESS:PORT that serves /metrics and /healthz, nothing else."""
    http_beyond_loopback: bool = False
    """Allow `http` on an address that others can reach; it has neither TLS nor passwords."""


class Snapshot(Section):
    """Copies of the cache: for nodes that join, and from a peer when this one does."""

    listen: ListenAddress | None = None
    """ADDRESS:PORT where joining nodes get a copy of this node's cache."""
    peers: tuple[ListenAddress, ...] = Field(default=(), max_length=64)
    """ADDRESS:PORT of the nodes to ask at the start, in this order, until one gave a copy."""
    tls: TransportTls | None = None
    """Certificates, as of a transport of type tcp. `peers` names those who may ask and be asked."""
    insecure: bool = False
    """Allow cleartext, on loopback only. Any local user can then read the cache, or fill it."""
    max_entries: int = Field(default=1_000_000, ge=1, le=50_000_000)
    """Most RRsets given to one node, and taken."""
    rate: int = Field(default=60_000, ge=100, le=10_000_000)
    """Most RRsets given in a second."""
    zstd: bool = False
    """Compress what is given."""


class Config(Section):
    """A node's configuration."""

    node: Label
    """This node's name: unique in its cluster."""
    cluster: Label = "default"
    """The set of nodes that share."""
    keys: Mapping[str, Key] = Field(default_factory=dict, max_length=MAX_NAMES)
    """TSIG keys, by name."""
    sources: Mapping[Label, Source] = Field(default_factory=dict, max_length=MAX_NAMES)
    """Where answers come from."""
    transports: Mapping[Label, Transport] = Field(default_factory=dict, max_length=MAX_NAMES)
    """Links to the peers."""
    sinks: Mapping[Label, Sink] = Field(default_factory=dict, max_length=MAX_NAMES)
    """Where received answers go."""
    share: Share = Share()
    """What may leave this node."""
    cache: Cache = Cache()
    """Bounds of the node's cache."""
    snapshot: Snapshot = Snapshot()
    """Warm start."""
    shim: Shim | None = None
    """cachebus's own DNS server; off unless set."""
    admin: Admin = Admin()
    """How people and monitoring look into the node."""
    state: File | None = None
    """Directory where the node keeps which streams of its peers it has heard, so that none of an earlier one is taken
    after a restart. Unless set, the directory that systemd gives (`StateDirectory=`), else none."""

    _warnings: tuple[Problem, ...] = PrivateAttr(default=())

    @property
    def warnings(self) -> tuple[Problem, ...]:
        """What is allowed but doubtful, with its place."""
        return self._warnings


assert {algorithm.value for algorithm in Algorithm} == set(DIGEST_BYTES)
