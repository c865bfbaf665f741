"""bridge_shared.direct against websockets without it: the same packets must give the same messages, answers and end.

Hypothesis writes the stream and cuts it into packets. They are handed to real connections as a transport would hand
them over; TCP itself would cut them where it likes. What the connection answers is read from a real socket.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import cProfile
import hashlib
import itertools
import pstats
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.connection import Connection
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.streams import StreamReader

from bridge_shared.direct import Direct, Message, Take

LONGEST = 80_000
PATIENCE = 10
OPTIONS: dict[str, Any] = {
    "compression": None,
    "max_size": LONGEST,
    "ping_interval": None,
    "max_queue": None,  # packets come whether reading is paused or not; the end of the stream must come too
}
KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: bridge\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + KEY + b"\r\n\r\n"
)


class Plain(Connection):
    """Websockets' own way, with the method of ours."""

    async def each(self, take: Take) -> NoReturn:
        while True:
            take(await self.recv())


class PlainServer(Plain, ServerConnection):
    """As it would be without us."""


class PlainClient(Plain, ClientConnection):
    """As it would be without us."""


class DirectServer(Direct, ServerConnection):
    """As at the edge."""

    allowed: itertools.cycle[bool] = itertools.cycle([True])

    def direct(self, size: int) -> bool:
        return next(self.allowed)


class DirectClient(Direct, ClientConnection):
    """As in the worker."""


@dataclass
class Line:
    """A connection, and the bare socket of its peer."""

    socket: Any
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def answers(self) -> bytes:
        """Everything that the connection writes from now on; the peer says no more."""
        with contextlib.suppress(OSError):
            self.writer.write_eof()
        async with asyncio.timeout(PATIENCE):
            return await self.reader.read()


@dataclass
class Outcome:
    """What a connection made of what it was given."""

    messages: list[Message]
    received: int | None
    sent: int | None
    cause: str
    answers: list[Frame]


@contextlib.asynccontextmanager
async def server(kind: type[ServerConnection], behind: bytes = b"", *, at_once: int = 1 << 20) -> AsyncIterator[Line]:
    """A server's connection; its peer sends `behind` right behind its request, in packets of so many bytes."""
    accepted: asyncio.Future[ServerConnection] = asyncio.get_running_loop().create_future()
    made: asyncio.Queue[ServerConnection] = asyncio.Queue()

    class Noted(kind):  # type: ignore[misc, valid-type]
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            made.put_nowait(self)

    async def handle(socket: ServerConnection) -> None:
        accepted.set_result(socket)
        await socket.wait_closed()

    async with serve(handle, "127.0.0.1", 0, create_connection=Noted, **OPTIONS) as listening:
        reader, writer = await asyncio.open_connection(*listening.sockets[0].getsockname())
        try:
            socket = await made.get()
            for packet in pieces(UPGRADE + behind, at_once):
                socket.data_received(packet)
            await reader.readuntil(b"\r\n\r\n")
            yield Line(await accepted, reader, writer)
        finally:
            writer.transport.abort()


@contextlib.asynccontextmanager
async def client(
    kind: type[ClientConnection], behind: bytes = b"", *, at_once: int = 1 << 20, refusal: bytes = b""
) -> AsyncIterator[Line]:
    """A client's connection; its peer sends `behind` right behind its answer, in packets of so many bytes."""
    made: list[ClientConnection] = []
    accepted: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()

    def create(*args: Any, **named: Any) -> ClientConnection:
        made.append(kind(*args, **named))
        return made[0]

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.put_nowait((reader, writer))

    listening = await asyncio.start_server(handle, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]

    async def dial() -> ClientConnection:
        return await connect(f"ws://127.0.0.1:{port}", create_connection=create, proxy=None, **OPTIONS)

    connecting = asyncio.create_task(dial())
    reader, writer = await accepted.get()
    try:
        request = await reader.readuntil(b"\r\n\r\n")
        for packet in pieces((refusal or answer_to(request)) + behind, at_once):
            made[0].data_received(packet)
        yield Line(await connecting, reader, writer)
    finally:
        writer.transport.abort()
        listening.close()
        await listening.wait_closed()


def pieces(stream: bytes, size: int) -> list[bytes]:
    return [stream[at : at + size] for at in range(0, len(stream), size)]


def answer_to(request: bytes) -> bytes:
    key = next(line[18:].strip() for line in request.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key"))
    accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "
        + accept
        + b"\r\n\r\n"
    )


@dataclass(frozen=True)
class Piece:
    """One frame of a stream, right or wrong."""

    first: int
    payload: bytes = b""
    flip: bool = False
    """Masked although it must not be, or the other way round."""
    declared: int | None = None
    """The length that it claims to have, if that is not true."""

    def written(self, *, masked: bool) -> bytes:
        size = len(self.payload) if self.declared is None else self.declared
        bit = 0x80 if masked is not self.flip else 0
        if size < 126:
            head = bytes([self.first, bit | size])
        elif size < 65536:
            head = bytes([self.first, bit | 126]) + size.to_bytes(2, "big")
        else:
            head = bytes([self.first, bit | 127]) + size.to_bytes(8, "big")
        if not bit:
            return head + self.payload
        mask = b"\x11\xa2\x33\xc4"
        return head + mask + bytes(byte ^ mask[at % 4] for at, byte in enumerate(self.payload))


FIN, CONT, TEXT, BINARY, CLOSE, PING, PONG = 0x80, 0, 1, 2, 8, 9, 10
NORMAL = Piece(FIN | CLOSE, (1000).to_bytes(2, "big"))


def in_fragments(parts: list[bytes], opcode: int, pings: list[bool]) -> list[Piece]:
    pieces = [Piece(CONT if at else opcode, part) for at, part in enumerate(parts)]
    pieces[-1] = Piece(pieces[-1].first | FIN, pieces[-1].payload)
    return [
        it
        for piece, ping in zip(pieces, pings, strict=False)
        for it in ([Piece(FIN | PING, b"?")] if ping else []) + [piece]
    ]


SIZES = st.integers(0, 300) | st.sampled_from([125, 126, 65535, 65536, 70_000])
WORDS = st.text(max_size=20) | SIZES.map(lambda size: "é" * (size // 2))
ONE = st.one_of(
    WORDS.map(lambda text: Piece(FIN | TEXT, text.encode())),
    SIZES.map(lambda size: Piece(FIN | BINARY, bytes(n % 251 for n in range(size)))),
    st.sampled_from([PING, PONG]).map(lambda opcode: Piece(FIN | opcode, b"alive")),
).map(lambda piece: [piece])
FRAGMENTS = st.builds(
    in_fragments,
    st.lists(st.binary(max_size=5) | st.just(bytes(30_000)), min_size=2, max_size=4),
    st.sampled_from([TEXT, BINARY]),
    st.lists(st.booleans(), min_size=4, max_size=4),
)
WRONG = st.sampled_from(
    [
        Piece(FIN | TEXT, b"\xff"),
        Piece(FIN | TEXT, b"right until here \xc3"),
        Piece(FIN | TEXT, b"masked?", flip=True),
        Piece(FIN | PING, flip=True),
        Piece(FIN | TEXT | 0x40, b"compressed?"),
        Piece(FIN | BINARY | 0x10, b"reserved"),
        Piece(FIN | 3, b"reserved"),
        Piece(FIN | 15, b"reserved"),
        Piece(FIN | BINARY, b"", declared=LONGEST + 1),
        Piece(FIN | BINARY, bytes(LONGEST + 1)),
        Piece(FIN | BINARY, b"and then nothing", declared=2**63 + 5),
        Piece(FIN | PING, bytes(126)),
        Piece(PING, b"in fragments"),
        Piece(FIN | CONT, b"of what?"),
        Piece(TEXT, b"without an end"),
        Piece(BINARY, bytes(LONGEST)),
        Piece(FIN | CLOSE, b"!"),
        Piece(FIN | CLOSE, (1005).to_bytes(2, "big")),
        NORMAL,
    ]
).map(lambda piece: [piece]) | st.just([Piece(TEXT, b"begun"), Piece(FIN | TEXT, b"another")])
STREAMS = st.builds(
    lambda *parts: [piece for part in parts for item in part for piece in item],
    st.lists(ONE | FRAGMENTS, max_size=8),
    st.lists(WRONG, max_size=2),
    st.lists(ONE | FRAGMENTS, max_size=2),
)


def cut(stream: bytes, places: Sequence[int]) -> list[bytes]:
    at = sorted({0, len(stream), *(place % (len(stream) + 1) for place in places)})
    return [stream[start:end] for start, end in itertools.pairwise(at)]


async def made_of(line: Line, packets: Sequence[bytes], rests: Sequence[int], *, masked: bool) -> Outcome:
    """Hand the packets to the connection, with so many turns of the event loop behind each."""
    messages: list[Message] = []
    reading = asyncio.create_task(line.socket.each(messages.append))
    await asyncio.sleep(0)
    for packet, turns in zip(packets, itertools.cycle(rests), strict=False):
        line.socket.data_received(packet)
        for _ in range(turns):
            await asyncio.sleep(0)
    answers = await line.answers()
    with pytest.raises(ConnectionClosed) as closed:
        await reading
    end = closed.value
    received, sent = (close.code if close else None for close in (end.rcvd, end.sent))
    return Outcome(messages, received, sent, repr(end.__cause__), frames_in(answers, masked=not masked))


def frames_in(stream: bytes, *, masked: bool) -> list[Frame]:
    frames, reader = [], StreamReader()
    reader.feed_data(stream)
    reader.feed_eof()
    while reader.buffer:
        try:
            next(Frame.parse(reader.read_exact, mask=masked))
        except StopIteration as parsed:
            frames.append(parsed.value)
    return frames


async def at_a_server(kind: type[ServerConnection], packets: Sequence[bytes], rests: Sequence[int]) -> Outcome:
    async with server(kind) as line:
        return await made_of(line, packets, rests, masked=True)


async def at_a_client(kind: type[ClientConnection], packets: Sequence[bytes], rests: Sequence[int]) -> Outcome:
    async with client(kind) as line:
        return await made_of(line, packets, rests, masked=False)


@given(STREAMS, st.lists(st.integers(0, 10**6), max_size=12), st.lists(st.integers(0, 6), min_size=1), st.data())
@settings(max_examples=150, deadline=None)
def test_a_server_hears_answers_and_ends_as_without_the_fast_path(
    stream: list[Piece], places: list[int], rests: list[int], data: st.DataObject
) -> None:
    packets = cut(b"".join(piece.written(masked=True) for piece in [*stream, NORMAL]), places)
    DirectServer.allowed = itertools.cycle(data.draw(st.lists(st.booleans(), min_size=1, max_size=5)))
    expected = asyncio.run(at_a_server(PlainServer, packets, rests))
    assert asyncio.run(at_a_server(DirectServer, packets, rests)) == expected


@given(STREAMS, st.lists(st.integers(0, 10**6), max_size=12), st.lists(st.integers(0, 6), min_size=1))
@settings(max_examples=100, deadline=None)
def test_a_client_hears_answers_and_ends_as_without_the_fast_path(
    stream: list[Piece], places: list[int], rests: list[int]
) -> None:
    packets = cut(b"".join(piece.written(masked=False) for piece in [*stream, NORMAL]), places)
    expected = asyncio.run(at_a_client(PlainClient, packets, rests))
    assert asyncio.run(at_a_client(DirectClient, packets, rests)) == expected


def plain_and_direct(test: Callable[..., Any]) -> Any:
    """The test holds for websockets alone as well, so that it asks for nothing of ours."""
    return pytest.mark.parametrize(
        ("open_line", "kind", "masked"),
        [
            pytest.param(server, PlainServer, True, id="plain server"),
            pytest.param(server, DirectServer, True, id="direct server"),
            pytest.param(client, PlainClient, False, id="plain client"),
            pytest.param(client, DirectClient, False, id="direct client"),
        ],
    )(test)


@pytest.fixture(autouse=True)
def everything_is_allowed() -> None:
    DirectServer.allowed = itertools.cycle([True])


@plain_and_direct
@pytest.mark.parametrize("at_once", [1 << 20, 1, 2, 7])
async def test_messages_right_behind_the_http_head_are_heard_however_both_are_cut(
    open_line: Any, kind: Any, masked: bool, at_once: int
) -> None:
    early = [Piece(FIN | TEXT, b"first"), Piece(FIN | BINARY, bytes(300)), Piece(TEXT, b"in "), Piece(FIN, b"two")]
    behind = b"".join(piece.written(masked=masked) for piece in early)
    started = Piece(FIN | TEXT, b"begun before anybody listened").written(masked=masked)
    async with open_line(kind, behind + started[:9], at_once=at_once) as line:
        outcome = await made_of(line, [started[9:], NORMAL.written(masked=masked)], [0], masked=masked)
    assert outcome.messages == ["first", bytes(300), "in two", "begun before anybody listened"]
    assert outcome.received == outcome.sent == 1000


@plain_and_direct
async def test_messages_that_come_byte_by_byte_are_heard(open_line: Any, kind: Any, masked: bool) -> None:
    sent = [Piece(FIN | TEXT, "grüß".encode()), Piece(FIN | BINARY), Piece(FIN | BINARY, bytes(70_000)), NORMAL]
    stream = b"".join(piece.written(masked=masked) for piece in sent)
    async with open_line(kind) as line:
        outcome = await made_of(line, pieces(stream, 1), [0], masked=masked)
    assert outcome.messages == ["grüß", b"", bytes(70_000)]
    assert outcome.received == 1000


@pytest.mark.parametrize("at_once", [1 << 20, 1, 3])
@pytest.mark.parametrize(("open_line", "kind"), [(server, DirectServer), (client, DirectClient)])
async def test_an_ordinary_message_is_handed_out_before_anything_else_happens(
    open_line: Any, kind: Any, at_once: int
) -> None:
    async with open_line(kind, at_once=at_once) as line:
        messages: list[Message] = []
        reading = asyncio.create_task(line.socket.each(messages.append))
        await asyncio.sleep(0)
        for _ in range(2):
            for piece in Piece(FIN | TEXT, b"text"), Piece(FIN | PING), Piece(FIN | BINARY, b"bytes"):
                line.socket.data_received(piece.written(masked=kind is DirectServer))
        assert messages == ["text", b"bytes"] * 2
        reading.cancel()


async def test_a_message_that_may_not_go_the_fast_way_is_not_handed_out_at_once() -> None:
    DirectServer.allowed = itertools.cycle([True, False])
    async with server(DirectServer) as line:
        messages: list[Message] = []
        reading = asyncio.create_task(line.socket.each(messages.append))
        await asyncio.sleep(0)
        for text in b"first", b"second", b"third":
            line.socket.data_received(Piece(FIN | TEXT, text).written(masked=True))
        assert messages == ["first"]
        line.socket.data_received(NORMAL.written(masked=True))
        await line.answers()
        with pytest.raises(ConnectionClosed):
            await reading
        assert messages == ["first", "second", "third"]


@plain_and_direct
@pytest.mark.parametrize(
    "begun",
    [
        [Piece(FIN | BINARY, declared=LONGEST + 1)],
        [Piece(BINARY, bytes(LONGEST)), Piece(CONT, declared=1)],
        [Piece(BINARY, bytes(LONGEST)), Piece(FIN | PING, declared=1)],
        [Piece(FIN | BINARY, declared=20, flip=True)],
        [Piece(FIN | 11, declared=20)],
        [Piece(TEXT, b"in pieces"), Piece(FIN | TEXT, b"not another one")],
    ],
)
async def test_what_is_wrong_is_refused_as_soon_as_it_can_be_known(
    open_line: Any, kind: Any, masked: bool, begun: list[Piece]
) -> None:
    async with open_line(kind) as line:
        reading = asyncio.create_task(line.socket.each(lambda message: None))
        await asyncio.sleep(0)
        line.socket.data_received(b"".join(piece.written(masked=masked) for piece in begun))
        assert line.socket.state is State.CLOSING
        await line.answers()
        with pytest.raises(ConnectionClosed):
            await reading


@pytest.mark.parametrize(("open_line", "kind"), [(server, DirectServer), (client, DirectClient)])
async def test_nothing_is_kept_of_what_comes_after_something_wrong(open_line: Any, kind: Any) -> None:
    masked = kind is DirectServer
    async with open_line(kind) as line:
        started = Piece(FIN | BINARY, bytes(1000)).written(masked=masked)[:500]
        line.socket.data_received(started)
        assert line.socket._kept == started
        line.socket.data_received(bytes(10_000) + Piece(FIN | 3).written(masked=masked))
        assert line.socket.state is State.CLOSING
        line.socket.data_received(started)
        assert not line.socket._kept
        await line.answers()


async def test_a_frame_that_trickles_in_is_not_looked_at_again_with_each_byte() -> None:
    stream = Piece(FIN | BINARY, bytes(70_000)).written(masked=True)
    async with server(DirectServer) as line:
        messages: list[Message] = []
        reading = asyncio.create_task(line.socket.each(messages.append))
        await asyncio.sleep(0)
        profile = cProfile.Profile()
        profile.enable()
        for packet in pieces(stream, 1):
            line.socket.data_received(packet)
        profile.disable()
        assert messages == [bytes(70_000)]
        stats: Any = pstats.Stats(profile)
        calls = sum(count for (file, *_), (_, count, *_) in stats.stats.items() if file != "~")
        assert calls < len(stream) + 100
        reading.cancel()


@plain_and_direct
@pytest.mark.parametrize("known", [1, 2, 5, 100])
async def test_a_connection_that_breaks_off_within_a_frame_says_where(
    open_line: Any, kind: Any, masked: bool, known: int
) -> None:
    stream = Piece(FIN | BINARY, bytes(200)).written(masked=masked)
    async with open_line(kind) as line:
        outcome = await made_of(line, [stream[:known]], [0], masked=masked)
    assert (outcome.messages, outcome.received, outcome.sent) == ([], None, None)
    assert "stream ends after" in outcome.cause


@pytest.mark.parametrize("kind", [PlainClient, DirectClient])
@pytest.mark.parametrize("at_once", [1 << 20, 1, 50])
async def test_a_client_that_is_refused_reads_why(kind: type[ClientConnection], at_once: int) -> None:
    why = b"\x82\x7dno credit, as if a frame began\r\n\r\n"
    refusal = b"HTTP/1.1 402 Payment Required\r\nContent-Length: %d\r\n\r\n" % len(why)
    with pytest.raises(InvalidStatus) as refused:
        async with client(kind, why, at_once=at_once, refusal=refusal):
            raise AssertionError("it is open")
    assert refused.value.response.body == why


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65_535, 65_536, 70_000])
@pytest.mark.parametrize("text", [True, False])
@pytest.mark.parametrize(("open_line", "kind"), [(server, DirectServer), (client, DirectClient)])
async def test_what_is_sent_at_once_is_byte_for_byte_what_websockets_writes_with_the_same_mask(
    open_line: Any, kind: Any, text: bool, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    payload = bytes(n % 127 for n in range(size))
    async with open_line(kind) as line:
        assert line.socket.send_now(payload, text=text)
        line.socket.transport.write_eof()
        written = await line.reader.read()
        mask = written[len(written) - size - 4 : len(written) - size]
        monkeypatch.setattr(secrets, "token_bytes", lambda count: mask)
        opcode = Opcode.TEXT if text else Opcode.BINARY
        assert written == Frame(opcode, payload).serialize(mask=kind is DirectClient)


async def test_every_frame_of_a_client_has_a_mask_of_its_own() -> None:
    async with client(DirectClient) as line:
        for _ in range(500):
            assert line.socket.send_now(b"!", text=True)
        written = await line.reader.readexactly(500 * 7)
        assert len({frame[2:6] for frame in pieces(written, 7)}) == 500


@pytest.mark.parametrize(("open_line", "kind"), [(server, DirectServer), (client, DirectClient)])
async def test_websockets_goes_on_behind_what_was_sent_at_once(open_line: Any, kind: Any) -> None:
    async with open_line(kind) as line:
        assert line.socket.send_now(b"a", text=True)
        await line.socket.send(["b", "c"])
        assert line.socket.send_now(b"d", text=False)
        await line.socket.ping(b"e")
        assert line.socket.send_now(b"f", text=True)
        closing = asyncio.create_task(line.socket.close())
        await asyncio.sleep(0)
        assert not line.socket.send_now(b"g", text=True)
        answers = frames_in(await line.answers(), masked=kind is DirectClient)
        await closing
        assert [bytes(frame.data) for frame in answers] == [b"a", b"b", b"c", b"", b"d", b"e", b"f", b"\x03\xe8"]


async def test_nothing_is_handed_out_behind_a_frame_over_which_the_connection_was_dropped() -> None:
    class Strict(DirectServer):
        def process_event(self, event: Any) -> None:
            if isinstance(event, Frame) and event.opcode is Opcode.PING:
                self.transport.abort()
            super().process_event(event)

    stream = [Piece(FIN | TEXT, b"before"), Piece(FIN | PING), Piece(FIN | TEXT, b"behind"), Piece(TEXT, b"in pieces")]
    async with server(Strict) as line:
        messages: list[Message] = []
        reading = asyncio.create_task(line.socket.each(messages.append))
        await asyncio.sleep(0)
        line.socket.data_received(b"".join(piece.written(masked=True) for piece in stream))
        with pytest.raises(ConnectionClosed):
            await reading
        assert messages == ["before"]
