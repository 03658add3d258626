"""What ties the keys of the `shim` section together, and to this machine. Opens no socket."""

from __future__ import annotations

from ipaddress import ip_address

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
    for index, path in enumerate(shim.local_data.hosts):
        tools.file(("shim", "local_data", "hosts", index), path)
    for name, block_list in shim.block_lists.items():
        tools.file(("shim", "block_lists", name, "file"), block_list.file)
    _caching(shim, tools)
    _front(shim, tools)


def _caching(shim: Shim, tools: Tools) -> None:
    if shim.ttl.min > shim.ttl.max:
        tools.report(("shim", "ttl", "min"), "is above `max`")
    if shim.failures is not None and shim.failures.min > shim.failures.max:
        tools.report(("shim", "failures", "min"), "is above `max`")
    if shim.serve_stale is not None and shim.serve_stale.client_timer >= shim.timeout:
        tools.report(("shim", "serve_stale", "client_timer"), "is not below `timeout`: no client waits for so long")


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
        https = upstream.https
    except ValueError as error:
        tools.report((*place, "url"), str(error))
        return
    if https is not None and not _is_address(https.host) and upstream.address is None:
        tools.report((*place, "url"), "has a name for a host: give its IP address as `address`")
        return
    try:
        address = upstream.endpoint
    except ValueError as error:
        tools.report((*place, "address"), str(error))
        return
    if address in shim.listen:
        tools.report((*place, "address"), "is the shim's own address: it would ask itself")
    if upstream.validating and upstream.authoritative:
        tools.report((*place, "authoritative"), "`validating` and `authoritative` exclude each other")
    if upstream.validating and upstream.server_name is None and not address.is_loopback:
        tools.report((*place, "validating"), "needs a `tls_name` beyond loopback: anyone on the way could set AD")
    if https is not None and upstream.tls_name is not None:
        tools.report((*place, "tls_name"), "is for DNS over TLS; with `url` the name is the URL's")
    if upstream.tls_name is not None:
        try:
            name_from_text(upstream.tls_name)
        except ValueError as error:
            tools.report((*place, "tls_name"), f"not a domain name: {error}")
    if upstream.ca is not None:
        if upstream.server_name is None:
            tools.report((*place, "ca"), "is for TLS: give a `tls_name` or a `url`")
        tools.file((*place, "ca"), upstream.ca)


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
