"""compose.yaml and what it mounts: right by the compose schema, by `cachebus check`, and by each server's own checker.

Nothing is started. The schema in tests/data/compose-spec.json is schema/compose-spec.json of compose-spec/compose-spec,
unchanged (Apache-2.0), as check-jsonschema 0.39.0 carries it.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from click.testing import CliRunner

from cachebus.cli import cachebus as command_line
from tests.servers import find, require

ROOT = Path(__file__).resolve().parents[2]
MOUNTED = "/etc/compose"
NODES = ("unbound", "bind", "recursor")
SECONDS = 60


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
    return loaded


def command_of(service: dict[str, Any]) -> list[str]:
    words: list[str] = service["command"]
    return words


def validator() -> jsonschema.Draft202012Validator:
    schema = json.loads((ROOT / "tests/data/compose-spec.json").read_text())
    return jsonschema.Draft202012Validator(schema)


def test_compose_file_is_right_by_the_schema(compose: dict[str, Any]) -> None:
    assert [error.message for error in validator().iter_errors(compose)] == []


def test_a_wrong_compose_file_would_be_noticed(compose: dict[str, Any]) -> None:
    wrong = {**compose, "services": {"one": {"imagge": "x"}}}
    assert "imagge" in str([error.message for error in validator().iter_errors(wrong)])


def test_every_machine_is_debian_with_the_packages_of_the_tests(compose: dict[str, Any]) -> None:
    assert {service["build"]["dockerfile"] for service in compose["services"].values()} == {"compose/Dockerfile"}
    text = (ROOT / "compose/Dockerfile").read_text()
    assert re.findall(r"^FROM (.*)$", text, re.MULTILINE) == ["debian:12-slim"]
    installed = re.search(r"--no-install-recommends \\\n(.*?) \\\n +&&", text, re.DOTALL)
    assert installed
    known = set(re.findall(r"[a-z0-9-]+", (ROOT / "scripts/test-deps.sh").read_text()))
    assert set(installed[1].split()) <= known | {"python3-venv"}


def test_what_commands_and_mounts_name_is_there(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        for word in " ".join(command_of(service)).split():
            path = word.removeprefix("--config-dir=")
            if path.startswith(MOUNTED):
                assert (ROOT / "compose" / path.removeprefix(MOUNTED).removeprefix("/")).exists(), (name, word)
                assert f"./compose:{MOUNTED}:ro" in service["volumes"]
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            assert (ROOT / source).is_dir() if source.startswith(".") else source in compose["volumes"], (name, volume)
        assert set(service.get("depends_on", ())) <= compose["services"].keys()


def test_a_resolver_shares_the_machine_of_its_node(compose: dict[str, Any]) -> None:
    for name in NODES:
        resolver, node = compose["services"][name], compose["services"][f"node-{name}"]
        assert resolver["network_mode"] == f"service:node-{name}"
        assert f"run-{name}:/run/cachebus" in resolver["volumes"]
        assert f"run-{name}:/run/cachebus" in node["volumes"]
        config = yaml.safe_load((ROOT / f"compose/node-{name}.yaml").read_text())
        address = node["networks"]["cluster"]["ipv4_address"]
        assert config["node"] == name
        assert config["transports"]["direct"]["listen"] == f"{address}:5391"
        others = {compose["services"][f"node-{other}"]["networks"]["cluster"]["ipv4_address"] for other in NODES}
        assert {peer.rpartition(":")[0] for peer in config["transports"]["direct"]["peers"]} == others - {address}


@pytest.fixture
def machine(compose: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory in place of a container's, with what the service `keys` makes: by its own commands."""
    monkeypatch.chdir(tmp_path)
    script = command_of(compose["services"]["keys"])[-1]
    lines = re.findall(r"cachebus ([^&;}]+)", script)
    assert len(lines) == 2
    for line in lines:
        done = CliRunner().invoke(command_line, shlex.split(line))
        assert done.exit_code == 0, done.output
    return tmp_path


@pytest.mark.parametrize("name", NODES)
def test_node_configuration_passes_the_check(name: str, compose: dict[str, Any], machine: Path) -> None:
    words = command_of(compose["services"][f"node-{name}"])
    assert words == ["cachebus", "run", "-c", f"{MOUNTED}/node-{name}.yaml"]
    text = (ROOT / f"compose/node-{name}.yaml").read_text()
    for directory in ("/keys", "/run/cachebus", "/var/lib/cachebus"):
        text = text.replace(directory, str(machine))
    (machine / "node.yaml").write_text(text)
    done = CliRunner().invoke(command_line, ["check", "-c", str(machine / "node.yaml")])
    assert (done.exit_code, done.output) == (0, "")


CHECKERS = {
    "unbound": ["unbound-checkconf", "compose/unbound.conf"],
    "bind": ["named-checkconf", "compose/named.conf"],
    "nsd": ["nsd-checkconf", "compose/nsd.conf"],
    "pdns-recursor": ["pdns_recursor", "--config-dir=compose", "--config=check"],
}


@pytest.mark.interop
@pytest.mark.parametrize("server", CHECKERS)
def test_server_takes_its_configuration(server: str) -> None:
    require(server)
    command, *arguments = CHECKERS[server]
    path = find(command)
    assert path
    done = subprocess.run([path, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.interop
def test_zone_is_right() -> None:
    require("nsd")
    checker = find("nsd-checkzone")
    assert checker
    command = [checker, "example.test", "compose/example.test.zone"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("unbound.conf", ["dnstap-log-resolver-query-messages: yes", "dnstap-log-client-response-messages: yes"]),
        ("named.conf", ["dnstap { resolver; client response; };", "fstrm-set-reopen-interval 1;"]),
        ("recursor.lua", ["logQueries=true", "logResponses=true", "reopenInterval=1"]),
    ],
)
def test_resolver_logs_what_its_page_says(file: str, words: list[str]) -> None:
    text = (ROOT / "compose" / file).read_text()
    pages = "".join(page.read_text() for page in (ROOT / "docs/resolvers").glob("*.md"))
    for line in words:
        assert line in text
        assert line in pages
