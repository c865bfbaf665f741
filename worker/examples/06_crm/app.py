"""After each call its transcript and outcome go to a CRM, once, whatever dies in between."""

import asyncio
import json
import os
import urllib.request
from pathlib import Path
from typing import Any

from dotenv import load_dotenv

from deepgram_audiocodes_bridge import BridgeConfig, DeepgramBridge, Session
from deepgram_audiocodes_bridge.types import FinishEvent

load_dotenv()

api_key = os.getenv("DEEPGRAM_API_KEY")
if not api_key:
    raise SystemExit("DEEPGRAM_API_KEY is not set. Export it, or put it into a .env file.")

CRM_URL = os.getenv("CRM_URL", "")  # `python crm.py` is a stand-in for one: http://127.0.0.1:8090/records
CRM_FILE = os.getenv("CRM_FILE", "")  # a line of JSON for each call, for where there is no CRM

bridge = DeepgramBridge(
    BridgeConfig(
        deepgram_api_key=api_key,
        deepgram_config={
            "agent": {
                "listen": {"provider": {"type": "deepgram", "model": "flux-general-en"}},
                "think": {
                    "provider": {"type": "open_ai", "model": "gpt-4o-mini"},
                    "prompt": "You are the parcel desk of a delivery company. Keep to short spoken sentences.",
                },
                "speak": {"provider": {"type": "deepgram", "model": "aura-2-thalia-en"}},
                "greeting": "Hello, this is the parcel desk. How can I help you?",
            },
        },
        port=8000,
    )
)


def post(record: dict[str, Any], key: str) -> None:
    """Hand a record to the CRM. An answer that is not 2xx raises, and the bridge tries again later."""
    headers = {"Content-Type": "application/json", "Idempotency-Key": key}
    request = urllib.request.Request(CRM_URL, json.dumps(record).encode(), headers, method="POST")
    with urllib.request.urlopen(request, timeout=10):
        pass


def append(record: dict[str, Any]) -> None:
    """Add a record to the file, unless it is there already."""
    path = Path(CRM_FILE)
    known = path.read_text().splitlines() if path.exists() else []
    if not any(json.loads(line)["conversation_id"] == record["conversation_id"] for line in known):
        with path.open("a") as file:
            file.write(json.dumps(record) + "\n")


@bridge.on("session_end")
async def write_to_the_crm(session: Session, event: FinishEvent) -> None:
    # Runs until it has succeeded once: here, or on another worker if this one dies. The key is the same each time.
    record = {
        "conversation_id": session.conversation_id,
        "disposition": event.reason,
        "seconds": event.duration_ms / 1000,
        "transcript": [{"role": line.role, "content": line.content} for line in session.get_transcript()],
    }
    if CRM_URL:
        await asyncio.to_thread(post, record, event.idempotency_key)
    if CRM_FILE:
        await asyncio.to_thread(append, record)


asyncio.run(bridge.run())
