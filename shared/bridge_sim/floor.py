"""When VAIC listens to the caller: floor control (pure; Bot API reference §5.3 and §8.4).

Barge-in off: the user stream opens half a second after the bot has finished, and closes half a second after it began.
Barge-in on: the stream opens when the call starts and stays open. Times are monotonic seconds.
"""

from __future__ import annotations

import math
from typing import Final, Literal

Action = Literal["open", "close", "late"]

OPEN_AFTER_S: Final = 0.5
CLOSE_AFTER_S: Final = 0.5
NO_GREETING_S: Final = 3.0
"""How long the first opening waits for a greeting. No capture shows a bot without one: an assumption."""
ACKNOWLEDGE_S: Final = 2.0
"""A bot that lets userStream.start or .stop wait longer is reported: beyond about 1 s caller audio is lost (§5.2)."""


class Floor:
    """Decides when the user stream is opened and closed; `tick` says what to do now."""

    def __init__(self, barge_in: bool) -> None:
        self.barge_in = barge_in
        self.open = False
        """userStream.start was the last thing decided."""
        self._playing = False
        self._due = math.inf
        self._asked: list[float] = []

    def call_started(self, now: float) -> None:
        """The start activity was sent."""
        if self.barge_in:
            self._due = now
        elif not self._playing:
            self._due = now + NO_GREETING_S

    def allow_barge_in(self, allowed: bool, now: float) -> None:
        """The bot changed `bargeIn` in mid-call."""
        self.barge_in = allowed
        if allowed:
            self._due = math.inf if self.open else now
        elif self._playing and self.open:
            self._due = now + CLOSE_AFTER_S

    def play_started(self, now: float) -> None:
        """The bot took the floor; a further stream while it has it changes nothing."""
        if self._playing:
            return
        self._playing = True
        if not self.barge_in:
            self._due = now + CLOSE_AFTER_S if self.open else math.inf

    def play_ended(self, now: float) -> None:
        """Nothing is left to play and no play stream is open."""
        self._playing = False
        if not self.barge_in:
            self._due = math.inf if self.open else now + OPEN_AFTER_S

    def acknowledged(self) -> None:
        """The bot answered the oldest start or stop."""
        if self._asked:
            self._asked.pop(0)

    def new_socket(self) -> None:
        """Nothing asked on the old socket will be answered."""
        self._asked.clear()

    def asked(self, now: float) -> None:
        """A start or stop was sent, also one outside this control: the answer is awaited from here."""
        self._asked.append(now)

    def tick(self, now: float) -> list[Action]:
        """What to do: open or close the stream (and report it with `asked`), or complain of a late answer."""
        actions: list[Action] = []
        if now >= self._due:
            self._due = math.inf
            self.open = not self.open
            actions.append("open" if self.open else "close")
        if self._asked and now >= self._asked[0] + ACKNOWLEDGE_S:
            self._asked.pop(0)
            actions.append("late")
        return actions

    def deadline(self) -> float:
        """When `tick` has something to say."""
        return min(self._due, self._asked[0] + ACKNOWLEDGE_S if self._asked else math.inf)
