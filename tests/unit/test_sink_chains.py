"""Single RRsets become the chains that a resolver is asked for."""

from __future__ import annotations

from cachebus.answer import Answer, Evidence, RRset
from cachebus.presentation import name_from_text
from cachebus.sinks.chains import MAX_LINKS, MAX_TYPES, Chains
from cachebus.wire import rrtypes
from cachebus.wire.message import pack

NOW = 1_800_000_000.0
SIG = pack(rrtypes.RRSIG, 0, [bytes(18) + b"\0sig"])


def single(
    owner: str, rrtype: int, rdata: bytes | str, *, sigs: bytes = b"", evidence: Evidence = Evidence.VALIDATED,
    learned: float = NOW, ttl: int = 300, validating: bool = True,
) -> Answer:  # fmt: skip
    name = name_from_text(owner)
    data = name_from_text(rdata) if isinstance(rdata, str) else rdata
    rrset = RRset(name, rrtype, ttl, pack(rrtype, 0, [data]), sigs)
    return Answer(name, rrtype, (rrset,), evidence, "node-a", learned, validating, "lan", "key")


def joined(*answers: Answer) -> list[Answer]:
    chains = Chains()
    for answer in answers:
        chains.add(answer)
    assert len(chains) == len(answers)
    return list(chains.answers())


def shape(answer: Answer) -> tuple[str, str, list[int]]:
    return answer.name, answer.type, [rrset.type for rrset in answer.rrsets]


def test_an_alias_gets_an_answer_for_each_type_at_its_end() -> None:
    found = joined(
        single("a.test", rrtypes.CNAME, "b.test"),
        single("b.test", rrtypes.CNAME, "c.test"),
        single("c.test", rrtypes.A, bytes(4)),
        single("c.test", rrtypes.AAAA, bytes(16)),
    )
    assert [shape(answer) for answer in found] == [
        ("a.test.", "CNAME", [5]),
        ("a.test.", "A", [5, 5, 1]),
        ("a.test.", "AAAA", [5, 5, 28]),
        ("b.test.", "CNAME", [5]),
        ("b.test.", "A", [5, 1]),
        ("b.test.", "AAAA", [5, 28]),
        ("c.test.", "A", [1]),
        ("c.test.", "AAAA", [28]),
    ]


def test_a_joined_answer_is_as_good_as_its_weakest_part_and_lives_no_longer() -> None:
    found = joined(
        single("a.test", rrtypes.CNAME, "c.test", learned=NOW - 50, ttl=100),
        single("c.test", rrtypes.A, bytes(4), evidence=Evidence.CONFIRMED, validating=False),
    )[1]
    assert found.evidence is Evidence.CONFIRMED
    assert not found.validating
    assert found.learned == NOW
    assert [rrset.ttl for rrset in found.rrsets] == [50, 300]


def test_a_synthesised_cname_gets_its_dname() -> None:
    dname = single("d.test", rrtypes.DNAME, "e.test", sigs=SIG)
    cname = single("x.d.test", rrtypes.CNAME, "x.e.test")
    end = single("x.e.test", rrtypes.A, bytes(4), sigs=SIG)
    assert [shape(answer) for answer in joined(cname, dname, end)][:2] == [
        ("x.d.test.", "CNAME", [39, 5]),
        ("x.d.test.", "A", [39, 5, 1]),
    ]
    signed = cname._replace(rrsets=(cname.rrsets[0]._replace(sigs=SIG),))
    assert shape(joined(signed, dname, end)[1]) == ("x.d.test.", "A", [5, 1])
    other = single("x.d.test", rrtypes.CNAME, "y.e.test")
    assert shape(joined(other, dname)[0]) == ("x.d.test.", "CNAME", [5])


def test_whole_answers_stay_as_they_are_and_complete_others() -> None:
    parts = [single("b.test", rrtypes.CNAME, "c.test"), single("c.test", rrtypes.A, bytes(4))]
    whole = parts[0]._replace(qtype=rrtypes.A, rrsets=(parts[0].rrsets[0], parts[1].rrsets[0]))
    found = joined(whole, single("a.test", rrtypes.CNAME, "b.test"))
    assert found[0] is whole
    assert [shape(answer) for answer in found[1:]] == [("a.test.", "CNAME", [5]), ("a.test.", "A", [5, 5, 1])]


def test_loops_long_chains_and_many_types_are_bounded() -> None:
    assert [shape(answer) for answer in joined(single("a.test", rrtypes.CNAME, "a.test"))] == [
        ("a.test.", "CNAME", [5])
    ]
    loop = joined(single("a.test", rrtypes.CNAME, "b.test"), single("b.test", rrtypes.CNAME, "a.test"))
    assert len(loop) == 2
    long = [single(f"n{i}.test", rrtypes.CNAME, f"n{i + 1}.test") for i in range(MAX_LINKS + 1)]
    end = single(f"n{MAX_LINKS + 1}.test", rrtypes.A, bytes(4))
    found = joined(*long, end)
    assert all(len(answer.rrsets) <= MAX_LINKS + 1 for answer in found)
    assert ("n0.test.", "A") not in {(answer.name, answer.type) for answer in found}
    assert ("n1.test.", "A") in {(answer.name, answer.type) for answer in found}
    many = [single("b.test", 65280 + i, b"x") for i in range(MAX_TYPES + 5)]
    assert len(joined(single("a.test", rrtypes.CNAME, "b.test"), *many)) == 1 + MAX_TYPES + len(many)
