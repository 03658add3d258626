"""`cachebus tail`: subscribe to a transport and print each answer; the shortest custom tool.

Decides what is printed. Authenticity and form are the codec's matter; the share policy is asked only with `--share`.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import uvloop

from cachebus.answer import Answer, Refusal
from cachebus.cli.bus import CLUSTER, NODE, SharePolicy, load_share, make_codec, parse_peer, parse_url
from cachebus.cli.common import json_option, key_option, print_json
from cachebus.cli.present import answer_records
from cachebus.ports import Clock, Codec, Sender, TransportSettings
from cachebus.registry import load_transport

if TYPE_CHECKING:
    from cachebus.config.keyfile import KeyMaterial

MAX_WAITING = 10_000
"""Answers waiting to be printed; a slow terminal loses the oldest, and is told how many."""


@click.command()
@click.argument("url")
@key_option
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="End after N answers.")
@click.option("--peers", metavar="HOST,...", help="Take datagrams from these hosts only.")
@click.option("--share", metavar="CONFIG", type=click.Path(path_type=Path), help="Apply its share policy too.")
@json_option
def tail(
    *, url: str, key: KeyMaterial | None, count: int | None, peers: str | None, share: Path | None, as_json: bool
) -> None:
    """Listen at URL (udp://HOST:PORT) and print a line for each answer that authenticates and is well-formed.

    What does not is named on standard error, each reason once.
    """
    if key is None:
        raise click.UsageError("--key is missing: nothing is taken that does not authenticate.")
    link = parse_url(url)
    hosts = [parse_peer(host, _port(link.endpoint)) for host in (peers or "").split(",") if host.strip()]
    settings = TransportSettings(
        name="tail",
        node=NODE,
        cluster=CLUSTER,
        listen=link.endpoint,
        peers=tuple(hosts),
        options={"peers_only": True} if hosts else {},
    )
    policy = load_share(share)
    inbox = Inbox(make_codec(link.scheme, key, infrastructure=policy.infrastructure), policy, time.time)
    factory = load_transport(link.scheme)

    async def run() -> None:
        async with factory(settings, inbox.receive):
            await print_answers(inbox, count, print_json if as_json else _print_line)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


class Inbox:
    """Receives datagrams: answers wait here to be printed, refusals are counted by reason."""

    def __init__(self, codec: Codec, policy: SharePolicy, clock: Clock) -> None:
        self._codec = codec
        self._policy = policy
        self._clock = clock
        self._waiting: deque[Answer] = deque()
        self._arrived = asyncio.Event()
        self._stopped = False
        self.missed = 0
        """Answers given up because they were not printed fast enough."""
        self.refused: dict[Refusal, int] = {}

    def receive(self, data: bytes, sender: Sender) -> None:
        """Take one datagram; a `ports.Receive`."""
        answers, refusals = self._codec.decode_all(((data, sender),), self._clock())
        for reason in refusals:
            self._refuse(reason, sender)
        if not answers:
            return
        for answer in answers:
            refusal = self._policy.refuse(answer)
            if refusal is not None:
                self._refuse(refusal, sender)
                continue
            if len(self._waiting) >= MAX_WAITING:
                self._waiting.popleft()
                self.missed += 1
            self._waiting.append(answer)
        self._arrived.set()

    def stop(self) -> None:
        """Let `next` give None once everything that waits was given."""
        self._stopped = True
        self._arrived.set()

    async def next(self) -> Answer | None:
        """The oldest answer that waits; None at the end."""
        while not self._waiting:
            if self._stopped:
                return None
            self._arrived.clear()
            await self._arrived.wait()
        return self._waiting.popleft()

    def _refuse(self, refusal: Refusal, sender: Sender) -> None:
        if refusal not in self.refused:
            host = sender if isinstance(sender, str) else sender[0]
            click.echo(f"cachebus: refused a message from {host}: {refusal.value}", err=True)
        self.refused[refusal] = self.refused.get(refusal, 0) + 1


async def print_answers(inbox: Inbox, count: int | None, print_one: Callable[[dict[str, Any]], None]) -> None:
    """Print what arrives, `count` answers or until SIGINT or SIGTERM."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, inbox.stop)
    try:
        printed = 0
        while printed != count and (answer := await inbox.next()) is not None:
            print_one(shape(answer))
            printed += 1
            await asyncio.sleep(0)  # printing must not keep the socket from being read
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
    if inbox.missed:
        click.echo(f"cachebus: {inbox.missed} answers were not printed: they came faster than that", err=True)


def shape(answer: Answer) -> dict[str, Any]:
    """One answer as `--json` prints it; `ttl` counts from `learned`, in seconds since the epoch."""
    return {
        "origin": answer.origin,
        "name": answer.name,
        "type": answer.type,
        "ttl": answer.ttl,
        "evidence": answer.evidence.text,
        "records": answer_records(answer.rrsets),
        "learned": answer.learned,
    }


def _print_line(shaped: dict[str, Any]) -> None:
    records = " | ".join(shaped["records"])
    click.echo(f"{shaped['origin']}  {shaped['evidence']:<13}  {shaped['name']} {shaped['type']}  <-  {records}")


def _port(endpoint: str) -> int:
    return int(endpoint.rpartition(":")[2])
