"""cachebus: an authenticated bus on which the DNS resolvers of one organisation share what they have learned."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from cachebus.answer import Answer, Evidence, Refusal, RRset

if TYPE_CHECKING:
    from cachebus.client import Bus, connect

__version__ = "0.1.0"

__all__ = ["Answer", "Bus", "Evidence", "RRset", "Refusal", "__version__", "connect"]

_LAZY = ("Bus", "connect")
"""Of `cachebus.client`, imported when asked for: it needs the configuration's models and the codecs."""


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module("cachebus.client"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
