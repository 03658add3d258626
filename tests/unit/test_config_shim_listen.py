"""The keys of encrypted listeners: what they become, and what is refused where."""

from __future__ import annotations

import logging
from ipaddress import ip_address
from pathlib import Path

import pytest

from cachebus import assembly
from cachebus.config.loader import loads
from cachebus.errors import ConfigError
from cachebus.shim.encrypted import DdrSettings, EncryptedSettings
from tests.unit.listen_bed import Authority
from tests.unit.test_config_load import problems

ALL = """node: a
shim:
  listen: ["127.0.0.1:53"]
  listen_tls: ["127.0.0.1:853", "[::1]:853"]
  listen_https: ["127.0.0.1:443"]
  listen_quic: ["127.0.0.1:853"]
  tls: {cert: cert.pem, key: key.pem}
"""


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def encrypted(authority: Authority, more: str = "") -> EncryptedSettings:
    made = assembly.make_shim_settings(loads(ALL + more, directory=authority.directory))
    assert made is not None
    return made.encrypted


def test_what_it_becomes(authority: Authority) -> None:
    made = encrypted(authority)
    assert made.tls == (("127.0.0.1", 853), ("::1", 853))
    assert made.https == (("127.0.0.1", 443),)
    assert made.quic == (("127.0.0.1", 853),)
    assert made.certificate is not None
    assert made.https_path == "/dns-query"
    assert made.ddr == DdrSettings(name=b"\3dns\7example\3net\0")


def test_without_any_of_it() -> None:
    made = assembly.make_shim_settings(loads("node: a\nshim: {listen: ['127.0.0.1:53']}\n"))
    assert made is not None
    assert made.encrypted == EncryptedSettings()
    assert made.max_connections_per_client == 128


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ddr: false", None),
        ("ddr: {name: Resolver.Example}", DdrSettings(name=b"\x08resolver\x07example\0")),
        (
            "ddr: {name: r.example, addresses: [192.0.2.1, '2001:db8::1']}",
            DdrSettings(name=b"\1r\7example\0", addresses=(ip_address("192.0.2.1"), ip_address("2001:db8::1"))),
        ),
    ],
)
def test_ddr(authority: Authority, text: str, expected: DdrSettings | None) -> None:
    assert encrypted(authority, f"  {text}\n").ddr == expected


def test_a_certificate_without_a_host_name_is_told_of(authority: Authority, caplog: pytest.LogCaptureFixture) -> None:
    authority.issue("192.0.2.1")
    assert encrypted(authority).ddr is None
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "ddr.name" in caplog.text
    caplog.clear()
    assert encrypted(authority, "  ddr: false\n").ddr is None
    assert not caplog.records


def test_files_that_belong_to_different_certificates(authority: Authority) -> None:
    other = authority.key.read_bytes()
    authority.issue()
    authority.key.write_bytes(other)
    with pytest.raises(ConfigError, match="cannot be used"):
        encrypted(authority)


BASE = "node: a\nshim:\n  listen: ['127.0.0.1:53']\n"
PATH = "f:4:15: shim.https_path: must begin with / and have at most 255 of a-z, A-Z, 0-9, /, -, ., _ and ~"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("listen_tls: ['127.0.0.1:853']", ["f:4:15: shim.listen_tls: needs `tls`: a certificate and its key"]),
        ("https_path: dns-query", [PATH]),
        ("https_path: '/q?x'", [PATH]),
    ],
)
def test_what_cannot_be(text: str, expected: list[str]) -> None:
    assert problems(f"{BASE}  {text}\n") == expected


def test_files_are_looked_at(authority: Authority) -> None:
    authority.key.chmod(0o604)
    (found,) = problems(ALL, directory=authority.directory)
    assert "lets everyone in; run: chmod o=" in found
    assert found.startswith("f:7:30: shim.tls.key:")
    authority.key.unlink()
    authority.cert.unlink()
    assert [one.split(":")[3] for one in problems(ALL, directory=authority.directory)] == [
        " shim.tls.cert",
        " shim.tls.key",
    ]


def test_one_address_has_one_listener(authority: Authority) -> None:
    text = ALL.replace('listen_https: ["127.0.0.1:443"]', "listen_https: ['127.0.0.1:853', '127.0.0.1:53']")
    assert problems(text, directory=authority.directory) == [
        "f:5:18: shim.listen_https.0: is already used by `shim.listen_tls.0`",
        "f:5:35: shim.listen_https.1: is already used by `shim.listen.0`",
    ]


def test_a_certificate_for_nothing_and_quic_without_its_library(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f"{BASE}  tls: {{cert: cert.pem, key: key.pem}}\n"
    (found,) = problems(text, directory=authority.directory)
    assert found.endswith("is for `listen_tls`, `listen_https` and `listen_quic`, and there is none")
    monkeypatch.setattr("cachebus.config.shim_listen_checks.find_spec", lambda name: None)
    assert problems(ALL, directory=authority.directory) == [
        "f:6:16: shim.listen_quic: needs aioquic: pip install 'cachebus[quic]'"
    ]
