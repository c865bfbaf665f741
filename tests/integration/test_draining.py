"""How a pod ends: SIGTERM drains it, a second signal stops it, and its exit code says which."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bridge_sim.agent import SimulatedAgent
from bridge_sim.caller import SimulatedCall
from bridge_sim.plan import CallPlan
from pods import Pod, Pods, application

BLOCKED = """
@bridge.on("conversation_text")
def blocked(session, event):
    if event.role == "user":
        print("blocked", flush=True)
        time.sleep({seconds})
"""


@pytest.fixture
async def agent() -> AsyncIterator[SimulatedAgent]:
    async with SimulatedAgent() as simulated:
        yield simulated


@contextlib.asynccontextmanager
async def live_call(edge: Pod, plan: CallPlan | None = None) -> AsyncIterator[SimulatedCall]:
    """A call that has been accepted."""
    async with SimulatedCall(edge.url, plan or CallPlan()) as call:
        await call.connect()
        await call.initiate()
        yield call


async def test_pods_told_to_stop_let_their_call_come_to_its_end_and_exit_with_0(
    redis_url: str, agent: SimulatedAgent, tmp_path: Path
) -> None:
    async with Pods(redis_url, agent.url, application(tmp_path)) as pods:
        edge, worker = await asyncio.gather(pods.edge(), pods.worker())
        async with live_call(edge) as call:
            for pod in (edge, worker):
                pod.terminate()
                await pod.until_logged("draining")
                status, reason = await asyncio.to_thread(pod.get, "/readyz")
                assert (status, "draining" in reason) == (503, True)
            await call.say("thank_you")
            await call.wait_answer()
            assert edge.running
            assert worker.running
            await call.hang_up()
        assert call.report().violations == []
        for pod in (edge, worker):
            assert await pod.ended(10) == 0
            assert "the application went on after run" in pod.stdout
        assert "session_end hangup" in worker.stdout


async def test_a_worker_hangs_up_on_calls_that_outlast_the_drain_and_still_exits_with_0(
    redis_url: str, agent: SimulatedAgent, tmp_path: Path
) -> None:
    async with Pods(redis_url, agent.url, application(tmp_path), BRIDGE_DRAIN_SECONDS="0.5") as pods:
        edge, worker = await asyncio.gather(pods.edge(), pods.worker())
        async with live_call(edge) as call:
            worker.terminate()
            await call.wait_end()
        assert call.report().end == "bot-disconnected"
        assert await worker.ended(10) == 0
        assert "session_end ended" in worker.stdout


async def test_an_edge_lets_go_of_calls_that_outlast_the_drain_and_they_go_on_at_another_edge(
    redis_url: str, agent: SimulatedAgent, tmp_path: Path
) -> None:
    async with Pods(redis_url, agent.url, application(tmp_path)) as pods:
        edge, other, worker = await asyncio.gather(pods.edge(BRIDGE_DRAIN_SECONDS="0.5"), pods.edge(), pods.worker())
        async with live_call(edge, CallPlan(resume_after_s=0.1, resume_url=other.url)) as call:
            edge.terminate()
            assert await edge.ended(10) == 0
            await call.say("thank_you")
            await call.wait_answer()
            await call.hang_up()
        report = call.report()
        assert (report.problem, report.violations, len(report.resume_ms)) == (None, [], 1)
        assert len(agent.connections) == 1
        await worker.until(lambda: "session_end hangup" in worker.stdout, 5, "the session_end handler")


async def test_a_second_signal_stops_a_pod_at_once(redis_url: str, agent: SimulatedAgent, tmp_path: Path) -> None:
    async with Pods(redis_url, agent.url, application(tmp_path)) as pods:
        edge, worker = await asyncio.gather(pods.edge(), pods.worker())
        async with live_call(edge):
            for pod in (worker, edge):
                pod.terminate()
                await pod.until_logged("draining")
                pod.send(signal.SIGINT)
                assert await pod.ended(5) == 1


@pytest.mark.slow
async def test_a_handler_that_blocks_its_loop_for_a_while_does_not_keep_the_pod_from_draining(
    redis_url: str, agent: SimulatedAgent, tmp_path: Path
) -> None:
    app = application(tmp_path, BLOCKED.format(seconds=3))
    async with Pods(redis_url, agent.url, app) as pods:
        edge, worker = await asyncio.gather(pods.edge(), pods.worker())
        async with live_call(edge) as call:
            await call.say("thank_you")
            await worker.until(lambda: "blocked" in worker.stdout, 10, "the blocked handler")
            worker.terminate()
            await worker.until_logged("draining")
            await call.wait_answer()  # audio is not harmed
            await call.hang_up()
        assert await worker.ended(15) == 0
        assert "session_end hangup" in worker.stdout


@pytest.mark.slow
async def test_a_handler_that_blocks_its_loop_for_good_costs_the_exit_code_and_not_the_drain(
    redis_url: str, agent: SimulatedAgent, tmp_path: Path
) -> None:
    app = application(tmp_path, BLOCKED.format(seconds=600))
    async with Pods(redis_url, agent.url, app, BRIDGE_DRAIN_SECONDS="0.5") as pods:
        edge, worker = await asyncio.gather(pods.edge(), pods.worker())
        async with live_call(edge) as call:
            await call.say("thank_you")
            await worker.until(lambda: "blocked" in worker.stdout, 10, "the blocked handler")
            worker.terminate()
            await call.wait_end()
        assert call.report().end == "bot-disconnected"
        assert await worker.ended(25) == 1
        assert worker.logged("the application's event loop is blocked, ending without it")


async def test_a_pod_told_to_stop_before_it_is_ready_does_not_start(
    redis_url: str, agent: SimulatedAgent, tmp_path: Path
) -> None:
    app = application(tmp_path)
    app.write_text(f"import time\nprint('slow', flush=True)\ntime.sleep(60)\n{app.read_text()}")
    async with Pods(redis_url, agent.url, app) as pods:
        worker = pods.begin("worker")
        await worker.until(lambda: "slow" in worker.stdout, 20, "the application")
        worker.terminate()
        assert await worker.ended(10) == 0
        assert worker.stderr == ""


async def test_an_idle_pod_ends_with_0_on_ctrl_c(redis_url: str, agent: SimulatedAgent, tmp_path: Path) -> None:
    async with Pods(redis_url, agent.url, application(tmp_path)) as pods:
        edge, worker = await asyncio.gather(pods.edge(), pods.worker())
        for pod in (edge, worker):
            pod.send(signal.SIGINT)
        assert [await edge.ended(10), await worker.ended(10)] == [0, 0]
