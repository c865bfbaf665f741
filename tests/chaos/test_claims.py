"""Several workers want the same call at once: exactly one gets it."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

from bridge_shared.redis.connection import Server, connect
from bridge_sim.agent import SimulatedAgent
from bridge_sim.caller import SimulatedCall
from bridge_sim.plan import CallPlan
from pods import Pod, Pods, application

CALLS, REPEATS = 4, 50
OFFERS = "{fleet}:offers"


async def test_of_two_workers_that_are_offered_the_same_calls_again_and_again_exactly_one_gets_each(
    redis_url: str, agent: SimulatedAgent, tmp_path: Path
) -> None:
    server = await connect(redis_url, name="test")
    repeated: Counter[str] = Counter()
    repeating = asyncio.create_task(_repeat_offers(server, repeated))
    try:
        async with Pods(redis_url, agent.url, application(tmp_path)) as pods:
            edge, *workers = await asyncio.gather(pods.edge(), *(pods.worker() for _ in range(2)))
            async with asyncio.TaskGroup() as callers:
                for _ in range(CALLS):
                    callers.create_task(_one_call(edge, repeated))
            await workers[0].until(lambda: len(_ends(workers)) == CALLS, 20, "the session_end handlers")
            assert all(times == 1 for times in _ends(workers).values())
            assert sum(len(worker.logged("agent connected")) for worker in workers) == CALLS
            assert not any(worker.logged("call taken over") for worker in workers)
        assert agent.total == CALLS
        assert repeating.cancel()  # it has been at it until now
    finally:
        await asyncio.gather(repeating, return_exceptions=True)
        await server.close()


async def _repeat_offers(server: Server, repeated: Counter[str]) -> None:
    """Offer every call again and again as soon as it is offered, so that all workers read it while it is claimed."""
    last = "0-0"
    while True:
        for entry, fields in await server.execute("XRANGE", OFFERS, f"({last}", "+") or ():
            last = entry.decode()
            cid = fields[fields.index(b"cid") + 1].decode()
            if repeated[cid] < REPEATS:
                repeated[cid] += 1
                await server.execute("XADD", OFFERS, "*", *fields)
        await asyncio.sleep(0.005)


async def _one_call(edge: Pod, repeated: Counter[str]) -> None:
    async with SimulatedCall(edge.url, CallPlan(turn_timeout_s=40)) as call:
        await call.connect()
        await call.initiate()
        await edge.until(lambda: repeated[call.conversation_id] == REPEATS, 10, "the repeated offers")
        await call.hang_up()
    assert (call.report().problem, call.report().violations) == (None, [])


def _ends(workers: list[Pod]) -> Counter[str]:
    lines = [line for worker in workers for line in worker.stdout.splitlines()]
    return Counter(line for line in lines if line.startswith("session_end "))
