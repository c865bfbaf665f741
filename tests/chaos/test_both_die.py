"""An edge is lost, and the worker too."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from bridge_sim.agent import AgentScript, SimulatedAgent
from pods import Pods, application
from puppet import says, sound, speaks
from telephone import heard, wire

SENTENCES = ("Your parcel left Hamburg early on Monday.", "It is in Ulm now and comes to you tomorrow morning.")


@pytest.mark.slow
@pytest.mark.parametrize("resumed", [False, True])
async def test_what_was_not_heard_of_the_rest_of_a_turn_at_another_edge_is_said_again_by_the_next_worker(
    redis_url: str, tmp_path: Path, resumed: bool
) -> None:
    async with (
        SimulatedAgent(AgentScript(think_s=0)) as agent,
        Pods(redis_url, agent.url, application(tmp_path)) as pods,
    ):
        first, second, worker = await asyncio.gather(pods.edge(), pods.edge(), pods.worker())
        async with wire(first.url) as former, wire(second.url, former.cid) as latter:
            await former.begin()
            await agent.wait_for(lambda a: a.connections and a.connections[0].ready, 10)
            speaker = agent.connections[0]
            await says(speaker, " ".join(SENTENCES))
            await speaks(speaker, sound(7000))
            messages = await former.until("playStream.chunk")
            caller = former
            if resumed:
                await latter.resume()
                await latter.expect("session.accepted")
                messages = await latter.until("playStream.chunk")
                caller = latter
            while len(heard(messages)) < 8 * 500:
                messages.append(await caller.next())
            await pods.worker()
            worker.kill()
            await agent.wait_for(lambda a: len(a.connections) == 2 and a.connections[1].injections, 15)
            (rest,) = (text for _, text in agent.connections[1].injections)
            assert rest.endswith(SENTENCES[1])
            await caller.hang_up()


@pytest.mark.slow
async def test_an_answer_that_went_with_its_edge_and_its_worker_is_said_again(redis_url: str, tmp_path: Path) -> None:
    async with (
        SimulatedAgent(AgentScript(think_s=0)) as agent,
        Pods(redis_url, agent.url, application(tmp_path)) as pods,
    ):
        first, second, *_ = await asyncio.gather(pods.edge(), pods.edge(), pods.worker(), pods.worker())
        async with wire(first.url) as former, wire(second.url, former.cid) as latter:
            await former.begin()
            await agent.wait_for(lambda a: a.connections and a.connections[0].ready, 10)
            await says(agent.connections[0], " ".join(SENTENCES))
            await speaks(agent.connections[0], sound(7000))
            await former.until("playStream.chunk")
            first.kill()
            worker = next(pod for pod in pods.all if pod.logged("agent connected"))
            worker.kill()
            await latter.resume()
            await latter.expect("session.accepted")
            await agent.wait_for(lambda a: len(a.connections) == 2 and a.connections[1].injections, 15)
            assert agent.connections[1].injections == [("assistant", " ".join(SENTENCES))]
            await latter.hang_up()
