"""Certificates for tests: an authority, and the files of its nodes. Knows nothing of what they are for."""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from pathlib import Path

from cachebus.cli.certificates import issue, make_authority
from cachebus.tls import CertificateFiles


class Authority:
    """An authority that writes its nodes' files into a directory."""

    def __init__(self, directory: Path, name: str = "test authority") -> None:
        self._directory = directory
        self._now = datetime.datetime.now(datetime.UTC)
        self._issued = make_authority(name, self._now)
        self.path = directory / f"{name.replace(' ', '-')}.pem"
        self.path.write_bytes(self._issued.certificate_pem)

    def write(self, name: str, stem: str = "", *, days_ago: int = 0, days: int = 30) -> tuple[Path, Path]:
        """Certificate and key of a node, issued so many days ago; by another `stem` than the name if wanted."""
        made = issue(self._issued, name, self._now - datetime.timedelta(days=days_ago), days=days)
        cert, key = (self._directory / f"{stem or name}.{ending}" for ending in ("pem", "key"))
        key.touch(mode=0o600)
        cert.write_bytes(made.certificate_pem)
        key.write_bytes(made.key_pem)
        return cert, key

    def files(self, name: str, peers: Iterable[str]) -> CertificateFiles:
        """The certificates of a node, just issued."""
        cert, key = self.write(name)
        return CertificateFiles(ca=self.path, cert=cert, key=key, peers=peers)
