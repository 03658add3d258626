"""Asks a running node over its admin socket: synchronous, for the command line. Knows HTTP and JSON only."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from cachebus.errors import CachebusError, NodeUnreachable

TIMEOUT = 5.0
"""Seconds for connecting, and for each read; the node answers from memory."""
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
    target = f"/v1/{what}" + (f"?{urlencode(parameters)}" if parameters else "")
    connection = _UnixConnection(path, timeout)
    try:
        connection.request("GET", target)
        response = connection.getresponse()
        body = response.read(MAX_REPLY + 1)
        status = response.status
        if len(body) <= MAX_REPLY and response.length:  # what is missing of it
            raise http.client.IncompleteRead(body, response.length)
    except TimeoutError:
        raise NodeUnreachable(f"no answer from the node on {path} within {timeout:g} s") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise NodeUnreachable(f"no node answers on {path}: {reason or 'not a usable path'}") from None
    except http.client.HTTPException:
        raise NodeUnreachable(f"what answers on {path} is not a cachebus node") from None
    finally:
        connection.close()
    return _decode(path, status, body)


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
