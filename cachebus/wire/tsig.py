"""TSIG on wire bytes (RFC 8945): sign a message, verify one, remember what was verified so that nothing is taken twice.

Decides only whether a message is from a holder of a key, in time, and new. What it says is for the codec. Deliberately
not applied: the monotonic time check of RFC 8945 section 5.2.3, because UDP reorders.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from hmac import compare_digest
from itertools import chain
from typing import Final, NamedTuple

from cachebus.answer import Evidence, Refusal
from cachebus.errors import ConfigError, MessageError
from cachebus.presentation import name_from_text
from cachebus.wire import rrtypes
from cachebus.wire.name import read_name, skip_name

FUDGE = 300
"""Seconds of clock difference that our messages ask for (RFC 8945 section 10 recommends 300)."""
MAX_FUDGE = 300
"""Seconds of clock difference ever granted, whatever a message asks for: it bounds the replay memory."""
MAX_REMEMBERED = 1_000_000
"""MACs remembered per key, about 130 MB when full: 1,600 messages a second for the ten minutes of twice the fudge."""
MAC_PREFIX = 8
"""Bytes remembered of each MAC: enough to tell a million apart, and nobody without the key can choose them."""
SWEEP_INTERVAL = 1.0
"""Seconds between two rounds in which a replay memory lets go of what is out of time."""
MAX_STRETCHES = 16
"""Stretches of time given up that a replay memory tells apart. An idle sender makes one with each message, and those of
the past may merge: what lies between them is past as well."""
MIN_SECRET = 16
"""Bytes of the shortest secret accepted: half of what RFC 8945 section 8 recommends for hmac-sha256."""

_ALGORITHMS: dict[str, Callable[[bytes], hashlib._Hash]] = {
    "hmac-sha256": hashlib.sha256,
    "hmac-sha384": hashlib.sha384,
    "hmac-sha512": hashlib.sha512,
}
ALGORITHMS = tuple(_ALGORITHMS)
"""Names of the algorithms taken; SHA-1 and MD5 are not (RFC 8945 section 6)."""

_FIXED: Final = struct.Struct("!HHIH")
_CLASS_TTL: Final = struct.pack("!HI", rrtypes.ANY, 0)
_TYPE_CLASS_TTL: Final = struct.pack("!H", rrtypes.TSIG) + _CLASS_TTL
_new: Final = tuple.__new__
_ONE_ADDITIONAL: Final = b"\0\1"
_NO_ADDITIONAL: Final = b"\0\0"
_NO_ERROR_NO_OTHER: Final = b"\0\0\0\0"
_FRONT: Final = struct.Struct("!2s8s2s").unpack_from
"""Message -> ID, the header up to NSCOUNT, ARCOUNT."""


class TsigSecret:
    """The secret of a key. Its text never shows it."""

    __slots__ = ("_inner", "_outer")

    def __init__(self, algorithm: str, secret: bytes) -> None:
        new = _ALGORITHMS[algorithm]
        block = new(b"").block_size
        if len(secret) > block:
            secret = new(secret).digest()
        padded = secret.ljust(block, b"\0")
        self._inner = new(bytes(byte ^ 0x36 for byte in padded))
        self._outer = new(bytes(byte ^ 0x5C for byte in padded))

    @property
    def mac_size(self) -> int:
        """Bytes of a MAC."""
        return self._outer.digest_size

    def states(self) -> tuple[hashlib._Hash, hashlib._Hash]:
        """The inner and outer hash of HMAC (RFC 2104) with the key already in them; to be copied, never updated."""
        return self._inner, self._outer

    def __repr__(self) -> str:
        return "TsigSecret(...)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A TSIG key, and what its holder may claim on the bus."""

    name: bytes
    """Uncompressed wire form, lower case."""
    algorithm: str
    secret: TsigSecret = field(repr=False)
    origins: frozenset[str] = frozenset()
    """Nodes that hold it; empty leaves the origin unverified."""
    max_evidence: Evidence = Evidence.VALIDATED
    """The highest level that a message under it is taken at."""
    evidence: Evidence = Evidence.AUTHORITATIVE
    """The level of what comes under it without AD=1."""
    text: str = ""
    """Its name as the operator wrote it."""

    @classmethod
    def make(
        cls,
        name: str,
        algorithm: str,
        secret: bytes,
        *,
        origins: Iterable[str] = (),
        max_evidence: Evidence = Evidence.VALIDATED,
        evidence: Evidence = Evidence.AUTHORITATIVE,
    ) -> Key:
        """A key from its parts. Raises `ConfigError` for an unknown algorithm, a bad name or a short secret."""
        if algorithm not in _ALGORITHMS:
            raise ConfigError(f"key {name}: algorithm {algorithm} is not one of {', '.join(ALGORITHMS)}")
        if len(secret) < MIN_SECRET:
            raise ConfigError(f"key {name}: the secret is shorter than {MIN_SECRET} bytes")
        try:
            wire = name_from_text(name)
        except ValueError as error:
            raise ConfigError(f"key name: {error}") from None
        return cls(
            name=wire,
            algorithm=algorithm,
            secret=TsigSecret(algorithm, secret),
            origins=frozenset(origins),
            max_evidence=max_evidence,
            evidence=evidence,
            text=name,
        )


class _Form:
    """What never changes in the TSIG records and MAC input of one key."""

    __slots__ = (
        "head",
        "inner",
        "key",
        "mac_size",
        "mac_size_bytes",
        "memory",
        "outer",
        "size",
        "stamp",
        "tail",
        "variables",
    )

    def __init__(self, key: Key, memory: ReplayMemory) -> None:
        algorithm = name_from_text(key.algorithm)
        self.key = key
        self.memory = memory
        self.inner, self.outer = key.secret.states()
        self.mac_size = key.secret.mac_size
        self.tail = struct.Struct(f"!HIHH{self.mac_size}s2sHH")
        self.mac_size_bytes = self.mac_size.to_bytes(2, "big")
        length = len(algorithm) + 10 + self.mac_size + 6
        # The record up to time signed: owner, type, class, TTL, RDLENGTH, algorithm.
        self.head = key.name + _TYPE_CLASS_TTL + length.to_bytes(2, "big") + algorithm
        # The MAC's variables up to time signed: owner, class, TTL, algorithm (RFC 8945 section 4.3.3).
        self.variables = key.name + _CLASS_TTL + algorithm
        self.size = len(key.name) + 10 + length
        self.stamp = Stamp(key, bytes(self.size + 1), b"", 0, 0)
        """That of the latest message; at first one that no record has, being longer than the record."""

    def mac(self, data: bytes) -> bytes:
        """HMAC (RFC 2104); copying two prepared states is half the cost of `hmac.digest`."""
        inner = self.inner.copy()
        inner.update(data)
        outer = self.outer.copy()
        outer.update(inner.digest())
        return outer.digest()


class Stamp:
    """What the TSIG record of a message said but for the MAC: most messages have the same as the one before."""

    __slots__ = ("fudge", "head", "key", "signed", "split", "suffix")

    def __init__(self, key: Key, head: bytes, suffix: bytes, signed: int, fudge: int) -> None:
        self.key = key
        self.head = head
        """The record up to the MAC."""
        self.suffix = suffix
        """What the MAC covers behind the message."""
        self.signed = signed
        """Seconds since the epoch."""
        self.fudge = fudge
        self.split = struct.Struct(f"!{len(head)}s{key.secret.mac_size}s2s4s").unpack_from
        """Record -> head, MAC, original ID, error with other length."""


class Signer:
    """Signs messages with one key."""

    def __init__(self, key: Key) -> None:
        self._form = _Form(key, ReplayMemory(0, 0))
        self.size = self._form.size
        """Bytes that signing adds."""

    def sign(self, message: bytes, now: float) -> tuple[bytes, bytes]:
        """The message with its TSIG record, and its MAC. No request MAC enters: a bus message answers no query."""
        form = self._form
        signed = int(now)
        time_fudge = signed.to_bytes(6, "big") + FUDGE.to_bytes(2, "big")
        mac = form.mac(message + form.variables + time_fudge + _NO_ERROR_NO_OTHER)
        additional = (message[10] << 8 | message[11]) + 1
        return b"".join(
            (
                message[:10],
                additional.to_bytes(2, "big"),
                message[12:],
                form.head,
                time_fudge,
                form.mac_size_bytes,
                mac,
                message[:2],
                _NO_ERROR_NO_OTHER,
            )
        ), mac


class Verified(NamedTuple):
    """An authentic message, taken apart, and what its TSIG record said."""

    header: bytes
    """The eight bytes from the flags to NSCOUNT; empty where more additional records than TSIG are counted."""
    body: bytes
    """All between the header and the TSIG record."""
    stamp: Stamp

    @property
    def end(self) -> int:
        """Where the TSIG record begins, and the message proper ends."""
        return 12 + len(self.body)

    @property
    def key(self) -> Key:
        """Whose it is."""
        return self.stamp.key

    @property
    def signed(self) -> int:
        """Seconds since the epoch."""
        return self.stamp.signed


class Verifier:
    """Verifies messages under several keys, refuses what is out of time or was seen (trust rules 6.1, 6.2)."""

    def __init__(
        self, keys: Iterable[Key], *, start: float | None, max_fudge: int = MAX_FUDGE, remember: int = MAX_REMEMBERED
    ) -> None:
        """`start`: when this process began to listen, or None to take messages signed before (reading a file)."""
        self._forms = tuple(_Form(key, ReplayMemory(2 * max_fudge, remember)) for key in keys)
        self._max_fudge = max_fudge
        self._start = start if start is not None else float("-inf")
        self._first_tick = float("inf")
        self._own = ReplayMemory(2 * max_fudge, remember)

    def inherit(self, previous: Verifier) -> None:
        """Go on with another's memories, for the keys that both have, and with its start where no key is new."""
        self._own = previous._own
        memories = {form.key.name: form.memory for form in previous._forms}
        for form in self._forms:
            form.memory = memories.get(form.key.name, form.memory)
        if all(form.key.name in memories for form in self._forms):
            self._start, self._first_tick = previous._start, previous._first_tick

    def tick(self, monotonic: float) -> None:
        """Say what a clock shows that nobody sets, in seconds; to be called now and then.

        By it the rule `before-start` ends: what was taken before the start is out of time `max_fudge` seconds later. A
        clock that was ahead when the process began, and was set right, would refuse everything until it is there again.
        """
        self._first_tick = min(self._first_tick, monotonic)
        if monotonic - self._first_tick > self._max_fudge:
            self._start = float("-inf")

    def sent(self, mac: bytes, now: float) -> None:
        """Remember the MAC of a message of our own, to know it when it comes back."""
        self._own.add(int(now), mac)

    def remembered(self) -> int:
        """MACs in the replay memories."""
        return sum(form.memory.count for form in self._forms)

    def verify(self, data: bytes, now: float) -> Verified | Refusal:
        """Check the last record of any `data` in the order key, algorithm, MAC, time, replay."""
        return self.verify_all((data,), now)[0]

    def verify_all(self, batch: Iterable[bytes], now: float) -> list[Verified | Refusal]:
        """`verify` for each of many messages, received at the same time."""
        verdicts: list[Verified | Refusal] = []
        rest = iter(batch)
        data = next(rest, None)
        while data is not None:
            for form in self._forms:
                end = len(data) - form.size
                if end >= 12 and data.startswith(form.stamp.head, end):
                    left = self._verify_run(form, chain((data,), rest), verdicts, now)
                    break
            else:
                left = data
            if left is data:
                verdicts.append(self._verify_other(data, now))
                left = next(rest, None)
            data = left
        return verdicts

    def _verify_run(
        self, form: _Form, messages: Iterable[bytes], verdicts: list[Verified | Refusal], now: float
    ) -> bytes | None:
        """Verify messages as long as they were signed with one key in one second; give the first that was not.

        A tight loop, with all that these messages share taken out of it, costs a third of so many calls.
        """
        stamp, size, add = form.stamp, form.size, verdicts.append
        known_head, suffix, split, signed = stamp.head, stamp.suffix, stamp.split, stamp.signed
        new_inner, new_outer, join = form.inner.copy, form.outer.copy, b"".join
        in_time = -stamp.fudge <= now - signed <= stamp.fudge
        own = self._own.second(signed)
        seen = form.memory.open(signed, now) if in_time else None
        before = len(seen or ())
        left = None
        for data in messages:
            end = len(data) - size
            if end < 12:
                left = data
                break
            ident, header, additional = _FRONT(data)
            head, mac, original, no_error = split(data, end)
            if (
                head != known_head
                or additional != _ONE_ADDITIONAL
                or original != ident
                or no_error != _NO_ERROR_NO_OTHER
            ):
                left = data
                break
            body = data[12:end]
            inner = new_inner()
            inner.update(join((ident, header, _NO_ADDITIONAL, body, suffix)))
            outer = new_outer()
            outer.update(inner.digest())
            prefix = mac[:MAC_PREFIX]
            if not compare_digest(mac, outer.digest()):
                add(Refusal.BAD_MAC)
            elif not in_time:
                add(Refusal.BAD_TIME)
            elif own and prefix in own:
                add(Refusal.OWN_MESSAGE)
            elif seen is None:
                add(Refusal.REPLAY_WINDOW)
            elif prefix in seen:
                add(Refusal.DUPLICATE)
            else:
                seen.add(prefix)
                add(_new(Verified, (header, body, stamp)))
        if seen is not None:
            form.memory.close(len(seen) - before)
        return left

    def _verify_other(self, data: bytes, now: float) -> Verified | Refusal:
        """One message of a form or second of its own."""
        found = self._find(data)
        if isinstance(found, Refusal):
            return found
        form, end, after = found
        try:
            high, low, fudge, mac_size, mac, original, error, other = form.tail.unpack_from(data, after)
        except struct.error:
            return Refusal.TSIG_FORM
        additional = int.from_bytes(data[10:12], "big")
        if mac_size != form.mac_size or error or other or after + form.tail.size != len(data) or not additional:
            return Refusal.TSIG_FORM
        suffix = form.variables + data[after : after + 8] + _NO_ERROR_NO_OTHER
        rest = data[2:10] + (additional - 1).to_bytes(2, "big") + data[12:end]
        if not compare_digest(mac, form.mac(original + rest + suffix)):
            return Refusal.BAD_MAC
        signed = high << 32 | low
        fudge = min(fudge, self._max_fudge)
        if not -fudge <= now - signed <= fudge:
            return Refusal.BAD_TIME
        if self._own.holds(signed, mac):
            return Refusal.OWN_MESSAGE
        if signed < self._start:
            return Refusal.BEFORE_START
        refusal = form.memory.take(signed, mac, now)
        if refusal is not None:
            return refusal
        stamp = Stamp(form.key, form.head + data[after : after + 10], suffix, signed, fudge)
        if end == len(data) - form.size:
            form.stamp = stamp
        return Verified(data[2:10] if additional == 1 else b"", data[12:end], stamp)

    def _find(self, data: bytes) -> tuple[_Form, int, int] | Refusal:
        """(key's form, where the TSIG record begins, where its time signed stands) of a record in any valid form."""
        try:
            end, owner, start = _last_record(data)
        except MessageError:
            return Refusal.MALFORMED
        if end is None:
            return Refusal.UNSIGNED
        rrtype, rrclass, ttl, length = _FIXED.unpack_from(data, start - 10)
        if rrtype != rrtypes.TSIG:
            return Refusal.UNSIGNED
        if start + length != len(data):
            return Refusal.TRAILING_BYTES
        form = next((form for form in self._forms if form.key.name == owner), None)
        if form is None:
            return Refusal.UNKNOWN_KEY
        try:
            algorithm, position = read_name(data, start, len(data))
        except MessageError:
            return Refusal.TSIG_FORM
        if algorithm.lower() != name_from_text(form.key.algorithm):
            return Refusal.WRONG_ALGORITHM
        if rrclass != rrtypes.ANY or ttl or position + 16 > len(data):
            return Refusal.TSIG_FORM
        if int.from_bytes(data[position + 8 : position + 10], "big") < form.mac_size:
            return Refusal.TRUNCATED_MAC
        return form, end, position


class ReplayMemory:
    """MACs seen, by the second they were signed in; bounded by giving up whole seconds, never by forgetting some.

    Whoever asks for a second that was given up is refused (`replay-window`), so neither a full memory nor a clock that
    is set back lets a replay in. Refused are the stretches of time in which something was taken and given up, and not
    what lies between them: a clock that was far ahead and is set right does not refuse what is signed now.
    """

    def __init__(self, window: int, limit: int) -> None:
        """`window`: seconds after which a second's MACs are out of time anyway; `limit`: MACs."""
        self.count = 0
        self._limit = limit
        self._sweep_at = 0.0
        self._window = window
        self._seconds: dict[int, set[bytes]] = {}
        self._given_up: list[tuple[int, int]] = []
        """Stretches of seconds, first and last, in order of time and apart by more than `window`."""
        self._last_given_up = -1

    def take(self, signed: int, mac: bytes, now: float) -> Refusal | None:
        """Remember a verified MAC; a reason when it is known already, or too old to be told from a replay."""
        seen = self.open(signed, now)
        if seen is None:
            return Refusal.REPLAY_WINDOW
        prefix = mac[:MAC_PREFIX]
        if prefix in seen:
            return Refusal.DUPLICATE
        seen.add(prefix)
        self.close(1)
        return None

    def open(self, signed: int, now: float) -> set[bytes] | None:
        """The remembered MACs of a second, each cut to `MAC_PREFIX`, to add to; None when they are given up.

        Whoever adds says how many to `close`, at once.
        """
        if not 0.0 < self._sweep_at - now <= SWEEP_INTERVAL:
            self._sweep(now)
        if signed <= self._last_given_up and self._is_given_up(signed):
            return None
        seen = self._seconds.get(signed)
        if seen is None:
            seen = self._seconds[signed] = set()
        return seen

    def close(self, added: int) -> None:
        """Count what was added after `open`, and give up the oldest seconds where that is too much."""
        self.count += added
        while self.count > self._limit:
            oldest = min(self._seconds)
            # Older ones, of which nothing came yet, go with it: they would be the next to be given up.
            self._give_up(oldest - self._window, oldest)

    def second(self, signed: int) -> set[bytes]:
        """The remembered MACs of a second, each cut to `MAC_PREFIX`; not to be changed."""
        return self._seconds.get(signed) or set()

    def add(self, signed: int, mac: bytes) -> None:
        """Remember a MAC without asking."""
        self._seconds.setdefault(signed, set()).add(mac[:MAC_PREFIX])
        if not 0.0 < self._sweep_at - signed <= SWEEP_INTERVAL:
            self._sweep(signed)
        self.close(1)

    def holds(self, signed: int, mac: bytes) -> bool:
        """Whether this MAC is remembered."""
        return mac[:MAC_PREFIX] in self.second(signed)

    def _sweep(self, now: float) -> None:
        # Nothing signed before now - window/2, or after now + window/2, passes the time check: its second can go.
        self._sweep_at = now + SWEEP_INTERVAL
        for second in sorted(self._seconds):
            if abs(second - now) > self._window:
                self._give_up(second, second)

    def _give_up(self, first: int, last: int) -> None:
        taken = self._seconds.pop(last)
        if not taken:
            return
        self.count -= len(taken)
        stretches = self._given_up
        stretches.append((first, last))
        stretches.sort()
        merged = stretches[:1]
        for stretch in stretches[1:]:
            before = merged[-1]
            if stretch[0] - before[1] <= self._window:
                merged[-1] = (before[0], max(before[1], stretch[1]))
            else:
                merged.append(stretch)
        if len(merged) > MAX_STRETCHES:
            _, at = min((merged[index + 1][0] - merged[index][1], index) for index in range(MAX_STRETCHES))
            merged[at : at + 2] = [(merged[at][0], merged[at + 1][1])]
        self._given_up = merged
        self._last_given_up = merged[-1][1]

    def _is_given_up(self, signed: int) -> bool:
        return any(first <= signed <= last for first, last in self._given_up)


def _last_record(data: bytes) -> tuple[int | None, bytes, int]:
    """(where the last record begins, its owner in lower case, where its RDATA begins); None without records."""
    size = len(data)
    if size < 12:
        raise MessageError("shorter than a header")
    questions, *counts = struct.unpack_from("!HHHH", data, 4)
    position = 12
    for _ in range(questions):
        position = skip_name(data, position, size) + 4
    begin: int | None = None
    start = 0
    for _ in range(sum(counts)):
        # Names are only skipped: reading each would let a datagram of pointers cost a tenth of a second before any MAC.
        begin = position
        start = skip_name(data, position, size) + 10
        if start > size:
            raise MessageError("a record is cut short")
        position = start + (data[start - 2] << 8 | data[start - 1])
    if position > size:
        raise MessageError("RDATA runs past the end of the message")
    owner = b"" if begin is None else read_name(data, begin, size)[0]
    return begin, owner.lower(), start
