"""The AudioCodes Bot API, WebSocket mode: both sides, pure. Import from here.

`audiocodes_messages` has what both sides share, `audiocodes_bot` is ours, `audiocodes_vaic` is the other side.
"""

from __future__ import annotations

from bridge_shared.protocol.audiocodes_bot import Bot, BotState
from bridge_shared.protocol.audiocodes_messages import (
    ActivityReceived,
    BotEvent,
    Initiate,
    LocalProtocolError,
    Resume,
    SessionEnd,
    Skipped,
    UserAudio,
    UserStreamStarted,
    UserStreamStopped,
    Validate,
)
from bridge_shared.protocol.audiocodes_vaic import (
    Accepted,
    BotActivity,
    PlayChunk,
    PlayStarted,
    PlayStopped,
    Refused,
    Speech,
    UserStreamAck,
    Vaic,
    VaicEvent,
    Validated,
    Violation,
)

__all__ = [
    "Accepted",
    "ActivityReceived",
    "Bot",
    "BotActivity",
    "BotEvent",
    "BotState",
    "Initiate",
    "LocalProtocolError",
    "PlayChunk",
    "PlayStarted",
    "PlayStopped",
    "Refused",
    "Resume",
    "SessionEnd",
    "Skipped",
    "Speech",
    "UserAudio",
    "UserStreamAck",
    "UserStreamStarted",
    "UserStreamStopped",
    "Vaic",
    "VaicEvent",
    "Validate",
    "Validated",
    "Violation",
]
