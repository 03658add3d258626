"""Every target there is."""

from __future__ import annotations

from typing import Any

from tests.fuzz import (
    admin,
    batch,
    bus,
    caching,
    cdns,
    configuration,
    fast,
    form,
    frames,
    front,
    judges,
    listen,
    messages,
    policy,
    sequence,
    shim,
    streams,
    swild,
    text,
    unbound,
    upstreams,
    warm,
)
from tests.fuzz.harness import Target

TARGETS: dict[str, type[Target[Any]]] = {
    target.name: target
    for module in (
        messages,
        bus,
        caching,
        batch,
        sequence,
        cdns,
        form,
        frames,
        front,
        judges,
        policy,
        text,
        configuration,
        fast,
        shim,
        listen,
        streams,
        swild,
        unbound,
        upstreams,
        warm,
        admin,
    )
    for target in module.TARGETS
}
"""By name."""
