"""What a simulated agent keeps of one connection, within bounds, and what it notes down against the client.

Pure: the time of each frame is passed in. Memory is bounded so that a simulator can run for days.
"""

from __future__ import annotations

from bridge_shared.protocol.media import Media

MOST_AUDIO = 8 * 1024 * 1024
"""Bytes kept per direction; later audio is counted only."""
MOST_FRAMES = 200_000
MOST_NOTES = 1000

PACE = 1.25
"""Times real time at which Deepgram consumes caller audio (Voice Agent reference §5.2)."""
ALLOWANCE_S = 2.0
"""A tail that long may be sent at once, after a reconnect."""


class Record:
    """One connection's audio, texts and trespasses.

    Attributes:
        heard: all caller audio, frame after frame.
        spoken: all agent audio.
        heard_bytes, spoken_bytes: the same as counts, also when nothing is recorded.
        frames: arrival (monotonic seconds) and size of each frame of caller audio.
        texts: (role, content) of every ConversationText that was sent.
        said_at: when each of them was, in monotonic seconds.
        problems: sentences about frames that a client should not have sent, or not then.
    """

    def __init__(self, *, keep: bool) -> None:
        self.keep = keep
        self.heard = bytearray()
        self.spoken = bytearray()
        self.heard_bytes = self.spoken_bytes = 0
        self.frames: list[tuple[float, int]] = []
        self.texts: list[tuple[str, str]] = []
        self.said_at: list[float] = []
        self.problems: list[str] = []
        self._backlog = 0.0  # seconds of audio ahead of PACE
        self._last = 0.0
        self._too_fast = False

    def hear(self, data: bytes, media: Media, now: float) -> None:
        """One binary frame from the client."""
        size = len(data)
        self.heard_bytes += size
        if not self.keep:
            return
        if len(self.heard) + size <= MOST_AUDIO and len(self.frames) < MOST_FRAMES:
            self.heard += data
            self.frames.append((now, size))
        if not data:
            self.problem("a zero-length audio frame")
        if size % media.sample_bytes:
            self.problem(f"an audio frame of {size} bytes, not whole samples")
        self._check_pace(media.ms(size) / 1000, now)

    def _check_pace(self, seconds: float, now: float) -> None:
        passed = now - self._last if self._last else 0.0
        self._last = now
        self._backlog = max(0.0, self._backlog - passed * PACE) + seconds
        too_fast = self._backlog > ALLOWANCE_S
        if too_fast and not self._too_fast:
            self.problem(f"audio came faster than {PACE} times real time by {self._backlog:.1f} s")
        self._too_fast = too_fast

    def speak(self, data: bytes) -> None:
        """One binary frame to the client."""
        self.spoken_bytes += len(data)
        if self.keep and len(self.spoken) + len(data) <= MOST_AUDIO:
            self.spoken += data

    def text(self, role: str, content: str, now: float) -> None:
        self.texts.append((role, content))
        self.said_at.append(now)
        del self.texts[:-MOST_NOTES], self.said_at[:-MOST_NOTES]

    def problem(self, sentence: str) -> None:
        if len(self.problems) < MOST_NOTES:
            self.problems.append(sentence)
