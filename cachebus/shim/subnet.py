"""Answers that are true for some clients only (RFC 7871): whose subnet is told, and what is kept for whom.

Such answers are kept apart from the cache, each for the network it was given for, and never shared; what is true for
everybody goes where everything goes. Knows no socket; `now` is an argument. Bounded. Networks are kept, as short as
they were told; a client's address is not.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, NamedTuple

from cachebus.filters.edns import CLIENT_SUBNET
from cachebus.flushes import Flush
from cachebus.ports import Clock
from cachebus.shim.caching import SubnetSettings
from cachebus.shim.lookup import Found, LookupOrder, Outcome, Stage
from cachebus.shim.query import Query, Response
from cachebus.wire import rrtypes
from cachebus.wire.message import FORMERR, NOERROR, Message
from cachebus.wire.name import is_at_or_below

MAX_ANSWERS = 10_000
"""Answers kept for networks, of all names together; about 10 MB. What was used longest ago gives way."""
MAX_NETWORKS = 256
"""Answers kept for one question: so no one name's can push out all others' (RFC 7871 section 11.3)."""

_BITS = {1: 32, 2: 128}
"""Bits of an address by family (RFC 7871 section 6: those of the IANA registry)."""
_TAILORED = frozenset({rrtypes.A, rrtypes.AAAA, rrtypes.SVCB, rrtypes.HTTPS})
"""Types for which a subnet is told: what tells clients where to connect to. All else has no use for it."""


class Subnet(NamedTuple):
    """A network, as the option names it."""

    family: int
    """1: IPv4, 2: IPv6."""
    source: int
    """Bits that are told."""
    address: int
    """Those bits, the first one highest, shifted down."""
    scope: int = 0
    """Bits that matter to the answer; 0 in a query."""

    def option(self) -> bytes:
        """The option's data on the wire."""
        size = (self.source + 7) // 8
        padded = self.address << (size * 8 - self.source)
        return bytes((0, self.family, self.source, self.scope)) + padded.to_bytes(size, "big")

    def shortened(self, bits: int) -> Subnet:
        """The network of at most so many bits that holds it."""
        if bits >= self.source:
            return self
        return self._replace(source=bits, address=self.address >> (self.source - bits))


class MalformedSubnetError(ValueError):
    """Raised for an option that is not as RFC 7871 section 6 wants it."""


def find_subnet(options: bytes) -> Subnet | None:
    """The client subnet option among well-formed EDNS options. Raises `MalformedSubnetError`."""
    position, found = 0, None
    while position < len(options):
        code = options[position] << 8 | options[position + 1]
        start = position + 4
        position = start + (options[position + 2] << 8 | options[position + 3])
        if code == CLIENT_SUBNET:
            if found is not None:
                raise MalformedSubnetError("more than one client subnet")
            found = parse_subnet(options[start:position])
    return found


def parse_subnet(data: bytes) -> Subnet:
    """Take the option's data apart. Raises `MalformedSubnetError`."""
    if len(data) < 4 or data[0] or data[1] not in _BITS:
        raise MalformedSubnetError("no family that is known")
    source, scope = data[2], data[3]
    size = (source + 7) // 8
    if max(source, scope) > _BITS[data[1]] or len(data) != 4 + size:
        raise MalformedSubnetError("lengths that do not fit")
    value = int.from_bytes(data[4:], "big")
    spare = size * 8 - source
    if value & ((1 << spare) - 1):
        raise MalformedSubnetError("bits beyond the prefix")
    return Subnet(data[1], source, value >> spare, scope)


def scope_in(options: bytes, told: bytes) -> int | None:
    """For how many bits of the subnet `told` (empty: none) a reply with these options is meant; 0: for everybody.

    Never more than were told (RFC 7871 section 7.3.1). -1, for nobody else, where none was told and there is a scope
    all the same. None for a reply that must not be used (section 7.3): it names another network than was told.
    """
    try:
        found = find_subnet(options)
    except (MalformedSubnetError, IndexError):
        return None if told else -1
    if found is None:
        return 0
    if not told:
        return -1 if found.scope else 0
    asked = parse_subnet(told)
    return min(found.scope, asked.source) if found._replace(scope=0) == asked else None


def reply_scope(message: Message, told: bytes) -> int | None:
    """`scope_in` for a parsed reply."""
    return 0 if message.opt is None or not message.opt.options else scope_in(message.opt.options, told)


def wider(one: int, other: int) -> int:
    """The scope of what two replies make together: the longer prefix, -1 being the longest."""
    return -1 if one < 0 or other < 0 else max(one, other)


def subnet_option(told: bytes) -> bytes:
    """The whole option in wire form."""
    return CLIENT_SUBNET.to_bytes(2, "big") + len(told).to_bytes(2, "big") + told


class Subnets:
    """Whose subnet is told, and the answers kept for networks."""

    def __init__(self, settings: SubnetSettings) -> None:
        self._settings = settings
        self._answers: OrderedDict[_Place, _Kept] = OrderedDict()
        self._places: dict[tuple[bytes, int], set[_Place]] = {}
        self.told = 0
        self.evicted = 0

    def of(self, query: Query) -> bytes:
        """The option that upstreams are told for this query; empty for none. As RFC 7871 section 7.1.1.

        The client's own option counts, else its address, unless it says that it wants neither (a source of 0 bits).
        """
        settings = self._settings
        if query.qtype not in _TAILORED or query.checking_disabled or not query.client:
            return b""
        if not settings.send or not self.is_told_about(query.qname):
            return b""
        client = ip_address(query.client.partition("%")[0])
        if settings.networks and not any(client in network for network in settings.networks):
            return b""
        subnet = None
        if query.edns is not None and query.edns.options:
            try:
                subnet = find_subnet(query.edns.options)
            except MalformedSubnetError:
                return b""
        if subnet is None:
            subnet = _own(client)
        if subnet is None or not subnet.source:
            return b""
        subnet = subnet.shortened(settings.ipv4 if subnet.family == 1 else settings.ipv6)
        return subnet._replace(scope=0).option()

    def is_told_about(self, qname: bytes) -> bool:
        """Whether a subnet may be told with a question for this name."""
        return any(is_at_or_below(qname, zone) for zone in self._settings.zones)

    def knows(self, qname: bytes, qtype: int) -> bool:
        """Whether answers to this question are known to differ by network."""
        return (qname, qtype) in self._places

    def find(self, qname: bytes, qtype: int, told: bytes, now: float) -> Response | None:
        """The answer kept for the smallest network that holds the subnet."""
        subnet = parse_subnet(told)
        for scope in range(subnet.source, 0, -1):
            place = (qname, qtype, subnet.shortened(scope))
            kept = self._answers.get(place)
            if kept is not None and kept.stored <= now < kept.expires:
                self._answers.move_to_end(place)
                age = int(now - kept.stored)
                answer = tuple(rrset._replace(ttl=rrset.ttl - age) for rrset in kept.response.answer)
                return kept.response._replace(answer=answer)
        return None

    def finished(self, qname: bytes, qtype: int, told: bytes, response: Response | None, now: float) -> None:
        """Take note of how a look-up with a subnet ended; keep a positive answer for the network that it is for."""
        self.told += 1
        if response is None:
            return
        ttl = min((rrset.ttl for rrset in response.answer), default=0)
        if response.rcode != NOERROR or response.scope <= 0 or ttl <= 0:
            return
        place = (qname, qtype, parse_subnet(told).shortened(response.scope))
        question = place[:2]
        places = self._places.setdefault(question, set())
        if len(places) >= MAX_NETWORKS and place not in places:
            self._drop(min(places, key=lambda one: self._answers[one].expires))
            places = self._places.setdefault(question, set())
        places.add(place)
        self._answers[place] = _Kept(now, now + ttl, response)
        self._answers.move_to_end(place)
        if len(self._answers) > MAX_ANSWERS:
            self._drop(next(iter(self._answers)))

    def _drop(self, place: _Place) -> None:
        self.evicted += 1
        self._take_out(place)

    def _take_out(self, place: _Place) -> None:
        del self._answers[place]
        places = self._places[place[:2]]
        places.discard(place)
        if not places:
            del self._places[place[:2]]

    def forget(self, flush: Flush) -> int:
        """Let go of what was flushed; gives the number of answers."""
        gone = [
            place
            for place, kept in self._answers.items()
            if flush.covers(place[0]) or any(flush.covers(rrset.owner) for rrset in kept.response.answer)
        ]
        for place in gone:
            self._take_out(place)
        return len(gone)

    def statistics(self) -> Mapping[str, int]:
        """Questions sent with a subnet, answers kept for networks, and those that gave way."""
        return {"subnet_told": self.told, "subnet_known": len(self._answers), "subnet_evicted": self.evicted}


_Place = tuple[bytes, int, Subnet]


class _Kept(NamedTuple):
    stored: float
    expires: float
    response: Response


def _own(client: IPv4Address | IPv6Address) -> Subnet | None:
    """The address of a client itself, unless it means nothing elsewhere (RFC 7871 section 11.1)."""
    if isinstance(client, IPv6Address) and client.ipv4_mapped is not None:
        client = client.ipv4_mapped
    if not client.is_global:
        return None
    return Subnet(1 if client.version == 4 else 2, client.max_prefixlen, int(client))


class SubnetStage:
    """Answers questions whose answers differ by network; stands before the cache, which must not for them."""

    def __init__(self, subnets: Subnets, forward: Stage) -> None:
        self._subnets = subnets
        self._forward = forward
        self.hits = 0
        self.malformed = 0
        """Questions with a client subnet option that cannot be."""

    def answer(self, query: Query, now: float) -> Found:
        """What is kept for the client's network, or the way to the upstreams; None for what is not known to differ."""
        if not self._subnets.knows(query.qname, query.qtype):
            return None
        told = self._subnets.of(query)
        if not told:
            return None
        kept = self._subnets.find(query.qname, query.qtype, told, now)
        if kept is None:
            return self._forward.answer(query, now)
        self.hits += 1
        return kept

    def statistics(self) -> Mapping[str, int]:
        """Counters, and how many answers are kept for networks."""
        return {"subnet_hits": self.hits, "subnet_malformed": self.malformed, **self._subnets.statistics()}


class SubnetOrder(LookupOrder):
    """A lookup order that reads clients' subnet options and says in the reply for whom it is (RFC 7871 section 7.2)."""

    def __init__(self, stages: Sequence[Stage], clock: Clock, by_network: SubnetStage) -> None:
        """`by_network`: the one of the stages that counts what is malformed."""
        super().__init__(stages, clock)
        self._by_network = by_network

    def answer(self, query: Query, now: float) -> Outcome:
        """The response, or what to call and wait for; FORMERR for an option that cannot be."""
        try:
            subnet = None if query.edns is None else find_subnet(query.edns.options)
        except MalformedSubnetError:
            self._by_network.malformed += 1
            return Response(FORMERR)
        outcome = super().answer(query, now)
        if subnet is None:
            return outcome
        return _marked(outcome, subnet) if isinstance(outcome, Response) else partial(_mark, outcome, subnet)


async def _mark(later: Callable[[], Coroutine[Any, Any, Response]], subnet: Subnet) -> Response:
    return _marked(await later(), subnet)


def _marked(response: Response, subnet: Subnet) -> Response:
    """With the option that the client sent, and the scope of the answer in it."""
    scope = subnet.source if response.scope < 0 else min(response.scope, subnet.source)
    return response._replace(subnet=subnet._replace(scope=scope).option())
