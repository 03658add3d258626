"""state.py: what outlives a restart is written whole or not at all, and what is wrong is not used."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from cachebus.state import FILE_NAME, MAX_FILE, StateFile

STATE = {"wan": {"ams-1": 7, "ams-2": (1 << 63) - 1}}


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    StateFile(tmp_path).save(STATE)
    assert StateFile(tmp_path).load() == STATE
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]


def test_nothing_is_written_without_a_change(tmp_path: Path) -> None:
    file = StateFile(tmp_path)
    file.save(STATE)
    (tmp_path / FILE_NAME).unlink()
    file.save({"wan": dict(STATE["wan"])})
    assert not (tmp_path / FILE_NAME).exists()
    file.save({})
    assert file.load() == {}


def test_a_first_start_is_no_fault(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert StateFile(tmp_path).load() == {}
    assert not caplog.records


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b'{"wan": 1}', b'{"wan": {"a": "7"}}', b'{"wan": {"a": -1}}', b'{"wan": {"a": true}}',
     b'{"wan": {"a": 9223372036854775808}}', b"\xff", b"[" * 100_000, b" " * (MAX_FILE + 1)],
)  # fmt: skip
def test_what_is_wrong_is_named_and_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes) -> None:
    (tmp_path / FILE_NAME).write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert StateFile(tmp_path).load() == {}
    assert FILE_NAME in caplog.text


def test_a_directory_that_is_gone_costs_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = StateFile(tmp_path / "gone")
    with caplog.at_level(logging.WARNING):
        file.save(STATE)
    assert "cannot be written" in caplog.text
