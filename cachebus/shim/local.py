"""What this node answers by itself, before everything else: static records, hosts files, block-lists, special names.

Decides what such a name's answer is. It is never cached, never shared, and never secure: nobody signed it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from functools import partial
from ipaddress import ip_address
from typing import Any

from cachebus.answer import RRset
from cachebus.cache import MAX_CHAIN
from cachebus.errors import ConfigError
from cachebus.shim.block_lists import Action, Loader, Rule, Rules, read_hosts, read_records, wire_name
from cachebus.shim.local_settings import DEFAULT_TTL, LocalSettings
from cachebus.shim.lookup import Found, LookupOrder
from cachebus.shim.query import Ede, Query, Response
from cachebus.wire import rrtypes
from cachebus.wire.message import NOERROR, NXDOMAIN, REFUSED, SERVFAIL, cname_target, pack
from cachebus.wire.name import is_at_or_below

_LOCALHOST = b"\x09localhost\0"
_SPECIAL = (_LOCALHOST, b"\x07invalid\0", b"\x05onion\0")
"""Names that mean nothing in the DNS: RFC 6761 sections 6.3 and 6.4, RFC 7686 section 2."""
_SOA_NAMES = _LOCALHOST + b"\x06nobody\x07invalid\0"
_ADDRESSES = {rrtypes.A: bytes(4), rrtypes.AAAA: bytes(16)}
_LOOPBACK = {rrtypes.A: bytes((127, 0, 0, 1)), rrtypes.AAAA: bytes(15) + b"\1"}

_Errors = tuple[tuple[int, str], ...]

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Content:
    """Everything that was read: exchanged as one."""

    records: Rules = field(default_factory=Rules)
    exceptions: Rules = field(default_factory=Rules)
    listed: Rules = field(default_factory=Rules)
    skipped: int = 0

    @property
    def any(self) -> bool:
        return bool(len(self.records) or len(self.listed))


class LocalStage:
    """The first stage. `rest` is what a CNAME that leads out of the local data is asked of."""

    def __init__(self, settings: LocalSettings, rest: LookupOrder) -> None:
        self._settings = settings
        self._rest = rest
        self._content = _Content()
        self._special = _SPECIAL if settings.special_names else ()
        self.answered = 0
        self.blocked = 0

    async def load(self) -> None:
        """Read the files, in a thread. Raises `ConfigError` when one cannot be used."""
        settings = self._settings
        if settings.records or settings.hosts or settings.lists:
            self._content = await asyncio.to_thread(read, settings)

    @property
    def special(self) -> tuple[bytes, ...]:
        """Zones that mean nothing in the DNS, and are answered for here."""
        return self._special

    @property
    def has_data(self) -> bool:
        """Whether `claims` may be true of any name, now that everything is read."""
        return self._content.any

    def claims(self, qname: bytes) -> bool:
        """Whether the records or a list answer for a name (lower-case wire form)."""
        return self._find(qname) is not None

    def statistics(self) -> Mapping[str, int]:
        """Answers given, and what was read."""
        return {
            "local_answers": self.answered,
            "blocked": self.blocked,
            "local_names": len(self._content.records),
            "block_rules": len(self._content.listed),
            "block_lines_skipped": self._content.skipped,
        }

    def answer(self, query: Query, now: float) -> Found:
        """See `Stage`."""
        if query.qname.endswith(self._special) and (found := self._answer_special(query)) is not None:
            self.answered += 1
            return found
        if not self._content.any:
            return None
        rule = self._find(query.qname)
        if rule is None:
            return None
        if rule.action is not None or rule.source:
            self.blocked += 1
        else:
            self.answered += 1
        return self._apply(rule, query, now)

    def _find(self, qname: bytes) -> Rule | None:
        content = self._content
        rule = content.records.find(qname)
        if rule is None and (rule := content.listed.find(qname)) is not None and content.exceptions.find(qname):
            return None
        return rule

    def _answer_special(self, query: Query) -> Response | None:
        if not any(is_at_or_below(query.qname, special) for special in self._special):
            return None
        if self._content.any and self._content.records.find(query.qname) is not None:
            return None
        if not query.qname.endswith(_LOCALHOST):
            return negative(query.qname, NXDOMAIN, DEFAULT_TTL)
        data = _LOOPBACK.get(query.qtype)
        return _addresses(query, data, DEFAULT_TTL) if data else negative(query.qname, NOERROR, DEFAULT_TTL)

    def _apply(self, rule: Rule, query: Query, now: float) -> Found:
        errors = ((rule.error, ""),) if rule.source else ()
        match rule.action:
            case None:
                found = _records(rule, query, errors)
                return found if isinstance(found, Response) else self._follow(query, found, errors, now)
            case Action.NXDOMAIN:
                return negative(query.qname, NXDOMAIN, rule.ttl, errors)
            case Action.REFUSED:
                return Response(REFUSED, errors=errors)
            case Action.NULL if query.qtype in _ADDRESSES:
                return _addresses(query, _ADDRESSES[query.qtype], rule.ttl)._replace(errors=errors)
            case _:
                return negative(query.qname, NOERROR, rule.ttl, errors)

    def _follow(self, query: Query, alias: RRset, errors: _Errors, now: float) -> Found:
        """The alias and what it leads to: local data as long as there is some, then what everybody else says."""
        chain = [alias]
        while len(chain) <= MAX_CHAIN:
            target = cname_target(chain[-1])
            asked = query._replace(qname=target, question=target + query.question[-4:])
            rule = self._content.records.find(target)
            if rule is None:
                rest = self._answer_special(asked) or self._rest.answer(asked, now)
                if isinstance(rest, Response):
                    return _joined(chain, rest, errors)
                return partial(_wait, rest, chain, errors)
            found = _records(rule, asked, ())
            if isinstance(found, Response):
                return _joined(chain, found, errors)
            chain.append(found)
        return Response(SERVFAIL, errors=((Ede.OTHER, "the local CNAMEs loop or are too many"),))


def _records(rule: Rule, query: Query, errors: _Errors) -> Response | RRset:
    """What the records of a name say; only an alias: where it leads to is to be asked."""
    by_type = {rrset.type: rrset._replace(owner=query.qname) for rrset in rule.records}
    if query.qtype == rrtypes.ANY:  # one of them is an answer (RFC 8482 section 4.1)
        return Response(NOERROR, (next(iter(by_type.values())),), errors=errors)
    found = by_type.get(query.qtype)
    if found is not None:
        return Response(NOERROR, (found,), errors=errors)
    return by_type.get(rrtypes.CNAME) or negative(query.qname, NOERROR, rule.ttl, errors)


async def _wait(rest: Callable[[], Coroutine[Any, Any, Response]], chain: list[RRset], errors: _Errors) -> Response:
    return _joined(chain, await rest(), errors)


def _joined(chain: list[RRset], rest: Response, errors: _Errors) -> Response:
    """The aliases and what their end is. Where nobody may be asked for that (RD=0), they are what is known."""
    if rest.rcode == REFUSED:
        return Response(NOERROR, tuple(chain), errors=errors)
    answer = (*chain, *rest.answer) if rest.rcode in (NOERROR, NXDOMAIN) else ()
    return rest._replace(answer=answer, authentic=False, errors=errors + rest.errors)


def read(settings: LocalSettings) -> _Content:
    """Read every file. Raises `ConfigError`."""
    content = _Content()
    for owner, rrsets in _static(settings).items():
        wild = owner.startswith(b"\1*")
        rule = Rule(None, tuple(rrsets), ttl=settings.ttl)
        content.records.put(owner[2:] if wild else owner, rule, itself=not wild, below=wild)
    loader = Loader(content.listed, content.exceptions)
    for each in settings.lists:
        rule = Rule(each.action, error=each.error, source=each.name, ttl=each.ttl)
        loaded = loader.load(each.path, each.format, rule)
        content.skipped += loaded.skipped
        _log.info("block-list %s: %d rules, %d lines passed by", each.name, loaded.rules, loaded.skipped)
    return content


def _static(settings: LocalSettings) -> dict[bytes, list[RRset]]:
    owners = read_records("\n".join(settings.records), settings.ttl) if settings.records else {}
    for owner, rrsets in owners.items():
        if len(rrsets) > 1 and any(rrset.type == rrtypes.CNAME for rrset in rrsets):
            raise ConfigError(f"a local name has a CNAME and other records: {owner!r}")
    hosts: dict[bytes, dict[str, None]] = {}
    pointers: dict[bytes, bytes] = {}
    for path in settings.hosts:
        for name, address in read_hosts(path):
            if name not in owners:
                hosts.setdefault(name, {})[address] = None
            pointers.setdefault(wire_name(ip_address(address).reverse_pointer.encode()), name)
    ttl = settings.ttl
    for name, addresses in hosts.items():
        packed = [ip_address(address).packed for address in addresses]
        for rrtype, size in ((rrtypes.A, 4), (rrtypes.AAAA, 16)):
            if data := [each for each in packed if len(each) == size]:
                owners.setdefault(name, []).append(RRset(name, rrtype, ttl, pack(rrtype, ttl, data)))
    for reverse, name in pointers.items():
        owners.setdefault(reverse, [RRset(reverse, rrtypes.PTR, ttl, pack(rrtypes.PTR, ttl, [name]))])
    return owners


def negative(qname: bytes, rcode: int, ttl: int, errors: tuple[tuple[int, str], ...] = ()) -> Response:
    """NXDOMAIN or NODATA, with an SOA of our own, so that clients keep it (RFC 2308 section 5)."""
    numbers = b"".join(number.to_bytes(4, "big") for number in (1, 3600, 600, 86400, ttl))
    soa = RRset(qname, rrtypes.SOA, ttl, pack(rrtypes.SOA, ttl, [_SOA_NAMES + numbers]))
    return Response(rcode, (), (soa,), errors=errors)


def _addresses(query: Query, data: bytes, ttl: int) -> Response:
    return Response(NOERROR, (RRset(query.qname, query.qtype, ttl, pack(query.qtype, ttl, [data])),))
