"""What the integration and conformance tests share: an application running against the simulators.

The application runs as `python app.py` would run it: both roles in one process, sockets in the media thread,
handlers in the loop of the test, a real Redis.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from bridge_shared import config
from bridge_shared.redis.calls import Calls
from bridge_sim.agent import SimulatedAgent
from deepgram_audiocodes_bridge import BridgeConfig, DeepgramBridge
from deepgram_audiocodes_bridge.process import Process, command

AGENT: dict[str, Any] = {
    "agent": {
        "listen": {"provider": {"type": "deepgram", "model": "nova-3"}},
        "think": {"provider": {"type": "open_ai", "model": "gpt-4o-mini"}, "prompt": "You are the parcel desk."},
        "speak": {"provider": {"type": "deepgram", "model": "aura-2-thalia-en"}},
    }
}
"""A configuration without a greeting: the agent speaks when spoken to."""

GREETING = "Hello, this is the parcel desk. How can I help you?"


def configuration(*, greeting: str | None = None, **fields: Any) -> BridgeConfig:
    """A bridge's configuration for tests; `fields` are those of `BridgeConfig`."""
    agent = {**AGENT["agent"], **({"greeting": greeting} if greeting else {})}
    return BridgeConfig(**{"deepgram_api_key": "test-key", "deepgram_config": {"agent": agent}, "port": 8000, **fields})


def free_port() -> int:
    """A loopback port that was free a moment ago, below those that connections are given by themselves."""
    while True:
        port = random.randrange(10_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


@dataclass
class Running:
    """An application at work.

    Attributes:
        url: where the simulated VAIC calls.
        process: the process that the bridge joined; `process.edge`, `process.worker` live in its media thread.
        task: runs `bridge.run()`.
    """

    url: str
    process: Process
    task: asyncio.Task[None]

    async def calls(self, method: str, *args: Any, **named: Any) -> Any:
        """Ask `Calls` something, in the media thread where its connection lives."""
        settings = self.process.settings

        async def ask() -> Any:
            calls = Calls(self.process.state, settings.fleet, transcript_ttl=settings.transcript_ttl)
            return await getattr(calls, method)(*args, **named)

        return await self.process._cross(ask())


@contextlib.asynccontextmanager
async def running(
    bridge: DeepgramBridge, redis_url: str, agent: SimulatedAgent | None, **settings: Any
) -> AsyncIterator[Running]:
    """Run an application until the block ends; then it is cancelled and its calls end.

    Args:
        settings: fields of `config.Settings` to set.
    """
    port = free_port()
    given: dict[str, Any] = {"redis_url": redis_url, "host": "127.0.0.1", "port": port, "drain_seconds": 1.0}
    if agent is not None:
        given["deepgram_url"] = agent.url
    process = command(config.load(**{**given, **settings}))
    loop, opened = asyncio.get_running_loop(), asyncio.Event()
    process.on_open = lambda _door: loop.call_soon_threadsafe(opened.set)
    task = asyncio.create_task(bridge.run())
    waiting = asyncio.create_task(opened.wait())
    try:
        async with asyncio.timeout(15):
            await asyncio.wait([task, waiting], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            await task
        yield Running(f"ws://127.0.0.1:{port}", process, task)
    finally:
        waiting.cancel()
        task.cancel()
        await asyncio.gather(task, waiting, return_exceptions=True)
