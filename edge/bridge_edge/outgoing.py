"""What goes to VAIC over one socket, in order, and what of it has gone."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed

from bridge_edge.playout import Turn
from bridge_shared.direct import Direct
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
        self._direct = socket if isinstance(socket, Direct) else None
        self._queue: deque[tuple[bytes, Delivery | None, int, Turn | None]] = deque()
        self._wake = asyncio.Event()
        self.backlog = 0

    @property
    def empty(self) -> bool:
        """Nothing waits."""
        return not self._queue

    def put(self, data: bytes, delivery: Delivery | None = None, *, audio: int = 0, turn: Turn | None = None) -> None:
        """Queue one text message; `audio`: bytes of speech in it, and nothing else; `turn`: of which it is."""
        if delivery is None and not self._queue and self._direct is not None and self._direct.send_now(data, text=True):
            return
        self._queue.append((data, delivery, audio, turn))
        self.backlog += len(data)
        self._wake.set()

    def drop_audio(self, turn: Turn) -> int:
        """Speech of this and earlier turns that still waits is not to be sent. Returns how many bytes of it."""
        begun = [self._queue.popleft()] if self._queue else []  # the socket may have a part of it
        kept = [item for item in self._queue if item[3] is None or item[3] > turn]
        dropped = [item for item in self._queue if item[3] is not None and item[3] <= turn]
        self._queue = deque([*begun, *kept])
        self.backlog -= sum(len(item[0]) for item in dropped)
        return sum(item[2] for item in dropped)

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
                    data, delivery, _, _ = self._queue[0]
                    await self._socket.send(data, text=True)
                    if not self._queue:  # the socket was lost meanwhile, and what waited for it with it
                        break
                    self._queue.popleft()
                    self.backlog -= len(data)
                    self._written(delivery)
        except (ConnectionClosed, EOFError):
            self._queue.clear()
            self._lost()
