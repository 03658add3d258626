"""URLs of links: what each form means for who listens in, publishes, or both; and what contradicts itself."""

from __future__ import annotations

from typing import Any

import pytest

from cachebus.answer import Evidence
from cachebus.config.transports import CodecName
from cachebus.errors import ConfigError
from cachebus.urls import Beside, Link, Role, make_link, names, parse_url, split_peer

FILES = {"ca": "/etc/ca.pem", "cert": "/etc/cert.pem", "cert_key": "/etc/key.pem"}
FIELDS = ("type", "listen", "peers", "url")


def link(text: str, role: Role = Role.BOTH, **beside: Any) -> Link:
    return make_link(parse_url(text), role, Beside(**beside))


def said(found: Link) -> dict[str, Any]:
    """What a transport is told, what is empty left out."""
    section = found.section
    fields = {key: getattr(section, key) for key in FIELDS if getattr(section, key)}
    return fields | dict(section.options)


@pytest.mark.parametrize(
    ("text", "role", "beside", "wanted"),
    [
        ("udp://192.0.2.1:5390", "subscribe", {}, {"type": "udp", "listen": "192.0.2.1:5390", "peers_only": False}),
        ("UDP://192.0.2.1:5390/", "publish", {}, {"type": "udp", "peers": ("192.0.2.1:5390",)}),
        ("udp://[2001:db8::1]:5390", "publish", {}, {"type": "udp", "peers": ("[2001:db8::1]:5390",)}),
        ("udp://[fe80::1%25lo]:5390", "publish", {}, {"type": "udp", "peers": ("[fe80::1%lo]:5390",)}),
        ("udp://[::]:0", "both", {}, {"type": "udp", "listen": "[::]:0"}),
        ("udp://0.0.0.0:5390", "both", {"peers": ("192.0.2.7", "192.0.2.8:53")},
         {"type": "udp", "listen": "0.0.0.0:5390", "peers": ("192.0.2.7:5390", "192.0.2.8:53")}),
        ("udp://0.0.0.0:5390", "subscribe", {"peers": ("2001:db8::7",)},
         {"type": "udp", "listen": "0.0.0.0:5390", "peers": ("[2001:db8::7]:5390",), "peers_only": True}),
        ("multicast://239.1.2.3:5390?interface=eth0&hops=3&source=192.0.2.1,192.0.2.2", "subscribe", {},
         {"type": "multicast", "listen": "239.1.2.3:5390", "interface": "eth0", "hops": 3,
          "sources": ["192.0.2.1", "192.0.2.2"]}),
        ("multicast://[ff02::5390%25eth0]:5390?loop=0", "publish", {},
         {"type": "multicast", "peers": ("[ff02::5390%eth0]:5390",), "loop": False}),
        ("multicast://239.1.2.3:5390", "both", {}, {"type": "multicast", "group": "239.1.2.3:5390"}),
        ("mqtt://broker.example:1883/home", "both", {}, {"type": "mqtt", "url": "mqtt://broker.example:1883"}),
        ("mqtts://me@[::1]/home", "publish", {}, {"type": "mqtt", "url": "mqtts://me@[::1]"}),
        ("zmq+tcp://192.0.2.1:5391", "subscribe", {}, {"type": "zeromq", "connect": ["tcp://192.0.2.1:5391"]}),
        ("zmq+tcp://192.0.2.1:5391?bind=1", "publish", {}, {"type": "zeromq", "bind": ["tcp://192.0.2.1:5391"]}),
        ("zmq+tcp://[::1]:5391?bind=1", "both", {"peers": ("[::1]:5392",)},
         {"type": "zeromq", "bind": ["tcp://[::1]:5391"], "connect": ["tcp://[::1]:5392"]}),
        ("zmq+tcp://192.0.2.1:5391", "publish", {},
         {"type": "zeromq", "url": "zmq+tcp://192.0.2.1:5391", "direction": "publish"}),
        ("zmq+ipc:///run/bus?bind=1", "subscribe", {},
         {"type": "zeromq", "url": "zmq+ipc:///run/bus?bind=1", "direction": "subscribe"}),
        ("zmq+ipc:///run/bus", "both", {}, {"type": "zeromq", "connect": ["ipc:///run/bus"]}),
        ("zmq+tcp://192.0.2.1:5391", "both", {"curve_key": "own", "curve_server": "file:theirs"},
         {"type": "zeromq", "connect": ["tcp://192.0.2.1:5391"], "curve": {"secret": "own", "server": "file:theirs"}}),
        ("tcp://127.0.0.1:5392", "subscribe", {},
         {"type": "tcp", "peers": ("127.0.0.1:5392",), "subscribe": True, "insecure": True}),
        ("tcp://127.0.0.1:5392", "publish", {}, {"type": "tcp", "peers": ("127.0.0.1:5392",), "insecure": True}),
        ("tcp://127.0.0.1:5392?listen=1", "both", {"peers": ("127.0.0.2:9",)},
         {"type": "tcp", "listen": "127.0.0.1:5392", "peers": ("127.0.0.2:9",), "subscribe": True, "insecure": True}),
        ("tls://bus.example:5392", "subscribe", FILES,
         {"type": "tcp", "peers": ("bus.example:5392",), "subscribe": True}),
        ("quic://bus.example:5392", "publish", FILES, {"type": "quic", "peers": ("bus.example:5392",)}),
        ("unixgram:///run/here.sock?mode=3", "subscribe", {},
         {"type": "unixgram", "url": "unixgram:///run/here.sock?mode=3", "listen": "/run/here.sock", "mode": "3"}),
        ("example://192.0.2.1:7", "publish", {},
         {"type": "example", "url": "example://192.0.2.1:7", "peers": ("192.0.2.1:7",)}),
    ],
)  # fmt: skip
def test_what_a_transport_is_told(text: str, role: str, beside: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert said(link(text, Role(role), **beside)) == wanted


@pytest.mark.parametrize(
    ("text", "role", "beside", "sends", "receives"),
    [
        ("udp://192.0.2.1:53", "both", {}, False, True),
        ("udp://192.0.2.1:53", "both", {"peers": ("192.0.2.2",)}, True, True),
        ("udp://192.0.2.1:53", "publish", {}, True, False),
        ("zmq+tcp://192.0.2.1:53", "both", {}, False, True),
        ("zmq+tcp://192.0.2.1:53?bind=1", "both", {}, True, False),
        ("zmq+tcp://192.0.2.1:53?bind=1", "both", {"peers": ("192.0.2.2:5",)}, True, True),
        ("mqtt://192.0.2.1", "both", {}, True, True),
        ("tcp://127.0.0.1:53", "both", {}, True, True),
        ("tcp://127.0.0.1:53", "subscribe", {}, False, True),
    ],
)  # fmt: skip
def test_which_way_it_goes(text: str, role: str, beside: dict[str, Any], sends: bool, receives: bool) -> None:
    found = link(text, Role(role), **beside)
    assert (found.sends, found.receives) == (sends, receives)


@pytest.mark.parametrize(
    ("text", "codec"),
    [
        ("udp://192.0.2.1:53", CodecName.DNS), ("multicast://239.1.1.1:53", CodecName.DNS),
        ("mqtt://192.0.2.1", CodecName.BATCH), ("zmq+ipc:///x", CodecName.BATCH),
        ("tcp://127.0.0.1:53", CodecName.CDNS),
        ("example://192.0.2.1:53", CodecName.DNS),
    ],
)  # fmt: skip
def test_the_codec_goes_with_the_type(text: str, codec: CodecName) -> None:
    section = link(text).section
    assert section.codec_name is codec
    assert (section.key is None) == (codec is CodecName.CDNS)


def test_further_keys_and_options_and_evidence() -> None:
    section = link(
        "mqtt://192.0.2.1", codec="dns", more_keys=2, accept=Evidence.CONFIRMED, options={"zstd": True, "qos": 1}
    ).section
    assert section.codec_name is CodecName.DNS
    assert section.accepted_keys == ("key", "key-1", "key-2")
    assert section.accept.minimum_evidence is Evidence.CONFIRMED
    assert section.zstd
    assert dict(section.options) == {"qos": 1}


@pytest.mark.parametrize(
    ("text", "beside", "cluster"),
    [
        ("mqtt://192.0.2.1/home", {}, "home"),
        ("mqtt://192.0.2.1/home", {"cluster": "home"}, "home"),
        ("mqtt://192.0.2.1", {"cluster": "home"}, "home"),
        ("mqtt://192.0.2.1/", {}, "default"),
    ],
)
def test_the_cluster(text: str, beside: dict[str, Any], cluster: str) -> None:
    assert link(text, **beside).cluster == cluster


def test_certificates_of_peers() -> None:
    tls = link("tls://ams-1.example:5392", **FILES).section.tls
    assert tls is not None
    assert list(tls.peers) == ["ams-1.example"]
    found = link("tls://192.0.2.1:5392?listen=1", peers=("fra-1.example", "192.0.2.9:5392"), **FILES).section
    assert found.tls is not None
    assert list(found.tls.peers) == ["fra-1.example"]
    assert found.peers == ("192.0.2.9:5392",)


def test_names_are_given_back_and_come_in_with_their_addresses() -> None:
    url, beside = parse_url("udp://bus.example:5390"), Beside(peers=("two.example", "192.0.2.2"))
    assert names(url, beside) == {"bus.example", "two.example"}
    addresses = {"bus.example": "192.0.2.1", "two.example": "2001:db8::2"}
    section = make_link(url, Role.BOTH, beside, addresses).section
    assert section.listen == "192.0.2.1:5390"
    assert section.peers == ("[2001:db8::2]:5390", "192.0.2.2:5390")


@pytest.mark.parametrize("text", ["mqtt://broker.example", "zmq+ipc://bus.sock", "example://bus.example:53"])
def test_some_resolve_names_themselves(text: str) -> None:
    assert names(parse_url(text), Beside()) == frozenset()


@pytest.mark.parametrize(
    "text",
    [
        "", "192.0.2.1:5390", "udp:", "udp:192.0.2.1:53", "udp://", "udp://192.0.2.1", "udp://:5390", "udp://192.0.2.1:x",
        "udp://192.0.2.1:99999", "udp://[::1:53", "udp://me@192.0.2.1:53", "udp://192.0.2.1:53/cluster",
        "udp://192.0.2.1:53?bind=1", "udp://192.0.2.1:53#x", "udp://192.0.2.1:53#", "udp://a b:53", "udp://192.0.2.1:53\n",
        "udp://[::1%25a/b]:53", "multicast://239.1.2.3", "multicast://239.1.2.3:53?hops=x", "multicast://239.1.2.3:53?hops",
        "multicast://239.1.2.3:53?interface=", "mqtt://", "mqtt://192.0.2.1/a/b", "mqtt://192.0.2.1/Home", "mqtt://192.0.2.1:0",
        "zmq+tcp://192.0.2.1:53?bind=2", "zmq+tcp://192.0.2.1:53?bind=1&bind=0", "zmq+ipc://", "tcp://127.0.0.1:53?listen=yes",
        "tls://192.0.2.1:53", "quic://192.0.2.1:53", "x" * 3000, "9udp://192.0.2.1:53", "udp://192.0.2.1:53?%zz",
    ],
)  # fmt: skip
def test_refuses_the_rest(text: str) -> None:
    with pytest.raises(ConfigError):
        link(text, Role.SUBSCRIBE)


@pytest.mark.parametrize(
    ("text", "role", "beside", "words"),
    [
        ("mqtt://192.0.2.1/home", "both", {"cluster": "away"}, "names the cluster home"),
        ("mqtt://192.0.2.1", "both", {"cluster": "Away"}, "cluster: is 1 to 63"),
        ("mqtt://192.0.2.1", "both", {"peers": ("192.0.2.1",)}, "meet at the broker"),
        ("udp://192.0.2.1:53", "both", {"codec": "cdns"}, "needs tcp, tls or quic"),
        ("udp://192.0.2.1:53", "both", {"codec": "json"}, "codec: is dns"),
        ("udp://192.0.2.1:53", "both", {"ca": "ca.pem"}, "knows no certificates"),
        ("udp://192.0.2.1:53", "both", {"curve_key": "key"}, "knows no CURVE"),
        ("udp://192.0.2.1:53", "both", {"peers": ("a:b:c",)}, "is not HOST or HOST:PORT"),
        ("udp://192.0.2.1:53", "both", {"options": {"listen": "x"}}, "options: listen"),
        ("udp://192.0.2.1:53", "both", {"options": {"max_message": 1}}, "max_message"),
        ("zmq+tcp://192.0.2.1:53", "both", {"curve_server": "x"}, "own key"),
        ("zmq+tcp://192.0.2.1:53?bind=1", "publish", {"peers": ("192.0.2.1:5",)}, "whoever subscribes"),
        ("tls://192.0.2.1:53", "both", FILES, "has to name the certificates"),
        ("tls://a.example:53", "both", {**FILES, "ca": None}, "ca: is missing"),
        ("tls://a.example:53", "both", {**FILES, "cert_key": None}, "go together"),
        ("tls://a.example:53", "both", {"ca": "ca.pem"}, "cert and cert_key are missing"),
        ("mqtts://a.example", "both", {"cert": "cert.pem"}, "ca: is missing"),
        ("udp://192.0.2.1:53", "both", {"peers": ("192.0.2.1",) * 1001}, "at most 1000"),
    ],
)  # fmt: skip
def test_contradictions(text: str, role: str, beside: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        link(text, Role(role), **beside)


@pytest.mark.parametrize("text", ["mqtt://me:hunter2@192.0.2.1", "udp://me:hunter2@[", "mqtt://me:hunter2@192.0.2.1#"])
def test_a_password_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        link(text)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("192.0.2.1", ("192.0.2.1", None)),
        (" 192.0.2.1:53", ("192.0.2.1", 53)),
        ("2001:db8::1", ("2001:db8::1", None)),
        ("[2001:db8::1]", ("2001:db8::1", None)),
        ("[2001:db8::1]:53", ("2001:db8::1", 53)),
        ("ams-1.example", ("ams-1.example", None)),
        ("ams-1.example:53", ("ams-1.example", 53)),
    ],
)
def test_a_peer_needs_no_port(text: str, found: tuple[str, int | None]) -> None:
    assert split_peer(text) == found


@pytest.mark.parametrize("text", ["", ":53", "a:0", "a:65536", "a:x", "[a]:53", "a b", "a/b", "[::1"])
def test_what_is_no_peer(text: str) -> None:
    with pytest.raises(ConfigError):
        split_peer(text)
