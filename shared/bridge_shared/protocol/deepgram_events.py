"""What the Voice Agent's server can tell us, one frozen class per message (Voice Agent reference §4.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

UpdateKind: TypeAlias = Literal["prompt", "speak", "think", "listen"]
JsonObject: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Welcome:
    """The socket is served. `request_id` is the session's only name at Deepgram (§2, rule 6)."""

    request_id: str


@dataclass(frozen=True, slots=True)
class SettingsApplied:
    """The agent is configured; audio may flow."""


@dataclass(frozen=True, slots=True)
class Audio:
    """Agent speech, of any length and alignment, faster than real time (§6)."""

    data: bytes


@dataclass(frozen=True, slots=True)
class ConversationText:
    """A final user transcript, or one sentence the agent is about to speak. `raw` has the optional fields."""

    role: str
    content: str
    raw: JsonObject


@dataclass(frozen=True, slots=True)
class History:
    """An item as it was committed: role and content, or function_calls. Fit for `context.messages` as it is."""

    raw: JsonObject


@dataclass(frozen=True, slots=True)
class UserStartedSpeaking:
    """The caller speaks: drop all queued agent audio (§6). Also comes while the agent is silent."""


@dataclass(frozen=True, slots=True)
class AgentThinking:
    content: str


@dataclass(frozen=True, slots=True)
class AgentStartedSpeaking:
    """Seconds; may never arrive (§4.2)."""

    total_latency: float
    tts_latency: float
    ttt_latency: float


@dataclass(frozen=True, slots=True)
class AgentAudioDone:
    """The last audio of an utterance was sent, not played. Can be missing after an interruption."""


@dataclass(frozen=True, slots=True)
class FunctionCallRequest:
    """Calls with a string `id` and `name`, otherwise as received. `client_side` false: not ours to answer."""

    functions: tuple[JsonObject, ...]


@dataclass(frozen=True, slots=True)
class FunctionCallCancelled:
    """These calls are void: stop the work and send no response (§4.4, rule 4)."""

    functions: tuple[JsonObject, ...]


@dataclass(frozen=True, slots=True)
class FunctionCallDone:
    """Information about a call that Deepgram ran itself."""

    id: str | None
    name: str
    content: str


@dataclass(frozen=True, slots=True)
class Updated:
    """An acknowledged update. `value` is what the oldest open update of that kind had sent; None if none was open."""

    kind: UpdateKind
    value: Any


@dataclass(frozen=True, slots=True)
class InjectionRefused:
    message: str


@dataclass(frozen=True, slots=True)
class LatencyReport:
    """Seconds by name; can come several times a second (§4.2)."""

    raw: JsonObject


@dataclass(frozen=True, slots=True)
class Warned:
    code: str
    description: str


@dataclass(frozen=True, slots=True)
class AgentError:
    """The session is over (§5.4). Nothing that arrives afterwards is reported."""

    code: str
    description: str


@dataclass(frozen=True, slots=True)
class UnexpectedBinary:
    """A binary frame before `SettingsApplied`."""


@dataclass(frozen=True, slots=True)
class UnexpectedType:
    """A known message out of its place: before the session is ready, or a second Welcome or SettingsApplied."""

    type: str


@dataclass(frozen=True, slots=True)
class Unknown:
    """A type this version does not know. Count it and go on."""

    type: str


@dataclass(frozen=True, slots=True)
class Malformed:
    """Not a message. `detail` names the type and field, never content."""

    detail: str


AgentEvent: TypeAlias = (
    Welcome
    | SettingsApplied
    | Audio
    | ConversationText
    | History
    | UserStartedSpeaking
    | AgentThinking
    | AgentStartedSpeaking
    | AgentAudioDone
    | FunctionCallRequest
    | FunctionCallCancelled
    | FunctionCallDone
    | Updated
    | InjectionRefused
    | LatencyReport
    | Warned
    | AgentError
    | UnexpectedBinary
    | UnexpectedType
    | Unknown
    | Malformed
)
