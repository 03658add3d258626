"""Whatever bytes come: a value, or the documented error; and the short way is the long way."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachebus.answer import Answer, Evidence, Refusal, RRset
from cachebus.cache import Cache
from cachebus.codecs import dns as codec_module
from cachebus.codecs.dns import DnsCodec, DnsCodecSettings
from cachebus.errors import MessageError
from cachebus.wire.message import AA, AD, QR, canonical_rdata, compose, expand_rdata, pack, parse, records
from cachebus.wire.name import read_name, skip_name
from cachebus.wire.shortcut import take_over
from cachebus.wire.tsig import Signer, Verified, Verifier
from tests.core_bed import NOW, key, rrset, rrsig

pytestmark = pytest.mark.property

VALID = [
    compose(1, QR | AA, chain[0].owner, chain[-1].type, [(each, each.ttl) for each in chain])
    for chain in (
        (rrset("www.example.com", "A", "192.0.2.1"),),
        (rrset("www.example.com", "A", "192.0.2.1", "192.0.2.2", sigs=rrsig("www.example.com", "A")),),
        (rrset("a.example.com", "CNAME", "b.example.com."), rrset("b.example.com", "AAAA", "2001:db8::1")),
        (
            rrset("a.example.com", "CNAME", "b.example.net.", sigs=rrsig("a.example.com", "CNAME")),
            rrset("b.example.net", "TXT", '"x"', '"y"', sigs=rrsig("b.example.net", "TXT")),
        ),
        (
            rrset("a.example.com", "CNAME", "b.example.com.", sigs=rrsig("a.example.com", "CNAME")),
            rrset("b.example.com", "A", "192.0.2.1", "192.0.2.2", sigs=rrsig("b.example.com", "A")),
        ),
        (
            rrset("a.example.com", "CNAME", "b.example.com."),
            rrset("b.example.com", "A", "192.0.2.1", "192.0.2.2", "192.0.2.3"),
        ),
        (rrset("www.example.com", "AAAA", "2001:db8::1", "2001:db8::2"),),
        (rrset("example.com", "MX", "10 a.example.com.", "20 b.example.com."),),
        (rrset("_sip._udp.example.com", "SRV", "1 2 53 a.example.com."),),
        (rrset("example.com", "SOA", "a.example.com. b.example.com. 1 2 3 4 5"),),
        (rrset("d.example.com", "DNAME", "example.net."), rrset("x.d.example.com", "CNAME", "x.example.net.")),
        (rrset("n.example.com", "NAPTR", '1 2 "s" "x" "" a.example.com.'),),
        (rrset("h.example.com", "HTTPS", "1 . alpn=h2"),),
    )
]


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """Valid messages with bytes changed, cut out, doubled or put in; sometimes none of these."""
    data = bytearray(draw(st.sampled_from(VALID)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        match draw(st.integers(0, 3)):
            case 0 if data:
                data[at] = draw(st.integers(0, 255))
            case 1:
                del data[at : at + draw(st.integers(1, 8))]
            case 2:
                data[at:at] = data[at : at + draw(st.integers(1, 20))]
            case _:
                data[at:at] = draw(st.binary(max_size=8))
    return bytes(data)


anything = st.one_of(mutated(), mutated(), st.binary(max_size=200))


@given(anything)
def test_parse(data: bytes) -> None:
    try:
        message = parse(data)
    except MessageError:
        return
    assert len(message.answer) <= len(data)
    for each in (*message.answer, *message.authority, *message.additional):
        assert 1 <= len(each.owner) <= 255
        assert 0 <= each.ttl <= 0x7FFFFFFF
        for rrtype, _, rdata in records(each.rrs):
            canonical = canonical_rdata(rrtype, rdata)
            assert len(canonical) == len(rdata)
            # RDATA is decompressed: it reads the same standing alone.
            assert expand_rdata(rdata, rrtype, 0, len(rdata)) == rdata


@given(anything, st.integers(0, 60))
def test_names(data: bytes, position: int) -> None:
    for reader in (_skip, read_name):
        try:
            reader(data, position, len(data))
        except MessageError:
            continue


def _skip(data: bytes, position: int, end: int) -> int:
    after = skip_name(data, position, end)
    assert position < after <= end
    return after


@given(anything)
def test_verify(data: bytes) -> None:
    verifier = Verifier((key(),), start=None)
    assert isinstance(verifier.verify(data, NOW), Refusal)
    signed = Signer(key()).sign(data, NOW)[0] if len(data) >= 12 and data[10:12] != b"\xff\xff" else data
    assert isinstance(verifier.verify(signed, NOW), Refusal | Verified)


def _decode(data: bytes, way: Callable[..., object]) -> object:
    codec = DnsCodec(DnsCodecSettings(transport="lan", key=key()), start=None)
    before = codec_module.take_over
    codec_module.take_over = way  # type: ignore[assignment]
    try:
        return codec.decode(Signer(key()).sign(data, NOW)[0], ("192.0.2.1", 1), NOW)
    finally:
        codec_module.take_over = before


@given(mutated(), st.booleans())
def test_the_short_way_gives_what_the_long_way_gives(data: bytes, validated: bool) -> None:
    if len(data) < 12 or data[10:12] == b"\xff\xff":
        return
    flags = QR | (AD if validated else AA)
    data = data[:2] + flags.to_bytes(2, "big") + data[4:]
    short, long = _decode(data, take_over), _decode(data, lambda *_: None)
    if isinstance(short, Refusal) or isinstance(long, Refusal):
        assert short is long
        return
    assert [_plain(each) for each in short] == [_plain(each) for each in long]  # type: ignore[attr-defined]


def _plain(answer: Answer) -> object:
    """An answer without the TTL bytes inside its records, which mean nothing."""
    return answer._replace(
        rrsets=tuple(
            RRset(each.owner, each.type, each.ttl, _blank(each.rrs), _blank(each.sigs)) for each in answer.rrsets
        )
    )


def _blank(packed: bytes) -> bytes:
    return b"".join(pack(rrtype, 0, [rdata]) for rrtype, _, rdata in records(packed))


@given(anything)
def test_what_is_decoded_can_be_cached_and_sent_on(data: bytes) -> None:
    if len(data) < 12 or data[10:12] == b"\xff\xff":
        return
    codec = DnsCodec(DnsCodecSettings(transport="lan", key=key(), max_message=65535), start=None)
    found = codec.decode(Signer(key()).sign(data, NOW)[0], ("192.0.2.1", 1), NOW)
    if isinstance(found, Refusal):
        return
    cache = Cache("b")
    for each in found:
        assert each.evidence in Evidence
        cache.put(each, NOW)
        messages, refusals = codec.encode([each], NOW)
        assert len(messages) + len(refusals) == 1
        for message in messages:
            parse(message)
        got = cache.get(each.rrsets[0].owner, each.rrsets[0].type, NOW)
        assert got is None or got.rrset.ttl <= each.rrsets[0].ttl
