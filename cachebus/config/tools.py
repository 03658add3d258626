"""What all checks of the configuration use: reporting by place, and looking at addresses, directories and files."""

from __future__ import annotations

import stat
from collections.abc import Callable, Mapping
from pathlib import Path

from cachebus.config.keyfile import read_variable, reason
from cachebus.config.problems import Place
from cachebus.config.values import SocketAddress, parse_address
from cachebus.errors import ConfigError

VOLATILE = Path("/run")
"""Directories right below it are made at the start, by systemd's `RuntimeDirectory=`, and may be missing till then."""
MAX_SECRET_FILE = 4096
"""Bytes of a file that holds a password: far more than one has."""

Say = Callable[[Place, str], None]


class Tools:
    """`report` and `warn` are called with a place and a sentence. Opens no socket; reads secrets' files only."""

    def __init__(self, *, report: Say, warn: Say, directory: Path, environment: Mapping[str, str]) -> None:
        self.report = report
        self.warn = warn
        self.directory = directory
        self.environment = environment
        self._taken: dict[str, Place] = {}

    def address(self, place: Place, text: str, *, any_port: bool = False) -> SocketAddress | None:
        """The address, or None and a report."""
        try:
            return parse_address(text, any_port=any_port)
        except ValueError as error:
            self.report(place, str(error))
            return None

    def once(self, place: Place, what: str) -> None:
        """Report what is used a second time."""
        first = self._taken.setdefault(what, place)
        if first != place:
            self.report(place, f"is already used by `{'.'.join(map(str, first))}`")

    def directory_of(self, place: Place, path: str) -> None:
        """Report a path whose directory is missing and will not be made."""
        directory = Path(path).parent
        if directory.parent == VOLATILE:
            return
        if not directory.is_dir():
            self.report(place, f"the directory {directory} does not exist")

    def tls_files(self, place: Place, cert: Path, key: Path, ca: Path) -> None:
        """Look at the three files of a TLS section."""
        self.file((*place, "cert"), cert)
        self.file((*place, "key"), key, private=True)
        self.file((*place, "ca"), ca)

    def file(self, place: Place, path: Path, *, private: bool = False) -> None:
        """Report what is no readable file, or a private one that others can read."""
        try:
            status = path.stat()
        except (OSError, ValueError) as error:
            self.report(place, f"{path}: {reason(error)}")
            return
        if not stat.S_ISREG(status.st_mode):
            self.report(place, f"{path} is not a file")
        elif private and status.st_mode & stat.S_IRWXO:
            self.report(place, f"{path} holds a private key and lets everyone in; run: chmod o= {path}")

    def secret_text(self, place: Place, text: str) -> str | None:
        """What `file:PATH` or `env:VAR` holds, without the end of its line; None and a report for anything else."""
        try:
            return self._secret_text(text)
        except ConfigError as error:
            self.report(place, str(error))
        except (OSError, ValueError) as error:
            self.report(place, f"cannot be read: {reason(error)}")
        return None

    def _secret_text(self, text: str) -> str:
        kind, _, rest = text.partition(":")
        if kind == "env":
            return read_variable(rest, self.environment)
        if kind != "file":
            raise ConfigError("must be `file:PATH` or `env:VAR`")
        path = self.directory / rest
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):  # opening a pipe would wait for its other end
            raise ConfigError(f"{path} is not a file")
        if mode & stat.S_IRWXO:
            raise ConfigError(f"{path} holds a secret and lets everyone in; run: chmod o= {path}")
        with path.open("rb") as file:
            return file.read(MAX_SECRET_FILE).decode().rstrip("\r\n")
