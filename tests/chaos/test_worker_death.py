"""A worker dies in the middle of a call: the caller stays on the line, and the agent remembers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from bridge_shared.redis.calls import Calls, Line
from bridge_shared.redis.connection import connect
from bridge_sim.agent import AgentScript, SimulatedAgent
from bridge_sim.agent_connection import AgentConnection
from bridge_sim.caller import SimulatedCall
from bridge_sim.plan import CallPlan
from bridge_sim.report import CallEvent
from pods import Pod, Pods, application
from puppet import caller_said, says, sound, speaks

SECONDS = 10.0

HOURS = (
    ("user", "What are your opening hours, please?"),
    ("assistant", "We are open from eight to six, Monday to Friday."),
)
ASKED_AGAIN = ("assistant", "Sorry, could you say that again?")


class Scene:
    """One call over one edge, with two workers of which one has it."""

    def __init__(self, agent: SimulatedAgent, call: SimulatedCall, workers: list[Pod], url: str) -> None:
        self.agent, self.call = agent, call
        self._workers, self._url = workers, url
        self._speaking, self._news = False, asyncio.Event()

    @property
    def connection(self) -> AgentConnection:
        """The agent's latest connection."""
        return self.agent.connections[-1]

    async def transcript(self) -> list[Line]:
        server = await connect(self._url, name="test")
        try:
            return await Calls(server, "fleet", transcript_ttl=3600).transcript(self.call.conversation_id)
        finally:
            await server.close()

    async def speaking(self) -> None:
        """Wait until VAIC has been told that the caller speaks."""
        async with asyncio.timeout(SECONDS):
            while not self._speaking:
                self._news.clear()
                await self._news.wait()

    def note(self, event: CallEvent) -> None:
        if event.kind == "speech":
            self._speaking = event.text == "started"
            self._news.set()

    def kill_the_owner(self) -> None:
        """SIGKILL the worker that has the call."""
        next(worker for worker in self._workers if worker.logged("agent connected")).kill()

    async def new_agent(self) -> AgentConnection:
        """The agent connection that replaced the first one."""
        await self.agent.wait_for(lambda agent: len(agent.connections) == 2 and agent.connections[1].ready, SECONDS)
        return self.agent.connections[1]


@contextlib.asynccontextmanager
async def scene(
    redis_url: str, folder: Path, *, script: AgentScript | None = None, workers: int = 2, **settings: str
) -> AsyncIterator[Scene]:
    async with (
        SimulatedAgent(script or AgentScript(think_s=0.0)) as agent,
        Pods(redis_url, agent.url, application(folder), **settings) as pods,
    ):
        edge, *started = await asyncio.gather(pods.edge(), *(pods.worker() for _ in range(workers)))
        plan = CallPlan(barge_in=True, turn_timeout_s=40)
        async with SimulatedCall(edge.url, plan, on_event=lambda event: made.note(event)) as call:
            made = Scene(agent, call, started, redis_url)
            await call.connect()
            await call.initiate()
            yield made


def texts(lines: list[Line]) -> list[tuple[str, str]]:
    return [(line.role, line.content) for line in lines]


async def test_after_a_worker_died_in_silence_the_agent_knows_what_was_said_and_answers(
    redis_url: str, tmp_path: Path
) -> None:
    async with scene(redis_url, tmp_path) as s:
        await s.call.say("thank_you")
        await s.call.wait_answer()
        s.kill_the_owner()
        agent = await s.new_agent()
        assert [item["content"] for item in agent.context][-2:] == [
            "Thank you very much for your help.",
            "You are welcome.",
        ]
        assert "greeting" not in agent.settings["agent"]
        await s.call.say("opening_hours")
        await s.call.wait_answer()
        await s.call.hang_up()
        lines = texts(await s.transcript())
    assert s.call.report().violations == []
    assert lines[-2:] == list(HOURS)
    assert len(set(lines)) == len(lines)


@pytest.mark.slow
async def test_what_the_caller_had_said_unanswered_when_a_worker_died_is_answered(
    redis_url: str, tmp_path: Path, eventually: Any
) -> None:
    async with scene(redis_url, tmp_path, script=AgentScript(think_s=3.0)) as s:
        await s.call.say("thank_you")
        await s.connection.wait_for(lambda agent: agent.texts and agent.texts[-1][0] == "user", SECONDS)
        await eventually(s.transcript)  # its line is there
        s.kill_the_owner()
        agent = await s.new_agent()
        await agent.wait_for(lambda agent: ("assistant", "You are welcome.") in agent.texts, SECONDS)
        await s.call.wait_answer()
        await s.call.hang_up()
        lines = texts(await s.transcript())
    assert lines.count(("user", "Thank you very much for your help.")) == 1
    assert lines[-1] == ("assistant", "You are welcome.")


@pytest.mark.slow
async def test_a_caller_who_spoke_when_a_worker_died_is_understood(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path) as s:
        await s.call.say("thank_you")
        await s.call.wait_answer()
        saying = asyncio.create_task(s.call.say("opening_hours"))
        await s.speaking()
        s.kill_the_owner()
        await saying
        await s.new_agent()
        await s.call.wait_answer()
        if (last := texts(await s.transcript())[-1]) != HOURS[1]:  # the takeover came too late for a replay
            assert last == ASKED_AGAIN
            await s.call.say("opening_hours")
            await s.call.wait_answer()
        await s.call.hang_up()
        lines = texts(await s.transcript())
    assert lines[-2:] == list(HOURS)
    assert lines.count(HOURS[0]) == 1
    assert s.call.report().violations == []


@pytest.mark.parametrize("after", [0.5, pytest.param(2.0, marks=pytest.mark.slow)])
async def test_what_was_not_heard_when_a_worker_died_is_said_again(
    after: float, redis_url: str, tmp_path: Path
) -> None:
    async with scene(redis_url, tmp_path) as s:
        await s.call.say("long_story")
        await s.connection.wait_for(lambda agent: agent.texts and agent.texts[-1][0] == "assistant", 20)
        await asyncio.sleep(after)  # into the sentence: there are words that were heard, and words that were not
        s.kill_the_owner()
        agent = await s.new_agent()
        await agent.wait_for(lambda agent: agent.injections, SECONDS)
        await s.call.wait_answer()
        await s.call.hang_up()
        lines = await s.transcript()
    said = texts(lines)
    assert len(set(said)) == len(said)
    assert agent.injections[0][1] in " ".join(content for role, content in said if role == "assistant")


@pytest.mark.slow
async def test_an_answer_of_which_no_audio_had_come_when_a_worker_died_is_said(
    redis_url: str, tmp_path: Path, eventually: Any
) -> None:
    answer = "The driver will ring at your door between ten and twelve."
    async with scene(redis_url, tmp_path) as s:
        await s.call.say("thank_you")
        await s.call.wait_answer()
        await caller_said(s.connection, "When does it come?")
        await says(s.connection, answer)

        async def stored() -> bool:
            return texts(await s.transcript())[-1:] == [("assistant", answer)]

        await eventually(stored)
        s.kill_the_owner()
        agent = await s.new_agent()
        await agent.wait_for(lambda agent: ("assistant", answer) in agent.texts, SECONDS)
        assert agent.context[-1]["content"] == "When does it come?"
        await s.call.wait_answer()
        lines = await s.transcript()
    assert texts(lines).count(("assistant", answer)) == 1


@pytest.mark.slow
async def test_what_an_agent_had_not_said_when_its_worker_died_in_a_pause_of_it_is_said(
    redis_url: str, tmp_path: Path, eventually: Any
) -> None:
    rest = "The driver will ring at your door between ten and twelve."
    async with scene(redis_url, tmp_path) as s:
        await says(s.connection, f"Yes. {rest}")
        await speaks(s.connection, sound(500))

        async def stored() -> bool:
            lines = await s.transcript()
            return bool(lines) and lines[-1].heard_ms is not None

        await eventually(stored)
        (line,) = await s.transcript()
        assert (line.heard_ms, line.interrupted) == (500, True)
        s.kill_the_owner()
        agent = await s.new_agent()
        await agent.wait_for(lambda agent: ("assistant", rest) in agent.texts, SECONDS)


@pytest.mark.slow
async def test_a_caller_whose_worker_died_and_for_whom_there_is_no_other_is_told_so(
    redis_url: str, tmp_path: Path
) -> None:
    async with scene(redis_url, tmp_path, workers=1) as s:
        s.kill_the_owner()
        await s.call.wait_end()
    report = s.call.report()
    assert report.activities == []
    problem = "the bot sent session.error: No worker is free to go on with the call"
    assert (report.end, report.problem) == ("refused", problem)


@pytest.mark.slow
async def test_a_caller_for_whom_there_is_no_worker_left_is_transferred_to_the_failover_target(
    redis_url: str, tmp_path: Path
) -> None:
    async with scene(redis_url, tmp_path, workers=1, BRIDGE_FAILOVER_TARGET="tel:+49301234") as s:
        s.kill_the_owner()
        await s.call.wait_end()
    report = s.call.report()
    assert (report.end, report.violations) == ("transferred", [])
    assert [activity["activityParams"] for activity in report.activities] == [{"transferTarget": "tel:+49301234"}]
