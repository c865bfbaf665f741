"""What each event of the agent does to the call: to the caller's ear, the transcript, and the handlers.

Wire before handlers (SDK reference §5.2 rule 3): what the caller or VAIC must learn is sent first.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from bridge_shared import logs, metrics, tracing
from bridge_shared.errors import AgentFailed
from bridge_shared.frames import Kind
from bridge_shared.protocol import deepgram as dg
from bridge_shared.redis.calls import Line
from bridge_shared.types import deepgram as types
from bridge_shared.types import extra
from bridge_worker.functions import Record
from bridge_worker.recovery import CHARACTERS_PER_SECOND, Echo, Recovery, recover
from bridge_worker.speech import GoesOn, LineHeard, TurnOver

if TYPE_CHECKING:
    from bridge_worker.conversation import Conversation

log = logs.get("worker.agent")

WHOLE = 0.8
"""Of the time that a line takes at the usual speed: so much of it may be all of it, from a voice that is fast."""

REFUSALS = {"INJECT_AGENT_MESSAGE_DURING_USER_SPEECH", "INJECT_AGENT_MESSAGE_DURING_AGENT_SPEECH"}


class AgentEvents:
    """Carries out the agent's events for one conversation."""

    def __init__(self, conversation: Conversation, said: Sequence[Line]) -> None:
        """`said`: what was said under former owners."""
        self._c = conversation
        self._heard: dict[str, LineHeard] = {
            line.id: LineHeard(line.id, line.heard_ms, line.interrupted) for line in said if line.heard_ms is not None
        }
        self._rests = {line.id: (line.rest, line.heard_ms or 0) for line in said if line.rest}
        """The lines that went on in another turn when the caller changed the edge, and how much was heard before."""
        self._echo = self._agent_echo = Echo()
        self._again: tuple[str, ...] = ()
        """The entries of which the rest is said again, in the turn `_again_turn`."""
        self._again_turn: tuple[int, int] | None = None
        self._again_texts: list[str] = []
        """What of it the agent has begun to say."""
        self._broken: dict[str, LineHeard] = {}
        """The lines in the middle of which an agent was lost, or is still."""
        self._pausing: str | None = None
        """The one of these with which the agent may go on."""
        for line in said:
            self._text(line.role, line.content)
        self._ignored: dict[str, int] = {}
        self._understood_ns = 0
        """When the agent said last what it had understood, as spans count it."""

    @property
    def _id(self) -> str:
        return self._c.session.session_id

    def happened(self, event: dg.AgentEvent) -> None:
        """Carry out one event, in the order in which they came."""
        c = self._c
        match event:
            case dg.Audio(data=data):
                now = c.loop.time()
                if c.speech.audio(data, now):
                    c.timings.audio(c.speech.turn, now)
            case dg.ConversationText(role="user", content=content):
                self._user_said(c.redacted(content))
            case dg.ConversationText(role="assistant", content=content):
                self._agent_says(c.redacted(content))
            case dg.UserStartedSpeaking():
                c.caller_spoke_at = c.loop.time()
                self._pausing = None
                c.functions.caller_spoke()
                c.speech.cut(c.loop.time())
                c.caller.tell(Kind.SPEECH, ["started", ""])
                c.event("user_started_speaking", types.UserStartedSpeakingEvent(session_id=self._id))
            case dg.AgentAudioDone():
                unfinished = c.speech.unfinished
                if not c.speech.done(c.loop.time()):
                    self.audio_done()
                if c.speech.unfinished is None:
                    self._line_ended(unfinished)
            case dg.AgentThinking(content=content):
                c.event("agent_thinking", types.AgentThinkingEvent(session_id=self._id, content=content))
            case dg.AgentStartedSpeaking(total_latency=total, tts_latency=tts, ttt_latency=ttt):
                c.speech.sign_of_turn()
                c.event("agent_started_speaking", extra.AgentStartedSpeakingEvent(self._id, total, tts, ttt))
            case dg.FunctionCallRequest(functions=functions):
                c.functions.requested(functions)
            case dg.FunctionCallCancelled(functions=functions):
                c.functions.cancelled(functions)
                gone = tuple(extra.CancelledFunctionCall(str(f.get("id")), str(f.get("name", ""))) for f in functions)
                c.event("function_call_cancelled", extra.FunctionCallCancelledEvent(self._id, gone))
            case dg.FunctionCallDone(id=call_id, name=name, content=content):
                c.event(
                    "function_call_response", extra.FunctionCallResponseEvent(self._id, call_id or "", name, content)
                )
            case dg.Updated(kind=kind):
                c.agent.confirmed(kind)
                self._updated(kind)
            case dg.History(raw=item):
                if "function_calls" in item:
                    c.functions.committed(item)
                c.event("history", extra.HistoryEvent(self._id, item))
            case dg.InjectionRefused(message=message):
                c.injections.refused()
                c.event("injection_refused", extra.InjectionRefusedEvent(self._id, message))
            case dg.Warned(code=code, description=description):
                if code in REFUSALS:
                    c.injections.refused()
                    c.event("injection_refused", extra.InjectionRefusedEvent(self._id, description))
                else:
                    c.event("warning", types.WarningEvent(session_id=self._id, code=code, description=description))
            case dg.LatencyReport(raw=report):
                stt = report.get("stt_latency")
                c.timings.recognised(float(stt) if isinstance(stt, int | float) else None)
                if c.hosted.handlers.wants("latency_report"):
                    names = extra.LatencyReportEvent.__slots__[1:]
                    values = {name: report.get(name) for name in names}
                    c.event("latency_report", extra.LatencyReportEvent(session_id=self._id, **values))
            case dg.Unknown(type=name) | dg.UnexpectedType(type=name):
                self._ignore(f"message of type {name}")
            case dg.Malformed(detail=detail):
                self._ignore(detail)
            case _:
                pass

    def audio_done(self) -> None:
        """The caller has heard the agent's turn to its end, or it was interrupted."""
        self._c.event("agent_audio_done", types.AgentAudioDoneEvent(session_id=self._id))

    def timed(self, timing: extra.TurnTiming) -> None:
        """The caller begins to hear an answer."""
        for hop in ("text", "audio", "heard"):
            metrics.turn_seconds.labels(until=hop).observe(getattr(timing, f"{hop}_ms") / 1000)
        facts = {
            name: ms
            for name in ("stt_ms", "text_ms", "audio_ms", "heard_ms")
            if (ms := getattr(timing, name)) is not None
        }
        turn = self._c.span.child("turn", began_ns=self._understood_ns, turn=timing.turn, **facts)
        turn.end(ended_ns=self._understood_ns + round(timing.heard_ms * 1e6))
        self._c.event("turn_timing", extra.TurnTimingEvent(self._id, timing))

    def reconnected(self, failure: AgentFailed) -> None:
        """Tell the handlers of a loss that was repaired (SDK reference §14)."""
        description = f"The agent was lost ({failure.description}) and is back with the conversation so far"
        self._c.event("warning", types.WarningEvent(self._id, code=failure.code, description=description))
        self._c.event("session_resumed", extra.SessionResumedEvent(self._id, "agent_lost"))

    def renewed(self) -> None:
        """Tell the handlers that the agent's connection was replaced before it became too old."""
        self._c.event("session_resumed", extra.SessionResumedEvent(self._id, "agent_renewed"))

    def recover(self, *, caller_speaks: bool) -> tuple[Recovery, list[Record]]:
        """How the conversation goes on with a new agent, and the function calls that it waits for."""
        lines, functions = self._lines(), self._c.functions
        waiting = functions.open_calls(lines, caller_speaks=caller_speaks)
        recovery = recover(lines, functions.history(), caller_speaks=caller_speaks, call_open=bool(waiting))
        self._echo, self._agent_echo = Echo(recovery.caller_says), Echo(recovery.agent_says)
        self._again, self._again_turn, self._again_texts = recovery.again, None, []
        return recovery, waiting

    def taken_over(self, why: str) -> None:
        """Tell the handlers that the call is here now, and was elsewhere."""
        self._c.event("session_resumed", extra.SessionResumedEvent(self._id, why))

    def former_turn(self, turn: tuple[int, int], heard_ms: float, *, whole: bool) -> list[LineHeard]:
        """How much was heard of the lines of a former owner's turn, by the usual speed of speech."""
        heard: list[LineHeard] = []
        left = float(heard_ms)
        for line in self._lines():
            played_in, before = self._rests.get(line.id, (line.turn, 0))
            if played_in == f"{turn[0]}-{turn[1]}" and line.role == "assistant":
                if whole and line.interrupted and line.id not in self._rests:  # stored: its owner waited for the rest
                    continue
                spoken = _spoken_ms(line.content)
                part = spoken if whole else min(spoken, before + max(0.0, left))
                heard.append(LineHeard(line.id, round(part), part < spoken))
                left -= max(0.0, spoken - before)
        self.heard(heard)
        return heard

    def owner_lost(self) -> None:
        """The former owner is dead, and the edge has told what it knows: a last turn of the agent of which neither has
        told anything was not heard. Its audio had not come, or went with its edge."""
        lines = self._lines()
        last = [line for line in lines if line.turn == lines[-1].turn and line.role == "assistant"]
        if lines and lines[-1].role == "assistant" and all(line.heard_ms is None for line in last):
            self._c.caller.heard(self.heard([LineHeard(line.id, 0, True) for line in last]))

    def _lines(self) -> list[Line]:
        lines = []
        for entry, fields in self._c.lines.lines:
            heard = self._heard.get(entry)
            ms, interrupted = (heard.heard_ms, heard.interrupted) if heard is not None else (None, False)
            lines.append(Line(entry, fields["role"], fields["content"], fields["at"], fields["turn"], ms, interrupted))
        return lines

    def heard(self, lines: Iterable[LineHeard]) -> list[LineHeard]:
        """How much of some lines the caller heard, by what came of them; returns it by what should have come."""
        known = [replace(self._broken[h.entry], heard_ms=h.heard_ms) if h.entry in self._broken else h for h in lines]
        self._heard.update((line.entry, line) for line in known)
        return known

    def known(self) -> list[LineHeard]:
        """All that is known of what the caller heard."""
        return list(self._heard.values())

    def turn_over(self, over: TurnOver) -> list[LineHeard]:
        """A turn was heard or cut; returns what is known of its lines, and of those of which it was the rest."""
        lines = list(over.lines)
        if self._again_turn is not None and over.turn == self._again_turn:
            if over.state != "cut":
                texts = {line.id: line.content for line in self._lines()}
                for entry in self._again:
                    self._broken.pop(entry, None)
                    lines.append(LineHeard(entry, round(_spoken_ms(texts.get(entry, ""))), False))
            self._again, self._again_turn = (), None
        return self.heard(lines)

    def goes_on(self, rest: GoesOn) -> str:
        """The rest of a turn is played at another edge; returns the text of what is not heard to its end."""
        texts = []
        if rest.former == self._again_turn:
            self._again_turn = rest.turn
            texts += self._again_texts
        contents = {entry: fields["content"] for entry, fields in self._c.lines.lines}
        return " ".join([*texts, *(contents[line.entry] for line in rest.lines if line.entry in contents)])

    def agent_gone(self) -> None:
        """The agent is lost, maybe in the middle of a line."""
        self._pausing = None
        self._break_off()

    def agent_still(self) -> None:
        """A turn has ended only because the agent says nothing more, maybe in the middle of a line, with which it may
        go on. Should this worker die before it does, the next one has to know."""
        if (line := self._break_off()) is not None:
            self._pausing = line.entry
            self._c.caller.heard([line])

    def agent_rests(self) -> None:
        """The agent is not expected to go on."""
        self._line_ended(self._c.speech.unfinished)

    def _break_off(self) -> LineHeard | None:
        """Note that the line that the agent is in the middle of is not whole; None if there is none, or by the usual
        speed of speech what has come may be all."""
        unfinished = self._c.speech.unfinished
        if unfinished is None:
            return None
        entry, received_ms = unfinished
        content = next((line.content for line in self._lines() if line.id == entry), "")
        if received_ms >= _spoken_ms(content) * WHOLE:
            self._broken.pop(entry, None)  # it was broken off in the pause before
            return None
        line = self._broken[entry] = LineHeard(entry, round(received_ms), True)
        self.heard([line])
        return line

    def _line_ended(self, unfinished: tuple[str, float] | None) -> None:
        """There is no more of the line in which the agent was still. If it has gone on with it since, the end of that
        turn says what was heard. `unfinished`: as the speech knew it before that."""
        entry, self._pausing = self._pausing, None
        line = self._broken.pop(entry, None) if entry is not None else None
        if (
            line is not None
            and unfinished is not None
            and (unfinished[0], round(unfinished[1])) == (entry, line.heard_ms)
        ):
            self._c.caller.heard(self.heard([replace(line, interrupted=False)]))

    def _user_said(self, content: str) -> None:
        c = self._c
        c.caller_spoke_at = -math.inf
        if self._echo.takes(content):  # what we said again for the caller
            return
        c.functions.caller_spoke()
        c.speech.caller_said()
        c.timings.understood(c.loop.time())
        self._understood_ns = tracing.now_ns()
        injected = c.injections.said("user", content)
        entry = self._store("user", content, c.speech.turn)
        if not injected:  # otherwise VAIC would be told of speech that it has not heard
            c.caller.tell(Kind.SPEECH, ["recognition", content, entry])
        c.event("conversation_text", self._text("user", content))

    def understood(self, entry: str, content: str) -> None:
        """What a former owner told the edge that the caller had said. If it died before that was stored, it is now."""
        if all(entry != stored for stored, _ in self._c.lines.lines):
            self._store("user", content, self._c.speech.turn)
            self._c.event("conversation_text", self._text("user", content))

    def _agent_says(self, content: str) -> None:
        c = self._c
        c.timings.text(c.loop.time())
        c.injections.said("assistant", content)
        if self._agent_echo.takes(content):  # what the caller had not heard, said again
            self._again_turn = turn = c.speech.begin()
            self._again_texts.append(content)
            c.caller.tell(Kind.SPEECH, ["agent", content, list(turn)])
            return
        if c.speech.unwanted(c.loop.time()):  # VAIC broke this answer off
            entry = self._store("assistant", content, c.speech.turn)
            c.caller.heard(self.heard([LineHeard(entry, 0, True)]))
            c.event("conversation_text", self._text("assistant", content))
            return
        unfinished = c.speech.unfinished
        turn = c.speech.begin()
        self._line_ended(unfinished)
        entry = self._store("assistant", content, turn)
        c.speech.line(entry)
        c.caller.tell(Kind.SPEECH, ["agent", content, list(turn)])
        c.event("conversation_text", self._text("assistant", content))

    def _store(self, role: str, content: str, turn: tuple[int, int]) -> str:
        """One entry per utterance, and nothing twice: `History` says the same again (Voice Agent reference §4.3)."""
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        return self._c.lines.append({"role": role, "content": content, "at": at, "turn": f"{turn[0]}-{turn[1]}"})

    def _text(self, role: Any, content: str) -> types.ConversationTextEvent:
        event = types.ConversationTextEvent(session_id=self._id, role=role, content=content)
        self._c.session._transcript.append(event)
        return event

    def _updated(self, kind: str) -> None:
        event = {
            "prompt": types.PromptUpdatedEvent,
            "speak": types.SpeakUpdatedEvent,
            "think": types.ThinkUpdatedEvent,
            "listen": extra.ListenUpdatedEvent,
        }[kind]
        self._c.event(f"{kind}_updated", event(session_id=self._id))

    def _ignore(self, what: str) -> None:
        metrics.bad_input.labels(code="agent").inc()
        seen = self._ignored[what] = self._ignored.get(what, 0) + 1
        if seen == 1:
            log.debug("ignored from the agent, more of it are only counted", cid=self._c.cid, what=what)


def _spoken_ms(content: str) -> float:
    """What it takes to say this at the usual speed of speech."""
    return len(content) / CHARACTERS_PER_SECOND * 1000
