"""The calls of a cluster, for any program that can reach its Redis.

    async with CallStore("redis://localhost:6379") as store:
        for call in await store.live():
            print(call.cid, call.caller, [line.content for line in await store.transcript(call.cid)])

What the keys hold is a public format, described in the README: other languages read it without this class.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Self

from bridge_shared import api, config
from bridge_shared.errors import CallUnknown
from bridge_shared.redis.calls import CallRecord, Calls, Line
from bridge_shared.redis.connection import Server, connect

__all__ = ["CallRecord", "CallStore", "Line"]


class CallStore:
    """Reads calls. Use it as `async with`; errors everywhere: `bridge_shared.errors.RedisUnavailable`, and
    RuntimeError outside of that block.

    Args:
        redis_url: as REDIS_URL, from where it is taken if not given.
        fleet: as BRIDGE_FLEET, likewise.
    """

    def __init__(self, redis_url: str | None = None, fleet: str | None = None) -> None:
        settings = config.load()
        self._url = redis_url or settings.redis_url or "redis://127.0.0.1:6379/0"
        self._fleet = fleet or settings.fleet
        self._ttl = settings.transcript_ttl
        self._server: Server | None = None
        self._calls: Calls | None = None

    async def __aenter__(self) -> Self:
        self._server = await connect(self._url, name="call-store")
        self._calls = Calls(self._server, self._fleet, transcript_ttl=self._ttl)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._calls = None
        if self._server is not None:
            await self._server.close()

    def _connected(self) -> Calls:
        if self._calls is None:
            raise RuntimeError("CallStore is not connected: use it as 'async with CallStore(…) as store'")
        return self._calls

    async def live(self) -> list[CallRecord]:
        """The live calls, oldest first."""
        calls = self._connected()
        return [record for cid in await calls.live() if (record := await calls.readable(cid)) is not None]

    async def get(self, cid: str) -> CallRecord | None:
        """One call, live or kept; None if there is none."""
        try:
            return await self._connected().read(cid)
        except CallUnknown:  # no call can have this id
            return None

    async def transcript(self, cid: str) -> list[Line]:
        """What was said, in order, with how much of it the caller heard as far as that is known."""
        calls = self._connected()
        try:
            return await calls.transcript(cid)
        except CallUnknown:
            return []

    async def follow(self, cid: str) -> AsyncIterator[Line]:
        """What was said and what is said from now on, until the call has ended, through an outage of Redis of half a
        minute. Stop reading to stop following."""
        calls = self._connected()
        with contextlib.suppress(CallUnknown):
            async with contextlib.aclosing(api.follow(calls, cid)) as lines:
                async for line in lines:
                    yield line
