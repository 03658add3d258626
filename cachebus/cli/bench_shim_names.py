"""What `bench --shim` fills both caches with, and what it asks them: the same on every machine, from a fixed seed.

Decides names and their popularity. Each name has one address; what is asked for follows Zipf's law over all of them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

from cachebus.answer import Answer, Evidence, RRset
from cachebus.presentation import name_from_text
from cachebus.wire import rrtypes
from cachebus.wire.message import pack

SEED = 20261201
TTL = 86400
"""Seconds: nothing expires, and nothing is due to be fetched again, before the run is over."""
ZIPF_EXPONENT = 0.8
"""As in `bench_trace`: the lower end of what resolvers see, so many different names are asked for."""
ZONES = 20_000
MAX_QUESTIONS = 500_000
"""Questions of the file, over which the load goes again and again; fewer where there are fewer names."""
ORIGIN = "bench-peer"

_HOSTS = ("www", "api", "mail", "cdn", "img", "static", "login", "assets", "m", "news", "edge", "app")
_SUFFIXES = ("com", "net", "org", "de", "nl", "co.uk", "io")
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_SLICE = 1000


def names(entries: int) -> list[str]:
    """So many different names, of 25 bytes on the wire on average."""
    rng = random.Random(SEED)
    zones = [
        f"{''.join(rng.choices(_LETTERS, k=rng.randint(4, 14)))}.{rng.choice(_SUFFIXES)}"
        for _ in range(min(ZONES, entries))
    ]
    return [
        f"{rng.choice(_HOSTS)}{number:x}.{zones[int(rng.random() ** 2 * len(zones))]}." for number in range(entries)
    ]


def answers(entries: int, now: float) -> Iterator[list[Answer]]:
    """One A record for each name, as a peer learned them at `now`, in slices."""
    found = names(entries)
    for start in range(0, entries, _SLICE):
        yield [_answer(number, found[number], now) for number in range(start, min(start + _SLICE, entries))]


def _answer(number: int, name: str, now: float) -> Answer:
    owner = name_from_text(name)
    rdata = bytes((203, 0, 113, number & 0xFF))  # of RFC 5737
    rrset = RRset(owner, rrtypes.A, TTL, pack(rrtypes.A, TTL, (rdata,)))
    return Answer(owner, rrtypes.A, (rrset,), Evidence.CONFIRMED, ORIGIN, now, transport="lan", signer="bench.")


def write_questions(path: Path, entries: int) -> int:
    """A file of dnsperf's with the questions; gives how many different names are asked for."""
    rng = random.Random(SEED + 1)
    found = names(entries)
    rng.shuffle(found)
    weights = list(accumulate((rank + 1) ** -ZIPF_EXPONENT for rank in range(entries)))
    drawn = rng.choices(found, cum_weights=weights, k=min(entries, MAX_QUESTIONS))
    path.write_text("".join(f"{name} A\n" for name in drawn))
    return len(set(drawn))
