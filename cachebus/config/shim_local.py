"""The sections `shim.local_data` and `shim.block_lists` as frozen models."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

from pydantic import AfterValidator, Field

from cachebus.config.section import MAX_NAMES, Section
from cachebus.config.values import File, Seconds

MAX_RECORD = 4096
"""Characters of one record: the longest TXT that fits a reply."""


def _record(text: str) -> str:
    """One record in a zone file's form; raises `ValueError`. Whether it is one is looked at when all are read."""
    if "\n" in text or text.lstrip().startswith(("$", ";")):
        raise ValueError("must be one record: NAME [TTL] TYPE DATA")
    return text


Record = Annotated[str, Field(max_length=MAX_RECORD), AfterValidator(_record)]


class ListFormat(Enum):
    """What a block-list's file holds."""

    DOMAINS = "domains"
    HOSTS = "hosts"
    RPZ = "rpz"


class ListAction(Enum):
    """What becomes of a listed name."""

    NXDOMAIN = "nxdomain"
    NODATA = "nodata"
    NULL = "null"
    REFUSED = "refused"


class ListError(Enum):
    """Extended DNS Errors of RFC 8914, sections 4.16 to 4.18."""

    BLOCKED = "blocked"
    CENSORED = "censored"
    FILTERED = "filtered"


class LocalData(Section):
    """Static records and hosts files. None of it is ever shared."""

    records: tuple[Record, ...] = Field(default=(), max_length=MAX_NAMES)
    """Records as in a zone file, their names absolute: `router.example. 300 A 192.0.2.1`. A name that has one has no
    others; `*.` stands for everything below."""
    hosts: tuple[File, ...] = Field(default=(), max_length=MAX_NAMES)
    """Files as hosts(5): addresses and their names, and PTR records for the addresses."""
    ttl: Seconds = Field(default=300, ge=1, le=86400)
    """TTL of what comes from `hosts`, and of records that have none."""
    special_names: bool = True
    """Answer localhost, and deny invalid and onion, without asking anybody (RFC 6761, RFC 7686)."""


class BlockList(Section):
    """One file of names."""

    file: File
    """The file. It is read at the start and at each reload, never in between."""
    format: ListFormat = ListFormat.DOMAINS
    """`domains`: a name a line, which stands for all below it as well, or `||name^`, with `@@` before it an exception.
    `hosts`: as hosts(5), each name for itself. `rpz`: a response policy zone, which says what becomes of each name."""
    action: ListAction = ListAction.NXDOMAIN
    """`nxdomain`, `nodata`, `null` (addresses 0.0.0.0 and ::), or `refused`."""
    error: ListError = ListError.BLOCKED
    """What the reply says about the reason: `blocked` by the operator, `censored` by order of others, `filtered` as the
    client asked for (RFC 8914)."""
    ttl: Seconds = Field(default=300, ge=1, le=86400)
    """How long clients may keep that."""
