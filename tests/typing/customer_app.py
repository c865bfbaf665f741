"""Customer code that touches the whole public surface: `mypy --strict` must accept it as it stands.

It places no call. `Promised` spells the session out once more, with names, defaults and types: a session
that lacks a member, or asks for more, does not fit it.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any, Literal, Protocol, assert_type

from websockets.asyncio.server import ServerConnection
from websockets.datastructures import Headers
from websockets.http11 import Request, Response

from deepgram_audiocodes_bridge import (
    AgentAudioDoneEvent,
    AgentThinkingEvent,
    AudioCodesBaseActivity,
    AudioCodesEventActivity,
    AudioCodesEventName,
    AudioCodesMediaFormat,
    BridgeConfig,
    BridgeErrorEvent,
    CallRecordingActivityParams,
    CallStore,
    ConversationTextEvent,
    DeepgramAgentConfig,
    DeepgramBridge,
    DeepgramConfig,
    DeepgramFunction,
    DeepgramFunctionParameterProperty,
    DeepgramFunctionParameters,
    FunctionCall,
    FunctionCallRequestEvent,
    InboundActivityEvent,
    PlayUrlActivityParams,
    PromptUpdatedEvent,
    SendDtmfActivityParams,
    Session,
    SessionEndEvent,
    SessionEndReason,
    SessionInitiateMessage,
    SessionStartEvent,
    SpeakUpdatedEvent,
    ThinkUpdatedEvent,
    TransferActivityParams,
    UserStartedSpeakingEvent,
    WarningEvent,
)
from deepgram_audiocodes_bridge.bridge import AsyncEventEmitter, SessionState
from deepgram_audiocodes_bridge.deepgram_handler import DeepgramHandshakeError
from deepgram_audiocodes_bridge.types import (
    AgentStartedSpeakingEvent,
    AudioCodesActivity,
    AudioCodesMessageActivity,
    AwsCredentials,
    AwsPollySpeakEngine,
    AwsPollySpeakVoice,
    BeforeTransferEvent,
    CartesiaSpeakModelId,
    CartesiaSpeakVoice,
    CustomEndpoint,
    DeepgramAgent,
    DeepgramAudio,
    DeepgramAudioInput,
    DeepgramAudioOutput,
    DeepgramListen,
    DeepgramSpeak,
    DeepgramSpeakModel,
    DeepgramSpeakProvider,
    DeepgramSpeakProviderAwsPolly,
    DeepgramSpeakProviderCartesia,
    DeepgramSpeakProviderDeepgram,
    DeepgramSpeakProviderElevenLabs,
    DeepgramSpeakProviderOpenAI,
    DeepgramThink,
    DeepgramThinkAnthropicModel,
    DeepgramThinkBedrockModel,
    DeepgramThinkGoogleModel,
    DeepgramThinkGroqModel,
    DeepgramThinkOpenAIModel,
    DeepgramThinkProvider,
    DeepgramThinkProviderAnthropic,
    DeepgramThinkProviderAwsBedrock,
    DeepgramThinkProviderGoogle,
    DeepgramThinkProviderGroq,
    DeepgramThinkProviderOpenAI,
    ElevenLabsSpeakModelId,
    FinishEvent,
    FunctionCallCancelledEvent,
    FunctionCallResponseEvent,
    HistoryEvent,
    InjectionRefusedEvent,
    LatencyReportEvent,
    ListenUpdatedEvent,
    OpenAISpeakModel,
    OpenAISpeakVoice,
    SessionResumedEvent,
    TurnTiming,
    TurnTimingEvent,
)
from deepgram_audiocodes_bridge.types.audiocodes import AudioCodesActivity as SameActivity
from deepgram_audiocodes_bridge.types.deepgram import DeepgramAgentConfig as SameAgentConfig

# Configuration ----------------------------------------------------------------------------------

gpt: DeepgramThinkOpenAIModel = "gpt-4o-mini"
claude: DeepgramThinkAnthropicModel = "claude-sonnet-4-5"
gemini: DeepgramThinkGoogleModel = "gemini-2.5-flash"
oss: DeepgramThinkGroqModel = "openai/gpt-oss-20b"
bedrock: DeepgramThinkBedrockModel = "a-model-of-tomorrow"  # open literals take any string
thalia: DeepgramSpeakModel = "aura-2-thalia-en"
eleven: ElevenLabsSpeakModelId = "eleven_turbo_v2_5"
sonic: CartesiaSpeakModelId = "sonic-2"
tts: OpenAISpeakModel = "tts-1"
nova: OpenAISpeakVoice = "nova"
emma: AwsPollySpeakVoice = "Emma"
neural: AwsPollySpeakEngine = "neural"

endpoint = CustomEndpoint(url="https://llm.example.com/v1", headers={"x-team": "parcels"}, method="POST")
keys = AwsCredentials(type="sts", region="eu-west-1", access_key_id="a", secret_access_key="b", session_token="c")

property_ = DeepgramFunctionParameterProperty(type="string", description="digits", enum=["1001", "1002"])
parameters = DeepgramFunctionParameters(type="object", properties={"number": property_}, required=["number"])
functions: list[DeepgramFunction] = [
    DeepgramFunction(name="track_parcel", description="where it is", parameters=parameters),
    DeepgramFunction(name="book", description="a pick-up", endpoint=endpoint, defer_until_eot=True),
]

think_providers: list[DeepgramThinkProvider] = [
    DeepgramThinkProviderOpenAI(type="open_ai", model=gpt, version="v1", temperature=0.3, reasoning_mode="low"),
    DeepgramThinkProviderAnthropic(type="anthropic", model=claude, version="v1", temperature=0.3),
    DeepgramThinkProviderGoogle(type="google", model=gemini, version="v1beta", temperature=0.3),
    DeepgramThinkProviderGroq(type="groq", model=oss, version="v1", temperature=0.3),
    DeepgramThinkProviderAwsBedrock(type="aws_bedrock", model=bedrock, credentials=keys, temperature=0.3),
]

speak_providers: list[DeepgramSpeakProvider] = [
    DeepgramSpeakProviderDeepgram(type="deepgram", model=thalia, version="v1", speed=1.1),
    DeepgramSpeakProviderDeepgram(type="deepgram", model="flux-kit-en", version="v2", expressivity=1),
    DeepgramSpeakProviderElevenLabs(type="eleven_labs", model_id=eleven, version="v1", language="en"),
    DeepgramSpeakProviderElevenLabs(type="eleven_labs", model_id=eleven, language_code="en"),
    DeepgramSpeakProviderCartesia(
        type="cartesia",
        model_id=sonic,
        voice=CartesiaSpeakVoice(mode="id", id="v"),
        version="2025-03-17",
        language="en",
        volume=1.0,
    ),
    DeepgramSpeakProviderOpenAI(type="open_ai", model=tts, voice=nova, version="v1"),
    DeepgramSpeakProviderAwsPolly(
        type="aws_polly", voice=emma, language="en-GB", engine=neural, credentials=keys, language_code="en-GB"
    ),
]

agent = DeepgramAgent(
    language="en",
    context={"messages": []},
    listen=DeepgramListen(provider={"type": "deepgram", "model": "flux-general-en"}),
    think=[
        DeepgramThink(provider=p, prompt="Be brief.", context_length="max", functions=functions)
        for p in think_providers
    ],
    speak=[DeepgramSpeak(provider=p, endpoint=endpoint) for p in speak_providers],
    greeting="Hello.",
)

typed = DeepgramAgentConfig(
    tags=["parcels"],
    experimental=False,
    mip_opt_out=True,
    flags={"history": True},
    audio=DeepgramAudio(
        input=DeepgramAudioInput(encoding="mulaw", sample_rate=8000),
        output=DeepgramAudioOutput(encoding="mulaw", sample_rate=8000, container="none", bitrate=64000),
    ),
    agent=agent,
)
alias: DeepgramConfig = typed
same: SameAgentConfig = alias

plain: DeepgramConfig = {
    "agent": {
        "listen": {"provider": {"type": "deepgram", "model": "nova-3"}},
        "think": {"provider": {"type": "open_ai", "model": "gpt-4o"}, "context_length": 4000, "endpoint": endpoint},
        "speak": {"provider": {"type": "deepgram", "model": "aura-2-zeus-en"}},
    }
}


async def authenticate(connection: ServerConnection, request: Request) -> Response | None:
    if request.headers.get("Authorization") == "Bearer sesame":
        return None
    return Response(401, "Unauthorized", Headers(), b"Unauthorized\n")


formats: tuple[AudioCodesMediaFormat, ...] = ("raw/lpcm16", "raw/mulaw")
in_order = BridgeConfig("key", typed, None, authenticate, "127.0.0.1", 8000, formats)
by_name = BridgeConfig(
    deepgram_api_key="key",
    deepgram_config=plain,
    ac_token="sesame",
    authenticate=None,
    host="0.0.0.0",
    port=8081,
    preferred_media_formats=("raw/mulaw",),
)
wide = BridgeConfig("key", plain, play_media_format="raw/lpcm16")
assert_type(wide.play_media_format, AudioCodesMediaFormat | None)
inline = BridgeConfig(
    deepgram_api_key="key",
    deepgram_config={"agent": {"speak": {"provider": {"type": "deepgram", "model": "aura-2-zeus-en"}}}},
)
assert_type(by_name.ac_token, str | None)
assert_type(by_name.port, int)
assert_type(by_name.deepgram_config, DeepgramAgentConfig)
assert_type(by_name.authenticate, Callable[[ServerConnection, Request], Awaitable[Response | None]] | None)

# The bridge -------------------------------------------------------------------------------------

bridge = DeepgramBridge(in_order)
other = DeepgramBridge(config=by_name)
emitter: AsyncEventEmitter = bridge


@bridge.on("session_start")
async def on_session_start(session: Session, event: SessionStartEvent) -> None:
    assert_type(event.session_id, str)
    assert_type(event.conversation_id, str)
    assert_type(event.caller, str | None)
    assert_type(event.bot_name, str | None)
    assert_type(event.media_format, AudioCodesMediaFormat)
    assert_type(event.started_at, str)


@bridge.on("session_end")
def on_session_end(session: Session, event: SessionEndEvent) -> None:
    assert_type(event.reason, SessionEndReason)
    assert_type(event.duration_ms, int)
    assert_type(event.ended_at, str)


@bridge.on("conversation_text")
@other.on("conversation_text")  # stackable
async def on_conversation_text(session: Session, event: ConversationTextEvent) -> None:
    assert_type(event.role, Literal["user", "assistant"])
    assert_type(event.content, str)


@bridge.on("function_call_request")
async def on_function_call_request(session: Session, event: FunctionCallRequestEvent) -> None:
    assert_type(event.functions, tuple[FunctionCall, ...])
    for call in event.functions:
        assert_type(call.arguments, str)
        assert_type(call.client_side, bool)
        await session.respond_to_function_call(call.id, call.name, "{}")
        await session.respond_to_function_call(id=call.id, name=call.name, content="{}")


@bridge.on("activity")
async def on_activity(session: Session, event: InboundActivityEvent) -> None:
    assert_type(event.activity, AudioCodesMessageActivity | AudioCodesEventActivity)
    if event.activity.get("name") == "DTMF":
        print(event.activity.get("value"), event.activity.get("parameters"))


@bridge.on("error")
async def on_error(session: Session, event: BridgeErrorEvent) -> None:
    assert_type(event.session_id, str | None)
    assert_type(event.recoverable, bool)
    assert_type(event.cause, Exception | None)
    if isinstance(event.cause, DeepgramHandshakeError):
        assert_type(event.cause.code, str)
        assert_type(event.cause.description, str)
        assert_type(event.cause.payload, dict[str, object] | None)


def on_small_event(
    session: Session,
    event: UserStartedSpeakingEvent
    | AgentThinkingEvent
    | AgentAudioDoneEvent
    | PromptUpdatedEvent
    | SpeakUpdatedEvent
    | ThinkUpdatedEvent,
) -> None:
    print(event.session_id)


class Desk:
    """Bound methods and callable objects are handlers too."""

    async def warned(self, session: Session, event: WarningEvent) -> None:
        logging.getLogger("desk").warning("%s %s %s", event.session_id, event.code, event.description)

    def __call__(self, session: Session, event: WarningEvent) -> int:
        return len(event.code)


for name in ("user_started_speaking", "agent_thinking", "agent_audio_done", "prompt_updated"):
    bridge.on(name)(on_small_event)
bridge.on("speak_updated")(lambda session, event: None)
bridge.on("warning")(Desk().warned)
bridge.on(event="warning")(Desk())
assert_type(bridge.on("x"), Callable[[Callable[..., Any]], Callable[..., Any]])


# Events of ours that the original does not have.


@bridge.on("history")
async def on_history(session: Session, event: HistoryEvent) -> None:
    assert_type(event.item, dict[str, object])


@bridge.on("function_call_cancelled")
async def on_cancelled(session: Session, event: FunctionCallCancelledEvent) -> None:
    print([call.id for call in event.functions], [call.name for call in event.functions])


@bridge.on("latency_report")
async def on_latency_report(session: Session, event: LatencyReportEvent) -> None:
    assert_type(event.total_latency, float | None)


@bridge.on("turn_timing")
def on_turn_timing(session: Session, event: TurnTimingEvent) -> None:
    assert_type(event.timing, TurnTiming)
    assert_type(session.turn_timings, list[TurnTiming])
    assert_type(session.start_parameters, dict[str, Any])


@bridge.on("before_transfer")
async def before_transfer(session: Session, event: BeforeTransferEvent) -> None:
    session.data["handed to"] = event.target


@bridge.on("session_end")
def finish(session: Session, event: FinishEvent) -> None:
    assert_type(event.attempt, int)
    assert_type(event.idempotency_key, str)
    assert isinstance(event, SessionEndEvent)


async def read_calls() -> list[str]:
    async with CallStore("redis://localhost:6379") as store:
        return [line.content for call in await store.live() async for line in store.follow(call.cid)]


@bridge.on("session_resumed")
async def on_session_resumed(session: Session, event: SessionResumedEvent) -> None:
    assert_type(event.reason, str)


def on_other_extra(
    session: Session,
    event: AgentStartedSpeakingEvent | InjectionRefusedEvent | ListenUpdatedEvent | FunctionCallResponseEvent,
) -> None:
    print(event.session_id)


# The session ------------------------------------------------------------------------------------


class Promised(Protocol):
    """The members of a session, as written in the documentation of the original."""

    @property
    def session_id(self) -> str: ...
    @property
    def conversation_id(self) -> str | None: ...
    @property
    def media_format(self) -> AudioCodesMediaFormat | None: ...
    @property
    def is_active(self) -> bool: ...
    def get_transcript(self) -> list[ConversationTextEvent]: ...
    async def run(self) -> None: ...

    async def send_agent_message(self, content: str) -> None: ...
    async def send_user_message(self, content: str) -> None: ...
    async def update_prompt(self, prompt: str) -> None: ...
    async def update_speak(self, speak: dict[str, object]) -> None: ...
    async def update_think(self, think: dict[str, object]) -> None: ...
    async def respond_to_function_call(self, id: str, name: str, content: str) -> None: ...

    async def send_activity(self, activity: AudioCodesEventActivity | list[AudioCodesEventActivity]) -> None: ...
    async def transfer(
        self,
        destination: str,
        *,
        handover_reason: str | None = None,
        transfer_sip_headers: list[dict[str, str]] | None = None,
    ) -> None: ...
    async def end_session(self, reason: str | None = None) -> None: ...
    async def play_url(self, url: str, *, options: PlayUrlActivityParams | None = None) -> None: ...
    async def send_dtmf(self, digits: str, *, options: dict[str, object] | None = None) -> None: ...
    async def send_meta_data(self, data: dict[str, object]) -> None: ...
    async def abort_prompts(self) -> None: ...
    async def expect_another_bot_message(self) -> None: ...
    async def apply_config(self, params: dict[str, object]) -> None: ...
    async def start_call_recording(self, params: CallRecordingActivityParams | None = None) -> None: ...
    async def stop_call_recording(self) -> None: ...
    async def pause_call_recording(self) -> None: ...
    async def resume_call_recording(self) -> None: ...


def fits(session: Session) -> Promised:
    return session


async def everything(session: Session) -> None:
    notes: dict[Session, str] = {session: session.session_id}
    print(notes, session.conversation_id, session.media_format, session.is_active)
    assert_type(session.get_transcript(), list[ConversationTextEvent])

    await session.send_agent_message("One moment.")
    await session.send_user_message(content="Where is my parcel?")
    await session.update_prompt("Be brief.")
    await session.update_speak({"provider": {"type": "deepgram", "model": "aura-2-zeus-en"}})
    await session.update_think({"provider": {"type": "open_ai", "model": "gpt-4o"}, "prompt": "Be kind."})

    event: AudioCodesEventActivity = {"type": "event", "name": "config", "sessionParams": {"bargeIn": True}}
    await session.send_activity(event)
    await session.send_activity([event, {"type": "event", "name": "abortPrompts"}])
    await session.play_url("https://example.com/a.wav")
    await session.play_url("https://example.com/a.wav", options={"playUrlMediaFormat": "wav/lpcm16"})
    await session.send_dtmf("12#")
    await session.send_dtmf("12#", options={"delay": 1})
    await session.send_meta_data({"ticket": 4711})
    await session.abort_prompts()
    await session.expect_another_bot_message()
    await session.apply_config({"bargeIn": True})
    await session.start_call_recording()
    await session.start_call_recording(CallRecordingActivityParams(recordingName="a", recordingFormat="wav"))
    await session.stop_call_recording()
    await session.pause_call_recording()
    await session.resume_call_recording()
    try:
        await session.transfer("tel:+15550100")
        await session.transfer("sip:a@b", handover_reason="asked", transfer_sip_headers=[{"name": "X", "value": "1"}])
        await session.end_session()
        await session.end_session(reason="done")
    except RuntimeError:
        assert not session.is_active


async def embedded(websocket: ServerConnection) -> None:
    """One call on a WebSocket that somebody else has accepted."""
    finished = await Session.serve(websocket, bridge)
    assert_type(finished, Session)
    await Session(websocket, bridge).run()


async def main() -> None:
    await bridge.run()


# Wire types -------------------------------------------------------------------------------------

initiate: SessionInitiateMessage = {
    "type": "session.initiate",
    "conversationId": "c1",
    "expectAudioMessages": True,
    "supportedMediaFormats": ["raw/mulaw"],
    "caller": "+15550100",
    "botName": "desk",
}
base: AudioCodesBaseActivity = {"id": "1", "timestamp": "2026-01-01T00:00:00Z", "participant": "caller", "delay": 0}
message: AudioCodesMessageActivity = {"type": "message", "text": "hello"}
activities: list[AudioCodesActivity] = [message, {"type": "event", "name": "start", "value": 1}]
same_activities: list[SameActivity] = activities
event_name: AudioCodesEventName = "playFinished"
transfer_params = TransferActivityParams(transferTarget="tel:1", handoverReason="r", transferSipHeaders=[{"name": "X"}])
play_params = PlayUrlActivityParams(playUrlUrl="u", playUrlMediaFormat="wav/mulaw", playUrlCache=True)
dtmf_params = SendDtmfActivityParams(dtmf="1", dtmfDigits="1")
states: list[SessionState] = [
    SessionState.INITIALIZING,
    SessionState.ACTIVE,
    SessionState.ENDING,
    SessionState.ENDED,
]
