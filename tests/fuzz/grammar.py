"""Makes DNS messages of every kind a resolver sees: chains, signatures, compression, EDNS, and the worst of them.

Written apart from the code under test and from dnspython, so that it can say what neither would: any flags and counts
that fit together, any owner, pointers to anywhere that is allowed.
"""

from __future__ import annotations

import struct
from random import Random
from typing import NamedTuple

from tests.fuzz.mutate import BYTES, LONGS, below

QR, AA, TC, RD, RA, AD, CD = 0x8000, 0x0400, 0x0200, 0x0100, 0x0080, 0x0020, 0x0010
A, NS, CNAME, SOA, PTR, MX, TXT, RP, SIG, AAAA, NXT, SRV, NAPTR, DNAME = (
    1,
    2,
    5,
    6,
    12,
    15,
    16,
    17,
    24,
    28,
    30,
    33,
    35,
    39,
)
OPT, DS, RRSIG, NSEC, DNSKEY, NSEC3, HTTPS, TSIG, ANY, SWILD, PRIVATE = (
    41,
    43,
    46,
    47,
    48,
    50,
    65,
    250,
    255,
    65392,
    65280,
)
MAX_MESSAGE = 65535


def wire_name(text: str) -> bytes:
    """Wire form of plain text without escapes."""
    labels = [label.encode() for label in text.strip(".").split(".") if label]
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"


ZONE = wire_name("example.test.")
NAMES = [
    wire_name(text)
    for text in (
        ".", "test.", "example.test.", "www.example.test.", "a.example.test.", "b.a.example.test.",
        "c.b.a.example.test.", "*.example.test.",
        "d.example.test.", "x.d.example.test.", "other.test.", "www.other.test.", "x.other.test.",
        "_sip._udp.example.test.", "1.2.0.192.in-addr.arpa.", "localhost.", "example.com.", "www.example.com.",
    )
]  # fmt: skip
LONG_NAME = b"".join(bytes([61]) + bytes([97 + index]) * 61 for index in range(4)) + b"\5maxim\0"
DEEP_NAME = b"\1x" * 127 + b"\0"
ODD_NAMES = [
    LONG_NAME,
    DEEP_NAME,
    b"\3a\0b\4test\0",
    b"\4a.b\\\4test\0",
    b"\1\xff\2\xc0\x0c\4test\0",
    b"\1*\0",
    b"\2\r\n\1;\0",
]


class Name(bytes):
    """In RDATA: a name that may be compressed."""

    __slots__ = ()


class Record(NamedTuple):
    """One resource record."""

    owner: bytes
    type: int
    ttl: int
    rdata: tuple[bytes, ...]
    rrclass: int = 1


def pick_name(rng: Random) -> bytes:
    """A name: mostly one of a few, so that names meet; its case as resolvers and attackers have it."""
    die = rng.random()
    name = NAMES[below(rng, len(NAMES))] if die < 0.93 else ODD_NAMES[below(rng, len(ODD_NAMES))]
    return (
        name
        if die < 0.85
        else bytes(byte ^ 0x20 if 65 <= byte & 0xDF <= 90 and rng.random() < 0.5 else byte for byte in name)
    )


def pick_ttl(rng: Random) -> int:
    """Seconds, some of them impossible."""
    return 31 + below(rng, 600) if rng.random() < 0.9 else LONGS[below(rng, len(LONGS))]


def pick_type(rng: Random) -> int:
    """A type that can be asked for; the usual ones usually."""
    if rng.random() < 0.7:
        return (A, AAAA, TXT, MX, A, HTTPS)[below(rng, 6)]
    return TYPES[below(rng, len(TYPES))]


def _text(rng: Random) -> bytes:
    data = rng.randbytes(below(rng, 20))
    return bytes([len(data)]) + data


def rdata(rng: Random, rrtype: int) -> tuple[bytes, ...]:
    """RDATA of a type, as bytes and names."""
    name = Name(pick_name(rng))
    match rrtype:
        case 1:
            return (bytes((192, 0, 2, below(rng, 6))),) if rng.random() < 0.9 else (b"\x0a\0\0\1",)
        case 28:
            return (b"\x20\1\x0d\xb8" + bytes(11) + bytes([below(rng, 6)]),)
        case 2 | 5 | 12 | 39 | 3 | 4 | 7 | 8 | 9:
            return (name,)
        case 15 | 18 | 21 | 36:
            return (rng.randbytes(2), name)
        case 17 | 14:
            return (name, Name(pick_name(rng)))
        case 26:
            return (b"\0\1", name, Name(pick_name(rng)))
        case 33:
            return (rng.randbytes(6), name)
        case 6:
            return (name, Name(pick_name(rng)), rng.randbytes(20) if rng.random() < 0.5 else bytes(19) + b"\x3c")
        case 35:
            return (b"\0\1\0\2" + _text(rng) + _text(rng) + _text(rng), name)
        case 30:
            return (name, rng.randbytes(4))
        case 46 | 24:
            return signature(rng, pick_type(rng), pick_name(rng), 300, 1_800_000_000)
        case 47:
            return (bytes(name), b"\0\1\x40")
        case 64 | 65:
            return (b"\0\1", bytes(name), b"\0\1\0\3\2h2")
        case 16:
            return (_text(rng), _text(rng)) if rng.random() < 0.5 else (_text(rng),)
        case _:
            return (rng.randbytes(below(rng, 40)),)


TYPES = (A, NS, CNAME, SOA, PTR, MX, TXT, RP, SIG, AAAA, NXT, SRV, NAPTR, DNAME, OPT, DS, RRSIG, NSEC, DNSKEY, NSEC3,
         HTTPS, TSIG, ANY, SWILD, PRIVATE, 3, 7, 14, 18, 21, 26, 36, 64, 251, 252, 257)  # fmt: skip


def signature(rng: Random, covered: int, owner: bytes, ttl: int, now: int) -> tuple[bytes, ...]:
    """RDATA of an RRSIG; one in ten has a field that does not fit."""
    labels = count_labels(owner) - owner.startswith(b"\1*")
    inception, expiration, original, signer = now - 86400, now + 86400, ttl & 0x7FFFFFFF, parent(owner)
    if rng.random() < 0.1:
        match below(rng, 7):
            case 0:
                labels = max(labels + below(rng, 3) - 1, 0)
            case 1:
                inception = now + below(rng, 5)
            case 2:
                expiration = now + below(rng, 400) - 2
            case 3:
                original = LONGS[below(rng, len(LONGS))]
            case 4:
                signer = pick_name(rng)
            case 5:
                signer = owner
            case _:
                expiration = LONGS[below(rng, len(LONGS))]
    fixed = struct.pack(
        "!HBBIIIH", covered, 13, labels, original, expiration & 0xFFFFFFFF, inception & 0xFFFFFFFF, 4711
    )
    return (fixed + signer, rng.randbytes(8))


def count_labels(name: bytes) -> int:
    """Labels without the root."""
    count = position = 0
    while name[position]:
        position += name[position] + 1
        count += 1
    return count


def parent(name: bytes) -> bytes:
    """The name above, or the root itself."""
    return name[name[0] + 1 :] if name[0] else name


class Shape(NamedTuple):
    """How a message is made."""

    now: int = 1_800_000_000
    """Seconds since the epoch: what signatures are valid around."""
    usual: bool = False
    """As this project's own codec and its like send: one chain, nothing else, no compression but of owners."""
    flags: int | None = None
    qname: bytes | None = None
    qtype: int | None = None
    answer: tuple[Record, ...] | None = None
    ident: int | None = None
    change: bool = False
    """Records are changed before they are written: lengths and counts stay right, so what is behind them is reached."""


USUAL = Shape(usual=True)


def make_message(rng: Random, shape: Shape = Shape()) -> bytes:  # noqa: B008 -- a constant
    """A message in which every length and count is right; what it says may be nonsense."""
    qname = shape.qname or pick_name(rng)
    qtype = shape.qtype or pick_type(rng)
    if shape.answer is not None:
        answer = list(shape.answer)
    else:
        answer = make_chain(rng, qname, qtype, shape.now, usual=shape.usual)
    authority: list[Record] = []
    additional: list[Record] = []
    questions = 1
    if not shape.usual:
        if rng.random() < 0.15:
            answer = [] if rng.random() < 0.5 else answer[: below(rng, len(answer) + 1)]
            authority = make_rrset(rng, ZONE, SOA, shape.now)
        if rng.random() < 0.1:
            authority += make_rrset(rng, pick_name(rng), NS if rng.random() < 0.5 else NSEC, shape.now)
        if rng.random() < 0.2:
            answer += make_rrset(rng, pick_name(rng), pick_type(rng), shape.now)
        if rng.random() < 0.05:
            rng.shuffle(answer)
        if rng.random() < 0.1:
            additional += make_rrset(rng, pick_name(rng), A, shape.now)
        if rng.random() < 0.4:
            additional.append(make_opt(rng))
        if rng.random() < 0.1:
            questions = (0, 0, 2, 3)[below(rng, 4)]
    elif rng.random() < 0.05:
        questions = 0
    flags = pick_flags(rng) if shape.flags is None else shape.flags
    if shape.change:
        answer = change_records(rng, answer)
        if rng.random() < 0.1:
            flags ^= 1 << below(rng, 16)
    ident = below(rng, 65536) if shape.ident is None else shape.ident
    writer = Writer(rng, usual=shape.usual)
    for _ in range(questions):
        writer.question(qname, qtype, 1 if rng.random() < 0.97 else below(rng, 256))
    for record in (*answer, *authority, *additional):
        writer.record(record)
    counts = struct.pack("!HHHHHH", ident, flags, questions, len(answer), len(authority), len(additional))
    return counts + bytes(writer.data[12:])


def change_records(rng: Random, records: list[Record]) -> list[Record]:
    """Some records with another owner, type, TTL, class or RDATA, repeated, left out or moved."""
    changed = list(records)
    for _ in range(1 + below(rng, 2)):
        if not changed:
            return make_rrset(rng, pick_name(rng), pick_type(rng), 0)
        at = below(rng, len(changed))
        record = changed[at]
        match below(rng, 11):
            case 0:
                changed[at] = record._replace(owner=pick_name(rng))
            case 1:
                changed[at] = record._replace(type=TYPES[below(rng, len(TYPES))])
            case 2:
                changed[at] = record._replace(ttl=LONGS[below(rng, len(LONGS))])
            case 3:
                changed[at] = record._replace(rrclass=below(rng, 5))
            case 4 | 5:
                changed[at] = record._replace(rdata=_change_rdata(rng, record.rdata))
            case 6:
                changed.insert(below(rng, len(changed) + 1), record)
            case 7:
                del changed[at]
            case 8:
                changed[at] = record._replace(rdata=changed[below(rng, len(changed))].rdata)
            case 9:
                changed.append(record._replace(rdata=rdata(rng, record.type)))
            case _:
                changed.append(changed.pop(at))
    return changed


def _change_rdata(rng: Random, pieces: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """A name replaced, or a byte of another piece."""
    at = below(rng, len(pieces))
    piece = pieces[at]
    if isinstance(piece, Name):
        piece = Name(pick_name(rng))
    elif piece:
        place = below(rng, len(piece))
        piece = piece[:place] + bytes([BYTES[below(rng, len(BYTES))]]) + piece[place + 1 :]
    return (*pieces[:at], piece, *pieces[at + 1 :])


def pick_flags(rng: Random) -> int:
    """QR=1 and what usually goes with it; rarely anything."""
    die = rng.random()
    if die < 0.9:
        return (QR | AA, QR | AD, QR | RD | RA, QR | RD | RA | AD)[below(rng, 4)]
    return below(rng, 65536)


def make_chain(rng: Random, qname: bytes, qtype: int, now: int, *, usual: bool) -> list[Record]:
    """From the question over CNAMEs and DNAMEs to the asked type, in order."""
    found: list[Record] = []
    name = qname
    signed = rng.random() < 0.5
    links = 0 if rng.random() < 0.6 else 1 + below(rng, 3) if rng.random() < 0.9 else 5 + below(rng, 9)
    for number in range(links):
        target = pick_name(rng) if links < 4 else bytes([1, 97 + number]) + ZONE
        if not usual and rng.random() < 0.15 and len(name) > 1:
            owner = parent(name)
            found += make_rrset(rng, owner, DNAME, now, signed=signed, target=target)
            target = name[: len(name) - len(owner)] + target
            if len(target) > 255:
                break
            if rng.random() < 0.3:
                name = target
                continue
        found += make_rrset(rng, name, CNAME, now, signed=signed, target=target)
        name = target
    if qtype != CNAME or not links:
        found += make_rrset(rng, name, qtype, now, signed=signed)
    return found


def make_rrset(
    rng: Random, owner: bytes, rrtype: int, now: int, *, signed: bool | None = None, target: bytes | None = None
) -> list[Record]:
    """Some records of one owner and type, and maybe their RRSIGs."""
    ttl = pick_ttl(rng)
    count = 1 if target is not None or rng.random() < 0.6 else 1 + below(rng, 4)
    records = [
        Record(owner, rrtype, ttl, (Name(target),) if target is not None else rdata(rng, rrtype)) for _ in range(count)
    ]
    if rng.random() < 0.03:
        records[0] = records[0]._replace(ttl=pick_ttl(rng))
    if rng.random() < 0.01:
        records[-1] = records[-1]._replace(rrclass=(0, 3, 254, 255)[below(rng, 4)])
    if signed if signed is not None else rng.random() < 0.3:
        records += [
            Record(owner, RRSIG, ttl, signature(rng, rrtype, owner, ttl, now)) for _ in range(1 + (rng.random() < 0.1))
        ]
    return records


def make_options(rng: Random) -> bytes:
    """EDNS options: those with a meaning here, and others."""
    made = b""
    for _ in range(below(rng, 4)):
        code = (8, 15, 10, 12, 15, 65001)[below(rng, 6)]
        data = rng.randbytes(below(rng, 12))
        if code == 8:
            data = struct.pack("!HBB", 1, 24, (0, 0, 24)[below(rng, 3)]) + b"\xc0\0\2"
        elif code == 15:
            data = struct.pack("!H", (0, 3, 4, 15, 19, 22)[below(rng, 6)]) + b"text"
        made += struct.pack("!HH", code, len(data)) + data
    return made


def make_opt(rng: Random) -> Record:
    """An OPT record."""
    ttl = (0, 0x8000, 0x8000, 0x01008000, 0x00010000)[below(rng, 5)]
    return Record(b"\0", OPT, ttl, (make_options(rng),), 1232)


class Writer:
    """Writes questions and records, compressing names now and then."""

    def __init__(self, rng: Random, *, usual: bool = False) -> None:
        self.data = bytearray(12)
        self._rng = rng
        self._offsets: dict[bytes, int] = {}
        self._usual = usual
        self._often = 1.0 if usual or rng.random() < 0.6 else rng.random()

    def question(self, qname: bytes, qtype: int, qclass: int) -> None:
        """Append a question; its name is never compressed."""
        self._remember(qname)
        self.data += qname + struct.pack("!HH", qtype, qclass)

    def record(self, record: Record) -> None:
        """Append a record."""
        self._name(record.owner, compress=self._rng.random() < self._often)
        self.data += struct.pack("!HHIH", record.type, record.rrclass, record.ttl & 0xFFFFFFFF, 0)
        start = len(self.data)
        for piece in record.rdata:
            if isinstance(piece, Name):
                self._name(piece, compress=not self._usual and self._rng.random() < self._often)
            else:
                self.data += piece
        self.data[start - 2 : start] = struct.pack("!H", len(self.data) - start)

    def _remember(self, name: bytes) -> None:
        at, position = len(self.data), 0
        while name[position]:
            if at + position < 0x4000:
                self._offsets.setdefault(name[position:] if not self._usual else name[position:].lower(), at + position)
            position += name[position] + 1

    def _name(self, name: bytes, *, compress: bool) -> None:
        if not compress:
            self._remember(name)
            self.data += name
            return
        position = 0
        while name[position]:
            known = self._offsets.get(name[position:] if not self._usual else name[position:].lower())
            if known is not None and (not self._usual or not position):
                self._remember(name[:position] + b"\0")
                self.data += name[:position] + struct.pack("!H", 0xC000 | known)
                return
            position += name[position] + 1
        self._remember(name)
        self.data += name


def worst_message(rng: Random, flags: int = QR | AA) -> bytes:
    """Up to 64 KiB that cost a parser the most for its bytes; every one is well-formed, or nearly."""
    kind = below(rng, 8)
    question = ZONE + struct.pack("!HH", A, 1)
    pieces: list[bytes] = []
    room = MAX_MESSAGE - 12 - len(question) if rng.random() < 0.3 else 4000
    match kind:
        case 0:  # pointers to pointers, and names that begin at the last of them
            rungs = room // 8
            at = 12 + len(question) + 11
            ladder = b"\0" + b"".join(
                struct.pack("!H", 0xC000 | min(at + max(2 * step - 1, 0), 0x3FFF)) for step in range(rungs)
            )
            pieces.append(b"\0" + struct.pack("!HHIH", TXT, 1, 300, len(ladder)) + ladder)
            top = struct.pack("!H", 0xC000 | min(at + 1 + 2 * (rungs - 1), 0x3FFF))
            pieces += [top + struct.pack("!HHIH", PRIVATE, 1, 300, 0)] * ((room - len(pieces[0])) // 12)
        case 1:  # many records of one RRset
            pieces += [b"\xc0\x0c" + struct.pack("!HHIHI", A, 1, 300, 4, number) for number in range(room // 16)]
        case 2:  # many RRsets
            pieces += [b"\xc0\x0c" + struct.pack("!HHIH", 1024 + number, 1, 300, 0) for number in range(room // 12)]
        case 3:  # many RRSIGs
            made = b"".join(signature(rng, A, ZONE, 300, 1_800_000_000))
            fixed = b"\xc0\x0c" + struct.pack("!HHIH", RRSIG, 1, 300, len(made))
            pieces += [
                fixed + made[:-4] + struct.pack("!I", number) for number in range(room // (len(fixed) + len(made)))
            ]
        case 4:  # one long chain, or ring, of CNAMEs
            count = room // 24
            owners = [b"\4" + f"{number % 10000:04}".encode() + b"\xc0\x0c" for number in range(count)]
            pieces += [
                owner + struct.pack("!HHIH", CNAME, 1, 300, 7) + target
                for owner, target in zip(owners, owners[1:] + owners[:1], strict=True)
            ]
        case 5:  # names as deep as can be, each from its neighbour
            pieces.append(DEEP_NAME + struct.pack("!HHIH", PRIVATE, 1, 300, 0))
            at = 12 + len(question)
            pieces += [struct.pack("!HHHIH", 0xC000 | at + 2 * below(rng, 120), PRIVATE, 1, 300, 0)] * (
                (room - 265) // 12
            )
        case 6:  # small records that grow when their names are decompressed
            pieces.append(LONG_NAME + struct.pack("!HHIH", PRIVATE, 1, 300, 0))
            far = struct.pack("!H", 0xC000 | 12 + len(question))
            pieces += [
                b"\xc0\x0c" + struct.pack("!HHIHH", MX, 1, 300, 4, number) + far for number in range((room - 265) // 16)
            ]
        case _:  # DNAMEs at every level, of every name
            count = room // 16
            pieces += [
                bytes((1, 97 + number % 26, 0xC0, 12)) + struct.pack("!HHIH", DNAME, 1, 300, 2) + b"\xc0\x0c"
                for number in range(count)
            ]
    if rng.random() < 0.3:
        return struct.pack("!HHHHHH", 1, flags, 0, len(pieces), 0, 0) + b"".join(pieces)
    return struct.pack("!HHHHHH", 1, flags, 1, len(pieces), 0, 0) + question + b"".join(pieces)
