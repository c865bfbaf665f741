"""An agent whose every message a test sends, in the order and with the gaps that it wants."""

from __future__ import annotations

from bridge_shared.protocol.media import media
from bridge_sim.agent import AgentConnection

MULAW = media("raw/mulaw")


def sound(ms: int, byte: int = 0x11) -> bytes:
    """So much µ-law that is no silence."""
    return bytes([byte]) * MULAW.nbytes(ms)


async def says(agent: AgentConnection, text: str) -> None:
    await agent.send_json({"type": "ConversationText", "role": "assistant", "content": text})


async def caller_said(agent: AgentConnection, text: str) -> None:
    await agent.send_json({"type": "ConversationText", "role": "user", "content": text})


async def speaks(agent: AgentConnection, *frames: bytes) -> None:
    for frame in frames:
        await agent._socket.send(frame)


async def done(agent: AgentConnection) -> None:
    await agent.send_json({"type": "AgentAudioDone"})


async def turn(agent: AgentConnection, text: str, audio: bytes) -> None:
    """A whole turn as it should be."""
    await says(agent, text)
    await speaks(agent, audio)
    await done(agent)
