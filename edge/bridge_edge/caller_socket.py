"""A caller's socket that keeps to the limits: websockets' own, with what a hostile peer could overdo counted."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode, Frame, Opcode

from bridge_edge.limits import (
    BURST_SECONDS,
    HEAD_BYTES,
    MESSAGE_UNIT,
    MOST_FRAGMENTS,
    PINGS_AT_ONCE,
    PINGS_PER_SECOND,
    UNREAD_BYTES,
    Crowd,
    Lines,
    Rate,
)
from bridge_shared import logs, metrics
from bridge_shared.config import Settings
from bridge_shared.direct import Direct, Message

log = logs.get("edge.limits")


class Guard:
    """The limits of one pod, shared by all its sockets."""

    def __init__(self, settings: Settings, loop: asyncio.AbstractEventLoop) -> None:
        self.settings = settings
        self._loop = loop
        self.crowd = Crowd(settings.connections or 3 * settings.edge_calls, settings.connections_per_address)
        self._lines = Lines()

    def refused(self, reason: str, remote: str, **more: str) -> None:
        """Count a refusal; a line in the log, once a second for each reason."""
        metrics.calls_refused.labels(reason=reason).inc()
        if (unsaid := self._lines.due(reason, self._loop.time())) is not None:
            log.warning("connection refused", reason=reason, remote=remote, unsaid=unsaid, **more)


class CallerSocket(Direct, ServerConnection):
    """One accepted TCP connection.

    What breaks a limit loses the connection without an answer: a peer that does not read or does not end its
    sentence would not hear one. Messages that come too fast are only read later, so that TCP slows their sender.
    """

    def __init__(self, guard: Guard, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        settings = guard.settings
        self._guard = guard
        self._address = ""
        self._entered = self._understood = self._spoke = self._dropped = self._slowed = False
        self._head = self._fragments = 0
        self._since = self._heard_at = self.loop.time()
        self._pings = Rate(PINGS_PER_SECOND, PINGS_AT_ONCE, self._since)
        per_second = settings.messages_per_second
        self._messages = Rate(per_second, per_second * BURST_SECONDS, self._since)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        peer = transport.get_extra_info("peername")
        self._address = str(peer[0]) if peer else ""
        super().connection_made(transport)
        reason = self._guard.crowd.enter(self._address)
        self._entered = reason is None
        if reason is not None:
            self._drop(reason)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._entered:
            self._guard.crowd.leave(self._address)
            late = self.loop.time() - self._since >= self._guard.settings.handshake_timeout * 0.99
            if not self._understood and late:
                self._guard.refused("handshake", self._address)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._dropped:
            return
        if not self._understood:
            self._head += len(data)
            if self._head > HEAD_BYTES:
                return self._drop("head")
        self._heard_at = self.loop.time()
        super().data_received(data)
        if not self._dropped and self.transport.get_write_buffer_size() > UNREAD_BYTES:
            self._drop("not_reading")

    def process_event(self, event: Any) -> None:
        if self._dropped:
            return
        if self._understood:
            frame: Frame = event
            if frame.opcode is Opcode.PING:
                if self._pings.take(self.loop.time()) > 0.0:
                    return self._drop("pings")
            elif frame.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
                self._fragments = 0 if frame.fin else self._fragments + 1
                if self._fragments > MOST_FRAGMENTS:
                    return self._drop("fragments")
        self._understood = True
        super().process_event(event)

    async def keepalive(self) -> None:
        """Ping the line when nothing has come for `ping_interval`; close it if the answer does not come within
        `ping_timeout`. In place of websockets' own, which pings a caller who is talking as well."""
        assert self.ping_interval is not None
        while True:
            due = self._heard_at + self.ping_interval
            if self.loop.time() < due:
                await asyncio.sleep(due - self.loop.time())
                continue
            try:
                pong = await self.ping()
                async with asyncio.timeout(self.ping_timeout):
                    await pong
            except ConnectionClosed:
                return
            except TimeoutError:
                with contextlib.suppress(ConnectionClosed):
                    async with self.send_context():
                        self.protocol.fail(CloseCode.INTERNAL_ERROR, "keepalive ping timeout")
                return

    async def recv(self, decode: bool | None = None) -> Any:
        """The next message, not sooner than the caller's rate allows.

        Raises:
            TimeoutError: the first one did not come within BRIDGE_FIRST_MESSAGE_TIMEOUT.
        """
        if self._spoke:
            return await super().recv(decode)
        async with asyncio.timeout(self._guard.settings.first_message_timeout):
            message = await super().recv(decode)
        self._spoke = True
        return message

    def direct(self, size: int) -> bool:
        return self._messages.spare(self.loop.time(), 1 + size // MESSAGE_UNIT)

    async def pace(self, message: Message) -> None:
        if (wait := self._messages.take(self.loop.time(), 1 + len(message) // MESSAGE_UNIT)) > 0.0:
            if not self._slowed:
                self._slowed = True
                log.warning("messages come too fast, slowing the caller down", remote=self._address)
            metrics.bad_input.labels(code="too_fast").inc()
            await asyncio.sleep(wait)

    def _drop(self, reason: str) -> None:
        self._dropped = True
        self._guard.refused(reason, self._address)
        self.transport.abort()
