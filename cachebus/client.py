"""`cachebus.connect`: the bus for custom tools, over any transport; subscribe to answers, publish some.

Decides who is given what arrived, how much of it waits for a slow reader, and when what is published leaves. What a URL
means is known to `urls`, what is authentic and well-formed to the codec. Applies no share policy: that is a node's.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import time
import weakref
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from cachebus.answer import Answer, Evidence, Refusal
from cachebus.config.keyfile import KeyMaterial, resolve_key
from cachebus.config.tools import Tools
from cachebus.config.transports import CodecName
from cachebus.errors import ConfigError, TransportError
from cachebus.filters.chain import assemble
from cachebus.filters.direct import DirectJudge
from cachebus.filters.settings import JudgeSettings
from cachebus.links import Owner, make_codec, make_collect, make_transport
from cachebus.outlet import Outlet
from cachebus.ports import Clock, Codec, Datagram, Receive, Sender, Transport
from cachebus.presentation import name_to_text
from cachebus.reader import Answers, Batches, Reader, Wanted
from cachebus.subscriber import in_batches
from cachebus.urls import KEY, Beside, Link, Role, Url, make_link, names, parse_url
from cachebus.wire.tsig import Key

if TYPE_CHECKING:
    import dns.message

MAX_WAITING = 10_000
"""Default of `waiting`: answers that wait for one slow reader, some megabytes; beyond it the oldest are missed."""
HELLO_INTERVAL = 30.0
"""Seconds between two hellos of a tool that publishes: half of the age at which a message is too old."""
TICK = 1.0
"""Seconds between two looks at the clock that nobody sets."""
KeyLike = str | KeyMaterial | Key
"""`NAME:ALG:BASE64`, `file:PATH`, `env:VAR`; or a key that was read before, with what its holder may claim."""
Refused = Callable[[Refusal, Sender], None]

_log = logging.getLogger(__name__)


class KeyMissing(ConfigError):  # noqa: N818 - names the state, as those of `errors` do
    """Raised when the codec signs and no key was given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """Everything that has to be known to open a link; made by `plan`."""

    url: Url
    role: Role
    beside: Beside
    keys: tuple[Key, ...]
    node: str
    infrastructure: bool = False

    @property
    def link(self) -> Link:
        """What the URL stands for, host names as they are. Raises `ConfigError` for what contradicts itself."""
        link = make_link(self.url, self.role, self.beside)
        signs = link.section.codec_name is not CodecName.CDNS
        if signs and not self.keys:
            raise KeyMissing("a key is missing: nothing is sent that is not signed, and nothing else is taken")
        return link

    @property
    def key_is_idle(self) -> bool:
        """A key was given, and the codec has no use for it: the link itself authenticates."""
        return bool(self.keys) and self.link.section.codec_name is CodecName.CDNS

    async def resolved(self) -> Link:
        """The same with addresses. Raises `TransportError` when a host has none."""
        addresses = {host: await _resolve(host, self.url.port or 0) for host in names(self.url, self.beside)}
        return make_link(self.url, self.role, self.beside, addresses)

    def make(self, link: Link, receive: Callable[[Codec], Receive]) -> tuple[Codec, Transport]:
        """The codec and the transport of a link. `receive` makes what takes what arrives.

        Raises `ConfigError` when the transport does not understand its settings, `TransportUnavailable`.
        """
        labels = (KEY, *(f"{KEY}-{number}" for number in range(1, len(self.keys))))
        owner = Owner(
            node=self.node,
            cluster=link.cluster,
            keys=dict(zip(labels, self.keys, strict=False)),
            infrastructure=self.infrastructure,
        )
        # For any time of signing: a tool keeps no state, and has no replays to fear from before its start.
        codec = make_codec(self.url.scheme, link.section, owner, start=None)
        return codec, make_transport(self.url.scheme, link.section, owner, codec, receive(codec))


def plan(
    url: str,
    *,
    role: Role,
    beside: Beside,
    key: KeyLike | Sequence[KeyLike] | None,
    node: str | None,
    password: str | None = None,
    infrastructure: bool = False,
) -> Opening:
    """Check what a link was described with. Raises `ConfigError`."""
    given = () if key is None else (key,) if isinstance(key, str | KeyMaterial | Key) else tuple(key)
    keys = tuple(map(_key, given))
    options = dict(beside.options)
    if password is not None:
        options["password"] = _read_password(password)
    beside = replace(beside, options=options, more_keys=max(0, len(keys) - 1))
    opening = Opening(
        url=parse_url(url),
        role=role,
        beside=beside,
        keys=keys,
        node=node or f"cli-{secrets.token_hex(4)}",
        infrastructure=infrastructure,
    )
    opening.link  # noqa: B018 - looked at here because it raises
    return opening


def connect(
    url: str,
    *,
    cluster: str | None = None,
    key: KeyLike | Sequence[KeyLike] | None = None,
    peers: Iterable[str] = (),
    node: str | None = None,
    role: str = "both",
    codec: str | None = None,
    accept: Evidence | str = Evidence.AUTHORITATIVE,
    ca: str | os.PathLike[str] | None = None,
    cert: str | os.PathLike[str] | None = None,
    cert_key: str | os.PathLike[str] | None = None,
    curve_key: str | os.PathLike[str] | None = None,
    curve_server: str | None = None,
    curve_allow: str | None = None,
    password: str | None = None,
    options: Mapping[str, object] | None = None,
    waiting: int = MAX_WAITING,
    clock: Clock = time.time,
) -> Bus:
    """The bus at `url`, to be entered: `async with cachebus.connect(...) as bus`.

    `url`: `udp://HOST:PORT`, `multicast://GROUP:PORT`, `mqtt://HOST:PORT/CLUSTER`, `zmq+tcp://HOST:PORT`,
    `tls://HOST:PORT` and so on (docs/api.md); `cluster`: that of the URL, or `default`; `key`: signs and verifies,
    several verify and the first signs; `peers`: where `url` is an address to listen at, whom to send to; with
    certificates, an entry without a port is the name of one that is let in; `node`: our name on the bus, `cli-` and
    eight random digits unless given; `role`: `both`, `subscribe` or `publish`; `accept`: the weakest evidence to be
    given; `ca`, `cert`, `cert_key`, `curve_*`: files of the link's authentication; `password`: of the broker, as
    `file:PATH` or `env:VAR`; `options`: further keys of the transport's configuration; `waiting`: answers that wait
    for one slow reader.

    Raises `ConfigError` for what cannot be. Entering it raises `TransportError` when a socket cannot be opened; a
    broker or peer that is away is waited for.
    """
    if waiting < 1:
        raise ConfigError("waiting: is 1 or more")
    try:
        chosen = Role(role)
    except ValueError:
        raise ConfigError("role: is both, subscribe or publish") from None
    beside = Beside(
        peers=tuple(peers),
        cluster=cluster,
        codec=codec,
        ca=_path(ca),
        cert=_path(cert),
        cert_key=_path(cert_key),
        curve_key=_path(curve_key),
        curve_server=curve_server,
        curve_allow=curve_allow,
        accept=_level(accept),
        options=options or {},
    )
    opening = plan(url, role=chosen, beside=beside, key=key, node=node, password=password)
    if opening.key_is_idle:
        _log.warning("the key is not used: codec cdns signs nothing, its link authenticates")
    return Bus(opening, waiting=waiting, clock=clock)


class Bus:
    """One link, while it is entered. Made by `connect`."""

    def __init__(self, opening: Opening, *, waiting: int = MAX_WAITING, clock: Clock = time.time) -> None:
        self._opening = opening
        self._waiting = waiting
        self._clock = clock
        self._link = opening.link
        self._readers: weakref.WeakSet[Reader] = weakref.WeakSet()
        self._codec: Codec | None = None
        self._transport: Transport | None = None
        self._outlet: Outlet | None = None
        self._flushing: asyncio.TimerHandle | None = None
        self._ticking: asyncio.TimerHandle | None = None
        self._greeted: float | None = None
        self._running = False
        self.node = opening.node
        """Our name on the bus."""
        self.cluster = self._link.cluster
        self.received = 0
        """Messages that arrived: datagrams, envelopes or blocks."""
        self.accepted = 0
        """Answers that were authentic and well-formed."""
        self.missed = 0
        """Answers that readers were too slow for."""
        self.unclaimed = 0
        """Answers that arrived while nobody subscribed."""
        self.refused: dict[Refusal, int] = {}
        """Messages and answers that were not taken, by reason."""
        self.published = 0
        """Answers given to `publish` and not refused there; what waits may still be left out."""
        self.left_out: dict[Refusal, int] = {}
        """Answers given to `publish` and not sent, by reason."""
        self.on_refusal: Refused | None = None
        """Called for each refusal with its sender, if set."""

    async def __aenter__(self) -> Self:
        if self._running:
            raise TransportError("the bus is open already")
        link = await self._opening.resolved()
        codec, transport = self._opening.make(link, lambda made: in_batches(_Taker(self, made)))
        await transport.__aenter__()
        self._link, self._codec, self._transport = link, codec, transport
        self._outlet = Outlet(self._opening.url.scheme, codec, transport, make_collect(link.section))
        self._running = True
        self._tick()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        transport = self._transport
        assert transport is not None
        try:
            if self._greeted is not None and self._outlet is not None:
                self._count_left_out(self._outlet.flush(self._clock()))
                self._outlet.take_leave()
                await transport.flush()
        finally:
            self._running = False
            for timer in (self._flushing, self._ticking):
                if timer is not None:
                    timer.cancel()
            self._flushing = self._ticking = self._greeted = None
            await transport.__aexit__(kind, error, trace)
            for reader in tuple(self._readers):
                reader.end()

    # In

    def subscribe(
        self,
        types: Iterable[str | int] | None = None,
        names: Iterable[str] | None = None,
        origins: Collection[str] | None = None,
    ) -> Answers:
        """Each answer that arrives from now on, until the bus is left; only those that were asked for.

        `types`: of the question, as `A` or `TYPE65`; `names`: the question is at or below one of them; `origins`:
        names of nodes. None: all. Several may subscribe at once, each with a queue of its own. Raises `ConfigError`
        for a type or name that is none, or where the link brings nothing.
        """
        return Answers(self._reader(types, names, origins))

    def batches(
        self,
        types: Iterable[str | int] | None = None,
        names: Iterable[str] | None = None,
        origins: Collection[str] | None = None,
    ) -> Batches:
        """The same in sequences: all that arrived since the last one was taken. The way to read much."""
        return Batches(self._reader(types, names, origins))

    def _reader(
        self, types: Iterable[str | int] | None, names: Iterable[str] | None, origins: Collection[str] | None
    ) -> Reader:
        if not self._link.receives:
            raise ConfigError(f"{self._opening.url.scheme}: nothing arrives on this link: it has nobody to hear")
        reader = Reader(Wanted.of(types, names, origins), self._waiting, self.forget)
        self._readers.add(reader)
        return reader

    @property
    def gaps(self) -> int:
        """Messages known to be missing, by their sequence numbers; 0 with codec `dns`, which has none."""
        return 0 if self._codec is None else self._codec.counters().get("gaps", 0)

    def statistics(self) -> dict[str, int]:
        """Counters of the bus, of the codec (`gaps`, `duplicates`, ...), and those of the link with `link_` before."""
        own = {
            "received": self.received,
            "accepted": self.accepted,
            "refused": sum(self.refused.values()),
            "missed": self.missed,
            "unclaimed": self.unclaimed,
            "published": self.published,
            "left_out": sum(self.left_out.values()),
        }
        codec = {} if self._codec is None else self._codec.counters()
        link = {} if self._transport is None else self._transport.statistics()
        return {**codec, **own, **{f"link_{name}": value for name, value in link.items()}}

    def take(self, codec: Codec, batch: Sequence[Datagram]) -> None:
        """Take what arrived together; the link calls this."""
        now = self._clock()
        self.received += len(batch)
        if self.on_refusal is None:
            answers, refusals = codec.decode_all(batch, now)
            for refusal in refusals:
                self.refused[refusal] = self.refused.get(refusal, 0) + 1
        else:
            answers = []
            for datagram in batch:
                found, refusals = codec.decode_all((datagram,), now)
                answers += found
                for refusal in refusals:
                    self.refused[refusal] = self.refused.get(refusal, 0) + 1
                    self.on_refusal(refusal, datagram[1])
        if not answers:
            return
        self.accepted += len(answers)
        if not self._readers:
            self.unclaimed += len(answers)
        for reader in tuple(self._readers):
            self.missed += reader.put(answers)

    def forget(self, reader: Reader) -> None:
        """Give a reader nothing more."""
        self._readers.discard(reader)

    # Out

    def publish(
        self, what: Answer | bytes | dns.message.Message, *, evidence: Evidence | str = Evidence.CONFIRMED
    ) -> tuple[Refusal, ...]:
        """Send an answer, or what a resolver's finished response holds; give the reasons for what is not sent.

        An `Answer` keeps its evidence and the time at which it was learned. Of a response (wire form, or dnspython's
        message), `evidence` says what it may claim, as `claims` of a source does: `validated` counts with AD=1 and
        RRSIGs only. Receivers take it at no more than the key may claim, and apply their policy.

        Returns at once; nothing is waited for. What the link cannot take is dropped and counted there. Raises
        `ConfigError` where the link sends nothing, `TransportError` while the bus is not open.
        """
        if not self._link.sends:
            raise ConfigError(f"{self._opening.url.scheme}: this link sends nothing: it has nobody to send to")
        outlet = self._outlet
        if not self._running or outlet is None:
            raise TransportError("the bus is not open")
        now, loop = self._clock(), asyncio.get_running_loop()
        answers, refusals = self._answers(what, _level(evidence), now)
        if answers:
            if self._greeted is None:
                self._greet(outlet, now)
            left = outlet.send(answers, now, loop.time())
            self._count_left_out(left)
            refusals += [refusal for _, refusal in left]
            self.published += len(answers)
            if outlet.due is not None and self._flushing is None:
                self._flushing = loop.call_at(outlet.due, self._flush)
        return tuple(refusals)

    async def flush(self) -> None:
        """Wait until what was published has left this process, or cannot. Bounded by the transport, at some seconds."""
        if self._outlet is not None and self._transport is not None:
            self._count_left_out(self._outlet.flush(self._clock()))
            await self._transport.flush()

    def _answers(
        self, what: Answer | bytes | Any, evidence: Evidence, now: float
    ) -> tuple[list[Answer], list[Refusal]]:
        answers: list[Answer] = []
        refusals: list[Refusal] = []
        if isinstance(what, Answer):
            learned = min(what.learned, now)
            found = assemble(what.qname, what.qtype, what.rrsets, learned, evidence=what.evidence, partial=True)
            if isinstance(found, Refusal):
                refusals.append(found)
            else:
                answers.append(what._replace(rrsets=found, origin=self.node, learned=learned))
        else:
            wire = bytes(what) if isinstance(what, bytes | bytearray | memoryview) else what.to_wire(max_size=65535)
            settings = JudgeSettings(node=self.node, trust=frozenset(Evidence), claims=evidence)
            for verdict in DirectJudge(settings).feed(wire, now):
                if verdict.answer is not None:
                    answers.append(verdict.answer)
                elif verdict.reason is not None:
                    refusals.append(verdict.reason)
        for refusal in refusals:
            self.left_out[refusal] = self.left_out.get(refusal, 0) + 1
        return answers, refusals

    def _count_left_out(self, left: Sequence[tuple[Answer, Refusal]]) -> None:
        for _, refusal in left:
            self.left_out[refusal] = self.left_out.get(refusal, 0) + 1
            self.published -= 1

    def _flush(self) -> None:
        self._flushing = None
        if self._outlet is not None:
            self._count_left_out(self._outlet.flush(self._clock()))

    def _greet(self, outlet: Outlet, now: float) -> None:
        outlet.greet(now)
        self._greeted = asyncio.get_running_loop().time()

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        if self._codec is not None:
            self._codec.tick(loop.time())
        if self._outlet is not None and self._greeted is not None and loop.time() - self._greeted >= HELLO_INTERVAL:
            self._greet(self._outlet, self._clock())
        self._ticking = loop.call_later(TICK, self._tick)


class _Taker:
    """Hands what arrives to a bus, with the codec that reads it."""

    def __init__(self, bus: Bus, codec: Codec) -> None:
        self._bus = bus
        self._codec = codec

    def receive_all(self, batch: Sequence[Datagram]) -> None:
        """Take messages that arrived together."""
        self._bus.take(self._codec, batch)


async def _resolve(host: str, port: int) -> str:
    """First address of a host. Raises `TransportError`."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError) as error:
        raise TransportError(f"host {host} has no address: {error}") from error
    return str(found[0][4][0])


def _key(given: KeyLike) -> Key:
    if isinstance(given, Key):
        return given
    material = resolve_key(given) if isinstance(given, str) else given
    return Key.make(name_to_text(material.name), material.algorithm, material.secret)


def _read_password(text: str) -> str:
    problems: list[str] = []
    tools = Tools(
        report=lambda _, sentence: problems.append(sentence),
        warn=lambda *_: None,
        directory=Path(),
        environment=os.environ,
    )
    found = tools.secret_text((), text)
    if found is None:
        raise ConfigError(f"password: {problems[0]}")
    return found


def _level(given: Evidence | str) -> Evidence:
    if isinstance(given, Evidence):
        return given
    try:
        return Evidence[given.upper()]
    except KeyError:
        raise ConfigError(f"evidence is {', '.join(one.text for one in Evidence)}") from None


def _path(given: str | os.PathLike[str] | None) -> Path | None:
    return None if given is None else Path(given)
