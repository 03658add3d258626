"""`cachebus publish`: send the answers of a capture that the trust rules accept.

Decides the order of the steps: judge each frame at its own time, check again what can expire, re-stamp, compose, send.
Judging, the policy and composing are the filters' and the codec's matter.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import uvloop

from cachebus.answer import Answer, Evidence, Refusal
from cachebus.cli.bus import SharePolicy, link_options, load_share, open_plan
from cachebus.cli.common import json_option, print_json
from cachebus.cli.explain import LEVELS, Levels
from cachebus.cli.explain_rows import Row, direct_rows, dnstap_rows
from cachebus.client import Opening
from cachebus.errors import CachebusError, TransportError
from cachebus.filters.chain import assemble
from cachebus.filters.settings import JudgeSettings
from cachebus.links import make_collect
from cachebus.ports import Clock, Codec, Sender, Transport
from cachebus.sources.file import open_capture, recognise
from cachebus.urls import Role

BURST = 20
"""Messages sent at once: a tenth of what the smallest usual receive buffer (208 KiB) holds. Where answers share a
message, as many answers as one holds."""
PAUSE = 0.004
"""Seconds between bursts: 5,000 messages per second, a fraction of what any receiver takes."""
PATIENCE = 10.0
"""Seconds that a listening link waits for its first subscriber; what is sent before that reaches nobody."""


@click.command()
@click.argument("url")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--trust", type=Levels(), metavar="LEVELS",
              help="Levels that may be shared, with commas; a level includes the stronger ones. "
                   "[default: confirmed,validated]")  # fmt: skip
@click.option("--claims", type=click.Choice(LEVELS),
              help="What the DNS messages of a wire file may claim. [default: confirmed]")  # fmt: skip
@click.option("--share", metavar="CONFIG", type=click.Path(path_type=Path), help="Apply its share policy too.")
@link_options
@json_option
def publish(
    *,
    url: str,
    file: Path,
    trust: frozenset[Evidence] | None,
    claims: str | None,
    share: Path | None,
    as_json: bool,
    **link: Any,
) -> None:
    """Send the answers of the capture FILE to URL, as if they had been learned just now.

    \b
    udp://HOST:PORT, multicast://GROUP:PORT, mqtt://[USER@]HOST:PORT/CLUSTER, mqtts://
    zmq+tcp://HOST:PORT, zmq+ipc://PATH      connects to a hub; ?bind=1 waits for subscribers
    tcp://, tls://, quic:// HOST:PORT        connects; ?listen=1 waits for a subscriber

    FILE holds dnstap frames, C-DNS, or DNS messages each after its length as u32.
    """
    policy = load_share(share)
    opening = open_plan(url, Role.PUBLISH, infrastructure=policy.infrastructure, **link)
    defaults = JudgeSettings()
    settings = JudgeSettings(
        node=opening.node,
        trust=trust or defaults.trust,
        claims=Evidence[claims.upper()] if claims else defaults.claims,
        infrastructure=policy.infrastructure,
    )
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        run, failure = runner.run(_publish(opening, policy, rows(file, settings)))
    if as_json:
        print_json(run.shape())
    else:
        click.echo(run.text())
    if failure is not None:
        raise failure


async def _publish(
    opening: Opening, policy: SharePolicy, judged: Iterator[Row]
) -> tuple[Publication, CachebusError | None]:
    link = await opening.resolved()
    codec, transport = opening.make(link, lambda _: _ignore)
    collect = make_collect(link.section)
    waits = link.section.listen is not None and not link.section.peers
    run = Publication(codec, policy, time.time, size=BURST if collect is None else collect.count, waits=waits)
    return run, await run.publish(judged, transport)


def rows(file: Path, settings: JudgeSettings) -> Iterator[Row]:
    """The judged frames of a capture; those of a wire file carry no time of their own, and take the file's."""
    kind = recognise(file)
    frames = open_capture(file, kind)
    if kind.is_dnstap:
        return dnstap_rows(frames, settings)
    return direct_rows(frames, settings, recorded=file.stat().st_mtime)


@dataclass(slots=True)
class Publication:
    """One file on its way, and what became of it."""

    codec: Codec
    policy: SharePolicy
    clock: Clock
    size: int = BURST
    """Answers of a burst."""
    waits: bool = False
    """For a first subscriber: the link only listens."""
    sent: int = 0
    """Answers that left. Where some messages that hold several did not, the share of those that did."""
    refused: dict[Refusal, int] = field(default_factory=dict)
    _messages: int = 0

    async def publish(self, judged: Iterable[Row], transport: Transport) -> CachebusError | None:
        """Send what the rows accept, paced. Gives the file's error where one ended it early, or the link's."""
        failure: CachebusError | None = None
        async with transport:
            try:
                if self.waits:
                    await _subscriber(transport)
                self._send(transport, self.codec.hello(self.clock()))
                for burst in _bursts((answer for row in judged for answer in self._fresh_answers(row)), self.size):
                    messages, left_out = self.codec.encode(burst, self.clock())
                    self.sent += len(burst) - len(left_out)
                    for _, refusal in left_out:
                        self._refuse(refusal)
                    self._send(transport, *messages)
                    await asyncio.sleep(PAUSE)
                self._send(transport, self.codec.will())
            except CachebusError as error:
                failure = error
            await transport.flush()
            lost = max(0, self._messages - transport.statistics()["sent"])
        if lost:
            self.sent = self.sent * (self._messages - lost) // self._messages
        if failure is None and lost:
            failure = TransportError(f"{lost} messages could not be sent")
        return failure

    def shape(self) -> dict[str, Any]:
        """The object of `--json`."""
        return {"sent": self.sent, "refused": {reason.value: count for reason, count in self._often_first()}}

    def text(self) -> str:
        """The same in words."""
        lines = [f"sent {self.sent}, refused {sum(self.refused.values())}"]
        return "\n".join(lines + [f"{count:>8}  {reason.value}" for reason, count in self._often_first()])

    def _fresh_answers(self, row: Row) -> Iterator[Answer]:
        """The answers of one frame as learned now; refusals are counted."""
        if row.reason is not None:
            self._refuse(row.reason)
        for answer in row.answers.values():
            fresh = self._fresh(answer, self.clock())
            if isinstance(fresh, Refusal):
                self._refuse(fresh)
            else:
                yield fresh

    def _send(self, transport: Transport, *messages: bytes | None) -> None:
        for message in messages:
            if message is not None:
                self._messages += 1
                transport.send(message)

    def _fresh(self, answer: Answer, now: float) -> Answer | Refusal:
        """The answer as learned now: signatures may have expired since the capture, so the rules are asked again."""
        rrsets = assemble(
            answer.qname,
            answer.qtype,
            answer.rrsets,
            now,
            evidence=answer.evidence,
            infrastructure=self.policy.infrastructure,
            partial=True,
        )
        if isinstance(rrsets, Refusal):
            return rrsets
        fresh = answer._replace(rrsets=rrsets, learned=now)
        return self.policy.refuse(fresh) or fresh

    def _refuse(self, refusal: Refusal) -> None:
        self.refused[refusal] = self.refused.get(refusal, 0) + 1

    def _often_first(self) -> list[tuple[Refusal, int]]:
        return sorted(self.refused.items(), key=lambda item: (-item[1], item[0].value))


async def _subscriber(transport: Transport) -> None:
    """Wait for whoever is to get it, where others connect to us. Raises `TransportError` when nobody comes."""
    loop = asyncio.get_running_loop()
    end = loop.time() + PATIENCE
    while not transport.statistics().get("subscribers", 1):
        if loop.time() >= end:
            raise TransportError("nobody has subscribed")
        await asyncio.sleep(PAUSE)


def _bursts(answers: Iterable[Answer], size: int) -> Iterator[list[Answer]]:
    """Groups of `size`; what came before an error is given before it."""
    burst: list[Answer] = []
    failure: CachebusError | None = None
    try:
        for answer in answers:
            burst.append(answer)
            if len(burst) == size:
                yield burst
                burst = []
    except CachebusError as error:
        failure = error
    if burst:
        yield burst
    if failure is not None:
        raise failure


def _ignore(data: bytes, sender: Sender) -> None:
    """What the sending side does with what it receives: nothing comes."""
