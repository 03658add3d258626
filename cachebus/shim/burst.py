"""Many datagrams and their replies in one piece of memory, as recvmmsg(2) and sendmmsg(2) want it.

Knows the layout of Linux' message headers on 64-bit machines, and which reply goes with which datagram. Makes no system
call (`mmsg` does) and reads no DNS message.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from cachebus.shim.fast import FastPath

SLOTS: Final = 64
"""Datagrams that one call takes, after which the event loop gets its turn."""
MAX_DATAGRAM: Final = 4096
"""Bytes of a query that are read; what is longer is no query that anybody sends."""
MAX_REPLY: Final = 1232
"""Bytes of a reply: `reply.MAX_UDP_PAYLOAD`."""

_MESSAGE: Final = struct.Struct("=QI4xQQQQI4xI4x")
"""struct mmsghdr: address, its length, vectors, their number, control, its length, flags, bytes received."""
_VECTOR: Final = struct.Struct("=QQ")
_NAME_SIZE: Final = 32
"""Room for a socket address; a sockaddr_in6 has 28 bytes."""
_CONTROL_SIZE: Final = 64
"""Room for one IP_PKTINFO or IPV6_PKTINFO: 32 or 40 bytes."""
_WORDS: Final = _MESSAGE.size // 4
_LONGS: Final = _MESSAGE.size // 8
_LENGTH_AT: Final = 14
"""In 32-bit words."""
_CONTROL_LENGTH_AT: Final = 5
"""In 64-bit words."""
_PACKET_INFO: Final = 16
"""Where a struct in_pktinfo stands in its control message: interface, local address and the packet's destination, four
bytes each."""


class Burst:
    """The memory of one listener. `received` and `replies` are arrays of struct mmsghdr with `SLOTS` elements each."""

    def __init__(self, address_of: Callable[[bytearray], int], *, ipv6: bool, source: bool) -> None:
        """`address_of` gives where in memory a bytearray, which then must not be resized, stands.

        `source`: datagrams come with the address that they were sent to, and replies leave from it.
        """
        self._ipv6 = ipv6
        self._source = source
        self._name_length = 28 if ipv6 else 16
        self._data = bytearray(SLOTS * MAX_DATAGRAM)
        self._out = bytearray(SLOTS * MAX_REPLY)
        self._names = bytearray(SLOTS * _NAME_SIZE)
        self._control = bytearray(SLOTS * _CONTROL_SIZE)
        self._vectors = bytearray(2 * SLOTS * _VECTOR.size)
        self.received = bytearray(SLOTS * _MESSAGE.size)
        self.replies = bytearray(SLOTS * _MESSAGE.size)
        self._lay_out(address_of)
        self._view = memoryview(self._data)
        self._names_view = memoryview(self._names)
        self._received_words = memoryview(self.received).cast("I")
        self._received_longs = memoryview(self.received).cast("Q")
        self._reply_longs = memoryview(self.replies).cast("Q")
        self._vector_longs = memoryview(self._vectors).cast("Q")

    def _lay_out(self, address_of: Callable[[bytearray], int]) -> None:
        data, out, vectors = address_of(self._data), address_of(self._out), address_of(self._vectors)
        names, control = address_of(self._names), address_of(self._control)
        for slot in range(SLOTS):
            into, back = 2 * slot * _VECTOR.size, (2 * slot + 1) * _VECTOR.size
            _VECTOR.pack_into(self._vectors, into, data + slot * MAX_DATAGRAM, MAX_DATAGRAM)
            _VECTOR.pack_into(self._vectors, back, out + slot * MAX_REPLY, 0)
            room = (control + slot * _CONTROL_SIZE, _CONTROL_SIZE) if self._source else (0, 0)
            name = (names + slot * _NAME_SIZE, self._name_length)
            _MESSAGE.pack_into(self.received, slot * _MESSAGE.size, *name, vectors + into, 1, *room, 0, 0)
            _MESSAGE.pack_into(self.replies, slot * _MESSAGE.size, *name, vectors + back, 1, *room, 0, 0)

    def answer(self, count: int, fast: FastPath, now: float) -> list[int]:
        """Answer what can be answered at once of `count` datagrams; gives the slots of the others, in order."""
        words, view, names = self._received_words, self._view, self._names_view
        begin, end = (8, 24) if self._ipv6 else (4, 8)
        others: list[int] = []
        for slot in range(count):
            at = slot * MAX_DATAGRAM
            length: int = words[slot * _WORDS + _LENGTH_AT]
            name = slot * _NAME_SIZE
            client = names[name + begin : name + end].tobytes()
            reply = fast.answer(view[at : at + length].tobytes(), client, now)
            if reply is None:
                others.append(slot)
            else:
                self.put(slot, reply)
        return others

    def datagram(self, slot: int) -> bytes:
        """What was received there."""
        at = slot * MAX_DATAGRAM
        length: int = self._received_words[slot * _WORDS + _LENGTH_AT]
        return bytes(self._view[at : at + length])

    def name(self, slot: int) -> bytes:
        """The socket address that it came from."""
        at = slot * _NAME_SIZE
        return bytes(self._names[at : at + self._name_length])

    def packet_info(self, slot: int) -> bytes:
        """What makes a reply leave from where the datagram went to, once aimed; empty where nobody asked for that.

        A struct in_pktinfo or in6_pktinfo (RFC 3542 section 6.2).
        """
        if not self._source or not self._received_longs[slot * _LONGS + _CONTROL_LENGTH_AT]:
            return b""
        at = slot * _CONTROL_SIZE + _PACKET_INFO
        return bytes(self._control[at : at + (20 if self._ipv6 else 12)])

    def put(self, slot: int, reply: bytes) -> None:
        """Have `reply`, of at most `MAX_REPLY` bytes, answer the datagram of that slot."""
        at = slot * MAX_REPLY
        self._out[at : at + len(reply)] = reply
        self._vector_longs[4 * slot + 3] = len(reply)

    def aim(self, count: int) -> None:
        """Let `count` replies leave from where their datagrams went to: to be called between receiving and sending."""
        if not self._source:
            return
        for slot in range(count):
            length: int = self._received_longs[slot * _LONGS + _CONTROL_LENGTH_AT]
            self._reply_longs[slot * _LONGS + _CONTROL_LENGTH_AT] = length
            if not self._ipv6 and length:
                # From the address that was asked, by whatever interface leads to the client (ip(7), IP_PKTINFO).
                info = slot * _CONTROL_SIZE + _PACKET_INFO
                self._control[info : info + 8] = bytes(4) + self._control[info + 8 : info + 12]

    def make_room(self, count: int) -> None:
        """Let the kernel write control messages into these slots again, whatever length the last ones had."""
        if self._source:
            for slot in range(count):
                self._received_longs[slot * _LONGS + _CONTROL_LENGTH_AT] = _CONTROL_SIZE
