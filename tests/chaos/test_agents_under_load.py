"""Deepgram fails while callers talk."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from experiment import experiment
from talking import AGENT

from bridge_sim.agent import Faults, SimulatedAgent
from bridge_sim.agent_connection import AgentConnection

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.mark.gate
async def test_when_every_agent_connection_breaks_at_once_every_call_goes_on_with_another(
    redis_url: str, agent: SimulatedAgent, tmp_path: Path
) -> None:
    name, promise = "every agent connection dropped at once", "reconnected with history in 2 s"
    async with experiment(redis_url, agent, tmp_path, name, promise) as e:
        with e.fault():
            for connection in agent.connections:
                connection.drop()
        await e.another_turn()
        assert agent.total == 2 * len(e.talking.calls)


async def test_when_every_agent_connection_is_closed_with_1011_every_call_goes_on_with_another(
    redis_url: str, agent: SimulatedAgent, tmp_path: Path
) -> None:
    name, promise = "every agent connection closed with 1011", "reconnected with history in 2 s"
    async with experiment(redis_url, agent, tmp_path, name, promise) as e:
        with e.fault():
            await asyncio.gather(*(connection.close(1011) for connection in agent.connections))
        await e.another_turn()


async def test_while_deepgram_answers_429_for_ten_seconds_calls_wait_and_go_on(
    redis_url: str, agent: SimulatedAgent, tmp_path: Path
) -> None:
    name, promise = "all connections dropped, and 429 for 10 s", "0 dropped, at most 5 tries a second and worker"
    async with experiment(redis_url, agent, tmp_path, name, promise) as e:
        agent.script = replace(AGENT, faults=Faults(refuse_handshakes=1_000_000, refuse_status=429))
        with e.fault(after=3.0):
            for connection in agent.connections:
                connection.drop()
            await asyncio.sleep(10)
            agent.script = AGENT
        await e.another_turn()
        assert 0 < agent.refused <= 2 * 5 * 11


async def test_agents_that_fall_silent_all_at_once_are_replaced(
    redis_url: str, agent: SimulatedAgent, tmp_path: Path
) -> None:
    name, promise = (
        "every agent silent when it owes an answer, but answering pings",
        "replaced when it owes an answer for 4 s",
    )
    async with experiment(redis_url, agent, tmp_path, name, promise, BRIDGE_AGENT_STALL_SECONDS="4") as e:
        with e.fault(after=8.0):
            await asyncio.gather(*(_stall_when_it_owes_an_answer(connection) for connection in agent.connections))
        await e.another_turn()
        assert agent.total == 2 * len(e.talking.calls)


async def _stall_when_it_owes_an_answer(connection: AgentConnection) -> None:
    await connection.wait_for(lambda agent: agent.texts and agent.texts[-1][0] == "user", 30)
    connection.stall()
