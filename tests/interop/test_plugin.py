"""A transport outside the tree: the example of transports/README.md as a package of its own, beside cachebus.

Both are installed into a virtual environment, where it is found by its entry point, keeps the contract, and works in
`run`, `tail`, `publish`, `cachebus.connect` and `bench`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.farm.process import eventually

pytestmark = pytest.mark.interop
ROOT = Path(__file__).resolve().parents[2]
CAPTURE = ROOT / "tests/data/unbound.dnstap"
KEY = "home:hmac-sha256:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
PROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "my-package"
version = "1.0"
dependencies = ["cachebus"]

"""


def page_blocks() -> list[tuple[str, str]]:
    """Language and text of each fenced block of the page."""
    page = (ROOT / "transports/README.md").read_text()
    return re.findall(r"^```(\w+)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with cachebus and the plug-in; what both depend on is taken from this one."""
    directory = tmp_path_factory.mktemp("plugin")
    package = directory / "package"
    (package / "my_package").mkdir(parents=True)
    code = dict(reversed(page_blocks()))
    transport, test = (text for language, text in page_blocks() if language == "python")
    (package / "my_package/__init__.py").write_text(transport)
    (package / "pyproject.toml").write_text(PROJECT + code["toml"])
    (directory / "test_contract.py").write_text("from my_package import UnixgramTransport\n" + test)
    source = directory / "source"
    for name in ("cachebus", "transports", "pyproject.toml", "hatch_build.py", "README.md", "LICENSE"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        else:
            shutil.copy(ROOT / name, source / name)
    run(sys.executable, "-m", "venv", "--without-pip", directory / "venv", cwd=directory)
    python = directory / "venv/bin/python"
    found = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=directory)
    Path(found.strip(), "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--disable-pip-version-check")
    run(*pip, source, package, cwd=directory, CACHEBUS_COMPILE="0")
    return directory


def run(*command: object, cwd: Path, **more: str) -> str:
    """What a command prints; it has to succeed, and sees nothing of the checkout."""
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=clean(**more), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def clean(**more: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | more


@contextmanager
def started(*command: object, cwd: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [str(word) for word in command], cwd=cwd, env=clean(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.terminate()


def test_it_is_found_where_it_is_installed(environment: Path) -> None:
    code = (
        "import cachebus, my_package; from cachebus.registry import load_transport as load;"
        "assert load('unixgram') is my_package.UnixgramTransport; print(cachebus.__file__)"
    )
    assert run(environment / "venv/bin/python", "-c", code, cwd=environment).startswith(str(environment))


def test_it_keeps_the_contract(environment: Path) -> None:
    out = run(
        environment / "venv/bin/python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "asyncio_mode=auto",
        "test_contract.py", cwd=environment,
    )  # fmt: skip
    assert re.search(r"^1[5-9] passed|^[2-9]\d passed", out, re.MULTILINE)


def test_tail_prints_what_publish_sends(environment: Path, tmp_path: Path) -> None:
    cachebus, place = environment / "venv/bin/cachebus", tmp_path / "tail.sock"
    url = f"unixgram://{place}"
    with started(cachebus, "tail", url, "--key", KEY, "--count", 7, "--json", cwd=tmp_path) as tail:
        eventually(place.exists, 20, "tail listens")
        out = run(cachebus, "publish", url, CAPTURE, "--key", KEY, "--json", cwd=tmp_path)
        assert json.loads(out)["sent"] == 7
        printed, _ = tail.communicate(timeout=20)
    assert "www.example.test." in {json.loads(line)["name"] for line in printed.splitlines()}


def test_a_node_runs_with_it(environment: Path, tmp_path: Path) -> None:
    cachebus = environment / "venv/bin/cachebus"
    (tmp_path / "key").write_text(KEY + "\n")
    (tmp_path / "key").chmod(0o600)
    (tmp_path / "node.yaml").write_text(
        "node: ams-1\n"
        "keys: {home: {secret: 'file:key'}}\n"
        "transports: {local: {type: unixgram, listen: node.sock, key: home}}\n"
        "share: {allow: [test.]}\n"
        f"admin: {{socket: {tmp_path}/admin.sock}}\n"
    )
    run(cachebus, "check", "-c", "node.yaml", cwd=tmp_path)
    with started(cachebus, "run", "-c", "node.yaml", cwd=tmp_path):
        eventually((tmp_path / "admin.sock").exists, 20, "the node runs")
        run(cachebus, "publish", f"unixgram://{tmp_path}/node.sock", CAPTURE, "--key", KEY, cwd=tmp_path)
        status = json.loads(run(cachebus, "status", "--socket", "admin.sock", "--json", cwd=tmp_path))
        assert status["transports"]["local"]["accepted"] == 7
        found = run(cachebus, "lookup", "www.example.test", "A", "--socket", "admin.sock", "--json", cwd=tmp_path)
    assert json.loads(found)["transport"] == "local"


def test_custom_tools_connect_to_it(environment: Path, tmp_path: Path) -> None:
    (tmp_path / "tool.py").write_text(TOOL)
    out = run(environment / "venv/bin/python", "tool.py", tmp_path, KEY, cwd=tmp_path)
    assert out == "www.example.net. A\n"


def test_bench_measures_it(environment: Path, tmp_path: Path) -> None:
    cachebus = environment / "venv/bin/cachebus"
    row = json.loads(
        run(cachebus, "bench", "--transport", "unixgram", "--answers", 1000, "--json", cwd=tmp_path).splitlines()[0]
    )
    assert (row["transport"], row["codec"]) == ("unixgram", "dns")
    assert row["answers_per_second"] > 0


TOOL = """
import asyncio, sys
import cachebus, dns.message, dns.rrset

directory, key = sys.argv[1:]

async def main():
    here, there = f"unixgram://{directory}/here.sock", f"unixgram://{directory}/there.sock"
    async with cachebus.connect(here, key=key) as bus:
        answers = bus.subscribe()
        async with cachebus.connect(here, key=key, role="publish") as other:
            message = dns.message.make_response(dns.message.make_query("www.example.net", "A"))
            message.answer.append(dns.rrset.from_text("www.example.net.", 300, "IN", "A", "203.0.113.1"))
            assert other.publish(message) == ()
        answer = await asyncio.wait_for(anext(answers), 10)
        print(answer.name, answer.type)

asyncio.run(main())
"""
