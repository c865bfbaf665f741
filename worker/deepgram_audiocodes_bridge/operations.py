"""What `bridgectl` does with a running cluster, straight through Redis. No pod of its own, no state."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final

from bridge_shared.config import Settings
from bridge_shared.errors import ConfigError, PodUnknown
from bridge_shared.redis.commands import Commands
from bridge_shared.redis.connection import Server, connect
from bridge_shared.redis.fleet import Fleet, PodInfo

ANSWER_SECONDS: Final = 3.0
LOOK: Final = "bridgectl"


@dataclass(frozen=True, slots=True)
class Cluster:
    """The servers of a cluster that somebody else runs."""

    state: Server
    commands: Commands
    fleet: Fleet

    async def pods(self) -> list[PodInfo]:
        """Every pod on the lists, workers first."""
        return sorted((await self.fleet.pods()).values(), key=lambda pod: (pod.role != "worker", pod.pod))

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
        yield Cluster(state, Commands(state, media), Fleet(state, settings.fleet, LOOK, "edge"))


async def _connect(stack: contextlib.AsyncExitStack, url: str) -> Server:
    server = await connect(url, name=LOOK)
    stack.push_async_callback(server.close)
    return server


def pod_row(pod: PodInfo) -> dict[str, Any]:
    """One pod as `bridgectl pods` shows it."""
    info = pod.info
    return {
        "pod": pod.pod,
        "role": pod.role,
        "calls": info.get("load", 0),
        "capacity": info.get("capacity", 0),
        "agents": info.get("agents", 0),
        "draining": bool(info.get("draining", False)),
        "version": info.get("version", ""),
        "bridges": info.get("bridges", []),
    }
