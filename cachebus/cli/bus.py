"""What `tail` and `publish` share: the flags of a link, and a configuration's share policy.

Decides how flags become what `cachebus.client` plans a link from. What a URL means is known to `cachebus.urls`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from cachebus.answer import Answer, Refusal
from cachebus.cli.common import KeyParameter
from cachebus.client import KeyMissing, Opening, plan
from cachebus.config.transports import CodecName
from cachebus.filters.policy import Policy
from cachebus.urls import Beside, Role

if TYPE_CHECKING:
    from cachebus.config.keyfile import KeyMaterial

Command = TypeVar("Command", bound=Callable[..., Any])

_FILE = click.Path(path_type=Path)


class SharePolicy(NamedTuple):
    """What a configuration lets out of its node; without one, everything."""

    policy: Policy | None = None
    infrastructure: bool = False
    """NS, DS, DNSKEY and SOA may be shared."""

    def refuse(self, answer: Answer) -> Refusal | None:
        """Why this answer may not be shared."""
        return None if self.policy is None else self.policy.refuse_to_share(answer)


def link_options(command: Command) -> Command:
    """Add the flags that stand beside a URL; a verb takes them as keyword arguments and passes them to `open_plan`."""
    options = (
        click.option("--key", "keys", multiple=True, type=KeyParameter(), metavar="KEY",
                     help="NAME:ALG:BASE64, file:PATH of a key file, or env:VAR that holds one. "
                          "Repeated: all are accepted, the first signs."),
        click.option("--peers", metavar="HOST,...",
                     help="udp, multicast: hear these hosts only. tls, quic: names of the certificates that are let "
                          "in. zmq: further addresses to subscribe to."),
        click.option("--cluster", metavar="NAME", help="Name of the cluster. [default: that of the URL, or default]"),
        click.option("--node", metavar="NAME", help="Our name on the bus. [default: cli- and eight random digits]"),
        click.option("--codec", type=click.Choice([codec.value for codec in CodecName]),
                     help="What the messages are. [default: dns over udp and multicast, batch over mqtt and zmq, "
                          "cdns over tcp, tls and quic]"),
        click.option("--ca", type=_FILE, metavar="FILE", help="Certificates that sign the other end's."),
        click.option("--cert", type=_FILE, metavar="FILE", help="Certificate to show."),
        click.option("--cert-key", type=_FILE, metavar="FILE", help="Its private key."),
        click.option("--curve-key", type=_FILE, metavar="FILE", help="zmq: our own CURVE key."),
        click.option("--curve-server", metavar="KEY", help="zmq: public key of the other end, or file:PATH."),
        click.option("--curve-allow", metavar="file:PATH", help="zmq, bind=1: public keys that may connect."),
        click.option("--password", metavar="file:PATH|env:VAR", help="mqtt: password of the URL's user."),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def open_plan(
    url: str,
    role: Role,
    *,
    infrastructure: bool,
    keys: tuple[KeyMaterial, ...],
    peers: str | None,
    node: str | None,
    password: str | None,
    **beside: Any,
) -> Opening:
    """What to open, by a URL and the flags of `link_options`.

    Raises `ConfigError` when they contradict each other; a usage error where a key is missing.
    """
    names = tuple(name.strip() for name in (peers or "").split(",") if name.strip())
    try:
        opening = plan(
            url,
            role=role,
            beside=Beside(peers=names, **beside),
            key=keys,
            node=node,
            password=password,
            infrastructure=infrastructure,
        )
    except KeyMissing as error:
        raise click.UsageError(f"--key is missing: {str(error).partition(': ')[2]}.") from None
    if opening.key_is_idle:
        click.echo("cachebus: --key is not used: codec cdns signs nothing, its link authenticates", err=True)
    return opening


def load_share(config: Path | None) -> SharePolicy:
    """The share policy of a configuration file. Raises `ConfigError` when the file is wrong."""
    if config is None:
        return SharePolicy()
    from cachebus.assembly import make_policy  # the configuration's models take a while to import
    from cachebus.config import load

    share = load(config).share
    return SharePolicy(make_policy(share), share.infrastructure)
