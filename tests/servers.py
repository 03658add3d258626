"""Which real servers a test needs, and free ports for them. Knows nothing of how they are run (`tests/farm`)."""

from __future__ import annotations

import os
import random
import shutil
import socket
from pathlib import Path

import pytest

_SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin", "/sbin"])
"""Debian keeps daemons out of an ordinary user's PATH."""
_COMMANDS = {
    "bind": ["named"],
    "dig": ["dig"],
    "knot": ["knotd"],
    "nsd": ["nsd"],
    "pdns-recursor": ["pdns_recursor"],
    "unbound": ["unbound", "unbound-control"],
}
"""Commands of each server; a name that is not here is a command itself."""
_PYTHON3_UNBOUND = Path("/usr/lib/python3/dist-packages/unboundmodule.py")
"""What Unbound's python module imports; Debian's package python3-unbound."""
_PORTS = range(10_000, 32_768)
"""Below the ports that Linux hands out by itself, so that no client socket of a neighbour takes one in between."""


def find(command: str) -> str | None:
    """Path of a command, the system directories included, or None."""
    return shutil.which(command, path=_SEARCH_PATH)


def require(*servers: str) -> None:
    """Skip the test, naming the server that is missing; with CI=1 in the environment that is a failure."""
    missing = [server for server in servers if not _is_there(server)]
    if not missing:
        return
    text = f"not installed: {', '.join(missing)}"
    if os.environ.get("CI", "").lower() in {"1", "true"}:
        pytest.fail(text, pytrace=False)
    pytest.skip(text)


def _is_there(server: str) -> bool:
    if server == "python3-unbound":
        return _PYTHON3_UNBOUND.exists()
    return all(find(command) for command in _COMMANDS.get(server, [server]))


def free_port(host: str = "127.0.0.1") -> int:
    """A port that is free for UDP and TCP on `host` right now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for port in random.sample(_PORTS, 200):
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as udp, socket.socket(family, socket.SOCK_STREAM) as tcp:
                udp.bind((host, port))
                tcp.bind((host, port))
        except OSError:
            continue
        return port
    raise RuntimeError(f"no free port on {host}")
