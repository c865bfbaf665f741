"""How many calls of the fleet are unfinished, told by every worker: whichever is scraped knows."""

from __future__ import annotations

import asyncio
from typing import Final

from bridge_shared import logs, metrics
from bridge_shared.errors import BridgeError
from bridge_shared.redis.calls import Calls

log = logs.get("worker.backlog")

LOOK_SECONDS: Final = 10.0


async def watch_backlog(calls: Calls) -> None:
    """Count until cancelled. While Redis cannot be asked the last figures stand."""
    while True:
        try:
            owed, given_up = await calls.count_unfinished()
            metrics.unfinished_calls.labels(state="owed").set(owed)
            metrics.unfinished_calls.labels(state="given_up").set(given_up)
        except BridgeError as error:
            log.debug("unfinished calls cannot be counted now", error=str(error))
        await asyncio.sleep(LOOK_SECONDS)
