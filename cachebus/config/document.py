"""YAML text to a tree that remembers where everything stood.

Reads YAML 1.2's core schema: `off`, `no` and `1:30` are text, as written. Refuses what a configuration has no use for
and an attacker has: tags, duplicate keys, several documents, aliases that multiply. Knows no key of the configuration.

The tree is built from PyYAML's events, not its nodes: the composer recurses, events do not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import yaml
from yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    CollectionStartEvent,
    DocumentStartEvent,
    Event,
    MappingStartEvent,
    ScalarEvent,
    SequenceStartEvent,
)

from cachebus.config.problems import ConfigErrors, Place, Problem, key_text, shown

MAX_FILE = 256 * 1024
"""Bytes: some thousand times the usual; PyYAML reads about 100 kB a second."""
MAX_DEPTH = 16
"""Levels; the deepest key of the configuration is at 8."""
MAX_NODES = 50_000
"""Values after every alias is written out: stops the billion laughs."""

_INTEGER = re.compile(r"[-+]?[0-9]{1,18}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]{1,18}(\.[0-9]*)?)([eE][-+]?[0-9]{1,3})?")
_NULL = ("", "~", "null", "Null", "NULL")
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


class _AnyMark(Protocol):
    line: int
    column: int


class Mark(NamedTuple):
    """A position in the file, both from 1."""

    line: int
    column: int


START = Mark(1, 1)


@dataclass(slots=True)
class Node:
    """A value with its position. `value` is text, None (null), a list of nodes, or a mapping of them."""

    mark: Mark
    value: str | list[Node] | dict[str, Node] | None
    plain: bool = False
    """Written without quotes, so it may mean a number or a boolean."""
    keys: dict[str, Mark] = field(default_factory=dict)
    """Of a mapping: where each key stands."""
    size: int = 1
    """Values in it, itself included, with aliases written out."""


class Document:
    """A parsed file: its values, and the place of each."""

    def __init__(self, file: str, root: Node) -> None:
        self.file = file
        self.root = root

    def problem(self, place: Place, message: str, *, at_key: bool = False) -> Problem:
        """Make a problem at the value of `place`; at its key when asked, or when the value does not exist.

        A place that the file does not have counts as its nearest ancestor that it has.
        """
        marks = self._marks(place)
        if not marks:
            mark = START
        elif len(marks) < len(place):
            mark = marks[-1][0]  # a missing key is missed at the key it should be under, not at its first brother
        else:
            mark = marks[-1][0 if at_key else 1]
        return Problem(self.file, mark.line, mark.column, key_text(place), message)

    def _marks(self, place: Place) -> list[tuple[Mark, Mark]]:
        marks = []
        node = self.root
        for step in place:
            below = _child(node, step)
            if below is None:
                break
            marks.append((node.keys[step] if isinstance(step, str) else below.mark, below.mark))
            node = below
        return marks

    def value(self) -> object:
        """Give the tree as dict, list, str and None; every scalar is text."""
        return text_value(self.root)

    def at(self, *place: str | int) -> Node | None:
        """Give the node at a place, or None."""
        node: Node | None = self.root
        for step in place:
            node = None if node is None else _child(node, step)
        return node


def _child(node: Node, step: str | int) -> Node | None:
    if isinstance(node.value, dict) and isinstance(step, str):
        return node.value.get(step)
    if isinstance(node.value, list) and isinstance(step, int) and 0 <= step < len(node.value):
        return node.value[step]
    return None


def text_value(node: Node) -> object:
    """Give a node as dict, list, str and None; every scalar is text."""
    match node.value:
        case dict() as mapping:
            return {key: text_value(value) for key, value in mapping.items()}
        case list() as items:
            return [text_value(item) for item in items]
        case value:
            return value


def natural(node: Node) -> object:
    """Give a node as the types that YAML 1.2's core schema gives it: int, float, bool, None, str, list and dict."""
    match node.value:
        case dict() as mapping:
            return {key: natural(value) for key, value in mapping.items()}
        case list() as items:
            return [natural(item) for item in items]
        case str() as text if node.plain:
            return _natural_scalar(text)
        case value:
            return value


def _natural_scalar(text: str) -> object:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if _INTEGER.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text


def parse(text: str, file: str) -> tuple[Document, list[Problem]]:
    """Parse one YAML document. Gives it with what does not prevent reading on: duplicate keys.

    Raises `ConfigErrors` for everything else that is wrong.
    """
    builder = _Builder(file)
    problem = _feed(builder, text)
    if problem is not None:  # raised out here: PyYAML's exceptions hold the file's text, secrets included
        raise ConfigErrors([problem])
    root = builder.root
    if root is None or root.value is None:
        raise ConfigErrors([Problem(file, 1, 1, "", "the file is empty")])
    if not isinstance(root.value, dict):
        raise ConfigErrors([Problem(file, *root.mark, "", "must be a mapping of keys to values")])
    return Document(file, root), builder.problems


def _feed(builder: _Builder, text: str) -> Problem | None:
    try:
        for event in _events(text):
            builder.take(event)
    except _RefusedError as refused:
        return Problem(builder.file, *refused.mark, "", refused.message)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        column = error.position - (text.rfind("\n", 0, error.position) + 1) + 1
        return Problem(builder.file, line, column, "", "a character that YAML does not allow")
    except yaml.MarkedYAMLError as error:
        mark = START if error.problem_mark is None else _mark(error.problem_mark)
        return Problem(builder.file, *mark, "", f"not YAML: {error.problem or 'broken'}")
    except (yaml.YAMLError, ValueError, OverflowError, IndexError):
        # PyYAML lets chr() and int() fail on absurd escapes and version numbers.
        return Problem(builder.file, *builder.last, "", "not YAML: an escape or directive is broken")
    return None


def _events(text: str) -> Iterator[Event]:
    return yaml.parse(text, Loader=yaml.SafeLoader)


def _mark(mark: _AnyMark) -> Mark:
    return Mark(mark.line + 1, mark.column + 1)


class _RefusedError(Exception):
    def __init__(self, mark: Mark, message: str) -> None:
        super().__init__(message)
        self.mark = mark
        self.message = message


class _Builder:
    """Builds the tree from events, on a stack of its own."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.root: Node | None = None
        self.problems: list[Problem] = []
        self.last = START
        self._documents = 0
        self._nodes = 0
        self._stack: list[Node] = []
        self._keys: list[tuple[str, Mark] | None] = []
        """For each open collection the key that waits for its value."""
        self._anchors: dict[str, Node | None] = {}
        """None while the anchored value is still being read."""
        self._anchor_of: list[str | None] = []

    def take(self, event: Event) -> None:
        self.last = START if event.start_mark is None else _mark(event.start_mark)
        match event:
            case DocumentStartEvent():
                self._documents += 1
                if self._documents > 1:
                    raise _RefusedError(self.last, "a second document: the file must hold one")
            case AliasEvent():
                self._alias(event.anchor)
            case ScalarEvent() | SequenceStartEvent() | MappingStartEvent():
                self._open(event)
            case CollectionEndEvent():
                self._close()
            case _:
                pass

    def _alias(self, anchor: str | None) -> None:
        if anchor is None or anchor not in self._anchors:
            raise _RefusedError(self.last, "an alias without its anchor")
        node = self._anchors[anchor]
        if node is None:
            raise _RefusedError(self.last, "an alias inside its own anchor")
        self._count(node.size)
        self._add(node)

    def _open(self, event: ScalarEvent | CollectionStartEvent) -> None:
        if event.tag is not None:
            raise _RefusedError(self.last, "a tag (`!...`): a configuration has plain values only")
        self._count(1)
        anchor = event.anchor
        if isinstance(event, ScalarEvent):
            node = self._scalar(event)
            if anchor is not None:
                self._anchors[anchor] = node
            self._add(node)
            return
        if len(self._stack) >= MAX_DEPTH:
            raise _RefusedError(self.last, f"nested deeper than {MAX_DEPTH} levels")
        self._stack.append(Node(self.last, {} if isinstance(event, MappingStartEvent) else []))
        self._keys.append(None)
        self._anchor_of.append(anchor)
        if anchor is not None:
            self._anchors[anchor] = None

    def _scalar(self, event: ScalarEvent) -> Node:
        plain = not event.style
        if _UNPRINTABLE.search(event.value):
            raise _RefusedError(self.last, "an unprintable character")
        return Node(self.last, None if plain and event.value in _NULL else event.value, plain)

    def _close(self) -> None:
        node, anchor = self._stack.pop(), self._anchor_of.pop()
        self._keys.pop()
        children = node.value.values() if isinstance(node.value, dict) else node.value or ()
        node.size += sum(child.size for child in children if isinstance(child, Node))
        if anchor is not None:
            self._anchors[anchor] = node
        self._add(node)

    def _count(self, more: int) -> None:
        self._nodes += more
        if self._nodes > MAX_NODES:
            raise _RefusedError(self.last, f"more than {MAX_NODES} values")

    def _add(self, node: Node) -> None:
        if not self._stack:
            self.root = node
            return
        parent = self._stack[-1]
        match parent.value:
            case list() as items:
                items.append(node)
            case dict() as mapping:
                self._add_to_mapping(parent, mapping, node)
            case _:
                raise AssertionError("only collections are on the stack")

    def _add_to_mapping(self, parent: Node, mapping: dict[str, Node], node: Node) -> None:
        pending = self._keys[-1]
        if pending is None:
            if not isinstance(node.value, str) or not node.value:
                raise _RefusedError(node.mark, "a key must be text")
            self._keys[-1] = (node.value, self.last)
            return
        self._keys[-1] = None
        key, mark = pending
        if key not in mapping:
            mapping[key] = node
            parent.keys[key] = mark
            return
        first = parent.keys[key]
        self.problems.append(
            Problem(self.file, *mark, self._path(key), f"{shown(key)} is given twice, first on line {first.line}")
        )

    def _path(self, key: str) -> str:
        above = zip(self._stack[:-1], self._keys[:-1], strict=True)
        steps = [len(node.value or ()) if pending is None else pending[0] for node, pending in above]
        return key_text((*steps, key))
