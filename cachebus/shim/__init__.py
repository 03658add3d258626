"""The resolver shim: cachebus's own DNS server, filled by the bus. `Shim` is all that a node needs to know of it."""

from cachebus.shim.settings import LOOPBACK, ShimSettings, UpstreamSettings, parse_endpoint
from cachebus.shim.shim import Shim

__all__ = ["LOOPBACK", "Shim", "ShimSettings", "UpstreamSettings", "parse_endpoint"]
