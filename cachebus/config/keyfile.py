"""TSIG keys as text: `NAME:ALG:BASE64`, key files and environment variables.

Decides which keys are strong and private enough to be used. Knows nothing of the rest of the configuration. No text of
an error raised here holds any part of a secret, or of what stood in its place.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from cachebus.errors import ConfigError
from cachebus.presentation import name_from_text, name_to_text

DIGEST_BYTES: Mapping[str, int] = {"hmac-sha256": 32, "hmac-sha384": 48, "hmac-sha512": 64}
"""TSIG algorithms that cachebus signs with (RFC 8945 section 6), and the bytes of their digests.

A secret of the digest's length is as strong as the algorithm gets (RFC 2104 section 3); `keygen` makes that.
"""
MIN_SECRET = 16
"""Bytes: a shorter secret can be guessed from one captured message."""
MAX_SECRET = 512
"""Bytes: HMAC hashes anything beyond its block first; more is surely the wrong file."""
MAX_KEY_FILE = 4096
"""Bytes of a key file, which is one line."""
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_VARIABLE = re.compile("[A-Z_][A-Z0-9_]{0,31}", re.IGNORECASE | re.ASCII)


class KeyMaterial(NamedTuple):
    """A TSIG key, ready to sign with. Its repr hides the secret."""

    name: bytes
    """Lower-case uncompressed wire form."""
    algorithm: str
    """`hmac-sha256`, `hmac-sha384` or `hmac-sha512`."""
    secret: bytes

    def __repr__(self) -> str:
        """Name and algorithm only."""
        return f"KeyMaterial(name={name_to_text(self.name)!r}, algorithm={self.algorithm!r}, secret=<hidden>)"


def resolve_key(
    text: str, *, directory: Path | None = None, environment: Mapping[str, str] | None = None
) -> KeyMaterial:
    """Read a key given as `NAME:ALG:BASE64`, `file:PATH` (relative to `directory`) or `env:VAR`.

    Raises `ConfigError`.
    """
    kind, _, rest = text.partition(":")
    if kind == "file" and not _is_key_text(text):
        return read_key_file((directory or Path()) / rest)
    if kind == "env" and not _is_key_text(text):
        return parse_key_text(read_variable(rest, environment), variable_text(rest))
    return parse_key_text(text, "key")


def _is_key_text(text: str) -> bool:
    # A key may be named `file` or `env`: an algorithm in the middle decides.
    parts = text.split(":")
    return len(parts) == 3 and parts[1].strip().lower().rstrip(".") in DIGEST_BYTES


def read_variable(name: str, environment: Mapping[str, str] | None = None) -> str:
    """Give the content of an environment variable. Raises `ConfigError` when it is not set or empty."""
    value = (os.environ if environment is None else environment).get(name, "") if name else ""
    if not value.strip():
        raise ConfigError(f"{variable_text(name)} is not set")
    return value.strip()


def variable_text(name: str) -> str:
    """Name an environment variable in a message, unless it may be a secret that was written in the name's place."""
    return f"environment variable {name}" if _VARIABLE.fullmatch(name) else "an environment variable of that name"


def parse_key_text(text: str, where: str) -> KeyMaterial:
    """Take `NAME:ALG:BASE64` apart. `where` names the place in errors. Raises `ConfigError`."""
    parts = text.strip().split(":")
    if len(parts) != 3:
        raise ConfigError(f"{where}: must be NAME:ALG:BASE64")
    try:
        name = name_from_text(parts[0].strip())
    except ValueError:
        raise ConfigError(f"{where}: the key's name is not a domain name") from None
    algorithm = parts[1].strip().lower().rstrip(".")
    if algorithm not in DIGEST_BYTES:
        raise ConfigError(f"{where}: the algorithm must be one of {', '.join(DIGEST_BYTES)}")
    return KeyMaterial(name, algorithm, decode_secret(parts[2], where))


def decode_secret(text: str, where: str) -> bytes:
    """Decode the base64 of a secret and check its length. Raises `ConfigError`."""
    try:
        secret = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        secret = None
    if secret is None:  # raised out here: the decoder's exception must not travel along as its context
        raise ConfigError(f"{where}: the secret is not base64")
    if not MIN_SECRET <= len(secret) <= MAX_SECRET:
        raise ConfigError(f"{where}: the secret has {len(secret)} bytes, not {MIN_SECRET} to {MAX_SECRET}")
    return secret


def read_key_file(path: Path) -> KeyMaterial:
    """Read a key file: one line `NAME:ALG:BASE64`, mode 0600 or stricter.

    Raises `ConfigError` when it cannot be read, is open to group or others, or does not hold exactly one key.
    """
    try:
        # Not blocking: a FIFO in the file's place must not hang the node.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        raise ConfigError(f"key file {path}: {reason(error)}") from None
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise ConfigError(f"key file {path}: is not a regular file")
        if mode & _OTHERS:
            raise ConfigError(f"key file {path}: mode {stat.S_IMODE(mode):04o} lets others in; run: chmod 600 {path}")
        raw = os.read(descriptor, MAX_KEY_FILE + 1)
    finally:
        os.close(descriptor)
    lines = [line for line in raw.decode("utf-8", "replace").splitlines() if line.strip()]
    if len(raw) > MAX_KEY_FILE or len(lines) != 1:
        raise ConfigError(f"key file {path}: must hold exactly one line NAME:ALG:BASE64")
    return parse_key_text(lines[0], f"key file {path}")


def reason(error: Exception) -> str:
    """Say in a few words why a file could not be used."""
    return (error.strerror if isinstance(error, OSError) else None) or "is not a usable path"


def make_key(name: str, algorithm: str = "hmac-sha256") -> KeyMaterial:
    """Make a random key whose secret is as long as the algorithm's digest. Raises `ConfigError` for a wrong name."""
    if algorithm not in DIGEST_BYTES:
        raise ConfigError(f"the algorithm must be one of {', '.join(DIGEST_BYTES)}")
    try:
        wire = name_from_text(name)
    except ValueError as error:
        raise ConfigError(f"the key's name is not a domain name: {error}") from None
    return KeyMaterial(wire, algorithm, secrets.token_bytes(DIGEST_BYTES[algorithm]))


def key_text(key: KeyMaterial) -> str:
    """Give the key file's line, without the line end. It holds the secret."""
    name = name_to_text(key.name)
    return f"{name.removesuffix('.') or name}:{key.algorithm}:{base64.b64encode(key.secret).decode()}"


def write_key_file(path: Path, key: KeyMaterial, *, overwrite: bool = False) -> None:
    """Write a key file of mode 0600. Raises `ConfigError` when it exists (unless `overwrite`) or cannot be written."""
    write_line(path, key_text(key), overwrite=overwrite)


def write_line(path: Path, text: str, *, overwrite: bool = False, mode: int = 0o600) -> None:
    """Write a file of one line, whole or not at all, which `mode` lets read. Raises as `write_key_file`."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(text + "\n")
                file.flush()
                os.fsync(descriptor)
            if overwrite:
                temporary.replace(path)
            else:
                os.link(temporary, path)  # fails when the name is taken, without a moment between check and write
        finally:
            temporary.unlink(missing_ok=True)
    except FileExistsError:
        raise ConfigError(f"{path} exists; nothing was written") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {reason(error)}") from None
