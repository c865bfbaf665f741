"""How much a stranger may ask of a pod: pure counting, without sockets or clocks.

Everything is bounded before it is read: connections, their first bytes, messages, fragments, pings, and what waits to
be written to somebody who does not read.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

HEAD_BYTES = 64 * 1024
"""What may come before the upgrade is understood; websockets alone would take 1 MiB of headers."""

QUEUED_FRAMES = 4
"""Frames of one caller that wait to be read; then TCP holds the rest back."""

MOST_FRAGMENTS = 1024
"""Pieces of one message. Empty ones have no size that another limit would count."""

UNREAD_BYTES = 1024 * 1024
"""What the socket may hold for a caller who does not read, answers to its pings included."""

PINGS_PER_SECOND, PINGS_AT_ONCE = 20.0, 100.0
"""A caller's pings; each costs an answer."""

BURST_SECONDS = 4.0
"""So many seconds' worth of messages may come at once: after a stall of the line the backlog does."""

MESSAGE_UNIT = 1024
"""A message counts as one for each so many characters begun: reading 1 MiB of JSON can hold a pod's loop for 80 ms,
as long as a thousand chunks of audio do."""

LINE_SECONDS = 1.0
"""Refusals of one kind are logged once in so long at most: a flood must not become one of the log."""


class Rate:
    """A bucket that fills at `rate` a second up to `burst`, and from which every event takes what it costs."""

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate, self._burst = rate, burst
        self._left, self._at = burst, now

    def take(self, now: float, cost: float = 1.0) -> float:
        """Take `cost`, at most a whole burst; returns the seconds until it is really there, 0.0 if it is."""
        self._left = min(self._burst, self._left + (now - self._at) * self._rate) - min(cost, self._burst)
        self._at = now
        return max(0.0, -self._left / self._rate)

    def spare(self, now: float, cost: float = 1.0) -> bool:
        """Take `cost` only if it is there; whether it was."""
        left = min(self._burst, self._left + (now - self._at) * self._rate) - min(cost, self._burst)
        if left < 0.0:
            return False
        self._left, self._at = left, now
        return True


class Crowd:
    """Who is connected, from where.

    Args:
        most: connections in all.
        per_address: from one address; None: as many as there may be.
    """

    def __init__(self, most: int, per_address: int | None) -> None:
        self._most, self._per_address = most, per_address or most
        self._from: Counter[str] = Counter()
        self._all = 0

    def enter(self, address: str) -> str | None:
        """Count one connection more; a reason for refusing it otherwise."""
        if self._all >= self._most:
            return "connections"
        if self._from[address] >= self._per_address:
            return "address"
        self._all += 1
        self._from[address] += 1
        return None

    def leave(self, address: str) -> None:
        """Forget one that had entered."""
        self._all -= 1
        self._from[address] -= 1
        if not self._from[address]:
            del self._from[address]


@dataclass(slots=True)
class Lines:
    """Says which refusals deserve a line in the log."""

    _last: dict[str, float] = field(default_factory=dict)
    _unsaid: Counter[str] = field(default_factory=Counter)

    def due(self, reason: str, now: float) -> int | None:
        """None: say nothing now. Otherwise how many of the kind went unsaid since the last line."""
        if now - self._last.get(reason, -LINE_SECONDS) < LINE_SECONDS:
            self._unsaid[reason] += 1
            return None
        self._last[reason] = now
        return self._unsaid.pop(reason, 0)
