"""Codec `batch`: many answers in one envelope under one MAC (docs/wire/batch.md).

Decides whose an envelope is, whether it is timely and new, and which of its answers are answers (trust rules 6 and 8).
What may be shared or accepted is the policy's matter, what stays in the cache the cache's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cachebus.answer import Answer, Evidence, Refusal
from cachebus.codecs.columns import Rows, Walk
from cachebus.codecs.form import take, u32
from cachebus.codecs.offsets import ClockOffsets
from cachebus.errors import ConfigError
from cachebus.filters.chain import DEFAULT_MAX_TTL
from cachebus.ports import Datagram, LeftOut, PeerPresence
from cachebus.wire.batch import (
    HEAD_SIZE,
    MAX_ENVELOPE,
    MAX_ITEMS,
    Body,
    Compression,
    Entry,
    Kind,
    Opener,
    Sealer,
    compress,
    read_body,
    read_columns,
    unpack,
    write_entry,
    write_payload,
)
from cachebus.wire.sequence import MAX_ORIGINS, OwnStream, Streams
from cachebus.wire.stream import LengthFraming
from cachebus.wire.tsig import Key

if TYPE_CHECKING:
    from mypy_extensions import i64

DEFAULT_ENVELOPE = 64 * 1024
"""Bytes of an envelope at most: a quarter of what every broker carries, and 1,000 answers."""
MIN_ENVELOPE = 512
"""Bytes; below it, the overhead of an envelope leaves no room for an answer."""
COMPRESS_FROM = 256
"""Bytes of payload from which on compressing is tried: zstd gains nothing on one or two answers."""
_PAYLOAD_OVERHEAD = 24
"""Bytes of msgpack around the columns at most: the array's header and those of three byte strings."""
_VALIDATING: Final = 4
"""Bit of an answer's first byte, above its level."""
_VALIDATED: Final = Evidence.VALIDATED
_new: Final = tuple.__new__
_ANSWER: Final[type[Answer]] = Answer


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchCodecSettings:
    """How one transport speaks codec `batch`."""

    node: str
    """The origin that our envelopes name. What comes in under it is our own."""
    cluster: str
    transport: str
    """Name of the transport: the provenance of what comes in."""
    key: Key
    """Signs what is sent; accepted on receipt."""
    more_keys: tuple[Key, ...] = ()
    """Accepted on receipt too: the others of a cluster with one key per sender, or the old one in a rollover."""
    max_message: int = DEFAULT_ENVELOPE
    """Bytes of an envelope that we send."""
    max_ttl: int = DEFAULT_MAX_TTL
    infrastructure: bool = False
    accept: frozenset[Evidence] = frozenset(Evidence)
    """Levels taken on receipt."""
    zstd: bool = False
    policy_hash: str = ""
    """Hash of the settings that the draft wants alike in a network; hellos carry it. Empty: not said, not compared."""


class BatchCodec:
    """The `Codec` of ports.py. Keeps the streams of all origins, so one transport has one."""

    def __init__(self, settings: BatchCodecSettings, *, start: float | None) -> None:
        """`start`: when the node began to listen; None takes envelopes of any time (reading a file).

        Raises `ConfigError` for a limit out of range.
        """
        if not MIN_ENVELOPE <= settings.max_message <= MAX_ENVELOPE:
            raise ConfigError(f"transport {settings.transport}: an envelope has {MIN_ENVELOPE} to {MAX_ENVELOPE} bytes")
        self.framing = LengthFraming()
        self._settings = settings
        self._sealer = Sealer(settings.key)
        keys = (settings.key, *settings.more_keys)
        self._opener = Opener(keys)
        self._levels = {key.name: _levels(key, settings.accept) for key in keys}
        self._room = settings.max_message - _PAYLOAD_OVERHEAD - self._sealer.overhead(settings.cluster, settings.node)
        self._streams = Streams(start=start)
        self._offsets = ClockOffsets()
        self._rows = Rows(settings.max_ttl)
        self._policies: dict[str, bool] = {}
        self._sending = OwnStream(start)
        self._hellos = 0
        self._wills = 0
        self._namesakes = 0
        self._envelopes = 0

    def inherit(self, previous: BatchCodec) -> None:
        """Go on with the streams that the codec which this one replaces has heard, and with the one it has sent."""
        self._streams = previous._streams
        self._offsets = previous._offsets
        if previous._settings.policy_hash == self._settings.policy_hash:
            self._policies = previous._policies
        self._sending = previous._sending
        self._hellos, self._wills = previous._hellos, previous._wills
        self._namesakes, self._envelopes = previous._namesakes, previous._envelopes

    # State

    def tick(self, monotonic: float) -> None:
        """Say what a clock shows that nobody sets, in seconds, about once a second: `Streams.tick`."""
        self._streams.tick(monotonic)

    def state(self) -> dict[str, int]:
        """What is to be kept over a restart: the newest stream id of each origin, our own too."""
        kept = self._streams.state()
        if self._sending.stream:
            kept[self._settings.node] = self._sending.stream
        return kept

    def restore(self, state: Mapping[str, int]) -> None:
        """Take what `state` gave in a previous run; before anything is sent, the will included.

        Where the clock was set back since, our stream begins above the one before it all the same: peers refuse others.
        """
        heard = dict(state)
        self._sending.restore(heard.pop(self._settings.node, 0))
        self._streams.restore(heard)

    def counters(self) -> dict[str, int]:
        """Of the streams heard: `gaps` (missing now), `duplicates`, `reordered`, `restarts`, `origins`. Of all:
        `envelopes`, `hellos` and `wills` taken, `namesakes` (another process speaks under our name), `policy_differs`
        (origins whose last hello carried another policy hash than ours)."""
        counters = self._streams.counters()
        counters["envelopes"] = self._envelopes
        counters["hellos"] = self._hellos
        counters["wills"] = self._wills
        counters["namesakes"] = self._namesakes
        counters["policy_differs"] = sum(not agrees for agrees in self._policies.values())
        return counters

    def presence(self) -> dict[str, PeerPresence]:
        """What is known of each origin, by name."""
        return {
            name: PeerPresence(known.stream, known.heard, self._policies.get(name), known.gone)
            for name, known in self._streams.presence().items()
        }

    def clock_offsets(self, now: float) -> dict[str, float]:
        """Per origin heard of in the last minutes: seconds by which its clock is behind ours (negative: ahead)."""
        return self._offsets.offsets(now)

    # Out

    def encode(self, answers: Sequence[Answer], now: float) -> tuple[list[bytes], list[LeftOut]]:
        """Envelopes of at most `max_message` bytes, as few as hold the answers, in their order."""
        messages: list[bytes] = []
        left_out: list[LeftOut] = []
        entries: list[Entry] = []
        room, items, time_ms = self._room, MAX_ITEMS - 3, int(now * 1000)
        for answer in answers:
            learned = answer[5]
            entry: Entry | None = None
            for rrset in answer[2]:
                if learned + rrset[2] <= now or not rrset[2]:
                    left_out.append((answer, Refusal.EXPIRED))
                    break
            else:
                entry = write_entry(answer, time_ms)
                if entry is None or entry.size > self._room or len(entry.rdatas) > MAX_ITEMS - 3:
                    left_out.append((answer, Refusal.OVERSIZE))
                    entry = None
            if entry is None:
                continue
            room -= entry.size
            items -= len(entry.rdatas)
            if room < 0 or items < 0:
                messages.append(self._seal(entries, now))
                entries = []
                room, items = self._room - entry.size, MAX_ITEMS - 3 - len(entry.rdatas)
            entries.append(entry)
        if entries:
            messages.append(self._seal(entries, now))
        return messages, left_out

    def _seal(self, entries: list[Entry], now: float) -> bytes:
        payload = write_payload(entries)
        compression = Compression.NONE
        if self._settings.zstd and len(payload) >= COMPRESS_FROM:
            compression, payload = compress(payload)
        return self._sealer.seal(self._next(now, Kind.ANSWERS, compression, payload))

    def _next(self, now: float, kind: Kind, compression: Compression, payload: bytes) -> Body:
        settings, sequence = self._settings, self._sending.next(now)
        stream, time_ms = self._sending.stream, int(now * 1000)
        return Body(
            settings.cluster, settings.node, stream, sequence, time_ms, kind, compression, payload,
            {"policy": settings.policy_hash} if settings.policy_hash else {},
        )  # fmt: skip

    def hello(self, now: float) -> bytes:
        """An envelope without answers: it shows that we are here, what was lost before it, and our policy hash."""
        return self._sealer.seal(self._next(now, Kind.HELLO, Compression.NONE, b""))

    def will(self) -> bytes | None:
        """What a broker says when our connection ends; None without a start, for then no stream has begun."""
        if not self._sending.stream:
            return None
        settings = self._settings
        gone = Body(settings.cluster, settings.node, self._sending.stream, 0, 0, Kind.GONE, Compression.NONE, b"", {})
        return self._sealer.seal(gone)

    # In

    def decode_all(self, batch: Sequence[Datagram], now: float) -> tuple[list[Answer], list[Refusal]]:
        """Authenticate, refuse what is not new, check the form of each answer, for each of many envelopes.

        A reason for each envelope that is refused, and for each answer of an envelope that is taken without it.
        """
        answers: list[Answer] = []
        refusals: list[Refusal] = []
        for data, _ in batch:
            refusal = self._decode(data, now, answers, refusals)
            if refusal is not None:
                refusals.append(refusal)
        return answers, refusals

    def _decode(self, data: bytes, now: float, answers: list[Answer], refusals: list[Refusal]) -> Refusal | None:
        opened = self._opener.open(data)
        if isinstance(opened, Refusal):
            return opened
        key, packed = opened
        body = read_body(packed)
        if isinstance(body, Refusal):
            return body
        refusal = self._refuse(key, body, now)
        if refusal is not None:
            return refusal
        if body.kind != Kind.ANSWERS:
            self._greet(body)
            return None
        payload = unpack(body.compression, body.payload)
        if isinstance(payload, Refusal):
            return payload
        columns = read_columns(payload)
        if isinstance(columns, Refusal):
            return columns
        walk = self._rows.walk(columns)
        if walk is None:
            return Refusal.MALFORMED
        self._envelopes += 1
        self._take(columns.heads, walk, body, key, now, answers, refusals)
        return None

    def _refuse(self, key: Key, body: Body, now: float) -> Refusal | None:
        """Why an authentic envelope is not taken: cluster, origin, time, sender, stream and number, in this order."""
        settings = self._settings
        origin, stream = body.origin, body.stream
        if body.cluster != settings.cluster:
            return Refusal.WRONG_CLUSTER
        if key.origins and origin not in key.origins:
            return Refusal.WRONG_ORIGIN
        sent = body.time_ms / 1000
        refusal = None if body.kind == Kind.GONE else self._streams.refuse_time(sent, now)
        if refusal is not None:
            return refusal
        if origin == settings.node:
            # A broker's word for our previous run is no other process.
            self._namesakes += body.kind != Kind.GONE and stream != self._sending.stream
            return Refusal.OWN_MESSAGE
        if body.kind == Kind.GONE:
            return None if self._streams.gone(origin, stream) else Refusal.OLD_STREAM
        refusal = self._streams.take(origin, stream, body.sequence, now)
        if refusal is None:
            self._offsets.note(origin, now - sent, now)
        return refusal

    def _greet(self, body: Body) -> None:
        if body.kind == Kind.GONE:
            self._wills += 1
            return
        self._hellos += 1
        theirs, ours = body.extra.get("policy"), self._settings.policy_hash
        if ours and isinstance(theirs, str):
            if len(self._policies) >= MAX_ORIGINS and body.origin not in self._policies:
                self._policies.clear()
            self._policies[body.origin] = theirs == ours

    def _take(
        self,
        heads: bytes,
        walk: Walk,
        body: Body,
        key: Key,
        now: float,
        answers: list[Answer],
        refusals: list[Refusal],
    ) -> None:
        """Take the answers whose heads these are."""
        settings = self._settings
        transport, signer, origin = settings.transport, key.text, body.origin
        levels, max_ttl, infrastructure = self._levels[key.name], settings.max_ttl, settings.infrastructure
        now_ms: i64 = int(now * 1000)
        sent_ms: i64 = min(body.time_ms, int(now * 1000))  # a sender's clock that is ahead makes no age smaller
        last_age: i64 = -1
        learned_ms: i64 = 0
        learned = 0.0
        at: i64 = 0
        end: i64 = len(heads)
        while at < end:
            meta: i64 = heads[at]
            count: i64 = heads[at + 1]
            qtype: i64 = heads[at + 2] << 8 | heads[at + 3]
            age = u32(heads, at + 4)
            at += HEAD_SIZE
            if age != last_age:  # what was learned together stands together
                last_age = age
                learned_ms = sent_ms - age
                learned = learned_ms / 1000
            qname = walk.name()
            evidence = levels[meta]
            if evidence is None:
                walk.raw(qname, count)
                refusals.append(Refusal.EVIDENCE_TOO_WEAK if meta < 8 and meta & 3 else Refusal.MALFORMED)
                continue
            chain = walk.usual(qname, qtype, count, learned, signed=evidence is _VALIDATED)
            if chain is None:
                judged = take(qname, qtype, walk.raw(qname, count), evidence, learned, max_ttl, infrastructure)
                if isinstance(judged, Refusal):
                    refusals.append(judged)
                    continue
                chain = judged
                walk.ttl = min([rrset[2] for rrset in chain])
            if learned_ms + walk.ttl * 1000 <= now_ms:
                refusals.append(Refusal.EXPIRED)
                continue
            answers.append(_new(_ANSWER, (qname, qtype, chain, evidence, origin, learned, meta > 3, transport, signer)))


def _levels(key: Key, accept: frozenset[Evidence]) -> list[Evidence | None]:
    """By an answer's first byte: its level, no higher than the key's; None where it is not taken."""
    levels: list[Evidence | None] = [None] * 256
    for level in Evidence:
        taken = min(level, key.max_evidence)
        if taken in accept:
            levels[level] = levels[level | _VALIDATING] = taken
    return levels
