"""A caller comes back by another edge: what the former edge still says, and what the application has said meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from figures import note
from websockets.exceptions import ConnectionClosed

from bridge_shared.redis.calls import CallRecord, Calls
from bridge_shared.redis.connection import connect
from bridge_sim.agent import SimulatedAgent
from bridge_sim.agent_connection import AgentConnection
from pods import Pod, Pods, application
from telephone import Wire, types, wire

COMMANDS = """
@bridge.on("conversation_text")
async def command(session, event):
    if "keys" in event.content:
        print("commanded", flush=True)
        await session.send_dtmf("123")
    elif "goodbye" in event.content:
        print("commanded", flush=True)
        await session.end_session("enough")
    elif "colleague" in event.content:
        print("commanded", flush=True)
        await session.transfer("tel:+49301234")

@bridge.on("error")
def error(session, event):
    print("error", event, flush=True)
"""
"""The agent's words tell it what to do."""

WORDS = [
    ("Please press the keys.", "sendDtmf"),
    ("And so goodbye.", "hangup"),
    ("My colleague knows.", "transfer"),
]
"""What the agent says, and the command that VAIC is given for it."""

STORY = "Let me read your parcel's whole journey to you. " + "It was in one more town that day. " * 12
STALE = b"\x2a" * 1600
"""Caller audio like no other."""

LOST = "the caller's connection is lost, VAIC may resume the call"
"""What an edge logs then."""

FROZEN_SECONDS = 10.0
QUIET_SECONDS = 1.0
"""A paused pod writes nothing more: what its kernel still had for us is here by then."""


@pytest.fixture
async def agent() -> AsyncIterator[SimulatedAgent]:
    async with SimulatedAgent() as simulated:
        yield simulated


async def connection(agent: SimulatedAgent) -> AgentConnection:
    (ready,) = await agent.wait_for(lambda a: [c for c in a.connections if c.ready], 10)
    return ready


async def read(redis_url: str, cid: str) -> CallRecord:
    """The call as Redis has it."""
    server = await connect(redis_url, name="test")
    try:
        record = await Calls(server, "fleet", transcript_ttl=3600).read(cid)
    finally:
        await server.close()
    assert record is not None
    return record


async def drained(caller: Wire) -> list[dict[str, Any]]:
    """What the socket still held, of a pod that stands still."""
    messages: list[dict[str, Any]] = []
    with contextlib.suppress(TimeoutError):
        while True:
            async with asyncio.timeout(QUIET_SECONDS):
                messages.append(json.loads(await caller.socket.recv()))
    return messages


def commands(messages: list[dict[str, Any]]) -> list[str]:
    """The names of the activities that VAIC was given."""
    return [activity["name"] for message in messages for activity in message.get("activities", ())]


@dataclass
class Woken:
    """What came of a call whose edge stood still while the caller went to another one.

    Attributes:
        stale: what the former edge sent to its socket after it woke, until it closed it.
        before, during, after: the call in Redis: at the former edge, at the other one, and when the former has woken.
        end: what the worker printed.
        heard: all that the agent heard of the caller.
    """

    stale: list[dict[str, Any]]
    before: CallRecord
    during: CallRecord
    after: CallRecord
    end: str
    heard: bytes


async def woken(redis_url: str, agent: SimulatedAgent, folder: Path) -> Woken:
    """SIGSTOP an edge while the agent speaks, go on at another one, and SIGCONT the first after 10 s. The caller's
    former socket is open all the time."""
    async with Pods(redis_url, agent.url, application(folder)) as pods:
        first, second, worker = await asyncio.gather(pods.edge(), pods.edge(), pods.worker())
        async with wire(first.url) as former, wire(second.url, former.cid) as latter:
            await former.begin()
            speaker = await connection(agent)
            speaker.say(STORY)
            await former.until("playStream.chunk")
            before = await read(redis_url, former.cid)
            first.pause()
            await drained(former)
            await latter.resume()
            await latter.until("session.accepted")
            await latter.until("playStream.chunk")  # the agent goes on
            await former.send(former.chunk(STALE))
            await asyncio.sleep(FROZEN_SECONDS)
            during = await read(redis_url, former.cid)
            first.go_on()
            stale = await former.rest()
            after = await read(redis_url, former.cid)
            await latter.hang_up()
            await worker.until(lambda: "session_end" in worker.stdout, 10, "the finish")
        return Woken(stale, before, during, after, worker.stdout, bytes(speaker.heard))


@pytest.mark.slow
async def test_an_edge_that_wakes_after_its_caller_went_elsewhere_lets_go_of_him_without_ending_the_call(
    redis_url: str, agent: SimulatedAgent, tmp_path: Path
) -> None:
    w = await woken(redis_url, agent, tmp_path)
    note("edge SIGSTOP 10 s, woken: stale chunks on the socket that VAIC has left", "0", chunks=len(w.stale))
    assert set(types(w.stale)) <= {"playStream.chunk"}  # nothing that would end or change the call
    assert (w.during.state, w.after.state) == ("active", "active")
    assert (w.after.edge, w.after.ee) == (w.during.edge, w.during.ee)
    assert w.during.edge != w.before.edge and w.during.ee > w.before.ee
    assert w.end.count("session_end") == w.end.count("session_end hangup") == 1
    assert agent.total == 1
    assert STALE[:160] not in w.heard  # what came by the former edge


@pytest.mark.slow
async def test_an_edge_that_wakes_after_its_caller_went_elsewhere_sends_not_one_stale_frame(
    redis_url: str, agent: SimulatedAgent, tmp_path: Path
) -> None:
    assert types((await woken(redis_url, agent, tmp_path)).stale) == []


@pytest.mark.parametrize(("words", "name"), WORDS)
async def test_a_command_given_while_no_edge_has_the_caller_is_carried_out_once_when_he_is_back(
    redis_url: str, agent: SimulatedAgent, tmp_path: Path, words: str, name: str
) -> None:
    async with Pods(redis_url, agent.url, application(tmp_path, COMMANDS)) as pods:
        first, second, worker = await asyncio.gather(pods.edge(), pods.edge(), pods.worker())
        async with wire(first.url) as former, wire(second.url, former.cid) as latter:
            await former.begin()
            speaker = await connection(agent)
            first.kill()
            speaker.say(words)
            await worker.until(lambda: "commanded" in worker.stdout, 10, "the command")
            await latter.resume()
            messages = await _until_commanded(latter)
            assert messages[0]["type"] == "session.accepted"
            messages += await latter.hang_up()
        await worker.until(lambda: "session_end" in worker.stdout, 10, "the finish")
        assert commands(messages) == [name]
        assert worker.stdout.count("session_end") == 1
        assert "error" not in worker.stdout
        assert agent.total == 1


@pytest.mark.parametrize(("words", "name"), WORDS)
async def test_a_caller_who_is_at_two_edges_at_once_is_played_to_and_commanded_at_the_newest_only(
    redis_url: str, agent: SimulatedAgent, tmp_path: Path, words: str, name: str
) -> None:
    async with Pods(redis_url, agent.url, application(tmp_path, COMMANDS)) as pods:
        first, second, worker = await asyncio.gather(pods.edge(), pods.edge(), pods.worker())
        async with wire(first.url) as former, wire(second.url, former.cid) as latter:
            await former.begin()
            speaker = await connection(agent)
            await latter.resume()
            await latter.until("session.accepted")
            speaker.say(words)
            messages = await latter.until("playStream.stop")
            if not commands(messages):
                messages += await _until_commanded(latter)
            assert await former.rest() == []  # closed, and told nothing
            messages += await latter.hang_up()
        await worker.until(lambda: "session_end" in worker.stdout, 10, "the finish")
        assert commands(messages) == [name]
        assert types(messages).count("playStream.start") == 1
        assert worker.stdout.count("session_end") == 1
        assert agent.total == 1


async def test_a_caller_who_comes_back_while_the_owner_stands_still_is_accepted_all_the_same(
    redis_url: str, agent: SimulatedAgent, tmp_path: Path
) -> None:
    async with Pods(redis_url, agent.url, application(tmp_path)) as pods:
        first, second, worker = await asyncio.gather(pods.edge(), pods.edge(), pods.worker())
        async with wire(first.url) as former, wire(second.url, former.cid) as latter:
            await former.begin()
            speaker = await connection(agent)
            worker.pause()
            await latter.resume()
            await latter.expect("session.accepted")
            worker.go_on()
            assert await former.rest() == []
            speaker.say("Hello.")
            await latter.until("playStream.stop")
            await latter.hang_up()
        assert agent.total == 1


@pytest.mark.parametrize("attached", [True, False], ids=["attached", "being attached"])
async def test_a_socket_that_is_lost_before_its_resume_is_accepted_does_not_end_the_call(
    redis_url: str, agent: SimulatedAgent, tmp_path: Path, attached: bool
) -> None:
    async with Pods(redis_url, agent.url, application(tmp_path)) as pods:
        first, second, worker = await asyncio.gather(pods.edge(), pods.edge(), pods.worker())
        async with wire(first.url) as former, wire(second.url, former.cid) as lost, wire(first.url, former.cid) as last:
            await former.begin()
            await connection(agent)
            before = await read(redis_url, former.cid)
            worker.pause()
            await lost.resume()
            if attached:
                await second.until(partial(_elsewhere, redis_url, before), 10, "the resume")
            await lost.drop()
            await second.until_logged(LOST, 10)
            worker.go_on()
            await last.resume()
            await last.expect("session.accepted")
            await last.hang_up()
        assert agent.total == 1


@pytest.mark.parametrize("why", ["unknown", "ended", "another bridge's"])
async def test_a_resume_that_is_refused_leaves_every_key_of_the_call_as_it_was(
    redis_url: str, agent: SimulatedAgent, tmp_path: Path, why: str
) -> None:
    async with Pods(redis_url, agent.url, application(tmp_path)) as pods:
        edge, worker = await asyncio.gather(pods.edge(), pods.worker())
        server = await connect(redis_url, name="test")
        try:
            async with wire(edge.url) as former, contextlib.AsyncExitStack() as stack:
                key = f"call:{{{former.cid}}}"
                await former.begin()
                speaker = await connection(agent)
                speaker.say("Hello.")
                await former.until("playStream.stop")
                await worker.until(lambda: _exists(server, f"{key}:heard"), 10, "what was heard")
                if why == "ended":
                    await former.hang_up()
                    await worker.until(lambda: "session_end" in worker.stdout, 10, "the handler")
                    await _finished(redis_url, former.cid, worker)
                elif why == "another bridge's":
                    await server.execute("HSET", key, "bridge", "somebody else's")
                cid = former.cid if why != "unknown" else f"{former.cid}.not"
                latter = await stack.enter_async_context(wire(edge.url, cid))
                before = await _dumps(server)
                await latter.resume()
                assert (await latter.rest())[0]["type"] == "session.error"
                assert await _dumps(server) == before
        finally:
            await server.close()


async def _until_commanded(caller: Wire) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    async with asyncio.timeout(20):
        while not commands(messages):
            try:
                messages.append(json.loads(await caller.socket.recv()))
            except ConnectionClosed as closed:
                raise AssertionError(f"closed without a command, after {types(messages)}") from closed
    return messages


async def _finished(redis_url: str, cid: str, worker: Pod) -> None:
    """Wait until nothing is owed to the call any more."""

    async def done() -> bool:
        return "finished_ms" in (await read(redis_url, cid)).raw

    await worker.until(done, 10, "the end of the finish")


async def _elsewhere(redis_url: str, before: CallRecord) -> bool:
    """Whether another socket has attached the call since."""
    return (await read(redis_url, before.cid)).ee > before.ee


async def _exists(server: Any, key: str) -> bool:
    return bool(await server.execute("EXISTS", key))


async def _dumps(server: Any) -> dict[bytes, bytes]:
    """Every key of every call, as Redis would restore it."""
    keys = await server.execute("KEYS", "call:*")
    return {key: await server.execute("DUMP", key) for key in sorted(keys)}
