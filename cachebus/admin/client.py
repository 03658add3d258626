"""Asks a running node over its admin socket: synchronous, for the command line. Knows HTTP and JSON only."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO
from urllib.parse import urlencode

from cachebus.errors import CachebusError, NodeUnreachable

FLUSH_TIMEOUT = 60.0
"""Seconds for a flush: of a large cache it takes some, and then the sinks get theirs."""
TIMEOUT = 5.0
"""Seconds for connecting, and for each read; the node answers from memory."""
COPY_TIMEOUT = 60.0
"""Seconds for each read of a copy; the node paces what it gives."""
PIECE = 64 * 1024
"""Bytes of a copy read and written at a time."""
MAX_REPLY = 16 * 1024 * 1024
"""Bytes: the longest status and history are far below; a wrong socket's flood ends here."""


class AdminRefused(CachebusError):  # noqa: N818  (named as its siblings in errors.py)
    """Raised when the node understood the question and says what is wrong with it."""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(self.timeout)
            connection.connect(self._path)
        except BaseException:
            connection.close()
            raise
        self.sock = connection


def ask(path: str, what: str, parameters: Mapping[str, str] | None = None, *, timeout: float = TIMEOUT) -> Any:
    """Get `/v1/WHAT` from the node behind the unix socket `path`: the decoded JSON.

    Raises `NodeUnreachable` when nobody answers properly there, `AdminRefused` when the question is wrong.
    """
    return _request("GET", path, what, parameters, timeout)


def tell(path: str, what: str, parameters: Mapping[str, str], *, timeout: float = FLUSH_TIMEOUT) -> Any:
    """Have the node do `/v1/WHAT`; its report. Raises as `ask` does."""
    return _request("POST", path, what, parameters, timeout)


def _request(method: str, path: str, what: str, parameters: Mapping[str, str] | None, timeout: float) -> Any:
    target = f"/v1/{what}" + (f"?{urlencode(parameters)}" if parameters else "")
    with _asked(path, timeout) as connection:
        connection.request(method, target)
        response = connection.getresponse()
        body = response.read(MAX_REPLY + 1)
        status = response.status
        if len(body) <= MAX_REPLY and response.length:  # what is missing of it
            raise http.client.IncompleteRead(body, response.length)
    return _decode(path, status, body)


def give_copy(path: str, into: BinaryIO, *, timeout: float = COPY_TIMEOUT) -> int:
    """Write the copy of its cache that a node gives, as it comes; its bytes. Raises `NodeUnreachable`."""
    with _asked(path, timeout) as connection:
        connection.request("GET", "/v1/snapshot")
        response = connection.getresponse()
        if response.status != 200:
            raise NodeUnreachable(f"what answers on {path} is not a cachebus node of this version")
        size = 0
        while piece := response.read(PIECE):
            into.write(piece)
            size += len(piece)
        return size


def take_copy(path: str, out_of: BinaryIO, *, timeout: float = COPY_TIMEOUT) -> Any:
    """Let a node merge a copy; its report. Raises `NodeUnreachable`, and `AdminRefused` where it is none."""
    with _asked(path, timeout) as connection:
        connection.request("PUT", "/v1/snapshot", body=iter(lambda: out_of.read(PIECE), b""), encode_chunked=True,
                           headers={"Transfer-Encoding": "chunked"})  # fmt: skip
        response = connection.getresponse()
        return _decode(path, response.status, response.read(MAX_REPLY + 1))


@contextmanager
def _asked(path: str, timeout: float) -> Iterator[_UnixConnection]:
    connection = _UnixConnection(path, timeout)
    try:
        yield connection
    except TimeoutError:
        raise NodeUnreachable(f"no answer from the node on {path} within {timeout:g} s") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise NodeUnreachable(f"no node answers on {path}: {reason or 'not a usable path'}") from None
    except http.client.HTTPException:
        raise NodeUnreachable(f"what answers on {path} is not a cachebus node") from None
    finally:
        connection.close()


def _decode(path: str, status: int, body: bytes) -> Any:
    if len(body) > MAX_REPLY:
        raise NodeUnreachable(f"the reply on {path} is longer than {MAX_REPLY} bytes")
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        value = None
    if status == 400 and isinstance(value, dict):
        raise AdminRefused(str(value.get("error", "refused")))
    if status != 200 or value is None:
        raise NodeUnreachable(f"what answers on {path} is not a cachebus node of this version")
    return value
