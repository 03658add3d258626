"""Names and types between wire form and the text people write (RFC 1035 section 5.1, RFC 3597 section 5, RFC 4343).

Used at the edges only: configuration, CLI, JSON. Knows nothing of messages.
"""

from __future__ import annotations

from cachebus.errors import MessageError

MAX_NAME = 255
"""Bytes of a name in wire form, root label included (RFC 1035 section 2.3.4)."""
MAX_LABEL = 63
"""Bytes of a label (RFC 1035 section 2.3.4)."""

TYPES = {
    1: "A", 2: "NS", 5: "CNAME", 6: "SOA", 10: "NULL", 12: "PTR", 13: "HINFO", 14: "MINFO", 15: "MX", 16: "TXT",
    17: "RP", 18: "AFSDB", 24: "SIG", 25: "KEY", 28: "AAAA", 29: "LOC", 33: "SRV", 35: "NAPTR", 36: "KX", 37: "CERT",
    39: "DNAME", 41: "OPT", 42: "APL", 43: "DS", 44: "SSHFP", 45: "IPSECKEY", 46: "RRSIG", 47: "NSEC", 48: "DNSKEY",
    49: "DHCID", 50: "NSEC3", 51: "NSEC3PARAM", 52: "TLSA", 53: "SMIMEA", 55: "HIP", 59: "CDS", 60: "CDNSKEY",
    61: "OPENPGPKEY", 62: "CSYNC", 63: "ZONEMD", 64: "SVCB", 65: "HTTPS", 99: "SPF", 108: "EUI48", 109: "EUI64",
    249: "TKEY", 250: "TSIG", 251: "IXFR", 252: "AXFR", 255: "ANY", 256: "URI", 257: "CAA",
}  # fmt: skip
"""Type codes with a mnemonic of their own (IANA registry); every other type is TYPEn."""
_CODES = {text: code for code, text in TYPES.items()}
_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_*/+=:@!#%&,<>?[]^`{|}~'")


def type_to_text(rrtype: int) -> str:
    """Mnemonic of a type code, or TYPEn (RFC 3597 section 5)."""
    return TYPES.get(rrtype) or f"TYPE{rrtype}"


def type_from_text(text: str) -> int:
    """Type code of a mnemonic or TYPEn, in any case. Raises `ValueError` for anything else."""
    upper = text.upper()
    code = _CODES.get(upper)
    if code is not None:
        return code
    digits = upper.removeprefix("TYPE")
    if digits != upper and digits.isascii() and digits.isdigit() and len(digits) <= 5 and int(digits) < 65536:
        return int(digits)
    raise ValueError(f"no such record type: {text}")


def name_to_text(name: bytes) -> str:
    """Presentation form, lower case, with the final dot; bytes outside printable ASCII as \\DDD.

    `name` is an uncompressed wire-form name that was checked before.
    """
    if name == b"\0":
        return "."
    labels = []
    position = 0
    while length := name[position]:
        label = name[position + 1 : position + 1 + length].lower()
        labels.append("".join(chr(byte) if byte in _PLAIN else _escape(byte) for byte in label))
        position += length + 1
    return ".".join(labels) + "."


def _escape(byte: int) -> str:
    if byte in b'."\\;()$':
        return "\\" + chr(byte)
    return f"\\{byte:03d}"


def name_from_text(text: str) -> bytes:
    """Uncompressed wire form, lower case, of an absolute name; the final dot may be left out.

    Raises `ValueError` when a label is empty or beyond 63 bytes, the name beyond 255, or an escape is broken.
    """
    if text in (".", ""):
        if text:
            return b"\0"
        raise ValueError("a name is empty")
    labels = _split_labels(text)
    if not labels[-1]:
        labels.pop()
    wire = bytearray()
    for label in labels:
        if not label:
            raise ValueError(f"{text!r} has an empty label")
        if len(label) > MAX_LABEL:
            raise ValueError(f"{text!r} has a label longer than {MAX_LABEL} bytes")
        wire.append(len(label))
        wire += label
    wire.append(0)
    if len(wire) > MAX_NAME:
        raise ValueError(f"{text!r} is longer than {MAX_NAME} bytes")
    return bytes(wire).lower()


def _split_labels(text: str) -> list[bytearray]:
    raw = text.encode("utf-8")
    labels = [bytearray()]
    position = 0
    while position < len(raw):
        byte = raw[position]
        position += 1
        if byte == 0x2E:
            labels.append(bytearray())
        elif byte != 0x5C:
            labels[-1].append(byte)
        else:
            digits = raw[position : position + 3]
            if len(digits) == 3 and digits.isdigit() and int(digits) < 256:
                labels[-1].append(int(digits))
                position += 3
            elif digits and not digits[:1].isdigit():
                labels[-1].append(digits[0])
                position += 1
            else:
                raise ValueError(f"{text!r} has a broken escape")
    return labels


def check_name(name: bytes) -> None:
    """Raise `MessageError` unless `name` is exactly one uncompressed wire-form name within the limits of RFC 1035."""
    position = 0
    end = len(name)
    if end > MAX_NAME:
        raise MessageError(f"name longer than {MAX_NAME} bytes")
    while position < end:
        length = name[position]
        if length > MAX_LABEL:
            raise MessageError("not an uncompressed name")
        position += length + 1
        if not length:
            break
    else:
        raise MessageError("name has no end")
    if position != end:
        raise MessageError("bytes after the name")
