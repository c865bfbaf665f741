"""How fast one worker may knock at a door that turns it away: the retries of all its calls together.

Each call backs off for itself; a hundred of them would still be a storm. So while Deepgram refuses (429, 5xx, not
reached), the tries of a worker are spaced. The first success after that lets twice as many through, the next again
twice as many, until nobody waits.
"""

from __future__ import annotations

import asyncio

TRIES_PER_SECOND = 5.0
UNBOUND_PER_SECOND = 1000.0
"""A rate that has grown so far is no limit any more."""


class Pace:
    """Pure: when the next try may go."""

    def __init__(self) -> None:
        self._rate: float | None = None
        """Tries per second; None: as they come."""
        self._next = 0.0

    @property
    def bound(self) -> bool:
        """Whether there is a limit now."""
        return self._rate is not None

    def due(self, now: float) -> float:
        """When the next try may go; not after `now`: at once."""
        return now if self._rate is None else self._next

    def went(self, now: float) -> None:
        """A try goes now."""
        if self._rate is not None:
            self._next = max(self._next, now) + 1 / self._rate

    def refused(self, now: float) -> None:
        """A try has failed in a way that others will fail now, too."""
        if self._rate is None:
            self._next = now + 1 / TRIES_PER_SECOND
        self._rate = TRIES_PER_SECOND

    def succeeded(self, now: float) -> None:
        """A try has succeeded."""
        if self._rate is not None:
            self._rate *= 2
            self._next = min(self._next, now + 1 / self._rate)
            if self._rate > UNBOUND_PER_SECOND:
                self._rate = None


class Gate:
    """What all tries of a worker pass, in the order in which they come. Make it in the loop it shall live in."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._pace = Pace()
        self._first = asyncio.Lock()

    @property
    def turned_away(self) -> bool:
        """Whether tries are spaced now: the last ones failed."""
        return self._pace.bound

    async def enter(self) -> None:
        """Wait for a turn. Cancelling gives it up."""
        async with self._first:
            await asyncio.sleep(max(0.0, self._pace.due(self._loop.time()) - self._loop.time()))
            self._pace.went(self._loop.time())

    def refused(self) -> None:
        self._pace.refused(self._loop.time())

    def succeeded(self) -> None:
        self._pace.succeeded(self._loop.time())
