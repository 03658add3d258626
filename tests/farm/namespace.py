"""Runs a Python module in a network of its own: new network and mount namespaces, in which it is root.

Knows nothing of what runs. Needs to be root, or unprivileged user namespaces; without either the test is skipped by
name. Whatever the module makes (interfaces, `ip netns`, nft rules) is gone when it ends.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from functools import cache

import pytest

from tests.servers import find, require

ROOTED = ("unshare", "--net", "--mount", "--propagation", "private", "--kill-child")
UNPRIVILEGED = (*ROOTED, "--map-root-user")
INSIDE = 'mount -t tmpfs none /run && ip link set lo up && exec "$@"'
"""`ip netns` keeps its names below /run."""


@cache
def way_in() -> tuple[str, ...] | None:
    """The command that opens the namespaces, or None where this is not allowed."""
    for command in (ROOTED, UNPRIVILEGED):
        done = subprocess.run([*command, "sh", "-c", INSIDE, "sh", "true"], capture_output=True, timeout=20)
        if done.returncode == 0:
            return command
    return None


def run_inside(module: str, *arguments: str, timeout: float) -> str:
    """Run `python -m module` in there and give its standard output; skip where that cannot be, fail when it fails."""
    require("unshare", "ip")
    command = way_in()
    if command is None:
        pytest.skip("neither root nor unprivileged user namespaces")
    done = subprocess.run(
        [*command, "sh", "-c", INSIDE, "sh", sys.executable, "-W", "error", "-m", module, *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, f"{module} failed:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def ip(*arguments: str) -> None:
    """Run `ip`, in the current namespace."""
    run("ip", *arguments)


def run(*command: str) -> None:
    """Run a command of the system, which must succeed."""
    subprocess.run([find(command[0]) or command[0], *command[1:]], check=True, timeout=20)


def commands(lines: Sequence[str]) -> None:
    """Run lines of `ip`, without the word itself."""
    for line in lines:
        ip(*line.split())
