"""Any bytes, whole or in portions, give messages, answers and payloads, or the documented error or reason."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachebus.answer import Answer, Evidence
from cachebus.codecs.cdns import Peer
from cachebus.errors import FrameError
from cachebus.wire import rrtypes
from cachebus.wire.cbor import EndFinder, decode
from cachebus.wire.cdns_messages import CdnsFileReceiver
from cachebus.wire.cdns_stream import CdnsSplitter
from tests.cdns_bed import DATA, NOW, address, answer, codec, rrset, some_answers

pytestmark = pytest.mark.property

MESSAGE = codec().encode(some_answers(), NOW)[0][0]
STREAM = codec().framing.opening() + codec().framing.frame(MESSAGE) * 2 + codec().framing.closing()
COMPACTOR = (DATA / "compactor-unbound.cdns").read_bytes()


@st.composite
def mutated(draw: st.DrawFn, valid: bytes) -> bytes:
    """Valid bytes with some changed, removed or put in."""
    data = bytearray(valid)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data) - 1))
        match draw(st.integers(0, 2)):
            case 0:
                data[at] = draw(st.integers(0, 255))
            case 1:
                del data[at : at + draw(st.integers(1, 20))]
            case _:
                data[at:at] = draw(st.binary(max_size=9))
    return bytes(data)


LABELS = st.text(alphabet="abcdefghij-", min_size=1, max_size=20)
NAMES = st.lists(LABELS, min_size=1, max_size=5).map(lambda labels: ".".join(labels) + ".")
ADDRESSES = st.builds(
    lambda name, rdatas, ttl, age, level, validating: answer(
        rrset(name, rrtypes.A, *rdatas, ttl=ttl), evidence=Evidence(level), age=age / 1000, validating=validating
    ),
    NAMES,
    st.lists(st.binary(min_size=4, max_size=4), min_size=1, max_size=30, unique=True),
    st.integers(200, 86400),
    st.integers(0, 199_000),
    st.integers(1, 2),
    st.booleans(),
)
OPAQUE = st.builds(
    lambda name, rrtype, rdata: answer(rrset(name, rrtype, rdata), qtype=rrtype),
    NAMES,
    st.integers(60000, 65279),
    st.binary(max_size=400),
)


@given(st.lists(ADDRESSES | OPAQUE, min_size=1, max_size=40))
def test_answers_round_trip(answers: list[Answer]) -> None:
    messages, left_out = codec().encode(answers, NOW)
    found, refusals = codec("beta").decode_all([(message, "alpha.test") for message in messages], NOW)
    assert not left_out
    assert not refusals
    for got, given_ in zip(found, answers, strict=True):
        assert got.learned == pytest.approx(given_.learned, abs=0.0011)
        assert got._replace(transport="", signer="", learned=0) == given_._replace(learned=0)


@given(st.binary(max_size=200) | mutated(MESSAGE))
def test_cbor(data: bytes) -> None:
    try:
        _, end = decode(data)
    except FrameError:
        return
    assert EndFinder().find(data) == end


@given(mutated(MESSAGE) | st.binary(max_size=100).map(lambda data: codec().framing.before + data))
def test_any_message(data: bytes) -> None:
    answers, refusals = codec("beta", peers={"alpha.test": Peer()}).decode_all([(data, "alpha.test")], NOW)
    assert all(isinstance(one, Answer) and one.rrsets for one in answers)
    assert len(answers) + len(refusals) <= max(1, len(some_answers()))


@given(mutated(STREAM) | mutated(COMPACTOR), st.integers(1, 400))
def test_portions_make_no_difference(data: bytes, portion: int) -> None:
    outcomes = []
    for size in (portion, len(data)):
        splitter = CdnsSplitter()
        found: list[bytes] = []
        try:
            for at in range(0, len(data), size):
                found += splitter.receive_data(data[at : at + size])
            splitter.receive_end()
        except FrameError as error:
            outcomes.append((found, str(error)))
        else:
            outcomes.append((found, ""))
    assert outcomes[0] == outcomes[1]


@given(mutated(COMPACTOR))
def test_any_file(data: bytes) -> None:
    receiver = CdnsFileReceiver()
    try:
        payloads = list(receiver.receive_data(data))
        receiver.receive_end()
    except FrameError:
        return
    assert all(isinstance(payload, bytes) for payload in payloads)


def test_the_bed_is_right() -> None:
    assert codec("beta").decode_all([(MESSAGE, "alpha.test")], NOW)[1] == []
    assert address().ttl == 300
