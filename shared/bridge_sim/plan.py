"""What a simulated caller is going to do, and why a call can fail."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from bridge_shared.errors import BridgeError
from bridge_shared.protocol.media import FORMATS


@dataclass(frozen=True, slots=True)
class CallPlan:
    """One call. Names of prompts are those of `bridge_sim.speech`; times are real."""

    say: tuple[str, ...] = ()
    """One prompt per turn."""
    keys: str = ""
    """Pressed after the greeting, all at once, before anything is said; not every bot answers them."""
    barge_in: bool = False
    """What the administrator configured. Off, as in new Live Hub connections: the bot is never spoken over."""
    formats: tuple[str, ...] = FORMATS
    caller: str | None = "+4930123456"
    bot_name: str | None = "simulated"
    participant: str | None = None
    """Agent assist: the id that goes along with all caller audio."""
    play_finished: bool = True
    """`sendEventsToBot` has "playFinished"."""
    start_delay_s: float = 0.1
    """From `session.accepted` to the start activity: 0.1 to 2 s in captures."""
    start_parameters: dict[str, Any] = field(default_factory=dict)
    """Added to those that VAIC itself gives."""
    hang_up_after: Literal["last_answer"] | None = "last_answer"
    """None: the bot has to end the call."""
    chunk_ms: int = 160
    barge: int | None = None
    """The turn whose answer is interrupted, one second after it began, by the next prompt."""
    turn_timeout_s: float = 20.0
    """How long each answer, with its playing, may take."""
    transfer_fails: bool = False
    """Answer a transfer with transferStatus `failed` instead of ending the call."""
    resume_after_s: float | None = None
    """A lost socket is replaced after this time, again and again for 10 s. None: it is the end of the call."""
    resume_url: str | None = None
    """Where to resume, if not at the URL of the call."""

    def __post_init__(self) -> None:
        if self.barge is not None and not (self.barge_in and 0 <= self.barge < len(self.say) - 1):
            raise ValueError("barge needs barge_in, and a prompt after the turn that it interrupts")


class CallProblem(BridgeError):
    """The call did not go as planned.

    Attributes:
        status: the HTTP status with which the upgrade was refused, or None.
    """

    def __init__(self, problem: str, status: int | None = None) -> None:
        self.status = status
        super().__init__(problem)
