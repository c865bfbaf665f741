"""Waiting for a condition without asking again and again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")


class Changes:
    """Something whose changes can be waited for, within one event loop."""

    __slots__ = ("_waiters",)

    def __init__(self) -> None:
        self._waiters: list[asyncio.Future[None]] = []

    def notify(self) -> None:
        """Something changed. Costs nothing while nobody waits."""
        if self._waiters:
            waiters, self._waiters = self._waiters, []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)

    async def wait_for(self, check: Callable[[], _T], timeout: float, describe: Callable[[], str]) -> _T:
        """Wait until `check` gives something true, and return it. Safe to cancel.

        Raises:
            TimeoutError: it did not within `timeout` seconds; the message is what `describe` says then.
        """
        try:
            async with asyncio.timeout(timeout):
                while not (found := check()):
                    waiter = asyncio.get_running_loop().create_future()
                    self._waiters.append(waiter)
                    await waiter
        except TimeoutError:
            raise TimeoutError(f"not within {timeout} s: {describe()}") from None
        return found
