"""A broker for `bench` and `demo`: Mosquitto on a loopback port, as long as it is needed, if it is installed.

Decides how it is started and that it is stopped. Knows nothing of what goes over it.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cachebus.errors import CachebusError

HOST = "127.0.0.1"
START = 10.0
"""Seconds for it to come up."""
STOP = 2.0
"""Seconds between SIGTERM and SIGKILL."""


class BrokerError(CachebusError):
    """Raised when the broker does not start."""


class BrokerMissingError(BrokerError):
    """Raised when there is none; the text says what to install."""


def program() -> str:
    """Where Mosquitto is. Raises `BrokerMissingError`."""
    # Debian installs it where only root's shell looks.
    places = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"))
    found = shutil.which("mosquitto", path=places)
    if found is None:
        raise BrokerMissingError("mosquitto is not installed (Debian: apt install mosquitto)")
    return found


@contextmanager
def broker(port: int, directory: Path) -> Iterator[None]:
    """Mosquitto on a loopback port. Raises `BrokerMissingError`, and `BrokerError` when it does not start."""
    command = program()
    configuration = directory / "mosquitto.conf"
    configuration.write_text("\n".join(_configuration(port)) + "\n")
    log = directory / "mosquitto.log"
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - a program found by its name, with a file of ours
            [command, "-c", configuration],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        _wait_for(process, port, log)
        yield
    finally:
        process.terminate()
        try:
            process.wait(timeout=STOP)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _configuration(port: int) -> Sequence[str]:
    return (
        f"listener {port} {HOST}",
        "allow_anonymous true",
        "persistence false",
        "set_tcp_nodelay true",
        # A broker in use is set up for its load; the default of 1,000 would make the broker's loss the transport's.
        "max_queued_messages 0",
        "log_dest stderr",
    )


def _wait_for(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    end = time.monotonic() + START
    while time.monotonic() < end:
        if process.poll() is not None:
            said = log.read_text(errors="replace").strip().splitlines()
            raise BrokerError(f"mosquitto ended at once: {said[-1] if said else 'it said nothing'}")
        try:
            with socket.create_connection((HOST, port), timeout=1):
                return
        except OSError:
            time.sleep(0.02)
    raise BrokerError("mosquitto does not answer")
