"""The transport `mqtt` against the transport contract, over a real broker of each version of the protocol."""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import Callable, Iterator

import pytest
import uvloop
from cachebus_transports.mqtt import MAX_MESSAGE, MqttTransport

from cachebus.ports import TransportSettings
from cachebus.testing import Check, TransportBed, transport_contract
from tests.farm.mosquitto import Mosquitto
from tests.farm.nats import Nats
from tests.servers import require

pytestmark = pytest.mark.interop
_CLUSTERS = itertools.count()
"""Every check has a cluster of its own on the broker that they share."""


@pytest.fixture(scope="module")
def mosquitto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    require("mosquitto")
    with Mosquitto(tmp_path_factory.mktemp("m")) as broker:
        yield broker


@pytest.fixture(scope="module")
def nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nats]:
    require("nats-server")
    with Nats(tmp_path_factory.mktemp("n")) as broker:
        yield broker


def bed(url: str, *, qos: int) -> TransportBed:
    cluster = f"contract-{next(_CLUSTERS)}"
    port = int(url.rpartition(":")[2])

    def settings(index: int, count: int) -> TransportSettings:
        return TransportSettings(name="wan", node=f"node-{index}", cluster=cluster, url=url, options={"qos": qos})

    async def garbage(of: TransportSettings) -> None:
        """Bytes that are not MQTT, and messages that no node sends: on topics of another form, and in its own name."""
        with socket.create_connection(("127.0.0.1", port)) as stream:
            stream.sendall(b"GET / HTTP/1.1\r\n\r\n")
        topics = [f"cachebus/{cluster}/v1/{name}" for name in ("UPPER", "a_b", of.node)]
        publish = b"".join(_packet(0x30, _text(topic) + b"garbage") for topic in topics)
        with socket.create_connection(("127.0.0.1", port)) as stream:
            stream.sendall(_connect("stranger") + publish)
            stream.sendall(_packet(0xC0, b""))
            await asyncio.to_thread(stream.recv, 8)

    # No `stalled`: what a subscriber misses is between it and the broker, and counted as a gap by its codec.
    return TransportBed(
        factory=MqttTransport,
        settings=settings,
        max_size=MAX_MESSAGE,
        window=16,
        # With QoS 1 each message is four packets, most of them through this one process.
        deadline=15.0 if qos else 5.0,
        garbage=garbage,
    )


def _packet(first: int, body: bytes) -> bytes:
    assert len(body) < 128
    return bytes([first, len(body)]) + body


def _text(text: str) -> bytes:
    return len(text).to_bytes(2, "big") + text.encode()


def _connect(name: str) -> bytes:
    """CONNECT of MQTT 3.1.1, with a clean session and a minute of keepalive."""
    return _packet(0x10, _text("MQTT") + b"\x04\x02\0\x3c" + _text(name))


def run(check: Check, bed: TransportBed, loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def checked() -> None:
        await check(bed)

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(checked())


LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.mark.parametrize("loop", list(LOOPS))
@pytest.mark.parametrize("check", transport_contract(), ids=lambda check: check.__name__)
def test_contract_over_mosquitto(check: Check, loop: str, mosquitto: Mosquitto) -> None:
    run(check, bed(mosquitto.url(), qos=0), LOOPS[loop])


@pytest.mark.parametrize("check", transport_contract(), ids=lambda check: check.__name__)
def test_contract_over_mosquitto_with_qos_1(check: Check, mosquitto: Mosquitto) -> None:
    run(check, bed(mosquitto.url(), qos=1), uvloop.new_event_loop)


@pytest.mark.parametrize("check", transport_contract(), ids=lambda check: check.__name__)
def test_contract_over_nats_with_3_1_1(check: Check, nats: Nats) -> None:
    run(check, bed(nats.url(), qos=0), asyncio.new_event_loop)
