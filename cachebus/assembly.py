"""Configuration to parts: each section becomes the settings that its part takes. Starts nothing.

The only place that knows both the configuration's models and the parts' settings, so that neither knows the other.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from ipaddress import ip_network
from pathlib import Path

from cachebus import __version__, registry
from cachebus import config as configuration
from cachebus.answer import Evidence
from cachebus.config import Config, models
from cachebus.config.shim import Shim, Upstream
from cachebus.config.shim import Shim as ShimSection
from cachebus.config.shim_listen import Ddr
from cachebus.config.shim_local import ListError
from cachebus.config.shim_swild import Swild
from cachebus.errors import ConfigError, FrameError
from cachebus.filters.cached import CacheJudge
from cachebus.filters.chain import DEFAULT_SWILD
from cachebus.filters.noise import Noise, NoiseSettings
from cachebus.filters.policy import Policy, PolicySettings
from cachebus.filters.settings import JudgeSettings, Pairing, ResolverFrames
from cachebus.filters.trust import DirectJudge, DnstapJudge, IsFilled
from cachebus.holdings import Holdings
from cachebus.links import Owner, certificates, levels, make_codec, make_transport
from cachebus.ports import Clock, Sink, Source
from cachebus.presentation import name_from_text
from cachebus.shim.block_lists import Action
from cachebus.shim.block_lists import Format as ListFormat
from cachebus.shim.caching import CachingSettings, FailureSettings, StaleSettings, SubnetSettings, TtlSettings
from cachebus.shim.chaos import ChaosSettings
from cachebus.shim.cookies import CookieSettings
from cachebus.shim.encrypted import DdrSettings, EncryptedSettings
from cachebus.shim.front import FrontSettings
from cachebus.shim.limits import RateLimit
from cachebus.shim.local_settings import BlockList, LocalSettings
from cachebus.shim.query import Channel, Ede
from cachebus.shim.settings import LOOPBACK, Choice, ShimSettings, UpstreamSettings
from cachebus.shim.swild_owners import Include, SwildSettings
from cachebus.shim.tls import ServerCertificate
from cachebus.shim.worker import Plan
from cachebus.sinks.callback import CallbackSink
from cachebus.sinks.unbound import DEFAULT_RATE, Refill, UnboundSink
from cachebus.snapshot.service import SnapshotSettings
from cachebus.sources.access import ListenSettings, server_context
from cachebus.sources.file import FileSettings, FileSource, Format, recognise
from cachebus.sources.listen import DnstapSource, StreamSource
from cachebus.sources.unbound_cache import CacheSettings, ReadAlready, UnboundCacheSource
from cachebus.unbound.control import ControlTls
from cachebus.wire.tsig import Key

_log = logging.getLogger(__name__)
_ERRORS = {ListError.BLOCKED: Ede.BLOCKED, ListError.CENSORED: Ede.CENSORED, ListError.FILTERED: Ede.FILTERED}
OnHeld = Callable[[bytes, int, float, bool], None]
Deliver = Callable[[bytes, float], None]
Judge = DnstapJudge | DirectJudge | CacheJudge


@dataclass(frozen=True, slots=True)
class Intake:
    """A source with the judge of its frames."""

    name: str
    source: Source
    judge: Judge


def load(path: Path) -> Config:
    """Read and check a configuration, as far as the installed transports know whether it is right, too.

    Raises `ConfigError`.
    """
    return configuration.load(
        path, transport_types=tuple(registry.installed_transports()), try_transport=_try_transport
    )


def _try_transport(config: Config, name: str) -> None:
    section, owner = config.transports[name], make_owner(config)
    codec = make_codec(name, section, owner, start=None)
    make_transport(name, section, owner, codec, lambda data, sender: None)


def make_policy(share: models.Share) -> Policy:
    """The share and accept policy."""
    return Policy(
        PolicySettings(
            min_ttl=share.min_ttl,
            max_ttl=share.max_ttl,
            private_names=share.private_names is models.PrivateNames.ALLOW,
            infrastructure=share.infrastructure,
            allow=frozenset(share.allow),
            deny=frozenset(share.deny),
        )
    )


def make_noise(share: models.Share, started: float) -> Noise:
    """Noise control. `started`: when the node did."""
    settings = NoiseSettings(
        second_sighting=share.second_sighting,
        damping=share.damping,
        node_rate=share.rate.node,
        zone_rate=share.rate.zone,
    )
    return Noise(settings, started=started)


def make_judge_settings(config: Config, name: str, source: models.Source) -> JudgeSettings:
    """The rules of evidence of one source."""
    settings = JudgeSettings(
        name=name,
        node=config.node,
        trust=frozenset(source.trust),
        claims=getattr(source, "claims", None) or Evidence.CONFIRMED,
        validating=source.validating,
        infrastructure=config.share.infrastructure,
        max_ttl=config.share.max_ttl,
        swild=swild_type(config),
    )
    if not isinstance(source, models.DnstapEvidence):
        return settings
    without = source.resolver_frames is models.ResolverFrames.NONE
    return replace(
        settings,
        pairing=Pairing(source.pairing.value),
        evidence_window=source.evidence_window,
        resolver_frames=ResolverFrames.NONE if without else ResolverFrames.NORMAL,
        stale_ttl=source.stale_ttl,
        trusted_forwarders=tuple(ip_network(text) for text in source.trusted_forwarders),
    )


def make_intake(
    config: Config,
    name: str,
    on_answers: Callable[[Judge], Deliver],
    clock: Clock,
    *,
    on_held: OnHeld,
    is_filled: IsFilled | None,
    previous: Judge | None = None,
) -> Intake:
    """One source with its judge. `on_answers` gives what the source calls for each frame.

    `previous`: the judge of that source until now. It goes on, with the evidence that waits, where its rules are the
    same; under other rules all evidence is gathered anew.
    """
    source = config.sources[name]
    settings = make_judge_settings(config, name, source)
    if isinstance(source, models.UnboundCacheSource):
        return _make_cache_intake(config, name, source, on_answers, clock, on_held=on_held, previous=previous)
    kind = _format(source) if isinstance(source, models.FileSource) else None
    judge: Judge
    if isinstance(source, models.DnstapSource) or (kind is not None and kind.is_dnstap):
        judge = DnstapJudge(settings, on_held=on_held, is_filled=is_filled)
    else:
        judge = DirectJudge(settings)
    if previous is not None and judge.judges_as(previous):
        judge = previous
    if isinstance(source, models.FileSource) and kind is not None:
        file = FileSettings(name=name, path=source.path, format=kind)
        return Intake(name, FileSource(file, on_answers(judge), clock), judge)
    assert not isinstance(source, models.FileSource)
    listen = ListenSettings(
        name=name,
        listen=source.listen,
        allow_uids=frozenset(source.allow_uids),
        insecure=source.insecure,
        tls=None if source.tls is None else server_context(source.tls.cert, source.tls.key, source.tls.ca),
    )
    if isinstance(source, models.DnstapSource):
        return Intake(name, DnstapSource(listen, on_answers(judge), clock), judge)
    return Intake(name, StreamSource(listen, on_answers(judge), clock), judge)


def _make_cache_intake(
    config: Config,
    name: str,
    source: models.UnboundCacheSource,
    on_answers: Callable[[Judge], Deliver],
    clock: Clock,
    *,
    on_held: OnHeld,
    previous: Judge | None,
) -> Intake:
    """A cache that is read once: a reload does not read it again."""
    judge = CacheJudge(make_judge_settings(config, name, source), min_ttl=config.share.min_ttl, on_held=on_held)
    if isinstance(previous, CacheJudge):
        judge.finished = previous.finished
        if judge.judges_as(previous):
            judge = previous
    if judge.finished:
        return Intake(name, ReadAlready(), judge)
    settings = CacheSettings(
        name=name,
        control=str(source.control),
        tls=_control_tls(source.tls),
        rate=source.rate,
        max_bytes=source.max_bytes,
    )
    return Intake(name, UnboundCacheSource(settings, on_answers(judge), clock, finished=judge.finish), judge)


def _control_tls(tls: models.ControlTls | None) -> ControlTls | None:
    return None if tls is None else ControlTls(server_cert=tls.ca, key=tls.key, cert=tls.cert)


def _format(source: models.FileSource) -> Format:
    if source.format is not models.FileFormat.AUTO:
        return Format(source.format.value)
    try:
        return recognise(source.path)
    except FrameError as error:
        raise ConfigError(str(error)) from error


def make_key(name: str, key: models.Key) -> Key:
    """A TSIG key with what its holder may claim."""
    return Key.make(
        name,
        key.algorithm.value,
        key.secret_bytes(),
        origins=key.origins or (),
        max_evidence=key.max_evidence,
        evidence=key.evidence,
    )


def make_owner(config: Config) -> Owner:
    """On whose behalf a node's links are made."""
    return Owner(
        node=config.node,
        cluster=config.cluster,
        keys={name: make_key(name, key) for name, key in config.keys.items()},
        max_ttl=config.share.max_ttl,
        infrastructure=config.share.infrastructure,
        policy_hash=policy_hash(config),
    )


def policy_hash(config: Config) -> str:
    """Hash of the settings that the draft wants alike in a network: what is trusted, what of private names, which type
    SWILD is. Whether a node makes anything of a SWILD is its own affair.

    Only compared, so its first 64 bits are enough.
    """
    trusted = sorted({level for source in config.sources.values() for level in source.trust})
    words = [
        f"trust {' '.join(level.text for level in trusted)}",
        f"private_names {config.share.private_names.value}",
        f"swild {swild_type(config)}",
    ]
    return sha256("\n".join(words).encode()).hexdigest()[:16]


def make_sink(name: str, sink: models.Sink, *, refill: Refill, holdings: Holdings, clock: Clock) -> Sink | None:
    """One sink; None for the node's own cache, which needs no part."""
    match sink:
        case models.UnboundSink():
            return UnboundSink(
                name=name,
                control=str(sink.control),
                clock=clock,
                holdings=holdings,
                refill=refill,
                tls=_control_tls(sink.tls),
                rate=sink.rate or DEFAULT_RATE,
            )
        case models.CallbackSink():
            return CallbackSink(name=name, callback=sink.function)
        case models.CacheSink():
            return None


def levels_taken(config: Config) -> frozenset[Evidence]:
    """The levels that some transport takes, and so those of a copy: all where there is no transport."""
    lowest = [section.accept.minimum_evidence for section in config.transports.values()]
    return levels(min(lowest, default=min(Evidence)))


def make_snapshot_settings(config: Config) -> SnapshotSettings:
    """How copies of the cache are given and taken. Raises `ConfigError` for certificates that cannot be used."""
    section = config.snapshot
    return SnapshotSettings(
        listen=None if section.listen is None else (section.listen.host, section.listen.port),
        peers=tuple((peer.host, peer.port) for peer in section.peers),
        tls=certificates(section.tls),
        max_entries=section.max_entries,
        rate=section.rate,
        zstd=section.zstd,
    )


def swild_type(config: Config) -> int:
    """The type code of SWILD, for every part of the node; the default where there is no shim."""
    return DEFAULT_SWILD if config.shim is None else config.shim.swild.type


def make_swild_settings(section: Swild) -> SwildSettings:
    """The shim's `swild` section."""
    return SwildSettings(
        type=section.type,
        zones=frozenset(section.zones),
        ttl_cap=section.ttl_cap,
        include=Include(section.include.value),
        discover=section.discover,
    )


def make_shim_settings(config: Config, cookies: CookieSettings | None = None) -> ShimSettings | None:
    """What the shim takes; None without a `shim` section.

    `cookies`: those whose seed goes on, so that a reload, and every worker, makes the cookies that clients have.
    """
    shim = config.shim
    if shim is None:
        return None
    return ShimSettings(
        node=config.node,
        listen=tuple((address.host, address.port) for address in shim.listen),
        upstreams=tuple(make_upstream(upstream) for upstream in shim.upstreams),
        choice=Choice(shim.upstream_choice.value),
        allow=LOOPBACK if shim.allow is None else tuple(shim.allow),
        max_tcp_connections=shim.max_tcp_connections,
        max_in_flight=shim.max_in_flight,
        timeout=shim.timeout,
        refresh=bool(config.transports) if shim.prefetch is None else shim.prefetch,
        swild=make_swild_settings(shim.swild),
        infrastructure=config.share.infrastructure,
        max_ttl=config.share.max_ttl,
        local=make_local_settings(shim),
        caching=make_caching(shim),
        front=_make_front(config, shim, cookies or CookieSettings()),
        max_connections_per_client=shim.max_connections_per_client,
        encrypted=make_encrypted_settings(shim),
        workers=shim.workers,
    )


def make_upstream(upstream: Upstream) -> UpstreamSettings:
    """What the shim has to know of one server. Raises `ConfigError` when its `ca` cannot be used."""
    endpoint, https = upstream.endpoint, upstream.https
    context = None
    if upstream.ca is not None:
        try:
            context = ssl.create_default_context(cafile=upstream.ca)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            raise ConfigError(f"{upstream.ca} holds no certificates: {error}") from error
    return UpstreamSettings(
        address=(endpoint.host, endpoint.port),
        validating=upstream.validating,
        authoritative=upstream.authoritative,
        tls_name=upstream.server_name,
        https=None if https is None else (https.authority, https.path),
        tls=context,
    )


def make_local_settings(shim: Shim) -> LocalSettings:
    """What the shim answers by itself."""
    local = shim.local_data
    return LocalSettings(
        records=local.records,
        hosts=local.hosts,
        ttl=local.ttl,
        special_names=local.special_names,
        lists=tuple(
            BlockList(
                name=name,
                path=each.file,
                format=ListFormat(each.format.value),
                action=Action(each.action.value),
                error=_ERRORS[each.error],
                ttl=each.ttl,
            )
            for name, each in shim.block_lists.items()
        ),
    )


def make_caching(shim: Shim) -> CachingSettings:
    """What the shim keeps for how long."""
    stale, failures, ttl, ecs = shim.serve_stale, shim.failures, shim.ttl, shim.ecs
    remembered = FailureSettings(most=0) if failures is None else FailureSettings(first=failures.min, most=failures.max)
    return CachingSettings(
        ttl=TtlSettings(minimum=ttl.min, maximum=ttl.max, negative=ttl.negative),
        failures=remembered,
        stale=None if stale is None else StaleSettings(**stale.model_dump()),
        subnet=SubnetSettings(
            send=ecs.send, ipv4=ecs.ipv4, ipv6=ecs.ipv6, networks=ecs.networks, zones=ecs.zones or (b"\0",)
        ),
    )


def _make_front(config: Config, shim: ShimSection, cookies: CookieSettings) -> FrontSettings:
    """What the shim's clients meet."""
    limit, chaos = shim.rate_limit, shim.chaos
    return FrontSettings(
        deny=shim.deny,
        cookies=replace(cookies, secrets=shim.cookies.secrets) if shim.cookies.enabled else None,
        padding=shim.padding,
        rate_limit=None
        if limit is None or not limit.enabled
        else RateLimit(
            rate=limit.rate,
            burst=limit.burst,
            verified=limit.verified,
            slip=limit.slip,
            ipv4_prefix=limit.ipv4_prefix,
            ipv6_prefix=limit.ipv6_prefix,
            exempt=LOOPBACK if limit.exempt is None else limit.exempt,
        ),
        chaos=None
        if chaos is None or not chaos.enabled
        else ChaosSettings(
            version=f"cachebus {__version__}" if chaos.version is None else chaos.version,
            hostname=config.node if chaos.hostname is None else chaos.hostname,
        ),
        minimal=shim.minimal,
        rotate=shim.rotate,
    )


def make_encrypted_settings(shim: ShimSection) -> EncryptedSettings:
    """The encrypted listeners. Raises `ConfigError` for a certificate that cannot be used."""
    if shim.tls is None:
        return EncryptedSettings(https_path=shim.https_path)
    certificate = ServerCertificate(shim.tls.cert, shim.tls.key)
    section = shim.ddr if isinstance(shim.ddr, Ddr) else Ddr()
    host = certificate.host()
    name = section.name or (None if host is None else name_from_text(host))
    if name is None and shim.ddr is not False:
        _log.warning("shim: the certificate names no host, so clients are told of no encrypted listener: set ddr.name")
    return EncryptedSettings(
        tls=tuple((address.host, address.port) for address in shim.listen_tls),
        https=tuple((address.host, address.port) for address in shim.listen_https),
        quic=tuple((address.host, address.port) for address in shim.listen_quic),
        certificate=certificate,
        https_path=shim.https_path,
        ddr=None if name is None or shim.ddr is False else DdrSettings(name=name, addresses=section.addresses),
    )


def make_worker_plan(config: Config, settings: ShimSettings) -> Plan:
    """What a worker process is told when it starts."""
    encrypted = settings.encrypted
    return Plan(
        node=config.node,
        settings=partial(_settings_again, config, settings.front.cookies),
        listen=settings.listen,
        encrypted={Channel.TLS: encrypted.tls, Channel.HTTPS: encrypted.https, Channel.QUIC: encrypted.quic},
        max_entries=config.cache.max_entries,
        max_bytes=config.cache.max_bytes,
    )


def _settings_again(config: Config, cookies: CookieSettings | None) -> ShimSettings:
    settings = make_shim_settings(config, cookies)
    assert settings is not None
    return settings
