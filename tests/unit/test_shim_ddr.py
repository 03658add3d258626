"""What clients hear of the encrypted listeners (RFC 9462), read by dnspython, and that the rest is answered here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import ip_address

import dns.message
import dns.rcode
import pytest

from cachebus.presentation import name_from_text
from cachebus.shim.ddr import DiscoveryStage
from cachebus.shim.encrypted import DdrSettings
from cachebus.shim.query import Channel, Query, Response, parse_query
from cachebus.shim.reply import MAX_STREAM_PAYLOAD, compose_reply
from cachebus.shim.settings import Endpoint

NAME = name_from_text("dns.example.net.")
LISTENERS: Mapping[Channel, Sequence[Endpoint]] = {
    Channel.QUIC: (("192.0.2.53", 8853),),
    Channel.TLS: (("192.0.2.53", 853), ("2001:db8::53", 853), ("192.0.2.54", 8530)),
    Channel.HTTPS: (("192.0.2.53", 443),),
}


def query(name: str, rrtype: str) -> Query:
    made = dns.message.make_query(name, rrtype)
    parsed = parse_query(made.to_wire())
    assert isinstance(parsed, Query)
    return parsed


def ask(stage: DiscoveryStage, name: str = "_dns.resolver.arpa.", rrtype: str = "SVCB") -> dns.message.Message | None:
    asked = query(name, rrtype)
    response = stage.answer(asked, 1000.0)
    if response is None:
        return None
    assert isinstance(response, Response)
    return dns.message.from_wire(compose_reply(asked, response, MAX_STREAM_PAYLOAD))


def announced(settings: DdrSettings | None, listeners: Mapping[Channel, Sequence[Endpoint]]) -> list[str]:
    stage = DiscoveryStage(settings, "/dns-query")
    stage.announce(listeners)
    reply = ask(stage)
    assert reply is not None
    assert reply.rcode() == dns.rcode.NOERROR
    return sorted(rdata.to_text() for rrset in reply.answer for rdata in rrset)


def test_what_listens_is_told_in_order() -> None:
    assert announced(DdrSettings(name=NAME), LISTENERS) == [
        '1 dns.example.net. alpn="dot" port="853" ipv4hint="192.0.2.53" ipv6hint="2001:db8::53"',
        '1 dns.example.net. alpn="dot" port="8530" ipv4hint="192.0.2.54"',
        '2 dns.example.net. alpn="h2" port="443" ipv4hint="192.0.2.53" dohpath="/dns-query{?dns}"',
        '3 dns.example.net. alpn="doq" port="8853" ipv4hint="192.0.2.53"',
    ]


@pytest.mark.parametrize("channel", LISTENERS)
def test_what_does_not_listen_is_not(channel: Channel) -> None:
    alpn = {Channel.TLS: "dot", Channel.HTTPS: "h2", Channel.QUIC: "doq"}[channel]
    some = {one: endpoints for one, endpoints in LISTENERS.items() if one is not channel}
    found = announced(DdrSettings(name=NAME), some)
    assert found
    assert not any(f'alpn="{alpn}"' in text for text in found)
    assert announced(DdrSettings(name=NAME), {channel: ()}) == []


def test_nothing_is_told_without_a_name_or_a_listener_or_before_they_listen() -> None:
    assert announced(None, LISTENERS) == []
    assert announced(DdrSettings(name=NAME), {}) == []
    reply = ask(DiscoveryStage(DdrSettings(name=NAME), "/dns-query"))
    assert reply is not None
    assert not reply.answer


def test_a_wildcard_tells_the_addresses_that_the_operator_gave() -> None:
    given = DdrSettings(name=NAME, addresses=(ip_address("198.51.100.1"), ip_address("2001:db8::1")))
    assert announced(given, {Channel.TLS: (("0.0.0.0", 853), ("::", 853))}) == [
        '1 dns.example.net. alpn="dot" port="853" ipv4hint="198.51.100.1" ipv6hint="2001:db8::1"'
    ]
    assert announced(DdrSettings(name=NAME), {Channel.TLS: (("0.0.0.0", 853),)}) == [
        '1 dns.example.net. alpn="dot" port="853"'
    ]
    assert announced(given, {Channel.TLS: (("192.0.2.53", 853),)}) == [
        '1 dns.example.net. alpn="dot" port="853" ipv4hint="192.0.2.53"'
    ]


@pytest.mark.parametrize("name", ["resolver.arpa.", "_dns.resolver.arpa.", "RESOLVER.Arpa.", "a.b.resolver.arpa."])
@pytest.mark.parametrize("rrtype", ["A", "AAAA", "TXT", "HTTPS", "NS", "ANY", "SVCB"])
def test_the_rest_is_no_data_here(name: str, rrtype: str) -> None:
    stage = DiscoveryStage(DdrSettings(name=NAME), "/dns-query")
    stage.announce(LISTENERS)
    reply = ask(stage, name, rrtype)
    assert reply is not None
    assert reply.rcode() == dns.rcode.NOERROR
    if (name, rrtype) == ("_dns.resolver.arpa.", "SVCB"):
        assert reply.answer
    else:
        assert not reply.answer
        assert reply.authority[0].name.to_text().lower() == "resolver.arpa."
        assert reply.authority[0].rdtype == 6


@pytest.mark.parametrize(
    ("name", "rrtype"),
    [
        ("arpa.", "NS"),
        ("xresolver.arpa.", "A"),
        ("resolver.arpa.example.", "A"),
        ("www.example.", "A"),
        ("x\\008resolver.arpa.", "A"),
        ("resolver.arpa.", "DS"),
    ],
)
def test_other_names_and_the_parents_records_are_not_ours(name: str, rrtype: str) -> None:
    stage = DiscoveryStage(DdrSettings(name=NAME), "/dns-query")
    stage.announce(LISTENERS)
    assert ask(stage, name, rrtype) is None
    assert stage.answers == 0
