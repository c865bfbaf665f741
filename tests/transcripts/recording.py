"""The conversation on the wire between VAIC and the bridge, one file per scenario: what a bridge says, and when.

`make transcripts` records them anew, with the
simulated VAIC and the simulated agent. What differs from call to call is replaced: ids, times, audio (by its size).
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from bridge_sim.agent import AgentScript, SimulatedAgent
from bridge_sim.caller import SimulatedCall
from bridge_sim.plan import CallPlan, CallProblem
from deepgram_audiocodes_bridge import DeepgramBridge
from harness import GREETING, configuration, running

FOLDER = Path(__file__).parent
SECONDS = 20.0
LISTENING = {"userStream.start", "userStream.started", "userStream.stop", "userStream.stopped"}

Line = dict[str, Any]


class Recorder:
    """A WebSocket proxy before the bridge that keeps what passes."""

    def __init__(self, url: str) -> None:
        self._far = url
        self.url = ""
        self.lines: list[Line] = []
        self._seen: dict[str, str] = {}

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[Recorder]:
        async with serve(self._serve, "127.0.0.1", 0, compression=None, ping_interval=None) as server:
            self.url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            yield self

    async def _serve(self, near: ServerConnection) -> None:
        async with connect(self._far, compression=None, ping_interval=None, proxy=None) as far:
            self.lines.append({"event": "connected"})
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._pass("vaic", near, far))
                tasks.create_task(self._pass("bridge", far, near))
            self.lines.append({"event": "closed"})

    async def _pass(self, name: str, source: Any, target: Any) -> None:
        with contextlib.suppress(ConnectionClosed):
            async for message in source:
                self.lines.append({"from": name, "message": self._steady(json.loads(message))})
                await target.send(message, text=True)
        await target.close()

    def _steady(self, value: Any, key: str = "") -> Any:
        """The same for every recording."""
        if isinstance(value, dict):
            return {name: self._steady(item, name) for name, item in value.items()}
        if isinstance(value, list):
            return [self._steady(item, key) for item in value]
        if key == "audioChunk":
            return f"<{len(base64.b64decode(value))} bytes>"
        if key == "timestamp":
            return "<time>"
        if key in ("conversationId", "vaigConversationId", "streamId", "id") and isinstance(value, str):
            return self._seen.setdefault(value, f"<{key} {len(self._seen) + 1}>")
        return value


Scene = Callable[[SimulatedCall, SimulatedAgent, DeepgramBridge], Awaitable[None]]


async def question(call: SimulatedCall, agent: SimulatedAgent, bridge: DeepgramBridge) -> None:
    await call.wait_greeting()
    await call.say("opening_hours")
    await call.wait_answer()
    await call.hang_up()


async def barge_in(call: SimulatedCall, agent: SimulatedAgent, bridge: DeepgramBridge) -> None:
    await call.wait_greeting()
    await call.say("long_story")
    await call.wait_interruptible()
    await call.say("thank_you")
    await call.wait_answer()
    await call.hang_up()


async def dtmf(call: SimulatedCall, agent: SimulatedAgent, bridge: DeepgramBridge) -> None:
    await call.wait_greeting()
    await call.send_dtmf("4711#")
    agent.connections[-1].say("agent_welcome")
    await call.wait_answer()
    await call.hang_up()


async def hang_up_by_the_bot(call: SimulatedCall, agent: SimulatedAgent, bridge: DeepgramBridge) -> None:
    await call.wait_greeting()
    await call.send_dtmf("9")  # see `make_bridge`
    await call.wait_end()


async def transfer(call: SimulatedCall, agent: SimulatedAgent, bridge: DeepgramBridge) -> None:
    await call.wait_greeting()
    await call.send_dtmf("0")
    await call.wait_end()


async def resume(call: SimulatedCall, agent: SimulatedAgent, bridge: DeepgramBridge) -> None:
    await call.wait_greeting()
    await call.drop()
    await call.resume()
    await call.say("thank_you")
    await call.wait_answer()
    await call.hang_up()


SCENES: dict[str, tuple[Scene, dict[str, Any]]] = {
    "question": (question, {}),
    "barge_in": (barge_in, {"barge_in": True}),
    "dtmf": (dtmf, {}),
    "hang_up_by_the_bot": (hang_up_by_the_bot, {}),
    "transfer": (transfer, {}),
    "resume": (resume, {"resume_after_s": 600.0}),
    "no_common_format": (question, {"formats": ("raw/opus",)}),
}


def make_bridge() -> DeepgramBridge:
    bridge = DeepgramBridge(configuration(greeting=GREETING))

    @bridge.on("activity")
    async def keys(session: Any, event: Any) -> None:
        if event.activity.get("value") == "9":
            await session.end_session("all said")
        elif event.activity.get("value") == "0":
            await session.transfer("tel:+49301234567", handover_reason="a person is wanted")

    return bridge


async def record(name: str, redis_url: str) -> list[Line]:
    """Play one scene and return what passed."""
    scene, plan = SCENES[name]
    bridge = make_bridge()
    async with (
        SimulatedAgent(AgentScript(think_s=0.1)) as agent,
        running(bridge, redis_url, agent) as app,
        Recorder(app.url).listening() as recorder,
        SimulatedCall(recorder.url, CallPlan(**{"turn_timeout_s": SECONDS, **plan})) as call,
    ):
        await call.connect()
        with contextlib.suppress(CallProblem):
            await call.initiate()
            await scene(call, agent, bridge)
    assert call.report().violations == []
    return recorder.lines


def write(name: str, lines: Iterable[Line]) -> None:
    """Keep a recording; chunks of audio in a row become one line."""
    text = "\n".join(json.dumps(line) for line in _short(lines))
    (FOLDER / f"{name}.jsonl").write_text(text + "\n")


def shape(lines: Iterable[Line]) -> dict[str, list[str]]:
    """What each side said, by type, in order; chunks in a row count once. When VAIC begins and ceases to listen is a
    matter of moments, and left out."""
    said: dict[str, list[str]] = {"vaic": [], "bridge": []}
    for line in lines:
        if "from" not in line:
            continue
        message = line["message"]
        kind = message["type"]
        if kind in LISTENING:
            continue
        if kind == "activities":
            kind += " " + " ".join(str(activity.get("name")) for activity in message["activities"])
        kind = re.sub(r"\.chunk$", ".chunk …", kind)
        if said[line["from"]][-1:] != [kind]:
            said[line["from"]].append(kind)
    return said


def _short(lines: Iterable[Line]) -> Iterable[Line]:
    def key(line: Line) -> tuple[Any, ...]:
        message = line.get("message", {})
        audio = str(message.get("type", "")).endswith(".chunk")
        return (line.get("from"), message.get("type"), message.get("streamId")) if audio else (id(line),)

    for _, group in itertools.groupby(lines, key):
        some = list(group)
        yield some[0] if len(some) == 1 else {**some[0], "times": len(some)}


async def main() -> None:
    from conftest import RedisServer

    server = RedisServer()
    try:
        for name in SCENES:
            lines = await record(name, server.url)
            write(name, lines)
            print(f"{name}: {len(lines)} messages")
    finally:
        server.stop()


if __name__ == "__main__":
    asyncio.run(main())
