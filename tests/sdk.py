"""What the tests of the public SDK share: handlers that note what they are told, callers who are quick, and an agent
that a test plays by hand where the simulated one is too well-behaved."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import orjson
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from bridge_sim.caller import SimulatedCall
from bridge_sim.changes import Changes
from bridge_sim.plan import CallPlan
from deepgram_audiocodes_bridge import DeepgramBridge, Session

EVENTS = (
    "session_start",
    "session_end",
    "conversation_text",
    "user_started_speaking",
    "agent_thinking",
    "agent_audio_done",
    "function_call_request",
    "prompt_updated",
    "speak_updated",
    "think_updated",
    "warning",
    "activity",
    "error",
)
"""The thirteen events of the original SDK."""

EXTRA = (
    "agent_started_speaking",
    "function_call_cancelled",
    "function_call_response",
    "history",
    "injection_refused",
    "latency_report",
    "session_resumed",
)

WELCOME = "You are welcome."
"""The shortest recorded sentence of the agent: 0.9 s."""


class Notes:
    """Every event of a bridge, in the order in which its handlers were called.

    Attributes:
        all: (name, event).
        session: of the latest call.
    """

    def __init__(self, bridge: DeepgramBridge, *names: str) -> None:
        self.all: list[tuple[str, Any]] = []
        self.session: Session
        self._changes = Changes()
        for name in names or EVENTS:
            bridge.on(name)(lambda session, event, name=name: self._note(name, session, event))

    def _note(self, name: str, session: Session, event: Any) -> None:
        self.session = session
        self.all.append((name, event))
        self._changes.notify()

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.all]

    @property
    def texts(self) -> list[tuple[str, str]]:
        return [(event.role, event.content) for event in self.of("conversation_text")]

    def of(self, name: str) -> list[Any]:
        return [event for known, event in self.all if known == name]

    async def wait(self, name: str, number: int = 1, seconds: float = 8.0) -> Any:
        """Wait for the `number`-th event of this name, and return it."""

        def there() -> list[Any]:
            events = self.of(name)
            return events if len(events) >= number else []

        return (await self._changes.wait_for(there, seconds, lambda: f"{name} among {self.all}"))[number - 1]


@contextlib.asynccontextmanager
async def calling(url: str, **plan: Any) -> AsyncIterator[SimulatedCall]:
    """A caller who has been taken, may interrupt, and is heard from the first moment."""
    async with SimulatedCall(url, CallPlan(**{"barge_in": True, "start_delay_s": 0.0, **plan})) as call:
        await call.connect()
        await call.initiate()
        yield call


class Peer:
    """One connection to an agent that a test plays by hand."""

    def __init__(self, socket: ServerConnection) -> None:
        self._socket = socket

    async def send(self, *messages: dict[str, Any] | bytes) -> None:
        for message in messages:
            if isinstance(message, bytes):
                await self._socket.send(message)
            else:
                await self._socket.send(orjson.dumps(message), text=True)

    async def next(self) -> dict[str, Any]:
        """The next message that is no audio."""
        while True:
            message = await self._socket.recv()
            if isinstance(message, str):
                return dict(orjson.loads(message))

    async def greet(self) -> dict[str, Any]:
        """Welcome, Settings, SettingsApplied; returns the settings."""
        await self.send({"type": "Welcome", "request_id": "r"})
        settings = await self.next()
        await self.send({"type": "SettingsApplied"})
        return settings

    async def hold(self) -> None:
        """Stay until the bridge hangs up."""
        with contextlib.suppress(ConnectionClosed):
            while True:
                await self._socket.recv()


class PlayedAgent:
    """An agent at `url`; `connections` counts."""

    def __init__(self) -> None:
        self.url = ""
        self.connections = 0


@contextlib.asynccontextmanager
async def played_agent(play: Callable[[Peer], Awaitable[None]]) -> AsyncIterator[PlayedAgent]:
    """A WebSocket server that has `play` speak for the agent on each connection, and then closes it."""
    agent = PlayedAgent()

    async def handle(socket: ServerConnection) -> None:
        agent.connections += 1
        with contextlib.suppress(ConnectionClosed):
            await play(Peer(socket))

    async with serve(handle, "127.0.0.1", 0, compression=None, ping_interval=None, close_timeout=1) as server:
        agent.url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/agent/converse"
        yield agent


async def ended(waiting: Awaitable[Any], seconds: float = 8.0) -> Any:
    """The result of something that has to come to its end."""
    async with asyncio.timeout(seconds):
        return await waiting
