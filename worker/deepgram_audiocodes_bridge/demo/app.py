"""The application of `bridgectl up` when none is given: one agent, no handlers."""

import asyncio
import os

from deepgram_audiocodes_bridge import BridgeConfig, DeepgramBridge

bridge = DeepgramBridge(
    BridgeConfig(
        deepgram_api_key=os.environ["DEEPGRAM_API_KEY"],
        deepgram_config={
            "agent": {
                "listen": {"provider": {"type": "deepgram", "model": "nova-3"}},
                "think": {
                    "provider": {"type": "open_ai", "model": "gpt-4o-mini"},
                    "prompt": "You are the parcel desk of a delivery service. Answer in one sentence.",
                },
                "speak": {"provider": {"type": "deepgram", "model": "aura-2-thalia-en"}},
                "greeting": "Hello, this is the parcel desk. How can I help you?",
            }
        },
        port=8000,
    )
)

if __name__ == "__main__":
    asyncio.run(bridge.run())
