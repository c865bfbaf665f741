"""Faults while callers talk: nobody is dropped, no line is lost or doubled, and what is only slow is left alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from figures import note
from talking import check, talk

from bridge_sim.agent import AgentScript, SimulatedAgent
from conftest import RedisServer
from pods import Pod, Pods, application

CALLS = 6
CONNECT_SECONDS = 0.25

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


@pytest.fixture
async def agent() -> AsyncIterator[SimulatedAgent]:
    async with SimulatedAgent(AgentScript(open_delay_s=CONNECT_SECONDS)) as simulated:
        yield simulated


@pytest.fixture
def lasting_redis(tmp_path: Path) -> AsyncIterator[RedisServer]:
    """A server that finds its data again when it is restarted."""
    server = RedisServer(options(tmp_path))
    yield server
    server.stop()


def options(folder: Path) -> list[str]:
    return ["--appendonly", "yes", "--appendfsync", "everysec", "--dir", str(folder)]


async def cluster(pods: Pods, edges: int = 1, workers: int = 2) -> tuple[list[Pod], list[Pod]]:
    started = await asyncio.gather(*(pods.edge() for _ in range(edges)), *(pods.worker() for _ in range(workers)))
    return started[:edges], started[edges:]


def busiest(workers: list[Pod]) -> Pod:
    """The worker that has most of the calls: a fault that befalls an idle one shows nothing."""
    return max(workers, key=lambda worker: len(worker.logged("agent connected")))


async def test_calls_of_a_worker_that_stood_still_for_ten_seconds_go_on_elsewhere_and_it_does_no_harm_when_it_wakes(
    redis_url: str, agent: SimulatedAgent, tmp_path: Path
) -> None:
    async with Pods(redis_url, agent.url, application(tmp_path)) as pods:
        (edge,), workers = await cluster(pods)
        async with talk(CALLS, edge.url) as talking:
            first = busiest(workers)
            first.pause()
            await asyncio.sleep(10)
            first.go_on()
            turns = talking.turns
            await first.until(lambda: talking.turns >= turns + CALLS, 40, "another turn of everybody")
            assert sum(not connection.closed for connection in agent.connections) == CALLS
            assert agent.total > CALLS  # it had calls, and they were taken over
        await check(redis_url, talking, agent, "worker SIGSTOP 10 s, 6 calls", every_line=False)
        assert not any("session_end error" in worker.stdout for worker in workers)


async def test_workers_that_stand_still_for_less_than_a_second_and_a_half_keep_their_calls(
    redis_url: str, agent: SimulatedAgent, tmp_path: Path
) -> None:
    async with Pods(redis_url, agent.url, application(tmp_path)) as pods:
        (edge,), workers = await cluster(pods)
        async with talk(CALLS, edge.url) as talking:
            for seconds in (0.4, 0.9, 1.5):
                for worker in workers:
                    worker.pause()
                    await asyncio.sleep(seconds)
                    worker.go_on()
        await check(redis_url, talking, agent, "workers SIGSTOP 0.4 to 1.5 s, 6 calls")
        assert agent.total == CALLS  # not one takeover


async def test_a_redis_that_stands_still_for_five_seconds_costs_a_pause_and_no_takeover(
    redis_server: RedisServer, agent: SimulatedAgent, tmp_path: Path
) -> None:
    async with Pods(redis_server.url, agent.url, application(tmp_path)) as pods:
        (edge,), _ = await cluster(pods)
        async with talk(CALLS, edge.url) as talking:
            redis_server.pause()
            await asyncio.sleep(5)
            redis_server.resume()
        await check(redis_server.url, talking, agent, "Redis SIGSTOP 5 s, 6 calls")
        assert agent.total == CALLS
        assert [len(report.resume_ms) for report in talking.reports] == [0] * CALLS  # sockets stayed up


async def test_a_redis_that_is_killed_and_comes_back_with_its_data_costs_a_pause_and_no_line(
    lasting_redis: RedisServer, agent: SimulatedAgent, tmp_path: Path
) -> None:
    async with Pods(lasting_redis.url, agent.url, application(tmp_path)) as pods:
        (edge,), _ = await cluster(pods)
        async with talk(CALLS, edge.url) as talking:
            lasting_redis.kill()
            await asyncio.sleep(3)
            lasting_redis.restart(options(tmp_path))
        await check(lasting_redis.url, talking, agent, "Redis SIGKILL, back after 3 s with AOF, 6 calls")
        assert agent.total == CALLS
        assert [len(report.resume_ms) for report in talking.reports] == [0] * CALLS


async def test_a_redis_that_cuts_connections_forgets_scripts_and_pauses_clients_goes_unnoticed(
    redis_server: RedisServer, agent: SimulatedAgent, tmp_path: Path
) -> None:
    async with Pods(redis_server.url, agent.url, application(tmp_path)) as pods:
        (edge,), _ = await cluster(pods)
        async with talk(CALLS, edge.url) as talking:
            redis_server.kill_clients()
            redis_server.kill_clients("pubsub")
            await asyncio.sleep(1)
            redis_server.command("SCRIPT", "FLUSH")
            redis_server.command("CLIENT", "PAUSE", "3000", "ALL")
            await asyncio.sleep(3)
        await check(redis_server.url, talking, agent, "CLIENT KILL, SCRIPT FLUSH, CLIENT PAUSE 3 s, 6 calls")
        assert agent.total == CALLS


async def test_a_redis_that_is_full_for_five_seconds_costs_no_live_call_and_no_line(
    redis_server: RedisServer, agent: SimulatedAgent, tmp_path: Path
) -> None:
    async with Pods(redis_server.url, agent.url, application(tmp_path)) as pods:
        (edge,), _ = await cluster(pods)
        async with talk(CALLS, edge.url) as talking:
            redis_server.command("CONFIG", "SET", "maxmemory", "1")
            await asyncio.sleep(5)
            redis_server.command("CONFIG", "SET", "maxmemory", "0")
        await check(redis_server.url, talking, agent, "Redis at maxmemory for 5 s, 6 calls")
        assert agent.total == CALLS


async def test_when_every_agent_connection_breaks_at_once_every_call_goes_on_with_another(
    redis_url: str, agent: SimulatedAgent, tmp_path: Path
) -> None:
    async with Pods(redis_url, agent.url, application(tmp_path)) as pods:
        (edge,), _ = await cluster(pods)
        async with talk(CALLS, edge.url) as talking:
            for connection in agent.connections:
                connection.drop()
            await agent.wait_for(lambda a: a.total == 2 * CALLS, 20)
        await check(redis_url, talking, agent, "every agent connection dropped at once, 6 calls", every_line=False)


async def test_callers_of_an_edge_that_was_killed_go_on_at_another_with_the_same_agent(
    redis_url: str, agent: SimulatedAgent, tmp_path: Path
) -> None:
    async with Pods(redis_url, agent.url, application(tmp_path)) as pods:
        (first, second), _ = await cluster(pods, edges=2)
        async with talk(CALLS, first.url, second.url) as talking:
            first.kill()
            await second.until(lambda: sum(len(r.resume_ms) for r in talking.reports) == CALLS // 2, 20, "resumes")
        await check(redis_url, talking, agent, "edge SIGKILL, 3 of 6 calls resume")
        assert agent.total == CALLS
        resumes = [ms for report in talking.reports for ms in report.resume_ms]
        note("edge SIGKILL: session.resume to session.accepted", max=max(resumes), resumes=len(resumes))


async def test_half_of_all_pods_can_die_at_once(redis_url: str, agent: SimulatedAgent, tmp_path: Path) -> None:
    async with Pods(redis_url, agent.url, application(tmp_path)) as pods:
        (first, second), workers = await cluster(pods, edges=2)
        async with talk(CALLS, first.url, second.url) as talking:
            first.kill()
            busiest(workers).kill()
            turns = talking.turns
            await second.until(lambda: talking.turns >= turns + CALLS, 60, "another turn of everybody")
            assert agent.total > CALLS  # the worker had calls, and they were taken over
        await check(redis_url, talking, agent, "an edge and a worker SIGKILL at once, 6 calls", every_line=False)
