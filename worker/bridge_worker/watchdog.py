"""When an agent that looks connected is given up: pure rules, `now` in, deadlines out.

Two things are watched, each by a machine of its own. `LineWatch`: does anything arrive at all, pongs included?
`AnswerWatch`: the line works, but does the agent answer what the caller said?

Both distrust themselves first. A timer that comes late shows that this process stood still, and then what has
arrived may wait unread: the peer gets a little more time, counted from now.
"""

from __future__ import annotations

import math

from bridge_shared.protocol import deepgram as dg

SILENT_SECONDS = 6.0
"""A line on which pings were answered and nothing has arrived for so long is dead."""

PING_SECONDS = 2.0

LATE_SECONDS = 0.25
"""A timer that is later than this says more about this process than about the agent."""

AGAIN_SECONDS = 1.0
"""What the agent gets on top then."""


class LineWatch:
    """Whether the other end of one connection is still there."""

    def __init__(self, now: float) -> None:
        self._heard_at = self._give_up_from = now
        self._ping_at = now
        self._answers = False

    def heard(self, now: float) -> None:
        """Something has arrived, whatever it is."""
        self._heard_at = max(self._heard_at, now)

    def ponged(self) -> None:
        """A ping was answered: from now on silence means something."""
        self._answers = True

    def ping_due(self, now: float) -> bool:
        """Whether to ping now; asking counts as having done so."""
        if now < self._ping_at:
            return False
        self._ping_at = now + PING_SECONDS
        return True

    def lost(self, now: float) -> bool:
        """Whether the line is dead."""
        due = self._due()
        if now < due:
            return False
        if now > due + LATE_SECONDS:
            self._give_up_from = now + AGAIN_SECONDS
            return False
        return True

    def deadline(self) -> float:
        """When to ask again, at the latest."""
        return min(self._ping_at, self._due())

    def _due(self) -> float:
        if not self._answers:
            return math.inf
        return max(self._heard_at + SILENT_SECONDS, self._give_up_from)


class AnswerWatch:
    """Whether the agent owes the caller an answer for too long. One per call, whatever becomes of its agents.

    An answer is owed from the caller's text, or a function's response, until the agent shows by anything that
    it works on one. A slow model looks the same as a stalled agent, so each time that one is given up the next
    ones get twice as long for the rest of the call: a model that always needs longer is replaced in vain once or
    twice, not for ever.

    Args:
        seconds: how long an answer may be owed; 0 = for ever.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds or math.inf
        self._due = math.inf
        self._calling = False
        """A function is being called: the agent waits for us."""

    @property
    def calling(self) -> bool:
        """A function was called, and the agent has not gone on since."""
        return self._calling

    def connected(self) -> None:
        """Another agent: it owes nothing yet."""
        self._due, self._calling = math.inf, False

    def saw(self, event: dg.AgentEvent, now: float) -> None:
        """Take what the agent says into account."""
        match event:
            case dg.ConversationText(role="user"):
                self._due = math.inf if self._calling else now + self._seconds
            case dg.ConversationText() | dg.Audio() | dg.AgentStartedSpeaking():
                self._due, self._calling = math.inf, False
            case dg.FunctionCallRequest():
                self._due, self._calling = math.inf, True
            case dg.FunctionCallCancelled():
                self._calling = False
            case dg.AgentThinking():
                self._due = math.inf
            case dg.UserStartedSpeaking():
                self._due = math.inf  # the agent waits for the caller's end
            case dg.Warned() if self._due < math.inf:
                self._due = now + self._seconds  # of a slow model, say: somebody is at work
            case _:
                pass

    def answered(self, now: float) -> None:
        """The agent has its function's response: what it says next is owed from now on."""
        self._due = now + self._seconds

    def stalled(self, now: float) -> bool:
        """Whether the agent shall be given up for this."""
        if now < self._due:
            return False
        if now > self._due + LATE_SECONDS:
            self._due = now + AGAIN_SECONDS
            return False
        self._due = math.inf
        self._seconds *= 2
        return True

    def deadline(self) -> float:
        """When to ask again, at the latest."""
        return self._due
