# ruff: noqa: PT017, E501  (either outcome is right; sections are better read in one piece)
"""Targets: configuration files (`config.document`, `config.loader`, `config.checks`).

PyYAML and pydantic take milliseconds for a file of the usual size, so the texts here are small: one section or two.
"""

from __future__ import annotations

import json
import tempfile
import weakref
from pathlib import Path
from random import Random
from typing import Any

from pydantic import BaseModel

from cachebus import assembly
from cachebus.config import Config, ConfigErrors, loads, models, shim, shim_swild, transports
from cachebus.config.document import MAX_DEPTH, MAX_FILE, MAX_NODES, Document, natural, parse
from cachebus.config.loader import admin_socket, load
from cachebus.config.problems import Problem
from cachebus.errors import ConfigError
from tests.fuzz.harness import Part, Target
from tests.fuzz.mutate import ODD_TEXT, below
from tests.fuzz.text import SECRETS, TextTarget

SECRET = SECRETS[0]
KEYS = f'keys: {{k: {{algorithm: hmac-sha256, secret: "{SECRET}"}}}}\n'
SECTIONS = (
    KEYS,
    f'keys: {{k: {{secret: "{SECRET}", origins: [a, b], max_evidence: confirmed, evidence: confirmed}}, l: {{secret: "env:K"}}}}\n',
    'sources: {s: {type: dnstap, listen: "unix:/run/cachebus/d", trust: [confirmed], pairing: off, evidence_window: 5s}}\n',
    'sources: {s: {type: dnstap, listen: "127.0.0.1:6000", insecure: true, trusted_forwarders: [192.0.2.0/24]}}\n',
    'sources: {s: {type: stream, listen: "127.0.0.1:6000", claims: validated, insecure: true}}\n',
    'sources: {s: {type: file, path: "/dev/null", resolver_frames: none, format: wire, claims: confirmed}}\n',
    'sources: {s: {type: dnstap, listen: "0.0.0.0:6000", tls: {cert: /c, key: /k, ca: /a}, allow_uids: [1]}}\n',
    KEYS + 'transports:\n  lan: {type: udp, listen: "[::]:5390", peers: ["192.0.2.11:5390"], key: k}\n',
    KEYS + "transports: {o: {type: vendor, key: k, keys: [k], depth: 3, on: yes, f: 1.5, n: ~, l: [a, {b: 2}]}}\n",
    KEYS
    + 'transports: {u: {type: udp, peers: ["192.0.2.1:1", "192.0.2.1:1"], key: k, socket_buffer: 1MiB, peers_only: true}}\n',
    'transports: {m: {type: mqtt, url: "mqtts://broker:8883", codec: batch}}\n',
    'sinks: {u: {type: unbound, control: "unix:/run/unbound.ctl", rate: 500}, c: {type: cache}}\n',
    'sinks: {u: {type: unbound, control: "192.0.2.1:8953", tls: {ca: /s, cert: /c, key: /k}}}\n',
    'sources: {s: {type: unbound-cache, control: "unix:/run/u", tls: {ca: /s, cert: /c, key: /etc/passwd}}}\n',
    'sources: {s: {type: unbound-cache, control: "192.0.2.1:8953", trust: [authoritative], rate: 5, max_bytes: 1MiB}}\n',
    'sources: {s: {type: dnstap, listen: "unix:/run/d", insecure: true, tls: {cert: /c, key: /k, ca: /a}}}\n',
    'sources: {s: {type: stream, listen: "192.0.2.1:6000", claims: authoritative}}\nstate: /dev/null\n',
    'sinks: {m: {type: callback, function: "my.module:take"}}\n',
    f'keys: {{k: {{secret: "{SECRET}", max_evidence: confirmed, evidence: validated}}, K.: {{secret: "env:X"}}}}\n',
    'keys: {k: {algorithm: hmac-sha512, secret: "env:X"}, other: {secret: "env:X"}, l: {secret: "file:/dev/null"}}\n',
    'sources: {s: {type: file, path: "/etc/passwd", format: wire}, t: {type: file, path: "/dev"}}\n',
    'sources: {s: {type: stream, listen: "127.0.0.1:6000", claims: confirmed}, t: {type: stream, listen: "127.0.0.1:6000", claims: confirmed}}\n',
    'sources: {s: {type: dnstap, listen: "unix:/run/d", resolver_frames: none, trusted_forwarders: [192.0.2.1]}}\n',
    f'keys: {{k: {{secret: "{SECRET}", origins: [other]}}}}\ntransports: {{u: {{type: udp, key: k}}}}\n',
    'sinks: {u: {type: unbound, control: "unix:/run/u", tls: {ca: /s, cert: /c, key: /etc/passwd}}}\n',
    'sinks: {u: {type: unbound, control: "192.0.2.1:8953"}, v: {type: unbound, control: "127.0.0.1:8953"}}\n',
    'shim: {listen: ["127.0.0.1:0", "127.0.0.1:5"], upstreams: [{address: "192.0.2.1", validating: true, authoritative: true}, "127.0.0.1:5"]}\n',
    "share: {min_ttl: 1d, max_ttl: 1h}\n",
    "share: {rate: {node: 0, zone: .nan}}\n",
    f"shim: {{listen: [127.0.0.1:53], upstreams: [{', '.join(['::1'] * 65)}]}}\n",
    "share: {min_ttl: 1m, second_sighting: 10m, allow: [test], deny: [x.example], rate: {node: 10}, private_names: never}\n",
    "cache: {max_entries: 5000, max_bytes: 64MiB}\n",
    'shim: {listen: ["127.0.0.1:53"], swild: {zones: [".", "a.b."], type: 65280, ttl_cap: 1h, include: "off", discover: false}}\n',
    'shim: {listen: ["127.0.0.1:53"], upstreams: ["127.0.0.1:5335", {address: "::1", validating: true, tls_name: a.b}]}\n',
    'admin: {socket: /run/cachebus/api.sock, http: "127.0.0.1:9853"}\n',
    'admin: {http: "0.0.0.0:80", http_beyond_loopback: true}\ncluster: home\n',
    KEYS
    + 'transports: {m: {type: mqtt, url: "mqtts://a@broker:8883", key: k, username: a, password: "env:K", qos: 1, zstd: true, tls: {ca: /dev/null}}}\n',
    KEYS
    + 'transports: {m: {type: mqtt, url: "mqtt://:b@[::1]:1", key: k, password: "file:/dev/null", tls: {ca: /etc/passwd, cert: /etc/passwd}}}\n',
    KEYS
    + 'transports: {m: {type: mqtt, url: "mqtts://b", key: k, keys: [k], tls: {ca: /c, cert: /a, key: /etc/passwd, peers: [a.b]}}}\n',
    KEYS
    + 'transports: {m: {type: mqtt, key: k, password: "file:/proc/self/io"}, n: {type: mqtt, url: "http://b:0", key: k}}\n',
    'transports: {t: {type: tcp, listen: "192.0.2.1:5391", peers: ["192.0.2.2:5391"], tls: {ca: /a, cert: /b, key: /etc/passwd, peers: {a.b: {origins: [a], max_evidence: confirmed}}}}}\n',
    'transports: {t: {type: tcp, listen: "127.0.0.1:5391", peers: ["[::1]:1", "192.0.2.1:1", "::"], insecure: true, zstd: true}, u: {type: tcp, listen: "127.0.0.1:5391"}}\n',
    KEYS
    + 'transports: {q: {type: quic, peers: ["192.0.2.2:1"], key: k, keys: [k], insecure: true, tls: {ca: /a, peers: ["a..b"]}}, r: {type: quic, listen: "[::]:0"}}\n',
    KEYS
    + 'transports: {g: {type: multicast, group: "[ff02::5390]:5390", key: k, hops: 2, interface: lo, sources: [192.0.2.1]}, h: {type: multicast, group: "192.0.2.1:1", key: k}}\n',
    KEYS
    + 'transports: {z: {type: zeromq, bind: ["tcp://127.0.0.1:1"], connect: ["ipc:///a"], key: k, hwm: 5, curve: {secret: /s, server: x, allow: {a: y}}}}\n',
    KEYS
    + 'transports: {z: {type: zeromq, key: k, listen: "127.0.0.1:1", url: a, tls: {ca: /a}, flush: {count: 9, bytes: 1KiB, interval: 1s}}, y: {type: zeromq, codec: cdns, key: k}}\n',
    KEYS + 'transports: {z: {type: zeromq, bind: ["tcp://127.0.0.1:1"], connect: ["ipc:///a"], key: k, hwm: 50}}\n',
    KEYS
    + 'transports: {z: {type: zeromq, hub: {publishers: "tcp://192.0.2.5:1", subscribers: "tcp://192.0.2.5:2"}, key: k}, y: {type: zeromq, key: k}}\n',
    KEYS + 'transports: {m: {type: mqtt, url: "mqtt://a@broker", key: k, qos: 1, password: "file:/etc/passwd"}}\n',
    KEYS
    + 'transports: {m: {type: mqtt, url: "mqtt://broker:1883", key: k, keepalive: 1m, cluster: c, flush: {count: 9}}}\n',
    'snapshot: {listen: "192.0.2.1:5395", peers: ["192.0.2.2:5395"], tls: {ca: /a, cert: /b, key: /c, peers: [a.b]}, insecure: true, rate: 200}\n',
    'snapshot: {listen: "127.0.0.1:5395", peers: ["[::1]:1", "192.0.2.2:5395"], insecure: true, max_entries: 10, zstd: true}\n',
    'snapshot: {listen: "[::1]:0", peers: ["127.0.0.1:1"]}\ntransports: {m: {type: mqtt, url: "mqtts://b", tls: {ca: /a, cert: /b}}}\n',
    'snapshot: {tls: {ca: /a}}\ntransports: {m: {type: mqtt, url: "mqtt://b", tls: {ca: /a}}}\n',
)
TYPES = frozenset({"udp", "vendor", "multicast", "mqtt", "zeromq", "tcp", "quic"})
MODELS: tuple[type[BaseModel], ...] = (
    models.Config, models.Key, models.DnstapSource, models.StreamSource, models.FileSource, models.ServerTls,
    models.UnboundSink, models.CallbackSink, models.Share, models.Rate, models.Cache, shim.Shim, shim.Upstream, shim_swild.Swild,
    models.Admin, models.Snapshot, transports.Transport, transports.Accept, transports.Flush, transports.Peer, transports.TransportTls,
    transports.Curve, *transports.OPTIONS.values(),
)  # fmt: skip
NAMES = tuple(sorted({
    key
    for model in MODELS
    for key in model.model_fields
} | {"hints", "swild", "tls", "k", "lan", "[key]", "dnstap", "site", "qos", "url"}))  # fmt: skip
WORDS = ("dnstap", "stream", "file", "udp", "unbound", "callback", "cache", "confirmed", "validated", "127.0.0.1:53",
         "unix:/run/x/y", "unix:/run/x", "/run/x", "file:/nonexistent", "env:X", SECRET, "k", "lan", "a..b", "10m", "1KiB",
         "0.0.0.0:1", "192.0.2.1:53", "::1", "[::1]:53", "my.module:f", "true", "0", "-1", "1e3", "99999999999999999999", "a",
         "conFirmed", "dnstp", "udpp", "batch", "mqtt", "192.0.2.0/24", "A", "*", "example.test.")  # fmt: skip
PIECES = (*ODD_TEXT, *WORDS, *(f"{name}: " for name in NAMES), "&a ", "*a ", "!!int ", "? ", "- ", "\n", "\n  ", "\n- ",
          "[", "]", "{", "}", ": ", ", ", "'", '"', "|\n ", ">-\n ", "~", "<<: ", "---\n", "...\n", "%YAML 1.2\n", "# c\n",
          '"\\x41"', '"\\U0011FFFF"', "\t", "[[[[[[[[[[[[[[[[", "{a: &a [*a, *a]}")  # fmt: skip
MOST_TEXT = 1500
"""Characters of an example: PyYAML reads some 100 a millisecond."""


def expected_lines(text: str) -> int:
    """Lines as YAML counts them, at most."""
    for end in ("\r\n", "\r", "\x85", "\u2028", "\u2029"):
        text = text.replace(end, "\n")
    return text.count("\n") + 1


def check_problems(problems: tuple[Problem, ...] | list[Problem], text: str) -> None:
    """Each has a place in the file and one printable line, without a secret."""
    lines = expected_lines(text)
    hidden = text.count(SECRET) == text.count(f'secret: "{SECRET}"')  # anywhere else it is no secret
    for problem in problems:
        assert 1 <= problem.line <= lines + 1
        assert 1 <= problem.column <= len(text) + 1
        assert "\n" not in problem.message
        assert not hidden or SECRET not in problem.message
        assert len(problem.message) < 2000


class _YamlTarget(TextTarget):
    pieces = PIECES

    def draw(self, rng: Random) -> tuple[str, bool]:
        text, is_mutation = super().draw(rng)
        return text[:MOST_TEXT], is_mutation


class DocumentTarget(_YamlTarget):
    """`document.parse`: a tree with places inside the text, or `ConfigErrors`."""

    name = "config-document"
    parts = (Part("cachebus/config/document.py"),)
    cost = 8

    def valid(self, rng: Random) -> str:
        if rng.random() < 0.3:
            return "node: a\n" + SECTIONS[below(rng, len(SECTIONS))]
        return _block(rng, 0)

    def check(self, example: str, rng: Random) -> bool:
        if rng.random() < 0.002:
            example = _large(rng)
        try:
            document, problems = parse(example, "f")
        except ConfigErrors as error:
            assert error.problems
            check_problems(list(error.problems), example)
            assert error.__context__ is None, "PyYAML's exceptions hold the text"
            return False
        check_problems(problems, example)
        value = document.value()
        assert isinstance(value, dict)
        self._walk(document, value, ())
        assert document.root.size <= MAX_NODES + 1
        natural(document.root)
        for place in (("a", "b", 7), ("a", 0, "c"), (NAMES[below(rng, len(NAMES))],)):
            check_problems([document.problem(place, "x", at_key=rng.random() < 0.5)], example)
            document.at(*place)
        return True

    def _walk(self, document: Document, value: object, place: tuple[str | int, ...]) -> None:
        node = document.at(*place)
        assert node is not None
        assert len(place) <= MAX_DEPTH
        if len(place) > 3:
            return
        if isinstance(value, dict):
            for key, below_it in value.items():
                assert isinstance(key, str)
                self._walk(document, below_it, (*place, key))
        elif isinstance(value, list):
            for index, below_it in enumerate(value[:4]):
                self._walk(document, below_it, (*place, index))
        else:
            assert value is None or isinstance(value, str)


def _block(rng: Random, depth: int) -> str:
    """A small mapping in some style, with anchors and aliases."""
    indent = "  " * depth
    lines = []
    for _ in range(1 + below(rng, 3)):
        key = NAMES[below(rng, len(NAMES))]
        die = rng.random()
        if die < 0.2 and depth < 3:
            lines.append(f"{indent}{key}:\n{_block(rng, depth + 1)}")
        elif die < 0.3:
            lines.append(f"{indent}{key}: [{WORDS[below(rng, 8)]}, '{WORDS[below(rng, len(WORDS))]}', 3, off]\n")
        elif die < 0.4:
            lines.append(f"{indent}{key}: &a {{b: 1, c: ~}}\n{indent}d: *a\n")
        elif die < 0.5:
            lines.append(f"{indent}{key}:\n{indent}- x\n{indent}- 1.5\n{indent}- true\n")
        else:
            lines.append(f'{indent}{key}: "{WORDS[below(rng, len(WORDS))]}"  # why\n')
    return "".join(lines)


def _large(rng: Random) -> str:
    """What multiplies, nests or repeats."""
    match below(rng, 3):
        case 0:
            levels = [f"l{level}: &l{level} [{', '.join([f'*l{level - 1}'] * 9)}]" for level in range(1, 8)]
            return "l0: &l0 [a, b]\n" + "\n".join(levels)
        case 1:
            return "a: " + "[" * 60 + "]" * 60
        case _:
            return "".join(f"k{number % 30}: 1\n" for number in range(60))


ODD_FILES = tuple(Path(text) for text in ("/dev/null", "/", "/nonexistent", "/etc/passwd/x", "a\0b", "x" * 300))


class ConfigTarget(_YamlTarget):
    """`loads`, `load`: a `Config` that shows no secret, or `ConfigErrors` with every problem at its place."""

    name = "config"
    parts = (
        Part("cachebus/config/loader.py"),
        Part("cachebus/config/checks.py"),
        Part("cachebus/config/transport_checks.py"),
        Part("cachebus/config/shim_checks.py"),
        Part("cachebus/config/tools.py"),
    )
    cost = 10
    calls = 2

    def __init__(self) -> None:
        folder = tempfile.TemporaryDirectory(prefix="cachebus-fuzz-")
        weakref.finalize(self, folder.cleanup)
        self._file = Path(folder.name) / "c.yaml"

    def valid(self, rng: Random) -> str:
        text = "node: ams-1\n" + SECTIONS[below(rng, len(SECTIONS))]
        if rng.random() < 0.3:
            more = SECTIONS[below(rng, len(SECTIONS))]
            text += more if more.split(":", maxsplit=1)[0] not in text else ""
        return text

    def mutated(self, rng: Random) -> str:
        return super().mutated(rng) if rng.random() < 0.5 else self._words(rng)

    def _words(self, rng: Random) -> str:
        """Another word where one stood: still YAML, so pydantic and the checks get to see it."""
        text = self.valid(rng)
        for _ in range(1 + below(rng, 3)):
            places = [at for at in range(1, len(text)) if text[at - 1] in ' [{"' and text[at].isalnum()]
            start = places[below(rng, len(places))]
            stop = start
            while stop < len(text) and text[stop] not in ',]}"\n' and not text.startswith(": ", stop):
                stop += 1
            pool = NAMES if text.startswith(": ", stop) else WORDS
            text = text[:start] + pool[below(rng, len(pool))] + text[stop:]
        return text

    def noise(self, rng: Random) -> str:
        """A tree of known keys with any values."""
        tree = {NAMES[below(rng, len(NAMES))]: self._tree(rng, 3) for _ in range(below(rng, 4))}
        return json.dumps({"node": "a", **tree})

    def _tree(self, rng: Random, depth: int) -> object:
        die = rng.random()
        if die < 0.5 and depth:
            return {NAMES[below(rng, len(NAMES))]: self._tree(rng, depth - 1) for _ in range(below(rng, 3))}
        if die < 0.6:
            return [self._tree(rng, 0) for _ in range(below(rng, 3))]
        return (
            (None, True, below(rng, 70000), -1, rng.random(), "")[below(rng, 6)]
            if die < 0.7
            else WORDS[below(rng, len(WORDS))]
        )

    def check(self, example: str, rng: Random) -> bool:
        if rng.random() < 0.001:
            example = example.ljust(MAX_FILE + 1)
        try:
            config = self._load(example, rng)
        except ConfigErrors as error:
            assert error.problems
            check_problems(list(error.problems), example)
            assert error.__context__ is None or error.__suppress_context__
            return False
        assert isinstance(config, Config)
        check_problems(list(config.warnings), example)
        if example.count(SECRET) == example.count(f'secret: "{SECRET}"'):
            assert SECRET not in repr(config)
            assert SECRET not in config.model_dump_json()
        return True

    def _load(self, example: str, rng: Random) -> Config:
        """As text; or from a file, as a node does, which asks every transport what it makes of its section."""
        more: dict[str, Any] = {
            "transport_types": TYPES if rng.random() < 0.8 else None,
            "environment": {"K": SECRET, "X": f"k:hmac-sha256:{SECRET}"} if rng.random() < 0.7 else {},
        }
        if rng.random() < 0.7:
            return loads(example, file="f", directory=Path("/"), **more)
        path = self._file
        path.write_bytes(example.encode("utf-8", "surrogatepass"))
        path.chmod(0o644 if rng.random() < 0.5 else 0o600)
        if rng.random() < 0.02:
            path = ODD_FILES[below(rng, len(ODD_FILES))]
        if rng.random() < 0.2:
            self._socket(path, example)
        return load(path, try_transport=assembly._try_transport, **more)

    def _socket(self, path: Path, example: str) -> None:
        try:
            socket = admin_socket(path)
        except ConfigErrors as error:
            check_problems(list(error.problems), example)
        except ConfigError as error:
            assert "no `admin.socket`" in str(error)
        else:
            assert socket.startswith("/")


TARGETS: tuple[type[Target[Any]], ...] = (ConfigTarget, DocumentTarget)
