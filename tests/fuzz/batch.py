"""Target: envelopes of many answers (`wire.batch`, `codecs.batch`).

Envelopes are sealed after they were changed, so that what is behind the MAC is reached.
"""

from __future__ import annotations

import hmac
import struct
from random import Random
from typing import Any, NamedTuple

import msgpack
from backports import zstd

from cachebus.answer import Answer, Evidence, Refusal
from cachebus.codecs.batch import BatchCodec, BatchCodecSettings
from cachebus.errors import MessageError
from cachebus.wire.batch import MAX_ENVELOPE, MAX_PAYLOAD
from cachebus.wire.message import parse, records
from tests.fuzz.bus import KEYS, NOW, SECRETS, blanked, check_answer
from tests.fuzz.grammar import Shape, make_message
from tests.fuzz.harness import Part, Target
from tests.fuzz.mutate import LONGS, WORDS, below, mutate

_CODES = {"hmac-sha256": 1, "hmac-sha384": 2, "hmac-sha512": 3}
_STREAMS = tuple((NOW - seconds) * 1000 << 22 | seconds & 0xFFFF for seconds in (500, 100, 50, -400))
_ORIGINS = ("ams-1", "a", "b", "own", "fra-2", "", "A", "x" * 64)
_ODD = (None, True, -1, 0, 1, 2, 3, 255, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, 1.5, "", "c", b"", [], {})

_BOMB = zstd.compress(bytes(100 * MAX_PAYLOAD))


class Sealed(NamedTuple):
    """An envelope and who sealed it."""

    data: bytes
    secret: int
    spliced: bool = False
    """Changed after that, perhaps into another's."""


def seal(packed: bytes, secret: int) -> bytes:
    """An envelope by the documentation, written apart from the code under test."""
    held = SECRETS[secret]
    name = ".".join(("cluster-2026", "old.example", "k")[secret].split(".")).encode() + b"."
    prefix = b"CBE1" + bytes([len(name)]) + name + bytes([_CODES[held.algorithm]])
    return prefix + hmac.digest(held.secret, prefix + packed, held.algorithm.removeprefix("hmac-")) + packed


def _said(answer: Answer) -> tuple[object, ...]:
    return answer.qname, answer.qtype, blanked(answer.rrsets), answer.evidence


def columns(rng: Random) -> list[bytes]:
    """The answers of some messages as columns, whatever they are worth."""
    heads, rows, names = b"", b"", b""
    rdatas: list[bytes] = []
    for _ in range(below(rng, 5)):
        try:
            message = parse(make_message(rng, Shape(NOW, usual=rng.random() < 0.9, change=rng.random() < 0.2)))
        except MessageError:
            continue
        rrsets = message.answer[:200]
        evidence = 1 + below(rng, 3)
        if evidence == 3 and not all(rrset.sigs for rrset in rrsets):
            evidence = 1
        age = below(rng, 3000) if rng.random() < 0.9 else LONGS[below(rng, len(LONGS))]
        heads += struct.pack("!BBHI", evidence | below(rng, 2) << 2, len(rrsets), message.qtype, age)
        names += message.qname or b"\0"
        expected = message.qname
        for rrset in rrsets:
            found, sigs = ([each[2] for each in records(packed)] for packed in (rrset.rrs, rrset.sigs))
            named = rrset.owner != expected or rng.random() < 0.1
            names += rrset.owner if named else b""
            rows += struct.pack("!HIHBB", rrset.type, rrset.ttl, len(found), len(sigs) & 255, named)
            rdatas += found + sigs[:255]
            if rrset.type == 5 and found:
                expected = found[0].lower()
    return [heads, rows, names, *rdatas]


class BatchTarget(Target[Sealed]):
    """`BatchCodec.decode_all`: answers that keep every rule and are taken once; or a reason for each envelope."""

    name = "batch"
    parts = (Part("cachebus/wire/batch.py"), Part("cachebus/codecs/batch.py"))
    block = 25
    cost = 4
    calls = 6

    def begin(self, rng: Random) -> None:
        """A receiver, and a sender whose envelopes it takes too."""
        self._sequence = 0
        self._receiver = self._codec(rng, "own", start=(None, NOW - 600.0, NOW - 60.0, NOW + 1.0)[below(rng, 4)])
        self._infrastructure = self._receiver._settings.infrastructure
        self._sender = self._codec(rng, "ams-1", start=NOW - 20.0)
        self._other = self._codec(rng, "other", start=None)
        if rng.random() < 0.2:
            self._receiver.restore({"ams-1": _STREAMS[below(rng, 4)], "own": _STREAMS[3], "b": -1})

    def _codec(self, rng: Random, node: str, *, start: float | None) -> BatchCodec:
        accept = frozenset(Evidence) if rng.random() < 0.8 else frozenset({Evidence(1 + below(rng, 3))})
        settings = BatchCodecSettings(
            node=node, cluster="c", transport="mq", key=KEYS[0], more_keys=KEYS[1:], accept=accept,
            max_message=(512, 1232, 65536)[below(rng, 3)], infrastructure=rng.random() < 0.2,
            zstd=rng.random() < 0.5, policy_hash=("", "x", "y")[below(rng, 3)],
        )  # fmt: skip
        return BatchCodec(settings, start=start)

    def _body(self, rng: Random, secret: int, payload: bytes) -> list[Any]:
        self._sequence += 1 + below(rng, 2)
        compression = below(rng, 2)
        if compression:
            payload = zstd.compress(payload)
        origin = ("fra-2", "ams-1", "ab"[below(rng, 2)])[secret]
        if rng.random() < 0.1:
            origin = _ORIGINS[below(rng, len(_ORIGINS))]
        stream = _STREAMS[1] if rng.random() < 0.95 else _STREAMS[below(rng, 4)]
        return ["c", origin, stream, self._sequence, NOW * 1000 + below(rng, 3000), 0, compression, payload]

    def _without_answers(self, rng: Random, secret: int) -> list[Any]:
        body = self._body(rng, secret, b"")
        body[5:] = [1 + below(rng, 2), 0, b""]
        return [*body, {"policy": ("x", "y", 7)[below(rng, 3)]}] if body[5] == 1 else body

    def valid(self, rng: Random) -> Sealed:
        secret = below(rng, 3)
        if rng.random() < 0.2:
            return Sealed(seal(msgpack.packb(self._without_answers(rng, secret)), secret), secret)
        return Sealed(seal(msgpack.packb(self._body(rng, secret, msgpack.packb(columns(rng)))), secret), secret)

    def mutated(self, rng: Random) -> Sealed:
        secret = below(rng, 3)
        if rng.random() < 0.001:
            return self._too_large(rng, secret)
        die = rng.random()
        if die < 0.1:  # changed after it was sealed
            return Sealed(mutate(rng, self.valid(rng).data, (self.valid(rng).data,)), secret, spliced=True)
        if die < 0.2:
            packed = mutate(rng, msgpack.packb(self._body(rng, secret, msgpack.packb(columns(rng)))))
            return Sealed(seal(packed, secret), secret)
        if die < 0.35:
            body = (
                self._body(rng, secret, msgpack.packb(columns(rng)))
                if rng.random() < 0.5
                else self._without_answers(rng, secret)
            )
            at = below(rng, len(body))
            if rng.random() < 0.8:
                body[at] = _ODD[below(rng, len(_ODD))] if rng.random() < 0.7 else WORDS[below(rng, len(WORDS))]
            else:
                body[at : at + 1] = [[], [0], [body[at], body[at]]][below(rng, 3)]
            return Sealed(seal(msgpack.packb(body), secret), secret)
        if die < 0.45:
            body = self._body(rng, secret, mutate(rng, msgpack.packb(columns(rng))))
            if rng.random() < 0.5:
                body[7] = mutate(rng, body[7])
            return Sealed(seal(msgpack.packb(body), secret), secret)
        found = columns(rng)
        at = below(rng, len(found)) if rng.random() < 0.6 else below(rng, 3)
        if rng.random() < 0.9:
            found[at] = mutate(rng, found[at], (found[-1],))
        else:
            found[at : at + 1] = [[], [found[at], found[at]]][below(rng, 2)]
        return Sealed(seal(msgpack.packb(self._body(rng, secret, msgpack.packb(found))), secret), secret)

    def _too_large(self, rng: Random, secret: int) -> Sealed:
        """More than an envelope may hold; or much more, compressed to nearly nothing."""
        body = self._body(rng, secret, b"")
        body[6:] = [0, bytes(MAX_ENVELOPE)] if rng.random() < 0.5 else [1, _BOMB]
        return Sealed(seal(msgpack.packb(body), secret), secret)

    def noise(self, rng: Random) -> Sealed:
        die = rng.random()
        data = rng.randbytes(below(rng, 100))
        if die < 0.3:
            data = b"CBE1" + data
        return Sealed(seal(data, 0) if die > 0.6 else data, 0)

    def check(self, example: Sealed, rng: Random) -> bool:
        now = NOW + rng.random() * 8 - 1
        receiver = self._receiver
        receiver.tick(now)
        answers, refusals = receiver.decode_all([(example.data, "broker")], now)
        again, reasons = receiver.decode_all([(example.data, "broker")], now)
        assert not again
        assert answers == [] or reasons in ([Refusal.DUPLICATE], [Refusal.REPLAY_WINDOW]), reasons
        for answer in answers[:20]:
            assert answer.learned <= now
            assert answer.learned + answer.ttl > now
            key = next(key for key in KEYS if key.text == answer.signer)
            assert key is KEYS[example.secret] or example.spliced
            assert answer.evidence <= key.max_evidence
            assert not key.origins or answer.origin in key.origins
            check_answer(answer, now=answer.learned, infrastructure=self._infrastructure)
        if rng.random() < 0.05:
            fresh = self._codec(rng, "own", start=now)
            fresh.inherit(receiver)
            assert len(receiver.state()) <= len(_ORIGINS)
            self._receiver, self._infrastructure = fresh, fresh._settings.infrastructure
            assert fresh.decode_all([(example.data, "broker")], now)[0] == []
        if rng.random() < 0.3:
            self._send_on(answers, now)
        assert min(receiver.counters().values()) >= 0
        assert len(receiver.presence()) <= len(_ORIGINS)
        assert (
            all(abs(offset) < 400 for offset in receiver.clock_offsets(now).values())
            or receiver._streams._start is None
        )
        return bool(answers) or not refusals

    def _send_on(self, answers: list[Answer], now: float) -> None:
        messages, left_out = self._sender.encode(answers, now)
        plain = BatchCodec(
            BatchCodecSettings(node="x", cluster="c", transport="mq", key=KEYS[0], infrastructure=True), start=None
        )
        taken, refusals = plain.decode_all([(message, "") for message in [*messages, self._sender.hello(now)]], now)
        assert refusals == []
        left = [answer for answer, _ in left_out]
        assert [_said(one) for one in taken] == [_said(one) for one in answers if one not in left]
        will = self._sender.will()
        assert will
        assert plain.decode_all([(will, "")], now) == ([], [])
        assert all(known.gone for known in plain.presence().values())


TARGETS: tuple[type[Target[Any]], ...] = (BatchTarget,)
