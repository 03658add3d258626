"""The bare ends of the floor: each transport's library, on the same event loop, and nothing of cachebus in between.

Decides how bytes that stand ready get from one process to the other for the least work that a Python program can do
with that library: uvloop's endpoints and protocols, pyzmq's plain sockets with `add_reader`, paho's client with its
socket on the loop. What is done to what arrives is `bench_rows`' matter.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol, cast

import paho.mqtt.client as mqtt
import zmq
from paho.mqtt.enums import CallbackAPIVersion

from cachebus.errors import CachebusError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

BUFFER = 8 * 1024 * 1024
"""Bytes asked for each plain socket: as the transport `udp` does, so that all rows have the same room."""
RCVBUFFORCE = 33
TOPIC = "bench/floor"
START = 10.0
"""Seconds for a bare end to be connected."""

Take = Callable[[bytes], None]
"""What receives: a whole message, or, over a stream, the next bytes of it."""


class BareError(CachebusError):
    """Raised when a bare end cannot be set up."""


class Bare(Protocol):
    """One bare end."""

    async def open(self) -> None:
        """Bind or connect."""
        ...

    def send(self, data: bytes) -> None:
        """Hand on one message."""
        ...

    async def flush(self) -> None:
        """Wait until everything has left this process."""
        ...

    async def close(self) -> None:
        """Let go of everything."""
        ...


def receiving(kind: str, place: str, take: Take, context: ssl.SSLContext | None = None) -> Bare:
    """The receiving end at a place, as `bench_lanes.Plan.bare` has it."""
    match kind:
        case "udp" | "multicast":
            return _Datagrams(take, listen=place)
        case "zeromq":
            return _Zeromq(take, connect=place)
        case "mqtt":
            return _Mqtt(place, take)
        case _:
            return _StreamServer(place, take, context)


def sending(
    kind: str,
    places: Sequence[str],
    *,
    opening: bytes = b"",
    zstd_stream: bool = False,
    tls: ssl.SSLContext | None = None,
) -> Bare:
    """The sending end for all receiving ones. `opening`: what a stream begins with."""
    match kind:
        case "udp" | "multicast":
            return _Datagrams(None, peers=tuple(dict.fromkeys(places)))
        case "zeromq":
            return _Zeromq(None, bind=places[0])
        case "mqtt":
            return _Mqtt(places[0], None)
        case _:
            return _StreamClients(places, opening, tls, compressed=zstd_stream)


async def opened(bare: Bare) -> None:
    """Open a bare end. Raises `BareError`."""
    try:
        await bare.open()
    except OSError as error:
        raise BareError(f"a bare end of the floor cannot be opened: {error}") from error


def endpoint_socket(place: str = "127.0.0.1:0") -> socket.socket:
    """A plain datagram socket with as large a buffer as the transport's; a group's address is joined on loopback."""
    host, port = _address(place)
    opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    opened.setblocking(False)  # noqa: FBT003 - the argument has no name
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
    with suppress(PermissionError):
        opened.setsockopt(socket.SOL_SOCKET, RCVBUFFORCE, BUFFER)
    if _is_group(host):
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    opened.bind((host, port))
    if _is_group(host):
        membership = socket.inet_aton(host) + socket.inet_aton("127.0.0.1")
        opened.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
    return opened


def _address(place: str) -> tuple[str, int]:
    host, _, port = place.rpartition(":")
    return host, int(port)


def _is_group(host: str) -> bool:
    return 224 <= int(host.partition(".")[0]) < 240


def _ignore(data: bytes) -> None:
    """What a sending end does with what comes."""


class _Protocol(asyncio.DatagramProtocol):
    def __init__(self, take: Take | None, closed: asyncio.Future[None]) -> None:
        self._take = take or _ignore
        self._closed = closed

    def datagram_received(self, data: bytes, addr: object) -> None:
        self._take(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed.set_result(None)


class _Datagrams:
    """A uvloop endpoint."""

    def __init__(self, take: Take | None, *, listen: str = "127.0.0.1:0", peers: Sequence[str] = ()) -> None:
        self._take = take
        self._listen = listen
        self._peers = [_address(peer) for peer in peers]

    async def open(self) -> None:
        opened = endpoint_socket(self._listen)
        if any(_is_group(host) for host, _ in self._peers):
            opened.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
        loop = asyncio.get_running_loop()
        self._closed: asyncio.Future[None] = loop.create_future()
        self._endpoint, _ = await loop.create_datagram_endpoint(
            lambda: _Protocol(self._take, self._closed), sock=opened
        )

    def send(self, data: bytes) -> None:
        for peer in self._peers:
            self._endpoint.sendto(data, peer)

    async def flush(self) -> None:
        """Nothing waits."""

    async def close(self) -> None:
        self._endpoint.close()
        await self._closed


class _Zeromq:
    """A PUB or SUB socket."""

    def __init__(self, take: Take | None, *, connect: str = "", bind: str = "") -> None:
        self._take = take
        self._connect = connect
        self._bind = bind

    async def open(self) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.SUB if self._connect else zmq.PUB)
        self._socket.set(zmq.SNDHWM, 0)
        self._socket.set(zmq.RCVHWM, 0)
        self._socket.set(zmq.LINGER, 0)
        if self._bind:
            self._socket.bind(self._bind)
            return
        self._socket.set(zmq.SUBSCRIBE, b"")
        self._socket.connect(self._connect)
        self._fd = int(self._socket.get(zmq.FD))
        asyncio.get_running_loop().add_reader(self._fd, self._read)
        self._read()

    def _read(self) -> None:
        assert self._take is not None
        with suppress(zmq.Again):
            while True:
                self._take(self._socket.recv(zmq.NOBLOCK))

    def send(self, data: bytes) -> None:
        self._socket.send(data, zmq.NOBLOCK)

    async def flush(self) -> None:
        """The library's own thread sends."""

    async def close(self) -> None:
        if self._connect:
            asyncio.get_running_loop().remove_reader(self._fd)
        self._socket.close()
        self._context.term()


def _number(link: Any) -> int:
    return int(link.fileno())


def _drop(was_there: bool) -> None:
    """Say nothing."""


class _Mqtt:
    """paho's client, its socket on the loop (as its documentation shows), QoS 0."""

    def __init__(self, place: str, take: Take | None) -> None:
        self._place = place
        self._take = take

    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[None] = loop.create_future()
        client = self._client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        client.on_socket_open = lambda _, __, link: loop.add_reader(_number(link), client.loop_read)
        client.on_socket_close = lambda _, __, link: _drop(loop.remove_reader(_number(link)))
        client.on_socket_register_write = lambda _, __, link: loop.add_writer(_number(link), client.loop_write)
        client.on_socket_unregister_write = lambda _, __, link: _drop(loop.remove_writer(_number(link)))
        client.on_connect = self._connected
        client.on_subscribe = lambda *_: self._ready.set_result(None)
        client.on_message = self._message
        client.connect(*_address(self._place))
        try:
            async with asyncio.timeout(START):
                await self._ready
        except TimeoutError:
            raise BareError("the broker lets paho's client not in") from None

    def _connected(self, client: mqtt.Client, *_: object) -> None:
        if self._take is None:
            self._ready.set_result(None)
        else:
            client.subscribe(TOPIC)

    def _message(self, client: mqtt.Client, _: object, message: mqtt.MQTTMessage) -> None:
        assert self._take is not None
        self._take(bytes(message.payload))

    def send(self, data: bytes) -> None:
        self._client.publish(TOPIC, data)

    async def flush(self) -> None:
        while self._client.want_write():  # noqa: ASYNC110 - paho tells nobody
            await asyncio.sleep(0.001)

    async def close(self) -> None:
        self._client.disconnect()
        await asyncio.sleep(0)


class _Connection(asyncio.Protocol):
    """One end of a stream."""

    def __init__(self, take: Take | None) -> None:
        self._take = take or _ignore
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._take(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(None)


class _StreamServer:
    def __init__(self, place: str, take: Take, context: ssl.SSLContext | None) -> None:
        self._place = place
        self._take = take
        self._context = context

    async def open(self) -> None:
        host, port = _address(self._place)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self._take), host, port, ssl=self._context)

    def send(self, data: bytes) -> None:
        raise NotImplementedError

    async def flush(self) -> None:
        """It sends nothing."""

    async def close(self) -> None:
        self._server.close()
        await asyncio.sleep(0)


class _StreamClients:
    """A connection to each receiving end; compressed, one zstd frame over all of it, flushed after each message."""

    def __init__(
        self, places: Sequence[str], opening: bytes, context: ssl.SSLContext | None, *, compressed: bool
    ) -> None:
        self._places = places
        self._opening = opening
        self._context = context
        self._compressor = zstd.ZstdCompressor() if compressed else None
        self._connections: list[_Connection] = []

    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        for place in self._places:
            host, port = _address(place)
            more: dict[str, Any] = {} if self._context is None else {"ssl": self._context, "server_hostname": ""}
            _, connection = await loop.create_connection(lambda: _Connection(None), host, port, **more)
            self._connections.append(connection)
        self.send(self._opening)

    def send(self, data: bytes) -> None:
        if self._compressor is not None:
            data = self._compressor.compress(data, self._compressor.FLUSH_BLOCK)
        for connection in self._connections:
            connection.transport.write(data)

    async def flush(self) -> None:
        while any(connection.transport.get_write_buffer_size() for connection in self._connections):  # noqa: ASYNC110
            await asyncio.sleep(0.001)

    async def close(self) -> None:
        for connection in self._connections:
            connection.transport.close()
            await connection.lost
