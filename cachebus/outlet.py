"""One transport with its codec: where answers wait for company until it is worth a message.

Decides when what waits is sent: at once for a codec that sends answers one by one, else when there are enough, or the
oldest has waited for long enough. Knows neither queue nor timer: the publisher asks for `due` and calls `flush`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cachebus.answer import Answer
from cachebus.flushes import Flush
from cachebus.ports import Codec, LeftOut, Transport

_OVERHEAD = 16
"""Bytes of an answer on the wire besides its names and records, about: it only decides how many go together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Collect:
    """When answers that wait for company are sent: whichever comes first."""

    count: int
    """So many wait."""
    octets: int
    """They are about so many bytes together."""
    interval: float
    """The oldest has waited for so many seconds."""


class Outlet:
    """Sends answers on one transport. `collect`: None for a codec whose messages hold one answer each."""

    def __init__(self, name: str, codec: Codec, transport: Transport, collect: Collect | None = None) -> None:
        self.name = name
        self.codec = codec
        self.transport = transport
        self._collect = collect
        self._waiting: list[Answer] = []
        self._octets = 0
        self.due: float | None = None
        """When `flush` has to be called at the latest, by the clock that `send` was given as `monotonic`."""

    def send(self, answers: Sequence[Answer], now: float, monotonic: float) -> list[LeftOut]:
        """Take answers to be sent now or soon; give those that were left out, earlier ones among them."""
        collect = self._collect
        if collect is None:
            return self._emit(answers, now)
        left: list[LeftOut] = []
        for answer in answers:
            self._waiting.append(answer)
            self._octets += _size(answer)
            if len(self._waiting) >= collect.count or self._octets >= collect.octets:
                left += self.flush(now)
        if self._waiting and self.due is None:
            self.due = monotonic + collect.interval
        return left

    def flush(self, now: float) -> list[LeftOut]:
        """Send what waits; give what was left out of it."""
        waiting, self._waiting, self._octets, self.due = self._waiting, [], 0, None
        return self._emit(waiting, now) if waiting else []

    def forget(self, flush: Flush) -> list[Answer]:
        """Let go of what was flushed and waits here; gives it."""
        gone = [answer for answer in self._waiting if is_flushed(answer, flush)]
        self._waiting = [answer for answer in self._waiting if answer not in gone]
        return gone

    def greet(self, now: float) -> None:
        """Say who is here, if the codec can: that shows peers what they missed when nothing else is sent."""
        self._send_if(self.codec.hello(now))

    def take_leave(self) -> None:
        """Say that this stream has ended, if the codec can."""
        self._send_if(self.codec.will())

    @property
    def waiting(self) -> int:
        """Answers that wait for company."""
        return len(self._waiting)

    def _emit(self, answers: Sequence[Answer], now: float) -> list[LeftOut]:
        messages, left = self.codec.encode(answers, now)
        for message in messages:
            self.transport.send(message)
        return left

    def _send_if(self, message: bytes | None) -> None:
        if message is not None:
            self.transport.send(message)


def is_flushed(answer: Answer, flush: Flush) -> bool:
    """Whether a flush takes a part of an answer."""
    return any(flush.covers(rrset.owner) for rrset in answer.rrsets)


def _size(answer: Answer) -> int:
    return _OVERHEAD + sum([len(rrset[0]) + len(rrset[3]) + len(rrset[4]) for rrset in answer[2]])
