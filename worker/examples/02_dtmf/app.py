"""Callers type their parcel number on the keypad: `#` submits it, `*` starts over."""

import asyncio
import os

from dotenv import load_dotenv

from deepgram_audiocodes_bridge import (
    BridgeConfig,
    DeepgramBridge,
    InboundActivityEvent,
    Session,
)

load_dotenv()

api_key = os.getenv("DEEPGRAM_API_KEY")
if not api_key:
    raise SystemExit("DEEPGRAM_API_KEY is not set. Export it, or put it into a .env file.")

bridge = DeepgramBridge(
    BridgeConfig(
        deepgram_api_key=api_key,
        deepgram_config={
            "agent": {
                "listen": {"provider": {"type": "deepgram", "model": "flux-general-en"}},
                "think": {
                    "provider": {"type": "open_ai", "model": "gpt-4o-mini"},
                    "prompt": "You take parcel numbers at a parcel desk. Callers type the number on their keypad and "
                    "finish with the hash key; star starts over. Keep to short spoken sentences.",
                },
                "speak": {"provider": {"type": "deepgram", "model": "aura-2-thalia-en"}},
                "greeting": "Please type your parcel number, then press hash.",
            },
        },
        ac_token=None,
        port=8000,
    )
)


@bridge.on("activity")
async def on_activity(session: Session, event: InboundActivityEvent) -> None:
    if event.activity.get("name") != "DTMF":
        return
    for key in str(event.activity.get("value", "")):  # one key, or several at once
        digits = session.data.get("digits", "")  # goes with the call, whatever becomes of this process
        if key == "*":
            session.data["digits"] = ""
            await session.send_agent_message("Let us start over. Please type the number again.")
        elif key != "#":
            session.data["digits"] = digits + key
        elif digits:
            session.data["digits"] = ""
            # Spaces make the voice read digit by digit.
            await session.send_agent_message(f"Thank you. I have parcel number {' '.join(digits)}.")
        else:
            await session.send_agent_message("I have no digits yet. Please type your parcel number first.")


asyncio.run(bridge.run())
