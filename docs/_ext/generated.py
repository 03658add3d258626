"""Sphinx extension: reference pages written from the code itself, so that they cannot say something else.

A page holds a marker such as `<!-- generated: configuration -->`; it is replaced by MyST text made from the
configuration models, the click commands or the refusal reasons. Knows how to render, and nothing of what the keys mean.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import click
from sphinx.application import Sphinx

Schema = Mapping[str, Any]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("source-read", _replace_markers)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _replace_markers(_app: Sphinx, _page: str, source: list[str]) -> None:
    for name, render in RENDERERS.items():
        marker = f"<!-- generated: {name} -->"
        if marker in source[0]:
            source[0] = source[0].replace(marker, render())


# The configuration, from the JSON schema of its models


def configuration() -> str:
    """One section per model, one table row per key."""
    models = importlib.import_module("cachebus.config.models")
    schema = models.Config.model_json_schema()
    definitions: dict[str, Schema] = dict(schema.get("$defs", {}))
    # What the types of transports add is in no other model.
    for model in importlib.import_module("cachebus.config.transports").OPTIONS.values():
        options = model.model_json_schema()
        definitions |= {**options.get("$defs", {}), model.__name__: options}
    lines = _model("The top level", schema, definitions)
    for name, definition in sorted(definitions.items()):
        if "properties" in definition:
            lines += _model(name, definition, definitions)
    return "\n".join(lines)


def _model(title: str, model: Schema, definitions: Mapping[str, Schema]) -> list[str]:
    lines = [f"({_label(title)})=", "", f"## {title}", "", inspect.cleandoc(model.get("description", "")), ""]
    lines += ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    required = set(model.get("required", ()))
    for key, value in model.get("properties", {}).items():
        kind = _type(value, definitions)
        default = "required" if key in required else _default(value, kind)
        lines.append(f"| `{key}` | {kind} | {default} | {_meaning(value, definitions)} |")
    return [*lines, ""]


def _label(title: str) -> str:
    return "config-" + title.lower().replace(" ", "-")


def _meaning(value: Schema, definitions: Mapping[str, Schema]) -> str:
    """The key's own words, or those of the section that it holds."""
    target = definitions.get(value.get("$ref", "").rsplit("/", 1)[-1], {})
    return _cell(value.get("description") or target.get("description", ""))


def _default(value: Schema, kind: str) -> str:
    default = value.get("default")
    if default is None or isinstance(default, dict) or default == []:
        return ""  # none, or the section's own defaults
    values = default if isinstance(default, list) else [default]
    if "`authoritative`" in kind:
        levels = importlib.import_module("cachebus.answer").Evidence
        values = [levels(level).text if isinstance(level, int) else level for level in values]
    return ", ".join(f"`{str(one).lower() if isinstance(one, bool) else one}`" for one in values)


def _type(value: Schema, definitions: Mapping[str, Schema]) -> str:
    """A type as people write it: `string`, `list of string`, a choice of words, or a link to another model."""
    if reference := value.get("$ref"):
        name = reference.rsplit("/", 1)[-1]
        target = definitions.get(name, {})
        return f"[{name}](#{_label(name)})" if "properties" in target else _type(target, definitions)
    if choices := value.get("enum"):
        return ", ".join(f"`{choice}`" for choice in choices)
    if "const" in value:
        return f"`{value['const']}`"
    if alternatives := value.get("anyOf") or value.get("oneOf") or value.get("allOf"):
        words = [_type(one, definitions) for one in alternatives if one.get("type") != "null"]
        return " or ".join(dict.fromkeys(words))
    match value.get("type"):
        case "array":
            return "list of " + _type(value.get("items", {}), definitions)
        case "object":
            inner = value.get("additionalProperties") or next(iter(value.get("patternProperties", {}).values()), None)
            return "map of " + _type(inner, definitions) if isinstance(inner, dict) else "map"
        case str(word):
            return word
        case _:
            # Durations and sizes are numbers or text; their title begins with the word for them.
            return value.get("title", "any").partition(":")[0]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


# The command line, from click


def commands() -> str:
    """One section per verb: its usage, its words, its options."""
    root = importlib.import_module("cachebus.cli").cachebus
    return "\n".join(line for path, command in _verbs(root) for line in _verb(path, command))


def _verbs(root: click.Command, path: str = "cachebus") -> Iterator[tuple[str, click.Command]]:
    if not isinstance(root, click.Group):
        yield path, root
        return
    context = click.Context(root, info_name=path)
    for name in sorted(root.list_commands(context)):
        command = root.get_command(context, name)
        if command is not None and not command.hidden:
            yield from _verbs(command, f"{path} {name}")


def _verb(path: str, command: click.Command) -> list[str]:
    context = click.Context(command, info_name=path)
    usage = " ".join([path, *command.collect_usage_pieces(context)])
    text = inspect.cleandoc(command.help or "").replace("\b\n", "").replace("\f", "")
    lines = [f"## {path.removeprefix('cachebus ')}", "", "```text", usage, "```", "", text, ""]
    records = [
        record
        for parameter in command.get_params(context)
        if (record := parameter.get_help_record(context)) is not None and record[0] != "--help"
    ]
    if records:
        lines += ["| option | meaning |", "| --- | --- |"]
        lines += [f"| `{_cell(option)}` | {_cell(meaning)} |" for option, meaning in records]
    return [*lines, ""]


# The reasons, from the enum and the strings under its members


def refusals() -> str:
    """One table row per reason."""
    answer = importlib.import_module("cachebus.answer")
    lines = ["| reason | meaning |", "| --- | --- |"]
    for word, meaning in enum_docstrings(inspect.getsource(answer), "Refusal"):
        lines.append(f"| `{word}` | {_cell(meaning)} |")
    return "\n".join(lines)


def enum_docstrings(source: str, name: str) -> Iterator[tuple[str, str]]:
    """Value and docstring of each member of the enum `name`; a member without one gives an empty string."""
    tree = ast.parse(source)
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    for node, following in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            text = ""
            if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
                text = str(following.value.value)
            yield str(node.value.value), text


RENDERERS: Mapping[str, Callable[[], str]] = {
    "configuration": configuration,
    "commands": commands,
    "refusals": refusals,
}
