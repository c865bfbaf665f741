"""The public surface is a list, and this is the list (sdk-public-api §1–§5, §8).

What stands under ADDED is ours on top of the original: optional keys, further literals, further names.
Nothing may be renamed, removed or newly required.
"""

import ast
import dataclasses
import importlib
import inspect
import runpy
import subprocess
import sys
import typing
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args

import pytest
from websockets.asyncio.server import ServerConnection
from websockets.http11 import Request, Response

from deepgram_audiocodes_bridge import types as t
from deepgram_audiocodes_bridge.types import audiocodes, deepgram

REPO = Path(__file__).parents[2]
CUSTOMER = REPO / "tests" / "typing" / "customer_app.py"
EXAMPLES = sorted((REPO / "worker" / "examples").glob("*/app.py"))

# Names ------------------------------------------------------------------------------------------


def words(text: str) -> set[str]:
    return set(text.split())


ROOT = words(
    """
    DeepgramBridge Session
    BridgeConfig DeepgramAgentConfig DeepgramConfig DeepgramFunction DeepgramFunctionParameters
    DeepgramFunctionParameterProperty AudioCodesMediaFormat
    SessionStartEvent InboundActivityEvent ConversationTextEvent UserStartedSpeakingEvent AgentThinkingEvent
    AgentAudioDoneEvent FunctionCall FunctionCallRequestEvent PromptUpdatedEvent SpeakUpdatedEvent ThinkUpdatedEvent
    WarningEvent SessionEndEvent SessionEndReason BridgeErrorEvent
    SessionInitiateMessage AudioCodesBaseActivity AudioCodesEventActivity AudioCodesEventName TransferActivityParams
    PlayUrlActivityParams SendDtmfActivityParams CallRecordingActivityParams
    """
)
ADDED_TO_ROOT = {"CallStore"}
TYPES = (ROOT - {"DeepgramBridge", "Session"}) | words(
    """
    AwsCredentials AwsPollySpeakEngine AwsPollySpeakVoice CartesiaSpeakModelId CartesiaSpeakVoice CustomEndpoint
    DeepgramAgent DeepgramAudio DeepgramAudioInput DeepgramAudioOutput DeepgramListen DeepgramSpeak DeepgramSpeakModel
    DeepgramSpeakProvider DeepgramSpeakProviderAwsPolly DeepgramSpeakProviderCartesia DeepgramSpeakProviderDeepgram
    DeepgramSpeakProviderElevenLabs DeepgramSpeakProviderOpenAI DeepgramThink DeepgramThinkAnthropicModel
    DeepgramThinkBedrockModel DeepgramThinkGoogleModel DeepgramThinkGroqModel DeepgramThinkOpenAIModel
    DeepgramThinkProvider DeepgramThinkProviderAnthropic DeepgramThinkProviderAwsBedrock DeepgramThinkProviderGoogle
    DeepgramThinkProviderGroq DeepgramThinkProviderOpenAI ElevenLabsSpeakModelId OpenAISpeakModel OpenAISpeakVoice
    """
)
AUDIOCODES = words(
    """
    AudioCodesBaseActivity AudioCodesEventActivity AudioCodesEventName AudioCodesMediaFormat BridgeConfig
    BridgeErrorEvent CallRecordingActivityParams InboundActivityEvent PlayUrlActivityParams SendDtmfActivityParams
    SessionEndEvent SessionEndReason SessionInitiateMessage SessionStartEvent TransferActivityParams
    """
)
HIDDEN = {"AudioCodesMessageActivity", "AudioCodesActivity"}  # in `.types.audiocodes` only, in the original
ADDED_NAMES = HIDDEN | words(
    """
    AgentStartedSpeakingEvent CancelledFunctionCall FunctionCallCancelledEvent FunctionCallResponseEvent HistoryEvent
    InjectionRefusedEvent LatencyReportEvent ListenUpdatedEvent SessionResumedEvent
    BeforeTransferEvent FinishEvent TurnTiming TurnTimingEvent
    """
)


def names(module: ModuleType) -> list[str]:
    found = module.__all__
    assert len(found) == len(set(found))
    assert not [name for name in found if not hasattr(module, name)]
    return found


def test_the_package_exports_the_32_names_of_the_original_then_ours_and_no_version():
    root = importlib.import_module("deepgram_audiocodes_bridge")
    assert len(ROOT) == 32
    assert set(names(root)) == ROOT | ADDED_TO_ROOT
    assert not hasattr(root, "__version__")


def test_the_package_and_its_types_export_the_same_objects():
    root = importlib.import_module("deepgram_audiocodes_bridge")
    assert not [name for name in ROOT & TYPES if getattr(root, name) is not getattr(t, name)]


def test_types_export_the_64_names_of_the_original_and_then_ours():
    assert len(TYPES) == 64
    found = names(t)
    assert set(found[:64]) == TYPES
    assert set(found[64:]) == ADDED_NAMES


def test_each_type_also_imports_from_the_module_the_original_keeps_it_in():
    assert len(AUDIOCODES) == 15
    assert set(names(audiocodes)) == AUDIOCODES | HIDDEN
    assert set(names(deepgram)) == TYPES - AUDIOCODES
    for module in (audiocodes, deepgram):
        assert not [name for name in module.__all__ if getattr(module, name) is not getattr(t, name)]


def test_the_shared_types_are_the_very_objects_the_sdk_exports():
    shared = importlib.import_module("bridge_shared.types")
    assert set(names(shared)) == set(t.__all__) | {"DeepgramHandshakeError"}
    assert not [name for name in t.__all__ if getattr(shared, name) is not getattr(t, name)]


def test_the_bridge_module_holds_bridge_session_state_and_emitter():
    root = importlib.import_module("deepgram_audiocodes_bridge")
    bridge = importlib.import_module("deepgram_audiocodes_bridge.bridge")
    assert bridge.DeepgramBridge is root.DeepgramBridge
    assert bridge.Session is root.Session
    assert issubclass(bridge.DeepgramBridge, bridge.AsyncEventEmitter)
    assert "on" in vars(bridge.AsyncEventEmitter)
    assert issubclass(bridge.SessionState, Enum)
    assert {state.name: state.value for state in bridge.SessionState} == {
        "INITIALIZING": "initializing",
        "ACTIVE": "active",
        "ENDING": "ending",
        "ENDED": "ended",
    }


def test_a_handshake_error_has_a_code_a_description_and_a_payload_and_reads_as_its_description():
    handler = importlib.import_module("deepgram_audiocodes_bridge.deepgram_handler")
    signature = inspect.signature(handler.DeepgramHandshakeError)
    assert [(p.name, p.default) for p in signature.parameters.values()] == [
        ("code", inspect.Parameter.empty),
        ("description", inspect.Parameter.empty),
        ("payload", None),
    ]
    error = handler.DeepgramHandshakeError("INVALID_SETTINGS", "bad voice", {"type": "Error"})
    assert isinstance(error, Exception)
    assert (error.code, error.description, error.payload) == ("INVALID_SETTINGS", "bad voice", {"type": "Error"})
    assert str(error) == "bad voice"


# Dataclasses ------------------------------------------------------------------------------------

SID = {"session_id": str}
EVENTS: dict[str, dict[str, Any]] = {
    "SessionStartEvent": SID
    | {"conversation_id": str, "caller": str | None, "bot_name": str | None}
    | {"media_format": t.AudioCodesMediaFormat, "started_at": str},
    "SessionEndEvent": SID | {"reason": t.SessionEndReason, "duration_ms": int, "ended_at": str},
    "ConversationTextEvent": SID | {"role": Literal["user", "assistant"], "content": str},
    "UserStartedSpeakingEvent": SID,
    "AgentThinkingEvent": SID | {"content": str},
    "AgentAudioDoneEvent": SID,
    "FunctionCall": {"id": str, "name": str, "arguments": str, "client_side": bool},
    "FunctionCallRequestEvent": SID | {"functions": tuple[t.FunctionCall, ...]},
    "PromptUpdatedEvent": SID,
    "SpeakUpdatedEvent": SID,
    "ThinkUpdatedEvent": SID,
    "WarningEvent": SID | {"code": str, "description": str},
    "InboundActivityEvent": SID | {"activity": t.AudioCodesActivity},
    "BridgeErrorEvent": {"session_id": str | None, "description": str, "code": str}
    | {"cause": Exception | None, "recoverable": bool},
}
SECONDS = float | None
ADDED_EVENTS: dict[str, dict[str, Any]] = {
    "AgentStartedSpeakingEvent": SID | {"total_latency": SECONDS, "tts_latency": SECONDS, "ttt_latency": SECONDS},
    "InjectionRefusedEvent": SID | {"message": str},
    "HistoryEvent": SID | {"item": dict[str, object]},
    "CancelledFunctionCall": {"id": str, "name": str},
    "FunctionCallCancelledEvent": SID | {"functions": tuple[t.CancelledFunctionCall, ...]},
    "FunctionCallResponseEvent": SID | {"id": str, "name": str, "content": str},
    "ListenUpdatedEvent": SID,
    "LatencyReportEvent": SID
    | {"stt_latency": SECONDS, "ttt_token_latency": SECONDS, "ttt_text_latency": SECONDS}
    | {"ttt_tool_latency": SECONDS, "ttt_thinking_latency": SECONDS, "tts_latency": SECONDS, "total_latency": SECONDS},
    "SessionResumedEvent": SID | {"reason": str},
    "BeforeTransferEvent": SID | {"target": str, "reason": str, "summary": str},
    "FinishEvent": EVENTS["SessionEndEvent"] | {"attempt": int, "idempotency_key": str},
    "TurnTiming": {"turn": int, "stt_ms": SECONDS, "text_ms": float, "audio_ms": float, "heard_ms": float},
    "TurnTimingEvent": SID | {"timing": t.TurnTiming},
}
CONFIG = {
    "deepgram_api_key": dataclasses.MISSING,
    "deepgram_config": dataclasses.MISSING,
    "ac_token": None,  # required in the original
    "authenticate": None,
    "host": "0.0.0.0",
    "port": 8081,
    "preferred_media_formats": ("raw/mulaw", "raw/lpcm16_8", "raw/lpcm16"),
}


def is_frozen_and_slotted(cls: Any) -> bool:
    return cls.__dataclass_params__.frozen and "__slots__" in vars(cls) and "__dict__" not in vars(cls)


def hints(cls: Any) -> dict[str, Any]:
    """What the annotations mean, with the names only a type checker imports filled in."""
    return typing.get_type_hints(
        cls,
        localns={"ServerConnection": ServerConnection, "Request": Request, "Response": Response},
        include_extras=True,
    )


@pytest.mark.parametrize("name", EVENTS | ADDED_EVENTS)
def test_an_event_has_exactly_its_fields_in_order_without_defaults(name: str):
    cls, fields = getattr(t, name), (EVENTS | ADDED_EVENTS)[name]
    assert [f.name for f in dataclasses.fields(cls)] == list(fields)
    assert hints(cls) == fields
    for f in dataclasses.fields(cls):
        assert f.default is f.default_factory is dataclasses.MISSING
        assert f.init and f.repr and f.compare and not f.kw_only
    assert is_frozen_and_slotted(cls)


def test_no_event_class_is_missing_from_the_tables():
    found = {name for name in t.__all__ if dataclasses.is_dataclass(getattr(t, name))}
    assert found == EVENTS.keys() | ADDED_EVENTS.keys() | {"BridgeConfig"}


def test_the_representation_of_an_event_names_all_its_fields():
    event = t.WarningEvent("s1", "SLOW_THINK_REQUEST", "3 s")
    assert repr(event) == "WarningEvent(session_id='s1', code='SLOW_THINK_REQUEST', description='3 s')"


def test_the_configuration_begins_with_the_fields_and_defaults_of_the_original():
    fields = dataclasses.fields(t.BridgeConfig)
    assert [f.name for f in fields[:7]] == list(CONFIG)
    assert {f.name: f.default for f in fields[:7]} == CONFIG
    # Ours come after the seventh, and never without a default.
    assert not [f.name for f in fields[7:] if f.default is f.default_factory]
    assert not [f.name for f in fields if not f.init or f.kw_only]
    assert is_frozen_and_slotted(t.BridgeConfig)


def test_the_configuration_has_the_types_of_the_original():
    found = hints(t.BridgeConfig)
    (authenticate, none) = get_args(found.pop("authenticate"))
    (parameters, result) = get_args(authenticate)
    assert none is type(None)
    assert parameters == [ServerConnection, Request]
    assert get_args(result) == (Response | None,)
    assert {name: found[name] for name in CONFIG if name != "authenticate"} == {
        "deepgram_api_key": str,
        "deepgram_config": t.DeepgramAgentConfig,
        "ac_token": str | None,
        "host": str,
        "port": int,
        "preferred_media_formats": tuple[t.AudioCodesMediaFormat, ...],
    }


def test_a_configuration_checks_nothing_and_keeps_what_it_is_given():
    plain = {"agent": {"greeting": "hello"}}
    config = t.BridgeConfig(None, plain, preferred_media_formats=["raw/lpcm16"], port="x")
    assert config.deepgram_config is plain
    assert (config.deepgram_api_key, config.port, config.preferred_media_formats) == (None, "x", ["raw/lpcm16"])


def test_the_representation_of_a_configuration_shows_no_secret():
    agent: Any = {"agent": {"think": {"endpoint": {"url": "u", "headers": {"authorization": "hidden-header"}}}}}
    shown = repr(t.BridgeConfig("hidden-key", agent, "hidden-token", port=9999))
    assert "hidden" not in shown
    assert "9999" in shown


# Literals ---------------------------------------------------------------------------------------

CLOSED = {
    "AudioCodesMediaFormat": "raw/mulaw wav/mulaw raw/lpcm16 wav/lpcm16 raw/lpcm16_8 wav/lpcm16_8 raw/lpcm16_24 "
    "wav/lpcm16_24",
    "AudioCodesEventName": "start hangup transfer config playUrl playFinished dtmf sendDtmf sendMetaData abortPrompts "
    "expectAnotherBotMessage startCallRecording stopCallRecording pauseCallRecording resumeCallRecording",
    "SessionEndReason": "transfer hangup error ended",
}
OPEN = {
    "DeepgramThinkAnthropicModel": "claude-4-5-haiku-latest claude-sonnet-4-6 claude-sonnet-4-5 "
    "claude-3-5-haiku-latest claude-sonnet-4-20250514",
    "DeepgramThinkGroqModel": "openai/gpt-oss-20b",
    "DeepgramThinkBedrockModel": "anthropic/claude-3-5-sonnet-20240620-v1:0 anthropic/claude-3-5-haiku-20240307-v1:0",
    "ElevenLabsSpeakModelId": "eleven_turbo_v2_5 eleven_monolingual_v1 eleven_multilingual_v2",
    "CartesiaSpeakModelId": "sonic-2 sonic-multilingual",
    "OpenAISpeakModel": "tts-1 tts-1-hd",
    "OpenAISpeakVoice": "alloy echo fable onyx nova shimmer",
    "AwsPollySpeakVoice": "Matthew Joanna Amy Emma Brian Arthur Aria Ayanda",
    "AwsPollySpeakEngine": "generative long-form standard neural",
}
# Of these the original's members are known by number and family only.
COUNTED = {
    "DeepgramThinkOpenAIModel": (16, ("gpt-4", "gpt-5")),
    "DeepgramThinkGoogleModel": (6, ("gemini-2.", "gemini-3")),
    "DeepgramSpeakModel": (63, ("aura-",)),
}
ADDED_MEMBERS = {"DeepgramSpeakModel": {"flux-kit-en"}}


def open_members(name: str) -> list[str]:
    literal, fallback = get_args(getattr(t, name))
    assert fallback is str
    return list(get_args(literal))


@pytest.mark.parametrize("name", CLOSED)
def test_a_closed_literal_has_exactly_its_members(name: str):
    assert list(get_args(getattr(t, name))) == CLOSED[name].split()


@pytest.mark.parametrize("name", OPEN)
def test_an_open_literal_has_its_members_and_takes_any_string(name: str):
    assert open_members(name) == OPEN[name].split()


@pytest.mark.parametrize("name", COUNTED)
def test_an_open_literal_known_by_number_has_that_many_members_of_its_families(name: str):
    number, families = COUNTED[name]
    members = [member for member in open_members(name) if member not in ADDED_MEMBERS.get(name, ())]
    assert len(members) == len(set(members)) == number
    assert all(member.startswith(families) for member in members)


def test_the_unions_keep_the_order_of_their_providers():
    assert [cls.__name__.removeprefix("DeepgramThinkProvider") for cls in get_args(t.DeepgramThinkProvider)] == [
        "OpenAI",
        "Anthropic",
        "Google",
        "Groq",
        "AwsBedrock",
    ]
    assert [cls.__name__.removeprefix("DeepgramSpeakProvider") for cls in get_args(t.DeepgramSpeakProvider)] == [
        "Deepgram",
        "ElevenLabs",
        "Cartesia",
        "OpenAI",
        "AwsPolly",
    ]
    assert get_args(t.AudioCodesActivity) == (t.AudioCodesMessageActivity, t.AudioCodesEventActivity)


def test_the_two_names_of_the_agent_configuration_are_one_object():
    assert t.DeepgramConfig is t.DeepgramAgentConfig


# TypedDicts: (required keys, optional keys, our optional keys) ----------------------------------

Keys = dict[str, Any]
V1 = {"version": Literal["v1"]}
WARMTH = {"temperature": float}
REASONING = {"reasoning_mode": Literal["none", "minimal", "low", "medium", "high"]}
BASE: Keys = {
    "activityParams": dict[str, object],
    "sessionParams": dict[str, object],
    "parameters": dict[str, object],
    "value": object,
    "delay": int,
    "id": str,
    "timestamp": str,
    "participant": str,
}
INPUT = "linear16 linear32 flac alaw mulaw amr-nb amr-wb opus ogg-opus speex g729"

TYPED_DICTS: dict[str, tuple[Keys, Keys, Keys]] = {
    "AudioCodesBaseActivity": ({}, BASE, {}),
    "AudioCodesMessageActivity": ({}, BASE | {"type": Literal["message"], "text": str}, {}),
    "AudioCodesEventActivity": ({}, BASE | {"type": Literal["event"], "name": str}, {}),
    "SessionInitiateMessage": (
        {},
        {
            "type": Literal["session.initiate"],
            "conversationId": str,
            "expectAudioMessages": bool,
            "supportedMediaFormats": list[t.AudioCodesMediaFormat],
            "caller": str,
            "botName": str,
        },
        {},
    ),
    "TransferActivityParams": (
        {},
        {"transferTarget": str, "handoverReason": str, "transferSipHeaders": list[dict[str, str]]},
        {},
    ),
    "PlayUrlActivityParams": (
        {},
        {"playUrlUrl": str, "playUrlMediaFormat": str, "playUrlCache": bool},
        {"playUrlCaching": bool, "playUrlAltText": str},
    ),
    "SendDtmfActivityParams": ({}, {"dtmf": str}, {"dtmfDigits": str}),
    "CallRecordingActivityParams": ({}, {"recordingName": str, "recordingFormat": str}, {}),
    "DeepgramAgentConfig": (
        {},
        {
            "tags": list[str],
            "experimental": bool,
            "mip_opt_out": bool,
            "flags": dict[str, object],
            "audio": t.DeepgramAudio,
            "agent": t.DeepgramAgent,
        },
        {},
    ),
    "DeepgramAgent": (
        {},
        {
            "language": str,
            "context": dict[str, object],
            "listen": t.DeepgramListen,
            "think": t.DeepgramThink | list[t.DeepgramThink],
            "speak": t.DeepgramSpeak | list[t.DeepgramSpeak],
            "greeting": str,
        },
        {},
    ),
    "DeepgramAudio": ({}, {"input": t.DeepgramAudioInput, "output": t.DeepgramAudioOutput}, {}),
    "DeepgramAudioInput": ({}, {"encoding": Literal[tuple(INPUT.split())], "sample_rate": int}, {}),
    "DeepgramAudioOutput": (
        {},
        {
            # The first three are the original's.
            "encoding": Literal["linear16", "mulaw", "alaw", "mp3", "opus", "flac", "aac"],
            "sample_rate": int,
            "container": Literal["none", "wav", "ogg"],
            "bitrate": int,
        },
        {},
    ),
    "DeepgramListen": ({}, {"provider": dict[str, object]}, {}),
    "DeepgramThink": (
        {},
        {
            "provider": t.DeepgramThinkProvider,
            "prompt": str,
            "context_length": int | Literal["max"],
            "endpoint": t.CustomEndpoint,
            "functions": list[t.DeepgramFunction],
        },
        {},
    ),
    "DeepgramSpeak": ({"provider": t.DeepgramSpeakProvider}, {"endpoint": t.CustomEndpoint}, {}),
    "CustomEndpoint": ({}, {"url": str, "headers": dict[str, str]}, {"method": str}),
    "AwsCredentials": (
        {"type": Literal["sts", "iam"], "region": str, "access_key_id": str, "secret_access_key": str},
        {"session_token": str},
        {},
    ),
    "DeepgramFunction": (
        {"name": str, "description": str},
        {"parameters": t.DeepgramFunctionParameters, "endpoint": t.CustomEndpoint},
        {"defer_until_eot": bool},
    ),
    "DeepgramFunctionParameters": (
        {},
        {
            "type": Literal["object"],
            "properties": dict[str, t.DeepgramFunctionParameterProperty],
            "required": list[str],
        },
        {},
    ),
    "DeepgramFunctionParameterProperty": ({}, {"type": str, "description": str, "enum": list[str]}, {}),
    "DeepgramThinkProviderOpenAI": (
        {"type": Literal["open_ai"], "model": t.DeepgramThinkOpenAIModel},
        V1 | WARMTH,
        REASONING,
    ),
    "DeepgramThinkProviderAnthropic": (
        {"type": Literal["anthropic"], "model": t.DeepgramThinkAnthropicModel},
        V1 | WARMTH,
        {},
    ),
    "DeepgramThinkProviderGoogle": (
        {"type": Literal["google"], "model": t.DeepgramThinkGoogleModel},
        # `v1beta` is the original's.
        {"version": Literal["v1beta", "ai-studio-v1beta", "gemini-enterprise-agent-v1"]} | WARMTH,
        {},
    ),
    "DeepgramThinkProviderGroq": (
        {"type": Literal["groq"], "model": t.DeepgramThinkGroqModel},
        V1 | WARMTH,
        REASONING,
    ),
    "DeepgramThinkProviderAwsBedrock": (
        {"type": Literal["aws_bedrock"], "model": t.DeepgramThinkBedrockModel, "credentials": t.AwsCredentials},
        WARMTH,
        {},
    ),
    "DeepgramSpeakProviderDeepgram": (
        {"type": Literal["deepgram"], "model": t.DeepgramSpeakModel},
        {"version": Literal["v1", "v2"], "speed": float},  # `v1` is the original's
        {"expressivity": int},
    ),
    "DeepgramSpeakProviderElevenLabs": (
        {"type": Literal["eleven_labs"], "model_id": t.ElevenLabsSpeakModelId},
        V1 | {"language": str, "language_code": str},
        {},
    ),
    "DeepgramSpeakProviderCartesia": (
        {"type": Literal["cartesia"], "model_id": t.CartesiaSpeakModelId, "voice": t.CartesiaSpeakVoice},
        {"version": Literal["2025-03-17"], "language": str, "volume": float},
        {"speed": float},
    ),
    "DeepgramSpeakProviderOpenAI": (
        {"type": Literal["open_ai"], "model": t.OpenAISpeakModel, "voice": t.OpenAISpeakVoice},
        V1,
        {},
    ),
    "DeepgramSpeakProviderAwsPolly": (
        {
            "type": Literal["aws_polly"],
            "voice": t.AwsPollySpeakVoice,
            "language": str,
            "engine": t.AwsPollySpeakEngine,
            "credentials": t.AwsCredentials,
        },
        {"language_code": str},
        {},
    ),
    "CartesiaSpeakVoice": ({"mode": str, "id": str}, {}, {}),
}


@pytest.mark.parametrize("name", TYPED_DICTS)
def test_a_typed_dict_has_exactly_its_keys_and_asks_for_no_more_than_the_original(name: str):
    cls = getattr(t, name)
    required, optional, ours = TYPED_DICTS[name]
    found_required, found_optional = {}, {}
    for key, hint in hints(cls).items():
        # With postponed annotations Python itself does not see NotRequired, only the class's `total`.
        if typing.get_origin(hint) is typing.NotRequired:
            (found_optional[key],) = get_args(hint)
        elif key in cls.__required_keys__:
            found_required[key] = hint
        else:
            found_optional[key] = hint
    assert found_required == required
    assert found_optional == optional | ours


def test_no_typed_dict_is_missing_from_the_tables():
    assert {name for name in t.__all__ if typing.is_typeddict(getattr(t, name))} == {*TYPED_DICTS, "DeepgramConfig"}


def test_every_public_type_is_in_one_of_the_tables():
    unions = {"DeepgramThinkProvider", "DeepgramSpeakProvider", "AudioCodesActivity"}
    tables = [EVENTS, ADDED_EVENTS, CLOSED, OPEN, COUNTED, TYPED_DICTS]
    assert set(t.__all__) == unions.union({"BridgeConfig", "DeepgramConfig"}, *tables)


# Methods ----------------------------------------------------------------------------------------

NEEDED = inspect.Parameter.empty
BRIDGE: dict[str, dict[str, Any]] = {"__init__": {"config": NEEDED}, "on": {"event": NEEDED}, "run": {}}
SESSION: dict[str, dict[str, Any]] = {
    "__init__": {"socket": NEEDED, "bridge": NEEDED},
    "serve": {"socket": NEEDED, "bridge": NEEDED},
    "run": {},
    "get_transcript": {},
    "send_agent_message": {"content": NEEDED},
    "send_user_message": {"content": NEEDED},
    "update_prompt": {"prompt": NEEDED},
    "update_speak": {"speak": NEEDED},
    "update_think": {"think": NEEDED},
    "respond_to_function_call": {"id": NEEDED, "name": NEEDED, "content": NEEDED},
    "send_activity": {"activity": NEEDED},
    "transfer": {"destination": NEEDED, "*handover_reason": None, "*transfer_sip_headers": None},
    "end_session": {"reason": None},
    "play_url": {"url": NEEDED, "*options": None},
    "send_dtmf": {"digits": NEEDED, "*options": None},
    "send_meta_data": {"data": NEEDED},
    "abort_prompts": {},
    "expect_another_bot_message": {},
    "apply_config": {"params": NEEDED},
    "start_call_recording": {"params": None},
    "stop_call_recording": {},
    "pause_call_recording": {},
    "resume_call_recording": {},
}
PLAIN = {"__init__", "on", "get_transcript"}
PROPERTIES = ("session_id", "conversation_id", "media_format", "is_active")


def parameters(cls: Any, method: str) -> dict[str, Any]:
    """Names and defaults as a caller sees them; a star marks what only goes by keyword."""
    found = inspect.signature(getattr(cls, method)).parameters
    if not inspect.ismethod(getattr(cls, method)):  # a class method is bound already
        found = dict(list(found.items())[1:])
    marks = {inspect.Parameter.POSITIONAL_OR_KEYWORD: "", inspect.Parameter.KEYWORD_ONLY: "*"}
    return {marks[p.kind] + p.name: p.default for p in found.values()}


def bridge_class(name: str) -> Any:
    return getattr(importlib.import_module("deepgram_audiocodes_bridge.bridge"), name)


@pytest.mark.parametrize("method", BRIDGE)
def test_a_bridge_method_takes_exactly_what_the_original_takes(method: str):
    cls = bridge_class("DeepgramBridge")
    assert list(parameters(cls, method).items()) == list(BRIDGE[method].items())
    assert inspect.iscoroutinefunction(getattr(cls, method)) == (method not in PLAIN)


ADDED = {"transfer": {"summary"}}
"""Parameters of ours, which nobody need give."""


@pytest.mark.parametrize("method", SESSION)
def test_a_session_method_takes_exactly_what_the_original_takes(method: str):
    cls = bridge_class("Session")
    added = ADDED.get(method, set())
    for name in added:
        ours = inspect.signature(getattr(cls, method)).parameters[name]
        assert (ours.kind, ours.default) == (inspect.Parameter.KEYWORD_ONLY, None)
    taken = [(name, kind) for name, kind in parameters(cls, method).items() if name.lstrip("*") not in added]
    assert taken == list(SESSION[method].items())
    assert inspect.iscoroutinefunction(getattr(cls, method)) == (method not in PLAIN)


def test_a_session_is_served_through_the_class():
    assert inspect.ismethod(bridge_class("Session").serve)


@pytest.mark.parametrize("name", PROPERTIES)
def test_the_state_of_a_session_is_read_only(name: str):
    found = inspect.getattr_static(bridge_class("Session"), name)
    assert isinstance(found, property)
    assert found.fset is None


def test_sessions_are_told_apart_by_identity():
    assert bridge_class("Session").__eq__ is object.__eq__
    assert bridge_class("Session").__hash__ is object.__hash__


def test_registering_returns_the_handler_itself():
    bridge = bridge_class("DeepgramBridge")(t.BridgeConfig("key", {}))

    def handler(session: Any, event: Any) -> None: ...

    assert bridge.on("any name at all")(handler) is handler


# Code that uses it ------------------------------------------------------------------------------


def imported(path: Path) -> dict[str, set[str]]:
    """Module of ours -> names that this file imports from it."""
    found: dict[str, set[str]] = {}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(("deepgram_audiocodes", "bridge_")):
            found.setdefault(node.module or "", set()).update(alias.name for alias in node.names)
    return found


def test_the_customer_code_that_is_type_checked_leaves_no_public_name_out():
    found = imported(CUSTOMER)
    assert found["deepgram_audiocodes_bridge"] == ROOT | ADDED_TO_ROOT
    assert found["deepgram_audiocodes_bridge.types"] == set(t.__all__) - ROOT - {"CancelledFunctionCall"}
    assert found["deepgram_audiocodes_bridge.bridge"] == {"AsyncEventEmitter", "SessionState"}


def test_the_customer_code_that_is_type_checked_also_runs():
    runpy.run_path(str(CUSTOMER))


@pytest.mark.slow
@pytest.mark.timeout(300)  # the first one type-checks the packages too
@pytest.mark.parametrize("path", [CUSTOMER, *EXAMPLES], ids=lambda path: path.parent.name)
def test_a_strict_type_checker_accepts_the_code_of_customers(path: Path):
    # One at a time: the examples are all called `app`.
    run = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", str(path)], cwd=REPO, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_there_are_seven_examples():
    assert len(EXAMPLES) == 7


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.parent.name)
def test_an_example_uses_public_names_only(path: Path):
    found = imported(path)
    assert found.pop("deepgram_audiocodes_bridge") <= ROOT
    assert found.pop("deepgram_audiocodes_bridge.types", set()) <= TYPES | ADDED_NAMES
    assert not found


def test_the_first_example_touches_four_names_of_the_package_and_22_types():
    found = imported(EXAMPLES[0])
    assert len(found["deepgram_audiocodes_bridge"]) == 4
    assert len(found["deepgram_audiocodes_bridge.types"]) == 22
