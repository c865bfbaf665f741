"""Workers come and go by SIGTERM while callers talk: a rolling deploy, and scaling in and out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from talking import check, talk

from bridge_sim.agent import AgentScript, SimulatedAgent
from pods import Pods, application

CONNECT_SECONDS = 0.25
"""What a real agent takes to be ready."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture
async def agent() -> AsyncIterator[SimulatedAgent]:
    async with SimulatedAgent(AgentScript(open_delay_s=CONNECT_SECONDS)) as simulated:
        yield simulated


async def test_all_workers_are_replaced_one_by_one_under_ten_live_calls_and_nobody_notices(
    redis_url: str, agent: SimulatedAgent, tmp_path: Path
) -> None:
    async with Pods(redis_url, agent.url, application(tmp_path)) as pods:
        edge, *workers = await asyncio.gather(pods.edge(), pods.worker(), pods.worker())
        async with talk(10, edge.url) as talking:
            for worker in workers:
                await pods.worker()
                worker.terminate()
                assert await worker.ended(40) == 0
        await check(redis_url, talking, agent, "rolling restart of all workers, 10 calls")
        assert not any("session_end" in worker.stdout for worker in workers)


async def test_workers_are_scaled_from_one_to_four_and_back_under_ten_live_calls(
    redis_url: str, agent: SimulatedAgent, tmp_path: Path
) -> None:
    async with Pods(redis_url, agent.url, application(tmp_path)) as pods:
        edge, first = await asyncio.gather(pods.edge(), pods.worker())
        async with talk(10, edge.url) as talking:
            others = await asyncio.gather(*(pods.worker() for _ in range(3)))
            leaving = [first, *others[:2]]
            for worker in leaving:
                worker.terminate()
            assert await asyncio.gather(*(worker.ended(40) for worker in leaving)) == [0, 0, 0]
        await check(redis_url, talking, agent, "workers 1 to 4 to 1, 10 calls")
