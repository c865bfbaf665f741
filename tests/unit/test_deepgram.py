"""The Voice Agent protocol: both machines back to back, one test per rule."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge_shared.protocol import deepgram as dg

SETTINGS: dict[str, Any] = {
    "type": "Settings",
    "tags": ["call:5f2"],
    "flags": {"history": True},
    "mip_opt_out": True,
    "audio": {
        "input": {"encoding": "mulaw", "sample_rate": 8000},
        "output": {"encoding": "mulaw", "sample_rate": 8000, "container": "none"},
    },
    "agent": {
        "listen": {"provider": {"type": "deepgram", "version": "v2", "model": "flux-general-en", "eot_threshold": 0.7}},
        "think": [
            {
                "provider": {"type": "open_ai", "model": "gpt-4o-mini", "temperature": 0.3},
                "prompt": "You answer parcel questions.",
                "functions": [
                    {"name": "track_parcel", "parameters": {"type": "object", "properties": {"no": {"default": None}}}},
                    {"name": "hang_up", "description": "end the call", "defer_until_eot": True},
                ],
            },
            {"provider": {"type": "anthropic", "model": "claude-haiku-4-5"}},
        ],
        "speak": [
            {"provider": {"type": "deepgram", "version": "v2", "model": "flux-kit-en"}},
            {"provider": {"type": "deepgram", "model": "aura-2-thalia-en"}},
        ],
        "greeting": "Parcel desk, hello.",
        "context": {
            "messages": [
                {"type": "History", "role": "user", "content": "Is my parcel out?"},
                {
                    "type": "History",
                    "function_calls": [
                        {"id": "1", "name": "track_parcel", "client_side": True, "arguments": "{}", "response": "yes"}
                    ],
                },
            ]
        },
    },
}


def text(frame: bytes) -> str:
    """A frame as the socket delivers it: JSON travels in text frames."""
    return frame.decode()


def pair(**settings: Any) -> tuple[dg.AgentClient, dg.AgentServer]:
    """A client and a server that have agreed on the settings."""
    client, server = dg.AgentClient(), dg.AgentServer()
    client.receive(text(server.welcome("r1")))
    server.receive(text(client.settings(SETTINGS | settings)))
    client.receive(text(server.applied()))
    assert (client.state, server.state) == ("ready", "ready")
    return client, server


def changed(path: str, value: object = None, *, drop: bool = False) -> dict[str, Any]:
    """The settings with one field set or dropped, named as in an Error's description."""
    result = copy.deepcopy(SETTINGS)
    *way, last = (int(step) if step.isdigit() else step for step in path.split("."))
    at: Any = result
    for step in way:
        at = at[step]
    if drop:
        del at[last]
    else:
        at[last] = value
    return result


# ── the opening ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_opening_goes_welcome_settings_applied_and_then_audio_flows_both_ways():
    client, server = dg.AgentClient(), dg.AgentServer()
    assert client.receive(text(server.welcome("r1"))) == [dg.Welcome("r1")]
    assert client.request_id == "r1"
    assert server.receive(text(client.settings(SETTINGS))) == [
        dg.SettingsReceived(SETTINGS, SETTINGS["agent"]["context"]["messages"])
    ]
    assert client.receive(text(server.applied())) == [dg.SettingsApplied()]
    assert client.receive(b"\xff\x7f\x00") == [dg.Audio(b"\xff\x7f\x00")]
    assert server.receive(b"\xff" * 160) == [dg.AudioReceived(b"\xff" * 160)]


def test_settings_are_sent_once_and_only_after_welcome():
    client = dg.AgentClient()
    with pytest.raises(dg.LocalProtocolError, match="after Welcome"):
        client.settings(SETTINGS)
    client.receive('{"type":"Welcome","request_id":"r"}')
    client.settings(SETTINGS)
    with pytest.raises(dg.LocalProtocolError):
        client.settings(SETTINGS)


def test_settings_that_cannot_be_encoded_leave_the_machine_where_it_was():
    client = dg.AgentClient()
    client.receive('{"type":"Welcome","request_id":"r"}')
    with pytest.raises(TypeError):
        client.settings({"audio": object()})
    assert client.settings(SETTINGS)


def test_nothing_else_can_be_sent_before_the_session_is_ready():
    client = dg.AgentClient()
    client.receive('{"type":"Welcome","request_id":"r"}')
    client.settings(SETTINGS)
    for send in (client.keep_alive, lambda: client.inject_user("x"), lambda: client.update_prompt("x")):
        with pytest.raises(dg.LocalProtocolError, match="settings_sent"):
            send()


@pytest.mark.parametrize("state", ["connecting", "welcomed", "settings_sent"])
def test_audio_and_conversation_before_settings_applied_are_reported_as_out_of_place(state: str):
    client = dg.AgentClient()
    if state != "connecting":
        client.receive('{"type":"Welcome","request_id":"r"}')
    if state == "settings_sent":
        client.settings(SETTINGS)
    assert client.state == state
    assert client.receive(b"\xff") == [dg.UnexpectedBinary()]
    assert client.receive('{"type":"UserStartedSpeaking"}') == [dg.UnexpectedType("UserStartedSpeaking")]
    assert client.state == state


def test_warnings_history_and_unknown_types_are_harmless_before_the_session_is_ready():
    client = dg.AgentClient()
    assert client.receive('{"type":"Warning","code":"C","description":"d"}') == [dg.Warned("C", "d")]
    item = {"type": "History", "role": "user", "content": "c"}
    assert client.receive(json.dumps(item)) == [dg.History(item)]
    assert client.receive('{"type":"Horoscope"}') == [dg.Unknown("Horoscope")]


def test_a_second_welcome_or_applied_is_out_of_place():
    client, server = pair()
    assert client.receive(text(server.welcome("r2"))) == [dg.UnexpectedType("Welcome")]
    assert client.receive('{"type":"SettingsApplied"}') == [dg.UnexpectedType("SettingsApplied")]
    assert (client.request_id, client.state) == ("r1", "ready")


# ── what the server says ─────────────────────────────────────────────────────────────────────────────────────────────


def test_every_server_message_arrives_as_its_event():
    client, server = pair()
    call = {"id": "c1", "name": "f", "arguments": "{}", "client_side": True}
    item = {"role": "user", "content": "hi"}
    conversation = {"type": "ConversationText", "role": "user", "content": "hi"}
    expected: list[tuple[bytes, dg.AgentEvent]] = [
        (server.text("user", "hi"), dg.ConversationText("user", "hi", conversation)),
        (server.history(item), dg.History({"type": "History", **item})),
        (server.user_started(), dg.UserStartedSpeaking()),
        (server.thinking("hm"), dg.AgentThinking("hm")),
        (server.agent_started(1.5, 0.5, 1), dg.AgentStartedSpeaking(1.5, 0.5, 1.0)),
        (server.audio_done(), dg.AgentAudioDone()),
        (server.function_request([call]), dg.FunctionCallRequest((call,))),
        (server.function_cancelled([call]), dg.FunctionCallCancelled(({"id": "c1", "name": "f"},))),
        (server.function_done("c2", "g", "r"), dg.FunctionCallDone("c2", "g", "r")),
        (server.injection_refused("no"), dg.InjectionRefused("no")),
        (server.latency_report(tts_latency=0.1), dg.LatencyReport({"type": "LatencyReport", "tts_latency": 0.1})),
        (server.warning("W", "d"), dg.Warned("W", "d")),
        (server.error("E", "d"), dg.AgentError("E", "d")),
    ]
    for frame, event in expected:
        assert client.receive(text(frame)) == [event]


def test_extra_fields_are_kept_and_missing_optional_ones_do_no_harm():
    client, _ = pair()
    (event,) = client.receive('{"type":"ConversationText","role":"user","content":"hola","languages":["es"]}')
    assert isinstance(event, dg.ConversationText)
    assert event.raw["languages"] == ["es"]
    assert client.receive('{"type":"InjectionRefused"}') == [dg.InjectionRefused("")]
    assert client.receive('{"type":"FunctionCallResponse","name":"g","content":"r"}') == [
        dg.FunctionCallDone(None, "g", "r")
    ]


@pytest.mark.parametrize(
    "frame",
    [
        "",
        "{",
        "[1]",
        "null",
        '{"type":7}',
        "[" * 100_000,
        '{"type":"ConversationText","role":"user"}',
        '{"type":"ConversationText","role":"user","content":null}',
        '{"type":"History","role":"user"}',
        '{"type":"History","function_calls":["x"]}',
        '{"type":"FunctionCallRequest"}',
        '{"type":"FunctionCallRequest","functions":[{"id":1,"name":"f"}]}',
        '{"type":"FunctionCallCancelled","functions":{}}',
        '{"type":"FunctionCallResponse","name":"f"}',
    ],
)
def test_a_message_that_cannot_be_used_is_reported_and_changes_nothing(frame: str):
    client, _ = pair()
    (event,) = client.receive(frame)
    assert isinstance(event, dg.Malformed)
    assert client.state == "ready"
    assert client.receive(b"\xff") == [dg.Audio(b"\xff")]


def test_an_empty_binary_frame_is_nothing():
    client, _ = pair()
    assert client.receive(b"") == []


def test_an_error_ends_the_session_and_nothing_after_it_is_reported():
    client, server = pair()
    assert client.receive(text(server.error("INTERNAL_SERVER_ERROR", "sorry"))) == [
        dg.AgentError("INTERNAL_SERVER_ERROR", "sorry")
    ]
    assert (client.state, client.error) == ("closed", "INTERNAL_SERVER_ERROR")
    assert client.receive(b"\xff") == client.receive('{"type":"AgentAudioDone"}') == []
    with pytest.raises(dg.LocalProtocolError, match="closed"):
        client.keep_alive()


def test_an_error_without_a_usable_code_is_still_an_error():
    assert dg.AgentClient().receive('{"type":"Error"}') == [dg.AgentError("UNSPECIFIED", "")]
    assert dg.AgentClient().receive('{"type":"Error","err_code":"X","err_msg":"y"}') == [dg.AgentError("X", "y")]


# ── what the client says ─────────────────────────────────────────────────────────────────────────────────────────────


def test_every_client_message_is_understood_by_the_server():
    client, server = pair()
    think, speak, listen = (
        SETTINGS["agent"]["think"],
        SETTINGS["agent"]["speak"][1],
        {"provider": {"type": "deepgram", "version": "v2", "eot_timeout_ms": 3000}},
    )
    expected: list[tuple[bytes, dg.ServerEvent]] = [
        (client.keep_alive(), dg.KeepAlive()),
        (client.update_prompt("p"), dg.PromptUpdate("p")),
        (client.update_think(think), dg.ThinkUpdate(think)),
        (client.update_speak(speak), dg.SpeakUpdate(speak)),
        (client.update_listen(listen), dg.ListenUpdate(listen)),
        (client.inject_user("u"), dg.InjectUser("u")),
        (client.inject_agent("a"), dg.InjectAgent("a", "default")),
        (client.inject_agent("a", "queue"), dg.InjectAgent("a", "queue")),
        (b'{"type":"ForceEndTurn"}', dg.ForceEndTurn()),
    ]
    for frame, event in expected:
        assert server.receive(text(frame)) == [event]


def test_an_acknowledgement_tells_which_update_it_confirms():
    client, server = pair()
    client.update_prompt("one")
    client.update_speak({"provider": {}})
    client.update_prompt("two")
    acknowledged = [client.receive(text(server.updated(kind))) for kind in ("prompt", "prompt", "speak", "listen")]
    assert acknowledged == [
        [dg.Updated("prompt", "one")],
        [dg.Updated("prompt", "two")],
        [dg.Updated("speak", {"provider": {}})],
        [dg.Updated("listen", None)],
    ]


# ── function calls (§4.4) ────────────────────────────────────────────────────────────────────────────────────────────


def request(*calls: tuple[str, str], client_side: bool = True) -> list[dict[str, Any]]:
    return [{"id": i, "name": n, "arguments": "{}", "client_side": client_side} for i, n in calls]


def test_each_call_is_answered_once_under_its_own_id():
    client, server = pair()
    client.receive(text(server.function_request(request(("c1", "f"), ("c2", "g")))))
    for call_id, name in (("c2", "g"), ("c1", "f")):
        assert client.awaits_response(call_id)
        assert server.receive(text(client.function_response(call_id, name, "ok"))) == [
            dg.FunctionResponse(call_id, name, "ok", expected=True)
        ]
        assert not client.awaits_response(call_id)
    with pytest.raises(dg.LocalProtocolError):
        client.function_response("c1", "f", "again")


def test_a_cancelled_call_must_not_be_answered_and_a_late_answer_is_dropped():
    client, server = pair()
    client.receive(text(server.function_request(request(("c1", "f")))))
    late = client.function_response("c1", "f", "late")
    server.function_cancelled(request(("c1", "f")))
    assert server.receive(text(late)) == [dg.FunctionResponse("c1", "f", "late", expected=False)]

    client, server = pair()
    client.receive(text(server.function_request(request(("c1", "f")))))
    client.receive(text(server.function_cancelled(request(("c1", "f")))))
    with pytest.raises(dg.LocalProtocolError):
        client.function_response("c1", "f", "late")


def test_calls_that_deepgram_runs_itself_and_calls_of_another_socket_are_not_ours_to_answer():
    client, server = pair()
    client.receive(text(server.function_request(request(("c1", "f"), client_side=False))))
    assert not client.awaits_response("c1")
    with pytest.raises(dg.LocalProtocolError):
        client.function_response("old", "f", "x")


def test_a_call_without_client_side_is_ours_and_an_unusable_one_does_not_spoil_the_others():
    client, _ = pair()
    events = client.receive('{"type":"FunctionCallRequest","functions":[{"id":"c1","name":"f"},{"name":"g"}]}')
    assert events == [
        dg.FunctionCallRequest(({"id": "c1", "name": "f"},)),
        dg.Malformed("FunctionCallRequest without a usable id or name"),
    ]
    assert client.awaits_response("c1")


def test_a_server_that_asks_without_end_makes_nobody_grow():
    client, server = pair()
    for number in range(2000):
        client.receive(text(server.function_request(request((str(number), "f")))))
    assert not client.awaits_response("0")
    assert client.awaits_response("1999")
    assert len(client._open_calls) <= 256


# ── what the server refuses (§2, §5.4) ───────────────────────────────────────────────────────────────────────────────


def refusal(server: dg.AgentServer, data: str | bytes) -> str:
    (event,) = server.receive(data)
    assert isinstance(event, dg.Refused)
    assert server.state == "closed"
    assert server.receive(data) == []
    return event.code


def test_settings_must_be_the_first_message():
    for first in (b"\xff", '{"type":"KeepAlive"}', '{"type":"InjectUserMessage","content":"x"}'):
        server = dg.AgentServer()
        server.welcome("r")
        assert refusal(server, first) == "NON_SETTINGS_MESSAGE_BEFORE_SETTINGS"


def test_strict_servers_refuse_what_comes_before_welcome_or_before_applied_and_lenient_ones_do_not():
    message = json.dumps(SETTINGS)
    assert refusal(dg.AgentServer(), message) == "NON_SETTINGS_MESSAGE_BEFORE_SETTINGS"
    assert isinstance(dg.AgentServer(strict=False).receive(message)[0], dg.SettingsReceived)
    for data in (b"\xff", '{"type":"KeepAlive"}'):
        strict, lenient = dg.AgentServer(), dg.AgentServer(strict=False)
        for server in (strict, lenient):
            server.welcome("r")
            server.receive(message)
        assert refusal(strict, data) == "NON_SETTINGS_MESSAGE_BEFORE_SETTINGS"
        assert not isinstance(lenient.receive(data)[0], dg.Refused)


def test_a_second_settings_is_refused():
    _, server = pair()
    assert refusal(server, json.dumps(SETTINGS)) == "SETTINGS_ALREADY_APPLIED"


@pytest.mark.parametrize(
    "message",
    [
        "{",
        "[]",
        '{"type":"settings"}',
        '{"type":"UpdateThink_Live","think_live":{}}',
        '{"type":"KeepAlive","note":"x"}',
        '{"type":"InjectAgentMessage","content":"the wrong key"}',
        '{"type":"InjectAgentMessage","message":"m","behavior":"shout"}',
        '{"type":"InjectUserMessage"}',
        '{"type":"UpdatePrompt","prompt":null}',
        '{"type":"UpdateThink","think":{"provider":{"type":"open_ai"}}}',
        '{"type":"UpdateListen","listen":{"provider":{"type":"deepgram","version":"v2","endpointing":300}}}',
        '{"type":"FunctionCallResponse","name":"f","content":"x"}',
        '{"type":"FunctionCallResponse","id":"1","name":"f","content":{"state":"an object"}}',
    ],
)
def test_a_message_that_does_not_match_the_schema_ends_the_session(message: str):
    _, server = pair()
    assert refusal(server, message) == "UNPARSABLE_CLIENT_MESSAGE"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("note", "x"),
        ("audio.input.channels", 1),
        ("agent.listen.provider.smart_format", True),
        ("agent.listen.provider.endpointing", 300),
        ("agent.think.0.functions.0.client_side", True),
        ("agent.think.0.provider.model", None),
        ("agent.think.0.provider.temperature", "0.3"),
        ("agent.greeting", None),
        ("agent.think_live", {"provider": {"type": "deepgram"}}),
        ("agent.context.messages.0.content", None),
        ("agent.context.messages.1.function_calls.0.response", None),
        ("tags", "call:1"),
        ("audio.output.encoding", "pcm"),
    ],
)
def test_an_unknown_key_a_null_or_a_wrong_type_is_unparsable_and_named(path: str, value: object):
    with pytest.raises(dg.SettingsInvalid) as caught:
        dg.validate_settings(changed(path, value))
    assert caught.value.code == "UNPARSABLE_CLIENT_MESSAGE"
    assert caught.value.description == f"Error parsing client message. Check the {path} field against the API spec."


@pytest.mark.parametrize("path", ["audio", "agent", "audio.input.sample_rate", "agent.think.0.provider.model"])
def test_a_missing_key_is_unparsable_and_named(path: str):
    with pytest.raises(dg.SettingsInvalid, match=path.replace(".", r"\.")) as caught:
        dg.validate_settings(changed(path, drop=True))
    assert caught.value.code == "UNPARSABLE_CLIENT_MESSAGE"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("audio.output.container", "wav"),  # not with a flux voice
        ("audio.output.sample_rate", 44100),  # not mulaw
        ("audio.output.bitrate", 48000),
        ("audio.output.encoding", "mp3"),
        ("audio.input", {"encoding": "amr-nb", "sample_rate": 16000}),
        ("agent.listen.provider", {"type": "deepgram", "model": "flux-general-en"}),  # looked up in v1
        ("agent.listen.provider.model", "nova-3"),
        ("agent.listen.provider.eot_threshold", 1.5),
        ("agent.listen.provider.eager_eot_threshold", 0.8),
        ("agent.listen.provider.language_hints", ["en"]),
        ("agent.think.0.provider.temperature", 2.5),
        ("agent.think.0.context_length", "max"),  # without an endpoint
        ("agent.think.0.functions.0.initial_agent_filler", True),  # without think_live
        ("agent.think", {"provider": {"type": "groq", "model": "openai/gpt-oss-20b"}}),  # without an endpoint
        ("agent.think", {"provider": {"type": "google"}}),
        ("agent.speak.0.provider.model", "aura-2-thalia-en"),
        ("agent.speak.1.provider.model", "flux-kit-en"),
        ("agent.speak.1.endpoint", {"url": "https://tts.example"}),
        ("agent.speak", {"provider": {"type": "eleven_labs", "model_id": "m"}}),
    ],
)
def test_a_value_that_parses_and_is_not_allowed_is_invalid_settings(path: str, value: object):
    with pytest.raises(dg.SettingsInvalid) as caught:
        dg.validate_settings(changed(path, value))
    assert caught.value.code == "INVALID_SETTINGS"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("audio", {}),
        ("agent", {"speak": {"provider": {"type": "deepgram", "model": "aura-2-thalia-en"}}}),
        ("agent", "5e8f6a3c-9d0b-4a54-8a31-2f6f3c0f6f11"),
        ("agent.listen", {"provider": {"type": "deepgram", "model": "nova-3", "keyterms": ["Zephyr"]}}),
        ("agent.think", {"provider": {"type": "google"}, "endpoint": {"url": "https://llm.example"}}),
        ("agent.think.0.functions.0.endpoint", {"url": "https://f.example", "method": "post", "headers": {"a": "b"}}),
    ],
)
def test_other_documented_forms_of_the_settings_are_accepted(path: str, value: object):
    dg.validate_settings(changed(path, value))


def test_the_documented_settings_are_accepted_and_a_stored_agent_must_be_a_uuid():
    dg.validate_settings(SETTINGS)
    with pytest.raises(dg.SettingsInvalid) as caught:
        dg.validate_settings(changed("agent", "my-agent"))
    assert caught.value.code == "INVALID_AGENT_ID"


def test_a_refusal_does_not_repeat_what_was_sent():
    credentials = {"type": "iam", "region": "r", "access_key_id": "id", "secret_access_key": 4711, "extra": "hush"}
    with pytest.raises(dg.SettingsInvalid) as caught:
        dg.validate_settings(
            changed("agent.think", {"provider": {"type": "aws_bedrock", "model": "m", "credentials": credentials}})
        )
    assert "4711" not in str(caught.value)
    assert "hush" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_history_is_off_when_the_settings_say_so():
    _, server = pair(flags={"history": False})
    assert not server.history_enabled


# ── after a failure (§5.4, §5.6) ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("code", "retry"),
    [
        ("INTERNAL_SERVER_ERROR", dg.Retry.BACKOFF),
        ("ASR_DRIVER_TIMEOUT", dg.Retry.ONCE),
        ("FAILED_TO_THINK", dg.Retry.LIMITED),
        ("SERVER_GOING_AWAY", dg.Retry.AT_ONCE),
        ("MAXIMUM_SESSION_LENGTH_REACHED", dg.Retry.AT_ONCE),
        ("INVALID_SETTINGS", dg.Retry.NO),
        ("USER_AUDIO_FORMAT", dg.Retry.NO),
        ("SOMETHING_NEW", dg.Retry.LIMITED),
    ],
)
def test_each_error_code_says_whether_a_new_socket_may_help(code: str, retry: dg.Retry):
    assert dg.retry_for(code) is retry


def test_the_last_error_decides_before_the_close_code_does():
    assert dg.parse_close(None, None)
    assert dg.parse_close(1006, None)
    assert dg.parse_close(1000, None)
    assert dg.parse_close(1011, "INTERNAL_SERVER_ERROR")
    assert not dg.parse_close(1011, "INVALID_SETTINGS")
    assert not dg.parse_close(1008, None)


@pytest.mark.parametrize(("status", "worth"), [(400, False), (401, False), (403, False), (429, True), (503, True)])
def test_a_refused_upgrade_is_worth_another_try_only_over_the_limit_or_in_server_trouble(status: int, worth: bool):
    assert (dg.retry_for_status(status) is not dg.Retry.NO) is worth


# ── whatever the peer sends ──────────────────────────────────────────────────────────────────────────────────────────

_KEYS = [
    *("role", "content", "functions", "function_calls", "id", "name", "arguments", "client_side", "code"),
    *("description", "request_id", "message", "total_latency", "agent", "think", "speak", "listen", "provider", "type"),
    *("audio", "input", "output", "flags", "tags", "context", "messages", "behavior", "prompt", "version", "model"),
]
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_KEYS) | st.text(max_size=5), inner),
    max_leaves=8,
)
_SERVER_TYPES = [
    *(
        "Welcome",
        "SettingsApplied",
        "Error",
        "Warning",
        "ConversationText",
        "History",
        "UserStartedSpeaking",
        "Nonsense",
    ),
    *("AgentThinking", "AgentStartedSpeaking", "AgentAudioDone", "FunctionCallRequest", "FunctionCallCancelled"),
    *("FunctionCallResponse", "PromptUpdated", "ListenUpdated", "InjectionRefused", "LatencyReport", "Nonsense"),
]
_CLIENT_TYPES = [
    *("Settings", "KeepAlive", "UpdatePrompt", "UpdateThink", "UpdateSpeak", "UpdateListen", "Nonsense"),
    *("InjectUserMessage", "InjectAgentMessage", "FunctionCallResponse", "ForceEndTurn"),
]


def frames(types: list[str]) -> st.SearchStrategy[str | bytes]:
    message = st.builds(
        lambda name, rest: json.dumps(rest | {"type": name}),
        st.sampled_from(types),
        st.dictionaries(st.sampled_from(_KEYS), _JSON, max_size=4),
    )
    return message | _JSON.map(json.dumps) | st.text(max_size=20) | st.binary(max_size=8)


@settings(derandomize=True, max_examples=150, deadline=None)
@given(st.lists(frames(_SERVER_TYPES), max_size=6))
def test_the_client_never_raises_and_reports_only_events(data: list[str | bytes]):
    opening, (ready, _) = dg.AgentClient(), pair()
    for client in (opening, ready):
        for frame in data:
            assert all(isinstance(event, dg.AgentEvent) for event in client.receive(frame))


@settings(derandomize=True, max_examples=150, deadline=None)
@given(st.lists(frames(_CLIENT_TYPES), max_size=6), _JSON)
def test_the_server_never_raises_and_reports_only_events(data: list[str | bytes], agent: object):
    opening, (_, ready) = dg.AgentServer(strict=False), pair()
    for server in (opening, ready):
        for frame in [*data, json.dumps(SETTINGS | {"agent": agent})]:
            assert all(isinstance(event, dg.ServerEvent) for event in server.receive(frame))
