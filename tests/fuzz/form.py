"""Target: answers whose RDATA came one by one, as in codecs whose messages are not DNS messages (`codecs.form`)."""

from __future__ import annotations

from random import Random
from typing import Any, NamedTuple

from cachebus.answer import Evidence, Refusal
from cachebus.codecs import form
from cachebus.codecs.form import Raw, check, split_names, take_usual
from cachebus.errors import MessageError
from cachebus.presentation import check_name
from tests.fuzz.bus import NOW, blanked
from tests.fuzz.grammar import NAMES, ODD_NAMES, RRSIG, make_chain, pick_name, pick_type
from tests.fuzz.harness import Part, Target
from tests.fuzz.messages import check_rrset
from tests.fuzz.mutate import LONGS, WORDS, below, mutate


class Given(NamedTuple):
    """What such a codec has read."""

    qname: bytes
    qtype: int
    rrsets: tuple[Raw, ...]
    evidence: Evidence


class FormTarget(Target[Given]):
    """`form.check`: a chain that can be walked, or a reason; the short way and the long one say the same."""

    name = "form"
    parts = (Part("cachebus/codecs/form.py"),)
    cost = 2
    calls = 3

    def valid(self, rng: Random) -> Given:
        qname, qtype = pick_name(rng).lower(), pick_type(rng)
        rrsets: list[Raw] = []
        for record in make_chain(rng, qname, qtype, NOW, usual=rng.random() < 0.8):
            owner, made = record.owner.lower(), b"".join(record.rdata)
            if record.type == RRSIG and rrsets and rrsets[-1][0] == owner:
                rrsets[-1][4].append(made)
            elif rrsets and rrsets[-1][:2] == (owner, record.type):
                rrsets[-1][3].append(made)
            else:
                rrsets.append((owner, record.type, record.ttl, [made], []))
        return Given(qname, qtype, tuple(rrsets), Evidence(1 + below(rng, 3)))

    def mutated(self, rng: Random) -> Given:
        given = self.valid(rng)
        if rng.random() < 0.1 or not given.rrsets:
            return given._replace(qname=mutate(rng, given.qname), qtype=WORDS[below(rng, len(WORDS))])
        at = below(rng, len(given.rrsets))
        owner, rrtype, ttl, rdatas, signatures = given.rrsets[at]
        found = signatures if signatures and rng.random() < 0.5 else rdatas
        which = below(rng, len(found))
        match below(rng, 8):
            case 0:
                owner = mutate(rng, owner, ODD_NAMES) if rng.random() < 0.5 else NAMES[below(rng, len(NAMES))]
            case 1:
                ttl = LONGS[below(rng, len(LONGS))]
            case 2:
                rrtype = WORDS[below(rng, len(WORDS))] if rng.random() < 0.7 else pick_type(rng)
            case 3:
                found.append(found[which] if rng.random() < 0.5 else mutate(rng, found[which]))
            case 4:
                del found[which]
            case 5 if rng.random() < 0.05:
                found[which] += bytes(65536)
            case _:
                found[which] = mutate(rng, found[which], NAMES)
        rrsets = (*given.rrsets[:at], (owner, rrtype, ttl, rdatas, signatures), *given.rrsets[at + 1 :])
        return given._replace(rrsets=rrsets[::-1] if rng.random() < 0.05 else rrsets)

    def noise(self, rng: Random) -> Given:
        rrsets = [
            (
                rng.randbytes(below(rng, 9)),
                below(rng, 65536),
                below(rng, 1 << 32),
                [rng.randbytes(below(rng, 9))],
                [b""],
            )
            for _ in range(below(rng, 12))
        ]
        return Given(rng.randbytes(below(rng, 9)), below(rng, 65536), tuple(rrsets), Evidence.CONFIRMED)

    def check(self, example: Given, rng: Random) -> bool:
        self._names(rng)
        limits = (example.evidence, NOW + 0.5, 86400 if rng.random() < 0.8 else 60)
        infrastructure = rng.random() < 0.3
        found = check(*example[:3], *limits, infrastructure)
        if isinstance(found, Refusal):
            return False
        for rrset in found:
            check_rrset(rrset)
            assert 0 < rrset.ttl <= limits[2]
        assert found[-1].type == example.qtype
        # Names are right, so either way may be asked alone; TTL bytes inside the records mean nothing.
        short = take_usual(*example[:3], *limits)
        long = form._long_way(*example[:3], *limits, infrastructure)
        assert not isinstance(long, Refusal), long
        assert blanked(long) == blanked(found)
        assert short is None or blanked(short) == blanked(long)
        return True

    def _names(self, rng: Random) -> None:
        """`split_names`: names that can be put together again, or None."""
        data = b"".join(pick_name(rng) for _ in range(below(rng, 4)))
        if rng.random() < 0.5:
            data = mutate(rng, data)
        names = split_names(data)
        if names is not None:
            assert b"".join(names) == data.lower()
            for name in names:
                try:
                    check_name(name)
                except MessageError as error:
                    raise AssertionError("no name") from error


TARGETS: tuple[type[Target[Any]], ...] = (FormTarget,)
