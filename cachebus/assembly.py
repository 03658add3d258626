"""Configuration to parts: each section becomes the settings that its part takes. Starts nothing.

The only place that knows both the configuration's models and the parts' settings, so that neither knows the other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from ipaddress import ip_network

from cachebus.answer import Evidence
from cachebus.codecs.dns import DnsCodec, DnsCodecSettings, QuestionMode
from cachebus.config import Config, models, transports
from cachebus.errors import ConfigError, FrameError
from cachebus.filters.noise import Noise, NoiseSettings
from cachebus.filters.policy import Policy, PolicySettings
from cachebus.filters.settings import JudgeSettings, Pairing, ResolverFrames
from cachebus.filters.trust import DirectJudge, DnstapJudge, IsFilled
from cachebus.holdings import Holdings
from cachebus.ports import Clock, Receive, Sink, Source, Transport, TransportSettings
from cachebus.registry import load_transport
from cachebus.shim.settings import LOOPBACK, ShimSettings, UpstreamSettings
from cachebus.sinks.callback import CallbackSink
from cachebus.sinks.unbound import DEFAULT_RATE, Refill, UnboundSink
from cachebus.sinks.unbound_control import ControlTls
from cachebus.sources.access import ListenSettings, server_context
from cachebus.sources.file import FileSettings, FileSource, Format, recognise
from cachebus.sources.listen import DnstapSource, StreamSource
from cachebus.wire.tsig import Key

OnHeld = Callable[[bytes, int, float, bool], None]
Deliver = Callable[[bytes, float], None]


@dataclass(frozen=True, slots=True)
class Intake:
    """A source with the judge of its frames."""

    name: str
    source: Source
    judge: DnstapJudge | DirectJudge


def levels(lowest: Evidence) -> frozenset[Evidence]:
    """A level and everything stronger."""
    return frozenset(level for level in Evidence if level >= lowest)


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
    on_answers: Callable[[DnstapJudge | DirectJudge], Deliver],
    clock: Clock,
    *,
    on_held: OnHeld,
    is_filled: IsFilled | None,
    previous: DnstapJudge | DirectJudge | None = None,
) -> Intake:
    """One source with its judge. `on_answers` gives what the source calls for each frame.

    `previous`: the judge of that source until now. It goes on, with the evidence that waits, where its rules are the
    same; under other rules all evidence is gathered anew.
    """
    source = config.sources[name]
    settings = make_judge_settings(config, name, source)
    kind = _format(source) if isinstance(source, models.FileSource) else None
    judge: DnstapJudge | DirectJudge
    if isinstance(source, models.DnstapSource) or kind is Format.DNSTAP:
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


def make_codec(config: Config, name: str, *, start: float | None) -> DnsCodec:
    """The codec of one transport."""
    transport = config.transports[name]
    keys = [make_key(key, config.keys[key]) for key in transport.accepted_keys]
    return DnsCodec(
        DnsCodecSettings(
            transport=name,
            key=keys[0],
            more_keys=tuple(keys[1:]),
            question=QuestionMode(transport.question.value),
            max_message=transport.longest,
            max_ttl=config.share.max_ttl,
            infrastructure=config.share.infrastructure,
            accept=levels(transport.accept.minimum_evidence),
        ),
        start=start,
    )


def make_transport(config: Config, name: str, receive: Receive) -> Transport:
    """One transport, found by its type among the installed ones."""
    transport = config.transports[name]
    settings = TransportSettings(
        name=name,
        node=config.node,
        cluster=config.cluster,
        listen=transport.listen,
        peers=transport.peers,
        url=transport.url,
        options=transport.options,
    )
    return load_transport(transport.type)(settings, receive)


def sends(transport: transports.Transport) -> bool:
    """Whether a transport has a key to sign with and somebody to send to."""
    return transport.key is not None and bool(transport.peers or transport.type != "udp")


def make_sink(name: str, sink: models.Sink, *, refill: Refill, holdings: Holdings, clock: Clock) -> Sink | None:
    """One sink; None for the node's own cache, which needs no part."""
    match sink:
        case models.UnboundSink():
            tls = (
                None if sink.tls is None else ControlTls(server_cert=sink.tls.ca, key=sink.tls.key, cert=sink.tls.cert)
            )
            return UnboundSink(
                name=name,
                control=str(sink.control),
                clock=clock,
                holdings=holdings,
                refill=refill,
                tls=tls,
                rate=sink.rate or DEFAULT_RATE,
            )
        case models.CallbackSink():
            return CallbackSink(name=name, callback=sink.function)
        case models.CacheSink():
            return None


def make_shim_settings(config: Config) -> ShimSettings | None:
    """What the shim takes; None without a `shim` section."""
    shim = config.shim
    if shim is None:
        return None
    return ShimSettings(
        node=config.node,
        listen=tuple((address.host, address.port) for address in shim.listen),
        upstreams=tuple(
            UpstreamSettings(
                address=(upstream.endpoint.host, upstream.endpoint.port),
                validating=upstream.validating,
                authoritative=upstream.authoritative,
                tls_name=upstream.tls_name,
            )
            for upstream in shim.upstreams
        ),
        allow=LOOPBACK if shim.allow is None else tuple(shim.allow),
        max_tcp_connections=shim.max_tcp_connections,
        max_in_flight=shim.max_in_flight,
        timeout=shim.timeout,
        refresh=bool(config.transports),
        infrastructure=config.share.infrastructure,
        max_ttl=config.share.max_ttl,
    )
