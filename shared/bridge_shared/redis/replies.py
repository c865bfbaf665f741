"""What reads a connection to Redis, in place of asyncio's streams: a reply is there as soon as its bytes are.

redis-py connects and logs in; then its transport gets this protocol. A reply through the streams costs a task switch
and a dozen calls before anybody sees it.

Relied on beside what redis-py 8 documents: `Connection._reader` and `_writer`, and `BaseParser.parse_error`, which
makes its exceptions. `Connection.can_read` must not let the event loop run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

import hiredis
from redis import exceptions
from redis._parsers import BaseParser
from redis.asyncio.connection import Connection

from bridge_shared.errors import BridgeError, RedisUnavailable

_MORE: Final[Any] = object()
"""What hiredis returns while a reply is not complete."""


class Replies(asyncio.Protocol):
    """The replies of one connection, in their order, for one task at a time. Made by `take_over`.

    Attributes:
        open: whether the connection stands.
        full: whether more is unsent than the transport likes to hold.
        gone: set once the socket is closed.
    """

    def __init__(
        self,
        writer: asyncio.StreamWriter,
        *,
        asking: bool,
        refused: Callable[[exceptions.RedisError], BridgeError],
        lost: Callable[[Exception], BridgeError],
    ) -> None:
        self.open, self.full, self.gone = True, False, asyncio.Event()
        self._writer = writer  # it would close the transport on being forgotten
        self._transport: Any = writer.transport
        self.write: Callable[[bytes], None] = self._transport.write
        self._refused, self._lost = refused, lost
        self._reader = hiredis.Reader(
            protocolError=lambda text: lost(exceptions.InvalidResponse(text)),
            replyError=lambda text: refused(BaseParser.parse_error(text)),  # type: ignore[no-untyped-call]
            notEnoughData=_MORE,
        )
        self._gets: Callable[[], Any] = self._behind_asking if asking else self._reader.gets
        self._answering = False  # ASKING has been, the command has not
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._room = asyncio.Event()
        self._hear: Callable[[Any], bool] | None = None
        self._resumed: Callable[[], None] | None = None
        self._transport.set_protocol(self)

    async def next(self) -> Any:
        """The next reply. Cancelling closes the connection: its replies would be out of step.

        Raises:
            BridgeError: the reply was an error, and this is what `refused` made of it; or why the connection ended.
        """
        while (reply := self._gets()) is _MORE:
            await self._wait()
        if isinstance(reply, BridgeError):
            raise reply
        return reply

    async def listen(self, hear: Callable[[Any], bool], resumed: Callable[[], None] | None = None) -> None:
        """Give each reply to `hear` the moment it is read, without a task in between, until that returns False.

        Args:
            hear: an error reply comes as what `refused` made of it. What it raises ends the connection.
            resumed: called when the connection is not `full` any more.

        Raises:
            Exception: why the connection ended.

        Cancelling closes the connection.
        """
        self._hear, self._resumed = hear, resumed
        try:
            self.data_received(b"")  # for what has come already
            while self._hear is not None:
                await self._wait()
        finally:
            self._hear = self._resumed = None

    async def drained(self) -> None:
        """Wait until the connection is not `full`. Errors and cancelling as in `listen`."""
        try:
            await self._room.wait()
        except asyncio.CancelledError:
            self.close(RedisUnavailable("the connection was closed by us"))
            raise
        if self._error is not None:
            raise self._error

    def close(self, error: Exception) -> None:
        """Close at once, discarding what is unsent; whoever waits, or will, gets `error`. Only the first time counts.

        Not politely: a paused server with a full socket buffer would hold that up for ever.
        """
        if self.open:
            self.open, self._error = False, error
            self._transport.abort()
            self._room.set()
            self._wake()

    # For the transport

    def data_received(self, data: bytes) -> None:
        try:
            self._reader.feed(data)
            while self._hear is not None and (reply := self._gets()) is not _MORE and self.open:
                if not self._hear(reply):
                    self._hear = None
        except Exception as error:  # noqa: BLE001  raised by `listen`
            self.close(error)
        if self._hear is None:
            self._wake()

    def eof_received(self) -> None:
        if self.open:  # now, for `connection_lost` comes only when the rest is sent
            self._lost(RedisUnavailable("the server closed the connection"))

    def connection_lost(self, exc: Exception | None) -> None:
        if self.open:
            self._lost(exc or RedisUnavailable("the server closed the connection"))
        self.gone.set()

    def pause_writing(self) -> None:
        self.full = True
        self._room.clear()

    def resume_writing(self) -> None:
        self.full = False
        self._room.set()
        if self._resumed is not None:
            self._resumed()

    # The inside

    async def _wait(self) -> None:
        """Until there is something new."""
        if self._error is not None:
            raise self._error
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        except asyncio.CancelledError:
            self.close(RedisUnavailable("the connection was closed by us"))
            raise
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _behind_asking(self) -> Any:
        """The next reply but the one to the ASKING before each command."""
        if not self._answering:
            reply = self._reader.gets()
            if reply is _MORE:
                return reply
            if isinstance(reply, BridgeError):  # else the reply to the command would be taken for the next one's
                self.close(reply)
                raise reply
        reply = self._reader.gets()
        self._answering = reply is _MORE
        return reply


async def take_over(
    connection: Connection,
    *,
    asking: bool,
    refused: Callable[[exceptions.RedisError], BridgeError],
    lost: Callable[[Exception], BridgeError],
) -> Replies:
    """Read `connection` from now on, and write on it; redis-py forgets its socket.

    Args:
        asking: whether ASKING goes ahead of each command. Its replies are passed over.
        refused: makes our error of a reply that is one; may close the connection with it.
        lost: told once why the connection broke, unless `close` did it; has to close it with the error it returns.

    Raises:
        RedisUnavailable: it is broken already, or its replies are out of step.
    """
    writer = connection._writer
    if writer is None or writer.is_closing() or await connection.can_read():
        raise RedisUnavailable("the connection broke, or holds a reply that nobody asked for")
    connection._reader = connection._writer = None
    return Replies(writer, asking=asking, refused=refused, lost=lost)
