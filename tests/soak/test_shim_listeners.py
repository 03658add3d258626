"""The shim's real listeners under bytes that mean little: nothing is logged, nothing stays open, and it still answers.

UDP, the framing of TCP, DNS over TLS and the requests of DNS over HTTPS; what single parsers do is for `tests/fuzz`.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from random import Random

import dns.message
import pytest

from cachebus.answer import Answer
from cachebus.cache import Cache
from cachebus.shim import Shim
from cachebus.shim.query import Channel
from tests.fuzz.listen import HttpsTarget
from tests.fuzz.mutate import below, mutate
from tests.fuzz.shim import QueryTarget
from tests.unit.listen_bed import NAME, Authority
from tests.unit.shim_bed import WAIT, ScriptedUpstream, ask, records, reply_to, settings, until

pytestmark = pytest.mark.soak

SEED = 53
AT_ONCE = 8
"""Clients at a time."""
PATIENCE = 0.05
"""Seconds that a client listens before it goes away."""
Endpoint = tuple[str, int]


class Noise:
    """What clients send: queries, most of them a little wrong."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self._queries = QueryTarget()
        self._https = HttpsTarget()

    def message(self) -> bytes:
        query = self._queries.valid(self.random)
        return query if self.random.random() < 0.2 else mutate(self.random, query, (query,))

    def stream(self) -> bytes:
        messages = [self.message() for _ in range(1 + below(self.random, 4))]
        whole = b"".join(len(message).to_bytes(2, "big") + message for message in messages)
        return whole if self.random.random() < 0.4 else mutate(self.random, whole, (whole,))

    def requests(self) -> bytes:
        """An HTTP/2 client's bytes: requests of any kind, sometimes with bytes or frames changed."""
        return self._https.valid(self.random) if self.random.random() < 0.5 else self._https.mutated(self.random)


async def over_udp(endpoint: Endpoint, noise: Noise) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(0)
        client.connect(endpoint)
        for _ in range(20):
            client.send(noise.message())
        with suppress(TimeoutError, OSError):
            async with asyncio.timeout(PATIENCE):
                await asyncio.get_running_loop().sock_recv(client, 65535)


async def over_stream(endpoint: Endpoint, data: bytes, noise: Noise, context: ssl.SSLContext | None) -> None:
    try:
        name = None if context is None else NAME
        async with asyncio.timeout(WAIT):
            reader, writer = await asyncio.open_connection(*endpoint, ssl=context, server_hostname=name)
    except OSError:
        return  # turned away: there were too many
    try:
        cut = below(noise.random, len(data) + 1)
        for piece in (data[:cut], data[cut:]):
            writer.write(piece)
            await asyncio.sleep(0)
        with suppress(TimeoutError, OSError):
            async with asyncio.timeout(PATIENCE):
                while await reader.read(65536):
                    pass
    finally:
        if noise.random.random() < 0.5:
            writer.transport.abort()
        writer.close()
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(WAIT):
                await writer.wait_closed()


async def one_client(shim: Shim, noise: Noise, authority: Authority) -> None:
    plain = shim.endpoints[0]
    (tls,), (https,) = shim.encrypted[Channel.TLS], shim.encrypted[Channel.HTTPS]
    match below(noise.random, 5):
        case 0:
            await over_udp(plain, noise)
        case 1:
            await over_stream(plain, noise.stream(), noise, None)
        case 2:
            await over_stream(tls, noise.stream(), noise, authority.client("dot"))
        case 3:
            await over_stream(https, noise.requests(), noise, authority.client("h2"))
        case _:  # no TLS at all, where TLS is expected
            await over_stream(noise.random.choice((tls, https)), noise.random.randbytes(300), noise, None)


@asynccontextmanager
async def running(authority: Authority) -> AsyncIterator[Shim]:
    def respond(query: dns.message.Message, stream: bool) -> bytes | None:
        return reply_to(query, records(f"{query.question[0].name} 60 IN A 192.0.2.1") if query.question else [])

    learned: list[Answer] = []
    async with ScriptedUpstream(respond) as upstream:
        made = settings(upstream, encrypted=authority.settings(), timeout=0.5, max_tcp_connections=64)
        async with Shim(made, Cache("node-a"), learned.append, time.time) as shim:
            yield shim


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_listeners_bear_any_bytes(soak_seconds: float, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    authority, noise = Authority(tmp_path), Noise(SEED)
    caplog.set_level(logging.WARNING)
    async with running(authority) as shim:
        assert (await ask(shim.endpoints[0], "www.example.")).rcode() == 0
        tasks, files = len(asyncio.all_tasks()), descriptors()
        end, clients = time.monotonic() + soak_seconds, 0
        while time.monotonic() < end:
            await asyncio.gather(*(one_client(shim, noise, authority) for _ in range(AT_ONCE)))
            clients += AT_ONCE
        assert clients >= 4 * AT_ONCE, "too slow to have shown anything"
        assert (await ask(shim.endpoints[0], "www.example.")).rcode() == 0
        await until(lambda: shim.statistics()["tcp_open"] == 0, 60)
        await until(lambda: len(asyncio.all_tasks()) <= tasks)
        gc.collect()
        await until(lambda: descriptors() <= files)
        counted = shim.statistics()
        assert counted["errors"]
        assert counted["dropped_short"] or counted["dropped_response"]
        assert counted["https_requests"]
        assert counted["tls_failed"]
    assert [record.getMessage() for record in caplog.records if record.name.startswith("cachebus")] == []
    assert not [record for record in caplog.records if record.name == "asyncio"]
