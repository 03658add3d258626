"""What clients and upstreams say of subnets (`shim.subnet`), and what the admin socket is asked to flush
(`admin.orders`)."""

from __future__ import annotations

from random import Random
from typing import Any
from urllib.parse import parse_qsl, quote

import dns.edns
import dns.wire

from cachebus.admin.orders import read_flush
from cachebus.presentation import name_from_text
from cachebus.shim.caching import SubnetSettings
from cachebus.shim.query import Edns, Query
from cachebus.shim.subnet import (
    MalformedSubnetError,
    Subnet,
    Subnets,
    find_subnet,
    parse_subnet,
    scope_in,
    subnet_option,
)
from tests.fuzz.grammar import make_options
from tests.fuzz.harness import Part, Target
from tests.fuzz.messages import BytesTarget
from tests.fuzz.mutate import below

_NAME = name_from_text("www.example.")
_WORDS = ("name", "subtree", "type", "key_tag", "signer", "all", "nmae")
_VALUES = ("www.example.", ".", "1", "0", "", "A", "TYPE65280", "NOPE", "65535", "65536", "a..b", "\\300", "x" * 70)


class SubnetTarget(BytesTarget):
    """EDNS options with a client subnet: read as dnspython reads it, told no longer than configured, or refused."""

    name = "subnet"
    parts = (
        Part("cachebus/shim/subnet.py", only=("find_subnet", "parse_subnet", "scope_in", "shortened", "option", "of")),
    )
    cost = 1

    def __init__(self) -> None:
        self._subnets = Subnets(SubnetSettings(send=True))

    def valid(self, rng: Random) -> bytes:
        family = 1 + below(rng, 2)
        source = below(rng, 33 if family == 1 else 129)
        scope = 0 if rng.random() < 0.5 else below(rng, source + 1)
        ours = subnet_option(Subnet(family, source, rng.getrandbits(source) if source else 0, scope).option())
        options = make_options(rng) if rng.random() < 0.3 else b""
        return ours + options if rng.random() < 0.5 else options + ours

    def check(self, example: bytes, rng: Random) -> bool:
        if not _well_formed(example):
            return False  # a query with such options is refused before
        try:
            found = find_subnet(example)
        except MalformedSubnetError:
            found = None
            assert scope_in(example, b"") == -1
            assert scope_in(example, Subnet(1, 24, 1).option()) is None
        query = Query(b"\0\1", 0x100, b"", _NAME, 1, Edns(1232, do=False, options=example), "192.0.2.1")
        told = self._subnets.of(query)
        if told:
            shown = parse_subnet(told)
            assert shown.scope == 0
            assert shown.source <= (24 if shown.family == 1 else 56)
        if found is None:
            return False
        assert parse_subnet(found.option()) == found
        theirs = dns.edns.ECSOption.from_wire_parser(8, dns.wire.Parser(found.option()))
        assert (theirs.srclen, theirs.scopelen) == (found.source, found.scope)
        scope = scope_in(example, found._replace(scope=0).option())
        assert scope == min(found.scope, found.source)
        assert scope_in(example, b"") == (-1 if found.scope else 0)
        return True


def _well_formed(options: bytes) -> bool:
    position = 0
    while position + 4 <= len(options):
        position += 4 + (options[position + 2] << 8 | options[position + 3])
    return position == len(options)


class FlushTarget(BytesTarget):
    """The query string of a flush: one that makes sense, or a sentence that says why not."""

    name = "flush"
    parts = (Part("cachebus/admin/orders.py"),)
    cost = 1

    def valid(self, rng: Random) -> bytes:
        if rng.random() < 0.6:
            return (b"name=a.example&subtree=1", b"name=A.example&type=txt", b"key_tag=7&signer=example", b"all=1")[
                below(rng, 4)
            ]
        chosen = rng.sample(_WORDS, 1 + below(rng, 3))
        return "&".join(f"{word}={quote(_VALUES[below(rng, len(_VALUES))])}" for word in chosen).encode()

    def check(self, example: bytes, rng: Random) -> bool:
        parameters = dict(parse_qsl(example.decode("utf-8", "replace"), keep_blank_values=True))
        try:
            flush = read_flush(parameters)
        except ValueError:
            return False
        assert flush.covers(flush.name)
        assert flush.key_tag is None or flush.subtree
        assert not (flush.rrtype is not None and flush.subtree)
        assert flush.is_all == (parameters.get("all") == "1" or (flush.subtree and parameters.get("name") == "."))
        return True


TARGETS: tuple[type[Target[Any]], ...] = (SubnetTarget, FlushTarget)
"""Every target there is."""
