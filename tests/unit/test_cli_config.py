"""init, check, schema, keygen: the verbs that write and check files."""

from __future__ import annotations

import json
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from cachebus import registry
from cachebus.cli import main
from cachebus.config import load
from cachebus.config.keyfile import read_key_file

Captured = pytest.CaptureFixture[str]
UDP = EntryPoint("udp", "cachebus_transports.udp:UdpTransport", registry.GROUP)
ZEROMQ = EntryPoint("zeromq", "cachebus_transports.zeromq:ZeromqTransport", registry.GROUP)
MQTT = EntryPoint("mqtt", "cachebus_transports.mqtt:MqttTransport", registry.GROUP)


@pytest.fixture(autouse=True)
def _udp_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "installed_transports", lambda found=None: {"udp": UDP})


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_check_is_silent_when_right(tmp_path: Path, capsys: Captured) -> None:
    assert main(["check", "-c", str(write(tmp_path / "c.yaml", "node: a\n"))]) == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_check_has_a_line_per_problem(tmp_path: Path, capsys: Captured) -> None:
    path = write(tmp_path / "c.yaml", "node: A\nshaer: {}\n")
    assert main(["check", "--config", str(path)]) == 1
    assert capsys.readouterr().out == (
        f"{path}:1:7: node: 'A' must be 1 to 63 of a-z, 0-9 and -\n"
        f"{path}:2:1: shaer: unknown key (did you mean share?)\n"
    )


def test_check_as_json_lines(tmp_path: Path, capsys: Captured) -> None:
    path = write(tmp_path / "c.yaml", "node: A\nshaer: {}\n")
    assert main(["check", "-c", str(path), "--json"]) == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[1] == {
        "file": str(path), "line": 2, "column": 1, "key": "shaer", "message": "unknown key (did you mean share?)"
    }  # fmt: skip
    assert len(lines) == 2


def test_check_knows_which_transports_are_installed(tmp_path: Path, capsys: Captured) -> None:
    path = write(tmp_path / "c.yaml", "node: a\ntransports: {t: {type: upd}, m: {type: kafka}}\n")
    assert main(["check", "-c", str(path)]) == 1
    assert capsys.readouterr().out == (
        f"{path}:2:24: transports.t.type: no transport 'upd' is installed (did you mean udp?)\n"
        f"{path}:2:40: transports.m.type: no transport 'kafka' is installed\n"
    )


@pytest.mark.parametrize(
    ("entry", "found"),
    [
        ("{type: zeromq, bind: ['tcp://localhost:1'], key: k}",
         "26: transports.t.bind: 'localhost:1' is not ADDRESS:PORT with an address literal (names are not resolved)"),
        ("{type: zeromq, bind: ['tcp://127.0.0.1:1'], curve: {secret: other}, key: k}",
         "65: transports.t.curve.secret: key file {there}/other: No such file or directory"),
        ("{type: zeromq, connect: ['tcp://127.0.0.1:1'], curve: {secret: a.curve, server: 'file:b.curve'}, key: k}",
         ("85: transports.t.curve.server: key file {there}/b.curve: "
          "holds something other than lines NAME:curve-public:KEY")),
        ("{type: mqtt, url: 'mqtt://h?x=1', key: k}", "23: transports.t.url: takes no ? or #"),
        ("{type: mqtt, url: 'mqtt://h/other', key: k}",
         "23: transports.t.url: names the cluster 'other', but this node is of 'default'"),
        ("{type: udp, listen: '[fe80::1%nowhere]:1', key: k}",
         "2: transports.t: '[fe80::1%nowhere]:1': no such zone on this host"),
    ],
)  # fmt: skip
def test_check_asks_the_transports_themselves(
    entry: str, found: str, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = {"udp": UDP, "zeromq": ZEROMQ, "mqtt": MQTT}
    monkeypatch.setattr(registry, "installed_transports", lambda found=None: installed)
    monkeypatch.chdir("/")  # files are looked for beside the configuration
    for name in ("a", "b"):
        assert main(["keygen", "curve", name, "-o", str(tmp_path / f"{name}.curve")]) == 0
    key = "keys: {k: {algorithm: hmac-sha256, secret: MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=}}"
    path = write(tmp_path / "c.yaml", f"node: a\n{key}\ntransports:\n t: {entry}\n")
    path.chmod(0o600)
    capsys.readouterr()
    assert main(["check", "-c", str(path)]) == 1
    assert capsys.readouterr().out == f"{path}:4:{found.format(there=tmp_path)}\n"


@pytest.mark.parametrize("allow", ["'file:b.curve.pub'", "{b: 'file:b.curve.pub'}"])
def test_check_finds_public_keys_beside_the_configuration(
    allow: str, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "installed_transports", lambda found=None: {"zeromq": ZEROMQ})
    monkeypatch.chdir("/")
    for name in ("a", "b"):
        assert main(["keygen", "curve", name, "-o", str(tmp_path / f"{name}.curve")]) == 0
    key = "keys: {k: {algorithm: hmac-sha256, secret: MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=}}"
    curve = f"{{secret: a.curve, allow: {allow}, server: {{'tcp://127.0.0.1:2': 'file:b.curve.pub'}}}}"
    ends = "bind: ['tcp://127.0.0.1:1'], connect: ['tcp://127.0.0.1:2']"
    path = write(
        tmp_path / "c.yaml", f"node: a\n{key}\ntransports:\n t: {{type: zeromq, key: k, {ends}, curve: {curve}}}\n"
    )
    path.chmod(0o600)
    capsys.readouterr()
    assert main(["check", "-c", str(path)]) == 0, capsys.readouterr().out


def test_check_warns_on_stderr_only(tmp_path: Path, capsys: Captured) -> None:
    text = "node: a\nsources: {s: {type: dnstap, listen: unix:/run/x/y, resolver_frames: none}}\n"
    path = write(tmp_path / "c.yaml", text)
    assert main(["check", "-c", str(path), "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"{path}:2:69: sources.s.resolver_frames: warning: ")


def test_check_of_nothing(tmp_path: Path, capsys: Captured) -> None:
    assert main(["check", "-c", str(tmp_path / "missing")]) == 1
    assert capsys.readouterr().out == f"{tmp_path}/missing:1:1: No such file or directory\n"


def test_schema_describes_the_configuration(capsys: Captured) -> None:
    assert main(["schema"]) == 0
    text = capsys.readouterr().out
    assert main(["schema", "--json"]) == 0
    line = capsys.readouterr().out
    assert line.count("\n") == 1
    schema = json.loads(text)
    assert json.loads(line) == schema
    assert schema["required"] == ["node"]
    assert {"keys", "sources", "transports", "sinks", "share", "shim", "admin"} <= set(schema["properties"])


def test_keygen_writes_a_private_file_that_check_accepts(tmp_path: Path, capsys: Captured) -> None:
    path = tmp_path / "k.key"
    assert main(["keygen", "tsig", "home-2026", "--output", str(path)]) == 0
    assert capsys.readouterr().out == f"wrote {path}\n"
    assert path.stat().st_mode & 0o777 == 0o600
    name, algorithm, secret = path.read_text().strip().split(":")
    assert (name, algorithm, len(secret)) == ("home-2026", "hmac-sha256", 44)
    config = write(tmp_path / "c.yaml", "node: a\nkeys: {home-2026: {secret: 'file:k.key'}}\n")
    assert main(["check", "-c", str(config)]) == 0


def test_keygen_never_overwrites_unasked(tmp_path: Path, capsys: Captured) -> None:
    path = tmp_path / "k.key"
    arguments = ["keygen", "tsig", "k", "-o", str(path), "--json"]
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out) == {"name": "k", "algorithm": "hmac-sha256", "file": str(path)}
    before = path.read_text()
    assert main(arguments) == 1
    assert capsys.readouterr().err == f"cachebus: {path} exists; nothing was written\n"
    assert path.read_text() == before
    assert main([*arguments, "--force"]) == 0
    assert path.read_text() != before


def test_keygen_to_stdout_and_other_algorithms(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["keygen", "tsig", "K.example.", "--algorithm", "hmac-sha512", "-o", "-"]) == 0
    name, algorithm, secret = capsys.readouterr().out.strip().split(":")
    assert (name, algorithm, len(secret)) == ("k.example", "hmac-sha512", 88)
    assert list(tmp_path.iterdir()) == []
    assert main(["keygen", "tsig", "plain"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["plain.key"]
    assert main(["keygen", "tsig", "a..b"]) == 1
    assert main(["keygen", "curve"]) == 2


def test_init_writes_what_check_accepts(tmp_path: Path, capsys: Captured) -> None:
    directory = tmp_path / "new"
    assert main(["init", str(directory), "--node", "ams-1", "--peer", "[2001:db8::1]:5390", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made == {"config": str(directory / "cachebus.yaml"), "key": str(directory / "cluster.key")}
    assert main(["check", "-c", made["config"]]) == 0
    assert capsys.readouterr() == ("", "")
    config = load(made["config"])
    assert (config.node, config.cluster, config.transports["lan"].peers) == ("ams-1", "home", ("[2001:db8::1]:5390",))
    assert read_key_file(Path(made["key"])).secret == config.keys["home-key"].secret_bytes()


def test_what_init_leaves_to_be_switched_on_is_right(tmp_path: Path) -> None:
    assert main(["init", str(tmp_path), "--node", "ams-1"]) == 0
    configuration = tmp_path / "cachebus.yaml"
    text = configuration.read_text().replace("# shim:", "shim:")
    configuration.write_text(text.replace("#   ", "  ").replace("# http:", "http:"))
    assert main(["check", "-c", str(configuration)]) == 0
    assert "\nshim:\n  listen:" in configuration.read_text()


def test_init_uses_the_hosts_name(tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "Über_Host.example.net")
    assert main(["init", str(tmp_path)]) == 0
    assert load(tmp_path / "cachebus.yaml").node == "ber-host"


@pytest.mark.parametrize("existing", ["cachebus.yaml", "cluster.key"])
def test_init_overwrites_only_when_told(tmp_path: Path, capsys: Captured, existing: str) -> None:
    path = write(tmp_path / existing, "mine")
    assert main(["init", str(tmp_path)]) == 1
    assert "nothing was written" in capsys.readouterr().err
    assert [entry.name for entry in tmp_path.iterdir()] == [existing]
    assert path.read_text() == "mine"
    assert main(["init", str(tmp_path), "--force"]) == 0
    assert main(["check", "-c", str(tmp_path / "cachebus.yaml")]) == 0


@pytest.mark.parametrize("wrong", [["--node", "A"], ["--cluster", "a b"], ["--listen", "x"], ["--peer", "192.0.2.1"]])
def test_init_refuses_before_it_writes(tmp_path: Path, wrong: list[str]) -> None:
    assert main(["init", str(tmp_path), *wrong]) == 1
    assert list(tmp_path.iterdir()) == []
