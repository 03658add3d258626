"""The way through the columns of an envelope, answer by answer (docs/wire/batch.md).

Decides whether the columns fit each other, and which records belong to which RRset. What is an answer, `form` knows;
whose they are and whether they are taken, the codec.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cachebus.answer import RRset
from cachebus.codecs.form import MAX_LINKS, MAX_PACKED, Raw, Shape, split_names
from cachebus.wire.batch import HEAD_SIZE, ROW_SIZE, Columns, read_row

if TYPE_CHECKING:
    from mypy_extensions import i64

MAX_ROWS: Final = 4096
"""Different rows remembered. A row is type, TTL and numbers of records: all peers together send some hundreds."""
_CNAME: Final = 5
_LONGEST_TTL: Final = 0x7FFFFFFF


class Rows:
    """Reads rows, and remembers what they say: nearly every one came before, of another name."""

    def __init__(self, max_ttl: int) -> None:
        self._max_ttl = max_ttl
        self._known: dict[bytes, _Row] = {}

    def walk(self, columns: Columns) -> Walk | None:
        """The way through an envelope's answers; None where its columns do not fit each other."""
        names = split_names(columns.names)
        if names is None:
            return None
        rows = self._read(columns.rows)
        return Walk(rows, names, columns.rdatas) if _fit(columns, rows, names) else None

    def _read(self, column: bytes) -> list[_Row]:
        known = self._known
        rows: list[_Row] = []
        start: i64 = 0
        end: i64 = len(column)
        while start < end:
            data = column[start : start + ROW_SIZE]
            row = known.get(data)
            if row is None:
                if len(known) >= MAX_ROWS:
                    known.clear()
                row = known[data] = _Row(data, self._max_ttl)
            rows.append(row)
            start += ROW_SIZE
        return rows


class _Row:
    """One row of an envelope's RRsets, read."""

    __slots__ = ("named", "records", "shape", "signatures")

    def __init__(self, data: bytes, max_ttl: int) -> None:
        read = read_row(data)
        self.shape = Shape(read.type, read.ttl, max_ttl)
        self.records: i64 = read.records
        self.signatures: i64 = read.signatures
        self.named: i64 = read.named


class Walk:
    """A way through the columns of an envelope, answer by answer, once they are known to fit each other."""

    __slots__ = ("_name", "_names", "_rdata", "_rdatas", "_row", "_rows", "ttl")

    def __init__(self, rows: list[_Row], names: list[bytes], rdatas: list[bytes]) -> None:
        self._rows = rows
        self._names = names
        self._rdatas = rdatas
        self._row: i64 = 0
        self._name: i64 = 0
        self._rdata: i64 = 0
        self.ttl: i64 = 0
        """The smallest in the chain that `usual` gave last."""

    def name(self) -> bytes:
        """The next name."""
        name = self._names[self._name]
        self._name += 1
        return name

    def usual(self, qname: bytes, qtype: i64, count: i64, learned: float, *, signed: bool) -> tuple[RRset, ...] | None:
        """The chain of the next `count` RRsets, proved right as `form.take_usual` does it; None, and none is passed."""
        row = self._rows[self._row]
        if count > 1:
            return self._aliases(qname, qtype, count, learned, signed=signed)
        if row.shape.type != qtype or row.named or (signed and not row.signatures):
            return None
        rrset = row.shape.rrset(qname, self._rdatas, self._rdata, row.records, row.signatures, learned)
        if rrset is None:
            return None
        self.ttl = rrset[2]
        self._row += 1
        self._rdata += row.records + row.signatures
        return (rrset,)

    def _aliases(
        self, qname: bytes, qtype: i64, count: i64, learned: float, *, signed: bool
    ) -> tuple[RRset, ...] | None:
        if count > MAX_LINKS:
            return None
        at = self._rdata
        room: i64 = MAX_PACKED
        least: i64 = _LONGEST_TTL
        owner = qname
        chain: tuple[RRset, ...] = ()
        for row in self._rows[self._row : self._row + count]:
            count -= 1
            rrtype: i64 = row.shape.type
            if row.named or (signed and not row.signatures):
                return None
            if rrtype != qtype if not count else rrtype != _CNAME or rrtype == qtype or row.records > 1:
                return None
            for link in chain:
                if link[0] == owner:
                    return None
            rrset = row.shape.rrset(owner, self._rdatas, at, row.records, row.signatures, learned)
            if rrset is None:
                return None
            chain += (rrset,)
            room -= len(rrset[3]) + len(rrset[4])
            least = min(least, rrset[2])
            if count:
                owner = self._rdatas[at].lower()
            at += row.records + row.signatures
        if room < 0:
            return None
        self.ttl = least
        self._row += len(chain)
        self._rdata = at
        return chain

    def raw(self, qname: bytes, count: i64) -> list[Raw]:
        """The next `count` RRsets as they came: of the answer to the question for `qname`."""
        raw: list[Raw] = []
        expected = qname
        for row in self._rows[self._row : self._row + count]:
            owner = self.name() if row.named else expected
            after = self._rdata + row.records
            end = after + row.signatures
            rdatas = self._rdatas[self._rdata : after]
            raw.append((owner, row.shape.type, row.shape.ttl, rdatas, self._rdatas[after:end]))
            if row.shape.type == _CNAME:
                expected = rdatas[0].lower()
            self._rdata = end
        self._row += count
        return raw


def _fit(columns: Columns, rows: list[_Row], names: list[bytes]) -> bool:
    """Whether the columns are as long as they say of each other."""
    heads = columns.heads
    records: i64 = 0
    named: i64 = 0
    for row in rows:
        # No answer and no RRset is empty: else some bytes, compressed, would cost as much as a whole envelope.
        if row.named > 1 or not row.records:
            return False
        records += row.records + row.signatures
        named += row.named
    at: i64 = 1
    end: i64 = len(heads)
    sets: i64 = 0
    while at < end:
        count: i64 = heads[at]
        if not count:
            return False
        sets += count
        at += HEAD_SIZE
        named += 1
    return sets == len(rows) and records == len(columns.rdatas) and named == len(names)
