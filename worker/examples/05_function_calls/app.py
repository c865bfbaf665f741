"""The agent looks parcels up and hangs up by itself, through functions that run here."""

import asyncio
import json
import os

from dotenv import load_dotenv

from deepgram_audiocodes_bridge import (
    BridgeConfig,
    DeepgramBridge,
    DeepgramFunction,
    FunctionCallRequestEvent,
    Session,
)

load_dotenv()

api_key = os.getenv("DEEPGRAM_API_KEY")
if not api_key:
    raise SystemExit("DEEPGRAM_API_KEY is not set. Export it, or put it into a .env file.")

PARCELS = {
    "1001": "out for delivery, expected before noon",
    "1002": "waiting at the post office in Market Street",
    "1003": "delivered yesterday, signed for by a neighbour",
}

functions: list[DeepgramFunction] = [
    {
        "name": "track_parcel",
        "description": "Find out where a parcel is.",
        "parameters": {
            "type": "object",
            "properties": {"number": {"type": "string", "description": "the parcel number, digits only"}},
            "required": ["number"],
        },
    },
    {
        "name": "hang_up",
        "description": "End the call, once the caller has said goodbye and so have you.",
        "parameters": {"type": "object", "properties": {}},
        # A hang-up cannot be taken back, so not before the caller's turn is certain to be over.
        "defer_until_eot": True,
    },
]

bridge = DeepgramBridge(
    BridgeConfig(
        deepgram_api_key=api_key,
        deepgram_config={
            "agent": {
                "listen": {"provider": {"type": "deepgram", "model": "flux-general-en"}},
                "think": {
                    "provider": {"type": "open_ai", "model": "gpt-4o-mini"},
                    "prompt": "You tell callers where their parcel is, in one short spoken sentence. Look every "
                    "number up with track_parcel and never guess. When the caller says goodbye, say goodbye and "
                    "call hang_up.",
                    "functions": functions,
                },
                "speak": {"provider": {"type": "deepgram", "model": "aura-2-thalia-en"}},
                "greeting": "Parcel tracking, hello. What is your parcel number?",
            },
        },
        port=8000,
    )
)


async def track_parcel(number: str) -> dict[str, str]:
    """Where the parcel is. A real desk would await its database here; audio flows on meanwhile."""
    digits = "".join(character for character in number if character.isdigit())
    return {"number": digits, "state": PARCELS.get(digits, "unknown number")}


@bridge.on("function_call_request")
async def on_function_call_request(session: Session, event: FunctionCallRequestEvent) -> None:
    hang_up = False
    for call in event.functions:
        if not call.client_side:
            continue  # Deepgram runs this one itself
        if call.name == "hang_up":
            hang_up = True
            continue
        try:
            result = await track_parcel(str(json.loads(call.arguments)["number"]))
        except (ValueError, KeyError, TypeError):  # the language model wrote the arguments
            result = {"error": "give the parcel number as a string of digits"}
        await session.respond_to_function_call(call.id, call.name, json.dumps(result))
    if hang_up:
        # Last, because nothing can be answered afterwards. What is being said is played to its end first.
        await session.end_session("caller is done")


asyncio.run(bridge.run())
