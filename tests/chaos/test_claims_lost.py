"""Redis carries a claim out, and the reply is lost: the call must not fall between its owner and everybody else."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from bridge_sim.agent import AgentScript, SimulatedAgent
from bridge_sim.caller import SimulatedCall
from bridge_sim.plan import CallPlan
from pods import Pods, application

DEAF = """
from bridge_shared.errors import RedisUnavailable
from bridge_shared.redis.calls import Calls

claim = Calls.claim

async def unheard(self, cid, **claimed):
    got = await claim(self, cid, **claimed)
    if claimed["seen_owner"] and got is not None:
        raise RedisUnavailable("the reply was lost")
    return got

Calls.claim = unheard
"""
"""A worker that never hears that it has taken a call over: no network loses a reply at a given moment."""


@pytest.mark.slow
async def test_a_worker_that_did_not_hear_that_it_owns_a_call_serves_it_when_the_edge_greets_it(
    redis_url: str, tmp_path: Path
) -> None:
    async with (
        SimulatedAgent(AgentScript(think_s=0.0)) as agent,
        Pods(redis_url, agent.url, application(tmp_path, DEAF)) as pods,
    ):
        edge, first = await asyncio.gather(pods.edge(), pods.worker())
        async with SimulatedCall(edge.url, CallPlan(turn_timeout_s=40)) as call:
            await call.connect()
            await call.initiate()
            second = await pods.worker()
            first.kill()
            await second.until_logged("this worker owns a call that it does not serve; it does now", 20)
            await call.say("thank_you")
            await call.wait_answer()
            await call.hang_up()
        assert (call.report().problem, call.report().violations) == (None, [])
        await second.until(lambda: second.stdout.count("session_end hangup") == 1, 10, "the finish")
