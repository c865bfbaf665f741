"""The connection that all of a pod's commands share; in a cluster, one to each node.

Nothing is ever sent twice from here, unless the server said that it did not carry it out: not every command may be.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol

from bridge_shared.errors import BridgeError, RedisUnavailable
from bridge_shared.redis.cluster import Cluster, Node
from bridge_shared.redis.pipeline import Outage, Pipeline
from bridge_shared.redis.wire import ASKING, REPLY_SECONDS, Backoff, Misplaced, Place, TryAgain, Wire, pack

IN_FLIGHT: Final = 64
"""Writes of a connection that may be unanswered."""

REDIRECTIONS: Final = 3
"""MOVED and ASK are followed at once this often; after that nodes disagree, and it is waited for."""

_KEYLESS: Final = frozenset(
    {
        "CLIENT",
        "CONFIG",
        "ECHO",
        "FLUSHALL",
        "INFO",
        "KEYS",
        "PING",
        "PUBSUB",
        "ROLE",
        "SCRIPT",
        "SELECT",
        "TIME",
        "WAIT",
    }
)


class Requests(Protocol):
    """What a `Server` sends its commands through.

    Attributes:
        up: whether there is a connection.
    """

    @property
    def up(self) -> bool: ...

    async def execute(self, *args: str | bytes | int) -> Any:
        """One command and its reply, within `REPLY_SECONDS`. Cancelling gives up the wait for it."""

    async def close(self) -> None:
        """Close for good; who waits for a reply gets `RedisUnavailable`. Safe to cancel."""


class Unsent(RedisUnavailable):
    """The connection broke before the command was written."""


class _Lane(Pipeline):
    """One connection: a reply belongs to the future at the head of the queue."""

    def __init__(self, wire: Wire, changed: Callable[[], None], outage: Outage | None = None) -> None:
        super().__init__(wire, depth=IN_FLIGHT, outage=outage)
        self._queued: deque[tuple[bytes, asyncio.Future[Any], bool]] = deque()
        self._sent: deque[asyncio.Future[Any] | None] = deque()  # None: the reply to ASKING, which says nothing
        self._changed = changed
        self.cause = "not connected yet"

    def ask(self, data: bytes, *, asking: bool = False) -> asyncio.Future[Any]:
        """Queue a command, right behind ASKING if so wished; its reply. What is cancelled in time is not sent."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._queued.append((data, future, asking))
        self.news()
        return future

    def abandon(self) -> None:
        """There will be no other connection: fail what is queued."""
        while self._queued:
            _, future, _ = self._queued.popleft()
            if not future.done():
                future.set_exception(Unsent(f"no connection: {self.cause}"))

    def connected(self) -> None:
        self._changed()

    def take(self) -> tuple[bytes, int]:
        parts = []
        while self._queued:
            data, future, asking = self._queued.popleft()
            if future.done():  # its caller gave up before it was written
                continue
            if asking:
                parts.append(ASKING)
                self._sent.append(None)
            parts.append(data)
            self._sent.append(future)
        return b"".join(parts), len(parts)

    def answered(self, reply: Any) -> None:
        future = self._sent.popleft()
        if future is None or future.done():
            return
        if isinstance(reply, BridgeError):
            future.set_exception(reply)
        else:
            future.set_result(reply)

    def broken(self, error: BridgeError) -> None:
        self.cause = str(error)
        while self._sent:
            future = self._sent.popleft()
            if future is not None and not future.done():
                future.set_exception(RedisUnavailable(f"the connection broke, the outcome is unknown: {error}"))


class OneServer:
    """Commands for one server, and for the one that follows it after a failover.

    Args:
        changed: called in the loop each time the connection stands anew. Must not raise.
    """

    def __init__(self, wire: Wire, changed: Callable[[], None]) -> None:
        self._lane = _Lane(wire, changed)
        self._task = asyncio.get_running_loop().create_task(self._lane.run(), name=wire.name)

    @property
    def up(self) -> bool:
        return self._lane.up

    async def execute(self, *args: str | bytes | int) -> Any:
        future = self._lane.ask(pack(*args))
        try:
            async with asyncio.timeout(REPLY_SECONDS):
                return await future
        except TimeoutError:
            cause = "" if self._lane.up else f" ({self._lane.cause})"
            raise RedisUnavailable(f"no reply within {REPLY_SECONDS} s{cause}") from None

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._lane.broken(RedisUnavailable("closed by us"))
        self._lane.abandon()


class ClusterNodes:
    """Commands for a cluster: a connection to each node that is asked for something, until it breaks.

    Args:
        changed: called in the loop each time a connection was lost, or stands anew: what the node had acknowledged
            may be lost. Must not raise.
    """

    def __init__(self, cluster: Cluster, name: str, changed: Callable[[], None]) -> None:
        self._cluster, self._name, self._changed = cluster, name, changed
        self._lanes: dict[Place, _Lane] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._troubles: dict[str, tuple[Outage, Backoff]] = {}
        self._closed = False

    @property
    def up(self) -> bool:
        return any(lane.up for lane in self._lanes.values())

    async def execute(self, *args: str | bytes | int) -> Any:
        key, data = key_of(args), pack(*args)
        backoff, redirections = Backoff(), 0
        asked: Place | None = None
        cause: RedisUnavailable | None = None
        try:
            async with asyncio.timeout(REPLY_SECONDS):
                while True:
                    try:
                        place = asked or await self._cluster.locate(key)
                    except RedisUnavailable as error:
                        cause = error
                        await backoff.sleep()
                        continue
                    try:
                        return await self._lane(place).ask(data, asking=asked is not None)
                    except Misplaced as error:
                        cause, asked = error, error.place if error.asking else None
                        redirections += 1
                        if redirections > REDIRECTIONS:
                            await backoff.sleep()
                    except TryAgain as error:
                        cause = error
                        await backoff.sleep()
                    except Unsent as error:  # after a pause
                        cause, asked = error, None
        except TimeoutError:
            raise RedisUnavailable(f"no reply within {REPLY_SECONDS} s{f' ({cause})' if cause else ''}") from None

    async def close(self) -> None:
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _lane(self, place: Place) -> _Lane:
        if self._closed:
            raise RedisUnavailable("closed by us")
        lane = self._lanes.get(place)
        if lane is None:
            name = f"{self._name} to {place.address}"
            outage, backoff = self._troubles.setdefault(place.address, (Outage(name), Backoff()))
            lane = _Lane(Wire(Node(self._cluster, place), self._name), self._changed, outage)
            self._lanes[place] = lane
            task = asyncio.get_running_loop().create_task(self._drive(place, lane, backoff), name=name)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return lane

    async def _drive(self, place: Place, lane: _Lane, backoff: Backoff) -> None:
        """One connection's life. Whoever needs that node afterwards waits here, then looks for it anew."""
        try:
            with contextlib.suppress(BridgeError):  # told to those who waited for a reply
                await lane.live()
            if lane.lived:
                backoff.reset()
                self._changed()
            await backoff.sleep()
        finally:
            del self._lanes[place]
            if self._closed:
                lane.broken(RedisUnavailable("closed by us"))
            lane.abandon()


def key_of(args: tuple[str | bytes | int, ...]) -> str:
    """The first key of a command, empty if it has none."""
    name = str(args[0]).upper()
    if name in _KEYLESS:
        return ""
    at = 1
    if name.startswith("EVAL"):
        at = 3 if int(args[2]) else 0
    elif name == "XINFO":
        at = 2
    elif name.startswith("XREAD"):
        at = args.index("STREAMS") + 1
    if not 0 < at < len(args):
        return ""
    key = args[at]
    return key.decode() if isinstance(key, bytes) else str(key)
