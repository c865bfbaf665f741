"""The other side of the Bot API, VAIC, as a strict judge of bots: for the simulator and the tests.

It sends what VAIC sends (§2–§7) and turns what the bot says into events; whatever a bot must not do becomes a
`Violation`. It keeps no clock: what depends on time (deadlines, lead, messages that crossed) is its owner's business.
"""

from __future__ import annotations

import binascii
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from bridge_shared.protocol.audiocodes_messages import (
    JSON,
    LocalProtocolError,
    Skipped,
    decode_audio,
    dump,
    parse,
    word,
)
from bridge_shared.protocol.media import FORMATS, Inbound, media


@dataclass(frozen=True, slots=True)
class Accepted:
    """`session.accepted`; the format is the one agreed at the beginning if the bot left it out on a resume."""

    media_format: str


@dataclass(frozen=True, slots=True)
class Refused:
    """`session.error`: the bot declines the call or gives it up."""

    reason: str


@dataclass(frozen=True, slots=True)
class Validated:
    success: bool


@dataclass(frozen=True, slots=True)
class UserStreamAck:
    """`userStream.started` or, if not `started`, `userStream.stopped`."""

    started: bool
    participant: str | None


@dataclass(frozen=True, slots=True)
class Speech:
    """`userStream.speech.*`; text and confidence where the kind has them."""

    kind: Literal["started", "stopped", "hypothesis", "recognition", "committed"]
    text: str
    confidence: float | None
    participant: str | None


@dataclass(frozen=True, slots=True)
class PlayStarted:
    stream_id: str
    media_format: str
    alt_text: str | None
    activity_params: JSON | None


@dataclass(frozen=True, slots=True)
class PlayChunk:
    """Audio of the open play stream, headerless and in whole samples."""

    stream_id: str
    data: bytes


@dataclass(frozen=True, slots=True)
class PlayStopped:
    stream_id: str


@dataclass(frozen=True, slots=True)
class BotActivity:
    activity: JSON


@dataclass(frozen=True, slots=True)
class Violation:
    """The bot broke a rule.

    Attributes:
        rule: a stable word: one of the codes of `Skipped`, or `null_field`, `before_accepted`, `unrequested`,
            `format_not_offered`, `not_echoed`, `unpaired_speech`, `chunk_outside_stream`, `stop_outside_stream`,
            `two_streams`, `id_reused`, `half_sample`, `wav_header`, `after_end`.
        detail: for a person.
    """

    rule: str
    detail: str


VaicEvent = (
    Accepted
    | Refused
    | Validated
    | UserStreamAck
    | Speech
    | PlayStarted
    | PlayChunk
    | PlayStopped
    | BotActivity
    | Violation
)


class Vaic:
    """One conversation as VAIC sees it, over as many sockets as it takes: `resume` begins the next one."""

    def __init__(self) -> None:
        self.state: Literal["new", "waiting", "accepted", "ended"] = "new"
        self.conversation_id = ""
        self.media_format = ""
        self.stream_open = False
        """The bot has acknowledged `userStream.start`: chunks may be sent."""
        self._offered: tuple[str, ...] = FORMATS
        self._resuming = False
        self._validating = 0
        self._asked: list[tuple[str, str | None]] = []
        self._participants: set[str] = set()
        self._speaking: bool | None = False  # None: not known, after a resume
        self._ids: set[str] = set()
        self._play = ""
        self._inbound: Inbound | None = None
        self._wav_due: bool | None = None

    # ---- sending ----------------------------------------------------------------------------------------------

    def validate(self) -> bytes:
        """The administrator's check, on a socket of its own (§1.5)."""
        self._validating += 1
        return dump({"type": "connection.validate"})

    def initiate(
        self,
        conversation_id: str,
        caller: str | None,
        bot_name: str | None,
        formats: Sequence[str] = FORMATS,
        expect_audio: bool = True,
    ) -> bytes:
        """The first message of a call (§2.1). None is sent as null, which real senders have been seen to do."""
        self._need("session.initiate", "new")
        self.conversation_id, self._offered, self.state = conversation_id, tuple(formats), "waiting"
        return dump(
            {
                "type": "session.initiate",
                "conversationId": conversation_id,
                "botName": bot_name,
                "caller": caller,
                "expectAudioMessages": expect_audio,
                "supportedMediaFormats": list(formats),
            }
        )

    def resume(self, conversation_id: str | None = None) -> bytes:
        """The first message on a new socket (§3). The play stream is gone; the caller's stays as it was.

        So the owner may go on with chunks at once, or begin a new stream: bots have to cope with both.
        """
        if conversation_id is not None:
            self.conversation_id = conversation_id
        self.state, self._resuming, self._speaking = "waiting", True, None
        self._play, self._inbound, self._wav_due, self._validating = "", None, None, 0
        self._asked.clear()
        return dump({"type": "session.resume", "conversationId": self.conversation_id})

    def session_end(self, reason_code: str | None = None, reason: str | None = None) -> bytes:
        """The last message of the call (§4)."""
        self._need("session.end", "waiting", "accepted")
        self.state = "ended"
        return self._message("session.end", reasonCode=reason_code, reason=reason)

    def user_stream_start(self, participant: str | None = None) -> bytes:
        """The caller is to be heard; chunks may follow once `UserStreamAck(True)` has come."""
        return self._user_stream("start", participant)

    def user_stream_stop(self, participant: str | None = None) -> bytes:
        """The caller is not to be heard for a while; no chunk may follow."""
        self.stream_open = False
        return self._user_stream("stop", participant)

    def user_chunk(self, data: bytes, participant: str | None = None) -> bytes:
        """Caller audio, of any length.

        Raises:
            LocalProtocolError: the bot has not acknowledged a stream.
        """
        if not self.stream_open:
            raise LocalProtocolError("userStream.chunk before userStream.started")
        audio = binascii.b2a_base64(data, newline=False).decode("ascii")
        return self._message("userStream.chunk", audioChunk=audio, participant=participant)

    def activities(self, activities: Sequence[JSON]) -> bytes:
        """Activities as they are; ids and timestamps are the owner's to add (§7.1)."""
        return self._message("activities", activities=list(activities))

    def _user_stream(self, verb: str, participant: str | None) -> bytes:
        self._need(f"userStream.{verb}", "waiting", "accepted")
        self._asked.append(("started" if verb == "start" else "stopped", participant))
        if participant is not None:
            self._participants.add(participant)
        return self._message(f"userStream.{verb}", participant=participant)

    def _message(self, kind: str, **fields: Any) -> bytes:
        given = {name: value for name, value in fields.items() if value is not None}
        return dump({"type": kind, "conversationId": self.conversation_id, **given})

    def _need(self, what: str, *states: str) -> None:
        if self.state not in states:
            raise LocalProtocolError(f"{what} in state {self.state}")

    # ---- receiving --------------------------------------------------------------------------------------------

    def receive(self, text: str | bytes) -> list[VaicEvent]:
        """What the bot said, and what is wrong with it. Never raises; a wrong message has no other effect."""
        message = parse(text)
        if isinstance(message, Skipped):
            return [Violation(message.code, message.detail)]
        kind: str = message["type"]
        reader = _READERS.get(kind)
        if reader is None:
            if not kind.startswith("userStream.speech."):
                return [Violation("unknown_type", word(kind))]
            reader = Vaic._speech
        events: list[VaicEvent] = [
            Violation("null_field", f"{word(name)} in {word(kind)}") for name, value in message.items() if value is None
        ]
        if self.state == "ended":
            return [*events, Violation("after_end", word(kind))]
        if self.state != "accepted" and not kind.startswith(("session.", "connection.")):
            return [*events, Violation("before_accepted", word(kind))]
        try:
            events += reader(self, message)
        except _Broken as broken:
            events.append(broken.violation)
        return events

    def _validated(self, message: JSON) -> list[VaicEvent]:
        success = _field(message, "success", bool)
        if not self._validating:
            raise _Broken("unrequested", "connection.validated")
        self._validating -= 1
        return [Validated(success)]

    def _accepted(self, message: JSON) -> list[VaicEvent]:
        if self.state != "waiting":
            raise _Broken("unrequested", "session.accepted")
        found: str | None = _optional(message, "mediaFormat", str)
        if found is None and not self._resuming:
            raise _Broken("bad_field", "session.accepted without mediaFormat")
        if found is not None and found not in self._offered:
            raise _Broken("format_not_offered", f"session.accepted with {word(found)}")
        self.media_format = found or self.media_format
        self.state, self._resuming = "accepted", False
        return [Accepted(self.media_format)]

    def _error(self, message: JSON) -> list[VaicEvent]:
        self.state, self._play = "ended", ""
        return [Refused(_field(message, "reason", str))]

    def _ack(self, message: JSON) -> list[VaicEvent]:
        which = message["type"].removeprefix("userStream.")
        participant: str | None = _optional(message, "participant", str)
        names = [asked for kind, asked in self._asked if kind == which]
        if not names:
            raise _Broken("unrequested", message["type"])
        events: list[VaicEvent] = []
        if participant not in names:
            events.append(Violation("not_echoed", f"{message['type']} for another participant"))
        self._asked.remove((which, participant if participant in names else names[0]))
        # An acknowledgement of a stream that we have stopped meanwhile opens nothing.
        if which == "started" and ("stopped", participant) not in self._asked:
            self.stream_open = True
        return [*events, UserStreamAck(which == "started", participant)]

    def _speech(self, message: JSON) -> list[VaicEvent]:
        kind = message["type"].removeprefix("userStream.speech.")
        text, confidence = "", None
        if kind in ("hypothesis", "recognition"):
            alternatives: list[Any] = _field(message, "alternatives", list)
            if not alternatives or not isinstance(alternatives[0], dict):
                raise _Broken("bad_field", "alternatives is not a list of objects")
            text = _field(alternatives[0], "text", str)
            if kind == "recognition":
                confidence = float(_field(alternatives[0], "confidence", (int, float)))
        elif kind not in ("started", "stopped", "committed"):
            raise _Broken("unknown_type", word(message["type"]))
        participant: str | None = _optional(message, "participant", str)
        events: list[VaicEvent] = []
        if self._participants and participant not in self._participants:
            events.append(Violation("not_echoed", f"{message['type']} for another participant"))
        if kind in ("started", "stopped"):
            if self._speaking == (kind == "started"):
                events.append(Violation("unpaired_speech", f"speech.{kind} twice in a row"))
            self._speaking = kind == "started"
        return [*events, Speech(kind, text, confidence, participant)]

    def _play_start(self, message: JSON) -> list[VaicEvent]:
        stream_id: str = _field(message, "streamId", str)
        token: str = _field(message, "mediaFormat", str)
        params: JSON | None = _optional(message, "activityParams", dict)
        alt_text: str | None = _optional(message, "altText", str)
        if token not in self._offered:
            raise _Broken("format_not_offered", f"playStream.start with {word(token)}")
        events: list[VaicEvent] = []
        if self._play:
            events.append(Violation("two_streams", f"{word(stream_id)} begins while {word(self._play)} is open"))
        if not stream_id or stream_id in self._ids:
            events.append(Violation("id_reused", f"playStream.start with {word(stream_id)}"))
        self._ids.add(stream_id)
        fmt = media(token)
        self._play, self._inbound, self._wav_due = stream_id, Inbound(fmt), fmt.wav
        return [*events, PlayStarted(stream_id, token, alt_text, params)]

    def _play_chunk(self, message: JSON) -> list[VaicEvent]:
        stream_id: str = _field(message, "streamId", str)
        data = decode_audio(message.get("audioChunk"))
        if isinstance(data, Skipped):
            raise _Broken(data.code, data.detail)
        if self._inbound is None or stream_id != self._play:
            raise _Broken("chunk_outside_stream", f"{len(data)} bytes for {word(stream_id)}")
        events: list[VaicEvent] = []
        # Exactly the first chunk of a wav stream has a header (§2.2): the cautious reading of an unclear rule.
        if data.startswith(b"RIFF") != bool(self._wav_due):
            events.append(Violation("wav_header", f"{'no' if self._wav_due else 'a'} header in a chunk of {stream_id}"))
        self._wav_due = False
        audio = self._inbound.feed(data)
        if self._inbound.halved:
            events.append(Violation("half_sample", f"{len(data)} bytes for {word(stream_id)}"))
        return [*events, PlayChunk(stream_id, audio)] if audio else events

    def _play_stop(self, message: JSON) -> list[VaicEvent]:
        stream_id: str = _field(message, "streamId", str)
        if not self._play or stream_id != self._play:
            raise _Broken("stop_outside_stream", word(stream_id))
        self._play, self._inbound = "", None
        return [PlayStopped(stream_id)]

    def _activities(self, message: JSON) -> list[VaicEvent]:
        events: list[VaicEvent] = []
        for item in _field(message, "activities", list):
            if not isinstance(item, dict) or not isinstance(item.get("type"), str):
                events.append(Violation("bad_field", "an activity is not an object with a type"))
                continue
            nulls = [word(name) for name, value in item.items() if value is None]
            events += [Violation("null_field", f"{name} in an activity") for name in nulls]
            events.append(BotActivity(item))
        return events


class _Broken(Exception):
    """A message that cannot be taken at all; never leaves `receive`."""

    def __init__(self, rule: str, detail: str) -> None:
        self.violation = Violation(rule, detail)
        super().__init__(rule)


def _field(message: JSON, name: str, kind: type | tuple[type, ...]) -> Any:
    value = message.get(name)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise _Broken("bad_field", f"{name} is {'absent' if value is None else 'a ' + type(value).__name__}")
    return value


def _optional(message: JSON, name: str, kind: type) -> Any:
    return None if message.get(name) is None else _field(message, name, kind)


_READERS: Final[dict[str, Callable[[Vaic, JSON], list[VaicEvent]]]] = {
    "connection.validated": Vaic._validated,
    "session.accepted": Vaic._accepted,
    "session.error": Vaic._error,
    "userStream.started": Vaic._ack,
    "userStream.stopped": Vaic._ack,
    "playStream.start": Vaic._play_start,
    "playStream.chunk": Vaic._play_chunk,
    "playStream.stop": Vaic._play_stop,
    "activities": Vaic._activities,
}
