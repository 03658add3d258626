"""Whatever stands in a dump: what was written with an answer's names and bytes is read as them, all else refused."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachebus.answer import Answer, Evidence, RRset
from cachebus.errors import FrameError, MessageError
from cachebus.unbound.dump import TRUST, compose, dump
from cachebus.unbound.reader import MIN_TRUST, DumpReader, to_message
from cachebus.wire.message import pack, parse, records

NOW = 1_800_000_000.0
OPAQUE = 65280
LINES = [
    b"START_RRSET_CACHE", b"END_RRSET_CACHE", b"START_MSG_CACHE", b"END_MSG_CACHE", b"EOF", b";rrset 9 1 0 8 2",
    b"www.test.\t9\tIN\tA\t192.0.2.1", b"msg www.test. IN A 32896 1 9 2 1 0 0", b"www.test. IN A 0", b"",
]  # fmt: skip

labels = st.lists(st.binary(min_size=1, max_size=20), max_size=6)
names = labels.map(lambda found: b"".join(bytes([len(label)]) + label for label in found) + b"\0")
rdatas = st.lists(st.binary(max_size=64), min_size=1, max_size=4, unique=True)


@pytest.mark.property
@given(names, rdatas, st.integers(1, 2000))
def test_what_is_filled_could_be_read_again(name: bytes, found: list[bytes], step: int) -> None:
    """The text that fills an Unbound is read as it was meant; only its trust keeps it from being shared again."""
    owner = name.lower()
    rrset = RRset(owner, OPAQUE, 300, pack(OPAQUE, 300, found))
    entry = compose(Answer(owner, OPAQUE, (rrset,), Evidence.CONFIRMED, "a", NOW, True), NOW)
    assert entry is not None
    text = dump([entry])
    assert not read(text, step).entries
    reader = read(text.replace(b" %d 3\n" % TRUST, b" %d 3\n" % MIN_TRUST), step)
    message = parse(to_message(reader.entries[0], 0))
    assert (message.qname, message.qtype) == (owner, OPAQUE)
    assert [rdata for _, _, rdata in records(message.answer[0].rrs)] == found


def read(text: bytes, step: int) -> DumpReader:
    reader = DumpReader(max_bytes=1 << 20)
    for at in range(0, len(text), step):
        reader.receive_data(text[at : at + step])
    reader.receive_end()
    return reader


@pytest.mark.property
@given(st.lists(st.one_of(st.sampled_from(LINES), st.binary(max_size=40)), max_size=20))
def test_any_lines_give_answers_or_the_documented_errors(lines: list[bytes]) -> None:
    reader = DumpReader(max_bytes=10_000)
    with contextlib.suppress(FrameError):
        reader.receive_data(b"\n".join(lines))
        reader.receive_end()
    for entry in reader.entries:
        with contextlib.suppress(MessageError):
            parse(to_message(entry, 0))
