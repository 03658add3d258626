"""What ties the shim's encrypted listeners together, and to this machine. Opens no socket."""

from __future__ import annotations

from importlib.util import find_spec

from cachebus.config.shim import Shim
from cachebus.config.tools import Tools


def check_listeners(shim: Shim, tools: Tools) -> None:
    """Report to `tools` what cannot be."""
    kinds = {
        "listen": (shim.listen, "tcp"),
        "listen_tls": (shim.listen_tls, "tcp"),
        "listen_https": (shim.listen_https, "tcp"),
        "listen_quic": (shim.listen_quic, "udp"),
    }
    for key, (addresses, protocol) in kinds.items():
        for index, address in enumerate(addresses):
            if address.port:
                tools.once(("shim", key, index), f"{protocol}:{address}")
        if key != "listen" and addresses and shim.tls is None:
            tools.report(("shim", key), "needs `tls`: a certificate and its key")
    if shim.listen_quic and find_spec("aioquic") is None:
        tools.report(("shim", "listen_quic"), "needs aioquic: pip install 'cachebus[quic]'")
    if shim.tls is not None:
        tools.file(("shim", "tls", "cert"), shim.tls.cert)
        tools.file(("shim", "tls", "key"), shim.tls.key, private=True)
        if not (shim.listen_tls or shim.listen_https or shim.listen_quic):
            tools.report(("shim", "tls"), "is for `listen_tls`, `listen_https` and `listen_quic`, and there is none")
