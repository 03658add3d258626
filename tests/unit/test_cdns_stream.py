"""C-DNS streams: framing and splitting, whole, in portions, cut and hostile."""

from __future__ import annotations

import cbor2
import pytest

from cachebus.errors import FrameError
from cachebus.wire.cdns import file_preamble
from cachebus.wire.cdns_stream import MAX_PREAMBLE, CdnsFraming, CdnsSplitter, PreambleReader
from cachebus.wire.cdns_write import MAX_BLOCK
from tests.cdns_bed import DATA, NOW, address, codec, loads, some_answers


def messages() -> list[bytes]:
    sender = codec()
    found = [sender.encode(some_answers(), NOW)[0][0], sender.hello(NOW)]
    return found + [sender.encode([address(number=number)], NOW)[0][0] for number in range(3)]


def stream(found: list[bytes]) -> bytes:
    framing = codec().framing
    return framing.opening() + b"".join(framing.frame(message) for message in found) + framing.closing()


def split(data: bytes, portion: int, splitter: CdnsSplitter | None = None) -> list[bytes]:
    splitter = splitter or CdnsSplitter()
    found: list[bytes] = []
    for at in range(0, len(data), portion):
        found += splitter.receive_data(data[at : at + portion])
    splitter.receive_end()
    return found


@pytest.mark.parametrize("portion", [1, 7, 1000, 1 << 20])
def test_a_stream_gives_the_messages_again(portion: int) -> None:
    found = messages()
    splitter = CdnsSplitter(closed=True)
    assert split(stream(found), portion, splitter) == found
    assert splitter.started
    assert splitter.finished
    assert not splitter.buffered
    assert splitter.data_to_send() == b""


def test_a_stream_is_one_c_dns_file() -> None:
    found = messages()
    _, preamble, blocks = loads(stream(found))
    for message, block in zip(found, blocks, strict=True):
        assert loads(message) == ["C-DNS", preamble, [block]]


def test_a_cut_stream_keeps_its_whole_blocks() -> None:
    found = messages()
    whole = stream(found)
    ends = [len(codec().framing.opening())]
    for message in found:
        ends.append(ends[-1] + len(codec().framing.frame(message)))
    for cut in range(len(whole)):
        splitter = CdnsSplitter()
        assert list(splitter.receive_data(whole[:cut])) == found[: sum(end <= cut for end in ends[1:])]
        if cut in ends:
            splitter.receive_end()
        else:
            with pytest.raises(FrameError, match="the stream ends"):
                splitter.receive_end()


def test_a_file_must_have_its_end() -> None:
    splitter = CdnsSplitter(closed=True)
    assert len(list(splitter.receive_data(stream(messages())[:-1]))) == 5
    with pytest.raises(FrameError, match="without the end"):
        splitter.receive_end()


@pytest.mark.parametrize("portion", [1, 100, 10_000])
def test_what_others_write_is_split(portion: int) -> None:
    data = (DATA / "compactor-unbound.cdns").read_bytes()
    value = loads(data)
    assert [loads(message) for message in split(data, portion)] == [value]
    twice = cbor2.dumps([*value[:2], value[2] * 2])
    assert [loads(message) for message in split(twice, portion, CdnsSplitter(closed=True))] == [value, value]
    many = cbor2.dumps([*value[:2], [{0: {}}] * 300])
    assert len(split(many, portion)) == 300


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x83\x65X", "not C-DNS"),
        (file_preamble("a", "b") + b"\xa0", "without blocks"),
        (file_preamble("a", "b") + b"\x9c", "without blocks"),
        (file_preamble("a", "b") + b"\x80\x00", "bytes after the end"),
        (file_preamble("a", "b") + b"\x9f\xff\xff", "bytes after the end"),
        (file_preamble("a", "b") + b"\x81\xff", "break"),
        (file_preamble("a", "b") + b"\x9f\xa2\0\xa6\x38\x63\x1a\0\0\0\1", "impossible length"),
        (file_preamble("a", "b") + b"\x9f\xa2\0\xa6\x38\x63\x1a\0\x20\0\0", "longer than"),
        (file_preamble("a", "b") + b"\x9f\x5a\x00\x20\x00\x00" + bytes(MAX_BLOCK), "longer than"),
        (
            b"\x83\x65C-DNS\xa4\0\1\1\0\2" + b"\x5a\0\2\0\0" + bytes(MAX_PREAMBLE),
            "preamble of a C-DNS file is too long",
        ),
        (b"\x83\x65C-DNS\x5a\0\2\0\0" + bytes(0x20000), "preamble of a C-DNS file is too long"),
        (b"\x83\x65C-DNS\xa2\0\2\1\0\x80", "another major version"),
        (b"\x83\x65C-DNS\xa3\0\1\1\0\3\x80\x80", "without block parameters"),
        (b"\x83\x65C-DNS\x80\x80", "map belongs"),
        (b"\x83\x65C-DNS\xff", "break"),
    ],
)
def test_refused(data: bytes, reason: str) -> None:
    splitter = CdnsSplitter()
    with pytest.raises(FrameError, match=reason):
        list(splitter.receive_data(data))
    for again in (lambda: list(splitter.receive_data(b"\0")), splitter.receive_end):
        with pytest.raises(FrameError, match=reason):
            again()
    assert not splitter.buffered


def test_a_later_minor_version_is_read() -> None:
    value = loads(messages()[0])
    value[1][1] = 3
    value[1][9] = "of that version"
    assert len(split(cbor2.dumps(value), 50)) == 1


def test_framing_refuses_what_is_not_its_own() -> None:
    framing = CdnsFraming("alpha", "x")
    with pytest.raises(FrameError, match="not a message"):
        framing.frame(b"\0\0")
    with pytest.raises(FrameError, match="longer than"):
        framing.frame(framing.before + bytes(MAX_BLOCK + 1))


def test_preambles_are_read_once() -> None:
    reader = PreambleReader()
    found = messages()
    first, start = reader.read(found[0])
    assert reader.read(found[1])[0] is first
    assert first[0].host == "alpha"
    other = CdnsFraming("beta", "x").before + b"\xa0"
    assert reader.read(other)[0][0].host == "beta"
    assert reader.read(found[0]) == (first, start)


@pytest.mark.parametrize("data", [b"", b"\x83\x65C-DNS", file_preamble("a", "b"), file_preamble("a", "b") + b"\x82"])
def test_not_a_message(data: bytes) -> None:
    with pytest.raises(FrameError):
        PreambleReader().read(data)


def test_openings_remembered_are_bounded() -> None:
    reader = PreambleReader()
    for number in range(1000):
        assert reader.read(CdnsFraming(f"n{number}", "x").before)[0][0].host == f"n{number}"
    assert len(reader._known) <= 256
