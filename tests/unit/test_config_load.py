# ruff: noqa: E501  (each case is one line: a text and its problem)
"""A whole configuration: what is accepted with which values, and each mistake with its exact line and column."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from cachebus.answer import Evidence
from cachebus.config import Config, ConfigErrors, admin_socket, load, loads
from cachebus.config.document import MAX_FILE
from cachebus.config.models import (
    CallbackSink,
    DnstapSource,
    FileFormat,
    FileSource,
    Pairing,
    ResolverFrames,
    StreamSource,
    UnboundSink,
)
from cachebus.config.section import Question
from cachebus.config.transports import OPTIONS
from cachebus.config.values import SocketAddress, UnixAddress
from cachebus.errors import ConfigError

KEY = "keys: {k: {secret: AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=}}\n"
FULL = """\
node: ams-1
cluster: home
keys:
  k: {algorithm: hmac-sha256, secret: AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=, origins: [ams-1, ams-2],
      max_evidence: confirmed, evidence: authoritative}
  old: {secret: AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=}
sources:
  resolver: {type: dnstap, listen: "unix:/run/cachebus/dnstap.sock", trust: [authoritative], pairing: off,
             evidence_window: 500ms, resolver_frames: none, stale_ttl: 1m, validating: true, allow_uids: [101]}
  direct: {type: stream, listen: "127.0.0.1:6000", claims: validated, insecure: true}
  capture: {type: file, path: capture.wire, format: wire, claims: confirmed}
transports:
  lan: {type: udp, codec: dns, listen: "[::]:5390", peers: ["192.0.2.11:5390", "[2001:db8::2]:5390"],
        key: k, keys: [old], accept: {evidence: validated}, question: omit, max_message: 4KiB, peers_only: true, socket_buffer: 1MiB}
  other: {type: vendor-bus, url: "bus://x", key: k, depth: 3, fast: true, ratio: 0.5, note: 'off', more: {a: [1]}}
sinks:
  cache: {type: cache}
  resolver: {type: unbound, control: "unix:/run/unbound.ctl", rate: 500}
  mine: {type: callback, function: "my.module:take"}
share: {min_ttl: 1m, max_ttl: 1d, private_names: never, second_sighting: 10m, infrastructure: true,
        allow: [test, a.Example.], deny: [secret.example], rate: {node: 1000, zone: 10}}
cache: {max_entries: 5000, max_bytes: 64MiB}
shim:
  listen: ["127.0.0.1:53", "[::1]:53"]
  upstreams: ["127.0.0.1:5335", "2001:db8::9", {address: 192.0.2.1, validating: true, tls_name: dns.example},
              {address: "192.0.2.2:54", authoritative: true}]
  allow: [192.0.2.0/24]
  timeout: 2
admin: {socket: /run/cachebus/api.sock, http: "127.0.0.1:9853"}
"""


def problems(text: str, **more: object) -> list[str]:
    with pytest.raises(ConfigErrors) as caught:
        loads(text, file="f", **more)  # type: ignore[arg-type]
    return [str(problem) for problem in caught.value.problems]


def full(tmp_path: Path) -> Config:
    (tmp_path / "capture.wire").touch()
    return loads(FULL, directory=tmp_path)


def test_the_smallest_configuration_and_its_defaults() -> None:
    config = loads("node: a\n")
    assert (config.node, config.cluster, config.keys, config.shim) == ("a", "default", {}, None)
    assert (config.share.min_ttl, config.share.second_sighting, config.admin.socket) == (30, None, None)
    assert config.warnings == ()


def test_empty_sections_are_left_out_ones() -> None:
    assert loads("node: a\nkeys:\nsources:\n  # none\nshare:\nshim:\nadmin:\n") == loads("node: a\n")


def test_sources_as_typed_values(tmp_path: Path) -> None:
    sources = full(tmp_path).sources
    dnstap, direct, capture = sources["resolver"], sources["direct"], sources["capture"]
    assert isinstance(dnstap, DnstapSource)
    assert dnstap.listen == UnixAddress("/run/cachebus/dnstap.sock")
    assert (dnstap.trust, dnstap.minimum_evidence) == ((Evidence.AUTHORITATIVE,), Evidence.AUTHORITATIVE)
    assert (dnstap.pairing, dnstap.resolver_frames) == (Pairing.OFF, ResolverFrames.NONE)
    assert (dnstap.evidence_window, dnstap.stale_ttl, dnstap.validating, dnstap.allow_uids) == (0.5, 60, True, (101,))
    assert isinstance(direct, StreamSource)
    assert (direct.listen, direct.claims) == (SocketAddress("127.0.0.1", 6000), Evidence.VALIDATED)
    assert direct.trust == (Evidence.CONFIRMED, Evidence.VALIDATED)
    assert isinstance(capture, FileSource)
    assert (capture.path, capture.format) == (tmp_path / "capture.wire", FileFormat.WIRE)


def test_keys_and_transports_as_typed_values(tmp_path: Path) -> None:
    config = full(tmp_path)
    assert config.keys["k"].origins == ("ams-1", "ams-2")
    assert (config.keys["k"].max_evidence, config.keys["old"].max_evidence) == (Evidence.CONFIRMED, Evidence.VALIDATED)
    lan, other = config.transports["lan"], config.transports["other"]
    assert (lan.listen, lan.peers) == ("[::]:5390", ("192.0.2.11:5390", "[2001:db8::2]:5390"))
    assert lan.accepted_keys == ("k", "old")
    assert (lan.accept.minimum_evidence, lan.question, lan.max_message) == (Evidence.VALIDATED, Question.OMIT, 4096)
    assert lan.options == {"peers_only": True, "socket_buffer": 1 << 20}
    assert other.url == "bus://x"
    assert other.options == {"depth": 3, "fast": True, "ratio": 0.5, "note": "off", "more": {"a": [1]}}


def test_the_rest_as_typed_values(tmp_path: Path) -> None:
    config = full(tmp_path)
    unbound, mine = config.sinks["resolver"], config.sinks["mine"]
    assert isinstance(unbound, UnboundSink)
    assert (str(unbound.control), unbound.rate) == ("unix:/run/unbound.ctl", 500)
    assert isinstance(mine, CallbackSink)
    assert mine.function == "my.module:take"
    assert config.share.allow == (b"\4test\0", b"\1a\7example\0")
    assert (config.share.second_sighting, config.share.rate.zone) == (600, 10)
    assert (config.cache.max_entries, config.cache.max_bytes) == (5000, 64 << 20)
    assert config.shim is not None
    assert [str(upstream.endpoint) for upstream in config.shim.upstreams] == [
        "127.0.0.1:5335", "[2001:db8::9]:53", "192.0.2.1:853", "192.0.2.2:54",
    ]  # fmt: skip
    assert config.admin.http == SocketAddress("127.0.0.1", 9853)


def test_a_configuration_cannot_be_changed(tmp_path: Path) -> None:
    config = full(tmp_path)
    with pytest.raises(ValidationError):
        config.node = "b"
    with pytest.raises(ValidationError):
        config.share.min_ttl = 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cluster: a\n", "f:1:1: node: is required"),
        ("nod: a\nnode: b\n", "f:1:1: nod: unknown key (did you mean node?)"),
        ("node: a\nzzz: 1\n", "f:2:1: zzz: unknown key"),
        ("node: A\n", "f:1:7: node: 'A' must be 1 to 63 of a-z, 0-9 and -"),
        ("node: [a]\n", "f:1:7: node: wants text, not a list"),
        ("node: a\nkeys: []\n", "f:2:7: keys: wants a mapping (`key: value`)"),
        ("node: a\nkeys:\n  k: {secrt: x}\n", "f:3:3: keys.k.secret: is required"),
        ("node: a\nkeys: {k: {secret: AAAA}}\n", "f:2:20: keys.k.secret: it: the secret has 3 bytes, not 16 to 512"),
        ("node: a\nsources:\n  s: {listen: x}\n", "f:3:3: sources.s.type: is required"),
        (
            "node: a\nsources: {s: {type: dnstab}}\n",
            "f:2:21: sources.s.type: is not one of dnstap, stream, file, unbound-cache (did you mean dnstap?)",
        ),
        (
            "node: a\nsources: {s: {type: dnstap, listn: x}}\n",
            "f:2:29: sources.s.listn: unknown key (did you mean listen?)",
        ),
        (
            "node: a\nsources:\n  s:\n    type: stream\n    listen: unix:/run/x/y\n",
            "f:3:3: sources.s.claims: is required",
        ),
        (
            "node: a\nsources: {s: {type: dnstap, listen: 'unix:/run/x/y', trust: [confirmd]}}\n",
            "f:2:62: sources.s.trust.0: 'confirmd' is not one of authoritative, confirmed, validated (did you mean confirmed?)",
        ),
        ("node: a\nsources: {s: {type: dnstap, listen: 'unix:/run/x/y', trust: []}}\n", "f:2:61: sources.s.trust: is empty"),
        (
            "node: a\nsources: {s: {type: dnstap, listen: 'unix:/run/x/y', evidence_window: 0}}\n",
            "f:2:71: sources.s.evidence_window: is below 0.1",
        ),
        ("node: a\nsources: {S_: {type: dnstap, listen: 'unix:/run/x/y'}}\n",
         "f:2:11: sources.S_: 'S_' must be 1 to 63 of a-z, 0-9 and -"),
        ("node: a\nsinks: {s: {type: unbound, control: '192.0.2.1:8953'}}\n",
         "f:2:37: sinks.s.control: needs `tls`: over TCP anyone on this machine could answer for Unbound"),
        ("node: a\nsinks: {s: {type: unbound, control: 'unix:/run/u.ctl', tls: {cert: a, key: b, ca: c}}}\n",
         "f:2:61: sinks.s.tls: is for TCP; Unbound's unix control socket has no TLS"),
        ("node: a\nsinks: {s: {type: unbound, control: 'unix:/run/u.ctl', rate: 0}}\n", "f:2:62: sinks.s.rate: is below 1"),
        ("node: a\nsources: {s: {type: file, path: /, format: wire}}\n", "f:2:33: sources.s.path: / is not a file"),
        ("node: a\nsources: {s: {type: file, path: /, format: wire}}\n",
         "f:2:11: sources.s: `claims` is required: DNS messages do not say how they were checked"),
        ("node: a\nkeys: {a..b: {secret: x}}\n", "f:2:8: keys.a..b: a key's name must be a domain name, as TSIG carries it"),
        ("node:\n", "f:1:6: node: is required"),
        ("node: ~\nkeys: {k: ~}\n", "f:2:11: keys.k: wants a mapping (`key: value`)"),
        ("node: a\nshare: {rate: {node: x}}\n", "f:2:22: share.rate.node: wants a number"),
        ("node: a\nshare: {min_ttl: {}}\n", "f:2:18: share.min_ttl: wants text, not a mapping"),
        ("node: a\nshim: {listen: []}\n", "f:2:16: shim.listen: is empty"),
        ("node: a\nsinks: {s: {type: unbound}}\n", "f:2:9: sinks.s.control: is required"),
        ("node: a\nsinks: {s: {type: callback, function: x}}\n", "f:2:39: sinks.s.function: must be package.module:function"),
        ("node: a\nshare: {min_ttl: 1m, max_ttl: 30}\n", "f:2:18: share.min_ttl: is above `max_ttl`: nothing would be shared"),
        ("node: a\nshare: {min_ttl: 2d}\n", "f:2:18: share.min_ttl: is above 86400"),
        ("node: a\nshare: {rate: {node: 0}}\n", "f:2:22: share.rate.node: is not above 0"),
        ("node: a\nshare: {infrastructure: perhaps}\n", "f:2:25: share.infrastructure: wants true or false"),
        ("node: a\nshare: {allow: [a..b]}\n", "f:2:17: share.allow.0: not a domain name: 'a..b' has an empty label"),
        ("node: a\nshare: {private_names: always}\n", "f:2:24: share.private_names: is not one of never, allow"),
        ("node: a\ncache: {max_entries: many}\n", "f:2:22: cache.max_entries: wants a whole number"),
        ("node: a\nadmin: {http: '0.0.0.0:9853'}\n",
         "f:2:15: admin.http: is beyond loopback, without TLS or passwords; `http_beyond_loopback: true` allows it"),
        ("node: a\nadmin: {socket: /nonexistent/x}\n", "f:2:17: admin.socket: the directory /nonexistent does not exist"),
    ],
)  # fmt: skip
def test_each_mistake_with_its_place(text: str, expected: str) -> None:
    assert expected in problems(text)


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("{type: udp, key: k, listen: '127.0.0.1'}", "33: transports.t.listen: '127.0.0.1' has no port"),
        ("{type: udp, key: k, peers: ['x:1']}",
         "33: transports.t.peers.0: 'x:1' has no IP address; write 192.0.2.1:PORT or [2001:db8::1]:PORT"),
        ("{type: udp, key: k, peers: ['[::1]:1', '[::1]:1']}", "44: transports.t.peers.1: is there twice"),
        ("{type: udp, key: k}", "2: transports.t: udp needs `listen`, `peers` or both"),
        ("{type: udp, key: kk, listen: '[::]:1'}", "22: transports.t.key: names no key of `keys` (did you mean k?)"),
        ("{type: udp, key: k, keys: [q], listen: '[::]:1'}", "32: transports.t.keys.0: names no key of `keys`"),
        ("{type: udp, listen: '[::]:1'}", "2: transports.t: `key` is required: everything on the bus is signed"),
        ("{type: udp, keys: [k], peers: ['[::1]:1']}",
         "2: transports.t: `key` is required: everything on the bus is signed"),
        ("{type: udp, key: k, listen: '[::]:1', url: x}",
         "48: transports.t.url: udp has none; it takes `listen` and `peers`"),
        ("{type: udp, key: k, listen: '[::]:1', max_message: 100}", "56: transports.t.max_message: is below 512"),
        ("{type: udp, key: k, listen: '[::]:1', codec: dn}",
         "50: transports.t.codec: is not one of dns, batch, cdns (did you mean dns?)"),
        ("{type: udp, listen: '[::]:1', codec: cdns}",
         "42: transports.t.codec: cdns has no signature: it needs tcp or quic, whose certificates say who speaks"),
        ("{type: udp, key: k, listen: '[::]:1', hops: 1}", "43: transports.t.hops: unknown key"),
        ("{type: udp, key: k, listen: '[::]:1', zstd: true}",
         "49: transports.t.zstd: udp has none; it takes `listen` and `peers`"),
        ("{type: udp, key: k, listen: '[::]:1', flush: {interval: 11}}", "61: transports.t.flush.interval: is above 10"),
        ("{type: multicast, key: k}", "2: transports.t.group: is required"),
        ("{type: multicast, key: k, group: '192.0.2.1:5390'}",
         "38: transports.t.group: 192.0.2.1 is not a multicast address"),
        ("{type: multicast, key: k, group: '239.1.1.1:5390', hops: 256}", "62: transports.t.hops: is above 255"),
        ("{type: mqtt, key: k}", "2: transports.t: `url` is required: mqtt://HOST:PORT of the broker"),
        ("{type: mqtt, key: k, url: 'http://h'}",
         "31: transports.t.url: 'http://h' is not of the form mqtt://HOST:PORT or mqtts://"),
        ("{type: mqtt, key: k, url: 'mqtt://u:p@h'}",
         "31: transports.t.url: holds a password; write it into a file and name it in `password`"),
        ("{type: mqtt, key: k, url: 'mqtts://h'}",
         "2: transports.t: mqtts needs `tls`: at least the `ca` that signs the broker's certificate"),
        ("{type: mqtt, key: k, url: 'mqtt://h', password: p}",
         "53: transports.t.password: must be `file:PATH` or `env:VAR`"),
        ("{type: mqtt, key: k, url: 'mqtt://h', qos: 2}", "48: transports.t.qos: is above 1"),
        ("{type: zeromq, key: k}", "2: transports.t: zeromq needs `bind`, `connect` or both, or `hub`"),
        ("{type: tcp, listen: '[::1]:1'}", "2: transports.t: `tls` is required; on loopback `insecure: true` does without"),
        ("{type: tcp, insecure: true, listen: '192.0.2.1:1'}",
         "41: transports.t.listen: is beyond loopback, where cleartext is never allowed: needs `tls`"),
        ("{type: tcp, insecure: true, peers: ['[2001:db8::1]:1']}",
         "41: transports.t.peers.0: is beyond loopback, where cleartext is never allowed: needs `tls`"),
        ("{type: tcp, key: k, insecure: true, listen: '[::1]:1'}",
         "22: transports.t.key: codec cdns signs nothing: the certificates of `tls` say who speaks"),
        ("{type: tcp, insecure: true}", "2: transports.t: tcp needs `listen`, `peers` or both"),
        ("{type: quic, listen: '[::1]:1'}", "2: transports.t: quic needs `tls`"),
        ("{type: tcp, listen: '[::1]:1', tls: {ca: /nonexistent, peers: [a]}}",
         "41: transports.t.tls: `cert` and `key` are required: both ends show a certificate"),
        ("{type: tcp, listen: '[::1]:1', tls: {ca: /x, cert: /x, key: /x}}",
         "41: transports.t.tls: `peers` is required: the names of the certificates that are let in"),
        ("{type: mqtt, key: k, url: 'mqtt://b', password: 'file:/dev/null'}",
         "53: transports.t.password: /dev/null is not a file"),
        ("{type: tcp, listen: '[::1]:1', tls: {ca: /x, peers: [{a: b}]}}",
         "57: transports.t.tls.peers: wants a list of names, or a mapping (`name: {}`)"),
        ("{type: udp, key: k, listen: '[::]:1', peers_onyl: 1}",
         "43: transports.t.peers_onyl: unknown key (did you mean peers_only?)"),
        ("{type: udp, key: k, listen: '[::]:1', socket_buffer: 1}", "58: transports.t.socket_buffer: is below 65536"),
        ("{type: udp, key: k, listen: '[::]:1', accept: {evidense: x}}",
         "52: transports.t.accept.evidense: unknown key (did you mean evidence?)"),
        ("{type: zeromq, key: k, bind: [a], curve: {secret: x, alow: {}}}",
         "58: transports.t.curve.alow: unknown key (did you mean allow?)"),
        ("{type: upd, key: k}", "12: transports.t.type: no transport 'upd' is installed (did you mean udp?)"),
        ("{type: U P, key: k}", "12: transports.t.type: 'U P' is not the type of a transport"),
        ("{key: k}", "2: transports.t.type: is required"),
        ("x", "5: transports.t: wants a mapping (`key: value`)"),
    ],
)  # fmt: skip
def test_each_mistake_of_a_transport(entry: str, expected: str) -> None:
    found = problems(f"node: a\n{KEY}transports:\n t: {entry}\n", transport_types=tuple(OPTIONS))
    assert f"f:4:{expected}" in found


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("listen: '127.0.0.1:1'",
         "2:37: sources.s.listen: any local user can write to TCP on loopback: use unix:PATH, or `insecure: true`"),
        ("listen: '192.0.2.1:1', insecure: true",
         "2:37: sources.s.listen: TCP beyond loopback needs `tls`: whoever can write here fills every cache"),
        ("listen: '0.0.0.0:1'",
         "2:37: sources.s.listen: TCP beyond loopback needs `tls`: whoever can write here fills every cache"),
        ("listen: unix:/run/x/y, insecure: true",
         "2:62: sources.s.insecure: is for TCP; a unix socket checks who connects by its user"),
        ("listen: '127.0.0.1:1', insecure: true, allow_uids: [1]",
         "2:80: sources.s.allow_uids: is for a unix socket; TCP does not tell the user"),
        ("listen: unix:/nonexistent/y", "2:37: sources.s.listen: the directory /nonexistent does not exist"),
        ("listen: '192.0.2.1:1', tls: {cert: /nonexistent/c, key: /nonexistent/k, ca: /nonexistent/a}",
         "2:64: sources.s.tls.cert: /nonexistent/c: No such file or directory"),
        ("listen: '192.0.2.1:1', tls: {cert: c}", "2:52: sources.s.tls.ca: is required"),
        ("listen: '192.0.2.1:1', tls: {crt: c}", "2:58: sources.s.tls.crt: unknown key (did you mean cert?)"),
        ("listen: '192.0.2.1:1', tls: {cert: [c]}", "2:64: sources.s.tls.cert: wants the path of a file, not a list"),
        ("listen: '192.0.2.1:1', tls: {cert: /, key: /, ca: /}", "2:64: sources.s.tls.cert: / is not a file"),
        ("listen: '2001:db8::1:1', insecure: true", "2:37: sources.s.listen: '2001:db8::1:1' has no port"),
        ("listen: 'unix:/run/x/y', resolver_frames: none, trusted_forwarders: [192.0.2.1]",
         "2:97: sources.s.trusted_forwarders: has no use with `resolver_frames: none`"),
        ("listen: 'unix:/run/x/y', trusted_forwarders: [192.0.2.300]",
         "2:75: sources.s.trusted_forwarders.0: '192.0.2.300' is not an address or network such as 192.0.2.0/24"),
        ("listen: 'unix:/run/x/y', validating: {}", "2:66: sources.s.validating: wants true or false"),
        ("listen: 'unix:/run/x/y', allow_uids: 1", "2:66: sources.s.allow_uids: wants a list"),
    ],
)  # fmt: skip
def test_a_source_is_a_border(entry: str, expected: str) -> None:
    assert "f:" + expected in problems(f"node: a\nsources: {{s: {{type: dnstap, {entry}}}}}\n")


@pytest.mark.parametrize(
    ("upstream", "expected"),
    [
        ("{address: 192.0.2.1, validating: true}",
         "4:48: shim.upstreams.0.validating: needs a `tls_name` beyond loopback: anyone on the way could set AD"),
        ("{address: '::1', validating: true, authoritative: true}",
         "4:65: shim.upstreams.0.authoritative: `validating` and `authoritative` exclude each other"),
        ("localhost", "4:15: shim.upstreams.0.address: 'localhost' has no IP address; write 192.0.2.1:PORT or [2001:db8::1]:PORT"),
        ("127.0.0.1", "4:15: shim.upstreams.0.address: is the shim's own address: it would ask itself"),
        ("{url: 'https://x'}", "4:16: shim.upstreams.0.url: not available in this version"),
        ("{address: '::1', tls_name: a..b}",
         "4:42: shim.upstreams.0.tls_name: not a domain name: 'a..b' has an empty label"),
        ("{address: '::1', validate: true}", "4:32: shim.upstreams.0.validate: unknown key (did you mean validating?)"),
    ],
)  # fmt: skip
def test_each_mistake_of_an_upstream(upstream: str, expected: str) -> None:
    text = f"node: a\nshim:\n  listen: ['127.0.0.1:53']\n  upstreams: [{upstream}]\n"
    assert "f:" + expected in problems(text)


@pytest.mark.parametrize("key", ["hints", "swild", "local_data", "block_lists"])
def test_what_later_versions_have_is_said_so(key: str) -> None:
    text = f"node: a\nshim:\n  listen: ['127.0.0.1:53']\n  {key}: 1\n"
    assert problems(text) == [f"f:4:3: shim.{key}: not available in this version"]


def test_lists_are_bounded() -> None:
    names = ", ".join(["a"] * 1001)
    assert problems(f"node: a\nshare: {{deny: [{names}]}}\n") == ["f:2:15: share.deny: has more than 1000 entries"]


def test_a_private_key_that_everyone_reads_is_refused(tmp_path: Path) -> None:
    for name in ("c", "k", "a"):
        (tmp_path / name).touch(mode=0o644)
    text = "node: a\nsources: {s: {type: stream, claims: confirmed, listen: '[::]:1', tls: {cert: c, key: k, ca: a}}}\n"
    assert problems(text, directory=tmp_path) == [
        f"f:2:86: sources.s.tls.key: {tmp_path}/k holds a private key and lets everyone in; run: chmod o= {tmp_path}/k"
    ]
    (tmp_path / "k").chmod(0o640)
    assert loads(text, directory=tmp_path).warnings == ()


def test_switches_that_are_off() -> None:
    assert loads("node: a\nshare: {second_sighting: off}\n").share.second_sighting is None
    assert loads("node: a\nshare: {second_sighting: 10m}\n").share.second_sighting == 600


def test_a_rollover_accepts_without_signing() -> None:
    config = loads(f"node: a\n{KEY}transports: {{t: {{type: udp, keys: [k], listen: '[::]:0'}}}}\n")
    assert (config.transports["t"].key, config.transports["t"].accepted_keys) == (None, ("k",))


def test_every_problem_is_reported_in_the_order_of_the_file() -> None:
    text = "x: 1\nnode: A\nshare: {min_ttl: z}\nnode: b\ncache: {max_bytes: 1}\n"
    assert [problem.split(" ")[0] for problem in problems(text)] == ["f:1:1:", "f:2:7:", "f:3:18:", "f:4:1:", "f:5:20:"]


def test_two_parts_cannot_listen_on_one_address() -> None:
    text = "node: a\nsources:\n  s: {type: dnstap, listen: unix:/run/x/y}\n  t: {type: dnstap, listen: unix:/run/x/y}\n"
    assert problems(text) == ["f:4:29: sources.t.listen: is already used by `sources.s.listen`"]
    text = (
        f"node: a\n{KEY}transports:\n  t: {{type: udp, key: k, listen: '[::1]:53'}}\nshim: {{listen: ['[::1]:53']}}\n"
    )
    assert problems(text) == ["f:5:17: shim.listen.0: is already used by `transports.t.listen`"]


def test_warnings_have_places_too() -> None:
    config = loads("node: a\nsources:\n  s: {type: dnstap, listen: unix:/run/x/y, resolver_frames: none}\n", file="f")
    assert [str(warning) for warning in config.warnings] == [
        "f:3:61: sources.s.resolver_frames: the resolver's word to clients is all the evidence: switch serve-stale and ECS off on it"
    ]
    text = f"node: b\n{KEY}transports:\n  t: {{type: udp, key: k, listen: '[::1]:53'}}\n"
    config = loads(text.replace("8=}", "8=, origins: [a]}"), file="f")
    assert [warning.key for warning in config.warnings] == ["transports.t.key"]


def test_load_reads_relative_to_the_file(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("node: a\nkeys: {k: {secret: 'file:k.key'}}\n")
    key = tmp_path / "k.key"
    key.write_text("k:hmac-sha256:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n")
    key.chmod(0o600)
    assert load(path).keys["k"].secret_bytes() == bytes(range(32))
    path.write_bytes(b"\xef\xbb\xbfnode: a\n")
    assert load(str(path)).node == "a"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"node: a\nx: \xff\n", ":2:4: not UTF-8"),
        (b"#" * (MAX_FILE + 1), f":1:1: longer than {MAX_FILE} bytes"),
        (None, ":1:1: No such file or directory"),
    ],
)
def test_a_file_that_cannot_be_read(tmp_path: Path, content: bytes | None, expected: str) -> None:
    path = tmp_path / "c.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigErrors) as caught:
        load(path)
    assert str(caught.value) == f"{path}{expected}"
    assert caught.value.__context__ is None or caught.value.__suppress_context__


def test_a_directory_is_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigErrors, match="directory"):
        load(tmp_path)


def test_admin_socket_needs_no_keys(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("node: a\nkeys: {k: {secret: 'file:/nonexistent'}}\nadmin: {socket: /run/x.sock}\n")
    assert admin_socket(path) == "/run/x.sock"
    path.write_text("node: a\n")
    with pytest.raises(ConfigError, match=r"no `admin\.socket`"):
        admin_socket(path)
    path.write_text("node: a\nadmin: {socket: x}\n")
    with pytest.raises(ConfigErrors, match=r"2:17: admin\.socket: 'x' is not an absolute path"):
        admin_socket(path)


def models(model: type[BaseModel], schema: dict[str, object]) -> list[tuple[str, dict[str, object]]]:
    definitions = schema.get("$defs")
    assert isinstance(definitions, dict)
    return [(model.__name__, schema), *definitions.items()]


def test_every_key_is_described_in_the_schema() -> None:
    schema = Config.model_json_schema()
    json.dumps(schema)
    for name, definition in models(Config, schema):
        properties = definition.get("properties", {})
        assert isinstance(properties, dict)
        for key, value in properties.items():
            assert value.get("description"), f"{name}.{key} has no description"


def test_the_schema_allows_an_upstream_as_text() -> None:
    items = Config.model_json_schema()["$defs"]["Shim"]["properties"]["upstreams"]["items"]
    assert items == {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/Upstream"}]}
