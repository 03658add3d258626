"""Targets: CBOR, and C-DNS blocks, streams and files (`wire.cbor`, `wire.cdns*`, `codecs.cdns`)."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import cbor2

from cachebus.answer import Answer, Evidence, RRset
from cachebus.codecs.cdns import CdnsCodec, CdnsCodecSettings, Peer
from cachebus.errors import FrameError, MessageError
from cachebus.wire import cdns_read
from cachebus.wire.cbor import MAX_CONTAINERS, EndFinder, decode
from cachebus.wire.cdns import FILE_TYPE, MAX_BLOCK_ITEMS
from cachebus.wire.cdns_messages import EXPANSION, CdnsFileReceiver
from cachebus.wire.cdns_read import MAX_EXPANDED, BusBlock, read_bus_block
from cachebus.wire.cdns_stream import MAX_PREAMBLE, CdnsSplitter
from cachebus.wire.cdns_write import MAX_BLOCK, BlockHead, write_block, write_hello
from cachebus.wire.dnstap import decode as decode_dnstap
from cachebus.wire.message import pack, parse
from tests.fuzz.bus import NOW, check_answer
from tests.fuzz.frames import portions
from tests.fuzz.grammar import NAMES, RRSIG, make_chain, pick_name, pick_type
from tests.fuzz.harness import Part, Target
from tests.fuzz.messages import BytesTarget
from tests.fuzz.mutate import LONGS, below, mutate

COMPACTOR = (Path(__file__).parents[1] / "data" / "compactor-unbound.cdns").read_bytes()
_BREAK = 0xFF
ODD: tuple[Any, ...] = (None, True, 1.5, -1, 0, 1, 23, 24, 255, 65536, *LONGS, "x", b"x", b"", [], {}, [0], {0: 0})
"""What may stand where something else belongs."""


def make_answers(rng: Random, most: int) -> list[Answer]:
    """Answers of the kinds that the DNS has, most of them right."""
    found = []
    for _ in range(1 + below(rng, most)):
        qname, qtype = pick_name(rng).lower(), pick_type(rng)
        rrsets: list[Any] = []
        for record in make_chain(rng, qname, qtype, NOW, usual=rng.random() < 0.8):
            owner, made = record.owner.lower(), b"".join(record.rdata)
            if record.type == RRSIG and rrsets and rrsets[-1][0] == owner:
                rrsets[-1][4].append(made)
            elif rrsets and rrsets[-1][:2] == (owner, record.type):
                rrsets[-1][3].append(made)
            else:
                rrsets.append((owner, record.type, record.ttl & 0xFFFFFFFF, [made], []))
        packed = tuple(
            RRset(owner, rrtype, ttl, pack(rrtype, ttl, rdatas), pack(RRSIG, ttl, sigs))
            for owner, rrtype, ttl, rdatas, sigs in rrsets
        )
        learned = NOW - (0, 1.5, 600, 1e7)[below(rng, 4)]
        evidence = Evidence(1 + below(rng, 3))
        found.append(Answer(qname, qtype, packed, evidence, "a", learned, rng.random() < 0.3))
    return found


def make_block(rng: Random) -> bytes:
    """A block of ours."""
    head = BlockHead(5, 1 + below(rng, 9), int(NOW * 1000), "c", "" if rng.random() < 0.9 else "other")
    if rng.random() < 0.1:
        return write_hello(head, "p" * below(rng, 70))
    answers = make_answers(rng, 30 if rng.random() < 0.02 else 3)
    return write_block(head, answers)


def with_length(block: bytes) -> bytes:
    """The block with the length that it has."""
    return block[:6] + len(block).to_bytes(4, "big") + block[10:] if len(block) > 10 else block


def changed_value(rng: Random, value: Any) -> Any:
    """A decoded item with something changed somewhere in it."""
    at = value
    while True:
        keys = list(at) if isinstance(at, dict) else range(len(at))
        if not keys:
            return value
        key = keys[below(rng, len(keys))]
        inner = at[key]
        if isinstance(inner, dict | list) and inner and rng.random() < 0.9:
            at = inner
            continue
        match below(rng, 4):
            case 0:
                del at[key]
            case 1 if isinstance(at, dict):
                at[below(rng, 30) - 3] = ODD[below(rng, len(ODD))]
            case 2 if isinstance(inner, bytes):
                at[key] = mutate(rng, inner, NAMES)
            case _:
                at[key] = ODD[below(rng, len(ODD))]
        return value


class CborTarget(BytesTarget):
    """`cbor.decode` and `EndFinder`: a value and where it ends, whatever the portions, or `FrameError`."""

    name = "cbor"
    parts = (Part("cachebus/wire/cbor.py", without=("head", "integer", "text")),)
    calls = 4

    def valid(self, rng: Random) -> bytes:
        if rng.random() < 0.1:
            return make_block(rng)
        return self._encode(rng, self._value(rng, 0))

    def _value(self, rng: Random, depth: int) -> Any:
        match below(rng, 9 if depth < 5 else 6):
            case 0:
                return LONGS[below(rng, len(LONGS))]
            case 1:
                return -1 - below(rng, 300)
            case 2:
                return rng.randbytes(below(rng, 300 if rng.random() < 0.1 else 8))
            case 3:
                return "ü" * below(rng, 30)
            case 4:
                return (True, False, None, 1.0, 1e10, 1e300)[below(rng, 6)]
            case 5:
                return below(rng, 70000)
            case 6 | 7:
                return [self._value(rng, depth + 1) for _ in range(below(rng, 5))]
            case _:
                return {below(rng, 300) - 120: self._value(rng, depth + 1) for _ in range(below(rng, 5))}

    def _encode(self, rng: Random, value: Any) -> bytes:
        """As cbor2 does, but at times with lengths that are not said first, or with a tag."""
        die = rng.random()
        if die < 0.05:
            return b"\xc1" + self._encode(rng, value)
        if die > 0.2 or not isinstance(value, bytes | str | list | dict):
            return bytes(cbor2.dumps(value))
        match value:
            case bytes():
                return b"\x5f" + cbor2.dumps(value[:3]) + cbor2.dumps(value[3:]) + b"\xff"
            case str():
                return b"\x7f" + cbor2.dumps(value[:3]) + cbor2.dumps(value[3:]) + b"\xff"
            case list():
                return b"\x9f" + b"".join(self._encode(rng, one) for one in value) + b"\xff"
        pairs = (cbor2.dumps(key) + self._encode(rng, one) for key, one in value.items())
        return b"\xbf" + b"".join(pairs) + b"\xff"

    def check(self, example: bytes, rng: Random) -> bool:
        try:
            value, end = decode(example, containers=MAX_CONTAINERS)
        except FrameError:
            with suppress(FrameError):
                EndFinder().find(example)
            return False
        assert 0 < end <= len(example)
        assert EndFinder().find(example) == end
        finder = EndFinder()
        seen = b""
        for part in portions(rng, example[:end]):
            seen += part
            assert finder.find(seen) == (end if len(seen) == end else -1)
        if not any(0xC0 <= byte <= 0xDB or byte >= 0xE0 for byte in example[:end]):
            assert cbor2.loads(example[:end]) == value
        return True


class BlockTarget(BytesTarget):
    """`read_bus_block`: the short way takes nothing that the long one would not, and reads it alike."""

    name = "cdns-block"
    parts = (Part("cachebus/wire/cdns_read.py"),)
    calls = 4
    cost = 3

    def valid(self, rng: Random) -> bytes:
        if rng.random() < 0.002:
            large = make_answers(rng, 1)[0]
            return write_block(BlockHead(1, 1, 1, "c"), [large] * MAX_BLOCK_ITEMS)
        return make_block(rng)

    def mutated(self, rng: Random) -> bytes:
        block = self.valid(rng)
        if rng.random() < 0.5 and len(block) < 5000:
            value = changed_value(rng, cbor2.loads(block))
            if isinstance(value.get(0), dict) and rng.random() < 0.9:
                value[0].pop(-100, None)
            return bytes(cbor2.dumps(value))
        block = mutate(rng, block)
        return with_length(block) if rng.random() < 0.9 else block

    def check(self, example: bytes, rng: Random) -> bool:
        found = [self._outcome(way, example) for way in (read_bus_block, cdns_read._long_way)]
        assert found[0] == found[1]
        if found[0] is None:
            return False
        block = read_bus_block(example, 0, 1000)
        assert len(block.items) <= MAX_BLOCK_ITEMS
        names = {*block.names}
        size = 0
        for meta, _, offset, qname, qtype, rrsets in block.items:
            assert meta >= 0
            assert offset >= 0
            assert qname in names
            assert 0 <= qtype <= 0xFFFF
            for owner, _, ttl, rdatas, sigs in rrsets:
                assert owner in names
                assert 0 <= ttl <= 0xFFFFFFFF
                assert rdatas
                size += sum(map(len, rdatas)) + sum(map(len, sigs))
        assert size <= MAX_EXPANDED
        return True

    def _outcome(self, way: Any, example: bytes) -> BusBlock | None:
        try:
            block: BusBlock = way(example, 0, 1000)
        except FrameError:
            return None
        return block._replace(names=sorted({*block.names}))


class StreamTarget(BytesTarget):
    """`CdnsSplitter`: the same messages and end however the bytes are cut; never more held than one block."""

    name = "cdns-stream"
    parts = (
        Part("cachebus/wire/cdns_stream.py", without=("CdnsFraming", "PreambleReader")),
        Part("cachebus/wire/cdns.py"),
    )
    calls = 4

    def valid(self, rng: Random) -> bytes:
        if rng.random() < 0.1:
            return COMPACTOR
        framing = _codec(rng).framing
        blocks = [make_block(rng) for _ in range(below(rng, 4))]
        if rng.random() < 0.3:
            blocks = [bytes(cbor2.dumps(cbor2.loads(block) | {0: {}})) for block in blocks]
        if rng.random() < 0.3:
            return framing.opening()[:-1] + bytes((0x80 | len(blocks),)) + b"".join(blocks)
        return framing.opening() + b"".join(blocks) + (framing.closing() if rng.random() < 0.8 else b"")

    def mutated(self, rng: Random) -> bytes:
        data = self.valid(rng)
        if rng.random() < 0.3 and (data[-1] == _BREAK or data == COMPACTOR):
            value = cbor2.loads(data)
            changed_value(rng, value[1])
            return bytes(cbor2.dumps(value))
        return mutate(rng, data)

    def check(self, example: bytes, rng: Random) -> bool:
        whole = self._outcome([example])
        assert self._outcome(portions(rng, example)) == whole
        if len(example) < 500:
            assert self._outcome([example[at : at + 1] for at in range(len(example))]) == whole
        messages, end = whole
        assert sum(map(len, messages)) <= len(example) + len(messages) * MAX_PREAMBLE
        assert all(message.startswith(FILE_TYPE) for message in messages)
        return end == "end"

    def _outcome(self, parts: list[bytes]) -> tuple[list[bytes], str]:
        splitter = CdnsSplitter()
        messages: list[bytes] = []
        try:
            for part in parts:
                messages += splitter.receive_data(part)
                assert splitter.buffered <= MAX_BLOCK + len(part)
            splitter.receive_end()
        except FrameError as error:
            with suppress(FrameError):
                messages += splitter.receive_data(b"")
            assert not splitter.data_to_send()
            return messages, str(error)
        assert splitter.started
        closed = CdnsSplitter(closed=True)
        try:
            list(closed.receive_data(b"".join(parts)))
            closed.receive_end()
        except FrameError:
            assert not splitter.finished
        else:
            assert splitter.finished
        return messages, "end"


class FileReceiverTarget(BytesTarget):
    """C-DNS of any writer: dnstap payloads that can be decoded, or empty ones; or `FrameError`."""

    name = "cdns-file"
    parts = (Part("cachebus/wire/cdns_messages.py"),)
    cost = 4
    calls = 3  # each payload is decoded and looked at again

    def valid(self, rng: Random) -> bytes:
        if rng.random() < 0.05:  # it takes 10 ms to read
            return COMPACTOR
        value = cbor2.loads(_codec(rng).framing.before + make_block(rng))
        _make_foreign(rng, value)
        return bytes(cbor2.dumps(value))

    def mutated(self, rng: Random) -> bytes:
        data = self.valid(rng)
        if rng.random() < 0.2:
            return mutate(rng, data)
        value = cbor2.loads(data)
        part = value[1] if rng.random() < 0.2 else value[2]
        changed_value(rng, part)
        return bytes(cbor2.dumps(value))

    def check(self, example: bytes, rng: Random) -> bool:
        receiver = CdnsFileReceiver()
        assert not receiver.started
        assert not receiver.data_to_send()
        size = 0
        try:
            for payload in receiver.receive_data(example):
                size += len(payload)
                if payload:
                    frame = decode_dnstap(payload)
                    if rng.random() < 0.1:
                        with suppress(MessageError):
                            parse(frame.message)
            receiver.receive_end()
        except FrameError:
            return False
        assert receiver.finished
        assert not receiver.buffered
        assert size <= (EXPANSION + 200) * len(example) + 70_000
        return True


def _make_foreign(rng: Random, value: Any) -> None:
    """Give a file of ours what other writers' have: queries, OPT, addresses, zones, more questions."""
    storage = value[1][3][0][0]
    storage[5] = 1 if rng.random() < 0.02 else below(rng, 4) & 6
    for block in value[2]:
        if 2 not in block:
            continue
        if rng.random() < 0.05:
            block[0][1] = below(rng, 3)
        if rng.random() < 0.05:
            del block[0][0]
        tables = block[2]
        tables[0] = [b"\x7f\0\0\1", rng.randbytes(below(rng, 17))]
        tables[4], tables[5] = [[0] * (20_000 if rng.random() < 0.05 else 1)], [{0: 0, 1: 0}]
        if rng.random() < 0.05:
            tables[2][below(rng, len(tables[2]))] = bytes(40_000)
        for signature in tables[3]:
            signature[4] = below(rng, 64)
            signature.update({0: below(rng, 2), 1: 53, 2: below(rng, 64), 6: rng.getrandbits(19), 14: 1232, 15: 0})
            if rng.random() < 0.3:
                signature.update({3: below(rng, 7), 9: below(rng, 3), 16: below(rng, 20)})
            if rng.random() < 0.05:
                del signature[16]
        for item in block[3]:
            item.update({1: below(rng, 2), 2: 4000, 3: 77, 6: below(rng, 100) - 50, 10: {0: 0}})
            if rng.random() < 0.3:
                item[11] = {0: 0}
            if rng.random() < 0.1:
                item[12] = {0: 0, 1: 0}
        if rng.random() < 0.01:
            tables[2] = [*tables[2][:-1], bytes(15_000)]
            block[3] *= 1 + 2000 // len(block[3])


class CdnsCodecTarget(BytesTarget):
    """`CdnsCodec.decode_all`: answers that hold to every rule, or reasons."""

    name = "cdns-codec"
    parts = (Part("cachebus/codecs/cdns.py", only=("_decode", "_refuse", "_take", "_greet", "decode_all")),)
    calls = 2
    cost = 2

    def valid(self, rng: Random) -> bytes:
        return _codec(rng).framing.before + make_block(rng)

    def mutated(self, rng: Random) -> bytes:
        before = _codec(rng).framing.before
        if rng.random() < 0.1:
            return mutate(rng, before) + make_block(rng)
        if rng.random() < 0.5:
            value = changed_value(rng, cbor2.loads(make_block(rng)))
            if isinstance(value.get(0), dict):
                value[0].pop(-100, None)
            return before + bytes(cbor2.dumps(value))
        return before + with_length(mutate(rng, make_block(rng)))

    def check(self, example: bytes, rng: Random) -> bool:
        codec = _codec(rng, policy_hash="q", peers={"p": Peer(None, Evidence(1 + below(rng, 3)))})
        now = NOW + (0, 1, 30, 100, -400)[below(rng, 5)] if rng.random() < 0.2 else NOW
        answers, refusals = codec.decode_all([(example, "p"), (example, "q")], now)
        assert refusals
        for answer in answers:
            check_answer(answer, now=now, latest=now)
            assert answer.signer == "p"
        again, _ = codec.decode_all([(example, "p")], now)
        assert not again
        return bool(answers)


def _codec(rng: Random, **more: Any) -> CdnsCodec:
    node = "b" if more else "a"
    snapshot = bool(more) and rng.random() < 0.3
    settings = CdnsCodecSettings(node=node, cluster="c", transport="t", snapshot=snapshot, **more)
    return CdnsCodec(settings, start=NOW - 10)


TARGETS: tuple[type[Target[bytes]], ...] = (
    CborTarget, BlockTarget, StreamTarget, FileReceiverTarget, CdnsCodecTarget,
)  # fmt: skip
