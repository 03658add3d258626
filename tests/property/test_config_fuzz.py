# ruff: noqa: PT017  (either outcome is right; both are looked at)
"""Any text gives a `Config` or `ConfigErrors` with positions inside the text, in bounded time, and shows no secret."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachebus.config import Config, ConfigErrors, loads, models, shim, transports
from cachebus.config.keyfile import resolve_key
from cachebus.errors import ConfigError

SECRET = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
VALID = f"""\
node: ams-1
keys:
  k: {{algorithm: hmac-sha256, secret: "{SECRET}", origins: [ams-1]}}
sources:
  resolver: {{type: dnstap, listen: "unix:/run/cachebus/dnstap.sock", trust: [confirmed, validated], pairing: off}}
  direct: {{type: stream, listen: "127.0.0.1:6000", claims: validated, insecure: true}}
transports:
  lan: {{type: udp, listen: "[::]:5390", peers: ["192.0.2.11:5390"], key: k, accept: {{evidence: validated}}}}
  other: {{type: vendor, key: k, depth: 3}}
sinks:
  resolver: {{type: unbound, control: "unix:/run/unbound.ctl", rate: 500}}
  mine: {{type: callback, function: "my.module:take"}}
share: {{min_ttl: 1m, second_sighting: 10m, allow: [test], rate: {{node: 1000}}}}
cache: {{max_entries: 5000, max_bytes: 64MiB}}
shim: {{listen: ["127.0.0.1:53"], upstreams: ["127.0.0.1:5335", {{address: "::1", validating: true}}]}}
admin: {{socket: /run/cachebus/api.sock, http: "127.0.0.1:9853"}}
"""
WORDS = sorted(set(VALID.replace("{", " ").replace("}", " ").replace(",", " ").split()) - {f'"{SECRET}"'})
PIECES = st.one_of(
    st.sampled_from(
        [
            *WORDS,
            "&a ",
            "*a ",
            "!!int ",
            "? ",
            "- ",
            "\n",
            "\n  ",
            "[",
            "]",
            "{",
            "}",
            ": ",
            "'",
            '"',
            "|\n",
            "~",
            "<<: ",
        ]
    ),
    st.text(max_size=5),
    st.integers().map(str),
)


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """The valid configuration with a few pieces cut out, doubled or replaced."""
    text = VALID
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.integers(0, 20)))
        text = text[:start] + draw(st.one_of(PIECES, st.just(text[start:end] * 2))) + text[end:]
    return text


def check(text: str) -> None:
    try:
        config = loads(text, file="f", environment={})
    except ConfigErrors as error:
        assert error.problems
        lines = (
            text.replace("\r\n", "\n")
            .replace("\r", "\n")
            .replace("\x85", "\n")
            .replace("\u2028", "\n")
            .replace("\u2029", "\n")
            .split("\n")
        )
        for problem in error.problems:
            assert 1 <= problem.line <= len(lines) + 1
            assert 1 <= problem.column <= len(text) + 1
            assert "\n" not in problem.message
        assert error.__context__ is None or error.__suppress_context__
    else:
        assert isinstance(config, Config)
        assert SECRET not in repr(config)
        assert SECRET not in config.model_dump_json()


KEYS = st.sampled_from(
    sorted(
        {key for model in (models.Config, models.Key, models.DnstapSource, models.StreamSource, models.FileSource,
                           models.ServerTls, transports.Transport, transports.Accept, transports.Flush,
                           transports.TransportTls, transports.Curve, *transports.OPTIONS.values(), models.UnboundSink,
                           models.CallbackSink, models.Share, models.Rate, models.Cache, shim.Shim, shim.Upstream,
                           models.Admin) for key in model.model_fields}
        | {"hints", "swild", "tls", "k", "lan", "[key]", "dnstap"}
    )
)  # fmt: skip
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False),
    st.sampled_from(["dnstap", "stream", "file", "udp", "unbound", "callback", "confirmed", "127.0.0.1:53",
                     "unix:/run/x/y", "file:/nonexistent", "env:X", SECRET, "k", "a..b", "10m", "1KiB"]),
    st.text(max_size=8),
)  # fmt: skip
TREES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=8
)
SECTIONS = st.dictionaries(
    st.sampled_from(sorted(models.Config.model_fields)),
    st.one_of(TREES, st.dictionaries(KEYS, st.dictionaries(KEYS, TREES, max_size=6), max_size=2)),
)


@pytest.mark.property
@given(SECTIONS, st.booleans())
def test_any_tree_of_known_keys_is_a_configuration_or_an_error(tree: dict[str, object], valid_node: bool) -> None:
    if valid_node:
        tree = {**tree, "node": "a"}
    check(json.dumps(tree, ensure_ascii=False))  # JSON is YAML, and quicker to write


def test_the_seed_is_valid() -> None:
    assert loads(VALID, environment={}).node == "ams-1"


@pytest.mark.property
@given(st.one_of(mutated(), mutated(), st.lists(PIECES, max_size=40).map("".join), st.text()))
def test_any_text_is_a_configuration_or_an_error_with_a_place(text: str) -> None:
    check(text)


@pytest.mark.property
@given(
    st.one_of(
        st.text(),
        st.lists(
            st.sampled_from([":", "k", "hmac-sha256", SECRET, SECRET[:5], "file", "env", "/", "\0", "=", " "])
        ).map("".join),
    )
)
def test_any_text_is_a_key_or_an_error_that_hides_it(text: str) -> None:
    try:
        key = resolve_key(text, environment={})
    except ConfigError as error:
        assert SECRET not in str(error) or text.startswith("file:")  # a path is shown: it is what has to be mended
    else:
        assert SECRET not in repr(key)
