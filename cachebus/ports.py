"""The whole extension surface: what a source, a judge, a codec, a transport and a sink promise each other.

Everything here is called on the event loop's thread and must not block. Whatever waits, waits in a bounded queue whose
drops are counted. A running thing is an async context manager: entered it listens, left it is gone.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

from cachebus.answer import Answer, Refusal
from cachebus.filters.verdict import Verdict as Verdict  # the word of `Judge`, defined where the judges are
from cachebus.flushes import Flush

Clock = Callable[[], float]
"""Seconds since the epoch, wall clock. The daemon passes `time.time`, tests a `ManualClock`."""

Sender = tuple[str, int] | tuple[str, int, int, int] | str
"""Who sent some bytes, as the transport knows it: a socket address, or the name its link authenticated."""

Datagram = tuple[bytes, Sender]
"""What was received, and from whom."""

LeftOut = tuple[Answer, Refusal]
"""An answer that a codec does not send, and why."""

Receive = Callable[[bytes, Sender], None]
"""What a transport calls for each received datagram or envelope. Returns at once and never raises."""


class Running(Protocol):
    """Anything with a life: entered, it works; left, it has stopped and let go of its sockets and tasks."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def statistics(self) -> Mapping[str, int]:
        """Plain counters and gauges, by snake_case name; cheap enough to be asked for at every scrape."""
        ...


class Source(Running, Protocol):
    """Moves one resolver's output to a judge: it frames bytes and decides nothing about them."""


class Judge(Protocol):
    """Turns one source's frames into answers with evidence, or refusals (trust rules 2, 3). Pure: no I/O, no clock."""

    def feed(self, frame: bytes, now: float) -> Sequence[Verdict]:
        """Take one frame (a dnstap payload, or a DNS message), received at `now`; give what that decides.

        Verdicts may concern earlier frames. Never raises for bad bytes: they become refusals.
        """
        ...

    def expire(self, now: float) -> Sequence[Verdict]:
        """Give up what waited longer than its window; to be called about once a second."""
        ...


class Splitter(Protocol):
    """Takes one received byte stream apart again."""

    def receive_data(self, data: bytes) -> Iterator[bytes]:
        """Take the next bytes; give the messages that they complete. Holds at most one incomplete message.

        Raises `FrameError`, at the end of what it gives, when the stream can never be right again.
        """
        ...

    def receive_end(self) -> None:
        """Take note that the stream has ended. Raises `FrameError` when that cuts a message in two."""
        ...


class Framing(Protocol):
    """How a codec's messages follow each other in a byte stream."""

    def opening(self) -> bytes:
        """What every stream begins with."""
        ...

    def frame(self, message: bytes) -> bytes:
        """One message as it stands in the stream."""
        ...

    def closing(self) -> bytes:
        """What a stream that ends cleanly ends with."""
        ...

    def splitter(self) -> Splitter:
        """What takes one received stream apart."""
        ...


class PeerPresence(NamedTuple):
    """What is known of one origin on one transport."""

    stream: int
    heard: float
    """When its last message came: seconds since the epoch; 0.0 when it is only remembered from a previous run."""
    policy_agrees: bool | None
    """Whether its last hello carried our policy hash; None before the first."""
    gone: bool
    """It said, or a broker for it, that its stream has ended."""


class Codec(Protocol):
    """Answers to authenticated bytes and back. Pure: `now` is an argument."""

    @property
    def framing(self) -> Framing:
        """For transports that carry a byte stream."""
        ...

    def encode(self, answers: Sequence[Answer], now: float) -> tuple[list[bytes], list[LeftOut]]:
        """Compose, age and authenticate. Gives the messages, and each answer left out with the reason."""
        ...

    def decode_all(self, batch: Sequence[Datagram], now: float) -> tuple[list[Answer], list[Refusal]]:
        """Authenticate, refuse replays, check the form of each of many, received together.

        Gives their aged answers with origin and evidence, and a reason for each message without any. The batch is the
        unit because Python runs one step for many messages twice as fast as many steps for one.
        """
        ...

    def hello(self, now: float) -> bytes | None:
        """A message without answers that says who is here and how far its stream is; None where the codec has none."""
        ...

    def will(self) -> bytes | None:
        """What a broker says for this node when it is gone: marks its own stream as ended, and nothing else."""
        ...

    def counters(self) -> Mapping[str, int]:
        """What only the codec sees, as `gaps`, by snake_case name. Refusals are not among it: they are given."""
        ...

    def presence(self) -> Mapping[str, PeerPresence]:
        """What is known of each origin, by name; empty where messages do not name theirs."""
        ...

    def inherit(self, previous: Any) -> None:
        """Go on with what the codec of the same kind has seen that this one replaces: a reload must open no way for
        replays."""
        ...

    def state(self) -> Mapping[str, int]:
        """What has to outlive the process: the newest stream of each origin, by name."""
        ...

    def restore(self, state: Mapping[str, int]) -> None:
        """Take what `state` gave in a previous run, before anything is sent."""
        ...

    def tick(self, monotonic: float) -> None:
        """Take note of how much time has really passed; called about once a second, with a clock that nobody sets."""
        ...

    def clock_offsets(self, now: float) -> Mapping[str, float]:
        """Per peer heard of lately: seconds by which its clock is behind ours (negative: ahead)."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsMaterial:
    """What a link's certificate files hold, in PEM, for libraries that have no use for an `ssl.SSLContext`."""

    certificate: bytes
    """Our certificate, followed by those between it and the authority's, if any."""
    key: bytes = field(repr=False)
    """Its private key, not encrypted."""
    authorities: bytes
    """Certificates of the authorities that peers' certificates come from."""


class Tls(Protocol):
    """A link's certificates, read again when their files change. Made by the core; a transport only uses it.

    The contexts are shared by all connections: a transport changes nothing about them.
    """

    def server_context(self) -> ssl.SSLContext:
        """For what connects to us: TLS 1.3, and a certificate is demanded."""
        ...

    def client_context(self) -> ssl.SSLContext:
        """For what we connect to: TLS 1.3, and our certificate is shown."""
        ...

    def material(self) -> TlsMaterial:
        """What both contexts are made of."""
        ...

    def broker_context(self) -> ssl.SSLContext:
        """For a server that is no peer, as a broker: TLS 1.2 or later, as it is software and site of others.

        Its certificate has to be of the configured CA and for the host name that was connected to
        (`check_hostname`); ours is shown where one is configured.
        """
        ...

    def identify(self, certificate: bytes | None) -> str:
        """The name of the configured peer whose certificate (DER) this is. Raises `TransportError` when it is none."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TransportSettings:
    """What a transport is told of its configuration. Built-in and third-party transports get the same."""

    name: str
    """Its name in the configuration."""
    node: str
    cluster: str
    listen: str | None = None
    """`HOST:PORT` to receive on, or None to send only."""
    peers: tuple[str, ...] = ()
    """`HOST:PORT` of each peer to send to."""
    url: str | None = None
    tls: Tls | None = field(default=None, repr=False)
    framing: Framing | None = field(default=None, repr=False)
    """How messages follow each other in a byte stream; what carries whole messages has no use for it."""
    will: bytes | None = field(default=None, repr=False)
    """What a broker is to say for this node when it is gone."""
    options: Mapping[str, object] = field(default_factory=dict, repr=False)
    """Every other key of its configuration, as written, passwords among them."""


class Transport(Running, Protocol):
    """Moves bytes between nodes; knows no DNS. Made by `factory(settings, receive)`, found by entry point."""

    def send(self, data: bytes) -> None:
        """Send one datagram or envelope to every peer. Never blocks; what cannot be sent is dropped and counted."""
        ...

    async def flush(self) -> None:
        """Wait until everything handed to `send` has left this process, or cannot."""
        ...


TransportFactory = Callable[[TransportSettings, Receive], Transport]


class Flushed(Enum):
    """What became of a flush in a sink."""

    DONE = "done"
    PENDING = "pending"
    """It does not answer; done as soon as it does."""
    UNABLE = "unable"
    """It takes nothing back."""


class Sink(Running, Protocol):
    """Where received answers go."""

    def offer(self, answer: Answer, now: float) -> None:
        """Take one answer into a bounded queue. Never blocks; the oldest is dropped and counted when it is full."""
        ...

    def refill(self) -> None:
        """Take note that the cache got many answers at once: they are to be taken from there. Never blocks."""
        ...

    async def flush(self, flush: Flush, now: float) -> Flushed:
        """Take back what was given of this, and give nothing of it that was learned up to `now`, however late it comes.

        Waits some seconds at most.
        """
        ...
