"""What goes beside the speech: reports, warnings, activities; and caller audio that was held up."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from bridge_sim.agent_script import AgentScript, Faults
from deepgram_audiocodes_bridge import DeepgramBridge
from harness import configuration
from puppet import MULAW, says, sound, speaks, turn
from telephone import messages_for, stage, types, wire

pytestmark = pytest.mark.slow


async def test_every_barge_in_is_reported_to_vaic_also_after_a_noise_that_came_to_no_text(redis_url: str) -> None:
    async with stage(redis_url) as bridge, wire(bridge.url) as vaic:
        await vaic.begin()
        agent = await bridge.connection()
        await agent.send_json({"type": "UserStartedSpeaking"})  # a cough
        await vaic.until("userStream.speech.started")
        await says(agent, "A long answer.")
        await speaks(agent, sound(3000))
        await vaic.until("playStream.chunk")
        await agent.send_json({"type": "UserStartedSpeaking"})
        got = types(await messages_for(vaic, 1.5))
        assert "playStream.stop" in got
        assert "userStream.speech.started" in got


async def test_what_the_application_puts_into_the_callers_mouth_is_not_reported_to_vaic_as_speech(
    redis_url: str,
) -> None:
    async with stage(redis_url) as bridge, wire(bridge.url) as vaic:
        await vaic.begin()
        await bridge.event("session_start")
        await bridge.sessions[vaic.cid].send_user_message("The card was charged.")
        got = types(await vaic.until("playStream.start"))
        assert [kind for kind in got if kind.startswith("userStream.speech")] == []


async def test_a_warning_that_refuses_an_injection_reaches_the_handlers(redis_url: str) -> None:
    refused: list[Any] = []
    app = DeepgramBridge(configuration())
    app.on("injection_refused")(lambda session, event: refused.append(event))
    async with stage(redis_url, bridge=app) as bridge, wire(bridge.url) as vaic:
        await vaic.begin()
        agent = await bridge.connection()
        await bridge.event("session_start")
        await bridge.sessions[vaic.cid].send_agent_message("Hello.")
        code = "INJECT_AGENT_MESSAGE_DURING_AGENT_SPEECH"
        await agent.send_json({"type": "Warning", "code": code, "description": "The agent speaks."})
        await messages_for(vaic, 1.5)
        assert refused or [event.code for event in bridge.events("warning")] == [code]


async def test_a_warning_that_comes_before_settings_applied_reaches_the_handlers(redis_url: str) -> None:
    script = AgentScript(think_s=0, faults=Faults(warning_code="PROMPT_TOO_LONG"))
    async with stage(redis_url, script) as bridge, wire(bridge.url) as vaic:
        await vaic.begin()
        assert (await bridge.event("warning")).code == "PROMPT_TOO_LONG"


async def test_audio_that_was_held_up_for_long_does_not_reach_the_agent_as_one_burst(
    redis_url: str, eventually: Any
) -> None:
    async with stage(redis_url) as bridge, wire(bridge.url) as vaic:
        await vaic.begin()
        agent = await bridge.connection()
        await vaic.send(vaic.chunk(b"\xff" * 1280))
        await eventually(lambda: b"\xff" * 1280 in agent.heard)
        before = len(agent.heard)
        for _ in range(124):  # 20 s that a stalled connection held up
            await vaic.send(vaic.chunk(b"\xfe" * 1280))
        await vaic.send(vaic.chunk(b"\xfd" * 1280))
        await eventually(lambda: b"\xfd" in agent.heard)  # the last of it
        given = MULAW.ms(len(agent.heard) - before)
        assert given < 3500, given  # one second, and a tail of two (Voice Agent reference §5.2)


async def test_metadata_with_a_key_that_is_no_string_does_not_silence_the_call(redis_url: str) -> None:
    async with stage(redis_url) as bridge, wire(bridge.url) as vaic:
        await vaic.begin()
        await bridge.event("session_start")
        with contextlib.suppress(Exception):  # refusing it is right
            await bridge.sessions[vaic.cid].send_meta_data({"rows": {1: "a"}})
        await turn(await bridge.connection(), "Hello.", sound(300))
        assert "playStream.chunk" in types(await messages_for(vaic, 3))


async def test_an_activity_that_cannot_be_sent_is_refused_where_the_application_sends_it(redis_url: str) -> None:
    async with stage(redis_url) as bridge, wire(bridge.url) as vaic:
        await vaic.begin()
        await bridge.event("session_start")
        for wrong in ({"type": "event", "name": "x", "value": b"bytes"}, []):
            with pytest.raises(Exception):  # noqa: B017
                await bridge.sessions[vaic.cid].send_activity(wrong)  # type: ignore[arg-type]


async def test_a_call_that_must_be_given_up_after_a_failed_transfer_is_given_up_with_a_reason(redis_url: str) -> None:
    app = DeepgramBridge(configuration())
    patience = asyncio.Event()

    @app.on("activity")
    async def slow(session: Any, event: Any) -> None:
        if event.activity["name"] == "flood":
            await patience.wait()

    async with stage(redis_url, bridge=app) as bridge, wire(bridge.url) as vaic:
        await vaic.begin()
        await bridge.event("session_start")
        transfer = asyncio.create_task(bridge.sessions[vaic.cid].transfer("tel:+491"))
        await vaic.expect("activities")
        await vaic.send(vaic.activity("transferStatus", value={"status": "failed", "reasonCode": "busy"}))
        await transfer
        many = [{"type": "event", "name": "flood"}] * 64
        for _ in range(70):
            await vaic.send({"type": "activities", "activities": many})
        messages = await vaic.rest()
        patience.set()
        assert types(messages) == ["session.error"]
