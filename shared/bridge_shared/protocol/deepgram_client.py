"""Our side of one Voice Agent socket, as a pure machine.

    connecting ──Welcome──► welcomed ──settings()──► settings_sent ──SettingsApplied──► ready
         └──────────────┴──────────────────┴─── Error ───┴───────────────────────────────┴──► closed

What arrives goes into `receive()`, which never raises: whatever the peer sends becomes events. What is to be sent
comes out of the other methods as one text frame, ready for the socket; asking for one that the protocol does not allow
in this state raises `LocalProtocolError`, because that is a mistake of ours. Caller audio needs no method: once the
machine is `ready`, each binary frame is bare audio. Unknown message types and extra fields are reported or kept and
otherwise harmless (Voice Agent reference §4.2; every § here is of that reference).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, TypeAlias

import orjson

from bridge_shared.protocol.deepgram_errors import LocalProtocolError
from bridge_shared.protocol.deepgram_events import (
    AgentAudioDone,
    AgentError,
    AgentEvent,
    AgentStartedSpeaking,
    AgentThinking,
    Audio,
    ConversationText,
    FunctionCallCancelled,
    FunctionCallDone,
    FunctionCallRequest,
    History,
    InjectionRefused,
    JsonObject,
    LatencyReport,
    Malformed,
    SettingsApplied,
    UnexpectedBinary,
    UnexpectedType,
    Unknown,
    Updated,
    UpdateKind,
    UserStartedSpeaking,
    Warned,
    Welcome,
)

ClientState: TypeAlias = Literal["connecting", "welcomed", "settings_sent", "ready", "closed"]
Behavior: TypeAlias = Literal["default", "queue", "interrupt"]

# What may come before the session is ready: reports that are harmless at any time. History is among them because it is
# not documented whether seeded context is echoed on connect, and when (§4.3).
_EARLY: Final = frozenset({"Warning", "History", "LatencyReport"})
# Far above what a model asks for at once; a peer that never awaits an answer cannot make us grow.
_MAX_OPEN_CALLS: Final = 256
_MAX_UNACKNOWLEDGED: Final = 64


class AgentClient:
    """One session on one socket; a new socket needs a new machine (there is no resume, §2 rule 6).

    Attributes:
        state: see the module.
        request_id: from `Welcome`; empty before.
        error: the code of the `Error` that ended the session, or None. For `parse_close`.
    """

    def __init__(self) -> None:
        self.state: ClientState = "connecting"
        self.request_id = ""
        self.error: str | None = None
        self._open_calls: dict[str, str] = {}
        self._unacknowledged: dict[UpdateKind, deque[Any]] = {}

    # ── receiving ────────────────────────────────────────────────────────────────────────────────────────────────────

    def receive(self, data: str | bytes) -> list[AgentEvent]:
        """Take one frame: text as str, binary as bytes. Never raises; after an `Error` it reports nothing more."""
        if self.state == "closed":
            return []
        if isinstance(data, bytes):
            if not data:
                return []
            return [Audio(data)] if self.state == "ready" else [UnexpectedBinary()]
        try:
            message = orjson.loads(data)
        except orjson.JSONDecodeError:
            return [Malformed("not JSON")]
        if not isinstance(message, dict):
            return [Malformed("not a JSON object")]
        name = message.get("type")
        if not isinstance(name, str):
            return [Malformed("no type")]
        reader = _READERS.get(name)
        if reader is None:
            return [Unknown(name[:64])]
        if self.state != "ready" and name not in _EARLY and name not in _HANDSHAKE:
            return [UnexpectedType(name)]
        try:
            return reader(self, message)
        except _FieldError as wrong:
            return [Malformed(f"{name} without a usable {wrong.args[0]}")]

    def _welcome(self, message: JsonObject) -> list[AgentEvent]:
        if self.state != "connecting":
            return [UnexpectedType("Welcome")]
        self.request_id = _text(message, "request_id", "")
        self.state = "welcomed"
        return [Welcome(self.request_id)]

    def _applied(self, message: JsonObject) -> list[AgentEvent]:
        if self.state != "settings_sent":
            return [UnexpectedType("SettingsApplied")]
        self.state = "ready"
        return [SettingsApplied()]

    def _error(self, message: JsonObject) -> list[AgentEvent]:
        code, description = _code_and_description(message, "err")
        self.error = code
        self.state = "closed"
        return [AgentError(code, description)]

    def _warning(self, message: JsonObject) -> list[AgentEvent]:
        return [Warned(*_code_and_description(message, "warn"))]

    def _conversation_text(self, message: JsonObject) -> list[AgentEvent]:
        return [ConversationText(_text(message, "role"), _text(message, "content"), message)]

    def _history(self, message: JsonObject) -> list[AgentEvent]:
        if "function_calls" in message:
            _objects(message, "function_calls")
        else:
            _text(message, "role"), _text(message, "content")
        return [History(message)]

    def _agent_started(self, message: JsonObject) -> list[AgentEvent]:
        return [
            AgentStartedSpeaking(
                _seconds(message, "total_latency"), _seconds(message, "tts_latency"), _seconds(message, "ttt_latency")
            )
        ]

    def _function_request(self, message: JsonObject) -> list[AgentEvent]:
        events: list[AgentEvent] = []
        whole: list[JsonObject] = []
        for function in _objects(message, "functions"):
            if isinstance(function.get("id"), str) and isinstance(function.get("name"), str):
                whole.append(function)
            else:
                events.append(Malformed("FunctionCallRequest without a usable id or name"))
        for function in whole:
            # Missing means ours, as every client in the field takes it (§8.3).
            if function.get("client_side", True) is True:
                while len(self._open_calls) >= _MAX_OPEN_CALLS:
                    del self._open_calls[next(iter(self._open_calls))]
                self._open_calls[function["id"]] = function["name"]
        if whole:
            events.insert(0, FunctionCallRequest(tuple(whole)))
        return events

    def _function_cancelled(self, message: JsonObject) -> list[AgentEvent]:
        functions = [f for f in _objects(message, "functions") if isinstance(f.get("id"), str)]
        for function in functions:
            self._open_calls.pop(function["id"], None)
        return [FunctionCallCancelled(tuple(functions))]

    def _function_done(self, message: JsonObject) -> list[AgentEvent]:
        call_id = message.get("id")
        return [
            FunctionCallDone(
                call_id if isinstance(call_id, str) else None, _text(message, "name"), _text(message, "content")
            )
        ]

    def _updated(self, kind: UpdateKind) -> list[AgentEvent]:
        waiting = self._unacknowledged.get(kind)
        return [Updated(kind, waiting.popleft() if waiting else None)]

    # ── sending ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def settings(self, settings: Mapping[str, Any]) -> bytes:
        """The one `Settings` of this socket, after `Welcome`. A missing `type` is added; nothing else is changed."""
        if self.state != "welcomed":
            raise LocalProtocolError(f"Settings are sent once, after Welcome; the session is {self.state}")
        frame = orjson.dumps({"type": "Settings", **settings})
        self.state = "settings_sent"
        return frame

    def keep_alive(self) -> bytes:
        """Needed only while no audio is sent (§5.1)."""
        return self._message({"type": "KeepAlive"})

    def update_prompt(self, prompt: str) -> bytes:
        return self._update("prompt", "UpdatePrompt", prompt)

    def update_speak(self, speak: Any) -> bytes:
        """Args: speak: one speak object or a list of fallbacks."""
        return self._update("speak", "UpdateSpeak", speak)

    def update_think(self, think: Any) -> bytes:
        """Args: think: one think object or a list of fallbacks; replaces prompt and functions too (§4.1)."""
        return self._update("think", "UpdateThink", think)

    def update_listen(self, listen: Any) -> bytes:
        """Args: listen: an object with `provider`; what it leaves out keeps its value (§4.1)."""
        return self._update("listen", "UpdateListen", listen)

    def inject_user(self, content: str) -> bytes:
        """Text as if the caller had said it; the agent answers it."""
        return self._message({"type": "InjectUserMessage", "content": content})

    def inject_agent(self, message: str, behavior: Behavior | None = None) -> bytes:
        """Text for the agent to say. Without `behavior` it may come back as `InjectionRefused` (§4.1)."""
        body: JsonObject = {"type": "InjectAgentMessage", "message": message}
        if behavior is not None:
            body["behavior"] = behavior
        return self._message(body)

    @property
    def calling(self) -> bool:
        """Whether any function call of this session is ours to answer, and neither answered nor cancelled."""
        return bool(self._open_calls)

    def awaits_response(self, call_id: str) -> bool:
        """Whether a function call was requested here, is ours to answer, and was neither answered nor cancelled."""
        return call_id in self._open_calls

    def function_response(self, id: str, name: str, content: str) -> bytes:
        """The one answer to a call of this session.

        Raises:
            LocalProtocolError: `awaits_response(id)` is false: answered, cancelled, or of another socket (§4.4, §7.3).
        """
        if self._open_calls.get(id) != name:
            raise LocalProtocolError(f"this session awaits no response of {name} to that call")
        frame = self._message({"type": "FunctionCallResponse", "id": id, "name": name, "content": content})
        del self._open_calls[id]
        return frame

    def _update(self, kind: UpdateKind, name: str, value: Any) -> bytes:
        waiting = self._unacknowledged.setdefault(kind, deque())
        if len(waiting) >= _MAX_UNACKNOWLEDGED:
            raise LocalProtocolError(f"{len(waiting)} updates of {kind} are unacknowledged")
        frame = self._message({"type": name, kind: value})
        waiting.append(value)
        return frame

    def _message(self, body: JsonObject) -> bytes:
        if self.state != "ready":
            raise LocalProtocolError(f"{body['type']} needs a ready session; this one is {self.state}")
        return orjson.dumps(body)


class _FieldError(Exception):
    """A field is missing or of the wrong type; the argument is its name."""


_Reader: TypeAlias = Callable[[AgentClient, JsonObject], list[AgentEvent]]

_HANDSHAKE: Final = frozenset({"Welcome", "SettingsApplied", "Error"})
_READERS: Final[dict[str, _Reader]] = {
    "Welcome": AgentClient._welcome,
    "SettingsApplied": AgentClient._applied,
    "Error": AgentClient._error,
    "Warning": AgentClient._warning,
    "ConversationText": AgentClient._conversation_text,
    "History": AgentClient._history,
    "UserStartedSpeaking": lambda _, __: [UserStartedSpeaking()],
    "AgentThinking": lambda _, message: [AgentThinking(_text(message, "content", ""))],
    "AgentStartedSpeaking": AgentClient._agent_started,
    "AgentAudioDone": lambda _, __: [AgentAudioDone()],
    "FunctionCallRequest": AgentClient._function_request,
    "FunctionCallCancelled": AgentClient._function_cancelled,
    "FunctionCallResponse": AgentClient._function_done,
    "PromptUpdated": lambda client, _: client._updated("prompt"),
    "SpeakUpdated": lambda client, _: client._updated("speak"),
    "ThinkUpdated": lambda client, _: client._updated("think"),
    "ListenUpdated": lambda client, _: client._updated("listen"),
    "InjectionRefused": lambda _, message: [InjectionRefused(_text(message, "message", ""))],
    "LatencyReport": lambda _, message: [LatencyReport(message)],
}


def _text(message: JsonObject, field: str, default: str | None = None) -> str:
    """A string field. With a default, absence and a wrong type mean the default: the field only informs."""
    value = message.get(field, default)
    if isinstance(value, str):
        return value
    if default is None:
        raise _FieldError(field)
    return default


def _seconds(message: JsonObject, field: str) -> float:
    value = message.get(field)
    return float(value) if isinstance(value, int | float) else 0.0


def _objects(message: JsonObject, field: str) -> list[JsonObject]:
    value = message.get(field)
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise _FieldError(field)
    return value


def _code_and_description(message: JsonObject, prefix: str) -> tuple[str, str]:
    """`code` and `description`, or their spelling in HTTP error bodies (§5.4). Never fails: an Error is an Error."""
    code = _text(message, "code", "") or _text(message, f"{prefix}_code", "") or "UNSPECIFIED"
    return code, _text(message, "description", "") or _text(message, f"{prefix}_msg", "")
