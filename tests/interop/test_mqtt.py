"""The transport `mqtt` with real brokers: what they carry, refuse, limit, and how a stream survives them."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme
from cachebus_transports.mqtt import MqttTransport
from click.testing import CliRunner

from cachebus.cli import keygen_tls
from cachebus.ports import Sender, TransportSettings
from cachebus.tls import CertificateFiles
from tests.farm.ejabberd import EjabberdCluster
from tests.farm.mosquitto import Mosquitto
from tests.farm.mqtt_client import Client
from tests.farm.nats import Nats
from tests.servers import require

pytestmark = pytest.mark.interop
CLUSTER = "farm"
DEADLINE = 5.0
"""Seconds in which anything awaited has happened; also what a stream may take to resume."""


class Node:
    """A transport with what it received."""

    def __init__(self, name: str, url: str, *, tls: CertificateFiles | None = None, **options: object) -> None:
        self.inbox: list[tuple[bytes, Sender]] = []
        settings = TransportSettings(
            name="wan", node=name, cluster=CLUSTER, url=url, tls=tls, will=b"gone: " + name.encode(), options=options
        )
        self.transport = MqttTransport(settings, lambda data, sender: self.inbox.append((data, sender)))

    def __getitem__(self, counter: str) -> int:
        return self.transport.statistics()[counter]

    def has(self, data: bytes, sender: str) -> bool:
        return (data, sender) in self.inbox


@asynccontextmanager
async def running(*nodes: Node) -> AsyncIterator[None]:
    async with nodes[0].transport:
        if len(nodes) > 1:
            async with running(*nodes[1:]):
                yield
        else:
            await until(lambda: nodes[0]["connections"] == 1)
            yield


async def until(condition: Callable[[], bool], within: float = DEADLINE) -> None:
    end = time.monotonic() + within
    while not condition():
        assert time.monotonic() < end, "not in time"
        await asyncio.sleep(0.01)


async def reach(sender: Node, receiver: Node, name: str, within: float = DEADLINE) -> None:
    """Send until something arrives: a broker may need a moment to tell its other half of a subscription."""
    end = time.monotonic() + within
    while not any(data.startswith(b"probe") for data, origin in receiver.inbox if origin == name):
        assert time.monotonic() < end, f"nothing from {name} in time"
        sender.transport.send(b"probe")
        await asyncio.sleep(0.05)


@pytest.fixture
def mosquitto(farm: Path) -> Iterator[Mosquitto]:
    require("mosquitto")
    with Mosquitto(farm) as broker:
        yield broker


async def test_mosquitto_carries_messages_of_version_5_as_they_should_be(mosquitto: Mosquitto) -> None:
    one, two = Node("one", mosquitto.url()), Node("two", mosquitto.url(), qos=1)
    with Client(mosquitto.port) as watcher:
        watcher.subscribe("cachebus/#")
        async with running(one, two):
            await until(lambda: two["connections"] == 1)
            one.transport.send(b"from one")
            two.transport.send(b"from two")
            await until(lambda: one.has(b"from two", "two") and two.has(b"from one", "one"))
            await until(lambda: len(watcher.messages) >= 2)
            assert (one["protocol"], two["protocol"], two["acknowledged"]) == (5, 5, 1)
            assert one["own"] == two["own"] == 0, "no-local is not asked for"
    messages = {message.payload: message for message in watcher.messages}
    assert messages[b"from one"].topic == "cachebus/farm/v1/one"
    assert messages[b"from one"].qos == 0
    assert messages[b"from two"].qos == 1
    for payload in (b"from one", b"from two"):
        properties = messages[payload].properties
        assert 1 <= properties.MessageExpiryInterval <= 60
        assert properties.ContentType == "application/vnd.cachebus.v1"
        assert not messages[payload].retain


async def test_retained_and_strange_messages_are_not_handed_on(mosquitto: Mosquitto) -> None:
    node, other = Node("one", mosquitto.url()), Node("two", mosquitto.url())
    with Client(mosquitto.port) as stranger:
        stranger.publish("cachebus/farm/v1/two", b"kept since long ago", retain=True)
        async with running(node, other):
            await until(lambda: node["retained"] == 1)
            stranger.publish("cachebus/farm/v1/two", b"kept, and live", retain=True)
            await until(lambda: node["retained"] == 2)
            stranger.publish("cachebus/farm/v1/No_Node", b"strange")
            await until(lambda: node["unexpected"] == 1)
            stranger.publish("cachebus/farm/v1/one", b"in our own name")
            await until(lambda: node["own"] == 1)
            stranger.publish("cachebus/farm/v2/two", b"another version")
            stranger.publish("cachebus/other/v1/two", b"another cluster")
            stranger.publish("cachebus/farm/v1/two", b"live")
            await until(lambda: node.has(b"live", "two"))
        assert [data for data, _ in node.inbox if not data.startswith(b"gone")] == [b"live"]


async def test_a_message_that_is_too_large_is_skipped_and_the_link_stays(mosquitto: Mosquitto) -> None:
    """MQTT 5 brokers keep what is beyond our Maximum Packet Size; what is between it and our largest message comes."""
    node = Node("one", mosquitto.url())
    with Client(mosquitto.port) as stranger:
        async with running(node):
            stranger.publish("cachebus/farm/v1/two", bytes(2_000_000))
            stranger.publish("cachebus/farm/v1/two", bytes(300_000))
            stranger.publish("cachebus/farm/v1/two", b"small")
            await until(lambda: node.has(b"small", "two"))
            assert (node["oversize"], node["reconnects"], len(node.inbox)) == (1, 0, 1)


@pytest.mark.parametrize("crashed", [True, False])
async def test_peers_learn_that_a_node_is_gone(mosquitto: Mosquitto, crashed: bool) -> None:
    witness, node = Node("one", mosquitto.url()), Node("two", mosquitto.url())
    async with running(witness):
        async with running(node):
            assert not witness.has(b"gone: two", "two")
            if crashed:
                node.transport._session.link.abort()  # type: ignore[union-attr] -- as if the process had died
                await until(lambda: witness.has(b"gone: two", "two"))
                await until(lambda: node["reconnects"] == 1)
        await until(lambda: witness.has(b"gone: two", "two"))


@pytest.mark.parametrize("qos", [0, 1])
async def test_a_stream_resumes_after_the_broker_was_killed(mosquitto: Mosquitto, qos: int) -> None:
    one, two = Node("one", mosquitto.url(), qos=qos), Node("two", mosquitto.url(), qos=qos)
    async with running(one, two):
        await reach(one, two, "one")
        mosquitto.kill()
        await until(lambda: not (one["connections"] or two["connections"]))
        one.transport.send(b"while it was away")
        assert one["queued"] == 1
        await asyncio.sleep(1.0)  # attempts fail and their distance grows
        assert one["failed_connects"] >= 1
        await asyncio.to_thread(mosquitto.start)
        back = time.monotonic()
        two.inbox.clear()
        await reach(one, two, "one")
        assert time.monotonic() - back < DEADLINE
        assert (one["reconnects"], two["reconnects"]) == (1, 1)


async def test_a_subscriber_that_reads_nothing_costs_the_others_nothing(mosquitto: Mosquitto) -> None:
    """30 MB, more than a broker and the kernel hold for one who sleeps."""
    one, two, asleep = (Node(name, mosquitto.url()) for name in ("one", "two", "three"))
    async with running(one, two, asleep):
        link = asleep.transport._session.link  # type: ignore[union-attr]
        link._transport.pause_reading()  # type: ignore[union-attr]
        for number in range(150):
            one.transport.send(number.to_bytes(4, "big") * 50_000)
            await until(lambda: len(two.inbox) == number + 1)  # noqa: B023
        assert (one["dropped"], one["reconnects"]) == (0, 0)
        assert asleep["received"] == 0


async def test_the_brokers_limits_are_kept(farm: Path) -> None:
    require("mosquitto")
    limits = ["max_packet_size 20000", "max_inflight_messages 3", "max_qos 0"]
    with Mosquitto(farm, options=limits) as broker:
        one, two = Node("one", broker.url(), qos=1), Node("two", broker.url(), qos=1)
        async with running(one, two):
            await reach(one, two, "one")
            one.transport.send(bytes(19_990))
            one.transport.send(b"small")
            await until(lambda: two.has(b"small", "one"))
            assert (one["oversize"], one["reconnects"], one["acknowledged"]) == (1, 0, 0)


async def test_a_password_is_asked_for(farm: Path) -> None:
    require("mosquitto", "mosquitto_passwd")
    secrets = farm / "passwords"
    arguments = ("mosquitto_passwd", "-b", "-c", str(secrets), "alice", "open sesame")
    made = await asyncio.create_subprocess_exec(*arguments, stdout=asyncio.subprocess.DEVNULL)
    assert await made.wait() == 0
    with Mosquitto(farm, options=[f"password_file {secrets}"], anonymous=False) as broker:
        url = broker.url().replace("//", "//alice@")
        wrong, none, right = (
            Node("one", url, password="sesame"),
            Node("two", broker.url()),
            Node("three", url, password="open sesame"),
        )
        async with wrong.transport, none.transport, running(right):
            await until(lambda: wrong["failed_connects"] >= 1 and none["failed_connects"] >= 1)
            assert (wrong["connections"], none["connections"]) == (0, 0)


async def test_two_bridged_brokers_are_one(farm: Path) -> None:
    require("mosquitto")
    with Mosquitto(farm, name="first") as first, Mosquitto(farm, name="second", bridge_to=first.port) as second:
        one, two = Node("one", first.url(), qos=1), Node("two", second.url(), qos=1)
        async with running(one, two):
            await reach(one, two, "one", 10.0)
            await reach(two, one, "two", 10.0)
            before = len(two.inbox)
            one.transport.send(b"once")
            await until(lambda: two.has(b"once", "one"))
            one.transport.send(b"last")
            await until(lambda: two.has(b"last", "one"))
            assert [data for data, _ in two.inbox[before:]].count(b"once") == 1, "the bridge makes a loop"


async def test_nats_is_spoken_to_with_3_1_1(farm: Path) -> None:
    require("nats-server")
    with Nats(farm) as broker:
        one, two = Node("one", broker.url(), qos=1), Node("two", broker.url())
        async with running(one, two):
            await reach(one, two, "one")
            await reach(two, one, "two")
            assert (one["protocol"], two["protocol"]) == (4, 4)
            assert one["own"] >= 1, "our own messages come back, and are dropped by their topic"
            assert not [sender for _, sender in one.inbox if sender == "one"]
            broker.restart()
            two.inbox.clear()
            await reach(one, two, "one")


async def test_nodes_of_an_ejabberd_cluster_are_one_broker(farm: Path) -> None:
    require("ejabberdctl", "erl", "epmd")
    with EjabberdCluster(farm) as cluster:
        one, two = (
            Node(name, broker.url(), qos=1, username=f"{name}@localhost", password="any")
            for name, broker in zip(("one", "two"), cluster.nodes, strict=True)
        )
        async with running(one, two):
            await reach(one, two, "one", 10.0)
            await reach(two, one, "two", 10.0)
            assert (one["protocol"], two["protocol"]) == (5, 5)
            large = bytes(range(256)) * 1024
            one.transport.send(large)
            await until(lambda: two.has(large, "one"))


# TLS, certificates and access


ACCESS = ["pattern write cachebus/farm/v1/%u", "pattern read cachebus/farm/v1/+"]
"""A node may publish on the topic of its own certificate's name only."""


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`ca.pem`, and NAME.pem and NAME.key of the broker, of the nodes one and two, and of a stranger's authority."""
    directory = tmp_path_factory.mktemp("c")
    for authority, names in ((trustme.CA(), ("broker", "one", "two")), (trustme.CA(), ("stranger",))):
        authority.cert_pem.write_to_path(directory / ("ca.pem" if "broker" in names else "other-ca.pem"))
        for name in names:
            hosts = ("127.0.0.1", "broker.test") if name == "broker" else (f"{name}.nodes.test",)
            issued = authority.issue_cert(*hosts, common_name=name)
            issued.private_key_pem.write_to_path(directory / f"{name}.key")
            (directory / f"{name}.key").chmod(0o600)
            (directory / f"{name}.pem").write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    return directory


def identity(certificates: Path, name: str | None, ca: str = "ca") -> CertificateFiles:
    cert, key = (None, None) if name is None else (certificates / f"{name}.pem", certificates / f"{name}.key")
    return CertificateFiles(ca=certificates / f"{ca}.pem", cert=cert, key=key)


@pytest.fixture
def guarded(farm: Path, certificates: Path) -> Iterator[Mosquitto]:
    require("mosquitto")
    with Mosquitto(farm, tls=certificates, access=ACCESS) as broker:
        yield broker


async def test_certificates_let_nodes_in_and_bind_them_to_their_topic(guarded: Mosquitto, certificates: Path) -> None:
    one = Node("one", guarded.url(), tls=identity(certificates, "one"))
    two = Node("two", guarded.url(), tls=identity(certificates, "two"), qos=1)
    liar = Node("one-more", guarded.url(), tls=identity(certificates, "two"), qos=1)
    async with running(one, two, liar):
        await reach(one, two, "one")
        await reach(two, one, "two")
        liar.transport.send(b"not as myself")
        await until(lambda: liar["not_taken"] == 1)
        context = ssl.create_default_context(cafile=str(certificates / "ca.pem"))
        context.load_cert_chain(certificates / "two.pem", certificates / "two.key")
        with Client(guarded.port, tls=context) as forger:
            await asyncio.to_thread(forger.publish, "cachebus/farm/v1/one", b"in the name of one")
            two.inbox.clear()
            await reach(one, two, "one")
        assert not two.has(b"in the name of one", "one")
        assert not any(sender == "one-more" for _, sender in one.inbox)


async def test_a_broker_that_cannot_prove_who_it_is_gets_nothing(guarded: Mosquitto, certificates: Path) -> None:
    """Neither a certificate of another authority, nor one for another name: `localhost` is not in it."""
    stranger = Node("one", guarded.url(), tls=identity(certificates, "one", ca="other-ca"))
    renamed = Node("one", guarded.url().replace("127.0.0.1", "localhost"), tls=identity(certificates, "one"))
    unknown = Node("one", guarded.url())  # the system's authorities
    async with stranger.transport, renamed.transport, unknown.transport:
        for node in (stranger, renamed, unknown):
            await until(lambda: node["failed_connects"] >= 1)  # noqa: B023
            assert node["connections"] == 0


async def test_without_a_certificate_of_ours_the_broker_lets_nobody_in(guarded: Mosquitto, certificates: Path) -> None:
    nameless = Node("one", guarded.url(), tls=identity(certificates, None))
    foreign = Node(
        "two",
        guarded.url(),
        tls=CertificateFiles(
            ca=certificates / "ca.pem", cert=certificates / "stranger.pem", key=certificates / "stranger.key"
        ),
    )
    async with nameless.transport, foreign.transport:
        for node in (nameless, foreign):
            await until(lambda: node["failed_connects"] >= 1)  # noqa: B023
            assert node["connections"] == 0


async def test_what_keygen_makes_serves_a_broker_and_its_nodes(farm: Path) -> None:
    require("mosquitto")
    made = CliRunner().invoke(keygen_tls.tls, ["one", "two", "localhost", "-o", str(farm)])
    assert made.exit_code == 0, made.output
    for ending in ("pem", "key"):
        (farm / f"localhost.{ending}").rename(farm / f"broker.{ending}")
    with Mosquitto(farm, tls=farm, access=ACCESS) as broker:
        url = broker.url().replace("127.0.0.1", "localhost")
        one, two = (Node(name, url, tls=identity(farm, name)) for name in ("one", "two"))
        async with running(one, two):
            await reach(one, two, "one")
            await reach(two, one, "two")
