"""The agent's speech on its way to the caller: turns, credit, and the gate after a barge-in.

A pure machine of the owner. The agent makes speech faster than real time (Voice Agent reference §6); it is
cut into *turns*, sent to the edge as far as the credit goes, and kept here beyond that. What the edge
reports as heard gives new credit, and tells at the end how much of each line the caller heard.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from bridge_shared.frames import Kind
from bridge_shared.protocol.media import Aligner, Media

Turn = tuple[int, int]

CREDIT_MS = 2000.0
"""How much of a turn may be with the edge and not heard yet."""

PIECE_MS = 400.0
WAITING_SECONDS = 60.0
WAITING_BYTES = 1024 * 1024
FRESH_SECONDS = 2.0
"""A turn of which the edge told something so lately goes on at the next edge, an older one is cut."""

OVER_TURNS = 4
"""Turns that are over and of which VAIC may still tell that it has played more or less than the edge's clock says."""

GATE_SECONDS = 1.5
"""Audio of a cut turn, and its `AgentAudioDone`, can still be on their way; this long at most they are expected
(Voice Agent reference §6 rule 4)."""

STILL_SECONDS = 2.0
"""A turn that was heard as far as it goes, and brings nothing new for so long, is over: its `AgentAudioDone` is
missing (§4.2), or came before its last audio. If the agent was only thinking, what it says next is another turn."""

THINKING_SECONDS = 5.0
"""How long after that the agent may still be about to go on, and is better not replaced."""

UNSPOKEN_SECONDS = 10.0
"""A text of which no audio has come by then is not spoken any more; `AgentAudioDone` may be missing here too."""

ROUNDING_MS = 10.0
"""Half a frame of rounding is not an interruption."""


@dataclass(slots=True)
class Line:
    """One stored utterance of the agent, and where in its turn it is spoken."""

    entry: str
    begins_ms: float


@dataclass(frozen=True, slots=True)
class LineHeard:
    """What the caller heard of one line.

    A line without audio of its own shares that of the next one: it is interrupted if nothing of it was heard.
    Behind the end of a turn that was heard whole it counts as heard.
    """

    entry: str
    heard_ms: int
    interrupted: bool


@dataclass(frozen=True, slots=True)
class TurnOver:
    """The caller has heard this turn, or it was cut. `announce` when `AgentAudioDone` had come for it."""

    turn: Turn
    state: str
    lines: tuple[LineHeard, ...]
    announce: bool


@dataclass(frozen=True, slots=True)
class GoesOn:
    """A turn under its new id for another edge, and what was heard of the lines that were not heard to their end."""

    former: Turn
    turn: Turn
    lines: tuple[LineHeard, ...]


@dataclass(slots=True)
class _Turn:
    id: Turn
    received_ms: float = 0.0
    sent_ms: float = 0.0
    heard_ms: float = 0.0
    waiting: deque[bytes] = field(default_factory=deque)
    unheard: deque[bytes] = field(default_factory=deque)
    """What was sent and not yet reported as heard, for another edge."""
    unheard_from_ms: float = 0.0
    announce: bool = False
    done: bool = False
    """`AgentAudioDone` came: there is no more audio."""
    doubtful: bool = False
    """That it has no more audio is likely: an `AgentAudioDone` that came before its audio was taken for that of the
    turn before, or all of it was heard at another edge."""
    told: bool = False
    """TURNEND or CUT was sent."""
    cut: bool = False
    lines: list[Line] = field(default_factory=list)


class Speech:
    """The turns of one owner of one call.

    Args:
        epoch: the owner's; turn ids are (epoch, n).
        media: format of the agent's audio.
    """

    def __init__(self, epoch: int, media: Media) -> None:
        self._media = media
        self._epoch = epoch
        self._align = Aligner(media)
        self._piece = media.nbytes(PIECE_MS)
        self._turns: deque[_Turn] = deque()
        self._over_lately: deque[_Turn] = deque(maxlen=OVER_TURNS)
        self._current: _Turn | None = None
        self._count = 0
        self._gate_until = 0.0
        self._broken_off = False
        """VAIC broke a turn off, of which the agent knows nothing: it may go on with it."""
        self._begun = False
        """The agent has begun to speak and did not say yet that it is done, whatever became of the turn."""
        self._owed: deque[float] = deque()
        """For each `AgentAudioDone` that may still come of something that was cut: until when."""
        self._paused: _Turn | None = None
        """The turn that ended because the agent was still: its last line may go on."""
        self._unspoken: tuple[_Turn | None, float] = (None, 0.0)
        """The turn of which only text has come, and since when that is known."""
        self._audio_at = self._still_since = 0.0
        """When audio came last, and when there was last something new of the current turn, from agent or edge."""
        self._waiting_bytes = 0
        self._room = min(WAITING_BYTES, media.nbytes(WAITING_SECONDS * 1000))
        self._out: list[tuple[Kind, list[Any], int]] = []
        self._told_at = 0.0
        """When the edge last told of what is heard, or was given the first of it."""
        self.dropped_ms = 0.0
        """Audio that was dropped because too much of it waited."""
        self.gaps = 0
        """Turns that went on after they had been taken for over: gaps of which the edge knows nothing."""

    @property
    def turn(self) -> Turn:
        """The latest turn that has begun; (epoch, 0) before the first."""
        return (self._epoch, self._count)

    @property
    def speaking(self) -> bool:
        """Whether there is a turn that the caller has not heard to its end."""
        return bool(self._turns)

    def may_go_on(self, now: float) -> bool:
        """Whether a turn ended only because the agent was still, and not long ago."""
        return self._paused is not None and now < self._still_since + STILL_SECONDS + THINKING_SECONDS

    @property
    def unfinished(self) -> tuple[str, float] | None:
        """The line that the agent is in the middle of: its entry, and the milliseconds of it that have come. None when
        no turn is open and none has ended because the agent was still, or it has no line."""
        turn = self._current or self._paused
        if turn is None or not turn.lines:
            return None
        line = turn.lines[-1]
        return line.entry, turn.received_ms - line.begins_ms

    def audio(self, data: bytes, now: float) -> bool:
        """Take a binary frame of the agent. False if it is of a turn that was cut, or no whole sample."""
        if now < self._gate_until:
            self.unwanted(now)
            return False
        if self._current is None and self._paused is None and now >= self._audio_at + GATE_SECONDS:
            self._align.reset()
        samples = self._align.feed(data)
        if not samples:
            return False
        self._audio_at = self._still_since = now
        turn = self._current or self._go_on()
        if not turn.received_ms and turn is self._turns[0]:  # the edge cannot have told of it yet
            self._told_at = now
        room = self._room - self._waiting_bytes
        if len(samples) > room:
            self.dropped_ms += self._media.ms(len(samples) - room)
            samples = samples[:room]
        turn.received_ms += self._media.ms(len(samples))
        for start in range(0, len(samples), self._piece):
            turn.waiting.append(samples[start : start + self._piece])
        self._waiting_bytes += len(samples)
        self._spend()
        return True

    def begin(self) -> Turn:
        """The agent is about to speak: returns the turn that this belongs to, a new one if none is open."""
        self.sign_of_turn()
        return self._begin().id

    def line(self, entry: str) -> None:
        """What the agent is about to speak is stored under this id."""
        turn = self._begin()
        turn.lines.append(Line(entry, turn.received_ms))

    def unwanted(self, now: float) -> bool:
        """Whether what the agent sends now belongs to a turn that VAIC broke off. Then so does what follows soon."""
        if self._broken_off and now < self._gate_until:
            self._gate_until = now + GATE_SECONDS
            return True
        return False

    def caller_said(self) -> None:
        """What the agent says from now on answers this."""
        self._broken_off = False

    def sign_of_turn(self) -> None:
        """The agent says that a new turn begins, or that it goes on: its audio is wanted again."""
        self._gate_until, self._broken_off = 0.0, False
        if self._current is None:  # and only here: late audio may begin with the other half of a sample
            self._align.reset()

    def done(self, now: float, *, announce: bool = True) -> bool:
        """`AgentAudioDone`: the current turn has all its audio.

        Args:
            announce: False if it ends without that word of the agent.

        Returns:
            False if there was no turn for it, so that nothing will be reported about it later.
        """
        turn = self._current
        if not announce:
            self._owed.clear()
        while self._owed and self._owed[0] <= now:
            self._owed.popleft()
        if self._owed and (turn is None or not turn.received_ms):
            # of something that was cut; more of its audio may come behind it
            self._owed.popleft()
            self._still_since = now
            if turn is not None:
                turn.doubtful = True
            return False
        self._gate_until, self._broken_off = 0.0, False
        self._begun, self._paused = False, None
        self._finish(announce=announce)
        return turn is not None

    def expire(self, now: float) -> bool:
        """End the current turn if it has been still for too long; whether it was."""
        turn = self._current
        if turn is None or now < self._still_since + STILL_SECONDS:
            return False
        if turn.received_ms:
            over = turn.heard_ms >= turn.received_ms - ROUNDING_MS
        elif turn is not self._unspoken[0]:
            self._unspoken, over = (turn, now), turn.doubtful
        else:
            over = turn.doubtful or now >= self._unspoken[1] + UNSPOKEN_SECONDS
        if over:
            self._paused = turn
            self._finish(announce=False)
        return over

    def cut(self, now: float) -> None:
        """The caller speaks: nothing more of what was begun may be heard. Harmless when nothing was."""
        self._gate_until, self._broken_off = now + GATE_SECONDS, False
        self._align.reset()
        if self._begun:
            self._owed.append(now + GATE_SECONDS)
        self._begun, self._paused, self._current = False, None, None
        if not self._turns:
            return
        for turn in self._turns:
            self._discard(turn)
            turn.told = turn.cut = True
        self._out = [item for item in self._out if item[0] is not Kind.DOWN]
        self._out.append((Kind.CUT, [list(self._turns[-1].id)], 0))

    def edge_changed(self, now: float) -> list[GoesOn]:
        """The caller is at another edge, which has nothing of what the former one had. What was not heard goes to it
        as turns with ids of their own, from where the former one's last report left it; after a longer silence it is
        cut instead.

        Returns:
            the turns that go on, which the edge knows nothing of: to be told to it before `take`.
        """
        if now > self._told_at + FRESH_SECONDS and any(turn.received_ms for turn in self._turns):
            self.cut(now)
            return []
        cut = [turn for turn in self._turns if turn.cut]
        self._out = [(Kind.CUT, [list(cut[-1].id)], 0)] if cut else []  # its report may be lost with the former edge
        turns: deque[_Turn] = deque()
        going_on = []
        for turn in self._turns:
            turns.append(turn if turn.cut else self._again(turn))
            if turn is self._current:
                self._current = turns[-1]
            if not turn.cut:
                going_on.append(GoesOn(turn.id, turns[-1].id, _unheard(turns[-1])))
        self._turns = turns
        self._spend()
        return going_on

    def played(self, turn_id: Turn, heard_ms: float, state: str, now: float) -> list[TurnOver]:
        """Take the edge's report on a turn. Reports on turns that are over already are ignored."""
        over: list[TurnOver] = []
        self._told_at = now
        while self._turns and self._turns[0].id <= turn_id:
            turn = self._turns[0]
            outcome = state
            if turn.id == turn_id:
                if turn is self._current and heard_ms > turn.heard_ms:
                    self._still_since = now
                self._heard(turn, float(heard_ms))
                if state == "playing":
                    break
                if state == "cut" and turn is self._current:  # VAIC broke it off: what comes of it is too late
                    self._gate_until, self._broken_off = now + GATE_SECONDS, True
            elif turn.cut:  # its last report was lost with its edge
                outcome = "cut"
            else:  # likewise, but a later turn can only be heard after it
                turn.heard_ms, outcome = turn.received_ms, "finished"
            self._turns.popleft()
            self._discard(turn)
            if turn is self._current:
                self._current = None
            self._over_lately.append(turn)
            over.append(self._over(turn, outcome))
        self._spend()
        return over

    def corrected(self, turn_id: Turn, heard_ms: float) -> tuple[LineHeard, ...]:
        """VAIC has played so much of a turn that was over by the edge's clock: what the caller heard of its lines."""
        turn = next((known for known in self._over_lately if known.id == turn_id), None)
        if turn is None:
            return ()
        turn.heard_ms = min(float(heard_ms), turn.received_ms)
        return self._over(turn, "cut").lines

    def take(self) -> list[tuple[Kind, list[Any], int]]:
        """What is to be sent now, in order: (kind, body, audio bytes)."""
        out, self._out = self._out, []
        return out

    def _begin(self) -> _Turn:
        self._begun, self._paused = True, None
        if self._current is None:
            self._count += 1
            self._current = _Turn((self._epoch, self._count))
            self._turns.append(self._current)
        return self._current

    def _go_on(self) -> _Turn:
        """A turn that begins without a text: with the line that a pause has divided, if there is one."""
        paused = self._paused
        turn = self._begin()
        if paused is not None:
            self.gaps += paused.received_ms > 0
            turn.lines = [Line(line.entry, line.begins_ms - paused.received_ms) for line in paused.lines]
        return turn

    def _finish(self, *, announce: bool) -> None:
        """The current turn, if there is one, has all its audio."""
        turn, self._current = self._current, None
        if turn is not None:
            turn.done, turn.announce = True, announce
            self._spend()

    def _heard(self, turn: _Turn, heard_ms: float) -> None:
        turn.heard_ms = max(turn.heard_ms, heard_ms)
        while turn.unheard and (end := turn.unheard_from_ms + self._media.ms(len(turn.unheard[0]))) <= turn.heard_ms:
            turn.unheard.popleft()
            turn.unheard_from_ms = end

    def _again(self, turn: _Turn) -> _Turn:
        """What was not heard of a turn, as one of its own: a report of it says nothing about the part before."""
        again = list(turn.unheard)
        if again:
            again[0] = again[0][self._media.nbytes(turn.heard_ms - turn.unheard_from_ms) :]
        self._waiting_bytes += sum(map(len, again))
        self._count += 1
        return _Turn(
            (self._epoch, self._count),
            received_ms=turn.received_ms - turn.heard_ms,
            waiting=deque([*again, *turn.waiting]),
            announce=turn.announce,
            done=turn.done,
            doubtful=turn.doubtful or 0 < turn.received_ms <= turn.heard_ms,
            lines=[Line(line.entry, line.begins_ms - turn.heard_ms) for line in turn.lines],
        )

    def _discard(self, turn: _Turn) -> None:
        """Nothing more of this turn is wanted."""
        self._waiting_bytes -= sum(map(len, turn.waiting))
        turn.waiting.clear()
        turn.unheard.clear()

    def _spend(self) -> None:
        """Send what the credit allows, turn after turn."""
        for turn in self._turns:
            while turn.waiting:
                ms = self._media.ms(len(turn.waiting[0]))
                if turn.sent_ms + ms > turn.heard_ms + CREDIT_MS:
                    break
                piece = turn.waiting.popleft()
                self._waiting_bytes -= len(piece)
                turn.sent_ms += ms
                turn.unheard.append(piece)
                self._out.append((Kind.DOWN, [list(turn.id), piece], len(piece)))
            if turn.done and not turn.waiting and not turn.told:
                turn.told = True
                self._out.append((Kind.TURNEND, [list(turn.id)], 0))
            if not turn.told:
                break

    def _over(self, turn: _Turn, state: str) -> TurnOver:
        lines = []
        whole = state != "cut" or (turn.done and turn.heard_ms >= turn.received_ms - ROUNDING_MS)
        ends = [line.begins_ms for line in turn.lines[1:]] + [turn.received_ms]
        for line, end in zip(turn.lines, ends, strict=False):  # a turn without lines has an end too
            spoken = end - line.begins_ms
            heard = min(max(0.0, turn.heard_ms - line.begins_ms), spoken) if state == "cut" else spoken
            missed = heard < spoken - ROUNDING_MS if spoken else turn.heard_ms <= line.begins_ms
            lines.append(LineHeard(line.entry, round(heard), missed and not whole))
        return TurnOver(turn.id, state, tuple(lines), announce=turn.announce)


def _unheard(turn: _Turn) -> tuple[LineHeard, ...]:
    """The lines of which something is to be heard yet, of a turn that begins where it was heard to."""
    lines = []
    for line in turn.lines:
        # a line without audio of its own shares that of the next one
        ends = min(
            (other.begins_ms for other in turn.lines if other.begins_ms > line.begins_ms), default=turn.received_ms
        )
        if ends > 0 or line.begins_ms >= 0:
            lines.append(LineHeard(line.entry, round(max(0.0, -line.begins_ms)), True))
    return tuple(lines)
