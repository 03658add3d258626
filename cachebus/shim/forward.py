"""Forwards what nothing here knows: which upstream to ask, when to ask again, when to give up.

Equal questions share one look-up. The tries of one look-up race: a first server that answers late still wins over a
second that never does. Decides nothing about what may be kept or shared (`learn.py`).
"""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

from cachebus.answer import Refusal, RRset
from cachebus.errors import MessageError, TransportError
from cachebus.filters.chain import MAX_CNAMES, chain_from
from cachebus.filters.edns import STALE_CODES
from cachebus.ports import Clock
from cachebus.shim.exchange import NoSocketError
from cachebus.shim.lookup import NOT_AN_RRSET, Later
from cachebus.shim.query import Ede, Query, Response
from cachebus.shim.settings import Choice, ShimSettings
from cachebus.shim.subnet import reply_scope, subnet_option, wider
from cachebus.shim.upstream import Quality, Reply, Upstream
from cachebus.wire import rrtypes
from cachebus.wire.message import AD, NOERROR, SERVFAIL, Message, cname_target
from cachebus.wire.name import is_at_or_below

TRIES = 2
"""Per upstream: a lost datagram is no reason to leave a server whose cache is warm."""
TRY_INTERVAL = 0.8
"""Seconds before the next try: above every healthy round trip, and short enough for three before a client's 5."""
MAX_TRIES = 8
"""Per question, over all upstreams."""
EXPLORE_EVERY = 20
"""Questions of which one goes to an upstream that is not the fastest known: a change shows soon, at little cost."""
MAX_UPSTREAM_ERRORS = 4
"""Extended DNS Errors passed on: an upstream names one or two."""

_log = logging.getLogger(__name__)
_EDE_OPTION = 15
_OPTION = struct.Struct("!HH")
_PROOFS = frozenset({rrtypes.NSEC, rrtypes.NSEC3})

Learn = Callable[[bytes, int, Reply, float, float], None]
"""Called with the name and type asked, each good reply to a CD=0 question, the time, and when it was asked for; must
not raise."""


class Key(NamedTuple):
    """What makes two look-ups one."""

    qname: bytes
    qtype: int
    checking_disabled: bool
    generation: int = 0
    """Of the cache: what is asked after a flush must not be answered by what was under way before."""
    subnet: bytes = b""
    """The client subnet option that upstreams are told."""


class Forwarder:
    """The stage that asks upstreams. Equal questions under way share one look-up, whose task it owns."""

    def __init__(
        self,
        settings: ShimSettings,
        upstreams: Sequence[Upstream],
        learn: Learn,
        clock: Clock,
        *,
        generation: Callable[[], int] = lambda: 0,
        subnet: Callable[[Query], bytes] = lambda query: b"",
        tells: Callable[[bytes], bool] = lambda qname: True,
        finished: Callable[[Key, Response | None], None] = lambda key, response: None,
    ) -> None:
        """`generation`: that of the cache; `subnet`: what upstreams are told of the client of a query; `tells`: whether
        they are told so with a question for this name, to which its chain leads.

        `finished` is called at the end of each look-up, with what it gave; it must not raise.
        """
        self._settings = settings
        self._upstreams = tuple(upstreams)
        self._learn = learn
        self._clock = clock
        self._generation = generation
        self._subnet = subnet
        self._tells = tells
        self._finished = finished
        self._under_way: dict[Key, asyncio.Task[Response | None]] = {}
        self._planned = 0
        self.forwarded = 0
        self.joined = 0
        self.timeouts = 0
        self.failures = 0

    @property
    def in_flight(self) -> int:
        """Look-ups under way."""
        return len(self._under_way)

    def answer(self, query: Query, now: float) -> Later | None:
        """A way to wait for the upstreams' answer, None when none of them gives one; None without RD."""
        if not self._upstreams or not query.recursion_desired:
            return None
        return partial(self._look_up, self._key(query))

    def _key(self, query: Query, *, checking_disabled: bool | None = None) -> Key:
        unchecked = query.checking_disabled if checking_disabled is None else checking_disabled
        return Key(query.qname, query.qtype, unchecked, self._generation(), self._subnet(query))

    def refresh(self, query: Query) -> None:
        """Fetch again what is about to expire; nobody waits for it. Left undone when there is much to do."""
        key = self._key(query, checking_disabled=False)
        if self._upstreams and key not in self._under_way and len(self._under_way) < self._settings.max_in_flight:
            self._start(key).add_done_callback(_log_bug)

    def _start(self, key: Key) -> asyncio.Task[Response | None]:
        self.forwarded += 1
        task = asyncio.get_running_loop().create_task(self._whole(key))
        self._under_way[key] = task
        task.add_done_callback(lambda _: self._under_way.pop(key))
        return task

    async def _look_up(self, key: Key) -> Response | None:
        task = self._under_way.get(key)
        if task is None:
            task = self._start(key)
        else:
            self.joined += 1
        # Shielded: others wait for the same look-up, and what it learns is kept even if this client is gone.
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Give up the look-ups under way."""
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _whole(self, key: Key) -> Response | None:
        try:
            response = await self._resolve(key)
        except NoSocketError:
            self.failures += 1
            return None  # this host's trouble, and over when it is: nothing to be remembered of the question
        self._finished(key, response)
        return response

    async def _resolve(self, key: Key) -> Response | None:
        """The whole chain from the question, asking for each name an upstream left open. None when nobody answered."""
        deadline = asyncio.get_running_loop().time() + self._settings.timeout
        name = key.qname
        seen = {name}
        chain: list[RRset] = []
        authentic = True
        scope = 0
        for _ in range(MAX_CNAMES):
            asked = self._clock()
            told = key.subnet if not key.subnet or self._tells(name) else b""
            reply = await self._ask(key._replace(qname=name, subnet=told), deadline)
            if reply is None or reply.quality is not Quality.GOOD:
                self.failures += 1
                return None if reply is None else _failure(reply)
            found = read_chain(reply.message, name, key.qtype)
            if isinstance(found, Refusal):
                self.failures += 1
                return Response(SERVFAIL, errors=((Ede.OTHER, f"the upstream's answer: {found.value}"),))
            meant_for = reply_scope(reply.message, told)
            if meant_for is None:
                self.failures += 1
                return Response(SERVFAIL, errors=((Ede.OTHER, "the upstream's answer is for another network"),))
            scope = wider(scope, meant_for)
            if not key.checking_disabled:
                self._learn(name, key.qtype, reply, self._clock(), asked)
            chain += found.rrsets
            authentic = authentic and reply.upstream.settings.validating and bool(reply.message.flags & AD)
            if found.target is None or reply.message.rcode != NOERROR or _says_no_data(reply.message):
                authority = _authority(reply.message, complete=found.complete)
                errors = _stale_errors(reply)
                return Response(reply.message.rcode, tuple(chain), authority, authentic, errors, scope=scope)
            name = found.target
            if name in seen:
                break
            seen.add(name)
        self.failures += 1
        return Response(SERVFAIL, errors=((Ede.OTHER, "the CNAME chain loops or is too long"),))

    async def _ask(self, key: Key, deadline: float) -> Reply | None:
        """The first good reply; else the last bad one; None when nobody answered in time."""
        loop = asyncio.get_running_loop()
        race = _Race(key, self._plan(loop.time()))
        try:
            while not race.decided:
                now = loop.time()
                if now >= deadline:
                    break
                if race.wants_next(now):
                    race.start(now)
                await race.wait(min(deadline, race.next_start) - loop.time())
        finally:
            await race.end()
        self.timeouts += race.silent(loop.time())
        if race.best is None and race.starved:
            raise NoSocketError("no socket for a try")
        return race.best

    def _plan(self, now: float) -> list[Upstream]:
        """Whom to ask, in order: healthy ones first, as chosen; streams are tried once, they retransmit."""
        healthy = [upstream for upstream in self._upstreams if upstream.health.penalised_until <= now]
        if self._settings.choice is Choice.FASTEST and len(healthy) > 1:
            healthy = self._fastest_first(healthy)
        ailing = [upstream for upstream in self._upstreams if upstream.health.penalised_until > now]
        ailing.sort(key=lambda upstream: upstream.health.penalised_until)
        ordered = [*healthy, *ailing]
        return [upstream for upstream in ordered for _ in range(1 if upstream.encrypted else TRIES)][:MAX_TRIES]

    def _fastest_first(self, healthy: list[Upstream]) -> list[Upstream]:
        """By smoothed round trip, but never past one whose word is worth something else.

        Every `EXPLORE_EVERY`th question goes to the one asked longest ago among those of equal worth with the first.
        """
        worths = [upstream.worth for upstream in self._upstreams]
        healthy.sort(key=lambda upstream: (worths.index(upstream.worth), upstream.health.round_trip))
        self._planned += 1
        if self._planned % EXPLORE_EVERY == 0:
            equals = [upstream for upstream in healthy if upstream.worth == healthy[0].worth]
            neglected = min(equals, key=lambda upstream: upstream.health.asked)
            healthy.remove(neglected)
            healthy.insert(0, neglected)
        return healthy


class _Race:
    """The tries of one question: started one after the other, all waited for together."""

    def __init__(self, key: Key, plan: list[Upstream]) -> None:
        self._key = key
        self._plan = plan
        self._running: dict[asyncio.Task[Reply], tuple[Upstream, float]] = {}
        self.best: Reply | None = None
        self.starved = False
        """This host gave no socket for one of the tries."""
        self.next_start = 0.0

    @property
    def decided(self) -> bool:
        """There is a good reply, or nobody is left who could give one."""
        good = self.best is not None and self.best.quality is Quality.GOOD
        return good or not (self._plan or self._running)

    def wants_next(self, now: float) -> bool:
        """It is time for another try."""
        return bool(self._plan) and (now >= self.next_start or not self._running)

    def start(self, now: float) -> None:
        upstream = self._plan.pop(0)
        key = self._key
        options = subnet_option(key.subnet) if key.subnet else b""
        question = upstream.ask(key.qname, key.qtype, checking_disabled=key.checking_disabled, options=options)
        task = asyncio.get_running_loop().create_task(question)
        self._running[task] = (upstream, now)
        self.next_start = now + TRY_INTERVAL if self._plan else float("inf")

    async def wait(self, seconds: float) -> None:
        if not self._running:
            return
        done, _ = await asyncio.wait(self._running, timeout=max(seconds, 0), return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            upstream, _ = self._running.pop(task)
            try:
                self._take(task.result())
            except NoSocketError:
                self.starved = True
                self.next_start = 0.0
            except (TransportError, MessageError, OSError):
                self._give_up_on(upstream)

    def _take(self, reply: Reply) -> None:
        if reply.quality is Quality.GOOD:
            reply.upstream.health.succeeded()
            self.best = reply
            return
        if self.best is None or self.best.quality is not Quality.GOOD:
            self.best = reply
        self._plan = [upstream for upstream in self._plan if upstream is not reply.upstream]
        if reply.upstream.settings.validating:
            # SERVFAIL may mean bogus: an upstream that does not validate would hand the forgery out.
            self._plan = [upstream for upstream in self._plan if upstream.settings.validating]
        self.next_start = 0.0

    def _give_up_on(self, upstream: Upstream) -> None:
        upstream.health.failed(asyncio.get_running_loop().time())
        self._plan = [other for other in self._plan if other is not upstream]
        self.next_start = 0.0

    def silent(self, now: float) -> int:
        """Count, once the race is over, the upstreams that were given a fair time and said nothing; penalise them."""
        answered = self.best.upstream if self.best else None
        late = {
            upstream
            for upstream, started in self._running.values()
            if upstream is not answered and now - started >= TRY_INTERVAL
        }
        for upstream in late:
            upstream.health.failed(now)
        return len(late)

    async def end(self) -> None:
        """Give up the tries still running."""
        for task in self._running:
            task.cancel()
        if self._running:
            await asyncio.gather(*self._running, return_exceptions=True)


def _log_bug(task: asyncio.Task[Response | None]) -> None:
    # A look-up that nobody waits for has nobody else to tell.
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("a refresh ended in an error that nobody expected", exc_info=error)


def _says_no_data(message: Message) -> bool:
    return any(rrset.type == rrtypes.SOA for rrset in message.authority)


class FoundChain(NamedTuple):
    """What a reply says about one name."""

    rrsets: tuple[RRset, ...]
    complete: bool
    """The asked type is there."""
    target: bytes | None
    """The name where an incomplete chain goes on."""


def read_chain(message: Message, qname: bytes, qtype: int) -> FoundChain | Refusal:
    """The records on the chain from the question; what else stands in the answer section is left behind."""
    if qtype in NOT_AN_RRSET:
        rrsets = tuple(_on_the_way(message.answer, qname))
        return FoundChain(rrsets, bool(rrsets) and not _says_no_data(message), None)
    chain = chain_from(message.answer, qname, qtype)
    if chain is Refusal.NO_ANSWER:
        return FoundChain((), False, None)  # noqa: FBT003
    if isinstance(chain, Refusal):
        return chain
    return FoundChain(chain.rrsets(), chain.complete, None if chain.complete else chain.target)


def _on_the_way(answer: Iterable[RRset], qname: bytes) -> Iterator[RRset]:
    """All RRsets of the names that the aliases before them lead to, beginning with `qname`."""
    names = {qname}
    for rrset in answer:
        if rrset.type == rrtypes.DNAME and any(is_at_or_below(name, rrset.owner) for name in names):
            yield rrset
        elif rrset.owner in names:
            yield rrset
            if rrset.type == rrtypes.CNAME:
                names.add(cname_target(rrset))


def _authority(message: Message, *, complete: bool) -> tuple[RRset, ...]:
    """SOA and proofs of a negative answer; of a positive one the proofs, which a wildcard expansion needs."""
    wanted = _PROOFS if complete else _PROOFS | {rrtypes.SOA}
    return tuple(rrset for rrset in message.authority if rrset.type in wanted)


def _failure(reply: Reply) -> Response:
    """SERVFAIL, with what the upstream said about its reasons (RFC 8914 section 3)."""
    errors = _upstream_errors(reply.message)
    if not errors:
        code = Ede.NO_REACHABLE_AUTHORITY if reply.quality is Quality.LAME else Ede.NETWORK_ERROR
        errors = ((code, "the upstream failed"),)
    return Response(SERVFAIL, errors=errors)


def _stale_errors(reply: Reply) -> tuple[tuple[int, str], ...]:
    """That an answer is stale: the client must know, for it shows nowhere else."""
    return tuple(error for error in _upstream_errors(reply.message) if error[0] in STALE_CODES)


def _upstream_errors(message: Message) -> tuple[tuple[int, str], ...]:
    """Codes of the Extended DNS Errors in a reply; their text is the upstream's and stays there."""
    if message.opt is None:
        return ()
    options, position = message.opt.options, 0
    found: list[tuple[int, str]] = []
    while position + 4 <= len(options) and len(found) < MAX_UPSTREAM_ERRORS:
        code, length = _OPTION.unpack_from(options, position)
        if code == _EDE_OPTION and 2 <= length <= len(options) - position - 4:
            found.append((int.from_bytes(options[position + 4 : position + 6]), ""))
        position += 4 + length
    return tuple(found)
