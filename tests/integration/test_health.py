"""What a pod says about itself when something in it stands still, has ended, or has not begun."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bridge_sim.agent import SimulatedAgent
from bridge_sim.caller import SimulatedCall
from bridge_sim.plan import CallPlan
from conftest import RedisServer
from harness import free_port
from pods import Pod, Pods, application

BLOCKING = """
from pathlib import Path

def wait_for_the_crm():
    while not Path({release!r}).exists():
        time.sleep(0.02)

@bridge.on("{event}")
def handle(session, event):
    {how}
"""
HANDLER = "wait_for_the_crm()"
REACHES_IN = "import deepgram_audiocodes_bridge.process as p; p.process().media.call(wait_for_the_crm)"
"""The way in which an application could block the loop that is not its own."""

RETURNS = """
from bridge_shared.redis.fleet import Offers

async def reads_no_more_offers(self):
    pass

Offers.run = reads_no_more_offers
"""

BLOCKED_WHILE_THE_POD_ENDS = """
from bridge_worker.worker import Worker

async def broken(self):
    self.opened.set()
    await asyncio.sleep(0.5)
    raise ValueError("broken")

async def run_blocked(run=bridge.run):
    asyncio.get_running_loop().call_later(0.2, time.sleep, 60)
    await run()

Worker.run = broken
bridge.run = run_blocked
"""


@pytest.fixture
async def agent() -> AsyncIterator[SimulatedAgent]:
    async with SimulatedAgent() as simulated:
        yield simulated


def stalls(worker: Pod, loop: str) -> int:
    return sum(
        int(float(line.split()[-1]))
        for line in worker.get("/metrics")[1].splitlines()
        if line.startswith(f'bridge_loop_stalls_total{{loop="{loop}"}}')
    )


async def test_a_handler_that_blocks_is_named_in_the_log_and_costs_the_pod_its_health_while_it_lasts(
    redis_url: str, agent: SimulatedAgent, tmp_path: Path
) -> None:
    release = tmp_path / "release"
    app = application(tmp_path, BLOCKING.format(release=str(release), event="session_start", how=HANDLER))
    async with Pods(redis_url, agent.url, app, BRIDGE_APP_STUCK_SECONDS="1") as pods:
        edge, worker = await asyncio.gather(pods.edge(), pods.worker())
        async with SimulatedCall(edge.url, CallPlan()) as call:
            await call.connect()
            await call.initiate()
            body = await worker.until_answers("/healthz", 503)
            assert body.startswith("the application's event loop has not run for ")
            line = await worker.until_logged("an event loop stands still")
            assert line["loop"] == "application"
            assert f"{app}:" in line["where"] and " wait_for_the_crm < " in line["where"]
            assert stalls(worker, "application") == 1
            release.touch()
            await worker.until_answers("/healthz", 200)
            await worker.until_logged("an event loop runs again after a stall")
            await call.hang_up()
        assert (call.report().problem, call.report().violations) == (None, [])
        assert len(worker.logged("an event loop stands still")) == 1
        assert stalls(worker, "application") == 1


@pytest.mark.slow
async def test_a_media_loop_that_is_blocked_does_not_answer_and_is_well_again_afterwards(
    redis_url: str, agent: SimulatedAgent, tmp_path: Path
) -> None:
    release = tmp_path / "release"
    app = application(tmp_path, BLOCKING.format(release=str(release), event="conversation_text", how=REACHES_IN))
    async with Pods(redis_url, agent.url, app) as pods:
        edge, worker = await asyncio.gather(pods.edge(), pods.worker())
        async with SimulatedCall(edge.url, CallPlan()) as call:
            await call.connect()
            await call.initiate()
            await call.say("thank_you")
            line = await worker.until_logged("an event loop stands still")
            assert line["loop"] == "media"
            assert " wait_for_the_crm < " in line["where"]
            assert await asyncio.to_thread(worker.get, "/healthz") == (0, "")
            release.touch()
            await worker.until_answers("/healthz", 200)
            assert stalls(worker, "media") == 1


async def test_a_process_that_was_stopped_is_told_apart_from_a_loop_that_is_blocked(
    redis_url: str, agent: SimulatedAgent, tmp_path: Path
) -> None:
    async with Pods(redis_url, agent.url, application(tmp_path)) as pods:
        worker = await pods.worker()
        worker.pause()
        await asyncio.sleep(2.0)  # a whole process can be seen to stand still only by the time
        worker.go_on()
        await worker.until_logged("the whole process stood still")
        assert not worker.logged("an event loop stands still")
        assert stalls(worker, "all") == 1


async def test_a_task_that_returned_while_the_pod_goes_on_makes_it_unhealthy(
    redis_url: str, agent: SimulatedAgent, tmp_path: Path
) -> None:
    async with Pods(redis_url, agent.url, application(tmp_path, RETURNS)) as pods:
        worker = await pods.worker()
        assert await worker.until_answers("/healthz", 503) == "reads_no_more_offers has returned\n"
        worker.terminate()
        assert await worker.ended() == 0


async def test_a_pod_that_ended_under_an_application_that_is_stuck_says_so(
    redis_url: str, agent: SimulatedAgent, tmp_path: Path
) -> None:
    async with Pods(redis_url, agent.url, application(tmp_path, BLOCKED_WHILE_THE_POD_ENDS)) as pods:
        worker = pods.begin("worker")
        await worker.administrable()
        await worker.until_answers("/healthz", 503, "the pod has stopped, and the application goes on without it")
        assert worker.get("/readyz") == (503, "stopped\n")


@pytest.mark.slow
async def test_pods_that_start_before_redis_wait_for_it_healthy_and_not_ready(
    redis_server: RedisServer, agent: SimulatedAgent, tmp_path: Path
) -> None:
    redis_server.kill()
    async with Pods(redis_server.url, agent.url, application(tmp_path)) as pods:
        port = free_port()
        edge, worker = pods.begin("edge", BRIDGE_PORT=str(port)), pods.begin("worker")
        edge.port = port
        for pod in (edge, worker):
            await pod.administrable()
            assert await asyncio.to_thread(pod.get, "/healthz") == (200, "ok\n")
            body = await pod.until_answers("/readyz", 503, "waiting for Redis")
            assert body.startswith("waiting for Redis (REDIS_URL: no Redis answered within 2.5 s")
        redis_server.restart()
        await asyncio.gather(edge.ready(), worker.ready())
        assert len(edge.logged("waiting for Redis")) == 1
        assert (await asyncio.to_thread(worker.get, "/v1/calls"))[0] == 403  # the API is there: it asks for a token
        async with SimulatedCall(edge.url, CallPlan()) as call:
            await call.connect()
            await call.initiate()
            await call.say("thank_you")
            await call.wait_answer()
            await call.hang_up()
        assert (call.report().problem, call.report().violations) == (None, [])


async def test_a_pod_that_waits_for_redis_ends_when_it_is_told_to(
    redis_server: RedisServer, agent: SimulatedAgent, tmp_path: Path
) -> None:
    redis_server.kill()
    async with Pods(redis_server.url, agent.url, application(tmp_path)) as pods:
        worker = pods.begin("worker")
        await worker.until_logged("waiting for Redis")
        worker.terminate()
        assert await worker.ended(10) == 0
