"""Redis stands still, dies, forgets, is full, moves: what that costs callers who talk."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from experiment import Experiment, experiment
from network import Balancer
from talking import busiest

from bridge_shared.redis.calls import CallKeys
from bridge_sim.agent import SimulatedAgent
from conftest import RedisServer
from redis_topologies import ClusterServers, Sentinels, started

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture
def lasting_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A server that finds its data again when it is restarted."""
    server = RedisServer(lasting(tmp_path))
    yield server
    server.stop()


def lasting(folder: Path) -> list[str]:
    return ["--appendonly", "yes", "--appendfsync", "everysec", "--dir", str(folder)]


def untouched(e: Experiment) -> None:
    """No call has changed hands, and no socket was lost."""
    assert e.agent.total == len(e.talking.calls)
    assert [len(report.resume_ms) for report in e.talking.reports] == [0] * len(e.talking.calls)


async def test_a_redis_that_stands_still_for_five_seconds_costs_a_pause_and_no_takeover(
    redis_server: RedisServer, agent: SimulatedAgent, tmp_path: Path
) -> None:
    async with experiment(redis_server.url, agent, tmp_path, "Redis SIGSTOP 5 s", "0 takeovers, 0 lines lost") as e:
        redis_server.pause()
        await asyncio.sleep(5)
        redis_server.resume()
        await e.another_turn()
        untouched(e)


@pytest.mark.gate
async def test_a_redis_that_is_killed_and_comes_back_with_its_data_costs_a_pause_and_no_line(
    lasting_redis: RedisServer, agent: SimulatedAgent, tmp_path: Path
) -> None:
    name = "Redis SIGKILL, back after 3 s with AOF"
    async with experiment(lasting_redis.url, agent, tmp_path, name, "0 takeovers, 0 lines lost") as e:
        lasting_redis.kill()
        await asyncio.sleep(3)
        lasting_redis.restart(lasting(tmp_path))
        await e.another_turn()
        untouched(e)


async def test_a_redis_that_cuts_connections_forgets_scripts_and_pauses_clients_goes_unnoticed(
    redis_server: RedisServer, agent: SimulatedAgent, tmp_path: Path
) -> None:
    name = "CLIENT KILL, SCRIPT FLUSH, CLIENT PAUSE 3 s"
    async with experiment(redis_server.url, agent, tmp_path, name, "0 takeovers, 0 lines lost") as e:
        redis_server.kill_clients()
        redis_server.kill_clients("pubsub")
        await asyncio.sleep(1)
        redis_server.command("SCRIPT", "FLUSH")
        redis_server.command("CLIENT", "PAUSE", "3000", "ALL")
        await e.another_turn()
        untouched(e)


@pytest.mark.gate
async def test_a_redis_that_is_full_for_five_seconds_costs_no_live_call_and_no_line(
    redis_server: RedisServer, agent: SimulatedAgent, tmp_path: Path
) -> None:
    name = "Redis at maxmemory for 5 s"
    async with experiment(redis_server.url, agent, tmp_path, name, "0 takeovers, 0 lines lost") as e:
        redis_server.command("CONFIG", "SET", "maxmemory", "1")
        await asyncio.sleep(5)
        redis_server.command("CONFIG", "SET", "maxmemory", "0")
        await e.another_turn()
        untouched(e)


@pytest.mark.gate
async def test_after_redis_was_emptied_every_call_goes_on_and_every_transcript_is_whole_at_its_end(
    redis_server: RedisServer, agent: SimulatedAgent, tmp_path: Path
) -> None:
    async with experiment(redis_server.url, agent, tmp_path, "FLUSHALL", "working in 5 s, transcripts whole") as e:
        redis_server.command("FLUSHALL")
        await e.another_turn()
        untouched(e)


async def test_after_redis_was_emptied_and_a_worker_died_at_once_every_call_goes_on(
    redis_server: RedisServer, agent: SimulatedAgent, tmp_path: Path
) -> None:
    name = "FLUSHALL, and a worker SIGKILL 2 s later"
    async with experiment(redis_server.url, agent, tmp_path, name, "0 dropped, transcripts whole") as e:
        redis_server.command("FLUSHALL")
        await asyncio.sleep(2)
        with e.fault():
            busiest(e.workers).kill()
        await e.another_turn()


async def test_garbage_in_the_keys_of_one_call_harms_no_other_and_ends_no_pod(
    redis_server: RedisServer, agent: SimulatedAgent, tmp_path: Path
) -> None:
    name = "the transcript of a live call overwritten with another type"
    async with experiment(redis_server.url, agent, tmp_path, name, "that call goes on, no other notices") as e:
        keys = CallKeys.of(e.talking.calls[0].conversation_id)
        for key in (keys.transcript, keys.functions, keys.heard):
            redis_server.command("DEL", key)
            redis_server.command("SET", key, "garbage")
        redis_server.command("HSET", keys.call, "settings", "{not json", "media_format", "x" * 4096)
        await e.another_turn()
        assert all(pod.running for pod in e.pods.all)
        untouched(e)


async def test_a_worker_that_is_cut_off_from_redis_loses_its_calls_to_another_and_does_no_harm_when_it_is_back(
    redis_url: str, agent: SimulatedAgent, tmp_path: Path
) -> None:
    port = int(redis_url.rpartition(":")[2].partition("/")[0])
    name = "a worker cut off from Redis for 8 s"
    async with (
        Balancer([port]) as network,
        experiment(redis_url, agent, tmp_path, name, "taken over in 4 s, nothing stale", workers=1) as e,
    ):
        through = redis_url.replace(str(port), str(network.port))
        cut_off = await e.pods.worker(REDIS_URL=through)
        e.workers[0].terminate()
        assert await e.workers[0].ended(40) == 0  # its calls are at the other one now
        other = await e.pods.worker()
        with e.fault(after=3.0):
            network.stall()
            await asyncio.sleep(8)
            network.flow()
        await e.another_turn()
        assert other.logged("call taken over")
        assert cut_off.running


@pytest.mark.gate
async def test_when_the_primary_behind_sentinels_is_killed_the_calls_go_on_at_the_next_one(
    agent: SimulatedAgent, tmp_path: Path
) -> None:
    with started(Sentinels) as servers:
        servers.settle()
        name = "Sentinel: primary SIGKILL"
        async with experiment(servers.url, agent, tmp_path, name, "0 dropped, 0 lines lost") as e:
            servers.primary().kill()
            await e.another_turn()
            untouched(e)


async def test_when_the_primary_behind_sentinels_stood_still_and_wakes_its_writes_are_not_believed(
    agent: SimulatedAgent, tmp_path: Path
) -> None:
    with started(Sentinels) as servers:
        servers.settle()
        name = "Sentinel: primary SIGSTOP 8 s, then awake"
        async with experiment(servers.url, agent, tmp_path, name, "0 dropped, 0 lines lost") as e:
            primary = servers.primary()
            primary.pause()
            await asyncio.sleep(8)
            primary.resume()
            await e.another_turn()


async def test_when_a_primary_of_a_cluster_is_killed_the_calls_go_on_at_its_replica(
    agent: SimulatedAgent, tmp_path: Path
) -> None:
    with started(ClusterServers) as servers:
        servers.settle()
        name = "Cluster: the fleet's primary SIGKILL"
        async with experiment(servers.url, agent, tmp_path, name, "0 dropped, 0 lines lost") as e:
            servers.owner("{fleet}").kill()
            await e.another_turn()
