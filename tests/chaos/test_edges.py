"""Edges die, stand still and are replaced while callers talk, and VAIC comes back by another one."""

from __future__ import annotations

import asyncio
import contextlib
import math
import statistics
from functools import partial
from pathlib import Path

import pytest
from experiment import experiment
from figures import note
from network import Balancer, Namespace
from talking import AGENT
from websockets.asyncio.client import connect as connect_websocket
from websockets.asyncio.server import ServerConnection
from websockets.http11 import Request, Response

from bridge_shared.redis.calls import Calls
from bridge_shared.redis.connection import connect
from bridge_sim.agent import SimulatedAgent
from bridge_sim.agent_script import AgentScript
from bridge_sim.caller import SimulatedCall
from bridge_sim.plan import CallPlan
from pods import Pod, Pods, application
from telephone import Wire

NOTICED_SECONDS = 6.0
"""A half-open socket of a caller, whose other side is gone without a word, is noticed within this."""

pytestmark = pytest.mark.timeout(240)

STORM = MANY = 50
CONNECTS = 10
"""As many agent connections as a drain may have under way."""


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
    p99 = resumes[math.ceil(0.99 * STORM) - 1]
    note(name, "all accepted, 300 ms", p50=resumes[STORM // 2], p99=p99, max=resumes[-1])


@pytest.mark.slow
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


@pytest.mark.slow
async def test_all_edges_are_restarted_one_after_the_other_at_their_ports_and_nobody_is_dropped(
    redis_url: str, agent: SimulatedAgent, tmp_path: Path
) -> None:
    name, promise = "all edges restarted in turn at their ports", "0 dropped, no line lost or doubled, the same agents"
    async with experiment(redis_url, agent, tmp_path, name, promise, edges=2, calls=12, BRIDGE_DRAIN_SECONDS="2") as e:
        for edge in e.edges:
            edge.terminate()
            assert await edge.ended(40) == 0
            await e.pods.edge(BRIDGE_PORT=str(edge.port))
        await e.another_turn()
        assert agent.total == len(e.talking.calls)
        assert all(report.resume_ms for report in e.talking.reports)
    resumes = [ms for report in e.talking.reports for ms in report.resume_ms]
    note(f"{name}: ms until resumed", "300 ms", p50=statistics.median(resumes), max=max(resumes), resumes=len(resumes))


class Counting(SimulatedAgent):
    """An agent that counts how many are connecting to it.

    Attributes:
        most: the most at once.
    """

    def __init__(self, script: AgentScript) -> None:
        super().__init__(script, record=False)
        self.connecting = self.most = 0

    async def _admit(self, socket: ServerConnection, request: Request) -> Response | None:
        self.connecting += 1
        self.most = max(self.most, self.connecting)
        try:
            return await super()._admit(socket, request)
        finally:
            self.connecting -= 1


@pytest.mark.slow
async def test_a_worker_with_fifty_calls_gives_all_of_them_away_with_ten_connects_at_once_at_most(
    redis_url: str, tmp_path: Path
) -> None:
    async with (
        Counting(AGENT) as agent,
        Pods(redis_url, agent.url, application(tmp_path), BRIDGE_WORKER_CALLS=str(MANY)) as pods,
        contextlib.AsyncExitStack() as stack,
    ):
        edge, first = await asyncio.gather(pods.edge(), pods.worker())
        plan = CallPlan(turn_timeout_s=40)
        calls = [await stack.enter_async_context(SimulatedCall(edge.url, plan)) for _ in range(MANY)]
        for call in calls:  # one by one: how many connect at once is a question of the drain only
            await _begin(call)
        second = await pods.worker()
        agent.most = 0
        began = asyncio.get_running_loop().time()
        first.terminate()
        assert await first.ended(45) == 0
        drained = asyncio.get_running_loop().time() - began
        await asyncio.gather(*(call.say("thank_you") for call in calls))
        await asyncio.gather(*(call.wait_answer() for call in calls))
        await asyncio.gather(*(call.hang_up() for call in calls))
        await second.until(lambda: second.stdout.count("session_end hangup") == MANY, 20, "the finishes")
        assert [(call.report().problem, call.report().violations) for call in calls] == [(None, [])] * MANY
        assert "session_end" not in first.stdout
        assert 0 < agent.most <= CONNECTS
        assert agent.total >= 2 * MANY
    note(
        f"worker SIGTERM with {MANY} calls",
        "all moved, at most 10 connects at once",
        ms=drained * 1000,
        connects_at_once=agent.most,
        connects=agent.total - MANY,
    )


@pytest.mark.slow
@pytest.mark.parametrize("target", ["", "tel:+49301234"])
async def test_a_call_that_no_worker_goes_on_with_is_ended_in_redis_with_error_and_the_reason(
    redis_url: str, agent: SimulatedAgent, tmp_path: Path, target: str
) -> None:
    settings = {"BRIDGE_FAILOVER_TARGET": target} if target else {}
    async with Pods(redis_url, agent.url, application(tmp_path), **settings) as pods:
        edge, worker = await asyncio.gather(pods.edge(), pods.worker())
        async with SimulatedCall(edge.url, CallPlan(turn_timeout_s=40)) as call:
            await _begin(call)
            worker.kill()
            await call.wait_end()
        assert call.report().end == ("transferred" if target else "refused")
        server = await connect(redis_url, name="test")
        try:
            record = await Calls(server, "fleet", transcript_ttl=3600).read(call.conversation_id)
        finally:
            await server.close()
        assert record is not None
        why = "No worker is free to go on with the call"
        assert (record.state, record.reason, record.detail) == ("ended", "error", why)
        # the finish is owed still, and done by the first worker that comes
        later = await pods.worker()
        await later.until(lambda: "session_end error" in later.stdout, 20, "the finish")
        assert later.stdout.count("session_end") == 1


@pytest.mark.slow
async def test_a_caller_whose_host_is_gone_without_a_word_is_noticed_within_six_seconds(
    redis_url: str, agent: SimulatedAgent, tmp_path: Path
) -> None:
    if not Namespace.possible():
        pytest.skip("a half-open socket needs root, `ip` and network namespaces")
    loop = asyncio.get_running_loop()
    async with Pods(redis_url, agent.url, application(tmp_path), BRIDGE_HOST="0.0.0.0") as pods:
        edge, _ = await asyncio.gather(pods.edge(), pods.worker())
        with Namespace() as far:
            near = far.connect(edge.port)
            near.setblocking(False)
            async with connect_websocket(f"ws://{far.here}:{edge.port}", sock=near, proxy=None, close_timeout=0) as ws:
                await Wire(ws, "half-open").begin()
                far.pull()
                began = loop.time()
                await edge.until_logged("the caller's connection is lost, VAIC may resume the call", 20)
                noticed = loop.time() - began
                ws.transport.abort()
    note("caller's host gone without a word: ms until noticed", "6000 ms", max=noticed * 1000)
    assert noticed <= NOTICED_SECONDS


async def _idle(edge: Pod) -> bool:
    return await edge.metric("bridge_calls_live") == 0


async def _begin(call: SimulatedCall) -> None:
    await call.connect()
    await call.initiate()
