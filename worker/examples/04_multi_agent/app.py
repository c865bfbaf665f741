"""Two desks in one file: sales on port 8001, support on port 8002, with the same handlers."""

import asyncio
import os
from typing import cast

from dotenv import load_dotenv

from deepgram_audiocodes_bridge import (
    BridgeConfig,
    BridgeErrorEvent,
    ConversationTextEvent,
    DeepgramAgentConfig,
    DeepgramBridge,
    Session,
    SessionEndEvent,
    SessionStartEvent,
)

load_dotenv()

# None when the variable is unset: both desks listen all the same.
api_key = cast(str, os.getenv("DEEPGRAM_API_KEY"))


def desk(prompt: str, voice: str, greeting: str) -> DeepgramAgentConfig:
    return {
        "agent": {
            "listen": {"provider": {"type": "deepgram", "model": "flux-general-en"}},
            "think": {"provider": {"type": "open_ai", "model": "gpt-4o-mini"}, "prompt": prompt},
            "speak": {"provider": {"type": "deepgram", "model": voice}},
            "greeting": greeting,
        },
    }


sales = DeepgramBridge(
    BridgeConfig(
        deepgram_api_key=api_key,
        deepgram_config=desk(
            "You sell parcel contracts to small shops. Ask how many parcels they send a week. Be brief.",
            "aura-2-apollo-en",
            "Parcel sales, hello. What would you like to send?",
        ),
        ac_token=None,
        port=8001,
    )
)

support = DeepgramBridge(
    BridgeConfig(
        deepgram_api_key=api_key,
        deepgram_config=desk(
            "You help people whose parcel is late or damaged. Ask for the parcel number first. Be brief and kind.",
            "aura-2-thalia-en",
            "Parcel support, hello. What has happened to your parcel?",
        ),
        ac_token=None,
        port=8002,
    )
)


def report(bridge: DeepgramBridge, name: str) -> None:
    """Print the calls of one desk under its name."""

    @bridge.on("session_start")
    async def on_session_start(session: Session, event: SessionStartEvent) -> None:
        print(f"[{name}] call from {event.caller or 'an unknown number'}")

    @bridge.on("conversation_text")
    async def on_conversation_text(session: Session, event: ConversationTextEvent) -> None:
        print(f"[{name}] {event.role}: {event.content}")

    @bridge.on("session_end")
    async def on_session_end(session: Session, event: SessionEndEvent) -> None:
        print(f"[{name}] ended: {event.reason}")

    @bridge.on("error")
    async def on_error(session: Session, event: BridgeErrorEvent) -> None:
        print(f"[{name}] {event.code}: {event.description}")


async def main() -> None:
    await asyncio.gather(sales.run(), support.run())


report(sales, "sales")
report(support, "support")

asyncio.run(main())
