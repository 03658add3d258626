"""The certificates of links between nodes: read, watched, and matched against the configured peers.

Decides what TLS such a link speaks (1.3 only, certificates on both sides, no resumption; with a broker 1.2 too), when
files have changed, and whose certificate one is. Knows no transport. No text of an error or log line
holds anything of a private key.

Resumption is off because a resumed session skips what this is for: the peer's certificate is not looked at again, so
one that has expired, or whose authority is no longer trusted, would go on working.
"""

from __future__ import annotations

import logging
import os
import re
import ssl
import stat
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from cryptography import x509

from cachebus.errors import ConfigError, TransportError
from cachebus.ports import TlsMaterial

MAX_FILE = 1024 * 1024
"""Bytes of one file: hundreds of certificates; more is surely the wrong file."""
_SHOWN_NAMES = 3
"""Names of a refused certificate that are repeated: enough to find it."""
_SHOWN_LENGTH = 64
"""Characters of each."""
_NAME = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)(\.(?!-)[a-z0-9_-]{1,63}(?<!-))*", re.ASCII)

_log = logging.getLogger(__name__)

_Made = TypeVar("_Made", ssl.SSLContext, TlsMaterial)
_Read = TypeVar("_Read")
_Signature = tuple[tuple[int, ...] | None, ...]
"""Of each file: what changes when it is written or replaced; None where it cannot be looked at."""


class Watched(Generic[_Read]):
    """What is made of files, made again when one of them has changed.

    New files that cannot be used leave what was made of the old in use, and are told of once.
    """

    def __init__(self, paths: Iterable[Path], load: Callable[[], _Read], *, shown: object) -> None:
        """`load` reads the files and raises `ConfigError`, here too; `shown` is what the log calls them by."""
        self._paths = tuple(paths)
        self._load = load
        self._shown = shown
        self._signature = self._look()
        self._made = load()

    def current(self) -> _Read:
        """What is made of the files as they are now, or of the last ones that could be used."""
        signature = self._look()
        if signature != self._signature:
            self._signature = signature
            try:
                self._made = self._load()
            except ConfigError as error:
                _log.error("tls: %s; the files read before stay in use", error)
            else:
                _log.info("tls: read again: %r", self._shown)
        return self._made

    def _look(self) -> _Signature:
        return tuple(_state(path) for path in self._paths)


@dataclass(frozen=True, slots=True)
class _Loaded:
    broker: ssl.SSLContext
    server: ssl.SSLContext | None
    client: ssl.SSLContext | None
    material: TlsMaterial | None = field(repr=False)
    expires: float | None


class CertificateFiles:
    """A `ports.Tls` over PEM files: the authorities', our certificate (with its chain), and its private key.

    The files are looked at whenever a context is asked for, which is once per connection: those that come after a
    change use the new ones, those that stand stay. New files that cannot be used leave the old in use and are told of
    once, so a certificate and its key may be replaced one after the other.
    """

    def __init__(
        self,
        *,
        ca: Path,
        cert: Path | None = None,
        key: Path | None = None,
        peers: Iterable[str] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`peers`: names of the peers, as dNSName stands in the subjectAltName of their certificates (RFC 5280).

        Without a certificate, or without peers, it is good for `broker_context` only. Raises `ConfigError` when a file
        cannot be used, the key is open to everyone, or a name is none.
        """
        if (cert is None) != (key is None):
            raise ConfigError("tls: cert and key go together")
        self._cert, self._key, self._ca = cert, key, ca
        self._peers = frozenset(host_name(peer) for peer in peers)
        self._clock = clock
        self._files = Watched([path for path in (ca, cert, key) if path is not None], self._load, shown=self)

    def __repr__(self) -> str:
        """The files' names only."""
        return f"CertificateFiles(ca={str(self._ca)!r}, cert={str(self._cert)!r}, key={str(self._key)!r})"

    @property
    def expires(self) -> float | None:
        """When our certificate ends to be valid, in seconds since the epoch; None without one."""
        return self._files.current().expires

    def server_context(self) -> ssl.SSLContext:
        """For what connects to us: TLS 1.3, and a certificate is demanded. Shared: change nothing about it.

        Raises `ConfigError` without a certificate of our own, or without peers.
        """
        return self._for_peers(self._files.current().server)

    def client_context(self) -> ssl.SSLContext:
        """For what we connect to: TLS 1.3, and our certificate is shown. Shared: change nothing about it.

        It does not compare names: ask `identify` for the peer's once the connection stands. Raises `ConfigError`
        without a certificate of our own, or without peers.
        """
        return self._for_peers(self._files.current().client)

    def broker_context(self) -> ssl.SSLContext:
        """For a server that is no peer: TLS 1.2 or later, its certificate of our CA and for the host connected to."""
        return self._files.current().broker

    def material(self) -> TlsMaterial:
        """What the contexts between peers are made of. Raises `ConfigError` as they do."""
        return self._for_peers(self._files.current().material)

    def identify(self, certificate: bytes | None) -> str:
        """The configured name that is a dNSName of this certificate (DER): equal but for case, wildcards excluded.

        Raises `TransportError` when there is none. Whether an authority of ours issued it is the handshake's question.
        """
        if certificate is None:
            raise TransportError("no certificate was shown")
        try:
            parsed = x509.load_der_x509_certificate(certificate)
            extension = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName)
            names = extension.value.get_values_for_type(x509.DNSName)
        except x509.ExtensionNotFound:
            raise TransportError("the certificate has no subjectAltName") from None
        except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
            raise TransportError("the certificate cannot be read") from None
        for name in names:
            if (plain := name.lower().removesuffix(".")) in self._peers:
                return plain
        shown = ", ".join(repr(name[:_SHOWN_LENGTH]) for name in names[:_SHOWN_NAMES]) or "no name"
        raise TransportError(f"the certificate is for {shown}, which is no configured peer")

    def _for_peers(self, made: _Made | None) -> _Made:
        if made is None:
            raise ConfigError("tls: cert and key are missing, which links between nodes need")
        if not self._peers:
            raise ConfigError("tls.peers: is empty, so no peer could connect")
        return made

    def _load(self) -> _Loaded:
        authorities = read_pem(self._ca)
        broker = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        broker.minimum_version = ssl.TLSVersion.TLSv1_2
        self._trust(broker, authorities)
        if self._cert is None or self._key is None:
            return _Loaded(broker, None, None, None, None)
        material = TlsMaterial(
            certificate=read_pem(self._cert), key=read_pem(self._key, private=True), authorities=authorities
        )
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client.check_hostname = False  # peers are known by the names of their certificates, not by where they are
        server.num_tickets = 0
        for context in (server, client):
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            context.verify_mode = ssl.CERT_REQUIRED
            context.options |= ssl.OP_NO_TICKET
            self._trust(context, authorities)
        for context in (broker, server, client):
            present(context, self._cert, self._key)
        return _Loaded(broker, server, client, material, valid_until(self._cert, material.certificate, self._clock()))

    def _trust(self, context: ssl.SSLContext, authorities: bytes) -> None:
        try:
            context.load_verify_locations(cadata=authorities.decode("ascii"))
        except (ssl.SSLError, ValueError):
            raise ConfigError(f"{self._ca}: holds no certificate of an authority in PEM") from None


def valid_until(path: Path, certificates: bytes, now: float) -> float:
    """When our own certificate ends; warns when that, or its beginning, makes it useless now.

    Raises `ConfigError` when there is none.
    """
    try:
        certificate = x509.load_pem_x509_certificate(certificates)
    except ValueError:
        raise ConfigError(f"{path}: holds no certificate in PEM") from None
    begin, end = certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
    if now > end:
        _log.warning("tls: the certificate in %s has expired: peers will refuse it", path)
    elif now < begin:
        _log.warning("tls: the certificate in %s is not valid yet: peers will refuse it", path)
    return end


def present(context: ssl.SSLContext, cert: Path, key: Path) -> None:
    """Let a context show this certificate. Raises `ConfigError` when they cannot be used together."""
    try:
        context.load_cert_chain(cert, key, password=_no_password)
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or (error.strerror if isinstance(error, OSError) else str(error))
        raise ConfigError(f"{cert} with {key}: cannot be used: {reason}") from None


def host_name(text: str) -> str:
    """A host name in lower case without its final dot, as it is compared. Raises `ConfigError` when it is none."""
    plain = text.lower().removesuffix(".")
    if not _NAME.fullmatch(plain) or len(plain) > 253:
        raise ConfigError(f"{text[:_SHOWN_LENGTH]!r} is not a host name")
    return plain


def _state(path: Path) -> tuple[int, ...] | None:
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def read_pem(path: Path, *, private: bool = False) -> bytes:
    """A file's bytes. Raises `ConfigError` for what is no regular file, too long, or a key that is open to everyone."""
    try:
        # Not blocking: a FIFO in the file's place must not hang the node.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise ConfigError(f"{path}: {reason or 'is not a usable path'}") from None
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise ConfigError(f"{path}: is not a regular file")
        if private and mode & stat.S_IRWXO:
            raise ConfigError(f"{path}: holds a private key and lets everyone in; run: chmod o= {path}")
        data = os.read(descriptor, MAX_FILE + 1)
    finally:
        os.close(descriptor)
    if len(data) > MAX_FILE:
        raise ConfigError(f"{path}: is longer than {MAX_FILE} bytes")
    return data


def _no_password() -> str:
    raise ValueError("the key is encrypted")  # else OpenSSL asks on the terminal
