"""The judge of a dnstap source: which of a resolver's frames are evidence, and of what (trust rules, sections 2 and 3).

Takes payloads and a time, gives verdicts. A frame may get several: it rises from `authoritative` to `confirmed` to
`validated`, and what is not a whole answer is given as RRsets of several names. Of those that share a frame, an answer
to the same question replaces the earlier one. Refuses to know what may leave the node (share policy) and what was sent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from ipaddress import ip_address
from typing import NamedTuple

from cachebus.answer import Answer, Evidence, Refusal
from cachebus.errors import FrameError, MessageError
from cachebus.filters.chain import Link, chain_from, limit_chain
from cachebus.filters.clients import Clients, OnHeld, Question
from cachebus.filters.direct import DirectJudge, finished_answers, swild_links
from cachebus.filters.edns import refusal_in
from cachebus.filters.form import header_refusal, question_bytes, question_refusal
from cachebus.filters.pairing import Key, Match, Pairs
from cachebus.filters.pending import FORWARDED, Board, Case
from cachebus.filters.settings import JudgeSettings, Pairing, ResolverFrames
from cachebus.filters.tally import Tally
from cachebus.filters.upstream import UpstreamTrust, judge_upstream
from cachebus.filters.verdict import Verdict
from cachebus.wire.dnstap import Frame, MessageType, decode
from cachebus.wire.message import AD, CD, HEADER_LENGTH, NXDOMAIN, OPCODE, QR, RCODE, TC, Message, first_question, parse
from cachebus.wire.name import is_at_or_below

__all__ = [
    "DirectJudge",
    "DnstapJudge",
    "JudgeSettings",
    "Pairing",
    "ResolverFrames",
    "UpstreamTrust",
    "judge_upstream",
]

EXPIRY_INTERVAL = 0.25
"""Seconds between two looks at what has become too old; finer would cost each frame and gain nothing."""
CLOCK_SET_BACK = 3600.0
"""Seconds. Bytes that waited in a stalled process come with an earlier time than their neighbours, and windows must not
close for that; a time further back is another clock, or the next capture."""
_DATAGRAM = frozenset({1, 5})
"""dnstap's socket protocols that are UDP: plain, and DNSCrypt over it."""
_ROOT = b"\0"

IsFilled = Callable[[bytes, int, float], bool]
"""Called with (owner, type, now): whether this node filled that RRset into the resolver and it still lives there."""


class _Response(NamedTuple):
    """A RESOLVER_RESPONSE or FORWARDER_RESPONSE whose header is right."""

    number: int
    frame: Frame
    forwarder: bool


class DnstapJudge:
    """Judges the frames of one dnstap source; the `Judge` of the ports."""

    def __init__(
        self, settings: JudgeSettings, *, on_held: OnHeld | None = None, is_filled: IsFilled | None = None
    ) -> None:
        """`on_held` hears what the resolver holds live; `is_filled` matters with `ResolverFrames.NONE` only."""
        self._settings = settings
        self._window = settings.evidence_window
        self._is_filled = is_filled
        self._on_held = on_held
        self._pairs: Pairs[_Response] = Pairs(self._window)
        self._clients = Clients(self._window, on_held)
        self._board = Board(settings, self._clients.only_unchecked)
        self._tally = Tally()
        self._number = 0
        self._context = 0
        self._clock = 0.0
        self._expired_at = 0.0

    def judges_as(self, other: object) -> bool:
        """Whether `other` is a judge by the same rules, which can go on in this one's place with what it remembers."""
        return (
            isinstance(other, DnstapJudge)
            and other._settings == self._settings
            and other._is_filled == self._is_filled
            and other._on_held == self._on_held
        )

    def feed(self, frame: bytes, now: float) -> list[Verdict]:
        """Take one dnstap payload, received at `now` (seconds since the epoch); give what that decides.

        Verdicts may concern earlier frames, which are counted from 1. Never raises for bad bytes.
        """
        self._number += 1
        clock = self._advance(now)
        verdicts = self._expire(clock) if abs(clock - self._expired_at) >= EXPIRY_INTERVAL else []
        try:
            decoded = decode(frame)
        except FrameError:
            verdicts.append(Verdict(self._number, None, Refusal.MALFORMED))
        else:
            verdicts += self._frame(decoded, now)
        self._tally.count(verdicts)
        return verdicts

    def expire(self, now: float) -> list[Verdict]:
        """Give up what waited longer than its window: unpaired, unconfirmed."""
        verdicts = self._expire(self._advance(now))
        self._tally.count(verdicts)
        return verdicts

    def _advance(self, now: float) -> float:
        """The clock that windows go by: `now`, but not back a little."""
        if now > self._clock or self._clock - now > CLOCK_SET_BACK:
            self._clock = now
        return self._clock

    def _expire(self, now: float) -> list[Verdict]:
        self._expired_at = now
        verdicts = [Verdict(response.number, None, Refusal.UNPAIRED) for response in self._pairs.expire(now)]
        verdicts += self._board.expire(now)
        self._clients.expire(now)
        return verdicts

    def statistics(self) -> Mapping[str, int]:
        """Counters by snake_case name: frames, context, accepted, raised, refused_REASON, and the sizes of memories."""
        return {
            "frames": self._number,
            "context": self._context,
            **self._tally.statistics(),
            "pending": len(self._board),
            "pending_bytes": self._board.held_bytes,
            "forgotten_queries": self._pairs.forgotten_queries,
            "forgotten_client_responses": self._clients.forgotten,
            "forgotten_chains": self._board.forgotten,
        }

    @property
    def refusals(self) -> Mapping[Refusal, int]:
        """Frames refused, by reason."""
        return self._tally.refusals

    def _frame(self, frame: Frame, now: float) -> list[Verdict]:
        without = self._settings.resolver_frames is ResolverFrames.NONE
        match frame.type:
            case MessageType.CLIENT_RESPONSE:
                if without:
                    return self._client_alone(frame, now)
                self._context += 1
                return self._client_response(frame, now)
            case MessageType.CLIENT_QUERY:
                self._client_query(frame)
            case MessageType.RESOLVER_RESPONSE | MessageType.FORWARDER_RESPONSE if not without:
                return self._response(frame, now)
            case MessageType.RESOLVER_QUERY | MessageType.FORWARDER_QUERY if not without:
                self._context += 1
                return self._query(frame, now)
            case _:
                pass
        self._context += 1
        return []

    # What the resolver asked and was told

    def _query(self, frame: Frame, now: float) -> list[Verdict]:
        if self._settings.pairing is Pairing.OFF:
            return []
        try:
            question = question_bytes(frame.message)
        except MessageError:
            return []
        match, response = self._pairs.query(_key(frame), frame.query_port, question, self._clock)
        return [] if response is None else self._paired(response, match, now)

    def _response(self, frame: Frame, now: float) -> list[Verdict]:
        forwarder = frame.type is MessageType.FORWARDER_RESPONSE
        response = _Response(self._number, frame, forwarder)
        refusal = header_refusal(frame.message, authoritative=not forwarder) or self._border_refusal(frame)
        try:
            question = question_bytes(frame.message)
        except MessageError:
            question = b""
            refusal = refusal or Refusal.MALFORMED
        if self._settings.pairing is Pairing.OFF:
            return [Verdict(response.number, None, refusal)] if refusal else self._judge(response, now)
        if len(frame.message) < HEADER_LENGTH:
            return [Verdict(response.number, None, refusal)]
        key = _key(frame)
        match = self._pairs.response(key, frame.query_port, question)
        if match is Match.WAITING:
            # Even a refused response uses up its query, should that come later.
            kept = None if refusal else response
            size = 0 if refusal else len(frame.message)
            dropped = self._pairs.wait(key, frame.query_port, question, kept, size=size, now=self._clock)
            verdicts = [Verdict(other.number, None, Refusal.OVERLOAD) for other in dropped]
        else:
            verdicts = [] if refusal else self._paired(response, match, now)
        if refusal:
            verdicts.append(Verdict(response.number, None, refusal))
        return verdicts

    def _border_refusal(self, frame: Frame) -> Refusal | None:
        """Why the frame around the message refuses it: no zone, or a forwarder that nobody named."""
        if frame.type is MessageType.RESOLVER_RESPONSE:
            return Refusal.NO_QUERY_ZONE if frame.query_zone is None else None
        if frame.response_address:
            address = ip_address(frame.response_address)
            if any(address in network for network in self._settings.trusted_forwarders):
                return None
        return Refusal.UNTRUSTED_FORWARDER

    def _paired(self, response: _Response, match: Match, now: float) -> list[Verdict]:
        if match is Match.MISMATCH:
            return [Verdict(response.number, None, Refusal.QUESTION_MISMATCH)]
        return self._judge(response, now)

    def _judge(self, response: _Response, now: float) -> list[Verdict]:
        """Everything that one response says about itself."""
        number, frame, forwarder = response
        zone = _ROOT if forwarder or frame.query_zone is None else frame.query_zone
        try:
            message = parse(frame.message)
        except MessageError:
            return [Verdict(number, None, Refusal.MALFORMED)]
        refusal = question_refusal(message, zone, infrastructure=self._settings.infrastructure)
        if refusal is not None:
            return [Verdict(number, None, refusal)]
        learned = self._learned(frame, now)
        links: tuple[Link, ...] | Refusal = ()
        target = b""
        chain = chain_from(message.answer, message.qname, message.qtype, zone=zone)
        if isinstance(chain, Refusal):
            links = _sharper(chain, message, zone)
        else:
            links, target = limit_chain(chain.links, learned, max_ttl=self._settings.max_ttl), chain.target
        asides = tuple(swild_links(message, zone, learned, self._settings))
        if isinstance(links, Refusal):
            if not asides:
                return [Verdict(number, None, links)]
            links, target = (), b""
        case = Case(
            number,
            (message.qname, message.qtype),
            learned=learned,
            logged=frame.response_time or now,
            arrived=self._clock,
        )
        return self._board.open(
            case,
            links,
            target=target,
            asides=asides,
            level=FORWARDED if forwarder else Evidence.AUTHORITATIVE,
            sightings=self._clients.sightings,
        )

    def _learned(self, frame: Frame, now: float) -> float:
        time = frame.response_time or now
        return min(max(time, now - self._window), now)

    # What it told its clients

    def _client_query(self, frame: Frame) -> None:
        message = frame.message
        if len(message) < HEADER_LENGTH:
            return
        unchecked = message[3] & CD
        if not unchecked and not self._clients.any_unchecked:
            return
        question = _question(message)
        if question is None:
            return
        if unchecked:
            client = (frame.query_address, frame.query_port, message[:2])
            self._clients.asked_unchecked(question, client, self._clock)
        else:
            self._clients.asked_checked(question)

    def _client_response(self, frame: Frame, now: float) -> list[Verdict]:
        wire = frame.message
        question = _question(wire)
        if question is None:
            return []
        flags = wire[2] << 8 | wire[3]
        rcode = flags & RCODE
        if flags & (QR | OPCODE | TC) != QR or rcode not in (0, NXDOMAIN):
            return []
        if flags & CD or self._clients.is_unchecked_client((frame.query_address, frame.query_port, wire[:2])):
            self._board.note(question, Refusal.CLIENT_CHECKING_DISABLED)
            return []
        authenticated = bool(flags & AD)
        wanted = self._board.wants(question[0], authenticated=authenticated)
        logged = frame.response_time or now
        known = self._clients.is_known(question, logged, authenticated=authenticated)
        if known and not wanted:
            return []
        try:
            message = parse(wire)
        except MessageError:
            return []
        refusal = refusal_in(message.opt.options) if message.opt is not None else None
        if refusal is not None or message.questions != 1 or message.qclass != 1 or message.rcode != rcode:
            if refusal is not None:
                self._board.note(question, refusal)
            return []
        if not known:
            learned = self._learned(frame, now)
            self._clients.told(
                message, logged=logged, learned=learned, arrived=self._clock, authenticated=authenticated
            )
        return self._board.sight(message.answer, logged, authenticated=authenticated) if not rcode else []

    def _client_alone(self, frame: Frame, now: float) -> list[Verdict]:
        """A CLIENT_RESPONSE of a resolver that logs nothing else: AD=1, or nothing."""
        settings, number = self._settings, self._number
        wire = frame.message
        refusal = header_refusal(wire)
        if refusal is None and self._clients.is_unchecked_client((frame.query_address, frame.query_port, wire[:2])):
            refusal = Refusal.CLIENT_CHECKING_DISABLED
        if refusal is None and not wire[3] & (AD | CD):
            refusal = Refusal.NOT_VALIDATED
        if refusal is not None:
            return [Verdict(number, None, refusal)]
        answers = finished_answers(wire, self._learned(frame, now), settings, claims=Evidence.VALIDATED)
        if isinstance(answers, Refusal):
            return [Verdict(number, None, answers)]
        verdicts: list[Verdict] = []
        for answer in answers:
            if answer.evidence is not Evidence.VALIDATED:
                refusal = Refusal.RRSIG_MISSING
            elif answer.ttl <= settings.stale_ttl:
                refusal = Refusal.STALE
            elif self._fills_any(answer, now):
                refusal = Refusal.FILLED_BY_US
            else:
                verdicts.append(Verdict(number, answer, None))
        return verdicts or [Verdict(number, None, refusal)]

    def _fills_any(self, answer: Answer, now: float) -> bool:
        if self._is_filled is None:
            return False
        return any(self._is_filled(rrset.owner, rrset.type, now) for rrset in answer.rrsets)


def _key(frame: Frame) -> Key:
    return Key(
        frame.type is MessageType.FORWARDER_QUERY or frame.type is MessageType.FORWARDER_RESPONSE,
        frame.response_address,
        frame.response_port,
        frame.protocol not in _DATAGRAM,
        frame.message[:2],
    )


def _question(wire: bytes) -> Question | None:
    try:
        name, qtype, _, _ = first_question(wire)
    except MessageError:
        return None
    return name.lower(), qtype


def _sharper(refusal: Refusal, message: Message, zone: bytes) -> Refusal:
    """`OUT_OF_ZONE` instead of `NO_ANSWER` when there are answer records, none of them in the zone."""
    if refusal is not Refusal.NO_ANSWER or not message.answer:
        return refusal
    inside = any(is_at_or_below(rrset.owner, zone) for rrset in message.answer)
    return refusal if inside else Refusal.OUT_OF_ZONE
