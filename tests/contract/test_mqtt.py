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
from tests.servers import require

pytestmark = pytest.mark.interop
_CLUSTERS = itertools.count()
"""Every check has a cluster of its own on the broker that they share."""


@pytest.fixture(scope="module")
def mosquitto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    require("mosquitto")
    with Mosquitto(tmp_path_factory.mktemp("m")) as broker:
        yield broker


def bed(url: str, *, qos: int) -> TransportBed:
    cluster = f"contract-{next(_CLUSTERS)}"

    def settings(index: int, count: int) -> TransportSettings:
        return TransportSettings(
            name="wan", node=f"node-{index}", cluster=cluster, url=url, will=b"gone", options={"qos": qos}
        )

    return TransportBed(factory=MqttTransport, settings=settings, max_size=MAX_MESSAGE, window=16)


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
