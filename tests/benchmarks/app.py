"""The application of the benchmark: every kind of handler that an ordinary one has, each doing next to nothing."""

import asyncio

from deepgram_audiocodes_bridge import BridgeConfig, DeepgramBridge

bridge = DeepgramBridge(
    BridgeConfig(
        deepgram_api_key="load",
        preferred_media_formats=["raw/mulaw"],
        deepgram_config={
            "agent": {
                "listen": {"provider": {"type": "deepgram", "model": "nova-3"}},
                "think": {
                    "provider": {"type": "open_ai", "model": "gpt-4o-mini"},
                    "prompt": "You are the parcel desk.",
                },
                "speak": {"provider": {"type": "deepgram", "model": "aura-2-thalia-en"}},
            }
        },
    )
)


@bridge.on("session_start")
async def started(session, event):
    session.data["began"] = event.started_at


@bridge.on("conversation_text")
async def said(session, event):
    session.data["last"] = event.role


@bridge.on("session_end")
async def over(session, event):
    len(session.get_transcript())


asyncio.run(bridge.run())
