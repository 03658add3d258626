"""Targets: what clients and upstreams send the shim (`shim.query`, `shim.reply`, `shim.exchange`, `shim.learn`)."""

from __future__ import annotations

import struct
from random import Random
from typing import Any

from cachebus.answer import Answer, Refusal
from cachebus.cache import Cache
from cachebus.errors import MessageError
from cachebus.shim import UpstreamSettings
from cachebus.shim.caching import TtlSettings
from cachebus.shim.exchange import CaseNotKeptError, Exchange, Outgoing, belongs
from cachebus.shim.forward import read_chain
from cachebus.shim.learn import Learner
from cachebus.shim.lookup import CacheStage
from cachebus.shim.padding import BLOCK
from cachebus.shim.query import Drop, Ede, Error, Query, Response, parse_query
from cachebus.shim.reply import MAX_STREAM_PAYLOAD, compose_error, compose_reply, udp_limit
from cachebus.shim.upstream import Quality, Reply, Upstream, question_in_lower_case
from cachebus.wire.message import TC, parse
from tests.fuzz.bus import RIGHT, SECRETS, Tsig, check_answer, sign
from tests.fuzz.grammar import (
    AA,
    AD,
    ANY,
    CD,
    NAMES,
    NSEC,
    QR,
    RA,
    RD,
    TXT,
    A,
    Shape,
    make_message,
    make_options,
    pick_name,
    pick_type,
)
from tests.fuzz.harness import Part, Target
from tests.fuzz.messages import BytesTarget
from tests.fuzz.mutate import WORDS, below

NOW = 1_800_000_000


class QueryTarget(BytesTarget):
    """`parse_query`: a query, an error or silence; and every reply to it is well-formed and within its bounds."""

    name = "query"
    parts = (Part("cachebus/shim/query.py"), Part("cachebus/shim/reply.py"))
    cost = 2

    def __init__(self) -> None:
        self._cache = Cache("n1", max_entries=1000)
        rng = Random(1)
        upstream = UpstreamSettings(address=("127.0.0.1", 53), authoritative=True)
        learner = Learner("n1", self._cache, lambda _: None, infrastructure=False, max_ttl=86400)
        for _ in range(300):
            response = make_message(rng, Shape(NOW, usual=rng.random() < 0.7, flags=QR | AA))
            try:
                message = parse(response)
            except MessageError:
                continue
            if message.questions == 1:
                reply = Reply(Upstream(upstream), Exchange(response, response), message, Quality.GOOD)
                learner.learn(message.qname, message.qtype, reply, float(NOW))
        self._stage = CacheStage(self._cache)

    def valid(self, rng: Random) -> bytes:
        flags = (RD, RD | AD, RD | CD, 0)[below(rng, 4)]
        question = pick_name(rng) + struct.pack("!HH", pick_type(rng), 1 if rng.random() < 0.98 else below(rng, 256))
        opt = b""
        if rng.random() < 0.6:
            options = make_options(rng)
            ttl = 0x8000 if rng.random() < 0.7 else below(rng, 1 << 17)
            opt = (
                b"\0"
                + struct.pack("!HHIH", 41, (512, 1232, 4096, *WORDS)[below(rng, 3 + len(WORDS))], ttl, len(options))
                + options
            )
        query = rng.randbytes(2) + struct.pack("!HHHHH", flags, 1, 0, 0, bool(opt)) + question + opt
        if rng.random() < 0.15:
            query = sign(query, SECRETS[below(rng, 3)], RIGHT if rng.random() < 0.7 else Tsig(other=bytes(6), error=18))
        return query

    def check(self, example: bytes, rng: Random) -> bool:
        parsed = parse_query(example)
        match parsed:
            case Drop():
                assert len(example) < 12 or example[2] & 0x80
                return False
            case Error():
                padded = rng.random() < 0.2
                reply = compose_error(parsed, padded=padded)
                message = parse(reply)
                assert message.rcode == parsed.rcode
                assert message.flags & QR
                assert not message.answer
                assert reply[:2] == example[:2]
                assert padded or len(reply) <= len(example) + 40, "an error that amplifies"
                assert not padded or parsed.edns is None or len(reply) % BLOCK == 0
                assert not parsed.question or example.startswith(parsed.question, 12)
                return False
        self._reply(parsed, example, rng)
        return True

    def _reply(self, query: Query, example: bytes, rng: Random) -> None:
        assert query.qname == query.question[:-4].lower()
        assert query.id == example[:2]
        assert query.wants_ad >= query.do
        limit = udp_limit(query.edns) if rng.random() < 0.7 else MAX_STREAM_PAYLOAD
        response = self._stage.answer(query, float(NOW) + 1)
        if response is None:
            response = Response(
                below(rng, 24), authentic=rng.random() < 0.5, errors=((Ede.OTHER, "é" * below(rng, 150)),)
            )
        if rng.random() < 0.2:
            rrtype = NSEC if rng.random() < 0.5 else TXT
            response = response._replace(authority=tuple(rrset._replace(type=rrtype) for rrset in response.answer))
        options = b"\0\3\0\2id" if rng.random() < 0.2 else b""
        padded, additional = rng.random() < 0.2, response.answer if rng.random() < 0.2 else ()
        reply = compose_reply(query, response, limit, options, padded=padded, additional=additional)
        assert len(reply) <= limit
        assert not padded or query.edns is None or len(reply) in (limit, len(reply) // BLOCK * BLOCK)
        assert reply[:2] == example[:2]
        assert reply.startswith(query.question, 12)
        assert reply[2] & 0x80
        assert (reply[2] ^ example[2]) & 1 == 0, "RD is copied"
        if not response.authority:
            message = parse(reply)
            assert (message.opt is not None) == (query.edns is not None)
            assert message.rcode == (response.rcode if query.edns is not None else response.rcode & 0xF)
            assert not message.flags & TC or not message.answer
            assert query.do or not any(rrset.sigs for rrset in message.answer)


class UpstreamReplyTarget(BytesTarget):
    """An upstream's reply: passed by, or kept and passed on well-formed; what is shared keeps every rule."""

    name = "upstream-reply"
    parts = (
        Part("cachebus/shim/exchange.py", only=("belongs",)),
        Part("cachebus/shim/learn.py"),
        Part("cachebus/shim/forward.py", only=("read_chain",)),
        Part("cachebus/shim/upstream.py", only=("question_in_lower_case",)),
    )
    cost = 3
    block = 20

    def begin(self, rng: Random) -> None:
        name = NAMES[3 + below(rng, 4)]
        self._qname, self._qtype = name, (A if rng.random() < 0.7 else ANY if rng.random() < 0.2 else pick_type(rng))
        question = bytes(byte - 32 if 97 <= byte <= 122 and rng.random() < 0.5 else byte for byte in name)
        question += struct.pack("!HH", self._qtype, 1)
        self._outgoing = Outgoing(b"\0\1\1\0\0\1\0\0\0\0\0\0" + question, question)
        trust: dict[str, Any] = ({}, {"authoritative": True}, {"validating": True})[below(rng, 3)]
        self._upstream = Upstream(UpstreamSettings(address=("127.0.0.1", 53), **trust))
        self._cache = Cache("n1", max_entries=1000)
        ttl = TtlSettings(minimum=600 * below(rng, 2))
        self._learner = Learner(
            "n1", self._cache, self._share, infrastructure=rng.random() < 0.2, max_ttl=86400, ttl=ttl
        )
        self._shared: list[Answer] = []

    def _share(self, answer: Answer) -> None:
        check_answer(answer, now=NOW, infrastructure=True)
        self._shared.append(answer)

    def _shape(self, rng: Random, *, change: bool) -> Shape:
        flags = (QR | AA, QR | RD | RA | AD, QR | RD | RA)[below(rng, 3)] | (3 if rng.random() < 0.1 else 0)
        usual = rng.random() < 0.4
        return Shape(NOW, usual=usual, flags=flags, qname=self._qname, qtype=self._qtype, ident=1, change=change)

    def _repeat_case(self, rng: Random, message: bytes) -> bytes:
        question = self._outgoing.question
        if rng.random() < 0.95 and message[4:6] == b"\0\1":
            message = message[:12] + question + message[12 + len(question) :]
        return message

    def valid(self, rng: Random) -> bytes:
        if rng.random() < 0.03:
            return b"\0\1\x80" + bytes([below(rng, 6)]) + bytes(8)
        return self._repeat_case(rng, make_message(rng, self._shape(rng, change=False)))

    def mutated(self, rng: Random) -> bytes:
        if rng.random() < 0.5:
            return self._repeat_case(rng, make_message(rng, self._shape(rng, change=True)))
        return super().mutated(rng)

    def check(self, example: bytes, rng: Random) -> bool:
        try:
            if not belongs(example, self._outgoing):
                return False
            message = parse(question_in_lower_case(example))
        except (CaseNotKeptError, MessageError):
            return False
        reply = Reply(self._upstream, Exchange(self._outgoing.wire, example), message, Quality.GOOD)
        self._learner.learn(self._qname, self._qtype, reply, float(NOW))
        found = read_chain(message, self._qname, self._qtype)
        asked = b"\0\2\1\0\0\1\0\0\0\0\0\1" + self._outgoing.question + b"\0\0\x29\x04\xd0\0\0\x80\0\0\0"
        client = parse_query(asked)
        responses = (
            [] if isinstance(found, Refusal) else [Response(message.rcode & 0xF, found.rrsets, message.authority)]
        )
        if isinstance(client, Query):
            kept = CacheStage(self._cache).answer(client, float(NOW))
            responses += [] if kept is None else [kept]
            for response in responses:
                parse(compose_reply(client, response, MAX_STREAM_PAYLOAD))
        return not isinstance(found, Refusal)

    def finish(self) -> None:
        assert self._learner.shared == len(self._shared)


TARGETS: tuple[type[Target[Any]], ...] = (QueryTarget, UpstreamReplyTarget)
