"""The fast path of a WebSocket: whole messages in and out without a task switch, be it one or a thousand a second.

websockets hands a message to its reader through a queue and a task, and lets a sender wait for the buffer; for the
small messages of a call that costs more than the parsing, which is a generator that costs more than what it does.
Here the stream is cut into frames as it comes; a message that is one ordinary frame goes to a callback at once, and one
that is sent is written to the transport at once. Whatever is out of the ordinary (the HTTP head, control frames,
fragments, what breaks the protocol, a full buffer, a connection that closes) takes websockets' own way, and order is
kept between the two: websockets is given whole frames, so that its parser always stands between two of them. What no
frame can begin with, or one that is too long, goes to it at once with all that follows: it fails the connection.

Relies on websockets, whose version is pinned: on `data_received`, `eof_received`, `process_event`, `paused`,
`send_in_progress` and `set_connection_exc` of its connection; on `_state`, `side`, `extensions`, `current_size`,
`max_message_size` and `receive_data` of its protocol; and on that a protocol which sends a whole message remembers
nothing of it.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any, NoReturn

from websockets.asyncio.connection import Connection
from websockets.frames import DATA_OPCODES, Frame
from websockets.protocol import CLIENT, CLOSED, OPEN, SERVER

from bridge_shared.framing import BINARY, TEXT, WHOLE, apply_mask, build, extent, masks

Message = str | bytes
Take = Callable[[Message], None]

END_OF_HEAD = b"\r\n\r\n"


class Direct(Connection):
    """Mixed into websockets' server or client connection, before it."""

    _take: Take | None = None
    _failed: asyncio.Future[None]
    _unread = 0
    """Messages that went websockets' way and were not read yet."""
    _framing = False
    """The stream is cut here: the HTTP head is over, and nothing was wrong."""
    _head_tail: bytes | None = b""
    """The last bytes of the head as far as it has come; None when it is over."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        protocol = self.protocol
        self._masked = protocol.side is SERVER
        self._masks = masks() if protocol.side is CLIENT else None
        self._longest = math.inf if protocol.max_message_size is None else protocol.max_message_size
        self._kept = bytearray()
        """The beginning of a frame whose rest has not come."""
        self._needed = 0
        """How long it has to be for more to be said."""

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
        return self.protocol._state is CLOSED

    def direct(self, size: int) -> bool:
        """Whether a message of so many bytes may go the fast way."""
        return True

    def send_now(self, data: bytes, *, text: bool) -> bool:
        """Write a message at once; False if that cannot be done, and it is for `send`."""
        protocol = self.protocol
        if self.paused or self.send_in_progress is not None or protocol._state is not OPEN or protocol.extensions:
            return False
        mask = next(self._masks) if self._masks is not None else b""
        try:
            self.transport.write(build(TEXT if text else BINARY, data, mask))
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

    def data_received(self, data: bytes) -> None:
        if not self._framing:
            return self._received_otherwise(data)
        if self._kept:
            self._kept += data
            if len(self._kept) < self._needed:
                return
            data = bytes(self._kept)
            self._kept.clear()
        protocol, masked, longest = self.protocol, self._masked, self._longest
        at, size = 0, len(data)
        while at < size:
            found = extent(data, at, masked=masked)
            if found is None:
                return self._hand_over(data[at:])
            body, end = found
            if end - body > longest - (protocol.current_size or 0):
                return self._hand_over(data[at:])
            if end > size:
                self._kept += data[at:]
                self._needed = end - at
                return
            first = data[at]
            if (
                first in WHOLE
                and (take := self._take) is not None
                and not self._unread
                and protocol.current_size is None
                and protocol._state is OPEN
                and self.direct(end - body)
            ):
                payload = apply_mask(data[body:end], data[body - 4 : body]) if masked else data[body:end]
                try:
                    message = payload if first == BINARY else str(payload, "utf-8")
                except UnicodeDecodeError:
                    pass  # websockets closes the connection over it
                else:
                    at = end
                    try:
                        take(message)
                    except Exception as error:  # noqa: BLE001  it is raised where the messages are wanted
                        self._stop(error)
                    continue
            super().data_received(data[at:end])
            if self.transport.is_closing():
                return  # a limit was broken, or websockets is through with it
            at = end

    def eof_received(self) -> None:
        if self._kept:  # so that websockets says where the stream broke off
            self.protocol.receive_data(bytes(self._kept))
            self._kept.clear()
        super().eof_received()

    def process_event(self, event: Any) -> None:
        if isinstance(event, Frame) and event.opcode in DATA_OPCODES:
            self._unread += event.fin
        super().process_event(event)

    def _stop(self, error: Exception) -> None:
        self._take = None
        if not self._failed.done():
            self._failed.set_exception(error)

    def _hand_over(self, data: bytes) -> None:
        """Leave the stream to websockets from here on."""
        self._framing = False
        super().data_received(data)

    def _received_otherwise(self, data: bytes) -> None:
        """The head, or what comes after something that was wrong."""
        if self._head_tail is None:
            return super().data_received(data)
        seen = self._head_tail + data
        end = seen.find(END_OF_HEAD)
        if end < 0:
            self._head_tail = seen[1 - len(END_OF_HEAD) :]
            return super().data_received(data)
        rest = end + len(END_OF_HEAD) - len(self._head_tail)
        self._head_tail = None
        super().data_received(data[:rest])
        # A server answers later, and frames may come before that; a client that was refused is told why in a body.
        self._framing = self.protocol.side is SERVER or self.protocol.state is OPEN
        if rest < len(data):
            Direct.data_received(self, data[rest:])

    async def _slowly(self, take: Take) -> None:
        while True:
            message = await self.recv()
            if self._failed.done():
                return
            take(message)
