"""Agents that are gone without a word: a pulled cable, a process that stands still, a reader that does not read."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from bridge_sim.agent import AgentScript, SimulatedAgent
from bridge_sim.caller import SimulatedCall
from bridge_sim.plan import CallPlan
from chaos.network import Balancer
from deepgram_audiocodes_bridge import DeepgramBridge
from harness import configuration, free_port, running
from pods import Program
from sdk import EVENTS, EXTRA, Notes, calling

PATH = "/v1/agent/converse"
NOTICED_SECONDS = 6.0
SLACK_SECONDS = 1.5
"""For the new connection, and for a busy machine."""


class Elsewhere:
    """Stands where `running` expects an agent: only its address counts."""

    def __init__(self, port: int) -> None:
        self.url = f"ws://127.0.0.1:{port}{PATH}"


@contextlib.asynccontextmanager
async def agent_process(folder: Path, name: str) -> AsyncIterator[tuple[Program, int]]:
    """A `bridgectl agent` of its own, and its port."""
    port = free_port()
    command = [sys.executable, "-m", "deepgram_audiocodes_bridge.cli", "agent", "--port", str(port)]
    program = Program(name, command, {}, folder).start()

    async def listening() -> bool:
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            return True
        return False

    try:
        await program.until(listening, 20, "its port")
        yield program, port
    finally:
        program.close()


@pytest.mark.slow
async def test_a_cable_pulled_between_worker_and_agent_is_noticed_and_the_call_goes_on_with_another_agent(
    redis_url: str, eventually: Callable[..., Awaitable[None]]
) -> None:
    bridge = DeepgramBridge(configuration())
    notes = Notes(bridge, *EVENTS, *EXTRA)
    loop = asyncio.get_running_loop()
    async with (
        SimulatedAgent(AgentScript(think_s=0)) as agent,
        Balancer([agent.port]) as network,
        running(bridge, redis_url, Elsewhere(network.port), agent_open_timeout=2.0) as app,
    ):
        async with calling(app.url) as call:
            agent.connections[0].say("agent_welcome")
            await notes.wait("agent_audio_done")
            await asyncio.sleep(3.0)  # until a ping has been answered
            network.stall()
            pulled = loop.time()
            await eventually(lambda: network.connections > 1, NOTICED_SECONDS + SLACK_SECONDS)
            assert loop.time() - pulled < NOTICED_SECONDS + SLACK_SECONDS
            network.flow()
            await notes.wait("session_resumed")
            await notes.session.send_user_message("What did I say first?")
            await notes.wait("conversation_text", 3)
            await call.hang_up()
        await notes.wait("session_end")
    assert notes.of("error") == []
    assert call.report().violations == []


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["freeze", "stand still"])
async def test_an_agent_that_stands_still_while_its_kernel_acknowledges_everything_is_replaced(
    redis_url: str, tmp_path: Path, fault: str
) -> None:
    bridge = DeepgramBridge(configuration())
    notes = Notes(bridge, *EVENTS, *EXTRA)
    loop = asyncio.get_running_loop()
    async with (
        agent_process(tmp_path, "first") as (first, port),
        SimulatedAgent(AgentScript(think_s=0)) as second,
        Balancer([port]) as network,
        running(bridge, redis_url, Elsewhere(network.port)) as app,
    ):
        if fault == "freeze":
            network.backends = [second.port]
        async with calling(app.url) as call:
            await call.say("thank_you")
            await call.wait_answer()
            await asyncio.sleep(3.0)  # until a ping has been answered
            network.backends = [second.port]
            before = second.total
            if fault == "freeze":
                second.connections[0].freeze()
            else:
                first.pause()
            stood = loop.time()
            await second.wait_for(lambda agent: agent.total == before + 1, NOTICED_SECONDS + SLACK_SECONDS)
            assert loop.time() - stood < NOTICED_SECONDS + SLACK_SECONDS
            await notes.wait("session_resumed")
            await call.say("opening_hours")
            await call.wait_answer()
            await call.hang_up()
        await notes.wait("session_end")
    assert [event.code for event in notes.of("warning")] == ["connection_closed"]
    assert notes.of("error") == []
    assert call.report().violations == []


@pytest.mark.slow
async def test_a_call_whose_agent_does_not_read_any_more_can_be_ended_at_once(redis_url: str) -> None:
    bridge = DeepgramBridge(configuration())
    notes = Notes(bridge)
    async with SimulatedAgent(AgentScript(think_s=0)) as agent, running(bridge, redis_url, agent) as app:
        async with SimulatedCall(app.url, CallPlan(barge_in=True, start_delay_s=0.0)) as call:
            await call.connect()
            await call.initiate()
            agent.connections[0].freeze()
            for _ in range(200):
                await notes.session.send_user_message("x" * 20_000)  # more than any kernel buffers
            await call.hang_up()
        await notes.wait("session_end", seconds=4.0)


@pytest.mark.slow
async def test_an_agent_that_is_slow_but_answers_pings_keeps_its_call(redis_url: str) -> None:
    bridge = DeepgramBridge(configuration())
    notes = Notes(bridge, *EVENTS, *EXTRA)
    async with SimulatedAgent(AgentScript(think_s=8.5)) as agent, running(bridge, redis_url, agent) as app:
        async with calling(app.url) as call:
            await notes.session.send_user_message("What did I say first?")
            await notes.wait("conversation_text", 2, seconds=15)
            await call.hang_up()
        await notes.wait("session_end")
        assert agent.total == 1
    assert notes.of("warning") == []
