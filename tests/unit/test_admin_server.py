"""The admin API over real sockets: who gets which path, the socket's mode and life, and what the client makes of it."""

from __future__ import annotations

import asyncio
import http.client
import os
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from cachebus.admin import client
from cachebus.admin import server as admin_server
from cachebus.admin.client import AdminRefused, ask
from cachebus.admin.server import AdminServer
from cachebus.errors import NodeUnreachable, TransportError
from cachebus.testing import ManualClock

NAME = b"\3www\4test\0"


class View:
    """Answers with what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, bytes, int | None, float]] = []

    def status(self) -> dict[str, Any]:
        return {"node": "a", "cache": {"entries": 1}}

    def lookup(self, qname: bytes, qtype: int | None, now: float) -> list[dict[str, Any]]:
        self.asked.append(("lookup", qname, qtype, now))
        return [{"name": "www.test."}]

    def why(self, qname: bytes, qtype: int | None, now: float) -> list[dict[str, Any]]:
        self.asked.append(("why", qname, qtype, now))
        return []

    def metrics(self) -> bytes:
        return b"cachebus_cache_entries 1.0\n"


def server(path: Path | None, **more: Any) -> AdminServer:
    return AdminServer(View(), ManualClock(100.0), path=None if path is None else str(path), **more)


async def call(path: Path, what: str, parameters: dict[str, str] | None = None) -> Any:
    return await asyncio.to_thread(ask, str(path), what, parameters)


async def get(address: Path | int, target: str, method: str = "GET") -> tuple[int, str, bytes]:
    def fetch() -> tuple[int, str, bytes]:
        if isinstance(address, int):
            connection = http.client.HTTPConnection("127.0.0.1", address, timeout=5)
        else:
            connection = client._UnixConnection(str(address), 5)
        try:
            connection.request(method, target)
            response = connection.getresponse()
            return response.status, response.headers.get("Content-Type", ""), response.read()
        finally:
            connection.close()

    return await asyncio.to_thread(fetch)


async def test_the_unix_socket_has_everything(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    view = View()
    async with AdminServer(view, ManualClock(100.0), path=str(path)) as admin:
        assert await call(path, "status") == {"node": "a", "cache": {"entries": 1}}
        assert await call(path, "lookup", {"name": "WWW.test", "type": "aaaa"}) == [{"name": "www.test."}]
        assert await call(path, "why", {"name": "www.test."}) == []
        assert view.asked == [("lookup", NAME, 28, 100.0), ("why", NAME, None, 100.0)]
        status, kind, body = await get(path, "/metrics")
        assert (status, kind, body) == (200, "text/plain; version=0.0.4; charset=utf-8", view.metrics())
        assert (await get(path, "/healthz"))[::2] == (200, b"ok\n")
        assert admin.statistics() == {"requests": 5, "malformed": 0}
        assert admin.http_port is None


async def test_tcp_has_only_what_monitoring_needs() -> None:
    async with server(None, http=("127.0.0.1", 0)) as admin:
        port = admin.http_port
        assert port
        assert (await get(port, "/metrics"))[0] == 200
        assert (await get(port, "/healthz"))[0] == 200
        for target in ("/v1/status", "/v1/lookup?name=www.test", "/v1/why?name=www.test", "/", "/v1"):
            assert (await get(port, target))[0] == 404
        assert (await get(port, "/metrics", method="POST"))[0] == 405


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, "a name is empty"),
        ({"name": "a..b"}, "'a..b' has an empty label"),
        ({"name": "a", "type": "NOPE"}, "no such record type: NOPE"),
        ({"name": "a" * 64}, "longer than 63"),
        ({"name": "a\\"}, "broken escape"),
    ],
)
async def test_a_wrong_question_says_why(tmp_path: Path, parameters: dict[str, str], message: str) -> None:
    path = tmp_path / "api.sock"
    async with server(path):
        with pytest.raises(AdminRefused, match=message):
            await call(path, "lookup", parameters)


@pytest.mark.parametrize("umask", [0o000, 0o077])
async def test_the_sockets_mode_does_not_depend_on_the_umask(tmp_path: Path, umask: int) -> None:
    path = tmp_path / "api.sock"
    before = os.umask(umask)
    try:
        async with server(path):
            assert stat.S_IMODE(path.stat().st_mode) == 0o660
    finally:
        os.umask(before)
    assert not path.exists()


async def test_a_dead_nodes_socket_is_replaced_and_a_living_ones_is_not(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(path))
    dead.close()
    async with server(path):
        with pytest.raises(TransportError, match="another node listens"):
            await server(path).__aenter__()
        assert (await call(path, "status"))["node"] == "a"


async def test_what_is_no_socket_stays(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    path.write_text("precious")
    with pytest.raises(TransportError, match="is not a socket"):
        await server(path).__aenter__()
    assert path.read_text() == "precious"


async def test_a_socket_that_another_node_made_meanwhile_stays(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    async with server(path):
        path.unlink()
        other = socket.socket(socket.AF_UNIX)
        other.bind(str(path))
    assert path.exists()
    other.close()


async def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(TransportError, match=r"admin\.http: cannot listen on 127\.0\.0\.1 port"):
            await server(path, http=("127.0.0.1", taken.getsockname()[1])).__aenter__()
    assert not path.exists()
    with pytest.raises(TransportError, match=r"admin\.socket: cannot listen on"):
        await server(tmp_path / "no" / "api.sock").__aenter__()


async def test_it_can_be_entered_again(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    admin = server(path)
    for _ in range(2):
        async with admin:
            assert (await call(path, "status"))["node"] == "a"


@contextmanager
def answering(path: Path, reply: Callable[[socket.socket], None]) -> Iterator[None]:
    """Something else than a node behind a unix socket, for one connection."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(4096)
                reply(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join()


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"hello\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{{{",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + b"[" * 100000,
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n\xff\xfe",
    ],
)
def test_whatever_answers_there_is_not_believed(tmp_path: Path, reply: bytes) -> None:
    path = tmp_path / "s"
    with answering(path, lambda connection: connection.sendall(reply)), pytest.raises(NodeUnreachable, match=str(path)):
        ask(str(path), "status")


def test_a_reply_without_end_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "MAX_REPLY", 1000)
    path = tmp_path / "s"
    body = b"HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\n" + b" " * 2000
    with answering(path, lambda connection: connection.sendall(body)), pytest.raises(NodeUnreachable, match="longer"):
        ask(str(path), "status")


def test_silence_ends_at_the_timeout(tmp_path: Path) -> None:
    path = tmp_path / "s"
    done = threading.Event()

    def silent(connection: socket.socket) -> None:
        done.wait(10)

    with answering(path, silent):
        with pytest.raises(NodeUnreachable, match=r"no answer from the node on .* within 0\.1 s"):
            ask(str(path), "status", timeout=0.1)
        done.set()


@pytest.mark.parametrize("path", ["/nonexistent/api.sock", "/", "/" + "x" * 200, "a\0b", ""])
def test_nobody_there(path: str) -> None:
    with pytest.raises(NodeUnreachable, match="no node answers on"):
        ask(path, "status")


async def test_connections_are_bounded_and_a_closed_one_makes_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin_server, "MAX_CONNECTIONS", 3)
    path = tmp_path / "api.sock"
    async with server(path):
        held = [await asyncio.open_unix_connection(str(path)) for _ in range(3)]
        for reader, writer in held:
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        with pytest.raises(NodeUnreachable):
            await call(path, "status")
        held[0][1].close()
        await held[0][1].wait_closed()
        async with asyncio.timeout(5):
            while True:
                with suppress(NodeUnreachable):
                    assert (await call(path, "status"))["node"] == "a"
                    break
        for _, writer in held[1:]:
            writer.close()
            await writer.wait_closed()


@pytest.mark.parametrize(
    "wrong",
    [
        b"GET /healthz HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET /v1/lookup?name=\x01 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /healthz H\xd4TP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\0\x01\0\r\n\r\n",
        b"GET /" + b"x" * 10_000 + b" HTTP/1.1\r\n\r\n",
    ],
)
async def test_what_is_no_http_is_refused_and_counted_and_not_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, wrong: bytes
) -> None:
    path = tmp_path / "api.sock"
    async with server(path) as admin:
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(wrong)
        async with asyncio.timeout(5):
            reply = await reader.read()
        writer.close()
        assert reply.startswith((b"HTTP/1.0 400 ", b"HTTP/1.1 400 "))
        assert admin.statistics() == {"requests": 0, "malformed": 1}
        assert not caplog.records


async def test_an_error_of_ours_is_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(View):
        def metrics(self) -> bytes:
            raise LookupError("a part is missing")

    path = tmp_path / "api.sock"
    async with AdminServer(Broken(), ManualClock(100.0), path=str(path)) as admin:
        assert (await get(path, "/metrics"))[0] == 500
        assert admin.statistics()["malformed"] == 0
        assert "a part is missing" in caplog.text
