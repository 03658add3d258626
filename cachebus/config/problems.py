"""What is wrong with a configuration, and where: one value per problem, one exception for all of them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from cachebus.errors import ConfigError

Place = tuple[str | int, ...]
"""Path of a value in the configuration: keys of mappings and indexes of lists, from the root."""

MAX_SHOWN = 60
"""Characters of a wrong value that a message repeats: enough to recognise it, no page of text."""


class Problem(NamedTuple):
    """One thing that is wrong (or, in `Config.warnings`, doubtful)."""

    file: str
    line: int
    """From 1."""
    column: int
    """From 1, in characters."""
    key: str
    """Path of the key with dots, list indexes from 0: `transports.lan.peers.0`; empty for the file as a whole."""
    message: str

    def __str__(self) -> str:
        """`FILE:LINE:COL: path.to.key: what is wrong`."""
        where = f"{self.file}:{self.line}:{self.column}: "
        return f"{where}{self.key}: {self.message}" if self.key else where + self.message


class ConfigErrors(ConfigError):  # noqa: N818  (the plural is what it says)
    """Raised when a configuration is wrong; `problems` has every problem found, in the order of the file."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems: Sequence[Problem] = tuple(sorted(problems, key=lambda problem: problem[1:3]))
        super().__init__("\n".join(map(str, self.problems)))


def key_text(place: Place) -> str:
    """Write a place with dots."""
    return ".".join(map(str, place))


def shown(text: str) -> str:
    """Quote a value for a message, shortened."""
    return repr(text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "...")


def suggest(word: str, known: Iterable[str]) -> str:
    """Give ` (did you mean X?)` when one of the known words is close to `word`, else nothing."""
    close = difflib.get_close_matches(word[:MAX_SHOWN].lower(), list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]}?)" if close else ""
