"""What the shim is told of local data and block-lists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cachebus.shim.block_lists import Action, Format
from cachebus.shim.query import Ede

DEFAULT_TTL = 300
"""Seconds: long enough to spare questions, short enough for a change to be seen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockList:
    """One file, and what becomes of the names in it."""

    name: str
    path: Path
    format: Format = Format.DOMAINS
    action: Action = Action.NXDOMAIN
    error: int = Ede.BLOCKED
    ttl: int = DEFAULT_TTL


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalSettings:
    """What the shim answers by itself."""

    records: Sequence[str] = ()
    """Lines in a zone file's form, names absolute."""
    hosts: Sequence[Path] = ()
    ttl: int = DEFAULT_TTL
    """Seconds, for hosts and for records that name none."""
    lists: Sequence[BlockList] = ()
    special_names: bool = True
    """localhost, invalid and onion are answered here and asked of nobody."""
