"""Durations, sizes and addresses: what each text means, and what is none."""

from __future__ import annotations

import pytest

from cachebus.answer import Evidence
from cachebus.config.values import (
    SocketAddress,
    UnixAddress,
    parse_address,
    parse_duration,
    parse_endpoint,
    parse_label,
    parse_level,
    parse_network,
    parse_seconds,
    parse_size,
    parse_unix_path,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30", 30), ("0", 0), ("0.5", 0.5), ("500ms", 0.5), ("10m", 600), ("2h", 7200), ("1d", 86400), ("1w", 604800),
     ("30s", 30), (" 1 m ", 60)],
)  # fmt: skip
def test_duration(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "x", "-1", "1x", "1e3", "1 month", "m", "1.2.3", "99999w", "1m30s", "٣"])
def test_not_a_duration(text: str) -> None:
    with pytest.raises(ValueError, match=r"duration|years"):
        parse_duration(text)


def test_a_ttl_is_whole_seconds() -> None:
    assert parse_seconds("2m") == 120
    assert type(parse_seconds("2m")) is int
    with pytest.raises(ValueError, match="whole number of seconds"):
        parse_seconds("500ms")


@pytest.mark.parametrize(
    ("text", "size"), [("65536", 65536), ("64KiB", 65536), ("64MiB", 64 << 20), ("1GB", 10**9), ("2 kB", 2000)]
)
def test_size(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "1.5MiB", "64mib", "-1", "MiB", "1TB"])
def test_not_a_size(text: str) -> None:
    with pytest.raises(ValueError, match="not a size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "host", "port", "written"),
    [
        ("192.0.2.1:53", "192.0.2.1", 53, "192.0.2.1:53"),
        ("[2001:db8::1]:5390", "2001:db8::1", 5390, "[2001:db8::1]:5390"),
        ("[fe80::1%eth0]:1", "fe80::1%eth0", 1, "[fe80::1%eth0]:1"),
        ("[192.0.2.1]:65535", "192.0.2.1", 65535, "192.0.2.1:65535"),
    ],
)
def test_address(text: str, host: str, port: int, written: str) -> None:
    address = parse_address(text)
    assert address == SocketAddress(host, port)
    assert str(address) == written


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("192.0.2.1", "no port"),
        ("2001:db8::1", "no port"),
        ("[2001:db8::1]", "no port"),
        ("2001:db8::1:53:", "no IP address"),
        ("localhost:53", "no IP address"),
        ("192.0.2.256:53", "no IP address"),
        ("fe80::1%eth0]:53", "no interface"),
        ("[fe80::1%a b]:53", "no interface"),
        ("[2001:db8::1]53", "port is not a number"),
        ("192.0.2.1:", "port is not a number"),
        ("192.0.2.1:0", "from 1 to 65535"),
        ("192.0.2.1:65536", "from 1 to 65535"),
        ("192.0.2.1:5x", "port is not a number"),
        ("192.0.2.1:٥٣", "port is not a number"),
        ("", "no IP address"),
    ],
)
def test_not_an_address(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_address(text)


def test_a_listener_may_have_port_0_and_an_upstream_no_port() -> None:
    assert parse_address("127.0.0.1:0", any_port=True).port == 0
    assert parse_address("::1", default_port=53) == SocketAddress("::1", 53)
    assert parse_address("192.0.2.1", default_port=853) == SocketAddress("192.0.2.1", 853)


def test_endpoints() -> None:
    assert parse_endpoint("unix:/run/x.sock") == UnixAddress("/run/x.sock")
    assert parse_endpoint("/run/x.sock") == UnixAddress("/run/x.sock")
    assert parse_endpoint("tcp:127.0.0.1:1") == SocketAddress("127.0.0.1", 1)
    assert parse_endpoint("[::1]:1").is_loopback  # type: ignore[union-attr]
    assert str(parse_endpoint("unix:/run/x.sock")) == "unix:/run/x.sock"


@pytest.mark.parametrize("text", ["unix:run/x", "unix:", "x", "unix:/" + "x" * 107])
def test_a_unix_path_is_absolute_and_fits_the_kernel(text: str) -> None:
    with pytest.raises(ValueError, match=r"absolute|bytes"):
        parse_unix_path(text)


@pytest.mark.parametrize("text", ["", "A", "a_b", "a.b", "x" * 64, "a b", "ä"])
def test_not_a_label(text: str) -> None:
    with pytest.raises(ValueError, match="1 to 63"):
        parse_label(text)


def test_levels_and_networks() -> None:
    assert parse_level("Confirmed") is Evidence.CONFIRMED
    with pytest.raises(ValueError, match=r"did you mean validated\?"):
        parse_level("validate")
    assert str(parse_network("192.0.2.1")) == "192.0.2.1/32"
    with pytest.raises(ValueError, match="not an address or network"):
        parse_network("192.0.2.1/24")
