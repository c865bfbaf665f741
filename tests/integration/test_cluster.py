"""Edges, workers and Redis as separate processes: every byte, every line, every way to end."""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bridge_shared.redis.calls import Calls
from bridge_shared.redis.connection import connect
from bridge_sim.agent import SimulatedAgent
from bridge_sim.caller import CallProblem, CallReport, SimulatedCall
from bridge_sim.plan import CallPlan
from deepgram_audiocodes_bridge.local import DEMO
from pods import Pods, Program, application

CALLS = 20
SILENCE = b"\xff"
"""What the bridge adds to the agent's hearing; a caller's burst never has this byte."""

EXAMPLES = Path(__file__).parents[2] / "worker" / "examples"


@pytest.fixture
async def agent() -> AsyncIterator[SimulatedAgent]:
    async with SimulatedAgent() as simulated:
        yield simulated


def burst(seed: str) -> bytes:
    """0.6 s of sound that no other call makes."""
    return bytes(random.Random(seed).choices(range(0xFF), k=4800))


def voice(audio: bytes) -> bytes:
    return audio.replace(SILENCE, b"")


async def test_twenty_calls_over_two_edges_and_two_workers_keep_every_byte_and_line(
    redis_url: str, agent: SimulatedAgent, tmp_path: Path
) -> None:
    async def caller(number: int, url: str) -> CallReport:
        async with SimulatedCall(url, CallPlan(formats=("raw/mulaw",)), conversation_id=f"call-{number}") as call:
            await call.connect()
            await call.initiate()
            await call.wait_greeting()
            for turn in range(2):
                await call.say(burst(f"{number}/{turn}"))
                await call.wait_answer()
            await call.hang_up()
        return call.report()

    # capacities that neither worker and neither edge can carry alone
    limits = {"BRIDGE_WORKER_CALLS": "14", "BRIDGE_EDGE_CALLS": "14"}
    async with Pods(redis_url, agent.url, application(tmp_path), **limits) as pods:
        first, second, *workers = await asyncio.gather(pods.edge(), pods.edge(), pods.worker(), pods.worker())
        async with asyncio.TaskGroup() as tasks:
            calls = [tasks.create_task(caller(n, (first, second)[n % 2].url)) for n in range(CALLS)]
            await agent.wait_for(lambda a: len(a.connections) == CALLS and all(c.ready for c in a.connections), 20)
            for connection in agent.connections:
                connection.say(f"You are on line {connection.number}.")  # sounds like no other line
        reports = [call.result() for call in calls]
        assert [(report.problem, report.violations) for report in reports] == [(None, [])] * CALLS
        carried = [len(worker.logged("session ended")) for worker in workers]
        assert sum(carried) == CALLS
        assert min(carried) >= CALLS - 14
        transcripts = await _transcripts(redis_url, reports)
        assert await pods.stop() == [0] * 4

    spoken_to = {voice(report.sent_audio): report for report in reports}
    assert len(spoken_to) == CALLS
    for connection in agent.connections:
        assert voice(bytes(connection.heard)) in spoken_to, connection
        report = spoken_to.pop(voice(bytes(connection.heard)))
        assert b"".join(heard.data for heard in report.heard) == bytes(connection.spoken)
        assert transcripts[report.conversation_id] == connection.texts
        assert len(connection.texts) == 5
        assert connection.problems == []


async def _transcripts(redis_url: str, reports: list[CallReport]) -> dict[str, list[tuple[str, str]]]:
    server = await connect(redis_url, name="test")
    try:
        calls = Calls(server, "fleet", transcript_ttl=60)
        return {
            report.conversation_id: [
                (line.role, line.content) for line in await calls.transcript(report.conversation_id)
            ]
            for report in reports
        }
    finally:
        await server.close()


async def brief_call(url: str, token: str | None = None) -> str:
    """Call, hear the agent begin, and hang up; what went wrong, "" if nothing."""
    try:
        async with SimulatedCall(url, CallPlan(), token=token) as call:
            await call.connect()
            await call.initiate()
            await call.wait_interruptible()
            await call.hang_up()
    except CallProblem as problem:
        return str(problem)
    assert call.report().violations == []
    return ""


async def test_an_edge_without_an_application_serves_the_bridges_of_the_workers_by_path(
    redis_url: str, agent: SimulatedAgent
) -> None:
    edges = Pods(redis_url, agent.url, None, BRIDGE_OPEN_DOOR="true")
    async with edges, Pods(redis_url, agent.url, EXAMPLES / "04_multi_agent" / "app.py") as workers:
        edge, _ = await asyncio.gather(edges.edge(), workers.worker())
        paths = ("/8001", "/8002", "", "/8003")
        refusal = "the bot sent session.error: No worker serves this path"
        problems = await asyncio.gather(*(brief_call(edge.url + path) for path in paths))
        assert problems == ["", "", refusal, refusal]
        greetings = {connection.texts[0][1] for connection in agent.connections}
        assert greetings == {
            "Parcel sales, hello. What would you like to send?",
            "Parcel support, hello. What has happened to your parcel?",
        }


async def test_an_edge_without_an_application_serves_an_only_bridge_to_those_with_its_token(
    redis_url: str, agent: SimulatedAgent
) -> None:
    edges = Pods(redis_url, agent.url, None, AC_TOKEN="new,old")
    async with edges, Pods(redis_url, agent.url, DEMO) as workers:
        edge, _ = await asyncio.gather(edges.edge(), workers.worker())
        problems = await asyncio.gather(*(brief_call(edge.url, token) for token in ("old", "new", "none of them")))
        assert problems[:2] == ["", ""]
        assert "401" in problems[2]


async def test_the_role_of_a_plain_python_program_is_a_setting(
    redis_url: str, agent: SimulatedAgent, tmp_path: Path
) -> None:
    async with Pods(redis_url, agent.url, DEMO) as pods:
        edge = await pods.edge()
        settings = {"BRIDGE_ROLE": "worker", "REDIS_URL": redis_url, "DEEPGRAM_URL": agent.url, "DEEPGRAM_API_KEY": "x"}
        worker = Program("worker", [sys.executable, str(DEMO)], settings, tmp_path).start()
        try:
            assert await brief_call(edge.url) == ""  # the edge offers it until there is a worker
            worker.terminate()
            assert await worker.ended() == 0
        finally:
            worker.close()
