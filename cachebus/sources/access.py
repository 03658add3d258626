"""Who may write to a source. A source socket is a way into every cache of the cluster, so it is a border.

Decides which listening addresses are allowed with which protection, which users may connect to a unix socket, and how
its file is made and removed. Knows nothing of what is said over a connection.
"""

from __future__ import annotations

import os
import socket
import ssl
import stat
import struct
from dataclasses import dataclass, field
from pathlib import Path

from cachebus.config.values import MAX_UNIX_PATH, SocketAddress, UnixAddress
from cachebus.errors import ConfigError, TransportError

SOCKET_MODE = 0o660
"""Of a unix socket's file: its owner and group may connect, and then only as a user that is allowed."""
BACKLOG = 16
"""Connections that may wait to be accepted: a resolver's threads may each bring one at the same moment."""
MAX_CONNECTIONS = 64
"""Connections of one source at a time, 1 to 4096: far more than resolvers have threads, far fewer than descriptors."""
HANDSHAKE_TIMEOUT = 10.0
"""Seconds, 0.1 to 300, for TLS and for a Frame Streams opening: resolvers need milliseconds."""
STALL_TIMEOUT = 60.0
"""Seconds, 0.1 to 3600, that a frame may stay unfinished: a sender that died without closing holds no memory longer.
A connection that is silent between frames is kept, for a quiet resolver is silent for hours."""

File = str | os.PathLike[str]

_PEER_CREDENTIALS = struct.Struct("iII")
"""struct ucred of SO_PEERCRED: pid, uid, gid (unix(7))."""
_KEEPALIVE_IDLE = 60
"""Seconds of silence before TCP asks whether the peer still exists."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenSettings:
    """Where a source listens, and for whom. Raises `ConfigError` for what would leave the border open."""

    name: str
    """The source's name in the configuration."""
    listen: UnixAddress | SocketAddress
    allow_uids: frozenset[int] = frozenset()
    """Users that may connect to a unix socket, besides root and our own."""
    insecure: bool = False
    """TCP on loopback without TLS is wanted, although any local user can then write to it."""
    tls: ssl.SSLContext | None = field(default=None, repr=False)
    """A server's context that demands client certificates."""
    max_connections: int = MAX_CONNECTIONS
    handshake_timeout: float = HANDSHAKE_TIMEOUT
    stall_timeout: float = STALL_TIMEOUT

    def __post_init__(self) -> None:
        _check_range(self.name, "max_connections", self.max_connections, 1, 4096)
        _check_range(self.name, "handshake_timeout", self.handshake_timeout, 0.1, 300)
        _check_range(self.name, "stall_timeout", self.stall_timeout, 0.1, 3600)
        if isinstance(self.listen, UnixAddress):
            self._check_unix(self.listen)
        else:
            self._check_tcp(self.listen)

    def _check_unix(self, address: UnixAddress) -> None:
        if self.tls is not None:
            raise ConfigError(f"source {self.name}: a unix socket knows its peers by user id and takes no TLS")
        if "\0" in address.path or not 0 < len(os.fsencode(address.path)) <= MAX_UNIX_PATH:
            raise ConfigError(f"source {self.name}: a unix socket's path has 1 to {MAX_UNIX_PATH} bytes")

    def _check_tcp(self, address: SocketAddress) -> None:
        if self.tls is not None:
            if self.tls.verify_mode is not ssl.CERT_REQUIRED:
                raise ConfigError(f"source {self.name}: TLS must demand client certificates; give it a `ca`")
        elif not address.is_loopback:
            raise ConfigError(f"source {self.name}: TCP beyond loopback ({address}) needs TLS with client certificates")
        elif not self.insecure:
            raise ConfigError(
                f"source {self.name}: any local user can write to TCP on {address}; "
                "use a unix socket, or TLS with client certificates, or say `insecure: true`"
            )

    def allows(self, uid: int) -> bool:
        """Whether this user may connect to the unix socket."""
        return uid in self.allow_uids or uid in (0, os.geteuid())


def _check_range(name: str, what: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConfigError(f"source {name}: {what} must be from {low} to {high}, not {value}")


def server_context(cert: File, key: File, ca: File) -> ssl.SSLContext:
    """TLS 1.3 for a listening source, with a certificate demanded of every client.

    `cert` is this end's chain, `key` its private key, `ca` what signs the clients' certificates, all PEM files.
    Raises `ConfigError` naming the file that cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_verify_locations(ca)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"{ca}: not readable as PEM certificates: {_reason(error)}") from error
    try:
        context.load_cert_chain(cert, key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"{cert}, {key}: not readable as PEM certificate and its key: {_reason(error)}") from error
    return context


def peer_uid(connection: socket.socket) -> int:
    """User id of the process that made this unix connection (SO_PEERCRED, unix(7)); the kernel vouches for it."""
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER_CREDENTIALS.size)
    uid: int = _PEER_CREDENTIALS.unpack(data)[1]
    return uid


def open_listener(address: UnixAddress | SocketAddress) -> socket.socket:
    """Give a non-blocking listening socket. Raises `TransportError` when the address is taken or cannot be bound.

    A unix socket's file that nobody listens on, as a killed process leaves it, is replaced.
    """
    try:
        if isinstance(address, UnixAddress):
            return _listen_unix(address.path)
        return _listen_tcp(address)
    except OSError as error:
        raise TransportError(f"cannot listen on {address}: {_reason(error)}") from error


def _listen_tcp(address: SocketAddress) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family is socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        # Accepted connections inherit these, so a peer that vanished is noticed.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_IDLE)
        listener.bind((address.host, address.port))
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def _listen_unix(path: str) -> socket.socket:
    _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        # Linux takes the mode of the file from the socket, less the umask: so it is never open to more than it should.
        os.fchmod(listener.fileno(), SOCKET_MODE)
        listener.bind(path)
        os.chmod(path, SOCKET_MODE)  # noqa: PTH101 -- a socket's file, named by text throughout
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def _remove_stale(path: str) -> None:
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise TransportError(f"cannot listen on unix:{path}: a file that is not a socket is in the way")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink(missing_ok=True)
            return
        except BlockingIOError:
            pass  # somebody listens, with a full backlog
    raise TransportError(f"cannot listen on unix:{path}: another process listens there")


class SocketFile:
    """The file of a listening unix socket, as it was made: it is removed at the end unless another took its place."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._identity = self._look()

    def _look(self) -> tuple[int, int] | None:
        try:
            found = os.lstat(self._path)
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def remove(self) -> None:
        """Remove it if it is still ours."""
        if self._identity is not None and self._look() == self._identity:
            Path(self._path).unlink(missing_ok=True)


def _reason(error: OSError) -> str:
    return error.strerror or str(error) or type(error).__name__
