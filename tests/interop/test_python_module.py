"""Unbound with the python module of docs/examples/unbound: what it tells, what it keeps, and that it never waits."""

from __future__ import annotations

import os
import socket
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import pytest

from cachebus.wire.framestream import LengthPrefixedReceiver
from tests.farm.authoritative import Nsd
from tests.farm.client import Endpoint, Question, ask, ask_all, data, signatures
from tests.farm.process import eventually
from tests.farm.unbound import Unbound
from tests.farm.zones import Zones, make_zones
from tests.servers import require

pytestmark = pytest.mark.interop

SCRIPT = Path(__file__).parents[2] / "docs" / "examples" / "unbound" / "cachebus_unbound.py"
DIST_PACKAGES = "/usr/lib/python3/dist-packages"
WITHIN = 5.0
"""Seconds for what takes milliseconds on an idle machine."""
MODULES = 'module-config: "python validator iterator"'


class Reader:
    """The other end of the module's socket: what a cachebus source of type `stream` would be."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.messages: list[dns.message.Message] = []
        self._connection: socket.socket | None = None
        self._listener: socket.socket | None = None
        self.listen()

    def listen(self) -> None:
        self.path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen()
        self._listener.setblocking(False)

    def close(self) -> None:
        """As a killed process: connection and listener gone, the file left."""
        for one in (self._connection, self._listener):
            if one is not None:
                one.close()
        self._connection = self._listener = None

    def accept(self) -> bool:
        assert self._listener is not None
        if self._connection is None:
            try:
                self._connection, _ = self._listener.accept()
            except BlockingIOError:
                return False
            self._connection.setblocking(False)
            self._frames = LengthPrefixedReceiver()
        return True

    def read(self) -> list[dns.message.Message]:
        """Everything told so far. Bytes that do not make up whole messages fail the test."""
        if self.accept():
            assert self._connection is not None
            try:
                while part := self._connection.recv(65536):
                    self.messages += [dns.message.from_wire(frame) for frame in self._frames.receive_data(part)]
                self._frames.receive_end()
            except BlockingIOError:
                pass
        return self.messages

    def told(self) -> dict[tuple[str, str], dns.message.Message]:
        """The messages by name and type."""
        return {
            (message.question[0].name.to_text(), dns.rdatatype.to_text(message.question[0].rdtype)): message
            for message in self.read()
        }

    def knows(self, question: Question) -> bool:
        return (question.name, question.type) in self.told()


class Told(Unbound):
    """Unbound with the module."""

    def __init__(self, directory: Path, sink: Path, *, server: Sequence[str] = (), **more: object) -> None:
        if not any(line.startswith("module-config") for line in server):
            server = [MODULES, *server]
        clause = f'python:\n  python-script: "{SCRIPT}"'
        super().__init__(directory, server=server, extra=[clause], **more)  # type: ignore[arg-type]
        self.sink = sink

    def environment(self) -> Mapping[str, str]:
        return {
            **os.environ,
            "PYTHONPATH": DIST_PACKAGES,
            "PYTHONDONTWRITEBYTECODE": "1",
            "CACHEBUS_SOCKET": str(self.sink),
        }


@pytest.fixture
def reader(farm: Path) -> Iterator[Reader]:
    require("unbound", "python3-unbound")
    made = Reader(farm / "told")
    yield made
    made.close()


def resolver(running: ExitStack, farm: Path, reader: Reader, zones: Zones, server: Endpoint, *lines: str) -> Told:
    stubs = dict.fromkeys(zones.names, server)
    return running.enter_context(Told(farm, reader.path, stubs=stubs, anchors=[zones.anchor], server=lines))


def settle(reader: Reader, unbound: Unbound, zones: Zones) -> None:
    """Ask something last and wait until it is told: whatever was to be told before it has been by then."""
    last = Question(zones.names[0], "SOA")
    ask(unbound.endpoint, last)
    eventually(lambda: reader.knows(last), WITHIN, "the last question was told")


def test_every_answer_is_told_as_the_client_got_it(
    farm: Path, zones: Zones, nsd: Nsd, reader: Reader, running: ExitStack
) -> None:
    unbound = resolver(running, farm, reader, zones, nsd.endpoint)
    questions = list(dict.fromkeys([*zones.questions, *zones.mixed, *zones.wildcards]))
    answers = ask_all(unbound.endpoint, questions)
    assert len(answers) == len(questions)
    settle(reader, unbound, zones)
    told = reader.told()
    assert len(told) == len(questions) + 1, "nothing else was told: no key, name server or key tag look-up"
    for question in questions:
        message, answer = told[question.name, question.type], answers[question]
        assert data(message) == data(answer), question
        assert bool(message.flags & dns.flags.AD) == bool(answer.flags & dns.flags.AD), question
        flags = dns.flags.QR | dns.flags.RD | dns.flags.RA
        assert message.flags & ~dns.flags.AD == flags
        assert message.rcode() == dns.rcode.NOERROR
        assert not message.authority
        assert not message.additional
        assert message.edns == -1
        if question.dnssec:
            assert signatures(message) == signatures(answer), question
        for told_set in message.answer:
            assert 0 < told_set.ttl <= 3600
    assert any(message.flags & dns.flags.AD for message in told.values())


def test_an_answer_is_told_within_200_ms(
    farm: Path, zones: Zones, nsd: Nsd, reader: Reader, running: ExitStack
) -> None:
    unbound = resolver(running, farm, reader, zones, nsd.endpoint)
    settle(reader, unbound, zones)
    delays = []
    for question in zones.questions[:20]:
        ask(unbound.endpoint, question)
        start = time.monotonic()
        eventually(lambda question=question: reader.knows(question), WITHIN)  # type: ignore[misc]
        delays.append(time.monotonic() - start)
    assert statistics.median(delays) < 0.2


def test_what_is_not_told(farm: Path, zones: Zones, nsd: Nsd, reader: Reader, running: ExitStack) -> None:
    unbound = resolver(running, farm, reader, zones, nsd.endpoint)
    plain, signed = zones.questions[0], next(question for question in zones.questions if question.secure)
    kept = {
        "CD=1": (plain, {"checking_disabled": True}),
        "CD=1, signed": (signed, {"checking_disabled": True}),
        "NXDOMAIN": (Question("missing.plain.test.", "A"), {}),
        "signed NXDOMAIN": (Question("missing.signed.test.", "A", dnssec=True), {}),
        "NODATA": (Question(plain.name, "MX"), {}),
        "RD=0": (Question("a2.plain.test.", "A"), {"recurse": False}),
    }
    for what, (question, how) in kept.items():
        assert ask(unbound.endpoint, question, **how) is not None, what  # type: ignore[arg-type]
    settle(reader, unbound, zones)
    assert len(reader.messages) == 1, reader.told().keys()


def test_a_cached_answer_is_not_told_again(
    farm: Path, zones: Zones, nsd: Nsd, reader: Reader, running: ExitStack
) -> None:
    unbound = resolver(running, farm, reader, zones, nsd.endpoint)
    question = zones.questions[0]
    for _ in range(3):
        assert ask(unbound.endpoint, question)
    settle(reader, unbound, zones)
    assert len(reader.messages) == 2


@pytest.fixture
def bogus(tmp_path: Path, farm: Path, running: ExitStack) -> tuple[Zones, Nsd]:
    """Zones of their own, in which a signed record was changed after signing."""
    require("nsd")
    zones = make_zones(tmp_path / "zones")
    path = zones.files["signed.test."]
    text = path.read_text()
    assert "192.0.2.1\n" in text
    path.write_text(text.replace(" 192.0.2.1\n", " 192.0.2.99\n", 1))
    return zones, running.enter_context(Nsd(farm, zones.files))


@pytest.mark.parametrize("permissive", [False, True])
def test_bogus_answers_are_not_told(
    farm: Path, bogus: tuple[Zones, Nsd], reader: Reader, running: ExitStack, permissive: bool
) -> None:
    zones, nsd = bogus
    lines = ["val-permissive-mode: yes"] if permissive else []
    unbound = resolver(running, farm, reader, zones, nsd.endpoint, *lines)
    reply = ask(unbound.endpoint, Question("a0.signed.test.", "A", dnssec=True))
    assert reply is not None
    assert reply.rcode() == (dns.rcode.NOERROR if permissive else dns.rcode.SERVFAIL)
    good = Question("aaaa0.signed.test.", "AAAA", dnssec=True)
    assert ask(unbound.endpoint, good)
    eventually(lambda: reader.knows(good), WITHIN)
    unsigned = zones.questions[0]
    assert ask(unbound.endpoint, unsigned)
    if not permissive:
        eventually(lambda: reader.knows(unsigned), WITHIN)
    assert set(reader.told()) == {(good.name, good.type)} | (set() if permissive else {(unsigned.name, unsigned.type)})
    assert reader.told()[good.name, good.type].flags & dns.flags.AD


def test_what_cachebus_filled_is_not_told_back(
    farm: Path, zones: Zones, nsd: Nsd, reader: Reader, running: ExitStack
) -> None:
    """A chain whose end was filled through load_cache with trust 5, even as secure, stays at home."""
    unbound = resolver(running, farm, reader, zones, nsd.endpoint)
    unbound.control(
        "load_cache",
        text="START_RRSET_CACHE\n;rrset 300 1 0 5 5\nt0.other.test. 300 IN A 192.0.2.77\nEND_RRSET_CACHE\n"
        "START_MSG_CACHE\nmsg t0.other.test. IN A 33152 1 300 5 1 0 0 -1\nt0.other.test. IN A 0\n"
        "END_MSG_CACHE\nEOF\n",
    )
    reply = ask(unbound.endpoint, Question("across0.plain.test.", "A"))
    assert reply is not None
    assert "192.0.2.77" in reply.to_text()
    settle(reader, unbound, zones)
    assert len(reader.messages) == 1, reader.told().keys()


def test_what_a_forwarder_says_is_told_only_where_it_is_validated(
    farm: Path, zones: Zones, nsd: Nsd, reader: Reader, running: ExitStack
) -> None:
    upstream = running.enter_context(
        Unbound(farm, name="upstream", stubs=dict.fromkeys(zones.names, nsd.endpoint), anchors=[zones.anchor])
    )
    unbound = Told(farm, reader.path, anchors=[zones.anchor])
    unbound.extra.append(
        f'forward-zone:\n  name: "."\n  forward-addr: {upstream.endpoint.host}@{upstream.endpoint.port}'
    )
    running.enter_context(unbound)
    plain, signed = zones.questions[0], next(question for question in zones.questions if question.secure)
    assert ask(unbound.endpoint, plain)
    assert ask(unbound.endpoint, signed)
    eventually(lambda: reader.knows(signed), WITHIN)
    assert set(reader.told()) == {(signed.name, signed.type)}


def test_block_lists_stay_at_home(farm: Path, zones: Zones, nsd: Nsd, reader: Reader, running: ExitStack) -> None:
    (farm / "rpz").write_text(
        "$ORIGIN rpz.\n@ 60 IN SOA . . 1 60 60 60 60\n@ 60 IN NS .\n"
        "a0.plain.test 60 IN A 192.0.2.66\n"
        "32.1.113.0.203.rpz-ip 60 IN A 192.0.2.66\n"
    )
    unbound = Told(
        farm,
        reader.path,
        stubs=dict.fromkeys(zones.names, nsd.endpoint),
        anchors=[zones.anchor],
        server=['module-config: "respip python validator iterator"'],
    )
    unbound.extra.append(f'rpz:\n  name: "rpz."\n  zonefile: "{farm}/rpz"')
    running.enter_context(unbound)
    named, addressed = Question("a0.plain.test.", "A"), Question("t0.other.test.", "A")
    for question in (named, addressed):
        reply = ask(unbound.endpoint, question)
        assert reply is not None
        assert "192.0.2.66" in reply.to_text(), question
    settle(reader, unbound, zones)
    told = reader.told()
    assert (named.name, named.type) not in told
    # The module sees what the authoritative server said, before the block-list changes it.
    assert "192.0.2.66" not in told[addressed.name, addressed.type].to_text()


@pytest.mark.parametrize(
    ("modules", "text"),
    [("validator python iterator", "must follow directly"), ("python iterator", "must follow directly")],
)
def test_in_the_wrong_order_nothing_is_told_and_the_log_says_why(
    farm: Path, zones: Zones, nsd: Nsd, reader: Reader, running: ExitStack, modules: str, text: str
) -> None:
    unbound = resolver(running, farm, reader, zones, nsd.endpoint, f'module-config: "{modules}"')
    assert ask(unbound.endpoint, zones.questions[0])
    assert text in unbound.log_tail()
    assert not reader.accept()


def test_dead_data_served_stale_is_not_told(farm: Path, tmp_path: Path, reader: Reader, running: ExitStack) -> None:
    require("nsd")
    zones = make_zones(tmp_path / "zones", ttl=1)
    nsd = running.enter_context(Nsd(farm, zones.files))
    unbound = resolver(running, farm, reader, zones, nsd.endpoint, "serve-expired: yes")
    question = zones.questions[0]
    assert ask(unbound.endpoint, question)
    eventually(lambda: reader.knows(question), WITHIN)
    nsd.kill()

    def is_stale() -> bool:
        reply = ask(unbound.endpoint, question)
        return reply is not None and any(rrset.ttl == 30 for rrset in reply.answer)

    eventually(is_stale, WITHIN, "Unbound answers with the TTL of stale data")
    assert sum(message.question[0].name.to_text() == question.name for message in reader.read()) == 1


def latencies(unbound: Unbound, names: Sequence[str]) -> list[float]:
    """Seconds for each of these names to be resolved, one after the other."""
    taken = []
    for name in names:
        start = time.monotonic()
        reply = ask(unbound.endpoint, Question(name, "A"))
        taken.append(time.monotonic() - start)
        assert reply is not None
        assert reply.rcode() == dns.rcode.NOERROR
    return taken


def uncached(label: str, count: int) -> list[str]:
    """Names under a wildcard: each is resolved anew, and told with its own question."""
    return [f"{label}-{'x' * 40}-{number}.wild.plain.test." for number in range(count)]


def test_a_reader_that_stops_leaves_latency_unchanged_and_then_goes_on(
    farm: Path, zones: Zones, nsd: Nsd, reader: Reader, running: ExitStack
) -> None:
    unbound = resolver(running, farm, reader, zones, nsd.endpoint)
    before = latencies(unbound, uncached("before", 200))
    eventually(lambda: len(reader.read()) == 200, WITHIN)
    # Nobody reads any more. Fill the kernel's buffer, so that writes come to the point where they would block.
    flood = [Question(name, "A") for name in uncached("flood", 2500)]
    assert len(ask_all(unbound.endpoint, flood)) == len(flood)
    during = latencies(unbound, uncached("during", 200))
    assert statistics.median(during) < 2 * statistics.median(before) + 0.005
    assert sorted(during)[len(during) * 95 // 100] < 0.25, "a write that blocks would take until the reader reads"
    # The reader wakes up: after the partial frame come whole ones, and what is too old was dropped, not delayed.
    time.sleep(2.1)
    told = len(reader.read())
    assert 200 < told < 2600
    again = uncached("again", 5)
    latencies(unbound, again)
    eventually(lambda: {(name, "A") for name in again} <= reader.told().keys(), WITHIN)
    assert len(reader.messages) < 2900


def test_a_reader_that_is_restarted_gets_the_stream_from_a_whole_frame(
    farm: Path, zones: Zones, nsd: Nsd, reader: Reader, running: ExitStack
) -> None:
    unbound = resolver(running, farm, reader, zones, nsd.endpoint)
    settle(reader, unbound, zones)
    for round_number in range(2):
        # Killed while its buffer is full, most likely in the middle of a frame.
        flood = [Question(name, "A") for name in uncached(f"round{round_number}", 2500)]
        ask_all(unbound.endpoint, flood)
        reader.close()
        latencies(unbound, uncached(f"gone{round_number}", 20))
        reader.listen()
        number = iter(range(1000))

        def again(round_number: int = round_number, number: Iterator[int] = number) -> bool:
            name = f"back{round_number}-{next(number)}.wild.plain.test."
            latencies(unbound, [name])
            return any(message.question[0].name.to_text() == name for message in reader.read())

        eventually(again, WITHIN, "the stream resumes")


def test_without_a_reader_unbound_works(farm: Path, zones: Zones, nsd: Nsd, reader: Reader, running: ExitStack) -> None:
    reader.close()
    reader.path.unlink()
    unbound = resolver(running, farm, reader, zones, nsd.endpoint)
    answers = ask_all(unbound.endpoint, zones.questions)
    assert all(answer.rcode() == dns.rcode.NOERROR for answer in answers.values())
    # A restart of Unbound's modules keeps working too, and finds the reader that is there now.
    reader.listen()
    unbound.control("reload")
    question = zones.questions[0]
    eventually(lambda: ask(unbound.endpoint, question, timeout=0.5) is not None, WITHIN)
    eventually(lambda: reader.knows(question), WITHIN)


def test_an_exception_fails_no_query(farm: Path, zones: Zones, nsd: Nsd, reader: Reader, running: ExitStack) -> None:
    broken = farm / "broken.py"
    broken.write_text(
        SCRIPT.read_text().replace("def compose(qinfo, reply):\n", "def compose(qinfo, reply):\n    1 / 0\n")
    )
    assert "1 / 0" in broken.read_text()
    unbound = Told(farm, reader.path, stubs=dict.fromkeys(zones.names, nsd.endpoint), anchors=[zones.anchor])
    unbound.extra[0] = f'python:\n  python-script: "{broken}"'
    running.enter_context(unbound)
    answers = ask_all(unbound.endpoint, zones.questions)
    assert all(answer.rcode() == dns.rcode.NOERROR for answer in answers.values())
    assert "Traceback" not in unbound.log_tail()
    assert not reader.accept()


def test_several_threads_share_the_stream(
    farm: Path, zones: Zones, nsd: Nsd, reader: Reader, running: ExitStack
) -> None:
    unbound = resolver(running, farm, reader, zones, nsd.endpoint)
    config = unbound.directory / "unbound.conf"
    unbound.stop()
    config.write_text(config.read_text().replace("num-threads: 1", "num-threads: 4\n  so-reuseport: yes"))
    unbound.start()
    # Each batch has a client socket of its own, which the kernel gives to one of the threads.
    batches = [[Question(name, "A") for name in uncached(f"batch{number}", 40)] for number in range(16)]
    expected = {(question.name, question.type) for batch in batches for question in batch}
    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask_all, unbound.endpoint, batch) for batch in batches]
        eventually(lambda: expected <= reader.told().keys(), 2 * WITHIN)
    assert all(len(one.result()) == 40 for one in asking)
    told = [unbound.statistics()[f"thread{number}.num.recursivereplies"] for number in range(4)]
    assert sum(count > 0 for count in told) >= 2, told
