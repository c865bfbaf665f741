"""Calls that nobody is left to end: their edge and their owner have both died, and VAIC has not come back.

A call whose edge alone died is ended by its owner, one whose owner alone died is offered by its edge. Of a call that
lost both nobody knows but Redis. One worker, the first by name of those alive, looks through the index for such
calls and ends each as lost when it has been deserted for `BRIDGE_LOST_SECONDS` by this worker's clock; the finish
then runs as for any call.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

from bridge_shared import logs
from bridge_shared.errors import BridgeError, Fenced
from bridge_shared.redis.calls import CallRecord

if TYPE_CHECKING:
    from bridge_worker.worker import Worker

log = logs.get("worker.sweeper")

LOOK_SECONDS: Final = 2.0


class Sweeper:
    """Looks for deserted calls, for one worker."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._deserted: dict[tuple[str, int, int], float] = {}
        """When each call was first seen without anybody, by its id and epochs: who attaches or claims begins anew."""

    async def run(self) -> None:
        """Look until cancelled; cancelling it is harmless, for another worker looks as well."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                await self._look()
            except BridgeError as error:
                self._deserted.clear()  # what was not seen does not count
                log.debug("calls cannot be looked through now", error=str(error))

    async def _look(self) -> None:
        worker = self._worker
        alive = {name: pod for name, pod in (await worker.pods()).items() if not pod.dead}
        if min((name for name, pod in alive.items() if pod.role == "worker"), default="") != worker.pod:
            return self._deserted.clear()
        now, before, self._deserted = worker.loop.time(), self._deserted, {}
        for cid in await worker.calls.live():
            record = await worker.calls.readable(cid)
            if record is None or record.state == "ended" or record.owner in alive or record.edge in alive:
                continue
            call = (cid, record.ee, record.we)
            self._deserted[call] = before.get(call, now)
            if now - self._deserted[call] >= worker.settings.lost_seconds:
                await self._end(record)

    async def _end(self, record: CallRecord) -> None:
        log.warning("a call has lost its edge and its worker, ending it", cid=record.cid)
        report, we, ee = record.state == "active", record.we, record.ee
        with contextlib.suppress(Fenced):  # somebody came back for it just now
            await self._worker.calls.end(record.cid, reason="error", detail="lost", we=we, ee=ee, report=report)
