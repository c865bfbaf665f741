"""Our side of the Bot API: what VAIC sends becomes events, what we want to say becomes frames.

    new ──Initiate/Resume──▶ initiated ──accepted()──▶ accepted ──SessionEnd──▶ ended
     ▲                           └──────────error()──────────┴────error()────────▲
     └── new_socket() from any state but ended

Reading is forgiving: whatever arrives, `receive` answers with events and never raises. Writing is strict: a sender
called at the wrong moment raises `LocalProtocolError`, since that is a mistake of ours.
"""

from __future__ import annotations

import binascii
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Literal, NoReturn

from bridge_shared.protocol.audiocodes_messages import (
    JSON,
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
    decode_audio,
    dump,
    parse,
    short_text,
    strings,
    valid_id,
    word,
)
from bridge_shared.protocol.media import Media, MediaFormat, media, wav_header

BotState = Literal["new", "initiated", "accepted", "ended"]

MAX_ACTIVITIES: Final = 64
"""Per message. VAIC sends one or two; the limit keeps one message from becoming tens of thousands of frames."""


class Bot:
    """One conversation as the bot sees it. It may outlive its socket: see `new_socket`."""

    def __init__(self) -> None:
        self.state: BotState = "new"
        self.conversation_id = ""
        self.media_format: MediaFormat | None = None
        """What caller audio is coded in, once accepted."""
        self._offered: tuple[str, ...] | None = None
        self._resuming = False
        self._end_seen = False
        # Caller audio: who has a stream open, and the acknowledgements owed, oldest first.
        self._open: set[str | None] = set()
        self._stream_unknown = False
        self._owed: deque[tuple[str, str | None]] = deque()
        self._speaker: str | None = None
        # Agent audio.
        self._used_ids: set[str] = set()
        self._play: Media | None = None
        self._play_id = b""
        self._chunk_head = b""
        self._wav_head = b""

    @property
    def play_open(self) -> bool:
        """Whether a play stream waits for its `play_stop`."""
        return self._play is not None

    def is_caller(self, participant: str | None) -> bool:
        """Whether a message with this participant is about the one who counts as the caller, as one without any is: of
        several (agent-assist, §2.5) the first to open a stream, or to be heard. Speech events are about this one."""
        return participant is None or self._speaker in (None, participant)

    def new_socket(self) -> None:
        """VAIC came back on a new socket: expect `session.resume` (§3, rule 4).

        The old play stream is gone (its id stays used), acknowledgements owed are dropped, and caller audio is
        accepted with or without a new `userStream.start`.
        """
        if self.state == "ended":
            raise LocalProtocolError("a new socket for a conversation that has ended")
        self.state = "new"
        self._play = None
        self._forget_user_streams()

    # ---- reading ----------------------------------------------------------------------------------------------

    def receive(self, text: str | bytes) -> list[BotEvent]:
        """The events in one frame; none for an empty chunk or a mark. Never raises."""
        message = parse(text)
        if isinstance(message, Skipped):
            return [message]
        kind: str = message["type"]
        if kind == "userStream.chunk":
            return self._user_chunk(message)
        reader = _READERS.get(kind)
        if reader is None:
            return [Skipped("unknown_type", word(kind))]
        return reader(self, message)

    def _user_chunk(self, message: JSON) -> list[BotEvent]:
        problem = self._misplaced(message, audio=True)
        if problem is not None:
            return [problem]
        if not self._open and not self._stream_unknown:
            return [Skipped("out_of_order", "userStream.chunk outside a user stream")]
        data = decode_audio(message.get("audioChunk"))
        if isinstance(data, Skipped):
            return [data]
        self._speaker = self._speaker or message.get("participant")
        return [UserAudio(data, message.get("participant"))] if data else []

    def _user_start(self, message: JSON) -> list[BotEvent]:
        problem = self._misplaced(message, audio=True)
        if problem is not None:
            return [problem]
        participant = message.get("participant")
        # A second start without a stop is answered again: after a resume it is legitimate (§3, rule 4).
        self._stream_unknown = False
        self._open.add(participant)
        self._speaker = self._speaker or participant
        self._owed.append(("userStream.started", participant))
        return [UserStreamStarted(participant)]

    def _user_stop(self, message: JSON) -> list[BotEvent]:
        problem = self._misplaced(message, audio=True)
        if problem is not None:
            return [problem]
        participant = message.get("participant")
        self._stream_unknown = False
        self._open.discard(participant)
        self._owed.append(("userStream.stopped", participant))
        return [UserStreamStopped(participant)]

    def _activities(self, message: JSON) -> list[BotEvent]:
        problem = self._misplaced(message, audio=False)
        if problem is not None:
            return [problem]
        found = message.get("activities")
        if not isinstance(found, list):
            return [Skipped("bad_field", f"activities is a {type(found).__name__} instead of a list")]
        good = [item for item in found if _is_activity(item)]
        events: list[BotEvent] = [ActivityReceived(item) for item in good[:MAX_ACTIVITIES]]
        if len(good) > MAX_ACTIVITIES:
            events.append(Skipped("too_many", f"{len(good)} activities in one message, {MAX_ACTIVITIES} taken"))
        if len(good) < len(found):
            events.append(Skipped("bad_field", f"{len(found) - len(good)} of {len(found)} activities are malformed"))
        return events

    def _validate(self, message: JSON) -> list[BotEvent]:
        return [Validate()] if self.state == "new" else [self._out_of_order(message)]

    def _initiate(self, message: JSON) -> list[BotEvent]:
        if self.state != "new":
            return [self._out_of_order(message)]
        cid, formats, known = self._identify(message)
        self._offered = formats or self._offered
        expect_audio = message.get("expectAudioMessages") is not False
        caller, bot_name = short_text(message.get("caller")), short_text(message.get("botName"))
        return [Initiate(cid, caller, bot_name, expect_audio, formats, message, known)]

    def _resume(self, message: JSON) -> list[BotEvent]:
        if self.state != "new":
            return [self._out_of_order(message)]
        cid, formats, known = self._identify(message)  # formats change nothing now: one was agreed at the beginning
        self._resuming = self._stream_unknown = True
        return [Resume(cid, formats, known)]

    def _identify(self, message: JSON) -> tuple[str, tuple[str, ...] | None, bool]:
        """Takes the first message of a socket: conversation id, formats, and whether the id can be used."""
        given, formats = message.get("conversationId"), strings(message.get("supportedMediaFormats"))
        known = valid_id(given) and self.conversation_id in ("", given)
        if known:
            self.conversation_id = given if isinstance(given, str) else ""
        self.state = "initiated"
        self._resuming = False
        return short_text(given) or "", formats, known

    def _end(self, message: JSON) -> list[BotEvent]:
        if self.state == "new" or self._end_seen:
            return [self._out_of_order(message)]
        if not self._ours(message):
            return [_OTHER_CALL]
        self._end_seen = True
        self._finish()
        return [SessionEnd(short_text(message.get("reasonCode")), short_text(message.get("reason"), 1024))]

    def _mark(self, message: JSON) -> list[BotEvent]:
        return []  # accepted and ignored: its fields are not known (§6.7)

    def _misplaced(self, message: JSON, *, audio: bool) -> Skipped | None:
        """Why an in-call message cannot be taken now.

        Before `accepted()` activities are taken, and audio too if the call is being resumed: VAIC may go on at once.
        """
        if self.state != "accepted" and not (self.state == "initiated" and (self._resuming or not audio)):
            return self._out_of_order(message)
        if not self._ours(message):
            return _OTHER_CALL
        participant = message.get("participant")
        if participant is not None and not isinstance(participant, str):
            return Skipped("bad_field", f"participant is a {type(participant).__name__} instead of a string")
        return None

    def _ours(self, message: JSON) -> bool:
        given = message.get("conversationId")
        return given is None or given == self.conversation_id

    def _out_of_order(self, message: JSON) -> Skipped:
        return Skipped("out_of_order", f"{word(message['type'])} in state {self.state}")

    # ---- writing ----------------------------------------------------------------------------------------------

    def validated(self) -> bytes:
        """The answer to `Validate`: this bot can be reached and takes calls."""
        self._need("connection.validated", "new")
        return b'{"type":"connection.validated","success":true}'

    def accepted(self, media_format: str) -> bytes:
        """Takes the call; caller audio comes in this format. On a resume, the format agreed at the beginning."""
        self._need("session.accepted", "initiated")
        self.media_format = self._known_format("session.accepted", media_format).token
        self.state = "accepted"
        return dump({"type": "session.accepted", "mediaFormat": media_format})

    def error(self, reason: str, conversation_id: str | None = None) -> bytes:
        """Refuses the call, or gives it up at any later time; VAIC then disconnects the caller (§2.4)."""
        self._need("session.error", "new", "initiated", "accepted")
        self._finish()
        message: JSON = {"type": "session.error", "reason": reason}
        if conversation_id is not None:
            message["conversationId"] = conversation_id
        return dump(message)

    def stream_started(self) -> bytes:
        """The answer to the oldest unanswered `UserStreamStarted`."""
        return self._acknowledge("userStream.started")

    def stream_stopped(self) -> bytes:
        """The answer to the oldest unanswered `UserStreamStopped`."""
        return self._acknowledge("userStream.stopped")

    def owed(self) -> list[bytes]:
        """Every acknowledgement still owed, in order. For a resumed call, whose VAIC may not wait for `accepted()`."""
        return [self._acknowledge(name) for name, _ in list(self._owed)]

    def speech_started(self) -> bytes:
        """The caller began to speak; with barge-in on, VAIC stops playing (§6.5)."""
        return self._speech("started")

    def speech_stopped(self) -> bytes:
        """The caller stopped speaking."""
        return self._speech("stopped")

    def hypothesis(self, text: str) -> bytes:
        """What the caller seems to be saying."""
        return self._speech("hypothesis", [{"text": text}])

    def recognition(self, text: str, confidence: float = 1.0) -> bytes:
        """What the caller said; `confidence` from 0 to 1."""
        return self._speech("recognition", [{"text": text, "confidence": confidence}])

    def committed(self) -> bytes:
        """What the caller said was handed to the agent."""
        return self._speech("committed")

    def play_start(
        self, stream_id: str, media_format: str, alt_text: str | None = None, activity_params: JSON | None = None
    ) -> bytes:
        """Opens the play stream of one utterance. Its id has to be new in this conversation (§6.2).

        On a resume in another process the ids used there are not known here: choose ids that cannot meet.
        """
        self._need("playStream.start", "accepted")
        if self._play is not None:
            self._illegal("playStream.start", "another play stream is open")
        if not valid_id(stream_id) or stream_id in self._used_ids:
            self._illegal("playStream.start", f"the stream id {stream_id!r} was used before, or is no plain word")
        fmt = self._known_format("playStream.start", media_format)
        message: JSON = {"type": "playStream.start", "streamId": stream_id, "mediaFormat": media_format}
        if alt_text is not None:
            message["altText"] = alt_text
        if activity_params is not None:
            message["activityParams"] = activity_params
        frame = dump(message)
        self._used_ids.add(stream_id)
        self._play = fmt
        self._play_id = stream_id.encode("ascii")
        self._chunk_head = b'{"type":"playStream.chunk","streamId":"' + self._play_id + b'","audioChunk":"'
        self._wav_head = wav_header(fmt) if fmt.wav else b""
        return frame

    def play_chunk(self, data: bytes) -> bytes:
        """Audio for the open play stream, in whole samples and without a header (`wav/*` gets it here)."""
        if self._play is None or self.state != "accepted":
            self._illegal("playStream.chunk", "no play stream is open")
        if len(data) % self._play.sample_bytes:
            self._illegal("playStream.chunk", f"{len(data)} bytes are not whole samples of {self._play.token}")
        if self._wav_head:
            data, self._wav_head = self._wav_head + data, b""
        return self._chunk_head + binascii.b2a_base64(data, newline=False) + b'"}'

    def play_stop(self) -> bytes:
        """Ends the play stream. VAIC plays what it has (§6.4) and then listens to the caller again."""
        if self._play is None or self.state != "accepted":
            self._illegal("playStream.stop", "no play stream is open")
        self._play = None
        return b'{"type":"playStream.stop","streamId":"' + self._play_id + b'"}'

    def activities(self, activities: Sequence[JSON]) -> bytes:
        """One or several activities, carried out in order. Fields of an activity that are None are left out."""
        self._need("activities", "accepted")
        if not activities:
            self._illegal("activities", "the list is empty")
        shown = [{name: value for name, value in item.items() if value is not None} for item in activities]
        return dump({"type": "activities", "activities": shown})

    def _speech(self, kind: str, alternatives: list[JSON] | None = None) -> bytes:
        name = f"userStream.speech.{kind}"
        self._need(name, "accepted")
        message: JSON = {"type": name}
        if self._speaker is not None:
            message["participant"] = self._speaker
        if alternatives is not None:
            message["alternatives"] = alternatives
        return dump(message)

    def _acknowledge(self, name: str) -> bytes:
        self._need(name, "accepted")
        for entry in self._owed:
            if entry[0] == name:
                break
        else:
            self._illegal(name, "nothing waits for it")
        self._owed.remove(entry)
        participant = entry[1]
        return dump({"type": name} if participant is None else {"type": name, "participant": participant})

    def _known_format(self, what: str, token: str) -> Media:
        try:
            found = media(token)
        except ValueError as error:
            raise LocalProtocolError(f"{what}: {error}") from error
        if self._offered is not None and token not in self._offered:
            self._illegal(what, f"{token} was not offered")
        return found

    def _need(self, what: str, *states: BotState) -> None:
        if self.state not in states:
            self._illegal(what, "not the moment for it")

    def _illegal(self, what: str, why: str) -> NoReturn:
        raise LocalProtocolError(f"{what} in state {self.state}: {why}")

    def _finish(self) -> None:
        self.state = "ended"
        self._play = None
        self._forget_user_streams()

    def _forget_user_streams(self) -> None:
        self._open.clear()
        self._owed.clear()
        self._stream_unknown = False


_OTHER_CALL: Final = Skipped("other_call", "the conversation id is not the one of this socket")

_READERS: Final[dict[str, Callable[[Bot, JSON], list[BotEvent]]]] = {
    "connection.validate": Bot._validate,
    "session.initiate": Bot._initiate,
    "session.resume": Bot._resume,
    "session.end": Bot._end,
    "userStream.start": Bot._user_start,
    "userStream.stop": Bot._user_stop,
    "activities": Bot._activities,
    "playStream.mark.reached": Bot._mark,
}


def _is_activity(item: object) -> bool:
    if not isinstance(item, dict) or not isinstance(item.get("type"), str):
        return False
    return isinstance(item.get("name"), str) or item["type"].lower() != "event"
