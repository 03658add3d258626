"""The control channel and the sink's own decisions, against a stand-in; tests/interop has the real Unbound."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cachebus.answer import Answer, Evidence, RRset
from cachebus.errors import ConfigError, ResolverError
from cachebus.holdings import Holdings
from cachebus.sinks import unbound as module
from cachebus.sinks.unbound import BATCH_ANSWERS, BATCH_BYTES, MAX_RATE, LinkState, UnboundSink
from cachebus.testing import ManualClock
from cachebus.unbound.control import MAX_REPLY, CommandRefused, ControlChannel, ControlTls, ResolverGone
from cachebus.wire.message import pack

NOW = 1_800_000_000.0


class StandIn:
    """Speaks the control protocol; what it says to each load is decided by the test."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.commands: list[str] = []
        self.loads: list[bytes] = []
        self.load_times: list[float] = []
        self.markers: dict[str, str] = {}
        self.on_load: Callable[[bytes], bytes | None] = lambda dump: b"ok\n"
        self.gate = asyncio.Event()
        self.gate.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            line = (await reader.readline()).decode()
            assert line.startswith("UBCT1 ")
            verb, *words = line.split()[1:]
            self.commands.append(line[6:].strip())
            reply: bytes | None = b"ok\n"
            if verb == "load_cache":
                dump = await reader.readuntil(b"\nEOF\n")
                self.loads.append(dump)
                self.load_times.append(asyncio.get_running_loop().time())
                await self.gate.wait()
                reply = self.on_load(dump)
            elif verb == "forward_add":
                self.markers[words[0]] = words[1]
            elif verb == "lookup":
                reply = f"used for lookup\n{self.markers.get(words[0], 'none')}  \tnot in infra cache.\n".encode()
            elif verb == "forward_remove":
                self.markers.pop(words[0], None)
            if reply:
                writer.write(reply)
        finally:
            writer.close()

    @property
    def loaded(self) -> list[str]:
        return [
            line.split()[1] for dump in self.loads for line in dump.decode().splitlines() if line.startswith("msg ")
        ]


@asynccontextmanager
async def stand_in(path: Path) -> AsyncIterator[StandIn]:
    fake = StandIn(path)
    server = await asyncio.start_unix_server(fake.serve, path, limit=1 << 22)
    try:
        yield fake
    finally:
        server.close()
        await server.wait_closed()


@pytest.fixture
async def fake(tmp_path: Path) -> AsyncIterator[StandIn]:
    async with stand_in(tmp_path / "ctl") as found:
        yield found


def answer(text: str, *, value: int = 1, ttl: int = 300, learned: float = NOW) -> Answer:
    owner = bytes([len(text)]) + text.encode() + b"\0"
    rrset = RRset(owner, 1, ttl, pack(1, 0, [value.to_bytes(4, "big")]))
    return Answer(owner, 1, (rrset,), Evidence.CONFIRMED, "node-a", learned)


def sink_for(
    path: Path,
    *,
    rate: int = MAX_RATE,
    clock: Callable[[], float] = lambda: NOW,
    holdings: Holdings | None = None,
    refill: Callable[[float], Iterable[Sequence[Answer]]] = lambda now: (),
) -> UnboundSink:
    return UnboundSink(
        name="b", control=f"unix:{path}", clock=clock, holdings=holdings or Holdings(), refill=refill, rate=rate
    )


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(8):
        while not condition():  # noqa: ASYNC110 - several things may make it true
            await asyncio.sleep(0.002)


async def test_newest_offer_of_a_question_wins_and_the_oldest_is_dropped(
    fake: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_QUEUED", 3)
    sink = sink_for(fake.path)
    for text, value in (("a", 1), ("b", 2), ("c", 3), ("b", 4), ("d", 5)):
        sink.offer(answer(text, value=value), NOW)
    assert sink.statistics()["queued"] == 3
    assert sink.statistics()["dropped"] == 1
    assert sink.statistics()["replaced"] == 1
    async with sink:
        await until(lambda: sink.statistics()["filled"] == 3)
    assert fake.loaded == ["b.", "c.", "d."]
    assert b"b. 299 IN TYPE1 \\# 4 00000004" in fake.loads[0]
    assert b"00000002" not in b"".join(fake.loads)


async def test_batches_are_small_and_paced(fake: StandIn) -> None:
    sink = sink_for(fake.path, rate=400)
    for number in range(BATCH_ANSWERS + 10):
        sink.offer(answer(f"n{number}"), NOW)
    async with sink:
        await until(lambda: sink.statistics()["filled"] == BATCH_ANSWERS + 10)
    assert [dump.count(b"\nmsg ") for dump in fake.loads] == [BATCH_ANSWERS, 10]
    assert fake.load_times[1] - fake.load_times[0] >= BATCH_ANSWERS / 400 * 0.9
    assert sink.statistics()["batches"] == 2


async def test_large_answers_make_small_batches(fake: StandIn) -> None:
    def large(text: str) -> Answer:
        found = answer(text)
        return found._replace(
            qtype=65280, rrsets=(found.rrsets[0]._replace(type=65280, rrs=pack(65280, 0, [bytes(20_000)])),)
        )

    sink = sink_for(fake.path)
    for number in range(4):
        sink.offer(large(f"n{number}"), NOW)
    async with sink:
        await until(lambda: sink.statistics()["filled"] == 4)
    assert fake.loaded == ["n0.", "n1.", "n2.", "n3."]
    assert len(fake.loads) == 4
    assert all(len(dump) < BATCH_BYTES for dump in fake.loads)


async def test_offers_come_before_a_refill(fake: StandIn) -> None:
    sink = sink_for(fake.path, refill=lambda now: [[], [answer(f"r{number}") for number in range(3)]])
    sink.offer(answer("new"), NOW)
    async with sink:
        await until(lambda: sink.statistics()["filled"] == 4)
    assert fake.loaded == ["new.", "r0.", "r1.", "r2."]


async def test_held_and_expired_are_skipped_and_counted(fake: StandIn) -> None:
    holdings = Holdings()
    held = answer("held")
    holdings.hold(held.qname, held.qtype, NOW + 60)
    sink = sink_for(fake.path, holdings=holdings)
    for item in (held, answer("old", ttl=10, learned=NOW - 10), answer("short", ttl=1), answer("good")):
        sink.offer(item, NOW)
    async with sink:
        await until(lambda: sink.statistics()["filled"] == 1)
    assert fake.loaded == ["good."]
    assert sink.statistics()["skipped_held"] == 1
    assert sink.statistics()["expired"] == 2


async def test_a_refused_batch_is_halved_until_the_culprit_stands_alone(fake: StandIn) -> None:
    fake.on_load = lambda dump: None if b"msg n7." in dump else b"ok\n"
    sink = sink_for(fake.path)
    for number in range(16):
        sink.offer(answer(f"n{number}"), NOW)
    async with sink:
        await until(lambda: sink.statistics()["filled"] == 15)
        assert sink.statistics()["unloadable"] == 1
        assert len(fake.loads) == 9  # 16, 8, 4, 4, 2, 2, 1, 1, 8
        sink.offer(answer("n7"), NOW)
        await until(lambda: sink.statistics()["unloadable"] == 2)
        assert len(fake.loads) == 9
        sink.offer(answer("n7", value=9), NOW)  # other data under the same name is another matter
        await until(lambda: len(fake.loads) == 10)


async def test_a_batch_lost_with_the_resolver_is_no_culprit(tmp_path: Path) -> None:
    sink = sink_for(tmp_path / "ctl")
    async with sink:
        async with stand_in(tmp_path / "ctl") as first:

            def dies(dump: bytes) -> None:
                first.markers.clear()

            first.on_load = dies
            sink.offer(answer("a"), NOW)
            await until(lambda: first.loads)
        (tmp_path / "ctl").unlink(missing_ok=True)
        async with stand_in(tmp_path / "ctl") as second:
            await until(lambda: second.loaded == ["a."])
        assert sink.statistics()["unloadable"] == 0


async def test_a_lost_marker_means_a_lost_cache(fake: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_INTERVAL", 0.01)
    monkeypatch.setattr(module, "RETRY_INTERVAL", 0.01)
    holdings = Holdings()
    sink = sink_for(fake.path, holdings=holdings, refill=lambda now: [[answer("r")]])
    async with sink:
        await until(lambda: sink.statistics()["filled"] == 1)
        await asyncio.sleep(0.1)
        assert sink.statistics()["refills"] == 1
        holdings.hold(b"\1x\0", 1, NOW + 60)
        fake.markers.clear()
        await until(lambda: sink.statistics()["filled"] == 2)
        assert sink.statistics()["refills"] == 2
        assert sink.statistics()["reconnects"] == 1
        assert not holdings.holds(b"\1x\0", 1, NOW)
    assert not fake.markers
    assert sink.state is LinkState.DOWN


async def test_a_slow_load_is_withdrawn_and_done_again(fake: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_INTERVAL", 0.01)
    clock = ManualClock(NOW)
    sink = sink_for(fake.path, clock=clock)
    fake.gate.clear()
    async with sink:
        sink.offer(answer("a", ttl=100), NOW)
        await until(lambda: fake.loads)
        clock.advance(2)
        fake.gate.set()
        await until(lambda: sink.statistics()["filled"] == 2)
    assert sink.statistics()["withdrawn"] == 1
    assert "flush_type a. TYPE1" in fake.commands
    assert fake.loads[0].startswith(b"START_RRSET_CACHE\n;rrset 99 ")
    assert fake.loads[1].startswith(b"START_RRSET_CACHE\n;rrset 97 ")


async def test_a_defect_in_refill_does_not_end_the_filling(
    fake: StandIn, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "POLL_INTERVAL", 0.01)
    calls = 0

    def refill(now: float) -> Iterable[Sequence[Answer]]:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise RuntimeError("defect")
        return [[answer("r")]]

    async with sink_for(fake.path, refill=refill) as sink:
        await until(lambda: sink.statistics()["filled"] == 1)
        assert sink.statistics()["errors"] == 1
    assert "defect" in caplog.text


@pytest.mark.parametrize("rate", [0, -1, MAX_RATE + 1])
def test_rate_is_checked(rate: int) -> None:
    with pytest.raises(ConfigError, match="rate"):
        sink_for(Path("/ctl"), rate=rate)


@pytest.mark.parametrize(
    "control",
    ["", "unix:", "unix:ctl", "/ctl", "localhost:8953", "127.0.0.1", "127.0.0.1:", "127.0.0.1:0", "127.0.0.1:65536",
     "127.0.0.1:1x", "::1", "[::1]", "127.0.0.1:99999999999999"],
)  # fmt: skip
def test_wrong_control_addresses(control: str) -> None:
    with pytest.raises(ConfigError):
        ControlChannel(control)


def test_tls_goes_with_tcp_and_only_with_tcp() -> None:
    files = ControlTls(server_cert=Path("/none/a"), key=Path("/none/b"), cert=Path("/none/c"))
    with pytest.raises(ConfigError, match="TLS"):
        ControlChannel("unix:/ctl", files)
    for address in ("127.0.0.1:8953", "[::1]:8953"):
        with pytest.raises(ConfigError, match="needs TLS"):
            ControlChannel(address)
        with pytest.raises(ConfigError, match="/none/a"):
            ControlChannel(address, files)


@pytest.mark.parametrize(
    ("reply", "kind", "text"),
    [
        (b"", CommandRefused, "without an answer"),
        (b"error unknown command 'x'\n", CommandRefused, "unknown command"),
        (b"x" * (MAX_REPLY + 1), ResolverError, "too long"),
        (None, ResolverError, "no answer in time"),
    ],
)
async def test_replies_that_are_none(tmp_path: Path, reply: bytes | None, kind: type[ResolverError], text: str) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readline()
            if reply is None:
                await reader.read()
            else:
                writer.write(reply)
        finally:
            writer.close()

    server = await asyncio.start_unix_server(serve, tmp_path / "ctl")
    async with server:
        channel = ControlChannel(f"unix:{tmp_path}/ctl", timeout=0.2)
        with pytest.raises(ResolverError, match=text) as caught:
            await channel.command("status")
        assert type(caught.value) is kind


async def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(ResolverGone, match="No such file"):
        await ControlChannel(f"unix:{tmp_path}/ctl").command("status")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "ctl"))
        with pytest.raises(ResolverGone, match="refused"):
            await ControlChannel(f"unix:{tmp_path}/ctl").command("status")


async def test_a_socket_whose_queue_is_full_is_an_error(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as full:
        full.bind(str(tmp_path / "ctl"))
        full.listen(0)
        with socket.socket(socket.AF_UNIX) as waiting:
            waiting.connect(str(tmp_path / "ctl"))
            with pytest.raises(ResolverError, match="too many connections"):
                await ControlChannel(f"unix:{tmp_path}/ctl", timeout=0.2).command("status")


async def test_a_request_larger_than_the_socket_buffer_arrives_whole(fake: StandIn) -> None:
    dump = b"START_RRSET_CACHE\n" + b"x" * 60 + b"\n" * 600_000 + b"y" * 600_000 + b"\nEOF\n"
    await ControlChannel(f"unix:{fake.path}").load(dump)
    assert fake.loads == [dump]
    fake.on_load = lambda dump: b"maybe\n"
    with pytest.raises(CommandRefused, match="maybe"):
        await ControlChannel(f"unix:{fake.path}").load(dump)
