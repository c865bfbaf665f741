"""A hundred calls whose worker is killed at the worst moment: the caller has asked, and nothing is answered yet."""

from __future__ import annotations

import asyncio
import os
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
from figures import note

from bridge_shared.redis.calls import Calls
from bridge_shared.redis.connection import Server, connect
from bridge_sim.agent import AgentScript, SimulatedAgent
from bridge_sim.agent_connection import AgentConnection
from bridge_sim.caller import SimulatedCall
from bridge_sim.plan import CallPlan
from pods import Pod, Pods, application

CONNECT_SECONDS = 0.25
"""What a real agent takes to be ready."""

PROMISED_SECONDS = 0.25
"""A line that the agent emitted so long before a pod died is never lost."""

ROUNDS = int(os.environ.get("CHAOS_ROUNDS", "1"))
CALLS = 10
SLOW = AgentScript(think_s=30.0, open_delay_s=CONNECT_SECONDS)
QUICK = replace(SLOW, think_s=0.0)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60 + 40 * ROUNDS)]


async def test_callers_whose_worker_was_killed_before_it_answered_hear_the_answer_all_the_same(
    redis_url: str, tmp_path: Path
) -> None:
    delays: list[float] = []
    async with SimulatedAgent(SLOW) as agent, Pods(redis_url, agent.url, application(tmp_path)) as pods:
        edge, owner = await asyncio.gather(pods.edge(), pods.worker())
        server = await connect(redis_url, name="test")
        try:
            for _ in range(ROUNDS):
                delays += await _kill_once(agent, pods, edge, owner, server)
                owner = pods.all[-1]
        finally:
            await server.close()
    delays.sort()
    note(
        "worker SIGKILL where speech was owed: ms until the agent is heard",
        "2 s p99, 1 s median",
        kills=len(delays),
        p50=statistics.median(delays),
        p99=delays[int(len(delays) * 0.99) - 1] if len(delays) >= 100 else delays[-1],
        max=delays[-1],
    )


async def _kill_once(agent: SimulatedAgent, pods: Pods, edge: Pod, owner: Pod, server: Server) -> list[float]:
    """Calls at one worker, which is killed; milliseconds from the kill to the answer, for each."""
    loop = asyncio.get_running_loop()
    agent.script = SLOW
    known = set(agent.connections)

    def new() -> list[AgentConnection]:
        return [connection for connection in agent.connections if connection not in known]

    asked, killed_at, delays = 0, loop.create_future(), []

    async def caller() -> None:
        nonlocal asked
        async with SimulatedCall(edge.url, CallPlan(turn_timeout_s=40)) as call:
            await call.connect()
            await call.initiate()
            await ready.wait()
            await call.say("thank_you")
            spoke_at = loop.time()
            asked += 1
            killed = await killed_at
            await call.wait_answer()
            delays.append((spoke_at - killed) * 1000 + call.report().answer_ms[-1])
            await call.say("opening_hours")
            await call.wait_answer()
            await call.hang_up()
        assert (call.report().problem, call.report().violations) == (None, [])
        lines = await Calls(server, "fleet", transcript_ttl=3600).transcript(call.conversation_id)
        assert [line.role for line in lines] == ["user", "assistant"] * 2

    ready = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(CALLS):
            tasks.create_task(caller())
        await agent.wait_for(lambda _: sum(c.ready for c in new()) == CALLS, 20)
        await pods.worker()
        ready.set()
        await agent.wait_for(lambda _: sum(("user" in dict(c.texts)) for c in new()) == CALLS, 30)
        await asyncio.sleep(PROMISED_SECONDS)
        agent.script = QUICK
        owner.kill()
        killed_at.set_result(loop.time())
    assert len([connection for connection in new() if connection.injections]) == CALLS
    return delays
