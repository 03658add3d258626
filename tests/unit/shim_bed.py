"""What the shim's tests stand on: an upstream that says what a test tells it, and a client. No test is in here."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import dns.flags
import dns.message
import dns.rcode
import dns.rrset

from cachebus.answer import Answer, Evidence, RRset
from cachebus.presentation import name_from_text, type_from_text
from cachebus.shim import ShimSettings, UpstreamSettings
from cachebus.shim.sockets import bind_both
from cachebus.wire.message import pack, parse

WAIT = 10.0
"""Seconds within which anything a test waits for happens, on a machine as busy as it may be."""

Reply = bytes | Sequence[bytes] | None
Respond = Callable[[dns.message.Message, bool], Reply]


def records(*lines: str) -> list[dns.rrset.RRset]:
    """RRsets of lines such as `www.example. 300 IN A 192.0.2.1`."""
    return dns.message.from_text("id 1\nflags QR\n;ANSWER\n" + "\n".join(lines), idna_codec=None).answer


def reply_to(
    query: dns.message.Message,
    answer: Iterable[dns.rrset.RRset] = (),
    *,
    authority: Iterable[dns.rrset.RRset] = (),
    flags: int = 0,
    rcode: int = 0,
) -> bytes:
    """A response in wire form; `flags` are added to QR, RD and RA."""
    response = dns.message.make_response(query)
    response.flags |= dns.flags.RA | flags
    response.set_rcode(dns.rcode.Rcode(rcode))
    response.answer = list(answer)
    response.authority = list(authority)
    return response.to_wire()


def rrset(owner: str, rrtype: str, ttl: int, *rdatas: bytes, sigs: bytes = b"") -> RRset:
    """An RRset of the core."""
    code = type_from_text(rrtype)
    return RRset(name_from_text(owner), code, ttl, pack(code, ttl, rdatas), sigs)


def signature(owner: str, rrtype: str, *, labels: int | None = None, ttl: int = 300) -> bytes:
    """A packed RRSIG, of the right form and with no other merit, valid until the end of 2027."""
    code = type_from_text(rrtype)
    count = len(owner.rstrip(".").split(".")) if labels is None else labels
    times = (1_830_000_000).to_bytes(4, "big") + (1_700_000_000).to_bytes(4, "big")
    fixed = code.to_bytes(2, "big") + bytes((13, count)) + ttl.to_bytes(4, "big") + times + b"\1\2"
    zone = name_from_text(owner.split(".", 1)[1] or ".")
    return pack(46, ttl, [fixed + zone + bytes(64)])


def bus_answer(
    *rrsets: RRset, evidence: Evidence = Evidence.AUTHORITATIVE, learned: float, transport: str = "lan"
) -> Answer:
    """What a peer told us, or with `transport=""` what we know ourselves."""
    last = rrsets[-1]
    return Answer(rrsets[0].owner, last.type, rrsets, evidence, "node-b", learned, transport=transport)


class ScriptedUpstream(asyncio.DatagramProtocol):
    """Answers over UDP, TCP and, with a context, TLS: whatever `respond` says; None is silence."""

    def __init__(self, respond: Respond, *, tls: ssl.SSLContext | None = None) -> None:
        self._respond = respond
        self._tls = tls
        self._server: asyncio.Server | None = None
        self._transport: Any = None
        self._writers: set[asyncio.StreamWriter] = set()
        self.queries: list[dns.message.Message] = []
        self.wires: list[bytes] = []
        self.ports: list[int] = []
        self.connections = 0
        self.address = ("127.0.0.1", 0)

    async def __aenter__(self) -> Self:
        udp, tcp = bind_both(self.address)
        self.address = udp.getsockname()
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_datagram_endpoint(lambda: self, sock=udp)
        self._server = await asyncio.start_server(self._serve, sock=tcp, ssl=self._tls)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._transport.close()
        assert self._server is not None
        self._server.close()
        self.drop_connections()
        await self._server.wait_closed()

    def drop_connections(self) -> None:
        for writer in self._writers:
            writer.close()

    def _take(self, data: bytes, *, stream: bool) -> Sequence[bytes]:
        query = dns.message.from_wire(data)
        self.queries.append(query)
        self.wires.append(data)
        reply = self._respond(query, stream)
        if reply is None:
            return ()
        return (reply,) if isinstance(reply, bytes) else reply

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        self.ports.append(addr[1])
        for reply in self._take(data, stream=False):
            self._transport.sendto(reply, addr)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        try:
            while True:
                size = int.from_bytes(await reader.readexactly(2), "big")
                for reply in self._take(await reader.readexactly(size), stream=True):
                    writer.write(len(reply).to_bytes(2, "big") + reply)
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()


def settings(*upstreams: ScriptedUpstream | UpstreamSettings, **changes: Any) -> ShimSettings:
    """A shim on a free loopback port, in front of these upstreams."""
    chosen = tuple(
        UpstreamSettings(address=upstream.address) if isinstance(upstream, ScriptedUpstream) else upstream
        for upstream in upstreams
    )
    return ShimSettings(**{"node": "node-a", "listen": (("127.0.0.1", 0),), "upstreams": chosen, **changes})


async def ask_udp(endpoint: tuple[str, int], wire: bytes, *, within: float = WAIT) -> bytes | None:
    """The reply to `wire`, or None when there is none in time."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET6 if ":" in endpoint[0] else socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(0)
        client.connect(endpoint)
        client.send(wire)
        with suppress(TimeoutError):
            async with asyncio.timeout(within):
                return await loop.sock_recv(client, 65535)
    return None


async def ask(endpoint: tuple[str, int], name: str, rrtype: str = "A", **options: Any) -> dns.message.Message:
    """The reply to a question over UDP, parsed by dnspython; options are those of `make_query`."""
    flags = options.pop("flags", dns.flags.RD)
    query = dns.message.make_query(name, rrtype, **options)
    query.flags = dns.flags.Flag(flags)
    reply = await ask_udp(endpoint, query.to_wire())
    assert reply is not None, f"no reply for {name} {rrtype}"
    parse(reply)
    message = dns.message.from_wire(reply, raise_on_truncation=False)
    assert query.is_response(message)
    return message


def texts(section: Iterable[dns.rrset.RRset]) -> list[str]:
    """One line per record."""
    return [line for rrset in section for line in rrset.to_text().splitlines()]


async def until(condition: Callable[[], object], within: float = WAIT) -> None:
    """Wait for a condition, with a deadline."""
    async with asyncio.timeout(within):
        while not condition():  # noqa: ASYNC110  (what is waited for has no event)
            await asyncio.sleep(0.005)
