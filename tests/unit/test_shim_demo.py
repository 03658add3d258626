"""The demo's parts, without its processes: the zone, the load, the configurations, the table."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path

import dns.flags
import dns.message
import pytest

from cachebus.cli.broker import BrokerMissingError
from cachebus.cli.demo import Progress, Row, _lost, chosen, table
from cachebus.cli.demo_cluster import MODES, Child, Cluster, DemoError, free_ports
from cachebus.cli.demo_load import LoadResult, questions, run_load
from cachebus.cli.demo_zone import NAMES, ZONE, DemoZone, name_of
from cachebus.config import loads
from cachebus.shim.query import Query, parse_query
from tests.unit.shim_bed import ask, texts


def reply(name: str, rrtype: str = "A", **options: object) -> dns.message.Message:
    query = dns.message.make_query(name, rrtype, **options)
    parsed = parse_query(query.to_wire())
    assert isinstance(parsed, Query)
    message = dns.message.from_wire(DemoZone().reply(parsed))
    assert query.is_response(message)
    return message


def test_the_zone_answers_with_authority() -> None:
    answer = reply(name_of(7), use_edns=0)
    assert texts(answer.answer) == [f"n7.{ZONE} 30 IN A 198.51.100.7"]
    assert answer.flags & dns.flags.AA
    assert answer.edns == 0
    for name, rrtype, rcode in ((name_of(7), "MX", 0), (f"n{NAMES}.{ZONE}", "A", 3), (ZONE, "NS", 0)):
        denied = reply(name, rrtype)
        assert (denied.rcode(), denied.answer, denied.authority[0].rdtype) == (rcode, [], 6)
    assert reply("example.").rcode() == 5


async def test_the_zone_serves_after_its_delay_and_counts() -> None:
    loop = asyncio.get_running_loop()
    transport, zone = await loop.create_datagram_endpoint(lambda: DemoZone(0.05), local_addr=("127.0.0.1", 0))
    endpoint = transport.get_extra_info("sockname")
    start = loop.time()
    assert (await ask(endpoint, name_of(0))).rcode() == 0
    assert loop.time() - start >= 0.05
    stream = questions(50, nodes=1, names=5, rate=1000)
    shares: list[float] = []
    result = await run_load(stream, [endpoint[1]], name_of, progress=shares.append)
    transport.close()
    assert (result.asked, result.answered, result.failed) == (50, 50, 0)
    assert zone.queries == 51
    assert 50 <= result.percentile(0.5) < 3000
    assert result.percentile(0.5) <= result.percentile(0.99)
    assert shares == sorted(shares)


async def test_what_is_never_answered_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cachebus.cli.demo_load.ANSWER_TIMEOUT", 0.05)
    result = await run_load(questions(5, nodes=1, names=5, rate=1000), free_ports(1), name_of)
    assert (result.asked, result.answered) == (5, 0)
    assert result.percentile(0.5) == 0


def test_the_load_is_zipf_and_the_same_every_time() -> None:
    stream = questions(12_000, nodes=4, names=NAMES, rate=1200)
    assert stream == questions(12_000, nodes=4, names=NAMES, rate=1200)
    assert stream != questions(12_000, nodes=4, names=NAMES, rate=1200, seed=1)
    counts = [sum(ask.name == name for ask in stream) for name in range(3)]
    assert counts[0] > counts[1] > counts[2] > 12_000 / NAMES
    assert {ask.node for ask in stream} == {0, 1, 2, 3}
    assert stream[-1].at < 10 <= stream[-1].at + 0.001


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_configurations_are_right(mode: object, tmp_path: Path) -> None:
    assert mode in MODES
    chosen = MODES[MODES.index(mode)]  # type: ignore[arg-type]
    cluster = Cluster(chosen, nodes=4, folder=tmp_path, upstream=5353)
    (tmp_path / chosen.name).mkdir()
    listening = set()
    for node in range(4):
        config = loads(json.dumps(cluster.configuration(node)), transport_types=TYPES)
        assert not config.warnings
        listening |= {(address.host, address.port) for address in (config.shim.listen if config.shim else ())}
        for transport in config.transports.values():
            assert len(transport.peers) in (0, 3)
            assert transport.listen not in transport.peers
            assert transport.options.get("bind", ["-"])[0] not in transport.options.get("connect", [])  # type: ignore[index,operator]
    assert len(listening) == 4


TYPES = {"udp", "multicast", "zeromq", "tcp", "mqtt"}


def test_the_modes_are_all_transports_and_begin_with_sharing_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cachebus.cli.demo.program", lambda: "mosquitto")
    names = [mode.name for mode in chosen(())]
    assert names[:2] == ["off", "udp"]
    assert set(names) == {"off", *TYPES}
    assert [mode.name for mode in chosen(("tcp", "multicast"))] == ["off", "multicast", "tcp"]


def test_without_a_broker_the_other_modes_are_shown_and_it_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("cachebus.cli.broker.shutil.which", lambda *_, **__: None)
    assert {mode.name for mode in chosen(())} == {"off", *TYPES} - {"mqtt"}
    assert "without mqtt: mosquitto is not installed" in capsys.readouterr().err
    assert len(chosen(("udp",))) == 2
    with pytest.raises(BrokerMissingError, match="apt install mosquitto"):
        chosen(("mqtt",))


@pytest.mark.parametrize(
    ("name", "lost"), [("udp", 6), ("multicast", 26), ("zeromq", 3)], ids=["as sent", "to three each", "numbered"]
)
def test_losses_are_counted_as_the_transport_can(name: str, lost: int) -> None:
    mode = next(mode for mode in MODES if mode.name == name)
    assert _lost(mode, [{"sent": 10, "received": 0, "gaps": 1}, {"sent": 0, "received": 4, "gaps": 2}]) == lost


ROWS = [
    Row("off", 0.8621, 1655, 0.9, 50.9, 0, 0, 0),
    Row("udp", 0.95571, 531, 0.824, 45.97, 1, 2, 3),
]


def test_the_table() -> None:
    lines = table(ROWS).splitlines()
    heads = ("transport", "hit rate", "upstream queries", "p50 ms", "p99 ms", "lost", "refused")
    assert lines[0].split() == " ".join(heads).split()
    assert lines[2].split() == ["udp", "95.6%", "531", "0.82", "45.97", "1", "2"]
    assert len({len(line) for line in lines}) == 1


def test_the_json_is_the_contracts() -> None:
    assert ROWS[1].as_json() == {
        "transport": "udp",
        "hit_rate": 0.9557,
        "upstream_queries": 531,
        "latency_ms": {"p50": 0.824, "p99": 45.97},
        "lost": 1,
        "refused": 2,
        "unanswered": 3,
    }


def test_percentiles() -> None:
    values = [number / 1000 for number in range(1, 101)]
    random.Random(1).shuffle(values)
    result = LoadResult(100, 100, 0, sorted(values))
    assert (result.percentile(0.5), result.percentile(0.99), result.percentile(1.0)) == (51, 100, 100)


def test_progress_is_for_terminals_only(capsys: pytest.CaptureFixture[str]) -> None:
    silent = Progress(shown=False)
    silent.say("x")
    silent.clear()
    assert capsys.readouterr().err == ""
    shown = Progress(shown=True)
    shown.say("half")
    shown.say("half")
    shown.clear()
    assert capsys.readouterr().err == "\r\x1b[Khalf\r\x1b[K"


async def test_a_process_that_does_not_start_says_why(tmp_path: Path) -> None:
    code = "import sys; print('the port is taken', file=sys.stderr); sys.exit(3)"
    async with Child("node-1", ["-c", code], tmp_path, piped=True) as child:
        with pytest.raises(DemoError, match=r"(?s)node-1 ended with 3.*the port is taken"):
            await child.number(b"")


async def test_a_process_that_does_not_stop_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cachebus.cli.demo_cluster.STOP_TIMEOUT", 0.1)
    code = "import signal,time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(600)"
    async with Child("node-1", ["-c", code], tmp_path, piped=True) as child:
        assert await child.number() == 1
    with pytest.raises(DemoError, match="node-1 ended with -9"):
        child.check()
