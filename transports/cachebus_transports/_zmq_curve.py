"""CURVE keys as text, and who may connect with them (RFC 26/ZMTP-CURVE, RFC 27/ZAP of ZeroMQ).

Decides what a key file holds and which public key is whose. A file of `cachebus keygen curve` has one line:
`NAME:curve:Z85` holds a secret key, from which the public one follows, and `NAME:curve-public:Z85` a public one. A
secret key where a public one belongs is refused, so that it is not handed round by mistake. No error raised here holds
any part of a key.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import zmq
from zmq.utils import z85

from cachebus.errors import ConfigError

SECRET_WORD, PUBLIC_WORD = "curve", "curve-public"
MAX_KEY_FILE = 64 * 1024
"""Bytes of a key file: some 800 public keys; more is surely the wrong file."""
MAX_ALLOWED = 1024
"""Public keys that may be allowed: far beyond any cluster, and a look-up costs the same."""
KEY_BYTES = 32
"""Of a Curve25519 key."""
_KEY = re.compile(rb"[0-9A-Za-z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")
"""Z85 (RFC 32/Z85 of ZeroMQ) of 32 bytes."""
_LINE = re.compile(rf"([a-z0-9-]{{1,63}}):({SECRET_WORD}|{PUBLIC_WORD}):(\S+)")
_NAME = re.compile("[a-z0-9-]{1,63}")
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


class CurvePair(NamedTuple):
    """A node's own keys, as Z85 text. Its repr hides the secret."""

    public: bytes
    secret: bytes

    def __repr__(self) -> str:
        """The public key only."""
        return f"CurvePair(public={self.public.decode()!r}, secret=<hidden>)"


class Curve(NamedTuple):
    """What a transport is told of CURVE."""

    pair: CurvePair
    allow: Mapping[bytes, str]
    """Public key (32 bytes) of who may connect here -> its name."""
    server: bytes | Mapping[str, bytes] | None
    """Public key (Z85) of whom we connect to: of all, or by endpoint."""

    def server_key(self, endpoint: str) -> bytes:
        """The public key that the other end at `endpoint` has to prove. Raises `ConfigError` when none is known."""
        found = self.server.get(endpoint) if isinstance(self.server, Mapping) else self.server
        if found is None:
            raise ConfigError(f"curve.server: has no public key for {endpoint}")
        return found

    def name_of(self, public: bytes) -> str | None:
        """The name of a public key (Z85) that `allow` knows."""
        return self.allow.get(z85.decode(public))


def read_curve(value: object) -> Curve | None:
    """Take the option `curve`: {secret: PATH, server: KEY or {ENDPOINT: KEY or NAME}, allow: {NAME: KEY} or file}.

    KEY is Z85 or `file:PATH`. Raises `ConfigError`.
    """
    if value is None:
        return None
    if not isinstance(value, Mapping) or value.keys() - {"secret", "server", "allow"}:
        raise ConfigError("curve: is a mapping of `secret`, `server` and `allow`")
    if not isinstance(value.get("secret"), str | Path):
        raise ConfigError("curve.secret: is the path of a key file; `cachebus keygen curve` makes one")
    with about("curve.secret"):
        pair = read_secret_file(_path(value["secret"]))
    allowed = _allowed(value.get("allow"))
    named = {name: z85.encode(key) for key, name in allowed.items()}
    return Curve(pair, allowed, _server(value.get("server"), named))


@contextlib.contextmanager
def about(key: str) -> Iterator[None]:
    """Let the `ConfigError`s of what is done in it begin with the key of the configuration that they are about."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{key}: {error}") from None


def read_secret_file(path: Path) -> CurvePair:
    """The key pair of a secret key file, which only its owner may read. Raises `ConfigError`."""
    lines = _read_lines(path, private=True)
    match = _LINE.fullmatch(lines[0]) if len(lines) == 1 else None
    if match is None or match[2] != SECRET_WORD:
        raise ConfigError(f"key file {path}: is not one line NAME:{SECRET_WORD}:KEY of `cachebus keygen curve`")
    secret = _z85(match[3], f"key file {path}")
    return CurvePair(zmq.curve_public(secret), secret)


def read_allow_file(path: Path) -> dict[bytes, str]:
    """Public key (32 bytes) -> name, from a file with a line `NAME:curve-public:KEY` each. Raises `ConfigError`."""
    found: dict[bytes, str] = {}
    for line in _read_lines(path, private=False):
        match = _LINE.fullmatch(line)
        if match is None or match[2] != PUBLIC_WORD:
            raise ConfigError(f"key file {path}: holds something other than lines NAME:{PUBLIC_WORD}:KEY")
        found[z85.decode(_z85(match[3], f"key file {path}"))] = match[1]
    return _bounded(found)


def parse_public(text: object, where: str) -> bytes:
    """A public key as Z85, given as that or as `file:PATH`. Raises `ConfigError`; `where` names the place in it."""
    if not isinstance(text, str):
        raise ConfigError(f"{where}: is a public key of 40 characters (Z85), or file:PATH")
    if not text.startswith("file:"):
        return _z85(text, where)
    with about(where):
        (found, *more) = read_allow_file(_path(text)) or (None,)
    if found is None or more:
        raise ConfigError(f"{where}: the file holds not exactly one public key")
    return z85.encode(found)


def _allowed(value: object) -> dict[bytes, str]:
    if value is None:
        return {}
    if isinstance(value, str) and value.startswith("file:"):
        with about("curve.allow"):
            return read_allow_file(_path(value))
    if not isinstance(value, Mapping):
        raise ConfigError("curve.allow: is a mapping of names to public keys, or file:PATH")
    found: dict[bytes, str] = {}
    for name, text in value.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ConfigError("curve.allow: a name has 1 to 63 characters of a-z, 0-9 and -")
        key = z85.decode(parse_public(text, f"curve.allow.{name}"))
        if key in found:
            raise ConfigError(f"curve.allow: {found[key]} and {name} have the same key")
        found[key] = name
    return _bounded(found)


def _bounded(found: dict[bytes, str]) -> dict[bytes, str]:
    if len(found) > MAX_ALLOWED:
        raise ConfigError(f"curve.allow: more than {MAX_ALLOWED} keys")
    return found


def _server(value: object, named: Mapping[str, bytes]) -> bytes | Mapping[str, bytes] | None:
    if value is None:
        return None
    if isinstance(value, Mapping):
        return {
            str(endpoint): named.get(str(text)) or parse_public(text, f"curve.server.{endpoint}")
            for endpoint, text in value.items()
        }
    return named.get(str(value)) or parse_public(value, "curve.server")


def _z85(text: str, where: str) -> bytes:
    raw = text.encode("utf-8", "replace")
    valid = False
    if _KEY.fullmatch(raw):
        with contextlib.suppress(ValueError, struct.error):  # five characters beyond 32 bits
            valid = len(z85.decode(raw)) == KEY_BYTES
    if not valid:
        raise ConfigError(f"{where}: a key has 40 characters of Z85")
    return raw


def _path(text: str | Path) -> Path:
    return Path(text.removeprefix("file:")) if isinstance(text, str) else text


def _read_lines(path: Path, *, private: bool) -> list[str]:
    try:
        # Not blocking: a FIFO in the file's place must not hang the node.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not a usable path"
        raise ConfigError(f"key file {path}: {reason}") from None
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise ConfigError(f"key file {path}: is not a regular file")
        if private and mode & _OTHERS:
            raise ConfigError(f"key file {path}: mode {stat.S_IMODE(mode):04o} lets others in; run: chmod 600 {path}")
        raw = os.read(descriptor, MAX_KEY_FILE + 1)
    finally:
        os.close(descriptor)
    if len(raw) > MAX_KEY_FILE:
        raise ConfigError(f"key file {path}: is longer than {MAX_KEY_FILE} bytes")
    lines = (line.strip() for line in raw.decode("utf-8", "replace").splitlines())
    return [line for line in lines if line and not line.startswith("#")]
