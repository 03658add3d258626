"""Target: messages with all that clients may put beside a question, through the shim's whole service (`shim.gate`)."""

from __future__ import annotations

import struct
from collections.abc import Coroutine
from ipaddress import ip_network
from random import Random

from cachebus.cache import Cache
from cachebus.shim.chaos import ChaosSettings
from cachebus.shim.cookies import COOKIE
from cachebus.shim.front import FrontSettings
from cachebus.shim.limits import RateLimit
from cachebus.shim.lookup import CacheStage, LookupOrder
from cachebus.shim.padding import BLOCK
from cachebus.shim.query import Channel, Drop, find_option, parse_query
from cachebus.shim.service import Service
from cachebus.shim.tasks import Tasks
from cachebus.wire.message import QR, parse
from tests.fuzz.grammar import NAMES, RD, make_message, make_options, pick_name, pick_type
from tests.fuzz.harness import Part
from tests.fuzz.messages import BytesTarget
from tests.fuzz.mutate import below
from tests.unit.shim_bed import bus_answer, rrset

NOW = 1_800_000_000.0
CLIENTS = (
    "127.0.0.1",
    "192.0.2.1",
    "192.0.2.200",
    "198.51.100.7",
    "::1",
    "2001:db8::1",
    "::ffff:192.0.2.3",
    "fe80::1%lo",
)
CHAOS = (b"\7version\4bind\0", b"\2Id\6serVer\0", b"\4bind\0")


class FrontTarget(BytesTarget):
    """Whatever a client sends gives silence or one reply that is its own, within bounds, with what it must carry."""

    name = "front"
    parts = (
        Part("cachebus/shim/gate.py"),
        Part("cachebus/shim/cookies.py", without=("CookieSettings",)),
        Part("cachebus/shim/chaos.py", without=("ChaosSettings",)),
        Part("cachebus/shim/order.py"),
    )
    cost = 2
    block = 50

    def begin(self, rng: Random) -> None:
        cache = Cache("n1", max_entries=1000)
        https = rrset("www.example.", "HTTPS", 300, *(rng.randbytes(below(rng, 12)) for _ in range(1 + below(rng, 3))))
        for held in (
            https,
            rrset("www.example.", "MX", 300, *(b"\0\1" + NAMES[below(rng, 8)] for _ in range(12))),
            rrset("www.example.", "A", 300, bytes(4), bytes(3) + b"\1"),
        ):
            for name in NAMES[3:7]:
                if rng.random() < 0.6:
                    cache.put(bus_answer(held._replace(owner=name), learned=NOW, transport=""), NOW)
        if rng.random() < 0.3:
            alias = rrset("www.example.", "CNAME", 300, NAMES[3])._replace(owner=NAMES[1 + below(rng, 2)])
            cache.put(bus_answer(alias, learned=NOW, transport=""), NOW)
        limit = RateLimit(rate=1.0, burst=1 + below(rng, 6), verified=below(rng, 3), slip=below(rng, 3), exempt=())
        self._front = FrontSettings(
            deny=(ip_network("198.51.100.0/24"),),
            rate_limit=limit if rng.random() < 0.3 else None,
            chaos=ChaosSettings(version="v" * below(rng, 256), hostname=None) if rng.random() < 0.8 else None,
            minimal=rng.random() < 0.3,
            rotate=rng.random() < 0.5,
        )
        self._service = Service(
            LookupOrder([CacheStage(cache)], lambda: self._now),
            Tasks(),
            lambda: self._now,
            allow=(ip_network("0.0.0.0/0"), ip_network("::/0")),
            max_in_flight=100,
            front=self._front,
            cache=cache,
        )
        self._now = NOW
        self._cookie = rng.randbytes(8)
        self._client = CLIENTS[below(rng, len(CLIENTS))]

    def valid(self, rng: Random) -> bytes:
        if rng.random() < 0.1:
            return make_message(rng)
        rrclass = 3 if rng.random() < 0.2 else 1
        name = CHAOS[below(rng, 3)] if rrclass == 3 else pick_name(rng)
        question = name + struct.pack("!HH", 16 if rrclass == 3 else pick_type(rng), rrclass)
        if rng.random() < 0.3:
            question = NAMES[3 + below(rng, 4)] + struct.pack("!HH", (15, 65)[below(rng, 2)], 1)
        questions = 1
        if rng.random() < 0.2:
            question, questions = b"", 0
        options = make_options(rng) if rng.random() < 0.3 else b""
        if rng.random() < 0.7:
            size = below(rng, 50) if rng.random() < 0.2 else len(self._cookie)
            data = self._cookie if size == len(self._cookie) else rng.randbytes(size)
            options += struct.pack("!HH", COOKIE, len(data)) + data
        version = 1 if rng.random() < 0.05 else 0
        opt = b"\0" + struct.pack(
            "!HHBBHH", 41, 512 + below(rng, 4000), 0, version, 0x8000 * below(rng, 2), len(options)
        )
        return rng.randbytes(2) + struct.pack("!5H", RD, questions, 0, 0, 1) + question + opt + options

    def check(self, example: bytes, rng: Random) -> bool:
        channel = Channel.UDP if rng.random() < 0.5 else list(Channel)[below(rng, len(Channel))]
        client = self._client if rng.random() < 0.8 else CLIENTS[below(rng, len(CLIENTS))]
        self._now += rng.random() * (0.1 if rng.random() < 0.99 else 4000)
        parsed = parse_query(example)
        answered = self._service.handle(example, client, channel)
        assert not isinstance(answered, Coroutine), "nobody is there to be waited for"
        if isinstance(parsed, Drop):
            assert answered is None
            return False
        if answered is None:
            assert self._front.rate_limit is not None
            assert channel is Channel.UDP
            return False
        message = parse(answered)
        assert answered[:2] == example[:2]
        assert message.flags & QR
        assert message.opt is None or parsed.edns is not None
        assert channel is not Channel.UDP or len(answered) <= 1232
        if message.opt is not None:
            padding = find_option(message.opt.options, 12)
            assert (padding is not None) is channel.is_encrypted
            assert not channel.is_encrypted or len(answered) % BLOCK == 0
            self._take_cookie(message.opt.options, client)
        return True

    def _take_cookie(self, options: bytes, client: str) -> None:
        cookie = find_option(options, COOKIE)
        if cookie is not None:
            assert len(cookie) == 24
            if client == self._client:
                self._cookie = cookie


TARGETS = (FrontTarget,)
"""Every target there is."""
