"""Edge and worker of a call die together, and the caller does not come back."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from bridge_shared.redis.calls import Calls
from bridge_shared.redis.connection import connect
from bridge_sim.agent import SimulatedAgent
from bridge_sim.caller import SimulatedCall
from bridge_sim.plan import CallPlan
from pods import Pods, application


@pytest.mark.slow
async def test_a_call_that_lost_its_edge_and_its_worker_is_ended_and_finished_once_by_another_worker(
    redis_url: str, tmp_path: Path
) -> None:
    async with (
        SimulatedAgent() as agent,
        Pods(redis_url, agent.url, application(tmp_path), BRIDGE_LOST_SECONDS="3") as pods,
    ):
        edge, owner = await asyncio.gather(pods.edge(), pods.worker())
        async with SimulatedCall(edge.url, CallPlan(resume_after_s=600)) as call:
            await call.connect()
            await call.initiate()
            await call.say("thank_you")
            await call.wait_answer()
            others = await asyncio.gather(pods.worker(), pods.worker())
            edge.kill()
            owner.kill()
            await others[0].until(lambda: any("session_end error" in pod.stdout for pod in others), 25, "the finish")
            server = await connect(redis_url, name="test")
            try:
                calls = Calls(server, "fleet", transcript_ttl=3600)
                record = await calls.read(call.conversation_id)
                assert record is not None
                assert (record.state, record.reason, record.detail) == ("ended", "error", "lost")
                assert [line.role for line in await calls.transcript(call.conversation_id)] == ["user", "assistant"]
            finally:
                await server.close()
        assert sum(pod.stdout.count("session_end") for pod in others) == 1
