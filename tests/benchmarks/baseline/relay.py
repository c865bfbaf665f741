"""The lower bound: a relay that does for the load what must be done for each frame, and nothing else.

    python relay.py --port 0 --agent-url ws://127.0.0.1:PORT

It prints `ready PORT`. One process, uvloop, `asyncio.Protocol` on both sides, frames parsed where they arrive: base64
in, binary out, and back. It is no bridge: it knows only the messages that the load sends, in the form in which the load
sends them. Anything else ends the process with exit code 1, because a relay that skips frames is cheap for the wrong
reason; `check_relay.py` compares what goes in with what comes out.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
import os
import sys
import traceback
from binascii import a2b_base64, b2a_base64
from typing import Any, cast
from urllib.parse import urlsplit

import orjson
import uvloop
from websockets.speedups import apply_mask

TEXT, BINARY, CLOSE = 1, 2, 8
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_ZERO = b"\0\0\0\0"
_AUDIO = b'{"type":"userStream.chunk"'
_SETTINGS = orjson.dumps(
    {
        "type": "Settings",
        "audio": {
            "input": {"encoding": "mulaw", "sample_rate": 8000},
            "output": {"encoding": "mulaw", "sample_rate": 8000, "container": "none"},
        },
        "agent": {},
    }
)


class WrongFrame(Exception):
    """A frame that this relay cannot carry."""


def header(opcode: int, length: int, masked: int) -> bytes:
    """The first bytes of a frame; a client's mask (`masked` = 0x80) is zero, so that the payload stays as it is."""
    if length < 126:
        head = bytes((0x80 | opcode, masked | length))
    elif length < 65536:
        head = bytes((0x80 | opcode, masked | 126, length >> 8, length & 0xFF))
    else:
        head = bytes((0x80 | opcode, masked | 127)) + length.to_bytes(8, "big")
    return head + _ZERO if masked else head


class Side(asyncio.Protocol):
    """What both sides have in common: frames out of bytes."""

    peer_masks = 0

    def __init__(self) -> None:
        self._rest = b""
        self._shaken = False
        self.closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def shake(self, head: bytes) -> None:
        """The HTTP part is there."""
        raise NotImplementedError

    def frame(self, opcode: int, payload: bytes) -> None:
        """A whole message."""
        raise NotImplementedError

    def data_received(self, data: bytes) -> None:
        buffer = self._rest + data if self._rest else data
        at = 0
        if not self._shaken:
            at = buffer.find(b"\r\n\r\n") + 4
            if at < 4:
                self._rest = buffer
                return
            self._shaken = True
            self.shake(buffer[:at])
        end = len(buffer)
        while end - at >= 2:
            first, second = buffer[at], buffer[at + 1]
            if first & 0xF0 != 0x80 or second & 0x80 != self.peer_masks:
                raise WrongFrame(f"{type(self).__name__}: a frame begins with {buffer[at : at + 14]!r}")
            length, start = second & 0x7F, at + 2
            if length == 126:
                if end < at + 4:
                    break
                length, start = buffer[at + 2] << 8 | buffer[at + 3], at + 4
            elif length == 127:
                if end < at + 10:
                    break
                length, start = int.from_bytes(buffer[at + 2 : at + 10], "big"), at + 10
            if self.peer_masks:
                start += 4
            if end < start + length:
                break
            payload = buffer[start : start + length]
            if self.peer_masks and (mask := buffer[start - 4 : start]) != _ZERO:
                payload = apply_mask(payload, mask)
            at = start + length
            self.frame(first & 0x0F, payload)
        self._rest = buffer[at:] if at else buffer

    def close(self) -> None:
        """Close this side, once."""
        if not self.closed:
            self.closed = True
            self.transport.write(header(CLOSE, 2, 0x80 - self.peer_masks) + b"\x03\xe8")
            self.transport.close()


class Vaic(Side):
    """The caller's side of a call."""

    peer_masks = 0x80

    def __init__(self, agent_url: str) -> None:
        super().__init__()
        self._agent_url = agent_url
        self._agent: Agent | None = None
        self.cid = b""

    def shake(self, head: bytes) -> None:
        begins = head.lower().index(b"sec-websocket-key:") + len(b"sec-websocket-key:")
        key = head[begins : head.index(b"\r\n", begins)].strip()
        accept = base64.b64encode(hashlib.sha1(key + _GUID).digest())
        self.transport.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
        )

    def frame(self, opcode: int, payload: bytes) -> None:
        if opcode == TEXT and payload.startswith(_AUDIO):
            agent = self._agent
            if agent is None:
                raise WrongFrame("audio before the agent is there")
            begins = payload.index(b'"audioChunk":"', 26) + 14
            audio = a2b_base64(payload[begins : payload.index(b'"', begins)])
            agent.transport.write(header(BINARY, len(audio), 0x80) + audio)
        elif opcode == TEXT:
            self._message(orjson.loads(payload))
        elif opcode == CLOSE:
            self.close()
        else:
            raise WrongFrame(f"from VAIC: opcode {opcode}")

    def _message(self, message: dict[str, Any]) -> None:
        match message["type"]:
            case "session.initiate":
                self.cid = message["conversationId"].encode()
                connecting = asyncio.ensure_future(self._connect())
                connecting.add_done_callback(lambda done: done.result())
            case "userStream.start":
                self.say(b"userStream.started", b"")
            case "activities":
                pass
            case "session.end":
                self.close()
            case other:
                raise WrongFrame(f"from VAIC: {other}")

    async def _connect(self) -> None:
        parts = urlsplit(self._agent_url)
        _, self._agent = await asyncio.get_running_loop().create_connection(
            lambda: Agent(self, parts.netloc, parts.path or "/"), parts.hostname, parts.port
        )

    def say(self, kind: bytes, more: bytes) -> None:
        """Send a message; `more` is what follows in it."""
        payload = b'{"type":"' + kind + b'","conversationId":"' + self.cid + b'"' + more + b"}"
        self.transport.write(header(TEXT, len(payload), 0) + payload)

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True
        if self._agent is not None:
            self._agent.close()


class Agent(Side):
    """The agent's side of a call."""

    def __init__(self, vaic: Vaic, host: str, path: str) -> None:
        super().__init__()
        self._vaic, self._host, self._path = vaic, host, path
        self._streams = 0
        self._playing = False
        self._head = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        key = base64.b64encode(os.urandom(16)).decode()
        self.transport.write(
            f"GET {self._path} HTTP/1.1\r\nHost: {self._host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )

    def shake(self, head: bytes) -> None:
        if not head.startswith(b"HTTP/1.1 101 "):
            raise WrongFrame(f"the agent refused the upgrade: {head[:100]!r}")

    def frame(self, opcode: int, payload: bytes) -> None:
        vaic = self._vaic
        if opcode == BINARY:
            if not self._playing:
                self._play()
            audio = self._head + b2a_base64(payload, newline=False) + b'"}'
            vaic.transport.write(header(TEXT, len(audio), 0) + audio)
        elif opcode == TEXT:
            self._message(orjson.loads(payload))
        elif opcode == CLOSE:
            self.close()
        else:
            raise WrongFrame(f"from the agent: opcode {opcode}")

    def _play(self) -> None:
        self._playing = True
        self._streams += 1
        stream = str(self._streams).encode()
        self._vaic.say(b"playStream.start", b',"streamId":"' + stream + b'","mediaFormat":"raw/mulaw"')
        self._head = (
            b'{"type":"playStream.chunk","conversationId":"'
            + self._vaic.cid
            + b'","streamId":"'
            + stream
            + b'","audioChunk":"'
        )

    def _stop(self) -> None:
        if self._playing:
            self._playing = False
            self._vaic.say(b"playStream.stop", b',"streamId":"' + str(self._streams).encode() + b'"')

    def _message(self, message: dict[str, Any]) -> None:
        match message["type"]:
            case "Welcome":
                self.transport.write(header(TEXT, len(_SETTINGS), 0x80) + _SETTINGS)
            case "SettingsApplied":
                self._vaic.say(b"session.accepted", b',"mediaFormat":"raw/mulaw"')
            case "UserStartedSpeaking" | "AgentAudioDone":
                self._stop()
            case "ConversationText" | "AgentStartedSpeaking":
                pass
            case other:
                raise WrongFrame(f"from the agent: {other}")

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True
        self._vaic.close()


def give_up(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Whatever goes wrong ends the process: its figures would be worth nothing."""
    error = context.get("exception")
    if error is None:
        print(f"relay: {context.get('message')}", file=sys.stderr, flush=True)
    else:
        traceback.print_exception(error)
        sys.stderr.flush()
    os._exit(1)


async def main(port: int, agent_url: str) -> None:
    """Serve until the process is ended."""
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(give_up)
    server = await loop.create_server(lambda: Vaic(agent_url), "127.0.0.1", port, backlog=1024)
    print("ready", server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--agent-url", required=True)
    given = parser.parse_args()
    uvloop.run(main(given.port, given.agent_url))
