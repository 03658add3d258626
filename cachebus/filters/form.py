"""The form that every response must have to count for anything (trust rules, sections 2 and 4).

Looks at one message's header, question and EDNS options. Refuses to know of pairing, zones and chains.
"""

from __future__ import annotations

from cachebus.answer import Refusal
from cachebus.errors import MessageError
from cachebus.filters.chain import refused_type
from cachebus.filters.edns import refusal_in
from cachebus.wire.message import AA, CD, HEADER_LENGTH, IN, NOERROR, OPCODE, QR, RCODE, TC, Message
from cachebus.wire.name import is_at_or_below, skip_name


def header_refusal(wire: bytes, *, authoritative: bool = False) -> Refusal | None:
    """Why the header alone refuses a response, or None. `authoritative`: AA=1 is the evidence."""
    if len(wire) < HEADER_LENGTH:
        return Refusal.MALFORMED
    flags = wire[2] << 8 | wire[3]
    if not flags & QR:
        return Refusal.NOT_A_RESPONSE
    if flags & OPCODE:
        return Refusal.OPCODE
    if flags & TC:
        return Refusal.TRUNCATED
    if flags & RCODE != NOERROR:
        return Refusal.RCODE
    if wire[4] or wire[5] != 1:
        return Refusal.QUESTION_COUNT
    if authoritative and not flags & AA:
        return Refusal.NOT_AUTHORITATIVE
    return None


def question_bytes(wire: bytes) -> bytes:
    """The first question as on the wire. Raises `MessageError` when there is none, or it is cut short."""
    if len(wire) < HEADER_LENGTH or not (wire[4] or wire[5]):
        raise MessageError("no question")
    end = skip_name(wire, HEADER_LENGTH, len(wire)) + 4
    if end > len(wire):
        raise MessageError("the question is cut short")
    return wire[HEADER_LENGTH:end]


def question_refusal(message: Message, zone: bytes, *, infrastructure: bool) -> Refusal | None:
    """Why the question, or what EDNS says of the answer, refuses it, or None. `zone`: lower-case wire form."""
    if message.rcode != NOERROR:
        return Refusal.RCODE
    if message.qclass != IN:
        return Refusal.CLASS
    if refused_type(message.qtype, infrastructure=infrastructure):
        return Refusal.QTYPE
    if not is_at_or_below(message.qname, zone):
        return Refusal.OUT_OF_ZONE
    if message.opt is not None and message.opt.options:
        return refusal_in(message.opt.options)
    return None


def finished_refusal(message: Message, *, infrastructure: bool) -> Refusal | None:
    """`question_refusal` for a resolver's finished answer, which the CD bit takes the worth from as well."""
    if message.flags & CD:
        return Refusal.CLIENT_CHECKING_DISABLED
    return question_refusal(message, b"\0", infrastructure=infrastructure)
