"""What must not be in any log: keys, tokens, numbers of callers, what was said."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from talking import AGENT, talking_application

from bridge_sim.agent import SimulatedAgent
from bridge_sim.caller import SimulatedCall
from bridge_sim.plan import CallPlan
from pods import Pods

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

KEY, TOKEN, ADMIN, CALLER = "canary-deepgram-key", "canary-door-token", "canary-admin-token", "+4930canary0815"


@pytest.mark.parametrize("level", ["info", "debug"])
async def test_no_log_has_a_key_a_token_a_number_or_a_word_of_a_call_also_when_a_worker_dies(
    redis_url: str, tmp_path: Path, level: str
) -> None:
    settings = {
        "DEEPGRAM_API_KEY": KEY,
        "AC_TOKEN": TOKEN,
        "BRIDGE_ADMIN_TOKEN": ADMIN,
        "BRIDGE_LOG_LEVEL": level,
    }
    async with (
        SimulatedAgent(AGENT) as agent,
        Pods(redis_url, agent.url, talking_application(tmp_path), **settings) as pods,
    ):
        edge, *workers = await asyncio.gather(pods.edge(), pods.worker(), pods.worker())
        plan = CallPlan(turn_timeout_s=40, caller=CALLER)
        async with SimulatedCall(edge.url, plan, token=TOKEN) as call:
            await call.connect()
            await call.initiate()
            await call.say("thank_you")
            await call.wait_answer()
            next(worker for worker in workers if worker.logged("agent connected")).kill()
            await call.say("opening_hours")
            await call.wait_answer()
            await call.hang_up()
        await pods.stop()
        logs = [pod.stdout + pod.stderr for pod in pods.all]
    assert all(log.strip() for log in logs)
    for word in (KEY, TOKEN, ADMIN, CALLER, "opening hours", "welcome", "eight to six"):
        assert not any(word.lower() in log.lower() for log in logs), word
