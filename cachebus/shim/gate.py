"""Who is served, and how often: access list, cookies and rate limit as one look at each message.

Decides by address, EDNS options and time; knows no data. A message without EDNS options, where no rate is limited,
needs `allows` alone.
"""

from __future__ import annotations

from typing import NamedTuple

from cachebus.shim.access import LOOPBACK, AccessList, Network
from cachebus.shim.cookies import COOKIE, Cookie, Proof, ServerCookies
from cachebus.shim.front import FrontSettings
from cachebus.shim.limits import RateLimiter, Verdict
from cachebus.shim.query import Channel, Error, Query, find_option
from cachebus.shim.reply import compose_error
from cachebus.wire.message import FORMERR, NOERROR, REFUSED, TC

BADCOOKIE = 23
"""Extended RCODE: ask again, with the cookie that is in this reply (RFC 7873 section 8)."""

_COUNTERS = {Proof.GOOD: "cookie_valid", Proof.BAD: "cookie_invalid", Proof.NONE: "cookie_first"}


class Turned(NamedTuple):
    """A message that is not looked at further: what it gets, None for silence."""

    reply: bytes | None


class Gate:
    """Takes every message before its question is looked up."""

    def __init__(self, allow: tuple[Network, ...] = LOOPBACK, settings: FrontSettings | None = None) -> None:
        settings = settings or FrontSettings()
        self.allows = AccessList(allow, settings.deny).allows
        """Whether an address is served. Looked up each time: no client's address outlives its question."""
        self._padding = settings.padding
        self.limiter = None if settings.rate_limit is None else RateLimiter(settings.rate_limit)
        """None when no rate is limited, so that whoever asks need not come here."""
        self._cookies = None if settings.cookies is None else ServerCookies(settings.cookies)
        self.counters = dict.fromkeys(
            ("cookie_malformed", *_COUNTERS.values(), "limited_slipped", "limited_dropped", "limited_refused"), 0
        )

    def pads(self, channel: Channel) -> bool:
        """Whether replies over this channel hide their length: never where the bytes travel in the clear."""
        return self._padding and channel.is_encrypted

    def statistics(self) -> dict[str, int]:
        """Counters since the start."""
        evicted = 0 if self.limiter is None else self.limiter.evicted
        return {**self.counters, "limiter_evicted": evicted}

    def take(self, query: Query | Error, client: str, channel: Channel, now: float) -> bytes | Turned:
        """The EDNS options that the reply is to carry, or `Turned` for a message that ends here.

        `client`: the address it came from; not one that is no address.
        """
        edns = query.edns
        cookie = None
        if self._cookies is not None and edns is not None and edns.options:
            data = find_option(edns.options, COOKIE)
            if data is not None:
                cookie = self._cookies.check(data, client, now)
                if cookie is None:
                    self.counters["cookie_malformed"] += 1
                    return self._turn(query, FORMERR, b"", channel)
                self.counters[_COUNTERS[cookie.proof]] += 1
        if self.limiter is not None:
            verified = channel is not Channel.UDP or (cookie is not None and cookie.proof is Proof.GOOD)
            verdict = self.limiter.judge(client, now, verified=verified)
            if verdict is not Verdict.PASS:
                return self._over(query, cookie, channel, slips=verdict is Verdict.SLIP)
        if cookie is None:
            return b""
        if isinstance(query, Error) and query.rcode == FORMERR and not query.question:
            # Without a question, a cookie is what is asked for (RFC 7873 section 5.4).
            rcode = BADCOOKIE if cookie.proof is Proof.BAD else NOERROR
            return self._turn(query, rcode, cookie.option, channel)
        return cookie.option

    def _over(self, query: Query | Error, cookie: Cookie | None, channel: Channel, *, slips: bool) -> Turned:
        """What a question over the limit gets: silence, or a reply of about its size that shows an honest client how
        to prove its address, by the cookie or over TCP. Over a stream nothing is left to prove: it is refused."""
        options = b"" if cookie is None else cookie.option
        if channel is not Channel.UDP:
            self.counters["limited_refused"] += 1
            return self._turn(query, REFUSED, options, channel)
        if not slips or isinstance(query, Error):
            self.counters["limited_dropped"] += 1
            return Turned(None)
        self.counters["limited_slipped"] += 1
        if cookie is not None and cookie.proof is not Proof.GOOD:
            return self._turn(query, BADCOOKIE, options, channel)
        reply = self._turn(query, NOERROR, options, channel).reply or b""
        return Turned(reply[:2] + bytes((reply[2] | TC >> 8,)) + reply[3:])

    def _turn(self, query: Query | Error, rcode: int, options: bytes, channel: Channel) -> Turned:
        error = Error(query.id, query.flags, query.question, query.edns, rcode)
        return Turned(compose_error(error, options, padded=self.pads(channel)))
