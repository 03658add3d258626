"""A node that joins asks its peers, one after the other, for a copy of their cache, until one gave it whole.

Decides when to ask, whom, and when to give up. It asks once the live stream is taken, so nothing is missing between the
copy and that; what both bring is merged by rank.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import ssl
from collections.abc import Callable, Sequence

from cachebus.errors import CachebusError, FrameError
from cachebus.ports import Clock, Sender, Tls
from cachebus.snapshot.copy import Merged, Taker

CLOCKS_DIFFER = 0.5
"""Seconds that peers' clocks may be behind ours with nothing missed: ten times what NTP leaves between two sites."""
PATIENCE = 5.0
"""Seconds to wait at most before asking: a peer or broker that was away is connected again within these, or is dead."""
LOOK = 0.05
"""Seconds between two looks whether the live stream is taken."""
CONNECT_TIME = 5.0
"""Seconds to reach a peer, the TLS handshake included."""
SILENCE = 15.0
"""Seconds without a byte after which a peer is given up; it sends thousands of answers a second."""
STALL = 60.0
"""Seconds without a whole block after which it is given up as well, however many bytes trickle in."""
PAUSES = (1.0, 5.0, 15.0)
"""Seconds between rounds over all peers: they may be starting as well. After the last, the node goes on cold."""
CHUNK = 64 * 1024
"""Bytes read at a time."""

Address = tuple[str, int]
MakeTaker = Callable[[Sender], Taker]

_log = logging.getLogger(__name__)


async def until_live(is_connected: Callable[[], bool], clock: Clock) -> None:
    """Wait, just after the start, until what peers send is heard and taken, or `PATIENCE` is over.

    Messages signed in the second of our start, or before, are refused (trust rules 6.2; time signed has no fraction).
    What peers learned by then has to be in the copy: one that is asked for at once would leave out the rest of that
    second, for as long as its TTLs last. The same holds for what was sent before our links stood (`is_connected`).
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + PATIENCE
    live = math.floor(clock()) + 1 + CLOCKS_DIFFER
    while loop.time() < deadline and (clock() < live or not is_connected()):  # noqa: ASYNC110 - nobody tells either
        await asyncio.sleep(LOOK)


async def join(peers: Sequence[Address], tls: Tls | None, make_taker: MakeTaker) -> Merged | None:
    """Take a copy of the first peer that gives a whole one; what came of it. None when nobody did."""
    for pause in (*PAUSES, None):
        for peer in peers:
            try:
                taker = await fetch(peer, tls, make_taker)
            except (OSError, TimeoutError, CachebusError) as error:
                _log.info("snapshot: %s port %d gives no copy: %s", *peer, str(error) or "no answer in time")
                continue
            return taker.merged
        if pause is not None:
            await asyncio.sleep(pause)
    _log.warning("snapshot: no peer gave a copy of its cache; going on without one")
    return None


async def fetch(peer: Address, tls: Tls | None, make_taker: MakeTaker) -> Taker:
    """Take a copy of one peer, whole or as much as is wanted.

    What came stays merged in any case. Raises `FrameError` when the rest is missing or is no copy, `TransportError` for
    a peer that is not who it should be, `OSError` and `TimeoutError`.
    """
    async with asyncio.timeout(CONNECT_TIME):
        reader, writer = await asyncio.open_connection(*peer)
        try:
            sender: Sender = peer
            if tls is not None:
                await writer.start_tls(tls.client_context())
                secured: ssl.SSLObject = writer.get_extra_info("ssl_object")
                sender = tls.identify(secured.getpeercert(binary_form=True))
        except BaseException:
            writer.transport.abort()
            raise
    taker = make_taker(sender)
    loop = asyncio.get_running_loop()
    blocks, since = 0, loop.time()
    try:
        while not (taker.whole or taker.full):
            async with asyncio.timeout(SILENCE):
                data = await reader.read(CHUNK)
            if not data:
                raise FrameError("the copy ends before its end")
            await taker.feed(data)
            if taker.blocks != blocks:
                blocks, since = taker.blocks, loop.time()
            elif loop.time() - since > STALL:
                raise FrameError("the copy trickles")
    finally:
        writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(CONNECT_TIME):
                await writer.wait_closed()
    return taker
