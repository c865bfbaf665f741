"""Workers come and go by SIGTERM while callers talk: a rolling deploy, and scaling in and out."""

from __future__ import annotations

import asyncio
import contextlib
import statistics
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from figures import note

from bridge_shared.redis.calls import Calls
from bridge_shared.redis.connection import connect
from bridge_sim.agent import AgentScript, SimulatedAgent
from bridge_sim.caller import SimulatedCall
from bridge_sim.plan import CallPlan
from pods import Pods, application

CONNECT_SECONDS = 0.25
"""What a real agent takes to be ready."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


class Talk:
    """Callers who talk until they are told to stop, over one edge."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.stop = asyncio.Event()
        self.calls: list[SimulatedCall] = []
        self.talking = 0

    async def caller(self) -> None:
        async with SimulatedCall(self._url, CallPlan(turn_timeout_s=40)) as call:
            self.calls.append(call)
            await call.connect()
            await call.initiate()
            while not self.stop.is_set():
                await call.say("thank_you")
                await call.wait_answer()
                self.talking += 1
            await call.hang_up()


@contextlib.asynccontextmanager
async def talk(url: str, callers: int) -> AsyncIterator[Talk]:
    """So many callers; when the block ends each finishes its turn and hangs up."""
    talking = Talk(url)
    async with asyncio.TaskGroup() as tasks:
        for _ in range(callers):
            tasks.create_task(talking.caller())
        yield talking
        talking.stop.set()


async def check(redis_url: str, talking: Talk, experiment: str) -> None:
    """Nobody was dropped, and every line is there once and in order; the figures go where `make chaos` wants them."""
    reports = [call.report() for call in talking.calls]
    assert [(r.problem, r.violations) for r in reports] == [(None, [])] * len(reports)
    server = await connect(redis_url, name="test")
    try:
        calls = Calls(server, "fleet", transcript_ttl=3600)
        for report in reports:
            said = [line.role for line in await calls.transcript(report.conversation_id)]
            assert said == ["user", "assistant"] * len(report.answer_ms)
    finally:
        await server.close()
    answers = [ms for report in reports for ms in report.answer_ms]
    note(experiment, p50=statistics.median(answers), max=max(answers), turns=len(answers))


@pytest.fixture
async def agent() -> AsyncIterator[SimulatedAgent]:
    async with SimulatedAgent(AgentScript(open_delay_s=CONNECT_SECONDS), record=False) as simulated:
        yield simulated


async def test_all_workers_are_replaced_one_by_one_under_ten_live_calls_and_nobody_notices(
    redis_url: str, agent: SimulatedAgent, tmp_path: Path
) -> None:
    async with Pods(redis_url, agent.url, application(tmp_path)) as pods:
        edge, *workers = await asyncio.gather(pods.edge(), pods.worker(), pods.worker())
        async with talk(edge.url, 10) as talking:
            await workers[0].until(lambda: talking.talking >= 10, 40, "every caller's first answer")
            for worker in workers:
                await pods.worker()
                worker.terminate()
                assert await worker.ended(40) == 0
        await check(redis_url, talking, "rolling restart of all workers, 10 calls: answer time")
        assert not any("session_end" in worker.stdout for worker in workers)


async def test_workers_are_scaled_from_one_to_four_and_back_under_ten_live_calls(
    redis_url: str, agent: SimulatedAgent, tmp_path: Path
) -> None:
    async with Pods(redis_url, agent.url, application(tmp_path)) as pods:
        edge, first = await asyncio.gather(pods.edge(), pods.worker())
        async with talk(edge.url, 10) as talking:
            await first.until(lambda: talking.talking >= 10, 40, "every caller's first answer")
            others = await asyncio.gather(*(pods.worker() for _ in range(3)))
            leaving = [first, *others[:2]]
            for worker in leaving:
                worker.terminate()
            assert await asyncio.gather(*(worker.ended(40) for worker in leaving)) == [0, 0, 0]
        await check(redis_url, talking, "workers 1 to 4 to 1, 10 calls: answer time")
