"""Too many callers, and too little CPU."""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import sys
from pathlib import Path

import pytest
from experiment import experiment
from figures import note

from bridge_sim.agent import SimulatedAgent
from bridge_sim.caller import SimulatedCall
from bridge_sim.plan import CallPlan, CallProblem
from pods import Program

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

ROOM = 6


async def test_callers_beyond_what_the_workers_take_are_refused_with_the_reason_and_the_others_do_not_notice(
    redis_url: str, agent: SimulatedAgent, tmp_path: Path
) -> None:
    name, promise = "twice as many callers as there is room for", "the rest refused in 100 ms, with a reason"
    refusals: list[str] = []
    waits: list[float] = []
    loop = asyncio.get_running_loop()

    async def refused(url: str) -> None:
        async with SimulatedCall(url, CallPlan()) as call:
            began = loop.time()
            await call.connect()
            with contextlib.suppress(CallProblem):
                await call.initiate()
            waits.append((loop.time() - began) * 1000)
        refusals.append(str(call.report().problem))

    async with experiment(
        redis_url, agent, tmp_path, name, promise, calls=ROOM, BRIDGE_WORKER_CALLS=str(ROOM // 2)
    ) as e:
        await asyncio.gather(*(refused(e.edges[0].url) for _ in range(ROOM)))
        await e.another_turn()
    assert len(refusals) == ROOM
    assert len(set(refusals)) == 1 and "session.error" in refusals[0], refusals
    note(f"{name}: ms until refused", "100 ms", p50=statistics.median(waits), max=max(waits), refused=len(waits))


async def test_pods_that_get_a_quarter_of_the_cpu_keep_their_calls(
    redis_url: str, agent: SimulatedAgent, tmp_path: Path
) -> None:
    name, promise = "six busy loops on two cores for 10 s", "0 takeovers, 0 lines lost"
    async with experiment(redis_url, agent, tmp_path, name, promise) as e:
        burners = [
            Program(f"burner-{number}", [sys.executable, "-c", "while True: pass"], {}, tmp_path).start()
            for number in range(6)
        ]
        try:
            await asyncio.sleep(10)
        finally:
            for burner in burners:
                burner.kill()
        await e.another_turn()
        assert agent.total == len(e.talking.calls)
