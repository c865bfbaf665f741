"""What a stranger can do to a pod over real sockets, and that a call beside it does not notice."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

import pytest

from bridge_shared import metrics
from bridge_sim.caller import SimulatedCall
from bridge_sim.plan import CallPlan
from deepgram_audiocodes_bridge import DeepgramBridge
from harness import GREETING, configuration
from telephone import PATIENCE, Stage, stage, wire

Eventually = Callable[..., Awaitable[None]]

UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: bridge\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
TEXT, CONT, BINARY, PING = 1, 0, 2, 9


def frame(opcode: int, data: bytes = b"", *, fin: bool = True) -> bytes:
    """A masked frame by hand."""
    head = bytes([(0x80 if fin else 0) | opcode])
    if len(data) < 126:
        head += bytes([0x80 | len(data)])
    elif len(data) < 65536:
        head += bytes([0x80 | 126]) + struct.pack("!H", len(data))
    else:
        head += bytes([0x80 | 127]) + struct.pack("!Q", len(data))
    return head + b"\0\0\0\0" + data


class Raw:
    """A TCP connection that need not behave."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def upgrade(self) -> None:
        self.writer.write(UPGRADE)
        async with asyncio.timeout(PATIENCE):
            head = await self.reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101"), head

    async def ended(self) -> None:
        """Wait until the pod has dropped it."""
        async with asyncio.timeout(PATIENCE):
            with contextlib.suppress(ConnectionError):
                while await self.reader.read(65536):
                    pass


@contextlib.asynccontextmanager
async def raw(bridge: Stage) -> AsyncIterator[Raw]:
    parts = urlsplit(bridge.url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        yield Raw(reader, writer)
    finally:
        writer.transport.abort()


def refusals(reason: str) -> float:
    return metrics.calls_refused.labels(reason=reason)._value.get()


@contextlib.contextmanager
def counted(reason: str, caplog: pytest.LogCaptureFixture) -> Any:
    """The block leads to one refusal for that reason, and one line."""
    before = refusals(reason)
    yield
    assert refusals(reason) == before + 1
    lines = [vars(r) for r in caplog.records if r.getMessage() == "connection refused"]
    assert [line["reason"] for line in lines] == [reason]
    assert lines[0]["remote"] == "127.0.0.1"


async def test_a_connection_beyond_the_pods_limit_is_dropped_and_one_that_leaves_makes_room(
    redis_url: str, caplog: pytest.LogCaptureFixture, eventually: Eventually
) -> None:
    async with stage(redis_url, connections=2) as bridge, raw(bridge) as first:
        await first.upgrade()
        async with raw(bridge):  # a half-open one counts
            with counted("connections", caplog):
                async with raw(bridge) as third:
                    await third.ended()
        edge = bridge.app.process.edge
        assert edge is not None
        await eventually(lambda: edge._guard.crowd._all == 1)
        async with wire(bridge.url) as vaic:
            await vaic.begin()


async def test_a_connection_beyond_the_limit_of_its_address_is_dropped(
    redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with stage(redis_url, connections_per_address=1) as bridge, wire(bridge.url) as vaic:
        with counted("address", caplog):
            async with raw(bridge) as second:
                await second.ended()
        await vaic.begin()


async def test_a_handshake_that_does_not_end_is_dropped(redis_url: str, caplog: pytest.LogCaptureFixture) -> None:
    async with stage(redis_url, handshake_timeout=0.2, authenticate_timeout=0.1) as bridge, raw(bridge) as slow:
        with counted("handshake", caplog):
            slow.writer.write(UPGRADE[:60])
            await slow.ended()


async def test_an_upgrade_that_never_stops_is_dropped(redis_url: str, caplog: pytest.LogCaptureFixture) -> None:
    async with stage(redis_url) as bridge, raw(bridge) as long:
        with counted("head", caplog):
            line = b"X-Name: " + b"x" * 8000 + b"\r\n"
            long.writer.write(UPGRADE[:-2] + line * 100)
            await long.ended()


async def test_a_connection_without_a_first_message_is_closed(redis_url: str) -> None:
    before = refusals("silent")
    async with stage(redis_url, first_message_timeout=0.2) as bridge, wire(bridge.url) as vaic:
        assert await vaic.rest() == []
    assert refusals("silent") == before + 1


async def test_a_connection_that_talks_without_naming_a_call_is_closed(
    redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with stage(redis_url, initiate_timeout=0.3) as bridge:
        with counted("no_call", caplog):
            async with wire(bridge.url) as vaic:
                await vaic.send({"type": "connection.validate"})
                await vaic.rest()
        async with wire(bridge.url) as vaic:
            await vaic.begin()
            await asyncio.sleep(0.4)  # past the limit, which a call has no more
            assert await vaic.hang_up() == []


async def test_messages_beyond_the_rate_are_read_later_and_none_is_lost(
    redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with stage(redis_url, messages_per_second=50.0) as bridge, wire(bridge.url) as vaic:
        await vaic.begin()
        for number in range(220):
            await vaic.send(vaic.activity("note", value=number))
        assert (await bridge.event("activity", 221)).activity["value"] == 219
        notes = [e.activity["value"] for e in bridge.events("activity") if e.activity["name"] == "note"]
        assert notes == list(range(220))
    slowed = [r for r in caplog.records if r.getMessage() == "messages come too fast, slowing the caller down"]
    assert len(slowed) == 1


async def test_a_message_beyond_the_size_costs_the_socket_before_it_is_held(
    redis_url: str,
) -> None:
    async with stage(redis_url, max_message_bytes=4096) as bridge, raw(bridge) as big, wire(bridge.url) as other:
        await other.begin()
        await big.upgrade()
        big.writer.write(frame(TEXT, b"x" * 8193)[:20])  # its head is enough
        await big.ended()
        assert await other.hang_up() == []


async def test_a_flood_of_pings_loses_its_connection(redis_url: str, caplog: pytest.LogCaptureFixture) -> None:
    async with stage(redis_url) as bridge, raw(bridge) as noisy:
        await noisy.upgrade()
        with counted("pings", caplog):
            noisy.writer.write(frame(PING, b"p" * 125) * 1000)
            await noisy.ended()


async def test_empty_fragments_without_end_lose_their_connection(
    redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with stage(redis_url) as bridge, raw(bridge) as endless:
        await endless.upgrade()
        with counted("fragments", caplog):
            endless.writer.write(frame(TEXT, fin=False) + frame(CONT, fin=False) * 5000)
            await endless.ended()


NASTY: dict[str, bytes] = {
    "garbage": random.Random(7).randbytes(4096),
    "an unknown opcode": b"\x83\x80\0\0\0\0",
    "a frame without a mask": b"\x81\x05hello",
    "a ping that is too long": b"\x89\xfe\x01\x00\0\0\0\0" + b"x" * 256,
    "a continuation of nothing": frame(CONT, b"x"),
    "reserved bits": b"\xf1\x80\0\0\0\0",
    "a length beyond all bounds": b"\x81\xff" + b"\x7f" + b"\xff" * 7 + b"\0\0\0\0",
    "a negative length": b"\x81\xff" + b"\xff" * 8 + b"\0\0\0\0",
    "text that is not UTF-8": frame(TEXT, b"\xff\xfe"),
    "half a frame": frame(TEXT, b"x" * 1000)[:500],
    "a close frame of one byte": frame(8, b"x"),
    "binary": frame(BINARY, bytes(range(256)) * 100),
    "huge JSON": frame(TEXT, json.dumps({"type": "session.initiate", "x": list(range(100_000))}).encode()),
    "deep nesting": frame(TEXT, b"[" * 500_000),
    "deep objects": frame(TEXT, b'{"a":' * 100_000),
    "a key a million times": frame(TEXT, b'{"type":"session.initiate",' + b'"a":1,' * 100_000 + b'"b":1}'),
    "a huge number": frame(TEXT, b'{"type":"session.initiate","conversationId":' + b"9" * 200_000 + b"}"),
    "an id of the wrong type": frame(TEXT, b'{"type":"session.initiate","conversationId":{"a":[]}}'),
    "an id of 10 kB": frame(TEXT, b'{"type":"session.initiate","conversationId":"' + b"a" * 10_000 + b'"}'),
    "an id with control characters": frame(TEXT, b'{"type":"session.initiate","conversationId":"a\\u0000\\r\\nb"}'),
    "an id that is a path": frame(TEXT, b'{"type":"session.resume","conversationId":"../../x{fleet}"}'),
    "formats that are numbers": frame(
        TEXT,
        b'{"type":"session.initiate","conversationId":"n1","expectAudioMessages":true,"supportedMediaFormats":[1,{}]}',
    ),
    "lone surrogates": frame(TEXT, b'{"type":"session.initiate","conversationId":"\\ud800","caller":"\\udfff"}'),
}


@contextlib.asynccontextmanager
async def talk_beside(bridge: Stage) -> AsyncIterator[None]:
    """One call talks from before the block until after it, and nothing is amiss with it."""
    call = SimulatedCall(bridge.url, CallPlan(say=("opening_hours",)))
    talk = asyncio.create_task(call.run())
    try:
        await bridge.event("conversation_text")
        yield
        report = await talk
    finally:
        talk.cancel()
    assert report.problem is None
    assert report.violations == []


def greeting() -> DeepgramBridge:
    return DeepgramBridge(configuration(greeting=GREETING))


@pytest.mark.slow
async def test_no_hostile_input_on_other_connections_harms_a_call(redis_url: str) -> None:
    async with stage(redis_url, bridge=greeting()) as bridge, talk_beside(bridge):
        for name, data in NASTY.items():
            async with raw(bridge) as before:  # where HTTP is expected
                before.writer.write(data + b"\r\n\r\n")
            async with raw(bridge) as after:
                await after.upgrade()
                after.writer.write(data)
                with contextlib.suppress(ConnectionError):
                    await after.writer.drain()
            async with raw(bridge) as alive:  # the pod still lets people in
                await alive.upgrade()
            assert not bridge.app.task.done(), name
    assert bridge.events("error") == []


@pytest.mark.slow
async def test_thousands_of_connections_that_say_nothing_harm_no_call(redis_url: str, eventually: Eventually) -> None:
    before = refusals("connections")
    async with stage(redis_url, bridge=greeting(), connections=1000, first_message_timeout=60.0) as bridge:
        edge = bridge.app.process.edge
        assert edge is not None
        async with talk_beside(bridge), contextlib.AsyncExitStack() as crowd:
            for number in range(2000):
                one = await crowd.enter_async_context(raw(bridge))
                if number % 2:
                    one.writer.write(UPGRADE)
            await eventually(lambda: refusals("connections") >= before + 1000)
            assert edge._guard.crowd._all <= 1000
        await eventually(lambda: edge._guard.crowd._all == 0)  # nothing is kept of them
        async with wire(bridge.url) as vaic:
            await vaic.initiate()
            await vaic.expect("session.accepted")


async def test_a_peer_that_never_reads_is_dropped_before_it_costs_memory(
    redis_url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridge_edge.caller_socket.PINGS_AT_ONCE", 1e9)  # so that only the unread answers count
    monkeypatch.setattr("bridge_edge.caller_socket.UNREAD_BYTES", 65536)
    async with stage(redis_url) as bridge, raw(bridge) as deaf:
        await deaf.upgrade()
        deaf.reader._transport.pause_reading()  # type: ignore[attr-defined]
        with counted("not_reading", caplog), contextlib.suppress(ConnectionError):
            async with asyncio.timeout(PATIENCE):
                while not deaf.writer.transport.is_closing():
                    deaf.writer.write(frame(PING, b"p" * 125) * 500)
                    await deaf.writer.drain()
