"""Whatever an answer holds, the dump has exactly its records, or the answer is refused: nothing can be injected."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachebus.answer import Answer, Evidence, RRset
from cachebus.errors import MessageError
from cachebus.unbound.dump import MAX_LINE, compose, dump
from cachebus.wire import rrtypes
from cachebus.wire.message import pack

NOW = 1_800_000_000.0
_NASTY = b'\n\r\0 ";\\.()$@\t'
_OWNER = r"(?:\.|(?:(?:[A-Za-z0-9_-]|\\[0-2][0-9]{2})+\.)+)"
_LINES = [
    re.compile(text)
    for text in (
        r"START_RRSET_CACHE|END_RRSET_CACHE|START_MSG_CACHE|END_MSG_CACHE|EOF",
        r";rrset \d+ \d+ \d+ 5 [035]",
        _OWNER + r" \d+ IN TYPE\d+ \\# \d+ [0-9a-f]*",
        r"msg " + _OWNER + r" IN TYPE\d+ 32896 1 \d+ [035] \d+ 0 0 -1",
        _OWNER + r" IN TYPE\d+ 0",
    )
]

labels = st.lists(
    st.one_of(st.binary(min_size=1, max_size=20), st.lists(st.sampled_from(_NASTY), min_size=1, max_size=8).map(bytes)),
    max_size=6,
)
names = labels.map(lambda found: b"".join(bytes([len(label)]) + label for label in found) + b"\0")
opaque_types = st.sampled_from([rrtypes.TXT, rrtypes.HTTPS, 257, 65280])
rdatas = st.lists(st.one_of(st.binary(max_size=64), st.just(b'\x0a";\n\\\0msg x')), min_size=1, max_size=4)
evidences = st.sampled_from(Evidence)


def _answer(qname: bytes, qtype: int, rrsets: tuple[RRset, ...], evidence: Evidence) -> Answer:
    return Answer(qname, qtype, rrsets, evidence, "node-a", NOW, True, "lan", "key")


def _check(text: bytes) -> None:
    assert text.isascii()
    assert text.endswith(b"\nEOF\n")
    for line in text.decode("ascii").removesuffix("\n").split("\n"):
        assert len(line) <= MAX_LINE
        assert any(pattern.fullmatch(line) for pattern in _LINES), line


def _unescape(text: str) -> bytes:
    wire = bytearray()
    for label in text.removesuffix(".").split(".") if text != "." else []:
        raw = re.sub(r"\\(\d{3})", lambda found: chr(int(found[1])), label).encode("latin-1")
        wire += bytes([len(raw)]) + raw
    return bytes(wire) + b"\0"


@pytest.mark.property
@given(names, opaque_types, rdatas, evidences)
def test_any_name_and_opaque_rdata_come_out_as_they_went_in(
    qname: bytes, qtype: int, data: list[bytes], evidence: Evidence
) -> None:
    rrset = RRset(qname, qtype, 300, pack(qtype, 0, data))
    entry = compose(_answer(qname, qtype, (rrset,), evidence), NOW)
    assert entry is not None
    text = dump([entry])
    _check(text)
    records = [line.split(" ") for line in text.decode("ascii").split("\n") if " \\# " in line]
    assert [bytes.fromhex(record[-1]) for record in records] == list(dict.fromkeys(data))
    assert {_unescape(record[0]) for record in records} == {qname}
    assert {(record[3], int(record[5])) for record in records} == {(f"TYPE{qtype}", len(item)) for item in data}


@pytest.mark.property
@given(
    names,
    st.integers(0, 65535),
    st.lists(st.tuples(st.binary(max_size=30), st.integers(0, 65535), st.binary(max_size=60))),
    evidences,
)
def test_any_answer_gives_lines_of_the_format_or_is_refused(
    qname: bytes, qtype: int, parts: list[tuple[bytes, int, bytes]], evidence: Evidence
) -> None:
    rrsets = tuple(RRset(owner, rrtype, 300, packed) for owner, rrtype, packed in parts)
    try:
        entry = compose(_answer(qname, qtype, rrsets, evidence), NOW)
    except MessageError:
        return
    assert entry is not None
    _check(dump([entry]))


@st.composite
def mutated(draw: st.DrawFn) -> Answer:
    """A valid chain of three RRsets with some bytes of it changed."""
    end = draw(names)
    rrsets = [
        RRset(b"\1d\0", rrtypes.DNAME, 300, pack(rrtypes.DNAME, 0, [b"\1e\0"]), b""),
        RRset(b"\1x\1d\0", rrtypes.CNAME, 300, pack(rrtypes.CNAME, 0, [b"\1x\1e\0"])),
        RRset(b"\1x\1e\0", rrtypes.CNAME, 300, pack(rrtypes.CNAME, 0, [end])),
        RRset(end, rrtypes.MX, 300, pack(rrtypes.MX, 0, [b"\0\1" + end, b"\0\2\0"])),
    ]
    for _ in range(draw(st.integers(0, 2))):
        index = draw(st.integers(0, 3))
        field = draw(st.sampled_from(["owner", "rrs"]))
        raw = bytearray(getattr(rrsets[index], field))
        raw[draw(st.integers(0, len(raw) - 1))] = draw(st.integers(0, 255))
        rrsets[index] = rrsets[index]._replace(**{field: bytes(raw)})
    return _answer(b"\1x\1d\0", rrtypes.MX, tuple(rrsets), draw(evidences))


@pytest.mark.property
@given(mutated())
def test_a_mutated_chain_gives_lines_of_the_format_or_is_refused(answer: Answer) -> None:
    try:
        entry = compose(answer, NOW)
    except MessageError:
        return
    assert entry is not None
    _check(dump([entry]))
