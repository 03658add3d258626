"""Targets: what a warm Unbound tells of its cache, from the text of the dump to answers."""

from __future__ import annotations

from random import Random

import dns.exception
import dns.name
import dns.rdata
import dns.rdatatype

from cachebus.answer import Evidence
from cachebus.errors import FrameError, MessageError
from cachebus.filters.cached import CacheEntry, CacheJudge
from cachebus.filters.settings import JudgeSettings
from cachebus.presentation import type_to_text
from cachebus.unbound.reader import MAX_LINE, DumpReader, Entry, Security, to_message
from cachebus.wire.message import parse
from tests.fuzz.bus import NOW
from tests.fuzz.grammar import DNAME, RRSIG, make_chain, pick_name, pick_type
from tests.fuzz.harness import Part, Target
from tests.fuzz.messages import BytesTarget
from tests.fuzz.mutate import below

_JUDGED_IN = (3600, 60, 2, 0)
"""Seconds of uptime."""


class WarmTarget(BytesTarget):
    """`DumpReader`, `to_message`, `CacheJudge`: answers with true TTLs, or the documented refusals; bounded memory."""

    name = "unbound-warm"
    parts = (Part("cachebus/unbound/reader.py"), Part("cachebus/filters/cached.py", without=("CacheJudge.judges_as",)))
    cost = 3

    def valid(self, rng: Random) -> bytes:
        rrsets: list[str] = []
        messages: list[str] = []
        for _ in range(1 + below(rng, 3)):
            _add_answer(rng, rrsets, messages)
        lines = [
            "START_RRSET_CACHE",
            *rrsets,
            "END_RRSET_CACHE",
            "START_MSG_CACHE",
            *messages,
            "END_MSG_CACHE",
            "EOF",
            "",
        ]
        return "\n".join(lines).encode("ascii")

    def mutated(self, rng: Random) -> bytes:
        if rng.random() < 0.3:
            return super().mutated(rng)
        lines = self.valid(rng).split(b"\n")
        for _ in range(1 + below(rng, 3)):
            at = below(rng, len(lines))
            die = rng.random()
            if die < 0.3:
                words = lines[at].split(b" ")
                words[below(rng, len(words))] = _WORDS[below(rng, len(_WORDS))]
                lines[at] = b" ".join(words)
            elif die < 0.5:
                lines.insert(at, lines[below(rng, len(lines))])
            elif die < 0.7 and len(lines) > 1:
                del lines[at]
            elif die < 0.95:
                lines[at] = lines[at][: below(rng, len(lines[at]) + 1)] + _WORDS[below(rng, len(_WORDS))]
            elif die < 0.951:
                lines[at] = b"x" * (MAX_LINE + 2)
        return b"\n".join(lines)

    def check(self, example: bytes, rng: Random) -> bool:
        bound = 1 << (20 if rng.random() < 0.8 else 9 + below(rng, 4))
        reader = DumpReader(max_bytes=bound)
        step = 1 + below(rng, 4000)
        try:
            for at in range(0, len(example), step):
                reader.receive_data(example[at : at + step])
            reader.receive_end()
        except FrameError:
            return False
        counts = reader.statistics()
        size = sum(
            len(line) for rrset in {id(r): r for e in reader.entries for r in e.rrsets}.values() for line in rrset.lines
        )
        assert size <= bound
        assert len(reader.entries) + counts["not_positive"] + counts["incomplete"] <= counts["messages"]
        judge = CacheJudge(
            JudgeSettings(node="n1", trust=frozenset(Evidence), validating=True), min_ttl=2, on_held=_held
        )
        taken = False
        for entry in reader.entries:
            taken = _one(entry, judge, rng) or taken
        judge.feed(rng.randbytes(below(rng, 40)), NOW)
        judge.statistics()
        return taken


_WORDS = (
    b"", b"IN", b"CH", b"0", b"-1", b"5", b"8", b"3", b"99999", b"99999999999", b"TYPE65536", b"TYPE0", b"A", b"CNAME",
    b"RRSIG", b"\\# 4 c0000201", b"\\# 2 00", b"\\", b"\\999", b"\\300.", b".", b"a..b.", b'"', b"(", b")", b";", b"@",
    b"\xff", b"msg", b";rrset", b";rrset nsec_apex 1 1 0 8 0", b"a.test. IN A 0", b"a.test.\t60\tIN\tA\t192.0.2.1",
    b"32896", b"9999999999",
    b"32912", b"33408", b"32899", b"EOF", b"END_RRSET_CACHE", b"BADRR", b"0.0.0.0", b"::", b"5000", b"65535",
)  # fmt: skip


def _one(entry: Entry, judge: CacheJudge, rng: Random) -> bool:
    elapsed = below(rng, 4) * 20.0
    try:
        message = to_message(entry, elapsed)
    except MessageError:
        return False
    parsed = parse(message)  # what is composed here is never malformed
    assert all(rrset.ttl < 1 << 31 for rrset in parsed.answer)
    uptime = _JUDGED_IN[below(rng, 4)]
    taken = False
    for _, answer, reason in judge.feed(CacheEntry(entry.security.value, uptime, message).pack(), NOW):
        assert (answer is None) != (reason is None)
        if answer is None:
            continue
        taken = True
        assert NOW - uptime <= answer.learned <= NOW
        assert 2 <= answer.learned + answer.ttl - NOW <= max(rrset.ttl for rrset in parsed.answer)
        assert (answer.evidence is Evidence.VALIDATED) == (entry.security is Security.SECURE)
        assert entry.security not in (Security.BOGUS, Security.SENTINEL)
    return taken


def _held(name: bytes, rrtype: int, expires: float, negative: bool) -> None:
    assert expires > NOW
    assert not negative


def _add_answer(rng: Random, rrsets: list[str], messages: list[str]) -> None:
    """A chain of the grammar, as Unbound writes it."""
    qname, qtype = pick_name(rng), pick_type(rng)
    usual = rng.random() < 0.8
    security = (5, 3, 2, 0)[below(rng, 4)] if usual else below(rng, 7)
    groups: dict[tuple[bytes, int], tuple[list[str], list[str], int]] = {}
    last = (qname, qtype)
    for record in make_chain(rng, qname, qtype, NOW, usual=True):
        text = _line(record.owner, record.type, record.ttl, b"".join(record.rdata), rng)
        if record.type == RRSIG:
            groups.setdefault(last, ([], [], record.ttl))[1].append(text)
        else:
            last = (record.owner, record.type)
            groups.setdefault(last, ([], [], record.ttl))[0].append(text)
    references = []
    for (owner, rrtype), (records, signatures, ttl) in groups.items():
        trust = 11 if security == 5 else 8
        if not usual and rng.random() < 0.2:
            trust = 5
        apex = " nsec_apex" if rng.random() < 0.05 else ""
        rrsets.append(f";rrset{apex} {ttl} {len(records)} {len(signatures)} {trust} {security}")
        rrsets += records + signatures
        references.append(f"{_text(owner)} IN {type_to_text(rrtype)} {0 if rng.random() < 0.98 else 2}")
        if rrtype == DNAME and rng.random() < 0.1:
            break
    tail = "" if rng.random() < 0.5 else " -1"
    flags = 32896 if rng.random() < 0.9 else (32912, 32899, 33408, 128, 33280)[below(rng, 5)]
    messages.append(f"msg {_text(qname)} IN {type_to_text(qtype)} {flags} 1 300 {security} {len(references)} 0 0{tail}")
    messages += references


def _text(name: bytes) -> str:
    return dns.name.from_wire(name, 0)[0].to_text()


def _line(owner: bytes, rrtype: int, ttl: int, rdata: bytes, rng: Random) -> str:
    generic = f"\\# {len(rdata)} {rdata.hex()}"
    try:
        text = (
            generic
            if rng.random() < 0.1
            else dns.rdata.from_wire("IN", dns.rdatatype.RdataType.make(rrtype), rdata, 0, len(rdata)).to_text()
        )
    except dns.exception.DNSException:
        text = generic
    return f"{_text(owner)}\t{ttl}\tIN\t{type_to_text(rrtype)}\t{text}"


TARGETS: tuple[type[Target[bytes]], ...] = (WarmTarget,)
