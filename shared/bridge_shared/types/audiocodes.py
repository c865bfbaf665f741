"""The telephony half of the public types: configuration, call events and AudioCodes wire shapes.

Names, field order, defaults and literals are a promise to applications written for the original SDK
(sdk-public-api §1.3, §2, §5, §8.1). Annotations are postponed there and here, so `NotRequired` is for
type checkers only; nothing validates at run time.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NotRequired, TypeAlias, TypedDict

from bridge_shared.types.deepgram import DeepgramAgentConfig

if TYPE_CHECKING:
    from websockets.asyncio.server import ServerConnection
    from websockets.http11 import Request, Response

__all__ = [
    "AudioCodesActivity",
    "AudioCodesBaseActivity",
    "AudioCodesEventActivity",
    "AudioCodesEventName",
    "AudioCodesMediaFormat",
    "AudioCodesMessageActivity",
    "BridgeConfig",
    "BridgeErrorEvent",
    "CallRecordingActivityParams",
    "InboundActivityEvent",
    "PlayUrlActivityParams",
    "SendDtmfActivityParams",
    "SessionEndEvent",
    "SessionEndReason",
    "SessionInitiateMessage",
    "SessionStartEvent",
    "TransferActivityParams",
]

AudioCodesMediaFormat: TypeAlias = Literal[
    "raw/mulaw",
    "wav/mulaw",
    "raw/lpcm16",
    "wav/lpcm16",
    "raw/lpcm16_8",
    "wav/lpcm16_8",
    "raw/lpcm16_24",
    "wav/lpcm16_24",
]
"""Bare `lpcm16` is 16 kHz; `_8` and `_24` are 8 and 24 kHz; µ-law is 8 kHz."""

AudioCodesEventName: TypeAlias = Literal[
    "start",
    "hangup",
    "transfer",
    "config",
    "playUrl",
    "playFinished",
    "dtmf",
    "sendDtmf",
    "sendMetaData",
    "abortPrompts",
    "expectAnotherBotMessage",
    "startCallRecording",
    "stopCallRecording",
    "pauseCallRecording",
    "resumeCallRecording",
]
"""For editors only: it annotates nothing. Inbound digits really arrive under the name `DTMF`."""

SessionEndReason: TypeAlias = Literal["transfer", "hangup", "error", "ended"]
"""`hangup`: the telephony side ended the call. `ended`: `end_session()`, or both sides went away."""


class AudioCodesBaseActivity(TypedDict, total=False):
    """What every activity may carry, in either direction."""

    activityParams: dict[str, object]
    sessionParams: dict[str, object]
    parameters: dict[str, object]
    value: object
    delay: int
    id: str
    timestamp: str
    participant: str


class AudioCodesMessageActivity(AudioCodesBaseActivity, total=False):
    """An activity that carries text."""

    type: Literal["message"]
    text: str


class AudioCodesEventActivity(AudioCodesBaseActivity, total=False):
    """An activity that carries a named event, such as `start`, `DTMF` or `hangup`."""

    type: Literal["event"]
    name: str


AudioCodesActivity: TypeAlias = AudioCodesMessageActivity | AudioCodesEventActivity


class SessionInitiateMessage(TypedDict, total=False):
    """The telephony side's first message. A missing `expectAudioMessages` counts as true."""

    type: Literal["session.initiate"]
    conversationId: str
    expectAudioMessages: NotRequired[bool]
    supportedMediaFormats: NotRequired[list[AudioCodesMediaFormat]]
    caller: NotRequired[str]
    botName: NotRequired[str]


class TransferActivityParams(TypedDict, total=False):
    """`activityParams` of `transfer`: a `tel:` or `sip:` URI, and headers as `{"name": …, "value": …}`."""

    transferTarget: str
    handoverReason: str
    transferSipHeaders: list[dict[str, str]]


class PlayUrlActivityParams(TypedDict, total=False):
    """`activityParams` of `playUrl`. `playUrlCache` is sent under the name `playUrlCaching`."""

    playUrlUrl: str
    playUrlMediaFormat: str
    playUrlCache: bool
    playUrlCaching: bool  # ours: the name integrations use on the wire (§12.1 A12)
    playUrlAltText: str  # ours


class SendDtmfActivityParams(TypedDict, total=False):
    """`activityParams` of `sendDtmf`: digits out of `0-9*#`. `dtmf` is the original's name for `dtmfDigits`."""

    dtmf: str
    dtmfDigits: str  # ours: the documented name (§12.1 A10)


class CallRecordingActivityParams(TypedDict, total=False):
    """`activityParams` of `startCallRecording`, passed on as they are."""

    recordingName: str
    recordingFormat: str


@dataclass(frozen=True, slots=True)
class BridgeConfig:
    """What one bridge needs to know. Nothing is checked here: a bad value is refused when the bridge begins to run.

    Secrets stay out of the representation, which ends up in logs and tracebacks; so does the whole
    agent configuration, because endpoint headers and provider credentials live inside it.

    Attributes:
        deepgram_api_key: project API key, sent as `Authorization: Token …`.
        deepgram_config: the agent's settings; copied for each call, never changed. A plain dict will do.
        ac_token: what callers must present as `Authorization: Bearer …`; None asks for nothing.
        authenticate: decides alone, instead of `ac_token`; None accepts, a `Response` is sent as the refusal.
        host: address to listen on.
        port: TCP port to listen on.
        preferred_media_formats: the first of these that the caller's side offers is used.
        name: what the bridge is called in the fleet and in URL paths, by default its port. Ours, not in the original.
        redact: given every utterance before it is stored, returns what of it may be kept; likewise every text, number
            and name in the arguments and answers of function calls. Ours. It runs in the thread that moves audio, so it
            must be quick; what it raises costs the utterance.
        play_media_format: what the agent speaks in, when the caller's side offers it: `raw/lpcm16` lets callers hear a
            voice of 16 kHz while their own audio comes as mu-law. Each play stream names its own format, so the two may
            differ (Bot API reference §2.3). None, or one that is not offered (a warning names those that are): that of
            the caller's audio, as in the original, which replaces `audio` of `deepgram_config` likewise. Ours. The edge
            chooses, so one that runs without this file knows nothing of it. Pods of a release without this field would
            play such calls as noise: set it when none is left.
    """

    deepgram_api_key: str = field(repr=False)
    deepgram_config: DeepgramAgentConfig = field(repr=False)
    ac_token: str | None = field(default=None, repr=False)  # required in the original; the default is ours (§2)
    authenticate: Callable[[ServerConnection, Request], Awaitable[Response | None]] | None = None
    host: str = "0.0.0.0"
    port: int = 8081
    preferred_media_formats: tuple[AudioCodesMediaFormat, ...] = ("raw/mulaw", "raw/lpcm16_8", "raw/lpcm16")
    name: str | None = None  # ours
    redact: Callable[[str], str] | None = None  # ours
    play_media_format: AudioCodesMediaFormat | None = None  # ours


@dataclass(frozen=True, slots=True)
class SessionStartEvent:
    """`session_start`: the call is accepted and the agent is ready. `started_at` is ISO 8601 in UTC."""

    session_id: str
    conversation_id: str
    caller: str | None
    bot_name: str | None
    media_format: AudioCodesMediaFormat
    started_at: str


@dataclass(frozen=True, slots=True)
class SessionEndEvent:
    """`session_end`: fires once per call. `duration_ms` counts from agent-ready, 0 if it never was."""

    session_id: str
    reason: SessionEndReason
    duration_ms: int
    ended_at: str


@dataclass(frozen=True, slots=True)
class InboundActivityEvent:
    """`activity`: one activity from the telephony side, exactly as it came."""

    session_id: str
    activity: AudioCodesActivity


@dataclass(frozen=True, slots=True)
class BridgeErrorEvent:
    """`error`: something failed. `recoverable=False` promises that `session_end` follows."""

    session_id: str | None
    description: str
    code: str
    cause: Exception | None
    recoverable: bool
