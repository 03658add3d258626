"""`bench`: that the traffic is what it says, that the rows do their work, and that a small run adds up."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
from base64 import b64encode
from collections.abc import Sequence

import dns.message
import dns.tsig
import dns.tsigkeyring
import pytest
from cachebus_transports.udp import UdpTransport
from click.testing import CliRunner

from cachebus.answer import Answer, Evidence, Refusal
from cachebus.cli import bench_peers, bench_run
from cachebus.cli.bench import _percentile, bench, shape, table
from cachebus.cli.bench_peers import ALGORITHM, KEY_NAME, Job, Order, Received, Row, Sent
from cachebus.cli.bench_rows import Dnspython, Floor
from cachebus.cli.bench_run import BenchError, Figures, Measured
from cachebus.cli.bench_trace import trace
from cachebus.cli.version import compiled
from cachebus.codecs.dns import DnsCodec, DnsCodecSettings
from cachebus.errors import ConfigError
from cachebus.filters.policy import Policy, PolicySettings
from cachebus.registry import installed_transports
from cachebus.wire.message import records, rrsig_fields
from cachebus.wire.tsig import Key

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


class FakeEndpoint(asyncio.DatagramTransport):
    """Keeps what it is to send."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[bytes] = []

    def sendto(self, data: bytes, addr: object = None) -> None:  # type: ignore[override]
        self.sent.append(data)


class TestRows:
    def test_dnspython_verifies_and_stores(self, answers: Sequence[Answer]) -> None:
        row = Dnspython(KEY_NAME, ALGORITHM, b64encode(SECRET).decode())
        now = bench_peers.time.time()
        (message,), _ = codec().encode([answers[0]._replace(learned=now)], now)
        row.receive(message, "sender")
        assert row.received == len(row._cache) == 1
        with pytest.raises(dns.tsig.BadSignature):
            row.receive(message[:20] + bytes([message[20] ^ 1]) + message[21:], "sender")

    def test_dnspython_sends_what_the_answer_says(self, answers: Sequence[Answer]) -> None:
        row, endpoint = Dnspython(KEY_NAME, ALGORITHM, b64encode(SECRET).decode()), FakeEndpoint()
        row.send(row.prepare(answers[0]), endpoint, ("127.0.0.1", 1))
        keyring = dns.tsigkeyring.from_text({KEY_NAME: (ALGORITHM, b64encode(SECRET).decode())})
        message = dns.message.from_wire(endpoint.sent[0], keyring=keyring)
        assert message.had_tsig
        found = codec().decode(endpoint.sent[0], "sender", bench_peers.time.time())
        assert not isinstance(found, Refusal)
        assert found[0].rrsets[0].owner == answers[0].rrsets[0].owner

    def test_the_floor_does_one_hmac_and_passes_the_bytes_on(self, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[tuple[object, ...]] = []
        monkeypatch.setattr("cachebus.cli.bench_rows.hmac.digest", lambda *arguments: seen.append(arguments))
        row, endpoint = Floor(SECRET), FakeEndpoint()
        row.receive(b"in", "sender")
        row.send(b"out", endpoint, ("127.0.0.1", 1))
        assert seen == [(SECRET, b"in", "sha256"), (SECRET, b"out", "sha256")]
        assert endpoint.sent == [b"out"]
        assert row.received == 1


def figures(send: float, receive: float) -> Figures:
    return Figures([send], [receive])


MEASURED = Measured(
    rows={Row.CACHEBUS: figures(10.0, 6.0), Row.FLOOR: figures(4.0, 3.0), Row.DNSPYTHON: figures(200.0, 150.0)},
    bytes_per_answer=180.04,
    latencies=[number / 1000 for number in range(1, 101)],
    unarrived=0,
    flood_sent=1000,
    flood=Received(datagrams=900, accepted=880, cpu=0.1, seconds=0.09, arrivals={}),
)


class TestFigures:
    def test_shape(self) -> None:
        assert shape("udp", MEASURED) == {
            "transport": "udp",
            "codec": "dns",
            "compiled": compiled(),
            "answers_per_second": 10000,
            "send_cpu_us": 10.0,
            "receive_cpu_us": 6.0,
            "bytes_per_answer": 180.0,
            "latency_ms": {"p50": 50.0, "p99": 99.0},
            "lost": 100,
            "overload_sent": 1000,
            "latency_lost": 0,
            "floor": {"send_cpu_us": 4.0, "receive_cpu_us": 3.0},
            "dnspython": {"send_cpu_us": 200.0, "receive_cpu_us": 150.0},
            "receive_times_floor": 2.0,
            "receive_times_less_than_dnspython": 25.0,
            "send_times_floor": 2.5,
            "send_times_less_than_dnspython": 20.0,
        }

    def test_table_has_the_rows(self) -> None:
        text = table(shape("udp", MEASURED))
        for wanted in ("cachebus", "floor", "dnspython", "10.00", "150.00", "100 of 1000 lost", "p99 99.000 ms"):
            assert wanted in text

    def test_a_rounds_figure_is_microseconds_per_datagram_and_the_median_counts(self) -> None:
        found = Figures()
        for cpu in (0.001, 0.5, 0.002):
            found.close_round(bench_run.Cost(100, 2 * cpu), bench_run.Cost(100, cpu))
        assert found.medians == pytest.approx((40.0, 20.0))

    @pytest.mark.parametrize(("percent", "value"), [(50, 2), (99, 4), (1, 1), (100, 4)])
    def test_percentile_is_the_nearest_rank(self, percent: int, value: int) -> None:
        assert _percentile([1, 2, 3, 4], percent) == value


class TestProcesses:
    """Both bodies in this process, on their own event loops, as the spawned ones have them."""

    def test_a_burst_reaches_every_row(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bench_peers, "load_transport", lambda name: UdpTransport)
        job = Job(transport="udp", answers=200, rate=5000.0, secret=SECRET)
        with asyncio.Runner() as receiving, asyncio.Runner() as sending:
            receiver = bench_peers._ReceivingPeer(job)
            ready = receiving.run(receiver.start())
            sender = bench_peers._SendingPeer(job, ready.ports)
            sending.run(sender.start())

            def turn(order: Order, row: Row) -> tuple[Sent, Received]:
                sent = sending.run(sender.follow(order, 0, 100))
                return sent, receiving.run(receiver.drain(row, sent.datagrams))

            composed = sending.run(sender.follow(Order.COMPOSE, 0, 100))
            assert composed.datagrams == 100
            for order, row in (
                (Order.REPEAT, Row.CACHEBUS),
                (Order.FLOOR, Row.FLOOR),
                (Order.AGAIN, Row.DNSPYTHON),
                (Order.DNSPYTHON, Row.SINK),
            ):
                sent, received = turn(order, row)
                assert sent.datagrams == received.datagrams == 100
                assert received.cpu > 0
            published, received = turn(Order.PUBLISH, Row.SINK)
            assert 60 <= published.datagrams == received.datagrams <= 100
            assert received.accepted == 0
            paced, received = turn(Order.PACED, Row.TIMED)
            assert paced.datagrams == received.datagrams
            assert set(paced.departures) == set(receiver._timed.arrivals)
            assert all(receiver._timed.arrivals[data] > given for data, given in paced.departures.items())
            sending.run(sender.stop())
            receiving.run(receiver.stop())

    def test_fewer_datagrams_than_were_sent_end_a_drain(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bench_peers, "load_transport", lambda name: UdpTransport)
        with asyncio.Runner() as runner:
            receiver = bench_peers._ReceivingPeer(Job(transport="udp", answers=1000, rate=5000.0, secret=SECRET))
            runner.run(receiver.start())
            assert runner.run(receiver.drain(Row.FLOOR, 5)).datagrams == 0
            runner.run(receiver.stop())

    def test_what_a_process_met_is_said_by_the_parent(self) -> None:
        job = Job(transport="no-such-transport", answers=1000, rate=5000.0, secret=SECRET)
        with pytest.raises(ConfigError, match="no transport 'no-such-transport'"):
            bench_run.measure(job, lambda text: None)

    def test_a_process_that_dies_is_an_error(self) -> None:
        ours, theirs = multiprocessing.Pipe()
        theirs.close()
        peer = bench_run._Peer("sending", ours)
        with pytest.raises(BenchError, match="the sending process is gone"):
            peer.answer()
        with pytest.raises(BenchError, match="the sending process is gone"):
            peer.tell(None)
        ours.close()


def test_unmeasured_transport_is_a_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cachebus.cli.bench.load_transport", lambda name: UdpTransport)
    result = CliRunner().invoke(bench, ["--transport", "pigeon"])
    assert result.exit_code == 2
    assert "pigeon cannot be measured" in result.output


def test_a_whole_run_in_two_processes() -> None:
    if "udp" not in installed_transports():
        pytest.skip("cachebus is not installed: the processes find transports by their entry points")
    result = CliRunner().invoke(bench, ["--transport", "udp", "--answers", "1000", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["transport"], found["codec"]) == ("udp", "dns")
    assert 100 < found["bytes_per_answer"] < 400
    assert 0 < found["floor"]["receive_cpu_us"] < found["receive_cpu_us"] < found["dnspython"]["receive_cpu_us"]
    assert 0 < found["latency_ms"]["p50"] <= found["latency_ms"]["p99"]
    assert found["overload_sent"] == 1000
