"""What the telephony tests share: a bridge whose events are kept, and a caller that speaks frame by frame.

`bridge_sim.caller.SimulatedCall` behaves as VAIC does; `Wire` sends what a test says, right or wrong, and shows each
answer in its order.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import redis
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from bridge_sim.agent import AgentConnection, SimulatedAgent
from bridge_sim.agent_script import AgentScript
from deepgram_audiocodes_bridge import DeepgramBridge, Session
from harness import Running, configuration, running

EVENTS = (
    "session_start",
    "session_end",
    "conversation_text",
    "user_started_speaking",
    "agent_audio_done",
    "activity",
    "warning",
    "error",
)
PATIENCE = 5.0


@dataclass
class Stage:
    """A bridge with a simulated agent behind it.

    Attributes:
        happened: (name, event) of everything that its handlers were told.
        sessions: conversation id → session.
    """

    bridge: DeepgramBridge
    agent: SimulatedAgent
    redis_url: str
    app: Running = field(init=False)
    happened: list[tuple[str, Any]] = field(default_factory=list)
    sessions: dict[str | None, Session] = field(default_factory=dict)
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def url(self) -> str:
        return self.app.url

    def events(self, name: str) -> list[Any]:
        return [event for known, event in self.happened if known == name]

    async def event(self, name: str, number: int = 1) -> Any:
        """Wait for the n-th event of that name."""
        async with asyncio.timeout(PATIENCE):
            while len(self.events(name)) < number:
                self._news.clear()
                await self._news.wait()
        return self.events(name)[number - 1]

    async def connection(self, number: int = 0) -> AgentConnection:
        """Wait until the agent has applied the settings of its n-th connection."""
        agent = self.agent
        await agent.wait_for(lambda _: len(agent.connections) > number and agent.connections[number].ready)
        return agent.connections[number]

    def keys(self, pattern: str = "call:*") -> list[str]:
        """What Redis holds of calls."""
        with redis.Redis.from_url(self.redis_url, decode_responses=True) as client:
            return list(client.keys(pattern))

    def note(self, name: str, session: Session, event: Any) -> None:
        self.sessions[session.conversation_id] = session
        self.happened.append((name, event))
        self._news.set()


@contextlib.asynccontextmanager
async def stage(
    redis_url: str, script: AgentScript | None = None, *, bridge: DeepgramBridge | None = None, **settings: Any
) -> AsyncIterator[Stage]:
    """A running bridge, by default one whose agent answers at once and has no greeting.

    Args:
        settings: fields of `config.Settings`.
    """
    bridge = bridge or DeepgramBridge(configuration())
    async with SimulatedAgent(script or AgentScript(think_s=0)) as agent:
        made = Stage(bridge, agent, redis_url)
        for name in EVENTS:
            bridge.on(name)(lambda session, event, name=name: made.note(name, session, event))
        async with running(bridge, redis_url, agent, **settings) as app:
            made.app = app
            yield made


class Wire:
    """One WebSocket to the bridge."""

    def __init__(self, socket: ClientConnection, cid: str) -> None:
        self.socket = socket
        self.cid = cid

    async def send(self, *messages: dict[str, Any] | str | bytes) -> None:
        """Send these, dicts as JSON; bytes become a binary frame."""
        for message in messages:
            await self.socket.send(json.dumps(message) if isinstance(message, dict) else message)

    async def next(self) -> dict[str, Any]:
        """The bridge's next message."""
        async with asyncio.timeout(PATIENCE):
            message: dict[str, Any] = json.loads(await self.socket.recv())
        return message

    async def expect(self, *kinds: str) -> dict[str, Any]:
        """The next messages have to be of these types, in this order; returns the last."""
        message: dict[str, Any] = {}
        for kind in kinds:
            message = await self.next()
            assert message["type"] == kind, message
        return message

    async def until(self, kind: str) -> list[dict[str, Any]]:
        """All messages up to the first of this type."""
        messages = [await self.next()]
        while messages[-1]["type"] != kind:
            messages.append(await self.next())
        return messages

    async def rest(self) -> list[dict[str, Any]]:
        """All messages until the bridge closes the socket."""
        messages: list[dict[str, Any]] = []
        async with asyncio.timeout(PATIENCE):
            with contextlib.suppress(ConnectionClosed):
                while True:
                    messages.append(json.loads(await self.socket.recv()))
        return messages

    async def initiate(self, **fields: Any) -> None:
        """session.initiate; a field that is `...` is left out."""
        given = {
            "type": "session.initiate",
            "conversationId": self.cid,
            "botName": "support",
            "caller": "+4930123456",
            "expectAudioMessages": True,
            "supportedMediaFormats": ["raw/mulaw"],
            **fields,
        }
        await self.send({name: value for name, value in given.items() if value is not ...})

    async def begin(self, **fields: Any) -> dict[str, Any]:
        """A call that is accepted, started, and hears the caller; returns session.accepted."""
        await self.initiate(**fields)
        accepted = await self.expect("session.accepted")
        await self.send(self.activity("start"), {"type": "userStream.start", "conversationId": self.cid})
        await self.expect("userStream.started")
        return accepted

    def activity(self, name: str, **fields: Any) -> dict[str, Any]:
        """An envelope with one event."""
        event = {"type": "event", "name": name, **fields}
        return {"type": "activities", "conversationId": self.cid, "activities": [event]}

    def chunk(self, data: bytes) -> dict[str, Any]:
        """Caller audio."""
        audio = base64.b64encode(data).decode()
        return {"type": "userStream.chunk", "conversationId": self.cid, "audioChunk": audio}

    async def resume(self, **fields: Any) -> None:
        await self.send({"type": "session.resume", "conversationId": self.cid, **fields})

    async def hang_up(self) -> list[dict[str, Any]]:
        """session.end; what still came before the bridge closed the socket."""
        await self.send({"type": "session.end", "conversationId": self.cid, "reasonCode": "client-disconnected"})
        return await self.rest()

    async def drop(self) -> None:
        """Lose TCP without a close frame."""
        self.socket.transport.abort()
        await self.socket.wait_closed()


@contextlib.asynccontextmanager
async def wire(url: str, cid: str | None = None, *, token: str | None = None) -> AsyncIterator[Wire]:
    """A WebSocket for a conversation of that id, by default a new one."""
    headers = {"Authorization": f"Bearer {token}"} if token is not None else {}
    async with connect(url, additional_headers=headers, proxy=None, close_timeout=1, max_size=None) as socket:
        yield Wire(socket, cid or str(uuid.uuid4()))


def heard(messages: Sequence[dict[str, Any]]) -> bytes:
    """The agent's audio in these messages."""
    return b"".join(base64.b64decode(m["audioChunk"]) for m in messages if m["type"] == "playStream.chunk")


def types(messages: Sequence[dict[str, Any]]) -> list[str]:
    """Their types, a run of chunks as one."""
    names = [message["type"] for message in messages]
    return [name for at, name in enumerate(names) if name != "playStream.chunk" or names[at - 1 : at] != [name]]


async def messages_for(vaic: Wire, seconds: float) -> list[dict[str, Any]]:
    """All that VAIC is sent in this time."""
    got: list[dict[str, Any]] = []
    try:
        async with asyncio.timeout(seconds):
            while True:
                got.append(await vaic.next())
    except TimeoutError:
        return got
