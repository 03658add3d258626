"""dnstap frames made to measure, for the tests of the trust rules: a resolver's exchanges with servers and clients.

Built with dnspython and the dnstap schema, so that they share no code with what they test but the schema's encoder.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import dns.edns
import dns.flags
import dns.message
import dns.name
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from cachebus.answer import Answer, Evidence, Refusal
from cachebus.filters.trust import DnstapJudge, JudgeSettings
from cachebus.filters.verdict import Verdict
from cachebus.wire import dnstap_pb2
from cachebus.wire.message import records

NOW = 1_795_237_865.0
"""20 November 2026, 15:11 UTC."""
ZONE = "example.test."
SERVER = bytes((192, 0, 2, 53))
RESOLVER = bytes((192, 0, 2, 1))
CLIENT = bytes((192, 0, 2, 99))
SIGNATURE = "c2lnbmF0dXJl"


def at(seconds: int) -> str:
    """A time `seconds` from `NOW` as an RRSIG's text has it: seconds since the epoch."""
    return str(int(NOW) + seconds)


def rrsig(
    owner: str,
    covered: str,
    *,
    ttl: int = 300,
    labels: int | None = None,
    original: int = 300,
    expiration: int = 86400,
    inception: int = -86400,
    signer: str = ZONE,
) -> str:
    """An RRSIG record as text; times are relative to `NOW`."""
    count = len(dns.name.from_text(owner).labels) - 1 if labels is None else labels
    times = f"{at(expiration)} {at(inception)}"
    return f"{owner} {ttl} RRSIG {covered} 13 {count} {original} {times} 4711 {signer} {SIGNATURE}"


def message(
    qname: str,
    qtype: str,
    answer: Iterable[str] = (),
    *,
    flags: str = "QR",
    rcode: int = 0,
    ident: int = 1,
    qclass: str = "IN",
    authority: Iterable[str] = (),
    options: Sequence[dns.edns.Option] | None = None,
    questions: int = 1,
) -> bytes:
    """A DNS message; records as `OWNER TTL TYPE RDATA`, each an RRset of its own, so that any nonsense can be said."""
    made = dns.message.QueryMessage(id=ident)
    made.flags = dns.flags.from_text(flags)
    if options is not None:
        made.use_edns(0, options=list(options))
    made.set_rcode(rcode)
    for _ in range(questions):
        question = dns.rrset.RRset(
            dns.name.from_text(qname), dns.rdataclass.from_text(qclass), dns.rdatatype.from_text(qtype)
        )
        made.question.append(question)
    for section, lines in ((made.answer, answer), (made.authority, authority)):
        for line in lines:
            owner, ttl, rrtype, rdata = line.split(maxsplit=3)
            section.append(dns.rrset.from_text(owner, int(ttl), "IN", rrtype, rdata))
    return made.to_wire(want_shuffle=False)


def frame(
    kind: str,
    wire: bytes,
    *,
    time: float = NOW,
    port: int = 40000,
    zone: str | None = None,
    protocol: int = 1,
    server: bytes = SERVER,
    client: bytes = CLIENT,
) -> bytes:
    """One dnstap payload. For CLIENT_ frames `client` and `port` are the client's, else the resolver asks `server`."""
    outer = dnstap_pb2.Dnstap(type=dnstap_pb2.Dnstap.MESSAGE)
    inner = outer.message
    inner.type = dnstap_pb2.Message.Type.Value(kind)
    inner.socket_family = 1
    inner.socket_protocol = protocol
    of_client = kind.startswith("CLIENT")
    inner.query_address = client if of_client else b"\0\0\0\0"
    inner.response_address = RESOLVER if of_client else server
    inner.query_port = port
    inner.response_port = 53
    seconds, fraction = divmod(round(time * 1_000_000), 1_000_000)
    if kind.endswith("_RESPONSE"):
        inner.response_message = wire
        inner.response_time_sec, inner.response_time_nsec = seconds, fraction * 1000
    else:
        inner.query_message = wire
        inner.query_time_sec, inner.query_time_nsec = seconds, fraction * 1000
    if zone is not None:
        inner.query_zone = dns.name.from_text(zone).to_wire()
    payload: bytes = outer.SerializeToString()
    return payload


@dataclass
class Lab:
    """Makes frames whose IDs and ports never repeat."""

    serial: int = 0
    time: float = NOW

    def next(self) -> tuple[int, int]:
        """A fresh (ID, port)."""
        self.serial += 1
        return 1 + self.serial * 7 % 65535, 1024 + self.serial % 64000

    def query(
        self,
        qname: str,
        qtype: str,
        ident: int,
        port: int,
        *,
        zone: str | None = ZONE,
        protocol: int = 1,
        kind: str = "RESOLVER",
    ) -> bytes:
        """A RESOLVER_QUERY."""
        wire = message(qname, qtype, flags="CD", ident=ident, options=())
        return frame(f"{kind}_QUERY", wire, time=self.time, port=port, zone=zone, protocol=protocol)

    def exchange(
        self,
        qname: str,
        qtype: str,
        answer: Iterable[str] = (),
        *,
        zone: str | None = ZONE,
        flags: str = "QR AA",
        wire: bytes | None = None,
        kind: str = "RESOLVER",
        server: bytes = SERVER,
        **more: object,
    ) -> list[bytes]:
        """A RESOLVER_QUERY and its RESOLVER_RESPONSE; `wire` replaces the response but for its ID."""
        ident, port = self.next()
        asked = message(qname, qtype, flags="CD", ident=ident, options=())
        told = message(qname, qtype, answer, flags=flags, ident=ident, **more) if wire is None else wire  # type: ignore[arg-type]
        told = ident.to_bytes(2, "big") + told[2:]
        return [
            frame(f"{kind}_QUERY", asked, time=self.time, port=port, zone=zone, server=server),
            frame(f"{kind}_RESPONSE", told, time=self.time, port=port, zone=zone, server=server),
        ]

    def client(
        self,
        qname: str,
        qtype: str,
        answer: Iterable[str] = (),
        *,
        flags: str = "QR RD RA",
        later: float = 0.001,
        **more: object,
    ) -> bytes:
        """A CLIENT_RESPONSE."""
        ident, port = self.next()
        wire = message(qname, qtype, answer, flags=flags, ident=ident, **more)  # type: ignore[arg-type]
        return frame("CLIENT_RESPONSE", wire, time=self.time + later, port=port)

    def learned(
        self, qname: str, qtype: str, answer: Sequence[str], *, flags: str = "QR RD RA", **more: object
    ) -> list[bytes]:
        """An exchange, and the client that was given the same."""
        return [*self.exchange(qname, qtype, answer, **more), self.client(qname, qtype, answer, flags=flags)]  # type: ignore[arg-type]


def settings(*trust: Evidence, **more: object) -> JudgeSettings:
    """Settings with these levels."""
    return JudgeSettings(node="n1", trust=frozenset(trust or {Evidence.CONFIRMED}), **more)  # type: ignore[arg-type]


@dataclass
class Outcome:
    """What a judge made of some frames in the end."""

    verdicts: list[Verdict] = field(default_factory=list)

    @property
    def answers(self) -> list[Answer]:
        """The last answer of each frame and question."""
        last = {(v.frame, v.answer.qname, v.answer.qtype): v.answer for v in self.verdicts if v.answer is not None}
        return list(last.values())

    @property
    def refusals(self) -> dict[int, Refusal]:
        """Reason by frame; a frame refused twice, or refused after it was accepted, fails the test."""
        found: dict[int, Refusal] = {}
        accepted: set[int] = set()
        for verdict in self.verdicts:
            if verdict.answer is not None:
                assert verdict.frame not in found, "accepted after it was refused"
                accepted.add(verdict.frame)
            else:
                assert verdict.frame not in found, "refused twice"
                assert verdict.frame not in accepted, "refused after it was accepted"
                assert verdict.reason is not None
                found[verdict.frame] = verdict.reason
        return found

    @property
    def reasons(self) -> set[Refusal]:
        """Every reason that occurred."""
        return set(self.refusals.values())

    def shown(self) -> set[tuple[str, str, int, str]]:
        """(name, type, TTL, evidence) of each answer."""
        return {(answer.name, answer.type, answer.ttl, answer.evidence.text) for answer in self.answers}

    def questions(self) -> set[tuple[str, str]]:
        """(name, type) of each answer."""
        return {(answer.name, answer.type) for answer in self.answers}

    def owners(self) -> set[str]:
        """Owners of every record given out."""
        return {dns.name.from_wire(rrset.owner, 0)[0].to_text() for answer in self.answers for rrset in answer.rrsets}


def rdatas(answer: Answer) -> list[bytes]:
    """The RDATA of an answer's RRsets in order, RRSIGs left out."""
    return [rdata for rrset in answer.rrsets for _, _, rdata in records(rrset.rrs)]


def run(frames: Iterable[bytes], using: JudgeSettings | None = None, *, judge: DnstapJudge | None = None) -> Outcome:
    """Feed frames at `NOW`, then let every window close."""
    judge = judge or DnstapJudge(using or settings())
    outcome = Outcome()
    for payload in frames:
        outcome.verdicts += judge.feed(payload, NOW)
    outcome.verdicts += judge.expire(NOW + 60)
    assert judge.statistics()["pending"] == 0
    assert judge.statistics()["pending_bytes"] == 0
    return outcome
