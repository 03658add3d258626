"""Addresses and URLs that people type: any text gives a value that can be used, or the documented error."""

from __future__ import annotations

import ipaddress

import pytest
from cachebus_transports.udp import parse_endpoint
from hypothesis import given
from hypothesis import strategies as st

from cachebus.errors import ConfigError
from cachebus.urls import Beside, Role, make_link, names, parse_url, split_peer

ADDRESSES = st.one_of(st.ip_addresses(v=4).map(str), st.ip_addresses(v=6).map(lambda address: f"[{address}]"))
VALID = st.builds(lambda address, port: f"{address}:{port}", ADDRESSES, st.integers(1, 65535))
MUTATED = st.builds(
    lambda text, position, cut, new: text[: position % len(text)] + new + text[position % len(text) + cut :],
    VALID,
    st.integers(0, 60),
    st.integers(0, 3),
    st.text(alphabet="0123456789abcdef:.[]%/@?# \0é٣", max_size=3),
)
ENDPOINTS = st.one_of(VALID, MUTATED, MUTATED, st.text(max_size=60))


@pytest.mark.property
@given(ENDPOINTS)
def test_any_text_is_an_endpoint_or_a_config_error(text: str) -> None:
    try:
        address = parse_endpoint(text)
    except ConfigError:
        return
    assert ipaddress.ip_address(address[0]).version == (4 if len(address) == 2 else 6)
    assert 0 < address[1] < 65536


@given(VALID)
def test_every_valid_endpoint_is_taken(text: str) -> None:
    address = parse_endpoint(text)
    shown = f"[{address[0]}]" if len(address) == 4 else address[0]
    assert parse_endpoint(f"{shown}:{address[1]}") == address


@given(st.one_of(ENDPOINTS.map(lambda text: f"udp://{text}"), st.text(max_size=60)))
def test_any_text_is_a_url_or_an_error(text: str) -> None:
    try:
        url = parse_url(text)
        link = make_link(url, Role.SUBSCRIBE, Beside())
    except ConfigError:
        return
    assert link.receives
    if url.type == "udp":
        host, _, port = str(link.section.listen).rpartition(":")
        assert host.strip("[]") == url.host
        assert 0 <= int(port) < 65536


@given(ADDRESSES, st.integers(1, 65535), st.sampled_from(("udp", "tcp", "zmq+tcp", "mqtt")))
def test_every_valid_url_names_its_endpoint(address: str, port: int, scheme: str) -> None:
    url = parse_url(f"{scheme}://{address}:{port}")
    assert (url.host, url.port, names(url, Beside())) == (address.strip("[]"), port, frozenset())
    link = make_link(url, Role.SUBSCRIBE, Beside())
    assert f"{address}:{port}" in f"{link.section!r} {link.section.options}"


@given(ENDPOINTS)
def test_any_text_is_a_peer_or_an_error(text: str) -> None:
    try:
        host, port = split_peer(text)
    except ConfigError:
        return
    assert host
    assert port is None or 0 < port < 65536
