"""Transport `zeromq` against the transport contract: as a mesh over tcp, ipc and CURVE, and through a hub."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self

import pytest
import uvloop
import zmq
from cachebus_transports.zeromq import ZeromqTransport
from cachebus_transports.zeromq_hub import ZeromqHub

from cachebus.ports import Receive, TransportSettings
from cachebus.testing import Check, TransportBed, transport_contract
from tests.servers import free_port

NODES = 4


def mesh(endpoints: list[str], curve: Callable[[int], object] = lambda index: None) -> TransportBed:
    """Each node binds its own endpoint and connects to all others."""

    def settings(index: int, count: int) -> TransportSettings:
        options = {
            "bind": [endpoints[index]],
            "connect": endpoints[:count],  # its own among them: every node may have the same list
            "curve": curve(index),
        }
        return TransportSettings(name="bus", node=f"node-{index}", cluster="test", options=options)

    return TransportBed(factory=ZeromqTransport, settings=settings, max_size=256 * 1024)


def tcp_endpoints(host: str = "127.0.0.1") -> list[str]:
    shown = f"[{host}]" if ":" in host else host
    found: set[str] = set()
    while len(found) < NODES:
        found.add(f"tcp://{shown}:{free_port(host)}")
    return sorted(found)


def make_keys(directory: Path, names: list[str]) -> dict[str, str]:
    """A secret key file for each name; gives the public keys."""
    allow = {}
    for name in names:
        public, secret = zmq.curve_keypair()
        allow[name] = public.decode()
        path = directory / f"{name}.curve"
        path.write_text(f"{name}:curve:{secret.decode()}\n")
        path.chmod(0o600)
    return allow


def curve_mesh(directory: Path) -> TransportBed:
    endpoints = tcp_endpoints()
    names = [f"node-{index}" for index in range(NODES)]
    allow = make_keys(directory, names)
    server = dict(zip(endpoints, names, strict=True))
    return mesh(
        endpoints, lambda index: {"secret": directory / f"{names[index]}.curve", "allow": allow, "server": server}
    )


class Hubbed(ZeromqTransport):
    """A node that brings the hub, if none runs, and takes it along when it is the last."""

    hubs: dict[str, tuple[ZeromqHub, int]] = {}  # noqa: RUF012 - one per bed, by its address

    def __init__(self, settings: TransportSettings, receive: Receive) -> None:
        hub = settings.options["hub"]
        assert isinstance(hub, Mapping)
        self._hub = hub
        self._hub_curve = settings.options.get("hub_curve")
        super().__init__(settings, receive)

    async def __aenter__(self) -> Self:
        key = self._hub["publishers"]
        hub, users = self.hubs.get(key, (None, 0))
        if hub is None:
            hub = await ZeromqHub(**self._hub, curve=self._hub_curve).__aenter__()
        self.hubs[key] = hub, users + 1
        return await super().__aenter__()

    async def __aexit__(self, *error: object) -> None:
        await super().__aexit__(None, None, None)
        key = self._hub["publishers"]
        hub, users = self.hubs.pop(key)
        if users > 1:
            self.hubs[key] = hub, users - 1
        else:
            await hub.__aexit__(None, None, None)


def hub_bed(directory: Path, *, curve: bool) -> TransportBed:
    """All nodes through one hub. Without CURVE they have the same address too."""
    publishers, subscribers, *_ = tcp_endpoints()
    names = [f"node-{index}" for index in range(NODES)]
    keys = make_keys(directory, [*names, "hub"]) if curve else {}

    def settings(index: int, count: int) -> TransportSettings:
        options: dict[str, object] = {"hub": {"publishers": publishers, "subscribers": subscribers}}
        if curve:
            options["curve"] = {"secret": directory / f"{names[index]}.curve", "server": keys["hub"]}
            options["hub_curve"] = {"secret": directory / "hub.curve", "allow": {name: keys[name] for name in names}}
        return TransportSettings(name="bus", node=names[index], cluster="test", options=options)

    return TransportBed(factory=Hubbed, settings=settings, max_size=256 * 1024, tells_senders=False)


BEDS: dict[str, Callable[[Path], TransportBed]] = {
    "tcp-ipv4": lambda directory: mesh(tcp_endpoints()),
    "tcp-ipv6": lambda directory: mesh(tcp_endpoints("::1")),
    "ipc": lambda directory: mesh([f"ipc://{directory}/{index}" for index in range(NODES)]),
    "curve": curve_mesh,
    "hub": lambda directory: hub_bed(directory, curve=False),
    "hub-curve": lambda directory: hub_bed(directory, curve=True),
}


LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
RUNS = [*((bed, "uvloop") for bed in BEDS), ("tcp-ipv4", "asyncio"), ("hub-curve", "asyncio")]
"""The daemon's loop for all; the other one where the most differs."""


@pytest.mark.parametrize("check", transport_contract(), ids=lambda check: check.__name__)
@pytest.mark.parametrize(("bed", "loop"), RUNS)
def test_contract(check: Check, bed: str, loop: str, tmp_path: Path) -> None:
    made = BEDS[bed](tmp_path)

    async def run() -> None:
        await check(made)

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(run())
