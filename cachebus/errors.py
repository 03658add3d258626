"""Every exception that cachebus raises on purpose, branched by what the caller can do about it.

Knows nothing of the parts that raise them. An exception outside this tree that leaves a public call is a bug.
"""

from __future__ import annotations


class CachebusError(Exception):
    """Root of the tree: catch this to catch everything cachebus raises on purpose."""


class ConfigError(CachebusError):
    """Raised when a configuration, a key file or a CLI argument is wrong: the operator has to change it."""


class PeerError(CachebusError):
    """Raised when bytes from outside break their format: theirs to mend, ours to refuse and count."""


class MessageError(PeerError):
    """Raised when a DNS message is malformed (RFC 1035 section 4)."""


class FrameError(PeerError):
    """Raised when a Frame Streams or length-prefixed stream is malformed, or longer than its bound."""


class TransportError(CachebusError):
    """Raised when a link cannot be set up or is gone: try again later."""


class TransportUnavailable(TransportError):  # noqa: N818 -- names the state, as anyio does
    """Raised when a transport's library is not installed; the text names what to install."""


class ResolverError(CachebusError):
    """Raised when the local resolver refuses or does not answer its control channel."""


class NodeUnreachable(CachebusError):  # noqa: N818 -- likewise
    """Raised when no running node answers on the admin socket."""
