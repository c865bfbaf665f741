"""How full Redis is, told by every worker: a full one refuses every write, and transcripts fill it slowly."""

from __future__ import annotations

import asyncio
from typing import Final

from bridge_shared import logs, metrics
from bridge_shared.errors import BridgeError
from bridge_shared.redis.connection import Server

log = logs.get("worker.redis_memory")

LOOK_SECONDS: Final = 60.0
UNKNOWN_SECONDS: Final = 3600.0
"""A server without a limit, or one that hides it, is asked so seldom."""


async def watch_memory(server: Server) -> None:
    """Look until cancelled. While Redis cannot be asked the last figure stands."""
    while True:
        pause = LOOK_SECONDS
        try:
            used = await server.memory_used()
            metrics.redis_memory_used_ratio.set(used or 0.0)
            pause = LOOK_SECONDS if used is not None else UNKNOWN_SECONDS
        except BridgeError as error:
            log.debug("Redis does not say now how full it is", error=str(error))
        await asyncio.sleep(pause)
