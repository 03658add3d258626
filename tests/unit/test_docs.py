"""What the manual says is true of the code: its configurations load, its commands parse, its bytes verify."""

from __future__ import annotations

import base64
import hmac
import importlib.util
import re
import shlex
import subprocess
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import click
import pytest
from click.testing import CliRunner

from cachebus import Refusal, daemon, metrics, node
from cachebus.cli import cachebus as command_line
from cachebus.cli import keygen_tls
from cachebus.codecs import dns
from cachebus.config import loads
from cachebus.config.keyfile import make_key, write_key_file
from cachebus.config.loader import LATER
from cachebus.filters import pairing, policy
from cachebus.ports import TransportSettings
from cachebus.registry import installed_transports
from cachebus.shim import forward, swild_owners
from cachebus.sinks import unbound
from cachebus.testing import TransportBed, transport_contract
from cachebus.wire import tsig
from cachebus.wire.message import parse
from tests.servers import find, require

ROOT = Path(__file__).resolve().parents[2]
CAPTURE = ROOT / "tests" / "data" / "unbound-pr1250-signed.hex"
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "transports/README.md")),
    *(path for path in sorted((ROOT / "docs").rglob("*.md")) if path.name != "STATUS.md"),
]
MINIMAL = "node: ams-1\nkeys:\n  home-2026: {secret: 'file:/etc/cachebus/home-2026.key'}\n"
"""What an excerpt of a configuration needs around it."""


class Block(NamedTuple):
    """A fenced block of a page, without its indentation."""

    page: str
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}: {self.text.splitlines()[0] if self.text else ''}"


def blocks(*languages: str, pages: list[Path] = PAGES) -> list[Block]:
    """Every fenced block in one of these languages."""
    fence = re.compile(r"^( *)```(\w+)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
    return [
        Block(str(page.relative_to(ROOT)), match[2], textwrap.dedent(match[3]))
        for page in pages
        for match in fence.finditer(page.read_text())
        if match[2] in languages
    ]


def hex_rows(text: str) -> bytes:
    """The bytes of a hex dump whose comments stand after two spaces."""
    return bytes.fromhex("".join(line.partition("   ")[0] for line in text.splitlines()))


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A directory in place of the manual's, with the files that it names."""
    write_key_file(tmp_path / "home-2026.key", make_key("home-2026"))
    for name in ("answers.wire", "ads.txt", "order.rpz", "dns.example.net.pem", "dns.example.net.key"):
        (tmp_path / name).touch(mode=0o600)
    (tmp_path / "cookie.secrets").touch(mode=0o600)
    (tmp_path / "cookie.secrets").write_text("00" * 16)
    assert CliRunner().invoke(keygen_tls.tls, ["ams-1", "-o", str(tmp_path)]).exit_code == 0
    return tmp_path


def load(text: str, machine: Path) -> object:
    """Check a configuration as if the machine were the manual's; `ConfigError` when it is wrong."""
    for directory in ("/etc/cachebus", "/run/cachebus", "/var/lib/cachebus"):
        text = text.replace(directory, str(machine))
    return loads(text, directory=machine)


# Configurations


def test_readme_has_one_configuration_of_at_most_fifteen_lines(machine: Path) -> None:
    (configuration,) = blocks("yaml", pages=[ROOT / "README.md"])
    assert len(configuration.text.splitlines()) <= 15
    load(configuration.text, machine)


def test_quickstart_and_readme_show_the_same_configuration() -> None:
    (readme,) = blocks("yaml", pages=[ROOT / "README.md"])
    (quickstart,) = blocks("yaml", pages=[ROOT / "docs" / "quickstart.md"])
    assert quickstart.text == readme.text


@pytest.mark.parametrize("block", [one for one in blocks("yaml") if "unixgram" not in one.text], ids=str)
def test_every_configuration_is_right(block: Block, machine: Path) -> None:
    load(block.text if block.text.startswith("node:") else MINIMAL + block.text, machine)


def test_a_wrong_configuration_would_be_noticed(machine: Path) -> None:
    with pytest.raises(Exception, match="sinkz"):
        load(MINIMAL + "sinkz: {}\n", machine)


@pytest.mark.interop
def test_unbound_takes_its_lines(tmp_path: Path) -> None:
    require("unbound")
    for page in (ROOT / "README.md", ROOT / "docs/resolvers/unbound.md"):
        text = "".join(one.text for one in blocks("text", pages=[page]) if ":\n    " in one.text)
        for line in ("dnstap-log-client-response-messages: yes", "control-interface:"):
            assert line in text
        (tmp_path / "unbound.conf").write_text(text)
        checker = find("unbound-checkconf")
        assert checker
        done = subprocess.run([checker, tmp_path / "unbound.conf"], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr


@pytest.mark.interop
def test_bind_takes_its_lines(tmp_path: Path) -> None:
    require("bind")
    (block,) = blocks("text", pages=[ROOT / "docs/resolvers/bind.md"])
    (tmp_path / "named.conf").write_text(block.text)
    checker = find("named-checkconf")
    assert checker
    done = subprocess.run([checker, tmp_path / "named.conf"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


# Commands


def command_lines() -> Iterator[tuple[str, list[str]]]:
    for block in blocks("sh"):
        for line in block.text.replace("\\\n", " ").splitlines():
            words = shlex.split(re.sub(r"^sudo (-u \w+ )?", "", line), comments=True)
            if words[:1] == ["cachebus"]:
                yield f"{block.page}: {line.strip()}", words[1:]


def command_of(words: list[str]) -> tuple[click.Command, click.Context, list[str]]:
    """The innermost command that these words call, and the words that are left for it."""
    command: click.Command = command_line
    context = click.Context(command, info_name="cachebus")
    while isinstance(command, click.Group):
        inner = command.get_command(context, words[0])
        assert inner is not None, f"no such verb: {words[0]}"
        command, words = inner, words[1:]
        context = click.Context(command, info_name=command.name, parent=context)
    return command, context, words


@pytest.mark.parametrize("words", [pytest.param(words, id=where) for where, words in command_lines()])
def test_every_command_exists_with_its_options(words: list[str]) -> None:
    command, context, rest = command_of(words)
    command.make_parser(context).parse_args(rest)  # raises for an option that does not exist


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_verb_in_the_text_exists(page: Path) -> None:
    for verb in re.findall(r"`cachebus ([a-z]+)", page.read_text()):
        command_of({"keygen": ["keygen", "tsig"], "snapshot": ["snapshot", "save"]}.get(verb, [verb]))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_page_leads_to_a_working_paper(page: Path) -> None:
    assert "STATUS" not in page.read_text()


# Figures


FIGURES = [
    ("docs/sinks/unbound.md", "at most {}", unbound.BATCH_ANSWERS),
    ("docs/sinks/unbound.md", "second, {} by default", unbound.DEFAULT_RATE),
    ("docs/sinks/unbound.md", "up to {:,}", unbound.MAX_REFILL),
    ("docs/operations.md", "to {:,}, or to the hard limit", daemon.DESCRIPTORS),
    ("docs/operations.md", "more than {:g} s is logged", node.CLOCK_WARNING),
    ("docs/operations.md", "within `fudge` ({} s)", tsig.MAX_FUDGE),
    ("docs/operations.md", "are refused for {} s", tsig.MAX_FUDGE),
    ("docs/wire/dns.md", "min(fudge, {}) seconds", tsig.MAX_FUDGE),
    ("docs/wire/dns.md", "`max_message` bytes ({} by default)", dns.MAX_MESSAGE),
    ("docs/wire/dns.md", "at most {} of them", dns.MAX_HEADS),
    ("docs/adr/0004-pairing-ports.md", "last {} opened", pairing.RECENT_PORTS),
    ("docs/adr/0005-min-ttl-is-the-senders.md", "TTL, {} s by default", policy.MIN_TTL),
    ("docs/shim.md", "after {} s or an error", forward.TRY_INTERVAL),
    ("docs/shim/swild.md", "now ({:,} at most", swild_owners.MAX_OWNERS),
    ("docs/shim/swild.md", "more than {} links", forward.MAX_CNAMES),
]
"""Page, words, and the constant that stands in them."""


@pytest.mark.parametrize(("page", "words", "constant"), FIGURES, ids=[f"{page} {words}" for page, words, _ in FIGURES])
def test_figures_are_those_of_the_code(page: str, words: str, constant: float) -> None:
    assert words.format(constant) in " ".join((ROOT / page).read_text().split())


def test_metrics_of_the_shim_are_counted() -> None:
    code = "".join(path.read_text() for path in (ROOT / "cachebus/shim").glob("*.py"))
    named = set(re.findall(r"cachebus_shim_(\w+)", (ROOT / "docs/operations.md").read_text()))
    assert [name for name in sorted(named) if f'"{name.removesuffix("_total")}"' not in code] == []
    assert {name for name in named if not name.endswith("_total")} == named & metrics.GAUGES


def test_configuration_names_every_key_of_later_versions() -> None:
    text = (ROOT / "docs/configuration.md").read_text()
    keys = LATER[""] | LATER["shim"] | LATER["share"]
    assert [key for key in sorted(keys) if f"{key}`" not in text] == []


# Bytes


def test_worked_example_is_the_capture() -> None:
    lines = [line for line in CAPTURE.read_text().splitlines() if not line.startswith("#")]
    message, _ = (one.text for one in blocks("text", pages=[ROOT / "docs/wire/dns.md"]))
    assert hex_rows(message) == bytes.fromhex(lines[0])


def test_worked_example_verifies_from_what_the_page_says() -> None:
    page = (ROOT / "docs/wire/dns.md").read_text()
    message, mac_input = (hex_rows(one.text) for one in blocks("text", pages=[ROOT / "docs/wire/dns.md"]))
    secret = re.search(r"secret in base64 `([A-Za-z0-9+/=]+)`", page)
    assert secret
    assert len(mac_input) == 94
    assert hmac.digest(base64.b64decode(secret[1]), mac_input, "sha256") == message[96:128]


def test_worked_example_fields_stand_where_the_table_says() -> None:
    page = (ROOT / "docs/wire/dns.md").read_text()
    message = hex_rows(blocks("text", pages=[ROOT / "docs/wire/dns.md"])[0].text)
    rows = re.findall(r"^\| (\d+) \| `([0-9a-f …]+)` \|", page, re.MULTILINE)
    position = 0
    for offset, digits in rows:
        assert int(offset) == position
        head, dots, tail = digits.replace(" ", "").partition("…")
        length = 32 if dots else len(head) // 2
        field = message[position : position + length].hex()
        assert field.startswith(head)
        assert field.endswith(tail)
        position += length
    assert position == len(message)


def test_stream_example_is_a_frame() -> None:
    example = next(one for one in blocks("text", pages=[ROOT / "docs/wire/stream.md"]) if one.text.startswith("00"))
    frame = hex_rows(example.text)
    length, message = int.from_bytes(frame[:4], "big"), parse(frame[4:])
    assert length == len(frame) - 4
    assert f"({len(frame)} bytes)" in (ROOT / "docs/wire/stream.md").read_text()
    assert message.answer[0].ttl == 600


# Reference


def generated() -> ModuleType:
    specification = importlib.util.spec_from_file_location("generated", ROOT / "docs/_ext/generated.py")
    assert specification
    assert specification.loader
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_reference_has_every_reason() -> None:
    text = generated().refusals()
    assert [reason.value for reason in Refusal if f"| `{reason.value}` |" not in text] == []


def test_reference_has_every_verb() -> None:
    text = generated().commands()
    context = click.Context(command_line, info_name="cachebus")
    assert [verb for verb in command_line.list_commands(context) if f"\n## {verb}" not in f"\n{text}"] == []


def test_every_transport_has_a_page() -> None:
    modules = {point.module.rpartition(".")[2] for point in installed_transports().values()}  # names may share it
    assert [name for name in sorted(modules) if not (ROOT / f"docs/transports/{name}.md").exists()] == []


@pytest.mark.parametrize("kind", ["sources", "sinks"])
def test_every_type_has_a_page(kind: str) -> None:
    text = generated().configuration()
    suffix = kind.removesuffix("s").capitalize()
    types = re.findall(rf"^## \w+{suffix}\n.*?^\| `type` \| `([\w-]+)`", text, re.MULTILINE | re.DOTALL)
    assert len(types) >= 3
    assert [name for name in types if not (ROOT / f"docs/{kind}/{name}.md").exists()] == []


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "transports/README.md", "CHANGELOG.md"])
def test_links_outside_the_manual_lead_somewhere(name: str) -> None:
    page = ROOT / name
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


# The example of "write a transport"


@pytest.fixture
def example() -> type:
    """The class that the page shows."""
    code = next(one.text for one in blocks("python", pages=[ROOT / "transports/README.md"]) if "class " in one.text)
    namespace: dict[str, type] = {"__name__": "example"}
    exec(compile(code, "transports/README.md", "exec"), namespace)
    return namespace["UnixgramTransport"]


@pytest.mark.parametrize("check", transport_contract(), ids=lambda check: check.__name__)
async def test_example_transport_keeps_the_contract(check, example: type, tmp_path: Path) -> None:
    def settings(index: int, count: int) -> TransportSettings:
        paths = [f"{tmp_path}/{number}.sock" for number in range(count)]
        peers = tuple(path for path in paths if path != paths[index])
        return TransportSettings(name="local", node=f"node-{index}", cluster="test", listen=paths[index], peers=peers)

    await check(TransportBed(factory=example, settings=settings, window=8))
