"""The two rows that `bench` sets cachebus beside: the floor, and dnspython as its documentation advises.

Decides what work each does per datagram, and nothing about measuring.

- *floor*: a uvloop datagram endpoint and one `hmac.digest` (SHA-256) over each datagram's bytes. No Python program can
  receive or send authenticated datagrams for less.
- *dnspython*: `dns.message.from_wire` with a keyring (verifies the TSIG record); then each RRset of the answer into a
  dict with its expiry. Sending: a `dns.message.Message` from RRsets that stand ready as objects, `use_tsig`, `to_wire`.
  No replay memory, no rules, no ranks: less work than cachebus does, and the way a script would be written.
"""

from __future__ import annotations

import asyncio
import hmac
import time
from typing import Protocol

import dns.flags
import dns.message
import dns.name
import dns.rdataclass
import dns.rdatatype
import dns.rrset
import dns.tsigkeyring

from cachebus.answer import Answer
from cachebus.ports import Sender
from cachebus.wire.message import compose

MAX_UDP = 65535
"""Bytes: what dnspython may write; the messages of the trace are far smaller."""


class Receiver(Protocol):
    """What takes the datagrams of one row; the subscriber is one."""

    received: int

    def receive(self, data: bytes, sender: Sender) -> None:
        """Do the row's whole work on one datagram."""
        ...


class Floor:
    """One HMAC per datagram."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self.received = 0

    def receive(self, data: bytes, sender: Sender) -> None:
        """Compute the MAC of what came."""
        hmac.digest(self._secret, data, "sha256")
        self.received += 1

    def send(self, data: bytes, endpoint: asyncio.DatagramTransport, address: tuple[str, int]) -> None:
        """Compute the MAC of what goes, and send it."""
        hmac.digest(self._secret, data, "sha256")
        endpoint.sendto(data, address)


class Dnspython:
    """A script's subscriber and publisher on dnspython."""

    def __init__(self, key_name: str, algorithm: str, secret: str) -> None:
        """`secret` in base64, as a keyring takes it."""
        self._keyring = dns.tsigkeyring.from_text({key_name: (algorithm, secret)})
        self._key_name = dns.name.from_text(key_name)
        self._cache: dict[tuple[dns.name.Name, dns.rdatatype.RdataType], tuple[dns.rrset.RRset, float]] = {}
        self.received = 0

    def receive(self, data: bytes, sender: Sender) -> None:
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

    def send(
        self,
        prepared: tuple[dns.rrset.RRset, list[dns.rrset.RRset]],
        endpoint: asyncio.DatagramTransport,
        address: tuple[str, int],
    ) -> None:
        """Make the message, sign it, send it."""
        question, rrsets = prepared
        message = dns.message.Message()
        message.flags = dns.flags.QR | dns.flags.AA
        message.question.append(question)
        message.answer.extend(rrsets)
        message.use_tsig(self._keyring, self._key_name)
        endpoint.sendto(message.to_wire(max_size=MAX_UDP), address)


class Sink:
    """Takes datagrams that only their sender is measured with."""

    def __init__(self) -> None:
        self.received = 0

    def receive(self, data: bytes, sender: Sender) -> None:
        """Count it."""
        self.received += 1
