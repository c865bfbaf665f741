"""The agent's side of a call, as §12.2 of the SDK reference wants it: nothing of a conversation is lost, whatever
the agent refuses, repeats, forgets or breaks."""

from __future__ import annotations

import asyncio
import copy
import itertools
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from bridge_sim.agent import AgentConnection, AgentScript, Faults, SimulatedAgent
from bridge_sim.caller import SimulatedCall
from bridge_sim.plan import CallPlan
from deepgram_audiocodes_bridge import DeepgramBridge
from deepgram_audiocodes_bridge.deepgram_handler import DeepgramHandshakeError
from harness import AGENT, GREETING, configuration, running
from sdk import EVENTS, EXTRA, WELCOME, Notes, Peer, calling, played_agent

QUICK = AgentScript(think_s=0)
TRACK = {"name": "track_parcel", "description": "state of a parcel", "parameters": {"type": "object", "properties": {}}}


def bridge_with(**agent: Any) -> DeepgramBridge:
    """A bridge whose agent's settings have these keys too."""
    return DeepgramBridge(configuration(deepgram_config={"agent": {**AGENT["agent"], **agent}}))


async def heard(agent: SimulatedAgent, said: Notes) -> AgentConnection:
    """Have the agent say something, and wait until it has been heard; returns its connection."""
    connection = agent.connections[-1]
    connection.say("agent_welcome")
    await said.wait("agent_audio_done")
    return connection


# ── D1: injected messages ──────────────────────────────────────────────────────────────────────────────────────────


async def test_a_message_that_is_refused_while_the_agent_speaks_is_said_after_its_turn(redis_url: str) -> None:
    bridge = DeepgramBridge(configuration())
    notes = Notes(bridge, *EVENTS, *EXTRA)
    async with SimulatedAgent(QUICK) as agent, running(bridge, redis_url, agent) as app, calling(app.url):
        agent.connections[0].say("agent_welcome")
        await notes.wait("conversation_text")
        await notes.session.send_agent_message("One moment.")
        await notes.wait("injection_refused")
        await notes.wait("conversation_text", 2)
        assert set(agent.connections[0].injections) == {("assistant", "One moment.")}
    assert notes.texts == [("assistant", WELCOME), ("assistant", "One moment.")]
    assert notes.of("warning") == []


async def test_messages_that_are_sent_at_once_are_each_said_once_and_in_order(redis_url: str) -> None:
    bridge = DeepgramBridge(configuration())
    notes = Notes(bridge)
    async with SimulatedAgent(QUICK) as agent, running(bridge, redis_url, agent) as app, calling(app.url):
        for text in ("One.", "Two.", "Three."):
            await notes.session.send_agent_message(text)
        await notes.wait("conversation_text", 3)
        await notes.wait("agent_audio_done", 3)
    assert notes.texts == [("assistant", "One."), ("assistant", "Two."), ("assistant", "Three.")]


@pytest.mark.parametrize(
    "refusal",
    [
        {"type": "InjectionRefused"},
        {"type": "Warning", "code": "INJECT_AGENT_MESSAGE_DURING_USER_SPEECH", "description": "The user speaks."},
    ],
    ids=["InjectionRefused", "Warning"],
)
async def test_a_message_that_is_refused_for_as_long_as_it_is_tried_becomes_a_warning(
    redis_url: str, refusal: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridge_worker.commands.GIVE_UP_SECONDS", 1.2)
    sent: list[dict[str, Any]] = []

    async def play(agent: Peer) -> None:
        await agent.greet()
        while True:
            sent.append(await agent.next())
            await agent.send(refusal)

    bridge = DeepgramBridge(configuration())
    notes = Notes(bridge)
    async with played_agent(play) as agent, running(bridge, redis_url, agent) as app, calling(app.url):
        await notes.session.send_agent_message("Hello?")
        warning = await notes.wait("warning")
    assert warning.code == "INJECTION_REFUSED"
    assert sent == [{"type": "InjectAgentMessage", "message": "Hello?"}] * 3
    assert len(notes.of("warning")) == 1


async def test_a_last_message_is_heard_before_the_line_is_cut_though_the_agent_refused_it_at_first(
    redis_url: str,
) -> None:
    bridge = DeepgramBridge(configuration())
    notes = Notes(bridge)
    async with SimulatedAgent(QUICK) as agent, running(bridge, redis_url, agent) as app, calling(app.url) as call:
        agent.connections[0].say("agent_welcome")
        await notes.wait("conversation_text")
        await notes.session.send_agent_message(WELCOME)
        await notes.session.end_session()
    report = call.report()
    assert [activity["name"] for activity in report.activities] == ["hangup"]
    assert sum(len(played.data) for played in report.heard) == 2 * 7270  # bytes of mu-law: all of it
    assert notes.texts == [("assistant", WELCOME)] * 2


# ── D2: audio that never stops ─────────────────────────────────────────────────────────────────────────────────────


async def test_the_agent_hears_the_line_without_a_gap_though_the_caller_is_muted_around_every_prompt(
    redis_url: str,
) -> None:
    bridge = DeepgramBridge(configuration())
    async with (
        SimulatedAgent(AgentScript(think_s=0, idle_timeout_s=1.5)) as agent,
        running(bridge, redis_url, agent) as app,
    ):
        call = SimulatedCall(app.url, CallPlan(say=("thank_you",), start_delay_s=0.0))
        async with call:
            await call.connect()
            await call.initiate()
            await heard(agent, Notes(bridge))  # VAIC opens the caller's stream behind it, and mutes it again
            await call.say("thank_you")
            await call.wait_answer()
            await call.hang_up()
        connection = agent.connections[0]
    assert connection.problems == []
    assert ("user", "Thank you very much for your help.") in connection.texts
    assert max(later - earlier for (earlier, _), (later, _) in itertools.pairwise(connection.frames)) < 1.2
    assert bytes(connection.heard[:800]) == b"\xff" * 800  # silence, in mu-law
    assert call.report().violations == []


# ── D3: a bounded handshake ────────────────────────────────────────────────────────────────────────────────────────


async def nothing(agent: Peer) -> None:
    await agent.hold()


async def no_applied(agent: Peer) -> None:
    await agent.send({"type": "Welcome", "request_id": "r"})
    await agent.hold()


async def garbage(agent: Peer) -> None:
    await agent.send({"hello": "there"})
    await agent.hold()


async def goodbye(agent: Peer) -> None:
    await agent.send({"type": "Welcome", "request_id": "r"})


async def audio(agent: Peer) -> None:
    await agent.send(b"\xff" * 160)
    await agent.hold()


async def text(agent: Peer) -> None:
    await agent.send({"type": "Welcome", "request_id": "r"}, {"type": "UserStartedSpeaking"})
    await agent.hold()


async def refusal(agent: Peer) -> None:
    await agent.send({"type": "Error", "err_code": "INVALID_SETTINGS", "err_msg": "No such voice."})


@pytest.mark.parametrize(
    ("play", "code"),
    [
        (nothing, "connect_failed"),
        (no_applied, "connect_failed"),
        (garbage, "connect_failed"),
        (goodbye, "connect_failed"),
        (audio, "handshake_binary_frame"),
        (text, "handshake_unexpected_type"),
        (refusal, "INVALID_SETTINGS"),
    ],
    ids=lambda case: getattr(case, "__name__", ""),
)
async def test_an_agent_that_does_not_get_ready_is_given_up_in_time_and_the_call_is_refused(
    redis_url: str, play: Callable[[Peer], Awaitable[None]], code: str
) -> None:
    bridge = DeepgramBridge(configuration())
    notes = Notes(bridge)
    async with (
        played_agent(play) as agent,
        running(bridge, redis_url, agent, agent_open_timeout=0.5, accept_timeout=1.0) as app,
    ):
        report = await SimulatedCall(app.url, CallPlan()).run()
        await notes.wait("session_end")
    assert report.end == "refused"
    assert code in (report.problem or "")
    assert notes.names == ["error", "session_end"]
    (error,), (end,) = notes.of("error"), notes.of("session_end")
    assert (error.code, error.recoverable) == (code, False)
    assert isinstance(error.cause, DeepgramHandshakeError) == (code != "connect_failed")
    assert (end.reason, end.duration_ms) == ("error", 0)


async def test_a_project_at_its_limit_is_asked_again_until_the_agent_is_ready(redis_url: str) -> None:
    bridge = DeepgramBridge(configuration())
    notes = Notes(bridge)
    script = AgentScript(think_s=0, faults=Faults(refuse_handshakes=2, refuse_status=429))
    async with SimulatedAgent(script) as agent, running(bridge, redis_url, agent) as app:
        async with calling(app.url) as call:
            assert agent.refused == 2
            await call.hang_up()
        assert call.report().problem is None
        await notes.wait("session_end")
    assert notes.of("error") == []


async def test_a_wrong_key_is_not_tried_again(redis_url: str) -> None:
    bridge = DeepgramBridge(configuration(deepgram_api_key="wrong"))
    notes = Notes(bridge)
    async with SimulatedAgent(AgentScript(require_token="right")) as agent, running(bridge, redis_url, agent) as app:
        report = await SimulatedCall(app.url, CallPlan()).run()
        await notes.wait("session_end")
        assert agent.refused == 1
    assert report.end == "refused"
    assert "DEEPGRAM_API_KEY" in notes.of("error")[0].description


# ── D4, D5, D6: a lost agent ───────────────────────────────────────────────────────────────────────────────────────

LOSSES: dict[str, Callable[[AgentConnection], Awaitable[None]]] = {
    "closed_in_order": lambda connection: connection.close(1000),
    "closed_without_a_code": lambda connection: connection.close(1005),
    "closed_with_1011": lambda connection: connection.close(1011),
    "broken_off": lambda connection: connection.close(1006),
    "INTERNAL_SERVER_ERROR": lambda connection: fail(connection, "INTERNAL_SERVER_ERROR"),
    "SERVER_GOING_AWAY": lambda connection: fail(connection, "SERVER_GOING_AWAY"),
    "MAXIMUM_SESSION_LENGTH_REACHED": lambda connection: fail(connection, "MAXIMUM_SESSION_LENGTH_REACHED"),
    "a_code_of_tomorrow": lambda connection: fail(connection, "SOLAR_FLARE"),
}


async def fail(connection: AgentConnection, code: str) -> None:
    """An `Error`; the agent leaves the socket open."""
    await connection.send_json({"type": "Error", "code": code, "description": "As the test has it."})


@pytest.mark.parametrize("loss", LOSSES)
async def test_a_lost_agent_is_replaced_by_one_that_knows_the_conversation_and_does_not_greet(
    redis_url: str, loss: str
) -> None:
    bridge = DeepgramBridge(configuration(greeting=WELCOME))
    notes = Notes(bridge, *EVENTS, *EXTRA)
    async with SimulatedAgent(QUICK) as agent, running(bridge, redis_url, agent) as app, calling(app.url) as call:
        await notes.wait("agent_audio_done")
        await LOSSES[loss](agent.connections[0])
        await agent.wait_for(lambda agent: len(agent.connections) == 2 and agent.connections[1].ready)
        settings = agent.connections[1].settings
        warning = await notes.wait("warning")
        assert notes.session.is_active
        await notes.session.send_user_message("What did I say first?")
        await notes.wait("conversation_text", 3)
        await call.hang_up()
        await notes.wait("session_end")
    assert "greeting" not in settings["agent"]
    history = [{"type": "History", "role": "assistant", "content": WELCOME}]
    assert settings["agent"].pop("context") == {"messages": history}
    assert settings["agent"] == AGENT["agent"]
    assert warning.code in (loss, "disconnected", "connection_closed", "SOLAR_FLARE")
    assert notes.of("error") == []
    assert [event.reason for event in notes.of("session_resumed")] == ["agent_lost"]
    assert notes.texts[1:] == [("user", "What did I say first?"), ("assistant", "You have said nothing yet.")]
    assert [event.reason for event in notes.of("session_end")] == ["hangup"]


async def test_a_lost_agent_is_replaced_with_the_prompt_the_voice_and_the_model_that_it_had_then(
    redis_url: str,
) -> None:
    bridge = DeepgramBridge(configuration())
    notes = Notes(bridge)
    voice = {"provider": {"type": "deepgram", "model": "aura-2-apollo-en"}}
    model = {"provider": {"type": "open_ai", "model": "gpt-4o"}, "prompt": "You are the depot."}
    async with SimulatedAgent(QUICK) as agent, running(bridge, redis_url, agent) as app, calling(app.url):
        await notes.session.update_speak(voice)
        await notes.session.update_think(model)
        await notes.session.update_prompt("Be brief.")
        for name in ("speak_updated", "think_updated", "prompt_updated"):
            await notes.wait(name)
        await agent.connections[0].close(1011)
        await notes.wait("warning")
        settings = agent.connections[1].settings["agent"]
    assert settings["speak"] == voice
    assert settings["think"] == {**model, "prompt": "You are the depot.\n\nBe brief."}


async def test_what_is_asked_of_the_agent_while_there_is_none_waits_for_the_next_one(redis_url: str) -> None:
    bridge = DeepgramBridge(configuration())
    notes = Notes(bridge)
    async with SimulatedAgent(QUICK) as agent, running(bridge, redis_url, agent) as app, calling(app.url):
        agent.script = AgentScript(think_s=0, open_delay_s=0.5)
        agent.connections[0].drop()
        await agent.connections[0].wait_for(lambda connection: connection.closed)
        await notes.session.send_agent_message(WELCOME)
        await asyncio.gather(notes.session.update_prompt("Be brief."), notes.session.send_user_message("Hello?"))
        await notes.wait("prompt_updated")
        await notes.wait("conversation_text", 3)
        assert agent.connections[1].updates == [("prompt", "Be brief.")]
    assert notes.texts[:2] == [("assistant", WELCOME), ("user", "Hello?")]


async def test_an_agent_that_fails_for_a_reason_that_stays_ends_the_call_honestly(redis_url: str) -> None:
    bridge = DeepgramBridge(configuration())
    notes = Notes(bridge)
    async with SimulatedAgent(QUICK) as agent, running(bridge, redis_url, agent) as app, calling(app.url) as call:
        await notes.wait("activity")
        await fail(agent.connections[0], "USER_AUDIO_FORMAT")
        await call.wait_end()
        await notes.wait("session_end")
        record = await app.calls("read", call.conversation_id)
        assert len(agent.connections) == 1
    assert notes.names[-2:] == ["error", "session_end"]
    (error,), (end,) = notes.of("error"), notes.of("session_end")
    assert (error.code, error.recoverable, error.cause) == ("USER_AUDIO_FORMAT", False, None)
    assert end.reason == "error"
    assert (record.reason, record.detail) == ("error", "USER_AUDIO_FORMAT: As the test has it.")
    report = call.report()
    assert (report.end, report.violations) == ("bot-disconnected", [])


async def test_a_caller_whose_agent_is_gone_for_good_goes_to_the_failover_target(redis_url: str) -> None:
    bridge = DeepgramBridge(configuration())
    async with (
        SimulatedAgent(QUICK) as agent,
        running(bridge, redis_url, agent, failover_target="tel:+49301") as app,
        calling(app.url) as call,
    ):
        await fail(agent.connections[0], "USER_AUDIO_FORMAT")
        await call.wait_end()
    report = call.report()
    assert [(sent["name"], sent.get("activityParams")) for sent in report.activities] == [
        ("transfer", {"transferTarget": "tel:+49301"})
    ]
    assert (report.end, report.violations) == ("transferred", [])


async def test_an_agent_that_refuses_to_come_back_ends_the_call_honestly(redis_url: str) -> None:
    bridge = DeepgramBridge(configuration())
    notes = Notes(bridge)
    async with (
        SimulatedAgent(QUICK) as agent,
        running(bridge, redis_url, agent, lost_seconds=1.0) as app,
        calling(app.url) as call,
    ):
        agent.script = AgentScript(faults=Faults(refuse_handshakes=1000))
        agent.connections[0].drop()
        await notes.wait("error")
        await call.wait_end()
        await notes.wait("session_end")
        assert agent.refused >= 2
    (error,), (end,) = notes.of("error"), notes.of("session_end")
    assert (error.code, error.recoverable) == ("connect_failed", False)
    assert "503" in error.description
    assert end.reason == "error"


@pytest.mark.parametrize(("code", "connections"), [("ASR_DRIVER_TIMEOUT", 2), ("FAILED_TO_THINK", 3)])
async def test_an_agent_that_fails_again_and_again_is_tried_as_often_as_its_code_allows(
    redis_url: str, code: str, connections: int
) -> None:
    bridge = DeepgramBridge(configuration())
    notes = Notes(bridge)
    async with (
        SimulatedAgent(AgentScript(faults=Faults(error_code=code, after_s=0.05))) as agent,
        running(bridge, redis_url, agent) as app,
        calling(app.url) as call,
    ):
        await notes.wait("session_end")
        await call.wait_end()
        assert len(agent.connections) == connections
    assert [event.code for event in notes.of("warning")] == [code] * (connections - 1)
    assert [event.code for event in notes.of("error")] == [code]


async def test_a_session_that_comes_to_its_longest_length_is_warned_of_and_continued(redis_url: str) -> None:
    bridge = DeepgramBridge(configuration())
    notes = Notes(bridge)
    async with (
        SimulatedAgent(AgentScript(session_s=0.6)) as agent,
        running(bridge, redis_url, agent) as app,
        calling(app.url),
    ):
        agent.script = QUICK
        await notes.wait("warning", 2)
        assert notes.session.is_active
    assert [event.code for event in notes.of("warning")] == [
        "MAXIMUM_SESSION_LENGTH_APPROACHING",
        "MAXIMUM_SESSION_LENGTH_REACHED",
    ]


# ── D7, D8: what the agent says ────────────────────────────────────────────────────────────────────────────────────


async def test_errors_and_warnings_are_read_in_both_spellings(redis_url: str) -> None:
    async def play(agent: Peer) -> None:
        await agent.greet()
        await agent.send({"type": "Warning", "code": "SLOW_THINK_REQUEST", "description": "5 s"})
        await agent.send({"type": "Warning", "warn_code": "OLD", "warn_msg": "old words"})
        await agent.send({"type": "Error"})

    bridge = DeepgramBridge(configuration())
    notes = Notes(bridge)
    async with played_agent(play) as agent, running(bridge, redis_url, agent) as app:
        async with calling(app.url) as call:
            await call.wait_end()
        await notes.wait("session_end")
    warnings = [(event.code, event.description) for event in notes.of("warning")]
    assert warnings[:2] == [("SLOW_THINK_REQUEST", "5 s"), ("OLD", "old words")]
    assert notes.of("error")[-1].code == "unknown"


async def test_everything_else_that_the_agent_tells_reaches_the_handlers_that_ask_for_it(redis_url: str) -> None:
    bridge = bridge_with(
        think={**AGENT["agent"]["think"], "functions": [{**TRACK, "endpoint": {"url": "https://x", "method": "get"}}]}
    )
    bridge._config.deepgram_config["experimental"] = True
    notes = Notes(bridge, *EXTRA, "conversation_text", "function_call_request", "session_start", "error")
    script = AgentScript(think_s=0, faults=Faults(latency_flood=3, unknown_messages=True))
    async with SimulatedAgent(script) as agent, running(bridge, redis_url, agent) as app, calling(app.url):
        connection = agent.connections[0]
        connection.call(("track_parcel", '{"number":"Z1"}'))
        await notes.wait("function_call_response")
        await notes.wait("conversation_text")
        await notes.wait("history", 2)
        await connection.send_json({"type": "AgentThinking"})
        await connection.send_json({"type": "ConversationText", "role": 7})
        await connection.send_json(["not", "an", "object"])
        connection.say("agent_welcome")
        await notes.wait("conversation_text", 2)
    (request,) = notes.of("function_call_request")
    (response,) = notes.of("function_call_response")
    assert [(call.name, call.client_side) for call in request.functions] == [("track_parcel", False)]
    assert (response.id, response.content) == (request.functions[0].id, '{"state":"done"}')
    assert notes.of("agent_started_speaking")[0].tts_latency == 0.05
    assert notes.of("latency_report")[0].stt_latency == 0.08
    assert notes.of("latency_report")[0].total_latency is None
    assert "function_calls" in notes.of("history")[0].item
    assert notes.of("error") == []


# ── D9: function calls ─────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_function_call_is_answered_and_a_cancelled_one_is_not(redis_url: str) -> None:
    bridge = bridge_with(think={**AGENT["agent"]["think"], "functions": [TRACK]})
    notes = Notes(bridge, *EVENTS, *EXTRA)
    async with SimulatedAgent(QUICK) as agent, running(bridge, redis_url, agent) as app, calling(app.url):
        connection, session = agent.connections[0], notes.session
        connection.call(("track_parcel", '{"number":"Z1"}'))
        (first,) = (await notes.wait("function_call_request")).functions
        assert (first.name, first.arguments, first.client_side) == ("track_parcel", '{"number":"Z1"}', True)
        await connection.barge()
        (cancelled,) = (await notes.wait("function_call_cancelled")).functions
        assert (cancelled.id, cancelled.name) == (first.id, "track_parcel")
        await session.respond_to_function_call(first.id, "track_parcel", "too late")
        connection.call(("track_parcel", '{"number":"Z1"}'))
        (second,) = (await notes.wait("function_call_request", 2)).functions
        await session.respond_to_function_call(second.id, "track_parcel", "in transit")
        await session.respond_to_function_call(second.id, "track_parcel", "once more")
        await notes.wait("conversation_text")
    assert [(response.id, response.content) for response in connection.responses] == [(second.id, "in transit")]
    assert notes.of("error") == []


async def test_an_answer_that_comes_when_the_agent_was_replaced_is_dropped_and_the_call_is_in_the_history(
    redis_url: str,
) -> None:
    bridge = bridge_with(think={**AGENT["agent"]["think"], "functions": [TRACK]})
    notes = Notes(bridge)
    async with SimulatedAgent(QUICK) as agent, running(bridge, redis_url, agent) as app, calling(app.url):
        agent.connections[0].call(("track_parcel", "{}"))
        (done,) = (await notes.wait("function_call_request")).functions
        await notes.session.respond_to_function_call(done.id, done.name, "in transit")
        await notes.wait("agent_audio_done")
        agent.connections[0].call(("track_parcel", "{}"))
        (open_call,) = (await notes.wait("function_call_request", 2)).functions
        await agent.connections[0].close(1011)
        await notes.wait("warning")
        await notes.session.respond_to_function_call(open_call.id, open_call.name, "too late")
        await notes.session.send_agent_message(WELCOME)
        await notes.wait("conversation_text", 2)
        connection = agent.connections[1]
    assert connection.responses == []
    (item,) = [item for item in connection.context if "function_calls" in item]
    assert [(call["id"], call["response"]) for call in item["function_calls"]] == [(done.id, "in transit")]
    assert notes.of("error") == []


# ── D10 to D14: the settings ───────────────────────────────────────────────────────────────────────────────────────


async def test_the_settings_go_out_as_the_application_wrote_them_but_for_what_has_to_change(redis_url: str) -> None:
    functions = [
        {**TRACK, "defer_until_eot": True},
        {**TRACK, "name": "report", "endpoint": {"url": "https://example.com", "method": "post", "headers": {}}},
    ]
    config: dict[str, Any] = {
        "tags": ["tenant:acme"],
        "flags": {"history": True},
        "mip_opt_out": True,
        "audio": {"input": {"encoding": "linear16", "sample_rate": 48000}},
        "agent": {
            "listen": {"provider": {"type": "deepgram", "model": "flux-general-en", "eot_threshold": 0.8}},
            "think": [
                {
                    "provider": {"type": "open_ai", "model": "gpt-4o-mini", "temperature": 0.3},
                    "prompt": "You are the parcel desk.",
                    "functions": functions,
                },
                {"provider": {"type": "anthropic", "model": "claude-sonnet-4-5"}},
            ],
            "speak": [
                {"provider": {"type": "deepgram", "model": "flux-kit-en"}},
                {"provider": {"type": "deepgram", "model": "aura-2-thalia-en"}},
            ],
            "greeting": WELCOME,
        },
    }
    before = copy.deepcopy(config)
    bridge = DeepgramBridge(configuration(deepgram_config=config))
    Notes(bridge)
    formats = ("raw/lpcm16", "raw/mulaw")
    async with SimulatedAgent(AgentScript(require_token="test-key")) as agent, running(bridge, redis_url, agent) as app:
        async with calling(app.url) as call:
            await call.hang_up()
        async with calling(app.url, formats=formats) as call:
            assert call.report().media_format == "raw/mulaw"
        async with calling(app.url, formats=("raw/lpcm16",)) as call:
            await call.hang_up()
        first, _, third = agent.connections
    expected: dict[str, Any] = {**copy.deepcopy(before), "type": "Settings"}
    expected["audio"] = {
        "input": {"encoding": "mulaw", "sample_rate": 8000},
        "output": {"encoding": "mulaw", "sample_rate": 8000, "container": "none"},
    }
    expected["agent"]["listen"]["provider"]["version"] = "v2"
    expected["agent"]["speak"][0]["provider"]["version"] = "v2"
    expected["agent"]["think"][1] |= {"prompt": "You are the parcel desk.", "functions": functions}
    assert first.settings == expected
    linear = {"encoding": "linear16", "sample_rate": 16000}
    assert third.settings["audio"] == {"input": linear, "output": {**linear, "container": "none"}}
    assert config == before


# ── the transcript ─────────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_transcript_has_each_utterance_once_and_says_how_much_of_it_was_heard(redis_url: str) -> None:
    bridge = DeepgramBridge(configuration(greeting=GREETING))
    notes = Notes(bridge)
    async with (
        SimulatedAgent(AgentScript(think_s=0, faults=Faults(late_audio_frames=3))) as agent,
        running(bridge, redis_url, agent) as app,
        calling(app.url) as call,
    ):
        await call.wait_interruptible()
        await call.say("thank_you")
        await call.wait_answer()
        await call.hang_up()
        await notes.wait("session_end")
        lines = await app.calls("transcript", call.conversation_id)
        record = await app.calls("read", call.conversation_id)
    said = [(line.role, line.content) for line in lines]
    assert said == [
        ("assistant", GREETING),
        ("user", "Thank you very much for your help."),
        ("assistant", WELCOME),
    ]
    assert notes.texts == said
    assert [(event.role, event.content) for event in notes.session.get_transcript()] == said
    epoch = record.we
    assert [line.id for line in lines] == [f"{epoch}-1", f"{epoch}-2", f"{epoch}-3"]
    greeting, question, answer = lines
    assert greeting.interrupted
    assert greeting.heard_ms is not None
    assert 900 <= greeting.heard_ms < 3191
    assert (answer.heard_ms, answer.interrupted) == (909, False)
    assert greeting.turn != answer.turn
    assert question.heard_ms is None
