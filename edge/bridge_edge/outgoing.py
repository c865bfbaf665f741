"""What goes to VAIC over one socket, in order, and what of it has gone."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed

from bridge_shared.link import Delivery


class Outgoing:
    """A queue before a socket.

    Args:
        socket: VAIC's.
        written: called after each message that the socket has taken, with the worker's frame whose effect it is,
            if it is the last message of one.
        lost: called once when the socket is found closed.

    Attributes:
        backlog: bytes that wait.
    """

    def __init__(
        self, socket: ServerConnection, written: Callable[[Delivery | None], None], lost: Callable[[], None]
    ) -> None:
        self._socket, self._written, self._lost = socket, written, lost
        self._queue: deque[tuple[bytes, Delivery | None]] = deque()
        self._wake = asyncio.Event()
        self.backlog = 0

    @property
    def empty(self) -> bool:
        """Nothing waits."""
        return not self._queue

    def put(self, data: bytes, delivery: Delivery | None = None) -> None:
        """Queue one text message."""
        self._queue.append((data, delivery))
        self.backlog += len(data)
        self._wake.set()

    def clear(self) -> None:
        """Nothing that waits is wanted any more."""
        self._queue.clear()

    async def run(self) -> None:
        """Write until the socket is lost. Cancelling it may leave a message half written: the socket is of no use
        then."""
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._queue:
                    data, delivery = self._queue[0]
                    await self._socket.send(data, text=True)
                    if not self._queue:  # the socket was lost meanwhile, and what waited for it with it
                        break
                    self._queue.popleft()
                    self.backlog -= len(data)
                    self._written(delivery)
        except (ConnectionClosed, EOFError):
            self._queue.clear()
            self._lost()
