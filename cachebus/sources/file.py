"""Capture files: what kind a file is, its frames one after the other, and a source that delivers them once.

Decides the format by content (Frame Streams with dnstap, C-DNS, or DNS messages with a u32 length before each). Refuses
to know what a frame says, but for the time in a dnstap frame: what a file tells was learned when it was recorded.
"""

from __future__ import annotations

import asyncio
import logging
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Self

from cachebus.errors import ConfigError, FrameError
from cachebus.ports import Clock
from cachebus.sources.listen import READ_SIZE, Deliver
from cachebus.wire.cdns import FILE_TYPE
from cachebus.wire.cdns_messages import CdnsFileReceiver
from cachebus.wire.dnstap import decode
from cachebus.wire.framestream import (
    MAX_CONTROL_FRAME,
    MAX_MESSAGE,
    ControlType,
    FrameStreamReceiver,
    LengthPrefixedReceiver,
    Receiver,
)

MIN_MESSAGE = 12
"""Bytes of the shortest DNS message, a bare header (RFC 1035 section 4.1.1)."""

TURN = 256
"""Frames delivered before the event loop gets its turn: a slice of dnstap has as many, a block of C-DNS thousands."""

logger = logging.getLogger(__name__)


class Format(Enum):
    """What a capture file holds. The value is the word of configuration and CLI."""

    DNSTAP = "dnstap"
    """A Frame Streams file of dnstap payloads."""
    WIRE = "wire"
    """DNS messages, each after its length as u32."""
    CDNS = "cdns"
    """C-DNS (RFC 8618), whose items are given as dnstap payloads."""

    @property
    def is_dnstap(self) -> bool:
        """Whether the frames that are given are dnstap payloads, and so a `DnstapJudge`'s."""
        return self is not Format.WIRE


def recognise(path: str | os.PathLike[str]) -> Format:
    """Give the format of a file by its first bytes.

    Raises `FrameError` when it is none, `ConfigError` when it cannot be read or is not a regular file.
    """
    head = next(_slices(Path(path), size=3 * 4), b"")
    first, control, kind = (int.from_bytes(head[at : at + 4]) for at in (0, 4, 8))
    if len(head) == 12 and not first and 4 <= control <= MAX_CONTROL_FRAME:
        if kind in (ControlType.START, ControlType.READY):
            return Format.DNSTAP
    elif head.startswith(FILE_TYPE):
        return Format.CDNS
    elif len(head) > 4 and MIN_MESSAGE <= first <= MAX_MESSAGE:
        return Format.WIRE
    if not head:
        raise FrameError(f"{path}: the file is empty")
    raise FrameError(
        f"{path}: neither dnstap (Frame Streams) nor C-DNS, nor DNS messages with their length before them"
    )


def open_capture(path: str | os.PathLike[str], kind: Format | None = None) -> Iterator[bytes]:
    """Give the frames of a file in order: dnstap payloads (of C-DNS too), or DNS messages. Without `kind`, by content.

    Raises `FrameError`, naming the file and the byte, when it is none, is cut off or corrupt: what came before has
    been given by then. Raises `ConfigError` when it cannot be read. Both are raised at once where that is possible.
    """
    path = Path(path)
    receiver = _receiver(kind or recognise(path))
    return _frames(path, receiver, _slices(path, size=READ_SIZE))


def _frames(path: Path, receiver: Receiver, slices: Iterator[bytes]) -> Iterator[bytes]:
    try:
        for data in slices:
            yield from receiver.receive_data(data)
        receiver.receive_end()
    except FrameError as error:
        raise FrameError(f"{path}: {error}") from error


def _receiver(kind: Format) -> Receiver:
    match kind:
        case Format.DNSTAP:
            return FrameStreamReceiver()
        case Format.CDNS:
            return CdnsFileReceiver()
        case Format.WIRE:
            return LengthPrefixedReceiver()


def _slices(path: Path, *, size: int) -> Iterator[bytes]:
    """The content of a regular file, at most `size` bytes at a time. A pipe or device could block, and is refused."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ConfigError(f"{path}: not a regular file")
        with path.open("rb", buffering=0) as file:
            while data := file.read(size):
                yield data
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"{path}: {reason}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSettings:
    """Which file a source reads."""

    name: str
    """The source's name in the configuration."""
    path: str | os.PathLike[str]
    format: Format | None = None
    """None: by its content."""


class FileSource:
    """Delivers every frame of a capture file, once, in slices between which the loop goes on. A `Source`.

    A frame's time is when it was recorded, never later than now: a dnstap frame's own, for DNS messages that of the
    file's last change. So what has expired since then is not shared as if it were fresh.
    """

    def __init__(self, settings: FileSettings, deliver: Deliver, clock: Clock) -> None:
        """Opens nothing yet."""
        self._settings = settings
        self._deliver = deliver
        self._clock = clock
        self._frames = 0
        self._bytes = 0
        self._malformed = 0
        self._task: asyncio.Task[None] | None = None
        self._done = asyncio.Event()

    def statistics(self) -> Mapping[str, int]:
        """Counters since the start; `finished` is 1 once everything was delivered, or the file proved corrupt."""
        return {
            "frames": self._frames,
            "bytes": self._bytes,
            "malformed": self._malformed,
            "finished": int(self._done.is_set()),
        }

    async def wait(self) -> None:
        """Wait until the whole file was delivered, or proved corrupt."""
        await self._done.wait()

    async def __aenter__(self) -> Self:
        """Start to read. Raises `ConfigError` when the file cannot be read or is of no known format."""
        kind, recorded = self._look()
        self._task = asyncio.create_task(self._read(kind, recorded), name=f"{self._settings.name}: read")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _look(self) -> tuple[Format, float]:
        path = Path(self._settings.path)
        try:
            return self._settings.format or recognise(path), path.stat().st_mtime
        except (FrameError, ConfigError, OSError) as error:
            raise ConfigError(f"source {self._settings.name}: {error}") from error

    async def _read(self, kind: Format, recorded: float) -> None:
        receiver = _receiver(kind)
        time = 0.0
        try:
            for data in _slices(Path(self._settings.path), size=READ_SIZE):
                self._bytes += len(data)
                for frame in receiver.receive_data(data):
                    now = self._clock()
                    said = _recorded(frame) if kind.is_dnstap else recorded
                    # A judge's time does not run backwards, and frames are not always in order.
                    time = min(max(time, said or recorded), now)
                    self._frames += 1
                    self._deliver(frame, time)
                    if not self._frames % TURN:
                        await asyncio.sleep(0)
                await asyncio.sleep(0)
            receiver.receive_end()
        except (FrameError, ConfigError) as error:
            self._malformed += 1
            logger.warning("source %s: %s", self._settings.name, error)
        except Exception:  # else it would be heard of at the end of the node, if ever
            self._malformed += 1
            logger.exception("source %s: defect, the rest of the file is left out", self._settings.name)
        finally:
            self._done.set()


def _recorded(payload: bytes) -> float:
    """When a dnstap frame was recorded; 0 when it does not say, or is malformed, which is for the judge to count."""
    try:
        frame = decode(payload)
    except FrameError:
        return 0.0
    return frame.response_time or frame.query_time
