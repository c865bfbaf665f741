"""What came of a simulated call: figures, what was heard, and what was wrong with it."""

from __future__ import annotations

import wave
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bridge_shared.protocol.audiocodes import Violation
from bridge_shared.protocol.media import media
from bridge_sim import pcm
from bridge_sim.playclock import Played


@dataclass(frozen=True, slots=True)
class CallEvent:
    """Something to show while the call is going on.

    Attributes:
        kind: `connected`, `accepted`, `refused`, `listening` (the caller can be heard), `muted`, `says` (the caller;
            the text of the prompt), `presses` (the caller; the keys), `recognised` (what the bot made of it), `plays`
            (the agent; its altText), `played`, `interrupted`, `activity` (from the bot), `speech` (the bot's other
            speech events), `dropped`, `resumed`, `violation`, `ended`.
        text: for a person; may be empty.
        data: what belongs to the kind: times in ms, the activity, the stream id, the conversation id.
    """

    kind: str
    text: str = ""
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Heard:
    """One play stream as the caller heard it."""

    stream_id: str
    media_format: str
    data: bytes
    """Without header, without what was cut off."""
    status: str
    """`finished`, `interrupted`, or `open` if the call ended while it was."""
    runs: tuple[tuple[float, int], ...]
    """Where sound began: (seconds since the call began, offset in `data`)."""

    @classmethod
    def of(cls, played: Played, began: float) -> Heard:
        """From the play clock, whose moments become seconds since `began`."""
        runs = tuple((at - began, offset) for at, offset in played.runs if offset <= len(played.data))
        return cls(played.stream_id, played.media.token, bytes(played.data), played.status or "open", runs)


@dataclass(slots=True)
class CallReport:
    """One call, as far as it got."""

    conversation_id: str
    problem: str | None = None
    status: int | None = None
    """The HTTP status with which the upgrade was refused."""
    """The first thing that went wrong, for a person. Violations are listed apart."""
    media_format: str = ""
    setup_ms: float | None = None
    """From the start of connecting to `session.accepted`."""
    turns: int = 0
    """Prompts that were said and answered, or interrupted on purpose."""
    answer_ms: list[float] = field(default_factory=list)
    """Per answer: from the last sample of the caller's speech to the arrival of the agent's first chunk."""
    cut_ms: list[float] = field(default_factory=list)
    """Per interruption: from the first sample of the caller's speech to the moment the agent fell silent."""
    resume_ms: list[float] = field(default_factory=list)
    """Per lost socket: from the start of connecting again to `session.accepted`."""
    gaps: list[float] = field(default_factory=list)
    """Underruns in ms: silences in the middle of a play stream that had not ended."""
    max_lead_ms: float = 0.0
    """The most that the bot was ahead of the play clock."""
    violations: list[Violation] = field(default_factory=list)
    heard: list[Heard] = field(default_factory=list)
    sent_audio: bytes = b""
    """Everything sent as userStream.chunk, in the agreed format."""
    transcript: list[tuple[str, str]] = field(default_factory=list)
    """`user` from userStream.speech.recognition, `assistant` from the altText of play streams."""
    activities: list[dict[str, Any]] = field(default_factory=list)
    """What the bot sent."""
    end: str = ""
    """`client-disconnected`, `bot-disconnected`, `transferred`, `refused`, `lost`; empty if it never began."""
    seconds: float = 0.0
    """How long the call lasted, from the start of connecting."""

    @property
    def ok(self) -> bool:
        """Everything planned was done. Says nothing of `violations`."""
        return self.problem is None

    def wav(self, path: str | Path) -> None:
        """Write what the caller heard in real time, silence where nothing was played, as a 16-bit WAV file."""
        rate = max((media(heard.media_format).rate for heard in self.heard), default=8000)
        with Path(path).open("wb") as raw, wave.open(raw, "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(rate)
            for samples in _line(self.heard, rate, self.seconds):
                file.writeframesraw(samples)


def _line(heard: Iterable[Heard], rate: int, seconds: float) -> Iterable[bytes]:
    """Silence and speech in turn, as linear samples at one rate."""
    at = 0
    for stream in heard:
        if not stream.runs:
            continue
        coding = media(stream.media_format)
        ends = [offset for _, offset in stream.runs[1:]] + [len(stream.data)]
        for (moment, start), end in zip(stream.runs, ends, strict=True):
            begin = max(at, int(moment * rate))
            yield bytes(2 * (begin - at))
            samples = pcm.convert(stream.data[start:end], (coding.encoding, coding.rate), ("linear16", rate))
            yield samples
            at = begin + len(samples) // 2
    yield bytes(2 * max(0, int(seconds * rate) - at))
