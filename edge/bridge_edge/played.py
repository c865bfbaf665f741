"""What VAIC says it has played, matched with what it was given.

`playFinished` carries no stream id (Bot API reference §6.6): it is matched by order, and, since nothing says that VAIC
reports every prompt, by length.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

Turn = tuple[int, int]

WAITING = 16
"""Prompts whose end VAIC has not told; where `sendEventsToBot` lacks `playFinished` it never does."""

SAME_MS, SAME_PART = 100.0, 0.05
"""A prompt is as long as VAIC says if it differs by no more than this, or this part of its length (seen: 3,384 ms of
about 3,400)."""


@dataclass(slots=True)
class _Prompt:
    turn: Turn | None
    """None: it was not streamed, VAIC fetched or spoke it itself."""
    begins_ms: float
    """Where in its turn this stream begins."""
    ms: float = 0.0
    told_ms: float | None = None
    """How much of its turn was said to be heard when that was over by the play clock."""

    def fits(self, played_ms: float) -> bool:
        return self.turn is None or abs(self.ms - played_ms) <= max(SAME_MS, self.ms * SAME_PART)

    def holds(self, played_ms: float) -> bool:
        """Whether so much of it can have been played."""
        return self.fits(played_ms) or played_ms <= self.ms


@dataclass(frozen=True, slots=True)
class PlayedByVaic:
    """VAIC has played this turn up to `heard_ms` and no further, which is not what the play clock says."""

    turn: Turn
    heard_ms: float


class Prompts:
    """What VAIC was given to play in one call, in order, until it reports it."""

    def __init__(self) -> None:
        self._waiting: deque[_Prompt] = deque(maxlen=WAITING)
        self._newest = _Prompt(None, 0.0)

    def opened(self, turn: Turn | None, begins_ms: float = 0.0) -> None:
        """A play stream of this turn begins; None for a prompt that is not streamed."""
        prompt = _Prompt(turn, begins_ms)
        self._waiting.append(prompt)
        if turn is not None:
            self._newest = prompt

    def failed(self) -> None:
        """The oldest prompt that was not streamed could not be played: nothing will be reported of it."""
        prompt = next((waiting for waiting in self._waiting if waiting.turn is None), None)
        if prompt is not None:
            self._waiting.remove(prompt)

    def sent(self, ms: float) -> None:
        """So much went into the newest stream."""
        self._newest.ms += ms

    def over(self, turn: Turn, heard_ms: float) -> None:
        """By the play clock this turn is over, and so much of it was heard."""
        for prompt in self._waiting:
            if prompt.turn == turn:
                prompt.told_ms = heard_ms

    def finished(self, played_ms: float, status: str) -> PlayedByVaic | None:
        """Take a `playFinished`. Returns what it says about a turn; None if that is nothing new."""
        if not self._waiting:
            return None
        can_be = _Prompt.fits if status == "finished" else _Prompt.holds
        over = self._waiting[0].told_ms is not None
        index = next((i for i, prompt in enumerate(self._waiting) if can_be(prompt, played_ms)), 0 if over else -1)
        if index < 0:  # a prompt of VAIC's own, or one that another edge streamed: ours is still being played
            return None
        prompt = [self._waiting.popleft() for _ in range(index + 1)][-1]
        if prompt.turn is None:
            return None
        whole = prompt.fits(played_ms) and (status == "finished" or prompt.told_ms is not None)
        heard = prompt.begins_ms + (prompt.ms if whole else min(prompt.ms, max(0.0, played_ms)))
        if whole and heard <= (heard if prompt.told_ms is None else prompt.told_ms):
            return None  # of an earlier stream of its turn, or what the play clock says as well
        return PlayedByVaic(prompt.turn, heard)
