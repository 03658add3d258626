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
from typing import TYPE_CHECKING, Any

import click
import uvloop

from cachebus.answer import Answer, Evidence, Refusal
from cachebus.cli.bus import CLUSTER, NODE, SharePolicy, load_share, make_codec, parse_url
from cachebus.cli.common import json_option, key_option, print_json
from cachebus.cli.explain import LEVELS, Levels
from cachebus.cli.explain_rows import Row, direct_rows, dnstap_rows
from cachebus.errors import CachebusError, TransportError
from cachebus.filters.chain import assemble
from cachebus.filters.settings import JudgeSettings
from cachebus.ports import Clock, Codec, Sender, Transport, TransportSettings
from cachebus.registry import load_transport
from cachebus.sources.file import Format, open_capture, recognise

if TYPE_CHECKING:
    from cachebus.config.keyfile import KeyMaterial

BURST = 20
"""Messages sent at once: a tenth of what the smallest usual receive buffer (208 KiB) holds."""
PAUSE = 0.004
"""Seconds between bursts: 5,000 messages per second, a fraction of what any receiver takes."""


@click.command()
@click.argument("url")
@click.argument("file", type=click.Path(path_type=Path))
@key_option
@click.option("--trust", type=Levels(), metavar="LEVELS",
              help="Levels that may be shared, with commas; a level includes the stronger ones. "
                   "[default: confirmed,validated]")  # fmt: skip
@click.option("--claims", type=click.Choice(LEVELS),
              help="What the DNS messages of a wire file may claim. [default: confirmed]")  # fmt: skip
@click.option("--share", metavar="CONFIG", type=click.Path(path_type=Path), help="Apply its share policy too.")
@json_option
def publish(
    *,
    url: str,
    file: Path,
    key: KeyMaterial | None,
    trust: frozenset[Evidence] | None,
    claims: str | None,
    share: Path | None,
    as_json: bool,
) -> None:
    """Send the answers of the capture FILE to URL (udp://HOST:PORT), as if they had been learned just now.

    FILE holds dnstap frames, or DNS messages each after its length as u32.
    """
    if key is None:
        raise click.UsageError("--key is missing: nothing is sent that is not signed.")
    link = parse_url(url)
    policy = load_share(share)
    defaults = JudgeSettings()
    settings = JudgeSettings(
        node=NODE,
        trust=trust or defaults.trust,
        claims=Evidence[claims.upper()] if claims else defaults.claims,
        infrastructure=policy.infrastructure,
    )
    transport = load_transport(link.scheme)(
        TransportSettings(name="publish", node=NODE, cluster=CLUSTER, peers=(link.endpoint,)), _ignore
    )
    run = Publication(make_codec(link.scheme, key, infrastructure=policy.infrastructure), policy, time.time)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        failure = runner.run(run.publish(rows(file, settings), transport))
    if as_json:
        print_json(run.shape())
    else:
        click.echo(run.text())
    if failure is not None:
        raise failure


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
    sent: int = 0
    refused: dict[Refusal, int] = field(default_factory=dict)

    async def publish(self, judged: Iterable[Row], transport: Transport) -> CachebusError | None:
        """Send what the rows accept, paced. Gives the file's error where one ended it early, or the link's."""
        failure: CachebusError | None = None
        composed = 0
        async with transport:
            try:
                for burst in _bursts(message for row in judged for message in self._messages(row)):
                    for message in burst:
                        transport.send(message)
                    composed += len(burst)
                    await asyncio.sleep(PAUSE)
            except CachebusError as error:
                failure = error
            await transport.flush()
            self.sent = transport.statistics()["sent"]
        if failure is None and self.sent < composed:
            failure = TransportError(f"{composed - self.sent} messages could not be sent")
        return failure

    def shape(self) -> dict[str, Any]:
        """The object of `--json`."""
        return {"sent": self.sent, "refused": {reason.value: count for reason, count in self._often_first()}}

    def text(self) -> str:
        """The same in words."""
        lines = [f"sent {self.sent}, refused {sum(self.refused.values())}"]
        return "\n".join(lines + [f"{count:>8}  {reason.value}" for reason, count in self._often_first()])

    def _messages(self, row: Row) -> list[bytes]:
        """The messages of one frame; refusals are counted."""
        if row.reason is not None:
            self._refuse(row.reason)
        messages: list[bytes] = []
        for answer in row.answers.values():
            now = self.clock()
            fresh = self._fresh(answer, now)
            if isinstance(fresh, Refusal):
                self._refuse(fresh)
                continue
            composed, left_out = self.codec.encode([fresh], now)
            messages += composed
            for _, refusal in left_out:
                self._refuse(refusal)
        return messages

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


def _bursts(messages: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Groups of `BURST`; what came before an error is given before it."""
    burst: list[bytes] = []
    failure: CachebusError | None = None
    try:
        for message in messages:
            burst.append(message)
            if len(burst) == BURST:
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
