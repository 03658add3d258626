"""Addresses and URLs that people type: any text gives a value that can be used, or the documented error."""

from __future__ import annotations

import ipaddress
import socket
from unittest.mock import patch

import pytest
from cachebus_transports.udp import parse_endpoint
from hypothesis import given
from hypothesis import strategies as st

from cachebus.cli.bus import parse_peer, parse_url
from cachebus.errors import ConfigError, TransportError

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


def no_resolver(*_: object, **__: object) -> list[object]:
    raise socket.gaierror(-2, "Name or service not known")


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
    with patch.object(socket, "getaddrinfo", no_resolver):
        try:
            link = parse_url(text)
        except (ConfigError, TransportError):
            return
    host, _, port = link.endpoint.rpartition(":")
    ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    assert 0 <= int(port) < 65536


@given(ENDPOINTS)
def test_any_text_is_a_peer_or_an_error(text: str) -> None:
    with patch.object(socket, "getaddrinfo", no_resolver):
        try:
            endpoint = parse_peer(text, 5390)
        except (ConfigError, TransportError):
            return
    host, _, port = endpoint.rpartition(":")
    ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    assert 0 <= int(port) < 65536
