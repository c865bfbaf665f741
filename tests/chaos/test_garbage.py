"""Somebody overwrites what Redis holds of a call: that call survives or ends with a word, and no other notices."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from figures import note

from bridge_shared.redis.calls import CallKeys
from bridge_sim.agent import SimulatedAgent
from bridge_sim.caller import SimulatedCall
from bridge_sim.plan import CallPlan
from conftest import RedisServer
from pods import Pods, application

SECONDS = 40.0
PLAN = CallPlan(turn_timeout_s=SECONDS, resume_after_s=0.1)


async def _begin(call: SimulatedCall) -> None:
    await call.connect()
    await call.initiate()
    await call.say("thank_you")
    await call.wait_answer()


async def _answered(call: SimulatedCall) -> None:
    await call.say("opening_hours")
    await call.wait_answer()


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("what", "garbage"),
    [
        ("another type", ("SET", "garbage")),
        ("wild epochs", ("HSET", "owner", "\x00", "we", "many", "ee", "-1", "state", "?")),
        ("missing fields", ("HDEL", "owner", "we", "edge", "ee", "state")),
    ],
)
async def test_a_call_whose_record_is_garbage_survives_or_ends_with_a_word_and_no_other_notices(
    redis_server: RedisServer, agent: SimulatedAgent, tmp_path: Path, what: str, garbage: tuple[str, ...]
) -> None:
    loop = asyncio.get_running_loop()
    async with Pods(redis_server.url, agent.url, application(tmp_path)) as pods:
        edge, *workers = await asyncio.gather(pods.edge(), pods.worker(), pods.worker())
        async with SimulatedCall(edge.url, PLAN) as victim, SimulatedCall(edge.url, PLAN) as other:
            await asyncio.gather(_begin(victim), _begin(other))
            verb, *words = garbage
            key = CallKeys.of(victim.conversation_id).call
            if verb == "SET":
                redis_server.command("DEL", key)
            assert not redis_server.command(verb, key, *words).startswith(b"-")
            await asyncio.gather(_answered(victim), _answered(other))
            hung_up = loop.time()
            await asyncio.gather(victim.hang_up(), other.hang_up())

        def ended(call: SimulatedCall) -> int:
            return sum(worker.stdout.count(f"session_end hangup {call.conversation_id}") for worker in workers)

        await edge.until(lambda: ended(victim) and ended(other), 20, "both session_end handlers")
        note(
            f"the record of a live call is garbage, {what}: ms",
            "survives, finished once, no other notices",
            answer=victim.report().answer_ms[-1],
            answer_of_other=other.report().answer_ms[-1],
            finished=(loop.time() - hung_up) * 1000,
        )
        assert (ended(victim), ended(other)) == (1, 1)
        assert all(pod.running for pod in pods.all)
        for call in (victim, other):
            assert (call.report().problem, call.report().violations) == (None, [])
            assert call.report().resume_ms == []
    assert agent.total == 2
