"""A worker that is told to stop gives its calls to another one, and nobody on the telephone notices."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bridge_sim.agent import SimulatedAgent
from bridge_sim.caller import SimulatedCall
from bridge_sim.plan import CallPlan
from pods import Pod, Pods, application, environment

RESUMED = """
@bridge.on("session_resumed")
def resumed(session, event):
    print("resumed", event.reason, flush=True)
"""


@pytest.fixture
async def agent() -> AsyncIterator[SimulatedAgent]:
    async with SimulatedAgent() as simulated:
        yield simulated


@contextlib.asynccontextmanager
async def live_call(edge: Pod) -> AsyncIterator[SimulatedCall]:
    async with SimulatedCall(edge.url, CallPlan()) as call:
        await call.connect()
        await call.initiate()
        yield call


async def test_a_worker_told_to_stop_hands_its_calls_over_and_the_agent_remembers(
    redis_url: str, agent: SimulatedAgent, tmp_path: Path
) -> None:
    async with Pods(redis_url, agent.url, application(tmp_path, RESUMED)) as pods:
        edge, first = await asyncio.gather(pods.edge(), pods.worker())
        async with contextlib.AsyncExitStack() as stack:
            calls = [await stack.enter_async_context(live_call(edge)) for _ in range(3)]
            await asyncio.gather(*(call.say("thank_you") for call in calls))
            await asyncio.gather(*(call.wait_answer() for call in calls))
            second = await pods.worker()
            first.terminate()
            assert await first.ended(15) == 0
            await asyncio.gather(*(call.say("goodbye") for call in calls))
            await asyncio.gather(*(call.wait_answer() for call in calls))
            await asyncio.gather(*(call.hang_up() for call in calls))
        assert [(call.report().problem, call.report().violations) for call in calls] == [(None, [])] * 3
        assert len(agent.connections) == 6
        for connection in agent.connections[3:]:
            messages = connection.settings["agent"]["context"]["messages"]
            assert [message["role"] for message in messages] == ["user", "assistant"]
            assert connection.problems == []
        assert "session_end" not in first.stdout
        await second.until(lambda: second.stdout.count("session_end hangup") == 3, 5, "the session_end handlers")
        assert second.stdout.count("resumed handover") == 3


@pytest.mark.slow
async def test_a_call_is_not_handed_over_while_the_agent_speaks(
    redis_url: str, agent: SimulatedAgent, tmp_path: Path
) -> None:
    async with Pods(redis_url, agent.url, application(tmp_path)) as pods:
        edge, first = await asyncio.gather(pods.edge(), pods.worker())
        async with live_call(edge) as call:
            (former,) = await agent.wait_for(lambda a: [c for c in a.connections if c.ready], 10)
            former.say("Let me read your parcel's whole journey to you. It left Hamburg on Monday. It is in Ulm now.")
            await call.wait_interruptible()
            await pods.worker()
            first.terminate()
            await call.wait_answer()
            assert await first.ended(15) == 0
            await call.say("goodbye")
            await call.wait_answer()
            await call.hang_up()
        assert (call.report().problem, call.report().violations) == (None, [])
        latter = agent.connections[1]
        assert "It is in Ulm now." in str(latter.settings["agent"]["context"]["messages"])
        assert b"".join(heard.data for heard in call.report().heard) == bytes(former.spoken) + bytes(latter.spoken)


@pytest.mark.slow
async def test_a_worker_that_cannot_reach_the_agent_says_so_and_is_not_asked_again_at_once(
    redis_url: str, agent: SimulatedAgent, tmp_path: Path
) -> None:
    async with Pods(redis_url, agent.url, application(tmp_path), BRIDGE_DRAIN_SECONDS="6") as pods:
        edge, first = await asyncio.gather(pods.edge(), pods.worker())
        async with live_call(edge) as call:
            cut_off = await pods.worker(http_proxy="no proxy at all")
            first.terminate()
            await cut_off.until_logged("a call cannot be taken")
            other = await pods.worker()
            assert await first.ended(20) == 0
            await call.say("goodbye")
            await call.wait_answer()
            await call.hang_up()
        assert (call.report().problem, call.report().violations) == (None, [])
        assert cut_off.running
        assert len(cut_off.logged("a call cannot be taken")) <= 15
        assert other.logged("call taken over")


FUNCTION = """
@bridge.on("function_call_request")
def asked(session, event):
    async def answer():
        print("asked", flush=True)
        while not pathlib.Path({go!r}).exists():
            await asyncio.sleep(0.02)
        for call in event.functions:
            await session.respond_to_function_call(call.id, call.name, "It is in Ulm.")
    tasks.append(asyncio.create_task(answer()))

import pathlib
tasks = []
bridge._config.deepgram_config["agent"]["think"]["functions"] = [{{"name": "track_parcel", "description": "Where it is",
    "parameters": {{"type": "object", "properties": {{"number": {{"type": "string"}}}}}}}}]
"""
"""It returns at once, and a task of its own answers later."""


@pytest.mark.slow
async def test_a_call_is_not_handed_over_while_a_function_call_waits_for_its_answer(
    redis_url: str, agent: SimulatedAgent, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    app = application(tmp_path, FUNCTION.format(go=str(go)) + RESUMED)
    async with Pods(redis_url, agent.url, app) as pods:
        edge, first = await asyncio.gather(pods.edge(), pods.worker())
        async with live_call(edge) as call:
            (former,) = await agent.wait_for(lambda a: [c for c in a.connections if c.ready], 10)
            former.say("One moment please.")
            former.call(("track_parcel", '{"number":"Z1"}'))
            await first.until(lambda: "asked" in first.stdout, 10, "the function call")
            second = await pods.worker()
            first.terminate()
            # the taker waits as well, gives its first connection up, and begins again
            await agent.wait_for(lambda a: len(a.connections) > 2, 15)
            go.touch()
            await former.wait_for(lambda c: any("Ulm" in text for _, text in c.texts), 10)
            assert await first.ended(20) == 0
            await second.until_logged("call taken over")
            await call.say("goodbye")
            await call.wait_answer()
            await call.hang_up()
        assert (call.report().problem, call.report().violations) == (None, [])


HANG_UP = """
@bridge.on("conversation_text")
async def said(session, event):
    if "oodbye" in event.content:
        await session.end_session("bye")
"""


async def test_a_call_that_is_being_hung_up_is_hung_up_also_when_the_drain_runs_out_of_time(
    redis_url: str, agent: SimulatedAgent, tmp_path: Path
) -> None:
    app = application(tmp_path, HANG_UP)
    async with Pods(redis_url, agent.url, app, BRIDGE_DRAIN_SECONDS="3") as pods:
        edge, first = await asyncio.gather(pods.edge(), pods.worker())
        async with live_call(edge) as call:
            (former,) = await agent.wait_for(lambda a: [c for c in a.connections if c.ready], 10)
            second = await pods.worker()
            former.say("Goodbye then, and thank you for your call to the desk where lost parcels come home again. " * 2)
            await call.wait_interruptible()
            first.terminate()
            await call.wait_end()
        assert call.report().end == "bot-disconnected"
        assert await first.ended(10) == 0
        assert "session_end ended" in first.stdout
        assert not second.logged("call taken over")


async def test_a_taker_goes_on_at_once_with_the_agent_that_it_has_when_the_owner_dies_in_its_drain(
    redis_url: str, agent: SimulatedAgent, tmp_path: Path
) -> None:
    async with Pods(redis_url, agent.url, application(tmp_path)) as pods:
        edge, first = await asyncio.gather(pods.edge(), pods.worker())
        async with live_call(edge) as call:
            (former,) = await agent.wait_for(lambda a: [c for c in a.connections if c.ready], 10)
            former.say("Let me read your parcel's whole journey to you. " + "It was in one more town that day. " * 8)
            await call.wait_interruptible()
            second = await pods.worker()
            first.terminate()
            await agent.wait_for(lambda a: len(a.connections) > 1, 10)
            first.kill()
            await second.until_logged("call taken over")
            await agent.wait_for(lambda a: a.connections[1].ready, 10)
            await call.hang_up()
        assert len(agent.connections) == 2  # not one given up, and another one opened


async def test_bridgectl_drain_moves_the_calls_of_a_pod_and_ends_it(
    redis_url: str, agent: SimulatedAgent, tmp_path: Path
) -> None:
    async with Pods(redis_url, agent.url, application(tmp_path)) as pods:
        edge, first = await asyncio.gather(pods.edge(), pods.worker())
        async with live_call(edge) as call:
            listed = json.loads(await bridgectl(redis_url, "pods", "--json"))
            assert [(pod["role"], pod["calls"]) for pod in listed] == [("worker", 1), ("edge", 1)]
            await pods.worker()
            assert "drains" in await bridgectl(redis_url, "drain", listed[0]["pod"])
            assert await first.ended(15) == 0
            await call.say("goodbye")
            await call.wait_answer()
            await call.hang_up()
        assert (call.report().problem, call.report().violations) == (None, [])
        assert "no pod 'nobody' answers" in await bridgectl(redis_url, "drain", "nobody", code=1)


async def bridgectl(redis_url: str, *arguments: str, code: int = 0) -> str:
    """What it prints; it has to end with this code."""
    program = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "deepgram_audiocodes_bridge.cli",
        *arguments,
        env=environment({"REDIS_URL": redis_url}),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await program.communicate()
    assert program.returncode == code, said.decode()
    return said.decode()


@pytest.mark.slow
async def test_an_agent_connection_is_replaced_in_a_pause_before_it_becomes_too_old(
    redis_url: str, agent: SimulatedAgent, tmp_path: Path
) -> None:
    app = application(tmp_path, RESUMED)
    async with Pods(redis_url, agent.url, app, BRIDGE_AGENT_SESSION_SECONDS="4") as pods:
        edge, worker = await asyncio.gather(pods.edge(), pods.worker())
        async with live_call(edge) as call:
            await call.say("thank_you")
            await call.wait_answer()
            await agent.wait_for(lambda a: len(a.connections) > 1 and a.connections[1].ready, 20)
            await call.say("goodbye")
            await call.wait_answer()
            await call.hang_up()
        assert (call.report().problem, call.report().violations) == (None, [])
        assert set(worker.stdout.splitlines()[:-1]) == {"resumed agent_renewed"}
        assert agent.connections[0].problems == agent.connections[1].problems == []
        assert len(agent.connections[1].settings["agent"]["context"]["messages"]) == 2
        assert not worker.logged("agent lost, connecting again")
