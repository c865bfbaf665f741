"""Turns whose end, text or last audio comes late, twice, or not at all."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from puppet import MULAW, caller_said, done, says, sound, speaks, turn
from telephone import heard, messages_for, stage, types, wire

pytestmark = pytest.mark.slow


def json_of(message: str | bytes) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(message)
    return value


async def test_the_text_of_a_stream_is_that_of_its_own_turn_when_a_long_turn_is_followed_by_another(
    redis_url: str,
) -> None:
    async with stage(redis_url) as bridge, wire(bridge.url) as vaic:
        await vaic.begin()
        agent = await bridge.connection()
        await turn(agent, "One.", sound(3500))
        await turn(agent, "Two.", sound(300))
        starts = [(await vaic.until("playStream.stop"))[0] for _ in range(2)]
        assert [start.get("altText") for start in starts] == ["One.", "Two."]


async def test_the_text_of_a_turn_without_audio_is_not_shown_with_the_next_turn(redis_url: str) -> None:
    async with stage(redis_url) as bridge, wire(bridge.url) as vaic:
        await vaic.begin()
        agent = await bridge.connection()
        await says(agent, "Silent.")
        await done(agent)
        await bridge.event("agent_audio_done")
        await turn(agent, "Spoken.", sound(300))
        assert (await vaic.expect("playStream.start"))["altText"] == "Spoken."


async def test_a_late_agent_audio_done_of_a_cut_turn_does_not_end_the_next_one(redis_url: str, eventually: Any) -> None:
    async with stage(redis_url) as bridge, wire(bridge.url) as vaic:
        await vaic.begin()
        agent = await bridge.connection()
        await says(agent, "A long answer.")
        await speaks(agent, sound(3000))
        await vaic.until("playStream.chunk")
        await agent.send_json({"type": "UserStartedSpeaking"})
        await caller_said(agent, "Wait.")
        await says(agent, "Yes, what is it?")
        await done(agent)  # of the turn that was cut
        await speaks(agent, sound(1500))
        await done(agent)
        await vaic.until("playStream.start")
        rest = await vaic.until("playStream.stop")
        assert len(heard(rest)) == MULAW.nbytes(1500)

        async def stored() -> bool:
            line = (await bridge.app.calls("transcript", vaic.cid))[-1]
            return (line.content, line.heard_ms) == ("Yes, what is it?", 1500)

        await eventually(stored)
        await bridge.event("agent_audio_done", 2)
        assert len(bridge.events("agent_audio_done")) == 2


async def test_an_agent_audio_done_between_odd_frames_does_not_turn_speech_into_noise(redis_url: str) -> None:
    async with stage(redis_url) as bridge, wire(bridge.url) as vaic:
        await vaic.begin(supportedMediaFormats=["raw/lpcm16"])
        agent = await bridge.connection()
        samples = b"\x01\x00" * 16000
        await says(agent, "Yes.")
        await speaks(agent, samples[:6401])
        await done(agent)  # before the last audio, or a late one
        await speaks(agent, samples[6401:])
        await done(agent)
        got = heard(await messages_for(vaic, 3))
        assert set(got[1::2]) == {0}, got.count(b"\x00\x01")
        assert got == samples


async def test_a_hang_up_does_not_wait_in_silence_for_an_agent_audio_done_that_is_missing(redis_url: str) -> None:
    async with stage(redis_url, last_words_seconds=60.0) as bridge, wire(bridge.url) as vaic:
        await vaic.begin()
        agent = await bridge.connection()
        await says(agent, "Goodbye.")
        await speaks(agent, sound(300))
        await vaic.until("playStream.stop")  # 1.3 s
        ending = asyncio.create_task(bridge.sessions[vaic.cid].end_session())
        message = await asyncio.wait_for(vaic.socket.recv(), 15)  # a quarter of what the last words may take
        assert b"hangup" in (message if isinstance(message, bytes) else message.encode())
        await vaic.hang_up()
        await ending


async def test_a_hang_up_does_not_wait_in_silence_when_audio_came_behind_agent_audio_done(redis_url: str) -> None:
    async with stage(redis_url, last_words_seconds=60.0) as bridge, wire(bridge.url) as vaic:
        await vaic.begin()
        agent = await bridge.connection()
        await turn(agent, "Goodbye.", sound(300))
        await speaks(agent, sound(40))
        await bridge.event("agent_audio_done")
        ending = asyncio.create_task(bridge.sessions[vaic.cid].end_session())
        while "activities" not in types(got := [json_of(await asyncio.wait_for(vaic.socket.recv(), 15))]):
            pass
        assert got[0]["activities"][0]["name"] == "hangup"
        await vaic.hang_up()
        await ending


async def test_audio_of_a_cut_turn_that_comes_behind_its_agent_audio_done_is_not_played(redis_url: str) -> None:
    async with stage(redis_url) as bridge, wire(bridge.url) as vaic:
        await vaic.begin()
        agent = await bridge.connection()
        await says(agent, "A long answer.")
        await speaks(agent, sound(3000))
        await vaic.until("playStream.chunk")
        await agent.send_json({"type": "UserStartedSpeaking"})
        await done(agent)
        await speaks(agent, sound(400, 0x22))
        await vaic.until("userStream.speech.started")
        assert heard(await messages_for(vaic, 1.5)) == b""


async def test_the_rest_of_a_turn_at_another_edge_has_the_text_of_what_was_not_heard(redis_url: str) -> None:
    async with stage(redis_url) as bridge:
        async with wire(bridge.url) as vaic:
            await vaic.begin()
            agent = await bridge.connection()
            await says(agent, "First.")
            await speaks(agent, sound(400))
            await says(agent, "Second.")
            await speaks(agent, sound(4000))
            await says(agent, "Third.")
            await done(agent)
            got: list[dict[str, Any]] = []
            while len(heard(got)) < MULAW.nbytes(1500):
                got.append(await vaic.next())
            await vaic.drop()
        async with wire(bridge.url, vaic.cid) as again:
            await again.resume()
            await again.expect("session.accepted")
            assert (await again.expect("playStream.start"))["altText"] == "Second. Third."


async def test_what_a_new_agent_says_again_has_its_text_at_another_edge_too_and_counts_as_heard_when_it_was(
    redis_url: str, eventually: Any
) -> None:
    async with stage(redis_url) as bridge:
        async with wire(bridge.url) as vaic:
            await vaic.begin()
            agent = await bridge.connection()
            await says(agent, "Your parcel is here.")
            await speaks(agent, sound(200))
            await vaic.until("playStream.chunk")
            agent.drop()
            start = await vaic.until("playStream.start")
            assert start[-1]["altText"] == "Your parcel is here."
            await vaic.until("playStream.chunk")
            await vaic.drop()
        async with wire(bridge.url, vaic.cid) as again:
            await again.resume()
            await again.expect("session.accepted")
            assert (await again.expect("playStream.start"))["altText"] == "Your parcel is here."
            await again.until("playStream.stop")

            async def whole() -> bool:
                (line,) = await bridge.app.calls("transcript", vaic.cid)
                return not line.interrupted

            await eventually(whole)
