# ruff: noqa: PT017  (either outcome is right; both are looked at)
"""Targets: both sides of an Unbound: what fills it, what it replies, and the module that tells us its answers."""

from __future__ import annotations

import asyncio
import importlib.util
import re
import socket
import sys
import weakref
from contextlib import suppress
from pathlib import Path
from random import Random
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import patch

from cachebus.answer import Answer, Evidence, RRset
from cachebus.errors import FrameError, MessageError, ResolverError
from cachebus.unbound.control import MAX_REPLY, CommandRefused, ControlChannel
from cachebus.unbound.dump import MAX_LINE, Entry, compose, dump
from cachebus.wire.framestream import LengthPrefixedReceiver
from cachebus.wire.message import pack, parse, records
from tests.fuzz.bus import NOW
from tests.fuzz.grammar import CNAME, DNAME, NAMES, ODD_NAMES, RRSIG, make_chain, pick_name, pick_type
from tests.fuzz.grammar import rdata as make_rdata
from tests.fuzz.harness import Part, Target
from tests.fuzz.messages import BytesTarget
from tests.fuzz.mutate import WORDS, below, mutate

_OWNER = r"(?:\.|(?:(?:[A-Za-z0-9_-]|\\[0-2][0-9]{2})+\.)+)"
_LINE = re.compile(
    "|".join(
        f"(?:{form})"
        for form in (
            r"START_RRSET_CACHE|END_RRSET_CACHE|START_MSG_CACHE|END_MSG_CACHE|EOF",
            r";rrset \d+ \d+ \d+ 5 [035]",
            _OWNER + r" \d+ IN TYPE\d+ \\# \d+ [0-9a-f]*",
            r"msg " + _OWNER + r" IN TYPE\d+ 32896 1 \d+ [035] \d+ 0 0 -1",
            _OWNER + r" IN TYPE\d+ 0",
        )
    )
)


class DumpTarget(Target[Answer]):
    """`unbound.dump.compose`: lines of the format with exactly the answer's records, nothing, or `MessageError`."""

    name = "unbound-dump"
    parts = (Part("cachebus/unbound/dump.py"),)
    cost = 2

    def valid(self, rng: Random) -> Answer:
        qname = pick_name(rng).lower()
        qtype = pick_type(rng)
        rrsets: list[RRset] = []
        for record in make_chain(rng, qname, qtype, NOW, usual=rng.random() < 0.5):
            made = pack(record.type, record.ttl, [b"".join(record.rdata)])
            last = rrsets[-1] if rrsets else None
            if record.type == RRSIG and last is not None:
                rrsets[-1] = last._replace(sigs=last.sigs + made)
            elif last is not None and (last.owner, last.type) == (record.owner.lower(), record.type):
                rrsets[-1] = last._replace(rrs=last.rrs + made)
            else:
                rrsets.append(RRset(record.owner.lower(), record.type, record.ttl & 0x7FFFFFFF, made))
        if not rrsets or (rrsets[-1].type == DNAME and qtype != DNAME):
            rrsets.append(RRset(qname, CNAME, 300, pack(CNAME, 300, [qname])))
        if rng.random() < 0.005:
            rrsets[-1] = rrsets[-1]._replace(rrs=pack(rrsets[-1].type, 1, [bytes(40_000)]))
        return Answer(
            qname,
            qtype,
            tuple(rrsets),
            Evidence(1 + below(rng, 3)),
            "n2",
            NOW - below(rng, 400),
            rng.random() < 0.5,
            "lan",
            "k",
        )

    def mutated(self, rng: Random) -> Answer:
        answer = self.valid(rng)
        at = below(rng, len(answer.rrsets))
        rrset = answer.rrsets[at]
        die = rng.random()
        if die < 0.15:
            return answer._replace(qname=mutate(rng, answer.qname))
        if die < 0.4:
            rrset = rrset._replace(
                owner=mutate(rng, rrset.owner, ODD_NAMES) if die < 0.3 else NAMES[below(rng, len(NAMES))]
            )
        elif die < 0.7:
            rrset = rrset._replace(rrs=mutate(rng, rrset.rrs, NAMES, start=12 if rng.random() < 0.5 else 0))
        elif die < 0.8:
            rrset = rrset._replace(sigs=mutate(rng, rrset.sigs or rrset.rrs))
        elif die < 0.9:
            rrset = rrset._replace(rrs=pack(rrset.type, 1, [b"".join(make_rdata(rng, rrset.type))]), sigs=b"")
        else:
            rrset = rrset._replace(type=WORDS[below(rng, len(WORDS))])
        return answer._replace(rrsets=(*answer.rrsets[:at], rrset, *answer.rrsets[at + 1 :]))

    def noise(self, rng: Random) -> Answer:
        rrset = RRset(rng.randbytes(below(rng, 20)), below(rng, 65536), 300, rng.randbytes(below(rng, 40)), b"")
        return self.valid(rng)._replace(rrsets=(rrset,))

    def check(self, example: Answer, rng: Random) -> bool:
        held = (lambda name, rrtype: bool(name[0] & 1)) if rng.random() < 0.3 else None
        try:
            entry = compose(example, float(NOW), held)
        except MessageError:
            return False
        if entry is None:
            assert any(int(rrset.ttl - max(NOW - example.learned, 0)) <= 0 for rrset in example.rrsets)
            return True
        self._text(entry, example)
        return True

    def _text(self, entry: Entry, answer: Answer) -> None:
        text = dump([entry])
        assert entry.size < len(text)
        assert text.isascii()
        assert text.endswith(b"\nEOF\n")
        found = []
        for line in text.decode("ascii").removesuffix("\n").split("\n"):
            assert len(line) <= MAX_LINE
            assert _LINE.fullmatch(line), line
            if " \\# " in line:
                owner, _, _, kind, _, size, digits = line.split(" ")
                assert int(size) * 2 == len(digits)
                found.append((_unescaped(owner), int(kind.removeprefix("TYPE")), bytes.fromhex(digits)))
        expected = [
            (rrset.owner, rrtype, rdata)
            for rrset in answer.rrsets
            for packed in (rrset.rrs, rrset.sigs)
            for rrtype, _, rdata in records(packed)
        ]
        assert found == list(dict.fromkeys(expected)) or set(found) == set(expected)


def _unescaped(text: str) -> bytes:
    wire = bytearray()
    for label in text.removesuffix(".").split(".") if text != "." else []:
        raw = re.sub(r"\\(\d{3})", lambda found: chr(int(found[1])), label).encode("latin-1")
        wire += bytes([len(raw)]) + raw
    return bytes(wire) + b"\0"


class ControlTarget(BytesTarget):
    """`ControlChannel`: any reply is a result or a `ResolverError` with one printable line."""

    name = "unbound-control"
    parts = (
        Part(
            "cachebus/unbound/control.py",
            only=("ControlChannel.load", "ControlChannel.command", "ControlChannel.has_marker", "_exchange", "_quote"),
        ),
    )
    cost = 2

    def __init__(self) -> None:
        self._channel = ControlChannel("unix:/nonexistent")
        loop = self._loop = asyncio.new_event_loop()
        weakref.finalize(self, loop.close)
        self._reply = b""
        self._step = 1

    def valid(self, rng: Random) -> bytes:
        marker = self._channel._marker_address.encode()
        return (
            b"ok\n",
            b"error could not parse\n",
            b"The following name servers are used for lookup of x.\nforwarding request:\n" + marker + b" expired\n",
            b"The noprime stub servers are used:\n10.0.0.1\n",
            b"",
            b"ok\n" * 10_000,
        )[below(rng, 5 if rng.random() < 0.99 else 6)]

    def check(self, example: bytes, rng: Random) -> bool:
        self._reply, self._step = example, (1, 7, 16_384)[below(rng, 3)] if len(example) < 500 else 16_384
        if rng.random() < 0.002:
            self._reply, self._step = bytes(MAX_REPLY + 1), 16_384
        return self._loop.run_until_complete(self._both())

    async def _both(self) -> bool:
        taken = False
        with (
            patch("cachebus.unbound.control.socket.socket", _Socket),
            patch.object(asyncio.get_running_loop().__class__, "sock_recv", self._receive),
            patch.object(asyncio.get_running_loop().__class__, "sock_sendall", _drop),
        ):
            for command in (self._channel.load(b"EOF\n"), self._channel.has_marker()):
                self._rest = self._reply
                try:
                    found = await command
                except ResolverError as error:
                    text = str(error)
                    assert text.isprintable(), text
                    assert len(text) < 800
                    assert not self._reply.startswith(b"error") or isinstance(error, CommandRefused)
                    continue
                taken = True
                assert len(self._reply) <= MAX_REPLY
                if found is None:
                    assert self._reply.strip() == b"ok"
                else:
                    assert found == (self._channel._marker_address.encode() in self._reply.split())
        return taken

    async def _receive(self, *_: object) -> bytes:
        data, self._rest = self._rest[: self._step], self._rest[self._step :]
        return data


async def _drop(*_: object) -> None:
    return None


class _Socket:
    """Takes half, so that the rest goes another way; or, of a short request, all."""

    def __init__(self, *_: object) -> None:
        pass

    def __enter__(self) -> _Socket:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def settimeout(self, _: float) -> None:
        """As a socket's."""

    def setsockopt(self, *_: object) -> None:
        """As a socket's."""

    def connect(self, _: object) -> None:
        """As a socket's."""

    def send(self, data: bytes) -> int:
        """Some of it."""
        return len(data) // 2 if data.endswith(b"EOF\n") else len(data)


SCRIPT = Path(__file__).parents[2] / "docs" / "examples" / "unbound" / "cachebus_unbound.py"


def load_module() -> Any:
    """The example, with a stand-in for Unbound's own module."""
    unbound = ModuleType("unboundmodule")
    for name, value in {
        "RCODE_NOERROR": 0, "sec_status_secure": 5, "sec_status_insecure": 3, "sec_status_indeterminate": 2,
        "ntohs": socket.ntohs, "log_warn": lambda _: None,
    }.items():  # fmt: skip
        setattr(unbound, name, value)
    spec = importlib.util.spec_from_file_location("cachebus_unbound", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with patch.dict(sys.modules, {"unboundmodule": unbound}):
        spec.loader.exec_module(module)
    return module


class Finished(NamedTuple):
    """What Unbound hands the module of one query, and how the socket behaves while it is told."""

    qname: bytes
    qtype: int
    rrsets: tuple[tuple[bytes, int, tuple[bytes, ...], int, int], ...]
    """Owner, type, RDATAs, how many of them are RRSIGs, trust."""
    flags: int
    security: int
    rcode: int


class ModuleTarget(Target[Finished]):
    """The example for Unbound's python hook: whole messages in order whatever the socket takes, and nothing raised."""

    name = "python-module"
    parts = (
        Part(
            "docs/examples/unbound/cachebus_unbound.py",
            only=("Stream", "Module.finished", "is_clients_query", "finished_answer", "compose"),
        ),
    )
    block = 30
    cost = 2

    def __init__(self) -> None:
        self._script = load_module()

    def begin(self, rng: Random) -> None:
        self._time = 0.0
        self._wire = _Reader(rng.getrandbits(32))
        self._bound = patch.object(self._script, "MAX_BUFFER", 700 if rng.random() < 0.4 else 1 << 20)
        self._module = self._script.Module("/nonexistent", secure_only=rng.random() < 0.1, clock=lambda: self._time)
        self._told: list[bytes] = []

    def valid(self, rng: Random) -> Finished:
        qname = pick_name(rng)
        qtype = pick_type(rng)
        rrsets: list[tuple[bytes, int, tuple[bytes, ...], int, int]] = []
        for record in make_chain(rng, qname, qtype, NOW, usual=True):
            made = b"".join(record.rdata)
            if record.type == RRSIG and rrsets:
                owner, kind, rdatas, sigs, trust = rrsets[-1]
                rrsets[-1] = (owner, kind, (*rdatas, made), sigs + 1, trust)
            else:
                rrsets.append((record.owner, record.type, (made,), 0, 8 if rng.random() < 0.95 else below(rng, 12)))
        if rng.random() < 0.002:
            rrsets.append((qname, qtype, (bytes(60_000), bytes(6000)), 0, 8))
        return Finished(qname, qtype, tuple(rrsets), 0x8180, (5, 3, 2)[below(rng, 3)], 0)

    def mutated(self, rng: Random) -> Finished:
        found = self.valid(rng)
        die = rng.random()
        if die < 0.1:
            return found._replace(flags=below(rng, 65536))
        if die < 0.2:
            return found._replace(security=below(rng, 6), rcode=below(rng, 4))
        if die < 0.3:
            return found._replace(qname=mutate(rng, found.qname))
        at = below(rng, len(found.rrsets))
        owner, kind, rdatas, sigs, trust = found.rrsets[at]
        if die < 0.5:
            owner = mutate(rng, owner)
        else:
            which = below(rng, len(rdatas))
            rdatas = (*rdatas[:which], mutate(rng, rdatas[which])[:65535], *rdatas[which + 1 :])
        rrsets = (*found.rrsets[:at], (owner, kind, rdatas, sigs, trust), *found.rrsets[at + 1 :])
        return found._replace(rrsets=rrsets)

    def noise(self, rng: Random) -> Finished:
        return Finished(
            rng.randbytes(below(rng, 9)), below(rng, 65536), (), below(rng, 65536), below(rng, 6), below(rng, 16)
        )

    def check(self, example: Finished, rng: Random) -> bool:
        qstate = _qstate(example, rng)
        self._time += rng.random() * (0.1 if rng.random() < 0.9 else 4)
        stream = self._module.stream
        with self._bound, patch.object(self._script.socket, "socket", self._wire.connection):
            before = sum(stream.dropped.values())
            waiting = len(stream._waiting)
            self._module.finished(qstate)
            told = len(stream._waiting) + sum(stream.dropped.values()) - waiting - before
            if rng.random() < 0.3:
                self._wire.patience = below(rng, 5)
            stream.flush()
            if rng.random() < 0.03:
                self._module.stream.close()
            assert stream._size == sum(len(frame) for _, frame in stream._waiting)
            assert stream._size <= max(self._script.MAX_BUFFER, 65539)
        for message in self._wire.take():
            with suppress(MessageError):  # what Unbound holds is for the judge to refuse
                parse(message)
        return bool(told) or not self._wire.patience

    def finish(self) -> None:
        """Every message that was not dropped arrives whole; a connection that was lost ends inside one at most."""
        with patch.object(self._script.socket, "socket", self._wire.connection):
            self._wire.patience = 1 << 30
            for _ in range(3):
                self._time += 1.5
                self._module.stream.flush()
        self._wire.take()
        assert not self._module.stream._waiting


class _Reader:
    """The other end: takes as much as it likes, refuses connections, goes away. Reads with our own receiver."""

    def __init__(self, seed: int) -> None:
        self._rng = Random(seed)
        self.patience = 5
        self._receiver = LengthPrefixedReceiver()
        self._messages: list[bytes] = []

    def connection(self, *_: object) -> _Reader:
        """A new socket: a new stream."""
        self._receiver = LengthPrefixedReceiver()
        return self

    def connect(self, _: object) -> None:
        """Refused now and then."""
        if self.patience < 1 << 20 and self._rng.random() < 0.2:
            raise ConnectionRefusedError

    def close(self) -> None:
        """As a socket's."""

    def send(self, data: bytes, _: int) -> int:
        """Some of it, or not now, or gone."""
        if self.patience <= 0:
            raise BlockingIOError
        if self.patience < 1 << 20:
            self.patience -= 1
            if self._rng.random() < 0.05:
                raise BrokenPipeError
            data = data[: 1 + below(self._rng, 200)]
        try:
            self._messages += self._receiver.receive_data(bytes(data))
        except FrameError as error:
            raise AssertionError("the stream is out of step") from error
        return len(data)

    def take(self) -> list[bytes]:
        """What has arrived since."""
        found, self._messages = self._messages, []
        return found


def _qstate(example: Finished, rng: Random) -> Any:
    rrsets = [
        SimpleNamespace(
            rk=SimpleNamespace(dname=owner, type=socket.htons(kind)),
            entry=SimpleNamespace(
                data=SimpleNamespace(
                    trust=trust,
                    count=len(rdatas) - sigs,
                    rrsig_count=sigs,
                    rr_ttl=[300] * len(rdatas),
                    rr_data=[len(rdata).to_bytes(2, "big") + rdata for rdata in rdatas],
                )
            ),
        )
        for owner, kind, rdatas, sigs, trust in example.rrsets
    ]
    reply = SimpleNamespace(flags=example.flags, an_numrrsets=len(rrsets), rrsets=rrsets, security=example.security)
    return SimpleNamespace(
        query_flags=0x0100 if rng.random() < 0.95 else 0x0110,
        is_priming=0,
        is_valrec=0,
        qinfo=SimpleNamespace(qname=example.qname, qtype=example.qtype, qclass=1),
        mesh_info=SimpleNamespace(reply_list=object() if rng.random() < 0.98 else None),
        return_msg=SimpleNamespace(rep=reply),
        return_rcode=example.rcode,
        no_cache_store=rng.random() < 0.01,
    )


TARGETS: tuple[type[Target[Any]], ...] = (DumpTarget, ControlTarget, ModuleTarget)
