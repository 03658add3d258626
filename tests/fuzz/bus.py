"""Targets: what comes from the bus (`wire.tsig`, `wire.shortcut`, `codecs.dns`).

Messages are signed after they were changed, so that what is behind the MAC is reached.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple
from unittest.mock import patch

from cachebus.answer import Answer, Evidence, Refusal, RRset
from cachebus.cache import Cache
from cachebus.codecs import dns as codec_module
from cachebus.codecs.dns import DnsCodec, DnsCodecSettings, QuestionMode
from cachebus.filters.chain import DEFAULT_MAX_TTL, assemble, refused_type
from cachebus.presentation import check_name
from cachebus.wire.message import cname_target, pack, parse, records
from cachebus.wire.name import read_name
from cachebus.wire.shortcut import take_over
from cachebus.wire.tsig import Key, Signer, Verified, Verifier
from tests.fuzz.grammar import CNAME, QR, Shape, make_message, worst_message
from tests.fuzz.harness import Part, Target
from tests.fuzz.messages import WORST, check_rrset
from tests.fuzz.mutate import LONGS, WORDS, below, mutate

NOW = 1_800_000_000
SENDER = ("192.0.2.1", 5390)
_HASHES = {"hmac-sha256": hashlib.sha256, "hmac-sha384": hashlib.sha384, "hmac-sha512": hashlib.sha512}
DATA = Path(__file__).parents[1] / "data"


class Secret(NamedTuple):
    """A key as its holder has it."""

    name: bytes
    algorithm: str
    secret: bytes
    key: Key


def _secret(name: str, algorithm: str, **more: Any) -> Secret:
    key = Key.make(name, algorithm, bytes(range(32)) + name.encode(), **more)
    return Secret(key.name, algorithm, bytes(range(32)) + name.encode(), key)


SECRETS = (
    _secret("cluster-2026", "hmac-sha256"),
    _secret("old.example", "hmac-sha384", origins=["ams-1"], max_evidence=Evidence.CONFIRMED),
    _secret("k", "hmac-sha512", origins=["a", "b"], evidence=Evidence.CONFIRMED),
)
KEYS = tuple(secret.key for secret in SECRETS)


class Tsig(NamedTuple):
    """The variables of a TSIG record; the defaults are right."""

    time: int = NOW
    fudge: int = 300
    rrclass: int = 255
    ttl: int = 0
    error: int = 0
    other: bytes = b""
    mac_size: int | None = None
    trailing: bytes = b""
    original_id: bytes | None = None
    owner: bytes | None = None
    algorithm: bytes | None = None


RIGHT = Tsig()


def sign(message: bytes, secret: Secret, tsig: Tsig = RIGHT) -> bytes:
    """`message` with a TSIG record by RFC 8945, written apart from the code under test."""
    algorithm = tsig.algorithm or _algorithm(secret)
    owner = tsig.owner or secret.name
    original = tsig.original_id or message[:2]
    times = tsig.time.to_bytes(6, "big") + tsig.fudge.to_bytes(2, "big")
    ends = struct.pack("!HH", tsig.error, len(tsig.other)) + tsig.other
    variables = owner.lower() + struct.pack("!HI", tsig.rrclass, tsig.ttl) + algorithm.lower() + times + ends
    mac = hmac.digest(secret.secret, original + message[2:] + variables, _HASHES[secret.algorithm])
    mac = mac[: tsig.mac_size] if tsig.mac_size is not None else mac
    rdata = algorithm + times + struct.pack("!H", len(mac)) + mac + original + ends
    record = owner + struct.pack("!HHIH", 250, tsig.rrclass, tsig.ttl, len(rdata)) + rdata + tsig.trailing
    additional = int.from_bytes(message[10:12], "big") + 1 & 0xFFFF
    return message[:10] + additional.to_bytes(2, "big") + message[12:] + record


def _algorithm(secret: Secret) -> bytes:
    return bytes([len(secret.algorithm)]) + secret.algorithm.encode() + b"\0"


def is_authentic(data: bytes, verified: Verified, now: float) -> bool:
    """Whether a message is what RFC 8945 wants, checked with `hmac` and nothing of the verifier but its result."""
    secret = next(secret for secret in SECRETS if secret.key is verified.key)
    owner, position = read_name(data, verified.end, len(data))
    rrtype, rrclass, ttl, length = struct.unpack_from("!HHIH", data, position)
    start = position + 10
    algorithm, position = read_name(data, start, len(data))
    time, fudge = (
        int.from_bytes(data[position : position + 6], "big"),
        int.from_bytes(data[position + 6 : position + 8], "big"),
    )
    size = int.from_bytes(data[position + 8 : position + 10], "big")
    mac = data[position + 10 : position + 10 + size]
    original, ends = data[position + 10 + size : position + 12 + size], data[position + 12 + size :]
    additional = int.from_bytes(data[10:12], "big") - 1
    variables = secret.name + b"\0\xff\0\0\0\0" + _algorithm(secret) + data[position : position + 8] + b"\0\0\0\0"
    covered = original + data[2:10] + additional.to_bytes(2, "big") + data[12 : verified.end] + variables
    return (
        (rrtype, rrclass, ttl, ends) == (250, 255, 0, b"\0\0\0\0")
        and owner.lower() == secret.name
        and algorithm.lower() == _algorithm(secret)
        and start + length == len(data)
        and mac == hmac.digest(secret.secret, covered, _HASHES[secret.algorithm])
        and time == verified.signed
        and abs(now - time) <= min(fudge, 300)
    )


def usual_message(rng: Random) -> bytes:
    """Mostly what our own codec sends, sometimes what others might, rarely the worst."""
    die = rng.random()
    if die < WORST:
        return worst_message(rng)
    return make_message(rng, Shape(NOW, usual=die < 0.75, flags=None if die < 0.9 else QR))


class SignedMessage(NamedTuple):
    """A message and whether its TSIG record is the right one of a known key."""

    data: bytes
    right: bool
    now: float


class TsigTarget(Target[SignedMessage]):
    """`Verifier`: nothing is verified that RFC 8945 would not, nothing twice; what is right and new is."""

    name = "tsig"
    parts = (Part("cachebus/wire/tsig.py", without=("Key", "TsigSecret")),)
    block = 40
    cost = 2
    calls = 4

    def __init__(self) -> None:
        lines = (DATA / "unbound-pr1250-signed.hex").read_text(encoding="ascii").splitlines()
        text = next(line for line in lines if line and not line.startswith("#"))
        self._foreign = bytes.fromhex(text)

    def begin(self, rng: Random) -> None:
        """A verifier with little room for replays; it goes through a reload in the middle."""
        start = (None, NOW - 1000.0, NOW - 5.0)[below(rng, 3)]
        remember = (3, 20, 1000)[below(rng, 3)]
        self._small = remember < 1000
        self._verifier = Verifier(KEYS, start=start, remember=remember)
        self._signer = Signer(KEYS[0])
        self._verified: dict[bytes, None] = {}
        self._at = NOW
        self._room, self._keys = 1000, 3

    def draw(self, rng: Random) -> tuple[SignedMessage, bool]:
        if rng.random() < 0.05:  # time goes by
            self._at += below(rng, 900)
        now = self._at + rng.random() * 20 - 10
        die = rng.random()
        if die < 0.35:  # a right message, changed after it was signed
            return SignedMessage(mutate(rng, self._signed(rng), (self._foreign,)), False, now), True
        if die < 0.55:  # a changed message, signed by a holder of the key
            message = mutate(rng, make_message(rng, Shape(usual=True)))
            if len(message) < 12:
                message = message.ljust(12, b"\0")
            return SignedMessage(sign(message, SECRETS[below(rng, 3)], Tsig(time=self._at)), False, now), True
        if die < 0.7:  # a right message under a wrong record, MAC and all
            message = make_message(rng, Shape(usual=True))
            return SignedMessage(sign(message, SECRETS[below(rng, 3)], self._odd(rng)), False, now), True
        if die < 0.9:
            return SignedMessage(self._signed(rng), True, now), False
        if die < 0.93 and self._verified:
            return SignedMessage(next(iter(self._verified)), False, now), False
        if die < 0.95:
            return SignedMessage(worst_message(rng), False, now), False
        return SignedMessage(rng.randbytes(below(rng, 200)), False, now), False

    def valid(self, rng: Random) -> SignedMessage:
        raise NotImplementedError  # `draw` makes its own mixture

    mutated = noise = valid

    def _signed(self, rng: Random) -> bytes:
        message = make_message(rng, Shape(usual=rng.random() < 0.8))
        time = self._at if rng.random() < 0.6 else self._at + below(rng, 20) - 10
        return sign(message, SECRETS[below(rng, 3)], Tsig(time=time))

    def _odd(self, rng: Random) -> Tsig:
        word = WORDS[below(rng, len(WORDS))]
        match below(rng, 11):
            case 0:
                return Tsig(time=NOW + (below(rng, 1200) - 600))
            case 1:
                return Tsig(time=LONGS[below(rng, len(LONGS))] << below(rng, 16))
            case 2:
                return Tsig(fudge=word, time=NOW + below(rng, 40) - 20)
            case 3:
                return Tsig(rrclass=word)
            case 4:
                return Tsig(ttl=LONGS[below(rng, len(LONGS))])
            case 5:
                return Tsig(error=word)
            case 6:
                return Tsig(other=rng.randbytes(below(rng, 8)))
            case 7:
                return Tsig(mac_size=(0, 1, 10, 16, 31, 32, 47, 63)[below(rng, 8)])
            case 8:
                return Tsig(trailing=rng.randbytes(1 + below(rng, 3)))
            case 9:
                owner = (b"\0", b"\3own\0", SECRETS[below(rng, 3)].name.upper(), b"\xc0\x0c", b"\xc0\0", b"")[
                    below(rng, 6)
                ]
                return Tsig(owner=owner or None, algorithm=SECRETS[0].name if not owner else None)
            case _:
                return Tsig(original_id=rng.randbytes(2), algorithm=_algorithm(SECRETS[below(rng, 3)]))

    def check(self, example: SignedMessage, rng: Random) -> bool:
        data, right, now = example
        if rng.random() < 0.02:
            own, mac = self._signer.sign(make_message(rng, Shape(usual=True)), now)
            self._verifier.sent(mac, now)
            back = self._verifier.verify(own, now)
            assert back is Refusal.OWN_MESSAGE or self._small
        if rng.random() < 0.03:
            self._keys = min(self._keys, 2 + below(rng, 2))  # a key that comes back has forgotten its replays
            fresh = Verifier(KEYS[: self._keys], start=now, remember=self._room)
            fresh.inherit(self._verifier)
            self._verifier = fresh
        self._verifier.tick(now)
        batch = [data, data] if rng.random() < 0.3 else [data]
        verdicts = self._verifier.verify_all(batch, now)
        assert len(verdicts) == len(batch)
        assert all(isinstance(each, Refusal) for each in verdicts[1:])
        verdict = verdicts[0]
        if isinstance(verdict, Refusal):
            alone = Verifier(KEYS, start=None).verify(data, now)
            if isinstance(alone, Verified):
                assert is_authentic(data, alone, now)
                assert verdict in _STATEFUL, verdict
            assert not right or isinstance(alone, Verified), (verdict, alone)
            return False
        assert data not in self._verified, "verified twice"
        assert is_authentic(data, verdict, now)
        assert isinstance(self._verifier.verify(data, now), Refusal), "verified twice"
        self._verified[data] = None
        return True


_STATEFUL = frozenset(
    {Refusal.DUPLICATE, Refusal.REPLAY_WINDOW, Refusal.BEFORE_START, Refusal.OWN_MESSAGE, Refusal.UNKNOWN_KEY}
)
"""What only a verifier with a past, or with fewer keys, may say of a right message."""


class BusMessage(NamedTuple):
    """An unsigned message, whose key signs it, and what is done to it after that."""

    message: bytes
    secret: int
    change: int | None = None
    """Seed of a mutation behind the signature."""

    def signed(self) -> bytes:
        """With its TSIG record, by the holder of the key."""
        data = sign(self.message.ljust(12, b"\0"), SECRETS[self.secret])
        return data if self.change is None else mutate(Random(self.change), data)


class _BusTarget(Target[BusMessage]):
    def valid(self, rng: Random) -> BusMessage:
        return BusMessage(usual_message(rng), below(rng, 3))

    def mutated(self, rng: Random) -> BusMessage:
        die = rng.random()
        if die < 0.4:
            message = make_message(rng, Shape(NOW, usual=rng.random() < 0.8, change=True))
            return BusMessage(message, below(rng, 3))
        message = usual_message(rng)
        if die < 0.5:
            return BusMessage(message, below(rng, 3), below(rng, 1 << 32))
        start = (0, 12, 12)[below(rng, 3)]
        return BusMessage(mutate(rng, message, (usual_message(rng),), start=min(start, len(message))), below(rng, 3))

    def noise(self, rng: Random) -> BusMessage:
        return BusMessage(rng.randbytes(below(rng, 100)), below(rng, 3))


def _codec(rng: Random, **more: Any) -> DnsCodec:
    accept = frozenset(Evidence) if rng.random() < 0.8 else frozenset({Evidence(1 + below(rng, 3))})
    return DnsCodec(
        DnsCodecSettings(
            transport="lan",
            key=KEYS[0],
            more_keys=KEYS[1:],
            infrastructure=rng.random() < 0.2,
            max_ttl=DEFAULT_MAX_TTL if rng.random() < 0.8 else 1 + below(rng, 300),
            accept=accept,
            **more,
        ),
        start=None,
    )


class ShortcutTarget(_BusTarget):
    """`take_over`: what the short way gives is what the long way gives."""

    name = "shortcut"
    parts = (Part("cachebus/wire/shortcut.py"),)
    cost = 3
    calls = 2

    def check(self, example: BusMessage, rng: Random) -> bool:
        data = example.signed()
        now = NOW + (0, 0.25, -3, 7.5)[below(rng, 4)]
        seed = below(rng, 1 << 30)
        short = self._decode(data, now, Random(seed), take_over)
        long = self._decode(data, now, Random(seed), lambda *_: None)
        if isinstance(short, Refusal) or isinstance(long, Refusal):
            assert short is long, (short, long)
            return False
        assert [without_ttls(each) for each in short] == [without_ttls(each) for each in long]
        return True

    def _decode(self, data: bytes, now: float, rng: Random, way: Callable[..., object]) -> Sequence[Answer] | Refusal:
        codec = _codec(rng)
        with patch.object(codec_module, "take_over", way):
            return codec.decode(data, SENDER, now)


def without_ttls(answer: Answer) -> object:
    """An answer without the TTL bytes inside its records, which mean nothing."""
    return answer._replace(rrsets=blanked(answer.rrsets))


def blanked(rrsets: Iterable[RRset]) -> tuple[RRset, ...]:
    """RRsets with those bytes 0."""
    return tuple(RRset(each.owner, each.type, each.ttl, _blank(each.rrs), _blank(each.sigs)) for each in rrsets)


def _blank(packed: bytes) -> bytes:
    return b"".join(pack(rrtype, 0, [rdata]) for rrtype, _, rdata in records(packed))


def check_answer(answer: Answer, *, now: float, infrastructure: bool = False, latest: float | None = None) -> None:
    """What holds for every answer that anything outside can lead to.

    `latest`: when its last part was learned, where the parts were not learned at once; RRSIGs are valid by then.
    """
    check_name(answer.qname)
    assert answer.qname == answer.qname.lower()
    assert answer.rrsets
    assert answer.rrsets[-1].type == answer.qtype
    assert not refused_type(answer.qtype, infrastructure=infrastructure)
    for rrset in answer.rrsets:
        check_rrset(rrset)
        assert 0 < rrset.ttl <= DEFAULT_MAX_TTL
        assert rrset.rrs
        if answer.evidence is Evidence.VALIDATED and rrset.type != 5:
            assert rrset.sigs
    again = assemble(answer.qname, answer.qtype, answer.rrsets, now, infrastructure=infrastructure)
    if again is Refusal.RRSIG_NOT_YET_VALID and latest is not None:
        again = assemble(answer.qname, answer.qtype, answer.rrsets, latest, infrastructure=infrastructure)
    assert not isinstance(again, Refusal), again


class CodecTarget(_BusTarget):
    """`DnsCodec.decode`: answers that keep every rule, can be cached, and say the same once sent on; or a reason."""

    name = "codec"
    parts = (Part("cachebus/codecs/dns.py"),)
    block = 25
    cost = 4
    calls = 4

    def begin(self, rng: Random) -> None:
        self._codec = _codec(rng)
        self._infrastructure = self._codec._infrastructure
        self._sender = _codec(
            rng,
            question=QuestionMode.OMIT if rng.random() < 0.3 else QuestionMode.KEEP,
            max_message=(1232, 65535)[below(rng, 2)],
        )
        self._cache = Cache("node-b")

    def check(self, example: BusMessage, rng: Random) -> bool:
        data = example.signed()
        now = NOW + rng.random() * 4 - 1
        sender = (SENDER, "peer", ("::1", 1, 0, 0))[below(rng, 3)]
        found = self._codec.decode(data, sender, now)
        infrastructure = self._infrastructure
        assert isinstance(self._codec.decode(data, sender, now), Refusal), "the same message again"
        if rng.random() < 0.05:
            fresh = _codec(rng)
            fresh.inherit(self._codec)
            self._codec, self._infrastructure = fresh, fresh._infrastructure
            assert isinstance(fresh.decode(data, sender, now), Refusal), "the same message after a reload"
        assert all(abs(offset) < 400 for offset in self._codec.clock_offsets(now).values())
        if isinstance(found, Refusal):
            return False
        assert found
        for answer in found[:20]:
            assert answer.learned <= now
            assert answer.evidence <= KEYS[example.secret].max_evidence
            check_answer(answer, now=now, infrastructure=infrastructure)
            self._send_on(answer, now)
        return True

    def _send_on(self, answer: Answer, now: float) -> None:
        self._cache.put(answer, now)
        held = self._cache.get(answer.rrsets[0].owner, answer.rrsets[0].type, now)
        assert held is None or held.rrset.ttl <= DEFAULT_MAX_TTL
        messages, refusals = self._sender.encode([answer], now)
        assert len(messages) + len(refusals) == 1
        for message in messages:
            parse(message)
            assert self._sender.decode(message, SENDER, now) is Refusal.OWN_MESSAGE
            plain = DnsCodec(DnsCodecSettings(transport="x", key=KEYS[0], infrastructure=True), start=None)
            again = plain.decode(message, SENDER, now)
            if isinstance(
                again, Refusal
            ):  # a CNAME that leads back was asked for, and without the question has no head
                last = answer.rrsets[-1]
                assert again is Refusal.NO_ANSWER, again
                assert last.type == CNAME
                assert cname_target(last) in {rrset.owner for rrset in answer.rrsets}
                continue
            assert {rrset.owner for each in again for rrset in each.rrsets} <= {rrset.owner for rrset in answer.rrsets}


TARGETS: tuple[type[Target[Any]], ...] = (TsigTarget, ShortcutTarget, CodecTarget)
