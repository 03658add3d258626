"""The command as a whole: verbs, exit statuses, errors, and what is imported when."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from cachebus import cli
from cachebus.cli import VERBS, cachebus, main
from cachebus.cli.common import DEFAULT_SOCKET, parse_key, print_json, socket_path
from cachebus.errors import ConfigError, TransportError

SECRET = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="


def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """The command as a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "cachebus", *arguments],
        capture_output=True, text=True, timeout=60, env={**os.environ, **more},
    )  # fmt: skip


def test_help_lists_every_verb_without_importing_any(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    lines = [line.split()[0] for line in shown.partition("Verbs:")[2].splitlines() if line[:3].strip()]
    assert lines == list(VERBS)
    assert lines == [
        "demo", "run", "init", "check", "schema", "keygen", "explain", "publish", "convert", "tail", "forward",
        "status", "why", "lookup", "flush", "snapshot", "bench", "version",
    ]  # fmt: skip


@pytest.mark.parametrize("verb", VERBS)
def test_every_listed_verb_is_there_and_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = cachebus.get_command(click.Context(cachebus), verb)
    assert command is not None
    assert command.name == verb
    assert command.help
    assert main([verb, "--help"]) == 0
    assert f"Usage: cachebus {verb}" in capsys.readouterr().out


def test_a_cheap_verb_does_not_pay_for_the_others() -> None:
    heavy = ("pydantic", "aiohttp", "yaml", "dns", "uvloop", "google", "asyncio")
    code = (
        "import sys; from cachebus.cli import main; main(['version']); main(['--help'])\n"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("arguments", [["nope"], ["check"], ["version", "--nope"], ["lookup"], []])
def test_wrong_usage_is_2_on_stderr(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Usage: cachebus" in captured.err


def failing(error: BaseException) -> click.Command:
    @click.command()
    def version() -> None:
        raise error

    return version


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (TransportError("no link"), 1, "cachebus: no link\n"),
        (ConfigError("wrong"), 1, "cachebus: wrong\n"),
        (
            FileNotFoundError(2, "No such file or directory", "x"),
            1,
            "cachebus: [Errno 2] No such file or directory: 'x'\n",
        ),
        (click.ClickException("bad"), 1, "Error: bad\n"),
        (KeyboardInterrupt(), 130, ""),
        (click.Abort(), 130, ""),
    ],
)
def test_how_an_error_ends_the_command(
    error: BaseException, status: int, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli.Verbs, "get_command", lambda *_: failing(error))
    assert main(["version"]) == status
    captured = capsys.readouterr()
    assert (captured.out, captured.err.lstrip("\n")) == ("", line)  # click ends the line that holds the ^C


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli.Verbs, "get_command", lambda *_: failing(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        main(["version"])


def test_a_closed_pipe_ends_quietly() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "cachebus", "schema"], stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


def test_python_dash_m_is_the_command() -> None:
    done = run("version", "--json")
    assert done.returncode == 0
    assert sorted(json.loads(done.stdout)) == ["compiled", "platform", "python", "version"]
    assert run("nope").returncode == 2


def test_version_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version"]) == 0
    assert capsys.readouterr().out.count("\n") == 1


def test_key_option_never_repeats_a_wrong_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "/dev/null", "--wire", "--key", f"k:hmac-md5:{SECRET}"]) == 2
    captured = capsys.readouterr()
    assert "algorithm must be one of" in captured.err
    assert SECRET not in captured.err + captured.out


def test_parse_key_gives_wire_name_algorithm_and_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = (b"\1k\0", "hmac-sha256", bytes(range(32)))
    line = f"k:hmac-sha256:{SECRET}"
    path = tmp_path / "k.key"
    path.write_text(line)
    path.chmod(0o600)
    monkeypatch.setenv("THE_KEY", line)
    assert tuple(parse_key(line)) == tuple(parse_key(f"file:{path}")) == tuple(parse_key("env:THE_KEY")) == expected


def test_which_socket_is_asked(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("admin: {socket: /run/x.sock}\n")
    assert socket_path(None, None) == DEFAULT_SOCKET
    assert socket_path(None, config) == "/run/x.sock"
    assert socket_path("/a", config) == "/a"


def test_json_is_one_ascii_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": "é\n", "b": None})
    assert capsys.readouterr().out == '{"a": "\\u00e9\\n", "b": null}\n'
