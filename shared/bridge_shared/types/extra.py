"""Events that the original SDK drops (sdk-public-api §12.2 D8) and one that only a cluster has.

They reach applications that register for them and nobody else. Same manner as the others: frozen,
slotted, no defaults, `session_id` first. Where the agent may leave a field out it is None, or "" for text.
"""

from __future__ import annotations

from dataclasses import dataclass

from bridge_shared.types.audiocodes import SessionEndEvent

__all__ = [
    "AgentStartedSpeakingEvent",
    "BeforeTransferEvent",
    "CancelledFunctionCall",
    "FinishEvent",
    "FunctionCallCancelledEvent",
    "FunctionCallResponseEvent",
    "HistoryEvent",
    "InjectionRefusedEvent",
    "LatencyReportEvent",
    "ListenUpdatedEvent",
    "SessionResumedEvent",
    "TurnTiming",
    "TurnTimingEvent",
]


@dataclass(frozen=True, slots=True)
class AgentStartedSpeakingEvent:
    """`agent_started_speaking`: a turn of the agent begins. Latencies in seconds; not every agent sends this."""

    session_id: str
    total_latency: float | None
    tts_latency: float | None
    ttt_latency: float | None


@dataclass(frozen=True, slots=True)
class InjectionRefusedEvent:
    """`injection_refused`: the agent did not take a `send_agent_message` or `send_user_message`."""

    session_id: str
    message: str


@dataclass(frozen=True, slots=True)
class HistoryEvent:
    """`history`: an item of the conversation as the agent has committed it, exactly as it came.

    Either `role` and `content`, or `function_calls`; the very shape that `agent.context.messages` takes.
    """

    session_id: str
    item: dict[str, object]


@dataclass(frozen=True, slots=True)
class CancelledFunctionCall:
    """A function call that is not wanted any more: `id` and `name` as in its `FunctionCall`."""

    id: str
    name: str


@dataclass(frozen=True, slots=True)
class FunctionCallCancelledEvent:
    """`function_call_cancelled`: stop this work and do not answer. The agent often asks again under a new id."""

    session_id: str
    functions: tuple[CancelledFunctionCall, ...]


@dataclass(frozen=True, slots=True)
class FunctionCallResponseEvent:
    """`function_call_response`: the result of a call that Deepgram made itself. `id` may be ""."""

    session_id: str
    id: str
    name: str
    content: str


@dataclass(frozen=True, slots=True)
class ListenUpdatedEvent:
    """`listen_updated`: the agent confirms a change of its speech recognition."""

    session_id: str


@dataclass(frozen=True, slots=True)
class LatencyReportEvent:
    """`latency_report`: seconds; None where the report does not say. May come several times a second."""

    session_id: str
    stt_latency: float | None
    ttt_token_latency: float | None
    ttt_text_latency: float | None
    ttt_tool_latency: float | None
    ttt_thinking_latency: float | None
    tts_latency: float | None
    total_latency: float | None


@dataclass(frozen=True, slots=True)
class SessionResumedEvent:
    """`session_resumed`: the call goes on with a new agent connection, maybe in another process.

    What an application kept in memory for this call may therefore be missing. `reason`: `agent_lost` or
    `agent_renewed` in the same process, `worker_lost` or `handover` in another one.
    """

    session_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class TurnTiming:
    """What an answer took; milliseconds from the moment when the agent had understood the caller.

    `turn`: number of the turn under this worker; `stt_ms`: what the agent reports that its recognition took before
    that moment, None if it does not; `text_ms`: to the first text of the answer; `audio_ms`: to its first audio at
    the worker; `heard_ms`: to the moment when the caller began to hear it, by the edge's play clock, the way back of
    that report included.
    """

    turn: int
    stt_ms: float | None
    text_ms: float
    audio_ms: float
    heard_ms: float


@dataclass(frozen=True, slots=True)
class TurnTimingEvent:
    """`turn_timing`: the caller begins to hear an answer."""

    session_id: str
    timing: TurnTiming


@dataclass(frozen=True, slots=True)
class BeforeTransferEvent:
    """`before_transfer`: the call is about to be given to somebody else, and what is to be known about it is stored.

    `target`, `reason` and `summary` as given to `Session.transfer`; "" where nothing was given.
    """

    session_id: str
    target: str
    reason: str
    summary: str


@dataclass(frozen=True, slots=True)
class FinishEvent(SessionEndEvent):
    """What `session_end` handlers get: a `SessionEndEvent` that also says how often it was tried.

    `attempt`: 1 the first time, more after a handler has failed or a worker died. `idempotency_key`: the same in every
    attempt and different for every call; whoever writes to another system gives it along, so that it is done once.
    """

    attempt: int
    idempotency_key: str
