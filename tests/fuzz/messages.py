# ruff: noqa: PT017  (either outcome is right; both are looked at)
"""Targets: DNS messages as such (`wire.message`, `wire.name`)."""

from __future__ import annotations

from contextlib import suppress
from random import Random

from cachebus.answer import RRset
from cachebus.errors import MessageError
from cachebus.presentation import check_name
from cachebus.wire.message import (
    MAX_TTL,
    Composer,
    Message,
    canonical_rdata,
    cname_target,
    compose,
    expand_rdata,
    first_question,
    parse,
    question_section,
    read_answer,
    records,
    rrsig_fields,
    same_data,
)
from cachebus.wire.name import ancestors, is_at_or_below, label_count, parent, read_name, skip_name
from tests.fuzz import opinion
from tests.fuzz.grammar import (
    CNAME,
    DEEP_NAME,
    LONG_NAME,
    NAMES,
    ODD_NAMES,
    Shape,
    make_message,
    pick_name,
    pick_type,
    signature,
    worst_message,
)
from tests.fuzz.harness import Part, Target
from tests.fuzz.mutate import below, mutate

WORST = 0.002
"""Share of inputs that are as large and dear as can be."""
MAX_EXPANSION = 18
"""Times that decompressed RDATA may be longer than its message: a pointer of 2 bytes stands for at most 255, and no
record is shorter than 16 with one."""


class BytesTarget(Target[bytes]):
    """What every target that takes bytes draws from."""

    def mutated(self, rng: Random) -> bytes:
        """A valid input with some changes."""
        return mutate(rng, self.valid(rng), (self.valid(rng),))

    def noise(self, rng: Random) -> bytes:
        """Bytes."""
        return rng.randbytes(below(rng, 100))


def any_message(rng: Random) -> bytes:
    """A message of the grammar; now and then one of the worst."""
    return make_message(rng) if rng.random() > WORST else worst_message(rng)


class MessageTarget(BytesTarget):
    """`parse`: what it gives can be walked, compared, written again and read again as the same; dnspython agrees."""

    name = "message"
    parts = (Part("cachebus/wire/message.py"),)
    cost = 2
    calls = 3

    def valid(self, rng: Random) -> bytes:
        return any_message(rng)

    def mutated(self, rng: Random) -> bytes:
        return make_message(rng, Shape(change=True)) if rng.random() < 0.3 else super().mutated(rng)

    def check(self, example: bytes, rng: Random) -> bool:
        self._answer_only(example)
        try:
            message = parse(example)
        except MessageError:
            with suppress(MessageError):
                first_question(example)
            return False
        sections = (message.answer, message.authority, message.additional)
        expanded = 0
        for rrset in (rrset for section in sections for rrset in section):
            check_rrset(rrset)
            expanded += len(rrset.rrs) + len(rrset.sigs)
        assert expanded <= MAX_EXPANSION * len(example)
        if message.questions:
            name, qtype, qclass, after = first_question(example)
            assert (name.lower(), qtype, qclass) == (message.qname, message.qtype, message.qclass)
            assert after <= 12 + len(message.question)
        else:
            assert message.question == message.qname == b""
        _again(message)
        if rng.random() < opinion.SHARE:
            theirs = opinion.answer_records(example)
            assert theirs is None or theirs == opinion.our_records(message.answer)
        return True

    def _answer_only(self, example: bytes) -> None:
        """`read_answer` at the place of the answer section gives what `parse` gives of it."""
        try:
            position = first_question(example)[3]
            found, after = read_answer(example, position, example[6] << 8 | example[7], len(example))
        except (MessageError, IndexError) as error:
            assert isinstance(error, MessageError) or len(example) < 8, error
            return
        assert position <= after <= len(example)
        for rrset in found:
            check_rrset(rrset)


def check_rrset(rrset: RRset) -> None:
    """What everyone relies on who gets an RRset from the parser."""
    check_name(rrset.owner)
    assert rrset.owner == rrset.owner.lower()
    assert 0 <= rrset.ttl <= MAX_TTL
    assert rrset.rrs or rrset.sigs
    for packed in (rrset.rrs, rrset.sigs):
        found = records(packed)
        assert sum(12 + len(rdata) for _, _, rdata in found) == len(packed)
        for rrtype, _, rdata in found:
            assert rrtype == (rrset.type if packed is rrset.rrs else 46)
            assert len(canonical_rdata(rrtype, rdata)) == len(rdata)
            assert expand_rdata(rdata, rrtype, 0, len(rdata)) == rdata  # decompressed: it stands alone
            if rrtype == 46:
                check_name(rrsig_fields(rdata).signer)
    if rrset.type == CNAME and rrset.rrs:
        check_name(cname_target(rrset))
    assert same_data(rrset, rrset)
    assert rrset.type == 46 or same_data(rrset, rrset._replace(rrs=upper(rrset)))


def upper(rrset: RRset) -> bytes:
    """Its records in another order; same data all the same."""
    found = []
    position = 0
    while position < len(rrset.rrs):
        after = position + 12 + int.from_bytes(rrset.rrs[position + 10 : position + 12], "big")
        found.append(rrset.rrs[position:after])
        position = after
    return b"".join(reversed(found))


def plain(rrsets: tuple[RRset, ...]) -> set[tuple[bytes, int, frozenset[bytes], frozenset[bytes]]]:
    """RRsets without TTLs, order and repetition."""
    return {
        (each.owner, each.type, frozenset(x[2] for x in records(each.rrs)), frozenset(x[2] for x in records(each.sigs)))
        for each in rrsets
    }


def _again(message: Message) -> None:
    rrsets = [(rrset, rrset.ttl) for rrset in message.answer]
    if sum(rrset.rrs.count(b"\xc0\x0c") + 1 for rrset, _ in rrsets) > 4000:
        return  # more records than the header can count, once some were the same but for their TTL
    wire = compose(message.id, message.flags, message.qname or b"\0", message.qtype, rrsets)
    again = parse(wire)
    assert plain(again.answer) == plain(message.answer)
    assert (again.id, again.flags, again.qtype) == (message.id, message.flags, message.qtype)
    assert {(rrset.owner, rrset.type): rrset.ttl for rrset in again.answer if rrset.rrs} == {
        (rrset.owner, rrset.type): rrset.ttl for rrset in message.answer if rrset.rrs
    }
    shorter = Composer(question_section(message.qname or b"\0", message.qtype), message.qname or b"\0", suffixes=True)
    count = sum(shorter.add(rrset, rrset.ttl, sigs=True) for rrset in message.answer)
    short = shorter.finish(message.id, message.flags, (1, count, 0, 0))
    assert len(short) == shorter.length <= len(wire)
    assert plain(parse(short).answer) == plain(message.answer)


class NameTarget(BytesTarget):
    """`read_name` and `skip_name` at any place of any bytes, and what is asked of the names; dnspython agrees."""

    name = "name"
    parts = (Part("cachebus/wire/name.py"),)

    def valid(self, rng: Random) -> bytes:
        """Names one after the other behind twelve bytes, some by pointers."""
        if rng.random() < WORST:
            return worst_message(rng)
        data = bytearray(12)
        starts = []
        for _ in range(1 + below(rng, 6)):
            name = pick_name(rng)
            starts.append(len(data))
            if rng.random() < 0.5 and len(starts) > 1:
                keep = name[0] + 1 if name[0] and rng.random() < 0.5 else 0
                data += name[:keep] + (0xC000 | starts[below(rng, len(starts) - 1)]).to_bytes(2, "big")
            else:
                data += name
        return bytes(data)

    def check(self, example: bytes, rng: Random) -> bool:
        end = len(example) if rng.random() < 0.8 else below(rng, len(example) + 1)
        taken = False
        for position in {12, below(rng, end + 2)}:
            try:
                after = skip_name(example, position, end)
            except MessageError:
                after = 0
            theirs = opinion.name_at(example, position) if end == len(example) < opinion.LONGEST else None
            try:
                name, after_read = read_name(example, position, end)
            except MessageError as error:
                # Only of pointers we demand more: none into the header.
                assert theirs is None or str(error) == "a compression pointer does not lead back"
                continue
            assert theirs is None or theirs == (name, after_read)
            assert after == after_read
            assert position < after <= end
            self._relations(name.lower(), pick_name(rng).lower())
            taken = True
        return taken

    def _relations(self, name: bytes, other: bytes) -> None:
        check_name(name)
        above = list(ancestors(name))
        assert len(above) == label_count(name) + 1
        assert above[0] == name
        assert above[-1] == b"\0"
        assert parent(name) == (above[1] if len(above) > 1 else b"\0")
        for each in above:
            assert is_at_or_below(name, each)
        assert is_at_or_below(name, other) == (other in above)


class RrsigTarget(BytesTarget):
    """`rrsig_fields` on any RDATA gives its fields, as dnspython does, or `MessageError`."""

    name = "rrsig"
    parts = (Part("cachebus/wire/message.py", only=("rrsig_fields",)),)

    def valid(self, rng: Random) -> bytes:
        owner = (NAMES + ODD_NAMES + [LONG_NAME, DEEP_NAME])[below(rng, len(NAMES) + len(ODD_NAMES) + 2)]
        return b"".join(signature(rng, pick_type(rng), owner, below(rng, 1 << 32), 1_800_000_000))

    def check(self, example: bytes, rng: Random) -> bool:
        try:
            fields = rrsig_fields(example)
        except MessageError:
            assert opinion.rrsig_of(example) is None
            return False
        assert example.lower().startswith(fields.signer, 18)
        assert fields.covered == int.from_bytes(example[:2], "big")
        assert (fields.expiration, fields.inception) == (
            int.from_bytes(example[8:12], "big"),
            int.from_bytes(example[12:16], "big"),
        )
        theirs = opinion.rrsig_of(example)
        assert theirs is None or theirs == (fields.labels, fields.original_ttl, fields.key_tag, fields.signer)
        return True


TARGETS: tuple[type[Target[bytes]], ...] = (MessageTarget, NameTarget, RrsigTarget)
