"""VAIC's part in one call, without sockets: the machines for messages, playing, listening and the microphone together.

Frames and `now` (monotonic seconds) in, frames to send out. It behaves as the Bot API reference §8.4 says; where the
reference leaves VAIC's behaviour open, the choice made here is named at its place.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final, Literal

from bridge_shared.protocol.audiocodes import (
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
from bridge_shared.protocol.media import media
from bridge_sim.floor import ACKNOWLEDGE_S, Floor
from bridge_sim.microphone import Microphone
from bridge_sim.plan import CallPlan
from bridge_sim.playclock import PlayClock, Played
from bridge_sim.report import CallEvent, CallReport, Heard

JSON = dict[str, Any]
Continue = Literal["fresh", "continue"]

SETTLE_S: Final = 0.5
"""An answer is over when the agent has been silent for so long; VAIC opens the user stream after the same time."""
CROSSING_S: Final = 1.0
"""Messages of the bot may have crossed our session.end for so long."""


class Line:
    """One conversation over as many sockets as it takes.

    Args:
        plan: how this VAIC is configured; the prompts in it are the owner's business.
        stamp: gives the `id` and `timestamp` of an activity.
        tell: called with every event worth showing.
    """

    def __init__(
        self, plan: CallPlan, conversation_id: str, stamp: Callable[[], JSON], tell: Callable[[CallEvent], None]
    ) -> None:
        self.plan = plan
        self.report = CallReport(conversation_id)
        self.validated: bool | None = None
        self.accepted = False
        """The bot has taken the call, on the present socket."""
        self.end = ""
        self.vaic = Vaic()
        self.clock = PlayClock()
        self.floor = Floor(plan.barge_in)
        self.started_at = math.inf  # when the start activity goes, or went, out
        self._stamp, self._tell = stamp, tell
        self._start_sent = False
        self._mic: Microphone | None = None
        self._stream: Continue = "fresh"
        self._ended_at = math.inf
        self._silent_since = -math.inf
        self._settles_at = math.inf
        self._opened_at = -math.inf  # when the open play stream was opened
        self._spoke_at = self._spoke_until = math.inf
        self._answered = True
        self._sent = bytearray()
        self._out: list[bytes] = []

    # ---- what the owner asks -----------------------------------------------------------------------------------

    @property
    def heard_anything(self) -> bool:
        """A play stream was opened."""
        return bool(self.clock.streams)

    @property
    def answered(self) -> bool:
        """Audio in answer to the last words has come."""
        return self._answered

    def quiet(self, now: float) -> bool:
        """The agent has finished, and has been silent for a moment."""
        return not self.clock.busy and now >= self._silent_since + SETTLE_S

    def playing_for(self, now: float) -> float:
        """Seconds since the play stream that is heard now began; 0 if there is none."""
        for stream in self.clock.streams:
            if stream.status is None and stream.runs:
                return now - stream.runs[0][0]
        return 0.0

    def deadline(self) -> float:
        """When `tick` should be called, at the latest."""
        if self.end:
            return math.inf
        moments = [self.clock.deadline(), self._settles_at]
        if self.accepted:
            moments += [self.floor.deadline(), self._mic.deadline() if self._mic else math.inf]
            if not self._start_sent:
                moments.append(self.started_at)
        return min(moments)

    # ---- what the owner does -----------------------------------------------------------------------------------

    def validate(self) -> bytes:
        """The administrator's check, instead of a call."""
        return self.vaic.validate()

    def initiate(self) -> bytes:
        """Place the call."""
        plan = self.plan
        return self.vaic.initiate(self.report.conversation_id, plan.caller, plan.bot_name, plan.formats)

    def resume(self, stream: Continue) -> bytes:
        """Go on over a new socket, with a fresh user stream or with the old one (§3, variants a and b)."""
        self._stream = stream
        return self.vaic.resume(self.report.conversation_id)

    def lost(self, now: float) -> None:
        """The socket is gone. What was received is played to the end; caller audio is lost until the resume."""
        self.accepted = False
        self.floor.new_socket()
        if self._mic:
            self._mic.close(now)
        self._over(self.clock.stop(now), now)

    def say(self, audio: bytes, text: str, now: float) -> float:
        """The caller speaks, heard or not. Returns the moment of the last sample."""
        if self._mic is None:
            raise RuntimeError("there is no audio format before session.accepted")
        self._spoke_at, self._spoke_until = now, self._mic.say(audio, now)
        self._answered = False
        self._tell(CallEvent("says", text))
        return self._spoke_until

    def press(self, keys: str, now: float) -> bytes:
        """The caller presses keys: one DTMF event with all of them. What the bot says next answers them."""
        self._spoke_at = self._spoke_until = now
        self._answered = False
        self._tell(CallEvent("presses", keys))
        return self.activity({"type": "event", "name": "DTMF", "value": keys})

    def activity(self, activity: JSON) -> bytes:
        """An activity from VAIC, completed with what every activity has (§7.1)."""
        return self.vaic.activities([{"language": "any-CI", **self._stamp(), **activity}])

    def hang_up(self, reason_code: str, reason: str, now: float) -> bytes:
        """End the call."""
        self._finish(reason_code, now)
        return self.vaic.session_end(reason_code, reason)

    def violation(self, rule: str, detail: str) -> None:
        """Record something wrong that only the owner can see."""
        self.report.violations.append(Violation(rule, detail))
        self._tell(CallEvent("violation", f"{rule}: {detail}"))

    def final_report(self, began: float, now: float) -> CallReport:
        """The report of a call that began at that moment."""
        report = self.report
        report.media_format = self.vaic.media_format
        report.heard = [Heard.of(played, began) for played in self.clock.streams]
        report.gaps = [gap for played in self.clock.streams for gap in played.gaps]
        report.max_lead_ms = self.clock.max_lead_ms
        report.sent_audio = bytes(self._sent)
        report.end = self.end
        report.seconds = min(now, self._ended_at) - began
        return report

    # ---- time --------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> list[bytes]:
        """What VAIC does by itself by now."""
        if self.end:
            return []
        self._over(self.clock.tick(now), now)
        if now >= self._settles_at:
            self._settles_at = math.inf  # only the owner, who is woken by this, has something to do
        if self.accepted:
            if not self._start_sent and now >= self.started_at:
                self._start_sent = True
                self._out.append(self.activity({"type": "event", "name": "start", "parameters": self._parameters()}))
                self.floor.call_started(now)
            for action in self.floor.tick(now):
                if action == "late":
                    self.violation("late_acknowledgement", f"a user stream waited {ACKNOWLEDGE_S:g} s for its answer")
                else:
                    self._user_stream(action == "open", now)
            for chunk in self._mic.take(now) if self._mic else ():
                self._sent += chunk
                self._out.append(self.vaic.user_chunk(chunk, self.plan.participant))
        return self._taken()

    def _parameters(self) -> JSON:
        plan, cid = self.plan, self.report.conversation_id
        found: JSON = {"vaigConversationId": cid, "callee": "+4930654321", "calleeHost": "sbc.example.net"}
        if plan.caller is not None:
            found |= {"caller": plan.caller, "callerHost": "sbc.example.net"}
        if plan.participant is not None:
            found["participants"] = [{"participant": plan.participant, "uriUser": plan.caller or ""}]
        return {**found, "locale": "any-CI", **plan.start_parameters}

    def _user_stream(self, opens: bool, now: float) -> None:
        if self._mic is None:
            return
        self.floor.asked(now)
        if opens:
            self._out.append(self.vaic.user_stream_start(self.plan.participant))
            self._mic.open(now)
        else:
            self._out.append(self.vaic.user_stream_stop(self.plan.participant))
            self._mic.close(now)
            self._tell(CallEvent("muted"))

    # ---- the bot's messages ------------------------------------------------------------------------------------

    def receive(self, frame: str | bytes, now: float) -> list[bytes]:
        """One frame from the bot, and what VAIC sends because of it."""
        for event in self.vaic.receive(frame):
            self._react(event, now)
        return self._taken()

    def _react(self, event: VaicEvent, now: float) -> None:
        match event:
            case PlayChunk(_, data):
                if not self._answered and self._opened_at >= self._spoke_at:
                    self._answered = True
                    self.report.answer_ms.append(max(0.0, now - self._spoke_until) * 1000)
                self._over(self.clock.chunk(data, now), now)
            case PlayStarted(stream_id, media_format, alt_text, _):
                self._opened_at = now
                self._over(self.clock.start(stream_id, media(media_format), now), now)
                self.floor.play_started(now)
                if alt_text is not None:
                    self.report.transcript.append(("assistant", alt_text))
                self._tell(CallEvent("plays", alt_text or "", {"stream_id": stream_id}))
            case PlayStopped():
                self._over(self.clock.stop(now), now)
            case UserStreamAck(started):
                self.floor.acknowledged()
                if started and self.vaic.stream_open and self._mic:
                    self._mic.acknowledged()
                    self._tell(CallEvent("listening"))
            case Speech(kind, text, confidence):
                self._speech(kind, text, confidence, now)
            case BotActivity(activity):
                self.report.activities.append(activity)
                self._tell(CallEvent("activity", str(activity.get("name", "")), activity))
                if activity["type"].lower() == "event" and not self.end:
                    self._carry_out(activity, now)
            case Accepted(media_format):
                self._taken_call(media_format, now)
            case Refused(reason):
                self._finish("refused", now)
                self.report.problem = self.report.problem or f"the bot sent session.error: {reason}"
                self._tell(CallEvent("refused", reason))
            case Validated(success):
                self.validated = success
            case Violation(rule, detail):
                # Refused by the bot itself: then nothing of it can have crossed our end.
                crossed = rule == "after_end" and self.end != "refused" and now < self._ended_at + CROSSING_S
                if not crossed:
                    self.violation(rule, detail)

    def _taken_call(self, media_format: str, now: float) -> None:
        self.accepted = True
        if self._mic is None:
            self._mic = Microphone(media(media_format), now, self.plan.chunk_ms)
            self.started_at = now + self.plan.start_delay_s
            self._tell(CallEvent("accepted", media_format, {"conversation_id": self.report.conversation_id}))
            return
        self._tell(CallEvent("resumed", media_format))
        if self.floor.open and self._stream == "continue" and self.vaic.stream_open:
            self._mic.open(now)
            self._mic.acknowledged()
        elif self.floor.open:
            self._user_stream(True, now)

    def _speech(self, kind: str, text: str, confidence: float | None, now: float) -> None:
        if kind == "recognition":
            self.report.transcript.append(("user", text))
            self._tell(CallEvent("recognised", text, {"confidence": confidence}))
            return
        self._tell(CallEvent("speech", kind))
        if kind == "started" and self.floor.barge_in:
            self._discard(now)

    def _discard(self, now: float) -> None:
        over = self.clock.discard(now)
        if over and not self._answered and self._spoke_at <= now:
            self.report.cut_ms.append((now - self._spoke_at) * 1000)
        self._over(over, now)

    def _carry_out(self, activity: JSON, now: float) -> None:
        parameters = activity.get("sessionParams")
        if isinstance(parameters, dict) and isinstance(parameters.get("bargeIn"), bool):
            self.floor.allow_barge_in(parameters["bargeIn"], now)
        match str(activity.get("name", "")):
            case "hangup":
                # Whether a hangup lets queued audio play out is not documented (§4): the strict choice is that it cuts.
                self._out.append(self.hang_up("bot-disconnected", "Bot Side", now))
            case "transfer" | "handover" if self.plan.transfer_fails:
                value = {"status": "failed", "reasonCode": "busy", "reason": "486 Busy Here"}
                self._out.append(self.activity({"type": "event", "name": "transferStatus", "value": value}))
            case "transfer" | "handover":
                self._out.append(self.hang_up("transferred", "Transferred", now))
            case "abortPrompts":
                self._discard(now)

    def _over(self, streams: list[Played], now: float) -> None:
        """Report play streams that are over to the bot, and the floor to its control once it is free."""
        for played in streams:
            duration, status = round(played.ms), played.status or ""
            self._tell(CallEvent("played" if status == "finished" else status, "", {"ms": duration}))
            # Without a socket it is not sent, nor later: nothing documented says that VAIC repeats messages (§3).
            if self.plan.play_finished and self.accepted and not self.end:
                value = {"playedDurationMS": duration, "status": status}
                self._out.append(self.activity({"type": "event", "name": "playFinished", "value": value}))
        if streams and not self.clock.busy:
            self._silent_since = streams[-1].ended_at
            self._settles_at = self._silent_since + SETTLE_S
            self.floor.play_ended(self._silent_since)

    def _finish(self, end: str, now: float) -> None:
        self.end, self._ended_at, self.accepted = end, now, False
        if self._mic:
            self._mic.close(now)
        self.clock.discard(now)
        self._tell(CallEvent("ended", end))

    def _taken(self) -> list[bytes]:
        out, self._out = self._out, []
        return out
