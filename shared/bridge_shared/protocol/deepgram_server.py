"""The Voice Agent's side of one socket, as a pure and strict machine, for the simulated agent and for tests.

    opened ──welcome()──► welcomed ──Settings──► configuring ──applied()──► ready
       └────────────────────┴────────── Refused ───┴───────────────────────────┴──► closed

`receive()` never raises. What breaks a rule of the protocol comes back as `Refused` with the code of the reference (§2,
§5.4); the shell then sends `error(...)` and closes. The other methods build what the server says, one text frame each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import orjson

from bridge_shared.protocol.deepgram_errors import LocalProtocolError
from bridge_shared.protocol.deepgram_events import JsonObject, UpdateKind
from bridge_shared.protocol.deepgram_settings import (
    SettingsInvalid,
    validate_listen,
    validate_settings,
    validate_speak,
    validate_think,
)

ServerState: TypeAlias = Literal["opened", "welcomed", "configuring", "ready", "closed"]


@dataclass(frozen=True, slots=True)
class SettingsReceived:
    """Valid settings; answer with `applied()`. `context` is `agent.context.messages`, empty if there is none."""

    settings: JsonObject
    context: list[JsonObject]


@dataclass(frozen=True, slots=True)
class AudioReceived:
    """Caller audio. Empty data is what a client must never send (§4.1), reported so that it can be noted."""

    data: bytes


@dataclass(frozen=True, slots=True)
class PromptUpdate:
    prompt: str


@dataclass(frozen=True, slots=True)
class SpeakUpdate:
    speak: Any


@dataclass(frozen=True, slots=True)
class ThinkUpdate:
    think: Any


@dataclass(frozen=True, slots=True)
class ListenUpdate:
    listen: JsonObject


@dataclass(frozen=True, slots=True)
class InjectUser:
    content: str


@dataclass(frozen=True, slots=True)
class InjectAgent:
    message: str
    behavior: str


@dataclass(frozen=True, slots=True)
class FunctionResponse:
    """`expected` is false for an id this session has not asked for, or not any more; such a response is dropped."""

    id: str
    name: str
    content: str
    expected: bool


@dataclass(frozen=True, slots=True)
class KeepAlive:
    pass


@dataclass(frozen=True, slots=True)
class ForceEndTurn:
    pass


@dataclass(frozen=True, slots=True)
class Refused:
    """The session is over: send `error(code, description)` and close."""

    code: str
    description: str


ServerEvent: TypeAlias = (
    SettingsReceived
    | AudioReceived
    | PromptUpdate
    | SpeakUpdate
    | ThinkUpdate
    | ListenUpdate
    | InjectUser
    | InjectAgent
    | FunctionResponse
    | KeepAlive
    | ForceEndTurn
    | Refused
)

_ACKNOWLEDGEMENT: Final[dict[UpdateKind, str]] = {
    "prompt": "PromptUpdated",
    "speak": "SpeakUpdated",
    "think": "ThinkUpdated",
    "listen": "ListenUpdated",
}


class AgentServer:
    """One session on one socket.

    Args:
        strict: refuse what the live service is told to tolerate or is not known to refuse: `Settings` before `Welcome`,
            anything between `Settings` and `SettingsApplied` (§2, rules 2 and 5).

    Attributes:
        state: see the module.
        history_enabled: `flags.history` of the settings.
    """

    def __init__(self, *, strict: bool = True) -> None:
        self.state: ServerState = "opened"
        self.strict = strict
        self.history_enabled = True
        self._open_calls: dict[str, str] = {}

    # ── receiving ────────────────────────────────────────────────────────────────────────────────────────────────────

    def receive(self, data: str | bytes) -> list[ServerEvent]:
        """Take one frame: text as str, binary as bytes. Never raises; nothing is reported after a refusal."""
        if self.state == "closed":
            return []
        if self.state == "ready" and isinstance(data, bytes):
            return [AudioReceived(data)]
        try:
            return [self._read(data)]
        except SettingsInvalid as refusal:
            self.state = "closed"
            return [Refused(refusal.code, refusal.description)]

    def _read(self, data: str | bytes) -> ServerEvent:
        if isinstance(data, bytes):
            self._check_order("binary message")
            return AudioReceived(data)
        try:
            message = orjson.loads(data)
        except orjson.JSONDecodeError:
            raise _unparsable("the whole") from None
        if not isinstance(message, dict) or not isinstance(message.get("type"), str):
            raise _unparsable("type")
        name = message["type"]
        if name == "Settings":
            return self._settings(message)
        if name not in _READERS:
            raise _unparsable("type")
        self._check_order(name)
        fields, reader = _READERS[name]
        for key in message.keys() - fields - {"type"}:
            raise _unparsable(key)
        return reader(self, message)

    def _check_order(self, name: str) -> None:
        if self.state in ("opened", "welcomed"):
            raise SettingsInvalid("NON_SETTINGS_MESSAGE_BEFORE_SETTINGS", f"Received a {name} before settings.")
        if self.state == "configuring" and self.strict:
            raise SettingsInvalid("NON_SETTINGS_MESSAGE_BEFORE_SETTINGS", f"Received a {name} before SettingsApplied.")

    def _settings(self, message: JsonObject) -> ServerEvent:
        if self.state in ("configuring", "ready"):
            raise SettingsInvalid("SETTINGS_ALREADY_APPLIED", "Settings have already been applied to this session.")
        if self.state == "opened" and self.strict:
            raise SettingsInvalid("NON_SETTINGS_MESSAGE_BEFORE_SETTINGS", "Received Settings before Welcome.")
        validate_settings(message)
        self.state = "configuring"
        self.history_enabled = message.get("flags", {}).get("history", True)
        agent = message["agent"]
        context = agent.get("context", {}).get("messages", []) if isinstance(agent, dict) else []
        return SettingsReceived(message, context)

    def _update_speak(self, message: JsonObject) -> ServerEvent:
        validate_speak(message.get("speak"))
        return SpeakUpdate(message["speak"])

    def _update_think(self, message: JsonObject) -> ServerEvent:
        validate_think(message.get("think"))
        return ThinkUpdate(message["think"])

    def _update_listen(self, message: JsonObject) -> ServerEvent:
        validate_listen(message.get("listen"))
        return ListenUpdate(message["listen"])

    def _inject_agent(self, message: JsonObject) -> ServerEvent:
        behavior = message.get("behavior", "default")
        if behavior not in ("default", "queue", "interrupt"):
            raise _unparsable("behavior")
        return InjectAgent(_text(message, "message"), behavior)

    def _function_response(self, message: JsonObject) -> ServerEvent:
        call_id, name, content = _text(message, "id"), _text(message, "name"), _text(message, "content")
        expected = self._open_calls.get(call_id) == name
        if expected:
            del self._open_calls[call_id]
        return FunctionResponse(call_id, name, content, expected)

    # ── sending ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def welcome(self, request_id: str) -> bytes:
        if self.state == "opened":
            self.state = "welcomed"
        return _frame("Welcome", request_id=request_id)

    def applied(self) -> bytes:
        if self.state != "configuring":
            raise LocalProtocolError(f"SettingsApplied answers Settings; the session is {self.state}")
        self.state = "ready"
        return _frame("SettingsApplied")

    def text(self, role: str, content: str) -> bytes:
        return _frame("ConversationText", role=role, content=content)

    def history(self, item: JsonObject) -> bytes:
        """Args: item: `{"role", "content"}` or `{"function_calls"}`; the type is added (§4.3)."""
        return orjson.dumps({"type": "History", **item})

    def user_started(self) -> bytes:
        return _frame("UserStartedSpeaking")

    def thinking(self, content: str) -> bytes:
        return _frame("AgentThinking", content=content)

    def agent_started(self, total_latency: float, tts_latency: float, ttt_latency: float) -> bytes:
        """Latencies in seconds."""
        return _frame(
            "AgentStartedSpeaking", total_latency=total_latency, tts_latency=tts_latency, ttt_latency=ttt_latency
        )

    def audio_done(self) -> bytes:
        return _frame("AgentAudioDone")

    def function_request(self, functions: Iterable[JsonObject]) -> bytes:
        """Args: functions: each with id, name, arguments (a JSON string) and client_side."""
        functions = list(functions)
        self._open_calls.update({f["id"]: f["name"] for f in functions if f["client_side"]})
        return _frame("FunctionCallRequest", functions=functions)

    def function_cancelled(self, functions: Iterable[JsonObject]) -> bytes:
        """Args: functions: each with id and name. Their responses are dropped from now on (§4.4, rule 4)."""
        cancelled = [{"id": f["id"], "name": f["name"]} for f in functions]
        for function in cancelled:
            self._open_calls.pop(function["id"], None)
        return _frame("FunctionCallCancelled", functions=cancelled)

    def function_done(self, id: str, name: str, content: str) -> bytes:
        """A call that the server ran itself."""
        return _frame("FunctionCallResponse", id=id, name=name, content=content)

    def updated(self, kind: UpdateKind) -> bytes:
        return _frame(_ACKNOWLEDGEMENT[kind])

    def injection_refused(self, message: str) -> bytes:
        return _frame("InjectionRefused", message=message)

    def warning(self, code: str, description: str) -> bytes:
        return _frame("Warning", code=code, description=description)

    def error(self, code: str, description: str) -> bytes:
        """Ends the session: nothing received afterwards is reported."""
        self.state = "closed"
        return _frame("Error", code=code, description=description)

    def latency_report(self, **seconds: float) -> bytes:
        return _frame("LatencyReport", **seconds)


_Reader: TypeAlias = Callable[[AgentServer, JsonObject], ServerEvent]

# Every client message but Settings (§4.1; the early-access ones are not offered), with the keys it may have.
_READERS: Final[dict[str, tuple[frozenset[str], _Reader]]] = {
    "KeepAlive": (frozenset(), lambda _, __: KeepAlive()),
    "ForceEndTurn": (frozenset(), lambda _, __: ForceEndTurn()),
    "UpdatePrompt": (frozenset({"prompt"}), lambda _, m: PromptUpdate(_text(m, "prompt"))),
    "UpdateSpeak": (frozenset({"speak"}), AgentServer._update_speak),
    "UpdateThink": (frozenset({"think"}), AgentServer._update_think),
    "UpdateListen": (frozenset({"listen"}), AgentServer._update_listen),
    "InjectUserMessage": (frozenset({"content"}), lambda _, m: InjectUser(_text(m, "content"))),
    "InjectAgentMessage": (frozenset({"message", "behavior"}), AgentServer._inject_agent),
    "FunctionCallResponse": (frozenset({"id", "name", "content"}), AgentServer._function_response),
}


def _frame(kind: str, /, **fields: Any) -> bytes:
    return orjson.dumps({"type": kind, **fields})


def _text(message: JsonObject, field: str) -> str:
    value = message.get(field)
    if not isinstance(value, str):
        raise _unparsable(field)
    return value


def _unparsable(field: str) -> SettingsInvalid:
    return SettingsInvalid(
        "UNPARSABLE_CLIENT_MESSAGE", f"Error parsing client message. Check the {field} field against the API spec."
    )
