"""`cachebus convert`: captures from one format to another: dnstap, C-DNS, DNS messages with their length.

Decides which formats are meant, and says what the target has no place for. Reads and writes a piece at a time, so that
a file may be larger than memory. What the bytes mean is the formats' matter.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from cachebus import __version__
from cachebus.cli.common import json_option, print_json
from cachebus.errors import CachebusError, ConfigError, FrameError
from cachebus.sources.file import Format, open_capture, recognise
from cachebus.wire.cdns_capture import LEFT_OUT, CdnsFileWriter, preamble
from cachebus.wire.dnstap import Frame, MessageType, SocketProtocol, decode, encode
from cachebus.wire.framestream import DNSTAP_CONTENT_TYPE, MAX_MESSAGE, ControlType, control_frame, data_frame
from cachebus.wire.message import HEADER_LENGTH

FORMATS = tuple(one.value for one in Format)
ENDINGS = {
    ".dnstap": Format.DNSTAP,
    ".fstrm": Format.DNSTAP,
    ".fs": Format.DNSTAP,
    ".cdns": Format.CDNS,
    ".c-dns": Format.CDNS,
    ".cbor": Format.CDNS,
    ".wire": Format.WIRE,
    ".dns": Format.WIRE,
}
"""How the name of a file ends -> its format."""
UNREADABLE = "unreadable"
"""Left out: a frame that is no dnstap message, or a C-DNS item that gives no message for certain."""
METADATA = "metadata"
"""Lost: kind, time, addresses, ports and zone, which a wire file has no place for."""


@click.command()
@click.argument("source", metavar="IN", type=click.Path(path_type=Path))
@click.argument("target", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--from", "given", type=click.Choice(FORMATS), help="Format of IN. [default: by its content]")
@click.option("--to", "wanted", type=click.Choice(FORMATS), help="Format of OUT. [default: by its ending]")
@json_option
def convert(*, source: Path, target: Path, given: str | None, wanted: str | None, as_json: bool) -> None:
    """Write the messages of the capture IN to OUT in another format.

    \b
    dnstap  Frame Streams                     .dnstap .fstrm .fs
    cdns    C-DNS, RFC 8618                   .cdns .c-dns .cbor
    wire    DNS messages after u32 lengths    .wire .dns

    What OUT has no place for is counted. A message of a wire file becomes a CLIENT_QUERY or CLIENT_RESPONSE without
    time and addresses. Where IN is cut or corrupt, OUT holds what came before, and the exit code is 1.
    """
    before = Format(given) if given else recognise(source)
    after = Format(wanted) if wanted else _by_ending(target)
    if target.exists() and source.exists() and source.samefile(target):
        raise ConfigError(f"{target}: is IN too")
    run = Conversion(before, after)
    failure = run.run(source, target)
    if as_json:
        print_json(run.shape())
    else:
        click.echo(run.text())
    if failure is not None:
        raise failure


def _by_ending(target: Path) -> Format:
    found = ENDINGS.get(target.suffix.lower())
    if found is None:
        raise ConfigError(f"{target}: its ending is none of {', '.join(ENDINGS)}; name the format with --to")
    return found


@dataclass(slots=True)
class Conversion:
    """One file on its way to another format."""

    before: Format
    after: Format
    read: int = 0
    """Frames, items' messages, or messages of IN."""
    written: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    """Not in OUT, by reason."""
    lost: dict[str, int] = field(default_factory=dict)
    """In OUT, but not all that IN says of them, by what is missing."""

    def run(self, source: Path, target: Path) -> CachebusError | None:
        """Convert; gives the error that ended IN early. Raises `ConfigError` when a file cannot be opened."""
        frames = open_capture(source, self.before)
        failure: CachebusError | None = None

        def whole() -> Iterator[bytes]:
            nonlocal failure
            try:
                yield from frames
            except FrameError as error:
                failure = error

        temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
        try:
            with temporary.open("xb") as file:
                for piece in self._pieces(whole()):
                    file.write(piece)
            temporary.replace(target)
        except OSError as error:
            raise ConfigError(f"{target}: {error.strerror}") from error
        finally:
            temporary.unlink(missing_ok=True)
        return failure

    def shape(self) -> dict[str, Any]:
        """The object of `--json`."""
        return {
            "from": self.before.value,
            "to": self.after.value,
            "read": self.read,
            "written": self.written,
            "left_out": dict(sorted(self.left_out.items())),
            "lost": dict(sorted(self.lost.items())),
        }

    def text(self) -> str:
        """The same in words."""
        lines = [f"{self.before.value} to {self.after.value}: {self.read} read, {self.written} written"]
        lines += [f"{count:>8}  left out: {reason}" for reason, count in sorted(self.left_out.items())]
        lines += [f"{count:>8}  without: {what}" for what, count in sorted(self.lost.items())]
        return "\n".join(lines)

    def _pieces(self, frames: Iterator[bytes]) -> Iterator[bytes]:
        match self.after:
            case Format.DNSTAP:
                return self._to_dnstap(frames)
            case Format.CDNS:
                return self._to_cdns(frames)
            case Format.WIRE:
                return self._to_wire(frames)

    def _to_dnstap(self, frames: Iterator[bytes]) -> Iterator[bytes]:
        yield control_frame(ControlType.START, DNSTAP_CONTENT_TYPE)
        for frame in frames:
            found = self._decoded(frame)
            if found is None:
                continue
            self.written += 1
            # A frame that was dnstap stays what it is, with everything that is not read here.
            yield data_frame(frame if self.before.is_dnstap else encode(found.type, found.message))
        yield control_frame(ControlType.STOP)

    def _to_cdns(self, frames: Iterator[bytes]) -> Iterator[bytes]:
        writer = CdnsFileWriter()
        yield preamble(f"cachebus/{__version__}")
        for frame in frames:
            found = self._decoded(frame)
            if found is None:
                continue
            done, lost = writer.add(found)
            if left_out := [one for one in lost if one in LEFT_OUT]:
                _count(self.left_out, left_out[0].value)
            else:
                self.written += 1
                for one in lost:
                    _count(self.lost, one.value)
            if done:
                yield done
        yield writer.close()

    def _to_wire(self, frames: Iterator[bytes]) -> Iterator[bytes]:
        for frame in frames:
            found = self._decoded(frame)
            if found is None:
                continue
            self.written += 1
            if self.before.is_dnstap:
                _count(self.lost, METADATA)
            yield data_frame(found.message, limit=MAX_MESSAGE)

    def _decoded(self, frame: bytes) -> Frame | None:
        """One message of IN; None when it is none, which is counted."""
        self.read += 1
        if self.before.is_dnstap:
            try:
                return decode(frame)
            except FrameError:
                _count(self.left_out, UNREADABLE)
                return None
        if len(frame) < HEADER_LENGTH:
            _count(self.left_out, UNREADABLE)
            return None
        is_response = bool(frame[2] & 0x80)
        kind = MessageType.CLIENT_RESPONSE if is_response else MessageType.CLIENT_QUERY
        return Frame(kind, SocketProtocol.UDP, b"", 0, b"", 0, None, 0.0, 0.0, frame, is_response)


def _count(counts: dict[str, int], word: str) -> None:
    counts[word] = counts.get(word, 0) + 1
