"""Runs one server in the foreground as a child process. Knows nothing of DNS."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from tests.servers import find

START_DEADLINE = 30.0
"""Seconds within which every server of the farm answers, even when two busy cores are shared."""
STOP_DEADLINE = 10.0
"""Seconds a server has to end after SIGTERM before it is killed."""
POLL_INTERVAL = 0.02
"""Seconds between two looks at a condition."""
LOG_TAIL = 4000
"""Characters of a server's log shown when it fails."""

T = TypeVar("T")


_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1


def _end_with_parent() -> None:
    """Runs in the child: a test run that is killed leaves no servers behind (prctl(2))."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class NotInTimeError(AssertionError):
    """Raised when a condition did not come true before its deadline."""


def eventually(condition: Callable[[], T], within: float, what: str = "condition") -> T:
    """Poll until `condition` gives something true, and give that; `NotInTimeError` after `within` seconds.

    An AssertionError inside the condition counts as "not yet", and is the reason shown at the end.
    """
    deadline = time.monotonic() + within
    reason: object = None
    while True:
        try:
            if result := condition():
                return result
        except AssertionError as error:
            reason = error
        if time.monotonic() > deadline:
            raise NotInTimeError(f"not within {within:g} s: {what}" + (f": {reason}" if reason else ""))
        time.sleep(POLL_INTERVAL)


class Process:
    """A server in the foreground, its output in `log`; entered it is ready, left it is gone.

    Subclasses write their configuration in `prepare`, give the command line in `command`, and say in `is_ready`
    whether the server answers. `stop` and `start` may be called at any moment in between.
    """

    command_name = ""

    def __init__(self, directory: Path, name: str) -> None:
        self.name = name
        self.directory = directory / name
        self.directory.mkdir(parents=True, exist_ok=True)
        self.log = self.directory / "log"
        self._process: subprocess.Popen[bytes] | None = None

    def prepare(self) -> None:
        """Write the configuration files; called once, before the first start."""

    def command(self) -> Sequence[str]:
        """Command line, with the bare name of the program first."""
        raise NotImplementedError

    def environment(self) -> Mapping[str, str]:
        return os.environ

    def is_ready(self) -> bool:
        raise NotImplementedError

    def __enter__(self) -> Self:
        self.prepare()
        try:
            self.start()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def launch(self) -> None:
        """Start the process without waiting for it to be ready."""
        program, *arguments = self.command()
        path = program if "/" in program else find(program)
        assert path, f"{program} is not installed"
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [path, *arguments],
                cwd=self.directory,
                env=dict(self.environment()),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=_end_with_parent,  # noqa: PLW1509 -- one system call, and nothing of ours holds a lock
            )

    def start(self) -> None:
        """Start the process and wait until it is ready; AssertionError with its log when it is not."""
        self.launch()
        try:
            eventually(self._ready_or_dead, START_DEADLINE, f"{self.name} is ready")
        except NotInTimeError as error:
            raise AssertionError(f"{error}\n{self.log_tail()}") from None
        if not self.running:
            raise AssertionError(f"{self.name} ended with {self.returncode}\n{self.log_tail()}")

    def _ready_or_dead(self) -> bool:
        return not self.running or self.is_ready()

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.poll() if self._process else None

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def stop(self) -> int | None:
        """End it with SIGTERM, or SIGKILL when that takes too long; gives the exit code."""
        if self._process is None:
            return None
        if self.running:
            self.signal(signal.SIGCONT)
            self.signal(signal.SIGTERM)
            try:
                self._process.wait(STOP_DEADLINE)
            except subprocess.TimeoutExpired:
                self.kill()
        return self._process.returncode

    def kill(self) -> None:
        """End it with SIGKILL, as a crash would."""
        if self._process is not None:
            if self.running:
                self._process.kill()
            self._process.wait()

    def restart(self) -> None:
        """SIGKILL, and start again."""
        self.kill()
        self.start()

    def log_tail(self) -> str:
        return self.log.read_text(errors="replace")[-LOG_TAIL:] if self.log.exists() else ""
