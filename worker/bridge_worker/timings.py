"""How long a caller waits for an answer, and where the time goes. Pure: every moment is passed in.

The clock of a turn starts when the agent says what it has understood (`ConversationText` of the caller): the end of
the caller's speech is not told by the agent, what came before is in its `LatencyReport` as `stt_latency`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from bridge_shared.types.extra import TurnTiming

MOST_TURNS = 200


class Timings:
    """The turns of one call.

    Args:
        done: called with each turn as soon as the caller hears it.

    Attributes:
        turns: the newest of them.
    """

    def __init__(self, done: Callable[[TurnTiming], None]) -> None:
        self._done = done
        self.turns: deque[TurnTiming] = deque(maxlen=MOST_TURNS)
        self._understood: float | None = None
        self._stt_ms: float | None = None
        self._text: float | None = None
        self._audio: float | None = None
        self._turn: tuple[int, int] | None = None

    def understood(self, now: float) -> None:
        """The agent has said what it understood of the caller."""
        self._understood, self._text, self._audio, self._turn = now, None, None, None

    def recognised(self, stt_seconds: float | None) -> None:
        """The agent reports how long its recognition took."""
        self._stt_ms = stt_seconds * 1000 if stt_seconds is not None else self._stt_ms

    def text(self, now: float) -> None:
        """The agent has said what it is about to speak."""
        if self._text is None:
            self._text = now

    def audio(self, turn: tuple[int, int], now: float) -> None:
        """Audio of a turn has come."""
        if self._audio is None and self._understood is not None:
            self._audio, self._turn = now, turn

    def heard(self, turn: tuple[int, int], heard_ms: float, now: float) -> None:
        """The edge reports how much of a turn was heard."""
        if turn != self._turn or heard_ms <= 0 or self._understood is None or self._audio is None:
            return
        began = now - heard_ms / 1000
        text = self._text if self._text is not None else self._audio
        timing = TurnTiming(
            turn=turn[1],
            stt_ms=self._stt_ms,
            text_ms=_ms(text - self._understood),
            audio_ms=_ms(self._audio - self._understood),
            heard_ms=_ms(began - self._understood),
        )
        self._understood = self._stt_ms = None
        self.turns.append(timing)
        self._done(timing)


def _ms(seconds: float) -> float:
    return round(max(0.0, seconds) * 1000, 1)
