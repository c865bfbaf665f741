"""The streams between pods: each reads one (`Inbox`, here) and writes to others' (`Outbox`).

Frames may arrive twice (a write whose outcome is unknown is made again) and, when Redis loses data, not at all; the
link above numbers, acknowledges and re-sends them. What is promised here is the order per destination.

    XADD inbox:<pod> NOMKSTREAM MAXLEN ~ 20000 * f <sender pod> b <msgpack array of frames>
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from bridge_shared import logs, metrics
from bridge_shared.errors import BridgeError, RedisRefused, RedisUnavailable
from bridge_shared.frames import Frame, FrameError, unpack
from bridge_shared.redis import scripts
from bridge_shared.redis.connection import Server
from bridge_shared.redis.outbox import Outbox
from bridge_shared.redis.wire import Backoff, ScriptMissing, count
from bridge_shared.redis.wire import pack as resp

__all__ = ["Inbox", "Outbox"]

log = logs.get("redis")

BLOCK_MS: Final = 250
"""An XREAD without news returns after this."""

WATCHDOG_SECONDS: Final = 1.5
"""A blocking read that is late by this is given up. Redis pauses of up to 1.5 s are ordinary."""

TTL_SECONDS: Final = 60
"""An inbox without a reader is gone after this."""

TEND_SECONDS: Final = 0.25
"""How often the reader renews the TTL and looks whether the stream is still the one it knows."""

TRIM_SECONDS: Final = 1.0
"""How often entries that were delivered are deleted."""

READ_ENTRIES: Final = 512
"""Entries per XREAD: after a stall the backlog comes in portions, with a turn of the event loop between them."""


class Inbox:
    """The reader of `inbox:<pod>`; the only one who creates it.

    Args:
        deliver: called in the loop with the sender and its frames, in order. What it raises is logged and counted.
        lost: called when the stream was gone or went back in time and was opened anew: frames were lost, and the
            peer of every call should be greeted (HELLO).
    """

    def __init__(
        self,
        server: Server,
        pod: str,
        deliver: Callable[[str, list[Frame]], None],
        *,
        lost: Callable[[], None] | None = None,
    ) -> None:
        self._key = f"inbox:{pod}"
        self._deliver, self._lost = deliver, lost
        self._server = server
        self._wire = server.dedicated("inbox", key=self._key)
        self._cursor = "0-0"
        self._told: set[tuple[str, str]] = set()
        self._tend_by_text, self._tend_at = False, 0.0
        self.entries = 0
        self.unreadable = 0
        self.failed = 0

    async def open(self) -> None:
        """Create the stream, so that others may write. Errors of the connection pass through. Safe to cancel."""
        await self._server.script(scripts.OPEN_INBOX, [self._key], [TTL_SECONDS])

    async def run(self) -> None:
        """Read and deliver for ever, through any outage. Cancelling stops it between two deliveries."""
        backoff = Backoff()
        away = False
        try:
            while True:
                try:
                    await self._wire.open()
                    if away:
                        log.info("reading the inbox again")
                        away = False
                    backoff.reset()
                    await self._read()
                except (RedisUnavailable, RedisRefused) as error:
                    # A reply may still be owed, and the next one would be taken for it.
                    self._wire.drop()
                    if "WRONGTYPE" in str(error):
                        await self._clear()
                    if not away:
                        log.warning("cannot read the inbox", cause=error)
                        away = True
                    count(error)
                    await backoff.sleep()
        finally:
            await self._wire.close()

    async def close(self) -> None:
        """Delete the stream, after `run` has been cancelled. Safe to cancel: it expires by itself."""
        await self._server.execute("DEL", self._key)

    async def _clear(self) -> None:
        """Something else stands under our name, which is nobody's but ours; next time the inbox is found gone."""
        try:
            await self._server.execute_again("DEL", self._key)
        except (RedisUnavailable, RedisRefused) as error:
            count(error)

    async def _read(self) -> None:
        wire = self._wire
        trim_at = 0.0
        while True:
            now = time.monotonic()
            self._tend_at = now + TEND_SECONDS
            trim = ""
            if now >= trim_at and self._cursor != "0-0":
                trim, trim_at = self._cursor, now + TRIM_SECONDS
            wire.expect(BLOCK_MS / 1000 + WATCHDOG_SECONDS)
            await wire.send(self._tend(trim), self._ask())
            await self._tended()
            await wire.listen(self._heard)

    def _ask(self) -> bytes:
        # From a concrete id: "$" would skip what arrived between two reads.
        return resp("XREAD", "COUNT", READ_ENTRIES, "BLOCK", BLOCK_MS, "STREAMS", self._key, self._cursor)

    def _heard(self, reply: Any) -> bool:
        """What XREAD has read. Asks for more at once, unless the stream is to be tended first."""
        if isinstance(reply, BridgeError):
            raise reply
        if reply:
            for entry, fields in reply[0][1]:
                self._cursor = entry.decode()
                self._entry(fields)
        if time.monotonic() >= self._tend_at:
            return False
        self._wire.expect(BLOCK_MS / 1000 + WATCHDOG_SECONDS)
        self._wire.write(self._ask())
        return True

    def _tend(self, trim: str) -> bytes:
        script = scripts.TEND_INBOX
        if self._tend_by_text:
            self._tend_by_text = False
            return resp("EVAL", script.source, 1, self._key, TTL_SECONDS, trim)
        return resp("EVALSHA", script.sha, 1, self._key, TTL_SECONDS, trim)

    async def _tended(self) -> None:
        try:
            last = await self._wire.reply()
        except ScriptMissing:
            self._tend_by_text = True
            return
        if last is None:
            await self._reopen("gone")
            return
        last_ms, last_seq = _id(last.decode())
        ms, seq = _id(self._cursor)
        if (last_ms, last_seq) < (ms, seq):
            # An older replica, or a new stream whose server's clock is behind.
            await self._reopen("older than what was read")
        elif ms:
            metrics.inbox_lag_seconds.observe((last_ms - ms) / 1000)

    async def _reopen(self, why: str) -> None:
        log.warning("the inbox was lost, frames with it", cause=why)
        await self.open()
        self._cursor = "0-0"
        if self._lost is not None:
            try:
                self._lost()
            except Exception as error:  # noqa: BLE001  the inbox is there again, whatever its user makes of it
                self._failed("", error)

    def _entry(self, fields: list[bytes]) -> None:
        self.entries += 1
        try:
            named = dict(zip(fields[::2], fields[1::2], strict=False))
            sender = named[b"f"].decode()
            frames = unpack(named[b"b"], metrics.frames_skipped.inc)
        except (KeyError, UnicodeDecodeError, FrameError) as error:
            self.unreadable += 1
            metrics.frames_skipped.inc()
            self._tell("", error, "an inbox entry cannot be read")
            return
        if frames:
            try:
                self._deliver(sender, frames)
            except Exception as error:  # noqa: BLE001  a fault of one call must not stop the frames of all others
                self._failed(sender, error)

    def _failed(self, sender: str, error: Exception) -> None:
        self.failed += 1
        self._tell(sender, error, "frames could not be handled")

    def _tell(self, sender: str, error: Exception, message: str) -> None:
        """Once per sender and kind of error: a pod that sends nonsense sends much of it."""
        kind = (sender, type(error).__name__)
        if kind not in self._told and len(self._told) < 1000:
            self._told.add(kind)
            log.error(message, sender=sender, exc_info=error)


def _id(text: str) -> tuple[int, int]:
    ms, _, seq = text.partition("-")
    return int(ms), int(seq or 0)
