"""The zone of the SWILD cases, its server, and a shim before it whose clock a test moves. No test is in here."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype

from cachebus.answer import Answer
from cachebus.cache import Cache
from cachebus.presentation import name_from_text
from cachebus.shim import Shim, UpstreamSettings
from cachebus.shim.swild_owners import Include, SwildSettings
from cachebus.testing import ManualClock
from tests.unit.shim_bed import ScriptedUpstream, ask, records, reply_to, settings, texts

NOW = 1_800_000_000.0
SWILD = "TYPE65392"
CAP_OFF = 7 * 86400
FOO = (
    "foo.com. 3600 IN SOA ns.foo.com. host.foo.com. 1 7200 3600 604800 60",
    "_.foo.com. 3600 IN CNAME map.bar.net.",
    "*.foo.com. 600 IN CNAME _.foo.com.",
)
BAR = ("bar.net. 3600 IN SOA ns.bar.net. host.bar.net. 1 7200 3600 604800 60", "map.bar.net. 600 IN A 202.38.64.10")


def swild(owner: str = "foo.com.", *targets: str, ttl: int = 86400) -> list[str]:
    """Records of a SWILD RRset, in the form that any server takes."""
    found = []
    for target in targets or (f"_.{owner}",):
        rdata = name_from_text(target)
        found.append(f"{owner} {ttl} IN {SWILD} \\# {len(rdata)} {rdata.hex()}")
    return found


class Authority(ScriptedUpstream):
    """Answers from zone lines, wildcards included, and follows CNAMEs; `asides` go beside every answer, as they are."""

    def __init__(self, *lines: str, asides: Iterable[str] = (), aa: bool = True) -> None:
        super().__init__(self._answer)
        self.asides = list(asides)
        self.asked: list[str] = []
        self.aa = aa
        self.ad = False
        self.authority: list[str] = []
        """Goes into the authority section of positive answers."""
        self.load(*lines)

    def load(self, *lines: str) -> None:
        self.data: dict[tuple[str, str], list[str]] = {}
        for line in lines:
            owner, _, _, rrtype, _ = line.split(None, 4)
            self.data.setdefault((owner.lower(), rrtype), []).append(line)

    def _answer(self, query: dns.message.Message, stream: bool) -> bytes:
        name, rrtype = query.question[0].name.to_text().lower(), dns.rdatatype.to_text(query.question[0].rdtype)
        self.asked.append(f"{name} {rrtype}")
        answer: list[str] = []
        authority: list[str] = []
        rcode = dns.rcode.NOERROR
        for _ in range(8):
            final, alias = self._at(name, rrtype), self._at(name, "CNAME")
            answer += final or alias
            if final or not alias:
                exists = final or self._exists(name)
                rcode = dns.rcode.NOERROR if exists else dns.rcode.NXDOMAIN
                authority = self.authority if final else self._soa(name)
                break
            name = alias[0].split()[-1]
        return reply_to(
            query,
            records(*answer, *self.asides) if answer or self.asides else (),
            authority=records(*authority) if authority else (),
            flags=(dns.flags.AA if self.aa else 0) | (dns.flags.AD if self.ad else 0),
            rcode=rcode,
        )

    def _at(self, name: str, rrtype: str) -> list[str]:
        found = self.data.get((name, rrtype))
        if found is not None:
            return found
        encloser = name
        while encloser != "." and not self._exists(encloser):
            encloser = encloser.partition(".")[2] or "."
        if encloser == name:
            return []
        lines = self.data.get((f"*.{encloser}", rrtype), [])
        return [f"{name} {line.split(None, 1)[1]}" for line in lines]

    def _exists(self, name: str) -> bool:
        return any(owner == name or owner.endswith(f".{name}") for owner, _ in self.data)

    def _soa(self, name: str) -> list[str]:
        apexes = [owner for owner, rrtype in self.data if rrtype == "SOA" and f".{name}".endswith(f".{owner}")]
        return self.data[max(apexes, key=len), "SOA"] if apexes else []


class Bed:
    """A shim, its clock, its cache and the authority behind it."""

    def __init__(self, shim: Shim, cache: Cache, clock: ManualClock, authority: Authority) -> None:
        self.shim = shim
        self.cache = cache
        self.clock = clock
        self.authority = authority

    def at(self, seconds: float) -> None:
        """The clock shows so much after the start, whatever it showed."""
        self.clock.now = NOW + seconds

    async def ask(self, name: str, rrtype: str = "A", **options: Any) -> tuple[dns.message.Message, list[str]]:
        """The reply, and what the authority was asked for it."""
        before = len(self.authority.asked)
        reply = await ask(self.shim.endpoints[0], name, rrtype, **options)
        assert not reply.flags & dns.flags.AA
        return reply, self.authority.asked[before:]

    async def learn(self) -> None:
        """Time 0: the answer of the draft, with the SWILD in it."""
        self.at(0)
        reply, asked = await self.ask("xxx.foo.com.")
        assert asked == ["xxx.foo.com. A"]
        assert texts(reply.answer) == chain("xxx.foo.com.")
        self.authority.asides = []

    def count(self, name: str) -> int:
        return self.shim.statistics().get(name, 0)


def chain(owner: str, cname: int = 600, middle: int = 3600, address: int = 600) -> list[str]:
    return [
        f"{owner} {cname} IN CNAME _.foo.com.",
        f"_.foo.com. {middle} IN CNAME map.bar.net.",
        f"map.bar.net. {address} IN A 202.38.64.10",
    ]


@asynccontextmanager
async def swild_bed(
    authority: Authority | None = None,
    *,
    authoritative: bool = True,
    validating: bool = False,
    learned: Callable[[Answer], object] = lambda answer: None,
    cache: Cache | None = None,
    **changes: Any,
) -> AsyncIterator[Bed]:
    """A shim before `authority`, or before one of the two zones that hands out the SWILD; SWILD is on for all names."""
    server = authority or Authority(*FOO, *BAR, *swild(), asides=swild())
    options = {"zones": frozenset({b"\0"}), "ttl_cap": CAP_OFF, "include": Include.OFF, "discover": False, **changes}
    clock, held = ManualClock(NOW), cache or Cache("node-a")
    async with server:
        upstream = UpstreamSettings(address=server.address, authoritative=authoritative, validating=validating)
        chosen = settings(upstream, swild=SwildSettings(**options), refresh=False)
        async with Shim(chosen, held, learned, clock) as shim:
            yield Bed(shim, held, clock, server)
