"""A worker that is told to stop gives its calls to another one, and nobody on the telephone notices."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bridge_sim.agent import SimulatedAgent
from bridge_sim.caller import SimulatedCall
from bridge_sim.plan import CallPlan
from pods import Pod, Pods, application

RESUMED = """
@bridge.on("session_resumed")
def resumed(session, event):
    print("resumed", event.reason, flush=True)
"""


@pytest.fixture
async def agent() -> AsyncIterator[SimulatedAgent]:
    async with SimulatedAgent() as simulated:
        yield simulated


@contextlib.asynccontextmanager
async def live_call(edge: Pod) -> AsyncIterator[SimulatedCall]:
    async with SimulatedCall(edge.url, CallPlan()) as call:
        await call.connect()
        await call.initiate()
        yield call


async def test_a_worker_told_to_stop_hands_its_calls_over_and_the_agent_remembers(
    redis_url: str, agent: SimulatedAgent, tmp_path: Path
) -> None:
    async with Pods(redis_url, agent.url, application(tmp_path, RESUMED)) as pods:
        edge, first = await asyncio.gather(pods.edge(), pods.worker())
        async with contextlib.AsyncExitStack() as stack:
            calls = [await stack.enter_async_context(live_call(edge)) for _ in range(3)]
            await asyncio.gather(*(call.say("thank_you") for call in calls))
            await asyncio.gather(*(call.wait_answer() for call in calls))
            second = await pods.worker()
            first.terminate()
            assert await first.ended(15) == 0
            await asyncio.gather(*(call.say("goodbye") for call in calls))
            await asyncio.gather(*(call.wait_answer() for call in calls))
            await asyncio.gather(*(call.hang_up() for call in calls))
        assert [(call.report().problem, call.report().violations) for call in calls] == [(None, [])] * 3
        assert len(agent.connections) == 6
        for connection in agent.connections[3:]:
            messages = connection.settings["agent"]["context"]["messages"]
            assert [message["role"] for message in messages] == ["user", "assistant"]
            assert connection.problems == []
        assert "session_end" not in first.stdout
        await second.until(lambda: second.stdout.count("session_end hangup") == 3, 5, "the session_end handlers")
        assert second.stdout.count("resumed handover") == 3


async def test_a_call_is_not_handed_over_while_the_agent_speaks(
    redis_url: str, agent: SimulatedAgent, tmp_path: Path
) -> None:
    async with Pods(redis_url, agent.url, application(tmp_path)) as pods:
        edge, first = await asyncio.gather(pods.edge(), pods.worker())
        async with live_call(edge) as call:
            (former,) = await agent.wait_for(lambda a: [c for c in a.connections if c.ready], 10)
            former.say("Let me read your parcel's whole journey to you. It left Hamburg on Monday. It is in Ulm now.")
            await call.wait_interruptible()
            await pods.worker()
            first.terminate()
            await call.wait_answer()
            assert await first.ended(15) == 0
            await call.say("goodbye")
            await call.wait_answer()
            await call.hang_up()
        assert (call.report().problem, call.report().violations) == (None, [])
        latter = agent.connections[1]
        assert "It is in Ulm now." in str(latter.settings["agent"]["context"]["messages"])
        assert b"".join(heard.data for heard in call.report().heard) == bytes(former.spoken) + bytes(latter.spoken)
