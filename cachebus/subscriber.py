"""transport -> codec -> filters -> cache and sinks: what peers learned comes in.

Decides the order of the steps and nothing else: authenticity and form are the codec's, what is acceptable the
policy's, what stays the cache's. Called for every received datagram, so it does as little as it can.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cachebus.answer import Answer, Refusal
from cachebus.cache import Cache
from cachebus.filters.policy import Policy
from cachebus.history import History
from cachebus.ports import Clock, Codec, Sender, Sink

_BETTER_KNOWN = Refusal.BETTER_KNOWN


class Subscriber:
    """Takes what one transport receives. `receive` is a `ports.Receive`."""

    def __init__(
        self, *, codec: Codec, policy: Policy, cache: Cache, sinks: Sequence[Sink], history: History, clock: Clock
    ) -> None:
        self._decode = codec.decode
        self._refuse_to_accept = policy.refuse_to_accept
        self._put = cache.put
        self._cache = cache
        self._sinks = sinks
        self._history = history
        self._clock = clock
        self.received = 0
        """Datagrams or envelopes."""
        self.accepted = 0
        """Answers."""
        self.refused: dict[Refusal, int] = {}

    def receive(self, data: bytes, sender: Sender) -> None:
        """Take one datagram or envelope to the cache and the sinks, or count why not."""
        self.received += 1
        now = self._clock()
        answers = self._decode(data, sender, now)
        if isinstance(answers, Refusal):
            self.refused[answers] = self.refused.get(answers, 0) + 1
            return
        for answer in answers:
            refusal = self._refuse_to_accept(answer) or self._put(answer, now)
            if refusal is not None:
                self._refuse(answer, refusal, now)
                continue
            self.accepted += 1
            if self._sinks:
                answer = answer._replace(
                    rrsets=tuple(
                        rrset._replace(ttl=self._cache.shortened(rrset.owner, rrset.ttl)) for rrset in answer.rrsets
                    )
                )
                for sink in self._sinks:
                    sink.offer(answer, now)

    def _refuse(self, answer: Answer, refusal: Refusal, now: float) -> None:
        self.refused[refusal] = self.refused.get(refusal, 0) + 1
        if refusal is _BETTER_KNOWN:
            return  # the most common outcome, and what is known instead is what `why` shows
        self._history.record(now, answer.qname, "refused", f"{answer.type} from {answer.origin}: {refusal.value}")

    def statistics(self) -> Mapping[str, int]:
        """Counters; refusals by reason are in `refused`."""
        return {"received": self.received, "accepted": self.accepted}
