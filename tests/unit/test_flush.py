"""D-23: a flush on its way, from the command line through the node to the sinks and what waits to go."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cachebus import config as configuration
from cachebus.admin.client import AdminRefused, ask, tell
from cachebus.admin.orders import read_flush
from cachebus.admin.server import AdminServer
from cachebus.answer import Refusal, RRset
from cachebus.cache import Cache
from cachebus.cli import cachebus
from cachebus.flushes import Flush
from cachebus.holdings import Holdings
from cachebus.node import Node
from cachebus.ports import Flushed
from cachebus.presentation import name_from_text
from cachebus.sinks import unbound as module
from cachebus.sinks.unbound import LinkState
from cachebus.testing import ManualClock
from cachebus.unbound.control import CommandRefused
from cachebus.unbound.flush import flush_commands
from tests.core_bed import address
from tests.unit.test_sink_unbound import NOW, StandIn, answer, sink_for, stand_in, until

WWW = name_from_text("www.example.com")
EVERYTHING = Flush(b"\0", subtree=True)


# What is asked for


@pytest.mark.parametrize(
    ("parameters", "flush"),
    [
        ({"name": "WWW.example.com"}, Flush(WWW)),
        ({"name": "www.example.com.", "subtree": "1"}, Flush(WWW, subtree=True)),
        ({"name": "www.example.com", "type": "aaaa", "subtree": "0"}, Flush(WWW, rrtype=28)),
        ({"key_tag": "4711", "signer": "www.example.com"}, Flush(WWW, subtree=True, key_tag=4711)),
        ({"all": "1"}, EVERYTHING),
        ({"name": "."}, Flush(b"\0")),
    ],
)
def test_what_a_query_string_means(parameters: dict[str, str], flush: Flush) -> None:
    assert read_flush(parameters) == flush


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, "one of a name, a key, or all"),
        ({"name": "a", "all": "1"}, "one of a name"),
        ({"name": "a", "key_tag": "1", "signer": "b"}, "one of a name"),
        ({"subtree": "1", "all": "1"}, "a subtree or a type is one of a name"),
        ({"name": "a", "subtree": "1", "type": "A"}, "that of one name"),
        ({"name": "a", "subtree": "yes"}, "subtree is 1 or 0"),
        ({"key_tag": "1"}, "together"),
        ({"signer": "a"}, "together"),
        ({"key_tag": "65536", "signer": "a"}, "not a key tag"),
        ({"key_tag": "-1", "signer": "a"}, "not a key tag"),
        ({"key_tag": "1", "signer": ""}, "a name is empty"),
        ({"name": "a..b"}, "empty label"),
        ({"name": "a", "type": "NOPE"}, "no such record type"),
        ({"name": "a", "nmae": "b"}, "no such parameter: 'nmae'"),
    ],
)
def test_what_makes_no_sense(parameters: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_flush(parameters)


class View:
    def __init__(self) -> None:
        self.asked: list[Flush] = []
        self.report: dict[str, Any] = {"removed": 3, "dropped": 0, "generation": 1, "sinks": {"resolver": "done"}}

    async def flush(self, flush: Flush) -> dict[str, Any]:
        self.asked.append(flush)
        return self.report


async def test_only_a_post_on_the_unix_socket_flushes(tmp_path: Path) -> None:
    path, view = str(tmp_path / "api.sock"), View()
    async with AdminServer(view, ManualClock(), path=path, http=("127.0.0.1", 0)) as admin:  # type: ignore[arg-type]
        assert await asyncio.to_thread(tell, path, "flush", {"name": "www.example.com"}) == view.report
        with pytest.raises(AdminRefused, match="one of a name"):
            await asyncio.to_thread(tell, path, "flush", {})
        with pytest.raises(Exception, match="not a cachebus node"):
            await asyncio.to_thread(ask, path, "flush", {"name": "www.example.com"})
        reader, writer = await asyncio.open_connection("127.0.0.1", admin.http_port)
        writer.write(b"POST /v1/flush?all=1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert b" 404 " in (await reader.read()).split(b"\r\n")[0]
        writer.close()
    assert view.asked == [Flush(WWW)]


@pytest.mark.parametrize(
    ("arguments", "flush", "sink", "status"),
    [
        (["www.example.com"], Flush(WWW), "done", 0),
        (["www.example.com", "--subtree"], Flush(WWW, subtree=True), "unable", 0),
        (["www.example.com", "--type", "TXT"], Flush(WWW, rrtype=16), "done", 0),
        (["--key-tag", "7", "--signer", "www.example.com"], Flush(WWW, subtree=True, key_tag=7), "done", 0),
        (["--all"], EVERYTHING, "pending", 1),
        ([], None, "done", 2),
        (["www.example.com", "--all"], None, "done", 2),
        (["--key-tag", "70000", "--signer", "a"], None, "done", 2),
        (["--key-tag", "7"], None, "done", 1),
    ],
)
async def test_the_verb(tmp_path: Path, arguments: list[str], flush: Flush | None, sink: str, status: int) -> None:
    path, view = str(tmp_path / "api.sock"), View()
    view.report["sinks"] = {"resolver": sink}
    async with AdminServer(view, ManualClock(), path=path):  # type: ignore[arg-type]
        for more in ([], ["--json"]):
            command = ["flush", *arguments, "--socket", path, *more]
            done = await asyncio.to_thread(CliRunner().invoke, cachebus, command, standalone_mode=False)
            if flush is None:
                assert done.exception is not None
                continue
            assert done.return_value == status, done.output
            if more:
                assert json.loads(done.output) == view.report
            else:
                assert done.output.startswith("3 entries removed\n  resolver: ")
    assert view.asked == ([flush, flush] if flush else [])


# The resolver


@pytest.mark.parametrize(
    ("flush", "commands"),
    [
        (EVERYTHING, ["flush_zone ."]),
        (Flush(WWW, subtree=True), ["flush_zone www.example.com."]),
        (Flush(WWW, subtree=True, key_tag=7), ["flush_zone www.example.com."]),
        (Flush(WWW, rrtype=16), ["flush_type www.example.com. TYPE16"]),
        (Flush(b"\3a\nb\0", rrtype=1), ["flush_type a\\010b. TYPE1"]),
    ],
)
def test_what_unbound_is_told(flush: Flush, commands: list[str]) -> None:
    assert flush_commands(flush) == commands


def test_of_one_name_unbound_is_told_the_types_that_its_flush_leaves() -> None:
    first, *rest = flush_commands(Flush(WWW))
    assert first == "flush www.example.com."
    assert {"flush_type www.example.com. TYPE16", "flush_type www.example.com. TYPE257"} <= set(rest)


@pytest.fixture
async def fake(tmp_path: Path) -> Any:
    async with stand_in(tmp_path / "ctl") as found:
        yield found


async def test_a_flush_comes_after_the_load_under_way_and_nothing_old_after_it(fake: StandIn) -> None:
    fake.gate.clear()
    async with sink_for(fake.path) as sink:
        sink.offer(answer("first"), NOW)
        await until(lambda: fake.loads)
        for text in ("first", "second", "third"):
            sink.offer(answer(text), NOW)
        flushing = asyncio.create_task(sink.flush(Flush(b"\6second\0"), NOW))
        both = asyncio.create_task(sink.flush(Flush(b"\5first\0", rrtype=1), NOW))
        await until(lambda: sink.statistics()["flushes_waiting"] == 2)
        fake.gate.set()
        assert (await flushing, await both) == (Flushed.DONE, Flushed.DONE)
        await until(lambda: len(fake.loaded) == 2)
        sink.offer(answer("second", learned=NOW + 1), NOW)
        await until(lambda: len(fake.loaded) == 3)
        assert fake.loaded == ["first.", "third.", "second."]
        begun = [command for command in fake.commands if command.startswith(("load", "flush"))]
        assert begun[0] == "load_cache"
        assert begun[1] == "flush second."
        assert begun.index("flush_type first. TYPE1") < begun.index("load_cache", 1)
        counted = [sink.statistics()[name] for name in ("flushes", "kept_out", "flushes_failed", "flushes_waiting")]
        assert counted == [2, 2, 0, 0]


async def test_a_refill_gives_nothing_that_was_flushed_while_it_was_made(fake: StandIn) -> None:
    fake.gate.clear()
    async with sink_for(fake.path, refill=lambda now: [[answer("old"), answer("other")]]) as sink:
        await until(lambda: fake.loads)
        sink.refill()
        fake.gate.set()
        assert await sink.flush(Flush(b"\3old\0"), NOW) is Flushed.DONE
        await until(lambda: sink.statistics()["filled"] + sink.statistics()["kept_out"] == 4)
        assert fake.loaded == ["old.", "other.", "other."]


async def test_a_resolver_that_is_away_is_flushed_when_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FLUSH_TIME", 0.05)
    monkeypatch.setattr(module, "MAX_FLUSHES", 3)
    async with sink_for(tmp_path / "ctl") as sink:
        for number in range(5):
            assert await sink.flush(Flush(bytes((1, 97 + number, 0)), rrtype=1), NOW) is Flushed.PENDING
        assert sink.statistics()["flushes_waiting"] <= 3
        async with stand_in(tmp_path / "ctl") as fake:
            await until(lambda: sink.state is LinkState.UP and not sink.statistics()["flushes_waiting"])
            assert next(command for command in fake.commands if command.startswith("flush")) == "flush_zone ."


async def test_a_resolver_that_refuses_is_said_to(fake: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(text: str, body: bytes = b"") -> bytes:
        raise CommandRefused("error unknown command")

    async with sink_for(fake.path) as sink:
        await until(lambda: sink.state is LinkState.UP)
        monkeypatch.setattr(sink._channel, "command", refuse)
        assert await sink.flush(EVERYTHING, NOW) is Flushed.UNABLE
        assert sink.statistics()["flushes_failed"] == 1


def test_what_was_flushed_is_not_held_by_the_resolver_any_more() -> None:
    holdings = Holdings()
    for owner in (b"\1a\0", b"\1b\1a\0", b"\1c\0"):
        holdings.hold(owner, 1, NOW + 60)
    holdings.forget(Flush(b"\1a\0", subtree=True))
    assert [holdings.holds(owner, 1, NOW) for owner in (b"\1a\0", b"\1b\1a\0", b"\1c\0")] == [False, False, True]


# The node


async def test_a_node_forgets_everywhere_and_sends_nothing_of_it(tmp_path: Path) -> None:
    text = "node: a\nsinks: {seen: {type: callback, function: 'builtins:id'}}\nshim: {listen: ['127.0.0.1:0']}\n"
    clock = ManualClock(NOW)
    async with Node(configuration.loads(text, directory=tmp_path), clock=clock) as node:
        cache = node._keep.cache
        cache.put(address(learned=NOW), NOW)
        cache.put(address("other.example.com", learned=NOW), NOW)
        clock.advance(1)
        report = await node.flush(Flush(WWW))
        assert report == {"removed": 1, "dropped": 0, "generation": 1, "sinks": {"seen": "unable"}}
        assert node.lookup(WWW, 1, clock()) == []
        assert [event["event"] for event in node._keep.history.about(WWW)] == ["flushed"]
        assert node.status()["cache"]["flushes"] == 1
        assert (await node.flush(EVERYTHING))["removed"] == 1


async def test_what_waits_to_be_sent_is_dropped(tmp_path: Path) -> None:
    text = (
        "node: a\nkeys: {k: {algorithm: hmac-sha256, secret: AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=}}\n"
        "transports: {lan: {type: udp, key: k, listen: '127.0.0.1:0', codec: batch, peers: ['127.0.0.1:9']}}\n"
    )
    node = Node(configuration.loads(text, directory=tmp_path), clock=ManualClock(NOW))
    publisher = node._parts.publisher
    for owner in ("www.example.com", "other.example.com"):
        assert publisher.publish(address(owner, learned=NOW)) is None
    assert publisher.forget(Flush(WWW)) == 1
    assert [waiting.name for waiting in publisher._queue] == ["other.example.com."]
    outlet = publisher._outlets[0]
    outlet.send(list(publisher._queue), NOW, 0.0)
    publisher._queue.clear()
    assert outlet.waiting == 1
    assert publisher.forget(EVERYTHING) == 1
    assert outlet.waiting == 0


def test_what_is_learned_after_the_last_flush_is_put_as_fast_as_before_any(monkeypatch: pytest.MonkeyPatch) -> None:
    # Here and not beside the cache's other tests: those also run on the compiled class, which cannot be patched.
    cache = Cache("b", max_entries=10_000)
    cache.flush(WWW, NOW)
    cache.flush(name_from_text("example.com"), NOW + 1)
    careful: list[bytes] = []
    put_other = Cache._put_other

    def counted(self: Cache, rrset: RRset, *rest: Any) -> Refusal | None:
        careful.append(rrset.owner)
        return put_other(self, rrset, *rest)

    monkeypatch.setattr(Cache, "_put_other", counted)
    for number in range(20):
        assert cache.put(address(f"n{number}.example.com", learned=NOW + 1.5), NOW + 2) is None
    assert careful == []
    assert cache.put(address("www.example.com", learned=NOW - 1), NOW + 2) is Refusal.FLUSHED
    assert careful == [WWW]
