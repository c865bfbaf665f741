"""Resumes that come at an awkward moment: behind a word, in a cut, twice, or with an end behind them."""

from __future__ import annotations

import pytest

from puppet import MULAW, caller_said, sound, turn
from telephone import heard, stage, wire


@pytest.mark.parametrize("last", ["userStream.speech.started", "userStream.speech.committed"])
async def test_a_caller_who_comes_back_right_behind_a_word_of_his_is_no_fault_of_anybody(
    redis_url: str, caplog: pytest.LogCaptureFixture, last: str
) -> None:
    async with (
        stage(redis_url) as bridge,
        stage(redis_url, role="edge") as elsewhere,
        wire(bridge.url) as old,
        wire(elsewhere.url, old.cid) as new,
    ):
        await old.begin()
        agent = await bridge.connection()
        if last == "userStream.speech.started":
            await agent.send_json({"type": "UserStartedSpeaking"})
        else:
            await caller_said(agent, "Where is my parcel?")
        await old.until(last)  # of which the edge tells the owner only 50 ms later
        await new.resume()
        await new.expect("session.accepted")
        await turn(agent, "Yes.", sound(300))
        await new.until("playStream.stop")
        await new.hang_up()
        assert bridge.events("error") == []
    assert [text for text in caplog.messages if "could not be handled" in text] == []


async def test_the_owner_is_told_of_a_caller_who_hangs_up_right_behind_his_resume(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridge_edge.call.OWNER_END_SECONDS", 60.0)  # or the edge ends the call itself
    async with (
        stage(redis_url) as bridge,
        stage(redis_url, role="edge") as elsewhere,
        wire(bridge.url) as old,
        wire(elsewhere.url, old.cid) as new,
    ):
        await old.begin()
        await bridge.connection()
        await new.resume()
        await new.send({"type": "session.end", "conversationId": new.cid, "reasonCode": "client-disconnected"})
        assert await new.rest() == []
        assert (await bridge.event("session_end")).reason == "hangup"
        assert (await bridge.app.calls("read", new.cid)).detail == "client-disconnected"


@pytest.mark.parametrize("status", ["interrupted", "finished"])
async def test_what_vaic_tells_of_a_stream_of_before_the_resume_ends_none_of_after_it(
    redis_url: str, status: str
) -> None:
    async with (
        stage(redis_url) as bridge,
        stage(redis_url, role="edge") as elsewhere,
        wire(bridge.url) as old,
        wire(elsewhere.url, old.cid) as new,
    ):
        await old.begin()
        agent = await bridge.connection()
        await turn(agent, "It is in Ulm.", sound(2000))
        messages = await old.until("playStream.chunk")
        while len(heard(messages)) < MULAW.nbytes(1000):
            messages.append(await old.next())
        await new.resume()
        await new.expect("session.accepted")
        messages = await new.until("playStream.chunk")
        await new.send(new.activity("playFinished", value={"playedDurationMS": 1000, "status": status}))
        messages += await new.until("playStream.stop")
        assert len(heard(messages)) > MULAW.nbytes(700)  # all that was not reported as heard
        await new.hang_up()
