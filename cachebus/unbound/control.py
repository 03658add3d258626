"""Unbound's control channel (`unbound-control`'s own protocol): one connection, one command, one reply.

Decides how a request is framed, authenticated and bounded in time and size; knows nothing of answers. Measured: Unbound
1.17 serves this channel in a worker thread with blocking reads, on a unix socket from the moment it accepts. While a
connection is silent or a request half written, that thread answers nobody. So a unix socket is connected and written to
in one step, and over TLS a request leaves together with the end of the handshake.
"""

from __future__ import annotations

import asyncio
import ipaddress
import random
import re
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from cachebus.errors import ConfigError, ResolverError

MAGIC = b"UBCT1 "
"""Protocol and version, the same since Unbound 1.4."""
COMMAND_TIMEOUT = 5.0
"""Seconds for a whole command, connecting included. Unbound answers in milliseconds; a thread that is busy for longer
is a resolver that is in trouble of its own."""
MAX_REPLY = 65_536
"""Bytes of a reply. What is asked here takes some hundred; only `dump_cache` gives a list, and that is streamed."""
DUMP_TIMEOUT = 120.0
"""Seconds for a whole `dump_cache`: measured, Unbound wrote 2 MB a second on a machine busy seven times over."""
SEND_BUFFER = 262_144
"""Bytes asked of the kernel for sending (it may grant less), so that a request leaves this process at once and Unbound
never waits for us, even when we are stopped in the middle."""
READ_SIZE = 16_384
"""Bytes per read: the size of a TLS record (RFC 8446 section 5.1)."""
SERVER_NAME = "unbound"
"""The name that unbound-control-setup gives the server's certificate; a client's is named unbound-control."""

_UNIX = "unix:"

Take = Callable[[bytes], None]
"""Takes the next bytes of a reply. A `ValueError` from it ends the command as one that failed."""


class CommandRefused(ResolverError):  # noqa: N818 - named as its siblings in errors.py
    """Raised when the resolver answers "error", or closes the connection instead of answering."""


class ResolverGone(ResolverError):  # noqa: N818
    """Raised when nothing listens on the control channel."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlTls:
    """The three files of unbound-control-setup that a client needs, by the names of unbound.conf(5)."""

    server_cert: Path
    """`server-cert-file`: the server is who shows exactly this certificate."""
    key: Path
    """`control-key-file`."""
    cert: Path
    """`control-cert-file`."""


class About(NamedTuple):
    """What a running Unbound says of itself."""

    uptime: int
    """Seconds since it started, its cache empty then."""
    modules: frozenset[str]
    """Of its `module-config`."""


class ControlChannel:
    """Sends commands to one Unbound. Holds no connection between them: Unbound closes after each reply."""

    def __init__(self, control: str, tls: ControlTls | None = None, *, timeout: float = COMMAND_TIMEOUT) -> None:
        """`control`: `unix:/path`, or `ADDRESS:PORT` with `tls`. Raises `ConfigError`, also for unreadable files."""
        self._text = control
        self._timeout = timeout
        self._family, self._address = _parse(control)
        self._context: ssl.SSLContext | None = None
        self._pin = b""
        number = random.getrandbits(64)
        self._marker = f"fill-{number:016x}.cachebus.invalid."
        self._marker_address = str(ipaddress.IPv4Address(0x7F000000 | number & 0xFEFEFE | 0x010101))
        if self._family == socket.AF_UNIX:
            if tls is not None:
                raise ConfigError(f"{control}: a unix socket takes no TLS")
        elif tls is None:
            raise ConfigError(f"{control}: TCP needs TLS: server_cert, key and cert of unbound-control-setup")
        else:
            self._context, self._pin = _context(tls)

    def __repr__(self) -> str:
        return f"ControlChannel({self._text!r})"

    async def load(self, dump: bytes) -> None:
        """`load_cache` of a dump that ends in its EOF line.

        Raises `CommandRefused` when Unbound could not parse a line: what came before that line is in its RRset cache,
        everything after is lost. Raises `ResolverError` when the channel does not work.
        """
        reply = await self.command("load_cache", dump)
        if reply.strip() != b"ok":
            raise CommandRefused(f"{self._text}: the resolver does not say ok to load_cache but {_quote(reply)}")

    async def set_marker(self) -> None:
        """Leave a mark that goes when Unbound ends or reloads: a forward zone under `invalid.` (RFC 6761 section 6.4).

        Nothing else tells of a `reload`: measured, uptime, process and socket stay. The zone's address lies in
        127.0.0.0/8, and no query ever gets there. Raises `ResolverError`.
        """
        await self.command(f"forward_add {self._marker} {self._marker_address}")

    async def has_marker(self) -> bool:
        """Whether the mark is still there. The reply is short, however much is configured. Raises `ResolverError`."""
        return self._marker_address.encode("ascii") in (await self.command(f"lookup {self._marker}")).split()

    async def remove_marker(self) -> None:
        """Take the mark away. Raises `ResolverError`."""
        await self.command(f"forward_remove {self._marker}")

    async def about(self) -> About:
        """What the resolver says of itself. Raises `ResolverError`, also when it does not say it."""
        reply = await self.command("status")
        uptime = re.search(rb"^uptime: (\d{1,12}) seconds$", reply, re.MULTILINE)
        modules = re.search(rb"^modules: \d+ \[([ a-z0-9_-]*)\]$", reply, re.MULTILINE)
        if uptime is None or modules is None:
            raise ResolverError(f"{self._text}: status: neither uptime nor modules in it")
        return About(int(uptime[1]), frozenset(modules[1].decode("ascii").split()))

    async def command(self, text: str, body: bytes = b"") -> bytes:
        """Send one command line and what belongs to it, and give the whole reply.

        Raises `ResolverGone` when nothing listens, `CommandRefused` for an empty reply or one that begins with "error",
        else `ResolverError`: the channel cannot be opened or read, the timeout is over, the reply beyond `MAX_REPLY`.
        """
        reply = _Collector()
        await self._run(text, body, reply.take, self._timeout)
        whole = bytes(reply.data)
        if not whole:
            raise CommandRefused(f"{self._text}: {text}: the resolver closed the connection without an answer")
        if whole.startswith(b"error"):
            raise CommandRefused(f"{self._text}: {text}: {_quote(whole)}")
        return whole

    async def dump(self, take: Take) -> None:
        """`dump_cache`: give its text to `take`, piece by piece, as it comes. `take` must be quick.

        Unbound writes it in the thread that answers clients, and waits for whoever reads. Raises `ResolverGone` and
        `ResolverError` as `command` does, and what `take` raises.
        """
        await self._run("dump_cache", b"", take, DUMP_TIMEOUT)

    async def _run(self, text: str, body: bytes, take: Take, seconds: float) -> None:
        request = MAGIC + text.encode("ascii") + b"\n" + body
        try:
            async with asyncio.timeout(seconds):
                with self._socket() as link:
                    if self._context is None:
                        await _exchange(link, self._address, request, take)
                    else:
                        await asyncio.get_running_loop().sock_connect(link, self._address)
                        await _exchange_tls(link, request, self._context, self._pin, take)
        except (ConnectionRefusedError, FileNotFoundError) as error:
            raise ResolverGone(f"{self._text}: {text}: {_reason(error)}") from error
        except ConnectionError as error:
            raise CommandRefused(f"{self._text}: {text}: {_reason(error)}") from error
        except (OSError, ValueError) as error:  # TimeoutError and every ssl error among them
            raise ResolverError(f"{self._text}: {text}: {_reason(error)}") from error

    def _socket(self) -> socket.socket:
        link = socket.socket(self._family, socket.SOCK_STREAM)
        link.settimeout(0)
        link.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        return link


class _Collector:
    """Keeps a short reply whole."""

    def __init__(self) -> None:
        self.data = bytearray()

    def take(self, data: bytes) -> None:
        self.data += data
        if len(self.data) > MAX_REPLY:
            raise ValueError("the reply is too long")


def _parse(control: str) -> tuple[socket.AddressFamily, str | tuple[str, int]]:
    if control.startswith(_UNIX):
        path = control.removeprefix(_UNIX)
        if not path.startswith("/"):
            raise ConfigError(f"{control}: the path of a unix socket begins with /")
        return socket.AF_UNIX, path
    host, colon, port = control.rpartition(":")
    wrong = ConfigError(f"{control}: neither unix:/path nor ADDRESS:PORT")
    if not (colon and port.isascii() and port.isdigit() and 0 < int(port[:6]) < 65536):
        raise wrong
    try:
        # Numeric only: looking up a name here would ask the resolver that is to be filled.
        address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError as error:
        raise wrong from error
    return (socket.AF_INET6 if address.version == 6 else socket.AF_INET), (str(address), int(port))


def _context(tls: ControlTls) -> tuple[ssl.SSLContext, bytes]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # In TLS 1.2 the server's last flight comes after ours: Unbound's thread would wait a round trip for the command.
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # The name proves nothing next to the pinned certificate, and older set-ups have no subjectAltName.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        pem = tls.server_cert.read_text(encoding="ascii")
        pin = ssl.PEM_cert_to_DER_cert(pem[pem.index(ssl.PEM_HEADER) :][: _pem_length(pem)])
        context.load_verify_locations(cadata=pin)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{tls.server_cert}: cannot be used as a certificate: {_reason(error)}") from error
    try:
        context.load_cert_chain(tls.cert, tls.key, password=_no_password)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{tls.cert} with {tls.key}: cannot be used: {_reason(error)}") from error
    return context, pin


def _pem_length(pem: str) -> int:
    start = pem.index(ssl.PEM_HEADER)
    return pem.index(ssl.PEM_FOOTER, start) + len(ssl.PEM_FOOTER) - start


def _no_password() -> str:
    raise ValueError("the key is encrypted")  # else OpenSSL asks on the terminal


async def _exchange(link: socket.socket, address: str | tuple[str, int], request: bytes, take: Take) -> None:
    loop = asyncio.get_running_loop()
    link.connect(address)  # a unix socket connects at once, or fails
    sent = link.send(request)
    if sent < len(request):
        await loop.sock_sendall(link, request[sent:])
    while data := await loop.sock_recv(link, READ_SIZE):
        take(data)


async def _exchange_tls(link: socket.socket, request: bytes, context: ssl.SSLContext, pin: bytes, take: Take) -> None:
    loop = asyncio.get_running_loop()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname=SERVER_NAME)
    while True:
        try:
            tls.do_handshake()
            break
        except ssl.SSLWantReadError:
            await loop.sock_sendall(link, outgoing.read())
            _feed(incoming, await loop.sock_recv(link, READ_SIZE))
    # A client's certificate is signed by the server's: only the pin keeps one client from posing as the server.
    if tls.getpeercert(binary_form=True) != pin:
        raise ValueError("the server shows another certificate than server_cert")
    tls.write(request)
    await loop.sock_sendall(link, outgoing.read())
    while True:
        try:
            data = tls.read(READ_SIZE)
        except ssl.SSLWantReadError:
            _feed(incoming, await loop.sock_recv(link, READ_SIZE))
            continue
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
            break
        if not data:
            break
        take(data)


def _feed(incoming: ssl.MemoryBIO, data: bytes) -> None:
    if data:
        incoming.write(data)
    else:
        incoming.write_eof()


def _quote(reply: bytes) -> str:
    return repr(reply[:120].decode("ascii", "replace").strip())


def _reason(error: Exception) -> str:
    """What went wrong, in words; never a file's content."""
    if isinstance(error, BlockingIOError):
        return "too many connections wait for it"
    if isinstance(error, TimeoutError) and not error.strerror:
        return "no answer in time"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
