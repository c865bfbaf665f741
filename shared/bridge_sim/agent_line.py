"""What a simulated agent says on one socket: the only door through which it sends."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed

from bridge_shared.protocol.deepgram import AgentServer
from bridge_sim.agent_record import MOST_NOTES, Record
from bridge_sim.agent_script import Faults


class Line:
    """The outgoing side of one connection.

    Cancelling a send is safe: the frame has been handed to the socket, only the wait for the client's reading is given
    up. A client that is gone is not an error here; the reader of the connection notices it.

    Attributes:
        server: the protocol machine, which builds the messages.
        record: what was sent and heard.
        conversation: the seeded context and all History since, oldest first.
        silent: nothing is sent any more, while the socket stays open.
        error_code: of the Error that was sent, or None.
    """

    def __init__(self, socket: ServerConnection, server: AgentServer, record: Record, faults: Faults) -> None:
        self.server, self.record = server, record
        self.conversation: list[dict[str, Any]] = []
        self.silent = False
        self.error_code: str | None = None
        self._socket = socket
        self._faults = faults

    async def send(self, message: bytes) -> None:
        """One JSON message."""
        if not self.silent:
            try:
                await self._socket.send(message, text=True)
            except ConnectionClosed:
                self.silent = True

    async def send_audio(self, data: bytes) -> None:
        if not self.silent:
            try:
                await self._socket.send(data)
            except ConnectionClosed:
                self.silent = True
            else:
                self.record.speak(data)

    async def text(self, role: str, content: str) -> None:
        """A ConversationText and its History (§4.3)."""
        if self._faults.unknown_messages:
            await self.send(orjson.dumps({"type": "AgentDaydreaming", "about": ["sheep", None, 1.5]}))
            await self.send(
                orjson.dumps({"type": "ConversationText", "role": role, "content": content, "mood": "fine"})
            )
        else:
            await self.send(self.server.text(role, content))
        if not self.silent:
            self.record.text(role, content, asyncio.get_running_loop().time())
        await self.history({"role": role, "content": content})

    async def history(self, item: dict[str, Any]) -> None:
        self.conversation.append({"type": "History", **item})
        del self.conversation[:-MOST_NOTES]
        if self.server.history_enabled:
            await self.send(self.server.history(item))

    async def error(self, code: str, description: str) -> None:
        """An Error, after which nothing is sent; the socket stays open until `close`."""
        message = self.server.error(code, description)
        self.error_code = code
        await self.send(message)
        self.silent = True

    async def close(self, code: int) -> None:
        """Close with that code; 1005 closes without one and 1006 breaks TCP off. Waits for the client's answer."""
        self.silent = True
        if code == 1006:
            self._socket.transport.abort()
        elif code == 1005:
            try:
                async with self._socket.send_context():
                    self._socket.protocol.send_close()
            except ConnectionClosed:
                return  # which was the aim
        else:
            await self._socket.close(code)

    def freeze(self) -> None:
        """Neither send nor read any more: pings stay unanswered, as with a stopped process or a dead network."""
        self.silent = True
        self._socket.transport.pause_reading()
