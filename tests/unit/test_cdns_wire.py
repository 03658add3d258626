"""C-DNS blocks, byte by byte, against the RFC's CDDL, and both ways of reading them against each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cbor2
import pytest

from cachebus.answer import Answer, Evidence
from cachebus.cli.bench_trace import trace
from cachebus.errors import FrameError
from cachebus.wire import cdns_read, rrtypes
from cachebus.wire.cdns import MAX_BLOCK_ITEMS, file_preamble
from cachebus.wire.cdns_read import BusBlock, read_bus_block
from cachebus.wire.cdns_write import BLOCK_OVERHEAD, BlockHead, most_bytes, write_block, write_hello
from tests.cdns_bed import NOW, address, answer, codec, loads, rrset, schema, some_answers, without_private_keys

HEAD = BlockHead(5, 7, 1_800_000_000_250, "test")

SMALL = (
    "a4"  # Block: four keys
    "00a6 3863 1a00000000 0082 1a6b49d200 00"  # BlockPreamble: length, earliest time
    "3864 1b0000000000000005 3865 1b0000000000000007 3866 1b000001a3185c50fa 3867 6474657374"
    "01a3 0001 0101 0301"  # BlockStatistics: processed, items, unmatched responses
    "02a5"  # BlockTables
    "01990001 a2 00190001 0101"  # classtype: A IN
    "02990002 510377777707 6578616d706c6503636f6d00 44c0000201"  # name-rdata: the name, the address
    "03990001 a6 0302 0402 06194000 0800 0901 1000"  # qr-sig: resolver, response, AA, A, one, NOERROR
    "06990001 81190000"  # rrlist: one list of record 0
    "07990001 a4 00190000 0100 021a0000012c 03190001"  # rr: name 0, A, TTL 300, RDATA 1
    "03990001 a5 001a00000000 0400 07190000 0aa1386302 0ca101190000"  # item: offset, sig, name, level, list
)  # fmt: skip
LENGTH = len(bytes.fromhex(SMALL))


def small() -> bytes:
    block = bytearray.fromhex(SMALL)
    block[6:10] = len(block).to_bytes(4, "big")
    return bytes(block)


def read(block: bytes) -> BusBlock:
    return read_bus_block(b"before" + block, 6, 1000)


def test_a_small_block_byte_by_byte() -> None:
    assert write_block(HEAD, [address()]).hex() == small().hex()


def test_the_documented_example() -> None:
    text = (Path(__file__).parents[2] / "docs" / "wire" / "cdns.md").read_text()
    lines = [line.partition(";")[0] for line in text.splitlines() if line.startswith("    ") and ";" in line]
    assert bytes.fromhex("".join(lines)) == small()


def test_what_it_reads_as() -> None:
    name = b"\3www\7example\3com\0"
    block = read(small())
    assert block.head == HEAD
    assert (block.parameters, block.earliest, block.policy) == (0, 1_800_000_000_000, "")
    assert block.names == [name]
    assert block.items == [(2, False, 0, name, 1, [(name, 1, 300, [b"\xc0\0\2\1"], [])])]


def test_the_preamble_says_what_is_stored() -> None:
    preamble = loads(file_preamble("alpha", "cachebus/0") + b"\x80")
    assert preamble[0] == "C-DNS"
    assert preamble[2] == []
    said = preamble[1]
    assert {key: said[key] for key in (0, 1, 2)} == {0: 1, 1: 0, 2: 1}
    (parameters,) = said[3]
    assert parameters[1] == {8: "cachebus/0", 9: "alpha"}
    storage = parameters[0]
    assert (storage[0], storage[1], storage[3], storage[5]) == (1000, MAX_BLOCK_ITEMS, [0], 4)
    assert {rrtypes.A, rrtypes.AAAA, rrtypes.RRSIG, rrtypes.HTTPS} <= {*storage[4]}
    assert rrtypes.OPT not in storage[4]


def test_every_field_written_is_hinted_at() -> None:
    message = codec().encode(some_answers(), NOW)[0][0]
    _, said, (block,) = loads(message)
    hints = said[3][0][0][2]
    tables = block[2]
    of_items = {0: 0, 4: 4, 7: 7, 10: 10, 12: 15}  # key -> hint (RFC 8618 sections 7.4.1.1.1 and 7.6)
    assert {of_items[key] for item in block[3] for key in item} == {bit for bit in range(32) if hints[0] >> bit & 1}
    of_signatures = {3: 3, 4: 4, 6: 6, 8: 8, 9: 9, 16: 16}
    found = {of_signatures[key] for signature in tables[3] for key in signature}
    assert found == {bit for bit in range(32) if hints[1] >> bit & 1}
    assert all({*record} == {0, 1, 2, 3} for record in tables[7])
    assert hints[2:] == [3, 0] if isinstance(hints, list) else (hints[2], hints[3]) == (3, 0)


@pytest.mark.parametrize("answers", [some_answers(), trace(200, NOW, origin="alpha"), []])
def test_the_rfc_s_cddl(answers: list[Answer]) -> None:
    sender = codec()
    message = sender.encode(answers, NOW)[0][0] if answers else sender.hello(NOW)
    schema().validate_cbor(cbor2.dumps(without_private_keys(loads(message))))
    schema(private=True).validate_cbor(message)


def test_the_cddl_finds_what_is_wrong() -> None:
    value = loads(codec().encode([address()], NOW)[0][0])
    value[2][0][2][7][0][2] = "300"
    with pytest.raises(Exception, match="uint"):
        schema(private=True).validate_cbor(cbor2.dumps(value))


def test_what_other_readers_see() -> None:
    """Every answer can be read from the standard keys alone, with the flags that say what its evidence is."""
    answers = some_answers()
    _, _, (block,) = without_private_keys(loads(codec().encode(answers, NOW)[0][0]))
    tables = block[2]
    earliest = block[0][0][0] + block[0][0][1] / 1000
    for item, given in zip(block[3], answers, strict=True):
        signature = tables[3][item[4]]
        assert (signature[3], signature[4], signature[16]) == (2, 2, 0)
        validated = given.evidence is Evidence.VALIDATED
        assert signature[6] == (1 << 9 if validated else 1 << 14)
        assert tables[1][signature[8]] == {0: given.qtype, 1: 1}
        assert tables[2][item[7]] == given.qname
        assert earliest + item[0] / 1000 == pytest.approx(given.learned)
        assert item[10] == {}
        records = [tables[7][index] for index in tables[6][item[12][1]]]
        assert {tables[2][record[0]] for record in records} == {rrset.owner for rrset in given.rrsets}
        assert [record[2] for record in records if tables[1][record[1]][0] == given.qtype][-1] == given.rrsets[-1].ttl


def _long(block: bytes) -> BusBlock:
    return cdns_read._long_way(b"before" + block, 6, 1000)


def test_both_ways_read_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    block = write_block(HEAD, trace(300, NOW))
    long = _long(block)

    def never(data: bytes, start: int, ticks: int) -> BusBlock:
        raise AssertionError("a block of ours went the long way")

    monkeypatch.setattr(cdns_read, "_long_way", never)
    usual = read(block)
    assert usual._replace(names=sorted(usual.names)) == long._replace(names=sorted(long.names))
    assert read(write_hello(HEAD, "abc")).policy == "abc"


@pytest.mark.parametrize("count", [24, 300])
def test_many_types_take_the_long_way_and_arrive(count: int) -> None:
    answers = [answer(rrset(f"n{n}.test.", 1000 + n, b"x"), qtype=1000 + n) for n in range(count)]
    found = read(write_block(HEAD, answers))
    assert [item[4] for item in found.items] == [1000 + n for n in range(count)]
    assert [item[3] for item in found.items] == [one.qname for one in answers]


def test_an_answer_learned_long_before_the_others() -> None:
    found = read(write_block(HEAD, [address(), address("old.test.", age=60.0 * 86400)]))
    assert [item[2] for item in found.items] == [60 * 86_400_000, 0]


def test_the_smallest_ttl_of_an_rrset_counts() -> None:
    value = loads(write_block(HEAD, [answer(rrset("a.test.", rrtypes.A, b"\1\1\1\1", b"\2\2\2\2", ttl=9))]))
    value[2][7][1][2] = 4
    del value[0][-100]
    assert read(cbor2.dumps(value)).items[0][5][0][2] == 4


def test_sizes_are_bounded_from_above() -> None:
    for one in [*some_answers(), *trace(300, NOW)]:
        assert len(write_block(HEAD, [one])) <= BLOCK_OVERHEAD + most_bytes(one)
    answers = trace(600, NOW)
    assert len(write_block(HEAD, answers)) <= BLOCK_OVERHEAD + sum(map(most_bytes, answers))


# What is refused: each change to a right block, by what the block says

PREAMBLE, STATISTICS, TABLES, ITEMS = range(4)


def set_at(value: Any, path: tuple[Any, ...], new: Any) -> None:
    for key in path[:-1]:
        value = value[key]
    if new is None:
        del value[path[-1]]
    else:
        value[path[-1]] = new


@pytest.mark.parametrize(
    ("path", "new", "reason"),
    [
        ((PREAMBLE,), [], "map belongs"),
        ((PREAMBLE, -100), 999, "another length"),
        ((PREAMBLE, 0), None, "earliest time"),
        ((PREAMBLE, 0), [1, -1], "earliest time"),
        ((PREAMBLE, 0), [1], "earliest time"),
        ((PREAMBLE, -101), None, "unsigned integer"),
        ((PREAMBLE, -102), "7", "unsigned integer"),
        ((PREAMBLE, -103), True, "unsigned integer"),
        ((PREAMBLE, -104), b"test", "text belongs"),
        ((STATISTICS, -100), 5, "text belongs"),
        ((STATISTICS,), 5, "map belongs"),
        ((TABLES,), None, "index leads nowhere"),
        ((TABLES, 1), 5, "array belongs"),
        ((TABLES, 1, 0), 5, "map belongs"),
        ((TABLES, 1, 0, 1), 3, "class other than IN"),
        ((TABLES, 1, 0, 0), 65536, "16 bits"),
        ((TABLES, 2, 0), "www", "byte string"),
        ((TABLES, 3, 0, 8), 1, "index leads nowhere"),
        ((TABLES, 3, 0, 16), 3, "RCODE"),
        ((TABLES, 6, 0, 0), 1, "index leads nowhere"),
        ((TABLES, 6, 0, 0), -1, "index belongs"),
        ((TABLES, 6, 0, 0), "0", "index belongs"),
        ((TABLES, 7, 0, 0), 2, "index leads nowhere"),
        ((TABLES, 7, 0, 1), 1, "index leads nowhere"),
        ((TABLES, 7, 0, 2), None, "unsigned integer"),
        ((TABLES, 7, 0, 2), 1 << 32, "32 bits"),
        ((TABLES, 7, 0, 3), None, "unsigned integer"),
        ((TABLES, 7, 0, 3), 2, "index leads nowhere"),
        ((TABLES, 1, 0, 0), 46, "RRSIG stands apart"),
        ((ITEMS, 0, 4), 1, "index leads nowhere"),
        ((ITEMS, 0, 4), None, "unsigned integer"),
        ((ITEMS, 0, 7), 2, "index leads nowhere"),
        ((ITEMS, 0, 10), None, "map belongs"),
        ((ITEMS, 0, 10, -100), None, "unsigned integer"),
        ((ITEMS, 0, 12, 1), 1, "index leads nowhere"),
        ((ITEMS, 0, 12), None, "map belongs"),
        ((ITEMS, 0), [], "map belongs"),
        ((ITEMS,), {}, "array belongs"),
    ],
)
def test_refused(path: tuple[Any, ...], new: Any, reason: str) -> None:
    value = loads(small())
    if path[:2] != (PREAMBLE, -100):
        del value[0][-100]
    set_at(value, path, new)
    with pytest.raises(FrameError, match=reason):
        read(cbor2.dumps(value))


@pytest.mark.parametrize("at", range(LENGTH))
def test_each_byte_changed_reads_alike_both_ways(at: int) -> None:
    """The short way takes nothing that the long way would not, and nothing else."""
    for change in (1, 0x80, 0xFF):
        block = bytearray(small())
        block[at] ^= change
        outcomes = []
        for way in (read, _long):
            try:
                found = way(bytes(block))
            except FrameError:
                outcomes.append(None)
            else:
                outcomes.append(found._replace(names=sorted(set(found.names))))
        assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("length", range(LENGTH))
def test_cut_anywhere(length: int) -> None:
    with pytest.raises(FrameError):
        read(small()[:length])


def test_nothing_may_follow() -> None:
    with pytest.raises(FrameError):
        read(small() + b"\0")
    with pytest.raises(FrameError):
        read(write_hello(HEAD, "") + b"\0")


def test_unknown_keys_and_other_forms_are_read() -> None:
    value = loads(small())
    del value[0][-100]
    value[0][77] = value[1][-200] = value[2][-5] = {1: [1.5, "x"]}
    value[3][0][99] = value[2][7][0][-1] = b"unknown"
    again = read(cbor2.dumps(dict(reversed(value.items()))))
    assert again == read(small())


def test_too_many_items() -> None:
    value = loads(small())
    del value[0][-100]
    value[3] *= MAX_BLOCK_ITEMS
    assert len(read(cbor2.dumps(value)).items) == MAX_BLOCK_ITEMS
    value[3] *= 2
    with pytest.raises(FrameError, match="too many items"):
        read(cbor2.dumps(value))


def test_a_block_that_stands_for_too_much() -> None:
    """One list of two large records, meant by a thousand items, in a form that goes the long way."""
    value = loads(write_block(HEAD, [answer(rrset("a.test.", rrtypes.TXT, bytes(9000), bytes(8999)), qtype=16)]))
    del value[0][-100]
    value[3] *= 400
    assert len(read(cbor2.dumps(value)).items) == 400
    value[3] *= 2
    with pytest.raises(FrameError, match="stands for too much"):
        read(cbor2.dumps(value))


def test_the_usual_form_is_bounded_too() -> None:
    large = answer(rrset("a.test.", rrtypes.TXT, bytes(60_000)), qtype=16)
    block = write_block(HEAD, [large] * 500)
    assert len(block) < 100_000
    assert len(read(write_block(HEAD, [large] * 100)).items) == 100
    with pytest.raises(FrameError, match="stands for too much"):
        read(block)


def test_tables_may_be_empty() -> None:
    value = loads(small())
    del value[0][-100]
    value[2], value[3] = {1: [], 2: [], 3: [], 6: [], 7: []}, []
    assert read(cbor2.dumps(value)).items == []
    block = small()
    empty = b"\x02\xa5" + b"".join(bytes((key,)) + b"\x99\0\0" for key in (1, 2, 3, 6, 7)) + b"\x03\x99\0\0"
    block = block[: block.index(b"\x02\xa5")] + empty
    assert read(block[:6] + len(block).to_bytes(4, "big") + block[10:]).items == []
