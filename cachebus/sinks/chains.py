"""Puts the RRsets of a cache together again into the chains that a resolver is asked for.

A cache holds RRsets under their own names and types. A resolver that is filled with them follows a CNAME by itself, but
it cannot call the result secure without the zone's keys, and those are not filled. So every alias is given as a whole
answer for each type that is known at its end. Pure, and decides nothing about trust: an answer is as good as its
weakest RRset.
"""

from __future__ import annotations

from collections.abc import Iterator

from cachebus.answer import Answer, RRset
from cachebus.wire import rrtypes
from cachebus.wire.message import cname_target
from cachebus.wire.name import ancestors

MAX_LINKS = 11
"""CNAMEs in a chain; resolvers follow about as many."""
MAX_TYPES = 8
"""Types at the end of an alias for which an answer is made; hosts have A, AAAA, HTTPS and little else."""

_ALIASES = frozenset({rrtypes.CNAME, rrtypes.DNAME})


class Chains:
    """Answers, most popular first, to be given back with their aliases completed."""

    def __init__(self) -> None:
        self._answers: list[Answer] = []
        self._known: dict[tuple[bytes, int], Answer] = {}
        self._types: dict[bytes, list[int]] = {}

    def add(self, answer: Answer) -> None:
        """Take the next answer; its RRsets may complete those of any other."""
        self._answers.append(answer)
        for rrset in answer.rrsets:
            key = (rrset.owner, rrset.type)
            if key not in self._known:
                self._known[key] = answer._replace(qname=rrset.owner, qtype=rrset.type, rrsets=(rrset,))
                if rrset.type not in _ALIASES:
                    self._types.setdefault(rrset.owner, []).append(rrset.type)

    def __len__(self) -> int:
        return len(self._answers)

    def answers(self) -> Iterator[Answer]:
        """Every answer in the order taken, each lone CNAME followed by the whole answers that begin with it."""
        for answer in self._answers:
            if answer.qtype != rrtypes.CNAME or len(answer.rrsets) != 1:
                yield answer
                continue
            links = self._links(answer)
            yield _join(links[: 2 if links[0].qtype == rrtypes.DNAME else 1], answer.qname)
            if links[-1].qtype == rrtypes.CNAME:
                end = cname_target(links[-1].rrsets[0])
                for rrtype in self._types.get(end, ())[:MAX_TYPES]:
                    yield _join([*links, self._known[end, rrtype]], answer.qname)

    def _links(self, alias: Answer) -> list[Answer]:
        """The CNAMEs from an alias on, each with the DNAME that yields it."""
        links: list[Answer] = []
        seen: set[bytes] = set()
        link: Answer | None = alias
        while link is not None and link.qname not in seen and len(seen) < MAX_LINKS:
            seen.add(link.qname)
            dname = self._dname(link.rrsets[0])
            links += [link] if dname is None else [dname, link]
            link = self._known.get((cname_target(link.rrsets[0]), rrtypes.CNAME))
        return links

    def _dname(self, cname: RRset) -> Answer | None:
        """The DNAME of which a CNAME without RRSIG is the consequence (RFC 6672 section 3.1)."""
        if cname.sigs:
            return None
        for ancestor in ancestors(cname.owner):
            dname = self._known.get((ancestor, rrtypes.DNAME))
            if dname is not None and ancestor != cname.owner:
                target = cname.owner[: -len(ancestor)] + cname_target(dname.rrsets[0])
                return dname if target == cname_target(cname) else None
        return None


def _join(parts: list[Answer], qname: bytes) -> Answer:
    """One answer of several single RRsets, aged to the latest of them."""
    learned = max(part.learned for part in parts)
    last = parts[-1]
    return last._replace(
        qname=qname,
        rrsets=tuple(part.rrsets[0]._replace(ttl=int(part.rrsets[0].ttl - (learned - part.learned))) for part in parts),
        evidence=min(part.evidence for part in parts),
        learned=learned,
        validating=all(part.validating for part in parts),
    )
