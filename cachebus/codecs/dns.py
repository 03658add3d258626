"""Codec `dns`: one answer is one TSIG-signed DNS message (draft-bortzmeyer-dnsop-poisonlicious-04).

Decides what a bus message says: its form, whose it is, its evidence and what is left of its TTLs (trust rules 5 and
6.1-6.6). What may be shared or accepted is the policy's matter, what stays in the cache the cache's.

`decode` first tries the short way, which takes a message of the usual form over without taking it apart; anything else
goes through the full parse and the chain rules.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from cachebus.answer import Answer, Evidence, Refusal, RRset
from cachebus.errors import MessageError
from cachebus.filters.chain import DEFAULT_MAX_TTL, assemble
from cachebus.filters.edns import refusal_in
from cachebus.ports import Datagram, LeftOut, PeerPresence, Sender
from cachebus.wire import rrtypes
from cachebus.wire.message import AA, AD, CD, QR, cname_target, compose, parse
from cachebus.wire.name import is_at_or_below
from cachebus.wire.shortcut import take_over
from cachebus.wire.stream import LengthFraming
from cachebus.wire.tsig import Key, Signer, Stamp, Verified, Verifier

MAX_MESSAGE = 1232
"""Bytes of a message on udp and multicast: fits every path without fragments (RFC 9715 section 3.1)."""
MAX_HEADS = 64
"""Answers that one message may hold under a dummy question; each is looked for among all of its records."""
MAX_SENDERS = 10_000
"""Senders whose clock offset is remembered."""
OFFSET_WINDOW = 120.0
"""Seconds in each of two windows that a sender's clock offset is taken from: long enough for a message that was not
held up, short enough to see a clock that was set right, or wrong."""

_UNHEARD: Final = float("inf")
_VALIDATED: Final = Evidence.VALIDATED
_new: Final = tuple.__new__
_FORM: Final = QR | 0x7800 | 0x0200 | CD | 0x000F
"""Flags that must read as a response, opcode QUERY, not truncated, checked, NOERROR."""

Decoded = Sequence[Answer] | Refusal
"""What became of one message."""
_Heard = tuple[Evidence | None, Evidence | None, str, float, str]
"""What all messages of one sender and second share: their level with AD=0 and with AD=1 (None: too weak to be taken),
origin, when they were learned, name of the key."""


class QuestionMode(Enum):
    """What becomes of the question section of what we send (draft section "Privacy Considerations")."""

    KEEP = "keep"
    OMIT = "omit"


@dataclass(frozen=True, slots=True, kw_only=True)
class DnsCodecSettings:
    """How one transport speaks codec `dns`."""

    transport: str
    """Name of the transport: the provenance of what comes in."""
    key: Key
    """Signs what is sent; accepted on receipt."""
    more_keys: tuple[Key, ...] = ()
    """Accepted on receipt too: the others of a cluster with one key per sender, or the old one in a rollover."""
    question: QuestionMode = QuestionMode.KEEP
    max_message: int = MAX_MESSAGE
    max_ttl: int = DEFAULT_MAX_TTL
    infrastructure: bool = False
    accept: frozenset[Evidence] = frozenset(Evidence)
    """Levels taken on receipt."""


class DnsCodec:
    """The `Codec` of ports.py. Keeps the replay memory, so one transport has one."""

    def __init__(self, settings: DnsCodecSettings, *, start: float | None) -> None:
        """`start`: when the node began to listen; None takes messages signed at any time (reading a file)."""
        self.framing = LengthFraming()
        self._settings = settings
        self._signer = Signer(settings.key)
        self._verifier = Verifier((settings.key, *settings.more_keys), start=start)
        self._max_ttl = settings.max_ttl
        self._transport = settings.transport
        self._accept = settings.accept
        self._infrastructure = settings.infrastructure
        self._flags = (QR | AA, QR | AD)
        self._peers: dict[Sender, _Peer] = {}
        self._verify_all = self._verifier.verify_all

    def inherit(self, previous: DnsCodec) -> None:
        """Take over what the codec that this one replaces has seen, so that a reload opens no way for replays."""
        self._verifier.inherit(previous._verifier)
        self._peers = previous._peers

    def presence(self) -> Mapping[str, PeerPresence]:
        """Nothing: a message names no origin."""
        return {}

    def state(self) -> Mapping[str, int]:
        """Nothing: a message of before the start is refused by its time."""
        return {}

    def restore(self, state: Mapping[str, int]) -> None:
        """Nothing to take."""

    def tick(self, monotonic: float) -> None:
        """Say what a clock shows that nobody sets, in seconds, about once a second: `Verifier.tick`."""
        self._verifier.tick(monotonic)

    def hello(self, now: float) -> None:
        """None: the draft knows no message without answers."""

    def will(self) -> None:
        """None, likewise."""

    def counters(self) -> Mapping[str, int]:
        """Nothing: every message stands alone."""
        return {}

    # Out

    def encode(self, answers: Sequence[Answer], now: float) -> tuple[list[bytes], list[LeftOut]]:
        """A new message for each answer: question in lower case, answer section, TTLs aged, TSIG (trust rules 5)."""
        messages: list[bytes] = []
        left_out: list[LeftOut] = []
        for answer in answers:
            message = self._encode(answer, now)
            if isinstance(message, Refusal):
                left_out.append((answer, message))
            else:
                messages.append(message)
        return messages, left_out

    def _encode(self, answer: Answer, now: float) -> bytes | Refusal:
        # The receiver counts from the time signed, which is whole seconds: so does this, or each hop would cost one.
        age = int(now) - answer.learned
        aged = [(rrset, int(rrset.ttl - age) if age > 0 else rrset.ttl) for rrset in answer.rrsets]
        if any(ttl <= 0 for _, ttl in aged):
            return Refusal.EXPIRED
        validated = answer.evidence is Evidence.VALIDATED
        message = compose(
            random.getrandbits(16),
            self._flags[validated],
            answer.qname,
            answer.qtype,
            aged,
            question=self._settings.question is QuestionMode.KEEP,
        )
        if len(message) + self._signer.size > self._settings.max_message:
            return Refusal.OVERSIZE
        signed, mac = self._signer.sign(message, now)
        self._verifier.sent(mac, now)
        return signed

    # In

    def decode(self, data: bytes, sender: Sender, now: float) -> Decoded:
        """One message: `decode_all` for a batch of one."""
        answers, refusals = self.decode_all(((data, sender),), now)
        return refusals[0] if refusals else answers

    def decode_all(self, batch: Sequence[Datagram], now: float) -> tuple[list[Answer], list[Refusal]]:
        """Authenticate (trust rules 6.1-6.3), check the form and section 3 again, age (6.6), for each message."""
        # One step for all, then the next: Python runs a short loop at half the cost of a long one.
        answers: list[Answer] = []
        refusals: list[Refusal] = []
        max_ttl, transport = self._max_ttl, self._transport
        verdicts = self._verify_all([data for data, _ in batch], now)
        taken = [take_over(verdict, now, max_ttl) if verdict.__class__ is Verified else None for verdict in verdicts]
        stamp: Stamp | None = None
        sender: Sender = ""
        for datagram, verdict, chain in zip(batch, verdicts, taken, strict=True):
            if isinstance(verdict, Refusal):
                refusals.append(verdict)
                continue
            if verdict[2] is not stamp or datagram[1] != sender:
                stamp, sender = verdict[2], datagram[1]
                heard = self._hear(sender, stamp, now)
                plain, claimed, origin, learned, signer = heard
            if chain is None:
                found = self._any_form(datagram[0], verdict.end, heard, now)
                if isinstance(found, Refusal):
                    refusals.append(found)
                else:
                    answers.extend(found)
                continue
            claims, qname, qtype, rrsets, all_signed = chain
            evidence = claimed if claims else plain
            if evidence is None:
                refusals.append(Refusal.EVIDENCE_TOO_WEAK)
            elif evidence is _VALIDATED and not all_signed:
                refusals.append(Refusal.RRSIG_MISSING)
            else:
                whole = (qname, qtype, rrsets, evidence, origin, learned, False, transport, signer)
                answers.append(_new(Answer, whole))
        return answers, refusals

    def _hear(self, sender: Sender, stamp: Stamp, now: float) -> _Heard:
        key = stamp.key
        peer = self._peers.get(sender)
        if peer is None or peer.key is not key:
            peer = self._new_peer(sender, key)
        age = now - stamp.signed
        if not peer.since <= now < peer.until:
            peer.turn(now)
        if age < peer.youngest:
            peer.youngest = age
        accept = self._accept
        return (
            peer.plain if peer.plain in accept else None,
            peer.claimed if peer.claimed in accept else None,
            peer.origin,
            stamp.signed if age > 0.0 else now,
            key.text,
        )

    def _any_form(self, data: bytes, end: int, heard: _Heard, now: float) -> Decoded:
        plain, claimed, origin, learned, signer = heard
        flags = int.from_bytes(data[2:4], "big")
        if flags & _FORM != QR:
            return _form_refusal(flags)
        evidence = claimed if flags & AD else plain
        if evidence is None:
            return Refusal.EVIDENCE_TOO_WEAK
        additional = (data[10] << 8 | data[11]) - 1
        try:
            message = parse(data[:10] + additional.to_bytes(2, "big") + data[12:end])
        except MessageError:
            return Refusal.MALFORMED
        if message.rcode:
            return Refusal.RCODE
        if message.questions > 1:
            return Refusal.QUESTION_COUNT
        if message.tsig:
            return Refusal.TSIG_FORM
        if message.opt is not None and (made_up := refusal_in(message.opt.options)) is not None:
            return made_up
        if message.other_class or (message.questions and message.qclass != 1):
            return Refusal.CLASS
        if not message.answer:
            return Refusal.NO_ANSWER
        heads = _heads(message.answer, message.qname, message.qtype)
        if len(heads) > MAX_HEADS:
            return Refusal.OVERSIZE
        answers: list[Answer] = []
        refusal = Refusal.NO_ANSWER
        for qname, qtype in heads:
            rrsets = assemble(
                qname, qtype, message.answer, now, max_ttl=self._max_ttl, evidence=evidence,
                infrastructure=self._infrastructure, partial=True,
            )  # fmt: skip
            if isinstance(rrsets, Refusal):
                refusal = rrsets
                continue
            whole = rrsets[-1].type == qtype
            for name, rrtype, kept in ((qname, qtype, rrsets),) if whole else _alone(rrsets):
                answers.append(
                    Answer(
                        name, rrtype, kept, evidence, origin, learned,
                        transport=self._transport, signer=signer,
                    )
                )  # fmt: skip
        return answers or refusal

    def _new_peer(self, sender: Sender, key: Key) -> _Peer:
        known = self._peers.get(sender)
        if len(key.origins) == 1:
            origin = next(iter(key.origins))
        else:
            origin = sender if isinstance(sender, str) else str(sender[0])
        if len(self._peers) >= MAX_SENDERS:
            self._peers.clear()
        peer = self._peers[sender] = _Peer(key, origin)
        if known is not None:
            peer.since, peer.until, peer.youngest, peer.before = known.since, known.until, known.youngest, known.before
        return peer

    def clock_offsets(self, now: float) -> dict[str, float]:
        """Per sender heard of in the last minutes: seconds by which its clock is behind ours (negative: ahead).

        It is the smallest age seen in the last one to two `OFFSET_WINDOW`s: what was held up on its way says nothing. A
        sound clock shows up to one second, because time signed has no fraction.
        """
        offsets = {}
        for sender, peer in self._peers.items():
            if not peer.since <= now < peer.until:
                peer.turn(now)
            offset = min(peer.youngest, peer.before)
            if offset != _UNHEARD:
                offsets[sender if isinstance(sender, str) else str(sender[0])] = offset
        return offsets


class _Peer:
    """What is known of one sender under one key."""

    __slots__ = ("before", "claimed", "key", "origin", "plain", "since", "until", "youngest")

    def __init__(self, key: Key, origin: str) -> None:
        self.key = key
        self.plain = min(key.max_evidence, key.evidence)
        """The level of what comes with AD=0."""
        self.claimed = key.max_evidence if key.max_evidence is Evidence.VALIDATED else self.plain
        """The level of what comes with AD=1."""
        self.origin = origin
        self.since = self.until = 0.0
        """The present window, by our clock."""
        self.youngest = self.before = _UNHEARD
        """Smallest age in the present window, and in the one before it."""

    def turn(self, now: float) -> None:
        """Begin a window; the one before counts on, unless it is long past or our clock was set back."""
        self.before = self.youngest if self.until <= now < self.until + OFFSET_WINDOW else _UNHEARD
        self.youngest = _UNHEARD
        self.since, self.until = now, now + OFFSET_WINDOW


def _form_refusal(flags: int) -> Refusal:
    if not flags & QR:
        return Refusal.NOT_A_RESPONSE
    if flags & 0x7800:
        return Refusal.OPCODE
    if flags & 0x0200:
        return Refusal.TRUNCATED
    return Refusal.RCODE if flags & 0x000F else Refusal.CLIENT_CHECKING_DISABLED


def _alone(rrsets: tuple[RRset, ...]) -> Iterator[tuple[bytes, int, tuple[RRset, ...]]]:
    """The RRsets of a chain that stops early, under their own names and types; a recomputed CNAME keeps its DNAME."""
    dname: tuple[RRset, ...] = ()
    for rrset in rrsets:
        yield rrset.owner, rrset.type, (*dname, rrset)
        dname = (rrset,) if rrset.type == rrtypes.DNAME else ()


def _heads(rrsets: tuple[RRset, ...], qname: bytes, qtype: int) -> list[tuple[bytes, int]]:
    """The questions that a message's answer section answers.

    Its own question where a chain begins there; else (no question, or a dummy one) every name that no CNAME of the
    message leads to, with the type found there (trust rules 6.5).
    """
    if any(rrset.owner == qname and rrset.type in (qtype, rrtypes.CNAME) for rrset in rrsets):
        return [(qname, qtype)]
    if qname and any(rrset.type == rrtypes.DNAME and is_at_or_below(qname, rrset.owner) for rrset in rrsets):
        return [(qname, qtype)]
    aliases = {rrset.owner: cname_target(rrset) for rrset in rrsets if rrset.type == rrtypes.CNAME}
    targets = frozenset(aliases.values())
    types: dict[bytes, list[int]] = {}
    for rrset in rrsets:
        if rrset.type != rrtypes.CNAME:
            types.setdefault(rrset.owner, []).append(rrset.type)
    heads: list[tuple[bytes, int]] = []
    for rrset in rrsets:
        if rrset.owner in targets:
            continue
        if rrset.type != rrtypes.CNAME:
            heads.append((rrset.owner, rrset.type))
        else:
            name = rrset.owner
            for _ in range(len(aliases)):
                if name not in aliases:
                    break
                name = aliases[name]
            heads += [(rrset.owner, rrtype) for rrtype in types.get(name, (rrtypes.CNAME,))]
        if len(heads) > MAX_HEADS:
            break
    return heads
