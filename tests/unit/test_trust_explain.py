"""`cachebus explain`: the lines of the contract, and what it does with wrong input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cachebus.answer import Refusal, RRset
from cachebus.cli import main
from cachebus.cli.present import records_to_text
from cachebus.presentation import name_from_text
from cachebus.wire.framestream import write_frames, write_messages
from cachebus.wire.message import pack
from tests.trust_frames import NOW, Lab, frame, message, rrsig

DATA = Path(__file__).parent.parent / "data"
KEY = "cachebus.test.:hmac-sha256:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
SIGNED = DATA / "unbound-pr1250-signed.hex"
SIGNED_AT = "1795238462"
WWW = "www.example.test."
A1 = f"{WWW} 300 A 192.0.2.1"


def explain(capsys: pytest.CaptureFixture[str], *arguments: str | Path, status: int = 0) -> list[dict[str, Any]]:
    """Run `explain --json`; gives its lines."""
    assert main(["explain", "--json", *map(str, arguments)]) == status
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def write(path: Path, payloads: list[bytes], *, dnstap: bool = True) -> Path:
    path.write_bytes(b"".join(write_frames(payloads) if dnstap else write_messages(payloads)))
    return path


@pytest.mark.parametrize("trust", ["authoritative", "confirmed", "confirmed,validated"])
def test_the_evil_capture(capsys: pytest.CaptureFixture[str], trust: str) -> None:
    *rows, last = explain(capsys, DATA / "unbound-evil.dnstap", "--trust", trust)
    assert [row["index"] for row in rows] == list(range(1, 102))
    accepted = {row["index"]: row for row in rows if row["verdict"] == "accepted"}
    assert accepted == {
        3: {
            "index": 3,
            "message": "RESOLVER_RESPONSE",
            "name": "ok.example.test.",
            "type": "A",
            "verdict": "accepted",
            "evidence": "confirmed",
            "reason": None,
            "answer": ["ok.example.test. 300 IN A 192.0.2.66"],
        },
        7: {
            "index": 7,
            "message": "RESOLVER_RESPONSE",
            "name": "oob.example.test.",
            "type": "A",
            "verdict": "accepted",
            "evidence": "confirmed",
            "reason": None,
            "answer": ["oob.example.test. 300 IN A 192.0.2.66"],
        },
    }
    assert rows[40]["reason"] == "question-mismatch"
    assert rows[40]["name"] == "other.victim.test."
    assert {row["message"] for row in rows if row["verdict"] == "context"} == {
        "CLIENT_QUERY",
        "CLIENT_RESPONSE",
        "RESOLVER_QUERY",
    }
    assert last == {
        "totals": {
            "accepted": 2,
            "refused": 29,
            "context": 70,
            "reasons": {"not-a-response": 8, "question-mismatch": 8, "rcode": 5, "truncated": 8},
        }
    }


def test_the_text_has_a_line_for_each_frame(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", str(DATA / "unbound.dnstap")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 48 + 1 + 2
    third = (
        "3 RESOLVER_RESPONSE accepted confirmed www.example.test. A <- "
        "www.example.test. 300 IN A 192.0.2.1 | www.example.test. 300 IN A 192.0.2.2"
    )
    assert " ".join(lines[2].split()) == third
    assert lines[48] == "total: 7 accepted, 5 refused, 36 context"


def test_rows_come_in_order_and_settle_while_a_long_file_is_read(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    frames = []
    for number in range(60):
        name = f"n{number}.example.test."
        frames += Lab(serial=number * 9, time=NOW + number).learned(name, "A", [f"{name} 300 A 192.0.2.1"])
    *rows, last = explain(capsys, write(tmp_path / "long.dnstap", frames))
    assert [row["index"] for row in rows] == list(range(1, 181))
    assert last["totals"]["accepted"] == 60


def test_a_chain_that_stops_shows_what_is_shared_of_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    alias = f"{WWW} 300 CNAME cdn.other.test."
    rows = explain(capsys, write(tmp_path / "x", Lab().learned(WWW, "A", [alias])))
    assert rows[1]["answer"] == [f"{WWW} 300 IN CNAME cdn.other.test."]
    assert (rows[1]["verdict"], rows[1]["evidence"], rows[1]["type"]) == ("accepted", "confirmed", "A")


def test_direct_messages(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    signed = message(WWW, "A", [A1, rrsig(WWW, "A")], flags="QR RD RA AD")
    file = write(tmp_path / "out.wire", [signed, message(WWW, "A", rcode=3), b"garbage-of-12"], dnstap=False)
    now = ("--now", str(NOW))
    rows = explain(capsys, file, "--claims", "validated", *now)
    assert [row.get("evidence") for row in rows] == ["validated", None, None, None]
    assert [row.get("reason") for row in rows] == [None, "rcode", "not-a-response", None]
    assert rows[0]["answer"][1].startswith(f"{WWW} 300 IN RRSIG A 13 3 300 ")
    assert explain(capsys, file, "--claims", "confirmed", *now)[0]["evidence"] == "confirmed"
    weak = explain(capsys, file, "--claims", "authoritative", "--format", "wire", *now)
    assert weak[0]["reason"] == "evidence-too-weak"


def test_options_of_the_judge(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    query_lost = write(tmp_path / "x", Lab().learned(WWW, "A", [A1])[1:])
    assert explain(capsys, query_lost)[0]["reason"] == "unpaired"
    assert explain(capsys, query_lost, "--pairing", "off")[0]["verdict"] == "accepted"
    rows = explain(capsys, DATA / "kresd.dnstap", "--resolver-frames", "none")
    assert {row.get("reason") for row in rows[1:-1:2]} == {"not-validated", "rcode"}


def test_unreadable_frames_are_rows_too(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = write(tmp_path / "x", [b"\xff\xff\xff", frame("RESOLVER_RESPONSE", b"\0", zone="test.")])
    rows = explain(capsys, file)
    assert rows[0] == {
        "index": 1,
        "message": "UNREADABLE",
        "name": None,
        "type": None,
        "verdict": "refused",
        "evidence": None,
        "reason": "malformed",
        "answer": [],
    }
    assert rows[1]["reason"] == "malformed"


def test_the_signed_message_of_a_real_sender_verifies(capsys: pytest.CaptureFixture[str]) -> None:
    row, last = explain(capsys, "--wire", SIGNED, "--key", KEY, "--now", SIGNED_AT)
    assert (row["verdict"], row["evidence"]) == ("accepted", "authoritative")
    assert row["answer"] == ["www.other.test. 600 IN A 192.0.2.20"]
    assert last["totals"]["accepted"] == 1


@pytest.mark.parametrize(
    ("key", "now", "reason"),
    [
        (KEY, "1795239462", "bad-time"),
        (KEY.replace("AAEC", "AAED"), SIGNED_AT, "bad-mac"),
        (KEY.replace("cachebus", "other"), SIGNED_AT, "unknown-key"),
        (KEY.replace("sha256", "sha512"), SIGNED_AT, "wrong-algorithm"),
    ],
)
def test_bus_messages_refused(capsys: pytest.CaptureFixture[str], key: str, now: str, reason: str) -> None:
    assert explain(capsys, "--wire", SIGNED, "--key", key, "--now", now)[0]["reason"] == reason


def test_bus_messages_with_their_lengths_and_a_replay(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text = next(line for line in SIGNED.read_text().splitlines() if not line.startswith("#"))
    wire = bytes.fromhex(text)
    file = write(tmp_path / "bus", [wire, wire, wire[:-1] + b"x"], dnstap=False)
    rows = explain(capsys, "--wire", file, "--key", KEY, "--now", SIGNED_AT, "--trust", "authoritative")
    assert [row.get("reason") for row in rows[:2]] == [None, "duplicate"]
    assert rows[2]["verdict"] == "refused"
    rows = explain(capsys, "--wire", file, "--key", KEY, "--now", SIGNED_AT, "--trust", "validated")
    assert rows[0]["reason"] == "evidence-too-weak"


def test_every_reason_is_listed_with_its_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    rows = explain(capsys, "--reasons")
    assert [row["reason"] for row in rows] == [reason.value for reason in Refusal]
    meanings = {row["reason"]: row["meaning"] for row in rows}
    assert meanings["truncated"] == "TC=1."
    assert meanings["rrsig-expired"] == "Rrsig expired."
    assert all(meanings.values())


def test_the_share_policy_of_a_configuration(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config = tmp_path / "node.yaml"
    config.write_text("node: n1\ncluster: c1\nshare: {min_ttl: 200}\n")
    rows = explain(capsys, DATA / "unbound.dnstap", "--share", config)
    assert {row.get("reason") for row in rows[:-1]} == {
        None,
        "no-answer",
        "rcode",
        "ttl-below-minimum",
        "special-use-name",
    }
    config.write_text("node: n1\ncluster: c1\nshare: {allow: [test], deny: [alias.example.test]}\n")
    rows = explain(capsys, DATA / "unbound.dnstap", "--share", config)
    assert rows[-1]["totals"]["accepted"] == 6
    assert rows[12]["reason"] == "denied"


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["/nonexistent/file"], 1, "/nonexistent/file"),
        (["."], 1, "not a regular file"),
        ([str(Path(__file__))], 1, "neither dnstap"),
        ([], 2, "FILE is missing"),
        (["--trust", "blindly", "x"], 2, "blindly"),
        (["--trust", "", "x"], 2, "authoritative"),
        (["--claims", "all", "x"], 2, "--claims"),
        (["--wire", "x"], 2, "--key"),
        (["--key", KEY, "x"], 2, "--wire"),
        (["--wire", "/nonexistent/file", "--key", KEY], 1, "/nonexistent/file"),
        (["--wire", str(Path(__file__)), "--key", KEY], 1, "not a message in hex"),
        (["--wire", "x", "--key", "nonsense"], 2, "--key"),
        ([str(DATA / "unbound.dnstap"), "--share", "/nonexistent/config"], 1, "/nonexistent/config"),
    ],
)
def test_wrong_input_is_a_line_on_stderr(
    capsys: pytest.CaptureFixture[str], arguments: list[str], status: int, said: str
) -> None:
    assert main(["explain", *arguments]) == status
    captured = capsys.readouterr()
    assert said in captured.err
    assert "Traceback" not in captured.err
    assert "AAEC" not in captured.err


def test_a_file_cut_short_gives_what_it_has_and_then_the_error(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    cut = tmp_path / "cut.dnstap"
    cut.write_bytes((DATA / "unbound.dnstap").read_bytes()[:5000])
    assert main(["explain", "--json", str(cut)]) == 1
    captured = capsys.readouterr()
    rows = [json.loads(line) for line in captured.out.splitlines()]
    assert rows[-1]["totals"]["accepted"] == 5
    assert "cut.dnstap: at byte" in captured.err


def test_records_are_written_as_their_type_allows_or_as_unknown() -> None:
    owner = name_from_text("we ird.example.test.".replace(" ", "\\032"))
    texts = pack(16, 0, [b'\x05a"b\\c', b"\x03a\nb"])
    assert records_to_text(RRset(owner, 16, 300, texts), 60) == [
        'we\\032ird.example.test. 60 IN TXT "a\\"b\\\\c"',
        'we\\032ird.example.test. 60 IN TXT "a\\010b"',
    ]
    assert records_to_text(RRset(owner, 15, 300, pack(15, 0, [b"\0"])), 1)[0].endswith(" 1 IN MX \\# 1 00")
    assert records_to_text(RRset(owner, 65400, 300, pack(65400, 0, [b""])), 1)[0].endswith(" 1 IN TYPE65400 \\# 0")
