"""What every transport over stream links does: who is dialled when, who gets what is sent, how it ends.

Decides about settings, reconnecting, queues and counters. Does not know what a connection is made of: `tcp` and `quic`
say how one is opened and accepted.

A node sends on the connections that it opens and receives on those that it accepts, one direction each: so two nodes
that list each other deliver nothing twice. The exception is asked for: with `subscribe: true` the opener also receives
on its connection, for those that only listen in, or cannot be connected to.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import random
import ssl
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import ClassVar, Protocol, Self

from cachebus.errors import ConfigError, FrameError, TransportError
from cachebus.ports import Framing, Receive, Sender, Tls, TransportSettings
from cachebus_transports._address import Address, is_own, parse_endpoint
from cachebus_transports._outbox import Outbox, Waiting
from cachebus_transports._stream import Deliver
from cachebus_transports._words import shown, why

CONNECT_TIMEOUT = 2.5
"""Seconds for TCP's part of connecting: one repetition of a lost SYN (after 1 s) has time to be answered."""
HANDSHAKE_TIMEOUT = 5.0
"""Seconds for TLS's part, on both sides: a slow link's three round trips; and what a silent client may cost us."""
FIRST_BACKOFF, MAX_BACKOFF = 0.1, 2.0
"""Seconds before a first and later attempts to connect again, doubled, and shortened by up to half at random.

With `CONNECT_TIMEOUT` they keep a peer's return within 5 s."""
STABLE = 5.0
"""Seconds that a link must have stood for the next attempt to be a first one: no peer that refuses us is hammered."""
SETTLED = 1.0
"""Seconds after which it is told that a link stands: who refuses our certificate ends it sooner, time and again."""
CLOSE_TIMEOUT = 1.0
"""Seconds that a peer has to take what is on its way when we stop."""
FLUSH_TIMEOUT = 10.0
"""Seconds that `flush` waits at most, for a connected peer that is slow."""
FLUSH_CONNECT = 3.0
"""Seconds after which `flush` holds a peer without a connection for dead."""
MAX_ACCEPTED = 256
"""Accepted connections at a time; each may hold a partial message and a decompressor's window."""
MAX_PER_PEER = 8
"""Of one authenticated peer: after an unclean end its old connections live until TCP gives them up."""
TURN = 128 * 1024
"""Bytes of frames given to a connection per turn of the event loop, so that no peer delays another."""
MAX_BUFFERED, MIN_BUFFERED = 256 * 1024, 64 * 1024
"""Bytes in a connection's own buffer at which the queue waits, and at which it goes on."""
MAX_QUEUE_BYTES = 16 * 1024 * 1024
"""Of messages that wait for one peer: some 100,000 answers, or a second of the highest rate. Peers share the bytes."""
MAX_QUEUE_MESSAGES = 65536
"""Likewise: bounds what bookkeeping costs where messages are tiny."""
MAX_QUEUE_AGE = 30.0
"""Seconds that a message may wait for a peer. Receivers refuse envelopes after 60; the TTLs run on."""
LOG_INTERVAL = 10.0
"""Seconds between two log lines about refused connections or broken streams; all are counted."""
_POLL = 0.005
"""Seconds between two looks of `flush`: the event loop does not say when a connection's buffer has become empty."""

log = logging.getLogger("cachebus_transports.streams")


class Link(Protocol):
    """One connection."""

    @property
    def drained(self) -> bool:
        """Nothing waits in it to be sent."""
        ...

    @property
    def lost(self) -> asyncio.Future[None]:
        """Done when it is gone."""
        ...

    async def finish(self) -> None:
        """End the stream and the connection; returns when it is gone, after `CLOSE_TIMEOUT` at the latest."""
        ...


@dataclass(slots=True)
class Counters:
    """What a transport of stream links counts; the meaning is in `StreamTransport.statistics`."""

    sent: int = 0
    sent_bytes: int = 0
    received: int = 0
    received_bytes: int = 0
    oversize: int = 0
    malformed: int = 0
    truncated: int = 0
    accepted_connections: int = 0
    refused_connections: int = 0
    failed_handshakes: int = 0
    refused_certificates: int = 0
    refused_by_peer: int = 0
    unknown_peer: int = 0
    failed_connects: int = 0
    reconnects: int = 0


@dataclass(slots=True)
class _Peer:
    """One configured peer: what waits for it, and its connection while there is one."""

    address: Address
    outbox: Outbox
    link: Link | None = None
    down_since: float = 0.0
    """When it was lost, or first dialled (event loop time)."""


class StreamTransport:
    """What `tcp` and `quic` share; each says how a connection is opened and accepted.

    Settings: `listen` and `peers` as `ADDRESS:PORT` (literals, as in udp), `framing`, and `tls`, unless `insecure`.
    Options: `zstd` (default false) compresses what is sent, while what is received says
    itself what it is; `subscribe` (default false) asks each peer for its stream on the connection to it; `insecure`
    (default false) is cleartext, between loopback addresses only.
    """

    KIND: ClassVar[str]
    CLEARTEXT: ClassVar[bool] = False
    """It has a cleartext form."""
    QUEUE_BYTES: ClassVar[int] = MAX_QUEUE_BYTES
    """Of frames that may wait for one peer."""

    def __init__(self, settings: TransportSettings, receive: Receive) -> None:
        """Raises `ConfigError` for settings that make no sense."""
        if settings.framing is None:
            raise ConfigError(f"{self.KIND} needs a codec that says how messages follow each other in a stream")
        self.settings = settings
        self.framing: Framing = settings.framing
        self.tls: Tls | None = settings.tls
        self.listen = None if settings.listen is None else parse_endpoint(settings.listen, any_port=True)
        addresses = tuple(dict.fromkeys(parse_endpoint(peer) for peer in settings.peers))
        if self.listen is None and not addresses:
            raise ConfigError(f"{self.KIND} needs `listen`, `peers` or both")
        self._check_security(settings, addresses)
        self.compressed = _flag(settings, "zstd")
        self.subscribe = _flag(settings, "subscribe")
        self.counters = Counters()
        self.accepted: dict[Link, str | None] = {}
        """Accepted connections and the names of their peers, oldest first."""
        self._receive = receive
        self._peers = [_Peer(address, self._outbox()) for address in addresses]
        self._subscribers: dict[Link, Outbox] = {}
        self._outboxes: tuple[Outbox, ...] = ()
        self._dialling: list[asyncio.Task[None]] = []
        self._dropped = self._expired = 0
        self._running = False
        self._logged = float("-inf")

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Address of each listening socket while it runs; tells which port `:0` became."""
        raise NotImplementedError

    async def connect(self, address: Address, outbox: Outbox) -> Link:
        """Open a connection to a peer that sends what is in `outbox`. Raises `OSError` or `TransportError`."""
        raise NotImplementedError

    async def open(self) -> None:
        """Listen. Raises `OSError`, or `TransportError`."""
        raise NotImplementedError

    async def close(self) -> None:
        """Stop listening and accepting."""
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        try:
            await self.open()
        except OSError as error:
            await self.close()
            where = "" if self.listen is None else f" {self.listen[0]} port {self.listen[1]}"
            raise TransportError(f"transport {self.settings.name}: cannot listen on{where}: {why(error)}") from error
        except BaseException:
            await self.close()
            raise
        self._running = True
        now = asyncio.get_running_loop().time()
        # A list of peers that names this node too may be the same on every node.
        self._peers = [peer for peer in self._peers if not is_own(peer.address, self.addresses)]
        for peer in self._peers:
            peer.down_since = now
            self._dialling.append(asyncio.create_task(self._dial(peer), name=f"{self.settings.name}: dial"))
        self._retarget()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running = False
        for task in self._dialling:
            task.cancel()
        await asyncio.gather(*self._dialling, return_exceptions=True)
        self._dialling.clear()
        await self.close()
        links = [peer.link for peer in self._peers if peer.link is not None]
        await asyncio.gather(*(link.finish() for link in (*links, *self.accepted)))
        for outbox in (*(peer.outbox for peer in self._peers), *self._subscribers.values()):
            outbox.clear()
        for link in tuple(self._subscribers):
            self.forget(link)
        self._outboxes = ()

    def send(self, data: bytes) -> None:
        """Queue one message for every peer; a queue that is full loses its oldest, which is counted."""
        if not self._running:
            self._dropped += len(self._peers)
            return
        try:
            frame = self.framing.frame(data)
        except FrameError:
            self.counters.oversize += 1
            return
        waiting = Waiting(asyncio.get_running_loop().time(), frame)
        for outbox in self._outboxes:
            outbox.put(waiting)

    async def flush(self) -> None:
        """Wait until the queues and connections are empty, those of peers that are dead or do not read excepted.

        Waits 3 s for a peer that has no connection, counted from when it had none, and 10 s in all.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + FLUSH_TIMEOUT
        while self._running and loop.time() < end and self._waiting(loop.time()):  # noqa: ASYNC110 - see _POLL
            await asyncio.sleep(_POLL)

    def statistics(self) -> dict[str, int]:
        """Counters since it was made, in messages (one per peer), streams or connections, and gauges.

        `sent`: given to a connection (and lost with it, if it breaks then); `sent_bytes`, `received_bytes`: what goes
        over the link, framed and compressed, without TLS; `dropped`: found no room in a peer's queue, or was sent
        while not running; `expired`: waited too long in one; `oversize`: longer than the framing allows; `malformed`:
        streams whose bytes broke their format, and were ended; `truncated`: streams that ended inside a message;
        `refused_connections`: beyond the bounds; `failed_handshakes`: no TLS, too old, or too slow;
        `refused_certificates`: of another authority, expired, or missing; `unknown_peer`: a good certificate, but no
        configured peer's; `refused_by_peer`: the peer ended TLS with an alert; `failed_connects`: nobody there;
        `reconnects`: links that stood again. Gauges: `connections` opened and accepted, `subscribers`, and what waits:
        `queued` messages, `queue_bytes`.
        """
        outboxes = [*(peer.outbox for peer in self._peers), *self._subscribers.values()]
        return {
            **asdict(self.counters),
            "dropped": self._dropped + sum(outbox.dropped for outbox in outboxes),
            "expired": self._expired + sum(outbox.expired for outbox in outboxes),
            "connections": sum(peer.link is not None for peer in self._peers) + len(self.accepted),
            "subscribers": len(self._subscribers),
            "queued": sum(len(outbox) for outbox in outboxes),
            "queue_bytes": sum(outbox.bytes for outbox in outboxes),
        }

    # For the connections

    def taker(self, sender: Sender) -> Deliver:
        """What takes the messages of one received stream."""
        counters, receive = self.counters, self._receive

        def take(message: bytes) -> None:
            counters.received += 1
            receive(message, sender)

        return take

    def admit(self, link: Link, name: str | None) -> None:
        """Take note of an accepted connection, authenticated as `name`; end the oldest when one peer has too many."""
        self.accepted[link] = name
        if name is not None and len(same := [one for one, whose in self.accepted.items() if whose == name]) > (
            MAX_PER_PEER
        ):
            self.counters.refused_connections += 1
            self.abort(same[0])

    def abort(self, link: Link) -> None:
        """End a connection at once."""
        raise NotImplementedError

    def subscribed(self, link: Link) -> Outbox:
        """Take note that an accepted connection wants our stream; gives what it is to send."""
        outbox = self._subscribers[link] = self._outbox()
        self._retarget()
        return outbox

    def forget(self, link: Link) -> None:
        """Take note that an accepted connection is gone."""
        self.accepted.pop(link, None)
        if (outbox := self._subscribers.pop(link, None)) is not None:
            outbox.clear()
            self._dropped += outbox.dropped
            self._expired += outbox.expired
            self._retarget()

    def identify(self, certificate: bytes | None) -> str:
        """The peer whose certificate this is. Counts and raises `TransportError` when it is nobody's."""
        assert self.tls is not None
        try:
            return self.tls.identify(certificate)
        except TransportError:
            self.counters.unknown_peer += 1
            raise

    def complain(self, message: str, *arguments: object) -> None:
        """Log a warning, unless there was one just now: who can connect must not be able to fill the log."""
        now = asyncio.get_running_loop().time()
        if now - self._logged >= LOG_INTERVAL:
            self._logged = now
            log.warning("transport %s: %s", self.settings.name, message % arguments)

    def broken(self, whose: object, error: FrameError) -> None:
        """Count and tell of a stream that broke its format."""
        self.counters.malformed += 1
        self.complain("the stream from %s is malformed: %s", whose, error)

    # Dialling

    async def _dial(self, peer: _Peer) -> None:
        """Keep a connection to one peer for ever."""
        loop = asyncio.get_running_loop()
        backoff = FIRST_BACKOFF
        before = told = False
        while True:
            missing = "it ended the connection at once"
            try:
                link = await self.connect(peer.address, peer.outbox)
            except (OSError, TransportError) as error:  # TimeoutError and every ssl error among them
                self._count_failure(error)
                missing = why(error)
            else:
                self.counters.reconnects += before
                before, since = True, loop.time()
                peer.link = link
                try:
                    if not (await asyncio.wait((link.lost,), timeout=SETTLED))[0]:
                        log.info("transport %s: linked to %s", self.settings.name, shown(peer.address))
                        missing, told = "it ended", False
                        await asyncio.shield(link.lost)
                finally:
                    if link.lost.done():
                        peer.link, peer.down_since = None, loop.time()
                if loop.time() - since >= STABLE:
                    backoff = FIRST_BACKOFF
            if not told:
                log.warning("transport %s: no link to %s: %s", self.settings.name, shown(peer.address), missing)
                told = True
            await asyncio.sleep(backoff * random.uniform(0.5, 1))
            backoff = min(2 * backoff, MAX_BACKOFF)
            peer.outbox.expire(loop.time())

    def _count_failure(self, error: Exception) -> None:
        if isinstance(error, ssl.SSLCertVerificationError):
            self.counters.refused_certificates += 1
        elif isinstance(error, ssl.SSLError):
            self.counters.failed_handshakes += 1
        elif isinstance(error, OSError):
            self.counters.failed_connects += 1

    def _waiting(self, now: float) -> bool:
        """Whether anything is on its way to somebody who may still take it."""
        for peer in self._peers:
            if peer.link is None:
                if len(peer.outbox) and now - peer.down_since < FLUSH_CONNECT:
                    return True
            elif len(peer.outbox) or not peer.link.drained:
                return True
        return any(len(outbox) or not link.drained for link, outbox in self._subscribers.items())

    def _outbox(self) -> Outbox:
        return Outbox(messages=MAX_QUEUE_MESSAGES, size=self.QUEUE_BYTES, age=MAX_QUEUE_AGE)

    def _retarget(self) -> None:
        self._outboxes = (*(peer.outbox for peer in self._peers), *self._subscribers.values())

    def _check_security(self, settings: TransportSettings, peers: Sequence[Address]) -> None:
        insecure = _flag(settings, "insecure")
        if insecure and not self.CLEARTEXT:
            raise ConfigError(f"insecure: {self.KIND} has no cleartext form")
        if insecure and self.tls is not None:
            raise ConfigError("insecure: contradicts `tls`; leave one of them out")
        if self.tls is not None:
            self.tls.client_context()  # raises unless it has what links between peers need
        elif not insecure:
            loopback = ", or `insecure: true` between loopback addresses" if self.CLEARTEXT else ""
            raise ConfigError(f"{self.KIND} needs `tls` (cert, key, ca, peers){loopback}")
        for address in () if not insecure else (*peers, *(() if self.listen is None else (self.listen,))):
            if not ipaddress.ip_address(address[0].partition("%")[0]).is_loopback:
                raise ConfigError(f"insecure: only between loopback addresses, and {shown(address)} is none; use `tls`")


def _flag(settings: TransportSettings, name: str) -> bool:
    value = settings.options.get(name, False)
    if not isinstance(value, bool):
        raise ConfigError(f"{name}: is true or false")
    return value
