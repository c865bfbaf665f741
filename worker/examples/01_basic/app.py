"""A parcel desk with a typed configuration that prints every event of a call."""

import asyncio
import os

from dotenv import load_dotenv

from deepgram_audiocodes_bridge import BridgeConfig, DeepgramAgentConfig, DeepgramBridge, Session
from deepgram_audiocodes_bridge.types import (
    AgentAudioDoneEvent,
    AgentThinkingEvent,
    BridgeErrorEvent,
    CartesiaSpeakVoice,
    ConversationTextEvent,
    DeepgramAgent,
    DeepgramListen,
    DeepgramSpeak,
    DeepgramSpeakProviderCartesia,
    DeepgramSpeakProviderDeepgram,
    DeepgramThink,
    DeepgramThinkProviderAnthropic,
    DeepgramThinkProviderOpenAI,
    FunctionCallRequestEvent,
    InboundActivityEvent,
    PromptUpdatedEvent,
    SessionEndEvent,
    SessionStartEvent,
    SpeakUpdatedEvent,
    ThinkUpdatedEvent,
    UserStartedSpeakingEvent,
    WarningEvent,
)

load_dotenv()

api_key = os.getenv("DEEPGRAM_API_KEY")
if not api_key:
    raise SystemExit("DEEPGRAM_API_KEY is not set. Export it, or put it into a .env file.")

agent = DeepgramAgent(
    listen=DeepgramListen(provider={"type": "deepgram", "model": "flux-general-en"}),
    # Tried in this order at every turn: the second one answers when the first one fails.
    think=[
        DeepgramThink(
            provider=DeepgramThinkProviderOpenAI(type="open_ai", model="gpt-4o-mini", temperature=0.4),
            prompt="You answer the phone at a parcel desk. Say where parcels go and what they cost, in one or two "
            "short spoken sentences. Ask when you are unsure.",
        ),
        DeepgramThink(
            provider=DeepgramThinkProviderAnthropic(type="anthropic", model="claude-sonnet-4-5"),
        ),
    ],
    speak=[
        DeepgramSpeak(
            provider=DeepgramSpeakProviderDeepgram(type="deepgram", model="aura-2-thalia-en"),
        ),
        DeepgramSpeak(
            provider=DeepgramSpeakProviderCartesia(
                type="cartesia",
                model_id="sonic-2",
                voice=CartesiaSpeakVoice(mode="id", id="a167e0f3-df7e-4d52-a9c3-f949145efdab"),
            ),
        ),
    ],
    greeting="Hello, this is the parcel desk. How can I help you?",
)

bridge = DeepgramBridge(
    BridgeConfig(
        deepgram_api_key=api_key,
        deepgram_config=DeepgramAgentConfig(tags=["parcel-desk"], agent=agent),
        ac_token=None,
        port=8000,
    )
)


@bridge.on("session_start")
async def on_session_start(session: Session, event: SessionStartEvent) -> None:
    print("session_start", event)


@bridge.on("session_end")
async def on_session_end(session: Session, event: SessionEndEvent) -> None:
    print("session_end", event)


@bridge.on("conversation_text")
async def on_conversation_text(session: Session, event: ConversationTextEvent) -> None:
    print("conversation_text", event)


@bridge.on("user_started_speaking")
async def on_user_started_speaking(session: Session, event: UserStartedSpeakingEvent) -> None:
    print("user_started_speaking", event)


@bridge.on("agent_thinking")
async def on_agent_thinking(session: Session, event: AgentThinkingEvent) -> None:
    print("agent_thinking", event)


@bridge.on("agent_audio_done")
async def on_agent_audio_done(session: Session, event: AgentAudioDoneEvent) -> None:
    print("agent_audio_done", event)


@bridge.on("function_call_request")
async def on_function_call_request(session: Session, event: FunctionCallRequestEvent) -> None:
    print("function_call_request", event)


@bridge.on("prompt_updated")
async def on_prompt_updated(session: Session, event: PromptUpdatedEvent) -> None:
    print("prompt_updated", event)


@bridge.on("speak_updated")
async def on_speak_updated(session: Session, event: SpeakUpdatedEvent) -> None:
    print("speak_updated", event)


@bridge.on("think_updated")
async def on_think_updated(session: Session, event: ThinkUpdatedEvent) -> None:
    print("think_updated", event)


@bridge.on("warning")
async def on_warning(session: Session, event: WarningEvent) -> None:
    print("warning", event)


@bridge.on("activity")
async def on_activity(session: Session, event: InboundActivityEvent) -> None:
    print("activity", event)


@bridge.on("error")
async def on_error(session: Session, event: BridgeErrorEvent) -> None:
    print("error", event)


asyncio.run(bridge.run())
