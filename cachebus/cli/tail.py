"""`cachebus tail`: subscribe to a transport and print each answer; the shortest custom tool.

Decides what is printed. Authenticity and form are the codec's matter; the share policy is asked only with `--share`.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import uvloop

from cachebus.answer import Answer, Refusal
from cachebus.cli.bus import SharePolicy, link_options, load_share, open_plan
from cachebus.cli.common import json_option, print_json
from cachebus.cli.present import answer_records
from cachebus.client import Bus
from cachebus.ports import Sender
from cachebus.urls import Role

MAX_WAITING = 10_000
"""Answers waiting to be printed; a slow terminal loses the oldest, and is told how many."""


@click.command()
@click.argument("url")
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="End after N answers.")
@click.option("--share", metavar="CONFIG", type=click.Path(path_type=Path), help="Apply its share policy too.")
@link_options
@json_option
def tail(*, url: str, count: int | None, share: Path | None, as_json: bool, **link: Any) -> None:
    """Print a line for each answer at URL that authenticates and is well-formed.

    \b
    udp://HOST:PORT         listens there; a node has to have it among its peers
    multicast://GROUP:PORT  ?interface=&source=&hops=
    mqtt://[USER@]HOST:PORT/CLUSTER, mqtts://
    zmq+tcp://HOST:PORT, zmq+ipc://PATH      connects; ?bind=1 binds
    tcp://, tls://, quic:// HOST:PORT        connects and subscribes; ?listen=1 listens

    tcp:// without certificates is cleartext, between loopback addresses only. What does not authenticate is named on
    standard error, each reason once.
    """
    policy = load_share(share)
    bus = Bus(open_plan(url, Role.SUBSCRIBE, infrastructure=policy.infrastructure, **link), waiting=MAX_WAITING)
    printer = Printer(bus, policy, count, print_json if as_json else _print_line)

    async def run() -> None:
        async with bus:
            await printer.run()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


class Printer:
    """Prints what arrives on a bus, `count` answers or until SIGINT or SIGTERM."""

    def __init__(
        self, bus: Bus, policy: SharePolicy, count: int | None, print_one: Callable[[dict[str, Any]], None]
    ) -> None:
        """Prints nothing before `run`."""
        self._bus = bus
        self._policy = policy
        self._count = count
        self._print_one = print_one
        self._told: set[Refusal] = set()
        bus.on_refusal = self._refuse

    async def run(self) -> None:
        """Print; what is missing is told at the end."""
        answers = self._bus.subscribe()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, answers.end)
        try:
            printed = 0
            async for answer in answers:
                refusal = self._policy.refuse(answer)
                if refusal is not None:
                    self._refuse(refusal, answer.origin)
                    continue
                self._print_one(shape(answer))
                printed += 1
                if printed == self._count:
                    break
                await asyncio.sleep(0)  # printing must not keep the socket from being read
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)
        if answers.missed:
            click.echo(f"cachebus: {answers.missed} answers were not printed: they came faster than that", err=True)
        if self._bus.gaps:
            click.echo(f"cachebus: {self._bus.gaps} messages never came, by their sequence numbers", err=True)

    def _refuse(self, refusal: Refusal, sender: Sender) -> None:
        if refusal not in self._told:
            self._told.add(refusal)
            host = sender if isinstance(sender, str) else sender[0]
            click.echo(f"cachebus: refused a message from {host}: {refusal.value}", err=True)


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
