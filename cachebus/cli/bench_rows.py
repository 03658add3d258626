"""The rows that `bench` sets cachebus beside: the floor of each transport, and dnspython as its documentation advises.

Decides what work each does per message, and nothing about measuring.

- *floor*, codec `dns`: one `hmac.digest` (SHA-256) over each datagram's bytes. No Python program can receive or send
  authenticated datagrams for less.
- *floor*, codec `batch`: one `hmac.digest` over each envelope, `msgpack.unpackb`, zstd where it is used; then for each
  answer one owner name walked and one dict entry stored.
- *floor*, codec `cdns`: zstd where it is used, `cbor2.loads` of each block, and the same for each answer.
- *dnspython*: `dns.message.from_wire` with a keyring (verifies the TSIG record); then each RRset of the answer into a
  dict with its expiry. Sending: a `dns.message.Message` from RRsets that stand ready as objects, `use_tsig`, `to_wire`.
  No replay memory, no rules, no ranks: less work than cachebus does, and the way a script would be written. It always
  speaks TSIG over UDP, as no script on dnspython speaks anything else.
"""

from __future__ import annotations

import hmac
import struct
import sys
import time
from typing import Any, Final, Protocol

import cbor2
import dns.flags
import dns.message
import dns.name
import dns.rdataclass
import dns.rdatatype
import dns.rrset
import dns.tsigkeyring
import msgpack  # type: ignore[import-untyped]

from cachebus.answer import Answer
from cachebus.wire.message import compose

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MAX_UDP = 65535
"""Bytes: what dnspython may write; the messages of the trace are far smaller."""

# Where things stand in an envelope and in a block: docs/wire/batch.md, docs/wire/cdns.md.
_MAC: Final = 32
_HEAD: Final = struct.Struct("!BBHI")
_KIND, _COMPRESSION, _PAYLOAD = 5, 6, 7
_BLOCK_HEAD = 10
_LENGTH_AT = 6
_PREFIX = 4


class Row(Protocol):
    """What takes the messages of one row."""

    received: int
    """Messages so far."""

    def take(self, data: bytes) -> None:
        """Do the row's whole work on one message, or on the next bytes of a stream of them."""
        ...


class Floor:
    """One HMAC per datagram or envelope."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self.received = 0

    def take(self, data: bytes) -> None:
        """Compute the MAC of what came."""
        hmac.digest(self._secret, data, "sha256")
        self.received += 1

    def seal(self, data: bytes) -> None:
        """Compute the MAC of what goes."""
        hmac.digest(self._secret, data, "sha256")


class BatchFloor(Floor):
    """What codec `batch` cannot do without."""

    def __init__(self, secret: bytes) -> None:
        super().__init__(secret)
        self.cache: dict[tuple[bytes, int], bytes] = {}

    def take(self, data: bytes) -> None:
        """Check the MAC, decode; walk a name and store an entry for each answer."""
        start = 6 + data[4]
        body = data[start + _MAC :]
        if not hmac.compare_digest(
            hmac.digest(self._secret, data[:start] + body, "sha256"), data[start : start + _MAC]
        ):
            raise ValueError("an envelope of the bench's own with a wrong MAC")
        found = msgpack.unpackb(body)
        self.received += 1
        if found[_KIND]:
            return
        payload = zstd.decompress(found[_PAYLOAD]) if found[_COMPRESSION] else found[_PAYLOAD]
        heads, _, names, *rdatas = msgpack.unpackb(payload)
        cache = self.cache
        at = 0
        for number, (_, _, qtype, _) in enumerate(_HEAD.iter_unpack(heads)):
            end = at
            while step := names[end]:
                end += step + 1
            end += 1
            cache[names[at:end], qtype] = rdatas[number]
            at = end


class Blocks(Floor):
    """What codec `cdns` cannot do without. There is no MAC: the link authenticates."""

    def __init__(self, secret: bytes, opening: int) -> None:
        """`opening`: bytes of a stream before its first block."""
        super().__init__(secret)
        self._skip = opening
        self._rest = b""
        self.cache: dict[tuple[bytes, int], Any] = {}

    def take(self, data: bytes) -> None:
        """Take the next bytes of the stream; each block goes by the length that it says of itself."""
        data = self._rest + data
        at, self._skip = min(self._skip, len(data)), max(0, self._skip - len(data))
        while len(data) >= at + _BLOCK_HEAD:
            end = at + int.from_bytes(data[at + _LENGTH_AT : at + _BLOCK_HEAD], "big")
            if end > len(data):
                break
            self._block(data[at:end])
            at = end
        self._rest = data[at:]

    def _block(self, data: bytes) -> None:
        block = cbor2.loads(data)
        self.received += 1
        cache = self.cache
        if 3 not in block:
            return
        names = block[2][2]
        for item in block[3]:
            name = names[item[7]]
            end = 0
            while step := name[end]:
                end += step + 1
            cache[name[: end + 1], item[4]] = item

    def seal(self, data: bytes) -> None:
        """Nothing to do."""


class Lengths:
    """Messages of a floor that a length stands before."""

    def __init__(self, floor: Floor) -> None:
        self._floor = floor
        self._rest = b""

    def take(self, data: bytes) -> None:
        """Take the next bytes of a stream."""
        data = self._rest + data
        at = 0
        while len(data) >= at + _PREFIX:
            end = at + _PREFIX + int.from_bytes(data[at : at + _PREFIX], "big")
            if end > len(data):
                break
            self._floor.take(data[at + _PREFIX : end])
            at = end
        self._rest = data[at:]


class Inflated:
    """A compressed stream before what takes it apart."""

    def __init__(self, stream: Floor | Lengths) -> None:
        self._stream = stream
        self._decompressor = zstd.ZstdDecompressor()

    def take(self, data: bytes) -> None:
        """Take the next compressed bytes."""
        self._stream.take(self._decompressor.decompress(data))


class Dnspython:
    """A script's subscriber and publisher on dnspython."""

    def __init__(self, key_name: str, algorithm: str, secret: str) -> None:
        """`secret` in base64, as a keyring takes it."""
        self._keyring = dns.tsigkeyring.from_text({key_name: (algorithm, secret)})
        self._key_name = dns.name.from_text(key_name)
        self._cache: dict[tuple[dns.name.Name, dns.rdatatype.RdataType], tuple[dns.rrset.RRset, float]] = {}
        self.received = 0

    def take(self, data: bytes) -> None:
        """Parse, verify, and put each RRset into the dict."""
        message = dns.message.from_wire(data, keyring=self._keyring)
        now = time.time()
        for rrset in message.answer:
            self._cache[rrset.name, rrset.rdtype] = (rrset, now + rrset.ttl)
        self.received += 1

    def prepare(self, answer: Answer) -> tuple[dns.rrset.RRset, list[dns.rrset.RRset]]:
        """Question and answer section of an answer as objects; not part of what is measured."""
        chain = [(rrset, rrset.ttl) for rrset in answer.rrsets]
        message = dns.message.from_wire(compose(0, 0x8000, answer.qname, answer.qtype, chain))
        return message.question[0], message.answer

    def compose(self, prepared: tuple[dns.rrset.RRset, list[dns.rrset.RRset]]) -> bytes:
        """Make the message and sign it."""
        question, rrsets = prepared
        message = dns.message.Message()
        message.flags = dns.flags.QR | dns.flags.AA
        message.question.append(question)
        message.answer.extend(rrsets)
        message.use_tsig(self._keyring, self._key_name)
        return message.to_wire(max_size=MAX_UDP)
