"""What a flush asked for over the admin API means. Decides which questions make sense; does nothing."""

from __future__ import annotations

from collections.abc import Mapping

from cachebus.flushes import Flush
from cachebus.presentation import name_from_text, type_from_text

_FLAG = {"1": True, "0": False, "": False}


def read_flush(parameters: Mapping[str, str]) -> Flush:
    """The flush of a query string: `name` with `subtree` or `type`, or `key_tag` with `signer`, or `all`.

    Raises `ValueError` with a sentence for everything else.
    """
    unknown = sorted(parameters.keys() - {"name", "subtree", "type", "key_tag", "signer", "all"})
    if unknown:
        raise ValueError(f"no such parameter: {unknown[0][:40]!r}")
    everything, subtree = _flag(parameters, "all"), _flag(parameters, "subtree")
    name, rrtype = parameters.get("name"), parameters.get("type")
    tag, signer = parameters.get("key_tag"), parameters.get("signer")
    if (tag is None) != (signer is None):
        raise ValueError("a key is its tag and its signer together")
    if everything + (name is not None) + (tag is not None) != 1:
        raise ValueError("one of a name, a key, or all")
    if (subtree or rrtype) and name is None:
        raise ValueError("a subtree or a type is one of a name")
    if subtree and rrtype:
        raise ValueError("a type is that of one name")
    if tag is not None:
        if not (tag.isascii() and tag.isdigit() and len(tag) <= 5 and int(tag) <= 65535):
            raise ValueError(f"{tag[:40]!r} is not a key tag: 0 to 65535")
        return Flush(name_from_text(signer or ""), subtree=True, key_tag=int(tag))
    if name is None:
        return Flush(b"\0", subtree=True)
    return Flush(name_from_text(name), subtree=subtree, rrtype=type_from_text(rrtype) if rrtype else None)


def _flag(parameters: Mapping[str, str], name: str) -> bool:
    value = parameters.get(name, "")
    if value not in _FLAG:
        raise ValueError(f"{name} is 1 or 0")
    return _FLAG[value]
