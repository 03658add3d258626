"""Floods of bounded rate and time, each a process of its own: `python -m tests.farm.flood KIND HOST PORT SECONDS`.

Ends by itself, and sends to loopback addresses alone. Prints how much it sent.
"""

from __future__ import annotations

import asyncio
import random
import resource
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from ipaddress import ip_address

import dns.message

from tests.farm.zones import PLAIN

RATE = 1500
"""Datagrams a second of the floods that send any: many times what the clients of a small network ask."""
CLIENTS = 5000
"""Slow TCP clients."""
PER_ADDRESS = 50
"""Slow clients from one address."""
MAX_SECONDS = 30.0
_STEP = 0.01


def names(chance: random.Random) -> bytes:
    """A question for a subdomain that nobody has asked for before."""
    name = f"{chance.getrandbits(64):x}.{PLAIN}"
    return dns.message.make_query(name, chance.choice(("A", "AAAA", "TXT"))).to_wire()


def malformed(chance: random.Random) -> bytes:
    """A question with some bytes changed, cut or doubled, or no question at all."""
    wire = bytearray(names(chance))
    for _ in range(chance.randrange(1, 4)):
        match chance.randrange(4):
            case 0:
                wire[chance.randrange(len(wire))] = chance.randrange(256)
            case 1:
                del wire[chance.randrange(len(wire)) :]
            case 2:
                wire = bytearray(bytes(wire) * 2)
            case _:
                wire = bytearray(chance.randbytes(chance.randrange(60)))
        if not wire:
            break
    return bytes(wire)


def send(host: str, port: int, seconds: float, make: Callable[[random.Random], bytes]) -> int:
    """Send what `make` makes at `RATE`; replies are thrown away by the kernel."""
    chance = random.Random()  # other names than the last flood's
    ready = [make(chance) for _ in range(int(RATE * seconds))]
    begun, sent = time.monotonic(), 0
    with socket.socket(type=socket.SOCK_DGRAM) as flooding:
        flooding.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        flooding.bind(("127.0.2.1", 0))
        while sent < len(ready) and (passed := time.monotonic() - begun) < seconds:
            for data in ready[sent : int(RATE * passed) + 1]:
                with suppress(OSError):
                    flooding.sendto(data, (host, port))
                sent += 1
            time.sleep(_STEP)
    return sent


async def slow_clients(host: str, port: int, seconds: float) -> int:
    """`CLIENTS` connections as fast as they are taken, each with a part of a question and no more, held to the end."""
    opened = 0

    async def one(number: int) -> None:
        nonlocal opened
        local = (f"127.0.{3 + number // PER_ADDRESS // 250}.{1 + number // PER_ADDRESS % 250}", 0)
        with suppress(OSError):
            _, writer = await asyncio.open_connection(host, port, local_addr=local)
            opened += 1
            try:
                for byte in b"\0\x20\x12\x34\1":
                    writer.write(bytes((byte,)))
                    await writer.drain()
                    await asyncio.sleep(seconds / 5)
            finally:
                writer.transport.abort()

    with suppress(TimeoutError):
        async with asyncio.timeout(seconds), asyncio.TaskGroup() as group:
            for number in range(CLIENTS):
                group.create_task(one(number))
                if not number % 25:
                    await asyncio.sleep(_STEP)
            await asyncio.sleep(seconds)
    return opened


def main() -> None:
    """One flood."""
    kind, host, port, seconds = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
    assert ip_address(host).is_loopback
    assert 0 < seconds <= MAX_SECONDS
    if kind == "tcp":
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        sent = asyncio.run(slow_clients(host, port, seconds))
    else:
        sent = send(host, port, seconds, {"names": names, "malformed": malformed}[kind])
    sys.stdout.write(f"{sent}\n")


if __name__ == "__main__":
    main()
