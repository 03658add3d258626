"""What the resolver lately told its clients, and which questions only clients with CD=1 asked.

Keeps sightings of RRsets for responses that are logged later than the client's (BIND does that), and says what the
resolver holds live. A response whose question, seen before, still lives costs two dictionary look-ups. Decides nothing
about evidence.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from typing import NamedTuple, TypeVar

from cachebus.answer import RRset
from cachebus.filters.memory import Memory
from cachebus.wire.message import NXDOMAIN, Message, records
from cachebus.wire.rrtypes import CNAME, SOA

K = TypeVar("K", bound=Hashable)

MAX_SIGHTINGS = 32768
"""RRsets that clients were given before the resolver's own frame came; only first answers count, not cache hits."""
MAX_SIGHTING_BYTES = 24 << 20
"""Bytes of the same, overhead included."""
SIGHTING_OVERHEAD = 250
"""Bytes that an RRset costs beside its records and its entry (measured)."""
MAX_KNOWN = 65536
"""Questions known to be live, in each of two generations."""
MAX_CHECKING_DISABLED = 8192
"""Questions, and clients, with CD=1; overflow only forgets why something is not shared."""
MAX_CHECKING_DISABLED_BYTES = 8 << 20
"""Bytes of the same, overhead included."""

OnHeld = Callable[[bytes, int, float, bool], None]
"""Called with (qname, qtype or 0 for NXDOMAIN, when it expires, negative) for what the resolver holds live."""

Question = tuple[bytes, int]
"""Lower-case name and type."""


class Sighting(NamedTuple):
    """One RRset as a client was given it."""

    rrset: RRset
    authenticated: bool
    """AD=1."""
    logged: float
    """By the resolver's clock."""


class Clients:
    """The client side of one resolver, for one window."""

    def __init__(self, window: float, on_held: OnHeld | None) -> None:
        """`window`: seconds."""
        self._on_held = on_held
        self._sightings: Memory[Question, Sighting] = Memory(
            window=window, max_entries=MAX_SIGHTINGS, max_bytes=MAX_SIGHTING_BYTES
        )
        self._unchecked: Memory[Question, None] = _small_memory(window)
        self._unchecked_clients: Memory[tuple[bytes, int, bytes], None] = _small_memory(window)
        self._known: dict[tuple[bytes, int, bool], float] = {}
        self._known_before: dict[tuple[bytes, int, bool], float] = {}

    @property
    def forgotten(self) -> int:
        """Sightings that gave way to newer ones."""
        return self._sightings.forgotten

    # CD=1

    def asked_unchecked(self, question: Question, client: tuple[bytes, int, bytes], now: float) -> None:
        """A client asked with CD=1; `client` is address, port and ID."""
        self._unchecked.discard(question)
        self._unchecked.put(question, None, 0, now=now)
        self._unchecked_clients.discard(client)
        self._unchecked_clients.put(client, None, 0, now=now)

    def asked_checked(self, question: Question) -> None:
        """A client asked with CD=0: the resolver validates for it."""
        self._unchecked.discard(question)

    @property
    def any_unchecked(self) -> bool:
        """Whether any question is remembered as asked with CD=1."""
        return len(self._unchecked) > 0

    def only_unchecked(self, question: Question) -> bool:
        """Whether the last client known to have asked this did so with CD=1."""
        return question in self._unchecked

    def is_unchecked_client(self, client: tuple[bytes, int, bytes]) -> bool:
        """Whether this client's question, by address, port and ID, had CD=1."""
        return client in self._unchecked_clients

    # What it was told

    def is_known(self, question: Question, logged: float, *, authenticated: bool) -> bool:
        """Whether this question's answer was seen before and still lived at `logged`: a cache hit, nothing new."""
        key = (*question, authenticated)
        expires = self._known.get(key)
        if expires is None:
            expires = self._known_before.get(key, 0.0)
        return expires > logged

    def told(self, message: Message, *, logged: float, learned: float, arrived: float, authenticated: bool) -> None:
        """A client was given `message` (QR=1, CD=0, NOERROR or NXDOMAIN).

        `logged`: when, by the resolver's clock; `learned`: by ours; `arrived`: on the clock of `expire`.
        """
        positive = message.rcode != NXDOMAIN and any(rrset.type == message.qtype for rrset in message.answer)
        ttl = min((rrset.ttl for rrset in message.answer), default=0) if positive else _negative_ttl(message)
        if ttl:
            if len(self._known) >= MAX_KNOWN:
                self._known_before, self._known = self._known, {}
            self._known[message.qname, message.qtype, authenticated] = logged + ttl
            if self._on_held is not None:
                whole_name = message.rcode == NXDOMAIN and not message.answer
                self._on_held(message.qname, 0 if whole_name else message.qtype, learned + ttl, not positive)
        for rrset in message.answer:
            question = (rrset.owner, rrset.type)
            size = SIGHTING_OVERHEAD + len(rrset.owner) + len(rrset.rrs) + len(rrset.sigs)
            self._sightings.put(question, Sighting(rrset, authenticated, logged), size, now=arrived)

    def sightings(self, question: Question) -> Iterator[Sighting]:
        """What clients were given of this owner and type, oldest first."""
        entry = self._sightings.first(question)
        while entry is not None:
            yield entry.value
            entry = entry.next

    def expire(self, now: float) -> None:
        """Forget what is older than the window."""
        self._sightings.expire(now)
        self._unchecked.expire(now)
        self._unchecked_clients.expire(now)


def _small_memory(window: float) -> Memory[K, None]:
    return Memory(window=window, max_entries=MAX_CHECKING_DISABLED, max_bytes=MAX_CHECKING_DISABLED_BYTES)


def _negative_ttl(message: Message) -> int:
    """Seconds that a negative answer lives: the smaller of the SOA's TTL and its MINIMUM (RFC 2308 section 5)."""
    for rrset in message.authority:
        if rrset.type == SOA:
            rdata = records(rrset.rrs)[0][2]
            shortest = min(rrset.ttl, int.from_bytes(rdata[-4:], "big"))
            return min([shortest, *(alias.ttl for alias in message.answer if alias.type == CNAME)])
    return 0
