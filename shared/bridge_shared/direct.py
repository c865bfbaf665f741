"""The fast path of a WebSocket: whole messages in and out without a task switch, be it one or a thousand a second.

websockets hands a message to its reader through a queue and a task, and lets a sender wait for the buffer; for the
small messages of a call that costs more than the parsing. Here a message that came in one frame goes to a callback
where it is parsed, and one that is sent goes to the transport at once. Whatever is out of the ordinary (fragments, a
full buffer, a connection that closes) takes websockets' own way, and order is kept between the two.

Relies on `process_event`, `send_data`, `protocol` and `paused` of websockets, whose version is pinned.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, NoReturn

from websockets.asyncio.connection import Connection
from websockets.frames import DATA_OPCODES, Frame, Opcode
from websockets.protocol import CLOSED, OPEN

Message = str | bytes
Take = Callable[[Message], None]


class Direct(Connection):
    """Mixed into websockets' server or client connection, before it."""

    _take: Take | None = None
    _failed: asyncio.Future[None]
    _unread = 0
    """Messages that went websockets' way and were not read yet."""
    _in_pieces = False

    async def each(self, take: Take) -> NoReturn:
        """Call `take` with every message, in order, until the connection ends; nobody else may call `recv` meanwhile.
        Cancelling it stops the calls and leaves the connection as it is.

        Raises:
            ConnectionClosed: in the end, also after an ordinary close.
            Exception: what `take` raised; it is not called again.
        """
        self._failed = asyncio.get_running_loop().create_future()
        reader = asyncio.create_task(self._slowly(take))
        self._take = take
        try:
            await asyncio.wait([reader, self._failed], return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._take = None
            if not reader.done():
                reader.cancel()
            outcome = (await asyncio.gather(reader, return_exceptions=True))[0]
        if self._failed.done():
            self._failed.result()
        self._failed.cancel()
        assert outcome is not None
        raise outcome

    @property
    def lost(self) -> bool:
        """There is no connection any more, whether or not whoever reads it knows already."""
        return self.protocol.state is CLOSED

    def direct(self, size: int) -> bool:
        """Whether a message of so many bytes may go the fast way."""
        return True

    def send_now(self, data: bytes, *, text: bool) -> bool:
        """Write a message at once; False if that cannot be done, and it is for `send`."""
        if self.paused or self.send_in_progress is not None or self.protocol.state is not OPEN:
            return False
        if text:
            self.protocol.send_text(data)
        else:
            self.protocol.send_binary(data)
        try:
            self.send_data()
        except Exception as error:  # noqa: BLE001  whatever the transport raises, the connection is of no use any more
            self.set_connection_exc(error)  # so that it is the cause of the ConnectionClosed that the reader gets
            self.transport.abort()
        return True

    async def pace(self, message: Message) -> None:
        """Wait before a message that did not go the fast way is handed out."""

    async def recv(self, decode: bool | None = None) -> Any:
        message = await super().recv(decode)
        await self.pace(message)
        self._unread -= 1
        return message

    def process_event(self, event: Any) -> None:
        if isinstance(event, Frame) and event.opcode in DATA_OPCODES:
            if (
                self._take is not None
                and event.fin
                and not self._unread
                and not self._in_pieces
                and self.direct(len(event.data))
            ):
                try:
                    message = str(event.data, "utf-8") if event.opcode is Opcode.TEXT else bytes(event.data)
                except UnicodeDecodeError:
                    pass  # websockets closes the connection over it
                else:
                    return self._give(message)
            self._in_pieces = not event.fin
            self._unread += event.fin
        super().process_event(event)

    def _give(self, message: Message) -> None:
        assert self._take is not None
        try:
            self._take(message)
        except Exception as error:  # noqa: BLE001  it is raised where the messages are wanted
            self._take = None
            if not self._failed.done():
                self._failed.set_exception(error)

    async def _slowly(self, take: Take) -> None:
        while True:
            message = await self.recv()
            if self._failed.done():
                return
            take(message)
