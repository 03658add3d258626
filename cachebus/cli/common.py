"""What the verbs share: `--json`, `--key`, `--socket`, and how values are printed. Decides nothing about DNS."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cachebus.errors import ConfigError

if TYPE_CHECKING:
    from cachebus.config.keyfile import KeyMaterial

DEFAULT_SOCKET = "/run/cachebus/api.sock"
"""Where a node's admin socket is looked for when neither `--socket` nor `-c` says."""

Command = TypeVar("Command", bound=Callable[..., Any])


def parse_key(text: str) -> KeyMaterial:
    """Give (name as lower-case wire bytes, algorithm, secret) of `NAME:ALG:BASE64`, `file:PATH` or `env:VAR`.

    Raises `ConfigError`, whose text never holds the secret. The result's repr hides the secret too.
    """
    from cachebus.config.keyfile import resolve_key  # a verb that needs no key must not pay for pydantic

    return resolve_key(text)


class KeyParameter(click.ParamType[Any]):
    """click parameter type of `--key`: the value becomes what `parse_key` gives."""

    name = "key"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Turn the option's text into key material; a usage error that never repeats the text when it is wrong."""
        if not isinstance(value, str):
            return value
        try:
            return parse_key(value)
        except ConfigError as error:
            self.fail(str(error), param, ctx)


def json_option(command: Command) -> Command:
    """Add `--json` (parameter `as_json`) to a verb."""
    return click.option("--json", "as_json", is_flag=True, help="JSON instead of text.")(command)


def key_option(command: Command) -> Command:
    """Add `--key` (parameter `key`: None or `KeyMaterial`) to a verb."""
    return click.option(
        "--key",
        type=KeyParameter(),
        metavar="KEY",
        help="NAME:ALG:BASE64, file:PATH of a key file, or env:VAR that holds one.",
    )(command)


def socket_options(command: Command) -> Command:
    """Add `--socket` and `-c` to a verb that talks to a running node; see `socket_path`."""
    text = f"Admin socket of the node; without it that of -c, or {DEFAULT_SOCKET}."
    command = click.option("--socket", metavar="PATH", help=text)(command)
    return config_option(required=False, help="Configuration that names the admin socket.")(command)


def config_option(*, required: bool, help: str) -> Callable[[Command], Command]:  # noqa: A002  (click's own word)
    """Give a decorator that adds `-c FILE` (parameter `config`: a `Path`, or None) to a verb."""
    return click.option(
        "-c", "--config", metavar="FILE", required=required, type=click.Path(dir_okay=False, path_type=Path), help=help
    )


def socket_path(socket: str | None, config: Path | None) -> str:
    """Decide which admin socket to talk to. Raises `ConfigError` when `config` is unreadable or names none."""
    if socket is not None:
        return socket
    if config is None:
        return DEFAULT_SOCKET
    from cachebus.config import admin_socket  # as above: only when it is needed

    return admin_socket(config)


def print_json(value: Mapping[str, Any]) -> None:
    """Print one JSON object on one line."""
    click.echo(json.dumps(value, ensure_ascii=True, separators=(", ", ": "), allow_nan=False))
