"""`Session`: one call, as the customer's handlers see it.

It lives in the customer's event loop. Reading it never waits; the control methods cross to the thread in
which the call is served and come back when the effect is on its way (`transfer` and `end_session`: when the
outcome is known; SDK reference §14).
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Coroutine, Mapping
from enum import Enum
from typing import Any, Protocol, TypeVar

from bridge_shared.types.audiocodes import (
    AudioCodesEventActivity,
    AudioCodesMediaFormat,
    CallRecordingActivityParams,
    PlayUrlActivityParams,
)
from bridge_shared.types.deepgram import ConversationTextEvent, FunctionCall
from bridge_shared.types.extra import TurnTiming
from bridge_worker.handlers import waiting_for_the_end
from bridge_worker.session_data import SessionData

T = TypeVar("T")


class SessionState(Enum):
    """Where a session is in its life."""

    INITIALIZING = "initializing"
    ACTIVE = "active"
    ENDING = "ending"
    ENDED = "ended"


class Control(Protocol):
    """What a live call can be told to do. Its coroutines run in the media thread."""

    loop: asyncio.AbstractEventLoop

    async def agent_command(self, verb: str, *arguments: Any) -> None: ...
    async def respond(self, call_id: str, name: str, content: str) -> None: ...
    def idempotency_key(self, call: FunctionCall) -> str: ...
    def turn_timings(self) -> list[TurnTiming]: ...
    async def activities(self, activities: list[dict[str, Any]]) -> None: ...
    async def hang_up(self, reason: str | None) -> None: ...
    async def transfer(self, parameters: dict[str, Any], summary: str) -> None: ...
    async def over(self) -> None: ...


class Bridge(Protocol):
    """What a session needs of its bridge."""

    async def _serve(self, session: Session, socket: Any) -> Session: ...


class Session:
    """One call between a caller and an agent. Made by the bridge; the first argument of every handler.

    Args:
        socket: an accepted WebSocket to drive, for `Session.serve`; None for calls that the bridge accepted.
        bridge: the bridge whose handlers and configuration apply.
    """

    def __init__(self, socket: Any, bridge: Any) -> None:
        self._socket = socket
        self._bridge = bridge
        self._session_id = uuid.uuid4().hex
        self._conversation_id: str | None = None
        self._media_format: AudioCodesMediaFormat | None = None
        self._state = SessionState.INITIALIZING
        self._transcript: list[ConversationTextEvent] = []
        self._control: Control | None = None
        self._data = SessionData()
        self._start: Mapping[str, Any] = {}

    @classmethod
    async def serve(cls, socket: Any, bridge: Any) -> Session:
        """Drive one call on a WebSocket that your own server has accepted, and return when the call is over.

        The socket needs async iteration, `send(str)` and `close()`. Authentication is yours.
        Cancelling it drops the socket; VAIC may resume the call at any edge of the fleet.

        Returns:
            the session of the call: the one that was there before, if this socket resumes a call of this process.
        """
        session: Session = await bridge._serve(cls(socket, bridge), socket)
        return session

    async def run(self) -> None:
        """Drive the socket that the session was made with; see `serve`."""
        await self._bridge._serve(self, self._socket)

    # ── state ──────────────────────────────────────────────────────────────────────────────────────────

    @property
    def session_id(self) -> str:
        """The bridge's own id of the call: 32 hex characters, the same in every process that serves it."""
        return self._session_id

    @property
    def conversation_id(self) -> str | None:
        """AudioCodes' id of the call, None before `session.initiate`."""
        return self._conversation_id

    @property
    def media_format(self) -> AudioCodesMediaFormat | None:
        """The negotiated format, None before it is chosen."""
        return self._media_format

    @property
    def is_active(self) -> bool:
        """True from the moment the agent is ready until the end begins."""
        return self._state is SessionState.ACTIVE

    @property
    def start_parameters(self) -> dict[str, Any]:
        """What VAIC told with its `start` activity: caller, callee, `globalSessionId`, SIP headers it maps (Bot API
        reference §7.3); empty before. The same in every process that serves or finishes the call, up to 32 KiB.
        A new dictionary each time. An addition to the original SDK.
        """
        return dict(self._start)

    def get_transcript(self) -> list[ConversationTextEvent]:
        """What was said so far by both sides, in order. A new list each time."""
        return list(self._transcript)

    @property
    def data(self) -> SessionData:
        """What the application keeps of this call: a mapping of JSON values, 16 KiB at most, that goes with the call
        to every worker that serves or finishes it. Setting a key writes it to Redis: at once, or in a handler of
        `activity` when that returns. An addition to the original SDK.
        """
        return self._data

    @property
    def turn_timings(self) -> list[TurnTiming]:
        """What the newest answers of this worker took, oldest first. An addition to the original SDK."""
        return self._control.turn_timings() if self._control is not None else []

    # ── the agent ──────────────────────────────────────────────────────────────────────────────────────

    async def send_agent_message(self, content: str) -> None:
        """Make the agent say this now. Refused injections are tried again for a few seconds, then a
        `warning` event tells."""
        await self._agent("send_agent_message", "inject_agent", content)

    async def send_user_message(self, content: str) -> None:
        """Have the agent answer this as if the caller had said it."""
        await self._agent("send_user_message", "inject_user", content)

    async def update_prompt(self, prompt: str) -> None:
        """Add to the agent's prompt."""
        await self._agent("update_prompt", "update_prompt", prompt)

    async def update_speak(self, speak: dict[str, object]) -> None:
        """Change the agent's voice."""
        await self._agent("update_speak", "update_speak", speak)

    async def update_think(self, think: dict[str, object]) -> None:
        """Replace the whole think block: model, prompt, functions."""
        await self._agent("update_think", "update_think", think)

    async def respond_to_function_call(self, id: str, name: str, content: str) -> None:
        """Answer a function call, once. An answer to a cancelled or unknown call is dropped with a log line.

        It is recorded before the agent gets it: if agent or worker are lost now, the next ones know it.

        Raises:
            TypeError: `content` is no text. Nothing was answered.
        """
        self._gate("respond_to_function_call")
        if not isinstance(content, str):
            raise TypeError(
                f"the answer to function {name!r} is a {type(content).__name__}: give the agent a text, json.dumps it"
            )
        await self._cross(self._live().respond(id, name, content))

    def idempotency_key(self, call: FunctionCall) -> str:
        """A key for the work of this function call: 32 hex characters.

        The same when the call is carried out again because a worker or an agent was lost before its answer was
        recorded, or asked for again after it was cancelled; another one when the caller wants the same once more.
        Give it to the system that does the work, so that it does it once. An addition to the original SDK.
        """
        return self._live().idempotency_key(call)

    # ── the telephone ──────────────────────────────────────────────────────────────────────────────────

    async def send_activity(self, activity: AudioCodesEventActivity | list[AudioCodesEventActivity]) -> None:
        """Send activities as they are, a list in one envelope."""
        self._gate("send_activity")
        activities: list[Any] = list(activity) if isinstance(activity, list) else [activity]
        await self._cross(self._live().activities(activities))

    async def transfer(
        self,
        destination: str,
        *,
        handover_reason: str | None = None,
        transfer_sip_headers: list[dict[str, str]] | None = None,
        summary: str | None = None,
    ) -> None:
        """Transfer the caller once the agent's last words are out. Ends the session with reason `transfer`.

        Returns when the `session_end` handlers have run or, if VAIC reports that the transfer failed, with
        the session still active.

        Args:
            destination: a `tel:` or `sip:` URI, or a number.
            handover_reason: logged and passed on by VAIC.
            transfer_sip_headers: `{"name": …, "value": …}` each. `X-Conversation-Id` is added, so that whoever gets
                the call can look up what is stored about it.
            summary: what the next one should know; stored with target, reason and the place in the transcript in
                `handoff` of the call before anything else happens. Then the handlers of `before_transfer` run, each
                within `BRIDGE_BEFORE_TRANSFER_TIMEOUT`. An addition to the original SDK.
        """
        self._gate("transfer")
        parameters: dict[str, Any] = {"transferTarget": destination}
        if handover_reason is not None:
            parameters["handoverReason"] = handover_reason
        if transfer_sip_headers:
            parameters["transferSipHeaders"] = list(transfer_sip_headers)
        with waiting_for_the_end():
            await self._cross(self._live().transfer(parameters, summary or ""))

    async def end_session(self, reason: str | None = None) -> None:
        """Hang up once the agent's last words are out. Ends the session with reason `ended`.

        Returns when the `session_end` handlers have run.

        Args:
            reason: becomes VAIC's `hangupReason`.
        """
        self._gate("end_session")
        self._state = SessionState.ENDING
        with waiting_for_the_end():
            await self._cross(self._live().hang_up(reason))

    async def play_url(self, url: str, *, options: PlayUrlActivityParams | None = None) -> None:
        """Have VAIC play an audio file. `playUrlMediaFormat` must be one of VAIC's format tokens."""
        parameters: dict[str, Any] = {"playUrlUrl": url, **(options or {})}
        if "playUrlCache" in parameters:  # the original's spelling (A12)
            parameters["playUrlCaching"] = parameters.pop("playUrlCache")
        await self._event("play_url", "playUrl", parameters)

    async def send_dtmf(self, digits: str, *, options: dict[str, object] | None = None) -> None:
        """Send digits (`0-9 * #`) to the far end; more than 20 go out in several activities."""
        parameters = dict(options or {})
        digits = str(parameters.pop("dtmf", digits))  # the original's spelling (A10)
        digits = str(parameters.pop("dtmfDigits", digits))
        self._gate("send_dtmf")
        activities = [
            _event("sendDtmf", {"dtmfDigits": digits[start : start + 20], **parameters})
            for start in range(0, len(digits), 20)
        ]
        if activities:
            await self._cross(self._live().activities(activities))

    async def send_meta_data(self, data: dict[str, object]) -> None:
        """Pass a JSON object on to the telephony side (Enterprise edition)."""
        self._gate("send_meta_data")
        # `value` is the likely place; AudioCodes' page could not be read (Bot API reference §7.5, SDK reference A13)
        await self._cross(self._live().activities([{"type": "event", "name": "sendMetaData", "value": data}]))

    async def abort_prompts(self) -> None:
        """Have VAIC stop what it plays."""
        await self._event("abort_prompts", "abortPrompts")

    async def expect_another_bot_message(self) -> None:
        """Tell VAIC that the bot is about to say more."""
        await self._event("expect_another_bot_message", "expectAnotherBotMessage")

    async def apply_config(self, params: dict[str, object]) -> None:
        """Change VAIC parameters for the rest of the call."""
        self._gate("apply_config")
        await self._cross(self._live().activities([{"type": "event", "name": "config", "sessionParams": params}]))

    async def start_call_recording(self, params: CallRecordingActivityParams | None = None) -> None:
        """Start SIPREC recording, where the administrator has configured it."""
        await self._event("start_call_recording", "startCallRecording", dict(params or {}))

    async def stop_call_recording(self) -> None:
        """Stop the recording."""
        await self._event("stop_call_recording", "stopCallRecording")

    async def pause_call_recording(self) -> None:
        """Pause the recording."""
        await self._event("pause_call_recording", "pauseCallRecording")

    async def resume_call_recording(self) -> None:
        """Go on with the recording."""
        await self._event("resume_call_recording", "resumeCallRecording")

    # ── inside ─────────────────────────────────────────────────────────────────────────────────────────

    def _begin(
        self, session_id: str, conversation_id: str, media_format: AudioCodesMediaFormat | None, control: Control | None
    ) -> None:
        """The call that this session stands for. An empty `session_id` keeps the session's own."""
        self._session_id = session_id or self._session_id
        self._conversation_id = conversation_id
        self._media_format = media_format
        self._control = control

    def _gate(self, method: str) -> None:
        if self._state in (SessionState.ENDING, SessionState.ENDED):
            raise RuntimeError(f"cannot call {method}: session is {self._state.value}")

    def _live(self) -> Control:
        if self._control is None:
            raise RuntimeError("this session has no call yet: it is filled in when a call arrives")
        return self._control

    async def _agent(self, method: str, verb: str, *arguments: Any) -> None:
        self._gate(method)
        await self._cross(self._live().agent_command(verb, *arguments))

    async def _event(self, method: str, name: str, parameters: Mapping[str, Any] | None = None) -> None:
        self._gate(method)
        await self._cross(self._live().activities([_event(name, parameters)]))

    async def _cross(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine of the call in the media thread and wait for it."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._live().loop))


def _event(name: str, parameters: Mapping[str, Any] | None) -> dict[str, Any]:
    activity: dict[str, Any] = {"type": "event", "name": name}
    if parameters:
        activity["activityParams"] = dict(parameters)
    return activity
