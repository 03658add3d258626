"""What a node keeps over a restart: the newest stream of each origin, by transport, in one small JSON file.

Decides how it is written, so that a crash leaves the old file or the new one. Does not know what a stream is.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path

FILE_NAME = "streams.json"
MAX_FILE = 8 * 1024 * 1024
"""Bytes of the file that are read: 10,000 origins on each of several transports."""
_MAX_NUMBER = (1 << 63) - 1

State = Mapping[str, Mapping[str, int]]
"""Transport -> origin -> newest stream."""

_log = logging.getLogger(__name__)


class StateFile:
    """The file in a node's state directory."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / FILE_NAME
        self._written: State = {}

    def load(self) -> State:
        """What the last run left; empty, and a warning in the log, when that cannot be read."""
        try:
            with self._path.open("rb") as file:
                raw = file.read(MAX_FILE + 1)
            return _checked(raw)
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as error:
            _log.warning("%s cannot be read, and is not used: %s", self._path, error)
            return {}

    def save(self, state: State) -> None:
        """Write what changed since the last time. A failure is logged, and tried again the next time."""
        if state == self._written:
            return
        new = self._path.with_suffix(".new")
        try:
            with new.open("w", encoding="utf-8") as file:
                json.dump(state, file)
                file.flush()
                os.fsync(file.fileno())
            new.replace(self._path)
        except OSError as error:
            _log.warning("%s cannot be written: %s", self._path, error)
        else:
            self._written = state


def _checked(raw: bytes) -> State:
    if len(raw) > MAX_FILE:
        raise ValueError(f"longer than {MAX_FILE} bytes")
    found = json.loads(raw)
    if not isinstance(found, dict):
        raise ValueError("not a mapping")  # noqa: TRY004 - one kind of error for whatever is wrong with the file
    state: dict[str, dict[str, int]] = {}
    for transport, streams in found.items():
        if not isinstance(streams, dict):
            raise ValueError(f"{transport}: not a mapping")  # noqa: TRY004 - see above
        for origin, stream in streams.items():
            if type(stream) is not int or not 0 <= stream <= _MAX_NUMBER:
                raise ValueError(f"{transport}: {origin}: not a stream")
        state[transport] = streams
    return state
