"""A WebSocket that the application accepted, made usable in the media thread (`Session.serve`)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from websockets.exceptions import ConnectionClosed, ConnectionClosedError, ConnectionClosedOK

from bridge_shared import logs

log = logs.get("bridge")

CLOSE_SECONDS = 2.0


class CrossedSocket:
    """Gives a socket of the application's loop the shape that the edge uses.

    However the application's socket reports that it is gone, here it is `ConnectionClosed`.

    Args:
        socket: async iteration yielding `str` or `bytes`, `await send(str)`, `await close()`.
        loop: the application's loop.
    """

    def __init__(self, socket: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._socket = socket
        self._loop = loop
        self._messages = aiter(socket)
        self.remote_address = getattr(socket, "remote_address", None)

    async def __aiter__(self) -> AsyncIterator[str | bytes]:
        try:
            while True:
                yield await self.recv()
        except ConnectionClosedOK:
            return

    async def recv(self) -> str | bytes:
        """The next message. Cancelling it may lose the message that is being received.

        Raises:
            ConnectionClosed: there will be none.
        """
        message: str | bytes | None = await self._cross(self._next())
        if message is None:
            raise ConnectionClosedOK(None, None)
        return message

    async def send(self, data: bytes, text: bool = True) -> None:
        """Send a text message.

        Raises:
            ConnectionClosed: it cannot be sent.
        """
        await self._cross(self._socket.send(data.decode()))

    async def close(self) -> None:
        """Close it, within two seconds. Never fails: a socket that cannot be closed is the application's affair."""
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._cross(self._socket.close())
        except (TimeoutError, ConnectionClosed) as error:
            log.debug("the application's socket did not close in order", error=repr(error))

    async def _next(self) -> Any:
        # StopAsyncIteration cannot cross a future
        return await anext(self._messages, None)

    async def _cross(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine of the socket in the application's loop."""
        try:
            return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))
        except ConnectionClosed:
            raise
        except Exception as error:  # every framework has its own; they all mean that the peer is gone
            work.close()  # it never began if the application's loop is closed
            log.info("the application's socket broke off", error=repr(error))
            raise ConnectionClosedError(None, None) from error
