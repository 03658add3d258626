"""Cuts a byte stream into frames: Frame Streams (as dnstap uses it), and u32-length-prefixed DNS messages.

Decides where a frame ends, which control frames a sender may send when, and how long anything may be before memory is
spent on it. Refuses to know sockets, time, and what is inside a data frame.

A receiver takes bytes in any portions: `for frame in receiver.receive_data(data)` gives the frames they complete, and
raises `FrameError` after the frames that came before the violation; from then on it only raises. The bytes it wants
sent back (ACCEPT, FINISH) wait in `data_to_send()`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import Enum, IntEnum, auto
from struct import Struct
from typing import Protocol

from cachebus.errors import FrameError

DNSTAP_CONTENT_TYPE = b"protobuf:dnstap.Dnstap"
"""What a dnstap sender names in READY and START."""
MAX_DATA_FRAME = 128 * 1024
"""Bytes of a data frame: a DNS message has at most 65535, the rest of a dnstap payload a few hundred."""
MAX_CONTROL_FRAME = 512
"""Bytes of a control frame, its type included (libfstrm's own limit)."""
MAX_CONTENT_TYPE = 256
"""Bytes of a content type (libfstrm's own limit)."""
MAX_MESSAGE = 65535
"""Bytes of a length-prefixed DNS message: the most that DNS over TCP can carry (RFC 1035 section 4.2.2)."""

_U32 = Struct(">I")
_LENGTH = _U32.size
_FIELD_CONTENT_TYPE = 1


class ControlType(IntEnum):
    """Type of a Frame Streams control frame."""

    ACCEPT = 1
    START = 2
    STOP = 3
    READY = 4
    FINISH = 5


class State(Enum):
    """Where a Frame Streams receiver stands."""

    OPENING = auto()
    """Nothing received; READY makes the stream bidirectional, START unidirectional."""
    ACCEPTED = auto()
    """READY was answered; START has to follow."""
    STREAMING = auto()
    STOPPED = auto()
    """STOP was received; nothing may follow."""


class Receiver(Protocol):
    """What both kinds of stream offer."""

    def receive_data(self, data: bytes) -> Iterator[bytes]:
        """Take the next bytes of the stream; give the frames they complete, then raise `FrameError` if need be."""
        ...

    def receive_end(self) -> None:
        """Take note that the stream has ended. Raises `FrameError` when that cuts a frame, or the opening, in two."""
        ...

    def data_to_send(self) -> bytes:
        """Bytes to send to the peer now; empty when there are none. Each is given once."""
        ...

    @property
    def started(self) -> bool:
        """True once the opening is over and data frames may come."""
        ...

    @property
    def finished(self) -> bool:
        """True once the sender has said that nothing more comes."""
        ...

    @property
    def buffered(self) -> int:
        """Bytes held of a frame that is not complete."""
        ...


class _Deframer:
    """The part both kinds share: holding an incomplete frame, and remembering a violation.

    Bytes are collected without looking at them until the frame they belong to is complete, so the work is linear in
    the bytes received, whatever the portions.
    """

    def __init__(self) -> None:
        self._partial = bytearray()
        self._needed = _LENGTH
        self._offset = 0
        self._failure: FrameError | None = None

    def receive_data(self, data: bytes) -> Iterator[bytes]:
        """Take the next bytes of the stream; give the frames they complete, then raise `FrameError` if need be."""
        if self._failure is not None:
            return _deliver([], self._failure)
        if self._partial:
            self._partial += data
            if len(self._partial) < self._needed:
                return iter(())
            data = bytes(self._partial)
            self._partial.clear()
        frames: list[bytes] = []
        try:
            used = self._parse(data, frames)
        except FrameError as error:
            self._failure = error
        else:
            self._partial += data[used:]
            self._offset += used
        return _deliver(frames, self._failure)

    def _parse(self, data: bytes, frames: list[bytes]) -> int:
        """Append the complete frames of `data`; give the bytes used, and leave what more it needs in `_needed`."""
        raise NotImplementedError

    def _fail(self, position: int, what: str) -> FrameError:
        return FrameError(f"at byte {self._offset + position}: {what}")

    def receive_end(self) -> None:
        """Take note that the stream has ended. Raises `FrameError` when that cuts a frame in two."""
        if self._failure is not None:
            raise self._failure
        if self._partial:
            raise self._fail(0, f"the stream ends inside a frame, after {len(self._partial)} bytes of it")

    @property
    def buffered(self) -> int:
        """Bytes held of a frame that is not complete."""
        return len(self._partial)


def _deliver(frames: list[bytes], failure: FrameError | None) -> Iterator[bytes]:
    yield from frames
    if failure is not None:
        raise failure


class FrameStreamReceiver(_Deframer):
    """The receiving end of a Frame Streams connection or file. Which of the two ways it goes, the first frame tells.

    Bidirectional: READY, our ACCEPT, START, data, STOP, our FINISH. Unidirectional: START, data, STOP. PowerDNS and
    dnsdist never send STOP: a plain end between frames is fine.
    """

    def __init__(self, *, content_type: bytes = DNSTAP_CONTENT_TYPE, max_frame: int = MAX_DATA_FRAME) -> None:
        super().__init__()
        self._content_type = content_type
        self._max_frame = max_frame
        self._state = State.OPENING
        self._bidirectional = False
        self._outgoing = bytearray()

    @property
    def state(self) -> State:
        """Where the stream stands."""
        return self._state

    @property
    def started(self) -> bool:
        """True once START was received."""
        return self._state in (State.STREAMING, State.STOPPED)

    @property
    def finished(self) -> bool:
        """True once STOP was received."""
        return self._state is State.STOPPED

    @property
    def bidirectional(self) -> bool:
        """True once the sender has asked for an answer with READY."""
        return self._bidirectional

    def data_to_send(self) -> bytes:
        """ACCEPT after READY, FINISH after the STOP of a bidirectional stream; each is given once."""
        data = bytes(self._outgoing)
        self._outgoing.clear()
        return data

    def receive_end(self) -> None:
        """Take note that the stream has ended. Raises `FrameError` when that cuts a frame, or the opening, in two."""
        super().receive_end()
        if not self.started:
            raise self._fail(0, "the stream ends before its START frame")

    def _parse(self, data: bytes, frames: list[bytes]) -> int:
        position = 0
        end = len(data)
        unpack = _U32.unpack_from
        streaming = self._state is State.STREAMING
        max_frame = self._max_frame
        while True:
            start = position + _LENGTH
            if start > end:
                self._needed = _LENGTH
                return position
            length: int = unpack(data, position)[0]
            if length:
                if not streaming:
                    raise self._fail(position, f"a data frame in state {self._state.name}")
                if length > max_frame:
                    raise self._fail(position, f"a data frame of {length} bytes; at most {max_frame} are allowed")
                stop = start + length
                if stop > end:
                    self._needed = _LENGTH + length
                    return position
                frames.append(data[start:stop])
                position = stop
                continue
            stop = self._control_end(data, position)
            if stop > end:
                self._needed = stop - position
                return position
            self._control(data[start + _LENGTH : stop], position)
            streaming = self._state is State.STREAMING
            position = stop

    def _control_end(self, data: bytes, position: int) -> int:
        """Where the control frame at `position` ends; as much of it as is needed to know when that is not there yet."""
        start = position + 2 * _LENGTH
        if start > len(data):
            return start
        length: int = _U32.unpack_from(data, position + _LENGTH)[0]
        if not _LENGTH <= length <= MAX_CONTROL_FRAME:
            allowed = f"{_LENGTH} to {MAX_CONTROL_FRAME} are allowed"
            raise self._fail(position, f"a control frame of {length} bytes; {allowed}")
        return start + length

    def _control(self, frame: bytes, position: int) -> None:
        code: int = _U32.unpack_from(frame)[0]
        content_types = self._content_types(frame, position)
        match code, self._state:
            case ControlType.READY, State.OPENING:
                self._check_content_type(content_types, position)
                self._bidirectional = True
                self._outgoing += control_frame(ControlType.ACCEPT, self._content_type)
                self._state = State.ACCEPTED
            case ControlType.START, State.OPENING | State.ACCEPTED:
                if len(content_types) > 1:
                    raise self._fail(position, "START with more than one content type")
                self._check_content_type(content_types, position)
                self._state = State.STREAMING
            case ControlType.STOP, State.STREAMING:
                if self._bidirectional:
                    self._outgoing += control_frame(ControlType.FINISH)
                self._state = State.STOPPED
            case _:
                raise self._fail(position, f"control frame {_control_name(code)} in state {self._state.name}")

    def _content_types(self, frame: bytes, position: int) -> list[bytes]:
        types = []
        at = _LENGTH
        while at < len(frame):
            if at + 2 * _LENGTH > len(frame):
                raise self._fail(position, "a control frame ends inside a field")
            field, length = _U32.unpack_from(frame, at)[0], _U32.unpack_from(frame, at + _LENGTH)[0]
            at += 2 * _LENGTH
            if field != _FIELD_CONTENT_TYPE:
                raise self._fail(position, f"unknown control field {field}")
            if length > MAX_CONTENT_TYPE or at + length > len(frame):
                raise self._fail(position, f"a content type of {length} bytes")
            types.append(frame[at : at + length])
            at += length
        return types

    def _check_content_type(self, offered: list[bytes], position: int) -> None:
        # A control frame without the field matches any type, as in libfstrm.
        if offered and self._content_type not in offered:
            raise self._fail(position, f"content type {offered[0][:64]!r} is not {self._content_type!r}")


def _control_name(code: int) -> str:
    try:
        return ControlType(code).name
    except ValueError:
        return str(code)


class LengthPrefixedReceiver(_Deframer):
    """The receiving end of a stream or file of DNS messages, each after its length as u32 in network order."""

    started = True
    """There is no opening."""
    finished = False
    """The sender ends by closing."""

    def __init__(self, *, max_message: int = MAX_MESSAGE) -> None:
        super().__init__()
        self._max_message = max_message

    def data_to_send(self) -> bytes:
        """Always empty: this stream has one direction."""
        return b""

    def _parse(self, data: bytes, frames: list[bytes]) -> int:
        position = 0
        end = len(data)
        unpack = _U32.unpack_from
        while True:
            start = position + _LENGTH
            if start > end:
                self._needed = _LENGTH
                return position
            length: int = unpack(data, position)[0]
            if not 0 < length <= self._max_message:
                raise self._fail(position, f"a message of {length} bytes; 1 to {self._max_message} are allowed")
            stop = start + length
            if stop > end:
                self._needed = _LENGTH + length
                return position
            frames.append(data[start:stop])
            position = stop


def control_frame(kind: ControlType, *content_types: bytes) -> bytes:
    """Compose a control frame. Raises `FrameError` when the content types do not fit into one."""
    body = _U32.pack(kind) + b"".join(
        _U32.pack(_FIELD_CONTENT_TYPE) + _U32.pack(len(content_type)) + content_type for content_type in content_types
    )
    if len(body) > MAX_CONTROL_FRAME:
        raise FrameError(f"a control frame of {len(body)} bytes; at most {MAX_CONTROL_FRAME} are allowed")
    return _U32.pack(0) + _U32.pack(len(body)) + body


def data_frame(payload: bytes, *, limit: int = MAX_DATA_FRAME) -> bytes:
    """Put its length before `payload`: a data frame, or a length-prefixed message.

    Raises `FrameError` when it is empty (length 0 means a control frame) or longer than `limit`.
    """
    if not 0 < len(payload) <= limit:
        raise FrameError(f"a frame of {len(payload)} bytes; 1 to {limit} are allowed")
    return _U32.pack(len(payload)) + payload


def write_frames(payloads: Iterable[bytes], *, content_type: bytes = DNSTAP_CONTENT_TYPE) -> Iterator[bytes]:
    """Compose a unidirectional stream, as a file holds it: START, a data frame for each payload, STOP."""
    yield control_frame(ControlType.START, content_type)
    for payload in payloads:
        yield data_frame(payload)
    yield control_frame(ControlType.STOP)


def write_messages(messages: Iterable[bytes]) -> Iterator[bytes]:
    """Compose a stream of length-prefixed DNS messages."""
    for message in messages:
        yield data_frame(message, limit=MAX_MESSAGE)
