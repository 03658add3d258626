"""What the server says about itself: TXT records of class CHAOS (RFC 4892), for those who were told to say it.

Decides by the question alone. Everything else of that class is refused (RFC 1035 section 4.1.1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cachebus.errors import ConfigError
from cachebus.shim.padding import padding
from cachebus.shim.query import Error
from cachebus.shim.reply import MAX_STREAM_PAYLOAD, compose_opt
from cachebus.wire import rrtypes
from cachebus.wire.message import AA, HEADER_LENGTH, OWNER_IS_QUESTION, QR, RA, RD

MAX_TEXT = 255
"""Bytes: one string of a TXT record."""

_CLASS_CH = b"\0\3"
_TYPES = (rrtypes.TXT, rrtypes.ANY)
_VERSION_NAMES = (b"\7version\4bind\0", b"\7version\6server\0")
_HOST_NAMES = (b"\x08hostname\4bind\0", b"\2id\6server\0")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChaosSettings:
    """What is told to whom asks. Raises `ConfigError` for what is too long."""

    version: str | None = None
    """For version.bind and version.server."""
    hostname: str | None = None
    """For hostname.bind and id.server."""

    def __post_init__(self) -> None:
        for name in ("version", "hostname"):
            if len((getattr(self, name) or "").encode()) > MAX_TEXT:
                raise ConfigError(f"shim.chaos.{name} is longer than {MAX_TEXT} bytes")


class Chaos:
    """Answers refused questions of class CHAOS where it has an answer."""

    def __init__(self, settings: ChaosSettings) -> None:
        self._texts: Mapping[bytes, bytes] = {
            name: text.encode()
            for names, text in ((_VERSION_NAMES, settings.version), (_HOST_NAMES, settings.hostname))
            if text is not None
            for name in names
        }

    def answer(self, error: Error, options: bytes, *, padded: bool = False) -> bytes | None:
        """The reply to a question that was refused for its class or type; None: let it be refused.

        `options` and `padded` as for `compose_reply`.
        """
        question = error.question
        if question[-2:] != _CLASS_CH or int.from_bytes(question[-4:-2], "big") not in _TYPES:
            return None
        text = self._texts.get(question[:-4].lower())
        if text is None:
            return None
        flags = QR | AA | RA | (error.flags & RD)
        record = rrtypes.TXT.to_bytes(2, "big") + _CLASS_CH + bytes(4)
        rdata = bytes((len(text),)) + text
        body = b"".join((question, OWNER_IS_QUESTION, record, len(rdata).to_bytes(2, "big"), rdata))
        opt = b"" if error.edns is None else compose_opt(error.edns, 0, (), options)
        if opt and padded:
            options += padding(HEADER_LENGTH + len(body) + len(opt), MAX_STREAM_PAYLOAD)
            opt = compose_opt(error.edns, 0, (), options)
        head = error.id + flags.to_bytes(2, "big") + b"\0\1\0\1\0\0\0" + bytes((bool(opt),))
        return head + body + opt
