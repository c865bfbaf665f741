"""How much of the agent's speech the caller has heard: by the play clock, and by VAIC's word where it gives one
(Bot API reference §6.3, §6.6)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve

from bridge_shared import config
from bridge_shared.protocol.media import media
from bridge_shared.redis.calls import Line
from bridge_sim.agent import AgentConnection, AgentScript, SimulatedAgent
from bridge_sim.caller import SimulatedCall
from bridge_sim.plan import CallPlan
from conftest import RedisServer
from deepgram_audiocodes_bridge import DeepgramBridge, Session
from deepgram_audiocodes_bridge.process import command
from harness import configuration
from puppet import caller_said, says, sound, speaks, turn
from sdk import Notes
from telephone import Stage, Wire, heard, stage, wire

MULAW = media("raw/mulaw")
PATIENCE = 5.0


async def told(bridge: Stage, cid: str, heard_ms: int) -> list[Line]:
    """Wait until so much of the agent's lines is stored as heard; returns those that were begun."""
    lines: list[Line] = []
    try:
        async with asyncio.timeout(PATIENCE):
            while not lines or sum(line.heard_ms or 0 for line in lines) != heard_ms:
                lines = [line for line in await bridge.app.calls("transcript", cid) if line.role == "assistant"]
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"{lines} instead of {heard_ms} ms") from None
    return lines


async def cut(bridge: Stage, vaic: Wire) -> float:
    """Have the agent begin to speak and interrupt it; returns how many milliseconds VAIC was given."""
    agent = await bridge.connection()
    agent.say("agent_long_answer")
    begun = await vaic.until("playStream.chunk")
    await agent.barge()
    return MULAW.ms(len(heard([*begun, *await vaic.until("userStream.speech.started")])))


async def test_what_an_interrupted_caller_heard_is_what_vaic_has_played(redis_url: str, eventually: Any) -> None:
    plan = CallPlan(say=("thank_you",), barge_in=True, start_delay_s=0.0, hang_up_after=None)
    script = AgentScript(think_s=0, answers={"thank_you": ("agent_long_answer",)})
    async with stage(redis_url, script) as bridge, SimulatedCall(bridge.url, plan) as call:
        await call.connect()
        await call.initiate()
        await call.say("thank_you")
        await call.wait_interruptible()
        await call.say("goodbye")
        await bridge.event("user_started_speaking", 2)
        await eventually(lambda: call.report().heard[0].status == "interrupted")
        interrupted = call.report().heard[0]
        lines = await told(bridge, call.conversation_id, round(MULAW.ms(len(interrupted.data))))
        assert any(line.interrupted for line in lines)


async def test_a_stream_that_vaic_plays_to_its_end_after_the_interruption_counts_as_heard(redis_url: str) -> None:
    async with stage(redis_url) as bridge, wire(bridge.url) as vaic:
        await vaic.begin()
        given = await cut(bridge, vaic)
        value = {"playedDurationMS": given, "status": "finished"}
        await vaic.send(vaic.activity("playFinished", value=value))
        lines = await told(bridge, vaic.cid, round(given))
        assert any(line.interrupted for line in lines)


async def test_an_answer_that_vaic_broke_off_itself_is_not_sent_any_further(redis_url: str) -> None:
    async with stage(redis_url) as bridge, wire(bridge.url) as vaic:
        await vaic.begin()
        agent = await bridge.connection()
        agent.say("agent_long_answer")
        await vaic.until("playStream.chunk")
        await vaic.send(vaic.activity("playFinished", value={"playedDurationMS": 40, "status": "interrupted"}))
        rest = await vaic.until("playStream.stop")
        assert len(heard(rest)) < len(agent.spoken) / 2
        lines = await told(bridge, vaic.cid, 40)
        assert lines[0].interrupted
        agent.say("agent_welcome")  # the next one is heard again
        assert (await vaic.until("playStream.start"))[-1]["streamId"]


class SlowSocket:
    """A socket of an application's own that takes nothing while it is held up."""

    def __init__(self, socket: ServerConnection) -> None:
        self._socket = socket
        self.free = asyncio.Event()
        self.free.set()

    async def __aiter__(self) -> AsyncIterator[str | bytes]:
        async for message in self._socket:
            yield message

    async def send(self, message: str) -> None:
        await self.free.wait()
        await self._socket.send(message)

    async def close(self) -> None:
        await self._socket.close()


@dataclass
class Slow:
    """A call on a slow socket: VAIC's end of it, the agent, and what the handlers are told."""

    vaic: Wire
    socket: SlowSocket
    agent: AgentConnection
    notes: Notes


@contextlib.asynccontextmanager
async def slow_call(redis_url: str) -> AsyncIterator[Slow]:
    bridge = DeepgramBridge(configuration())
    notes = Notes(bridge, "activity", "agent_audio_done", "turn_timing", "session_end")
    sockets: list[SlowSocket] = []

    async def route(socket: ServerConnection) -> None:
        sockets.append(SlowSocket(socket))
        await Session.serve(sockets[0], bridge)

    async with (
        SimulatedAgent(AgentScript(think_s=0)) as agents,
        serve(route, "127.0.0.1", 0, close_timeout=1) as server,
    ):
        command(config.load(redis_url=redis_url, deepgram_url=agents.url, host="127.0.0.1", lost_seconds=1.0))
        async with wire(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}") as vaic:
            await vaic.begin()
            await notes.wait("activity")
            yield Slow(vaic, sockets[0], agents.connections[0], notes)


@pytest.mark.parametrize("by_the_play_clock", ["in the middle of it", "over"])
async def test_speech_that_vaic_broke_off_is_not_sent_behind_a_slow_socket_and_what_follows_is(
    redis_url: str, by_the_play_clock: str
) -> None:
    broken_off = {"playedDurationMS": 40, "status": "interrupted"}
    async with slow_call(redis_url) as s:
        s.socket.free.clear()
        await caller_said(s.agent, "Hello?")
        if by_the_play_clock == "over":
            await turn(s.agent, "One.", sound(500))
            await s.notes.wait("agent_audio_done")
            await turn(s.agent, "Two.", sound(300, 0x22))
            await s.notes.wait("agent_audio_done", 2)
            await s.vaic.send(s.vaic.activity("playFinished", value=broken_off))
            await s.notes.wait("activity", 2)
        else:
            await turn(s.agent, "One.", sound(3000))
            await s.notes.wait("turn_timing")  # a quarter of a second is heard
            await s.vaic.send(s.vaic.activity("playFinished", value=broken_off))
            await s.notes.wait("agent_audio_done")
            await turn(s.agent, "Two.", sound(300, 0x22))
            await s.notes.wait("agent_audio_done", 2)
        s.socket.free.set()
        got = [*await s.vaic.until("playStream.stop"), *await s.vaic.until("playStream.stop")]
        assert heard(got) == sound(300, 0x22)
        await s.vaic.hang_up()


async def test_speech_that_waits_for_a_slow_socket_is_not_sent_behind_the_end_of_the_call(redis_url: str) -> None:
    async with slow_call(redis_url) as s:
        s.socket.free.clear()
        await caller_said(s.agent, "Hello?")
        await turn(s.agent, "One.", sound(3000))
        await s.notes.wait("turn_timing")
        ending = asyncio.create_task(s.vaic.hang_up())
        await s.notes.wait("session_end")
        s.socket.free.set()
        assert heard(await ending) == b""


async def test_a_report_about_a_prompt_of_vaics_own_changes_nothing(redis_url: str) -> None:
    async with stage(redis_url) as bridge, wire(bridge.url) as vaic:
        await vaic.begin()
        agent = await bridge.connection()
        agent.say("agent_welcome")
        await vaic.until("playStream.chunk")
        await vaic.send(vaic.activity("playFinished", value={"playedDurationMS": 60000, "status": "finished"}))
        (line,) = await told(bridge, vaic.cid, 909)
        assert not line.interrupted


async def test_reports_that_make_no_sense_do_no_harm(redis_url: str) -> None:
    values: list[Any] = [None, 7, {}, {"playedDurationMS": "long"}, {"playedDurationMS": -1e300}, {"status": []}]
    async with stage(redis_url) as bridge, wire(bridge.url) as vaic:
        await vaic.begin()
        for value in values:
            await vaic.send(vaic.activity("playFinished", value=value))
        given = await cut(bridge, vaic)
        await vaic.send(vaic.activity("playFinished", value={"playedDurationMS": 1e300, "status": "?"}))
        await told(bridge, vaic.cid, round(given))


async def test_the_start_parameters_are_on_the_session_and_in_redis_as_vaic_sent_them(
    redis_url: str, eventually: Any
) -> None:
    parameters = {
        "caller": "+4930123456",
        "callee": "+4930654321",
        "globalSessionId": "8d1f",
        "X-Customer": "4711",  # a SIP header that the administrator has mapped
        "participants": [{"participant": "caller", "uriUser": "+4930123456"}],
    }
    seen: list[dict[str, Any]] = []
    async with stage(redis_url) as bridge, wire(bridge.url) as vaic:
        bridge.bridge.on("activity")(lambda session, event: seen.append(session.start_parameters))
        bridge.bridge.on("session_end")(lambda session, event: seen.append(session.start_parameters))
        await vaic.initiate()
        await vaic.expect("session.accepted")
        await vaic.send(vaic.activity("start", parameters=parameters))
        await bridge.event("activity")
        stored: dict[str, Any] = {}

        async def kept() -> bool:  # it goes when the call is finished
            stored.update((await bridge.app.calls("read", vaic.cid)).start)
            return stored == parameters

        await eventually(kept)
        await vaic.hang_up()
        await bridge.event("session_end")
    assert seen == [parameters, parameters]


@pytest.mark.slow
async def test_a_line_that_went_on_after_a_pause_is_heard_though_the_agent_never_says_that_it_is_done(
    redis_url: str, eventually: Any
) -> None:
    async with stage(redis_url) as bridge, wire(bridge.url) as vaic:
        await vaic.begin()
        agent = await bridge.connection()
        await says(agent, "It left Hamburg on Monday night.")

        async def stored(interrupted: bool) -> bool:
            lines = await bridge.app.calls("transcript", vaic.cid)
            return [line.interrupted for line in lines if line.heard_ms is not None] == [interrupted]

        await speaks(agent, sound(800))
        await eventually(partial(stored, True), 8)
        await speaks(agent, sound(1300))
        await eventually(partial(stored, False), 8)


async def test_what_was_heard_is_written_again_when_redis_has_lost_it(
    redis_server: RedisServer, eventually: Any
) -> None:
    async with stage(redis_server.url) as bridge, wire(bridge.url) as vaic:
        await vaic.begin()
        await turn(await bridge.connection(), "Yes.", sound(300))
        await told(bridge, vaic.cid, 300)
        redis_server.command("FLUSHALL")

        async def again() -> bool:
            return [line.heard_ms for line in await bridge.app.calls("transcript", vaic.cid)] == [300]

        await eventually(again)
