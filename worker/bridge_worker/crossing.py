"""Work that the media thread gives to the customer's loop, and waits for a bounded time only.

Work that waits for something is cancelled when its time is over. A plain function that blocks the loop never notices,
and no thread can be stopped from outside: it is left behind, and whoever waited for it goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

T = TypeVar("T")

CUT_OFF_SECONDS = 1.0
"""What is cancelled may take this long to end. It is cancelled later than it should be, too, if its loop is busy."""


class LeftBehind(Exception):
    """Work neither ended in time nor could be cut off. The argument is how long it was waited for.

    Attributes:
        work: the work, which may still be running.
    """

    def __init__(self, seconds: float, work: Crossing[Any]) -> None:
        super().__init__(f"it did not return within {seconds:g} s and could not be cut off: it blocks its event loop")
        self.work = work


class Crossing(Generic[T]):
    """Something to be done in another thread's loop, once.

    Args:
        work: makes the coroutine, in that loop; it is not called when nobody waits any more before it could begin.
    """

    def __init__(self, work: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._work = work
        self._begun = self._ended = self._given_up = False
        self.results: list[T] = []
        """What it returned, as soon as it has."""

    @property
    def over(self) -> bool:
        """Nothing of it runs or will run. Known to be so only when nobody waits for it any more."""
        return self._ended or (self._given_up and not self._begun)

    async def run(self, loop: asyncio.AbstractEventLoop, seconds: float) -> T:
        """Do it in `loop`, from the loop of another thread. Cancelling this cancels the work.

        Args:
            seconds: when the work ends by itself; it is waited for a little longer.

        Raises:
            LeftBehind: it has not ended by then.
            RuntimeError: `loop` is closed.
        """
        work = self._run()
        try:
            future = asyncio.run_coroutine_threadsafe(work, loop)
        except RuntimeError:
            work.close()
            raise
        try:
            async with asyncio.timeout(seconds + CUT_OFF_SECONDS) as limit:
                return await asyncio.wrap_future(future)
        except TimeoutError:
            if not limit.expired():
                raise
            raise LeftBehind(seconds, self) from None
        finally:
            self._given_up = True

    async def _run(self) -> T:
        self._begun = True
        try:
            if self._given_up:  # a task that is cancelled before it begins would begin all the same
                raise asyncio.CancelledError
            result = await self._work()
            self.results.append(result)
            return result
        finally:
            self._ended = True
