"""What a pod measures about moves of calls, Redis and what is left to do, seen where Prometheus sees it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bridge_sim.agent import SimulatedAgent
from bridge_sim.caller import SimulatedCall
from bridge_sim.plan import CallPlan
from pods import Pods, application, calling

LONG = "Let me read your parcel's whole journey to you. It left Hamburg on Monday, and then it went to Ulm. " * 3
BROKEN_CRM = """
@bridge.on("session_end")
async def store(session, event):
    raise ConnectionError("the CRM is away")
"""


@pytest.fixture
async def agent() -> AsyncIterator[SimulatedAgent]:
    async with SimulatedAgent() as simulated:
        yield simulated


async def test_heartbeats_measure_the_way_to_redis_and_back(
    redis_url: str, agent: SimulatedAgent, tmp_path: Path
) -> None:
    async with Pods(redis_url, agent.url, application(tmp_path)) as pods:
        for pod in await asyncio.gather(pods.edge(), pods.worker()):
            await pod.until_metric("bridge_redis_round_trip_seconds_count", 4)
            assert 0 < await pod.metric("bridge_redis_round_trip_seconds_sum") < 4


SLOW_CRM = """
import asyncio
@bridge.on("session_end")
async def store(session, event):
    await asyncio.sleep(3)
"""


async def test_a_worker_tells_what_is_done_for_its_calls(redis_url: str, agent: SimulatedAgent, tmp_path: Path) -> None:
    async with Pods(redis_url, agent.url, application(tmp_path, SLOW_CRM)) as pods:
        edge, worker = await asyncio.gather(pods.edge(), pods.worker())
        async with calling(edge) as call:
            await worker.until_metric('bridge_calls_by_state{state="active"}', 1)
            await call.hang_up()
        await worker.until_metric('bridge_calls_by_state{state="ending"}', 1)
        assert await worker.metric('bridge_calls_by_state{state="active"}') == 0


async def test_a_takeover_is_measured_by_the_worker_that_takes_over(
    redis_url: str, agent: SimulatedAgent, tmp_path: Path
) -> None:
    async with Pods(redis_url, agent.url, application(tmp_path)) as pods:
        edge, first = await asyncio.gather(pods.edge(), pods.worker())
        async with SimulatedCall(edge.url, CallPlan()) as call:
            await call.connect()
            await call.initiate()
            second = await pods.worker()
            first.kill()
            await second.until_metric('bridge_takeover_seconds_count{why="worker_lost"}', 1)
            assert await second.metric("bridge_takeovers_total") == 1
            assert 0 < await second.metric("bridge_takeover_seconds_sum") < 8
            await call.hang_up()


@pytest.mark.slow
async def test_a_hand_over_is_measured_by_both_workers(redis_url: str, agent: SimulatedAgent, tmp_path: Path) -> None:
    async with Pods(redis_url, agent.url, application(tmp_path)) as pods:
        edge, first = await asyncio.gather(pods.edge(), pods.worker())
        async with SimulatedCall(edge.url, CallPlan()) as talking, SimulatedCall(edge.url, CallPlan()) as quiet:
            for call in (talking, quiet):
                await call.connect()
                await call.initiate()
            agent.connections[0].say(LONG)  # so that the first worker is there until this call is quiet
            await talking.wait_interruptible()
            second = await pods.worker()
            first.terminate()
            await first.until_metric("bridge_handover_seconds_count", 1)
            assert 0 < await first.metric("bridge_handover_seconds_sum") < 10
            assert await first.ended(40) == 0
            assert await second.metric('bridge_takeover_seconds_count{why="handover"}') == 2
            for call in (talking, quiet):
                await call.hang_up()


@pytest.mark.slow
async def test_calls_that_are_owed_their_finish_are_counted_by_every_worker(
    redis_url: str, agent: SimulatedAgent, tmp_path: Path
) -> None:
    async with Pods(redis_url, agent.url, application(tmp_path, BROKEN_CRM)) as pods:
        edge, first, second = await asyncio.gather(pods.edge(), pods.worker(), pods.worker())
        assert await first.metric("bridge_unfinished_calls") == 0
        async with SimulatedCall(edge.url, CallPlan()) as call:
            await call.connect()
            await call.initiate()
            await call.hang_up()
        for worker in (first, second):
            await worker.until_metric('bridge_unfinished_calls{state="owed"}', 1)
