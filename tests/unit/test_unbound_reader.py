"""What is read of Unbound's dump: each line that counts, each that does not, and the messages made of them."""

from __future__ import annotations

import dns.flags
import dns.message
import pytest

from cachebus.errors import FrameError, MessageError
from cachebus.unbound.reader import MAX_LINE, MAX_RECORDS, OVERHEAD, DumpReader, Entry, Security, to_message

WWW = ";rrset 300 2 0 8 2\nwww.test.\t300\tIN\tA\t192.0.2.1\nwww.test.\t300\tIN\tA\t192.0.2.2"
ALIAS = ";rrset 200 1 0 8 3\nalias.test.\t200\tIN\tCNAME\tWWW.test."
MESSAGE = "msg www.test. IN A 32896 1 300 2 1 0 0\nwww.test. IN A 0"
CHAIN = "msg alias.test. IN A 32896 1 200 3 2 0 0 -1\nalias.test. IN CNAME 0\nwww.test. IN A 0"


def text_of(rrsets: str, messages: str) -> bytes:
    return f"START_RRSET_CACHE\n{rrsets}\nEND_RRSET_CACHE\nSTART_MSG_CACHE\n{messages}\nEND_MSG_CACHE\nEOF\n".encode()


def read(rrsets: str, messages: str, *, max_bytes: int = 1 << 20) -> DumpReader:
    reader = DumpReader(max_bytes=max_bytes)
    reader.receive_data(text_of(rrsets, messages))
    reader.receive_end()
    return reader


def only(reader: DumpReader) -> Entry:
    (entry,) = reader.entries
    return entry


def test_a_message_and_its_records() -> None:
    entry = only(read(WWW, MESSAGE))
    assert (entry.qname, entry.qtype, entry.security) == (b"www.test.", b"A", Security.INDETERMINATE)
    message = dns.message.from_wire(to_message(entry, 100.9))
    assert message.flags == dns.flags.QR | dns.flags.RA
    assert [rrset.to_text() for rrset in message.answer] == [
        "www.test. 200 IN A 192.0.2.1\nwww.test. 200 IN A 192.0.2.2"
    ]


def test_a_chain_keeps_its_order_and_the_case_of_its_rdata() -> None:
    entry = only(read(f"{WWW}\n{ALIAS}", CHAIN))
    message = dns.message.from_wire(to_message(entry, 0))
    assert [rrset.to_text().splitlines()[0] for rrset in message.answer] == [
        "alias.test. 200 IN CNAME WWW.test.",
        "www.test. 300 IN A 192.0.2.1",
    ]
    assert entry.security is Security.INDETERMINATE  # the weakest of three


def test_byte_by_byte_gives_the_same() -> None:
    whole = text_of(f"{WWW}\n{ALIAS}", f"{MESSAGE}\n{CHAIN}")
    reader = DumpReader(max_bytes=1 << 20)
    for byte in whole:
        reader.receive_data(bytes((byte,)))
    reader.receive_end()
    assert list(reader.entries) == list(read(f"{WWW}\n{ALIAS}", f"{MESSAGE}\n{CHAIN}").entries)


@pytest.mark.parametrize(
    ("rrsets", "messages", "counted"),
    [
        (WWW, MESSAGE.replace("32896", "32899"), "not_positive"),  # NXDOMAIN
        (WWW, MESSAGE.replace("32896", "32898"), "not_positive"),  # SERVFAIL
        (WWW, MESSAGE.replace("32896", "32912"), "not_positive"),  # CD=1
        (WWW, MESSAGE.replace("32896", "33408"), "not_positive"),  # TC=1
        (WWW, MESSAGE.replace("32896", "128"), "not_positive"),  # QR=0
        (WWW, MESSAGE.replace("300 2 1 0 0", "300 2 0 1 0"), "not_positive"),  # NODATA
        (WWW, MESSAGE.replace("IN A 32896", "CH A 32896"), "not_positive"),
        (WWW, MESSAGE.replace("32896 1", "32896 2"), "not_positive"),
        (WWW, MESSAGE.replace("300 2 1", "300 6 1"), "not_positive"),
        (WWW, MESSAGE.replace("300 2 1 0 0", "300 2 2 0 0"), "incomplete"),
        (WWW, MESSAGE.replace("A 0", "A 2"), "incomplete"),  # the RRset of the parent's side of a cut
        (WWW, MESSAGE.replace("\nwww.test. IN A", "\nwww.test. IN AAAA"), "incomplete"),
        (WWW.replace("0 8 2", "0 5 2"), MESSAGE, "weak"),
        (WWW.replace("0 8 2", "0 7 2"), MESSAGE, "incomplete"),
        (f"{WWW}\n{WWW}", MESSAGE, "incomplete"),  # two of one key
        (WWW.replace(" 2 0 8", " 3 0 8"), MESSAGE, "incomplete"),  # a record is missing
        (WWW.replace(";rrset 300", ";rrset many"), MESSAGE, "incomplete"),
        (WWW.replace(" 2 0 8", f" {MAX_RECORDS} 1 8"), MESSAGE, "incomplete"),
    ],
)
def test_left_out_and_counted(rrsets: str, messages: str, counted: str) -> None:
    reader = read(rrsets, messages)
    assert not reader.entries
    assert reader.statistics()[counted] == 1


def test_apex_mark_is_known() -> None:
    assert only(read(WWW.replace(";rrset ", ";rrset nsec_apex "), MESSAGE))


def test_bogus_outweighs_everything() -> None:
    assert only(read(WWW.replace("0 8 2", "0 8 1"), MESSAGE.replace("300 2 1", "300 5 1"))).security is Security.BOGUS


def test_memory_is_bounded() -> None:
    bound = len(WWW) + OVERHEAD
    reader = read(f"{WWW}\n{ALIAS}", f"{MESSAGE}\n{CHAIN}", max_bytes=bound)
    assert reader.statistics()["too_much"] == 2  # the second RRset, and the message of the first
    assert not reader.entries


@pytest.mark.parametrize(
    "data",
    [
        b"error no such command\n",
        b"START_RRSET_CACHE\nSTART_MSG_CACHE\nEOF\nEOF\nEND_RRSET_CACHE\nEOF\n",
        text_of(WWW, MESSAGE) + b"more\n",
        b"START_RRSET_CACHE\n" + b"x" * (MAX_LINE + 1),
    ],
)
def test_what_is_no_dump_is_refused(data: bytes) -> None:
    with pytest.raises(FrameError):
        DumpReader(max_bytes=1 << 20).receive_data(data)


def test_a_dump_that_is_cut_is_refused() -> None:
    reader = DumpReader(max_bytes=1 << 20)
    reader.receive_data(text_of(WWW, MESSAGE)[:-5])
    with pytest.raises(FrameError, match="cut short"):
        reader.receive_end()


@pytest.mark.parametrize(
    "line",
    [
        "www.test. 300 IN A 192.0.2.256",
        "www.test. 300 IN A 192.0.2.1 192.0.2.2",
        "www.test. 300 IN TYPE65536 \\# 0",
        "www.test. 300 IN A \\# 3 c00002",
        "www.test. 300 IN MX 10",
        "www.test. 300 IN NOSUCH x",
        "www.test. 300 IN TYPE7 \\# 2 c00c",  # MB: a name, here a pointer into whatever would stand before it
        "www.test. 300 IN TYPE7 \\# 3 413030",
        "www.test. 300 IN OPT \\# 0",
        "www.test. 300 IN TSIG \\# 0",
        "www\\999.test. 300 IN A 192.0.2.1",
        "www.test 300 IN A 192.0.2.1",
        "BADRR",
    ],
)
def test_a_record_that_is_none_is_refused(line: str) -> None:
    reader = read(WWW.rpartition("\n")[0] + f"\n{line}", MESSAGE)
    with pytest.raises(MessageError):
        to_message(only(reader), 0)


def test_nothing_left_of_a_ttl() -> None:
    entry = only(read(WWW, MESSAGE))
    with pytest.raises(MessageError, match="left"):
        to_message(entry, 300)
    assert to_message(entry, 299)


def test_more_than_a_message_holds() -> None:
    long = "x.test.\t9\tIN\tTYPE65300\t\\# 40000 " + "00" * 40_000
    rrset = f";rrset 9 2 0 8 2\n{long}\n{long}"
    reader = read(rrset, "msg x.test. IN TYPE65300 32896 1 9 2 1 0 0\nx.test. IN TYPE65300 0")
    with pytest.raises(MessageError, match="longer"):
        to_message(only(reader), 0)
