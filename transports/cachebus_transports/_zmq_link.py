"""Plain ZeroMQ sockets on the event loop: what they are set to, how they are drained, and who is let in.

Decides the limits of every ZeroMQ socket here, and when it is read. Knows neither nodes nor hubs nor the bytes carried.

A socket's file descriptor shows that something *changed*, not that something is there: whoever reads or writes takes
the sign away for good. So a socket is always drained to its end, in slices, the next of which is asked for again
rather than waited for; and after writing to a socket that is read too, it is read.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import zmq

from cachebus.errors import ConfigError, TransportError
from cachebus_transports._address import parse_endpoint
from cachebus_transports._zmq_curve import Curve

MAX_MESSAGE = 256 * 1024
"""Bytes of a message, either way: what every broker carries too, and four times the default batch. A peer that sends
more is disconnected by libzmq."""
_CURVE_OVERHEAD = 64
"""Bytes by which CURVE makes a message longer, rounded up from 33 (RFC 26/ZMTP-CURVE, MESSAGE command)."""
HWM = 4096
"""Default of `hwm`: messages held for each peer in each direction. Half a second of the fastest publisher measured;
with batches of 8 KB, 32 MB for a peer that has stopped reading."""
MIN_HWM, MAX_HWM = 16, 1_000_000
"""Less could not hold one burst; more only hides a receiver that is too slow."""
LINGER = 1000
"""Milliseconds that closing waits for what is still to be written: enough for a living peer, and a dead one delays an
exit by no more."""
SLICE = 1024 * 1024
"""Bytes, with `MESSAGE_COST` for each message, that one turn of the loop reads from one socket."""
MESSAGE_COST = 4096
"""What a message costs besides its bytes, in bytes: bounds a slice to 256 messages."""
IPC_MODE = 0o117
"""umask under which a Unix socket is made: owner and group may connect, as with cachebus's other sockets."""
MAX_IPC_PATH = 107
"""Bytes of a Unix socket's path (unix(7)), its end excluded."""
DOMAIN = b"cachebus"
"""ZAP domain: libzmq asks for no authentication where a domain is not set, and the handler demands exactly this one."""
_RESUME = {
    zmq.RECONNECT_IVL: 100,
    zmq.RECONNECT_IVL_MAX: 1000,
    zmq.CONNECT_TIMEOUT: 2000,
    zmq.HANDSHAKE_IVL: 3000,
    zmq.HEARTBEAT_IVL: 1000,
    zmq.HEARTBEAT_TIMEOUT: 3000,
    zmq.HEARTBEAT_TTL: 3000,
}
"""Milliseconds. Streams are to resume within 5 s: a peer that died is known after at most 4 (one that was killed, at
once), an attempt to connect is never in the kernel's own minutes of waiting, and the next comes within 1."""
_EVENTS = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CONNECTED
    | zmq.EVENT_CONNECT_DELAYED
    | zmq.EVENT_CONNECT_RETRIED
)
_TRYING = {zmq.EVENT_CONNECTED, zmq.EVENT_CONNECT_DELAYED, zmq.EVENT_CONNECT_RETRIED}
REVIVE = 1.0
"""Seconds after a link was lost in which libzmq must have begun to try again. It does so at once, or never: it gives an
endpoint up for good when its other end broke the protocol, sent too much or refused our key, which all may pass."""
_EVENT = struct.Struct("=HI")  # zmq_socket_monitor(3): event and value, the peer's endpoint in a second part

_log = logging.getLogger(__name__)
Socket = zmq.Socket[bytes]
Context = zmq.Context[Socket]


class Endpoint(NamedTuple):
    """Where a ZeroMQ socket binds or connects."""

    text: str
    """As libzmq takes it: `tcp://ADDRESS:PORT` or `ipc://PATH`."""
    address: tuple[str, int]
    """Host and port; a path and 0."""

    @property
    def is_ipv6(self) -> bool:
        """An IPv4 address stays one rather than a mapped one, in what is shown too."""
        return self.text.startswith("tcp://[")

    @property
    def path(self) -> str | None:
        """Of the Unix socket, if it is one."""
        return self.text.removeprefix("ipc://") if self.text.startswith("ipc://") else None


def parse_zmq(text: object, *, any_port: bool = False) -> Endpoint:
    """`tcp://ADDRESS:PORT` or `ipc://PATH`, `zmq+` before either or not. Raises `ConfigError`."""
    if not isinstance(text, str):
        raise ConfigError(f"{text!r} is not tcp://ADDRESS:PORT or ipc://PATH")
    scheme, _, rest = text.removeprefix("zmq+").partition("://")
    if scheme == "tcp":
        host, port = parse_endpoint(rest, any_port=any_port)[:2]
        return Endpoint(f"tcp://{rest}", (host, port))
    if scheme == "ipc":
        if not 0 < len(os.fsencode(rest)) <= MAX_IPC_PATH or "\0" in rest or rest.startswith("@"):
            raise ConfigError(f"{text!r}: is no path of a Unix socket, 1 to {MAX_IPC_PATH} bytes long")
        return Endpoint(f"ipc://{rest}", (rest, 0))
    raise ConfigError(f"{text!r} is not tcp://ADDRESS:PORT or ipc://PATH")


def read_hwm(value: object) -> int:
    """The option `hwm`. Raises `ConfigError`."""
    if value is None:
        return HWM
    if type(value) is not int or not MIN_HWM <= value <= MAX_HWM:
        raise ConfigError(f"hwm: is a number of messages from {MIN_HWM} to {MAX_HWM}")
    return value


def bind(opened: Socket, endpoint: Endpoint) -> None:
    """Bind; a Unix socket is open to owner and group. Raises `zmq.ZMQError`, `TransportError`."""
    opened.set(zmq.IPV6, int(endpoint.is_ipv6))
    path = endpoint.path
    if path is None:
        opened.bind(endpoint.text)
        return
    if Path(path).exists() and not Path(path).is_socket():  # libzmq removes whatever is there
        raise TransportError(f"{path} exists and is no socket")
    mask = os.umask(IPC_MODE)
    try:
        opened.bind(endpoint.text)
    finally:
        os.umask(mask)


def bound_to(opened: Socket) -> str:
    """The endpoint that was bound last; tells which port `:0` became."""
    text = opened.get(zmq.LAST_ENDPOINT)
    assert isinstance(text, bytes)
    return text.rstrip(b"\0").decode()


class Reader:
    """Calls `step` whenever a socket may have something to read, until it says that there is no more."""

    def __init__(self, opened: Socket, step: Callable[[], bool]) -> None:
        """`step` reads one slice, never raises, and gives whether there may be more."""
        self._loop = asyncio.get_running_loop()
        self._step = step
        self._fd = int(opened.get(zmq.FD))
        self._again: asyncio.Handle | None = None
        self._loop.add_reader(self._fd, self.poke)
        self.poke()

    def poke(self) -> None:
        """Read in the next turn, as the socket was written to or its sign of change taken."""
        if self._again is None:
            self._again = self._loop.call_soon(self._run)

    def _run(self) -> None:
        self._again = None
        if self._step():
            self.poke()

    def close(self) -> None:
        """Read no more; before the socket is closed."""
        self._loop.remove_reader(self._fd)
        if self._again is not None:
            self._again.cancel()


class Watch:
    """Connects a socket again whose endpoint libzmq has given up, and tells once when a link is missing or back."""

    def __init__(self, name: str, opened: Socket) -> None:
        self._name = name
        self._opened = opened
        self._told = False
        self._timer: asyncio.TimerHandle | None = None
        self.endpoint: str | None = None
        """Where it connects; None for a socket that is bound, to which others come back by themselves."""

    def stands(self) -> None:
        """The link came about."""
        self._told = False
        if self.endpoint is not None:
            _log.info("%s: linked to %s", self._name, self.endpoint)

    def lost(self, reason: str) -> None:
        """The link is gone, or did not come about."""
        self._tell(reason)
        if self.endpoint is not None and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(REVIVE, self._revive, self.endpoint)

    def tries(self, *, again: bool) -> None:
        """libzmq connects; `again`: nobody was there."""
        self.close()
        if again:
            self._tell("nobody answers")

    def close(self) -> None:
        """Leave it be."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tell(self, reason: str) -> None:
        if self.endpoint is not None and not self._told:
            self._told = True
            _log.warning("%s: no link to %s: %s", self._name, self.endpoint, reason)

    def _revive(self, endpoint: str) -> None:
        self._timer = None
        with contextlib.suppress(zmq.ZMQError):  # it is given up for good
            self._opened.disconnect(endpoint)
        with contextlib.suppress(zmq.ZMQError):
            self._opened.connect(endpoint)


class Links:
    """The ZeroMQ sockets of one transport or hub: a context, its sockets, their readers, monitors and ZAP handler."""

    def __init__(self, name: str, *, hwm: int, curve: Curve | None) -> None:
        """Opens nothing before `start`."""
        self._name = name
        self._hwm = hwm
        self.curve = curve
        self._context: Context | None = None
        self._sockets: list[Socket] = []
        self._watches: dict[Socket, Watch] = {}
        self._readers: list[Reader] = []
        self.connects = self.failures = self.unknown = self._closed = 0

    def start(self) -> None:
        """Make the context, and the ZAP handler before any socket that needs it."""
        self._context = zmq.Context()
        if self.curve is not None and self.curve.allow:
            asked = self._plain(zmq.REP)
            asked.bind("inproc://zeromq.zap.01")
            self.read(asked, lambda: self._authenticate(asked))

    def open(self, kind: int, *, server: bool = False, peer: str | None = None) -> Socket:
        """A socket with every limit set. With CURVE it is the `server`, or knows the key of its `peer` (endpoint)."""
        assert self._context is not None
        opened = self._plain(kind)
        if kind in (zmq.PUB, zmq.XPUB):
            opened.set(zmq.LINGER, LINGER)
        opened.set(zmq.SNDHWM, self._hwm)
        opened.set(zmq.RCVHWM, self._hwm)
        opened.set(zmq.MAXMSGSIZE, MAX_MESSAGE + _CURVE_OVERHEAD)
        for option, milliseconds in _RESUME.items():
            opened.set(option, milliseconds)
        if self.curve is not None:
            opened.set(zmq.CURVE_SECRETKEY, self.curve.pair.secret)
            opened.set(zmq.CURVE_PUBLICKEY, self.curve.pair.public)
            if server:
                opened.set(zmq.CURVE_SERVER, 1)
                opened.set(zmq.ZAP_DOMAIN, DOMAIN)
                opened.set(zmq.ZAP_ENFORCE_DOMAIN, 1)
            elif peer is not None:
                opened.set(zmq.CURVE_SERVERKEY, self.curve.server_key(peer))
        self._monitor(opened)
        return opened

    def connect(self, opened: Socket, endpoint: Endpoint) -> None:
        """Connect, now and whenever the link is lost. Raises `zmq.ZMQError`."""
        opened.set(zmq.IPV6, int(endpoint.is_ipv6))
        opened.connect(endpoint.text)
        self._watches[opened].endpoint = endpoint.text

    def read(self, opened: Socket, step: Callable[[], bool]) -> Reader:
        """Drain `opened` by `step` as long as these links are open."""
        reader = Reader(opened, step)
        self._readers.append(reader)
        return reader

    def statistics(self) -> dict[str, int]:
        """Counts of links, with peers or a hub.

        `connections` stand now; `connects` and `disconnects` so far; `failed_handshakes`: what never became one, among
        them `unknown_peer`, whose CURVE key is not allowed here.
        """
        lost = max(0, self._closed - self.failures)
        return {
            "connections": max(0, self.connects - lost),
            "connects": self.connects,
            "disconnects": lost,
            "failed_handshakes": self.failures,
            "unknown_peer": self.unknown,
        }

    async def close(self) -> None:
        """Close everything; waits up to `LINGER` for what is still to be written."""
        for reader in self._readers:
            reader.close()
        self._readers.clear()
        for opened, watch in self._watches.items():
            opened.disable_monitor()
            watch.close()
        self._watches.clear()
        for opened in self._sockets:
            opened.close()
        self._sockets.clear()
        context, self._context = self._context, None
        self._closed = self.connects + self.failures  # nothing stands any more
        if context is not None:
            await asyncio.get_running_loop().run_in_executor(None, context.term)  # it waits for the I/O thread

    def _plain(self, kind: int) -> Socket:
        assert self._context is not None
        opened = self._context.socket(kind)
        opened.set(zmq.LINGER, 0)  # libzmq's own default waits without end
        self._sockets.append(opened)
        return opened

    def _monitor(self, opened: Socket) -> None:
        assert self._context is not None
        endpoint = f"inproc://monitor-{len(self._watches)}"
        opened.monitor(endpoint, _EVENTS)
        events = self._plain(zmq.PAIR)
        events.connect(endpoint)
        watch = self._watches[opened] = Watch(self._name, opened)
        self.read(events, lambda: self._note(events, watch))

    def _note(self, events: Socket, watch: Watch) -> bool:
        with contextlib.suppress(zmq.Again):
            for _ in range(SLICE // MESSAGE_COST):
                event, _ = _EVENT.unpack(events.recv_multipart(zmq.NOBLOCK)[0])
                if event in _TRYING:
                    watch.tries(again=event == zmq.EVENT_CONNECT_RETRIED)
                elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                    self.connects += 1
                    watch.stands()
                elif event == zmq.EVENT_DISCONNECTED:
                    self._closed += 1
                    watch.lost("it ended")
                else:
                    self.failures += 1
                    watch.lost("the handshake failed")
            return True
        return False

    def _authenticate(self, asked: Socket) -> bool:
        """Answer what libzmq asks of each new connection (RFC 27/ZAP)."""
        with contextlib.suppress(zmq.Again):
            while True:
                request = asked.recv_multipart(zmq.NOBLOCK)
                name = self._who(request)
                status = [b"400", b"not allowed", b""] if name is None else [b"200", b"", name.encode()]
                asked.send_multipart([b"1.0", request[1], *status, b""], zmq.NOBLOCK)
        return False

    def _who(self, request: list[bytes]) -> str | None:
        assert self.curve is not None
        _, _, domain, address, _, mechanism, *credentials = request
        if domain == DOMAIN and mechanism == b"CURVE" and (name := self.curve.allow.get(credentials[0])) is not None:
            return name
        self.unknown += 1
        if not self.unknown & (self.unknown - 1):  # the 1st, 2nd, 4th ...: a stranger must not fill the log
            where = address.decode("ascii", "replace") or "a local process"
            _log.warning("%s: unknown CURVE key from %s, %d refused so far", self._name, where, self.unknown)
        return None


def no_peer_is_unknown(curve: Curve | None, *, bound: bool) -> None:
    """Raise `ConfigError` when something is bound with CURVE and nobody is allowed to connect to it."""
    if bound and curve is not None and not curve.allow:
        raise ConfigError("curve.allow: names nobody, yet `bind` is for peers that connect")
