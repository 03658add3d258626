"""TSIG keys as text and files: which are taken, and that no secret shows anywhere."""

from __future__ import annotations

import base64
import json
import logging
import traceback
from pathlib import Path

import pytest

from cachebus.config import ConfigErrors, load, loads
from cachebus.config.keyfile import (
    KeyMaterial,
    key_text,
    make_key,
    parse_key_text,
    read_key_file,
    resolve_key,
    write_key_file,
)
from cachebus.errors import ConfigError
from cachebus.presentation import name_from_text

SECRET = bytes(range(32))
TEXT = base64.b64encode(SECRET).decode()
LINE = f"cachebus.test.:hmac-sha256:{TEXT}"


def key_file(directory: Path, text: str = LINE + "\n", mode: int = 0o600) -> Path:
    path = directory / "k.key"
    path.write_text(text)
    path.chmod(mode)
    return path


def with_key(secret: str, **more: str) -> str:
    extra = "".join(f", {name}: {value}" for name, value in more.items())
    return f'node: a\nkeys:\n  cachebus.test: {{secret: "{secret}"{extra}}}\n'


def test_key_text() -> None:
    key = parse_key_text(LINE, "here")
    assert key == KeyMaterial(name_from_text("cachebus.test"), "hmac-sha256", SECRET)
    assert key_text(key) == f"cachebus.test:hmac-sha256:{TEXT}"
    assert parse_key_text("A.B:HMAC-SHA512.:" + TEXT, "here").name == b"\1a\1b\0"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must be NAME:ALG:BASE64"),
        (f"k:{TEXT}", "must be NAME:ALG:BASE64"),
        (f"k:hmac-md5:{TEXT}", "algorithm must be one of"),
        (f"a..b:hmac-sha256:{TEXT}", "not a domain name"),
        (f"k:hmac-sha256:{TEXT}!", "not base64"),
        (f"k:hmac-sha256:{TEXT[:-1]}", "not base64"),
        ("k:hmac-sha256:", "0 bytes"),
        ("k:hmac-sha256:AAECAwQFBgcICQoLDA0O", "15 bytes, not 16 to 512"),
    ],
)
def test_wrong_key_text_says_what_without_repeating_it(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parse_key_text(text, "here")
    assert_hidden("".join(traceback.format_exception(caught.value)))
    assert caught.value.__context__ is None or caught.value.__suppress_context__


def assert_hidden(text: str) -> None:
    for form in (TEXT, TEXT[:20], SECRET.hex(), repr(SECRET)):
        assert form not in text


def test_resolve_key_knows_text_files_and_variables(tmp_path: Path) -> None:
    path = key_file(tmp_path)
    expected = parse_key_text(LINE, "here")
    assert resolve_key(LINE) == expected
    assert resolve_key(f"file:{path}") == expected
    assert resolve_key("file:k.key", directory=tmp_path) == expected
    assert resolve_key("env:K", environment={"K": LINE}) == expected
    assert resolve_key(f"env:hmac-sha256:{TEXT}").name == b"\3env\0"  # a key may be called env


@pytest.mark.parametrize("text", ["env:MISSING", "env:", "file:/nonexistent/k", "file:", "file:/", "file:\0", "x"])
def test_resolve_key_refuses(text: str) -> None:
    with pytest.raises(ConfigError):
        resolve_key(text, environment={})


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o610, 0o602])
def test_a_key_file_that_others_can_open_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(ConfigError, match=f"mode {mode:04o} lets others in; run: chmod 600"):
        read_key_file(key_file(tmp_path, mode=mode))


@pytest.mark.parametrize("text", ["", "\n", LINE + "\n" + LINE + "\n", "x" * 5000, "\xff\xfe"])
def test_a_key_file_holds_one_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="NAME:ALG:BASE64"):
        read_key_file(key_file(tmp_path, text))


def test_a_key_file_may_be_stricter_and_must_be_a_file(tmp_path: Path) -> None:
    assert read_key_file(key_file(tmp_path, mode=0o400)).secret == SECRET
    with pytest.raises(ConfigError, match="not a regular file"):
        read_key_file(tmp_path)


def test_made_keys_fit_their_algorithm_and_differ() -> None:
    assert len(make_key("k").secret) == 32
    assert len(make_key("k", "hmac-sha384").secret) == 48
    assert len(make_key("k", "hmac-sha512").secret) == 64
    assert make_key("k").secret != make_key("k").secret
    for arguments in (("a..b",), ("k", "hmac-md5")):
        with pytest.raises(ConfigError):
            make_key(*arguments)


def test_a_written_key_file_is_private_and_never_overwritten_unasked(tmp_path: Path) -> None:
    path = tmp_path / "new.key"
    key = make_key("k")
    write_key_file(path, key)
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_key_file(path) == key
    with pytest.raises(ConfigError, match="exists"):
        write_key_file(path, make_key("k"))
    assert read_key_file(path) == key
    other = make_key("other")
    write_key_file(path, other, overwrite=True)
    assert read_key_file(path) == other
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["new.key"]
    with pytest.raises(ConfigError, match="No such file"):
        write_key_file(tmp_path / "no" / "k", key)


@pytest.mark.parametrize("secret", [TEXT, "env:KEY", "env:LINE", "file:k.key"])
def test_every_form_of_secret_gives_the_bytes(tmp_path: Path, secret: str) -> None:
    key_file(tmp_path)
    config = loads(with_key(secret), directory=tmp_path, environment={"KEY": TEXT, "LINE": LINE})
    key = config.keys["cachebus.test"]
    assert key.secret_bytes() == SECRET
    assert key.name == name_from_text("cachebus.test")
    assert config.warnings == ()


@pytest.mark.parametrize("secret", [TEXT, "env:KEY", "file:k.key"])
def test_no_secret_in_anything_a_configuration_prints(
    tmp_path: Path, secret: str, caplog: pytest.LogCaptureFixture
) -> None:
    key_file(tmp_path)
    config = loads(with_key(secret), directory=tmp_path, environment={"KEY": TEXT})
    key = config.keys["cachebus.test"]
    logging.getLogger("test").warning("%s %r %s", config, config, key)
    shown = [repr(config), str(config), repr(key), repr(key.secret), config.model_dump_json(), str(config.model_dump())]
    shown += [caplog.text, repr(resolve_key(LINE)), str(resolve_key(LINE)), f"{resolve_key(LINE)}"]
    for text in shown:
        assert_hidden(text)
    assert json.loads(config.model_dump_json())["keys"]["cachebus.test"]["secret"] == "**********"


@pytest.mark.parametrize(
    "text",
    [
        with_key(TEXT + "!"),
        with_key(f"fil:{TEXT}"),
        with_key("env:KEY", algorithm="hmac-sha512"),
        with_key(TEXT, algorithm=TEXT),
        f"node: a\nkeys: {{k: {TEXT}}}\n",
        f"node: a\nkeys: [{TEXT}]\n",
        f"node: a\nkeys: {{k: {{secret: [{TEXT}]}}}}\n",
        f"node: a\nkeys: {{k: {{secret: {{{TEXT}: 1}}}}}}\n",
        f"node: a\ntransports: {{t: {{type: udp, peers: ['127.0.0.1:1'], key: {TEXT}}}}}\n",
        f"node: a\ntransports: {{t: {{type: udp, peers: ['127.0.0.1:1'], keys: [{TEXT}]}}}}\n",
        f"node: a\nkeys: {{k: {{secret: {TEXT}}}}}\nx: [\n",
    ],
)
def test_no_secret_in_any_error(text: str) -> None:
    with pytest.raises(ConfigErrors) as caught:
        loads(text, environment={"KEY": f"cachebus.test:hmac-sha256:{TEXT}"})
    error = caught.value
    assert error.problems
    assert_hidden("".join(traceback.format_exception(error)))
    assert_hidden(repr(error))


@pytest.mark.parametrize(
    ("file_line", "message"),
    [
        (f"other:hmac-sha256:{TEXT}", "the key there has another name than here"),
        (f"cachebus.test:hmac-sha512:{TEXT}", "the key there is for hmac-sha512, not hmac-sha256"),
    ],
)
def test_a_key_file_must_agree(tmp_path: Path, file_line: str, message: str) -> None:
    key_file(tmp_path, file_line)
    with pytest.raises(ConfigErrors) as caught:
        loads(with_key("file:k.key", algorithm="hmac-sha256"), file="c", directory=tmp_path)
    assert str(caught.value) == f"c:3:27: keys.cachebus.test.secret: {message}"


def test_the_same_name_twice_is_one_key_on_the_wire() -> None:
    with pytest.raises(ConfigErrors, match="is the same name as 'k'"):
        loads(f"node: a\nkeys:\n  k: {{secret: {TEXT}}}\n  K.: {{secret: {TEXT}}}\n")


def test_a_short_secret_is_a_warning_and_a_shorter_one_an_error() -> None:
    config = loads(f"node: a\nkeys:\n  k: {{secret: {base64.b64encode(bytes(16)).decode()}}}\n", file="c")
    assert [str(warning) for warning in config.warnings] == [
        "c:3:15: keys.k.secret: 16 bytes; hmac-sha256 deserves 32 (RFC 2104)"
    ]
    with pytest.raises(ConfigErrors, match="15 bytes, not 16 to 512"):
        loads(f"node: a\nkeys:\n  k: {{secret: {base64.b64encode(bytes(15)).decode()}}}\n")


def test_a_secret_in_a_readable_configuration_is_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(with_key(TEXT))
    path.chmod(0o644)
    assert [warning.key for warning in load(path).warnings] == ["keys.cachebus.test.secret"]
    path.chmod(0o600)
    assert load(path).warnings == ()


def test_a_level_above_the_keys_maximum() -> None:
    with pytest.raises(ConfigErrors, match=r"k\.evidence: is stronger than `max_evidence`, confirmed"):
        loads(f"node: a\nkeys: {{k: {{secret: {TEXT}, evidence: validated, max_evidence: confirmed}}}}\n")
