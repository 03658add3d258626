"""The buffer of Unbound's python module, against sockets that take only so much. Unbound itself: tests/interop."""

from __future__ import annotations

import importlib.util
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from cachebus.testing import ManualClock
from cachebus.wire.framestream import LengthPrefixedReceiver

SCRIPT = Path(__file__).parents[2] / "docs" / "examples" / "unbound" / "cachebus_unbound.py"
MESSAGES = [bytes([number]) * 60_000 for number in range(10)]


class Log(ModuleType):
    """Stands in for Unbound's `unboundmodule`: remembers what is logged."""

    def __init__(self) -> None:
        super().__init__("unboundmodule")
        self.lines: list[str] = []
        self.log_warn = self.lines.append


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    made = Log()
    monkeypatch.setitem(sys.modules, "unboundmodule", made)
    return made


@pytest.fixture
def module(log: Log) -> Any:
    spec = importlib.util.spec_from_file_location("cachebus_unbound", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


class Peer:
    """The reading end; it reads only when told."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.listen()
        self.connection: socket.socket | None = None

    def listen(self) -> None:
        self.path.unlink(missing_ok=True)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(self.path))
        self.listener.listen()
        self.listener.setblocking(False)

    def close(self) -> None:
        if self.connection is not None:
            self.connection.close()
        self.connection = None
        self.listener.close()

    def read(self, most: int = 1 << 30) -> list[bytes]:
        """Whole messages from at most so many bytes; a broken stream fails the test."""
        if self.connection is None:
            self.connection, _ = self.listener.accept()
            self.connection.setblocking(False)
            self.receiver = LengthPrefixedReceiver()
        frames: list[bytes] = []
        try:
            while most > 0 and (data := self.connection.recv(min(most, 10_000))):
                most -= len(data)
                frames += self.receiver.receive_data(data)
        except BlockingIOError:
            pass
        return frames


@pytest.fixture
def peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    made = Peer(tmp_path_factory.mktemp("s") / "s")
    yield made
    made.close()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1000.0)


@pytest.fixture
def stream(module: Any, peer: Peer, clock: ManualClock) -> Iterator[Any]:
    made = module.Stream(str(peer.path), clock)
    yield made
    made.close()


def test_what_does_not_fit_waits_and_no_frame_is_cut(stream: Any, peer: Peer) -> None:
    for message in MESSAGES:
        stream.send(message)
    assert stream._waiting, "the socket took everything: the test shows nothing"
    assert stream._sent, "no frame was written in part: the test shows nothing"
    received = []
    for _ in range(100):
        received += peer.read(most=7_000)
        stream.flush()
    assert received == MESSAGES
    assert not stream.dropped


def test_a_partial_frame_is_finished_however_old_it_is_and_the_rest_is_dropped(
    stream: Any, peer: Peer, clock: ManualClock, module: Any
) -> None:
    for message in MESSAGES:
        stream.send(message)
    begun = len(MESSAGES) - len(stream._waiting) + 1
    clock.advance(module.MAX_WAIT + 1)
    received = []
    for _ in range(10):
        received += peer.read()
        stream.flush()
    assert received == MESSAGES[:begun]
    assert stream.dropped == {"reader too slow, or away": len(MESSAGES) - begun}
    stream.send(b"fresh")
    assert peer.read() == [b"fresh"]


def test_a_new_connection_starts_with_a_whole_frame(stream: Any, peer: Peer, clock: ManualClock, module: Any) -> None:
    for message in MESSAGES:
        stream.send(message)
    assert stream._sent
    peer.read(most=100_000)
    cut = len(MESSAGES) - len(stream._waiting)
    peer.close()
    peer.listen()
    clock.advance(module.RECONNECT_INTERVAL)
    received = []
    for _ in range(20):
        stream.flush()
        received += peer.read()
    assert received == MESSAGES[cut + 1 :]
    assert stream.dropped == {"connection lost": 1}


def test_the_buffer_is_bounded_and_keeps_the_newest(stream: Any, peer: Peer, module: Any) -> None:
    many = [bytes([number]) * 60_000 for number in range(60)]
    for message in many:
        stream.send(message)
        assert stream._size <= module.MAX_BUFFER
        assert stream._size == sum(len(frame) for _, frame in stream._waiting)
    received = []
    for _ in range(200):
        received += peer.read()
        stream.flush()
    lost = stream.dropped["buffer full"]
    assert lost > 20
    assert len(received) == len(many) - lost
    assert received == [message for message in many if message in received], "in order"
    assert received[-10:] == many[-10:]


def test_without_a_reader_it_tries_once_in_a_while(stream: Any, peer: Peer, clock: ManualClock, module: Any) -> None:
    peer.close()
    attempts = 0
    connect = socket.socket.connect

    class Counting(socket.socket):
        def connect(self, address: Any) -> None:
            nonlocal attempts
            attempts += 1
            connect(self, address)

    module.socket = type("socket", (), {**vars(socket), "socket": Counting})
    for _ in range(100):
        stream.send(b"nobody hears")
        clock.advance(0.1)
    assert attempts == 10
    assert stream._size < 30 * 20
    peer.listen()
    clock.advance(1.0)
    stream.send(b"heard")
    assert peer.read()[-1] == b"heard"


@pytest.mark.parametrize(
    ("modules", "fine"),
    [
        ("python validator iterator", True),
        ("respip python validator iterator", True),
        ("dns64 python validator iterator", True),
        ("python python validator iterator", True),
        ("python dns64 validator iterator", False),
        ("python respip validator iterator", False),
        ("python iterator", False),
        ("validator python iterator", False),
        ("python validator cachedb iterator", False),
        ("subnetcache python validator iterator", False),
    ],
)
def test_modules_that_change_answers_stand_in_front(module: Any, modules: str, fine: bool) -> None:
    assert (module.why_not(modules) == "") is fine


def test_drops_are_logged_once_in_a_while(module: Any, log: Log, clock: ManualClock, peer: Peer) -> None:
    told = module.Module(str(peer.path), clock=clock)
    told.stream.dropped["buffer full"] += 12
    told.failed(ValueError("not to be repeated"))
    told.log()
    assert log.lines == []
    clock.advance(module.LOG_INTERVAL)
    told.log()
    told.log()
    assert log.lines == ["cachebus: answers not told: 12 (buffer full), 1 (error: ValueError)"]
    clock.advance(module.LOG_INTERVAL)
    told.log()
    assert len(log.lines) == 1, "nothing new, nothing to say"
