"""Durations, sizes, addresses and evidence levels: from the text of a configuration to values, or a sentence.

Each parser takes the text and raises `ValueError` with what is wrong. Opens nothing and resolves no names.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    GetJsonSchemaHandler,
    PlainSerializer,
    PlainValidator,
    ValidationInfo,
    WithJsonSchema,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from cachebus.answer import Evidence
from cachebus.config.problems import shown, suggest
from cachebus.presentation import name_from_text, name_to_text

MAX_UNIX_PATH = 107
"""Bytes of a unix socket's path: sockaddr_un has 108 with the NUL (unix(7))."""
MAX_DURATION = 10 * 365 * 86400
"""Seconds: ten years; longer is a typing error."""

_LABEL = re.compile(r"[a-z0-9-]{1,63}")
_TYPE = re.compile(r"[a-z][a-z0-9+.-]{0,31}")
_DURATION = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,6})?)\s?(ms|s|m|h|d|w|)")
_SIZE = re.compile(r"([0-9]{1,18})\s?(B|kB|KB|MB|GB|KiB|MiB|GiB|)")
_PORT = re.compile(r"[0-9]{1,5}")
_ZONE = re.compile(r"[^\s/:%\[\]]{1,15}")
"""The name or number of an interface (IFNAMSIZ); `ipaddress` takes any text for one."""
_UNITS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_MULTIPLES = {
    "": 1, "B": 1, "kB": 1000, "KB": 1000, "MB": 1000**2, "GB": 1000**3, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A unix socket: `unix:PATH`."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


@dataclass(frozen=True, slots=True)
class SocketAddress:
    """An IP address and a port: `HOST:PORT`, IPv6 in brackets."""

    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """Only this machine can be at the other end."""
        return ipaddress.ip_address(self.host).is_loopback

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_duration(text: str) -> float:
    """Give the seconds of `30`, `0.5`, `500ms`, `10m`, `1d`."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{shown(text)} is not a duration such as 30, 10m or 1d")
    seconds = float(match[1]) * _UNITS[match[2]]
    if seconds > MAX_DURATION:
        raise ValueError(f"{shown(text)} is longer than ten years")
    return seconds


def parse_seconds(text: str) -> int:
    """Give the whole seconds of a duration; TTLs have no fractions."""
    seconds = parse_duration(text)
    if not seconds.is_integer():
        raise ValueError(f"{shown(text)} is not a whole number of seconds")
    return int(seconds)


def parse_size(text: str) -> int:
    """Give the bytes of `65536`, `64KiB`, `64MiB`, `1GB`."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{shown(text)} is not a size such as 65536 or 64MiB")
    return int(match[1]) * _MULTIPLES[match[2]]


def parse_address(text: str, *, default_port: int | None = None, any_port: bool = False) -> SocketAddress:
    """Give the address of `192.0.2.1:53` or `[2001:db8::1]:53`; without a port where `default_port` stands in.

    Port 0 (any free port) is accepted with `any_port` only, which is for listening.
    """
    text = text.strip()
    host, port_text = _split_port(text)
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        raise ValueError(f"{shown(text)} has no IP address; write 192.0.2.1:PORT or [2001:db8::1]:PORT") from None
    zone = address.scope_id if isinstance(address, ipaddress.IPv6Address) else None
    if zone is not None and _ZONE.fullmatch(zone) is None:
        raise ValueError(f"{shown(text)}: what stands behind % is no interface")
    if isinstance(address, ipaddress.IPv6Address) and port_text is not None and not text.startswith("["):
        raise ValueError(f"{shown(text)}: an IPv6 address with a port needs brackets, [2001:db8::1]:PORT")
    if port_text is None:
        if default_port is None:
            raise ValueError(f"{shown(text)} has no port")
        return SocketAddress(host, default_port)
    if _PORT.fullmatch(port_text) is None or not (0 if any_port else 1) <= int(port_text) <= 65535:
        raise ValueError(f"{shown(text)}: the port is not a number from {0 if any_port else 1} to 65535")
    return SocketAddress(host, int(port_text))


def _split_port(text: str) -> tuple[str, str | None]:
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        return host, rest[1:] if rest.startswith(":") else ("" if rest else None)
    if text.count(":") > 1:
        return text, None
    host, colon, port_text = text.partition(":")
    return host, port_text if colon else None


def parse_endpoint(text: str) -> UnixAddress | SocketAddress:
    """Give the address of `unix:/absolute/path`, `tcp:HOST:PORT` or `HOST:PORT`."""
    text = text.strip()
    if text.startswith(("unix:", "/")):
        return UnixAddress(parse_unix_path(text.removeprefix("unix:")))
    return parse_address(text.removeprefix("tcp://").removeprefix("tcp:"), any_port=True)


def parse_unix_path(text: str) -> str:
    """Check the path of a unix socket: absolute, and short enough for the kernel."""
    path = text.strip().removeprefix("unix:")
    if not PurePosixPath(path).is_absolute():
        raise ValueError(f"{shown(text)} is not an absolute path")
    if len(path.encode()) > MAX_UNIX_PATH:
        raise ValueError(f"{shown(text)} is longer than the {MAX_UNIX_PATH} bytes a unix socket's path can have")
    return path


def parse_label(text: str) -> str:
    """Check a node's or cluster's name."""
    if _LABEL.fullmatch(text) is None:
        raise ValueError(f"{shown(text)} must be 1 to 63 of a-z, 0-9 and -")
    return text


def parse_type(text: str) -> str:
    """Check the form of a transport's type; whether it is installed is for the registry to say."""
    if _TYPE.fullmatch(text) is None:
        raise ValueError(f"{shown(text)} is not the type of a transport")
    return text


def parse_name(text: str) -> bytes:
    """Give a domain name in lower-case uncompressed wire form."""
    try:
        return name_from_text(text)
    except ValueError as error:
        raise ValueError(f"not a domain name: {error}") from None


def parse_level(text: str) -> Evidence:
    """Give the evidence level of its word."""
    for level in Evidence:
        if text.lower() == level.text:
            return level
    words = [level.text for level in Evidence]
    raise ValueError(f"{shown(text)} is not one of {', '.join(words)}{suggest(text, words)}")


def parse_network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    """Give the network of `192.0.2.0/24`, `2001:db8::/32` or one address."""
    try:
        return ipaddress.ip_network(text.strip())
    except ValueError:
        raise ValueError(f"{shown(text)} is not an address or network such as 192.0.2.0/24") from None


def _text_first(parser: Callable[[str], Any], *already: type) -> Callable[[object], Any]:
    def validate(value: object) -> Any:
        if isinstance(value, already):
            return value
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError(f"wants text, not {kind_of(value)}")  # noqa: TRY004  (pydantic takes ValueError only)
        return parser(str(value))

    return validate


def _from_text(parser: Callable[[str], Any], *already: type) -> PlainValidator:
    return PlainValidator(_text_first(parser, *already))


def _number(parser: Callable[[str], Any]) -> BeforeValidator:
    # Not plain: only before a number's own validator do `ge` and `le` of a field hold.
    return BeforeValidator(_text_first(parser))


def _file(value: object, info: ValidationInfo) -> Path:
    if not isinstance(value, str | Path) or not str(value):
        raise ValueError(f"wants the path of a file, not {kind_of(value)}")
    context = info.context
    return (context["directory"] if isinstance(context, dict) else Path()) / value


def _public_key(text: str, info: ValidationInfo) -> str:
    return f"file:{_file(text.removeprefix('file:'), info)}" if text.startswith("file:") else text


def kind_of(value: object) -> str:
    """Say what a value is, in YAML's words."""
    match value:
        case None:
            return "nothing"
        case dict():
            return "a mapping"
        case list() | tuple():
            return "a list"
        case _:
            return "a single value"


def as_list(value: object) -> object:
    """Let a single value stand for a list of it."""
    return value if isinstance(value, list | tuple) or value is None else [value]


class OrText:
    """Marks a type that may also be written as a single text, so that the JSON schema says so."""

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"anyOf": [{"type": "string"}, handler(schema)]}


def _schema(description: str, **more: object) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "title": description, **more})


_TEXT = PlainSerializer(str, return_type=str)
_NUMBER_OR_TEXT = {"type": ["string", "number"]}

Duration = Annotated[float, _number(parse_duration), _schema("duration: 30, 500ms, 10m, 1d", **_NUMBER_OR_TEXT)]
Seconds = Annotated[int, _number(parse_seconds), _schema("duration in whole seconds: 30, 10m, 1d", **_NUMBER_OR_TEXT)]
Size = Annotated[int, _number(parse_size), _schema("size: 65536, 64KiB, 64MiB", **_NUMBER_OR_TEXT)]
Label = Annotated[str, _from_text(parse_label), _schema("name", pattern="^[a-z0-9-]{1,63}$")]
TypeName = Annotated[str, _from_text(parse_type), _schema("type", pattern="^[a-z][a-z0-9+.-]{0,31}$")]
Address = Annotated[SocketAddress, _from_text(parse_address, SocketAddress), _TEXT, _schema("ADDRESS:PORT")]
ListenAddress = Annotated[
    SocketAddress,
    _from_text(lambda text: parse_address(text, any_port=True), SocketAddress),
    _TEXT,
    _schema("ADDRESS:PORT to listen on"),
]
Endpoint = Annotated[
    UnixAddress | SocketAddress,
    _from_text(parse_endpoint, UnixAddress, SocketAddress),
    _TEXT,
    _schema("unix:PATH or ADDRESS:PORT"),
]
UnixPath = Annotated[str, _from_text(parse_unix_path), _schema("absolute path of a unix socket")]
Name = Annotated[
    bytes, _from_text(parse_name, bytes), PlainSerializer(name_to_text, return_type=str), _schema("domain name")
]
Level = Annotated[
    Evidence,
    _from_text(parse_level, Evidence),
    PlainSerializer(lambda level: level.text, return_type=str),
    WithJsonSchema({"type": "string", "enum": [level.text for level in Evidence]}),
]
Levels = Annotated[tuple[Level, ...], BeforeValidator(as_list), Field(min_length=1)]
File = Annotated[
    Path, PlainValidator(_file), PlainSerializer(str, return_type=str), _schema("file; relative to the configuration's")
]
PublicKey = Annotated[str, AfterValidator(_public_key)]
"""A public key, or `file:PATH` of one; relative to the configuration's directory."""
Network = Annotated[
    ipaddress.IPv4Network | ipaddress.IPv6Network,
    _from_text(parse_network, ipaddress.IPv4Network, ipaddress.IPv6Network),
    _TEXT,
    _schema("address or network"),
]
