"""The telephony side of the bridge: what VAIC may count on in a call, over real sockets and a real Redis."""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import wave
from array import array
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from bridge_edge import call as edge_call
from bridge_edge import opening
from bridge_shared import link
from bridge_shared.protocol.media import FORMATS, media, wav_header
from bridge_sim import speech
from bridge_sim.agent_script import AgentScript, Faults
from bridge_sim.caller import CallEvent, SimulatedCall
from bridge_sim.plan import CallPlan
from bridge_worker import caller_side, conversation, finisher
from deepgram_audiocodes_bridge import BridgeConfig, DeepgramBridge, Session
from harness import AGENT, configuration
from telephone import heard, stage, types, wire

Eventually = Callable[..., Awaitable[None]]

OPEN = CallPlan(barge_in=True, start_delay_s=0.0)
"""A VAIC that hears the caller all the time."""

WORDS = speech.render_text("Hello", media("raw/mulaw"))
"""0.3 s of sound that the agent takes for speech."""


# ── the beginning ──────────────────────────────────────────────────────────────────────────────────────────


async def test_a_call_is_accepted_only_when_the_agent_has_its_settings(redis_url: str) -> None:
    slow = AgentScript(faults=Faults(slow_settings_s=0.3))
    async with stage(redis_url, slow) as bridge, wire(bridge.url) as vaic:
        await vaic.initiate()
        assert await vaic.expect("session.accepted") == {"type": "session.accepted", "mediaFormat": "raw/mulaw"}
        assert bridge.agent.connections[0].ready
        start = await bridge.event("session_start")
        assert (start.caller, start.bot_name, start.media_format) == ("+4930123456", "support", "raw/mulaw")
        assert (await bridge.app.calls("read", vaic.cid)).state == "active"


async def test_no_activity_is_handled_before_session_start_was(redis_url: str) -> None:
    slow = AgentScript(faults=Faults(slow_settings_s=0.2))
    async with stage(redis_url, slow) as bridge, wire(bridge.url) as vaic:
        await vaic.initiate()
        await vaic.send(vaic.activity("start"), vaic.activity("DTMF", value="1"))
        await vaic.expect("session.accepted")
        await bridge.event("activity", 2)
        assert [name for name, _ in bridge.happened] == ["session_start", "activity", "activity"]


async def test_the_greeting_waits_for_the_start_activity_of_vaic(redis_url: str) -> None:
    bridge_of_a_greeter = DeepgramBridge(configuration(greeting="Hi."))
    async with stage(redis_url, bridge=bridge_of_a_greeter) as bridge, wire(bridge.url) as vaic:
        await vaic.initiate()
        await vaic.expect("session.accepted")
        await bridge.event("conversation_text")
        await vaic.send({"type": "userStream.start"}, vaic.activity("start"))
        await vaic.expect("userStream.started")  # nothing was played before that
        start = await vaic.expect("playStream.start")
        assert start["altText"] == "Hi."


async def test_the_greeting_does_not_wait_for_ever(redis_url: str) -> None:
    bridge_of_a_greeter = DeepgramBridge(configuration(greeting="Hi."))
    async with (
        stage(redis_url, bridge=bridge_of_a_greeter, start_hold_seconds=0.2) as bridge,
        wire(bridge.url) as vaic,
    ):
        await vaic.initiate()
        await vaic.expect("session.accepted", "playStream.start")


async def test_an_agent_that_refuses_the_settings_refuses_the_call_with_its_own_words(redis_url: str) -> None:
    wrong = {"agent": {**AGENT["agent"], "surprise": True}}
    broken = DeepgramBridge(BridgeConfig(deepgram_api_key="key", deepgram_config=wrong))  # type: ignore[arg-type]
    async with stage(redis_url, bridge=broken) as bridge, wire(bridge.url) as vaic:
        await vaic.initiate()
        refusal = await vaic.expect("session.error")
        assert await vaic.rest() == []
        code = bridge.agent.connections[0].error
        error = await bridge.event("error")
        assert (error.code, error.recoverable) == (code, False)
        assert error.description in refusal["reason"] and code in refusal["reason"]
        end = await bridge.event("session_end")
        assert (end.reason, end.duration_ms) == ("error", 0)
        assert [name for name, _ in bridge.happened] == ["error", "session_end"]
        record = await bridge.app.calls("read", vaic.cid)
        assert (record.state, record.reason) == ("ended", "error")


async def test_an_agent_that_is_not_ready_in_time_refuses_the_call(redis_url: str) -> None:
    never = AgentScript(faults=Faults(slow_settings_s=60))
    async with stage(redis_url, never, accept_timeout=0.7) as bridge, wire(bridge.url) as vaic:
        await vaic.initiate()
        refusal = await vaic.expect("session.error")
        assert "not ready" in refusal["reason"]
        assert await vaic.rest() == []
        assert (await bridge.event("session_end")).reason == "error"
        assert (await bridge.app.calls("read", vaic.cid)).state == "ended"
        assert bridge.events("session_start") == []


async def test_without_a_worker_the_call_is_refused_in_the_time_that_was_set(redis_url: str) -> None:
    async with stage(redis_url, role="edge", accept_timeout=0.5) as bridge, wire(bridge.url) as vaic:
        await vaic.initiate()
        assert "No worker" in (await vaic.expect("session.error"))["reason"]
        assert await vaic.rest() == []
        record = await bridge.app.calls("read", vaic.cid)
        assert (record.state, record.reason) == ("ended", "error")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"expectAudioMessages": False}, "expectAudioMessages"),
        ({"supportedMediaFormats": ["raw/alaw", 7]}, "No common media format"),
        ({"supportedMediaFormats": ...}, "No common media format"),
        ({"supportedMediaFormats": "raw/mulaw"}, "No common media format"),
    ],
)
async def test_a_call_that_cannot_be_served_is_refused_with_the_reason(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], reason: str
) -> None:
    monkeypatch.setattr(finisher, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(finisher, "OWNER_FIRST_SECONDS", 0.0)
    async with stage(redis_url) as bridge, wire(bridge.url) as vaic:
        await vaic.initiate(**fields)
        refusal = await vaic.expect("session.error")
        assert reason in refusal["reason"] and refusal["conversationId"] == vaic.cid
        assert await vaic.rest() == []
        end = await bridge.event("session_end")
        assert (end.reason, end.duration_ms) == ("hangup", 0)
        assert [name for name, _ in bridge.happened] == ["session_end"]
        assert bridge.agent.total == 0


@pytest.mark.parametrize(
    "cid",
    ["", "a b", "../call", "{call}", "line\nbreak\x00", "ü", "x" * 129, "y" * 10_000, 7, None, ["id"], ...],
    ids=lambda cid: type(cid).__name__ + str(cid)[:8].encode("unicode_escape").decode(),
)
async def test_a_conversation_id_that_could_not_be_a_key_is_refused(redis_url: str, cid: Any) -> None:
    async with stage(redis_url) as bridge, wire(bridge.url) as vaic:
        await vaic.initiate(conversationId=cid)
        assert "conversationId" in (await vaic.expect("session.error"))["reason"]
        assert await vaic.rest() == []
        assert bridge.keys() == []


async def test_a_conversation_id_may_have_128_characters(redis_url: str) -> None:
    async with stage(redis_url) as bridge, wire(bridge.url, "A-z0._" + "9" * 122) as vaic:
        await vaic.begin()


async def test_a_caller_without_a_number_has_none(redis_url: str) -> None:
    async with stage(redis_url) as bridge, wire(bridge.url) as vaic:
        await vaic.begin(caller=None, botName=None)
        start = await bridge.event("session_start")
        assert (start.caller, start.bot_name) == (None, None)


async def test_a_missing_expect_audio_messages_counts_as_true(redis_url: str) -> None:
    async with stage(redis_url) as bridge, wire(bridge.url) as vaic:
        await vaic.begin(expectAudioMessages=...)


async def test_a_conversation_that_has_ended_does_not_begin_again(redis_url: str) -> None:
    async with stage(redis_url) as bridge:
        async with wire(bridge.url) as vaic:
            await vaic.begin()
            await vaic.hang_up()
        async with wire(bridge.url, vaic.cid) as again:
            await again.initiate()
            assert "ended" in (await again.expect("session.error"))["reason"]
        assert len(bridge.events("session_start")) == 1


async def test_a_live_conversation_cannot_be_initiated_by_somebody_else(redis_url: str) -> None:
    async with stage(redis_url) as bridge, wire(bridge.url) as vaic, wire(bridge.url, vaic.cid) as other:
        await vaic.begin()
        await other.initiate()
        assert "live" in (await other.expect("session.error"))["reason"]
        await vaic.send({"type": "userStream.stop"})
        await vaic.expect("userStream.stopped")
        await vaic.hang_up()
        assert (await bridge.event("session_end")).reason == "hangup"


async def test_a_conversation_that_lost_its_socket_may_be_initiated_again(
    redis_url: str, eventually: Eventually
) -> None:
    async with stage(redis_url) as bridge:
        async with wire(bridge.url) as vaic:
            await vaic.begin()
            await vaic.drop()
        edge = bridge.app.process.edge
        assert edge is not None
        await eventually(lambda: not edge.not_ready() and edge._pod.load == 0)
        async with wire(bridge.url, vaic.cid) as again:
            await again.begin()
        assert len(bridge.events("session_start")) == bridge.agent.total == 1


async def test_a_caller_who_hangs_up_during_the_set_up_was_no_call(
    redis_url: str, eventually: Eventually, caplog: pytest.LogCaptureFixture
) -> None:
    slow = AgentScript(faults=Faults(slow_settings_s=0.5))
    async with stage(redis_url, slow) as bridge, wire(bridge.url) as vaic:
        await vaic.initiate()
        await bridge.agent.wait_for(lambda agent: agent.connections and agent.connections[0].settings)
        assert await vaic.hang_up() == []
        record = await bridge.app.calls("read", vaic.cid)
        assert (record.state, record.reason) == ("ended", "hangup")
        await eventually(lambda: bridge.agent.connections[0].closed)
        assert bridge.events("session_start") == []
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_a_socket_lost_during_the_set_up_ends_the_call(redis_url: str, eventually: Eventually) -> None:
    slow = AgentScript(faults=Faults(slow_settings_s=0.5))
    async with stage(redis_url, slow) as bridge, wire(bridge.url) as vaic:
        await vaic.initiate()
        await bridge.agent.wait_for(lambda agent: agent.connections and agent.connections[0].settings)
        await vaic.drop()
        await eventually(lambda: bridge.agent.connections[0].closed)
        record = await bridge.app.calls("read", vaic.cid)
        assert (record.state, record.detail) == ("ended", "abandoned")
        assert bridge.events("session_start") == []


# ── audio ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("token", FORMATS)
async def test_every_media_format_goes_both_ways_whole(redis_url: str, token: str) -> None:
    sound = media(token)
    one = DeepgramBridge(configuration(preferred_media_formats=(token,)))
    async with stage(redis_url, bridge=one) as bridge, wire(bridge.url) as vaic:
        accepted = await vaic.begin(supportedMediaFormats=list(FORMATS))
        assert accepted["mediaFormat"] == token
        agent = await bridge.connection()
        assert agent.settings["audio"] == {
            "input": {"encoding": sound.encoding, "sample_rate": sound.rate},
            "output": {"encoding": sound.encoding, "sample_rate": sound.rate, "container": "none"},
        }
        # from the caller: a header, and samples cut anywhere
        said = bytes(range(1, 201)) * 2
        stream = (wav_header(sound) if sound.wav else b"") + said
        for start, end in itertools.pairwise([0, 5, 46, 79, 200, len(stream)]):
            await vaic.send(vaic.chunk(stream[start:end]))
        await agent.wait_for(lambda agent: said in agent.heard)
        assert agent.problems == []
        # from the agent: a header once per stream, whole samples in every chunk
        agent.say("Yes.")
        messages = await vaic.until("playStream.stop")
        assert types(messages) == ["playStream.start", "playStream.chunk", "playStream.stop"]
        assert messages[0]["mediaFormat"] == token
        sent = heard(messages)
        if sound.wav:
            assert sent.startswith(wav_header(sound))
            sent = sent.removeprefix(wav_header(sound))
        assert sent == bytes(agent.spoken)


async def test_the_preferred_format_that_vaic_offers_is_taken(redis_url: str) -> None:
    choosy = DeepgramBridge(configuration(preferred_media_formats=("raw/lpcm16_24", "raw/lpcm16", "raw/mulaw")))
    async with stage(redis_url, bridge=choosy) as bridge, wire(bridge.url) as vaic:
        accepted = await vaic.begin(supportedMediaFormats=["raw/mulaw", "raw/lpcm16"])
        assert accepted["mediaFormat"] == "raw/lpcm16"


async def test_the_agent_gets_silence_while_vaic_withholds_the_caller(redis_url: str) -> None:
    async with stage(redis_url) as bridge, wire(bridge.url) as vaic:
        await vaic.initiate()
        await vaic.expect("session.accepted")
        agent = await bridge.connection()
        await agent.wait_for(lambda agent: len(agent.heard) >= 2400)
        assert set(agent.heard) == {0xFF}
        await vaic.send({"type": "userStream.start"}, vaic.chunk(b"\x01" * 160), {"type": "userStream.stop"})
        await vaic.expect("userStream.started", "userStream.stopped")
        await agent.wait_for(lambda agent: b"\x01" * 160 + b"\xff" * 1600 in agent.heard)
        assert agent.problems == []


async def test_empty_chunks_are_passed_over(redis_url: str) -> None:
    async with stage(redis_url) as bridge, wire(bridge.url) as vaic:
        await vaic.begin()
        await vaic.send(vaic.chunk(b""), vaic.chunk(b"\x02"), vaic.chunk(b""))
        agent = await bridge.connection()
        await agent.wait_for(lambda agent: b"\x02" in agent.heard)
        assert agent.problems == []


async def test_the_agent_is_paced_and_its_streams_follow_the_rules(redis_url: str, eventually: Eventually) -> None:
    async with stage(redis_url) as bridge, SimulatedCall(bridge.url, OPEN) as call:
        await call.connect()
        await call.initiate()
        agent = await bridge.connection()
        agent.say("agent_welcome")
        await bridge.event("agent_audio_done")
        agent.say("I am still here. Are you?")
        await bridge.event("agent_audio_done", 2)
        await eventually(lambda: [stream.status for stream in call.report().heard] == ["finished"] * 2)
        await call.hang_up()
        report = call.report()
    assert report.violations == []
    assert report.gaps == []
    assert report.max_lead_ms <= 300 + 100
    streams = [stream.stream_id for stream in report.heard]
    assert len(set(streams)) == len(streams) == 2  # one per turn, though the second had two sentences
    assert b"".join(stream.data for stream in report.heard) == bytes(agent.spoken)
    texts = [text for who, text in report.transcript if who == "assistant"]
    assert texts == ["You are welcome.", "I am still here."]


async def test_a_stream_is_closed_with_its_last_chunk(redis_url: str) -> None:
    async with stage(redis_url) as bridge, wire(bridge.url) as vaic:
        await vaic.begin()
        (await bridge.connection()).say("Yes.")  # 0.24 s: all of it is within the lead
        messages = await vaic.until("playStream.stop")
        assert types(messages) == ["playStream.start", "playStream.chunk", "playStream.stop"]
        assert bridge.events("agent_audio_done") == []  # sent ahead, not yet heard
        await bridge.event("agent_audio_done")


async def test_a_stream_whose_agent_falls_silent_is_closed_all_the_same(redis_url: str) -> None:
    async with stage(redis_url) as bridge, wire(bridge.url) as vaic:
        await vaic.begin()
        agent = await bridge.connection()
        agent.say("Yes.")
        await agent.wait_for(lambda agent: agent.spoken)
        agent.stall()
        assert types(await vaic.until("playStream.stop"))[0] == "playStream.start"


async def test_the_text_of_a_stream_is_that_of_its_own_turn(redis_url: str) -> None:
    async with stage(redis_url) as bridge, wire(bridge.url) as vaic:
        await vaic.begin()
        agent = await bridge.connection()
        for text in ("One two.", "Three.", "Four."):
            agent.say(text)
        starts = [(await vaic.until("playStream.stop"))[0] for _ in range(3)]
        assert [start["altText"] for start in starts] == ["One two.", "Three.", "Four."]


# ── the caller's speech ────────────────────────────────────────────────────────────────────────────────────


async def test_the_callers_speech_is_reported_in_pairs_and_in_order(redis_url: str, eventually: Eventually) -> None:
    shown: list[str] = []

    def show(event: CallEvent) -> None:
        if event.kind in ("speech", "recognised", "plays"):
            shown.append(event.text if event.kind == "speech" else event.kind)

    async with stage(redis_url) as bridge, SimulatedCall(bridge.url, OPEN, on_event=show) as call:
        await call.connect()
        await call.initiate()
        await call.say(WORDS)
        await eventually(lambda: "plays" in shown)
        await call.hang_up()
        report = call.report()
    assert shown == ["started", "stopped", "recognised", "committed", "plays"]
    assert report.transcript[0] == ("user", "(speech of 0.3 s)")
    assert report.violations == []


async def test_a_caller_who_interrupts_silences_the_agent(redis_url: str) -> None:
    async with stage(redis_url) as bridge, wire(bridge.url) as vaic:
        await vaic.begin()
        agent = await bridge.connection()
        agent.say("agent_long_answer")
        await vaic.expect("playStream.start", "playStream.chunk")
        await vaic.send(vaic.chunk(WORDS))
        before = await vaic.until("userStream.speech.started")
        assert types(before)[-2:] == ["playStream.stop", "userStream.speech.started"]
        assert len(heard(before)) < len(agent.spoken)
        await vaic.send(vaic.chunk(b"\xff" * 6400))
        after = await vaic.until("playStream.start")  # the answer
        assert types(after) == [
            "userStream.speech.stopped",
            "userStream.speech.recognition",
            "userStream.speech.committed",
            "playStream.start",
        ]
        assert after[1]["alternatives"] == [{"text": "(speech of 0.3 s)", "confidence": 1.0}]
        assert after[-1]["streamId"] != before[0].get("streamId")
        await bridge.event("user_started_speaking")


async def test_a_barge_in_leaves_no_more_than_the_lead_audible(redis_url: str) -> None:
    plan = CallPlan(say=("thank_you", "goodbye"), barge_in=True, barge=0, start_delay_s=0.0, hang_up_after=None)
    script = AgentScript(think_s=0, answers={"thank_you": ("agent_long_answer",)})
    async with stage(redis_url, script) as bridge, SimulatedCall(bridge.url, plan) as call:
        await call.connect()
        await call.initiate()
        await call.say("thank_you")
        await call.wait_interruptible()
        await call.say(WORDS)
        await bridge.event("user_started_speaking", 2)
        await call.hang_up()
        report = call.report()
        lines = await bridge.app.calls("transcript", call.conversation_id)
    assert report.violations == []
    interrupted = report.heard[0]
    assert interrupted.status == "interrupted"
    assert report.max_lead_ms <= 300 + 100
    cut = [line for line in lines if line.role == "assistant" and line.interrupted]
    assert cut and cut[0].content in speech.prompt("agent_long_answer").text
    played = media("raw/mulaw").ms(len(interrupted.data))
    assert abs(sum(line.heard_ms or 0 for line in lines if line.role == "assistant") - played) < 600


async def test_vaic_is_asked_to_abort_its_prompts_after_the_stream_is_closed_where_that_is_wanted(
    redis_url: str,
) -> None:
    async with stage(redis_url, abort_prompts=True) as bridge, wire(bridge.url) as vaic:
        await vaic.begin()
        agent = await bridge.connection()
        agent.say("agent_long_answer")
        await vaic.expect("playStream.start", "playStream.chunk")
        await vaic.send(vaic.chunk(WORDS))
        before = await vaic.until("userStream.speech.started")
    (abort,) = [message for message in before if message["type"] == "activities"]
    assert [activity["name"] for activity in abort["activities"]] == ["abortPrompts"]
    assert types(before)[-3:] == ["playStream.stop", "activities", "userStream.speech.started"]


def last_sound(path: Path, before: float) -> float:
    """Where in a WAV file, in seconds, the sound ends that can be heard at a moment: 0.3 s of silence follow."""
    with wave.open(str(path)) as file:
        rate = file.getframerate()
        samples = array("h", file.readframes(file.getnframes()))
    loud = [at / rate for at, sample in enumerate(samples) if abs(sample) > 300]
    return next(at for at, after in itertools.pairwise([*loud, math.inf]) if at > before and after > at + 0.3)


@pytest.mark.slow
async def test_a_barge_in_reaches_vaic_within_50_ms_of_the_agents_word(redis_url: str) -> None:
    loop = asyncio.get_running_loop()
    took = []
    async with stage(redis_url) as bridge, wire(bridge.url) as vaic:
        await vaic.begin()
        agent = await bridge.connection()
        for _ in range(50):
            agent.say("agent_long_answer")
            await vaic.until("playStream.chunk")
            began = loop.time()
            await agent.barge()
            before = await vaic.until("userStream.speech.started")
            took.append((loop.time() - began) * 1000)
            assert types(before).count("playStream.stop") == 1
            await agent.send_json({"type": "ConversationText", "role": "user", "content": "Wait."})
            await vaic.until("userStream.speech.committed")
    took.sort()
    print(f"UserStartedSpeaking to VAIC: p50 {took[25]:.1f} ms, p98 {took[48]:.1f} ms")
    assert took[48] < 50


@pytest.mark.slow
async def test_in_a_recorded_call_the_agent_falls_silent_within_the_bound_when_the_caller_interrupts(
    redis_url: str, tmp_path: Path
) -> None:
    script = AgentScript(think_s=0.5, answers={"thank_you": ("agent_long_answer",)})
    loop = asyncio.get_running_loop()
    async with stage(redis_url, script) as bridge:
        async with SimulatedCall(bridge.url, CallPlan(barge_in=True, start_delay_s=0.0)) as call:
            began = loop.time()
            await call.connect()
            await call.initiate()
            await call.say("thank_you")
            await call.wait_interruptible()
            spoke = loop.time() - began
            await call.say("opening_hours")
            await call.wait_answer()
            await call.hang_up()
        call.report().wav(tmp_path / "heard.wav")
        (cut_ms,) = call.report().cut_ms
    silent = last_sound(tmp_path / "heard.wav", spoke)
    # the lead and a chunk, and what the agent's ear needs to notice speech
    assert 0 < silent - spoke < 0.3 + 0.1 + 0.4
    assert abs((silent - spoke) * 1000 - cut_ms) < 150


async def test_late_audio_of_an_interrupted_turn_opens_no_stream(redis_url: str) -> None:
    script = AgentScript(think_s=0.3, faults=Faults(late_audio_frames=8, no_audio_done=True))
    async with stage(redis_url, script) as bridge, wire(bridge.url) as vaic:
        await vaic.begin()
        agent = await bridge.connection()
        agent.say("agent_long_answer")
        await vaic.expect("playStream.start", "playStream.chunk")
        await vaic.send(vaic.chunk(WORDS))
        await vaic.until("userStream.speech.started")
        await vaic.send(vaic.chunk(b"\xff" * 6400))
        assert types(await vaic.until("userStream.speech.committed")) == [
            "userStream.speech.stopped",
            "userStream.speech.recognition",
            "userStream.speech.committed",
        ]


async def test_the_participant_of_an_agent_assist_call_is_echoed(redis_url: str) -> None:
    async with stage(redis_url) as bridge, wire(bridge.url) as vaic:
        await vaic.initiate()
        await vaic.expect("session.accepted")
        await vaic.send({"type": "userStream.start", "participant": "caller"})
        assert (await vaic.expect("userStream.started"))["participant"] == "caller"
        await vaic.send({**vaic.chunk(WORDS), "participant": "caller"})
        assert (await vaic.expect("userStream.speech.started"))["participant"] == "caller"
        await vaic.send({"type": "userStream.stop", "participant": "caller"})
        assert (await vaic.expect("userStream.stopped"))["participant"] == "caller"


async def test_a_caller_whose_chunks_do_not_name_him_is_heard(redis_url: str) -> None:
    async with stage(redis_url) as bridge, wire(bridge.url) as vaic:
        await vaic.initiate()
        await vaic.expect("session.accepted")
        agent = await bridge.connection()
        await vaic.send({"type": "userStream.start", "participant": "caller"}, vaic.chunk(WORDS))
        await agent.wait_for(lambda agent: WORDS in agent.heard)
        await vaic.send({"type": "userStream.stop"})


async def test_of_two_participants_the_agent_hears_the_first_alone_and_speech_is_reported_as_theirs(
    redis_url: str, eventually: Any
) -> None:
    first, second = b"\xfe" * 1280, b"\xfd" * 1280
    async with stage(redis_url) as bridge, wire(bridge.url) as vaic:
        await vaic.initiate()
        await vaic.expect("session.accepted")
        agent = await bridge.connection()
        for participant in ("caller", "callee"):
            await vaic.send({"type": "userStream.start", "participant": participant})
            assert (await vaic.expect("userStream.started"))["participant"] == participant
        for _ in range(5):
            await vaic.send({**vaic.chunk(first), "participant": "caller"})
            await vaic.send({**vaic.chunk(second + b"\xfd"), "participant": "callee"})
        await vaic.send({"type": "userStream.stop", "participant": "callee"})
        assert (await vaic.expect("userStream.stopped"))["participant"] == "callee"
        await vaic.send({**vaic.chunk(first), "participant": "caller"})
        await eventually(lambda: agent.heard.count(b"\xfe") == 6 * len(first))
        assert b"\xfd" not in agent.heard
        await vaic.send({**vaic.chunk(WORDS), "participant": "caller"})
        assert (await vaic.expect("userStream.speech.started"))["participant"] == "caller"


# ── activities ─────────────────────────────────────────────────────────────────────────────────────────────


async def test_activities_of_vaic_reach_the_handlers_as_they_are(redis_url: str) -> None:
    sent = [
        {"type": "event", "name": "DTMF", "value": "42#", "id": "1", "unknown": {"deep": [None, 1.5, "ü"]}},
        {"type": "event", "name": "dtmf", "value": "1"},
        {"type": "event", "name": "hangup"},
        {"type": "message", "text": "typed"},
        {"type": "event", "name": "noUserInput", "value": 2},
    ]
    async with stage(redis_url) as bridge, wire(bridge.url) as vaic:
        await vaic.begin()
        await vaic.send({"type": "activities", "conversationId": vaic.cid, "activities": sent})
        await bridge.event("activity", 1 + len(sent))
        assert [event.activity for event in bridge.events("activity")[1:]] == sent
        assert bridge.events("session_end") == []  # the end is session.end, not an activity (A19)


async def _verbatim(session: Session) -> None:
    await session.send_activity({"type": "event", "name": "custom", "value": {"a": [1, None]}})


async def _several(session: Session) -> None:
    await session.send_activity([{"type": "event", "name": "one"}, {"type": "event", "name": "two"}])


@pytest.mark.parametrize(
    ("command", "activities"),
    [
        (_verbatim, [{"type": "event", "name": "custom", "value": {"a": [1, None]}}]),
        (_several, [{"type": "event", "name": "one"}, {"type": "event", "name": "two"}]),
        (
            lambda s: s.send_dtmf("0123456789*#0123456789"),
            [
                {"type": "event", "name": "sendDtmf", "activityParams": {"dtmfDigits": "0123456789*#01234567"}},
                {"type": "event", "name": "sendDtmf", "activityParams": {"dtmfDigits": "89"}},
            ],
        ),
        (
            lambda s: s.apply_config({"bargeIn": True}),
            [{"type": "event", "name": "config", "sessionParams": {"bargeIn": True}}],
        ),
        (
            lambda s: s.play_url("https://x/a.wav", options={"playUrlMediaFormat": "wav/mulaw", "playUrlCache": True}),
            [
                {
                    "type": "event",
                    "name": "playUrl",
                    "activityParams": {
                        "playUrlUrl": "https://x/a.wav",
                        "playUrlMediaFormat": "wav/mulaw",
                        "playUrlCaching": True,
                    },
                }
            ],
        ),
        (lambda s: s.send_meta_data({"k": 1}), [{"type": "event", "name": "sendMetaData", "value": {"k": 1}}]),
        (lambda s: s.start_call_recording(), [{"type": "event", "name": "startCallRecording"}]),
        (
            lambda s: s.start_call_recording({"recordingName": "r"}),
            [{"type": "event", "name": "startCallRecording", "activityParams": {"recordingName": "r"}}],
        ),
        (lambda s: s.abort_prompts(), [{"type": "event", "name": "abortPrompts"}]),
    ],
    ids=["verbatim", "several", "dtmf", "config", "playUrl", "metadata", "recording", "recording named", "abort"],
)
async def test_a_command_of_the_application_has_the_wire_form_of_the_bot_api(
    redis_url: str, command: Callable[[Session], Awaitable[None]], activities: list[dict[str, Any]]
) -> None:
    async with stage(redis_url) as bridge, wire(bridge.url) as vaic:
        await vaic.begin()
        await bridge.event("session_start")
        await command(bridge.sessions[vaic.cid])
        assert await vaic.expect("activities") == {"type": "activities", "activities": activities}


# ── a lost socket ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("stream", ["fresh", "continue"])
async def test_a_call_goes_on_over_a_new_socket_as_if_nothing_had_happened(
    redis_url: str, eventually: Eventually, stream: Any
) -> None:
    async with stage(redis_url, start_hold_seconds=30) as bridge, SimulatedCall(bridge.url, OPEN) as call:
        await call.connect()
        await call.initiate()
        agent = await bridge.connection()
        agent.say("Before.")
        await bridge.event("agent_audio_done")
        await call.drop()
        await call.resume(stream=stream)
        await call.send_dtmf("1")
        await bridge.event("activity", 2)  # the worker knows the new edge
        agent.say("After.")
        await bridge.event("agent_audio_done", 2)
        await call.say(WORDS)
        await agent.wait_for(lambda agent: WORDS[800:1600] in agent.heard)
        await eventually(lambda: call.report().heard[1].status == "finished")
        await call.hang_up()
        report = call.report()
        assert (await bridge.event("session_end")).reason == "hangup"
    assert report.problem is None and report.violations == []  # among the rules: no stream id a second time
    assert bridge.agent.total == len(bridge.events("session_start")) == len(bridge.events("session_end")) == 1
    assert {event.session_id for _, event in bridge.happened} == {bridge.sessions[call.conversation_id].session_id}
    assert [len(stream.data) for stream in report.heard] == [
        len(speech.render_text(text, media("raw/mulaw"))) for text in ("Before.", "After.")
    ]


async def test_a_resumed_call_is_answered_with_its_format_and_everything_that_vaic_asked_meanwhile(
    redis_url: str,
) -> None:
    async with stage(redis_url) as bridge:
        async with wire(bridge.url) as vaic:
            await vaic.begin()
            await vaic.drop()
        async with wire(bridge.url, vaic.cid) as again:
            # VAIC waits for nothing, and repeats what it could play (§3, rule 4)
            await again.resume(supportedMediaFormats=["raw/lpcm16"])
            await again.send(
                again.chunk(b"\x03" * 80),
                {"type": "userStream.start"},
                again.chunk(b"\x04" * 80),
                again.activity("start"),
                {"type": "userStream.stop"},
            )
            accepted = await again.expect("session.accepted")
            assert accepted["mediaFormat"] == "raw/mulaw"
            await again.expect("userStream.started", "userStream.stopped")
            agent = await bridge.connection()
            await agent.wait_for(lambda agent: b"\x03" * 80 + b"\x04" * 80 in agent.heard)
            await bridge.event("activity", 2)
            agent.say("Still here.")
            await again.expect("playStream.start")
        assert len(bridge.events("session_start")) == 1


async def test_the_new_socket_replaces_one_that_is_still_open(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "SILENT_AFTER", 60.0)  # the old one is told, rather than finding out
    async with stage(redis_url) as bridge, wire(bridge.url) as old, wire(bridge.url, old.cid) as new:
        await old.begin()
        await new.resume()
        await new.expect("session.accepted")
        assert await old.rest() == []  # closed without a word
        await new.send({"type": "userStream.start"})
        await new.expect("userStream.started")
        assert bridge.events("session_end") == []


async def test_a_command_issued_while_the_caller_has_no_socket_is_carried_out_once(
    redis_url: str, eventually: Eventually
) -> None:
    async with stage(redis_url) as bridge:
        async with wire(bridge.url) as vaic:
            await vaic.begin()
            await bridge.event("session_start")
            await vaic.drop()
        await bridge.sessions[vaic.cid].send_dtmf("1")
        edge = bridge.app.process.edge
        assert edge is not None
        await eventually(lambda: edge._pod.load == 0)
        await bridge.sessions[vaic.cid].send_dtmf("2")
        async with wire(bridge.url, vaic.cid) as again:
            await again.resume()
            await again.expect("session.accepted")
            digits = [(await again.expect("activities"))["activities"][0]["activityParams"] for _ in range(2)]
            assert digits == [{"dtmfDigits": "1"}, {"dtmfDigits": "2"}]
            assert types(await again.hang_up()) == []
        assert bridge.events("error") == []


async def test_a_call_goes_on_at_another_edge_and_the_former_one_lets_go_of_it(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "SILENT_AFTER", 60.0)  # it is told, rather than finding out
    async with (
        stage(redis_url) as bridge,
        stage(redis_url, role="edge") as elsewhere,
        wire(bridge.url) as old,
        wire(elsewhere.url, old.cid) as new,
    ):
        await old.begin()
        await new.resume()
        await new.expect("session.accepted")
        assert await old.rest() == []
        await new.send(new.activity("DTMF", value="1"))
        await bridge.event("activity", 2)  # the worker knows the new edge
        (await bridge.connection()).say("Still here.")
        await new.expect("playStream.start", "playStream.chunk")
        await new.hang_up()
        assert (await bridge.event("session_end")).reason == "hangup"
        assert bridge.agent.total == len(bridge.events("session_start")) == 1


async def test_a_conversation_that_nobody_knows_is_not_resumed(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "LOOK_SECONDS", 0.2)
    async with stage(redis_url) as bridge, wire(bridge.url, "nobody-knows-me") as vaic:
        await vaic.resume()
        refusal = await vaic.expect("session.error")
        assert refusal["conversationId"] == "nobody-knows-me" and refusal["reason"]
        assert await vaic.rest() == []
        assert bridge.keys() == []


async def test_a_conversation_that_has_ended_is_not_resumed(redis_url: str) -> None:
    async with stage(redis_url) as bridge, wire(bridge.url) as vaic:
        await vaic.begin()
        await vaic.hang_up()
        async with wire(bridge.url, vaic.cid) as again:
            await again.resume()
            await again.expect("session.error")


async def test_a_conversation_of_another_bridge_is_not_resumed_and_not_disturbed(
    redis_url: str, eventually: Eventually
) -> None:
    sales, support = (DeepgramBridge(configuration(name=name)) for name in ("sales", "support"))
    async with stage(redis_url, bridge=sales) as bridge:
        edge = bridge.app.process.edge
        assert edge is not None
        both = asyncio.create_task(support.run())
        await eventually(lambda: len(edge._info()["bridges"]) == 2)
        async with wire(f"{bridge.url}/sales") as vaic, wire(f"{bridge.url}/support", vaic.cid) as thief:
            await vaic.begin()
            before = await bridge.app.calls("read", vaic.cid)
            await thief.resume()
            await thief.expect("session.error")
            assert (await bridge.app.calls("read", vaic.cid)).ee == before.ee
            await vaic.send({"type": "userStream.stop"})
            await vaic.expect("userStream.stopped")
        both.cancel()
        await asyncio.wait([both])


async def test_a_caller_who_does_not_come_back_is_given_up(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caller_side, "SILENT_SECONDS", 60.0)  # the edge says so
    async with stage(redis_url, lost_seconds=1) as bridge, wire(bridge.url) as vaic:
        await vaic.begin()
        agent = await bridge.connection()
        await vaic.drop()
        assert (await bridge.event("session_end")).reason == "error"
        error = bridge.events("error")[0]
        assert (error.code, error.recoverable) == ("audiocodes_error", False)
        await agent.wait_for(lambda agent: agent.closed)
        record = await bridge.app.calls("read", vaic.cid)
        assert (record.state, record.reason, record.detail) == ("ended", "error", "lost")


# ── the end ────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_socket_is_closed_as_soon_as_vaic_ends_the_call(
    redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with stage(redis_url) as bridge, wire(bridge.url) as vaic:
        await vaic.begin()
        agent = await bridge.connection()
        agent.say("agent_long_answer")  # messages of the bridge cross the end
        await vaic.expect("playStream.start", "playStream.chunk")
        crossed = types(await vaic.hang_up())
        assert crossed in ([], ["playStream.chunk"])
        assert vaic.socket.close_code == 1000
        assert (await bridge.event("session_end")).reason == "hangup"
        await agent.wait_for(lambda agent: agent.closed)
        lines = await bridge.app.calls("transcript", vaic.cid)
        assert lines[0].interrupted
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [
        "anybody who reaches this port can place calls: no token is set"
    ]


async def test_the_owner_of_a_call_does_not_wait_for_an_edge_that_has_let_go_of_it(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    monkeypatch.setattr(conversation, "LAST_FRAMES_SECONDS", 60.0)
    async with stage(redis_url) as bridge, wire(bridge.url) as vaic:
        await vaic.begin()
        await vaic.hang_up()
        worker = bridge.app.process.worker
        assert worker is not None
        await eventually(lambda: worker._pod.load == 0)


async def test_a_vaic_that_closes_right_after_session_end_has_ended_the_call(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    monkeypatch.setattr(edge_call, "OWNER_END_SECONDS", 60.0)
    async with stage(redis_url) as bridge:
        async with wire(bridge.url) as vaic:
            await vaic.begin()
            await vaic.send({"type": "session.end", "conversationId": vaic.cid})
        assert (await bridge.event("session_end")).reason == "hangup"
        edge = bridge.app.process.edge
        assert edge is not None
        await eventually(lambda: edge._pod.load == 0)
        assert bridge.events("error") == []


async def test_a_hang_up_by_the_application_lets_the_last_words_be_heard(redis_url: str) -> None:
    plan = CallPlan(barge_in=True, start_delay_s=0.0, hang_up_after=None)
    async with stage(redis_url) as bridge, SimulatedCall(bridge.url, plan) as call:
        await call.connect()
        await call.initiate()
        agent = await bridge.connection()
        agent.say("agent_welcome")
        await bridge.event("conversation_text")
        session = bridge.sessions[call.conversation_id]
        await session.end_session("thanks")
        assert not session.is_active
        assert bridge.happened[-1][0] == "session_end"
        await call.wait_end()
        report = call.report()
    assert report.end == "bot-disconnected"
    assert report.violations == []
    assert [stream.status for stream in report.heard] == ["finished"]
    assert report.heard[0].data == speech.prompt("agent_welcome").ulaw
    hangup = {"type": "event", "name": "hangup", "activityParams": {"hangupReason": "thanks"}}
    assert report.activities == [hangup]
    assert [event.reason for event in bridge.events("session_end")] == ["ended"]


async def test_a_hang_up_waits_for_session_end_but_not_for_ever(redis_url: str) -> None:
    async with stage(redis_url, hangup_wait_seconds=0.3) as bridge, wire(bridge.url) as vaic:
        await vaic.begin()
        await bridge.event("session_start")
        ending = asyncio.create_task(bridge.sessions[vaic.cid].end_session())
        assert (await vaic.expect("activities"))["activities"] == [{"type": "event", "name": "hangup"}]
        await vaic.send({"type": "userStream.stop"})
        await vaic.expect("userStream.stopped")  # the socket is still open
        assert await vaic.rest() == []
        await ending
        assert [event.reason for event in bridge.events("session_end")] == ["ended"]


async def test_a_transfer_lets_the_last_words_be_heard_and_waits_for_session_end(redis_url: str) -> None:
    async with stage(redis_url) as bridge, SimulatedCall(bridge.url, OPEN) as call:
        await call.connect()
        await call.initiate()
        agent = await bridge.connection()
        agent.say("agent_welcome")
        await bridge.event("conversation_text")
        headers = [{"name": "X-Ticket", "value": "4711"}]
        await bridge.sessions[call.conversation_id].transfer(
            "sip:queue7@pbx", handover_reason="asked", transfer_sip_headers=headers
        )
        await call.wait_end()
        report = call.report()
    assert report.end == "transferred" and report.violations == []
    assert [stream.status for stream in report.heard] == ["finished"]
    headers.append({"name": "X-Conversation-Id", "value": call.conversation_id})
    parameters = {"transferTarget": "sip:queue7@pbx", "handoverReason": "asked", "transferSipHeaders": headers}
    assert report.activities == [{"type": "event", "name": "transfer", "activityParams": parameters}]
    assert [event.reason for event in bridge.events("session_end")] == ["transfer"]


async def test_a_transfer_that_fails_gives_the_call_back(redis_url: str) -> None:
    plan = CallPlan(barge_in=True, start_delay_s=0.0, transfer_fails=True)
    async with stage(redis_url) as bridge, SimulatedCall(bridge.url, plan) as call:
        await call.connect()
        await call.initiate()
        agent = await bridge.connection()
        await bridge.event("session_start")
        session = bridge.sessions[call.conversation_id]
        await session.transfer("sip:busy@pbx")
        assert session.is_active
        agent.say("Busy.")
        await bridge.event("agent_audio_done")
        assert bridge.events("session_end") == []
        await call.hang_up()
        assert call.report().violations == []
        assert (await bridge.event("session_end")).reason == "hangup"


async def test_an_agent_that_fails_for_good_ends_the_call_with_a_hang_up(redis_url: str) -> None:
    script = AgentScript(faults=Faults(after_s=0.2, error_code="USER_AUDIO_FORMAT"))
    async with stage(redis_url, script) as bridge, wire(bridge.url) as vaic:
        await vaic.begin()
        assert (await vaic.expect("activities"))["activities"][0]["name"] == "hangup"
        assert await vaic.hang_up() == []
        end = await bridge.event("session_end")
        assert end.reason == "error"
        assert [event.code for event in bridge.events("error")] == ["USER_AUDIO_FORMAT"]


async def test_a_cancelled_run_hangs_up_its_live_calls(redis_url: str) -> None:
    async with stage(redis_url) as bridge, SimulatedCall(bridge.url, OPEN) as call:
        await call.connect()
        await call.initiate()
        await bridge.event("session_start")
        bridge.app.task.cancel()
        await call.wait_end()
        await asyncio.wait([bridge.app.task])
        assert call.report().end == "bot-disconnected" and call.report().violations == []
        assert [event.reason for event in bridge.events("session_end")] == ["ended"]


# ── validation ─────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_connection_that_only_validates_is_answered_and_is_no_call(redis_url: str) -> None:
    async with stage(redis_url) as bridge:
        async with wire(bridge.url) as vaic:
            for _ in range(2):
                await vaic.send({"type": "connection.validate"})
                assert await vaic.next() == {"type": "connection.validated", "success": True}
        async with SimulatedCall(bridge.url, CallPlan()) as button:
            assert await button.validate()
        edge = bridge.app.process.edge
        assert edge is not None
        async with wire(bridge.url) as vaic:
            await vaic.send({"type": "connection.validate"})
            await vaic.expect("connection.validated")
            await vaic.begin()  # a call may follow on the same socket
        assert [name for name, _ in bridge.happened if name != "activity"] == ["session_start"]
        assert [key for key in bridge.keys() if vaic.cid not in key] == []  # noqa: SIM118
