"""What ties a transport's keys to each other, to the keys' section, and to this machine.

Types of other packages check their own keys when they are made; here it is seen only that they are installed.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from urllib.parse import urlsplit

from pydantic import SecretStr

from cachebus.config.models import Config, Snapshot
from cachebus.config.problems import Place, shown, suggest
from cachebus.config.tools import Tools
from cachebus.config.transports import (
    DATAGRAM_TYPES,
    STREAM_TYPES,
    CodecName,
    Transport,
    TransportTls,
)
from cachebus.config.values import SocketAddress
from cachebus.presentation import name_from_text

MQTT_SCHEMES = ("mqtt", "mqtts")
_ADDRESSED = DATAGRAM_TYPES | STREAM_TYPES


@dataclass(frozen=True, slots=True)
class _Meaning:
    """Which of the common keys a type of this project takes."""

    listen: bool = False
    peers: bool = False
    url: bool = False
    tls: bool = False
    zstd: bool = False


_MEANINGS: Mapping[str, _Meaning] = MappingProxyType(
    {
        "udp": _Meaning(listen=True, peers=True),
        "multicast": _Meaning(),
        "mqtt": _Meaning(url=True, tls=True, zstd=True),
        "zeromq": _Meaning(zstd=True),
        "tcp": _Meaning(listen=True, peers=True, tls=True, zstd=True),
        "tls": _Meaning(listen=True, peers=True, tls=True, zstd=True),
        "quic": _Meaning(listen=True, peers=True, tls=True, zstd=True),
    }
)


class TransportChecker:
    """Checks the transports of one configuration. `types`: those installed, or None when nobody knows."""

    def __init__(self, config: Config, tools: Tools, types: Collection[str] | None) -> None:
        self._config = config
        self._tools = tools
        self._types = types
        self._checks: Mapping[str, Callable[[Place, Transport], None]] = {
            "udp": self._ends,
            "multicast": self._multicast,
            "mqtt": self._mqtt,
            "zeromq": self._zeromq,
            "tcp": self._stream,
            "tls": self._stream,
            "quic": self._stream,
        }

    def check(self, place: Place, transport: Transport) -> None:
        """Report what is wrong with one transport."""
        if not self._type_is_installed(place, transport.type):
            return
        self._codec(place, transport)
        meaning = _MEANINGS.get(transport.type)
        if meaning is not None:
            self._unused(place, transport, meaning)
            self._checks[transport.type](place, transport)

    def _type_is_installed(self, place: Place, name: str) -> bool:
        if self._types is None or name in self._types:
            return True
        self._tools.report((*place, "type"), f"no transport {shown(name)} is installed{suggest(name, self._types)}")
        return False

    def _codec(self, place: Place, transport: Transport) -> None:
        report = self._tools.report
        if transport.codec_name is CodecName.CDNS:
            if transport.type not in STREAM_TYPES:
                report(
                    (*place, "codec"), "cdns has no signature: it needs tcp or quic, whose certificates say who speaks"
                )
            for name, given in (("key", transport.key is not None), ("keys", bool(transport.keys))):
                if given:
                    report((*place, name), "codec cdns signs nothing: the certificates of `tls` say who speaks")
            return
        for index, name in enumerate(transport.keys):
            self._key_name((*place, "keys", index), name)
        if transport.key is not None:
            self._key_name((*place, "key"), transport.key)
            own = self._config.keys.get(transport.key)
            if own is not None and own.origins is not None and self._config.node not in own.origins:
                self._tools.warn((*place, "key"), f"its `origins` do not have {self._config.node}, which signs with it")
        elif transport.peers or not transport.keys:
            report(place, "`key` is required: everything on the bus is signed")

    def _key_name(self, place: Place, name: str) -> None:
        # The name is not repeated: a secret in the wrong place would be printed.
        if name not in self._config.keys:
            self._tools.report(place, f"names no key of `keys`{suggest(name, self._config.keys)}")

    def _unused(self, place: Place, transport: Transport, meaning: _Meaning) -> None:
        given = {
            "listen": transport.listen is not None,
            "peers": bool(transport.peers),
            "url": transport.url is not None,
            "tls": transport.tls is not None,
            "zstd": transport.zstd,
        }
        takes = [key for key in given if getattr(meaning, key)]
        for key, is_given in given.items():
            if is_given and key not in takes:
                words = f"it takes {' and '.join(f'`{one}`' for one in takes[:2])}" if takes else "see its own keys"
                self._tools.report((*place, key), f"{transport.type} has none; {words}")

    # Types

    def _ends(self, place: Place, transport: Transport) -> None:
        tools = self._tools
        if transport.listen is None and not transport.peers:
            tools.report(place, f"{transport.type} needs `listen`, `peers` or both")
        protocol = "tcp" if transport.type in ("tcp", "tls") else "udp"
        if transport.listen is not None:
            listen = tools.address((*place, "listen"), transport.listen, any_port=True)
            if listen is not None and listen.port:
                tools.once((*place, "listen"), f"{protocol}:{listen}")
        peers: set[SocketAddress] = set()
        for index, text in enumerate(transport.peers):
            peer = tools.address((*place, "peers", index), text)
            if peer is not None and peer in peers:
                tools.report((*place, "peers", index), "is there twice")
            elif peer is not None:
                peers.add(peer)

    def _multicast(self, place: Place, transport: Transport) -> None:
        group = self._tools.address((*place, "group"), str(transport.options.get("group", "")))
        if group is not None and not ipaddress.ip_address(group.host).is_multicast:
            self._tools.report((*place, "group"), f"{group.host} is not a multicast address")

    def _mqtt(self, place: Place, transport: Transport) -> None:
        tools = self._tools
        password = transport.options.get("password")
        if isinstance(password, SecretStr):
            secret = tools.secret_text((*place, "password"), password.get_secret_value())
            transport._options = {**transport.options, "password": secret}  # the model is frozen; filled here, once
        if transport.url is None:
            tools.report(place, "`url` is required: mqtt://HOST:PORT of the broker")
            return
        try:
            parts = urlsplit(transport.url)
            known = parts.scheme in MQTT_SCHEMES and parts.hostname is not None
            if parts.port == 0:
                raise ValueError("Port out of range 0-65535")  # noqa: TRY301 - urlsplit's own words
        except ValueError as error:
            tools.report((*place, "url"), str(error))
            return
        if not known:
            tools.report((*place, "url"), f"{shown(transport.url)} is not of the form mqtt://HOST:PORT or mqtts://")
            return
        if parts.password is not None:
            tools.report((*place, "url"), "holds a password; write it into a file and name it in `password`")
        if parts.scheme == "mqtts":
            if transport.tls is None:
                tools.report(place, "mqtts needs `tls`: at least the `ca` that signs the broker's certificate")
            else:
                self._broker_files((*place, "tls"), transport)
        elif transport.tls is not None:
            tools.report((*place, "tls"), "is for mqtts://")

    def _broker_files(self, place: Place, transport: Transport) -> None:
        tls = transport.tls
        assert tls is not None
        self._tools.file((*place, "ca"), tls.ca)
        if (tls.cert is None) != (tls.key is None):
            self._tools.report(place, "`cert` and `key` belong together")
        elif tls.cert is not None and tls.key is not None:
            self._tools.tls_files(place, tls.cert, tls.key, tls.ca)
        if tls.peers:
            self._tools.report((*place, "peers"), "a broker is known by the name in `url`")

    def _zeromq(self, place: Place, transport: Transport) -> None:
        if not any(transport.options.get(key) for key in ("bind", "connect", "hub")):
            self._tools.report(place, "zeromq needs `bind`, `connect` or both, or `hub`")

    def _stream(self, place: Place, transport: Transport) -> None:
        self._ends(place, transport)
        tls, insecure = transport.tls, bool(transport.options.get("insecure"))
        if tls is not None:
            if insecure:
                self._tools.report((*place, "insecure"), "and `tls` exclude each other")
            self._peer_files((*place, "tls"), tls)
        elif transport.type != "tcp":
            self._tools.report(place, f"{transport.type} needs `tls`")
        elif not insecure:
            self._tools.report(place, "`tls` is required; on loopback `insecure: true` does without")
        else:
            self._loopback_only(place, transport)

    def _loopback_only(self, place: Place, transport: Transport) -> None:
        places = [((*place, "listen"), transport.listen)] if transport.listen is not None else []
        places += [((*place, "peers", index), peer) for index, peer in enumerate(transport.peers)]
        for where, text in places:
            # What is no address was reported before.
            host = str(text).rpartition(":")[0].strip("[]")
            try:
                beyond = not ipaddress.ip_address(host).is_loopback
            except ValueError:
                continue
            if beyond:
                self._tools.report(where, "is beyond loopback, where cleartext is never allowed: needs `tls`")

    def snapshot(self, snapshot: Snapshot) -> None:
        """Report what is wrong with the snapshot section."""
        report = self._tools.report
        if snapshot.listen is not None and snapshot.listen.port:
            self._tools.once(("snapshot", "listen"), f"tcp:{snapshot.listen}")
        if snapshot.tls is not None:
            self._peer_files(("snapshot", "tls"), snapshot.tls)
            if snapshot.insecure:
                report(("snapshot", "insecure"), "and `tls` exclude each other")
            return
        places: list[tuple[Place, SocketAddress]] = (
            [(("snapshot", "listen"), snapshot.listen)] if snapshot.listen is not None else []
        )
        places += [(("snapshot", "peers", index), peer) for index, peer in enumerate(snapshot.peers)]
        for place, address in places:
            if not address.is_loopback:
                report(place, "is beyond loopback, where cleartext is never allowed: needs `tls`")
            elif not snapshot.insecure:
                report(place, "needs `tls`; on loopback `insecure: true` does without")

    def _peer_files(self, place: Place, tls: TransportTls) -> None:
        if tls.cert is None or tls.key is None:
            self._tools.report(place, "`cert` and `key` are required: both ends show a certificate")
        else:
            self._tools.tls_files(place, tls.cert, tls.key, tls.ca)
        if not tls.peers:
            self._tools.report(place, "`peers` is required: the names of the certificates that are let in")
        for name in tls.peers:
            try:
                name_from_text(name)
            except ValueError as error:
                self._tools.report((*place, "peers"), f"{shown(name)} is not a domain name: {error}")
