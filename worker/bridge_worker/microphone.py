"""What the agent hears: the caller's audio as it comes, and silence in real time where none comes.

A pure machine. The agent needs a stream that never stops: it finds the end of an utterance by the silence
behind it, and closes a socket that is quiet for some seconds (Voice Agent reference §5.1). VAIC closes the
caller's stream around every prompt when barge-in is off (Bot API reference §5.3), so silence of the right
encoding is made for exactly the time that audio does not cover, never as a burst.

Nor does audio that was held up on its way, or while there was no agent, go to it as a burst: it would only be late
by as much for the rest of the call (Voice Agent reference §5.2). Of what comes too fast the newest two seconds wait,
the rest is dropped.
"""

from __future__ import annotations

from collections import deque

from bridge_shared.protocol.media import Media

OPEN_PATIENCE_SECONDS = 1.0
"""An open stream may be this late before silence stands in: its audio will still come, and audio that comes
on top of silence would reach the agent faster than real time."""

LONGEST_SILENCE_SECONDS = 1.0
"""After a stall of ours the missed silence is not made up for."""

AHEAD_SECONDS = 1.0
"""What the agent may have, audio and silence, beyond what it has taken in: VAIC keeps nearly as much until its stream
is open."""

INTAKE = 1.25
"""Deepgram takes in speech at most so many times as fast as it is spoken (Voice Agent reference §5.2)."""

WAITING_SECONDS = 2.0


class Microphone:
    """Covers the time line of one agent connection after another with audio."""

    def __init__(self, media: Media, now: float) -> None:
        self._media = media
        self._open = False
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._most = media.nbytes(WAITING_SECONDS * 1000)
        self.connected(now)

    def connected(self, now: float) -> None:
        """There is another agent, which has heard nothing yet."""
        self._covered_until = now
        self._ahead, self._ahead_at = 0.0, now

    @property
    def is_open(self) -> bool:
        """Whether VAIC has the caller's stream open."""
        return self._open

    def stream(self, is_open: bool) -> None:
        """VAIC opened or closed the caller's stream."""
        self._open = is_open

    def audio(self, data: bytes) -> float:
        """Take caller audio: whole samples. Returns how many milliseconds of what waited were dropped for it."""
        self._open = True
        dropped = max(0, len(data) - self._most)
        data = data[dropped:]
        self._waiting.append(data)
        self._waiting_bytes += len(data)
        while self._waiting_bytes > self._most:
            oldest = self._waiting.popleft()
            self._waiting_bytes -= len(oldest)
            dropped += len(oldest)
        return self._media.ms(dropped) if dropped else 0.0

    def due(self, now: float) -> list[bytes]:
        """What goes to the agent at this moment: audio or, where none covers the time, silence."""
        self._ahead = max(0.0, self._ahead - INTAKE * (now - self._ahead_at))
        self._ahead_at = now
        pieces = []
        while self._waiting and self._ahead < AHEAD_SECONDS:
            data = self._waiting.popleft()
            self._waiting_bytes -= len(data)
            seconds = self._media.ms(len(data)) / 1000
            self._ahead += seconds
            # it counts as just spoken: the time line never runs ahead by more than what has come at once
            self._covered_until = max(self._covered_until, now - seconds) + seconds
            pieces.append(data)
        if now > self._covered_until and (silence := self._silence(now)):
            self._ahead += self._media.ms(len(silence)) / 1000
            pieces.append(silence)
        return pieces

    def _silence(self, now: float) -> bytes:
        missing = now - self._covered_until
        if missing <= (OPEN_PATIENCE_SECONDS if self._open else 0.0):
            return b""
        silence = self._media.silence(min(missing, LONGEST_SILENCE_SECONDS) * 1000)
        if missing > LONGEST_SILENCE_SECONDS:
            self._covered_until = now
        else:  # a part of a sample is due with the next
            self._covered_until += self._media.ms(len(silence)) / 1000
        return silence
