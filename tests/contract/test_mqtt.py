"""The transport `mqtt` against the transport contract, over a real broker of each version of the protocol."""

from __future__ import annotations

import asyncio
import itertools
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

    def settings(index: int, count: int) -> TransportSettings:
        return TransportSettings(name="wan", node=f"node-{index}", cluster=cluster, url=url, options={"qos": qos})

    # With QoS 1 each message is four packets, most of them through this one process.
    deadline = 15.0 if qos else 5.0
    return TransportBed(factory=MqttTransport, settings=settings, max_size=MAX_MESSAGE, window=16, deadline=deadline)


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Iterator[Callable[[Check, TransportBed], None]]:
    factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:

        def call(check: Check, bed: TransportBed) -> None:
            async def checked() -> None:
                await check(bed)

            runner.run(checked())

        yield call


@pytest.mark.parametrize("qos", [0, 1])
@pytest.mark.parametrize("check", transport_contract(), ids=lambda check: check.__name__)
def test_contract_over_mosquitto(
    check: Check, qos: int, mosquitto: Mosquitto, run: Callable[[Check, TransportBed], None]
) -> None:
    run(check, bed(mosquitto.url(), qos=qos))


@pytest.mark.parametrize("check", transport_contract(), ids=lambda check: check.__name__)
def test_contract_over_nats(check: Check, nats: Nats, run: Callable[[Check, TransportBed], None]) -> None:
    run(check, bed(nats.url(), qos=0))
