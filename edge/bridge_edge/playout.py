"""Playout: when which piece of agent audio goes to VAIC, and how much of it the caller has heard.

A pure machine: audio of *turns* comes in (as fast as the agent makes it), actions come out: open a play
stream, send a chunk, close it, report what was heard. It keeps one number, the **horizon**: the moment at
which VAIC will have played everything sent so far. VAIC plays what it got to the end, even after
`playStream.stop` (Bot API reference §6.4), so whatever is sent early cannot be taken back; therefore nothing
is sent that would put the horizon more than the *lead* ahead. A barge-in can then leave at most the lead audible.

When a turn runs dry before its end, the network between agent and caller is uneven: from then on the beginning of a
turn, and its going on after a gap, is held back by a small *allowance*, which grows with each such gap, shrinks with
each turn without one, and is never more than two thirds of the lead. A call without gaps waits for nothing.

One play stream per turn, closed as soon as its last chunk is sent: while a stream is open VAIC regards the
bot as speaking and withholds the caller's audio (§5.3). A stream whose turn gives nothing for a second is
closed too, and a new one opened if the turn goes on. A turn whose owner is gone ends where its audio does, once
the next owner speaks, and counts as cut.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from bridge_edge.played import Prompts
from bridge_shared.protocol.media import Media

Turn = tuple[int, int]
"""(worker epoch, number from 1 within that owner), ordered lexicographically."""

REPORT_SECONDS = 0.25
"""While a turn plays, `Played` is due at least this often: the worker sends more as it hears of it."""

ALLOWANCE_STEP = 0.04
"""Seconds that the allowance grows by with each gap; it shrinks by a quarter of that with each turn without one."""

IDLE_CLOSE_SECONDS = 1.0
"""A stream that has run dry for this long is closed, so that VAIC listens to the caller again."""


@dataclass(frozen=True, slots=True)
class StartStream:
    """Open a play stream with this id, never used before in this call."""

    stream_id: str
    turn: Turn


@dataclass(frozen=True, slots=True)
class SendChunk:
    """Whole samples of the open stream."""

    data: bytes


@dataclass(frozen=True, slots=True)
class StopStream:
    """Close the open stream. VAIC plays what it has."""


@dataclass(frozen=True, slots=True)
class Played:
    """`heard_ms` of this turn have been played by the estimate of the play clock."""

    turn: Turn
    heard_ms: int
    state: str
    """`playing`, `finished` or `cut`."""


Action = StartStream | SendChunk | StopStream | Played


@dataclass(slots=True)
class _Turn:
    id: Turn
    waiting: bytearray = field(default_factory=bytearray)
    ended: bool = False
    sent_ms: float = 0.0
    play_end: float = 0.0
    """When the caller will have heard all that was sent of it."""
    told_ms: float = 0.0
    """How much of it was reported as heard."""
    outcome: str = "finished"
    held_until: float = 0.0
    """Nothing is sent before this moment unless the allowance has come."""
    dry: bool = False
    """There was a gap in it."""

    @property
    def all_sent(self) -> bool:
        return self.ended and not self.waiting

    def heard_ms(self, now: float) -> float:
        return max(0.0, self.sent_ms - max(0.0, self.play_end - now) * 1000)


class Playout:
    """Paces the agent's turns of one call towards one VAIC socket.

    Args:
        media: format of the agent's audio, as sent in `playStream.start`.
        prefix: makes stream ids unique over all edges that ever serve this call.
        lead_ms: how far VAIC may be ahead of what the caller hears.
        chunk_ms: usual length of a chunk; fewer and larger ones cost less. At most half the lead, so that VAIC
            still has the other half when the next one is due.
        hold_until: nothing is sent before this moment unless `release` is called first, because VAIC may
            not have answered the call yet (SDK reference §14, greeting before `start`).
    """

    def __init__(self, media: Media, *, prefix: str, lead_ms: int, chunk_ms: int, hold_until: float = 0.0) -> None:
        self._media = media
        self._prefix = prefix
        self._lead = lead_ms / 1000
        self._chunk = max(media.sample_bytes, media.nbytes(min(chunk_ms, lead_ms / 2)))
        self._chunk_seconds = media.ms(self._chunk) / 1000
        self._hold_until = hold_until
        self._turns: deque[_Turn] = deque()
        self._cut: Turn = (0, 0)
        self._streams = 0
        self._open: Turn | None = None
        self._horizon = 0.0
        self._next_report = math.inf
        self._actions: list[Action] = []
        self.gaps: list[float] = []
        """Seconds for which a turn had nothing to play before its end, each time."""
        self._allowance = 0.0
        self._prompts = Prompts()
        self.late_bytes = 0
        """Audio of turns that were cut or had ended already; never sent."""

    def release(self) -> None:
        """VAIC's `start` activity is here: speak."""
        self._hold_until = 0.0

    def audio(self, turn: Turn, data: bytes, now: float) -> None:
        """Take audio of a turn: whole samples, any amount."""
        if turn <= self._cut or not (current := self._turn(turn)) or current.ended:
            self.late_bytes += len(data)
            return
        if not current.waiting and now > self._horizon:  # nothing is being played
            if current.sent_ms:
                self.gaps.append(now - self._horizon)
                current.dry = True
                self._allowance = min(self._allowance + ALLOWANCE_STEP, self._lead * 2 / 3)
            current.held_until = now + self._allowance
        current.waiting += data

    def expects(self, turn: Turn) -> bool:
        """Whether audio of this turn would be played."""
        return turn > self._cut

    def end(self, turn: Turn) -> None:
        """The turn has no more audio."""
        if turn > self._cut and (current := self._turn(turn)):
            current.ended = True

    def cut(self, turn: Turn, now: float) -> None:
        """Drop all that is unsent of this and earlier turns, now and in future, and close their stream."""
        answered = turn <= self._cut
        self._cut = max(self._cut, turn)
        while self._turns and self._turns[0].id <= turn:
            gone = self._turns.popleft()
            self._close(gone.id)
            self._prompts.over(gone.id, gone.heard_ms(now))
            self._actions.append(Played(gone.id, round(gone.heard_ms(now)), "cut"))
            answered = answered or gone.id == turn
        if not answered:  # none of its audio had come: the owner waits for a report all the same
            self._actions.append(Played(turn, 0, "cut"))

    def unsent(self, nbytes: int) -> None:
        """So much of what was given out last will not go to VAIC after all, of one turn or of several."""
        left = self._media.ms(nbytes)
        for turn in reversed(self._turns):
            ms = min(left, turn.sent_ms)
            turn.sent_ms -= ms
            turn.play_end -= ms / 1000
            self._horizon -= ms / 1000
            left -= ms
            if turn is self._turns[-1]:
                self._prompts.sent(-ms)

    def forsake(self, epoch: int) -> list[Played]:
        """The owners before this epoch are gone: their turns end with what is here.

        Returns:
            how much of each will have been heard when it has been played to that end.
        """
        left = []
        for turn in self._turns:
            if turn.id[0] < epoch:
                if not turn.ended:
                    turn.ended, turn.outcome = True, "cut"
                heard = turn.sent_ms + self._media.ms(len(turn.waiting))
                left.append(Played(turn.id, round(heard), turn.outcome))
        return left

    def prompt(self) -> None:
        """VAIC is asked to play something that is not streamed; it will report its end in turn."""
        self._prompts.opened(None)

    def prompt_failed(self) -> None:
        """VAIC could not play it."""
        self._prompts.failed()

    def vaic_played(self, played_ms: float, status: str, now: float) -> Turn | None:
        """VAIC reports the end of something it played (Bot API reference §6.6): its word counts more than the play
        clock's. A turn that it broke off is cut; of one that is over already what was heard is told again.

        Returns:
            the turn that this tells something new of: VAIC plays no more of it, whatever it is still sent.
        """
        told = self._prompts.finished(played_ms, status)
        if told is None:
            return None
        turn = next((known for known in self._turns if known.id == told.turn), None)
        if turn is None:
            self._actions.append(Played(told.turn, round(told.heard_ms), "cut"))
        else:
            self._horizon = turn.play_end = now
            turn.sent_ms = told.heard_ms
            self.cut(told.turn, now)
        return told.turn

    @property
    def speaking(self) -> bool:
        """Whether the caller is hearing, or is about to hear, a turn."""
        return bool(self._turns)

    def poll(self, now: float) -> list[Action]:
        """What to do at this moment, in order. Call it after every change and at `deadline()`."""
        if now >= self._hold_until:
            for turn in self._turns:
                self._send(turn, now)
                if turn.waiting or not turn.ended:
                    break
        self._report(now)
        actions, self._actions = self._actions, []
        return actions

    def deadline(self, now: float) -> float:
        """The next moment at which `poll` has something to do; `math.inf` if only a change can bring it."""
        if not self._turns:
            return math.inf
        if now < self._hold_until:
            return self._hold_until
        due = self._next_report
        for turn in self._turns:
            if turn.waiting:
                return min(due, self._send_at(turn))
            if not turn.ended:
                return min(due, self._horizon + IDLE_CLOSE_SECONDS) if self._open == turn.id else due
            if turn is self._turns[0]:
                due = min(due, turn.play_end)
        return due

    def _turn(self, turn: Turn) -> _Turn | None:
        """The record of this turn, made if it is the newest; None if it is over."""
        if not self._turns or turn > self._turns[-1].id:
            for known in self._turns:
                if known.id[0] < turn[0] and not known.ended:
                    known.ended, known.outcome = True, "cut"
            self._turns.append(_Turn(turn))
            return self._turns[-1]
        return next((known for known in reversed(self._turns) if known.id == turn), None)

    def _send_at(self, turn: _Turn) -> float:
        """When the next piece of what waits may go."""
        if len(turn.waiting) >= self._chunk or turn.ended:
            at = self._horizon + self._chunk_seconds - self._lead
        else:  # more will come before VAIC runs dry; a whole chunk is cheaper than two halves
            at = self._horizon - self._chunk_seconds / 2
        if self._allowance and not turn.ended and self._media.ms(len(turn.waiting)) < self._allowance * 1000:
            return max(turn.held_until, at)
        return at

    def _send(self, turn: _Turn, now: float) -> None:
        while turn.waiting and now >= self._send_at(turn):
            if self._open != turn.id:
                self._streams += 1
                self._open = turn.id
                self._actions.append(StartStream(f"{self._prefix}-{self._streams}", turn.id))
                self._prompts.opened(turn.id, turn.sent_ms)
            data = bytes(turn.waiting[: self._chunk])
            del turn.waiting[: self._chunk]
            self._actions.append(SendChunk(data))
            ms = self._media.ms(len(data))
            self._prompts.sent(ms)
            self._horizon = max(self._horizon, now) + ms / 1000
            turn.sent_ms += ms
            turn.play_end = self._horizon
        ran_dry = not turn.waiting and now >= self._horizon + IDLE_CLOSE_SECONDS
        if turn.all_sent or ran_dry:
            self._close(turn.id)

    def _close(self, turn: Turn) -> None:
        if self._open == turn:
            self._open = None
            self._actions.append(StopStream())

    def _report(self, now: float) -> None:
        while self._turns and self._turns[0].all_sent and now >= self._turns[0].play_end:
            done = self._turns.popleft()
            self._cut = max(self._cut, done.id)
            if not done.dry:
                self._allowance = max(0.0, self._allowance - ALLOWANCE_STEP / 4)
            self._prompts.over(done.id, done.sent_ms)
            self._actions.append(Played(done.id, round(done.sent_ms), done.outcome))
            self._next_report = math.inf
        if self._turns and now >= self._next_report:
            playing = self._turns[0]
            playing.told_ms = playing.heard_ms(now)
            self._actions.append(Played(playing.id, round(playing.told_ms), "playing"))
            self._next_report = math.inf
        # a turn that has been heard as far as it goes has nothing new to tell until more audio comes
        if not self._turns or self._turns[0].told_ms >= self._turns[0].sent_ms:
            self._next_report = math.inf
        elif self._next_report == math.inf:
            self._next_report = now + REPORT_SECONDS
