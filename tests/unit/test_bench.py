"""`bench`: that the traffic is what it says, that the rows do their work, and that a small run adds up."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import sys
import time
from base64 import b64encode
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import dns.message
import dns.tsig
import dns.tsigkeyring
import pytest
import uvloop
from cachebus_transports.mqtt import MqttTransport
from cachebus_transports.multicast import MulticastTransport
from cachebus_transports.tcp import TcpTransport, TlsTransport
from cachebus_transports.udp import UdpTransport
from cachebus_transports.zeromq import ZeromqTransport
from click.testing import CliRunner

from cachebus import links, registry
from cachebus.answer import Answer, Evidence, Refusal
from cachebus.cli import bench_lanes, bench_report, bench_run
from cachebus.cli.bench import bench
from cachebus.cli.bench_lanes import BUILT_IN, BenchError, Lane, Plan, lanes, section
from cachebus.cli.bench_peers import (
    ALGORITHM,
    KEY_NAME,
    PATIENCE,
    PROBE_PATIENCE,
    Job,
    Order,
    Received,
    Row,
    Sent,
    Take,
)
from cachebus.cli.bench_receiver import ReceivingPeer
from cachebus.cli.bench_rows import BatchFloor, Blocks, Dnspython, Floor, Inflated, Lengths
from cachebus.cli.bench_run import Figures, Flood, Measured, Template
from cachebus.cli.bench_sender import SendingPeer
from cachebus.cli.bench_table import percentile, shape, table
from cachebus.cli.bench_trace import SENDER, trace
from cachebus.cli.bench_warm import Copied, Served, Span, measure_warm_start, warm_shape, warm_text
from cachebus.cli.broker import BrokerMissingError, broker
from cachebus.cli.version import compiled
from cachebus.codecs.dns import DnsCodec, DnsCodecSettings
from cachebus.config.transports import CodecName
from cachebus.errors import ConfigError, TransportUnavailable
from cachebus.filters.policy import Policy, PolicySettings
from cachebus.ports import Codec
from cachebus.registry import installed_transports
from cachebus.wire.message import records, rrsig_fields
from cachebus.wire.tsig import Key
from tests.servers import require

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

TRANSPORTS: dict[str, Any] = {
    "udp": UdpTransport,
    "multicast": MulticastTransport,
    "zeromq": ZeromqTransport,
    "mqtt": MqttTransport,
    "tcp": TcpTransport,
    "tls": TlsTransport,
}
NOW = 1_800_000_000.0
SECRET = bytes(range(32))


@pytest.fixture(scope="module")
def answers() -> list[Answer]:
    return trace(5000, NOW)


def codec() -> DnsCodec:
    key = Key.make(KEY_NAME, ALGORITHM, SECRET)
    return DnsCodec(DnsCodecSettings(transport="udp", key=key), start=None)


class TestTrace:
    def test_is_the_same_every_time(self, answers: Sequence[Answer]) -> None:
        assert trace(5000, NOW) == answers

    def test_at_least_60_percent_are_distinct_and_some_are_not(self, answers: Sequence[Answer]) -> None:
        distinct = len({(answer.qname, answer.qtype) for answer in answers}) / len(answers)
        assert 0.6 <= distinct < 0.9

    def test_data_is_fixed_per_name(self, answers: Sequence[Answer]) -> None:
        data: dict[tuple[bytes, int], Answer] = {}
        for answer in answers:
            assert data.setdefault((answer.qname, answer.qtype), answer) == answer

    def test_all_distinct_means_just_that(self) -> None:
        found = trace(2000, NOW, distinct=True)
        assert len({answer.qname for answer in found}) == len(found) == 2000
        assert trace(2000, NOW, distinct=True) == found

    def test_types_and_ttls_are_mixed(self, answers: Sequence[Answer]) -> None:
        assert {answer.type for answer in answers} == {"A", "AAAA", "HTTPS", "TXT", "PTR", "MX", "SRV"}
        assert any(len(answer.rrsets) == 2 for answer in answers)
        assert {answer.ttl for answer in answers} == {60, 300, 3600, 86400}

    def test_a_fifth_is_signed_with_ecdsa_and_in_time(self, answers: Sequence[Answer]) -> None:
        signed = [answer for answer in answers if answer.rrsets[0].sigs]
        assert 0.15 < len(signed) / len(answers) < 0.25
        for answer in signed[:200]:
            assert answer.evidence is Evidence.VALIDATED
            for rrset in answer.rrsets:
                ((_, _, rdata),) = records(rrset.sigs)
                fields = rrsig_fields(rdata)
                assert (fields.covered, fields.algorithm) == (rrset.type, 13)
                assert fields.inception < NOW < fields.expiration
                assert len(rdata) == 18 + len(fields.signer) + 64

    def test_every_answer_passes_the_policy_and_the_receivers_codec(self, answers: Sequence[Answer]) -> None:
        policy, receiver = Policy(PolicySettings()), codec()
        messages, refusals = codec().encode(answers, NOW)
        assert not refusals
        for answer, message in zip(answers, messages, strict=True):
            assert policy.refuse_to_share(answer) is None
            found = receiver.decode(message, "sender", NOW)
            if found is Refusal.DUPLICATE:  # the same answer with the same random ID in the same second
                continue
            assert not isinstance(found, Refusal), found
            assert [one.rrsets for one in found] == [answer.rrsets]
            assert policy.refuse_to_accept(found[0]) is None


def lane(name: str) -> Lane:
    return next(lane for lane in BUILT_IN if lane.name == name)


def codec_of(name: str, **more: Any) -> Codec:
    keys = {"type": "tcp", "codec": name, **({} if name == "cdns" else {"key": "bench"}), **more}
    owner = links.Owner(node=SENDER, cluster="bench", keys={"bench": Key.make(KEY_NAME, ALGORITHM, SECRET)})
    return links.make_codec("bench", section(keys), owner, start=NOW)


class TestRows:
    def test_dnspython_verifies_and_stores(self, answers: Sequence[Answer]) -> None:
        row = Dnspython(KEY_NAME, ALGORITHM, b64encode(SECRET).decode())
        now = time.time()
        (message,), _ = codec().encode([answers[0]._replace(learned=now)], now)
        row.take(message)
        assert row.received == len(row._cache) == 1
        with pytest.raises(dns.tsig.BadSignature):
            row.take(message[:20] + bytes([message[20] ^ 1]) + message[21:])

    def test_dnspython_composes_what_the_answer_says(self, answers: Sequence[Answer]) -> None:
        row = Dnspython(KEY_NAME, ALGORITHM, b64encode(SECRET).decode())
        composed = row.compose(row.prepare(answers[0]))
        keyring = dns.tsigkeyring.from_text({KEY_NAME: (ALGORITHM, b64encode(SECRET).decode())})
        assert dns.message.from_wire(composed, keyring=keyring).had_tsig
        found = codec().decode(composed, "sender", time.time())
        assert not isinstance(found, Refusal)
        assert found[0].rrsets[0].owner == answers[0].rrsets[0].owner

    def test_the_floor_of_datagrams_is_one_hmac(self, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[tuple[object, ...]] = []
        monkeypatch.setattr("cachebus.cli.bench_rows.hmac.digest", lambda *arguments: seen.append(arguments))
        row = Floor(SECRET)
        row.take(b"in")
        row.seal(b"out")
        assert seen == [(SECRET, b"in", "sha256"), (SECRET, b"out", "sha256")]
        assert row.received == 1

    @pytest.mark.parametrize("compressed", [False, True])
    def test_the_floor_of_batches_checks_and_stores_every_answer(
        self, answers: Sequence[Answer], *, compressed: bool
    ) -> None:
        sending = codec_of("batch", zstd=compressed)
        messages, _ = sending.encode(answers[:500], NOW)
        row = BatchFloor(SECRET)
        for message in messages:
            row.take(message)
        hello = sending.hello(NOW)
        assert hello is not None
        row.take(hello)
        assert row.received == len(messages) + 1
        assert row.cache.keys() == {(answer.qname, answer.qtype) for answer in answers[:500]}
        with pytest.raises(ValueError, match="wrong MAC"):
            row.take(messages[0][:-1] + bytes([messages[0][-1] ^ 1]))

    @pytest.mark.parametrize("compressed", [False, True])
    @pytest.mark.parametrize("piece", [1 << 20, 1000, 7])
    def test_the_floor_of_blocks_takes_a_stream_in_any_pieces(
        self, answers: Sequence[Answer], piece: int, *, compressed: bool
    ) -> None:
        sending = codec_of("cdns")
        hello = sending.hello(NOW)
        assert hello is not None
        messages = [hello, *sending.encode(answers[:300], NOW)[0]]
        framing = sending.framing
        data = framing.opening() + b"".join(map(framing.frame, messages))
        row = Blocks(SECRET, len(framing.opening()))
        stream: Blocks | Inflated = row
        if compressed:
            data, stream = zstd.compress(data), Inflated(row)
        for start in range(0, len(data), piece):
            stream.take(data[start : start + piece])
        assert row.received == len(messages)
        assert {name for name, _ in row.cache} == {answer.qname for answer in answers[:300]}

    @pytest.mark.parametrize("piece", [1 << 20, 5])
    def test_lengths_take_a_stream_apart(self, piece: int) -> None:
        row = Floor(SECRET)
        stream = Lengths(row)
        data = b"\0\0\0\x03one\0\0\0\0\0\0\0\x05three"
        for start in range(0, len(data), piece):
            stream.take(data[start : start + piece])
        assert row.received == 3


def figures(send: float, receive: float) -> Figures:
    return Figures([send], [receive])


MEASURED = Measured(
    rows={Row.CACHEBUS: figures(10.0, 6.0), Row.FLOOR: figures(4.0, 3.0), Row.DNSPYTHON: figures(200.0, 150.0)},
    bytes_per_answer=180.04,
    bytes_distinct=190.0,
    latencies=[number / 1000 for number in range(1, 101)],
    unarrived=0,
    flood=Flood(sent=1000, lost=100, per_second=10000.4),
    memory=(1 << 20, 1 << 21),
)
TEMPLATE = Template(answers=1000, rate=5000.0, secret=SECRET)


class TestFigures:
    def test_shape(self) -> None:
        assert shape(lane("udp"), TEMPLATE, MEASURED) == {
            "name": "udp",
            "transport": "udp",
            "codec": "dns",
            "zstd": False,
            "compiled": compiled(),
            "subscribers": 1,
            "answers": 1000,
            "answers_per_second": 10000,
            "send_cpu_us": 10.0,
            "receive_cpu_us": 6.0,
            "bytes_per_answer": 180.0,
            "bytes_per_distinct_answer": 190.0,
            "latency_ms": {"p50": 50.0, "p99": 99.0},
            "latency_rate": 5000.0,
            "lost": 100,
            "overload_sent": 1000,
            "latency_lost": 0,
            "memory_bytes": {"send": 1 << 20, "receive": 1 << 21},
            "floor": {"send_cpu_us": 4.0, "receive_cpu_us": 3.0},
            "dnspython": {"send_cpu_us": 200.0, "receive_cpu_us": 150.0},
            "receive_times_floor": 2.0,
            "receive_times_less_than_dnspython": 25.0,
            "send_times_floor": 2.5,
            "send_times_less_than_dnspython": 20.0,
        }

    def test_what_has_no_floor_says_so(self) -> None:
        rows = {row: found for row, found in MEASURED.rows.items() if row is not Row.FLOOR}
        result = shape(lane("quic"), TEMPLATE, MEASURED._replace(rows=rows))
        assert result["floor"] == {"send_cpu_us": None, "receive_cpu_us": None}
        assert result["receive_times_floor"] is result["send_times_floor"] is None
        assert table([result]).splitlines()[-1].split()[4:7] == ["6.00", "-", "-"]

    def test_table_has_all_beside_each_other(self) -> None:
        lines = table([shape(lane(name), TEMPLATE, MEASURED) for name in ("udp", "tcp+zstd")]).splitlines()
        assert lines[3].split()[:6] == ["udp", "dns", "10000", "10.00", "6.00", "3.00"]
        assert lines[4].split()[:2] == ["tcp+zstd", "cdns"]
        assert "10.0 %" in lines[3]
        assert len({len(line) for line in lines[3:]}) == 1

    def test_a_rounds_figure_is_microseconds_per_answer_and_the_median_counts(self) -> None:
        found = Figures()
        for cpu in (0.001, 0.5, 0.002):
            found.close_round(bench_run.Cost(100, 2 * cpu), bench_run.Cost(100, cpu))
        assert found.medians == pytest.approx((40.0, 20.0))

    @pytest.mark.parametrize(("percent", "value"), [(50, 2), (99, 4), (1, 1), (100, 4)])
    def test_percentile_is_the_nearest_rank(self, percent: int, value: int) -> None:
        assert percentile([1, 2, 3, 4], percent) == value


class TestReport:
    def test_without_matplotlib_it_says_what_to_install(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
        result = CliRunner().invoke(bench, ["--report", str(tmp_path / "out.html")])
        assert isinstance(result.exception, bench_report.ReportError)
        assert str(result.exception) == "--report needs matplotlib: pip install 'cachebus[bench]'"

    def test_the_page_has_the_table_and_every_plot(self, tmp_path: Path) -> None:
        pytest.importorskip("matplotlib")
        path = tmp_path / "out.html"
        bench_report.write_report(path, [shape(lane("tcp+zstd"), TEMPLATE, MEASURED)])
        page = path.read_text()
        assert page.count("<svg") == page.count("</svg>") == len(bench_report._PLOTS)
        assert "tcp+zstd" in page


@pytest.fixture
def transports(monkeypatch: pytest.MonkeyPatch) -> None:
    """The transports by their names, installed or not."""
    for module in (links, bench_lanes, registry):
        monkeypatch.setattr(module, "load_transport", lambda name: TRANSPORTS[name])
    monkeypatch.setattr("cachebus.cli.bench.load_transport", lambda name: TRANSPORTS[name])


class Pair:
    """Both bodies in this process, each on its own turn of one event loop."""

    def __init__(self, job: Job, stack: AsyncExitStack) -> None:
        self.receiver = ReceivingPeer(job, 0, stack)
        self.sender = SendingPeer(job, stack)

    async def start(self) -> None:
        await self.receiver.start()
        await self.sender.start()

    async def turn(self, row: Row, wanted: int | None, order: Order) -> tuple[Sent, Received]:
        ready = asyncio.Event()
        taking = asyncio.create_task(
            self.receiver.take(
                Take(row, wanted, patience=PROBE_PATIENCE if order is Order.PROBE else PATIENCE), ready.set
            )
        )
        await ready.wait()
        sent = await self.sender.follow(order, 0, 200)
        return sent, await taking


@pytest.mark.usefixtures("transports")
class TestProcesses:
    """What the processes do, in this one."""

    @pytest.mark.parametrize("name", ["udp", "multicast", "zeromq", "mqtt", "tcp", "tcp+zstd", "tcp+batch", "tls"])
    def test_every_row_gets_all_and_counts_right(self, name: str, tmp_path: Path) -> None:
        if name == "mqtt":
            require("mosquitto")
        job = Template(answers=400, rate=5000.0, secret=SECRET).job(lane(name), tmp_path)

        async def rows() -> None:
            async with AsyncExitStack() as stack:
                pair = Pair(job, stack)
                await pair.start()
                for row in (Row.SINK, Row.FLOOR):
                    async with asyncio.timeout(10):
                        while not (await pair.turn(row, 1, Order.PROBE))[1].messages:
                            pass
                composed = await pair.sender.follow(Order.COMPOSE, 0, 200)
                assert composed.answers == 200
                sent, received = await pair.turn(Row.CACHEBUS, composed.messages, Order.REPEAT)
                assert sent.messages == received.messages == composed.messages
                assert 0 < received.accepted <= received.arrived == 200
                assert received.cpu > 0
                assert 20 < sent.octets / sent.answers < 400
                bare, received = await pair.turn(Row.FLOOR, composed.messages, Order.FLOOR)
                assert bare.messages == received.messages == composed.messages
                for order in (Order.AGAIN, Order.DNSPYTHON):
                    _, received = await pair.turn(Row.DNSPYTHON, 200, order)
                    assert received.messages == 200
                published, received = await pair.turn(Row.SINK, None, Order.PUBLISH)
                assert 120 <= published.answers <= 200
                assert published.messages == received.messages
                assert received.arrived == 0
                paced, received = await pair.turn(Row.TIMED, None, Order.PACED)
                assert set(paced.departures) == set(received.arrivals)
                assert all(received.arrivals[key] > given for key, given in paced.departures.items())
                distinct, _ = await pair.turn(Row.SINK, None, Order.DISTINCT)
                assert distinct.answers == 200

        with (
            bench_lanes.surroundings(lane(name), job.plan, tmp_path),
            asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        ):
            runner.run(rows())

    async def test_fewer_messages_than_were_sent_end_a_take(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        job = TEMPLATE.job(lane("udp"), tmp_path)
        async with AsyncExitStack() as stack:
            receiver = ReceivingPeer(job, 0, stack)
            await receiver.start()
            assert (await receiver.take(Take(Row.FLOOR, 5, waiting=True), lambda: None)).messages == 0

    def test_what_a_process_met_is_said_by_the_parent(self) -> None:
        def plan(lane: Lane, subscribers: int, directory: Path) -> Plan:
            told = {"type": "no-such-transport", "key": "bench"}
            return Plan(receivers=(told,), sender=told)

        missing = Lane(name="none", transport="no-such-transport", codec=CodecName.CDNS, plan=plan)
        with pytest.raises(ConfigError, match="no transport 'no-such-transport'"):
            bench_run.measure(missing, TEMPLATE, lambda text: None)

    def test_a_process_that_dies_is_an_error(self) -> None:
        ours, theirs = multiprocessing.Pipe()
        theirs.close()
        peer = bench_run.Peer("sending", ours)
        with pytest.raises(BenchError, match="the sending process is gone"):
            peer.answer()
        with pytest.raises(BenchError, match="the sending process is gone"):
            peer.tell(None)
        ours.close()


class Foreign:
    """A transport of another package that says how to be measured."""

    @staticmethod
    def bench_settings(subscribers: int, directory: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        places = [str(directory / f"{number}.sock") for number in range(subscribers)]
        return [{"listen": place, "colour": "red"} for place in places], {"peers": places}


class TestLanes:
    def test_a_transport_of_another_package_takes_part(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(bench_lanes, "installed_transports", lambda: {"udp": None, "pigeon": None, "snail": None})
        factories: dict[str, Callable[..., Any]] = {"pigeon": Foreign, "snail": object}
        monkeypatch.setattr(bench_lanes, "load_transport", lambda name: factories[name])
        *_, found = lanes()
        assert (found.name, found.codec, found.bare) == ("pigeon", CodecName.DNS, "")
        plan = found.plan(found, 2, tmp_path)
        made = section(plan.receivers[1])
        assert (made.type, made.listen, made.key) == ("pigeon", str(tmp_path / "1.sock"), "bench")
        assert made.options == {"colour": "red"}
        assert section(plan.sender).peers == (str(tmp_path / "0.sock"), str(tmp_path / "1.sock"))

    def test_no_broker_is_said_by_name(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr("cachebus.cli.broker.shutil.which", lambda *_, **__: None)
        with pytest.raises(BrokerMissingError, match="mosquitto is not installed"), broker(1, tmp_path):
            pass

    @pytest.mark.parametrize("chosen", [[], ["--transport", "mqtt"]])
    @pytest.mark.usefixtures("transports")
    def test_what_is_missing_does_not_stop_the_others(self, chosen: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        def measure(lane: Lane, template: Template, progress: Callable[[str], None]) -> Measured:
            if lane.transport == "mqtt":
                raise BrokerMissingError("mosquitto is not installed")
            if lane.transport == "quic":
                raise TransportUnavailable("no aioquic")
            return MEASURED

        TRANSPORTS["quic"] = UdpTransport
        monkeypatch.setattr("cachebus.cli.bench.measure", measure)
        monkeypatch.setattr("cachebus.cli.bench.lanes", lambda: BUILT_IN)
        result = CliRunner().invoke(bench, [*chosen, "--json"])
        del TRANSPORTS["quic"]
        assert "mqtt: not measured: mosquitto is not installed" in result.stderr
        found = [json.loads(line)["name"] for line in result.stdout.splitlines()]
        expected = [one.name for one in BUILT_IN if one.transport not in ("mqtt", "quic")]
        assert found == ([] if chosen else expected)
        assert result.exit_code == bool(chosen)


class TestWarmStart:
    def test_shape_and_text(self) -> None:
        name = (b"\x01a\0", 1)
        due = {name: 9.0, (b"\x01b\0", 1): 10.5, (b"\x01c\0", 1): 11.0, (b"\x01d\0", 1): 12.5}
        arrivals = {name: 9.001, (b"\x01b\0", 1): 10.503}
        copied = Copied(span=Span(10.0, 12.0, 1.1), received=110, merged=100, arrivals=arrivals)
        result = warm_shape(100, copied, Served(Span(10.0, 12.0, 0.55), due))
        assert result["warm_start"] == {
            "entries": 100,
            "received": 110,
            "merged": 100,
            "seconds": 2.0,
            "answers_per_second": 55,
            "send_cpu_us": 5000.0,
            "receive_cpu_us": 10000.0,
            "answers_per_cpu_second": {"send": 200, "receive": 100},
            "live_rate": 1000,
            "live_lost": 1,
            "live_latency_ms": {"before": {"p50": 1.0, "p99": 1.0}, "during": {"p50": 3.0, "p99": 3.0}},
        }
        assert "100 of 110 RRsets (100 answers) in 2.00 s by the clock on the wall, 55 a second" in warm_text(result)
        assert "an idle core has time for 200 and 100 a second" in warm_text(result)

    def test_a_small_one_in_two_processes(self) -> None:
        if "udp" not in installed_transports():
            pytest.skip("cachebus is not installed: the processes find transports by their entry points")
        found = measure_warm_start(SECRET, entries=500)["warm_start"]
        assert found["merged"] == found["received"] >= 500
        assert found["live_lost"] == 0
        assert found["live_latency_ms"]["before"]["p50"] > 0


def test_unmeasured_transport_is_a_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cachebus.cli.bench.load_transport", lambda name: UdpTransport)
    monkeypatch.setattr("cachebus.cli.bench.lanes", lambda: BUILT_IN)
    result = CliRunner().invoke(bench, ["--transport", "pigeon"])
    assert result.exit_code == 2
    assert "pigeon cannot be measured" in result.output


def test_a_whole_run_in_processes() -> None:
    if "tcp" not in installed_transports():
        pytest.skip("cachebus is not installed: the processes find transports by their entry points")
    chosen = ["--transport", "udp", "--transport", "tcp+zstd"]
    result = CliRunner().invoke(bench, [*chosen, "--answers", "1000", "--subscribers", "2", "--json"])
    assert result.exit_code == 0, result.output
    udp, tcp = map(json.loads, result.stdout.splitlines())
    assert (udp["transport"], udp["codec"], tcp["transport"], tcp["codec"]) == ("udp", "dns", "tcp", "cdns")
    assert 100 < udp["bytes_per_answer"] < 400
    assert 20 < tcp["bytes_per_answer"] < udp["bytes_per_answer"]
    for found in (udp, tcp):
        assert found["floor"]["receive_cpu_us"] > 0
        assert 0 < found["receive_cpu_us"] < found["dnspython"]["receive_cpu_us"]
        assert 0 < found["latency_ms"]["p50"] <= found["latency_ms"]["p99"]
        assert (found["overload_sent"], found["subscribers"]) == (1000, 2)
