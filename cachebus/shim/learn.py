"""What the shim keeps of an upstream's reply, and what of it may be shared.

Everything goes into the node's cache for the shim's own clients, positive and negative; what the judge finds evidence
for also goes to `learned`, whose owner publishes it. Knows no socket; `now` is an argument.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from cachebus.answer import Answer, Evidence, Refusal, RRset
from cachebus.cache import Cache
from cachebus.filters.chain import DEFAULT_SWILD, limit
from cachebus.filters.edns import refusal_in
from cachebus.filters.settings import JudgeSettings
from cachebus.filters.upstream import UpstreamTrust, upstream_answers
from cachebus.shim.caching import TtlSettings
from cachebus.shim.forward import FoundChain, read_chain
from cachebus.shim.lookup import NOT_AN_RRSET, is_wildcard_expansion
from cachebus.shim.settings import UpstreamSettings
from cachebus.shim.swild_owners import Swilds
from cachebus.shim.upstream import Reply
from cachebus.wire import rrtypes
from cachebus.wire.message import AD, MAX_TTL, NOERROR, NXDOMAIN, Message, records, rrsig_fields
from cachebus.wire.name import is_at_or_below

Learned = Callable[[Answer], object]
"""Called with each answer that may be shared, before it is kept here; must not block or raise."""


class Learner:
    """Takes each good reply to a CD=0 question, once."""

    def __init__(
        self,
        node: str,
        cache: Cache,
        learned: Learned,
        *,
        infrastructure: bool,
        max_ttl: int,
        swild_type: int = DEFAULT_SWILD,
        swilds: Swilds | None = None,
        ttl: TtlSettings | None = None,
    ) -> None:
        """`max_ttl`: seconds, for what is shared; `ttl`: what the node's own clients are told, within it.

        `swilds`: told of each reply, for the SWILDs beside its answer; None where SWILD is switched off.
        """
        self._node = node
        self._cache = cache
        self._rules = JudgeSettings(
            name="shim", node=node, infrastructure=infrastructure, max_ttl=max_ttl, swild=swild_type
        )
        self._swilds = swilds
        self._ttl = ttl or TtlSettings()
        self._max_ttl = min(max_ttl, self._ttl.maximum)
        self._learned = learned
        self.shared = 0
        self.kept = 0
        self.raised = 0
        """RRsets that this node's clients are told for longer than their zone says."""
        self.not_shared: dict[Refusal, int] = {}
        """Reasons for which answers stayed with this node."""

    def learn(self, qname: bytes, qtype: int, reply: Reply, now: float, asked: float | None = None) -> None:
        """Hand on what may be shared, and keep what the reply says about `qname`.

        In this order, because whoever shares it wants to know whether it was in the cache before. Neither is done with
        what was flushed since `asked`, when the question was put; with what is true for some clients only (RFC 7871);
        with what the upstream calls stale, which would begin a new life here.
        """
        query, response = reply.exchange
        refusal = self._useless(qname, reply.message, now if asked is None else asked)
        if refusal is not None:
            self.not_shared[refusal] = self.not_shared.get(refusal, 0) + 1
            return
        trust = _trust(reply.upstream.settings)
        verdict = upstream_answers(query, response, trust=trust, now=now, settings=self._rules)
        shared: list[Answer] = []
        if isinstance(verdict, Refusal):
            self.not_shared[verdict] = self.not_shared.get(verdict, 0) + 1
        else:
            shared = verdict if self._swilds is None else self._capped(verdict)
            for answer in shared:
                self.shared += 1
                self._learned(answer)
                if answer.qtype == self._rules.swild and answer.qname != qname:  # not on the chain that is kept below
                    self._cache.put(answer, now)
        self._keep(qname, qtype, reply, shared, now)
        if self._swilds is not None:
            told = reply.upstream.settings
            self._swilds.look_at(reply.message, now, authoritative=told.authoritative, validating=told.validating)

    def _capped(self, answers: Iterable[Answer]) -> list[Answer]:
        assert self._swilds is not None
        cap = self._swilds.capped
        return [
            answer._replace(rrsets=tuple(map(cap, answer.rrsets))) if answer.qtype == self._rules.swild else answer
            for answer in answers
        ]

    def _useless(self, qname: bytes, message: Message, asked: float) -> Refusal | None:
        if self._cache.flushed_since(qname, asked) or any(
            self._cache.flushed_since(rrset.owner, asked) for rrset in message.answer
        ):
            return Refusal.FLUSHED
        refusal = None if message.opt is None else refusal_in(message.opt.options)
        return refusal if refusal in (Refusal.CLIENT_SUBNET, Refusal.STALE) else None

    def _keep(self, qname: bytes, qtype: int, reply: Reply, shared: Sequence[Answer], now: float) -> None:
        message = reply.message
        found = read_chain(message, qname, qtype)
        if isinstance(found, Refusal):
            return
        if qtype not in NOT_AN_RRSET:
            self._keep_chain(qname, qtype, found, reply, shared, now)
        if message.rcode == NXDOMAIN or (message.rcode == NOERROR and not found.complete and qtype not in NOT_AN_RRSET):
            self._keep_denial(found.target or qname, qtype, message, now)

    def _keep_chain(
        self, qname: bytes, qtype: int, found: FoundChain, reply: Reply, shared: Sequence[Answer], now: float
    ) -> None:
        wanted = without_synthesised(found.rrsets)
        if self._swilds is not None and qtype == self._rules.swild:
            wanted = [self._swilds.capped(rrset) for rrset in wanted]
        rrsets = [kept for rrset in wanted if (kept := limit_locally(rrset, now, self._max_ttl)) is not None]
        if not rrsets:
            return
        if found.complete and len(rrsets) == len(wanted):
            self._put(qname, qtype, tuple(rrsets), reply, shared, now)
            return
        for rrset in rrsets:  # what cannot be kept as one answer is kept under its own names
            self._put(rrset.owner, rrset.type, (rrset,), reply, shared, now)

    def _put(
        self, qname: bytes, qtype: int, rrsets: tuple[RRset, ...], reply: Reply, shared: Sequence[Answer], now: float
    ) -> None:
        evidence = _evidence(reply, rrsets)
        validating = reply.upstream.settings.validating
        answer = Answer(qname, qtype, rrsets, evidence, self._node, now, validating)
        if self._cache.put(answer, now, own_use=not _is_part(answer, shared)) is None:
            self.kept += 1
            for rrset in rrsets if self._ttl.minimum else ():
                self._raise(rrset, now)

    def _raise(self, rrset: RRset, now: float) -> None:
        """Let our own clients have it for the configured time at least; never beyond what its signer meant."""
        most = min((rrsig_fields(rdata).original_ttl for _, _, rdata in records(rrset.sigs)), default=MAX_TTL)
        least = min(self._ttl.minimum, most)
        if rrset.ttl < least:
            self.raised += self._cache.prolong(rrset.owner, rrset.type, least, now)

    def _keep_denial(self, name: bytes, qtype: int, message: Message, now: float) -> None:
        """RFC 2308: only with the zone's SOA, which says for how long."""
        for rrset in message.authority:
            if rrset.type == rrtypes.SOA and is_at_or_below(name, rrset.owner):
                soa = limit_locally(rrset, now, self._max_ttl)
                if soa is None:
                    return
                minimum = int.from_bytes(records(soa.rrs)[0][2][-4:], "big")
                ttl = min(soa.ttl, minimum, self._ttl.negative)
                asked = 0 if message.rcode == NXDOMAIN else qtype
                if ttl > 0 and self._cache.put_negative(name, asked, message.rcode, soa, ttl, now, self._node) is None:
                    self.kept += 1
                return


def _trust(settings: UpstreamSettings) -> UpstreamTrust:
    if settings.validating:
        return UpstreamTrust.VALIDATING
    return UpstreamTrust.AUTHORITATIVE if settings.authoritative else UpstreamTrust.NONE


def _evidence(reply: Reply, rrsets: tuple[RRset, ...]) -> Evidence:
    """What the upstream's word is worth in our own cache."""
    settings = reply.upstream.settings
    if settings.validating and reply.message.flags & AD and all(rrset.sigs for rrset in rrsets):
        return Evidence.VALIDATED
    return Evidence.AUTHORITATIVE if settings.authoritative else Evidence.CONFIRMED


def _is_part(answer: Answer, shared: Sequence[Answer]) -> bool:
    """Whether all of an answer is in what may be shared, whose evidence is as good."""
    may_be = {(rrset.owner, rrset.type) for one in shared if one.evidence >= answer.evidence for rrset in one.rrsets}
    return all((rrset.owner, rrset.type) in may_be for rrset in answer.rrsets)


def without_synthesised(rrsets: Iterable[RRset]) -> list[RRset]:
    """The RRsets without the CNAMEs that a DNAME before them yields: the cache makes those anew from the DNAME."""
    kept: list[RRset] = []
    after_dname = False
    for rrset in rrsets:
        if not (after_dname and rrset.type == rrtypes.CNAME):
            kept.append(rrset)
        after_dname = rrset.type == rrtypes.DNAME
    return kept


def limit_locally(rrset: RRset, now: float, max_ttl: int) -> RRset | None:
    """The RRset with the TTL that its signatures leave it (RFC 4035 section 5.3.3), None when that is nothing.

    Unlike what is shared, a wildcard expansion is kept: DO=1 clients, who need its proof, are sent upstream.
    """
    if not rrset.sigs or not is_wildcard_expansion(rrset):
        limited = limit(rrset, now, max_ttl=max_ttl)
        return None if isinstance(limited, Refusal) else limited
    ttl = min(rrset.ttl, max_ttl)
    for _, _, rdata in records(rrset.sigs):
        sig = rrsig_fields(rdata)
        left = (sig.expiration - math.ceil(now)) & 0xFFFFFFFF
        ttl = min(ttl, *(seconds if seconds <= MAX_TTL else 0 for seconds in (sig.original_ttl, left)))
    return rrset._replace(ttl=ttl) if ttl > 0 else None
