"""What `bridgectl` does with a running cluster, straight through Redis. No pod of its own, no state."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final

from bridge_shared import api
from bridge_shared.config import Settings
from bridge_shared.errors import CallUnknown, CommandRefused, ConfigError, PodUnknown
from bridge_shared.redis.calls import CallRecord, Calls
from bridge_shared.redis.commands import Commands
from bridge_shared.redis.connection import Server, connect
from bridge_shared.redis.fleet import Fleet, PodInfo
from bridge_shared.remote import Remote

ANSWER_SECONDS: Final = 3.0
LOOK: Final = "bridgectl"
BEATS_SECONDS: Final = 0.8
"""A pod beats four times a second; one that has not by then stands still, or is dead."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """The servers of a cluster that somebody else runs."""

    state: Server
    commands: Commands
    fleet: Fleet
    calls: Calls

    @property
    def remote(self) -> Remote:
        """The way to live calls."""
        return Remote(self.calls, self.commands)

    async def pods(self) -> list[tuple[PodInfo, bool]]:
        """Every pod on the lists, workers first, and whether it beats; takes the time of a few beats. The dead stay on
        the lists for a minute."""
        before = await self.fleet.pods()
        await asyncio.sleep(BEATS_SECONDS)
        now = sorted((await self.fleet.pods()).values(), key=lambda pod: (pod.role != "worker", pod.pod))
        return [(pod, pod.pod not in before or pod.beat != before[pod.pod].beat) for pod in now]

    async def live(self) -> list[CallRecord]:
        """The live calls, oldest first."""
        return [record for cid in await self.calls.live() if (record := await self.calls.readable(cid)) is not None]

    async def call(self, cid: str) -> CallRecord:
        """One call, live or kept.

        Raises:
            CallUnknown: there is none.
        """
        record = await self.calls.read(cid)
        if record is None:
            raise CallUnknown(cid)
        return record

    async def finish(self, cid: str) -> None:
        """Have the `session_end` handlers that have not succeeded run once more, now.

        Raises:
            CallUnknown: there is no such call.
            CommandRefused: nothing is owed.
        """
        record = await self.call(cid)
        if not await self.calls.reopen(cid):
            raise CommandRefused(cid, api.nothing_owed(record))

    async def forget(self, cid: str, *, force: bool = False) -> None:
        """Delete what Redis has of a call that has ended.

        Args:
            force: also if its `session_end` handlers have not all succeeded; then they are not run again.

        Raises:
            CallUnknown: there is none.
            CommandRefused: it is live, or its handlers are owed.
        """
        record = await self.call(cid)
        if record.state != "ended":
            raise CommandRefused(cid, "it is live; hang it up first")
        if record.finish in ("owed", "given_up") and not force:
            tries = f"{record.tries} {'try' if record.tries == 1 else 'tries'}"
            why = f"its session_end handlers have not succeeded ({tries}). Run 'bridgectl finish {cid}' first"
            raise CommandRefused(cid, f"{why}, or give --force to lose what they would have written")
        await self.calls.forget(cid)

    async def drain(self, pod: str) -> None:
        """Have a pod give its calls away and end, as SIGTERM would. Returns when it has begun.

        Raises:
            PodUnknown: there is none, or it does not answer.
        """
        if await self.commands.ask(pod, "drain", ANSWER_SECONDS) is None:
            raise PodUnknown(pod)


@contextlib.asynccontextmanager
async def cluster(settings: Settings) -> AsyncIterator[Cluster]:
    """Connect to the cluster of REDIS_URL.

    Raises:
        ConfigError: REDIS_URL is not set.
        RedisUnavailable: it does not answer.
    """
    if settings.redis_url is None:
        raise ConfigError("REDIS_URL", "is not set", "Set it to the Redis that the pods share")
    async with contextlib.AsyncExitStack() as stack:
        state = await _connect(stack, settings.redis_url)
        media = await _connect(stack, settings.media_redis_url) if settings.media_redis_url else state
        calls = Calls(state, settings.fleet, transcript_ttl=settings.transcript_ttl)
        yield Cluster(state, Commands(state, media), Fleet(state, settings.fleet, LOOK, "edge"), calls)


async def _connect(stack: contextlib.AsyncExitStack, url: str) -> Server:
    server = await connect(url, name=LOOK)
    stack.push_async_callback(server.close)
    return server


def pod_row(pod: PodInfo, beats: bool) -> dict[str, Any]:
    """One pod as `bridgectl pods` shows it."""
    info = pod.info
    state = "silent" if not beats else "draining" if info.get("draining") else "ready"
    return {
        "pod": pod.pod,
        "role": pod.role,
        "calls": info.get("load", 0),
        "capacity": info.get("capacity", 0),
        "agents": info.get("agents", 0),
        "state": state,
        "draining": bool(info.get("draining", False)),
        "version": info.get("version", ""),
        "bridges": info.get("bridges", []),
    }
