"""The keys of `shim` that are about clients: from text to settings, and every mistake with its place."""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path

import jsonschema
import pytest

from cachebus import __version__, assembly
from cachebus.config import ConfigErrors, loads
from cachebus.config.models import Config
from cachebus.shim.access import LOOPBACK
from cachebus.shim.chaos import ChaosSettings
from cachebus.shim.front import FrontSettings
from cachebus.shim.limits import RateLimit

SECRET = "e5e973e5a6b2a43f48e7dc849e37bfcf"


def text(keys: str) -> str:
    return f"node: a\nshim:\n  listen: ['127.0.0.1:53']\n  {keys}\n"


def front(keys: str, directory: Path | None = None) -> FrontSettings:
    settings = assembly.make_shim_settings(loads(text(keys), directory=directory or Path()))
    assert settings is not None
    return settings.front


def problems(keys: str, directory: Path) -> list[str]:
    with pytest.raises(ConfigErrors) as caught:
        loads(text(keys), file="f", directory=directory)
    return [str(problem) for problem in caught.value.problems]


def test_defaults() -> None:
    made = front("timeout: 1")
    assert made.cookies is not None
    assert made.cookies.secrets == ()
    assert (made.deny, made.padding, made.minimal, made.rotate) == ((), True, True, False)
    assert made.rate_limit is None
    assert made.chaos is None


def test_every_key(tmp_path: Path) -> None:
    (tmp_path / "secrets").write_text(f"{SECRET}\n{SECRET[::-1]}\n")
    (tmp_path / "secrets").chmod(0o600)
    keys = """deny: [192.0.2.1]
  cookies: {secret: 'file:secrets'}
  padding: false
  rate_limit: {rate: 0.5, burst: 7, verified: 0, slip: 1, ipv4_prefix: 32, ipv6_prefix: 64, exempt: [10.0.0.0/8]}
  chaos: {version: none, hostname: of your business}
  minimal: false
  rotate: true"""
    made = front(keys, tmp_path)
    assert made.cookies is not None
    assert made.cookies.secrets == (bytes.fromhex(SECRET), bytes.fromhex(SECRET[::-1]))
    assert made.deny == (ip_network("192.0.2.1"),)
    assert (made.padding, made.minimal, made.rotate) == (False, False, True)
    assert made.chaos == ChaosSettings(version="none", hostname="of your business")
    assert made.rate_limit == RateLimit(
        rate=0.5, burst=7, verified=0, slip=1, ipv4_prefix=32, ipv6_prefix=64, exempt=(ip_network("10.0.0.0/8"),)
    )


def test_switches() -> None:
    assert front("cookies: false").cookies is None
    assert front("cookies: true").cookies is not None
    assert front("rate_limit: true").rate_limit == RateLimit(exempt=LOOPBACK)
    assert front("rate_limit: {enabled: false, rate: 3}").rate_limit is None
    assert front("chaos: true").chaos == ChaosSettings(version=f"cachebus {__version__}", hostname="a")
    assert front("chaos: false").chaos is None
    assert front("cookies: off").cookies is None
    assert front("rate_limit: on").rate_limit == RateLimit(exempt=LOOPBACK)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ("cookies: {secret: 'file:none'}", "4:21: shim.cookies.secret: cannot be read: No such file or directory"),
        (f"cookies: {{secret: '{SECRET}'}}", "4:21: shim.cookies.secret: must be `file:PATH` or `env:VAR`"),
        ("cookies: {secret: 'file:short'}",
         "4:21: shim.cookies.secret: must hold 1 to 3 lines of 32 hex digits, the first of which signs"),
        ("cookies: often", "4:12: shim.cookies: wants a mapping (`key: value`)"),
        ("rate_limit: {rate: 0}", "4:22: shim.rate_limit.rate: is below 0.1"),
        ("rate_limit: {slip: 101}", "4:22: shim.rate_limit.slip: is above 100"),
        ("rate_limit: {speed: 1}", "4:16: shim.rate_limit.speed: unknown key"),
        ("deny: [here]", "4:10: shim.deny.0: 'here' is not an address or network such as 192.0.2.0/24"),
        (f"chaos: {{version: {'x' * 256}}}", "4:20: shim.chaos.version: is longer than 255 bytes"),
        (f"chaos: {{hostname: {'é' * 128}}}", "4:21: shim.chaos.hostname: is longer than 255 bytes"),
    ],
)  # fmt: skip
def test_each_mistake(tmp_path: Path, keys: str, expected: str) -> None:
    (tmp_path / "short").write_text(SECRET[:-2])
    (tmp_path / "short").chmod(0o600)
    assert problems(keys, tmp_path) == [f"f:{expected}"]


def test_no_secret_shows(tmp_path: Path) -> None:
    (tmp_path / "secrets").write_text(SECRET)
    (tmp_path / "secrets").chmod(0o604)
    (shown,) = problems("cookies: {secret: 'file:secrets'}", tmp_path)
    assert "lets everyone in" in shown
    (tmp_path / "secrets").chmod(0o600)
    config = loads(text("cookies: {secret: 'file:secrets'}"), directory=tmp_path)
    assert SECRET not in repr(config) + config.model_dump_json() + repr(assembly.make_shim_settings(config))


def test_an_open_resolver_is_warned_of_unless_its_rate_is_limited() -> None:
    warned = loads(text("allow: [10.0.0.0/8, '::/0']"), file="f").warnings
    assert [str(warning) for warning in warned] == [
        "f:4:23: shim.allow.1: serves the whole Internet, forged addresses too; set `rate_limit`"
    ]
    assert not loads(text("allow: ['::/0']\n  rate_limit: true")).warnings
    assert loads(text("allow: ['::/0']\n  rate_limit: false")).warnings


def test_the_schema_knows_the_switches() -> None:
    schema = Config.model_json_schema()
    for keys in ({"cookies": False}, {"chaos": True}, {"rate_limit": {"rate": 5}}, {"cookies": {"secret": "file:x"}}):
        jsonschema.validate({"node": "a", "shim": {"listen": ["127.0.0.1:53"], **keys}}, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"node": "a", "shim": {"listen": ["127.0.0.1:53"], "cookies": "often"}}, schema)
