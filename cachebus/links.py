"""A transport's section of the configuration to its codec and its transport.

The one place where they are made, for the node, the commands and custom tools alike. Knows what each codec and each
kind of link has to be told, and starts nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cachebus.answer import Evidence
from cachebus.codecs.batch import BatchCodec, BatchCodecSettings
from cachebus.codecs.cdns import FLUSH_COUNT, CdnsCodec, CdnsCodecSettings, Peer
from cachebus.codecs.dns import DnsCodec, DnsCodecSettings, QuestionMode
from cachebus.config.transports import DATAGRAM_FLUSH, DATAGRAM_TYPES, CodecName, Transport, TransportTls
from cachebus.filters.chain import DEFAULT_MAX_TTL
from cachebus.outlet import Collect
from cachebus.ports import Codec, Receive, TransportSettings
from cachebus.ports import Transport as RunningTransport
from cachebus.registry import load_transport
from cachebus.tls import CertificateFiles
from cachebus.wire.tsig import Key

BATCH_COUNT = 64
"""Answers of a batch: the MAC and the system call are a small part of its cost by then."""
COLLECT_OCTETS = 48 * 1024
"""Bytes of answers that are sent without waiting: what fits a message of the usual limit for certain."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """On whose behalf a link is made: the node's, or that of a command."""

    node: str
    cluster: str
    keys: Mapping[str, Key] = field(default_factory=dict)
    """By the name that the section uses."""
    max_ttl: int = DEFAULT_MAX_TTL
    infrastructure: bool = False
    policy_hash: str = ""
    """Of the settings that peers compare; empty: not said."""


def levels(lowest: Evidence) -> frozenset[Evidence]:
    """A level and everything stronger."""
    return frozenset(level for level in Evidence if level >= lowest)


def make_codec(name: str, section: Transport, owner: Owner, *, start: float | None) -> Codec:
    """The codec of a transport. `start`: when the process began to listen; None takes what was said at any time.

    Raises `ConfigError` for limits that the codec refuses.
    """
    cluster = section.cluster or owner.cluster
    accept = levels(section.accept.minimum_evidence)
    if section.codec_name is CodecName.CDNS:
        return CdnsCodec(
            CdnsCodecSettings(
                node=owner.node,
                cluster=cluster,
                transport=name,
                peers={} if section.tls is None else certificate_peers(section.tls),
                insecure_link=section.tls is None,
                max_message=section.longest,
                max_ttl=owner.max_ttl,
                infrastructure=owner.infrastructure,
                accept=accept,
                policy_hash=owner.policy_hash,
            ),
            start=start,
        )
    key, *more_keys = (owner.keys[name] for name in section.accepted_keys)
    if section.codec_name is CodecName.BATCH:
        return BatchCodec(
            BatchCodecSettings(
                node=owner.node,
                cluster=cluster,
                transport=name,
                key=key,
                more_keys=tuple(more_keys),
                max_message=section.longest,
                max_ttl=owner.max_ttl,
                infrastructure=owner.infrastructure,
                accept=accept,
                zstd=section.zstd,
                policy_hash=owner.policy_hash,
            ),
            start=start,
        )
    return DnsCodec(
        DnsCodecSettings(
            transport=name,
            key=key,
            more_keys=tuple(more_keys),
            question=QuestionMode(section.question.value),
            max_message=section.longest,
            max_ttl=owner.max_ttl,
            infrastructure=owner.infrastructure,
            accept=accept,
        ),
        start=start,
    )


def certificate_peers(tls: TransportTls) -> dict[str, Peer]:
    """What the holders of the peers' certificates may claim, by the certificates' names in lower case."""
    return {
        name.lower(): Peer(frozenset(peer.origins or (name.lower().partition(".")[0],)), peer.max_evidence)
        for name, peer in tls.peers.items()
    }


def certificates(tls: TransportTls | None) -> CertificateFiles | None:
    """A link's certificates. Raises `ConfigError` when they cannot be used."""
    return None if tls is None else CertificateFiles(ca=tls.ca, cert=tls.cert, key=tls.key, peers=tls.peers)


def make_copy_codec(
    owner: Owner, tls: TransportTls | None, accept: frozenset[Evidence] = frozenset(Evidence), *, insecure: bool = False
) -> CdnsCodec:
    """The codec of copies of a cache: answers of any origin, learned at any time."""
    settings = CdnsCodecSettings(
        node=owner.node,
        cluster=owner.cluster,
        transport="snapshot",
        peers={} if tls is None else certificate_peers(tls),
        insecure_link=tls is None and insecure,
        max_ttl=owner.max_ttl,
        infrastructure=owner.infrastructure,
        accept=accept,
        snapshot=True,
    )
    return CdnsCodec(settings, start=None)


def make_transport(name: str, section: Transport, owner: Owner, codec: Codec, receive: Receive) -> RunningTransport:
    """A transport, found by its type among the installed ones.

    Raises `ConfigError` when it does not understand its section, `TransportUnavailable` when it cannot be imported.
    """
    options = dict(section.options)
    if section.zstd and section.codec_name is CodecName.CDNS:
        options["zstd"] = True
    settings = TransportSettings(
        name=name,
        node=owner.node,
        cluster=section.cluster or owner.cluster,
        listen=section.listen,
        peers=section.peers,
        url=section.url,
        tls=certificates(section.tls),
        framing=codec.framing,
        will=codec.will(),
        options=options,
    )
    return load_transport(section.type)(settings, receive)


def make_collect(section: Transport) -> Collect | None:
    """How answers wait for company before they are sent; None for a codec that sends them one by one."""
    if section.codec_name is CodecName.DNS:
        return None
    flush = section.flush
    usual = FLUSH_COUNT if section.codec_name is CodecName.CDNS else BATCH_COUNT
    if section.type in DATAGRAM_TYPES:
        usual = DATAGRAM_FLUSH
    return Collect(count=flush.count or usual, octets=flush.bytes or COLLECT_OCTETS, interval=flush.interval)


def sends(section: Transport) -> bool:
    """Whether a transport has something to sign with and somebody to send to."""
    if section.codec_name is CodecName.CDNS:
        return bool(section.peers) or section.listen is not None  # whoever connects may subscribe
    if section.key is None:
        return False
    if section.type == "zeromq":
        return bool(section.options.get("bind") or section.options.get("hub"))
    return bool(section.peers) or section.type not in ("udp", "tcp", "tls", "quic")
