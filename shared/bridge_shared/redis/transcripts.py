"""Streams that only the owner of a call can write: the transcript and the function calls.

An entry's id is `<epoch>-<seq>`. A claim wrote and deleted `<epoch>-0`, so Redis itself refuses whatever a former
owner writes afterwards, and refuses a line that is written a second time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from bridge_shared import logs, metrics
from bridge_shared.errors import RedisRefused, RedisUnavailable
from bridge_shared.redis import scripts
from bridge_shared.redis.calls import LIVE_SECONDS
from bridge_shared.redis.connection import Server
from bridge_shared.redis.wire import Backoff, StreamIdTooSmall, count

log = logs.get("redis")

Entry = tuple[str, dict[str, str]]

_MARKER: Final = {"fence": "1"}


class FencedStream:
    """Appends lines with one in flight, and puts right whatever Redis lost.

    After an error, a reconnect or a vanished stream it reads what is there and writes what is missing from memory,
    with the ids it had. A refusal as "equal or smaller" alone never counts as stored, nor as fenced.

    Attributes:
        lines: every line in order, the history included.
        fenced: a higher epoch has written; nothing more is stored until `renew`.
    """

    def __init__(
        self,
        server: Server,
        key: str,
        epoch: int,
        *,
        first_seq: int = 1,
        history: Sequence[Entry] = (),
        on_fenced: Callable[[], None] | None = None,
    ) -> None:
        """
        Args:
            key: `call:{cid}:transcript` or `call:{cid}:functions`.
            epoch: ours, from the claim that created the stream.
            history: what former owners wrote (`Calls.entries`, read after the claim), so that it can be written
                again should Redis lose it.
            on_fenced: called once in the loop when a higher epoch is found; the call may still be ours (a claim of
                our own): read it, then `renew` or give up.
        """
        self._server, self._key = server, key
        self._call = key.rpartition(":")[0]
        self._epoch, self._seq = epoch, first_seq
        self._on_fenced = on_fenced
        self.lines: list[Entry] = [(entry, dict(fields)) for entry, fields in history]
        self._stored = len(self.lines)
        self._counted = len(self.lines)
        self.fenced = False
        self._unsure = True
        self._wake = asyncio.Event()
        self._wake.set()
        self._idle = asyncio.Event()
        self._changed = asyncio.Event()

    def append(self, fields: Mapping[str, str]) -> str:
        """Queue a line; its id, which it keeps whatever happens."""
        entry = f"{self._epoch}-{self._seq}"
        self._seq += 1
        self.lines.append((entry, dict(fields)))
        self._idle.clear()
        self._wake.set()
        return entry

    @property
    def last(self) -> str:
        """Id of the last line, stored or not; empty if there is none."""
        return self.lines[-1][0] if self.lines else ""

    @property
    def pending(self) -> int:
        """Lines not known to be stored."""
        return len(self.lines) - self._stored

    def renew(self, epoch: int) -> None:
        """Go on under an epoch that we claimed anew; lines not stored yet keep the ids they have."""
        self._epoch, self._seq = epoch, 1
        self.fenced = False
        self.verify()

    def verify(self) -> None:
        """Compare with Redis before the next line; for when it may have lost something. Done by itself after errors."""
        self._unsure = True
        self._idle.clear()
        self._wake.set()

    async def run(self) -> None:
        """Store lines for ever, through any outage. Cancelling stops it; the line in flight may be stored or not."""
        backoff = Backoff()
        away = False
        self._server.on_connect.add(self.verify)
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while not self.fenced and (self._unsure or self._stored < len(self.lines)):
                    try:
                        if self._unsure:
                            self._unsure = False
                            await self._compare()
                        else:
                            await self._write()
                    except (RedisUnavailable, RedisRefused) as error:
                        self._unsure = True
                        count(error)
                        if not away:
                            log.warning("lines wait for Redis", key=self._key, cause=error)
                            away = True
                        await backoff.sleep()
                        continue
                    backoff.reset()
                    if away:
                        log.info("lines are stored again", key=self._key)
                        away = False
                if not self.fenced:
                    self._idle.set()
                self._changed.set()
        finally:
            self._server.on_connect.discard(self.verify)

    async def flush(self, timeout: float) -> bool:
        """Wait until every line is stored; False after `timeout` seconds or when fenced. Safe to cancel."""
        try:
            async with asyncio.timeout(timeout):
                while not self._idle.is_set():
                    if self.fenced:
                        return False
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return False
        return True

    async def _write(self) -> None:
        entry, fields = self.lines[self._stored]
        flat = [part for pair in fields.items() for part in pair]
        try:
            reply = await self._server.execute("XADD", self._key, "NOMKSTREAM", entry, *flat)
        except StreamIdTooSmall:
            self._unsure = True  # stored by a write we did not hear back from, or refused by a fence: look
            return
        except RedisRefused as error:
            if "WRONGTYPE" not in str(error):
                raise
            reply = None  # something else stands under our name
        if reply is None:
            await self._rebuild()
        else:
            self._store(self._stored + 1)

    async def _compare(self) -> None:
        """Find out which lines Redis has."""
        try:
            state = await self._server.script(scripts.STREAM_STATE, [self._key])
        except RedisRefused as error:
            if "WRONGTYPE" not in str(error):
                raise
            state = None  # something else stands under our name
        if not state:
            if self.lines:
                await self._rebuild()
            return
        last, entries = _id(state[0].decode()), int(state[1])
        if last[0] > self._epoch:
            self._fence()
            return
        # Ids only grow, so what is above the last one is not there and can be appended.
        count_below = sum(1 for entry, _ in self.lines if _id(entry) <= last)
        if entries < count_below:
            await self._rebuild()
            return
        for entry, _ in self.lines[self._stored : count_below]:
            if not await self._server.execute("XRANGE", self._key, entry, entry):
                await self._rebuild()
                return
        self._store(count_below)

    async def _rebuild(self) -> None:
        """Write the whole stream anew, if the call is ours."""
        lines = list(self.lines)
        marker = f"{self._epoch}-0"
        entries = sorted([*lines, (marker, _MARKER)], key=lambda line: _id(line[0]))
        args: list[str | int] = []
        for entry, fields in entries:
            args += (entry, len(fields))
            for pair in fields.items():
                args += pair
        reply = await self._server.script(
            scripts.REBUILD, [self._call, self._key], [self._epoch, marker, LIVE_SECONDS, *args]
        )
        if reply == b"fenced":
            self._fence()
        elif reply == b"unknown":
            # Redis lost the call as well; whoever holds it restores it first.
            raise RedisUnavailable(f"{self._call} is gone")
        else:
            log.warning("lines that Redis had lost were written anew", key=self._key, lines=len(lines))
            self._store(len(lines))

    def _store(self, stored: int) -> None:
        self._stored = stored
        if stored > self._counted:
            if self._key.endswith(":transcript"):
                metrics.transcript_lines.inc(stored - self._counted)
            self._counted = stored

    def _fence(self) -> None:
        self.fenced = True
        self._changed.set()
        if self._on_fenced is not None:
            try:
                self._on_fenced()
            except Exception:
                log.exception("a fenced stream's listener failed", key=self._key)


def _id(text: str) -> tuple[int, int]:
    ms, _, seq = text.partition("-")
    return int(ms), int(seq or 0)
