"""`tail` and `publish`: URLs, what is sent of the captures, what is printed of it, and both together over loopback."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cachebus_transports.udp import UdpTransport
from click.testing import CliRunner

from cachebus.answer import Answer, Evidence, Refusal, RRset
from cachebus.cli import main
from cachebus.cli import publish as publish_module
from cachebus.cli import tail as tail_module
from cachebus.cli.bench_trace import trace
from cachebus.cli.bus import SharePolicy, load_share
from cachebus.cli.common import parse_key
from cachebus.cli.explain_rows import Row
from cachebus.cli.publish import Publication, publish, rows
from cachebus.cli.tail import Printer, tail
from cachebus.client import Bus, plan
from cachebus.codecs.dns import DnsCodec, DnsCodecSettings
from cachebus.errors import ConfigError, FrameError
from cachebus.filters.policy import Policy, PolicySettings
from cachebus.filters.settings import JudgeSettings
from cachebus.ports import Sender, TransportSettings
from cachebus.presentation import name_from_text, name_to_text
from cachebus.testing import ManualClock, MemoryNetwork, MemoryTransport
from cachebus.urls import Beside, Role
from cachebus.wire.message import compose, pack
from cachebus.wire.tsig import Key

DATA = Path(__file__).parent.parent / "data"
KEY = "cluster:hmac-sha256:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
OTHER_KEY = "cluster:hmac-sha256:ISEhISEhISEhISEhISEhISEhISEhISEhISEhISEhISE="


def codec(key: str = KEY) -> DnsCodec:
    name, algorithm, secret = parse_key(key)
    return DnsCodec(DnsCodecSettings(transport="udp", key=Key.make(name_to_text(name), algorithm, secret)), start=None)


def answer(name: str = "www.example.net", *, ttl: int = 300, learned: float, rdata: bytes = b"\xcb\0\x71\1") -> Answer:
    owner = name_from_text(name)
    rrset = RRset(owner, 1, ttl, pack(1, ttl, [rdata]))
    return Answer(owner, 1, (rrset,), Evidence.CONFIRMED, "ams-1", learned)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
        opened.bind(("127.0.0.1", 0))
        opened.settimeout(5)
        yield opened


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


def row_of(*answers: Answer) -> Row:
    row = Row(1, "RESPONSE", b"")
    row.answers = {(answer.qname, answer.qtype): answer for answer in answers}
    return row


def sending(network: MemoryNetwork) -> MemoryTransport:
    settings = TransportSettings(name="t", node="n", cluster="c", peers=("receiver",))
    return network.transport(settings, lambda data, sender: None)


def sent_on(network: MemoryNetwork, now: float) -> list[Answer]:
    """What a receiver makes of what waits on the network."""
    receiver = codec()
    answers: list[Answer] = []
    for datagram in network.pending:
        found = receiver.decode(datagram.data, datagram.sender, now)
        assert not isinstance(found, Refusal), found
        answers += found
    return answers


class TestShare:
    def test_without_a_configuration_everything_may_leave(self) -> None:
        policy = load_share(None)
        assert policy.refuse(answer("host.local", ttl=1, learned=0.0)) is None
        assert not policy.infrastructure

    def test_a_configurations_policy(self, tmp_path: Path) -> None:
        config = tmp_path / "cachebus.yaml"
        config.write_text("node: ams-1\ncluster: home\nshare: {deny: [example.net], infrastructure: true}\n")
        policy = load_share(config)
        assert policy.refuse(answer("www.example.net", learned=0.0)) is Refusal.DENIED
        assert policy.refuse(answer("www.example.org", learned=0.0)) is None
        assert policy.infrastructure

    def test_a_wrong_configuration_is_a_config_error(self, tmp_path: Path) -> None:
        config = tmp_path / "cachebus.yaml"
        config.write_text("node: ams-1\ncluster: home\nshare: {denied: [example.net]}\n")
        with pytest.raises(ConfigError):
            load_share(config)


class TestPublish:
    async def test_sends_of_the_evil_capture_only_what_the_rules_accept(self) -> None:
        clock, network = ManualClock(), MemoryNetwork()
        settings = JudgeSettings(trust=frozenset({Evidence.AUTHORITATIVE}))
        run = Publication(codec(), SharePolicy(), clock)
        failure = await run.publish(rows(DATA / "unbound-evil.dnstap", settings), sending(network))
        assert failure is None
        assert run.sent == 2
        answers = sent_on(network, clock.now)
        assert [(answer.name, answer.type) for answer in answers] == [
            ("ok.example.test.", "A"),
            ("oob.example.test.", "A"),
        ]
        assert not any(b"bank" in datagram.data for datagram in network.pending)
        assert run.shape()["refused"]["question-mismatch"] == 8

    async def test_what_it_sends_was_learned_now(self) -> None:
        clock, network = ManualClock(), MemoryNetwork()
        await Publication(codec(), SharePolicy(), clock).publish(
            [row_of(answer(learned=clock.now - 10_000_000))], sending(network)
        )
        (received,) = sent_on(network, clock.now)
        assert (received.ttl, received.learned) == (300, clock.now)

    async def test_a_signature_that_expired_since_the_capture_refuses(self) -> None:
        clock, network = ManualClock(), MemoryNetwork()
        signed = next(answer for answer in trace(1000, clock.now) if answer.evidence is Evidence.VALIDATED)
        clock.advance(15 * 86400)
        run = Publication(codec(), SharePolicy(), clock)
        assert await run.publish([row_of(signed)], sending(network)) is None
        assert run.shape() == {"sent": 0, "refused": {"rrsig-expired": 1}}

    async def test_the_share_policy_only_when_asked(self) -> None:
        clock = ManualClock()
        short = row_of(answer(ttl=5, learned=clock.now))
        for policy, shape_wanted in (
            (SharePolicy(), {"sent": 1, "refused": {}}),
            (SharePolicy(Policy(PolicySettings())), {"sent": 0, "refused": {"ttl-below-minimum": 1}}),
        ):
            run = Publication(codec(), policy, clock)
            await run.publish([short], sending(MemoryNetwork()))
            assert run.shape() == shape_wanted

    async def test_what_the_codec_leaves_out_is_counted(self) -> None:
        clock = ManualClock()
        owner = name_from_text("big.example.net")
        large = RRset(owner, 16, 300, pack(16, 300, [b"\xff" + b"x" * 255] * 6))
        run = Publication(codec(), SharePolicy(), clock)
        big = Answer(owner, 16, (large,), Evidence.CONFIRMED, "ams-1", clock.now)
        await run.publish([row_of(big)], sending(MemoryNetwork()))
        assert run.shape() == {"sent": 0, "refused": {"oversize": 1}}

    async def test_what_a_cut_file_held_is_sent_and_then_the_error_comes(self, tmp_path: Path) -> None:
        whole = (DATA / "unbound.dnstap").read_bytes()
        (tmp_path / "cut.dnstap").write_bytes(whole[:3000])
        network = MemoryNetwork()
        run = Publication(codec(), SharePolicy(), ManualClock())
        failure = await run.publish(rows(tmp_path / "cut.dnstap", JudgeSettings()), sending(network))
        assert isinstance(failure, FrameError)
        assert run.sent == len(network.pending) == 3

    async def test_what_the_link_does_not_take_is_an_error(self) -> None:
        clock = ManualClock()
        many = [row_of(answer(f"n{number}.example.net", learned=clock.now)) for number in range(50)]
        run = Publication(codec(), SharePolicy(), clock)
        failure = await run.publish(many, sending(MemoryNetwork(limit=30)))
        assert run.sent == 30
        assert str(failure) == "20 messages could not be sent"

    async def test_is_paced(self, monkeypatch: pytest.MonkeyPatch) -> None:
        clock, network = ManualClock(), MemoryNetwork()
        seen: list[int] = []

        async def sleep(seconds: float) -> None:
            seen.append(len(network.pending))
            assert seconds == publish_module.PAUSE

        monkeypatch.setattr(publish_module.asyncio, "sleep", sleep)
        many = [row_of(answer(f"n{number}.example.net", learned=clock.now)) for number in range(50)]
        await Publication(codec(), SharePolicy(), clock).publish(many, sending(network))
        assert seen == [20, 40, 50]

    def test_the_verb(self, listener: socket.socket) -> None:
        url = f"udp://127.0.0.1:{listener.getsockname()[1]}"
        result = CliRunner().invoke(publish, [url, str(DATA / "unbound.dnstap"), "--key", KEY, "--json"])
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout) == {"sent": 7, "refused": {"no-answer": 4, "rcode": 1}}
        received = [listener.recv(2000) for _ in range(7)]
        found = codec().decode(received[0], "sender", time.time())
        assert not isinstance(found, Refusal)
        assert found[0].name == "www.example.test."

    def test_the_verb_for_people(self) -> None:
        url = f"udp://127.0.0.1:{free_port()}"
        result = CliRunner().invoke(publish, [url, str(DATA / "unbound.dnstap"), "--key", KEY])
        assert result.stdout == "sent 7, refused 5\n       4  no-answer\n       1  rcode\n"

    def test_a_cut_file_ends_with_1_after_the_totals(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "cut.dnstap").write_bytes((DATA / "unbound.dnstap").read_bytes()[:3000])
        arguments = ["publish", f"udp://127.0.0.1:{free_port()}", str(tmp_path / "cut.dnstap"), "--key", KEY]
        assert main([*arguments, "--json"]) == 1
        captured = capsys.readouterr()
        assert json.loads(captured.out)["sent"] == 3
        assert "cut.dnstap: at byte" in captured.err
        assert "Traceback" not in captured.err

    def test_a_wire_file_may_claim(self, tmp_path: Path, listener: socket.socket) -> None:
        one = answer(learned=0.0)
        message = compose(7, 0x8180, one.qname, one.qtype, [(rrset, rrset.ttl) for rrset in one.rrsets])
        (tmp_path / "messages.wire").write_bytes(len(message).to_bytes(4, "big") + message)
        url = f"udp://127.0.0.1:{listener.getsockname()[1]}"
        arguments = [url, str(tmp_path / "messages.wire"), "--key", KEY, "--json"]
        result = CliRunner().invoke(publish, [*arguments, "--claims", "authoritative"])
        assert json.loads(result.stdout) == {"sent": 0, "refused": {"evidence-too-weak": 1}}
        result = CliRunner().invoke(publish, [*arguments, "--claims", "confirmed"])
        assert json.loads(result.stdout) == {"sent": 1, "refused": {}}
        assert not isinstance(codec().decode(listener.recv(2000), "sender", time.time()), Refusal)

    def test_needs_a_key(self) -> None:
        result = CliRunner().invoke(publish, ["udp://127.0.0.1:5390", "x.dnstap"])
        assert result.exit_code == 2
        assert "--key is missing" in result.output

    def test_a_wrong_key_is_not_repeated(self) -> None:
        secret = "cluster:hmac-sha256:c2VjcmV0"
        result = CliRunner().invoke(publish, ["udp://127.0.0.1:5390", "x.dnstap", "--key", secret])
        assert result.exit_code == 2
        assert "c2VjcmV0" not in result.output


class Tail:
    """A `tail` whose messages come from the test."""

    def __init__(self, clock: ManualClock, policy: SharePolicy | None = None, *, waiting: int = 100) -> None:
        opening = plan(
            "udp://127.0.0.1:0", role=Role.SUBSCRIBE, beside=Beside(), key=parse_key(KEY), node=None
        )  # fmt: skip
        self.bus = Bus(opening, waiting=waiting, clock=clock)
        self.policy = policy or SharePolicy()
        self._codec = codec()

    def receive(self, data: bytes, sender: Sender) -> None:
        self.bus.take(self._codec, [(data, sender)])

    async def printed(self, count: int | None, *messages: tuple[bytes, Sender]) -> list[dict[str, Any]]:
        lines: list[dict[str, Any]] = []
        running = asyncio.create_task(Printer(self.bus, self.policy, count, lines.append).run())
        await asyncio.sleep(0)  # it has subscribed
        for data, sender in messages:
            self.receive(data, sender)
        await asyncio.wait_for(running, 5)
        return lines


class TestTail:
    def message(self, clock: ManualClock, key: str = KEY, **fields: Any) -> bytes:
        (message,), refusals = codec(key).encode([answer(learned=clock.now, **fields)], clock.now)
        assert not refusals
        return message

    async def test_prints_the_shape_of_the_contract(self) -> None:
        clock = ManualClock()
        assert await Tail(clock).printed(1, (self.message(clock), ("192.0.2.1", 5390))) == [
            {
                "origin": "192.0.2.1",
                "name": "www.example.net.",
                "type": "A",
                "ttl": 300,
                "evidence": "authoritative",
                "records": ["www.example.net. 300 IN A 203.0.113.1"],
                "learned": clock.now,
            }
        ]

    async def test_ends_after_count(self) -> None:
        clock = ManualClock()
        messages = [(self.message(clock, name=f"n{number}.example.net"), "peer") for number in range(5)]
        lines = await Tail(clock).printed(2, *messages)
        assert [line["name"] for line in lines] == ["n0.example.net.", "n1.example.net."]

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    async def test_a_signal_ends_it_after_what_waits(self, number: signal.Signals) -> None:
        clock = ManualClock()
        tail_of = Tail(clock)
        printed = asyncio.Event()
        lines: list[dict[str, Any]] = []

        def print_one(line: dict[str, Any]) -> None:
            lines.append(line)
            printed.set()

        task = asyncio.create_task(Printer(tail_of.bus, tail_of.policy, None, print_one).run())
        await asyncio.sleep(0)
        tail_of.receive(self.message(clock), "peer")
        await asyncio.wait_for(printed.wait(), 5)  # from here on the signals are handled
        tail_of.receive(self.message(clock, name="last.example.net"), "peer")
        os.kill(os.getpid(), number)
        await asyncio.wait_for(task, 5)
        assert [line["name"] for line in lines] == ["www.example.net.", "last.example.net."]

    async def test_names_each_refusal_once(self, capsys: pytest.CaptureFixture[str]) -> None:
        clock = ManualClock()
        good = self.message(clock)
        bad = (good, b"", b"\0" * 12, self.message(clock, OTHER_KEY), self.message(clock, OTHER_KEY))
        tail_of = Tail(clock)
        lines = await tail_of.printed(1, *[(data, ("192.0.2.1", 5390)) for data in (good, *bad)])
        assert len(lines) == 1
        assert {reason.value: count for reason, count in tail_of.bus.refused.items()} == {
            "duplicate": 1,
            "malformed": 1,
            "unsigned": 1,
            "bad-mac": 2,
        }
        assert capsys.readouterr().err.splitlines() == [
            f"cachebus: refused a message from 192.0.2.1: {reason}"
            for reason in ("duplicate", "malformed", "unsigned", "bad-mac")
        ]

    async def test_the_share_policy_only_when_asked(self, capsys: pytest.CaptureFixture[str]) -> None:
        clock = ManualClock()
        private, public = self.message(clock, rdata=b"\x0a\0\0\1"), self.message(clock, name="two.example.net")
        both = ((private, "peer"), (public, "peer"))
        assert len(await Tail(clock).printed(2, *both)) == 2
        strict = await Tail(clock, SharePolicy(Policy(PolicySettings()))).printed(1, *both)
        assert [line["name"] for line in strict] == ["two.example.net."]
        assert "private-address" in capsys.readouterr().err

    async def test_what_cannot_be_printed_in_time_is_counted(self, capsys: pytest.CaptureFixture[str]) -> None:
        clock = ManualClock()
        messages = [(self.message(clock, name=f"n{number}.example.net"), "peer") for number in range(5)]
        lines = await Tail(clock, waiting=2).printed(2, *messages)
        assert [line["name"] for line in lines] == ["n3.example.net.", "n4.example.net."]
        assert "3 answers were not printed" in capsys.readouterr().err

    def test_a_line_for_people(self, capsys: pytest.CaptureFixture[str]) -> None:
        tail_module._print_line(tail_module.shape(answer(learned=0.0)))
        assert capsys.readouterr().out == (
            "ams-1  confirmed      www.example.net. A  <-  www.example.net. 300 IN A 203.0.113.1\n"
        )

    def test_needs_a_key(self) -> None:
        result = CliRunner().invoke(tail, ["udp://127.0.0.1:5390"])
        assert result.exit_code == 2
        assert "--key is missing" in result.output

    def test_the_verb_prints_what_publish_sends(self) -> None:
        port = free_port()
        sender = threading.Thread(target=self._publish_until_received, args=(port,), daemon=True)
        self.done = threading.Event()
        sender.start()
        try:
            arguments = [f"udp://127.0.0.1:{port}", "--key", KEY, "--count", "7", "--peers", "127.0.0.1", "--json"]
            result = CliRunner().invoke(tail, arguments)
        finally:
            self.done.set()
            sender.join(5)
        assert result.exit_code == 0, result.output
        lines = [json.loads(line) for line in result.stdout.splitlines()]
        assert len(lines) == 7
        assert {"www.example.test.", "alias.example.test."} <= {line["name"] for line in lines}
        assert {line["evidence"] for line in lines} == {"authoritative"}

    def _publish_until_received(self, port: int) -> None:
        async def once() -> None:
            settings = TransportSettings(name="t", node="n", cluster="c", peers=(f"127.0.0.1:{port}",))
            run = Publication(codec(), SharePolicy(), time.time)
            await run.publish(rows(DATA / "unbound.dnstap", JudgeSettings()), UdpTransport(settings, lambda *_: None))

        while not self.done.wait(0.2):
            asyncio.run(once())
