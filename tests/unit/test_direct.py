"""bridge_shared.direct: the fast path of a WebSocket keeps what websockets' own way promises. Over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed, ConnectionClosedError, ConnectionClosedOK
from websockets.frames import Frame, Opcode

from bridge_shared.direct import Direct, Message


class Socket(Direct, ServerConnection):
    """As at the edge."""

    fast = True

    def direct(self, size: int) -> bool:
        return self.fast


@contextlib.asynccontextmanager
async def line() -> AsyncIterator[tuple[Socket, ClientConnection]]:
    """Both ends of a connection."""
    accepted: asyncio.Future[Socket] = asyncio.get_running_loop().create_future()

    async def handle(socket: ServerConnection) -> None:
        assert isinstance(socket, Socket)
        accepted.set_result(socket)
        await socket.wait_closed()

    async with serve(handle, "127.0.0.1", 0, create_connection=Socket, compression=None) as server:
        port = server.sockets[0].getsockname()[1]
        async with connect(f"ws://127.0.0.1:{port}", compression=None) as client:
            yield await accepted, client


async def all_of(socket: Socket) -> list[Message]:
    got: list[Message] = []
    with contextlib.suppress(ConnectionClosed):
        await socket.each(got.append)
    return got


def pieces(text: str) -> Iterator[str]:
    yield from text


async def test_messages_whole_and_in_pieces_come_in_the_order_in_which_they_were_sent() -> None:
    async with line() as (socket, client):
        await client.send("before anybody listens")
        await client.send(pieces("abc"))
        reader = asyncio.create_task(all_of(socket))
        for number in range(50):
            await client.send(str(number))
            await client.send(pieces(f"<{number}>"))
            await client.send(bytes([number]))
        await client.close()
        expected: list[Message] = ["before anybody listens", "abc"]
        for number in range(50):
            expected += [str(number), f"<{number}>", bytes([number])]
        assert await reader == expected


async def test_a_message_that_may_not_go_the_fast_way_keeps_its_place() -> None:
    async with line() as (socket, client):
        reader = asyncio.create_task(all_of(socket))
        for number in range(60):
            socket.fast = number % 3 != 0
            await client.send(str(number))
            await client.ping()
            if number % 7 == 0:
                await (await client.ping())  # it has arrived, as what was sent before it
        await client.close()
        assert await reader == [str(number) for number in range(60)]


async def test_what_the_callback_raises_ends_the_listening_and_nothing_more_is_handed_to_it() -> None:
    got: list[Message] = []

    def take(message: Message) -> None:
        got.append(message)
        if message == "bad":
            raise ValueError("as the test has it")

    async with line() as (socket, client):
        reader = asyncio.create_task(socket.each(take))
        for text in ("good", "bad", "late", "later"):
            await client.send(text)
        with pytest.raises(ValueError, match="as the test has it"):
            await reader
        assert got == ["good", "bad"]


@pytest.mark.parametrize(("code", "kind"), [(1000, ConnectionClosedOK), (1011, ConnectionClosedError)])
async def test_the_end_of_the_connection_says_how_it_was_closed(code: int, kind: type[Exception]) -> None:
    async with line() as (socket, client):
        reader = asyncio.create_task(socket.each(lambda message: None))
        await client.close(code)
        with pytest.raises(kind):
            await reader


async def test_text_that_is_not_utf_8_closes_the_connection_as_websockets_does() -> None:
    async with line() as (socket, client):
        reader = asyncio.create_task(socket.each(lambda message: None))
        await (await client.ping())
        client.protocol.writes.append(Frame(Opcode.TEXT, b"\xff").serialize(mask=True))
        client.send_data()
        with pytest.raises(ConnectionClosedError) as closed:
            await reader
        assert closed.value.sent is not None
        assert closed.value.sent.code == 1007


async def test_a_listener_that_is_cancelled_leaves_the_connection_to_others() -> None:
    async with line() as (socket, client):
        reader = asyncio.create_task(socket.each(lambda message: None))
        await (await client.ping())
        reader.cancel()
        await asyncio.wait([reader])
        await client.send("still here")
        assert await socket.recv() == "still here"


async def test_a_message_is_written_at_once_unless_the_buffer_is_full_or_the_connection_closes() -> None:
    async with line() as (socket, client):
        assert socket.send_now(b"text", text=True)
        assert socket.send_now(b"bytes", text=False)
        assert [await client.recv(), await client.recv()] == ["text", b"bytes"]
        client.transport.pause_reading()
        for _ in range(200):
            if not socket.send_now(bytes(1 << 20), text=False):
                break
        else:
            raise AssertionError("200 MiB went to nobody")
        client.transport.resume_reading()
        closing = asyncio.create_task(socket.close())
        await asyncio.sleep(0)
        assert not socket.send_now(b"too late", text=True)
        client.transport.abort()
        await closing
