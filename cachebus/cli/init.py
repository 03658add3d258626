"""`cachebus init`: writes a commented starter configuration and the key it needs. Never overwrites unless told to."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

import click

from cachebus.cli.common import json_option, print_json
from cachebus.errors import ConfigError

TEMPLATE = """\
# A node of cachebus. `cachebus check -c {file}` says whether this is right, `cachebus schema` lists every key.

node: {node}            # unique in the cluster
cluster: {cluster}

keys:
  # The same key file on every node of the cluster; mode 0600.
  {key}: {{algorithm: hmac-sha256, secret: "file:{key_file}"}}

sources:
  # Unbound: dnstap-enable: yes, dnstap-bidirectional: yes, dnstap-socket-path: "/run/cachebus/dnstap.sock",
  # dnstap-log-resolver-query-messages, -resolver-response-messages and -client-response-messages: yes.
  resolver: {{type: dnstap, listen: "unix:/run/cachebus/dnstap.sock", trust: [confirmed, validated]}}

transports:
  # Every node may list all of them, itself included.
  lan: {{type: udp, listen: "{listen}", peers: [{peers}], key: {key}}}

sinks:
  # Unbound: remote-control: control-enable: yes, control-interface: /run/unbound.ctl
  resolver: {{type: unbound, control: "unix:/run/unbound.ctl"}}

# For a resolver that cannot be filled, cachebus's own DNS server in front of it, in place of `sinks`:
# shim:
#   listen: ["127.0.0.1:53"]
#   upstreams: [{{address: "127.0.0.1:5335", validating: true}}]

share:
  min_ttl: 30

admin:
  socket: /run/cachebus/api.sock
  # http: "127.0.0.1:9853"    # /metrics for Prometheus
"""
PEERS = '"192.0.2.11:5390", "192.0.2.12:5390"'
"""Documentation addresses (RFC 5737): they reach nobody until they are replaced."""
LISTEN = "0.0.0.0:5390"


@click.command()
@click.argument("directory", required=False, default=".", type=click.Path(file_okay=False, path_type=Path))
@click.option("--node", metavar="NAME", help="This node's name. [default: the host's]")
@click.option("--cluster", metavar="NAME", default="home", show_default=True, help="The cluster's name.")
@click.option("--listen", metavar="ADDRESS:PORT", default=LISTEN, show_default=True, help="Where to receive.")
@click.option("--peer", "peers", metavar="ADDRESS:PORT", multiple=True, help="A node to send to; may be repeated.")
@click.option("--force", is_flag=True, help="Overwrite files that exist.")
@json_option
def init(
    directory: Path, node: str | None, cluster: str, listen: str, peers: tuple[str, ...], force: bool, as_json: bool
) -> None:
    """Write cachebus.yaml and a key file into DIRECTORY, which is the current one unless given."""
    from cachebus.config import loads
    from cachebus.config.keyfile import make_key, write_key_file
    from cachebus.config.values import parse_address, parse_label

    try:
        name = parse_label(node or _host())
        parse_label(cluster)
        parse_address(listen, any_port=True)
        for peer in peers:
            parse_address(peer)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    configuration, key_file = directory / "cachebus.yaml", directory / "cluster.key"
    for path in (configuration, key_file):
        if path.exists() and not force:
            raise ConfigError(f"{path} exists; nothing was written (--force overwrites)")
    text = TEMPLATE.format(
        file=configuration,
        node=name,
        cluster=cluster,
        key=f"{cluster}-key",
        key_file=key_file.name,
        listen=listen,
        peers=", ".join(f'"{peer}"' for peer in peers) or PEERS,
    )
    _make_directory(directory)
    write_key_file(key_file, make_key(f"{cluster}-key"), overwrite=force)
    loads(text, file=str(configuration), directory=directory)  # what init writes is right, or init fails here
    _write(configuration, text, overwrite=force)
    if as_json:
        print_json({"config": str(configuration), "key": str(key_file)})
        return
    click.echo(f"wrote {configuration} and {key_file}")
    click.echo("Next: put the peers' addresses in, copy the key file to every node over a safe channel, then")
    click.echo(f"  cachebus check -c {configuration} && cachebus run -c {configuration}")


def _host() -> str:
    """Make a node's name of the host's."""
    return re.sub(r"[^a-z0-9-]+", "-", socket.gethostname().partition(".")[0].lower())[:63].strip("-") or "node-1"


def _make_directory(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{directory}: {error.strerror}") from None


def _write(path: Path, text: str, *, overwrite: bool) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | (os.O_TRUNC if overwrite else os.O_EXCL)
    try:
        with os.fdopen(os.open(path, flags, 0o644), "w") as file:
            file.write(text)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
