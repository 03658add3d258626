"""Reads the text that `unbound-control dump_cache` writes: which messages the cache holds whole, and their records.

Sans-IO. Decides what of a dump can be an answer: positive, its RRsets there and from an authoritative answer. It is
kept as text until it is asked for as a DNS message; then dnspython reads the RDATA, for this runs once per start, not
per message of the bus. Refuses to know what an entry is worth as evidence and whether it may be shared.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping
from enum import Enum, auto
from typing import NamedTuple

import dns.exception
import dns.name
import dns.rdata
import dns.rdataclass
import dns.rdatatype

from cachebus.errors import FrameError, MessageError
from cachebus.presentation import name_from_text, type_from_text
from cachebus.wire import rrtypes
from cachebus.wire.message import CD, IN, MAX_TTL, OPCODE, QR, RA, RCODE, TC, expand_rdata

MAX_LINE = 131_072
"""Bytes of a line: twice what Unbound, which prints into a buffer of 65,552 bytes, can write."""
MIN_TRUST = 8
"""Unbound's rank of an RRset from the answer section of an answer with AA. What cachebus fills has 5, and might be our
own come back (trust rules, section 7)."""
MAX_RECORDS = 1000
"""Records of one RRset that are kept: the largest RRset in use has some hundred."""
MAX_RRSETS = 24
"""RRsets of one answer: a chain of 11 CNAMEs, each from a DNAME, and its end."""
MAX_MESSAGE = 65_535
"""Bytes of a DNS message (RFC 1035 section 4.2.2)."""
OVERHEAD = 400
"""Bytes that an RRset or a message costs beside its text."""

_RRSET = re.compile(rb";rrset(?: nsec_apex)? (\d{1,10}) (\d{1,5}) (\d{1,5}) (\d{1,2}) (\d)")
_MESSAGE = re.compile(rb"msg (\S+) IN (\S+) (\d{1,5}) 1 (\d{1,10}) (\d) (\d{1,4}) \d{1,4} \d{1,4}(?: -?\d{1,5}| .*)?")
_REFERENCE = re.compile(rb"(\S+) IN (\S+) (\d{1,4})")
_RECORD = re.compile(rb"(\S+)[\t ]+(\d{1,10})[\t ]+IN[\t ]+(\S+)[\t ]+(.*)", re.DOTALL)
_NOT_DATA = frozenset({rrtypes.OPT, *range(128, 256)})
"""Types that no cache holds: meta types and question types (RFC 6895 section 3.1)."""
_NOT_AN_ANSWER = OPCODE | TC | CD | RCODE
"""Bits of a message's flags that are all 0 in what may be shared."""


class Security(Enum):
    """Unbound's `sec_status`, by its number in the dump."""

    UNCHECKED = 0
    """The validator has not looked at it: there is none, CD=1 kept it away, or nobody but Unbound itself has asked."""
    BOGUS = 1
    INDETERMINATE = 2
    """The validator has looked, and no trust anchor is above the name."""
    INSECURE = 3
    """Proven to be unsigned."""
    SENTINEL = 4
    """A key sentinel's test has failed (RFC 8509): nothing but a SERVFAIL is given for it."""
    SECURE = 5


_BY_WORTH = (
    Security.BOGUS, Security.SENTINEL, Security.UNCHECKED, Security.INDETERMINATE, Security.INSECURE, Security.SECURE
)  # fmt: skip


class Entry(NamedTuple):
    """A positive answer as the dump has it: still text."""

    qname: bytes
    """Presentation form, as everything here."""
    qtype: bytes
    security: Security
    """The weakest of the message's and its RRsets'."""
    rrsets: tuple[CachedRRset, ...]


class CachedRRset(NamedTuple):
    """One RRset as the dump has it."""

    ttl: int
    """Seconds that were left when it was written."""
    security: Security
    lines: tuple[bytes, ...]
    """Its records, then its RRSIGs."""


class _State(Enum):
    START = auto()
    RRSETS = auto()
    BETWEEN = auto()
    MESSAGES = auto()
    AFTER = auto()
    DONE = auto()


class DumpReader:
    """Takes one dump apart. What it keeps is bounded; what was left out for that is counted."""

    def __init__(self, *, max_bytes: int) -> None:
        """`max_bytes`: most memory for RRsets and messages together, by this reader's own account."""
        self._max_bytes = max_bytes
        self._kept = 0
        self._state = _State.START
        self._tail = b""
        self._rrsets: dict[tuple[bytes, bytes], CachedRRset | None] = {}
        self._header: tuple[int, int, Security] | None = None
        self._lines: list[bytes] = []
        self._missing = 0
        self._message: tuple[bytes, bytes, Security] | None = None
        self._references: list[CachedRRset] | None = []
        self.entries: deque[Entry] = deque()
        """What has been read so far; whoever takes from it takes from the left."""
        self._counts = dict.fromkeys(("rrsets", "messages", "not_positive", "weak", "incomplete", "too_much"), 0)

    def statistics(self) -> Mapping[str, int]:
        """Counters of one dump.

        `rrsets`, `messages`: what it has. Of the messages, `not_positive`: not whole positive answers; `incomplete`: an
        RRset is not there, or could not be told from another. `weak`: RRsets below `MIN_TRUST`, of which nothing is
        kept. `too_much`: RRsets and messages beyond `max_bytes`.
        """
        return dict(self._counts)

    @property
    def is_done(self) -> bool:
        """Whether the end mark was there."""
        return self._state is _State.DONE

    def receive_data(self, data: bytes) -> None:
        """Take the next bytes. Raises `FrameError` for what is no dump; such a reader takes nothing more."""
        lines = (self._tail + data).split(b"\n")
        self._tail = lines.pop()
        for line in lines:
            self._line(line)
        if len(self._tail) > MAX_LINE:
            raise FrameError("a line longer than Unbound writes")

    def receive_end(self) -> None:
        """Take note that there is no more. Raises `FrameError` when the end mark has not been there."""
        if not self.is_done:
            raise FrameError("the dump is cut short")
        self._rrsets.clear()  # those that answers refer to live on with them

    def _line(self, line: bytes) -> None:
        match self._state:
            case _State.RRSETS if line != b"END_RRSET_CACHE":
                self._rrset_line(line)
            case _State.MESSAGES if line != b"END_MSG_CACHE":
                self._message_line(line)
            case state:
                self._mark(state, line)

    def _mark(self, state: _State, line: bytes) -> None:
        expected, following = {
            _State.START: (b"START_RRSET_CACHE", _State.RRSETS),
            _State.RRSETS: (b"END_RRSET_CACHE", _State.BETWEEN),
            _State.BETWEEN: (b"START_MSG_CACHE", _State.MESSAGES),
            _State.MESSAGES: (b"END_MSG_CACHE", _State.AFTER),
            _State.AFTER: (b"EOF", _State.DONE),
            _State.DONE: (None, _State.DONE),
        }[state]
        if line != expected:
            raise FrameError(f"not a dump of Unbound's cache: {line[:60]!r} where {expected!r} is expected")
        self._missing = 0
        self._drop_message()
        self._state = following

    # RRsets

    def _rrset_line(self, line: bytes) -> None:
        if line.startswith(b";rrset"):
            self._begin_rrset(line)
        elif self._missing:
            self._missing -= 1
            if self._header is not None:
                self._lines.append(line)
                if not self._missing:
                    self._keep_rrset(*self._header)

    def _begin_rrset(self, line: bytes) -> None:
        self._counts["rrsets"] += 1
        self._header = None
        self._missing = 0
        found = _RRSET.fullmatch(line)
        if found is None:
            return
        ttl, records, signatures, trust, security = map(int, found.groups())
        self._missing = min(records + signatures, MAX_RECORDS + 1)
        self._lines = []
        if trust < MIN_TRUST or security > Security.SECURE.value:
            self._counts["weak"] += 1
        elif records and self._missing <= MAX_RECORDS:
            self._header = (ttl, records, Security(security))

    def _keep_rrset(self, ttl: int, records: int, security: Security) -> None:
        first = _RECORD.fullmatch(self._lines[0])
        if first is None:
            return
        key = (first[1].lower(), first[3])
        if key in self._rrsets:
            self._rrsets[key] = None  # two of one name and type: which of them a message means is not said
        elif self._has_room(sum(map(len, self._lines))):
            self._rrsets[key] = CachedRRset(ttl, security, tuple(self._lines))

    def _has_room(self, size: int) -> bool:
        self._kept += size + OVERHEAD
        if self._kept <= self._max_bytes:
            return True
        self._kept -= size + OVERHEAD
        self._counts["too_much"] += 1
        return False

    # Messages

    def _message_line(self, line: bytes) -> None:
        if line.startswith(b"msg "):
            self._begin_message(line)
        elif self._missing and self._message is not None and self._references is not None:
            self._missing -= 1
            found = _REFERENCE.fullmatch(line)
            rrset = None
            if found is not None and found[3] == b"0":  # other flags mean RRsets that a dump does not tell apart
                rrset = self._rrsets.get((found[1].lower(), found[2]))
            if rrset is None:
                self._counts["incomplete"] += 1
                self._message = None
                return
            self._references.append(rrset)
            if not self._missing:
                self._keep_message()

    def _drop_message(self) -> None:
        """Forget a message whose references have not all come."""
        if self._message is not None:
            self._counts["incomplete"] += 1
        self._message = None

    def _begin_message(self, line: bytes) -> None:
        self._drop_message()
        self._counts["messages"] += 1
        found = _MESSAGE.fullmatch(line)
        if found is None:
            self._counts["not_positive"] += 1
            return
        flags, security, answers = int(found[3]), int(found[5]), int(found[6])
        if (
            not flags & QR
            or flags & _NOT_AN_ANSWER
            or not 0 < answers <= MAX_RRSETS
            or security > Security.SECURE.value
        ):
            self._counts["not_positive"] += 1
            return
        self._message = (found[1], found[2], Security(security))
        self._references = []
        self._missing = answers

    def _keep_message(self) -> None:
        assert self._message is not None
        assert self._references is not None
        qname, qtype, security = self._message
        self._message = None
        if self._has_room(len(qname)):
            weakest = min((security, *(rrset.security for rrset in self._references)), key=_BY_WORTH.index)
            self.entries.append(Entry(qname, qtype, weakest, tuple(self._references)))


def to_message(entry: Entry, elapsed: float) -> bytes:
    """An entry as a DNS response in wire form, AA and AD clear, its TTLs less the `elapsed` seconds since the dump.

    Raises `MessageError` for what is not well-formed or has no TTL left.
    """
    try:
        qname, qtype = _name(entry.qname), type_from_text(entry.qtype.decode("ascii"))
    except ValueError as error:
        raise MessageError(f"not a question: {error}") from error
    records: list[bytes] = []
    for rrset in entry.rrsets:
        ttl = min(rrset.ttl, MAX_TTL) - max(int(elapsed), 0)
        if ttl <= 0:
            raise MessageError("nothing is left of its TTL")
        records += [_record(line, ttl) for line in rrset.lines]
    header = b"\0\0" + (QR | RA).to_bytes(2) + b"\0\1" + len(records).to_bytes(2) + bytes(4)
    message = b"".join((header, qname, qtype.to_bytes(2), IN.to_bytes(2), *records))
    if len(message) > MAX_MESSAGE:
        raise MessageError("longer than a DNS message")
    return message


def _record(line: bytes, ttl: int) -> bytes:
    found = _RECORD.fullmatch(line)
    if found is None:
        raise MessageError("not a record")
    try:
        rrtype = type_from_text(found[3].decode("ascii"))
        if rrtype in _NOT_DATA:
            raise MessageError("a type that no cache holds")
        rdata = dns.rdata.from_text(
            dns.rdataclass.IN,
            dns.rdatatype.RdataType.make(rrtype),
            found[4].decode("ascii"),
            origin=dns.name.root,
            relativize=False,
        ).to_wire()
        owner = _name(found[1])
    except (dns.exception.DNSException, ValueError) as error:
        raise MessageError(f"not a record: {type(error).__name__}") from error
    assert rdata is not None
    if expand_rdata(rdata, rrtype, 0, len(rdata)) != rdata:  # old types with names, MB for one, dnspython knows not
        raise MessageError("RDATA with a compressed name")
    return owner + rrtype.to_bytes(2) + IN.to_bytes(2) + ttl.to_bytes(4) + len(rdata).to_bytes(2) + rdata


def _name(text: bytes) -> bytes:
    if not text.endswith(b"."):
        raise ValueError("a name without its final dot")
    return name_from_text(text.decode("ascii"))
