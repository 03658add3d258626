# ruff: noqa: PT017  (either outcome is right; both are looked at)
"""Targets: the admin API on both ends, and the records that people are shown (`admin`, `cli.present`)."""

from __future__ import annotations

import asyncio
import io
import json
import tempfile
import weakref
from collections.abc import AsyncIterator, Callable
from random import Random
from typing import Any, cast
from unittest.mock import patch
from urllib.parse import quote

from cachebus.admin import client
from cachebus.admin.client import AdminRefused, ask, give_copy, take_copy
from cachebus.admin.records import rdata_text, record_texts
from cachebus.admin.reports import lookup_report, why_report
from cachebus.admin.server import AdminServer, _Gate
from cachebus.admin.view import Report
from cachebus.answer import Answer, Evidence, RRset
from cachebus.cache import Cache
from cachebus.cli.present import records_to_text
from cachebus.errors import FrameError, NodeUnreachable
from cachebus.presentation import TYPES, name_to_text
from cachebus.wire.message import NOERROR, NXDOMAIN, pack
from tests.fuzz.bus import NOW
from tests.fuzz.grammar import NAMES, ODD_NAMES, A, pick_name, pick_type, rdata
from tests.fuzz.harness import Part, Target
from tests.fuzz.messages import BytesTarget
from tests.fuzz.mutate import below, mutate

TYPE_CODES = (*sorted(TYPES), 65280, 65392)
MAX_REPLY = 10_000
"""Bytes of a reply in place of the client's own limit: a bound that an example can exceed."""
PATHS = ("/v1/lookup", "/v1/why", "/v1/status", "/metrics", "/healthz", "/v1/none")


class RdataTextTarget(BytesTarget):
    """RDATA for people: one printable line for each record, both ways of writing it the same."""

    name = "rdata-text"
    parts = (Part("cachebus/admin/records.py"), Part("cachebus/cli/present.py"))
    block = 20

    def begin(self, rng: Random) -> None:
        self._type = TYPE_CODES[below(rng, len(TYPE_CODES))] if rng.random() < 0.7 else pick_type(rng)

    def valid(self, rng: Random) -> bytes:
        return b"".join(rdata(rng, self._type))

    def check(self, example: bytes, rng: Random) -> bool:
        rrset = RRset(pick_name(rng).lower(), self._type, 300, pack(self._type, 300, [example[:65535]]))
        (line,) = record_texts(rrset)
        assert line.isprintable()
        assert line.isascii()
        assert line.startswith(f"{name_to_text(rrset.owner)} 300 IN ")
        assert records_to_text(rrset, 300) == [line]
        text = rdata_text(self._type, example)
        assert line.endswith(text)
        return not text.startswith("\\#")


class AdminRequestTarget(BytesTarget):
    """The admin API: each request gets its answer, a bad one a 4xx, and nothing an error of ours."""

    name = "admin-request"
    parts = (
        Part(
            "cachebus/admin/server.py",
            only=("AdminServer._about_name", "AdminServer._metrics", "AdminServer._healthz", "_json"),
        ),
        Part("cachebus/admin/reports.py", without=("status_report", "_transport", "_counters", "_word")),
    )
    cost = 5

    def __init__(self) -> None:
        loop = self._loop = asyncio.new_event_loop()
        weakref.finalize(self, loop.close)
        self._cache = _full_cache()
        self._gate = self._loop.run_until_complete(self._serve())

    async def _serve(self) -> Callable[[], asyncio.Protocol]:
        """What a listening socket would call for each connection."""
        self._server = AdminServer(_View(self._cache), lambda: NOW + 1.0)
        with tempfile.TemporaryDirectory() as directory, patch.object(self._server, "_path", f"{directory}/admin"):
            await self._server.__aenter__()
            self._server._servers.pop().close()
        server = self._server._runners[0].server
        assert server is not None
        return _Gate(server)

    def valid(self, rng: Random) -> bytes:
        path = PATHS[below(rng, 2) if rng.random() < 0.7 else below(rng, len(PATHS))]
        name = (NAMES + ODD_NAMES)[below(rng, len(NAMES) + len(ODD_NAMES))]
        query = "?name=" + quote(name_to_text(name))
        if rng.random() < 0.6:
            query += "&type=" + ("A", "TXT", "aaaa", "TYPE65280", "CNAME", "MX", "NOSUCH", "", "ANY")[below(rng, 9)]
        method = "GET" if rng.random() < 0.95 else ("HEAD", "POST", "PUT", "OPTIONS")[below(rng, 4)]
        return f"{method} {path}{query} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()

    def mutated(self, rng: Random) -> bytes:
        request = self.valid(rng)
        if rng.random() < 0.3:
            return mutate(rng, request, (self.valid(rng),))
        start, end = request.index(b"=") + 1, request.index(b" HTTP")  # what is ours to read
        changed = mutate(rng, request[start:end])
        return request[:start] + (quote(changed).encode() if rng.random() < 0.8 else changed) + request[end:]

    def check(self, example: bytes, rng: Random) -> bool:
        return self._loop.run_until_complete(self._ask(example))

    async def _ask(self, example: bytes) -> bool:
        transport = _Transport()
        protocol = self._gate()
        protocol.connection_made(cast("asyncio.Transport", transport))
        protocol.data_received(example)
        for _ in range(30):
            await asyncio.sleep(0)
            if transport.closed:
                break
        if not transport.closed:
            protocol.eof_received()
        protocol.connection_lost(None)
        await asyncio.sleep(0)
        head, _, body = bytes(transport.written).partition(b"\r\n\r\n")
        if not head:
            return False
        status = int(head.split()[1])
        assert status == 200 or 400 <= status < 500, head
        if status == 200 and b"application/json" in head and body:
            found = json.loads(body.partition(b"HTTP/1.1 ")[0])
            for line in found if isinstance(found, list) else []:
                assert all(text.isprintable() for text in line["records"])
                assert line["name"].isprintable()
        return status == 200


class _View:
    """A node's."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache

    def status(self) -> Report:
        return {}

    def metrics(self) -> bytes:
        return b"# none\n"

    async def give_copy(self) -> AsyncIterator[bytes]:
        yield b""

    async def take_copy(self, pieces: AsyncIterator[bytes]) -> Report:
        raise FrameError("no copy")

    def lookup(self, qname: bytes, qtype: int | None, now: float) -> list[Report]:
        return list(lookup_report(self._cache, qname, qtype, now))

    def why(self, qname: bytes, qtype: int | None, now: float) -> list[Report]:
        return list(why_report(self._cache, [{"event": "received"}] * (len(qname) % 2), qname, qtype, now))


def _full_cache() -> Cache:
    """RRsets of every kind at every name, RDATA of which much is not what its type demands."""
    rng, cache = Random(1), Cache("n1")
    for number, owner in enumerate(NAMES + ODD_NAMES):
        if number % 4 == 3:
            nxdomain = number % 8 == 3
            cache.put_negative(owner.lower(), A, NXDOMAIN if nxdomain else NOERROR, None, 600, NOW, "n1")
            if nxdomain:
                continue
        for rrtype in (A, 16, 15, 28, 65, 65280, 5):
            made = b"".join(bytes(piece) for piece in rdata(rng, rrtype))
            if rrtype != 5 and rng.random() < 0.3:
                made = mutate(rng, made)
            if rrtype == 5 and rng.random() < 0.7:
                continue
            rrset = RRset(owner.lower(), rrtype, 300, pack(rrtype, 300, [made]))
            cache.put(Answer(rrset.owner, rrtype, (rrset,), Evidence.CONFIRMED, "n2", NOW, False, "lan", "k"), NOW)
    return cache


class _Transport:
    def __init__(self) -> None:
        self.written = bytearray()
        self.closed = False

    def get_extra_info(self, name: str, default: object = None) -> object:
        return default

    def is_closing(self) -> bool:
        return self.closed

    def write(self, data: bytes) -> None:
        self.written += data

    def writelines(self, parts: list[bytes]) -> None:
        self.written += b"".join(parts)

    def close(self) -> None:
        self.closed = True

    abort = close

    def pause_reading(self) -> None:
        pass

    resume_reading = pause_reading


class AdminReplyTarget(BytesTarget):
    """`ask`, `give_copy`, `take_copy`: any bytes from the socket give what was sent, `AdminRefused` or
    `NodeUnreachable`."""

    name = "admin-reply"
    parts = (Part("cachebus/admin/client.py", without=("_UnixConnection",)),)

    def valid(self, rng: Random) -> bytes:
        value = ([], {}, [{"name": "a.", "ttl": 3}], {"error": "no name"}, None, 1e400, "x")[below(rng, 7)]
        body = json.dumps(value).encode()
        if rng.random() < 0.02:
            body = b"[" * (5000 if rng.random() < 0.5 else MAX_REPLY) + body
        status = (200, 200, 400, 404, 100, 500)[below(rng, 6)]
        head = f"HTTP/1.1 {status} OK\r\nContent-Type: application/json\r\n".encode()
        if rng.random() < 0.3:
            chunks = [body[:3], body[3:]] if len(body) > 3 else [body]
            body = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
            return head + b"Transfer-Encoding: chunked\r\n\r\n" + body
        return head + b"Content-Length: %d\r\n\r\n" % len(body) + body

    def check(self, example: bytes, rng: Random) -> bool:
        def connect(connection: Any) -> None:
            if rng.random() < 0.01:
                raise (TimeoutError(), ConnectionRefusedError(111, "refused"), ValueError("NUL"))[below(rng, 3)]
            connection.sock = _Socket(example)

        parameters = {"name": "a."} if rng.random() < 0.5 else None
        die = rng.random()
        into = io.BytesIO()
        with patch.object(client._UnixConnection, "connect", connect), patch.object(client, "MAX_REPLY", MAX_REPLY):
            try:
                if die < 0.6:
                    assert ask("/run/x", "lookup", parameters) is not None
                elif die < 0.8:
                    assert give_copy("/run/x", into) == len(into.getvalue()) <= len(example)
                else:
                    assert take_copy("/run/x", io.BytesIO(bytes(10))) is not None
            except (AdminRefused, NodeUnreachable) as error:
                assert "/run/x" in str(error) or isinstance(error, AdminRefused)
                return False
        assert example.startswith(b"HTTP/")
        return True


class _Socket:
    """The other end has said everything already."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.said = b""

    def sendall(self, data: bytes) -> None:
        self.said += data
        assert self.said.startswith((b"GET /v1/lookup", b"GET /v1/snapshot ", b"PUT /v1/snapshot "))

    def makefile(self, _: str) -> io.BufferedReader:
        return io.BufferedReader(cast("io.RawIOBase", io.BytesIO(self._data)))

    def close(self) -> None:
        pass


TARGETS: tuple[type[Target[bytes]], ...] = (RdataTextTarget, AdminRequestTarget, AdminReplyTarget)
