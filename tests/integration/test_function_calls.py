"""Function calls: recorded before they run, answered once, and finished though an agent or a worker is lost."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from bridge_sim.agent import AgentScript, SimulatedAgent
from bridge_sim.caller import SimulatedCall
from bridge_sim.plan import CallPlan
from deepgram_audiocodes_bridge import DeepgramBridge, Session
from harness import AGENT, configuration, running
from pods import Pod, Pods, application
from sdk import EVENTS, EXTRA, Notes, calling

Eventually = Callable[..., Awaitable[None]]

QUICK = AgentScript(think_s=0.0)
TRACK = {"name": "track_parcel", "description": "where a parcel is"}
SECONDS = 10.0

WORKING = """
import json, os, pathlib
FOLDER = pathlib.Path({folder!r})

@bridge.on("function_call_request")
async def work(session, event):
    for call in event.functions:
        with (FOLDER / "work").open("a") as file:
            file.write(json.dumps([call.id, call.arguments, session.idempotency_key(call), os.getpid()]) + "\\n")
        while not (FOLDER / "done").exists():
            await asyncio.sleep(0.01)
        await session.respond_to_function_call(call.id, call.name, "It is in the depot.")
"""


def bridge_with_a_function() -> DeepgramBridge:
    agent = {**AGENT["agent"], "think": {**AGENT["agent"]["think"], "functions": [TRACK]}}
    return DeepgramBridge(configuration(deepgram_config={"agent": agent}))


def work_done(folder: Path) -> list[list[Any]]:
    file = folder / "work"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def owner(workers: list[Pod]) -> Pod:
    return next(worker for worker in workers if worker.logged("agent connected"))


async def test_a_function_call_whose_worker_died_is_carried_out_by_the_next_one_and_its_result_is_spoken(
    redis_url: str, tmp_path: Path, eventually: Eventually
) -> None:
    app = application(tmp_path, WORKING.format(folder=str(tmp_path)), functions=["track_parcel"])
    async with SimulatedAgent(QUICK) as agent, Pods(redis_url, agent.url, app) as pods:
        edge, *workers = await asyncio.gather(pods.edge(), pods.worker(), pods.worker())
        async with SimulatedCall(edge.url, CallPlan(turn_timeout_s=40)) as call:
            await call.connect()
            await call.initiate()
            await call.say("parcel_number")
            await eventually(lambda: len(work_done(tmp_path)) == 1)
            owner(workers).kill()
            await eventually(lambda: len(work_done(tmp_path)) == 2, SECONDS)
            first, second = work_done(tmp_path)
            await agent.wait_for(lambda agent: len(agent.connections) == 2 and agent.connections[1].ready, SECONDS)
            connection = agent.connections[1]
            (tmp_path / "done").touch()
            await connection.wait_for(lambda agent: ("assistant", "It is in the depot.") in agent.texts, SECONDS)
            await call.wait_answer()
            await call.hang_up()
    assert first[:3] == second[:3]  # the same call, with the same key
    assert first[3] != second[3]
    assert work_done(tmp_path) == [first, second]
    assert [(r.name, r.content, r.expected) for r in connection.responses] == [
        ("track_parcel", "It is in the depot.", True)
    ]
    assert call.report().violations == []


@pytest.mark.slow
async def test_a_function_call_whose_arguments_may_not_be_stored_is_asked_for_again_when_its_worker_dies(
    redis_url: str, tmp_path: Path, eventually: Eventually
) -> None:
    app = application(tmp_path, WORKING.format(folder=str(tmp_path)), functions=["pay"])
    arguments = '{"card":"4111111111111111"}'
    script = AgentScript(think_s=0.0, calls={"parcel_number": (("pay", arguments),)})
    async with SimulatedAgent(script) as agent, Pods(redis_url, agent.url, app, BRIDGE_REDACT=r"\d{16}") as pods:
        edge, *workers = await asyncio.gather(pods.edge(), pods.worker(), pods.worker())
        async with SimulatedCall(edge.url, CallPlan(turn_timeout_s=40)) as call:
            await call.connect()
            await call.initiate()
            await call.say("parcel_number")
            await eventually(lambda: len(work_done(tmp_path)) == 1)
            owner(workers).kill()
            await eventually(lambda: len(work_done(tmp_path)) == 2, SECONDS)
            (tmp_path / "done").touch()
            await call.wait_answer()
            await call.hang_up()
    first, second = work_done(tmp_path)
    assert first[1:3] == [arguments, second[2]]  # the same work, with the same key
    assert second[1] == arguments


async def test_a_call_that_was_answered_before_the_agent_was_lost_is_not_carried_out_again(redis_url: str) -> None:
    bridge = bridge_with_a_function()
    notes = Notes(bridge, *EVENTS, *EXTRA)
    async with SimulatedAgent(QUICK) as agent, running(bridge, redis_url, agent) as app, calling(app.url) as call:
        await call.say("parcel_number")
        (first,) = (await notes.wait("function_call_request")).functions
        agent.connections[0].drop()  # what is answered now, nobody hears
        await notes.session.respond_to_function_call(first.id, first.name, "It is in the depot.")
        await agent.wait_for(lambda agent: len(agent.connections) == 2 and agent.connections[1].responses, SECONDS)
        await notes.wait("agent_audio_done")
        connection = agent.connections[1]
        assert len(notes.of("function_call_request")) == 1
        # what is asked for once the caller has had the answer is new
        connection.call(("track_parcel", first.arguments))
        (again,) = (await notes.wait("function_call_request", 2)).functions
        assert notes.session.idempotency_key(again) != notes.session.idempotency_key(first)
    assert [response.content for response in connection.responses] == ["It is in the depot."]
    assert notes.texts[-1] == ("assistant", "It is in the depot.")


async def test_a_call_that_runs_while_its_agent_is_replaced_runs_once_and_answers_the_next_agent(
    redis_url: str,
) -> None:
    bridge = bridge_with_a_function()
    notes = Notes(bridge, *EVENTS, *EXTRA)
    async with SimulatedAgent(QUICK) as agent, running(bridge, redis_url, agent) as app, calling(app.url) as call:
        await call.say("parcel_number")
        (first,) = (await notes.wait("function_call_request")).functions
        agent.connections[0].drop()
        await notes.wait("session_resumed")
        connection = agent.connections[1]
        await connection.wait_for(lambda agent: agent.busy, SECONDS)
        await notes.session.respond_to_function_call(first.id, first.name, "It is in the depot.")
        await notes.wait("agent_audio_done")
    assert len(notes.of("function_call_request")) == 1
    assert [response.content for response in connection.responses] == ["It is in the depot."]
    assert [role for role, _ in notes.texts].count("user") == 1


@pytest.mark.parametrize("handler", ["raises", "hangs", "missing", "answers with no text"])
async def test_an_agent_does_not_wait_for_ever_for_an_application_that_does_not_answer(
    redis_url: str, handler: str
) -> None:
    bridge = bridge_with_a_function()

    async def broken(session: Session, event: Any) -> None:
        if handler == "raises":
            raise KeyError("secret of the application")
        if handler == "answers with no text":
            call = event.functions[0]
            await session.respond_to_function_call(call.id, call.name, {"state": "secret"})  # type: ignore[arg-type]
        await asyncio.Event().wait()

    if handler != "missing":
        bridge.on("function_call_request")(broken)
    async with (
        SimulatedAgent(QUICK) as agent,
        running(bridge, redis_url, agent, handler_timeout=0.5) as app,
        calling(app.url),
    ):
        connection = agent.connections[0]
        connection.call(("track_parcel", "{}"))
        await connection.wait_for(lambda agent: agent.responses, SECONDS)
    (response,) = connection.responses
    assert json.loads(response.content).keys() == {"error"}
    assert "secret" not in response.content


async def test_a_call_is_recorded_before_it_runs_and_its_answer_before_it_is_sent(redis_url: str) -> None:
    bridge = bridge_with_a_function()
    notes = Notes(bridge, "function_call_request", "session_start")
    async with SimulatedAgent(QUICK) as agent, running(bridge, redis_url, agent) as app, calling(app.url) as call:

        async def kinds() -> list[str]:
            entries = await app.calls("entries", f"call:{{{call.conversation_id}}}:functions")
            return [fields["kind"] for _, fields in entries]

        agent.connections[0].call(("track_parcel", "{}"))
        (asked,) = (await notes.wait("function_call_request")).functions
        assert await kinds() == ["request"]
        await notes.session.respond_to_function_call(asked.id, asked.name, "There.")
        assert (await kinds())[:2] == ["request", "response"]


async def test_arguments_that_come_as_an_object_reach_handlers_as_json_text(redis_url: str) -> None:
    bridge = bridge_with_a_function()
    notes = Notes(bridge, "function_call_request", "session_start")
    async with SimulatedAgent(QUICK) as agent, running(bridge, redis_url, agent) as app, calling(app.url):
        function = {"id": "f1", "name": "track_parcel", "arguments": {"no": "Z1"}, "client_side": True}
        await agent.connections[0].send_json({"type": "FunctionCallRequest", "functions": [function]})
        (asked,) = (await notes.wait("function_call_request")).functions
    assert json.loads(asked.arguments) == {"no": "Z1"}
