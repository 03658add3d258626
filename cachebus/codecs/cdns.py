"""Codec `cdns`: blocks of RFC 8618 for links that authenticate the other end (docs/wire/cdns.md).

Decides whose a block is by what its link says, whether it is timely and new, and which of its answers are answers
(trust rules 6 and 8). There is no MAC in it. What may be shared or accepted is the policy's matter, what stays in the
cache the cache's; how the bytes stand is known to `wire.cdns_write` and `wire.cdns_read`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Final, NamedTuple

from cachebus import __version__
from cachebus.answer import Answer, Evidence, Refusal, RRset
from cachebus.codecs.form import check, split_names, take, usual_rrset
from cachebus.codecs.offsets import ClockOffsets
from cachebus.errors import ConfigError, FrameError
from cachebus.filters.chain import DEFAULT_MAX_TTL
from cachebus.ports import Datagram, LeftOut, PeerPresence, Sender
from cachebus.wire.cdns import MAX_BLOCK_ITEMS, VALIDATING
from cachebus.wire.cdns_read import BusBlock, read_bus_block
from cachebus.wire.cdns_stream import CdnsFraming, PreambleReader
from cachebus.wire.cdns_write import BLOCK_OVERHEAD, MAX_BLOCK, BlockHead, most_bytes, write_block, write_hello
from cachebus.wire.sequence import MAX_ORIGINS, OwnStream, Streams

DEFAULT_BLOCK = 64 * 1024
"""Bytes of a message at most: some 400 answers, which is what a stream's compressor needs to see together."""
MIN_BLOCK = 2048
"""Bytes; below it, what a block says of itself leaves no room for an answer."""
FLUSH_COUNT = 512
"""Answers that wait for each other at most: the tables of a block gain with its size, see docs/wire/cdns.md."""
MAX_SENDERS = 10_000
"""Senders whose levels are remembered."""
MAX_COPIED_ORIGINS = 4096
"""Origins that one copy of a cache may name: the cache tells 60,000 apart for as long as it lives, and no cluster has
as many nodes."""
_IS_ORIGIN: Final = re.compile(r"[A-Za-z0-9.:%_-]{1,63}").fullmatch
"""A node's name, or an address where a key is bound to no node: it goes to logs and terminals, and into the cache."""
_VALIDATED = Evidence.VALIDATED
_LEVEL = 3
_new = tuple.__new__

_Level = tuple[Evidence, bool] | Refusal


class Peer(NamedTuple):
    """What the holder of a certificate may claim."""

    origins: frozenset[str] | None = None
    """Nodes that speak with it; None: any."""
    max_evidence: Evidence = Evidence.VALIDATED


@dataclass(frozen=True, slots=True, kw_only=True)
class CdnsCodecSettings:
    """How one transport speaks codec `cdns`."""

    node: str
    """The host-id of our blocks. What comes in under it is our own."""
    cluster: str
    transport: str
    """Name of the transport: the provenance of what comes in."""
    peers: Mapping[str, Peer] = field(default_factory=dict)
    """By the name that the link authenticated, which is the sender. Nothing is taken from any other name."""
    insecure_link: bool = False
    """Take blocks from loopback addresses too, where nobody is authenticated."""
    max_message: int = DEFAULT_BLOCK
    """Bytes of a message that we send, its preamble included."""
    max_ttl: int = DEFAULT_MAX_TTL
    infrastructure: bool = False
    accept: frozenset[Evidence] = frozenset(Evidence)
    """Levels taken on receipt."""
    snapshot: bool = False
    """What is taken is a copy of a cache: answers of any origin, our own too, that were learned at any time."""
    policy_hash: str = ""
    """Hash of the settings that the draft wants alike in a network; hellos carry it. Empty: not said, not compared."""


class _Sender(NamedTuple):
    """What one sender may claim."""

    origins: frozenset[str] | None
    signer: str
    levels: list[_Level]


class CdnsCodec:
    """The `Codec` of ports.py. Keeps the streams of all origins, so one transport has one."""

    def __init__(self, settings: CdnsCodecSettings, *, start: float | None) -> None:
        """`start`: when the node began to listen; None takes blocks of any time (reading a file, a snapshot).

        Raises `ConfigError` for a limit out of range.
        """
        if not MIN_BLOCK <= settings.max_message <= MAX_BLOCK:
            raise ConfigError(f"transport {settings.transport}: a C-DNS message has {MIN_BLOCK} to {MAX_BLOCK} bytes")
        self._settings = settings
        self.framing = CdnsFraming(settings.node, f"cachebus/{__version__}")
        self._room = settings.max_message - len(self.framing.before) - BLOCK_OVERHEAD
        self._preambles = PreambleReader()
        self._senders: dict[Sender, _Sender | Refusal] = {}
        self._copied: set[str] = set()
        self._streams = Streams(start=start)
        self._offsets = ClockOffsets()
        self._policies: dict[str, bool] = {}
        self._sending = OwnStream(start)
        self._blocks = 0
        self._hellos = 0
        self._namesakes = 0

    def inherit(self, previous: CdnsCodec) -> None:
        """Go on with the streams that the codec which this one replaces has heard, and with the one it has sent."""
        self._streams = previous._streams
        self._offsets = previous._offsets
        if previous._settings.policy_hash == self._settings.policy_hash:
            self._policies = previous._policies
        self._sending = previous._sending
        self._blocks, self._hellos, self._namesakes = previous._blocks, previous._hellos, previous._namesakes

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
        """Take what `state` gave in a previous run, before anything is sent.

        Where the clock was set back since, our stream begins above the one before it all the same: peers refuse others.
        """
        heard = dict(state)
        self._sending.restore(heard.pop(self._settings.node, 0))
        self._streams.restore(heard)

    def counters(self) -> dict[str, int]:
        """Of the streams heard: `gaps` (missing now), `duplicates`, `reordered`, `restarts`, `origins`. Of all:
        `blocks` and `hellos` taken, `namesakes` (another process speaks under our name), `policy_differs` (origins
        whose last hello carried another policy hash than ours)."""
        counters = self._streams.counters()
        counters["blocks"] = self._blocks
        counters["hellos"] = self._hellos
        counters["namesakes"] = self._namesakes
        counters["policy_differs"] = sum([not agrees for agrees in self._policies.values()])
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
        """Files of one block of at most `max_message` bytes, each of answers of one origin, in their order."""
        messages: list[bytes] = []
        left_out: list[LeftOut] = []
        by_origin: dict[str, list[Answer]] = {}
        for answer in answers:
            learned = answer[5]
            for rrset in answer[2]:
                if learned + rrset[2] <= now or rrset[2] <= 0:
                    left_out.append((answer, Refusal.EXPIRED))
                    break
            else:
                by_origin.setdefault(answer[4], []).append(answer)
        for origin, found in by_origin.items():
            self._write(origin, found, now, messages, left_out)
        return messages, left_out

    def _write(
        self, origin: str, answers: list[Answer], now: float, messages: list[bytes], left_out: list[LeftOut]
    ) -> None:
        room = self._room
        chosen: list[Answer] = []
        for answer in answers:
            size = most_bytes(answer)
            if size > self._room:
                left_out.append((answer, Refusal.OVERSIZE))
                continue
            room -= size
            if room < 0 or len(chosen) == MAX_BLOCK_ITEMS:
                messages.append(self.framing.before + write_block(self._head(origin, now), chosen))
                chosen = []
                room = self._room - size
            chosen.append(answer)
        if chosen:
            messages.append(self.framing.before + write_block(self._head(origin, now), chosen))

    def _head(self, origin: str, now: float) -> BlockHead:
        settings, sequence = self._settings, self._sending.next(now)
        named = "" if origin == settings.node else origin
        return BlockHead(self._sending.stream, sequence, int(now * 1000), settings.cluster, named)

    def hello(self, now: float) -> bytes:
        """A block without answers: it shows that we are here, what was lost before it, and our policy hash."""
        head = self._head(self._settings.node, now)
        return self.framing.before + write_hello(head, self._settings.policy_hash)

    def will(self) -> None:
        """None: nothing in a block proves who wrote it, so nobody can speak for us."""

    # In

    def decode_all(self, batch: Sequence[Datagram], now: float) -> tuple[list[Answer], list[Refusal]]:
        """Take blocks from the senders that the link authenticated, refuse what is not new, check each answer's form.

        A reason for each block that is refused, and for each answer of a block that is taken without it.
        """
        answers: list[Answer] = []
        refusals: list[Refusal] = []
        for data, sender in batch:
            refusal = self._decode(data, sender, now, answers, refusals)
            if refusal is not None:
                refusals.append(refusal)
        return answers, refusals

    def _decode(
        self, data: bytes, sender: Sender, now: float, answers: list[Answer], refusals: list[Refusal]
    ) -> Refusal | None:
        known = self._senders.get(sender)
        if known is None:
            known = self._new_sender(sender)
        if isinstance(known, Refusal):
            return known
        try:
            parameters, start = self._preambles.read(data)
            said = parameters[0]
            block = read_bus_block(data, start, said.ticks)
        except FrameError:
            return Refusal.MALFORMED
        if not said.ttl_and_rdata or not said.ticks or block.parameters:
            return Refusal.MALFORMED
        refusal = self._refuse(known, block, said.host, now)
        if refusal is not None:
            return refusal
        if not block.items:
            self._greet(said.host, block.policy)
            return None
        self._blocks += 1
        self._take(block, block.head.origin or said.host, said.ticks, known, now, answers, refusals)
        return None

    def _refuse(self, known: _Sender, block: BusBlock, host: str, now: float) -> Refusal | None:
        """Why a block is not taken: cluster, origin, time, sender, stream and number, in this order."""
        head = block.head
        settings = self._settings
        if head.cluster != settings.cluster:
            return Refusal.WRONG_CLUSTER
        if not _IS_ORIGIN(host) or (known.origins is not None and host not in known.origins):
            return Refusal.WRONG_ORIGIN
        if head.origin:
            if not settings.snapshot or not _IS_ORIGIN(head.origin):
                return Refusal.WRONG_ORIGIN  # nobody passes on, live, what others learned
            self._copied.add(head.origin)
            if len(self._copied) > MAX_COPIED_ORIGINS:
                self._copied.discard(head.origin)
                return Refusal.OVERLOAD
        sent = head.sent / 1000
        refusal = self._streams.refuse_time(sent, now)
        if refusal is not None:
            return refusal
        if host == settings.node and not settings.snapshot:
            self._namesakes += head.stream != self._sending.stream
            return Refusal.OWN_MESSAGE
        refusal = self._streams.take(host, head.stream, head.sequence, now)
        if refusal is None:
            self._offsets.note(host, now - sent, now)
        return refusal

    def _greet(self, host: str, theirs: str) -> None:
        self._hellos += 1
        ours = self._settings.policy_hash
        if ours and theirs:
            if len(self._policies) >= MAX_ORIGINS and host not in self._policies:
                self._policies.clear()
            self._policies[host] = theirs == ours

    def _take(
        self,
        block: BusBlock,
        origin: str,
        ticks: int,
        known: _Sender,
        now: float,
        answers: list[Answer],
        refusals: list[Refusal],
    ) -> None:
        """Take the answers of a block."""
        settings = self._settings
        transport, max_ttl, infrastructure = settings.transport, settings.max_ttl, settings.infrastructure
        levels, signer, earliest, names = known.levels, known.signer, block.earliest, block.names
        proven = split_names(b"".join(names)) == names
        ahead = max(0.0, block.head.sent / 1000 - now)  # ages are by the sender's clock, and so none gets smaller
        for meta, claims, offset, qname, qtype, raw in block.items:
            learned = (earliest + offset) / ticks - ahead
            if learned > now:
                learned = now
            level = levels[meta] if 0 <= meta < len(levels) else Refusal.MALFORMED
            if isinstance(level, Refusal):
                refusals.append(level)
                continue
            if claims != (meta & _LEVEL == _VALIDATED):
                refusals.append(Refusal.MALFORMED)  # the flag that everybody reads, and ours, say different things
                continue
            evidence, validating = level
            chain: tuple[RRset, ...] | Refusal | None = None
            if proven and len(raw) == 1:
                owner, rrtype, ttl, rdatas, sigs = raw[0]
                if rrtype == qtype and owner == qname and (sigs or evidence is not _VALIDATED):
                    rrset = usual_rrset(qname, qtype, ttl, rdatas, sigs, learned, max_ttl)
                    if rrset is not None:
                        chain = (rrset,)
            if chain is None:
                judge = take if proven else check
                chain = judge(qname, qtype, raw, evidence, learned, max_ttl, infrastructure)
            if isinstance(chain, Refusal):
                refusals.append(chain)
            elif learned + min([rrset[2] for rrset in chain]) <= now:
                refusals.append(Refusal.EXPIRED)
            else:
                whole = (qname, qtype, chain, evidence, origin, learned, validating, transport, signer)
                answers.append(_new(Answer, whole))

    def _new_sender(self, sender: Sender) -> _Sender | Refusal:
        settings = self._settings
        known: _Sender | Refusal
        if isinstance(sender, str):
            peer = settings.peers.get(sender)
            known = Refusal.UNKNOWN_KEY if peer is None else _Sender(peer.origins, sender, self._levels(peer))
        elif settings.insecure_link and _is_loopback(sender[0]):
            known = _Sender(None, "", self._levels(Peer()))
        else:
            known = Refusal.UNSIGNED
        if len(self._senders) >= MAX_SENDERS:
            self._senders.clear()
        self._senders[sender] = known
        return known

    def _levels(self, peer: Peer) -> list[_Level]:
        """By an answer's private key: its level, no higher than the peer's, and whether its origin validates."""
        levels: list[_Level] = [Refusal.MALFORMED] * (2 * VALIDATING)
        for level in Evidence:
            taken = min(level, peer.max_evidence)
            for bit in (0, VALIDATING):
                weak = taken not in self._settings.accept
                levels[level | bit] = Refusal.EVIDENCE_TOO_WEAK if weak else (taken, bool(bit))
        return levels


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False  # a name: who knows where that leads
