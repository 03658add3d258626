"""Targets: the judges (`filters`): whatever a resolver logs, a client is told or an upstream sends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_network
from itertools import pairwise
from random import Random
from typing import Any, NamedTuple

from cachebus.answer import Answer, Evidence, Refusal
from cachebus.errors import MessageError
from cachebus.filters import clients, pairing, pending
from cachebus.filters.chain import MAX_CNAMES, assemble, chain_from
from cachebus.filters.direct import DirectJudge
from cachebus.filters.edns import refusal_in
from cachebus.filters.settings import JudgeSettings, Pairing, ResolverFrames
from cachebus.filters.trust import DnstapJudge
from cachebus.filters.upstream import UpstreamTrust, judge_upstream
from cachebus.filters.verdict import Verdict
from cachebus.wire.dnstap import MessageType, SocketProtocol, encode
from cachebus.wire.message import parse
from tests.fuzz.bus import blanked, check_answer
from tests.fuzz.frames import captured
from tests.fuzz.grammar import (
    AA,
    AD,
    CD,
    CNAME,
    NAMES,
    QR,
    RA,
    RD,
    SWILD,
    TXT,
    A,
    Shape,
    make_chain,
    make_message,
    make_options,
    make_rrset,
    parent,
    worst_message,
)
from tests.fuzz.harness import Part, Target
from tests.fuzz.messages import WORST, BytesTarget
from tests.fuzz.mutate import below, mutate

NOW = 1_795_237_865
"""20 November 2026, as in the captures."""
SERVER = bytes((192, 0, 2, 53))
SMALL = {
    pending: {"MAX_CASES": 6, "MAX_CASE_BYTES": 20_000, "MAX_LOOKS": 3, "MAX_SAME_RRSET": 3, "MAX_WAITERS": 2},
    pairing: {"MAX_QUERIES": 5, "MAX_WAITING": 4, "MAX_WAITING_BYTES": 3000, "RECENT_PORTS": 3},
    clients: {"MAX_SIGHTINGS": 8, "MAX_KNOWN": 3, "MAX_CHECKING_DISABLED": 3},
}
"""Bounds that a few frames reach, for every other judge: what happens at a bound is fuzzed as well."""


@contextmanager
def bounds(values: dict[Any, dict[str, int]]) -> Iterator[None]:
    """Other bounds for a while."""
    before = {module: {name: getattr(module, name) for name in found} for module, found in values.items()}
    for module, found in values.items():
        for name, value in found.items():
            setattr(module, name, value)
    try:
        yield
    finally:
        for module, found in before.items():
            for name, value in found.items():
                setattr(module, name, value)


def judge_settings(rng: Random, **more: Any) -> JudgeSettings:
    """Any settings."""
    return JudgeSettings(
        name="resolver",
        node="n1",
        trust=frozenset({Evidence(1 + below(rng, 3))}),
        claims=Evidence(1 + below(rng, 3)),
        pairing=Pairing.REQUIRE if rng.random() < 0.7 else Pairing.OFF,
        resolver_frames=ResolverFrames.NORMAL if rng.random() < 0.8 else ResolverFrames.NONE,
        validating=rng.random() < 0.5,
        trusted_forwarders=(ip_network("192.0.2.0/24"), ip_network("2001:db8::/32")) if rng.random() < 0.5 else (),
        infrastructure=rng.random() < 0.2,
        max_ttl=86400 if rng.random() < 0.8 else 1 + below(rng, 600),
        swild=SWILD if rng.random() < 0.8 else None,
        **more,
    )


class DnstapJudgeTarget(Target[bytes]):
    """`DnstapJudge`: any frames in any order get one final word each, and leave nothing behind."""

    name = "judge-dnstap"
    parts = tuple(
        Part(f"cachebus/filters/{name}.py") for name in ("trust", "pairing", "pending", "clients", "memory", "form")
    )
    block = 60
    cost = 4
    calls = 2

    def __init__(self) -> None:
        self._captured = captured()

    def begin(self, rng: Random) -> None:
        self._settings = judge_settings(rng, evidence_window=10.0 if rng.random() < 0.8 else 0.5)
        self._bounds: dict[Any, dict[str, int]] = SMALL if rng.random() < 0.5 else {}
        held: Callable[..., None] | None = self._on_held if rng.random() < 0.5 else None
        filled = (lambda name, rrtype, now: bool(name[0] & 1)) if rng.random() < 0.5 else None
        with bounds(self._bounds):
            self._judge = DnstapJudge(self._settings, on_held=held, is_filled=filled)
        self._queue: list[tuple[bytes, bool]] = []
        self._now = float(NOW)
        self._fed = 0
        self._refused: set[int] = set()
        self._accepted: set[int] = set()

    def _on_held(self, name: bytes, rrtype: int, expires: float, negative: bool) -> None:
        assert expires > 0
        assert name == name.lower()

    def draw(self, rng: Random) -> tuple[bytes, bool]:
        die = rng.random()
        if die < 0.02:
            return rng.randbytes(below(rng, 60)), False
        if die < 0.06:
            return self._captured[below(rng, len(self._captured))], False
        if die < 0.13:
            return mutate(rng, self._captured[below(rng, len(self._captured))], self._captured), True
        if not self._queue:
            self._queue = self._exchanges(rng)
        return self._queue.pop(0 if rng.random() < 0.9 else -1)

    def valid(self, rng: Random) -> bytes:
        raise NotImplementedError  # `draw` makes its own mixture

    mutated = noise = valid

    def _exchanges(self, rng: Random) -> list[tuple[bytes, bool]]:
        """What a resolver logs of one question; sometimes of several, because a chain went on elsewhere."""
        if rng.random() < 0.7:
            return self._exchange(rng, Shape(NOW))
        names = rng.sample(NAMES[3:8], 2 + below(rng, 3))
        qtype = A if rng.random() < 0.8 else TXT
        signed = rng.random() < 0.5
        frames = []
        for name, target in pairwise([*names, None]):
            assert name is not None
            kind = CNAME if target is not None else qtype
            records = make_rrset(rng, name, kind, NOW, signed=signed, target=target)
            frames.append(self._exchange(rng, Shape(NOW, qname=name, qtype=qtype, answer=tuple(records), usual=True)))
        if rng.random() < 0.3:
            rng.shuffle(frames)
        return [frame for found in frames for frame in found]

    def _exchange(self, rng: Random, shape: Shape) -> list[tuple[bytes, bool]]:
        """Query, response, what clients were told; changed alike, mostly."""
        change = rng.random() < (0.72 if shape.answer is None else 0.6)
        ident, port = below(rng, 4), 1024 + below(rng, 4)
        flags = QR | AA if rng.random() < 0.9 else QR | RA
        fields = change and rng.random() < 0.7
        message = self._message(rng, shape._replace(flags=flags, ident=ident, change=fields))
        question = message[12 : 12 + _question_size(message)]
        asked = message[:2] + (CD if rng.random() < 0.5 else 0).to_bytes(2, "big") + b"\0\1\0\0\0\0\0\0" + question
        if change and not fields:
            message = mutate(
                rng, message, (self._message(rng, Shape(NOW)),), start=min(len(message), 12 + len(question))
            )
        told_flags = QR | RD | RA | (AD if rng.random() < 0.5 else 0) | (CD if rng.random() < 0.05 else 0)
        told = rng.randbytes(2) + told_flags.to_bytes(2, "big") + message[4:]
        kind = MessageType.FORWARDER_QUERY if rng.random() < 0.2 else MessageType.RESOLVER_QUERY
        response = MessageType(kind + 1)
        zone = (
            None
            if rng.random() < 0.05
            else NAMES[below(rng, 3)]
            if rng.random() < 0.8
            else NAMES[below(rng, len(NAMES))]
        )
        time = self._now - rng.random()
        between: dict[str, Any] = {
            "response_address": SERVER if rng.random() < 0.9 else bytes(16),
            "query_port": port,
            "response_port": 53,
            "query_zone": zone,
            "protocol": SocketProtocol(1 + below(rng, 2)),
        }
        client: dict[str, Any] = {"query_address": bytes((192, 0, 2, 99)), "query_port": 5000 + below(rng, 3)}
        frames = [
            encode(kind, asked, query_time=time, **between),
            encode(response, message, response_time=time + 0.01, **between),
            encode(MessageType.CLIENT_RESPONSE, told, response_time=time + 0.02, **client),
        ]
        if rng.random() < 0.3:
            frames.insert(0, encode(MessageType.CLIENT_QUERY, told[:2] + bytes(asked[2:]), query_time=time, **client))
        if rng.random() < 0.2:
            frames.append(encode(MessageType.CLIENT_RESPONSE, told, response_time=time + rng.random() * 5, **client))
        if rng.random() < 0.15:
            rng.shuffle(frames)
        if rng.random() < 0.1:
            del frames[below(rng, len(frames))]
        if change and rng.random() < 0.15:
            at = below(rng, len(frames))
            frames[at] = mutate(rng, frames[at], self._captured)
        return [(frame, change) for frame in frames]

    def _message(self, rng: Random, shape: Shape) -> bytes:
        if shape.answer is not None:
            return make_message(rng, shape)
        if rng.random() < WORST:
            return worst_message(rng)
        qname = NAMES[3 + below(rng, 4)] if rng.random() < 0.6 else None
        return make_message(rng, shape._replace(qname=qname, usual=rng.random() < 0.6))

    def check(self, example: bytes, rng: Random) -> bool:
        self._now += rng.random() * 0.3 if rng.random() < 0.95 else rng.random() * 30 - 10
        if rng.random() < 0.003:
            self._now -= 7200
        with bounds(self._bounds):
            verdicts = self._judge.feed(example, self._now)
            self._fed += 1
            if rng.random() < 0.02:
                verdicts += self._judge.expire(self._now)
        self._take(verdicts)
        return any(verdict.answer is not None for verdict in verdicts)

    def _take(self, verdicts: list[Verdict]) -> None:
        for verdict in verdicts:
            assert 1 <= verdict.frame <= self._fed
            assert (verdict.answer is None) != (verdict.reason is None)
            assert verdict.frame not in self._refused, "a word after the final one"
            if verdict.answer is None:
                assert verdict.frame not in self._accepted, "refused after it was accepted"
                self._refused.add(verdict.frame)
            else:
                self._accepted.add(verdict.frame)
                answer = verdict.answer
                assert answer.evidence >= self._settings.lowest
                assert answer.origin == "n1"
                assert not answer.transport
                check_answer(answer, now=answer.learned, infrastructure=True, latest=self._now)

    def finish(self) -> None:
        with bounds(self._bounds):
            self._take(self._judge.expire(self._now + 7200))
            assert self._judge.expire(self._now + 7200) == []
        statistics = self._judge.statistics()
        assert statistics["frames"] == self._fed
        assert self._fed == statistics["context"] + len(self._refused) + len(self._accepted)
        assert statistics["pending"] == statistics["pending_bytes"] == 0
        assert sum(self._judge.refusals.values()) == len(self._refused)


def _question_size(message: bytes) -> int:
    """Bytes of the first question of a message of the grammar."""
    position = 12
    while position < len(message) and 0 < message[position] < 64:
        position += message[position] + 1
    return min(position + 5, len(message)) - 12


def finished_message(rng: Random, *, change: bool = False) -> bytes:
    """A resolver's finished answer; with `change` some of its records are others."""
    if rng.random() < WORST:
        return worst_message(rng, QR | AD)
    flags = QR | RD | RA | (AD if rng.random() < 0.6 else 0) if rng.random() < 0.95 else None
    shape = Shape(NOW, usual=rng.random() < 0.5, flags=flags, change=change)
    if rng.random() < 0.05:  # SWILD above the question
        qname = NAMES[4 + below(rng, 3)]
        records = [*make_chain(rng, qname, A, NOW, usual=True), *make_rrset(rng, parent(qname), SWILD, NOW)]
        shape = shape._replace(qname=qname, qtype=A, answer=tuple(records))
    return make_message(rng, shape)


class DirectJudgeTarget(BytesTarget):
    """`DirectJudge`: answers at no more than the level that may be claimed, or one reason."""

    name = "judge-direct"
    parts = (
        Part("cachebus/filters/direct.py"),
        Part("cachebus/filters/form.py", only=("header_refusal", "finished_refusal")),
    )
    block = 20
    cost = 2

    def begin(self, rng: Random) -> None:
        self._settings = judge_settings(rng)
        self._judge = DirectJudge(self._settings)
        self._fed = self._refused = 0

    def valid(self, rng: Random) -> bytes:
        return finished_message(rng)

    def mutated(self, rng: Random) -> bytes:
        return finished_message(rng, change=True) if rng.random() < 0.5 else super().mutated(rng)

    def check(self, example: bytes, rng: Random) -> bool:
        self._fed += 1
        verdicts = self._judge.feed(example, float(NOW))
        assert verdicts
        assert not self._judge.expire(float(NOW))
        for verdict in verdicts:
            assert verdict.frame == self._fed
            if verdict.answer is None:
                assert len(verdicts) == 1
                self._refused += 1
                return False
            assert self._settings.lowest <= verdict.answer.evidence <= self._settings.claims
            check_answer(verdict.answer, now=NOW, infrastructure=True)
        return True

    def finish(self) -> None:
        assert self._judge.statistics()["frames"] == self._fed
        assert sum(self._judge.refusals.values()) == self._refused


class Conversation(NamedTuple):
    """A query of ours, and what came back."""

    query: bytes
    response: bytes


class UpstreamJudgeTarget(Target[Conversation]):
    """`judge_upstream`: an answer that keeps every rule, or a reason."""

    name = "judge-upstream"
    parts = (Part("cachebus/filters/upstream.py"), Part("cachebus/filters/form.py", without=("finished_refusal",)))
    cost = 2

    def valid(self, rng: Random) -> Conversation:
        response = finished_message(rng) if rng.random() < 0.5 else make_message(rng, Shape(NOW, flags=QR | AA))
        query = response[:2] + (RD | CD if rng.random() < 0.03 else RD).to_bytes(2, "big") + b"\0\1\0\0\0\0\0\0"
        return Conversation(query + response[12 : 12 + _question_size(response)], response)

    def mutated(self, rng: Random) -> Conversation:
        query, response = self.valid(rng)
        die = rng.random()
        if die < 0.1:
            return Conversation(mutate(rng, query), response)
        if die < 0.5:
            response = finished_message(rng, change=True)
            return Conversation(response[:2] + query[2:12] + response[12 : 12 + _question_size(response)], response)
        start = 0 if die < 0.6 else min(len(query), len(response))
        return Conversation(query, mutate(rng, response, (finished_message(rng),), start=start))

    def noise(self, rng: Random) -> Conversation:
        data = rng.randbytes(below(rng, 60))
        return Conversation(data if rng.random() < 0.5 else rng.randbytes(below(rng, 60)), data)

    def check(self, example: Conversation, rng: Random) -> bool:
        trust = (
            UpstreamTrust.NONE
            if rng.random() < 0.02
            else rng.choice((UpstreamTrust.VALIDATING, UpstreamTrust.AUTHORITATIVE))
        )
        settings = judge_settings(rng)
        found = judge_upstream(example.query, example.response, trust=trust, now=float(NOW), settings=settings)
        if isinstance(found, Refusal):
            return False
        assert isinstance(found, Answer)
        assert trust is not UpstreamTrust.NONE
        validated = trust is UpstreamTrust.VALIDATING
        assert found.evidence is (Evidence.VALIDATED if validated else Evidence.AUTHORITATIVE)
        assert not validated or found.ttl > settings.stale_ttl
        check_answer(found, now=NOW, infrastructure=settings.infrastructure)
        return True


class ChainTarget(BytesTarget):
    """`chain_from` and `assemble`: what they give of any records is a chain again, and the same one."""

    name = "chain"
    parts = (Part("cachebus/filters/chain.py"),)
    cost = 2
    calls = 2

    def valid(self, rng: Random) -> bytes:
        return finished_message(rng)

    def mutated(self, rng: Random) -> bytes:
        return finished_message(rng, change=True) if rng.random() < 0.7 else super().mutated(rng)

    def check(self, example: bytes, rng: Random) -> bool:
        try:
            message = parse(example)
        except MessageError:
            return False
        if not message.questions:
            return False  # nobody walks from no name
        more: dict[str, Any] = {"infrastructure": rng.random() < 0.5, "partial": rng.random() < 0.5}
        chain = chain_from(message.answer, message.qname, message.qtype, zone=NAMES[below(rng, 3)])
        if not isinstance(chain, Refusal):
            assert chain.links
            assert chain.complete != bool(chain.target)
            owners = [(link.synthesised or link.rrset).owner for link in chain.links]
            assert owners[0] == message.qname
            assert len(set(owners)) == len(owners) <= MAX_CNAMES + 1
        evidence = Evidence(1 + below(rng, 3))
        found = assemble(message.qname, message.qtype, message.answer, NOW + 0.5, evidence=evidence, **more)
        if isinstance(found, Refusal):
            return False
        again = assemble(message.qname, message.qtype, found, NOW + 0.5, evidence=evidence, **more)
        assert not isinstance(again, Refusal), again
        assert blanked(again) == blanked(found)
        assert all(0 < rrset.ttl <= 86400 for rrset in found)
        if not more["partial"]:
            assert found[-1].type == message.qtype
        return True


class EdnsTarget(BytesTarget):
    """`refusal_in`: any options give a reason or none."""

    name = "edns"
    parts = (Part("cachebus/filters/edns.py"),)

    def valid(self, rng: Random) -> bytes:
        return make_options(rng)

    def check(self, example: bytes, rng: Random) -> bool:
        found = refusal_in(example)
        assert found is None or found in (Refusal.MALFORMED, Refusal.CLIENT_SUBNET, Refusal.STALE, Refusal.LOCAL_DATA)
        return found is not Refusal.MALFORMED


TARGETS: tuple[type[Target[Any]], ...] = (
    DnstapJudgeTarget, DirectJudgeTarget, UpstreamJudgeTarget, ChainTarget, EdnsTarget,
)  # fmt: skip
