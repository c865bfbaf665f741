"""Turns that pause, are broken off, or follow each other fast: what belongs to a real call, if not to a usual one."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from bridge_shared.frames import Kind
from bridge_shared.protocol.media import media
from bridge_sim.caller import SimulatedCall
from bridge_sim.plan import CallPlan
from bridge_worker.speech import GATE_SECONDS, STILL_SECONDS, Speech, Turn
from deepgram_audiocodes_bridge import DeepgramBridge
from harness import configuration, running
from puppet import MULAW, caller_said, done, says, sound, speaks, turn
from sdk import Notes, Peer, played_agent
from telephone import heard, messages_for, stage, types, wire

LINEAR = media("raw/lpcm16")
T1, T2, T3 = (5, 1), (5, 2), (5, 3)
NOW = 1000.0


def sent(speech: Speech) -> list[tuple[str, Turn, bytes]]:
    """What went to the edge since the last look."""
    return [
        (kind.name, (body[0][0], body[0][1]), body[1] if kind is Kind.DOWN else b"") for kind, body, _ in speech.take()
    ]


# ── on the pure machine ────────────────────────────────────────────────────────────────────────────────────────


def test_a_turn_that_was_heard_whole_before_the_caller_changed_the_edge_is_over_though_nobody_says_so() -> None:
    speech = Speech(5, MULAW)
    speech.line("a")
    speech.audio(sound(300), NOW)
    speech.played(T1, 300, "playing", NOW + 0.5)
    speech.edge_changed(NOW + 1)
    assert speech.expire(NOW + 1 + STILL_SECONDS)


def test_half_a_sample_is_not_lost_in_a_pause_of_the_voice_that_was_taken_for_its_end() -> None:
    speech = Speech(5, LINEAR)
    samples = b"\x01\x00" * 4000
    speech.audio(samples[:4001], NOW)
    speech.played(T1, 250, "playing", NOW + 0.3)
    assert speech.expire(NOW + 0.3 + STILL_SECONDS)
    speech.audio(samples[4001:], NOW + 3)
    assert b"".join(data for _, _, data in sent(speech)) == samples


def test_each_of_two_turns_that_were_cut_one_after_the_other_may_send_its_agent_audio_done_late() -> None:
    speech = Speech(5, MULAW)
    speech.audio(sound(1000), NOW)
    speech.cut(NOW + 0.1)
    speech.begin()
    speech.audio(sound(1000), NOW + 0.2)
    speech.cut(NOW + 0.4)
    speech.begin()
    speech.line("c")
    assert not speech.done(NOW + 0.5)
    assert not speech.done(NOW + 0.5)
    speech.audio(sound(300), NOW + 0.6)
    assert speech.done(NOW + 0.7)
    over = speech.played(T3, 300, "finished", NOW + 1)
    assert [line.heard_ms for turn in over for line in turn.lines] == [300]


@pytest.mark.parametrize("why", ["pause", "broken off by VAIC"])
def test_the_late_agent_audio_done_of_a_turn_that_had_ended_before_the_caller_spoke_ends_no_other(why: str) -> None:
    speech = Speech(5, MULAW)
    speech.audio(sound(300), NOW)
    if why == "pause":  # of a function call, say
        speech.played(T1, 300, "playing", NOW + 0.3)
        assert speech.expire(NOW + 3)
        speech.played(T1, 300, "finished", NOW + 3)
    else:
        speech.played(T1, 200, "cut", NOW + 0.3)
    speech.cut(NOW + 3.1)
    speech.begin()
    speech.line("b")
    assert not speech.done(NOW + 3.2)
    speech.audio(sound(300), NOW + 3.3)
    assert speech.done(NOW + 3.4)
    over = speech.played(T2, 300, "finished", NOW + 4)
    assert [line.heard_ms for turn in over for line in turn.lines] == [300]


def test_of_a_line_that_goes_on_after_a_pause_it_is_known_that_the_caller_interrupted_it() -> None:
    speech = Speech(5, MULAW)
    speech.begin()
    speech.line("a")
    speech.audio(sound(500), NOW)
    speech.played(T1, 500, "playing", NOW + 0.5)
    assert speech.expire(NOW + 3)
    over = speech.played(T1, 500, "finished", NOW + 3)
    speech.audio(sound(2000), NOW + 3.1)
    speech.cut(NOW + 3.5)
    over += speech.played(T2, 300, "cut", NOW + 3.6)
    last = [line for turn in over for line in turn.lines if line.entry == "a"][-1]
    assert last.interrupted
    assert speech.gaps == 1


@pytest.mark.parametrize(
    "what", ["nothing for a time", "the agent's end", "a word of the caller", "speech of the caller"]
)
def test_an_answer_that_vaic_broke_off_does_not_cost_the_next_one(what: str) -> None:
    speech = Speech(5, MULAW)
    speech.begin()
    speech.audio(sound(1000), NOW)
    speech.played(T1, 200, "cut", NOW + 0.3)
    assert not speech.audio(sound(300), NOW + 0.4)
    assert speech.unwanted(NOW + 0.4)
    later = NOW + 0.5
    match what:
        case "nothing for a time":
            later = NOW + 0.4 + GATE_SECONDS
        case "the agent's end":
            speech.done(NOW + 0.5)
        case "a word of the caller":
            speech.caller_said()
        case "speech of the caller":
            speech.cut(NOW + 0.5)
    assert not speech.unwanted(later)
    speech.begin()
    assert speech.audio(sound(300), later)


# ── over sockets ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
async def test_a_function_that_takes_seconds_in_the_middle_of_an_answer_costs_nothing_of_it(redis_url: str) -> None:
    app = DeepgramBridge(configuration())
    async with stage(redis_url, bridge=app) as bridge, wire(bridge.url) as vaic:
        await vaic.begin()
        agent = await bridge.connection()
        await caller_said(agent, "Where is my parcel?")
        await says(agent, "One second.")
        await speaks(agent, sound(300))
        got = await messages_for(vaic, 4)
        await says(agent, "It is in transit.")
        await speaks(agent, sound(700))
        await done(agent)
        await bridge.event("agent_audio_done")
        got += await messages_for(vaic, 1.5)
        assert len(heard(got)) == MULAW.nbytes(1000)
        starts = [message.get("altText") for message in got if message["type"] == "playStream.start"]
        assert starts == ["One second.", "It is in transit."]
        assert types(got).count("playStream.stop") == 2
        assert len(bridge.events("agent_audio_done")) == 1
        lines = await bridge.app.calls("transcript", vaic.cid)
        assert [(line.content, line.heard_ms, line.interrupted) for line in lines[1:]] == [
            ("One second.", 300, False),
            ("It is in transit.", 700, False),
        ]


@pytest.mark.slow
async def test_of_an_answer_that_vaic_broke_off_the_next_sentence_is_not_played_either(
    redis_url: str, eventually: Any
) -> None:
    async with stage(redis_url) as bridge, wire(bridge.url) as vaic:
        await vaic.begin()
        agent = await bridge.connection()
        await says(agent, "First of all.")
        await speaks(agent, sound(1000))
        await vaic.until("playStream.chunk")
        await vaic.send(vaic.activity("playFinished", value={"playedDurationMS": 40, "status": "interrupted"}))
        await vaic.until("playStream.stop")

        async def told() -> bool:
            return bool((await bridge.app.calls("transcript", vaic.cid))[-1].heard_ms == 40)

        async def untold() -> bool:
            line = (await bridge.app.calls("transcript", vaic.cid))[-1]
            return (line.content, line.heard_ms, line.interrupted) == ("And then.", 0, True)

        await eventually(told)
        await says(agent, "And then.")  # the agent does not know it, and goes on
        await speaks(agent, sound(1000))
        await done(agent)
        await bridge.event("agent_audio_done")
        await eventually(untold)
        await says(agent, "Well.")  # another answer
        await speaks(agent, sound(300, 0x22))
        await done(agent)
        assert heard(await messages_for(vaic, 2)) == sound(300, 0x22)


@pytest.mark.slow
async def test_what_is_put_into_the_callers_mouth_is_known_again_though_it_is_redacted(redis_url: str) -> None:
    async with stage(redis_url, redact=r"\d{4,}") as bridge, wire(bridge.url) as vaic:
        await vaic.begin()
        await bridge.event("session_start")
        await bridge.sessions[vaic.cid].send_user_message("Card 4111111111111111 was charged.")
        got = types(await vaic.until("playStream.start"))
        assert [kind for kind in got if kind.startswith("userStream.speech")] == []


@pytest.mark.slow
async def test_a_greeting_that_waits_for_the_start_of_the_call_is_played_whole_without_agent_audio_done(
    redis_url: str, eventually: Any
) -> None:
    async with stage(redis_url) as bridge, wire(bridge.url) as vaic:
        await vaic.initiate()
        await vaic.expect("session.accepted")
        agent = await bridge.connection()
        await says(agent, "Hello.")
        await speaks(agent, sound(2800))
        assert heard(await messages_for(vaic, 2.6)) == b""
        await vaic.send(vaic.activity("start"))
        got = await messages_for(vaic, 4.5)
        assert len(heard(got)) == MULAW.nbytes(2800)
        assert types(got).count("playStream.start") == 1

        async def stored() -> bool:
            (line,) = await bridge.app.calls("transcript", vaic.cid)
            return (line.heard_ms, line.interrupted) == (2800, False)

        await eventually(stored)


@pytest.mark.slow
async def test_of_three_answers_that_are_interrupted_at_once_and_a_fourth_only_the_last_is_heard_on(
    redis_url: str, eventually: Any
) -> None:
    async with stage(redis_url) as bridge, wire(bridge.url) as vaic:
        await vaic.begin(supportedMediaFormats=["raw/lpcm16"])
        agent = await bridge.connection()
        for byte in (0x11, 0x22, 0x33):
            await says(agent, f"Answer {byte}.")
            await speaks(agent, bytes([byte]) * 32001)
            await vaic.until("playStream.chunk")
            await agent.send_json({"type": "UserStartedSpeaking"})
            await speaks(agent, bytes([byte]) * 3201)
        await caller_said(agent, "Stop.")
        await says(agent, "Yes.")
        await done(agent)
        await done(agent)
        await done(agent)
        await speaks(agent, b"\x44" * 16001, b"\x44" * 15999)
        await done(agent)
        got = await messages_for(vaic, 3)
        last = max(at for at, message in enumerate(got) if message["type"] == "playStream.start")
        assert set(heard(got[last:])) == {0x44}
        assert len(heard(got[last:])) == 32000
        assert types(got)[-1] == "playStream.stop"

        async def stored() -> bool:
            line = (await bridge.app.calls("transcript", vaic.cid))[-1]
            return (line.content, line.heard_ms, line.interrupted) == ("Yes.", 1000, False)

        await eventually(stored)


@pytest.mark.slow
async def test_an_agent_that_falls_silent_in_mid_sentence_and_is_lost_then_is_followed_by_one_that_says_the_rest(
    redis_url: str,
) -> None:
    rest = "The driver will ring at your door between ten and twelve."
    async with stage(redis_url) as bridge, wire(bridge.url) as vaic:
        await vaic.begin()
        agent = await bridge.connection()
        await says(agent, f"Yes. {rest}")
        await speaks(agent, sound(500))
        await vaic.until("playStream.stop")
        await messages_for(vaic, 2.5)
        agent.drop()
        await (await bridge.connection(1)).wait_for(lambda connection: ("assistant", rest) in connection.texts)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["its end", "another line", "the caller's word"])
async def test_a_line_in_which_the_agent_is_still_counts_as_interrupted_until_it_is_known_to_be_whole(
    redis_url: str, eventually: Any, what: str
) -> None:
    async with stage(redis_url) as bridge, wire(bridge.url) as vaic:
        await vaic.begin()
        agent = await bridge.connection()

        async def stored(interrupted: bool) -> bool:
            lines = await bridge.app.calls("transcript", vaic.cid)
            return [(line.heard_ms, line.interrupted) for line in lines[:1]] == [(500, interrupted)]

        await says(agent, "It is in transit, as far as I can see.")
        await speaks(agent, sound(500))
        await eventually(lambda: stored(True))
        match what:
            case "its end":
                await done(agent)
            case "another line":
                await says(agent, "Anything else?")
            case "the caller's word":
                await agent.send_json({"type": "UserStartedSpeaking"})
                await done(agent)  # of the line, late
                await bridge.event("agent_audio_done")
                await turn(agent, "Yes?", sound(300))
                await bridge.event("agent_audio_done", 2)
        await eventually(lambda: stored(what == "the caller's word"))


@pytest.mark.slow
async def test_what_an_agent_has_left_open_for_long_is_not_said_again_when_its_connection_is_renewed(
    redis_url: str,
) -> None:
    text = "It is in transit, as far as I can see."
    async with stage(redis_url, agent_session_seconds=2.0) as bridge, wire(bridge.url) as vaic:
        await vaic.begin()
        agent = await bridge.connection()
        await says(agent, text)
        await speaks(agent, sound(500))
        renewed = await bridge.agent.wait_for(lambda a: [c for c in a.connections[1:] if c.ready], 15)
        assert [item["content"] for item in renewed[0].context] == [text]


@pytest.mark.slow
async def test_an_agent_that_thinks_in_the_middle_of_its_answer_is_not_replaced_just_then(redis_url: str) -> None:
    async with stage(redis_url, agent_session_seconds=2.0) as bridge, wire(bridge.url) as vaic:
        await vaic.begin()
        agent = await bridge.connection()
        await says(agent, "Let me think.")
        await speaks(agent, sound(1000))
        await messages_for(vaic, 4.5)
        await says(agent, "Yes, it is.")
        await speaks(agent, sound(300))
        await done(agent)
        assert len(heard(await messages_for(vaic, 1.5))) == MULAW.nbytes(300)


@pytest.mark.slow
async def test_a_hang_up_after_a_resume_does_not_wait_for_the_end_of_a_turn_that_was_heard_before(
    redis_url: str,
) -> None:
    async with stage(redis_url) as bridge:
        async with wire(bridge.url) as vaic:
            await vaic.begin()
            agent = await bridge.connection()
            await says(agent, "Goodbye.")
            await speaks(agent, sound(300))
            await vaic.until("playStream.chunk")
            await messages_for(vaic, 0.9)
            await vaic.drop()
        async with wire(bridge.url, vaic.cid) as again:
            await again.resume()
            await again.expect("session.accepted")
            await messages_for(again, 2.5)
            ending = asyncio.create_task(bridge.sessions[vaic.cid].end_session())
            assert (await again.expect("activities"))["activities"][0]["name"] == "hangup"
            await again.hang_up()
            await ending


@pytest.mark.slow
async def test_a_pause_in_an_answer_breaks_no_rule_of_a_vaic_that_mutes_the_caller_around_prompts(
    redis_url: str, eventually: Any
) -> None:
    plan = CallPlan(start_delay_s=0.0, hang_up_after=None)
    async with stage(redis_url) as bridge, SimulatedCall(bridge.url, plan) as call:
        await call.connect()
        await call.initiate()
        agent = await bridge.connection()
        await bridge.event("session_start")
        await says(agent, "One second.")
        await speaks(agent, sound(700))
        await eventually(lambda: len(call.report().heard) == 1 and call.report().heard[0].status == "finished")

        async def taken_for_its_end() -> bool:
            (line,) = await bridge.app.calls("transcript", call.conversation_id)
            return line.heard_ms is not None

        await eventually(taken_for_its_end)
        await says(agent, "It is in transit.")
        await speaks(agent, sound(700))
        await done(agent)
        await bridge.event("agent_audio_done")
        await eventually(lambda: len(call.report().heard) == 2 and call.report().heard[1].status == "finished")
        before = len(agent.heard)
        await call.say("opening_hours")
        await bridge.event("user_started_speaking")
        assert len(agent.heard) > before
        report = call.report()
    assert report.violations == []
    assert [len(stream.data) for stream in report.heard[:2]] == [MULAW.nbytes(700)] * 2


@pytest.mark.slow
async def test_a_url_that_vaic_could_not_play_does_not_hide_what_it_breaks_off_next(redis_url: str) -> None:
    async with stage(redis_url) as bridge, wire(bridge.url) as vaic:
        await vaic.begin()
        await bridge.event("session_start")
        agent = await bridge.connection()
        await bridge.sessions[vaic.cid].play_url("https://x/a.wav")
        await vaic.expect("activities")
        failed = vaic.activity("playUrlFailed", value={"reason": "404", "playUrlUrl": "https://x/a.wav"})
        await vaic.send(failed)
        await bridge.event("activity", 2)
        assert bridge.events("activity")[1].activity == failed["activities"][0]
        await says(agent, "It could not be played.")
        await speaks(agent, sound(3000))
        await done(agent)
        await vaic.until("playStream.chunk")
        await vaic.send(vaic.activity("playFinished", value={"playedDurationMS": 40, "status": "interrupted"}))
        assert len(heard(await vaic.until("playStream.stop"))) < MULAW.nbytes(1000)


@pytest.mark.slow
async def test_a_word_of_the_caller_with_which_an_injected_message_begins_is_the_callers(redis_url: str) -> None:
    async def play(agent: Peer) -> None:
        await agent.greet()
        await agent.next()
        await agent.send({"type": "InjectionRefused"}, {"type": "UserStartedSpeaking"})
        await agent.send({"type": "ConversationText", "role": "user", "content": "Yes"})
        await agent.hold()

    app = DeepgramBridge(configuration())
    notes = Notes(app)
    async with played_agent(play) as agent, running(app, redis_url, agent) as bridge, wire(bridge.url) as vaic:
        await vaic.begin()
        await notes.wait("session_start")
        await notes.session.send_user_message("Yes, the card was charged.")
        assert types(await vaic.until("userStream.speech.committed")) == [
            f"userStream.speech.{what}" for what in ("started", "stopped", "recognition", "committed")
        ]
