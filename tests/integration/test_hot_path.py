"""How many Python functions a piece of audio costs: a count, so that it is the same on a slow and on a busy machine.

Both roles run in one media thread, whose calls cProfile counts, with a real Redis and real sockets on both sides. A
change that makes the path of every message longer fails here; what it costs in time is for `make bench`.
"""

from __future__ import annotations

import asyncio
import cProfile
import pstats
from typing import Any

from bridge_sim.agent_script import AgentScript
from telephone import Stage, Wire, stage, wire

CHUNKS = 300
CALLS = 205
"""For 20 ms of the caller to the agent and back, with both hops through Redis and every frame alone in its entry."""

ROOM = 1.25
"""Timers and batches fall differently in each run, and libraries change a little."""


async def counted(bridge: Stage, vaic: Wire, *, chunk: bytes) -> float:
    """Python calls for each chunk of the caller that the agent echoes, in edge and worker together."""
    media = bridge.app.process.media
    profile = cProfile.Profile()

    async def inside(function: Any) -> None:
        function()

    agent = await bridge.connection()
    await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(inside(profile.enable), media.loop))
    heard = len(agent.heard)
    for number in range(CHUNKS):
        await vaic.send(vaic.chunk(chunk))
        await agent.wait_for(lambda it, n=number: len(it.heard) >= heard + (n + 1) * len(chunk))
    await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(inside(profile.disable), media.loop))
    stats: Any = pstats.Stats(profile)
    calls = sum(count for (file, _, _), (_, count, *_) in stats.stats.items() if file != "~")
    return calls / CHUNKS


async def test_a_chunk_there_and_back_costs_no_more_python_calls_than_it_did(redis_url: str) -> None:
    async with stage(redis_url, AgentScript(echo=True)) as bridge, wire(bridge.url) as vaic:
        await vaic.begin()
        calls = await counted(bridge, vaic, chunk=bytes(160))
        print(f"{calls:.0f} calls for each chunk")
        assert calls <= CALLS * ROOM
