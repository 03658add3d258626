"""What ties the configuration's sections together, and to this machine: references, addresses, files, borders.

Each check takes the validated models and reports problems by place. Opens no socket; reads key files only.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from cachebus.config.keyfile import (
    DIGEST_BYTES,
    KeyMaterial,
    decode_secret,
    parse_key_text,
    read_key_file,
    read_variable,
    variable_text,
)
from cachebus.config.models import (
    Admin,
    Config,
    DnstapSource,
    FileFormat,
    FileSource,
    Key,
    ResolverFrames,
    Source,
    StreamSource,
    UnboundCacheSource,
    UnboundSink,
)
from cachebus.config.problems import Place, shown
from cachebus.config.shim_checks import check_shim
from cachebus.config.shim_listen_checks import check_listeners
from cachebus.config.tools import Tools
from cachebus.config.transport_checks import TransportChecker
from cachebus.config.values import UnixAddress
from cachebus.errors import ConfigError
from cachebus.presentation import name_from_text

NOT_YET = "not available in this version"
_READABLE_BY_OTHERS = stat.S_IRGRP | stat.S_IROTH


class Checker:
    """Checks one configuration. `report` and `warn` are called with a place and a sentence."""

    def __init__(
        self,
        config: Config,
        *,
        report: Callable[[Place, str], None],
        warn: Callable[[Place, str], None],
        directory: Path,
        environment: Mapping[str, str],
        transport_types: Collection[str] | None,
    ) -> None:
        self._config = config
        self._tools = Tools(report=report, warn=warn, directory=directory, environment=environment)
        self._transports = TransportChecker(config, self._tools, transport_types)

    def run(self, mode: int | None) -> None:
        """Check everything. `mode` is the configuration file's own, None when it is not a file."""
        config = self._config
        self._keys(config.keys, mode)
        for name, source in config.sources.items():
            self._source(("sources", name), source)
        for name, transport in config.transports.items():
            self._transports.check(("transports", name), transport)
        for name, sink in config.sinks.items():
            if isinstance(sink, UnboundSink):
                self._unbound(("sinks", name), sink)
        if config.share.min_ttl > config.share.max_ttl:
            self._tools.report(("share", "min_ttl"), "is above `max_ttl`: nothing would be shared")
        if config.shim is not None:
            check_shim(config.shim, self._tools)
            check_listeners(config.shim, self._tools)
        self._transports.snapshot(config.snapshot)
        self._admin(config.admin)
        if config.state is not None and not config.state.is_dir():
            self._tools.report(("state",), f"{config.state} is not a directory")

    # Keys

    def _keys(self, keys: Mapping[str, Key], mode: int | None) -> None:
        seen: dict[bytes, str] = {}
        for text, key in keys.items():
            place: Place = ("keys", text)
            if key.evidence > key.max_evidence:
                self._tools.report((*place, "evidence"), f"is stronger than `max_evidence`, {key.max_evidence.text}")
            try:
                name = name_from_text(text)
            except ValueError:
                self._tools.report(place, "a key's name must be a domain name, as TSIG carries it")
                continue
            if name in seen:
                self._tools.report(place, f"is the same name as {shown(seen[name])}: TSIG ignores case and final dot")
            seen[name] = text
            self._secret(place, key, name, mode)

    def _secret(self, place: Place, key: Key, name: bytes, mode: int | None) -> None:
        place = (*place, "secret")
        text = key.secret.get_secret_value().strip()
        algorithm = key.algorithm.value
        try:
            material = self._read_secret(text)
            secret = decode_secret(text, "it") if material is None else material.secret
        except ConfigError as error:
            self._tools.report(place, str(error))
            return
        if material is not None and material.name not in (b"", name):
            self._tools.report(place, "the key there has another name than here")
        if material is not None and material.algorithm not in ("", algorithm):
            self._tools.report(place, f"the key there is for {material.algorithm}, not {algorithm}")
        if material is None and mode is not None and mode & _READABLE_BY_OTHERS:
            self._tools.warn(place, "a secret in a file that others can read; put it into a key file, or: chmod 600")
        if len(secret) < DIGEST_BYTES[algorithm]:
            self._tools.warn(place, f"{len(secret)} bytes; {algorithm} deserves {DIGEST_BYTES[algorithm]} (RFC 2104)")
        key._name = name  # the model is frozen; its private attributes are filled here, once
        key._secret = secret

    def _read_secret(self, text: str) -> KeyMaterial | None:
        kind, colon, rest = text.partition(":")
        if not colon:
            return None
        if kind == "file":
            return read_key_file(self._tools.directory / rest)
        if kind != "env":
            raise ConfigError("must be `file:PATH`, `env:VAR` or base64")
        value = read_variable(rest, self._tools.environment)
        where = variable_text(rest)
        if ":" in value:
            return parse_key_text(value, where)
        return KeyMaterial(b"", "", decode_secret(value, where))

    # Sources

    def _source(self, place: Place, source: Source) -> None:
        if isinstance(source, UnboundCacheSource):
            self._control(place, source)
            self._tools.warn(
                place,
                "reading the cache locks parts of it and holds up a thread: older releases of Unbound answer late",
            )
            return
        if isinstance(source, FileSource):
            self._tools.file((*place, "path"), source.path)
            if source.format is FileFormat.WIRE and source.claims is None:
                self._tools.report(place, "`claims` is required: DNS messages do not say how they were checked")
        else:
            self._border(place, source)
        if not isinstance(source, StreamSource):
            self._dnstap_evidence(place, source)

    def _border(self, place: Place, source: DnstapSource | StreamSource) -> None:
        listen = source.listen
        self._tools.once((*place, "listen"), str(listen))
        if source.tls is not None:
            self._tools.tls_files((*place, "tls"), source.tls.cert, source.tls.key, source.tls.ca)
        if isinstance(listen, UnixAddress):
            self._tools.directory_of((*place, "listen"), listen.path)
            for key, given in (("insecure", source.insecure), ("tls", source.tls is not None)):
                if given:
                    self._tools.report((*place, key), "is for TCP; a unix socket checks who connects by its user")
            return
        if source.allow_uids:
            self._tools.report((*place, "allow_uids"), "is for a unix socket; TCP does not tell the user")
        if source.tls is not None:
            return
        if not listen.is_loopback:
            self._tools.report(
                (*place, "listen"), "TCP beyond loopback needs `tls`: whoever can write here fills every cache"
            )
        elif not source.insecure:
            self._tools.report(
                (*place, "listen"), "any local user can write to TCP on loopback: use unix:PATH, or `insecure: true`"
            )

    def _dnstap_evidence(self, place: Place, source: DnstapSource | FileSource) -> None:
        if source.resolver_frames is ResolverFrames.NONE:
            self._tools.warn(
                (*place, "resolver_frames"),
                "the resolver's word to clients is all the evidence: switch serve-stale and ECS off on it",
            )
            if source.trusted_forwarders:
                self._tools.report((*place, "trusted_forwarders"), "has no use with `resolver_frames: none`")

    # Sinks

    def _unbound(self, place: Place, sink: UnboundSink) -> None:
        self._tools.once((*place, "control"), f"control {sink.control}")
        self._control(place, sink)

    def _control(self, place: Place, sink: UnboundSink | UnboundCacheSource) -> None:
        if sink.tls is not None:
            self._tools.tls_files((*place, "tls"), sink.tls.cert, sink.tls.key, sink.tls.ca)
        if isinstance(sink.control, UnixAddress):
            self._tools.directory_of((*place, "control"), sink.control.path)
            if sink.tls is not None:
                self._tools.report((*place, "tls"), "is for TCP; Unbound's unix control socket has no TLS")
        elif sink.tls is None:
            self._tools.report(
                (*place, "control"), "needs `tls`: over TCP anyone on this machine could answer for Unbound"
            )

    # Admin

    def _admin(self, admin: Admin) -> None:
        if admin.socket is not None:
            self._tools.directory_of(("admin", "socket"), admin.socket)
            self._tools.once(("admin", "socket"), f"unix:{admin.socket}")
        if admin.http is None:
            return
        if not admin.http.is_loopback and not admin.http_beyond_loopback:
            self._tools.report(
                ("admin", "http"),
                "is beyond loopback, without TLS or passwords; `http_beyond_loopback: true` allows it",
            )
