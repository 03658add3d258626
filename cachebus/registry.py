"""Transport type, or URL scheme, to the factory that makes it: the only file that reads package metadata.

Decides which installed entry point answers to a name. Knows none of the transports: those of this project are found
the same way as a third party's. A transport that serves several schemes registers each of them.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from importlib.metadata import EntryPoint, entry_points
from typing import Any, cast

from cachebus.errors import ConfigError, TransportUnavailable
from cachebus.ports import TransportFactory

GROUP = "cachebus.transports"
"""Entry point group: the name is the `type` of the configuration and the scheme of the URL."""
HUBS = "cachebus.hubs"
"""Entry point group of what stands between nodes, by the type of the transport: made by `cachebus forward`."""
_ALIKE = 0.5
"""How alike (difflib ratio) a name must be to be suggested: finds `upd` for `udp`, and nothing for `kafka`."""


def installed_transports(found: Iterable[EntryPoint] | None = None) -> dict[str, EntryPoint]:
    """Every installed transport by name, in alphabetical order; nothing is imported.

    `found` stands in for the entry points of the installed packages. Raises `ConfigError` when two packages claim the
    same name: which of them would carry the answers must not depend on the order of a path.
    """
    known: dict[str, EntryPoint] = {}
    for point in entry_points(group=GROUP) if found is None else found:
        rival = known.setdefault(point.name, point)
        if rival.value != point.value:
            raise ConfigError(
                f"transport {point.name!r} is claimed twice: by {_owner(rival)} and by {_owner(point)}; uninstall one"
            )
    return dict(sorted(known.items()))


def load_transport(name: str, found: Iterable[EntryPoint] | None = None) -> TransportFactory:
    """The factory behind a transport type or URL scheme, imported now.

    Raises `ConfigError` for a name that nothing installed answers to, `TransportUnavailable` when its package cannot
    be imported; the text names what to install. `found` is as in `installed_transports`.
    """
    known = installed_transports(found)
    point = known.get(name)
    if point is None:
        raise ConfigError(_unknown(name, list(known)))
    return cast("TransportFactory", _load(point))


def load_hub(name: str) -> Callable[..., Any]:
    """What makes the hub of a transport type, imported now. Raises as `load_transport`."""
    for point in entry_points(group=HUBS, name=name):
        return _load(point)
    raise ConfigError(
        f"no hub for transport {name!r} is installed; install the cachebus package rather than copying it"
    )


def _load(point: EntryPoint) -> Callable[..., Any]:
    try:
        factory = point.load()
    except ImportError as error:
        raise TransportUnavailable(_unavailable(point, error)) from error
    except AttributeError as error:
        raise TransportUnavailable(f"transport {point.name!r} of {_owner(point)} is broken: {error}") from error
    if not callable(factory):
        broken = f"transport {point.name!r} of {_owner(point)} is broken"
        raise TransportUnavailable(f"{broken}: {point.value} cannot be called")
    return cast("Callable[..., Any]", factory)


def _unknown(name: str, known: list[str]) -> str:
    if not known:
        return f"no transport {name!r}: no transport is installed; install the cachebus package rather than copying it"
    close = difflib.get_close_matches(name.lower(), known, n=1, cutoff=_ALIKE)
    hint = f" (did you mean {close[0]}?)" if close else ""
    return f"no transport {name!r}: installed are {', '.join(known)}{hint}"


def _unavailable(point: EntryPoint, error: ImportError) -> str:
    missing = f"needs the module {error.name}" if error.name else f"cannot be imported ({error})"
    package = _owner(point)
    if point.extras:
        return f"transport {point.name!r} {missing}: pip install '{package}[{','.join(point.extras)}]'"
    return f"transport {point.name!r} of {package} {missing}"


def _owner(point: EntryPoint) -> str:
    # The attribute is None for an entry point that was made by hand, and typeshed cannot say so in every release.
    owner = getattr(point, "dist", None)
    return str(owner.name) if owner is not None else point.value
