"""The agents of the load: a Voice Agent that echoes every frame at once, or that answers every eight seconds.

    python agents.py --load echo|talk

It prints `ready PORT`; on its standard input `begin` starts a measurement and `end` prints what was measured, as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import sys

import orjson
import stamps
import uvloop
from sockets import BINARY, TEXT, WebSocket

CYCLE_SECONDS, TURN_SECONDS, SPEED = 8.0, 4.0, 4.0
"""An answer of four seconds every eight, sent four times faster than real time, as Deepgram does (§6)."""

BYTES_PER_SECOND = 8000
PIECE = 800


class Agent:
    """One connection."""

    def __init__(self, server: Agents) -> None:
        self._server = server
        self._ready = False
        self._numbers = itertools.count(1)
        self._timer: asyncio.TimerHandle | None = None
        self.socket = WebSocket(self._message, self._opened, self._closed)

    def _json(self, **message: object) -> None:
        self.socket.send(TEXT, orjson.dumps(message))

    def _opened(self) -> None:
        self._json(type="Welcome", request_id="load")

    def _closed(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _message(self, opcode: int, payload: bytes) -> None:
        server = self._server
        if opcode == BINARY:
            server.frames += 1
            if (found := stamps.read(payload)) is not None:
                server.delays.note(found[1])
            if server.load == "echo":
                self.socket.send(BINARY, payload)
        elif b'"Settings"' in payload and not self._ready:
            self._ready = True
            self._json(type="SettingsApplied")
            if server.load == "talk":
                server.count += 1
                phase = (server.count * 0.618034 % 1.0) * CYCLE_SECONDS
                self._timer = server.loop.call_later(phase, self._answer)

    def _answer(self) -> None:
        loop, number = self._server.loop, next(self._numbers)
        self._timer = loop.call_later(CYCLE_SECONDS, self._answer)
        self._json(type="UserStartedSpeaking")
        self._json(type="ConversationText", role="user", content=f"This is question number {number}, isn't it?")
        self._json(type="ConversationText", role="assistant", content=f"It is. This is answer number {number}.")
        self._json(type="AgentStartedSpeaking", total_latency=0.4, tts_latency=0.2, ttt_latency=0.2)
        pieces = int(TURN_SECONDS * BYTES_PER_SECOND / PIECE)
        for piece in range(pieces):
            loop.call_later(piece * PIECE / BYTES_PER_SECOND / SPEED, self._speak, number, piece == pieces - 1)

    def _speak(self, number: int, last: bool) -> None:
        if self.socket.transport.is_closing():
            return
        self.socket.send(BINARY, stamps.stamp(number) + bytes(PIECE - stamps.SIZE))
        if last:
            self._json(type="AgentAudioDone")


class Agents:
    """The server of all of them."""

    def __init__(self, load: str) -> None:
        self.loop = asyncio.get_running_loop()
        self.load = load
        self.delays = stamps.Delays()
        self.frames = self.count = 0


async def main(load: str) -> None:
    """Serve until the standard input ends."""
    agents = Agents(load)
    server = await agents.loop.create_server(lambda: Agent(agents).socket, "127.0.0.1", 0)
    print("ready", server.sockets[0].getsockname()[1], flush=True)
    stdin = asyncio.StreamReader()
    await agents.loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stdin), sys.stdin)
    while line := await stdin.readline():
        if line.strip() == b"begin":
            agents.frames = 0
            agents.delays.begin()
        else:
            print(json.dumps({"frames": agents.frames, "up": agents.delays.end()}), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--load", choices=("echo", "talk"), required=True)
    uvloop.run(main(parser.parse_args().load))
