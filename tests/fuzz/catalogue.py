"""Every target there is."""

from __future__ import annotations

from typing import Any

from tests.fuzz import (
    admin,
    batch,
    bus,
    cdns,
    configuration,
    fast,
    form,
    frames,
    judges,
    messages,
    policy,
    sequence,
    shim,
    streams,
    text,
    unbound,
    warm,
)
from tests.fuzz.harness import Target

TARGETS: dict[str, type[Target[Any]]] = {
    target.name: target
    for module in (
        messages,
        bus,
        batch,
        sequence,
        cdns,
        form,
        frames,
        judges,
        policy,
        text,
        configuration,
        fast,
        shim,
        streams,
        unbound,
        warm,
        admin,
    )
    for target in module.TARGETS
}
"""By name."""
