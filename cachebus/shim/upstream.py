"""One upstream server: how a question is put to it, when its reply is good enough, and how well it has been doing.

Decides nothing about other upstreams, and takes no record for true.
"""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import NamedTuple

from cachebus.errors import ConfigError, MessageError
from cachebus.shim.exchange import (
    CaseNotKeptError,
    Exchange,
    Outgoing,
    StrayRepliesError,
    ask_udp,
    compose_query,
)
from cachebus.shim.session import Https, LengthPrefixed
from cachebus.shim.settings import UpstreamSettings
from cachebus.shim.stream import Stream
from cachebus.wire import rrtypes
from cachebus.wire.message import AA, FORMERR, HEADER_LENGTH, NOERROR, NOTIMP, REFUSED, SERVFAIL, TC, Message, parse

MAX_PENALTY = 60.0
"""Seconds that a failing upstream is asked last: long enough to keep clients from waiting for it, short enough to see
that it is back."""
FIRST_PENALTY = 1.0
"""Seconds after the first failure; each further one doubles it."""
SMOOTHING = 1 / 8
"""Weight of the newest round trip in the smoothed one (RFC 6298 section 2.3)."""

_FAILED = frozenset({FORMERR, SERVFAIL, NOTIMP, REFUSED})


class Quality(Enum):
    """What a reply is worth to the one who asked."""

    GOOD = "good"
    """It says what there is, or that there is nothing."""
    FAILED = "failed"
    """The server could not, or would not, find out."""
    LAME = "lame"
    """A referral, or an answer without authority, from a server declared authoritative."""


class Reply(NamedTuple):
    """One upstream's reply, parsed, with the bytes that prove it."""

    upstream: Upstream
    exchange: Exchange
    message: Message
    quality: Quality


@dataclass(slots=True)
class Health:
    """Failures in a row, until when the upstream is asked last, and how fast it answers. Times are the event loop's."""

    failures: int = 0
    penalised_until: float = field(default=float("-inf"))
    round_trip: float = 0.0
    """Smoothed, in seconds; 0 until something is known, so that it is asked and becomes known."""
    asked: float = field(default=float("-inf"))
    """When it was asked last."""

    def failed(self, now: float) -> None:
        """It did not answer, or not usefully."""
        self.penalised_until = now + min(FIRST_PENALTY * 2.0 ** min(self.failures, 10), MAX_PENALTY)
        self.failures += 1

    def succeeded(self) -> None:
        """It answered."""
        self.failures = 0
        self.penalised_until = float("-inf")

    def took(self, seconds: float) -> None:
        """A reply came after so long, whatever it said."""
        self.round_trip += (seconds - self.round_trip) * (SMOOTHING if self.round_trip else 1.0)


class Upstream:
    """Asks one server. `close` ends its connections."""

    def __init__(self, settings: UpstreamSettings) -> None:
        self.settings = settings
        self.health = Health()
        self.queries = 0
        self.queries_stream = 0
        self.replies = 0
        self.stray_replies = 0
        self.malformed = 0
        self.encrypted = settings.tls_name is not None
        context = None
        make_session = LengthPrefixed if settings.https is None else partial(Https, *settings.https)
        if self.encrypted:
            context = settings.tls or ssl.create_default_context()
            if not context.check_hostname or context.verify_mode is not ssl.CERT_REQUIRED:
                raise ConfigError(f"upstream {settings.text}: a TLS context that verifies nothing")
            context.set_alpn_protocols([Https.alpn if settings.https else LengthPrefixed.alpn])
        self._stream = Stream(settings.address, tls=context, tls_name=settings.tls_name, make_session=make_session)

    @property
    def worth(self) -> tuple[bool, bool]:
        """Upstreams whose worth differs are judged differently, so speed must not choose between them."""
        return self.settings.validating, self.settings.authoritative

    async def ask(self, qname: bytes, qtype: int, *, checking_disabled: bool, options: bytes = b"") -> Reply:
        """Ask with DO=1 and the EDNS `options`, and give the reply, over TCP where UDP's is cut or 0x20 is not kept.

        A server that does not know EDNS is asked without (RFC 6891 section 6.2.2). Waits until cancelled. Raises
        `TransportError` when the link fails, `MessageError` when the reply cannot be read.
        """
        loop = asyncio.get_running_loop()
        self.health.asked = begun = loop.time()
        reply = await self._ask(qname, qtype, checking_disabled=checking_disabled, edns=True, options=options)
        self.health.took(loop.time() - begun)
        if reply.message.rcode in (FORMERR, NOTIMP) and reply.message.opt is None:
            reply = await self._ask(qname, qtype, checking_disabled=checking_disabled, edns=False)
        return reply

    async def _ask(
        self, qname: bytes, qtype: int, *, checking_disabled: bool, edns: bool, options: bytes = b""
    ) -> Reply:
        def compose(*, mix_case: bool) -> Outgoing:
            return compose_query(
                qname,
                qtype,
                recurse=not self.settings.authoritative,
                checking_disabled=checking_disabled,
                edns=edns,
                mix_case=mix_case,
                padded=self.encrypted,
                options=options,
            )

        exchange = None
        if not self.encrypted:
            self.queries += 1
            try:
                # On loopback nobody guesses, and the reply's case is what our clients see.
                exchange = await ask_udp(self.settings.address, compose(mix_case=not self.settings.is_loopback))
            except (CaseNotKeptError, StrayRepliesError):
                self.stray_replies += 1
        if exchange is None or exchange.reply[2] & (TC >> 8):
            self.queries += 1
            self.queries_stream += 1
            exchange = await self._stream.ask(compose(mix_case=False))
        self.replies += 1
        try:
            message = parse(question_in_lower_case(exchange.reply))
        except MessageError:
            self.malformed += 1
            raise
        return Reply(self, exchange, message, self._quality(message))

    def _quality(self, message: Message) -> Quality:
        if message.rcode in _FAILED:
            return Quality.FAILED
        if self.settings.authoritative and not message.flags & AA:
            return Quality.LAME
        if (
            message.rcode == NOERROR
            and not message.answer
            and any(rrset.type == rrtypes.NS for rrset in message.authority)
            and not any(rrset.type == rrtypes.SOA for rrset in message.authority)
        ):
            return Quality.LAME
        return Quality.GOOD

    async def close(self) -> None:
        """End its connections."""
        await self._stream.close()


def question_in_lower_case(reply: bytes) -> bytes:
    """The reply with its question name in lower case, so that 0x20 case does not reach RDATA through pointers to it.

    `reply` was found to repeat the question uncompressed, or to have none.
    """
    if reply[4:6] != b"\0\1":
        return reply
    position = HEADER_LENGTH
    while reply[position]:
        position += reply[position] + 1
    return reply[:HEADER_LENGTH] + reply[HEADER_LENGTH:position].lower() + reply[position:]
