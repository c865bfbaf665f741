"""Somebody dies when a call ends: it is ended once, and its `session_end` handlers succeed once."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from figures import note

from bridge_shared.redis.calls import Calls
from bridge_shared.redis.connection import connect
from bridge_sim.agent import SimulatedAgent
from bridge_sim.caller import SimulatedCall
from bridge_sim.plan import CallPlan
from pods import Pod, Pods, application

pytestmark = pytest.mark.timeout(120)

CRM = """
import pathlib
FOLDER = pathlib.Path({folder!r})

@bridge.on("session_end")
async def crm(session, event):
    (FOLDER / "begun").touch()
    while not (FOLDER / "crm is back").exists():
        await asyncio.sleep(0.01)
    with (FOLDER / "crm").open("a") as file:
        file.write(session.conversation_id + " " + str(len(session.get_transcript())) + "\\n")
"""


def owner(workers: list[Pod]) -> Pod:
    return next(worker for worker in workers if worker.logged("agent connected"))


@pytest.mark.slow
@pytest.mark.gate
async def test_a_call_whose_worker_is_killed_between_its_end_and_its_finish_is_finished_once_by_another(
    redis_url: str, agent: SimulatedAgent, tmp_path: Path
) -> None:
    app = application(tmp_path, CRM.format(folder=str(tmp_path)))
    loop = asyncio.get_running_loop()
    async with Pods(redis_url, agent.url, app) as pods:
        edge, *workers = await asyncio.gather(pods.edge(), pods.worker(), pods.worker())
        async with SimulatedCall(edge.url, CallPlan(turn_timeout_s=40)) as call:
            await call.connect()
            await call.initiate()
            await call.say("thank_you")
            await call.wait_answer()
            await call.hang_up()
            first = owner(workers)
            await first.until((tmp_path / "begun").exists, 10, "the handler")
            first.kill()
            (tmp_path / "crm is back").touch()
            killed = loop.time()
            await edge.until((tmp_path / "crm").exists, 20, "the record")
            note(
                "worker SIGKILL between end and finish: ms until the CRM has it",
                "5 s",
                ms=(loop.time() - killed) * 1000,
            )
        assert await pods.stop() == [0, *(-9 if worker is first else 0 for worker in workers)]
    assert (tmp_path / "crm").read_text() == f"{call.conversation_id} 2\n"


@pytest.mark.parametrize("turns", [0, pytest.param(1, marks=pytest.mark.slow)])
async def test_a_caller_who_hangs_up_while_his_worker_is_dead_ends_the_call_once(
    redis_url: str, agent: SimulatedAgent, tmp_path: Path, turns: int
) -> None:
    loop = asyncio.get_running_loop()
    async with Pods(redis_url, agent.url, application(tmp_path)) as pods:
        edge, *workers = await asyncio.gather(pods.edge(), pods.worker(), pods.worker())
        async with SimulatedCall(edge.url, CallPlan(turn_timeout_s=40)) as call:
            await call.connect()
            await call.initiate()
            for _ in range(turns):
                await call.say("thank_you")
                await call.wait_answer()
            first = owner(workers)
            (other,) = [worker for worker in workers if worker is not first]
            first.kill()
            hung_up = loop.time()
            await call.hang_up()
            await other.until(lambda: "session_end" in other.stdout, 20, "the finish")
            note(
                f"hung up while the worker was dead, after {turns} turns: ms until finished",
                "5 s",
                ms=(loop.time() - hung_up) * 1000,
            )
        server = await connect(redis_url, name="test")
        try:
            calls = Calls(server, "fleet", transcript_ttl=3600)
            record = await calls.read(call.conversation_id)
            assert record is not None
            assert (record.state, record.reason) == ("ended", "hangup")
            assert [line.role for line in await calls.transcript(call.conversation_id)] == ["user", "assistant"] * turns
        finally:
            await server.close()
        assert other.stdout.count("session_end hangup") == 1
        assert (call.report().problem, call.report().violations) == (None, [])
