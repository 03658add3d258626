"""TLS for clients (RFC 7858, RFC 8310): the server's certificate, and a layer that puts TLS under any protocol.

Decides what TLS clients may speak (1.2 and later), and gives each new connection the certificate of the moment. Knows
nothing of what is said inside.

The layer is our own because a handshake is then nothing special: a connection counts from its first packet on, is swept
when it is idle and makes room for others, however far it has come. asyncio's keeps handshakes, and a quarter of a
mebibyte each, out of sight until they are done.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

from cryptography import x509

from cachebus.errors import ConfigError
from cachebus.ports import TlsMaterial
from cachebus.tls import Watched, host_name, present, read_pem, valid_until

READ_SIZE = 65536
"""Bytes taken out of TLS at a time."""
DOT, H2, DOQ = "dot", "h2", "doq"
"""ALPN protocol names (RFC 7858 section 3.1 as RFC 9462 names it, RFC 9113 section 3.1, RFC 9250 section 4.1.1)."""


@dataclass(frozen=True, slots=True)
class _Loaded:
    contexts: dict[str, ssl.SSLContext] = field(repr=False)
    material: TlsMaterial = field(repr=False)
    expires: float


class ServerCertificate:
    """The certificate that clients are shown, read again when its files change.

    The files are looked at whenever a connection comes: those that come after a change get the new one, those that
    stand stay. Files that cannot be used leave the old in use and are told of once.
    """

    def __init__(self, cert: Path, key: Path, *, clock: Callable[[], float] = time.time) -> None:
        """`cert`: PEM, with its chain. Raises `ConfigError` when they cannot be used or the key is open to everyone."""
        self._cert, self._key = cert, key
        self._clock = clock
        self._files = Watched((cert, key), self._load, shown=self)

    def __repr__(self) -> str:
        return f"ServerCertificate({str(self._cert)!r}, {str(self._key)!r})"

    def context(self, alpn: str) -> ssl.SSLContext:
        """For one new connection: TLS 1.2 or later, offering this protocol. Shared: change nothing about it."""
        return self._files.current().contexts[alpn]

    def material(self) -> TlsMaterial:
        """What QUIC's handshake is made of; the same object until the files change. There are no authorities in it."""
        return self._files.current().material

    @property
    def expires(self) -> float:
        """When it ends to be valid, in seconds since the epoch."""
        return self._files.current().expires

    def host(self) -> str | None:
        """The first host name that it is for (dNSName of its subjectAltName, wildcards excluded), or None."""
        certificate = x509.load_pem_x509_certificate(self.material().certificate)
        try:
            names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except (x509.ExtensionNotFound, ValueError):
            return None
        for name in names.get_values_for_type(x509.DNSName):
            with suppress(ConfigError):
                return host_name(name)
        return None

    def _load(self) -> _Loaded:
        material = TlsMaterial(certificate=read_pem(self._cert), key=read_pem(self._key, private=True), authorities=b"")
        contexts = {}
        for alpn in (DOT, H2):
            context = contexts[alpn] = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.minimum_version = ssl.TLSVersion.TLSv1_2  # RFC 8310 section 9, RFC 9113 section 9.2
            context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
            context.set_alpn_protocols([alpn])
            present(context, self._cert, self._key)
        return _Loaded(contexts, material, valid_until(self._cert, material.certificate, self._clock()))


@dataclass(slots=True)
class TlsCounters:
    """What became of handshakes."""

    completed: int = 0
    failed: int = 0

    def statistics(self) -> dict[str, int]:
        """By name."""
        return {f"tls_{name}": value for name, value in asdict(self).items()}


class TlsLayer(asyncio.Protocol):
    """TLS between a TCP connection and the protocol above, which sees a transport like any other.

    The protocol above is told of its connection at once; what it writes before the handshake is done waits for that.
    """

    def __init__(
        self,
        above: asyncio.Protocol,
        certificate: ServerCertificate,
        counters: TlsCounters,
        *,
        alpn: str,
        required: bool,
    ) -> None:
        """`required`: a client that does not agree on `alpn` is turned away."""
        self._above = above
        self._counters = counters
        self._required = alpn if required else None
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = certificate.context(alpn).wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._transport: asyncio.Transport | None = None
        self._early: list[bytes] = []
        self._shaken = self._ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._above.connection_made(_Inside(self, self._transport))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._shaken:
            self._counters.failed += 1
        self._transport = None
        self._ended = True
        self._above.connection_lost(exc)

    def pause_writing(self) -> None:
        self._above.pause_writing()

    def resume_writing(self) -> None:
        self._above.resume_writing()

    def data_received(self, data: bytes) -> None:
        if self._ended:
            return
        self._incoming.write(data)
        try:
            if not self._shaken:
                self._shake()
            self._decrypt()
        except ssl.SSLWantReadError:
            self._flush()
        except ssl.SSLError:  # the alert that says what was wrong is on its way
            self._flush()
            self._end()

    def eof_received(self) -> bool:
        # Without a close_notify it may be someone between who cut it: no question is lost, and none is made of it.
        return self._shaken and not self._ended and bool(self._above.eof_received())

    def _shake(self) -> None:
        self._tls.do_handshake()
        if self._required not in (None, self._tls.selected_alpn_protocol()):
            raise ssl.SSLError("no protocol in common")
        self._shaken = True
        self._counters.completed += 1
        for data in self._early:
            self._tls.write(data)
        self._early.clear()
        self._flush()

    def _decrypt(self) -> None:
        """Hand up all that there is; ends in `SSLWantReadError` while the client has not closed."""
        while not self._ended:
            data = self._tls.read(READ_SIZE)
            if not data:
                if not self._above.eof_received():
                    self.close()
                return
            self._above.data_received(data)

    def write(self, data: bytes) -> None:
        """Encrypt and send; nothing after the end."""
        if self._ended or self._transport is None:
            return
        if not self._shaken:
            self._early.append(data)
            return
        try:
            self._tls.write(data)
        except ssl.SSLError:
            self._end()
        self._flush()

    def close(self) -> None:
        """Say that nothing more comes (close_notify), and close."""
        if self._ended:
            return
        if self._shaken:
            with suppress(ssl.SSLError):  # that it wants the client's own close_notify is one; nobody waits for it
                self._tls.unwrap()
            self._flush()
        self._end()

    def abort(self) -> None:
        """Close at once; what waits to be sent is lost."""
        self._ended = True
        if self._transport is not None:
            self._transport.abort()

    def _end(self) -> None:
        self._ended = True
        if self._transport is not None:
            self._transport.close()

    def _flush(self) -> None:
        if self._transport is not None and (data := self._outgoing.read()):
            self._transport.write(data)


class _Inside(asyncio.Transport):
    """What the protocol above has for a transport."""

    def __init__(self, layer: TlsLayer, tcp: asyncio.Transport) -> None:
        super().__init__()
        self._layer = layer
        self._tcp = tcp

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._tcp.get_extra_info(name, default)

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        self._layer.write(bytes(data))

    def get_write_buffer_size(self) -> int:
        return self._tcp.get_write_buffer_size()

    def pause_reading(self) -> None:
        self._tcp.pause_reading()

    def resume_reading(self) -> None:
        self._tcp.resume_reading()

    def is_closing(self) -> bool:
        return self._tcp.is_closing()

    def close(self) -> None:
        self._layer.close()

    def abort(self) -> None:
        self._layer.abort()
