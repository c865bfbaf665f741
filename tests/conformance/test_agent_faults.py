"""Deepgram's own failures in the middle of a call: mended within a budget, and otherwise an honest end."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from bridge_sim.agent import AgentScript, Faults, SimulatedAgent
from deepgram_audiocodes_bridge import DeepgramBridge
from harness import configuration, running
from sdk import EVENTS, EXTRA, WELCOME, Notes, calling

QUICK = AgentScript(think_s=0)
SLOW_SECONDS = 40.0


def refusing(status: int, times: int = 1_000_000) -> AgentScript:
    """An agent whose door is shut, and later open."""
    return AgentScript(think_s=0, faults=Faults(refuse_handshakes=times, refuse_status=status))


@pytest.mark.parametrize("status", [400, 401, 402, 403])
async def test_a_refusal_that_stays_is_not_tried_again_in_mid_call_and_the_caller_goes_to_the_failover_target(
    redis_url: str, status: int
) -> None:
    bridge = DeepgramBridge(configuration())
    notes = Notes(bridge)
    async with (
        SimulatedAgent(QUICK) as agent,
        running(bridge, redis_url, agent, failover_target="tel:+49301") as app,
        calling(app.url) as call,
    ):
        agent.script = refusing(status)
        await agent.connections[0].close(1011)
        await call.wait_end()
        await notes.wait("session_end")
        assert agent.refused == 1
    assert call.report().end == "transferred"
    (error,), (end,) = notes.of("error"), notes.of("session_end")
    assert (error.code, error.recoverable) == ("connect_failed", False)
    assert str(status) in error.description
    assert notes.of("warning") == []
    assert end.reason == "error"


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_refusal_that_passes_is_waited_out_in_mid_call_and_costs_a_warning(redis_url: str, status: int) -> None:
    bridge = DeepgramBridge(configuration())
    notes = Notes(bridge, *EVENTS, *EXTRA)
    async with SimulatedAgent(QUICK) as agent, running(bridge, redis_url, agent) as app, calling(app.url) as call:
        agent.script = refusing(status, times=3)
        agent.connections[0].drop()
        await notes.wait("session_resumed")
        assert agent.refused == 3
        agent.connections[1].say("agent_welcome")
        await notes.wait("agent_audio_done")
        await call.hang_up()
        await notes.wait("session_end")
    assert notes.of("error") == []
    assert len(notes.of("warning")) == 1
    assert notes.texts == [("assistant", WELCOME)]


async def test_an_agent_that_closes_again_and_again_is_given_up_when_the_budget_is_spent(redis_url: str) -> None:
    bridge = DeepgramBridge(configuration())
    notes = Notes(bridge)
    async with (
        SimulatedAgent(AgentScript(faults=Faults(close_code=1011, after_s=0.05))) as agent,
        running(bridge, redis_url, agent) as app,
        calling(app.url) as call,
    ):
        await notes.wait("session_end", seconds=20)
        await call.wait_end()
        assert agent.total == 5
    assert [event.code for event in notes.of("warning")] == ["connection_closed"] * 4
    (error,) = notes.of("error")
    assert (error.code, error.recoverable) == ("connection_closed", False)
    assert call.report().end == "bot-disconnected"


async def test_an_agent_that_owes_an_answer_for_too_long_is_replaced_by_one_that_gives_it(redis_url: str) -> None:
    bridge = DeepgramBridge(configuration())
    notes = Notes(bridge, *EVENTS, *EXTRA)
    async with (
        SimulatedAgent(AgentScript(think_s=600)) as agent,
        running(bridge, redis_url, agent, agent_stall_seconds=2.0) as app,
        calling(app.url),
    ):
        agent.script = QUICK
        await notes.session.send_user_message("What did I say first?")
        await notes.wait("conversation_text", 2)
        assert len(agent.connections) == 2
    assert notes.texts == [("user", "What did I say first?"), ("assistant", "You have said nothing yet.")]
    assert [event.code for event in notes.of("warning")] == ["agent_stalled"]
    assert [event.reason for event in notes.of("session_resumed")] == ["agent_lost"]
    assert notes.of("error") == []


@pytest.mark.slow
async def test_calls_go_on_after_ten_seconds_of_429_and_their_worker_tries_at_most_five_times_a_second(
    redis_url: str,
) -> None:
    bridge = DeepgramBridge(configuration())
    notes = Notes(bridge, *EVENTS, *EXTRA)
    loop = asyncio.get_running_loop()
    async with (
        SimulatedAgent(QUICK) as agent,
        running(bridge, redis_url, agent) as app,
        contextlib.AsyncExitStack() as callers,
    ):
        for _ in range(30):
            await callers.enter_async_context(calling(app.url))
        agent.script = refusing(429)
        began = loop.time()
        for connection in list(agent.connections):
            connection.drop()
        await asyncio.sleep(10.0)  # how often it is tried in this time is what is asked
        refused, shut = agent.refused, loop.time() - began
        agent.script = QUICK
        opened = loop.time()
        await notes.wait("session_resumed", 30, SLOW_SECONDS)
        assert loop.time() - opened < 4.0
    assert refused <= 5 * shut + 30  # the calls' first tries went before anybody knew
    assert refused >= 5
    assert notes.of("error") == []
