"""`cachebus explain`: run the trust rules over a capture and say of each message what became of it, and why.

Reads files and prints; every judgement is the filters' and the codec's. Nothing is sent anywhere.
"""

from __future__ import annotations

import ast
import inspect
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cachebus.answer import Evidence, Refusal
from cachebus.cli.common import json_option, key_option, print_json
from cachebus.cli.explain_rows import Row, Totals, bus_rows, direct_rows, dnstap_rows, read_wire_file
from cachebus.errors import PeerError
from cachebus.filters.settings import JudgeSettings, Pairing, ResolverFrames
from cachebus.sources.file import Format, open_capture, recognise

if TYPE_CHECKING:
    from cachebus.config.keyfile import KeyMaterial

LEVELS = tuple(level.text for level in Evidence)


class Levels(click.ParamType[Any]):
    """click parameter type: one or more levels of evidence, separated by commas."""

    name = "levels"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> frozenset[Evidence]:
        """Turn the option's text into levels."""
        if not isinstance(value, str):
            return frozenset(value)
        words = value.replace(",", " ").replace("[", " ").replace("]", " ").split()
        unknown = [word for word in words if word not in LEVELS]
        if unknown or not words:
            self.fail(f"{value!r} is not one or more of {', '.join(LEVELS)}", param, ctx)
        return frozenset(Evidence[word.upper()] for word in words)


@click.command()
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option("--trust", type=Levels(), metavar="LEVELS",
              help="Levels that may be shared, with commas; a level includes the stronger ones. "
                   "[default: confirmed,validated; with --wire all]")  # fmt: skip
@click.option("--claims", type=click.Choice(LEVELS), default=None,
              help="What the DNS messages of a wire file may claim. [default: confirmed]")  # fmt: skip
@click.option("--format", "kind", type=click.Choice([kind.value for kind in Format]), help="Else by content.")
@click.option("--pairing", type=click.Choice([choice.value for choice in Pairing]), default=Pairing.REQUIRE.value,
              show_default=True, help="Whether a response counts only with its query.")  # fmt: skip
@click.option("--resolver-frames", type=click.Choice([choice.value for choice in ResolverFrames]),
              default=ResolverFrames.NORMAL.value, show_default=True,
              help="`none` for resolvers that log no RESOLVER_ messages.")  # fmt: skip
@click.option("--share", metavar="CONFIG", type=click.Path(path_type=Path), help="Apply its share policy too.")
@click.option("--wire", is_flag=True, help="FILE holds bus messages: length-prefixed, or one in hex on each line.")
@key_option
@click.option("--now", type=float, metavar="UNIXTIME",
              help="When the messages are received; dnstap frames carry their own times. "
                   "[default: with --wire now, else when FILE was last changed]")  # fmt: skip
@click.option("--reasons", is_flag=True, help="List every reason for a refusal.")
@json_option
def explain(
    *,
    file: Path | None,
    trust: frozenset[Evidence] | None,
    claims: str | None,
    kind: str | None,
    pairing: str,
    resolver_frames: str,
    share: Path | None,
    wire: bool,
    key: KeyMaterial | None,
    now: float | None,
    reasons: bool,
    as_json: bool,
) -> None:
    """Run the trust rules over the capture FILE: a verdict and its reason for each message, then totals.

    FILE holds dnstap frames, or DNS messages each after its length; with --wire, signed bus messages.
    """
    if reasons:
        print_reasons(as_json=as_json)
        if file is None:
            return
    if file is None:
        raise click.UsageError("FILE is missing.")
    settings = JudgeSettings(
        trust=trust or JudgeSettings().trust,
        claims=Evidence[claims.upper()] if claims else JudgeSettings().claims,
        pairing=Pairing(pairing),
        resolver_frames=ResolverFrames(resolver_frames),
    )
    if wire:
        if key is None:
            raise click.UsageError("--wire needs --key.")
        lowest = min(trust or Evidence)
        levels = frozenset(level for level in Evidence if level >= lowest)
        rows = bus_rows(read_wire_file(file), key, now=time.time() if now is None else now, levels=levels)
    elif key is not None:
        raise click.UsageError("--key goes with --wire.")
    else:
        rows = _capture_rows(file, None if kind is None else Format(kind), settings, now)
    print_rows(_shared(rows, share), as_json=as_json)


def _capture_rows(file: Path, kind: Format | None, settings: JudgeSettings, now: float | None) -> Iterator[Row]:
    kind = kind or recognise(file)
    frames = open_capture(file, kind)
    if kind.is_dnstap:
        return dnstap_rows(frames, settings)
    return direct_rows(frames, settings, recorded=file.stat().st_mtime if now is None else now)


def _shared(rows: Iterator[Row], share: Path | None) -> Iterator[Row]:
    if share is None:
        return rows
    from cachebus.cli.explain_rows import apply_policy  # the configuration's models take a while to import

    return apply_policy(rows, share)


def print_rows(rows: Iterable[Row], *, as_json: bool) -> None:
    """Print a line for each row, then the totals. An error in the middle of a file comes after what was before it."""
    totals = Totals()
    try:
        for row in rows:
            totals.add(row)
            if as_json:
                print_json(row.to_json())
            else:
                click.echo(row.to_text())
    except PeerError:
        _print_totals(totals, as_json=as_json)
        raise
    _print_totals(totals, as_json=as_json)


def _print_totals(totals: Totals, *, as_json: bool) -> None:
    if as_json:
        print_json({"totals": totals.to_json()})
    else:
        click.echo(totals.to_text())


def reason_meanings() -> dict[Refusal, str]:
    """What each reason means: the text below it in the source of `Refusal`, or the reason's own words."""
    meanings = {}
    tree = ast.parse(inspect.getsource(Refusal))
    definition = tree.body[0]
    assert isinstance(definition, ast.ClassDef)
    for statement, following in zip(definition.body, [*definition.body[1:], None], strict=True):
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            if statement.targets[0].id not in Refusal.__members__:
                continue
            reason = Refusal[statement.targets[0].id]
            text = reason.value.replace("-", " ").capitalize() + "."
            if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
                text = " ".join(str(following.value.value).split())
            meanings[reason] = text
    return meanings


def print_reasons(*, as_json: bool) -> None:
    """Print every reason with its meaning."""
    meanings = reason_meanings()
    width = max(len(reason.value) for reason in meanings)
    for reason, meaning in meanings.items():
        if as_json:
            print_json({"reason": reason.value, "meaning": meaning})
        else:
            click.echo(f"{reason.value:<{width}}  {meaning}")
