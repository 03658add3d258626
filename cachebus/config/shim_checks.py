"""What ties the keys of the `shim` section together, and to this machine. Opens no socket."""

from __future__ import annotations

from cachebus.config.problems import Place
from cachebus.config.shim import Shim, Upstream
from cachebus.config.shim_front import parse_cookie_secrets
from cachebus.config.tools import Tools
from cachebus.presentation import name_from_text


def check_shim(shim: Shim, tools: Tools) -> None:
    """Report to `tools` what cannot be."""
    for index, listen in enumerate(shim.listen):
        if listen.port:
            tools.once(("shim", "listen", index), f"udp:{listen}")
    for index, upstream in enumerate(shim.upstreams):
        _upstream(("shim", "upstreams", index), upstream, shim, tools)
    _front(shim, tools)


def _front(shim: Shim, tools: Tools) -> None:
    """What is about clients: the secret of cookies is read here, once; an open resolver is warned of."""
    cookies = shim.cookies
    if cookies.secret is not None:
        place: Place = ("shim", "cookies", "secret")
        text = tools.secret_text(place, cookies.secret)
        try:
            if text is not None:
                cookies._secrets = parse_cookie_secrets(
                    text
                )  # the model is frozen; its private attributes are filled here
        except ValueError as error:
            tools.report(place, str(error))
    limited = shim.rate_limit is not None and shim.rate_limit.enabled
    for index, network in enumerate(shim.allow or ()):
        if not network.prefixlen and not limited:
            tools.warn(("shim", "allow", index), "serves the whole Internet, forged addresses too; set `rate_limit`")


def _upstream(place: Place, upstream: Upstream, shim: Shim, tools: Tools) -> None:
    try:
        address = upstream.endpoint
    except ValueError as error:
        tools.report((*place, "address"), str(error))
        return
    if address in shim.listen:
        tools.report((*place, "address"), "is the shim's own address: it would ask itself")
    if upstream.validating and upstream.authoritative:
        tools.report((*place, "authoritative"), "`validating` and `authoritative` exclude each other")
    if upstream.validating and upstream.tls_name is None and not address.is_loopback:
        tools.report((*place, "validating"), "needs a `tls_name` beyond loopback: anyone on the way could set AD")
    if upstream.tls_name is not None:
        try:
            name_from_text(upstream.tls_name)
        except ValueError as error:
            tools.report((*place, "tls_name"), f"not a domain name: {error}")
