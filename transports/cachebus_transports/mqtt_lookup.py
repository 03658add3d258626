"""The addresses of a broker's name, from the system's resolver.

Decides only where the look-up runs: in a thread that nobody waits for. A resolver that is down answers after half a
minute, and a thread of the event loop's pool would keep the process from ending for as long, and its other users from
theirs. There is one look-up at a time, however often it is asked for meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from threading import Thread

Found = list[str] | Exception


class Lookup:
    """Resolves one name, anew whenever it is asked for."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._answer: asyncio.Future[Found] | None = None
        """Of the look-up that runs, or has ended and not been taken."""

    async def addresses(self) -> list[str]:
        """One at least. May be cancelled: the next call takes what this one began. Raises `OSError`."""
        if self._answer is None:
            self._answer = asyncio.get_running_loop().create_future()
            Thread(target=self._ask, args=(self._answer,), name=f"look up {self._host}", daemon=True).start()
        found = await asyncio.shield(self._answer)
        self._answer = None
        if isinstance(found, Exception):
            raise found
        return found

    def _ask(self, answer: asyncio.Future[Found]) -> None:
        found: Found
        try:
            found = [str(one[4][0]) for one in socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)]
        except (OSError, UnicodeError) as error:
            found = error if isinstance(error, OSError) else OSError(str(error))
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            answer.get_loop().call_soon_threadsafe(_settle, answer, found)


def _settle(answer: asyncio.Future[Found], found: Found) -> None:
    if not answer.done():
        answer.set_result(found)
