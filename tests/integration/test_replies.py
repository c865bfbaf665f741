"""What a connection does with what Redis says, and when it ends. The server here says just what the test lets it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvloop

from bridge_shared.errors import BridgeError, RedisRefused, RedisUnavailable
from bridge_shared.redis.wire import Lone, Misplaced, Place, Wire, pack

SET = pack("SET", "k", "v")
MUCH = pack("SET", "k", bytes(32 * 1024 * 1024))
"""More than the buffers of a socket hold."""


@dataclass
class Says:
    """A server that answers the PING of each new connection and then says what the test lets it.

    Attributes:
        greeting: the reply to that PING.
    """

    port: int = 0
    greeting: bytes = b"+PONG\r\n"
    streams: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = field(default_factory=asyncio.Queue)
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        await reader.readuntil(b"PING\r\n")
        writer.write(self.greeting)
        self.streams.put_nowait((reader, writer))


@dataclass(frozen=True, slots=True)
class Asked(Lone):
    """A server that names itself when it says ASK."""

    def doubt(self, place: Place, error: BridgeError) -> bool:
        if isinstance(error, Misplaced):
            error.place = place
        return True


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[Says]:
    says = Says()
    listening = await asyncio.start_server(says.serve, "127.0.0.1", 0)
    says.port = listening.sockets[0].getsockname()[1]
    yield says
    listening.close()
    for writer in says.writers:
        writer.transport.abort()
    await listening.wait_closed()


@contextlib.asynccontextmanager
async def connected(server: Says) -> AsyncIterator[Wire]:
    wire = Wire(Asked(Place({"host": "127.0.0.1", "port": server.port})), "")
    yield wire
    await wire.close()


@pytest.fixture
async def server() -> AsyncIterator[Says]:
    async with serving() as server:
        yield server


@pytest.fixture
async def wire(server: Says) -> AsyncIterator[Wire]:
    async with connected(server) as wire:
        yield wire


async def test_what_was_said_before_the_end_is_heard_before_it(server: Says, wire: Wire):
    await wire.open()
    _, writer = await server.streams.get()
    writer.write(b"+one\r\n:2\r\n-ERR three\r\n")
    writer.close()
    assert [await wire.reply(), await wire.reply()] == [b"one", 2]
    with pytest.raises(RedisRefused, match="three"):
        await wire.reply()
    with pytest.raises(RedisUnavailable, match="the server closed the connection"):
        await wire.reply()
    assert not wire.connected


async def test_a_listener_hears_each_reply_until_it_has_enough_and_the_rest_is_read_as_usual(server: Says, wire: Wire):
    await wire.open()
    _, writer = await server.streams.get()
    heard: list[Any] = []

    def hear(reply: Any) -> bool:
        heard.append(reply)
        return reply != 3

    writer.write(b":1\r\n-ERR 2\r\n:3\r\n:4\r\n$5\r\nfi")
    await wire.listen(hear)
    assert (heard[0], heard[2:]) == (1, [3])
    assert isinstance(heard[1], RedisRefused)
    assert await wire.reply() == 4
    writer.write(b"ve!\r\n:3\r\n")
    await wire.listen(hear)
    assert heard[3:] == [b"five!", 3]


async def test_a_listener_that_raises_ends_the_connection_and_hears_no_more(server: Says, wire: Wire):
    await wire.open()
    _, writer = await server.streams.get()
    heard: list[Any] = []

    def hear(reply: Any) -> bool:
        heard.append(reply)
        raise ValueError("enough")

    writer.write(b":1\r\n:2\r\n")
    with pytest.raises(ValueError, match="enough"):
        await wire.listen(hear)
    assert heard == [1]
    assert not wire.connected


async def test_a_listener_is_told_why_the_connection_ended(server: Says, wire: Wire):
    await wire.open()
    _, writer = await server.streams.get()
    writer.write(b":1\r\n-ASK 1 127.0.0.1:1\r\n:2\r\n")
    heard: list[Any] = []
    with pytest.raises(Misplaced, match="ASK"):
        await wire.listen(lambda reply: not heard.append(reply))
    assert heard == [1]
    assert not wire.connected


def reply(wire: Wire) -> Any:
    return wire.reply()


def listen(wire: Wire) -> Any:
    return wire.listen(lambda _reply: True)


@pytest.mark.parametrize("wait", [reply, listen])
async def test_what_is_no_reply_ends_the_connection(server: Says, wire: Wire, wait: Callable[[Wire], Any]):
    await wire.open()
    _, writer = await server.streams.get()
    writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    with pytest.raises(RedisUnavailable, match="Protocol error"):
        await wait(wire)
    assert not wire.connected


@pytest.mark.parametrize("wait", [reply, listen])
async def test_who_waits_is_told_once_when_the_connection_is_reset_dropped_or_late(
    server: Says, wire: Wire, wait: Callable[[Wire], Any]
):
    for end in ("reset", "dropped", "late"):
        await wire.open()
        _, writer = await server.streams.get()
        waiting = asyncio.ensure_future(wait(wire))
        await asyncio.sleep(0)
        if end == "reset":
            writer.transport.abort()
        elif end == "dropped":
            wire.drop()
        else:
            wire.expect(0.01)
        with pytest.raises(RedisUnavailable, match={"late": "in time"}.get(end, "closed|reset")):
            await waiting
        assert not wire.connected
    assert wire.opened == 3


@pytest.mark.parametrize("wait", [reply, listen])
async def test_cancelling_who_waits_closes_the_connection(server: Says, wire: Wire, wait: Callable[[Wire], Any]):
    await wire.open()
    waiting = asyncio.ensure_future(wait(wire))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert not wire.connected
    reader, _ = await server.streams.get()
    assert await reader.read() == b""


async def test_a_reply_that_nobody_asked_for_before_the_first_command_is_out_of_step(server: Says, wire: Wire):
    server.greeting = b"+PONG\r\n+what?\r\n"
    with pytest.raises(RedisUnavailable, match="nobody asked for"):
        await wire.open()
    server.greeting = b"+PONG\r\n+wh"
    with pytest.raises(RedisUnavailable, match="nobody asked for"):
        await wire.open()


async def test_the_end_of_an_idle_connection_is_noticed_and_the_next_command_makes_another(
    server: Says, wire: Wire, eventually: Callable[..., Any]
):
    await wire.open()
    _, writer = await server.streams.get()
    writer.close()
    await eventually(lambda: not wire.connected)
    calling = asyncio.ensure_future(wire.call("SET", "k", "v"))
    reader, writer = await server.streams.get()
    assert await reader.readexactly(len(SET)) == SET
    writer.write(b"+OK\r\n")
    assert await calling == b"OK"
    assert wire.opened == 2


async def filled(wire: Wire) -> None:
    while wire.writable:  # noqa: ASYNC110  nobody tells of it
        await asyncio.sleep(0)


async def test_sending_waits_for_a_server_that_takes_nothing_and_goes_on_when_it_does(server: Says, wire: Wire):
    await wire.open()
    reader, writer = await server.streams.get()
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    sending = asyncio.ensure_future(wire.send(MUCH))
    resumed: list[int] = []
    listening = asyncio.ensure_future(wire.listen(lambda _reply: False, lambda: resumed.append(1)))
    await filled(wire)
    assert not sending.done()
    writer.transport.resume_reading()  # type: ignore[attr-defined]
    await reader.readexactly(len(MUCH))
    await sending
    assert wire.writable
    assert resumed
    writer.write(b"+OK\r\n")
    await listening


@pytest.mark.parametrize("how", ["dropped", "cancelled", "half closed"])
async def test_sending_to_a_server_that_takes_nothing_can_be_ended(server: Says, wire: Wire, how: str):
    await wire.open()
    _, writer = await server.streams.get()
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    sending = asyncio.ensure_future(wire.send(MUCH))
    await filled(wire)
    if how == "dropped":
        wire.drop()
    elif how == "half closed":
        writer.write_eof()
    else:
        sending.cancel()
    with pytest.raises(asyncio.CancelledError if how == "cancelled" else RedisUnavailable):
        await sending
    assert not wire.connected
    with pytest.raises(RedisUnavailable, match="closed"):
        await wire.send(SET)


async def test_after_ask_every_command_follows_an_asking_whose_reply_nobody_sees(server: Says, wire: Wire):
    calling = asyncio.ensure_future(wire.call("SET", "k", "v"))
    reader, writer = await server.streams.get()
    await reader.readexactly(len(SET))
    writer.write(b"-ASK 1 127.0.0.1:1\r\n")
    with pytest.raises(Misplaced):
        await calling
    await wire.open()
    await wire.send(SET, SET)
    reader, writer = await server.streams.get()
    assert await reader.readexactly(2 * len(pack("ASKING") + SET)) == 2 * (pack("ASKING") + SET)
    writer.write(b"+OK\r\n:1\r\n+OK\r\n")
    assert await wire.reply() == 1
    second = asyncio.ensure_future(wire.reply())
    await asyncio.sleep(0)  # it has passed over the OK
    writer.write(b"-ERR two\r\n")
    with pytest.raises(RedisRefused, match="two"):
        await second
    writer.write(b"-ERR no ASKING here\r\n:1\r\n")
    with pytest.raises(RedisRefused, match="no ASKING here"):
        await wire.call("SET", "k", "v")
    assert not wire.connected


@pytest.mark.parametrize(
    ("scenario", "arguments"),
    [
        (test_what_was_said_before_the_end_is_heard_before_it, ()),
        (test_a_listener_hears_each_reply_until_it_has_enough_and_the_rest_is_read_as_usual, ()),
        (test_a_listener_that_raises_ends_the_connection_and_hears_no_more, ()),
        (test_who_waits_is_told_once_when_the_connection_is_reset_dropped_or_late, (reply,)),
        (test_who_waits_is_told_once_when_the_connection_is_reset_dropped_or_late, (listen,)),
        (test_cancelling_who_waits_closes_the_connection, (listen,)),
        (test_a_reply_that_nobody_asked_for_before_the_first_command_is_out_of_step, ()),
        (test_sending_waits_for_a_server_that_takes_nothing_and_goes_on_when_it_does, ()),
        (test_sending_to_a_server_that_takes_nothing_can_be_ended, ("dropped",)),
        (test_sending_to_a_server_that_takes_nothing_can_be_ended, ("half closed",)),
    ],
)
def test_it_is_so_on_uvloop_as_well(scenario: Callable[..., Any], arguments: tuple[Any, ...]):
    async def run() -> None:
        async with serving() as server, connected(server) as wire:
            await scenario(server, wire, *arguments)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())
