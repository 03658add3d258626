"""The admin API over HTTP: JSON on a unix socket, and on TCP only what monitoring needs.

Decides who gets which path. Knows of the node only what `NodeView` shows, and of what changes it only whom to tell.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import stat
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from cachebus.admin.orders import read_flush
from cachebus.admin.view import NodeView, Report
from cachebus.errors import FrameError, TransportError
from cachebus.ports import Clock
from cachebus.presentation import name_from_text, type_from_text

if TYPE_CHECKING:
    from aiohttp import web

SOCKET_MODE = 0o660
"""Owner and group: whoever may connect sees what the resolver's users ask for."""
MAX_REQUEST = 4096
"""Bytes of a request's body; none is ever needed."""
MAX_CONNECTIONS = 64
"""Open at the same time, on each address; a further one is closed at once. Monitoring needs one, people a few."""
BACKLOG = 16
"""Connections that wait to be accepted."""
SHUTDOWN_TIME = 1.0
"""Seconds that running requests get at the end; each takes milliseconds."""
KEEPALIVE = 15.0
"""Seconds an idle connection stays open: longer than nothing, shorter than a scrape interval's worth of them."""
COPY_TYPE = "application/octet-stream"
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_log = logging.getLogger(__name__)


class AdminServer:
    """Serves a `NodeView`: everything on `path` (a unix socket), `/metrics` and `/healthz` on `http` (host, port).

    Entering raises `TransportError` when an address cannot be opened or another node answers on `path`.
    """

    def __init__(
        self, view: NodeView, clock: Clock, *, path: str | None = None, http: tuple[str, int] | None = None
    ) -> None:
        self._view = view
        self._clock = clock
        self._path = path
        self._http = http
        self._runners: list[web.AppRunner] = []
        self._servers: list[asyncio.Server] = []
        self._sockets: list[socket.socket] = []
        self._inode: tuple[int, int] | None = None
        self._requests = 0
        self._errors = _ErrorLog(_log, {})

    async def __aenter__(self) -> Self:
        try:
            if self._path is not None:
                listening = _listen_unix(self._path)
                self._inode = _inode(self._path)
                await self._serve(listening, {**self._monitoring(), **self._api()}, everything=True)
            if self._http is not None:
                await self._serve(_listen_tcp(self._http), self._monitoring())
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    @property
    def http_port(self) -> int | None:
        """The port that `http` listens on while it runs; tells which one 0 became."""
        for listening in self._sockets:
            if listening.family != socket.AF_UNIX:
                return int(listening.getsockname()[1])
        return None

    def statistics(self) -> Mapping[str, int]:
        """Requests answered, and connections that were refused because they spoke no HTTP."""
        return {"requests": self._requests, "malformed": self._errors.malformed}

    async def _close(self) -> None:
        servers, self._servers = self._servers, []
        for server in servers:
            server.close()
        runners, self._runners = self._runners, []
        for runner in runners:
            await runner.cleanup()
        for listening in self._sockets:
            listening.close()
        self._sockets = []
        # A node that took our place has a socket of its own there by now.
        if self._path is not None and self._inode is not None and _inode(self._path) == self._inode:
            _remove(self._path)
        self._inode = None

    async def _serve(
        self,
        listening: socket.socket,
        routes: Mapping[str, Callable[[web.Request], web.Response]],
        *,
        everything: bool = False,
    ) -> None:
        from aiohttp import web  # a node without `admin` does not pay for it

        self._sockets.append(listening)
        application = web.Application(client_max_size=MAX_REQUEST)
        for path, answer in routes.items():
            application.router.add_get(path, self._handler(answer))
        if everything:
            application.router.add_post("/v1/flush", self._flush)
            application.router.add_get("/v1/snapshot", self._give_copy, allow_head=False)
            application.router.add_put("/v1/snapshot", self._take_copy)
        runner = web.AppRunner(
            application,
            access_log=None,
            logger=self._errors,
            shutdown_timeout=SHUTDOWN_TIME,
            keepalive_timeout=KEEPALIVE,
            handle_signals=False,
        )
        self._runners.append(runner)
        await runner.setup()
        assert runner.server is not None
        server = await asyncio.get_running_loop().create_server(_Gate(runner.server), sock=listening, backlog=BACKLOG)
        self._servers.append(server)

    def _handler(self, answer: Callable[[web.Request], web.Response]) -> Any:
        async def handle(request: web.Request) -> web.Response:
            self._requests += 1
            return answer(request)

        return handle

    def _monitoring(self) -> dict[str, Callable[[web.Request], web.Response]]:
        return {"/metrics": self._metrics, "/healthz": self._healthz}

    def _api(self) -> dict[str, Callable[[web.Request], web.Response]]:
        return {
            "/v1/status": lambda request: _json(self._view.status()),
            "/v1/lookup": lambda request: self._about_name(request, self._view.lookup),
            "/v1/why": lambda request: self._about_name(request, self._view.why),
        }

    async def _give_copy(self, request: web.Request) -> web.StreamResponse:
        from aiohttp import web

        self._requests += 1
        response = web.StreamResponse(headers={"Content-Type": COPY_TYPE})
        await response.prepare(request)
        async for piece in self._view.give_copy():
            await response.write(piece)
        await response.write_eof()
        return response

    async def _take_copy(self, request: web.Request) -> web.Response:
        self._requests += 1
        try:
            return _json(await self._view.take_copy(request.content.iter_any()))
        except FrameError as error:
            return _json({"error": str(error)}, status=400)

    async def _flush(self, request: web.Request) -> web.Response:
        self._requests += 1
        try:
            flush = read_flush(request.query)
        except ValueError as error:
            return _json({"error": str(error)}, status=400)
        return _json(await self._view.flush(flush))

    def _metrics(self, request: web.Request) -> web.Response:
        from aiohttp import web

        return web.Response(body=self._view.metrics(), headers={"Content-Type": METRICS_TYPE})

    def _healthz(self, request: web.Request) -> web.Response:
        from aiohttp import web

        return web.Response(text="ok\n")

    def _about_name(
        self, request: web.Request, ask: Callable[[bytes, int | None, float], Sequence[Report]]
    ) -> web.Response:
        try:
            qname = name_from_text(request.query.get("name", ""))
            qtype = type_from_text(request.query["type"]) if request.query.get("type") else None
        except ValueError as error:
            return _json({"error": str(error)}, status=400)
        return _json(list(ask(qname, qtype, self._clock())))


class _ErrorLog(logging.LoggerAdapter[logging.Logger]):
    """Where aiohttp reports errors: ours are logged, a client's malformed bytes are counted. It would give each of them
    a traceback, and so anybody who reaches the port the log."""

    malformed = 0

    def log(self, level: int, msg: object, *args: object, **more: Any) -> None:
        from aiohttp.http_exceptions import HttpProcessingError

        if isinstance(more.get("exc_info"), HttpProcessingError):
            self.malformed += 1
        else:
            super().log(level, msg, *args, **more)


class _Gate:
    """Makes aiohttp's connection handlers, and one that hangs up when there are enough."""

    def __init__(self, server: web.Server) -> None:
        self._server = server

    def __call__(self) -> asyncio.Protocol:
        return _HangUp() if len(self._server.connections) >= MAX_CONNECTIONS else self._server()


class _HangUp(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.abort()


def _json(value: object, *, status: int = 200) -> web.Response:
    from aiohttp import web

    return web.json_response(value, status=status)


def _listen_tcp(address: tuple[str, int]) -> socket.socket:
    host, port = address
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        raise TransportError(f"admin.http: cannot listen on {host} port {port}: {error.strerror}") from error
    listening.settimeout(0)
    return listening


def _listen_unix(path: str) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        os.fchmod(listening.fileno(), SOCKET_MODE)  # Linux makes the file with this mode: it is never open wider
        listening.bind(path)
        Path(path).chmod(SOCKET_MODE)  # what the umask took away
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        raise TransportError(f"admin.socket: cannot listen on {path}: {error.strerror or error}") from error
    except TransportError:
        listening.close()
        raise
    listening.settimeout(0)
    return listening


def _remove_stale(path: str) -> None:
    """Remove a socket that a dead node left behind; one that answers, or anything else, stays."""
    try:
        mode = Path(path).lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise TransportError(f"admin.socket: {path} exists and is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(0)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink(missing_ok=True)
            return
        except BlockingIOError:
            pass  # its backlog is full: somebody is there
    raise TransportError(f"admin.socket: another node listens on {path}")


def _remove(path: str) -> None:
    with suppress(OSError):
        Path(path).unlink()


def _inode(path: str) -> tuple[int, int] | None:
    try:
        status = Path(path).lstat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
