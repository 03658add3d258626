# ruff: noqa: PT017  (either outcome is right; both are looked at)
"""Targets: what people type (names, types, keys, addresses, URLs, durations) and files of hex."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from cachebus_transports.udp import parse_endpoint as parse_udp_endpoint

from cachebus.answer import Evidence
from cachebus.cli.explain_rows import read_wire_file
from cachebus.config import values
from cachebus.config.keyfile import KeyMaterial, key_text, read_key_file, resolve_key
from cachebus.errors import ConfigError, FrameError, MessageError
from cachebus.presentation import TYPES, check_name, name_from_text, name_to_text, type_from_text, type_to_text
from cachebus.urls import Beside, Role, make_link, names, parse_url, split_peer
from cachebus.wire.framestream import write_messages
from tests.fuzz import opinion
from tests.fuzz.grammar import make_message, pick_name
from tests.fuzz.harness import Part, Target
from tests.fuzz.messages import BytesTarget
from tests.fuzz.mutate import ODD_TEXT, below, mutate_text, noise_text

SURROGATE = "\udce9"
"""How Python shows a byte of the command line that is not UTF-8."""


class TextTarget(Target[str]):
    """What every target that takes text draws from."""

    pieces: tuple[str, ...] = ODD_TEXT

    def mutated(self, rng: Random) -> str:
        """A valid text with some changes."""
        return mutate_text(rng, self.valid(rng), (self.valid(rng) or "x",), self.pieces)

    def noise(self, rng: Random) -> str:
        """Text without form."""
        return noise_text(rng, self.pieces)


class NameTextTarget(TextTarget):
    """`name_from_text`: a name that is written and read again as itself, for dnspython the same; or `ValueError`."""

    name = "name-text"
    parts = (Part("cachebus/presentation.py", without=("type_from_text", "type_to_text")),)
    pieces = (*ODD_TEXT, "\\", "\\.", "\\046", "\\255", "\\00", "x" * 62, "a.", SURROGATE)

    def valid(self, rng: Random) -> str:
        die = rng.random()
        if die < 0.3:
            return name_to_text(pick_name(rng))
        labels = []
        for _ in range(1 + below(rng, 6)):
            size = 1 + below(rng, 63 if rng.random() < 0.1 else 8)
            labels.append("".join(_character(rng) for _ in range(size)))
        return ".".join(labels) + ("." if die < 0.7 else "")

    def check(self, example: str, rng: Random) -> bool:
        try:
            name = name_from_text(example)
        except ValueError:
            self._wire(rng)
            return False
        check_name(name)
        assert name == name.lower()
        text = name_to_text(name)
        assert text.isascii()
        assert text.isprintable()
        assert text.endswith(".")
        assert name_from_text(text) == name
        assert opinion.name_of(text) == name
        if example.isascii() and example != "@":  # dnspython has IDNA for the rest, and reads "@" as the origin
            assert opinion.name_of(example) == name
        return True

    def _wire(self, rng: Random) -> None:
        """`check_name` of bytes: those that pass can be written as text and read again."""
        wire = bytearray(pick_name(rng).lower())
        if rng.random() < 0.8:
            wire[below(rng, len(wire))] = below(rng, 256)
        if rng.random() < 0.3:
            del wire[below(rng, len(wire)) :]
        if rng.random() < 0.1:
            wire += bytes(below(rng, 300))
        try:
            check_name(bytes(wire))
        except MessageError:
            return
        assert name_from_text(name_to_text(bytes(wire))) == bytes(wire).lower()


def _character(rng: Random) -> str:
    die = rng.random()
    if die < 0.8:
        return "abcdefghijklmnopqrstuvwxyzABCZ0189-_*"[below(rng, 37)]
    return f"\\{below(rng, 256):03}" if die < 0.9 else "\\" + '.;"()$@\\'[below(rng, 8)]


class TypeTextTarget(TextTarget):
    """`type_from_text`: a type that is written and read again as itself, for dnspython the same; or `ValueError`."""

    name = "type-text"
    parts = (Part("cachebus/presentation.py", only=("type_from_text", "type_to_text")),)
    pieces = (*ODD_TEXT, "TYPE", "type", "65535", "65536", "00001", "A", "ANY", SURROGATE)

    def __init__(self) -> None:
        self._mnemonics = sorted(TYPES.values())

    def valid(self, rng: Random) -> str:
        text = self._mnemonics[below(rng, len(self._mnemonics))] if rng.random() < 0.5 else f"TYPE{below(rng, 65536)}"
        return text if rng.random() < 0.7 else text.swapcase()

    def check(self, example: str, rng: Random) -> bool:
        try:
            code = type_from_text(example)
        except ValueError:
            return False
        assert 0 <= code <= 65535
        assert type_from_text(type_to_text(code)) == code
        assert opinion.type_of(example) == code
        return True


SECRETS = (
    "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
    "AAECAwQFBgcICQoLDA0ODw==",
    "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0",
)


class KeyTarget(TextTarget):
    """Keys as text, in files, in the environment: a key whose repr hides it, or `ConfigError` without a secret."""

    name = "key"
    parts = (Part("cachebus/config/keyfile.py", without=("make_key", "write_key_file", "write_line", "reason")),)
    cost = 2
    pieces = (*ODD_TEXT, "file:", "env:", "KEY", "hmac-sha256", "HMAC-SHA512.", "==", *SECRETS, "A" * 700, SURROGATE)

    def valid(self, rng: Random) -> str:
        name = ("cluster-2026", "a.b.", "file", "env", "x\\046y")[below(rng, 5)]
        algorithm = ("hmac-sha256", "hmac-sha384", "hmac-sha512")[below(rng, 3)]
        return f"{name}:{algorithm}:{SECRETS[below(rng, 3)]}"

    def check(self, example: str, rng: Random) -> bool:
        die = rng.random()
        if die < 0.6:
            return self._resolved(example, example, {})
        if die < 0.8:
            return self._resolved("env:KEY" if rng.random() < 0.9 else f"env:{example}", example, {"KEY": example})
        return self._file(example, 0o600 if rng.random() < 0.9 else 0o640)

    def _resolved(self, text: str, secret: str, environment: dict[str, str]) -> bool:
        try:
            key = resolve_key(text, directory=Path("/nonexistent"), environment=environment)
        except ConfigError as error:
            _hides(str(error), secret, text)
            return False
        return _is_key(key, secret)

    def _file(self, example: str, mode: int) -> bool:
        descriptor = os.memfd_create("key")
        try:
            os.fchmod(descriptor, mode)
            os.write(descriptor, example.encode("utf-8", "surrogateescape"))
            key = read_key_file(Path(f"/proc/self/fd/{descriptor}"))
        except ConfigError as error:
            _hides(str(error), example, "")
            return False
        finally:
            os.close(descriptor)
        assert mode == 0o600
        return _is_key(key, example)


def _hides(message: str, secret: str, text: str) -> None:
    """No secret in an error; a path is shown, for it is what has to be mended."""
    if not text.startswith("file:"):
        for known in SECRETS:
            assert known not in secret or known not in message


def _is_key(key: KeyMaterial, example: str) -> bool:
    check_name(key.name)
    assert 16 <= len(key.secret) <= 512
    again = resolve_key(key_text(key), environment={})
    assert again == key
    for known in SECRETS:
        assert known not in example or known not in repr(key)
    return True


def _address(rng: Random) -> str:
    die = rng.random()
    if die < 0.4:
        return ".".join(str(below(rng, 256)) for _ in range(4))
    if die < 0.5:
        return ("localhost", "bus.example.net", "[fe80::1%eth0]", "[::ffff:192.0.2.1]", "[::]", "0.0.0.0")[
            below(rng, 6)
        ]
    return f"[{ipaddress.IPv6Address(rng.getrandbits(128) & rng.getrandbits(128) if die < 0.8 else below(rng, 9))}]"


class EndpointTarget(TextTarget):
    """Endpoints and peers of the command line and of `udp`: addresses and ports, or the documented error."""

    name = "endpoint"
    parts = (
        Part("cachebus/urls.py", only=("split_peer", "is_address")),
        Part("transports/cachebus_transports/_address.py", only=("parse_endpoint",)),
    )
    pieces = (*ODD_TEXT, "udp://", "%25eth0", "user@", ":5390", "::1", "[", "]", "xn--", SURROGATE)

    def valid(self, rng: Random) -> str:
        return f"{_address(rng)}:{below(rng, 65536)}"

    def check(self, example: str, rng: Random) -> bool:
        taken = False
        try:
            host, port = split_peer(example)
        except ConfigError:
            pass
        else:
            taken = True
            assert host
            assert host.isprintable()
            assert port is None or 0 < port < 65536
        try:
            address = parse_udp_endpoint(example, any_port=rng.random() < 0.5)
        except ConfigError:
            return taken
        assert ipaddress.ip_address(address[0]).version == (4 if len(address) == 2 else 6)
        assert 0 <= address[1] < 65536
        return True


SCHEMES = ("udp", "multicast", "mqtt", "mqtts", "zmq+tcp", "zmq+ipc", "tcp", "tls", "quic", "example")
QUERIES = (
    "bind=1", "listen=1", "listen=0", "interface=eth0", "source=192.0.2.1,192.0.2.2", "hops=3", "loop=1", "x=y", "bind",
)  # fmt: skip


class UrlTarget(TextTarget):
    """URLs of links, for every role: a section that says what it can do, or `ConfigError` that holds no password."""

    name = "url"
    parts = (Part("cachebus/urls.py", without=("split_peer", "is_address")),)
    pieces = (*ODD_TEXT, "://", "%25eth0", "user@", "u:hunter2@", "?", "&", "=", "[", "]", "/", "#", SURROGATE)

    def valid(self, rng: Random) -> str:
        scheme = SCHEMES[below(rng, len(SCHEMES))]
        text = f"{scheme}://"
        if scheme == "zmq+ipc":
            text += f"/run/{below(rng, 100)}.sock"
        else:
            text += f"{'user@' if rng.random() < 0.1 else ''}{_address(rng)}:{below(rng, 65536)}"
            text += f"/{('home', 'a-1', '', 'a/b')[below(rng, 4)]}" if rng.random() < 0.3 else ""
        asked = [QUERIES[below(rng, len(QUERIES))] for _ in range(below(rng, 3))]
        return text + ("?" + "&".join(asked) if asked else "")

    def check(self, example: str, rng: Random) -> bool:
        beside = self._beside(rng)
        try:
            url = parse_url(example)
            found = make_link(url, tuple(Role)[below(rng, 3)], beside)
            wanted = names(url, beside)
        except ConfigError as error:
            assert "hunter2" not in str(error) or "@" not in example  # without it there is no password
            assert "\n" not in str(error)
            return False
        assert found.sends or found.receives
        assert found.section.type == url.type
        assert found.section.options is not None
        assert 1 <= len(found.cluster) <= 63
        assert not any(map(is_literal, wanted))
        known = make_link(url, Role.SUBSCRIBE, beside, dict.fromkeys(wanted, "192.0.2.9"))
        assert not (wanted and url.host in wanted) or "192.0.2.9" in f"{known.section!r}{known.section.options}"
        return True

    def _beside(self, rng: Random) -> Beside:
        files = {"ca": "ca.pem", "cert": "cert.pem", "cert_key": "key.pem"}
        return Beside(
            peers=tuple(f"{_address(rng)}:{below(rng, 65535) + 1}" for _ in range(below(rng, 3))),
            cluster=("home", None, None, "Not")[below(rng, 4)],
            codec=(None, None, None, "dns", "batch", "cdns", "json")[below(rng, 7)],
            curve_key="key" if rng.random() < 0.1 else None,
            curve_server="file:server" if rng.random() < 0.1 else None,
            **{name: path if rng.random() < 0.3 else None for name, path in files.items()},
            options={"zstd": True} if rng.random() < 0.1 else {},
        )


def is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


PARSERS: tuple[Callable[[str], object], ...] = (
    values.parse_duration, values.parse_seconds, values.parse_size, values.parse_address, values.parse_endpoint,
    values.parse_unix_path, values.parse_label, values.parse_type, values.parse_name, values.parse_level,
    values.parse_network, lambda text: values.parse_address(text, default_port=53),
    lambda text: values.parse_address(text, any_port=True),
)  # fmt: skip


class ValueTarget(TextTarget):
    """The scalars of the configuration: each parser takes the text, or `ValueError` with one printable line."""

    name = "config-value"
    parts = (
        Part(
            "cachebus/config/values.py",
            only=(
                "parse_duration", "parse_seconds", "parse_size", "parse_address", "_split_port", "parse_endpoint",
                "parse_unix_path", "parse_label", "parse_type", "parse_name", "parse_level", "parse_network",
                "SocketAddress",
            ),
        ),
    )  # fmt: skip
    pieces = (*ODD_TEXT, "ms", "KiB", "unix:", "tcp://", "/24", "1e400", "9" * 18, "x" * 120, "validated")

    def valid(self, rng: Random) -> str:
        match below(rng, 9):
            case 0:
                return f"{below(rng, 10000)}{('', 'ms', 's', 'm', 'h', 'd', 'w')[below(rng, 7)]}"
            case 1:
                return f"{rng.random() * 100:.3f}s"
            case 2:
                return f"{below(rng, 100000)}{('', 'B', 'kB', 'MiB', 'GiB')[below(rng, 5)]}"
            case 3 | 4:
                return f"{_address(rng)}:{below(rng, 65536)}"
            case 5:
                return f"unix:/run/{below(rng, 10 ** below(rng, 120))}"
            case 6:
                return f"{_address(rng).strip('[]')}/{below(rng, 130)}"
            case 7:
                return ("authoritative", "confirmed", "VALIDATED")[below(rng, 3)]
            case _:
                return ("ams-1", "udp", "mqtt+tls", "a" * 63, "example.test.", "xn--a")[below(rng, 6)]

    def check(self, example: str, rng: Random) -> bool:
        taken = False
        for parse in PARSERS:
            try:
                found = parse(example)
            except ValueError as error:
                assert "\n" not in str(error)
                assert len(str(error)) < 1500
                continue
            taken = True
            if isinstance(found, values.SocketAddress):
                assert 0 <= found.port <= 65535
                assert found.is_loopback in (True, False)
            if isinstance(found, values.SocketAddress | values.UnixAddress):
                assert values.parse_endpoint(str(found)) == found
            elif isinstance(found, Evidence):
                assert values.parse_level(found.text) is found
            elif isinstance(found, int | float):
                assert 0 <= found <= max(values.MAX_DURATION, 10**18 * 2**30)
        return taken


class HexFileTarget(BytesTarget):
    """`read_wire_file`: messages in hex or length-prefixed, or the documented error."""

    name = "hex-file"
    parts = (Part("cachebus/cli/explain_rows.py", only=("read_wire_file",)),)

    def valid(self, rng: Random) -> bytes:
        messages = [make_message(rng) for _ in range(below(rng, 3))]
        if rng.random() < 0.2:
            return b"".join(write_messages(messages))
        lines = []
        for message in messages:
            lines.append(b"# comment\n" if rng.random() < 0.3 else b"")
            lines.append((message.hex() if rng.random() < 0.5 else message.hex(" ")).encode() + b"  # what it is\n")
        return b"".join(lines)

    def check(self, example: bytes, rng: Random) -> bool:
        descriptor = os.memfd_create("hex")
        try:
            os.write(descriptor, example)
            found = list(read_wire_file(Path(f"/proc/self/fd/{descriptor}")))
        except FrameError:
            return False
        finally:
            os.close(descriptor)
        assert sum(map(len, found)) <= len(example)
        return True


TARGETS: tuple[type[Target[Any]], ...] = (
    NameTextTarget, TypeTextTarget, KeyTarget, EndpointTarget, UrlTarget,
    ValueTarget, HexFileTarget,
)  # fmt: skip
