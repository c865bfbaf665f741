"""What one try of a finish leaves in Redis as it goes, for the next try wherever that may be: which handlers have
succeeded, and what they keep in `Session.data`."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from bridge_shared import logs
from bridge_shared.errors import BridgeError, RedisUnavailable
from bridge_worker.session_data import SessionData

if TYPE_CHECKING:
    from bridge_worker.worker import Worker

log = logs.get("worker.finisher")

RECORD_SECONDS, AGAIN_SECONDS = 5.0, 0.25
"""How long, and how often, a Redis that does not answer is told something before the finish goes on without."""


class FinishNotes:
    """The notes of one try, in the media thread. `data` writes here from now on.

    Args:
        stored: JSON of `data` as Redis has it, as far as is known; what differs is written.
    """

    def __init__(self, worker: Worker, cid: str, data: SessionData, stored: str) -> None:
        self._worker, self._cid = worker, cid
        self.others = False
        """Another worker finishes the call now."""
        self.missing: list[str] = []
        """Handlers whose success Redis does not know yet."""
        self._changed, self._written = asyncio.Event(), asyncio.Event()
        self._written.set()
        self._over = False
        self._data = data.written_by(self._keep)
        if self._data != (stored.encode() or b"{}"):
            self._change(self._data)

    async def run(self) -> None:
        """Write `Session.data` whenever it changes, again and again until it is in Redis. Cancelling it may leave the
        last change unwritten."""
        try:
            while True:
                await self._changed.wait()
                self._changed.clear()
                data = self._data
                try:
                    if not await self._worker.calls.keep_data(self._cid, data, finisher=self._worker.pod):
                        log.warning("session.data is not kept: the finish is another worker's", cid=self._cid)
                except BridgeError as error:
                    log.debug("session.data waits for Redis", cid=self._cid, error=str(error))
                    self._changed.set()
                    await asyncio.sleep(AGAIN_SECONDS)
                else:
                    if data is self._data:
                        self._written.set()
        finally:
            self._over = True

    async def flush(self) -> None:
        """Wait until `Session.data` is in Redis, for some seconds."""
        try:
            async with asyncio.timeout(RECORD_SECONDS):
                await self._written.wait()
        except TimeoutError:
            log.warning("session.data is not written yet", cid=self._cid)

    async def succeeded(self, name: str) -> bool:
        """Record that a handler has succeeded, behind what it kept, and try to for some seconds if Redis is away.
        False: another worker finishes the call now."""
        await self.flush()
        try:
            async with asyncio.timeout(RECORD_SECONDS):
                while True:
                    try:
                        return await self._succeeded(name)
                    except RedisUnavailable:
                        await asyncio.sleep(AGAIN_SECONDS)
        except (TimeoutError, BridgeError) as error:
            log.warning("a handler's success is not recorded yet", cid=self._cid, handler=name, error=str(error))
            self.missing.append(name)
            return True

    async def _succeeded(self, name: str) -> bool:
        worker, calls = self._worker, self._worker.calls
        if not await calls.handled(self._cid, name, finisher=worker.pod):
            record = await calls.read(self._cid)  # none, or of no finisher: Redis had lost it
            self.others = record is not None and record.finisher not in ("", worker.pod)
        return not self.others

    def _keep(self, encoded: bytes) -> None:
        """`Session.data` has changed; in the customer's loop."""
        with contextlib.suppress(RuntimeError):  # the media loop is gone, and the finish with it
            self._worker.loop.call_soon_threadsafe(self._change, encoded)

    def _change(self, encoded: bytes) -> None:
        if self._over:
            return log.warning("session.data was changed after the finish, and is not kept", cid=self._cid)
        self._data = encoded
        self._written.clear()
        self._changed.set()
