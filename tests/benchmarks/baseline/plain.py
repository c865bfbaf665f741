"""The bridge that people would otherwise run: one process, no Redis, written the straightforward way.

    python plain.py --port 0 --agent-url ws://127.0.0.1:PORT [--uvloop]

It prints `ready PORT`. One WebSocket from VAIC and one to the agent for each call, JSON and base64 from the standard
library, audio passed on as it comes, the transcript in a list. No pacing, no recovery, no metrics, no limits.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

FORMATS = {"raw/mulaw": ("mulaw", 8000), "raw/lpcm16": ("linear16", 16000), "raw/lpcm16_8": ("linear16", 8000)}


class Call:
    """One call: VAIC's socket and the agent's."""

    def __init__(self, vaic: ServerConnection, agent_url: str) -> None:
        self.vaic, self.agent_url = vaic, agent_url
        self.agent: ClientConnection | None = None
        self.format = ""
        self.cid = ""
        self.streams = 0
        self.playing = False
        self.transcript: list[dict[str, str]] = []
        self.reader: asyncio.Task[None] | None = None

    async def send(self, kind: str, **fields: Any) -> None:
        await self.vaic.send(json.dumps({"type": kind, "conversationId": self.cid, **fields}))

    async def run(self) -> None:
        try:
            async for message in self.vaic:
                if not await self.from_vaic(json.loads(message)):
                    break
        except ConnectionClosed:
            pass
        finally:
            if self.reader is not None:
                self.reader.cancel()
            if self.agent is not None:
                await self.agent.close()

    async def from_vaic(self, message: dict[str, Any]) -> bool:
        match message["type"]:
            case "userStream.chunk":
                if self.agent is not None:
                    await self.agent.send(base64.b64decode(message["audioChunk"]))
            case "session.initiate":
                self.cid = message["conversationId"]
                offered = message.get("supportedMediaFormats", [])
                self.format = next((name for name in offered if name in FORMATS), "")
                if not self.format:
                    await self.send("session.error", reason="No common media format")
                    return False
                await self.open_agent()
                await self.send("session.accepted", mediaFormat=self.format)
            case "userStream.start":
                await self.send("userStream.started")
            case "userStream.stop":
                await self.send("userStream.stopped")
            case "connection.validate":
                await self.send("connection.validated", success=True)
            case "session.end":
                return False
        return True

    async def open_agent(self) -> None:
        self.agent = await connect(self.agent_url, compression=None, max_size=None)
        await self.agent.recv()  # Welcome
        encoding, rate = FORMATS[self.format]
        audio = {
            "input": {"encoding": encoding, "sample_rate": rate},
            "output": {"encoding": encoding, "sample_rate": rate, "container": "none"},
        }
        agent = {
            "listen": {"provider": {"type": "deepgram", "model": "nova-3"}},
            "think": {"provider": {"type": "open_ai", "model": "gpt-4o-mini"}, "prompt": "You are the parcel desk."},
            "speak": {"provider": {"type": "deepgram", "model": "aura-2-thalia-en"}},
        }
        await self.agent.send(json.dumps({"type": "Settings", "audio": audio, "agent": agent}))
        while json.loads(await self.agent.recv())["type"] != "SettingsApplied":
            pass
        self.reader = asyncio.create_task(self.read_agent())

    async def read_agent(self) -> None:
        assert self.agent is not None
        try:
            async for message in self.agent:
                if isinstance(message, bytes):
                    await self.speak(message)
                else:
                    await self.from_agent(json.loads(message))
        except ConnectionClosed:
            await self.vaic.close()

    async def speak(self, audio: bytes) -> None:
        if not self.playing:
            self.playing = True
            self.streams += 1
            await self.send("playStream.start", streamId=str(self.streams), mediaFormat=self.format)
        chunk = base64.b64encode(audio).decode()
        await self.send("playStream.chunk", streamId=str(self.streams), audioChunk=chunk)

    async def stop(self) -> None:
        if self.playing:
            self.playing = False
            await self.send("playStream.stop", streamId=str(self.streams))

    async def from_agent(self, message: dict[str, Any]) -> None:
        match message["type"]:
            case "ConversationText":
                self.transcript.append({"role": message["role"], "content": message["content"]})
                if message["role"] == "user":
                    await self.send("userStream.speech.recognition", alternatives=[{"text": message["content"]}])
            case "UserStartedSpeaking":
                await self.stop()
                await self.send("userStream.speech.started")
            case "AgentAudioDone":
                await self.stop()


async def main(port: int, agent_url: str) -> None:
    """Serve until the process is ended."""
    async with serve(
        lambda socket: Call(socket, agent_url).run(), "127.0.0.1", port, compression=None, max_size=2**20
    ) as server:
        print("ready", next(iter(server.sockets)).getsockname()[1], flush=True)
        await server.wait_closed()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--agent-url", required=True)
    parser.add_argument("--uvloop", action="store_true")
    given = parser.parse_args()
    if given.uvloop:
        import uvloop

        uvloop.run(main(given.port, given.agent_url))
    else:
        asyncio.run(main(given.port, given.agent_url))
