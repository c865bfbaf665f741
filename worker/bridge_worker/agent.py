"""One connection to a Deepgram Voice Agent: the socket around the `AgentClient` machine.

It is opened to the point where audio may flow, then read by one task (text and audio are one ordered
stream, Voice Agent reference §6) and written by another. Whatever ends it becomes one `AgentFailed`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, ConnectionClosedOK, InvalidStatus, WebSocketException

from bridge_shared import logs, metrics
from bridge_shared.direct import Direct, Message
from bridge_shared.errors import AgentFailed
from bridge_shared.keepalive import notice_half_open
from bridge_shared.protocol import deepgram as dg
from bridge_shared.protocol.media import Media
from bridge_shared.types.errors import DeepgramHandshakeError
from bridge_worker.watchdog import SILENT_SECONDS, AnswerWatch, LineWatch

CLOSE_SECONDS = 1.0
QUEUED_SECONDS = 2.0
"""Caller audio that may wait for a slow agent; the oldest is dropped beyond it (§5.2)."""


COUNTED = frozenset(
    {
        *dg.RETRY,
        "agent_stalled",
        "connect_failed",
        "connection_closed",
        "disconnected",
        "handshake_binary_frame",
        "handshake_unexpected_type",
        "reader_error",
        "unknown",
    }
)
"""Codes that are labels of a metric as they are."""


def count(failure: AgentFailed) -> None:
    """Count a failure by its code. A refused upgrade counts as `http_401` and the like, since what to do about it
    differs; a code that is not published as `other`, for whoever answers at DEEPGRAM_URL must not make up labels."""
    code = failure.code if failure.code in COUNTED else "other"
    if isinstance(failure.cause, InvalidStatus):
        status = failure.cause.response.status_code
        code = f"http_{status}" if status in (401, 402, 403, 404, 429) else f"http_{status // 100}xx"
    metrics.agent_errors.labels(code=code).inc()


class _Connection(Direct, ClientConnection):
    """Knows when something has arrived last, pongs included."""

    heard_at = 0.0

    def data_received(self, data: bytes) -> None:
        self.heard_at = self.loop.time()
        super().data_received(data)


class Agent:
    """An agent that is ready: settings applied, audio flows. Made by `Agent.open`."""

    def __init__(self, socket: _Connection, machine: dg.AgentClient, media: Media) -> None:
        self._socket = socket
        self.machine = machine
        self._queue: deque[bytes | str] = deque()
        self._queued_audio = 0
        self._most_audio = media.nbytes(QUEUED_SECONDS * 1000)
        self._media = media
        self._wake = asyncio.Event()
        self._given_up: AgentFailed | None = None
        self._early: list[dg.AgentEvent] = []
        """What the agent said beside what its opening needs."""

    @classmethod
    async def open(cls, url: str, key: str, settings: Mapping[str, Any], media: Media, *, seconds: float) -> Agent:
        """Connect, send the settings, wait until they are applied; all of it within `seconds`.

        Cancelling it closes the half-open connection.

        Raises:
            AgentFailed: with Deepgram's own code if it refused, `connect_failed` if it was not reached in time.
        """
        until = asyncio.get_running_loop().time() + seconds
        agent = await cls.reach(url, key, media, seconds=seconds)
        await agent.apply(settings, seconds=seconds, until=until)
        return agent

    @classmethod
    async def reach(cls, url: str, key: str, media: Media, *, seconds: float) -> Agent:
        """Connect up to Welcome; `apply` comes next, soon: Deepgram waits about ten seconds. Otherwise as `open`."""
        until = asyncio.get_running_loop().time() + seconds
        with _explained("the connection", seconds):
            async with asyncio.timeout_at(until):
                socket = await _connect(url, key)
        machine = dg.AgentClient()
        try:
            with _explained("Welcome", seconds):
                async with asyncio.timeout_at(until):
                    early = await _expect(socket, machine, dg.Welcome)
        except BaseException:
            socket.transport.abort()
            raise
        agent = cls(socket, machine, media)
        agent._early += early
        return agent

    async def apply(self, settings: Mapping[str, Any], *, seconds: float, until: float | None = None) -> None:
        """Send the settings and wait until they are applied, `seconds` in all, or to the moment `until` of the
        loop's clock. If that fails, or is cancelled, the connection is closed. Raises as `open`."""
        until = asyncio.get_running_loop().time() + seconds if until is None else until
        try:
            with _explained("SettingsApplied", seconds):
                async with asyncio.timeout_at(until):
                    await self._socket.send(self.machine.settings(settings), text=True)
                    self._early += await _expect(self._socket, self.machine, dg.SettingsApplied)
        except BaseException:
            self._socket.transport.abort()
            raise

    async def listen(self, heard: Callable[[dg.AgentEvent], None]) -> NoReturn:
        """Call `heard` with all that the agent says, in order, until the connection ends. Cancelling it ends that.

        Raises:
            AgentFailed: always, in the end: the agent never ends a call.
            Exception: what `heard` raised.
        """

        def take(message: Message) -> None:
            for event in self.machine.receive(message):
                heard(event)
                if isinstance(event, dg.AgentError):
                    raise _error(event)

        early, self._early = self._early, []
        for event in early:
            heard(event)
        try:
            await self._socket.each(take)
        except ConnectionClosedOK as error:
            raise self._given_up or AgentFailed(
                "disconnected", "The agent closed the connection", retryable=True
            ) from error
        except ConnectionClosed as error:
            if self._given_up is not None:
                raise self._given_up from error
            code = error.rcvd.code if error.rcvd is not None else None
            raise AgentFailed(
                "connection_closed",
                f"The agent's connection broke off (close code {code})",
                retryable=dg.parse_close(code, self.machine.error),
                cause=error,
            ) from error

    def hear(self, audio: bytes) -> None:
        """Send caller audio, or queue it while the agent is slow: whole samples, at least one."""
        if not self._queue and self._socket.send_now(audio, text=False):
            return
        self._queue.append(audio)
        self._queued_audio += len(audio)
        while self._queued_audio > self._most_audio:
            self._drop_oldest_audio()
        self._wake.set()

    def say(self, message: bytes) -> None:
        """Queue a text message of the machine, behind the audio that is queued already."""
        self._queue.append(message.decode())
        self._wake.set()

    async def write(self) -> None:
        """Send what is queued, until the connection ends or this is cancelled. One task per connection runs it."""
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._queue:
                    message = self._queue.popleft()
                    if isinstance(message, bytes):
                        self._queued_audio -= len(message)
                    await self._socket.send(message)
        except ConnectionClosed:
            return  # the reader notices as well, and says why

    async def watch(self, answers: AnswerWatch) -> None:
        """Break the connection when the agent is gone without a word, or owes the caller an answer for too long;
        `events` says so then. One task per connection runs it; cancelling it ends the watching only."""
        loop = asyncio.get_running_loop()
        line = LineWatch(loop.time())
        while True:
            now = loop.time()
            line.heard(self._socket.heard_at)
            if line.lost(now):
                description = f"Nothing came from the agent for {SILENT_SECONDS:g} s, though it was pinged"
                return self._give_up("connection_closed", description)
            if answers.stalled(now):
                return self._give_up("agent_stalled", "The agent did not answer what the caller had said")
            if line.ping_due(now):
                await self._ping(line)
            await asyncio.sleep(min(line.deadline(), answers.deadline()) - loop.time())

    async def _ping(self, line: LineWatch) -> None:
        """Not longer than it takes to hand the ping to the transport: behind a full buffer websockets would wait."""

        def ponged(answer: asyncio.Future[float]) -> None:
            if not answer.cancelled() and answer.exception() is None:
                line.ponged()

        with contextlib.suppress(TimeoutError, ConnectionClosed):  # the reader notices as well, and says why
            async with asyncio.timeout(0):
                pong = await self._socket.ping()
                asyncio.ensure_future(pong).add_done_callback(ponged)

    def _give_up(self, code: str, description: str) -> None:
        self._given_up = AgentFailed(code, description, retryable=True)
        self._socket.transport.abort()

    @property
    def unsent(self) -> int:
        """Text messages that wait; those of a connection that has ended will never go."""
        return sum(isinstance(message, str) for message in self._queue)

    async def close(self) -> None:
        """End the session at Deepgram, within a second. Cancelling it breaks the connection off."""
        try:
            async with asyncio.timeout(CLOSE_SECONDS):  # websockets' own limit does not count a full buffer
                await self._socket.close()
        except TimeoutError:
            self._socket.transport.abort()
        except BaseException:  # nobody else would: behind a full buffer it stays open for ever
            self._socket.transport.abort()
            raise

    def _drop_oldest_audio(self) -> None:
        for index, message in enumerate(self._queue):
            if isinstance(message, bytes):
                del self._queue[index]
                self._queued_audio -= len(message)
                metrics.audio_dropped_ms.labels(where="agent_slow").inc(self._media.ms(len(message)))
                return


@contextlib.contextmanager
def _explained(awaited: str, seconds: float) -> Iterator[None]:
    """What went wrong while something was awaited, as an `AgentFailed`."""
    try:
        yield
    except TimeoutError as error:
        description = f"The agent was not ready within {seconds:g} s: no answer while waiting for {awaited}"
        raise AgentFailed("connect_failed", description, retryable=True, cause=error) from error
    except ConnectionClosed as error:
        description = f"The agent closed the connection before {awaited}"
        raise AgentFailed("connect_failed", description, retryable=True, cause=error) from error


async def _connect(url: str, key: str) -> _Connection:
    try:
        socket = await connect(
            url,
            create_connection=_Connection,
            additional_headers={"Authorization": f"Token {key}"},
            compression=None,
            max_size=None,
            open_timeout=None,  # `Agent.open` limits it, with what comes after
            close_timeout=CLOSE_SECONDS,
            ping_interval=None,  # `Agent.watch` pings: websockets' own waits for ever behind a full buffer
            logger=logs.stdlib("worker.websocket"),
        )
        assert isinstance(socket, _Connection)
        notice_half_open(socket.transport)
        return socket
    except InvalidStatus as error:
        raise _refused(error) from error
    except (OSError, WebSocketException, EOFError) as error:
        text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        description = f"Deepgram could not be reached ({text}). Check DEEPGRAM_URL and the network"
        raise AgentFailed("connect_failed", description, retryable=True, cause=error) from error


async def _expect(
    socket: ClientConnection, machine: dg.AgentClient, wanted: type[dg.AgentEvent]
) -> list[dg.AgentEvent]:
    """Wait for this event; returns what came besides, like a `Warning`."""
    besides: list[dg.AgentEvent] = []
    while True:
        for event in machine.receive(await socket.recv()):
            match event:
                case wanted():
                    return besides
                case dg.AgentError():
                    raise _error(event, handshake=True)
                case dg.UnexpectedBinary():
                    raise _handshake("handshake_binary_frame", "The agent sent audio before it was ready")
                case dg.UnexpectedType(type=name):
                    description = f"The agent sent {name} where {wanted.__name__} was due"
                    raise _handshake("handshake_unexpected_type", description)
                case dg.Malformed(detail=detail):
                    raise AgentFailed("connect_failed", f"The agent's opening was {detail}", retryable=True)
            besides.append(event)


def _error(event: dg.AgentError, *, handshake: bool = False) -> AgentFailed:
    code = "unknown" if event.code == "UNSPECIFIED" else event.code  # as applications know it (SDK reference §7)
    retryable = dg.retry_for(event.code) is not dg.Retry.NO
    if handshake:
        return _handshake(code, event.description, retryable=retryable)
    return AgentFailed(code, event.description, retryable=retryable)


def _handshake(code: str, description: str, *, retryable: bool = False) -> AgentFailed:
    return AgentFailed(code, description, retryable=retryable, cause=DeepgramHandshakeError(code, description))


def _refused(error: InvalidStatus) -> AgentFailed:
    status = error.response.status_code
    body = " ".join(bytes(error.response.body or b"")[:300].decode(errors="replace").split())
    mend = {401: "Check DEEPGRAM_API_KEY", 402: "Check the account's credit", 429: "The project is at its limit"}
    description = f"Deepgram refused the connection: HTTP {status} {body}. {mend.get(status, '')}".rstrip(". ")
    retryable = dg.retry_for_status(status) is not dg.Retry.NO
    return AgentFailed("connect_failed", description, retryable=retryable, cause=error)
