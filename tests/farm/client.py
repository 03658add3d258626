"""A DNS client that asks many questions at once over one UDP socket, as the stub clients of a resolver would."""

from __future__ import annotations

import contextlib
import random
import select
import socket
import time
from collections.abc import Iterable
from typing import NamedTuple

import dns.exception
import dns.flags
import dns.message
import dns.query
import dns.rdata
import dns.rdatatype

WINDOW = 40
"""Questions under way at once: less than a resolver's own limits, so that none is dropped."""
RETRY_AFTER = 1.0
"""Seconds after which a question is sent again."""


class Endpoint(NamedTuple):
    host: str
    port: int


class Question(NamedTuple):
    """What a client asks. `secure`: the whole answer is signed, so that a validating resolver sets AD."""

    name: str
    type: str
    dnssec: bool = False
    secure: bool = False

    def __str__(self) -> str:
        return f"{self.name} {self.type}"


def query(question: Question, *, recurse: bool = True, checking_disabled: bool = False) -> dns.message.Message:
    """The query message of a question: AD asked for, EDNS, DO where the question says so."""
    message = dns.message.make_query(question.name, question.type, use_edns=0, want_dnssec=question.dnssec)
    message.flags = dns.flags.AD | (dns.flags.RD if recurse else 0) | (dns.flags.CD if checking_disabled else 0)
    message.id = random.randrange(65536)
    return message


def ask(
    server: Endpoint,
    question: Question,
    *,
    timeout: float = 5.0,
    recurse: bool = True,
    checking_disabled: bool = False,
) -> dns.message.Message | None:
    """The answer to one question, over TCP where UDP's was cut; None when there is none in time."""
    return exchange(server, query(question, recurse=recurse, checking_disabled=checking_disabled), timeout=timeout)


def exchange(server: Endpoint, message: dns.message.Message, *, timeout: float = 5.0) -> dns.message.Message | None:
    try:
        reply, _ = dns.query.udp_with_fallback(message, server.host, timeout=timeout, port=server.port)
    except (dns.exception.Timeout, OSError):
        return None
    return reply


def ask_all(
    server: Endpoint, questions: Iterable[Question], *, timeout: float = 20.0, recurse: bool = True
) -> dict[Question, dns.message.Message]:
    """Ask every question, `WINDOW` at a time, over one UDP socket; the answers that came in time."""
    todo = list(dict.fromkeys(questions))
    todo.reverse()
    waiting: dict[int, tuple[Question, dns.message.Message, float]] = {}
    answers: dict[Question, dns.message.Message] = {}
    deadline = time.monotonic() + timeout
    with socket.socket(socket.AF_INET6 if ":" in server.host else socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.connect(server)
        udp.setblocking(False)
        while (todo or waiting) and time.monotonic() < deadline:
            while todo and len(waiting) < WINDOW:
                question = todo.pop()
                message = query(question, recurse=recurse)
                while message.id in waiting:
                    message.id = random.randrange(65536)
                waiting[message.id] = (question, message, time.monotonic())
                _send(udp, message)
            for reply in _receive(udp):
                if reply.id in waiting and waiting[reply.id][1].is_response(reply):
                    question, message, _ = waiting.pop(reply.id)
                    answers[question] = _complete(server, message, reply)
            _retry(udp, waiting)
    return answers


def _complete(server: Endpoint, message: dns.message.Message, reply: dns.message.Message) -> dns.message.Message:
    if reply.flags & dns.flags.TC:
        return dns.query.tcp(message, server.host, timeout=5, port=server.port)
    return reply


def _retry(udp: socket.socket, waiting: dict[int, tuple[Question, dns.message.Message, float]]) -> None:
    now = time.monotonic()
    for ident, (question, message, sent) in list(waiting.items()):
        if now - sent > RETRY_AFTER:
            waiting[ident] = (question, message, now)
            _send(udp, message)


def _send(udp: socket.socket, message: dns.message.Message) -> None:
    with contextlib.suppress(OSError):  # a server that is down: the question waits for its retry
        udp.send(message.to_wire())


def _receive(udp: socket.socket) -> list[dns.message.Message]:
    readable, _, _ = select.select([udp], [], [], 0.05)
    if not readable:
        return []
    messages = []
    while True:
        try:
            data = udp.recv(65535)
        except BlockingIOError:
            return messages
        except OSError:
            continue
        try:
            messages.append(dns.message.from_wire(data, raise_on_truncation=False))
        except dns.exception.DNSException:
            continue


def data(message: dns.message.Message) -> frozenset[str]:
    """What the answer section says, without TTLs, order and RRSIGs: one line of text per record.

    Names are lower-cased as in RFC 4034 section 6.2. A CNAME synthesised from a DNAME is data as well.
    """
    return frozenset(
        f"{rrset.name.to_text().lower()} {dns.rdatatype.to_text(rrset.rdtype)} {_canonical(rdata)}"
        for rrset in message.answer
        if rrset.rdtype != dns.rdatatype.RRSIG
        for rdata in rrset
    )


def _canonical(rdata: dns.rdata.Rdata) -> str:
    wire = rdata.to_digestable()
    return dns.rdata.from_wire(rdata.rdclass, rdata.rdtype, wire, 0, len(wire)).to_text()


def signatures(message: dns.message.Message) -> frozenset[str]:
    """The RRSIGs of the answer section, one line of text each."""
    return frozenset(
        f"{rrset.name.to_text().lower()} {rdata.to_text()}"
        for rrset in message.answer
        if rrset.rdtype == dns.rdatatype.RRSIG
        for rdata in rrset
    )
