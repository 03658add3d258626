"""`convert`: captures there and back, what is not carried over, files that are cut or large, and what others read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import cbor2
import dns.message
import dns.rrset
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from cachebus.cli import main
from cachebus.cli.convert import convert
from cachebus.sources.file import Format, open_capture, recognise
from cachebus.wire.cdns_capture import LEFT_OUT, MAX_ITEMS, CdnsFileWriter, Lost, preamble
from cachebus.wire.cdns_messages import CdnsFileReceiver
from cachebus.wire.dnstap import Frame, MessageType, SocketProtocol, decode, encode
from cachebus.wire.framestream import write_frames, write_messages
from tests.cdns_bed import schema

DATA = Path(__file__).parent.parent / "data"
CAPTURES = ["unbound", "unbound-evil", "unbound-uni", "bind", "pdns-recursor", "dnsdist", "kresd", "https65"]


def converted(source: Path, target: Path, *options: str) -> dict[str, Any]:
    result = CliRunner().invoke(convert, [str(source), str(target), "--json", *options])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert isinstance(found, dict)
    return found


def query(name: str, *, edns: bool = False) -> bytes:
    message = dns.message.make_query(name, "A", use_edns=0 if edns else False, want_dnssec=edns, id=7)
    return message.to_wire()


def frame(message: bytes, kind: MessageType = MessageType.CLIENT_QUERY, **more: Any) -> Frame:
    return decode(encode(kind, message, **more))


def read_back(*frames: Frame) -> list[Frame]:
    """What a reader finds in the C-DNS file of some frames."""
    writer = CdnsFileWriter()
    data = preamble("test") + b"".join(writer.add(one)[0] for one in frames) + writer.close()
    receiver = CdnsFileReceiver()
    found = [decode(payload) for payload in receiver.receive_data(data)]
    receiver.receive_end()
    return found


def same(one: Frame, other: Frame) -> bool:
    """Equal but for what `Lost` says (compression, a query's zone, the time of the other message) and rounding."""
    one = one._replace(query_time=0.0) if one.is_response else one._replace(response_time=0.0, query_zone=None)
    first, second = (dns.message.from_wire(found.message, one_rr_per_rrset=True) for found in (one, other))
    times = zip((one.query_time, one.response_time), (other.query_time, other.response_time), strict=True)
    return (
        first.to_text() == second.to_text()
        and one._replace(message=b"", query_time=0.0, response_time=0.0)
        == other._replace(message=b"", query_time=0.0, response_time=0.0)
        and all(abs(before - after) < 2e-6 for before, after in times)
    )


class TestThereAndBack:
    @pytest.mark.parametrize("name", CAPTURES)
    def test_a_real_capture_says_the_same_in_cdns(self, name: str, tmp_path: Path) -> None:
        source, between, back = DATA / f"{name}.dnstap", tmp_path / "a.cdns", tmp_path / "b.dnstap"
        there = converted(source, between)
        assert recognise(between) is Format.CDNS
        assert there["read"] == there["written"] + sum(there["left_out"].values())
        assert there["left_out"].keys() <= {"header"}
        assert converted(between, back)["written"] == there["written"]
        before = [one for one in map(decode, open_capture(source)) if bool(one.message[2] & 0x80) == one.is_response]
        after = [decode(payload) for payload in open_capture(back)]
        assert len(before) == len(after) == there["written"]
        assert all(same(one, other) for one, other in zip(before, after, strict=True))

    def test_only_the_evil_capture_has_what_no_item_says(self, tmp_path: Path) -> None:
        assert converted(DATA / "unbound-evil.dnstap", tmp_path / "a.cdns")["left_out"] == {"header": 8}

    def test_another_writer_s_file(self, tmp_path: Path) -> None:
        found = converted(DATA / "compactor-unbound.cdns", tmp_path / "a.dnstap")
        again = converted(tmp_path / "a.dnstap", tmp_path / "b.cdns")
        assert found["written"] == again["written"] > 40
        first = [decode(payload) for payload in open_capture(DATA / "compactor-unbound.cdns")]
        assert all(map(same, first, [decode(payload) for payload in open_capture(tmp_path / "b.cdns")]))

    def test_wire_there_and_back_is_byte_identical(self, tmp_path: Path) -> None:
        messages = [decode(payload).message for payload in open_capture(DATA / "bind.dnstap")]
        (tmp_path / "a.wire").write_bytes(b"".join(write_messages(messages)))
        there = converted(tmp_path / "a.wire", tmp_path / "b.dnstap")
        assert (there["lost"], there["written"]) == ({}, len(messages))
        back = converted(tmp_path / "b.dnstap", tmp_path / "c.wire")
        assert back["lost"] == {"metadata": len(messages)}
        assert (tmp_path / "c.wire").read_bytes() == (tmp_path / "a.wire").read_bytes()

    def test_the_file_keeps_to_the_rfc_s_cddl(self, tmp_path: Path) -> None:
        converted(DATA / "unbound.dnstap", tmp_path / "a.cdns")
        schema().validate_cbor(cbor2.dumps(cbor2.loads((tmp_path / "a.cdns").read_bytes())))


class TestWriter:
    def test_everything_about_a_message_comes_back(self) -> None:
        known = {
            "protocol": SocketProtocol.TCP,
            "query_address": b"\x20\x01" + b"\1" * 14,
            "query_port": 4711,
            "response_address": b"\x20\x01" + b"\2" * 14,
            "response_port": 53,
        }
        asked = frame(query("WwW.example.net", edns=True), MessageType.RESOLVER_QUERY, query_time=1.5e9, **known)
        reply = dns.message.make_response(dns.message.from_wire(asked.message), recursion_available=True)
        told = frame(
            reply.to_wire(), MessageType.RESOLVER_RESPONSE, response_time=1.5e9 + 0.25, query_zone=b"\3net\0", **known
        )
        assert read_back(asked, told) == [asked, told]

    @pytest.mark.parametrize(
        "kind", [one for one in MessageType if "UPDATE" not in one.name], ids=lambda kind: kind.name
    )
    def test_every_kind_that_cdns_knows(self, kind: MessageType) -> None:
        message = bytearray(query("example.net"))
        message[2] |= 0x80 * kind.is_response
        one = frame(bytes(message), kind)
        assert read_back(one) == [one]

    def test_several_questions(self) -> None:
        head = query("example.net")
        message = head[:5] + b"\2" + head[6:] + b"\3two\0\0\x1c\0\1"
        assert read_back(frame(message)) == [frame(message)]

    def test_no_question(self) -> None:
        message = b"\0\7\x84\x05" + bytes(8)
        one = frame(message, MessageType.AUTH_RESPONSE)
        assert read_back(one) == [one]

    @pytest.mark.parametrize(
        ("one", "lost"),
        [
            (frame(query("example.net"), MessageType.UPDATE_QUERY), Lost.KIND),
            (frame(query("example.net")[:-1]), Lost.MALFORMED),
            (frame(query("example.net"), MessageType.CLIENT_RESPONSE), Lost.HEADER),
            (frame(query("example.net"), protocol=SocketProtocol.DOQ), Lost.PROTOCOL),
        ],
    )  # fmt: skip
    def test_what_is_lost_is_said(self, one: Frame, lost: Lost) -> None:
        writer = CdnsFileWriter()
        assert writer.add(one) == (b"", [lost])
        assert (writer.flush() == b"") == (lost in LEFT_OUT)

    def test_blocks_are_bounded(self) -> None:
        frames = [frame(query(f"n{number}.example.net")) for number in range(MAX_ITEMS + 1)]
        writer = CdnsFileWriter()
        assert sum(bool(writer.add(one)[0]) for one in frames) == 1
        assert [one.message for one in read_back(*frames)] == [one.message for one in frames]

    def test_a_message_repeated_without_end_is_readable(self) -> None:
        reply = dns.message.make_response(dns.message.make_query("example.net", "TXT", id=1))
        reply.answer.append(
            dns.rrset.from_text_list("example.net.", 60, "IN", "TXT", [f'"{"x" * 200}{n}"' for n in range(40)])
        )
        one = frame(reply.to_wire(), MessageType.CLIENT_RESPONSE)
        assert len(read_back(*[one] * 3000)) == 3000

    @given(st.binary(max_size=200), st.integers(1, 12))
    def test_any_message_comes_back_or_is_said_to_be_lost(self, message: bytes, kind: int) -> None:
        try:
            one = frame(message, MessageType(kind))
        except Exception:  # noqa: BLE001 - dnstap has no place for it
            return
        writer = CdnsFileWriter()
        _, lost = writer.add(one)
        assert bool(set(lost) & LEFT_OUT) == (not writer.flush())


class TestVerb:
    def test_the_shape(self, tmp_path: Path) -> None:
        assert converted(DATA / "unbound.dnstap", tmp_path / "a.cdns") == {
            "from": "dnstap",
            "to": "cdns",
            "read": 48,
            "written": 48,
            "left_out": {},
            "lost": {"compression": 24, "other-time": 12, "query-zone": 12},
        }

    def test_for_people(self, tmp_path: Path) -> None:
        result = CliRunner().invoke(convert, [str(DATA / "bind.dnstap"), str(tmp_path / "a.wire")])
        assert result.stdout == "dnstap to wire: 20 read, 20 written\n      20  without: metadata\n"

    def test_formats_by_name(self, tmp_path: Path) -> None:
        converted(DATA / "bind.dnstap", tmp_path / "a.bin", "--from", "dnstap", "--to", "cdns")
        assert recognise(tmp_path / "a.bin") is Format.CDNS

    def test_what_is_no_dnstap_message_is_left_out(self, tmp_path: Path) -> None:
        good = encode(MessageType.CLIENT_QUERY, query("example.net"))
        (tmp_path / "a.dnstap").write_bytes(b"".join(write_frames([good, b"rubbish", good])))
        for target in ("b.cdns", "b.wire", "b.dnstap"):
            found = converted(tmp_path / "a.dnstap", tmp_path / target)
            assert (found["read"], found["written"], found["left_out"]) == (3, 2, {"unreadable": 1})

    @pytest.mark.parametrize("ending", ["cdns", "wire", "dnstap"])
    def test_of_a_cut_file_what_came_before(
        self, ending: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "cut.dnstap").write_bytes((DATA / "unbound.dnstap").read_bytes()[:3000])
        target = tmp_path / f"out.{ending}"
        assert main(["convert", str(tmp_path / "cut.dnstap"), str(target), "--json"]) == 1
        captured = capsys.readouterr()
        written = json.loads(captured.out)["written"]
        assert len(list(open_capture(target))) == written > 3
        assert "cut.dnstap: at byte" in captured.err

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["missing.dnstap", "a.cdns"], "No such file"),
            ([str(DATA / "bind.dnstap"), "a.pcap"], "name the format with --to"),
            ([str(DATA / "bind.dnstap"), "no/such/directory/a.cdns"], "No such file"),
        ],
    )
    def test_wrong_files(
        self, arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        monkeypatch.chdir(tmp_path)
        assert main(["convert", *arguments]) == 1
        assert words in capsys.readouterr().err
        assert list(tmp_path.iterdir()) == []

    def test_never_over_itself(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "a.dnstap").write_bytes((DATA / "bind.dnstap").read_bytes())
        (tmp_path / "b.cdns").symlink_to(tmp_path / "a.dnstap")
        assert main(["convert", str(tmp_path / "a.dnstap"), str(tmp_path / "b.cdns")]) == 1
        assert "is IN too" in capsys.readouterr().err

    def test_needs_no_more_memory_for_a_large_file(self, tmp_path: Path) -> None:
        """60,000 frames, some 12 MB of dnstap: a process that kept them could not end within 24 MiB of its start."""
        payload = encode(MessageType.CLIENT_QUERY, query("example.net") + b"", query_address=b"\1\2\3\4")
        padded = [
            encode(
                MessageType.CLIENT_QUERY, query(f"{'x' * 60}.{'y' * 60}.{number}.example.net"), query_time=1e9 + number
            )
            for number in range(2000)
        ]
        with (tmp_path / "a.dnstap").open("wb") as file:
            for piece in write_frames(one for _ in range(60) for one in (*padded, payload)):
                file.write(piece)
        grown = subprocess.run(
            [sys.executable, "-c", _MEASURE, tmp_path / "a.dnstap", tmp_path / "b.cdns"],
            capture_output=True, text=True, timeout=100, check=True,
        )  # fmt: skip
        assert int(grown.stdout) < 24 * 1024
        assert (tmp_path / "a.dnstap").stat().st_size > 11_000_000


_MEASURE = """
import resource, sys
from pathlib import Path
from cachebus.cli.convert import Conversion
from cachebus.sources.file import Format
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
assert Conversion(Format.DNSTAP, Format.CDNS).run(Path(sys.argv[1]), Path(sys.argv[2])) is None
print(peak() - before)
"""
