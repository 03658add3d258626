"""Takes a received PUBLISH apart (MQTT 5 section 3.3, MQTT 3.1.1 section 3.3). Knows no other packet.

paho does the rest of the protocol. This one packet is the whole stream, and paho spends 150 us on its properties, of
which none decides anything here.
"""

from __future__ import annotations

from typing import NamedTuple

RETAIN = 0x01
"""Flag of the first byte."""
QOS = 0x06
"""Bits of the first byte."""


class Publish(NamedTuple):
    """What of a PUBLISH matters."""

    topic: bytes
    number: int
    """Packet identifier to acknowledge; 0 with QoS 0."""
    retained: bool
    payload: bytes


def decode_publish(first: int, body: bytes, *, v5: bool) -> Publish:
    """Decode what follows the fixed header, whose first byte is `first`. Raises `ValueError` when it is cut or wrong.

    Properties are not looked into: none of them changes what a receiver of ours may do.
    """
    position = 2 + int.from_bytes(body[:2], "big")
    topic, number = body[2:position], 0
    if first & QOS:
        number = int.from_bytes(body[position : position + 2], "big")
        if number == 0:
            raise ValueError("a packet identifier is missing")
        position += 2
    if v5:
        size, shift = 0, 0
        while True:
            if position >= len(body) or shift > 21:
                raise ValueError("the properties have no length")
            byte = body[position]
            position += 1
            size |= (byte & 127) << shift
            if byte < 128:
                break
            shift += 7
        position += size
    if position > len(body) or len(body) < 2:
        raise ValueError("the packet is cut")
    return Publish(topic, number, bool(first & RETAIN), body[position:])
