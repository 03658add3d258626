"""The transport `zeromq`: settings, CURVE, and what others may do to its sockets. Real sockets on loopback."""

from __future__ import annotations

import asyncio
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq
from cachebus_transports import zeromq
from cachebus_transports._zmq_curve import read_allow_file, read_secret_file
from cachebus_transports._zmq_link import MAX_MESSAGE
from cachebus_transports.zeromq import ZeromqTransport
from cachebus_transports.zeromq_hub import ZeromqHub

from cachebus.cli import main
from cachebus.errors import ConfigError, TransportError
from cachebus.ports import Sender, TransportSettings
from tests.servers import free_port

DEADLINE = 5.0


def ignore(data: bytes, sender: Sender) -> None:
    """A receiver that keeps nothing."""


def settings(url: str | None = None, **options: object) -> TransportSettings:
    return TransportSettings(name="bus", node="ams-1", cluster="test", url=url, options=options)


async def until(condition: Callable[[], bool], what: str = "did not happen") -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, what
        await asyncio.sleep(0.005)


class Keys:
    """Key files of some nodes, made by `cachebus keygen curve`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.public: dict[str, str] = {}

    def make(self, name: str) -> Path:
        path = self.directory / f"{name}.curve"
        assert main(["keygen", "curve", name, "-o", str(path), "--json"]) == 0
        self.public[name] = path.with_name(f"{path.name}.pub").read_text().strip().split(":", 2)[2]
        return path


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path)


Plain = Callable[[int], zmq.Socket[bytes]]


@pytest.fixture
def plain() -> Iterator[Plain]:
    """Makes plain sockets that play the other end."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    opened: list[zmq.Socket[bytes]] = []

    def make(kind: int) -> zmq.Socket[bytes]:
        opened.append(context.socket(kind))
        return opened[-1]

    yield make
    for one in opened:
        one.close(linger=0)
    context.term()


class TestSettings:
    @pytest.mark.parametrize(
        ("given", "complaint"),
        [
            (settings(), "needs `bind`"),
            (settings(bind="tcp://127.0.0.1:1"), "bind: is a list"),
            (settings(bind=["udp://127.0.0.1:1"]), "is not tcp://"),
            (settings(bind=[5391]), "is not tcp://"),
            (settings(connect=["tcp://localhost:1"]), "names are not resolved"),
            (settings(connect=["tcp://127.0.0.1:0"]), "port"),
            (settings(bind=["tcp://*:5391"]), "names are not resolved"),
            (settings(connect=["ipc://@abstract"]), "no path"),
            (settings(connect=["ipc://" + "x" * 108]), "no path"),
            (settings(hub={"publishers": "tcp://127.0.0.1:1"}), "hub: is a mapping"),
            (settings(bind=["tcp://127.0.0.1:1"], hwm=True), "hwm"),
            (settings(bind=["tcp://127.0.0.1:1"], hwm=1), "hwm"),
            (settings(bind=["tcp://127.0.0.1:1"], curve={"secret": None}), "curve.secret"),
            (settings(bind=["tcp://127.0.0.1:1"], curve={"secrets": "x"}), "curve: is a mapping"),
            (settings("zmq+tcp://127.0.0.1:1?foo=1"), "takes nothing but"),
            (settings("zmq+tcp://127.0.0.1:1", direction="up"), "direction"),
        ],
    )
    def test_wrong_ones_are_refused(self, given: TransportSettings, complaint: str) -> None:
        with pytest.raises(ConfigError, match=complaint):
            ZeromqTransport(given, ignore)

    async def test_address_in_use_is_a_transport_error(self) -> None:
        async with ZeromqTransport(settings(bind=["tcp://127.0.0.1:0"]), ignore) as first:
            with pytest.raises(TransportError, match=r"transport bus: tcp://127\.0\.0\.1:\d+: Address already in use"):
                async with ZeromqTransport(settings(bind=list(first.endpoints)), ignore):
                    pass

    async def test_no_file_is_removed_for_a_socket(self, tmp_path: Path) -> None:
        path = tmp_path / "precious"
        path.write_text("kept")
        with pytest.raises(TransportError, match="exists and is no socket"):
            async with ZeromqTransport(settings(bind=[f"ipc://{path}"]), ignore):
                pass
        assert path.read_text() == "kept"

    async def test_unix_socket_is_for_owner_and_group(self, tmp_path: Path) -> None:
        async with ZeromqTransport(settings(bind=[f"zmq+ipc://{tmp_path}/bus"]), ignore):
            assert stat.S_IMODE((tmp_path / "bus").stat().st_mode) == 0o660


class TestKeys:
    def test_keygen_writes_a_pair(self, keys: Keys) -> None:
        path = keys.make("ams-1")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        pair = read_secret_file(path)
        assert pair.public.decode() == keys.public["ams-1"]
        assert pair.secret.decode() not in repr(pair)
        assert list(read_allow_file(path.with_name("ams-1.curve.pub")).values()) == ["ams-1"]

    def test_keygen_replaces_nothing(self, keys: Keys, capsys: pytest.CaptureFixture[str]) -> None:
        path = keys.make("ams-1")
        before = path.read_text()
        assert main(["keygen", "curve", "ams-1", "-o", str(path)]) == 1
        assert path.read_text() == before
        assert "exists" in capsys.readouterr().err

    def test_secret_that_others_can_read_is_refused(self, keys: Keys) -> None:
        path = keys.make("ams-1")
        path.chmod(0o640)
        with pytest.raises(ConfigError, match="lets others in"):
            read_secret_file(path)

    def test_secret_in_the_place_of_a_public_key_is_refused_unseen(self, keys: Keys) -> None:
        path = keys.make("ams-1")
        secret = path.read_text().strip().split(":", 2)[2]
        with pytest.raises(ConfigError, match="curve-public") as caught:
            read_allow_file(path)
        assert secret not in str(caught.value)

    @pytest.mark.parametrize("text", ["", "x" * 39, "#" * 40, "é" * 40, " " * 40, "file:/nonexistent", 5])
    def test_wrong_public_keys(self, keys: Keys, text: object) -> None:
        curve = {"secret": keys.make("ams-1"), "allow": {"ber-1": text}}
        with pytest.raises(ConfigError):
            ZeromqTransport(settings(bind=["tcp://127.0.0.1:0"], curve=curve), ignore)

    def test_nobody_allowed_is_a_mistake(self, keys: Keys) -> None:
        with pytest.raises(ConfigError, match=r"curve\.allow"):
            ZeromqTransport(settings(bind=["tcp://127.0.0.1:0"], curve={"secret": keys.make("ams-1")}), ignore)

    def test_unknown_server_is_a_mistake(self, keys: Keys) -> None:
        with pytest.raises(ConfigError, match=r"curve\.server: has no public key for tcp://127\.0\.0\.1:1"):
            ZeromqTransport(settings(connect=["tcp://127.0.0.1:1"], curve={"secret": keys.make("ams-1")}), ignore)


class TestCurve:
    async def test_strangers_are_refused_and_counted(self, keys: Keys) -> None:
        ours, friend, stranger = keys.make("ams-1"), keys.make("ber-1"), keys.make("eve-1")
        received: list[tuple[bytes, Sender]] = []
        curve = {"secret": ours, "allow": {"ber-1": keys.public["ber-1"]}}
        async with ZeromqTransport(settings(bind=["tcp://127.0.0.1:0"], curve=curve), ignore) as publisher:

            def client(secret: Path) -> TransportSettings:
                own = {"secret": secret, "server": "ams-1", "allow": {"ams-1": keys.public["ams-1"]}}
                return settings(connect=list(publisher.endpoints), curve=own)

            async with ZeromqTransport(client(stranger), lambda data, sender: received.append((data, sender))) as eve:
                await until(lambda: publisher.statistics()["unknown_peer"] >= 2)
                publisher.send(b"secret")
                assert eve.statistics()["connections"] == publisher.statistics()["connections"] == 0
                async with ZeromqTransport(client(friend), lambda *one: received.append(one)):
                    await until(lambda: bool(received))
        assert received == [(b"secret", "ams-1")]

    async def test_plain_sockets_are_refused(self, keys: Keys, plain: Plain) -> None:
        curve = {"secret": keys.make("ams-1"), "allow": {"ber-1": zmq.curve_keypair()[0].decode()}}
        async with ZeromqTransport(settings(bind=["tcp://127.0.0.1:0"], curve=curve), ignore) as publisher:
            reader = plain(zmq.SUB)
            reader.set(zmq.SUBSCRIBE, b"")
            reader.connect(publisher.endpoints[0])
            await until(lambda: publisher.statistics()["failed_handshakes"] > 0)
            publisher.send(b"secret")
            assert publisher.statistics()["connects"] == 0

    async def test_who_connects_is_named_by_its_key(self, keys: Keys) -> None:
        received: list[tuple[bytes, Sender]] = []
        ours = {"secret": keys.make("ams-1"), "allow": {}}
        secrets = {name: keys.make(name) for name in ("ber-1", "cph-1")}
        ours["allow"] = {name: keys.public[name] for name in secrets}
        listening = settings("zmq+tcp://127.0.0.1:0?bind=1", direction="subscribe", curve=ours)
        async with ZeromqTransport(listening, lambda *one: received.append(one)) as receiver:
            for name, secret in secrets.items():
                curve = {"secret": secret, "server": keys.public["ams-1"]}
                own = settings(f"zmq+{receiver.endpoints[0]}", direction="publish", curve=curve)
                async with ZeromqTransport(own, ignore) as publisher:
                    publisher.send(name.encode())
                    await publisher.flush()
            await until(lambda: len(received) == 2)
        assert sorted(received) == [(b"ber-1", "ber-1"), (b"cph-1", "cph-1")]


class TestSending:
    async def test_first_messages_wait_for_the_first_subscriber(self) -> None:
        received: list[bytes] = []
        async with ZeromqTransport(settings(bind=["tcp://127.0.0.1:0"]), ignore) as publisher:
            publisher.send(b"early")
            assert publisher.statistics()["queued"] == 1
            peer = settings(connect=list(publisher.endpoints))
            async with ZeromqTransport(peer, lambda data, sender: received.append(data)):
                await publisher.flush()
                await until(lambda: received == [b"early"])

    async def test_nobody_is_waited_for_long(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(zeromq, "HOLD", 0.05)
        async with ZeromqTransport(settings(bind=["tcp://127.0.0.1:0"], hwm=16), ignore) as publisher:
            for _ in range(20):
                publisher.send(b"x")
            assert publisher.statistics()["dropped"] == 4
            await asyncio.wait_for(publisher.flush(), DEADLINE)
            publisher.send(b"x")
            assert publisher.statistics()["unsubscribed"] == 17
            assert publisher.statistics()["sent"] == 0

    async def test_waiting_ones_are_counted_when_it_stops(self) -> None:
        async with ZeromqTransport(settings(bind=["tcp://127.0.0.1:0"]), ignore) as publisher:
            publisher.send(b"x")
        assert publisher.statistics()["dropped"] == 1


class TestLog:
    async def test_a_peer_that_is_away_and_one_that_goes_are_reported_once(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level("INFO")
        endpoint = f"tcp://127.0.0.1:{free_port()}"
        async with ZeromqTransport(settings(connect=[endpoint]), ignore) as subscriber:
            await until(lambda: len(caplog.messages) == 1)
            await asyncio.sleep(0.5)  # some more attempts
            async with ZeromqTransport(settings(bind=[endpoint]), ignore):
                await until(lambda: subscriber.statistics()["connections"] == 1)
            await until(lambda: len(caplog.messages) == 3)
            async with ZeromqTransport(settings(bind=[endpoint]), ignore):
                await until(lambda: subscriber.statistics()["connects"] == 2)
        assert caplog.messages[:4] == [
            f"transport bus: no link to {endpoint}: nobody answers",
            f"transport bus: linked to {endpoint}",
            f"transport bus: no link to {endpoint}: it ended",
            f"transport bus: linked to {endpoint}",
        ]

    async def test_a_peer_that_refuses_our_key_is_reported_once(
        self, keys: Keys, caplog: pytest.LogCaptureFixture
    ) -> None:
        files = {name: keys.make(name) for name in ("one", "two", "three")}
        allow = {"three": keys.public["three"]}
        async with ZeromqTransport(
            settings("zmq+tcp://127.0.0.1:0?bind=1", curve={"secret": files["one"], "allow": allow}), ignore
        ) as publisher:
            (endpoint,) = publisher.endpoints
            curve = {"secret": files["two"], "server": keys.public["one"]}
            async with ZeromqTransport(settings(connect=[endpoint], curve=curve), ignore) as refused:
                await until(lambda: refused.statistics()["failed_handshakes"] >= 2)
        assert caplog.messages.count(f"transport bus: no link to {endpoint}: the handshake failed") == 1


class TestWhatOthersDo:
    async def test_parts_are_dropped_and_too_long_ones_cost_the_link(self, plain: Plain) -> None:
        received: list[bytes] = []
        writer = plain(zmq.XPUB)
        port = writer.bind_to_random_port("tcp://127.0.0.1")
        peer = settings(connect=[f"tcp://127.0.0.1:{port}"])
        async with ZeromqTransport(peer, lambda data, sender: received.append(data)) as receiver:
            await until(lambda: bool(writer.poll(0)))
            writer.send_multipart([b"one", b"two", b"three"])
            writer.send(b"whole")
            await until(lambda: received == [b"whole"])
            assert receiver.statistics()["multipart"] == 1
            writer.send(bytes(2 * MAX_MESSAGE))
            await until(lambda: receiver.statistics()["disconnects"] == 1)
            await until(lambda: receiver.statistics()["connections"] == 1)

            def again() -> bool:
                writer.send(b"again")
                return b"again" in received

            await until(again)
        assert set(received) == {b"whole", b"again"}
        assert receiver.statistics()["connections"] == 0

    async def test_a_strange_subscriber_does_not_end_the_others_subscription(self, plain: Plain) -> None:
        received: list[bytes] = []
        async with ZeromqTransport(settings(bind=["tcp://127.0.0.1:0"]), ignore) as publisher:
            peer = settings(connect=list(publisher.endpoints))
            async with ZeromqTransport(peer, lambda data, sender: received.append(data)):
                await until(lambda: publisher.statistics()["connections"] == 1)
                stranger = plain(zmq.SUB)
                stranger.set(zmq.SUBSCRIBE, b"CBE")
                stranger.connect(publisher.endpoints[0])
                await until(lambda: publisher.statistics()["connections"] == 2)
                stranger.close(linger=0)
                await until(lambda: publisher.statistics()["disconnects"] == 1)
                publisher.send(b"x")
                await until(lambda: received == [b"x"])


class TestHub:
    def test_with_curve_somebody_is_allowed(self, keys: Keys) -> None:
        with pytest.raises(ConfigError, match=r"curve\.allow"):
            ZeromqHub(
                publishers="tcp://127.0.0.1:0", subscribers="tcp://127.0.0.1:0", curve={"secret": keys.make("hub")}
            )

    async def test_the_second_address_in_use_is_named(self) -> None:
        async with ZeromqHub(publishers="tcp://127.0.0.1:0", subscribers="tcp://127.0.0.1:0") as hub:
            with pytest.raises(TransportError, match=f"hub: .*Address already in use.*{hub.endpoints[1]}"):
                async with ZeromqHub(publishers="tcp://127.0.0.1:0", subscribers=hub.endpoints[1]):
                    pass

    async def test_it_tells_publishers_whether_anybody_subscribes(self) -> None:
        async with ZeromqHub(publishers="tcp://127.0.0.1:0", subscribers="tcp://127.0.0.1:0") as hub:
            own = settings(f"zmq+{hub.endpoints[0]}", direction="publish")
            async with ZeromqTransport(own, ignore) as publisher:
                await until(lambda: publisher.statistics()["connections"] == 1)
                reader = settings(f"zmq+{hub.endpoints[1]}")
                for _ in range(2):
                    async with ZeromqTransport(reader, ignore) as subscriber:
                        await until(lambda: hub.statistics()["topics"] == 1)

                        def arrives(subscriber: ZeromqTransport = subscriber) -> bool:
                            publisher.send(b"x")
                            return subscriber.statistics()["received"] > 0

                        await until(arrives)
                    await until(lambda: hub.statistics()["topics"] == 0)
