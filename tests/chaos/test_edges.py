"""Edges die, stand still and are replaced while callers talk, and VAIC comes back by another one."""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from pathlib import Path

import pytest
from experiment import experiment
from figures import note
from network import Balancer

from bridge_shared.redis.calls import Calls
from bridge_shared.redis.connection import connect
from bridge_sim.agent import SimulatedAgent
from bridge_sim.caller import SimulatedCall
from bridge_sim.plan import CallPlan, CallProblem
from pods import Pod, Pods, application

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

STORM = 50


@pytest.mark.gate
async def test_callers_of_an_edge_that_was_killed_go_on_at_another_with_the_same_agent(
    redis_url: str, agent: SimulatedAgent, tmp_path: Path
) -> None:
    promise = "resumed in 0.3 s, the same agent"
    async with experiment(redis_url, agent, tmp_path, "edge SIGKILL", promise, edges=2) as e:
        e.edges[0].kill()
        await e.another_turn()
        resumes = [ms for report in e.talking.reports for ms in report.resume_ms]
        assert len(resumes) == len(e.talking.calls) // 2
        assert agent.total == len(e.talking.calls)
    note("edge SIGKILL: ms until resumed", "300 ms", max=max(resumes), resumes=len(resumes))


async def test_an_edge_that_stood_still_while_its_callers_went_elsewhere_is_not_heard_when_it_wakes(
    redis_url: str, agent: SimulatedAgent, tmp_path: Path
) -> None:
    name, promise = "edge SIGSTOP 12 s, its callers elsewhere after 1 s", "not one stale frame, the same agent"
    async with Balancer([]) as network:

        def urls(edges: list[Pod]) -> list[str]:
            network.backends = [edges[0].port]
            return [f"ws://127.0.0.1:{network.port}", edges[1].url]

        async with experiment(redis_url, agent, tmp_path, name, promise, edges=2, urls=urls) as e:
            frozen = e.edges[0]
            frozen.pause()
            await asyncio.sleep(1)
            network.cut()  # VAIC gives the socket up
            await asyncio.sleep(11)
            frozen.go_on()
            await e.another_turn()
            assert sum(len(report.resume_ms) for report in e.talking.reports) == len(e.talking.calls) // 2
            assert agent.total == len(e.talking.calls)
            await frozen.until(partial(_idle, frozen), 10, "letting go of its calls")


async def test_all_edges_are_replaced_one_by_one_and_every_caller_goes_on_with_the_same_agent(
    redis_url: str, agent: SimulatedAgent, tmp_path: Path
) -> None:
    name, promise = "all edges replaced one by one behind a balancer", "0 dropped, the same agent"
    async with Balancer([]) as network:

        def urls(edges: list[Pod]) -> list[str]:
            network.backends = [edge.port for edge in edges]
            return [f"ws://127.0.0.1:{network.port}"]

        async with experiment(
            redis_url, agent, tmp_path, name, promise, edges=2, calls=20, urls=urls, BRIDGE_DRAIN_SECONDS="2"
        ) as e:
            for edge in e.edges:
                new = await e.pods.edge()
                network.backends = [*(port for port in network.backends if port != edge.port), new.port]
                edge.terminate()
                assert await edge.ended(40) == 0
            await e.another_turn()
            assert agent.total == len(e.talking.calls)


async def test_a_storm_of_resumes_is_served(redis_url: str, agent: SimulatedAgent, tmp_path: Path) -> None:
    async with (
        Pods(redis_url, agent.url, application(tmp_path), BRIDGE_WORKER_CALLS=str(STORM)) as pods,
        contextlib.AsyncExitStack() as stack,
    ):
        first, second, _ = await asyncio.gather(pods.edge(), pods.edge(), pods.worker())
        plan = CallPlan(resume_url=second.url, resume_after_s=0.1, turn_timeout_s=40)
        calls = [await stack.enter_async_context(SimulatedCall(first.url, plan)) for _ in range(STORM)]
        await asyncio.gather(*(_begin(call) for call in calls))
        first.kill()
        await second.until(lambda: all(call.report().resume_ms for call in calls), 30, "all resumes")
        await asyncio.gather(*(call.say("thank_you") for call in calls))
        await asyncio.gather(*(call.wait_answer() for call in calls))
        await asyncio.gather(*(call.hang_up() for call in calls))
        resumes = sorted(ms for call in calls for ms in call.report().resume_ms)
        assert len(resumes) == STORM
        assert [(call.report().problem, call.report().violations) for call in calls] == [(None, [])] * STORM
        assert agent.total == STORM
    name = f"edge SIGKILL, {STORM} resumes at once: ms until resumed"
    note(name, "all accepted", p50=resumes[STORM // 2], max=resumes[-1])


async def test_a_caller_cut_off_from_his_edge_goes_on_at_another_though_the_first_still_thinks_it_has_him(
    redis_url: str, agent: SimulatedAgent, tmp_path: Path
) -> None:
    async with Pods(redis_url, agent.url, application(tmp_path)) as pods:
        first, second, _ = await asyncio.gather(pods.edge(), pods.edge(), pods.worker())
        async with Balancer([first.port]) as network:
            plan = CallPlan(resume_url=second.url, resume_after_s=0.1, turn_timeout_s=40)
            async with SimulatedCall(first.url.replace(str(first.port), str(network.port)), plan) as call:
                await _begin(call)
                await call.say("thank_you")
                await call.wait_answer()
                network.cut_callers()  # VAIC gives the socket up, and the edge is not told
                await second.until(lambda: call.report().resume_ms, 10, "the resume")
                await call.say("opening_hours")
                await call.wait_answer()
                # fenced, and gone without ending the call
                await first.until(partial(_idle, first), 10, "letting go of the call")
                network.flow()
                await call.hang_up()
            assert (call.report().problem, call.report().violations) == (None, [])
            assert agent.total == 1
            server = await connect(redis_url, name="test")
            try:
                calls = Calls(server, "fleet", transcript_ttl=3600)
                lines = await calls.transcript(call.conversation_id)
                assert [line.role for line in lines] == ["user", "assistant"] * 2
            finally:
                await server.close()


async def test_a_caller_who_never_comes_back_is_lost_once_and_the_call_finished_once(
    redis_url: str, agent: SimulatedAgent, tmp_path: Path
) -> None:
    async with Pods(redis_url, agent.url, application(tmp_path), BRIDGE_LOST_SECONDS="3") as pods:
        edge, worker = await asyncio.gather(pods.edge(), pods.worker())
        async with SimulatedCall(edge.url, CallPlan(resume_after_s=600)) as call:
            await _begin(call)
            edge.kill()
            await worker.until(lambda: "session_end error" in worker.stdout, 25, "the finish")
            server = await connect(redis_url, name="test")
            try:
                record = await Calls(server, "fleet", transcript_ttl=3600).read(call.conversation_id)
                assert record is not None
                assert (record.state, record.reason, record.detail) == ("ended", "error", "lost")
            finally:
                await server.close()
        assert worker.stdout.count("session_end") == 1


@pytest.mark.parametrize("why", ["unknown", "ended", "another bridge's"])
async def test_a_resume_that_is_refused_changes_nothing_in_redis(
    redis_url: str, agent: SimulatedAgent, tmp_path: Path, why: str
) -> None:
    async with Pods(redis_url, agent.url, application(tmp_path)) as pods:
        edge, worker = await asyncio.gather(pods.edge(), pods.worker())
        async with SimulatedCall(edge.url, CallPlan(resume_after_s=600, turn_timeout_s=20)) as call:
            await _begin(call)
            server = await connect(redis_url, name="test")
            key = f"call:{{{call.conversation_id}}}"
            try:
                if why == "ended":
                    await call.hang_up()
                    await worker.until(lambda: "session_end" in worker.stdout, 10, "the finish")
                elif why == "another bridge's":
                    await server.execute("HSET", key, "bridge", "somebody else's")
                    await call.drop()
                before = await server.execute("HGETALL", key)
                other = SimulatedCall(edge.url, CallPlan(turn_timeout_s=20))
                if why != "unknown":
                    other = SimulatedCall(edge.url, CallPlan(turn_timeout_s=20), conversation_id=call.conversation_id)
                async with other:
                    with pytest.raises(CallProblem):
                        await other.resume()
                after = await server.execute("HGETALL", key)
                if why == "unknown":
                    assert not await server.execute("EXISTS", f"call:{{{other.conversation_id}}}")
                else:
                    assert after == before
            finally:
                await server.close()


async def _idle(edge: Pod) -> bool:
    return await edge.metric("bridge_calls_live") == 0


async def _begin(call: SimulatedCall) -> None:
    await call.connect()
    await call.initiate()
