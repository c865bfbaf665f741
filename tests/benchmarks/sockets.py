"""A WebSocket for the load: as little work per message as Python allows, so that what is measured is the bridge.

Whole messages only, no extensions. A client's mask is zero, which RFC 6455 allows and which costs nothing.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
from collections.abc import Callable
from typing import cast
from urllib.parse import urlsplit

from websockets.speedups import apply_mask

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class WebSocket(asyncio.Protocol):
    """One connection, of either side.

    Args:
        message: called with the opcode and the payload of each text or binary message.
        opened: called when messages may be sent.
        closed: called when the connection is gone.
        url: where a client connects to; empty for the server's side.
    """

    def __init__(
        self,
        message: Callable[[int, bytes], None],
        opened: Callable[[], None],
        closed: Callable[[], None] = lambda: None,
        url: str = "",
    ) -> None:
        self._message, self._opened, self._closed = message, opened, closed
        self._url = url
        self._buffer = b""
        self._open = False
        self._mask = b"\0\0\0\0" if url else b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name
        if self._url:
            parts = urlsplit(self._url)
            key = base64.b64encode(os.urandom(16)).decode()
            transport.write(
                f"GET {parts.path or '/'} HTTP/1.1\r\nHost: {parts.netloc}\r\n"
                "Upgrade: websocket\r\nConnection: Upgrade\r\n"
                f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
            )

    def connection_lost(self, error: Exception | None) -> None:
        self._closed()

    def send(self, opcode: int, payload: bytes) -> None:
        """Send one message."""
        length, bit = len(payload), 0x80 if self._mask else 0
        if length < 126:
            head = bytes((0x80 | opcode, bit | length))
        elif length < 65536:
            head = bytes((0x80 | opcode, bit | 126)) + length.to_bytes(2, "big")
        else:
            head = bytes((0x80 | opcode, bit | 127)) + length.to_bytes(8, "big")
        self.transport.write(head + self._mask + payload)

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer + data if self._buffer else data
        at = 0
        if not self._open:
            at = buffer.find(b"\r\n\r\n") + 4
            if at < 4:
                self._buffer = buffer
                return
            self._handshake(buffer[:at])
        while (left := len(buffer) - at) >= 2:
            masked, length, head = buffer[at + 1] & 0x80, buffer[at + 1] & 0x7F, 2
            if length == 126:
                head, length = 4, int.from_bytes(buffer[at + 2 : at + 4], "big") if left >= 4 else 65536
            elif length == 127:
                head, length = 10, int.from_bytes(buffer[at + 2 : at + 10], "big") if left >= 10 else 65536
            start = at + head + (4 if masked else 0)
            if len(buffer) < start + length:
                break
            payload = buffer[start : start + length]
            if masked and (mask := buffer[start - 4 : start]) != b"\0\0\0\0":
                payload = apply_mask(payload, mask)
            opcode = buffer[at] & 0x0F
            at = start + length
            if opcode <= BINARY:
                self._message(opcode, payload)
            elif opcode == PING:
                self.send(PONG, payload)
            elif opcode == CLOSE:
                self.send(CLOSE, payload[:2])
                self.transport.close()
        self._buffer = buffer[at:]

    def _handshake(self, head: bytes) -> None:
        self._open = True
        if self._url:
            if b" 101 " not in head.split(b"\r\n", 1)[0]:
                raise ConnectionError(f"the bridge refused the upgrade: {head[:200]!r}")
        else:
            begins = head.lower().index(b"sec-websocket-key:") + len(b"sec-websocket-key:")
            key = head[begins : head.index(b"\r\n", begins)].strip()
            accept = base64.b64encode(hashlib.sha1(key + _GUID).digest())
            self.transport.write(
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
            )
        self._opened()
