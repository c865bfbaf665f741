"""A connection shared by many: what was queued in a tick of the event loop goes out in one write.

Replies come back in order and are handled as they are read, without a task in between.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from typing import Any, NoReturn

from bridge_shared import logs
from bridge_shared.errors import BridgeError, RedisRefused, RedisUnavailable
from bridge_shared.redis.wire import REPLY_SECONDS, Backoff, Wire, count

log = logs.get("redis")


class Outage:
    """Counts every failure of a connection, and logs the first and the end of them."""

    def __init__(self, connection: str) -> None:
        self._connection = connection
        self._on = False

    def begin(self, error: BridgeError) -> None:
        count(error)
        if not self._on:
            log.warning("connection to Redis lost", connection=self._connection, cause=error)
        self._on = True

    def end(self) -> None:
        if self._on:
            log.info("connected to Redis again", connection=self._connection)
        self._on = False


class Pipeline:
    """A connection that is written once per tick of the event loop. Made in the thread of its loop, as all calls are.

    A subclass says what to write (`take`) and what a reply means (`answered`).

    Attributes:
        up: whether the connection stands.
        lived: whether the last one ever stood.
    """

    def __init__(self, wire: Wire, *, depth: int, outage: Outage | None = None) -> None:
        """
        Args:
            depth: how many writes may be unanswered. While they are, what is queued gathers into the next one.
            outage: shared by pipelines that are one connection to their user.
        """
        self._wire = wire
        self._depth = depth
        self._outage = outage or Outage(wire.name)
        self._loop = asyncio.get_running_loop()
        self._due = False
        # Replies still owed to each write, oldest first.
        self._owed: deque[int] = deque()
        self.up = False
        self.lived = False

    def take(self) -> tuple[bytes, int]:
        """What is queued, and how many replies it will have. Nothing: `(b"", 0)`."""
        raise NotImplementedError

    def answered(self, reply: Any) -> None:
        """The reply to the oldest unanswered command; an error comes as an exception object.

        Raises:
            RedisUnavailable: this connection is of no use any more.
        """
        raise NotImplementedError

    def connected(self) -> None:
        """A new connection stands; called before anything is written on it."""

    def broken(self, error: BridgeError) -> None:
        """The connection is gone, or an attempt to make one failed. Called each time."""

    async def run(self) -> None:
        """Write and read for ever, through any outage. Cancelling closes the connection; nothing else stops it."""
        backoff = Backoff()
        while True:
            try:
                await self.live()
            except (RedisUnavailable, RedisRefused):
                if self.lived:
                    backoff.reset()
            await backoff.sleep()

    async def live(self) -> NoReturn:
        """Connect, then write and read until the connection breaks. Cancelling closes it.

        Raises:
            RedisUnavailable, RedisRefused: why it broke, or was not made.
        """
        self.lived = False
        try:
            await self._wire.open()
            self.up = self.lived = True
            self._outage.end()
            self.connected()
            self._owed.clear()
            self.news()
            while True:
                await self._wire.listen(self._heard, self.news)
        except Exception as error:
            ours = error
            if not isinstance(ours, RedisUnavailable | RedisRefused):
                log.exception("a connection to Redis failed in a way that was not foreseen")
                ours = RedisUnavailable(str(error))
            self.up = False
            self._outage.begin(ours)
            self.broken(ours)
            if ours is error:
                raise
            raise ours from error
        finally:
            self.up = False
            await self._wire.close()

    def news(self) -> None:
        """Something is queued: it is written in the next tick, or once there is a connection that takes more."""
        if self.up and not self._due:
            self._due = True
            self._loop.call_soon(self._write)

    def _write(self) -> None:
        self._due = False
        # Otherwise told again: by `live` when there is a new connection, by it when it has room, by `_heard`.
        if not self._wire.writable or len(self._owed) >= self._depth:
            return
        try:
            data, replies = self.take()
            if replies:
                if not self._owed:
                    self._wire.expect(REPLY_SECONDS)
                self._owed.append(replies)
                self._wire.write(data)
        except Exception as error:  # noqa: BLE001  raised in `live`
            self._wire.drop(error)

    def _heard(self, reply: Any) -> bool:
        owed = self._owed
        if not owed:
            raise RedisUnavailable("a reply to no command")
        if isinstance(reply, BridgeError):
            count(reply)
        owed[0] -= 1
        if not owed[0]:
            owed.popleft()
            if owed:
                self._wire.expect(REPLY_SECONDS)
            else:
                self._wire.deadline = math.inf
            if len(owed) == self._depth - 1:
                self.news()
        self.answered(reply)
        return True
