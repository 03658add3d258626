"""The node's one cache of RRsets: ranked, TTL-true, bounded, with the provenance of every RRset.

Decides which of two RRsets stays (trust rules 6.7) and what a question finds. Knows no message, no socket, no clock:
`now` is seconds since the epoch. TTL clocks are wall clocks.

An entry is one `bytes` value under one `bytes` key: a million of them are a third of the size of tuples and invisible
to the garbage collector, and storing one costs no more than packing a header. It is expanded when somebody asks.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final
from weakref import ref
from zlib import crc32

from cachebus.answer import Answer, Evidence, Refusal, RRset
from cachebus.denied import denied_above
from cachebus.entry import (
    EXPIRES,
    HEADER,
    LEVELS,
    LOCAL,
    NEGATIVE,
    OWN_USE,
    RAISED,
    USED,
    Cached,
    Came,
    Lookup,
    Observer,
    Rank,
    cap_by_signatures,
    entry,
    expand,
    has_outlived_signatures,
    negative_end,
    outlived,
    prolonged,
    same_records,
    same_source,
    standing,
    to_answer,
    u64,
)
from cachebus.flushes import Flush, Flushes
from cachebus.shard import ENTRY_OVERHEAD as _ENTRY_OVERHEAD
from cachebus.shard import Shard as _Shard
from cachebus.wire import rrtypes
from cachebus.wire.message import NOERROR, NXDOMAIN, cname_target, pack
from cachebus.wire.name import ancestors

if TYPE_CHECKING:
    from mypy_extensions import i64

MAX_ENTRIES = 1_000_000
"""RRsets; about 250 MB with ordinary answers."""
MAX_BYTES = 512 * 1024 * 1024
MAX_NEGATIVE_TTL = 3600
"""Seconds a negative answer is kept at most (RFC 2308 section 5 recommends one to three hours)."""
MAX_CHAIN = 11
"""CNAMEs followed for one question, as the validator's limit."""
MAX_SOURCES = 60_000
"""Different (origin, transport, signer) that provenance tells apart; further ones are shown as unknown."""
SPREAD: Final = 100
"""Thousandths of a TTL by which bus data is shortened at most (trust rules 6.8). How much is a hash of node and name:
a cluster's copies expire one after the other, and the first to ask again refreshes them all."""

SLICE = 256
"""Entries that `Cache.slices` looks at in one step: half a millisecond."""
MAX_LATE = 100_000
"""Entries first used while somebody reads the cache's content, remembered to be given at the end; 10 MB at most."""

_SHARDS = 256
"""A dict of 4,000 entries resizes, and is swept, in well under a millisecond; one of a million stalls for 30 ms."""
_SMALL = 8192
"""Caches bounded below this many entries need no shards, and would evict unevenly with them."""

_TYPES: Final = tuple(rrtype.to_bytes(2, "big") for rrtype in range(65536))
"""Every type as the end of a key, every length as the end of a header: looking it up costs a quarter of making it."""
_crc32: Final = crc32
_CNAME_TYPE: Final = 5
_DNAME_TYPE: Final = 39
_MARKS: Final = 0x3FFFF
"""Owners are told apart by so many bits where it is marked that a CNAME of some rank was known there: a byte each, so
that most other RRsets need no look-up of a CNAME."""
_CNAME = rrtypes.CNAME.to_bytes(2, "big")
_BETTER_KNOWN: Final = Refusal.BETTER_KNOWN


class Cache:
    """See the module. Not thread-safe: it belongs to the event loop."""

    def __init__(self, node: str, *, max_entries: int = MAX_ENTRIES, max_bytes: int = MAX_BYTES) -> None:
        shards = _SHARDS if max_entries >= _SMALL else 1
        self._node = node
        self._seed = crc32(node.encode())
        self.spread = SPREAD
        """1 where what is put here has had its TTLs shortened already."""
        self._shards = tuple(_Shard() for _ in range(shards))
        self._mask = shards - 1
        self._generation_entries = max(1, max_entries // shards // 2)
        self._generation_bytes = max(1, max_bytes // shards // 2)
        self._sources: dict[tuple[str, str, str], int] = {("unknown", "", ""): 0}
        self._source_list: list[tuple[str, str, str]] = [("unknown", "", "")]
        self._flushes = Flushes()
        self._negatives = False
        self._dnames = False
        self._alias_marks = bytearray(_MARKS + 1)
        self._next_sweep = 0
        self._readers: list[ref[OrderedDict[bytes, None]]] = []
        """Keys that were used while somebody reads. Weak: a compiled generator that is dropped runs no `finally`."""
        self.observer: Observer | None = None
        self.generation = 0
        """Raised by every flush, so that work begun before it can see that it is late."""
        self.keep_expired = 0.0
        """Seconds that what has expired stays for `peek` where there is room; everything else takes it as gone."""
        self.hits = self.misses = self.stored = self.renewed = self.evicted = self.expired = 0

    # What comes in

    def put(self, answer: Answer, now: float, *, own_use: bool = False) -> Refusal | None:
        """Merge each RRset of an answer; local data is what came by no transport.

        `own_use`: there is no evidence that would let it be shared, so it is in no copy. None when at least one was
        stored or renewed, else why the last one was not.
        """
        return self.put_all((answer,), now, own_use=own_use)[0]

    def put_all(self, answers: Iterable[Answer], now: float, *, own_use: bool = False) -> list[Refusal | None]:
        """`put` for each of many answers."""
        if self.observer is None:
            return self._put_all(answers, now, own_use)
        answers = list(answers)
        outcomes = self._put_all(answers, now, own_use)
        self.observer(answers, outcomes, now)
        return outcomes

    def _put_all(self, answers: Iterable[Answer], now: float, own_use: bool) -> list[Refusal | None]:
        outcomes: list[Refusal | None] = []
        now_ms: i64 = int(now * 1000)
        seed, shards, mask, marks = self._seed, self._shards, self._mask, self._alias_marks
        wary_of_all, last_flush = self._negatives, self._flushes.newest
        known: dict[tuple[str, str, str], list[Came | None]] = {}
        levels: list[Came | None] = []
        told: Answer | None = None
        stored = 0
        for answer in answers:
            if told is None or not same_source(answer, told):
                told = answer
                source = (answer[4], answer[7], answer[8])
                if source not in known:
                    known[source] = [None] * LEVELS
                levels = known[source]
            level: i64 = answer[3]
            level = level << 1 | answer[6]
            came = levels[level]
            if came is None:
                came = levels[level] = self._came(answer, now_ms, own_use=own_use)
            if came.learned != answer[5]:
                came.learn(answer[5])
            wary = wary_of_all or came.learned_ms <= last_flush
            refusal: Refusal | None = None
            before = stored
            for rrset in answer[2]:
                rrtype: i64 = rrset[1]
                checksum: i64 = _crc32(rrset[0], seed)
                expires_ms = came.learned_ms + rrset[2] * (1000 - checksum % came.spread)
                key = rrset[0] + _TYPES[rrtype]
                shard = shards[hash(key) & mask]
                old = shard.young.get(key)
                if (
                    wary
                    or old is not None
                    or key in shard.old
                    or expires_ms <= now_ms
                    or rrtype in (_CNAME_TYPE, _DNAME_TYPE)
                    or marks[checksum & _MARKS]
                ):
                    if wary or not came.by_bus or old is None or not outlived(old, came, expires_ms):
                        outcome = self._put_other(rrset, came, key, expires_ms, checksum)
                    else:
                        outcome = Refusal.LOCAL_DATA_LIVE if old[25] & LOCAL else _BETTER_KNOWN
                    refusal = outcome or refusal
                    stored += outcome is None
                    continue
                self._add(shard, key, entry(expires_ms, came.middle, rrset[3], rrset[4]))
                stored += 1
            outcomes.append(None if stored > before else refusal)
        return outcomes

    def _add(self, shard: _Shard, key: bytes, value: bytes) -> None:
        """Keep what nothing is known about that has a say in it. For one that fits, `_store` without its look-ups."""
        size = shard.young_bytes + len(key) + len(value) + _ENTRY_OVERHEAD
        if size <= self._generation_bytes and len(shard.young) < self._generation_entries:
            shard.young_bytes = size
            shard.young[key] = value
        else:
            self._store(shard, key, value)
        self.stored += 1

    def _came(self, answer: Answer, now_ms: int, *, own_use: bool) -> Came:
        by_bus = bool(answer.transport)
        source = self._source(answer.origin, answer.transport, answer.signer)
        return Came(*standing(answer, own_use=own_use), source, now_ms, self.spread if by_bus else 1, by_bus=by_bus)

    def _put_other(self, rrset: RRset, came: Came, key: bytes, expires_ms: int, checksum: int) -> Refusal | None:
        """Put an RRset whose name, key or time something is known about."""
        owner, rrtype, _, rrs, sigs = rrset
        rank, now_ms = came.rank, int(came.now_ms)
        if expires_ms <= now_ms:
            return Refusal.EXPIRED
        if self._flushes.cover(owner, came.learned_ms):
            return Refusal.FLUSHED
        shard = self._shards[hash(key) & self._mask]
        old = shard.young.get(key) or shard.old.get(key)
        if old is not None and old[:8] > now_ms.to_bytes(8, "big"):
            settled, refusal = self._settle(old, rank, rrset, came.learned_ms, expires_ms, shard, key)
            if settled:
                return refusal
        if self._negatives and came.by_bus and self._live(owner + b"\0\0", now_ms):
            return Refusal.LOCAL_DATA_LIVE
        if old is None and came.by_bus and rrtype != rrtypes.CNAME and self._alias_marks[checksum & _MARKS]:
            # Better data says that this name is an alias, which answers for every type of it.
            alias = self._live(owner + _CNAME, now_ms)
            if alias is not None and alias[24] > rank and not alias[25] & NEGATIVE:
                return Refusal.LOCAL_DATA_LIVE if alias[25] & LOCAL else Refusal.BETTER_KNOWN
        if rrtype == rrtypes.CNAME and rank > Rank.BUS_AUTHORITATIVE:
            self._alias_marks[checksum & _MARKS] = 1
        if self._negatives and not came.by_bus:
            self._exists(owner)
        if rrtype == rrtypes.DNAME:
            self._dnames = True
        value = entry(expires_ms, came.middle, rrs, sigs)
        self._store(shard, key, value if old is None else self._marked(key, value))
        self.stored += 1
        return None

    def _marked(self, key: bytes, value: bytes) -> bytes:
        """The entry as one that is used."""
        for reader in self._readers:
            if (late := reader()) is not None and len(late) < MAX_LATE:
                late[key] = None
        return value[:25] + bytes((value[25] | USED,)) + value[26:]

    def _settle(
        self, old: bytes, rank: int, rrset: RRset, learned_ms: int, expires_ms: int, shard: _Shard, key: bytes
    ) -> tuple[bool, Refusal | None]:
        """(whether a live entry decides the matter, and how): False leaves the newcomer to replace it."""
        old_expires, old_learned, _, old_rank, old_flags, _, sigs_length = HEADER.unpack_from(old)
        old_local = old_flags & LOCAL
        if old_flags & NEGATIVE:
            # A live negative answer of the local resolver outlives every fill, not only lower ranks.
            return rank not in (Rank.LOCAL, Rank.LOCAL_VALIDATED), Refusal.LOCAL_DATA_LIVE
        if rank > old_rank:
            return False, None
        if rank == old_rank and (old_local or learned_ms > old_learned):
            return learned_ms < old_learned, Refusal.BETTER_KNOWN
        # Only local data is renewed by a weaker level: a peer's word lives by its own rank.
        if expires_ms > old_expires and (old_local or rank >= old_rank) and same_records(old, sigs_length, rrset):
            expires_ms = cap_by_signatures(old, sigs_length, expires_ms)
            if expires_ms > old_expires:
                self._store(shard, key, self._marked(key, EXPIRES.pack(expires_ms) + old[8:]))
                self.renewed += 1
                return True, None
        return True, Refusal.LOCAL_DATA_LIVE if old_local else Refusal.BETTER_KNOWN

    def put_negative(
        self, qname: bytes, qtype: int, rcode: int, soa: RRset | None, ttl: int, now: float, origin: str
    ) -> Refusal | None:
        """Keep what the local resolver found not to exist: NODATA for `qtype`, or NXDOMAIN. `ttl` in seconds."""
        nxdomain = rcode == NXDOMAIN
        if nxdomain and qname == b"\0":
            return Refusal.RCODE  # the root exists; its denial would deny everything (RFC 8020)
        key = qname + (b"\0\0" if nxdomain else qtype.to_bytes(2, "big"))
        now_ms = int(now * 1000)
        expires_ms = now_ms + min(ttl, MAX_NEGATIVE_TTL) * 1000
        if expires_ms <= now_ms:
            return Refusal.TTL_ZERO
        shard = self._shards[hash(key) & self._mask]
        old = shard.young.get(key) or shard.old.get(key)
        if old is not None and old[:8] > now_ms.to_bytes(8, "big") and old[24] > Rank.LOCAL and not old[25] & NEGATIVE:
            return Refusal.BETTER_KNOWN
        if self._negatives and not nxdomain:
            self._exists(qname)
        self._negatives = True
        body = b"" if soa is None else len(soa.owner).to_bytes(1, "big") + soa.owner + soa.rrs + soa.sigs
        sigs_length = 0 if soa is None else len(soa.sigs)
        flags = LOCAL | NEGATIVE | Evidence.AUTHORITATIVE << 4
        header = HEADER.pack(expires_ms, now_ms, now_ms, Rank.LOCAL, flags, self._source(origin, "", ""), sigs_length)
        self._store(shard, key, header + body)
        return None

    def _exists(self, name: bytes) -> None:
        """The local resolver has seen that there is a name, and so every name above: no NXDOMAIN of them holds."""
        for above in ancestors(name):
            key = above + b"\0\0"
            self._shards[hash(key) & self._mask].forget(key)

    def prolong(self, owner: bytes, rrtype: int, seconds: int, now: float) -> bool:
        """Let this node's own clients have a local RRset for `seconds` from `now`, within its signatures' time.

        From then on it is in no copy and no refill, because others must not have it for longer than its zone says.
        """
        key = owner + _TYPES[rrtype]
        value = self._live(key, int(now * 1000))
        if value is None or value[25] & (LOCAL | NEGATIVE) != LOCAL:
            return False
        value = prolonged(value, int((now + seconds) * 1000))
        if value:
            self._store(self._shards[hash(key) & self._mask], key, value)
        return bool(value)

    def _store(self, shard: _Shard, key: bytes, value: bytes) -> None:
        size = len(key) + len(value) + _ENTRY_OVERHEAD
        previous = shard.young.get(key)
        if previous is None:
            gone = shard.old.pop(key, None)
            if gone is not None:
                shard.old_bytes -= len(key) + len(gone) + _ENTRY_OVERHEAD
            if len(shard.young) >= self._generation_entries or shard.young_bytes + size > self._generation_bytes:
                self.evicted += len(shard.old)
                shard.old, shard.old_bytes = shard.young, shard.young_bytes
                shard.young, shard.young_bytes = {}, 0
            shard.young_bytes += size
        else:
            shard.young_bytes += len(value) - len(previous)
        shard.young[key] = value

    def _source(self, origin: str, transport: str, signer: str) -> int:
        source = (origin, transport, signer)
        number = self._sources.get(source)
        if number is None:
            if len(self._source_list) >= MAX_SOURCES:
                number = 0
            else:
                number = self._sources[source] = len(self._source_list)
                self._source_list.append(source)
        return number

    def shortened(self, owner: bytes, ttl: int) -> int:
        """The TTL, in whole seconds, that bus data with `ttl` gets on this node."""
        return ttl * (1000 - crc32(owner, self._seed) % SPREAD) // 1000

    # What goes out

    def get(self, owner: bytes, rrtype: int, now: float) -> Cached | None:
        """The live RRset of this owner (lower-case wire) and type, or None. Negative entries are given too."""
        value = self._live(owner + rrtype.to_bytes(2, "big"), int(now * 1000))
        if value is None:
            return None
        return self._expand(owner, rrtype, value, now)

    def asked_for(self, key: bytes, now_ms: int) -> bytes | None:
        """The live entry of a key (owner and type on the wire), packed, and marked as used: for a reader in a hurry."""
        value = self._live(key, now_ms)
        if value is not None and not value[25] & USED:
            value = self._marked(key, value)
            self._shards[hash(key) & self._mask].young[key] = value  # where `_live` has it, as long as before
        return value

    def only_alias(self, name: bytes, rrtype: bytes, now_ms: int) -> bytes | None:
        """The CNAME at `name`, packed, and marked as used, where nothing else has a say in a question for `rrtype`."""
        if self._dnames or self._held(name + rrtype) or (self._negatives and self._held(name + b"\0\0")):
            return None
        value = self.asked_for(name + _CNAME, now_ms)
        return value if value is not None and not value[25] & NEGATIVE else None

    def resolve(self, qname: bytes, qtype: int, now: float) -> Lookup | None:
        """Everything known about a question: CNAMEs, and DNAMEs above, followed. None when nothing is."""
        chain: list[Cached] = []
        name = qname
        for _ in range(MAX_CHAIN + 1):
            found = self._ask(name, qtype, now)
            if found is None and self._negatives:
                found = self.get(name, 0, now)
                if found is not None:
                    self.hits += 1
                    return negative_end(NXDOMAIN, chain, name, found)
            if found is not None:
                self.hits += 1
                if found.negative:
                    return negative_end(NOERROR, chain, name, found)
                return Lookup(NOERROR, (*chain, found), complete=True, target=name)
            links = self._links(name, now)
            if not links:
                denial = denied_above(self._live, name, int(now * 1000)) if self._negatives else None
                if denial is not None:
                    self.hits += 1
                    return negative_end(NXDOMAIN, chain, name, self._expand(denial[0], 0, denial[1], now))
                break
            chain.extend(links)
            name = cname_target(links[-1].rrset)
        self.misses += 1
        return Lookup(NOERROR, tuple(chain), complete=False, target=name) if chain else None

    def peek(self, owner: bytes, rrtype: int, now: float) -> Cached | None:
        """As `get`, also of what expired less than `keep_expired` seconds ago: its `expires` lies before `now` then.

        What has outlived the signatures over it is gone (RFC 4035 section 5.3.3). Marks and moves nothing.
        """
        value = self._held(owner + _TYPES[rrtype])
        since = int((now - self.keep_expired) * 1000).to_bytes(8, "big")
        if not value or value[:8] <= since or has_outlived_signatures(value, int(now * 1000)):
            return None
        return self._expand(owner, rrtype, value, now)

    def _ask(self, owner: bytes, rrtype: int, now: float) -> Cached | None:
        """`get` for somebody's question: the entry is marked as used."""
        value = self.asked_for(owner + _TYPES[rrtype], int(now * 1000))
        return None if value is None else self._expand(owner, rrtype, value, now)

    def _links(self, name: bytes, now: float) -> tuple[Cached, ...]:
        """The CNAME at `name`, and the DNAME that yields it where one is known."""
        alias = self._ask(name, rrtypes.CNAME, now)
        if alias is not None and alias.negative:
            alias = None
        if self._dnames:
            for above in ancestors(name):
                dname = None if above == name else self.get(above, rrtypes.DNAME, now)
                if dname is not None and not dname.negative:
                    target = name[: len(name) - len(above)] + cname_target(dname.rrset)
                    if alias is not None and alias.rank > dname.rank and cname_target(alias.rrset) != target:
                        break
                    if len(target) > 255:
                        return ()
                    ttl = dname.rrset.ttl
                    cname = RRset(name, rrtypes.CNAME, ttl, pack(rrtypes.CNAME, ttl, (target,)))
                    return dname, dname._replace(rrset=cname)
        return () if alias is None else (alias,)

    def _live(self, key: bytes, now_ms: int) -> bytes | None:
        shard = self._shards[hash(key) & self._mask]
        value = shard.young.get(key)
        if value is None:
            value = shard.old.get(key)
            if value is None or u64(value, 0) <= now_ms:
                return None
            self._store(shard, key, value)
            return value
        return value if u64(value, 0) > now_ms else None

    def _expand(self, owner: bytes, rrtype: int, value: bytes, now: float) -> Cached:
        return expand(owner, rrtype, value, now, self._source_list)

    def answers(self, now: float) -> Iterator[Answer]:
        """What is held, as `slices` gives it, one by one. Between two of them, much may be looked at."""
        for part in self.slices(now):
            yield from part

    def slices(self, now: float, *, as_learned: bool = False) -> Iterator[list[Answer]]:
        """What is held at `now`, each RRset as an answer of its own, the most popular first, without what is negative.

        First what was asked for, or learned again, while it was held; then what came only once. No counts are kept: in
        each of the two the order is by shard (a hash of the name), there the lately used generation first, as it came.
        TTLs count from `now`, so that RRsets can be joined; with `as_learned`, which is for other nodes, from when each
        was learned, and what is for our own use is left out.

        The cache may change while this is read: what stays is given at least once, what comes may be. Each step looks
        at `SLICE` entries and may give none; an event loop's turn belongs between two. Keeps one shard's keys.
        """
        late = OrderedDict[bytes, None]()
        self._readers = [*(reader for reader in self._readers if reader() is not None), ref(late)]
        now_bytes = int(now * 1000).to_bytes(8, "big")
        for used in (USED, 0):
            for shard in self._shards:
                keys = [*shard.young, *shard.old]
                for start in range(0, len(keys), SLICE):
                    yield self._slice(keys[start : start + SLICE], used, now, now_bytes, as_learned)
        keys = list(late)
        for start in range(0, len(keys), SLICE):
            yield self._slice(keys[start : start + SLICE], USED, now, now_bytes, as_learned)

    def _slice(self, keys: Iterable[bytes], used: int, now: float, now_bytes: bytes, as_learned: bool) -> list[Answer]:
        found: list[Answer] = []
        sources, negatives = self._source_list, self._negatives
        wanted = USED | NEGATIVE | RAISED | (OWN_USE if as_learned else 0)
        for key in keys:
            value = self._held(key)
            if not value or value[25] & wanted != used or value[:8] <= now_bytes:
                continue
            if negatives and self._held(key[:-2] + b"\0\0")[:8] > now_bytes:
                continue
            found.append(to_answer(key, value, sources[value[26] << 8 | value[27]], now, as_learned))
        return found

    def _held(self, key: bytes) -> bytes:
        """An entry, live or not, where it is; empty when there is none."""
        shard = self._shards[hash(key) & self._mask]
        return shard.young.get(key) or shard.old.get(key, b"")

    # What is taken out

    def flush(self, name: bytes, now: float, *, subtree: bool = False) -> int:
        """Forget a name, or it and everything below, as `flushing` does; gives the number of entries removed."""
        return sum(self.flushing(Flush(name, subtree=subtree), now))

    def flushing(self, flush: Flush, now: float) -> Iterator[int]:
        """Do a flush in steps of a shard, each giving the number of entries removed; other work may go on in between.

        From the first step on nothing comes in that was learned before. With what a name had go the NXDOMAINs above
        it, which deny it too.
        """
        self.generation += 1
        self._flushes.note(flush, int(now * 1000))
        denials = 0
        for above in ancestors(flush.name) if self._negatives else ():
            key = above + b"\0\0"
            denials += self._shards[hash(key) & self._mask].forget(key)
        yield denials
        for shard in self._shards:
            yield shard.remove(flush.condemns)

    def flushed_since(self, owner: bytes, then: float) -> bool:
        """Whether what was asked at `then` about a name must not be kept or shared: it was flushed meanwhile."""
        return self._flushes.cover(owner, int(then * 1000))

    def sweep(self, now: float, *, shards: int = 4) -> None:
        """Let go of what has expired in a few shards; called about once a second, it comes round in about a minute.

        What is kept for `peek` goes first where a shard is half full: it must not push out what lives.
        """
        live, kept = (int(max(0.0, then) * 1000).to_bytes(8, "big") for then in (now, now - self.keep_expired))
        for _ in range(min(shards, len(self._shards))):
            shard = self._shards[self._next_sweep & self._mask]
            self._next_sweep += 1
            has_room = shard.is_below(self._generation_entries, self._generation_bytes)
            self.expired += shard.sweep(kept if has_room else live)

    def statistics(self) -> dict[str, int]:
        """Plain counters and gauges."""
        return {
            "entries": sum(len(shard.young) + len(shard.old) for shard in self._shards),
            "bytes": sum(shard.young_bytes + shard.old_bytes for shard in self._shards),
            "hits": self.hits,
            "misses": self.misses,
            "stored": self.stored,
            "renewed": self.renewed,
            "evicted": self.evicted,
            "expired": self.expired,
            "flushes": self.generation,
        }
