"""From a file to a `Config`, or to every problem in it with its line and column.

Turns pydantic's errors into sentences an operator can act on. Knows the keys by the models only.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from cachebus.config.checks import NOT_YET, Checker
from cachebus.config.document import MAX_FILE, Document, natural, parse, text_value
from cachebus.config.keyfile import reason
from cachebus.config.models import Config
from cachebus.config.problems import ConfigErrors, Place, Problem, suggest
from cachebus.config.transports import OPTIONS, Transport
from cachebus.config.values import parse_unix_path
from cachebus.errors import CachebusError, ConfigError

LATER: Mapping[str, frozenset[str]] = {
    "": frozenset({"hints"}),
    "shim": frozenset({"hints", "swild", "local_data", "block_lists"}),
    "shim.upstreams": frozenset({"url"}),
    "share": frozenset({"site"}),
}
"""Keys that the contract names and this version does not have yet, by section (names and indexes left out)."""

_OF_KEY = re.compile(r"([a-z_]+(?:\.[a-z0-9_-]+)*): (.+)", re.ASCII | re.DOTALL)
"""How a transport's error names the key of its section that it is about."""
Try = Callable[[Config, str], object]
"""Makes the transport of a name, which opens nothing, and so lets it check its keys. Raises `CachebusError`."""

_TAGGED = ("sources", "sinks")
"""Sections whose entries pydantic tells apart by `type`; its error locations then carry the type after the name."""


def load(
    path: str | Path,
    *,
    transport_types: Collection[str] | None = None,
    try_transport: Try | None = None,
    environment: Mapping[str, str] | None = None,
) -> Config:
    """Read and check a configuration file, its key files included.

    `transport_types` are those installed, and `try_transport` asks each of them what it makes of its section; None
    leaves that to whoever makes the transports. `environment` stands in for the process's own. Raises `ConfigErrors`, a
    `ConfigError` that has every problem with its place.
    """
    path = Path(path)
    text, mode = _read(path)
    given = os.environ if environment is None else environment
    return _load(text, str(path), path.parent, mode, transport_types, given, try_transport)


def loads(
    text: str,
    *,
    file: str = "<config>",
    directory: Path | None = None,
    transport_types: Collection[str] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Config:
    """Check a configuration given as text, as `load` does. Relative paths start at `directory`."""
    if len(text) > MAX_FILE:
        raise ConfigErrors([_file_problem(file, f"longer than {MAX_FILE} bytes")])
    given = os.environ if environment is None else environment
    return _load(text, file, directory or Path(), None, transport_types, given)


def admin_socket(path: str | Path) -> str:
    """Give only `admin.socket` of a configuration file: no key file need be readable. Raises `ConfigError`."""
    document, _ = parse(_read(Path(path))[0], str(path))
    node = document.at("admin", "socket")
    if node is None or not isinstance(node.value, str):
        raise ConfigError(f"{path}: no `admin.socket`; give --socket")
    try:
        return parse_unix_path(node.value)
    except ValueError as error:
        problem = document.problem(("admin", "socket"), str(error))
    raise ConfigErrors([problem])


def _file_problem(file: str, message: str) -> Problem:
    return Problem(file, 1, 1, "", message)


def _read(path: Path) -> tuple[str, int]:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            raw = file.read(MAX_FILE + 1) if stat.S_ISREG(mode) else None
    except (OSError, ValueError) as error:
        raise ConfigErrors([_file_problem(str(path), reason(error))]) from None
    if raw is None:
        raise ConfigErrors([_file_problem(str(path), "is not a regular file")])
    if len(raw) > MAX_FILE:
        raise ConfigErrors([_file_problem(str(path), f"longer than {MAX_FILE} bytes")])
    try:
        return raw.decode("utf-8-sig"), mode
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        column = len(raw[raw.rfind(b"\n", 0, error.start) + 1 : error.start].decode("utf-8", "replace")) + 1
        problem = Problem(str(path), line, column, "", "not UTF-8")
    raise ConfigErrors([problem])  # out here: the decoder's exception holds the file, secrets included


def _load(
    text: str,
    file: str,
    directory: Path,
    mode: int | None,
    transport_types: Collection[str] | None,
    environment: Mapping[str, str],
    try_transport: Try | None = None,
) -> Config:
    document, problems = parse(text, file)
    value = document.value()
    assert isinstance(value, dict)
    _drop_empty_sections(value)
    config = _validate(value, document, problems, directory)
    if config is None or problems:
        raise ConfigErrors(problems)
    warnings: list[Problem] = []
    Checker(
        config,
        report=lambda place, message: problems.append(document.problem(place, message, at_key=_at_key(place))),
        warn=lambda place, message: warnings.append(document.problem(place, message)),
        directory=directory,
        environment=environment,
        transport_types=transport_types,
    ).run(mode)
    if try_transport is not None and not problems:
        problems += _try_transports(config, document, try_transport)
    if problems:
        raise ConfigErrors(problems)
    config._warnings = tuple(warnings)  # the model is frozen; filled here, once
    return config


def _try_transports(config: Config, document: Document, try_transport: Try) -> Iterator[Problem]:
    for name in config.transports:
        place: Place = ("transports", name)
        try:
            try_transport(config, name)
        except CachebusError as error:
            named = _OF_KEY.fullmatch(str(error))
            if named is not None and document.at(*place, *named[1].split(".")) is not None:
                yield document.problem((*place, *named[1].split(".")), named[2])
            else:
                yield document.problem(place, str(error), at_key=True)


def _at_key(place: Place) -> bool:
    # What is wrong with a named part as a whole is shown at its name, not at the first thing in it.
    return len(place) == 2 and place[0] in ("keys", "sources", "transports", "sinks")


def _drop_empty_sections(value: dict[str, object]) -> None:
    # `keys:` above nothing but comments is how a starter file looks.
    for name in Config.model_fields:
        if name in value and value[name] is None:
            del value[name]


def _validate(value: dict[str, object], document: Document, problems: list[Problem], directory: Path) -> Config | None:
    config = None
    try:
        config = Config.model_validate(value, context={"directory": directory})
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
    else:
        found = []
    problems += [_explain(details, document) for details in found]
    options = _transport_options(document, problems, directory)
    if config is not None:
        for name, transport in config.transports.items():
            transport._options = options.get(name, {})  # as above
    return config


def _transport_options(document: Document, problems: list[Problem], directory: Path) -> dict[str, Mapping[str, object]]:
    """Take the keys that belong to a transport's type: checked for those of this project, as written for others."""
    given: dict[str, Mapping[str, object]] = {}
    transports = document.at("transports")
    if transports is None or not isinstance(transports.value, dict):
        return given
    for name, transport in transports.value.items():
        if not isinstance(transport.value, dict):
            continue
        extras = {key: node for key, node in transport.value.items() if key not in Transport.model_fields}
        kind = document.at("transports", name, "type")
        model = None if kind is None else OPTIONS.get(str(kind.value))
        if model is None:
            given[name] = {key: natural(node) for key, node in extras.items()}
            continue
        plain = {key: text_value(node) for key, node in extras.items()}
        try:
            given[name] = model.model_validate(plain, context={"directory": directory}).model_dump(
                exclude_none=True, exclude_unset=True
            )
        except ValidationError as error:
            found = error.errors(include_url=False, include_input=False)
        else:
            continue
        problems += [_explain(ErrorDetails({**x, "loc": ("transports", name, *x["loc"])}), document) for x in found]
    return given


def _explain(details: ErrorDetails, document: Document) -> Problem:
    location = details["loc"]
    if location and location[-1] == "[key]":
        return document.problem(location[:-1], _sentence(details), at_key=True)
    place = location[:2] + location[3:] if location and location[0] in _TAGGED else location
    kind = details["type"]
    if kind == "missing":
        return document.problem(place, "is required")
    if kind == "extra_forbidden":
        return document.problem(place, _unknown_key(location, place, document), at_key=True)
    if kind == "union_tag_not_found":
        return document.problem((*place, "type"), "is required")
    if kind == "union_tag_invalid":
        context = details.get("ctx", {})
        words = [word.strip(" '") for word in str(context.get("expected_tags", "")).split(",")]
        hint = suggest(str(context.get("tag", "")), words)
        return document.problem((*place, "type"), f"is not one of {', '.join(words)}{hint}")
    if kind in ("enum", "literal_error"):
        return document.problem(place, _not_one_of(details, document, place))
    return document.problem(place, _sentence(details))


def _not_one_of(details: ErrorDetails, document: Document, place: Place) -> str:
    words = str(details.get("ctx", {}).get("expected", "")).replace("'", "").replace(" or ", ", ").split(", ")
    node = document.at(*place)
    value = node.value if node is not None and isinstance(node.value, str) else ""
    choice = words[0] if len(words) == 1 else f"one of {', '.join(words)}"
    return f"is not {choice}{suggest(value, words)}"


def _unknown_key(location: Place, place: Place, document: Document) -> str:
    key = str(place[-1])
    section = ".".join(str(step) for step in place[:-1] if isinstance(step, str))
    if place[0] in ("transports", "sources", "sinks", "keys") and len(place) == 3:
        section = str(place[0])
    if key in LATER.get(section, ()):
        return NOT_YET
    known = set(_model_at(location[:-1], document).model_fields)
    if section == "transports":
        kind = document.at(*place[:2], "type")
        known |= set(OPTIONS[str(kind.value)].model_fields) if kind is not None and kind.value in OPTIONS else set()
    return f"unknown key{suggest(key, sorted(known))}"


def _model_at(location: Place, document: Document) -> type[BaseModel]:
    """Find the model that pydantic was filling at a location of an error."""
    annotation: Any = Config
    kind = document.at(*location[:2], "type") if location[:1] == ("transports",) and len(location) > 2 else None
    if kind is not None and location[2] not in Transport.model_fields:
        annotation, location = OPTIONS[str(kind.value)], location[2:]  # a key of the transport's type
    for step in location:
        annotation = _below(annotation, step)
    model: type[BaseModel]
    (model,) = _choices(annotation)
    return model


def _below(annotation: Any, step: str | int) -> Any:
    choices = _choices(annotation)
    if len(choices) > 1:  # told apart by `type`, which pydantic puts into the location
        return next(choice for choice in choices if choice.model_fields["type"].annotation == Literal[step])
    (only,) = choices
    if isinstance(only, type) and issubclass(only, BaseModel):
        return only.model_fields[str(step)].annotation
    arguments = get_args(only)  # of Mapping[str, X] or tuple[X, ...]
    return arguments[1] if isinstance(step, str) else arguments[0]


def _choices(annotation: Any) -> list[Any]:
    """Give what a type stands for without Annotated and None: one type, or the members of a union."""
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (Union, UnionType):
        return [choice for choice in get_args(annotation) if choice is not type(None)]
    return [annotation]


def _sentence(details: ErrorDetails) -> str:
    context = details.get("ctx", {})
    match details["type"]:
        case "value_error":
            return str(context.get("error", "wrong value"))
        case "string_type" | "string_sub_type" | "string_unicode":
            return "wants text"
        case "int_parsing" | "int_type" | "int_from_float" | "int_parsing_size":
            return "wants a whole number"
        case "float_parsing" | "float_type" | "finite_number":
            return "wants a number"
        case "bool_parsing" | "bool_type":
            return "wants true or false"
        case "dict_type" | "mapping_type" | "model_type" | "model_attributes_type":
            return "wants a mapping (`key: value`)"
        case "tuple_type" | "list_type":
            return "wants a list"
        case "greater_than_equal":
            return f"is below {_number(context.get('ge'))}"
        case "less_than_equal":
            return f"is above {_number(context.get('le'))}"
        case "greater_than":
            return f"is not above {_number(context.get('gt'))}"
        case "too_long":
            return f"has more than {context.get('max_length')} entries"
        case "too_short":
            return "is empty"
        case "string_pattern_mismatch":
            return "must be package.module:function"
        case _:
            return details["msg"].removeprefix("Input should be ").removeprefix("Value error, ")


def _number(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
