"""Every transport of the project against the transport contract."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator

import pytest
import uvloop
from cachebus_transports.udp import UdpTransport

from cachebus.ports import TransportSettings
from cachebus.testing import Check, MemoryNetwork, TransportBed, transport_contract


def free_ports(family: socket.AddressFamily, host: str, count: int) -> list[int]:
    """Ports nobody uses now: all bound at once, so that they differ."""
    opened = [socket.socket(family, socket.SOCK_DGRAM) for _ in range(count)]
    try:
        for one in opened:
            one.bind((host, 0))
        return [one.getsockname()[1] for one in opened]
    finally:
        for one in opened:
            one.close()


def with_addresses(addresses: list[str]) -> Callable[[int, int], TransportSettings]:
    """Settings of a full mesh over fixed addresses."""

    def settings(index: int, count: int) -> TransportSettings:
        return TransportSettings(
            name="lan",
            node=f"node-{index}",
            cluster="test",
            listen=addresses[index],
            peers=tuple(address for other, address in enumerate(addresses[:count]) if other != index),
        )

    return settings


def memory_bed() -> TransportBed:
    network = MemoryNetwork(automatic=True)
    return TransportBed(
        factory=network.transport, settings=with_addresses(["one", "two", "three", "four"]), max_size=65507
    )


def udp_bed(family: socket.AddressFamily, host: str) -> TransportBed:
    shown = f"[{host}]" if ":" in host else host
    addresses = [f"{shown}:{port}" for port in free_ports(family, host, 4)]
    return TransportBed(factory=UdpTransport, settings=with_addresses(addresses), max_size=65507)


BEDS: dict[str, Callable[[], TransportBed]] = {
    "memory": memory_bed,
    "udp-ipv4": lambda: udp_bed(socket.AF_INET, "127.0.0.1"),
    "udp-ipv6": lambda: udp_bed(socket.AF_INET6, "::1"),
}


@pytest.fixture(params=list(BEDS))
def bed(request: pytest.FixtureRequest) -> TransportBed:
    return BEDS[request.param]()


@pytest.fixture(params=["asyncio", "uvloop"])
def runner(request: pytest.FixtureRequest) -> Iterator[asyncio.Runner]:
    factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        yield runner


@pytest.mark.parametrize("check", transport_contract(), ids=lambda check: check.__name__)
def test_contract(check: Check, bed: TransportBed, runner: asyncio.Runner) -> None:
    async def run() -> None:
        await check(bed)

    runner.run(run())
