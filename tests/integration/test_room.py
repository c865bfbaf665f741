"""Calls beyond what the fleet can take are refused at the door, with a reason; the others do not suffer."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from pathlib import Path

import redis.asyncio as redis

from bridge_shared.redis.connection import connect
from bridge_shared.redis.fleet import Fleet
from bridge_shared.room import AGENT_LIMIT, WORKERS_FULL
from bridge_sim.agent import AgentScript, SimulatedAgent
from bridge_sim.caller import SimulatedCall
from bridge_sim.plan import CallPlan
from bridge_sim.wire import CallProblem
from pods import Pods, application


async def counted(redis_url: str, pods: int) -> None:
    """Wait until so many pods have read what the workers announce, and have come back for more: what Redis held when
    this was called is known to all of them then."""
    reads: Counter[str] = Counter()
    client = redis.Redis.from_url(redis_url, decode_responses=True)
    async with asyncio.timeout(10), client, client.monitor() as monitor:
        async for command in monitor.listen():
            if command["command"] == "HGETALL {fleet}:workers":
                reads[command["client_port"]] += 1
                if sum(times >= 2 for times in reads.values()) >= pods:
                    return


class Announced:
    """What the workers say of themselves."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    async def agents(self, number: int) -> None:
        """Wait until they have so many agent connections together."""
        async with asyncio.timeout(10):
            while True:
                pods = (await self._fleet.pods()).values()
                if sum(pod.info.get("agents", 0) for pod in pods if pod.role == "worker") == number:
                    return
                await asyncio.sleep(0.05)  # another process sets no event


async def refused(url: str) -> str:
    """The reason that one more caller is given."""
    report = await SimulatedCall(url, CallPlan()).run()
    assert report.end == "refused"
    return report.problem or ""


async def test_new_calls_stop_short_of_the_agent_limit_and_the_next_caller_is_told(
    redis_url: str, tmp_path: Path
) -> None:
    async with (
        SimulatedAgent(AgentScript(think_s=0)) as agent,
        Pods(redis_url, agent.url, application(tmp_path), BRIDGE_AGENT_LIMIT="4", BRIDGE_ACCEPT_TIMEOUT="30") as pods,
        contextlib.AsyncExitStack() as callers,
    ):
        edge, *_ = await asyncio.gather(pods.edge(), pods.worker(), pods.worker())
        server = await connect(redis_url, name="test")
        callers.push_async_callback(server.close)
        announced = Announced(Fleet(server, "fleet", "test", "edge"))
        number = 0
        for _ in range(3):
            call = await callers.enter_async_context(SimulatedCall(edge.url, CallPlan()))
            await call.connect()
            try:
                await call.initiate()
            except CallProblem:
                break
            number += 1
            await announced.agents(number)
            await counted(redis_url, pods=3)
        assert number in (2, 3)  # 1+1 leaves a reserve of one; 2 on one worker leave none
        assert AGENT_LIMIT in await refused(edge.url)
        assert agent.total == number


async def test_a_caller_for_whom_all_workers_are_full_is_refused_at_once(redis_url: str, tmp_path: Path) -> None:
    async with (
        SimulatedAgent(AgentScript(think_s=0)) as agent,
        Pods(redis_url, agent.url, application(tmp_path), BRIDGE_WORKER_CALLS="1", BRIDGE_ACCEPT_TIMEOUT="30") as pods,
    ):
        edge, _ = await asyncio.gather(pods.edge(), pods.worker())
        async with SimulatedCall(edge.url, CallPlan()) as call:
            await call.connect()
            await call.initiate()
            await counted(redis_url, pods=2)
            assert WORKERS_FULL in await refused(edge.url)
            await call.hang_up()
        assert agent.total == 1
