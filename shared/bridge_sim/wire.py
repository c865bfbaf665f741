"""One WebSocket from the simulated VAIC to a bot."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI

from bridge_sim.plan import CallProblem

OPEN_S = 10.0
MAX_MESSAGE = 4 * 1024 * 1024
"""A bot may send a whole prompt as one chunk: 4.4 s at 16 kHz were seen (§6.3)."""


class Wire:
    """Frames out through `post`, frames in through `run`. It ends once and for all when the socket does."""

    def __init__(self, socket: ClientConnection) -> None:
        self.closed = False
        self._socket = socket
        self._outbox: asyncio.Queue[bytes] = asyncio.Queue()

    @classmethod
    async def open(cls, url: str, token: str | None) -> Wire:
        """Connect within 10 s. Cancelling it leaves nothing behind.

        Raises:
            CallProblem: nobody answered there, or the upgrade was refused (`status`).
        """
        headers = {"Authorization": f"Bearer {token}"} if token is not None else {}
        try:
            socket = await connect(
                url,
                additional_headers=headers,
                compression=None,
                proxy=None,
                open_timeout=OPEN_S,
                close_timeout=1,
                ping_interval=None,  # none is documented (§1.4)
                max_size=MAX_MESSAGE,
            )
        except InvalidStatus as error:
            status = error.response.status_code
            raise CallProblem(f"{url} refused the upgrade with HTTP status {status}", status) from error
        except (OSError, InvalidHandshake, InvalidURI, TimeoutError) as error:
            raise CallProblem(f"{url} cannot be reached: {error or type(error).__name__}") from error
        return cls(socket)

    def post(self, frames: Iterable[bytes]) -> None:
        """Send these text frames, in order, as soon as the bot takes them. Frames left over at the end are lost."""
        for frame in frames:
            self._outbox.put_nowait(frame)

    async def run(self, deliver: Callable[[bytes], None]) -> str:
        """Move frames until the socket ends; returns how it ended. Cancelling it drops the TCP connection."""
        try:
            async with asyncio.TaskGroup() as group:
                writer = group.create_task(self._write())
                try:
                    while True:
                        deliver(await self._socket.recv(decode=False))
                except ConnectionClosed as error:
                    return str(error)
                finally:
                    writer.cancel()
        finally:
            self.closed = True
            self.abort()

    async def _write(self) -> None:
        while True:
            frame = await self._outbox.get()
            try:
                await self._socket.send(frame, text=True)
            except ConnectionClosed:
                return  # `run` learns it from reading

    def abort(self) -> None:
        """Drop the TCP connection without a close frame."""
        self._socket.transport.abort()

    async def close(self) -> None:
        """Close with code 1000, within 1 s. Cancelling it is safe; `run` ends in any case."""
        await self._socket.close()
