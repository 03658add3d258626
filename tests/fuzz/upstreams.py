"""Targets: an upstream's HTTP/2 (`shim.session`), and the lines of block-lists (`shim.block_lists`)."""

from __future__ import annotations

import tempfile
import weakref
from pathlib import Path
from random import Random
from typing import Any

from h2.config import H2Configuration
from h2.connection import H2Connection

from cachebus.errors import ConfigError, TransportError
from cachebus.presentation import check_name
from cachebus.shim.block_lists import Action, Format, Loader, Rule, Rules
from cachebus.shim.exchange import compose_query
from cachebus.shim.http2 import MAX_FRAME
from cachebus.shim.session import MAX_MESSAGE, Https
from tests.fuzz.frames import portions
from tests.fuzz.harness import Part, Target
from tests.fuzz.messages import BytesTarget
from tests.fuzz.mutate import below

QUERY = compose_query(b"\3www\7example\0", 1, recurse=True)
KINDS = (b"application/dns-message", b"application/dns-message; x=y", b"Application/DNS-Message", b"text/html")


class HttpsTarget(BytesTarget):
    """`Https`: each question gets one reply of at most 65535 bytes, or an error, or the connection ends."""

    name = "https-upstream"
    parts = (Part("cachebus/shim/session.py", only=("Https",)), Part("cachebus/shim/http2.py"))
    cost = 4

    def valid(self, rng: Random) -> bytes:
        server = H2Connection(H2Configuration(client_side=False, header_encoding=None, validate_outbound_headers=False))
        server.initiate_connection()
        session = Https("dns.example", "/dns-query")
        server.receive_data(session.opening())
        streams = []
        for _ in range(1 + below(rng, 3)):
            stream, _, data = session.ask(QUERY)
            server.receive_data(data)
            assert isinstance(stream, int)
            streams.append(stream)
        rng.shuffle(streams)
        for stream in streams:
            self._answer(server, stream, rng)
        if rng.random() < 0.1:
            server.ping(bytes(8))
        if rng.random() < 0.1:
            server.close_connection()
        return server.data_to_send()

    def _answer(self, server: H2Connection, stream: int, rng: Random) -> None:
        die = rng.random()
        if die < 0.05:
            server.reset_stream(stream)
            return
        status = b"200" if rng.random() < 0.9 else (b"503", b"404", b"abc")[below(rng, 3)]
        kind = KINDS[0] if rng.random() < 0.6 else KINDS[below(rng, len(KINDS))]
        server.send_headers(stream, [(b":status", status), (b"content-type", kind)])
        body = rng.randbytes(below(rng, 200))
        if die > 0.97:
            body = bytes(min(MAX_MESSAGE + 1, server.local_flow_control_window(stream)))
        while True:
            size = min(MAX_FRAME, server.local_flow_control_window(stream))
            server.send_data(stream, body[:size], end_stream=len(body) <= size)
            body = body[size:]
            if not body or not server.local_flow_control_window(stream):
                return

    def mutated(self, rng: Random) -> bytes:
        if rng.random() < 0.05:
            at = below(rng, 3)
            return self.valid(rng) + bytes((0, 0x40, 1))[at:] + rng.randbytes(20)
        return super().mutated(rng)

    def check(self, example: bytes, rng: Random) -> bool:
        session = Https("dns.example", "/dns-query")
        session.opening()
        asked = {session.ask(QUERY)[0] for _ in range(1 + below(rng, 3))}
        if rng.random() < 0.2:
            gone = next(iter(asked))
            session.forget(gone)
            asked.discard(gone)
        found: dict[Any, bytes | TransportError] = {}
        try:
            for portion in portions(rng, example):
                for key, message in session.receive(portion)[0]:
                    assert key in asked
                    assert key not in found
                    found[key] = message
                    session.forget(key)
        except TransportError:
            pass
        assert all(len(message) <= MAX_MESSAGE for message in found.values() if isinstance(message, bytes))
        return any(isinstance(message, bytes) for message in found.values())


ZONE = b"$ORIGIN r.test.\n@ 60 SOA localhost. n.invalid. 1 1 1 1 1\n"
LINES = (
    b"ads.example", b"||x.example^", b"@@||y.example^", b"||z.example^$important", b"*.w.example", b"# c", b"! c", b"",
    b"0.0.0.0 a.example b.example", b"127.0.0.1 localhost", b":: c.example", b"192.0.2.1 d.example", b"a b c", b"-",
    "bücher.example".encode(), b"\xff.example", b"x" * 70 + b".example", b"y" * 5000,
)  # fmt: skip
RECORDS = (
    b"a.example 60 CNAME .", b"*.a.example 60 CNAME .", b"b.example 60 CNAME *.", b"c.example 60 CNAME rpz-passthru.",
    b"d.example 60 CNAME rpz-drop.", b"e.example 60 CNAME rpz-tcp-only.", b"f.example 60 A 192.0.2.1", b"g 60 TXT x y",
    b"h.example 60 CNAME *.garden.example.", b"i.example 60 CNAME garden.example.", b"24.0.2.0.192.rpz-ip 60 CNAME .",
    b"j.example 60 NSEC k.example. A",
)  # fmt: skip


class BlockListTarget(BytesTarget):
    """`Loader`: rules for names that are names, or `ConfigError`."""

    name = "block-list"
    parts = (Part("cachebus/shim/block_lists.py", without=("read_hosts", "read_records")),)
    cost = 4

    def __init__(self) -> None:
        folder = tempfile.TemporaryDirectory(prefix="cachebus-fuzz-")
        weakref.finalize(self, folder.cleanup)
        self._path = Path(folder.name) / "list"

    def valid(self, rng: Random) -> bytes:
        zone = rng.random() < 0.4
        lines = RECORDS if zone else LINES
        chosen = [lines[below(rng, len(lines))] for _ in range(below(rng, 8))]
        if zone and rng.random() < 0.05:
            chosen.append(b"$INCLUDE /etc/passwd")
        return (ZONE if zone and rng.random() < 0.95 else b"") + b"\n".join(chosen) + b"\n"

    def check(self, example: bytes, rng: Random) -> bool:
        self._path.write_bytes(example)
        forms = list(Format)
        form = Format.RPZ if b"SOA" in example else forms[below(rng, len(forms))]
        rules, exceptions = Rules(), Rules()
        path = self._path if rng.random() < 0.99 else self._path.parent / ("" if rng.random() < 0.5 else "none")
        try:
            loaded = Loader(rules, exceptions).load(path, form, Rule(Action.NXDOMAIN, source="x"))
        except ConfigError:
            return False
        assert len(rules) + len(exceptions) <= loaded.rules <= example.count(b" ") + example.count(b"\n") + 1
        for found in (rules, exceptions):
            for part in (found._exact, found._below, found._both):
                for name in part:
                    check_name(name)
                    assert name == name.lower()
        for name in (b"\3ads\7example\0", b"\1x\1a\7example\0", b"\0"):
            rule = rules.find(name)
            assert rule is None or rule.action is not None or rule.records
        return loaded.rules > 0


TARGETS: tuple[type[Target[Any]], ...] = (HttpsTarget, BlockListTarget)
