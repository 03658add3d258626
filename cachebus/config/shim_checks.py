"""What ties the keys of the `shim` section together, and to this machine. Opens no socket."""

from __future__ import annotations

from cachebus.config.problems import Place
from cachebus.config.shim import Shim, Upstream
from cachebus.config.tools import Tools
from cachebus.presentation import name_from_text


def check_shim(shim: Shim, tools: Tools) -> None:
    """Report to `tools` what cannot be."""
    for index, listen in enumerate(shim.listen):
        if listen.port:
            tools.once(("shim", "listen", index), f"udp:{listen}")
    for index, upstream in enumerate(shim.upstreams):
        _upstream(("shim", "upstreams", index), upstream, shim, tools)
    _caching(shim, tools)


def _caching(shim: Shim, tools: Tools) -> None:
    if shim.ttl.min > shim.ttl.max:
        tools.report(("shim", "ttl", "min"), "is above `max`")
    if shim.failures is not None and shim.failures.min > shim.failures.max:
        tools.report(("shim", "failures", "min"), "is above `max`")
    if shim.serve_stale is not None and shim.serve_stale.client_timer >= shim.timeout:
        tools.report(("shim", "serve_stale", "client_timer"), "is not below `timeout`: no client waits for so long")


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
