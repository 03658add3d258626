"""Where answers come from: a resolver's dnstap, its direct output, capture files.

A source frames bytes and hands each frame, with the time at which it arrived, to the `deliver` it was given; it decides
nothing about them. What proves what is the trust filter's.
"""

from __future__ import annotations

from cachebus.sources.access import ListenSettings, server_context
from cachebus.sources.file import FileSettings, FileSource, Format, open_capture, recognise
from cachebus.sources.listen import Deliver, DnstapSource, StreamSource

__all__ = [
    "Deliver",
    "DnstapSource",
    "FileSettings",
    "FileSource",
    "Format",
    "ListenSettings",
    "StreamSource",
    "open_capture",
    "recognise",
    "server_context",
]
