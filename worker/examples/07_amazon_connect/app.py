"""The agent gives a caller to a person in Amazon Connect, with what was said so far."""

import asyncio
import json
import os
from typing import Any

from dotenv import load_dotenv

from deepgram_audiocodes_bridge import (
    BridgeConfig,
    DeepgramBridge,
    DeepgramFunction,
    FunctionCallRequestEvent,
    Session,
)
from deepgram_audiocodes_bridge.types import BeforeTransferEvent

load_dotenv()

api_key = os.getenv("DEEPGRAM_API_KEY")
if not api_key:
    raise SystemExit("DEEPGRAM_API_KEY is not set. Export it, or put it into a .env file.")

QUEUE = os.getenv("CONNECT_NUMBER", "tel:+493012345678")  # a phone number claimed in Amazon Connect, or a sip: URI

functions: list[DeepgramFunction] = [
    {
        "name": "speak_to_a_person",
        "description": "Give the caller to a person, when they ask for one or you cannot help.",
        "parameters": {
            "type": "object",
            "properties": {
                "why": {"type": "string", "description": "what the caller wants, in one sentence for the person"}
            },
            "required": ["why"],
        },
        # A transfer cannot be taken back, so not before the caller's turn is certain to be over.
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
                    "prompt": "You are the parcel desk of a delivery company. Keep to short spoken sentences. When a "
                    "caller wants a person, say that you connect them, and call speak_to_a_person.",
                    "functions": functions,
                },
                "speak": {"provider": {"type": "deepgram", "model": "aura-2-thalia-en"}},
                "greeting": "Hello, this is the parcel desk. How can I help you?",
            },
        },
        port=8000,
    )
)


@bridge.on("function_call_request")
async def on_function_call_request(session: Session, event: FunctionCallRequestEvent) -> None:
    for call in event.functions:
        if call.name != "speak_to_a_person":
            continue
        try:
            why = str(json.loads(call.arguments).get("why", ""))
        except (ValueError, AttributeError):  # the language model wrote the arguments
            why = ""
        await session.respond_to_function_call(call.id, call.name, '{"state":"connecting"}')
        # First what the person should know is stored with the call, then `before_transfer` runs, then VoiceAI Connect
        # is asked. It returns when the call has gone over; if that failed, the caller is still here.
        await session.transfer(QUEUE, handover_reason="asked for a person", summary=why)
        if session.is_active:
            await session.send_agent_message("Nobody can take your call right now. Can I help you meanwhile?")


@bridge.on("before_transfer")
async def write_a_ticket(session: Session, event: BeforeTransferEvent) -> None:
    # A real application posts it to a store where the contact centre finds it: by conversation id, or by the caller's
    # number where the SIP header does not arrive.
    ticket: dict[str, Any] = {
        "conversation_id": session.conversation_id,
        "caller": session.start_parameters.get("caller", ""),
        "summary": event.summary,
        "lines": [f"{line.role}: {line.content}" for line in session.get_transcript()],
    }
    print("ticket", json.dumps(ticket), flush=True)


asyncio.run(bridge.run())
